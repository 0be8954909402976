//! Tensors of the interpreter: a type and its elements as doubles, row-major.

use crate::types::Type;

/// A dense tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Dtype and shape.
    pub ty: Type,
    /// Elements, row-major; truth values are 0 and 1.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor of those elements.
    ///
    /// Errors: a message with both numbers if the shape holds another number of elements.
    pub fn new(ty: Type, data: Vec<f64>) -> Result<Tensor, String> {
        if ty.elements() == data.len() {
            return Ok(Tensor { ty, data });
        }
        Err(format!("{ty} holds {} elements, {} were given", ty.elements(), data.len()))
    }

    /// A tensor full of one number.
    pub fn full(ty: Type, x: f64) -> Tensor {
        let data = vec![x; ty.elements()];
        Tensor { ty, data }
    }

    /// Every element rounded to what its dtype can hold.
    #[must_use]
    pub fn rounded(mut self) -> Tensor {
        let dtype = self.ty.dtype;
        self.data.iter_mut().for_each(|x| *x = dtype.round(*x));
        self
    }
}

/// The offset of each point of a row-major walk over `shape`, for a view with those strides.
pub fn offsets(shape: &[usize], strides: &[usize]) -> Vec<usize> {
    let mut out = vec![0usize];
    for (&n, &s) in shape.iter().zip(strides) {
        out = out.iter().flat_map(|&o| (0..n).map(move |i| o + i * s)).collect();
    }
    out
}

/// The strides, in `words` order, of a tensor whose axes are `own`; 0 for a word it lacks.
pub fn view(words: &[&str], own: &[&str], strides: &[usize]) -> Vec<usize> {
    words.iter().map(|w| own.iter().position(|o| o == w).map_or(0, |i| strides[i])).collect()
}
