//! A data set of a recipe: which files, how they are laid out, and what of them trains.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where examples come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// The file, or the folder of files.
    pub path: PathBuf,
    /// How it is laid out: `llava`, `ms-swift`, `internvl` or `text`.
    pub layout: String,
}

impl Dataset {
    /// Makes relative paths start at a folder.
    pub fn place(&mut self, folder: &Path) {
        if self.path.is_relative() {
            self.path = folder.join(&self.path);
        }
    }
}
