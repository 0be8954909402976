//! Tensors on the host as they go to and come from a device: a type and its bytes.

use omchat_ir::{Dtype, Tensor, Type};
use std::borrow::Cow;

/// A dense tensor's bytes, as a device buffer holds them (a `bool` is an i32 of 0 or 1).
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Dtype and shape.
    pub ty: Type,
    /// Little-endian elements, row-major.
    pub bytes: Vec<u8>,
}

impl HostTensor {
    /// Floats as f32.
    pub fn f32(shape: impl Into<Vec<usize>>, data: &[f32]) -> HostTensor {
        HostTensor { ty: Type::new(Dtype::F32, shape), bytes: bytemuck::cast_slice(data).to_vec() }
    }

    /// Integers.
    pub fn i32(shape: impl Into<Vec<usize>>, data: &[i32]) -> HostTensor {
        HostTensor { ty: Type::new(Dtype::I32, shape), bytes: bytemuck::cast_slice(data).to_vec() }
    }

    /// All zeros.
    pub fn zeros(ty: Type) -> HostTensor {
        let bytes = vec![0; ty.bytes()];
        HostTensor { ty, bytes }
    }

    /// Floats rounded to that dtype.
    ///
    /// Shapes: `shape` holds `data.len()` elements.
    pub fn floats(dtype: Dtype, shape: impl Into<Vec<usize>>, data: &[f32]) -> HostTensor {
        let bytes = match dtype {
            Dtype::Bf16 => data.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
            Dtype::F16 => data.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
            Dtype::F32 => bytemuck::cast_slice(data).to_vec(),
            Dtype::I32 | Dtype::Bool => data.iter().flat_map(|x| (*x as i32).to_le_bytes()).collect(),
        };
        HostTensor { ty: Type::new(dtype, shape), bytes }
    }

    /// Its elements as f32.
    pub(crate) fn widened(&self) -> HostTensor {
        HostTensor::floats(Dtype::F32, self.ty.shape.clone(), &self.to_f32())
    }

    /// Its bytes in whole words, as a device that packs halves binds them.
    pub(crate) fn words(&self) -> Cow<'_, [u8]> {
        let mut bytes = Cow::Borrowed(&self.bytes[..]);
        if !bytes.len().is_multiple_of(4) {
            let whole = bytes.len().next_multiple_of(4);
            bytes.to_mut().resize(whole, 0);
        }
        bytes
    }

    /// The same in another float dtype: a device that lacks halves takes f32.
    pub fn in_dtype(&self, dtype: Dtype) -> Cow<'_, HostTensor> {
        if self.ty.dtype != dtype && self.ty.dtype.is_float() && dtype.is_float() {
            return Cow::Owned(HostTensor::floats(dtype, self.ty.shape.clone(), &self.to_f32()));
        }
        Cow::Borrowed(self)
    }

    /// Every element as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        if self.ty.dtype == Dtype::F32 {
            return bytemuck::pod_collect_to_vec(&self.bytes);
        }
        self.elements(|d, b| match d {
            Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Dtype::Bf16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Dtype::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
            Dtype::I32 | Dtype::Bool => i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32,
        })
    }

    /// Every element as i32; floats truncate.
    pub fn to_i32(&self) -> Vec<i32> {
        match self.ty.dtype {
            Dtype::I32 | Dtype::Bool => self.elements(|_, b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            _ => self.to_f32().iter().map(|x| *x as i32).collect(),
        }
    }

    fn elements<T>(&self, f: impl Fn(Dtype, &[u8]) -> T) -> Vec<T> {
        self.bytes.chunks_exact(self.ty.dtype.bytes()).map(|b| f(self.ty.dtype, b)).collect()
    }

    /// The interpreter's tensor.
    pub fn to_tensor(&self) -> Tensor {
        let data = match self.ty.dtype {
            Dtype::I32 | Dtype::Bool => self.to_i32().iter().map(|x| f64::from(*x)).collect(),
            _ => self.to_f32().iter().map(|x| f64::from(*x)).collect(),
        };
        Tensor { ty: self.ty.clone(), data }
    }

    /// From the interpreter's tensor.
    pub fn from_tensor(t: &Tensor) -> HostTensor {
        match t.ty.dtype {
            Dtype::I32 | Dtype::Bool => {
                HostTensor { ty: t.ty.clone(), bytes: t.data.iter().flat_map(|x| (*x as i32).to_le_bytes()).collect() }
            }
            d => HostTensor::floats(d, t.ty.shape.clone(), &t.data.iter().map(|x| *x as f32).collect::<Vec<_>>()),
        }
    }
}
