//! What can go wrong while a program is loaded or run.

/// Why a device, a program or a run failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device cannot be had; the caller can choose another.
    #[error("no device `{name}`: {reason}")]
    NoDevice {
        /// What was asked for.
        name: String,
        /// Why not, and the mend.
        reason: String,
    },
    /// The module has no program there; its author or the caller's sizes can mend it.
    #[error(transparent)]
    Codegen(#[from] omchat_codegen::Error),
    /// The interpreter refused.
    #[error(transparent)]
    Interpret(#[from] omchat_ir::Diagnostics),
    /// A kernel could not be made ready; a fault of this project.
    #[error(transparent)]
    Launch(#[from] omchat_kernels::LaunchError),
    /// An input, weight or state was not given.
    #[error("`%{name}` was not given to @{entry}; it is {want}")]
    Missing {
        /// The parameter.
        name: String,
        /// The entry.
        entry: String,
        /// Its type.
        want: String,
    },
    /// An input, weight or state is of another type.
    #[error("`%{name}` is {have}, @{entry} takes {want}")]
    WrongType {
        /// The parameter.
        name: String,
        /// The entry.
        entry: String,
        /// Its type.
        want: String,
        /// What was given.
        have: String,
    },
    /// The device has less memory than is asked for.
    #[error("{what} needs {need} bytes, {device} has {have}: take a shorter context or another device")]
    OutOfMemory {
        /// What asked.
        what: String,
        /// Bytes asked for.
        need: u64,
        /// Bytes there are.
        have: u64,
        /// The device.
        device: String,
    },
    /// Collectives were to go from device to device, and cannot.
    #[error("`--exchange nccl`: {reason}; leave `--exchange` out to go through the host where NCCL cannot")]
    Exchange {
        /// Why not.
        reason: String,
    },
    /// Ranks can go on no longer together.
    #[error(transparent)]
    Ranks(#[from] crate::collective::Failure),
    /// A kernel or its compiler failed on the device; results since the last read are void.
    #[error("the device {device} failed: {message}")]
    Device {
        /// The device.
        device: String,
        /// What it said.
        message: String,
    },
    /// A table of measured schedules cannot be read; line 0 is the whole file.
    #[error("{path}{}: {what}; mend or remove it, or set OMCHAT_TUNED=off; `omchat tune` writes a new one", at(*line))]
    Table {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
}

fn at(line: usize) -> String {
    if line == 0 { String::new() } else { format!(":{line}") }
}
