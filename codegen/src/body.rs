//! Bodies: straight-line scalar programs that run inside a kernel, once an element.
//!
//! Floats are computed in f32 and integers in i32, whatever the buffers hold; a truth value is an
//! integer 0 or 1. A body is plain data, so it is a kernel's compile-time argument and its cache key.

use omchat_ir::{Dtype, Scalar};

/// What a step yields inside a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A 32-bit float.
    Float,
    /// A 32-bit integer or a truth value.
    Int,
}

impl Kind {
    /// The kind in which elements of a dtype are computed.
    pub fn of(dtype: Dtype) -> Kind {
        if dtype.is_float() { Kind::Float } else { Kind::Int }
    }
}

/// One step; operands are indices of earlier steps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The element of `reads[read]` at the current index, widened.
    Read {
        /// Index into the nest's reads.
        read: usize,
        /// Kind of the buffer's dtype.
        kind: Kind,
    },
    /// What the fold yielded; only in an epilogue. An `arg_max` yields an integer.
    Folded {
        /// Kind of the folded value.
        kind: Kind,
    },
    /// The current index along an axis of the nest (kept axes first, then folded), an integer.
    Index {
        /// Axis of the nest.
        axis: usize,
    },
    /// A float constant, by its bits so that a body can be hashed.
    Float {
        /// `f32::to_bits` of the value.
        bits: u32,
    },
    /// An integer constant.
    Int {
        /// The value.
        value: i32,
    },
    /// A scalar function of earlier steps.
    Apply {
        /// The function.
        f: Scalar,
        /// Its operands.
        args: Vec<usize>,
        /// Kind of the value operands (of the last operand for `select`).
        of: Kind,
    },
    /// An earlier step as another kind: truncation to an integer, or the exact float of one.
    Convert {
        /// The operand.
        arg: usize,
        /// Kind of the result.
        to: Kind,
    },
    /// A float rounded to a narrower storage dtype and widened again (a `cast` between pointwise steps).
    Round {
        /// The operand.
        arg: usize,
        /// The narrower dtype: `bf16` or `f16`.
        to: Dtype,
    },
    /// Whether a number differs from 0: a cast to `bool`.
    Truth {
        /// The operand.
        arg: usize,
    },
}

/// Steps in order, and which of them are results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Body {
    /// The program.
    pub steps: Vec<Step>,
    /// Steps that leave the body: one for a fold, else one a write.
    pub results: Vec<usize>,
}

impl Body {
    /// The kind of a step's value.
    pub fn kind(&self, step: usize) -> Kind {
        match &self.steps[step] {
            Step::Read { kind, .. } | Step::Folded { kind } => *kind,
            Step::Index { .. } | Step::Int { .. } | Step::Truth { .. } => Kind::Int,
            Step::Float { .. } | Step::Round { .. } => Kind::Float,
            Step::Convert { to, .. } => *to,
            Step::Apply { f, of, .. } => match f.class() {
                omchat_ir::Class::Compare | omchat_ir::Class::Logic => Kind::Int,
                _ => *of,
            },
        }
    }

    /// Adds a step unless an equal one is there; yields its index.
    pub fn push(&mut self, step: Step) -> usize {
        if let Some(at) = self.steps.iter().position(|s| *s == step) {
            return at;
        }
        self.steps.push(step);
        self.steps.len() - 1
    }
}
