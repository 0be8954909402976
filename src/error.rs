//! What can go wrong between a question and its answer.

/// Why a model, an engine or a session failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Files, pictures, videos or words; whoever gave them mends it.
    #[error(transparent)]
    Model(#[from] omchat_model::Error),
    /// Devices, memory or kernels.
    #[error(transparent)]
    Runtime(#[from] omchat_runtime::Error),
    /// A module that could not be built; a size that makes no sense.
    #[error(transparent)]
    Module(#[from] omchat_ir::Diagnostics),
    /// The tokens do not fit the context; a longer one does.
    #[error("{need} tokens do not fit a context of {have}: give --context {need} or more")]
    Context {
        /// Tokens in all.
        need: usize,
        /// Tokens there is room for.
        have: usize,
    },
    /// No plan of a training step holds so little.
    #[error(
        "a training step needs {need} bytes at the least, the budget is {have}: raise it, or train fewer tokens or parts"
    )]
    Budget {
        /// The least that was found.
        need: u64,
        /// What was given.
        have: u64,
    },
    /// More is asked for than there is, or something that makes no sense; the caller mends it.
    #[error("{0}")]
    Input(String),
    /// A number that should be finite is not.
    #[error("{what} holds {value} at index {index}: the weights or the pixels are unusable")]
    Numeric {
        /// What was looked at.
        what: &'static str,
        /// The first bad value.
        value: f32,
        /// Where.
        index: usize,
    },
    /// Training came to a number that is not finite; the last checkpoint stands.
    #[error(
        "{what} is {value} at step {step}, in stage `{stage}`: the batch is kept in {}; `omchat train --replay {step}` says which document and tensor, also by a recipe with a lower rate; with another rate or mended data begin in another folder: --resume goes on with the same recipe and data only",
        batch.display()
    )]
    Diverged {
        /// What was looked at.
        what: &'static str,
        /// The bad value.
        value: f32,
        /// Which step of the run, from 1.
        step: u64,
        /// The stage.
        stage: String,
        /// The folder that holds the batch and where it came from.
        batch: std::path::PathBuf,
    },
    /// Data and recipes.
    #[error(transparent)]
    Recipe(#[from] omchat_recipe::Error),
}
