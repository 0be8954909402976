//! The batches of a step that failed, kept so that it can be taken again: `failed/step-N-I.safetensors` holds the inputs
//! of the step's pack I, `step-N-I.json` where each of its documents came from.

use super::{unwritable, write_whole};
use crate::{Batch, Error};
use omchat_ir::{Dtype, Type};
use omchat_recipe::Pack;
use omchat_recipe::pack::{Origin, Part};
use omchat_runtime::HostTensor;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Every input that a batch may have.
const INPUTS: [&str; 15] = [
    "pixels",
    "rows",
    "ids",
    "cos",
    "sin",
    "lo",
    "hi",
    "at",
    "labels",
    "document",
    "reference",
    "sign",
    "ratio",
    "z",
    WHOLE,
];
/// The one input that is true or false, as 1 or 0.
const WHOLE: &str = "whole";

/// Where a document of a batch came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Whence {
    /// The data set, the file and the record.
    #[serde(flatten)]
    pub origin: Origin,
    /// Its positions in the batch: the first, and the first after it.
    pub positions: [usize; 2],
    /// The file's name, where the data are in files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// A batch that was kept.
pub(super) struct Kept {
    pub batch: Batch,
    pub documents: Vec<Whence>,
}

/// Where a pack's documents came from; `file` names a document's file.
pub(super) fn whence(pack: &Pack, file: &mut dyn FnMut(&Origin) -> Option<String>) -> Vec<Whence> {
    let told =
        |p: &Part| Whence { origin: p.origin.clone(), positions: [p.range.start, p.range.end], file: file(&p.origin) };
    pack.parts.iter().map(told).collect()
}

/// Keeps a step's batch of a pack in a folder.
///
/// Errors: what the system says.
pub(super) fn keep(folder: &Path, step: u64, pack: usize, kept: &Kept) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|e| unwritable(folder, &e))?;
    let path = file(folder, step, pack);
    let fail = |e: safetensors::SafeTensorError| Error::Input(format!("cannot write {}: {e}", path.display()));
    let mut views = vec![];
    for (name, t) in kept.batch.inputs() {
        let dtype = if t.ty.dtype == Dtype::F32 { safetensors::Dtype::F32 } else { safetensors::Dtype::I32 };
        views.push((*name, TensorView::new(dtype, t.ty.shape.clone(), &t.bytes).map_err(fail)?));
    }
    write_whole(&path, &safetensors::serialize(views, None).map_err(fail)?)?;
    let text = serde_json::to_string_pretty(&kept.documents).map_err(|e| Error::Input(format!("documents: {e}")))?;
    write_whole(&path.with_extension("json"), text.as_bytes())
}

fn file(folder: &Path, step: u64, pack: usize) -> PathBuf {
    folder.join(format!("step-{step}-{pack}.safetensors"))
}

/// The batches of a step, in order.
///
/// Errors: there is none; files that cannot be read or hold something else.
pub(super) fn read(folder: &Path, step: u64) -> Result<Vec<Kept>, Error> {
    let mut out = vec![];
    while file(folder, step, out.len()).exists() {
        out.push(one(&file(folder, step, out.len()))?);
    }
    if out.is_empty() {
        let have = steps(folder);
        let have = if have.is_empty() { "none".into() } else { have.join(", ") };
        return Err(Error::Input(format!(
            "no batch of step {step} is kept in {}; those kept are of steps: {have}",
            folder.display()
        )));
    }
    Ok(out)
}

/// The steps whose batches a folder holds.
fn steps(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.map(|e| e.file_name().to_string_lossy().into_owned());
    let step = |n: String| n.strip_prefix("step-")?.strip_suffix("-0.safetensors")?.parse::<u64>().ok();
    let mut found: Vec<u64> = names.filter_map(step).collect();
    found.sort_unstable();
    found.iter().map(u64::to_string).collect()
}

fn one(path: &Path) -> Result<Kept, Error> {
    let fail = |e: &dyn std::fmt::Display| Error::Input(format!("cannot read {}: {e}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| fail(&e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| fail(&e))?;
    let mut inputs = vec![];
    for (name, t) in file.iter() {
        let known = INPUTS.into_iter().find(|n| *n == name);
        let name = known.ok_or_else(|| fail(&format!("a batch has no input `{name}`")))?;
        let dtype = match t.dtype() {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::I32 if name == WHOLE => Dtype::Bool,
            safetensors::Dtype::I32 => Dtype::I32,
            other => return Err(fail(&format!("`{name}` holds {other:?}, a batch holds f32 and i32"))),
        };
        inputs.push((name, HostTensor { ty: Type::new(dtype, t.shape()), bytes: t.data().to_vec() }));
    }
    let path = path.with_extension("json");
    let fail = |e: &dyn std::fmt::Display| Error::Input(format!("cannot read {}: {e}", path.display()));
    let text = std::fs::read(&path).map_err(|e| fail(&e))?;
    let documents: Vec<Whence> = serde_json::from_slice(&text).map_err(|e| fail(&e))?;
    let batch = Batch::of(inputs).map_err(|e| fail(&e))?;
    let beyond = |d: &&Whence| d.positions[0] > d.positions[1] || d.positions[1] > batch.tokens();
    match documents.iter().find(beyond) {
        Some(d) => Err(fail(&format!("positions {:?} of a batch of {}", d.positions, batch.tokens()))),
        None => Ok(Kept { batch, documents }),
    }
}
