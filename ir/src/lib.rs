//! The language of OmChat: a small tensor IR, straight-line SSA over dense tensors.

mod scalar;
mod types;

pub use scalar::{Class, Scalar, erf};
pub use types::{Dtype, Type, strides};

/// What a template's letter stands for in an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bind {
    /// A size.
    Size(usize),
    /// An element type.
    Dtype(Dtype),
}
