//! Ranks of one run: what carries bytes between them, and the collectives made of it.

#[cfg(feature = "mpi")]
mod mpi;
mod transport;

#[cfg(feature = "mpi")]
pub use mpi::{Mpi, MpiError, abort};
pub use transport::{Lost, Transport};
