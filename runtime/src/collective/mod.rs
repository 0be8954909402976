//! Ranks of one run: what carries bytes between them, and the collectives made of it.

pub mod fabric;
mod failure;
mod fold;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod threads;
mod traffic;
mod transport;
mod world;

pub use failure::Failure;
pub use launch::{LaunchError, Launched, Launcher, exit};
#[cfg(feature = "mpi")]
pub use mpi::{Mpi, MpiError};
#[cfg(feature = "nccl")]
pub use nccl::{Nccl, NcclError};
pub use threads::{Threads, threads};
pub use traffic::{Flow, Traffic};
pub use transport::{Lost, Transport};
pub use world::{Carrier, Errand, Exchange, Pending, World};
