//! Ranks of one run: what carries bytes between them, and the collectives made of it.

mod transport;

pub use transport::{Lost, Transport};
