//! A trained model as a folder that every command opens.

use super::{unwritable, write_whole};
use crate::{Error, Model};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A tensor in a file: its name, its shape and its bytes.
type Part = (String, Dtype, Vec<usize>, Vec<u8>);

/// The model's folder with other weights, in f32, in place of its own; what is not given stays as it is stored. With a
/// `theta` and a `context` its configuration says what they became.
///
/// Errors: the model's own folder; what the system says, with the path.
pub fn export(
    model: &Model,
    weights: &BTreeMap<String, Vec<f32>>,
    theta: Option<f64>,
    context: Option<usize>,
    dir: &Path,
) -> Result<(), Error> {
    if model.dir.canonicalize().ok() == dir.canonicalize().ok() && dir.exists() {
        return Err(Error::Input(format!("{} is the model's own folder; write to another", dir.display())));
    }
    std::fs::create_dir_all(dir).map_err(|e| unwritable(dir, &e))?;
    let path = dir.join("model.safetensors");
    let parts = parts(model, weights)?;
    let fail = |e: safetensors::SafeTensorError| Error::Input(format!("cannot write {}: {e}", path.display()));
    let mut views = vec![];
    for (name, dtype, shape, bytes) in &parts {
        views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(fail)?));
    }
    write_whole(&path, &safetensors::serialize(views, None).map_err(fail)?)?;
    for entry in std::fs::read_dir(&model.dir).map_err(|e| unwritable(&model.dir, &e))?.flatten() {
        let (from, name) = (entry.path(), entry.file_name());
        if from.is_file() && !name.to_string_lossy().contains(".safetensors") {
            std::fs::copy(&from, dir.join(name)).map_err(|e| unwritable(dir, &e))?;
        }
    }
    retell(dir, theta, context)
}

/// Every tensor of the checkpoint under its own spelling, given or as stored.
fn parts(model: &Model, given: &BTreeMap<String, Vec<f32>>) -> Result<Vec<Part>, Error> {
    let mut out = vec![];
    for name in model.checkpoint.names() {
        let stored = model.checkpoint.stored(name)?;
        let all: usize = stored.iter().map(|p| p.shape.iter().product::<usize>()).sum();
        let (bytes, single) = match given.get(name) {
            Some(x) => (x.iter().flat_map(|x| x.to_le_bytes()).collect(), true),
            None => (model.checkpoint.bytes(name)?.into_owned(), false),
        };
        let mut start = 0;
        for part in stored {
            let n = part.shape.iter().product::<usize>() * bytes.len() / all.max(1);
            let dtype = if single { Dtype::F32 } else { part.dtype };
            out.push((part.name.to_string(), dtype, part.shape.to_vec(), bytes[start..start + n].to_vec()));
            start += n;
        }
    }
    Ok(out)
}

/// Writes the base of RoPE and the context into `config.json`.
fn retell(dir: &Path, theta: Option<f64>, context: Option<usize>) -> Result<(), Error> {
    if theta.is_none() && context.is_none() {
        return Ok(());
    }
    let path = dir.join("config.json");
    let fail = |e: String| Error::Input(format!("cannot change {}: {e}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|e| fail(e.to_string()))?;
    let mut all: Value = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
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
    write_whole(&path, format!("{text}\n").as_bytes())
}
