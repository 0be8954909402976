//! A model's parts: layout, parameters, stored weights.

use super::{Report, grouped};
use crate::cli::Error;
use omchat_model::config::{Norm, Precision, TextKind, VisionKind};
use omchat_model::presets::parameters;
use omchat_model::{Checkpoint, OmChatConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Adds a model to the report.
///
/// Errors: weights that are not those of the configuration.
pub fn show(report: &mut Report, name: &str, dir: Option<&Path>, config: &OmChatConfig) -> Result<(), Error> {
    let count = parameters(config);
    report.line(format!(
        "model {name}{}",
        dir.map_or(" (preset; no weights here)".into(), |d| format!(" in {}", d.display()))
    ));
    let mut part = |what: &str, n: u64, layout: String| {
        report.line(format!("  {what:<10} {:>16} parameters  {layout}", grouped(n)))
    };
    if let Some(v) = &config.vision {
        let kind = if v.kind == VisionKind::InternVit { "InternViT" } else { "SigLIP" };
        let norm = if v.norm == Norm::Rms { "RMS norm" } else { "layer norm" };
        part(
            "vision",
            count.vision,
            format!("{kind}, {} layers, {} wide, {} heads, {norm}", v.layers, v.hidden, v.heads),
        );
    }
    if let Some(p) = &config.projector {
        part("projector", count.projector, format!("{} to {} to {}", p.input, p.output, p.output));
    }
    let t = &config.text;
    let kind = if t.kind == TextKind::Qwen2 { "Qwen2" } else { "Llama" };
    part(
        "decoder",
        count.text,
        format!(
            "{kind}, {} layers, {} wide, {} heads on {} key heads, {} ids",
            t.layers, t.hidden, t.heads, t.kv_heads, t.vocab
        ),
    );
    part("total", count.total(), format!("declared as {}", precision(config.dtype)));
    report.put("model", json!({
        "name": name,
        "folder": dir.map(|d| d.display().to_string()),
        "parameters": { "vision": count.vision, "projector": count.projector, "decoder": count.text, "total": count.total() },
        "dtype": precision(config.dtype),
        "tokens_per_tile": config.tokens_per_tile(),
        "tile": config.vision.as_ref().map(|v| v.image_size),
        "canvases": config.grid,
        "max_positions": t.max_positions,
    }));
    if let Some(v) = &config.vision {
        let tiles = |(w, h): &(u32, u32)| format!("{}x{}", *w as usize / v.image_size, *h as usize / v.image_size);
        let canvases: Vec<String> = config.grid.iter().map(tiles).collect();
        report.line(format!(
            "  tiles of {} pixels, {} tokens each; canvases of {} tiles",
            v.image_size,
            config.tokens_per_tile(),
            canvases.join(", ")
        ));
    }
    report.line(format!("  trained for {} positions", grouped(t.max_positions as u64)));
    match dir {
        Some(dir) => weights(report, dir, config),
        None => Ok(()),
    }
}

/// The stored tensors, if the folder has any.
fn weights(report: &mut Report, dir: &Path, config: &OmChatConfig) -> Result<(), Error> {
    let stored = |item: std::io::Result<std::fs::DirEntry>| {
        item.is_ok_and(|i| i.path().extension().is_some_and(|e| e == "safetensors"))
    };
    if !std::fs::read_dir(dir).is_ok_and(|mut list| list.any(stored)) {
        report.line("  no weights in the folder");
        report.put("weights", Value::Null);
        return Ok(());
    }
    let checkpoint = Checkpoint::load(dir, config)?;
    let mut dtypes: BTreeMap<String, usize> = BTreeMap::new();
    for name in checkpoint.names() {
        *dtypes.entry(format!("{:?}", checkpoint.dtype(name)?)).or_default() += 1;
    }
    let list: Vec<String> = dtypes.iter().map(|(d, n)| format!("{n} of {d}")).collect();
    let n: usize = dtypes.values().sum();
    report.line(format!(
        "  {n} tensors ({}), {} bytes in files, all as the configuration asks",
        list.join(", "),
        grouped(checkpoint.file_bytes())
    ));
    report.put("weights", json!({ "tensors": n, "dtypes": dtypes, "file_bytes": checkpoint.file_bytes() }));
    Ok(())
}

fn precision(p: Precision) -> &'static str {
    match p {
        Precision::F32 => "f32",
        Precision::F16 => "f16",
        Precision::Bf16 => "bf16",
    }
}
