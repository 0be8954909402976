//! Ranks of one run: what carries bytes between them, and the collectives made of it.

pub mod fabric;
mod failure;
mod fold;
mod launch;
mod lives;
#[cfg(any(feature = "cuda", test))]
mod local;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod tcp;
mod threads;
mod traffic;
mod transport;
mod wait;
mod world;

pub use failure::Failure;
pub use launch::{LaunchError, Launched, Launcher, exit};
#[cfg(feature = "cuda")]
pub(crate) use local::local_rank;
#[cfg(feature = "mpi")]
pub use mpi::{Mpi, MpiError};
#[cfg(feature = "nccl")]
pub use nccl::{Nccl, NcclError};
pub use tcp::{Rendezvous, Tcp, TcpError};
pub use threads::{Threads, threads};
pub use traffic::{Flow, Traffic};
pub use transport::{Lost, Transport};
pub use world::{Carrier, Errand, Exchange, Pending, World};

/// The version of the NCCL that ranks on GPUs would exchange by: `2.30.7`.
///
/// Errors: why there is none.
pub fn nccl() -> Result<String, String> {
    #[cfg(feature = "nccl")]
    return Nccl::found().map_err(|e| e.to_string());
    #[cfg(not(feature = "nccl"))]
    Err("built without the feature `nccl`".into())
}
