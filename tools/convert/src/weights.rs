//! The tensors of the new model, in the element type that is written.

use crate::Result;
use half::f16;
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The element type that is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// Halves, rounded to nearest, ties to even.
    F16,
    /// Single precision.
    F32,
}

impl Dtype {
    /// The type that PyTorch calls so.
    pub fn named(name: &str) -> Result<Dtype> {
        match name {
            "float16" => Ok(Dtype::F16),
            "float32" => Ok(Dtype::F32),
            _ => Err(format!("--dtype {name}: give float16 or float32").into()),
        }
    }

    fn bytes(self) -> usize {
        match self {
            Dtype::F16 => 2,
            Dtype::F32 => 4,
        }
    }

    /// What PyTorch calls it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F16 => "float16",
            Dtype::F32 => "float32",
        }
    }
}

/// Tensors by name, each with its shape and its bytes.
pub struct Weights {
    dtype: Dtype,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

impl Weights {
    /// None yet.
    pub fn new(dtype: Dtype) -> Weights {
        Weights { dtype, tensors: BTreeMap::new() }
    }

    /// Adds a tensor.
    ///
    /// Errors: another number of elements than the shape says; a number that is not finite in the type written.
    pub fn put(&mut self, name: &str, shape: Vec<usize>, data: &[f32]) -> Result<()> {
        let mut bytes = Vec::with_capacity(data.len() * self.dtype.bytes());
        match self.dtype {
            Dtype::F16 => data.iter().for_each(|x| bytes.extend_from_slice(&f16::from_f32(*x).to_le_bytes())),
            Dtype::F32 => data.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes())),
        }
        let finite = |x: &f32| x.is_finite() && (self.dtype == Dtype::F32 || f16::from_f32(*x).is_finite());
        if let Some(at) = data.iter().position(|x| !finite(x)) {
            return Err(format!("{name}[{at}] is {}, not finite in {}", data[at], self.dtype.name()).into());
        }
        if shape.iter().product::<usize>() != data.len() {
            return Err(format!("{name}: {} elements where {shape:?} was expected", data.len()).into());
        }
        self.tensors.insert(name.into(), (shape, bytes));
        Ok(())
    }

    /// Adds a tensor of doubles, each rounded once.
    pub fn put_f64(&mut self, name: &str, shape: Vec<usize>, data: &[f64]) -> Result<()> {
        let single: Vec<f32> = match self.dtype {
            Dtype::F16 => data.iter().map(|x| odd(*x)).collect(),
            Dtype::F32 => data.iter().map(|x| *x as f32).collect(),
        };
        self.put(name, shape, &single)
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// How many numbers they hold together.
    pub fn elements(&self) -> usize {
        self.tensors.values().map(|(shape, _)| shape.iter().product::<usize>()).sum()
    }

    /// Writes a safetensors file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let dtype = match self.dtype {
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::F32 => safetensors::Dtype::F32,
        };
        let mut views = vec![];
        for (name, (shape, bytes)) in &self.tensors {
            views.push((name, TensorView::new(dtype, shape.clone(), bytes)?));
        }
        let about = HashMap::from([("format".to_string(), "pt".to_string())]);
        Ok(safetensors::serialize_to_file(views, Some(about), path)?)
    }
}

/// A double as a single, truncated, its last bit set if anything was cut off. Rounding that to a half is rounding the
/// double: `half` cuts doubles off before it rounds, and rounding twice can miss by one too.
fn odd(x: f64) -> f32 {
    let near = x as f32;
    let bits = near.to_bits();
    match f64::from(near).abs().total_cmp(&x.abs()) {
        std::cmp::Ordering::Equal => near,
        std::cmp::Ordering::Greater => f32::from_bits((bits - 1) | 1),
        std::cmp::Ordering::Less => f32::from_bits(bits | 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_rounded_once() {
        let half = |x: f64| f16::from_f32(odd(x)).to_f64();
        let step = 2f64.powi(-10);
        // A hair beside the middle of 1 and 1 + step, closer to it than a single can tell.
        let (middle, hair) = (1.0 + step / 2.0, 2f64.powi(-40));
        assert_eq!([half(middle - hair), half(middle), half(middle + hair)], [1.0, 1.0, 1.0 + step]);
        assert_eq!([half(-middle - hair), half(-middle + hair)], [-1.0 - step, -1.0]);
        // The same above an odd half: the middle goes up, to the even one.
        assert_eq!([half(middle + step - hair), half(middle + step)], [1.0 + step, 1.0 + 2.0 * step]);
        assert_eq!([half(0.0), half(-0.02), half(0.3)], [0.0, -0.0200042724609375, 0.300048828125]);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let mut w = Weights::new(Dtype::F16);
        assert!(w.put("a", vec![2], &[1.0]).is_err());
        assert!(w.put("a", vec![1], &[f32::NAN]).is_err());
        assert!(w.put("a", vec![1], &[1e6]).is_err());
        assert!(Weights::new(Dtype::F32).put("a", vec![1], &[1e6]).is_ok());
        assert_eq!(w.len(), 0);
    }
}
