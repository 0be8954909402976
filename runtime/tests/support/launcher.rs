//! The launcher that belongs to the MPI that the tests were built with.
#![allow(dead_code)]

use omchat_runtime::collective::Mpi;
use std::process::Command;

/// Whether the library is MPICH, whose launcher kills the others by SIGKILL as soon as one ended badly; else it is Open MPI.
pub fn mpich() -> bool {
    Mpi::library().starts_with("MPICH")
}

/// The launcher: Debian's name where several MPIs are installed, else everyone's. Says so where there is none.
pub fn launcher(what: &str) -> Option<&'static str> {
    let names = if mpich() { ["mpiexec.mpich", "mpiexec.hydra"] } else { ["mpirun.openmpi", "mpirun"] };
    let there = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    let found = names.into_iter().find(there);
    if found.is_none() {
        println!("skipped: {what} under {} (no {} on PATH)", Mpi::library(), names.join(" or "));
    }
    found
}

/// What a launcher is told where ranks are more than cores, as root, and need this long to tell their errors.
pub fn flags(grace_s: u32) -> Vec<String> {
    if mpich() {
        return vec![];
    }
    let fixed = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "odls_base_sigkill_timeout"];
    fixed.iter().map(|s| s.to_string()).chain([grace_s.to_string()]).collect()
}
