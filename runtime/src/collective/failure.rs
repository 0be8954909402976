//! Why ranks can go on no longer together.

use super::Lost;

/// Why ranks can go on no longer together. The run stops; its last checkpoint stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A rank is gone.
    #[error("{lost}: rank {here} waited in {op} of step {step}; start all ranks again and resume the last checkpoint")]
    Lost {
        /// Who, and what was seen of it.
        lost: Lost,
        /// Where this rank was.
        op: String,
        /// In which step.
        step: u64,
        /// This rank.
        here: usize,
    },
    /// What carries between devices failed on this rank.
    #[error("rank {here} could not go on in {op} of step {step}: {what}; `--exchange host` goes through the host")]
    Devices {
        /// What failed, and what it said.
        what: String,
        /// Where this rank was.
        op: String,
        /// In which step.
        step: u64,
        /// This rank.
        here: usize,
    },
    /// Two ranks met in different collectives: they do not run the same program on the same sizes.
    #[error(
        "ranks {here} and {rank} do not run the same: {here} is at {ours}, {rank} at {theirs}; give all the same options"
    )]
    Apart {
        /// The other rank.
        rank: usize,
        /// What it is at.
        theirs: String,
        /// This rank.
        here: usize,
        /// What this rank is at.
        ours: String,
    },
}
