//! Words to ids and back, by the `tokenizer.json` of a model's folder.

use crate::config::OmChatConfig;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A tokenizer that fits a model, with the model's stop ids. Cloning is cheap.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    path: PathBuf,
    stops: Vec<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("stops", &self.stops).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer of a folder, and its stop ids: those of `generation_config.json`, else the configuration's.
    ///
    /// Errors: `Tokenizer` if `tokenizer.json` is missing or broken, or has ids that the model's embedding lacks.
    pub fn from_dir(dir: &Path, config: &OmChatConfig) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let missing = "copy the tokenizer.json of the model's release beside its config.json";
        let bytes = std::fs::read(&path).map_err(|cause| Error::tokenizer(&path, cause, missing))?;
        let mut tokenizer = Self::from_bytes(&path, &bytes, config)?;
        if let Some(stops) = generation_stops(dir)? {
            tokenizer.stops = stops;
        }
        Ok(tokenizer)
    }

    /// The tokenizer in the bytes of a `tokenizer.json`; `path` is what errors call it.
    pub fn from_bytes(path: &Path, bytes: &[u8], config: &OmChatConfig) -> Result<Self> {
        let broken = "take the file from the model's release again";
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|cause| Error::tokenizer(path, cause, broken))?;
        // Words that spell a special token are words: a user must not be able to end his own turn.
        inner.set_encode_special_tokens(true);
        let ids = inner.get_vocab_size(true);
        let highest = inner.get_added_tokens_decoder().keys().max().map_or(0, |id| *id as usize + 1).max(ids);
        if highest > config.text.vocab {
            let cause =
                format!("it has ids up to {} and the model's embedding has {} rows", highest - 1, config.text.vocab);
            return Err(Error::tokenizer(path, cause, "use the tokenizer of this model"));
        }
        Ok(Self { inner: Arc::new(inner), path: path.to_owned(), stops: config.text.eos.clone() })
    }

    /// The ids of a text, all of it taken as words, none added before or after.
    ///
    /// Errors: `Tokenizer` if the text holds something the vocabulary cannot spell.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|cause| self.fault(cause, "spell the text with the tokenizer's vocabulary"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of some ids; special tokens yield nothing, broken UTF-8 yields U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|cause| self.fault(cause, "give ids of this tokenizer"))
    }

    /// The id of a token by its exact spelling, as `<|im_end|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id of a token that the model cannot do without.
    ///
    /// Errors: `Tokenizer` naming the token.
    pub fn required(&self, token: &str) -> Result<u32> {
        self.id(token)
            .ok_or_else(|| self.fault(format!("it has no token {token}"), "use the tokenizer of a chat model"))
    }

    /// The ids that end an answer.
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// Text as ids arrive.
    pub fn stream(&self) -> TextStream {
        TextStream { tokenizer: self.clone(), ids: Vec::new(), read: 0 }
    }

    fn fault(&self, cause: impl std::fmt::Display, mend: &str) -> Error {
        Error::tokenizer(&self.path, cause, mend)
    }
}

/// The stop ids that a folder's `generation_config.json` names, if it has one that names any.
fn generation_stops(dir: &Path) -> Result<Option<Vec<u32>>> {
    let path = dir.join("generation_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let mend = "give eos_token_id as one id or a list of ids, or remove the file";
    let text = std::fs::read_to_string(&path).map_err(|cause| Error::file(&path, cause, mend))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|cause| Error::file(&path, cause, mend))?;
    let map = json.as_object().ok_or_else(|| Error::file(&path, "not an object", mend))?;
    let stops = crate::config_fields::Fields::new("generation_config", map).ids("eos_token_id")?;
    Ok((!stops.is_empty()).then_some(stops))
}

/// Text that never breaks a character: what is incomplete is held back until its last byte arrives.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    /// The last piece that went out, for what decoders do between pieces, and what is held back.
    ids: Vec<u32>,
    read: usize,
}

/// A character has four bytes at most, so ids held back longer than this are no character.
const HELD: usize = 4;

impl TextStream {
    /// The text that an id completes; often nothing.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let whole = self.tokenizer.decode(&self.ids)?;
        if whole.ends_with('\u{fffd}') && self.ids.len() - self.read < HELD {
            return Ok(String::new());
        }
        self.take(&whole)
    }

    /// What is still held back, as far as it is text.
    pub fn finish(mut self) -> Result<String> {
        let whole = self.tokenizer.decode(&self.ids)?;
        self.take(&whole)
    }

    fn take(&mut self, whole: &str) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.read])?;
        let shared = before.chars().zip(whole.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        Ok(whole.get(shared..).unwrap_or_default().to_owned())
    }
}
