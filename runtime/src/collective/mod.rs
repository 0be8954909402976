//! Ranks of one run: what carries bytes between them, and the collectives made of it.

mod failure;
mod fold;
mod threads;
mod traffic;
mod transport;
mod world;

pub use failure::Failure;
pub use threads::{Threads, threads};
pub use traffic::{Flow, Traffic};
pub use transport::{Lost, Transport};
pub use world::{Pending, World};
