//! Where a model named on the command line is.

use super::Error;
use omchat_model::OmChatConfig;
use omchat_model::presets::{PRESETS, preset};
use std::path::{Path, PathBuf};

/// A model's folder, if its files are here, and its configuration.
///
/// Errors: a name that is no folder, no fetched preset and no preset; a configuration that is broken.
pub fn find(model: &str) -> Result<(Option<PathBuf>, OmChatConfig), Error> {
    match folder(model) {
        Some(dir) => Ok((Some(dir.clone()), OmChatConfig::from_dir(&dir)?)),
        None => Ok((None, preset(model).map_err(|e| Error::input(format!("no folder is called `{model}`, and {e}")))?)),
    }
}

/// The same for what needs files of the folder.
///
/// Errors: as [`find`]; a preset whose files are not here, with the way to get them.
pub fn with_files(model: &str) -> Result<(PathBuf, OmChatConfig), Error> {
    match find(model)? {
        (Some(dir), config) => Ok((dir, config)),
        (None, _) => {
            let mend = if model == "mini" {
                "fetch it by scripts/mini.sh"
            } else {
                "name the folder of its release by --model DIR"
            };
            Err(Error::input(format!("the files of `{model}` are not in {}; {mend}", omchat::home().display())))
        }
    }
}

/// The folder of a path, or of a preset under the folder of models.
fn folder(model: &str) -> Option<PathBuf> {
    let path = Path::new(model);
    let kept = omchat::home().join(model);
    // A folder of a preset's name that is no model does not hide the preset.
    if path.join("config.json").is_file() || (path.is_dir() && !PRESETS.contains(&model)) {
        return Some(path.to_owned());
    }
    (path.components().count() == 1 && kept.join("config.json").is_file()).then_some(kept)
}
