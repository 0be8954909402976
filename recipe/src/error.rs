//! What can be wrong with data, recipes and questions.

use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no data, no recipe or no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read or written.
    #[error("{}: {why}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// A file that does not hold what it should.
    #[error("{}: {what}; {mend}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with the value.
        what: String,
        /// What to do.
        mend: String,
    },
    /// A value that cannot be used.
    #[error("{what}; {mend}")]
    Input {
        /// What is wrong, with the value and the limit.
        what: String,
        /// What to do.
        mend: String,
    },
    /// What the model crate says of words, pictures and videos.
    #[error(transparent)]
    Model(#[from] omchat_model::Error),
    /// What stopped whoever was asked.
    #[error(transparent)]
    Stopped(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// A file that the system refuses.
    pub fn file(path: &Path, why: std::io::Error) -> Error {
        Error::File { path: path.to_path_buf(), why }
    }

    /// A file whose content is wrong.
    pub fn format(path: &Path, what: impl Into<String>, mend: impl Into<String>) -> Error {
        Error::Format { path: path.to_path_buf(), what: what.into(), mend: mend.into() }
    }

    /// A value that cannot be used.
    pub fn input(what: impl Into<String>, mend: impl Into<String>) -> Error {
        Error::Input { what: what.into(), mend: mend.into() }
    }
}
