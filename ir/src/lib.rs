//! The language of OmChat: a small tensor IR, straight-line SSA over dense tensors.
//!
//! A module is concrete: it knows no symbol, loop, branch or stride. Sizes by letter and `for` exist in the
//! text and vanish when a function is instantiated. The reference interpreter is the meaning; a kernel is a
//! faster way to run a function, never a new meaning.
//!
//! ```
//! let m = omchat_ir::parse("func @double(%x: f32[3]) -> f32[3] { %y = add %x, %x return %y }")?;
//! assert_eq!(omchat_ir::parse(&m.to_string())?, m);
//! # Ok::<(), omchat_ir::Diagnostics>(())
//! ```

mod axes;
mod build;
mod differentiate;
mod fault;
mod interpret;
pub mod library;
mod module;
pub mod ops;
mod scalar;
mod tensor;
pub mod text;
mod types;
mod verify;

pub use axes::{Axes, Group, Sizes};
pub use build::Builder;
pub use differentiate::{Differentiate, Emit, Expr, Local, differentiate};
pub use fault::{Code, Diagnostic, Diagnostics, Fault, Place};
pub use interpret::{MOST_ELEMENTS, Mode, check, interpret};
pub use module::{Action, Func, Function, Module, Named, Node, Role, Value};
pub use ops::Op;
pub use scalar::{Class, Scalar, erf};
pub use tensor::{Tensor, offsets, view};
pub use text::{Scope, format, parse};
pub use types::{Dtype, Type, strides};

/// What a template's letter stands for in an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bind {
    /// A size.
    Size(usize),
    /// An element type.
    Dtype(Dtype),
}
