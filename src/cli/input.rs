//! What a case file feeds the model: ids, pixels, labels.

use super::Error;
use omchat::Model;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::path::Path;

/// That no two of those files are the same: one would be written over another.
pub fn apart(files: &[(&str, &Path)]) -> Result<(), Error> {
    let place = |path: &Path| std::path::absolute(path).map(|p| p.canonicalize().unwrap_or(p)).ok();
    for (i, (name, path)) in files.iter().enumerate() {
        if let Some((other, _)) = files[..i].iter().find(|(_, p)| place(p) == place(path)) {
            return Err(Error::input(format!("{other} and {name} are both {}; name two files", path.display())));
        }
    }
    Ok(())
}

/// That files can be written, before what goes into them is worked out. What is there stays as it is.
pub fn writable(files: &[&Path]) -> Result<(), Error> {
    for path in files {
        let new = !path.exists();
        let open = std::fs::OpenOptions::new().append(true).create(true).open(path);
        open.map_err(|e| Error::input(format!("cannot write {}: {e}", path.display())))?;
        if new {
            // It was made to see that it can be; if it cannot be taken away, it is written over.
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(())
}

/// What a case feeds the model.
pub struct Case {
    /// Ids, −200 where a tile's rows go.
    pub ids: Vec<i32>,
    /// The tiles' numbers.
    pub pixels: Vec<f32>,
    pixel_shape: Vec<usize>,
    /// A label a position, if the case has them.
    pub labels: Option<Vec<i32>>,
    reference: Option<Vec<f32>>,
}

impl Case {
    /// The case in a file.
    ///
    /// Errors: the file cannot be read, or holds something else.
    pub fn read(path: &Path) -> Result<Case, Error> {
        let bad = |why: String| Error::input(format!("{}: {why}", path.display()));
        let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("{e} ({} bytes)", bytes.len())))?;
        let ids = match file.tensor("input_ids") {
            Ok(t) => ints("input_ids", &t).map_err(bad)?,
            Err(_) => return Err(bad("there is no `input_ids`, i32 [T]".into())),
        };
        let labels = file.tensor("labels").ok().map(|t| ints("labels", &t)).transpose().map_err(bad)?;
        let floats = |t: &TensorView| -> Vec<f32> {
            t.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        let reference = match file.tensor("reference") {
            Ok(t) if t.dtype() == Dtype::F32 => Some(floats(&t)),
            Ok(t) => return Err(bad(format!("`reference` is {:?}; it must be f32 [T]", t.dtype()))),
            Err(_) => None,
        };
        let (pixels, pixel_shape) = match file.tensor("pixel_values") {
            Ok(t) if t.dtype() == Dtype::F32 => (floats(&t), t.shape().to_vec()),
            Ok(t) => return Err(bad(format!("`pixel_values` is {:?}; it must be f32 [N, 3, S, S]", t.dtype()))),
            Err(_) => (vec![], vec![]),
        };
        if ids.is_empty() {
            return Err(bad("`input_ids` is empty; give one id or more".into()));
        }
        Ok(Case { ids, pixels, pixel_shape, labels, reference })
    }

    /// The reference model's loss of each position's next label: given so, or one a target as `loss` writes `nll`.
    ///
    /// Errors: there is none, or it is of another length.
    pub fn reference(&self, path: &Path, tokens: usize) -> Result<Vec<f32>, Error> {
        let bad = |why: String| Err(Error::input(format!("{}: {why}", path.display())));
        match &self.reference {
            Some(r) if r.len() == tokens => Ok(r.clone()),
            Some(r) if r.len() + 1 == tokens => Ok(r.iter().copied().chain([0.0]).collect()),
            Some(r) => bad(format!("`reference` has {} numbers for {tokens} positions", r.len())),
            None => bad("there is no `reference`, f32 [T]: the `nll` of `omchat loss` with the reference model".into()),
        }
    }

    /// How many tiles there are.
    ///
    /// Errors: tiles that the model does not take.
    pub fn tiles(&self, model: &Model) -> Result<usize, Error> {
        let Some(vision) = &model.config.vision else {
            return match self.pixels.is_empty() {
                true => Ok(0),
                false => Err(Error::input("the case has `pixel_values`, the model has no vision tower")),
            };
        };
        let s = vision.image_size;
        match self.pixel_shape[..] {
            [] => Ok(0),
            [n, 3, h, w] if h == s && w == s => Ok(n),
            _ => Err(Error::input(format!(
                "`pixel_values` is {:?}; this model takes [N, 3, {s}, {s}]",
                self.pixel_shape
            ))),
        }
    }
}

fn ints(name: &str, t: &TensorView) -> Result<Vec<i32>, String> {
    if !matches!(t.shape(), [_] | [1, _]) {
        return Err(format!("`{name}` is {:?}; it must be one sequence, i32 [T]", t.shape()));
    }
    match t.dtype() {
        Dtype::I32 => Ok(t.data().chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::I64 => t
            .data()
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .map(|x| i32::try_from(x).map_err(|_| format!("`{name}` holds {x}; it must fit i32")))
            .collect(),
        other => Err(format!("`{name}` is {other:?}; it must be i32 [T]")),
    }
}
