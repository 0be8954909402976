//! Whether a run goes on with what it was begun with: its recipe, and the files of its model.

use crate::Error;
use omchat_recipe::reference::same_number;
use omchat_recipe::{Recipe, spec, sums};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A recipe as checkpoints keep it.
pub(super) fn told(recipe: &Recipe) -> Result<Value, Error> {
    serde_json::to_value(recipe).map_err(|e| Error::Input(format!("the recipe: {e}")))
}

/// What a recipe says of what a run comes to, whatever ranks it is on and however its models are stored.
pub(super) fn anywhere(mut recipe: Value) -> Value {
    if let Some(all) = recipe.as_object_mut() {
        all.remove("save_dtype");
    }
    let stages = recipe.get_mut("stage").and_then(Value::as_array_mut);
    for stage in stages.into_iter().flatten().filter_map(Value::as_object_mut) {
        stage.remove("ring");
        stage.remove("ring_layout");
    }
    unplaced(recipe)
}

/// A recipe wherever its files lie: of each path only the last name. What is in the files is told by sums.
pub(super) fn unplaced(mut recipe: Value) -> Value {
    if let Some(Value::String(model)) = recipe.get_mut("model") {
        *model = spec::last_name(model);
    }
    for place in ["/data", "/mixture/held_out"] {
        let sets = recipe.pointer_mut(place).and_then(Value::as_object_mut);
        sets.into_iter().flat_map(|sets| sets.values_mut()).for_each(spec::unplace);
    }
    let stages = recipe.get_mut("stage").and_then(Value::as_array_mut);
    for stage in stages.into_iter().flatten() {
        if let Some(Value::String(path)) = stage.pointer_mut("/select/reference") {
            *path = spec::last_name(path);
        }
    }
    recipe
}

/// A recipe without the stages that it has more, at its end, than the one that a run was begun with, and without data sets
/// that only they can read.
pub(super) fn begun(mut recipe: Value, was: &Value) -> Value {
    let most = was.get("stage").and_then(Value::as_array).map_or(0, Vec::len);
    if let Some(stages) = recipe.get_mut("stage").and_then(Value::as_array_mut) {
        stages.truncate(most);
    }
    if let (Some(sets), Some(old)) = (recipe.get_mut("data").and_then(Value::as_object_mut), was.get("data")) {
        sets.retain(|name, _| old.get(name).is_some());
    }
    recipe
}

/// The first place where two values differ, with both. Numbers that were written and read may be a rounding apart.
pub(super) fn differs(at: &str, was: &Value, is: &Value) -> Option<String> {
    match (was, is) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let none = Value::Null;
            keys.into_iter()
                .find_map(|k| differs(&format!("{at}.{k}"), a.get(k).unwrap_or(&none), b.get(k).unwrap_or(&none)))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| differs(&format!("{at}[{i}]"), a, b))
        }
        _ if same_number(was, is) => None,
        _ => Some(format!("{at} was {was}, it is {is}")),
    }
}

/// A sum of a model's files: its configurations, tokenizer and weights, as [`sums::of_file`] looks at each.
///
/// Errors: files that cannot be read.
pub(super) fn model_sum(dir: &Path) -> Result<String, Error> {
    let unreadable = |e: std::io::Error| Error::Input(format!("cannot read {}: {e}", dir.display()));
    let entries = std::fs::read_dir(dir).map_err(unreadable)?;
    let mut files: Vec<PathBuf> = entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>().map_err(unreadable)?;
    files.retain(|path| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        ["config.json", "preprocessor_config.json", "tokenizer.json"].contains(&name.as_str())
            || name.ends_with(".safetensors")
    });
    files.sort();
    let sums = files.iter().map(|path| sums::of_file(path)).collect::<omchat_recipe::Result<Vec<u32>>>()?;
    let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    Ok(format!("{:08x}", crc32fast::hash(&bytes)))
}
