//! A trained model as a folder that every command opens.

use super::{unwritable, write_whole};
use crate::{Error, Model};
use omchat_ir::Dtype as Element;
use omchat_runtime::HostTensor;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A tensor in a file: its name, its shape and its bytes.
type Part = (String, Dtype, Vec<usize>, Vec<u8>);

/// What an exported model differs in from the one that it was made of, besides its weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changed {
    /// The element type that the given weights are rounded to, told in `config.json`; f32, and nothing told, without.
    pub dtype: Option<Element>,
    /// The base of RoPE.
    pub theta: Option<f64>,
    /// Positions that the model was trained for, if more than before.
    pub context: Option<usize>,
}

/// The file that says what a model is.
const CONFIG: &str = "config.json";

/// The model's folder with other weights in place of its own; what is not given stays as it is stored.
///
/// Errors: the model's own folder; a weight that its element type cannot hold; what the system says, with the path.
pub fn export(model: &Model, weights: &BTreeMap<String, Vec<f32>>, changed: &Changed, dir: &Path) -> Result<(), Error> {
    exportable(model, dir)?;
    let path = dir.join("model.safetensors");
    let parts = parts(model, weights, changed.dtype.unwrap_or(Element::F32))?;
    let fail = |e: safetensors::SafeTensorError| Error::Input(format!("cannot write {}: {e}", path.display()));
    let mut views = vec![];
    for (name, dtype, shape, bytes) in &parts {
        views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(fail)?));
    }
    write_whole(&path, &safetensors::serialize(views, None).map_err(fail)?)?;
    for entry in std::fs::read_dir(&model.dir).map_err(|e| unwritable(&model.dir, &e))?.flatten() {
        let (from, name) = (entry.path(), entry.file_name());
        if from.is_file() && !name.to_string_lossy().contains(".safetensors") && name != CONFIG {
            std::fs::copy(&from, dir.join(name)).map_err(|e| unwritable(dir, &e))?;
        }
    }
    // Last: a folder with a configuration is whole.
    retell(&model.dir.join(CONFIG), &dir.join(CONFIG), changed)
}

/// Makes the folder that a model is to be written to, before what is to be written is worked out.
///
/// Errors: the model's own folder; a folder that cannot be made.
pub fn exportable(model: &Model, dir: &Path) -> Result<(), Error> {
    if model.dir.canonicalize().ok() == dir.canonicalize().ok() && dir.exists() {
        return Err(Error::Input(format!("{} is the model's own folder; write to another", dir.display())));
    }
    std::fs::create_dir_all(dir).map_err(|e| unwritable(dir, &e))
}

/// Every tensor of the checkpoint under its own spelling, given or as stored.
fn parts(model: &Model, given: &BTreeMap<String, Vec<f32>>, element: Element) -> Result<Vec<Part>, Error> {
    let kind = match element {
        Element::F16 => Dtype::F16,
        Element::Bf16 => Dtype::BF16,
        _ => Dtype::F32,
    };
    let mut out = vec![];
    for name in model.checkpoint.names() {
        let stored = model.checkpoint.stored(name)?;
        let all: usize = stored.iter().map(|p| p.shape.iter().product::<usize>()).sum();
        let (bytes, own) = match given.get(name) {
            Some(x) => (rounded(name, x, element)?, Some(kind)),
            None => (model.checkpoint.bytes(name)?.into_owned(), None),
        };
        let mut start = 0;
        for part in stored {
            let n = part.shape.iter().product::<usize>() * bytes.len() / all.max(1);
            let dtype = own.unwrap_or(part.dtype);
            out.push((part.name.to_string(), dtype, part.shape.to_vec(), bytes[start..start + n].to_vec()));
            start += n;
        }
    }
    Ok(out)
}

/// Numbers in an element type, to the nearest.
///
/// Errors: one that would become infinite.
fn rounded(name: &str, x: &[f32], element: Element) -> Result<Vec<u8>, Error> {
    let tensor = HostTensor::floats(element, [x.len()], x);
    let lost = |(a, b): &(f32, f32)| a.is_finite() && !b.is_finite();
    match x.iter().copied().zip(tensor.to_f32()).find(lost) {
        Some((value, _)) => Err(Error::Input(format!(
            "{name} holds {value:e}, more than {element} holds; give save_dtype = \"f32\" or \"bf16\""
        ))),
        None => Ok(tensor.bytes),
    }
}

/// Writes a configuration with what it says otherwise than the one that it comes from.
fn retell(from: &Path, to: &Path, changed: &Changed) -> Result<(), Error> {
    let Changed { dtype, theta, context } = *changed;
    let fail = |e: String| Error::Input(format!("cannot change {}: {e}", from.display()));
    let text = std::fs::read_to_string(from).map_err(|e| fail(e.to_string()))?;
    if dtype.is_none() && theta.is_none() && context.is_none() {
        return write_whole(to, text.as_bytes());
    }
    let mut all: Value = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
    if let (Some(dtype), Some(config)) = (dtype, all.as_object_mut()) {
        let name = match dtype {
            Element::F16 => "float16",
            Element::Bf16 => "bfloat16",
            _ => "float32",
        };
        config.insert("torch_dtype".into(), name.into());
    }
    let nested = all.get("text_config").is_some();
    let Some(config) = (if nested { all.get_mut("text_config") } else { Some(&mut all) }) else { return Ok(()) };
    let Some(config) = config.as_object_mut() else { return Err(fail("it is no object".into())) };
    if let Some(theta) = theta {
        config.remove("rope_parameters");
        config.insert("rope_theta".into(), theta.into());
    }
    let most = config.get("max_position_embeddings").and_then(Value::as_u64).unwrap_or(0);
    if let Some(context) = context.filter(|c| *c as u64 > most) {
        config.insert("max_position_embeddings".into(), context.into());
    }
    let text = serde_json::to_string_pretty(&all).map_err(|e| fail(e.to_string()))?;
    write_whole(to, format!("{text}\n").as_bytes())
}
