//! Reference losses of a stage's data: every labelled token scored once by a reference model.

use super::losses::Losses;
use super::run::Supply;
use crate::{Device, Error, Model, Progress, Snapshot};
use omchat_model::config::IGNORE;
use omchat_recipe::reference::{self, Meta, Writer};
use omchat_recipe::{Recipe, Stage};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// What a stage's reference losses were computed with: what they must be, and which weights `model` has.
///
/// Errors: files that cannot be read.
pub fn meta(recipe: &Recipe, stage: &Stage, model: &Model) -> Result<Meta, Error> {
    let weights = checksum(&[&model.dir.join("config.json"), &model.dir.join("model.safetensors")])?;
    Ok(Meta { model: weights, ..wanted(recipe, stage, model)? })
}

/// What a stage's reference losses must have been computed with; `model` is the one whose tokenizer counts, and nothing is said
/// of its weights.
///
/// Errors: files that cannot be read.
pub fn wanted(recipe: &Recipe, stage: &Stage, model: &Model) -> Result<Meta, Error> {
    let format = match &recipe.format {
        Some(name) => omchat_model::format::Format::named(name)?.name,
        None => omchat_model::format::Format::released(model.config.vision.as_ref()).name,
    };
    let mut data = std::collections::BTreeMap::new();
    for name in stage.mix.keys() {
        let spec = serde_json::to_value(recipe.data.get(name));
        data.insert(name.clone(), spec.map_err(|e| Error::Input(format!("data set `{name}`: {e}")))?);
    }
    Ok(Meta {
        tokenizer: checksum(&[&model.dir.join("tokenizer.json")])?,
        model: String::new(),
        context: stage.context,
        format: format.into(),
        data,
    })
}

/// What was scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// Documents.
    pub documents: u64,
    /// Labelled tokens.
    pub tokens: u64,
    /// Their mean loss.
    pub mean: f64,
}

/// Scores a stage's data with a reference model into a folder.
///
/// Errors: a reference with another tokenizer than the recipe's model; a folder that is there; what running says.
pub fn score(
    recipe: &Recipe,
    stage: &Stage,
    reference: &Model,
    device: &Device,
    dir: &Path,
    supply: &mut dyn Supply,
    progress: &mut dyn FnMut(Progress),
) -> Result<Scored, Error> {
    let model = Model::open(&recipe.model)?;
    let (meta, own) = (meta(recipe, stage, reference)?, wanted(recipe, stage, &model)?);
    if meta.tokenizer != own.tokenizer {
        return Err(Error::Input(format!(
            "the reference model {} has another tokenizer than {}: their losses are not of the same tokens",
            reference.dir.display(),
            model.dir.display()
        )));
    }
    let mut losses = Losses::new(reference, &Snapshot::default(), device, &recipe.dtype, stage, progress)?;
    let mut writer = Writer::create(dir, meta)?;
    let mut sum = 0.0;
    let names: Vec<&str> = stage.mix.keys().map(String::as_str).collect();
    for (done, pack) in supply.once(stage, &names)?.enumerate() {
        let pack = pack?;
        let all = losses.of(&pack)?;
        for part in &pack.parts {
            let labelled = part.range.clone().filter(|i| pack.labels[*i] != IGNORE);
            // Rounding may put the surest token's loss a little below 0.
            let own: Vec<f32> = labelled.map(|i| all[i].max(0.0)).collect();
            sum += own.iter().map(|x| f64::from(*x)).sum::<f64>();
            writer.push(&part.origin, reference::checksum(&pack, &part.range), &own)?;
        }
        progress(Progress { stage: "scoring", done: done + 1, total: 0 });
    }
    let (documents, tokens) = writer.finish()?;
    Ok(Scored { documents, tokens, mean: sum / tokens.max(1) as f64 })
}

/// CRC-32 of files one after the other; those that are not there count as empty.
fn checksum(paths: &[&Path]) -> Result<String, Error> {
    let mut crc = crc32fast::Hasher::new();
    for path in paths {
        let summed = File::open(path).and_then(|file| {
            let mut file = BufReader::with_capacity(1 << 20, file);
            loop {
                let bytes = file.fill_buf()?;
                if bytes.is_empty() {
                    return Ok(());
                }
                crc.update(bytes);
                let read = bytes.len();
                file.consume(read);
            }
        });
        match summed {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::Input(format!("cannot read {}: {e}", path.display()))),
        }
    }
    Ok(format!("{:08x}", crc.finalize()))
}
