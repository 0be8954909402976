//! A model's files: configuration, weights, tokenizer, tiler. No device is touched.

use crate::Error;
use omchat_model::tiler::Tiler;
use omchat_model::tokenizer::Tokenizer;
use omchat_model::{Checkpoint, OmChatConfig};
use std::path::{Path, PathBuf};

/// A model's folder, opened.
pub struct Model {
    /// Where it is.
    pub dir: PathBuf,
    /// What it is.
    pub config: OmChatConfig,
    /// Its tensors, memory-mapped.
    pub checkpoint: Checkpoint,
}

/// Where models and media are kept: `$OMCHAT_HOME`, or `omchat` in the user's data folder.
pub fn home() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("OMCHAT_HOME").unwrap_or_else(|| {
        let data = var("XDG_DATA_HOME").or_else(|| var("HOME").map(|h| h.join(".local/share")));
        data.unwrap_or_else(|| PathBuf::from(".")).join("omchat")
    })
}

impl Model {
    /// The model in a folder, or of a preset's name in [`home`].
    ///
    /// Errors: what is missing, contradictory or misshapen; for a preset that is not there, how to get it.
    pub fn open(name: &str) -> Result<Model, Error> {
        let dir = locate(name)?;
        let config = OmChatConfig::from_dir(&dir)?;
        let checkpoint = Checkpoint::load(&dir, &config)?;
        Ok(Model { dir, config, checkpoint })
    }

    /// Its tokenizer.
    ///
    /// Errors: `Tokenizer` if there is none, or it does not fit.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Ok(Tokenizer::from_dir(&self.dir, &self.config)?)
    }

    /// Its rule for pictures.
    ///
    /// Errors: `Config` if it takes no pictures.
    pub fn tiler(&self) -> Result<Tiler, Error> {
        Ok(Tiler::from_dir(&self.dir, &self.config)?)
    }

    /// Positions that one tile takes; 0 for a model without a tower.
    pub fn tokens_per_tile(&self) -> usize {
        self.config.tokens_per_tile()
    }
}

fn locate(name: &str) -> Result<PathBuf, Error> {
    if Path::new(name).is_dir() {
        return Ok(PathBuf::from(name));
    }
    let kept = home().join(name);
    if kept.join("config.json").is_file() {
        return Ok(kept);
    }
    let mend = match name {
        "mini" => "fetch it with `scripts/mini.sh`",
        "omchat-13b" | "omchat-8b" => "give the folder that holds its weights; `omchat inspect` needs none",
        _ => "give a folder with config.json and safetensors, or a preset: mini",
    };
    Err(Error::Input(format!("no model `{name}`: neither that folder nor {} exists; {mend}", kept.display())))
}
