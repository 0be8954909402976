//! Types: a dtype and a shape of plain numbers. A type holds no symbol and no stride.

use std::fmt;

/// How an element is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// Brain float: 8 bits of exponent, 7 of fraction.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Signed 32-bit integer: ids and positions.
    I32,
    /// Truth value.
    Bool,
}

impl Dtype {
    /// Every dtype, in the order of the documents.
    pub const ALL: [Dtype; 5] = [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::I32, Dtype::Bool];

    /// The name in the text: `f32`, `bf16`, `f16`, `i32`, `bool`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
            Dtype::I32 => "i32",
            Dtype::Bool => "bool",
        }
    }

    /// The dtype of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Whether it is `f32`, `bf16` or `f16`.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::Bf16 | Dtype::F16)
    }

    /// Bytes of one element in a device buffer. A `bool` is stored as an `i32` of 0 or 1.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 | Dtype::I32 | Dtype::Bool => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }

    /// `x` rounded to what this dtype can hold, to nearest even; integers truncate.
    pub fn round(self, x: f64) -> f64 {
        match self {
            Dtype::F32 => f64::from(x as f32),
            Dtype::Bf16 => half::bf16::from_f64(x).to_f64(),
            Dtype::F16 => half::f16::from_f64(x).to_f64(),
            Dtype::I32 => f64::from(x as i32),
            Dtype::Bool => f64::from(u8::from(x != 0.0)),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A dense tensor's dtype and shape, row-major. A scalar has an empty shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// How each element is stored.
    pub dtype: Dtype,
    /// The size of each axis, outermost first.
    pub shape: Vec<usize>,
}

impl Type {
    /// The type of that dtype and shape.
    pub fn new(dtype: Dtype, shape: impl Into<Vec<usize>>) -> Type {
        Type { dtype, shape: shape.into() }
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements; 1 for a scalar. Saturates at `usize::MAX`.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1usize, |n, &d| n.saturating_mul(d))
    }

    /// Whether its bytes can be addressed, axes of size 0 counted as 1: strides then never overflow.
    pub fn fits(&self) -> bool {
        self.shape.iter().fold(1usize, |n, &d| n.saturating_mul(d.max(1))) <= isize::MAX as usize / 8
    }

    /// Bytes in a device buffer. Saturates at `usize::MAX`.
    pub fn bytes(&self) -> usize {
        self.elements().saturating_mul(self.dtype.bytes())
    }

    /// Row-major strides in elements, outermost first.
    pub fn strides(&self) -> Vec<usize> {
        strides(&self.shape)
    }
}

/// Row-major strides of a shape, in elements, outermost first.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i].saturating_mul(shape[i]);
    }
    out
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        if self.shape.is_empty() {
            return Ok(());
        }
        write!(f, "[")?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        write!(f, "]")
    }
}
