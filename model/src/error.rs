//! What can go wrong on the way from files, pictures and words to plain data, and who can mend it.

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong, with the value, the limit and the mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a configuration is unknown, contradicts another or asks for maths this crate does not have.
    /// The author of the configuration mends it.
    #[error("config field `{field}` is {value}: {mend}")]
    Config {
        /// The field's path, as `text_config.rope_scaling`.
        field: String,
        /// The value found, as JSON, or `absent`.
        value: String,
        /// What would be accepted.
        mend: String,
    },
    /// A file could not be read at all. Whoever placed the files mends it.
    #[error("cannot read {}: {cause}; {mend}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system or the parser said, with sizes where they matter.
        cause: String,
        /// What to do about it.
        mend: String,
    },
    /// The tensors of a checkpoint are not those that its configuration asks for: every fault, in one error.
    #[error("{}", weight_list(path, faults))]
    Weights {
        /// The checkpoint's folder.
        path: PathBuf,
        /// One entry a tensor; never empty.
        faults: Vec<WeightFault>,
    },
    /// A picture is empty, too large, not decodable, or holds values that are not finite. Its owner mends it.
    #[error("image {name}: {cause}")]
    Image {
        /// The file, or what the picture is called.
        name: String,
        /// What is wrong and what would be accepted.
        cause: String,
    },
    /// A video could not be opened or decoded; the last words of the decoder are in `cause`.
    #[error("video {}: {cause}; {mend}", path.display())]
    Video {
        /// The file or folder of frames.
        path: PathBuf,
        /// What is wrong.
        cause: String,
        /// What to do about it.
        mend: String,
    },
    /// The tokenizer is missing, unreadable or does not fit the model.
    #[error("tokenizer {}: {cause}; {mend}", path.display())]
    Tokenizer {
        /// The tokenizer's file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
        /// What to do about it.
        mend: String,
    },
    /// Ids, labels, pixels or turns that do not fit together. The caller mends it.
    #[error("{what}; {mend}")]
    Input {
        /// What was given, with both numbers.
        what: String,
        /// What would fit.
        mend: String,
    },
}

/// What is wrong with one tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightFault {
    /// The configuration asks for it and no file has it.
    Missing {
        /// The tensor's name in the released layout.
        name: String,
        /// The shape it would have.
        shape: Vec<usize>,
    },
    /// A file has it and the configuration does not ask for it.
    Extra {
        /// The name as the file spells it.
        name: String,
        /// The shape found.
        shape: Vec<usize>,
    },
    /// Its shape is not the configuration's.
    Shape {
        /// The tensor's name in the released layout.
        name: String,
        /// The shape the configuration asks for.
        want: Vec<usize>,
        /// The shape found.
        have: Vec<usize>,
    },
    /// Its numbers are of a kind that is not read as a weight, or its parts disagree.
    Dtype {
        /// The tensor's name in the released layout.
        name: String,
        /// The dtype found.
        have: String,
    },
    /// Two entries of the checkpoint are the same tensor.
    Twice {
        /// The tensor's name in the released layout.
        name: String,
    },
}

impl fmt::Display for WeightFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, shape } => write!(f, "missing {name} {shape:?}"),
            Self::Extra { name, shape } => write!(f, "extra {name} {shape:?}"),
            Self::Shape { name, want, have } => write!(f, "misshapen {name}: {have:?}, want {want:?}"),
            Self::Dtype { name, have } => write!(f, "dtype {have} of {name}: want F32, F16, BF16 or F64"),
            Self::Twice { name } => write!(f, "twice {name}"),
        }
    }
}

fn weight_list(path: &Path, faults: &[WeightFault]) -> String {
    let mut text = format!(
        "checkpoint {} does not fit its config ({} tensors); check that both are of the same model:",
        path.display(),
        faults.len()
    );
    for fault in faults {
        text.push_str("\n  ");
        text.push_str(&fault.to_string());
    }
    text
}

impl Error {
    pub(crate) fn config(field: impl Into<String>, value: impl fmt::Display, mend: impl Into<String>) -> Self {
        Self::Config { field: field.into(), value: value.to_string(), mend: mend.into() }
    }

    pub(crate) fn file(path: &Path, cause: impl fmt::Display, mend: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), cause: cause.to_string(), mend: mend.into() }
    }

    pub(crate) fn image(name: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self::Image { name: name.to_string(), cause: cause.to_string() }
    }

    pub(crate) fn video(path: &Path, cause: impl fmt::Display, mend: impl Into<String>) -> Self {
        Self::Video { path: path.to_owned(), cause: cause.to_string(), mend: mend.into() }
    }

    pub(crate) fn tokenizer(path: &Path, cause: impl fmt::Display, mend: impl Into<String>) -> Self {
        Self::Tokenizer { path: path.to_owned(), cause: cause.to_string(), mend: mend.into() }
    }

    pub(crate) fn input(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Input { what: what.into(), mend: mend.into() }
    }
}
