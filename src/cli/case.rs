//! Tensors in safetensors files, as the commands read and write them.

use super::Error;
use omchat_ir::{Tensor, Type};
use omchat_recipe::write_whole;
use omchat_runtime::HostTensor;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::path::Path;

/// A tensor as a file holds it.
pub struct Data {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Data {
    /// Floats as f32.
    pub fn f32(shape: Vec<usize>, data: &[f32]) -> Data {
        Data { dtype: Dtype::F32, shape, bytes: data.iter().flat_map(|x| x.to_le_bytes()).collect() }
    }

    /// Integers.
    pub fn i32(shape: Vec<usize>, data: &[i32]) -> Data {
        Data { dtype: Dtype::I32, shape, bytes: data.iter().flat_map(|x| x.to_le_bytes()).collect() }
    }

    /// Adds floats behind those that are there; the shape is the caller's care.
    pub fn extend(&mut self, data: &[f32]) {
        self.bytes.extend(data.iter().flat_map(|x| x.to_le_bytes()));
    }

    /// The interpreter's tensor in its dtype; floats as f64 if they are exact, truth values as i32.
    pub fn of(t: &Tensor, exact: bool) -> Data {
        let shape = t.ty.shape.clone();
        if exact && t.ty.dtype.is_float() {
            return Data { dtype: Dtype::F64, shape, bytes: t.data.iter().flat_map(|x| x.to_le_bytes()).collect() };
        }
        let dtype = match t.ty.dtype {
            omchat_ir::Dtype::F32 => Dtype::F32,
            omchat_ir::Dtype::Bf16 => Dtype::BF16,
            omchat_ir::Dtype::F16 => Dtype::F16,
            omchat_ir::Dtype::I32 | omchat_ir::Dtype::Bool => Dtype::I32,
        };
        Data { dtype, shape, bytes: HostTensor::from_tensor(t).bytes }
    }
}

/// Writes tensors under their names.
///
/// Errors: the file cannot be written.
pub fn write(path: &Path, tensors: &[(String, Data)]) -> Result<(), Error> {
    let fail = |e: safetensors::SafeTensorError| Error::input(format!("cannot write {}: {e}", path.display()));
    let mut views = vec![];
    for (name, data) in tensors {
        views.push((name.as_str(), TensorView::new(data.dtype, data.shape.clone(), &data.bytes).map_err(fail)?));
    }
    let bytes = safetensors::serialize(views, None).map_err(fail)?;
    write_whole(path, &bytes).map_err(|e| Error::input(format!("cannot write {}: {e}", path.display())))
}

/// Every tensor of a file, by name.
///
/// Errors: the file cannot be read, is no safetensors, or holds another kind of number.
pub fn read(path: &Path) -> Result<Vec<(String, Tensor)>, Error> {
    let fail = |e: &dyn std::fmt::Display| Error::input(format!("cannot read {}: {e}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| fail(&e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| fail(&e))?;
    file.iter()
        .map(|(name, view)| {
            let host =
                |dtype| HostTensor { ty: Type::new(dtype, view.shape()), bytes: view.data().to_vec() }.to_tensor();
            let wide = |data: Vec<f64>, dtype| Tensor { ty: Type::new(dtype, view.shape()), data };
            let tensor = match view.dtype() {
                Dtype::F32 => host(omchat_ir::Dtype::F32),
                Dtype::BF16 => host(omchat_ir::Dtype::Bf16),
                Dtype::F16 => host(omchat_ir::Dtype::F16),
                Dtype::I32 => host(omchat_ir::Dtype::I32),
                Dtype::F64 => wide(
                    view.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
                    omchat_ir::Dtype::F32,
                ),
                Dtype::I64 => {
                    let data: Vec<i64> =
                        view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
                    if let Some(x) = data.iter().find(|x| i32::try_from(**x).is_err()) {
                        return Err(fail(&format!("`{name}` holds {x}, which no i32 holds")));
                    }
                    wide(data.into_iter().map(|x| x as f64).collect(), omchat_ir::Dtype::I32)
                }
                Dtype::BOOL | Dtype::U8 => {
                    wide(view.data().iter().map(|b| f64::from(*b)).collect(), omchat_ir::Dtype::Bool)
                }
                other => {
                    return Err(fail(&format!(
                        "`{name}` holds {other:?}; write f32, bf16, f16, f64, i32, i64 or bool"
                    )));
                }
            };
            Ok((name.to_string(), tensor))
        })
        .collect()
}
