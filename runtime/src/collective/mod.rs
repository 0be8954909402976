//! Ranks of one run: what carries bytes between them, and the collectives made of it.

mod failure;
mod fold;
mod launch;
mod lives;
#[cfg(feature = "mpi")]
mod mpi;
mod tcp;
mod threads;
mod traffic;
mod transport;
mod wait;
mod world;

pub use failure::Failure;
pub use launch::{LaunchError, Launched, Launcher, exit};
#[cfg(feature = "mpi")]
pub use mpi::{Mpi, MpiError};
pub use tcp::{Rendezvous, Tcp, TcpError};
pub use threads::{Threads, threads};
pub use traffic::{Flow, Traffic};
pub use transport::{Lost, Transport};
pub use world::{Pending, World};
