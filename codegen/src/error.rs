//! What codegen answers when it cannot lower.

use omchat_ir::{Diagnostics, Dtype};

/// Why a module has no program on a target.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The module breaks a rule of the language; its author can mend it.
    #[error("{0}")]
    Invalid(#[from] Diagnostics),
    /// No kernel takes a piece of work; `refusals` say why each would not.
    #[error("no kernel runs `{work}` on {target}: {refusals}")]
    NoKernel {
        /// The work, in words.
        work: String,
        /// The target's name.
        target: String,
        /// Each kernel's reason.
        refusals: String,
    },
    /// The target holds no such element type, and there is no wider one.
    #[error("{target} holds no {dtype}; its dtypes are {have}")]
    Unsupported {
        /// The dtype asked for.
        dtype: Dtype,
        /// The target's name.
        target: String,
        /// What it holds.
        have: String,
    },
    /// A limit of the target is too small; fewer tokens, tiles or slots would fit.
    #[error("{what} needs {need} {name}, {target} allows {have}: {mend}")]
    Limit {
        /// Which limit.
        name: &'static str,
        /// What exceeds it.
        what: String,
        /// What it needs.
        need: usize,
        /// What the target allows.
        have: usize,
        /// The target's name.
        target: String,
        /// What would fit.
        mend: &'static str,
    },
}
