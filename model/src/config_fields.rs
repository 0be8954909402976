//! The fields of a `config.json`, read one by one so that none is overlooked.
//!
//! A field is read, must hold a given value, is known to change no number, or is an error by its name.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// One JSON object, and which of its fields have been looked at.
pub(crate) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
    seen: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    /// The object's fields; `path` is what errors put before their names.
    pub fn new(path: &str, map: &'a Map<String, Value>) -> Self {
        Self { path: path.to_owned(), map, seen: RefCell::default() }
    }

    /// The name of a field as errors spell it.
    pub fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The field, or nothing where it is absent or null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.seen.borrow_mut().insert(name.to_owned());
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Whether the file names the field, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// The first of several spellings of one field; all that are present must agree.
    pub fn any(&self, names: &[&str]) -> Result<Option<&'a Value>> {
        let mut found: Option<(&str, &Value)> = None;
        for name in names {
            let Some(value) = self.get(name) else { continue };
            match found {
                Some((other, first)) if first != value => {
                    let mend = format!("`{}` says {first}; keep one", self.at(other));
                    return Err(Error::config(self.at(name), value, mend));
                }
                _ => found = Some((name, value)),
            }
        }
        Ok(found.map(|(_, value)| value))
    }

    /// The error that a field's value is not accepted.
    pub fn refuse(&self, name: &str, mend: impl Into<String>) -> Error {
        match self.map.get(name) {
            Some(value) => Error::config(self.at(name), short(value), mend),
            None => Error::config(self.at(name), "absent", mend),
        }
    }

    /// A whole number of at least 0.
    pub fn size(&self, name: &str, absent: usize) -> Result<usize> {
        Ok(self.maybe_size(name)?.unwrap_or(absent))
    }

    /// A whole number, where the field is present.
    pub fn maybe_size(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        number.map(Some).ok_or_else(|| self.refuse(name, "a whole number"))
    }

    /// A side given as one number or as two equal ones.
    pub fn square(&self, name: &str, absent: usize) -> Result<usize> {
        match self.get(name) {
            Some(Value::Array(pair)) => match pair.as_slice() {
                [h, w] if h == w && h.is_u64() => Ok(h.as_u64().unwrap_or(0) as usize),
                _ => Err(self.refuse(name, "one number or two equal ones: tiles and patches are square")),
            },
            _ => self.size(name, absent),
        }
    }

    /// A number.
    pub fn real(&self, name: &str, absent: f64) -> Result<f64> {
        match self.get(name) {
            Some(value) => value.as_f64().ok_or_else(|| self.refuse(name, "a number")),
            None => Ok(absent),
        }
    }

    /// A truth value.
    pub fn flag(&self, name: &str, absent: bool) -> Result<bool> {
        Ok(self.maybe_flag(name)?.unwrap_or(absent))
    }

    /// A truth value, where the field is present.
    pub fn maybe_flag(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            Some(value) => value.as_bool().map(Some).ok_or_else(|| self.refuse(name, "true or false")),
            None => Ok(None),
        }
    }

    /// A text.
    pub fn text(&self, name: &str, absent: &'a str) -> Result<&'a str> {
        match self.get(name) {
            Some(value) => value.as_str().ok_or_else(|| self.refuse(name, "a text")),
            None => Ok(absent),
        }
    }

    /// An object, where the field is present.
    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>> {
        match self.get(name) {
            Some(value) => value.as_object().map(Some).ok_or_else(|| self.refuse(name, "an object")),
            None => Ok(None),
        }
    }

    /// One id or a list of ids; nothing where the field is absent.
    pub fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => {
                list.iter().map(|value| one(value).ok_or_else(|| self.refuse(name, "an id or a list of ids"))).collect()
            }
            Some(value) => Ok(vec![one(value).ok_or_else(|| self.refuse(name, "an id or a list of ids"))?]),
        }
    }

    /// Refuses every listed field that is present with another value than the one this crate computes.
    pub fn must(&self, wanted: &[(&str, Value)]) -> Result<()> {
        for (name, want) in wanted {
            match self.get(name) {
                Some(have) if !same(have, want) => {
                    return Err(self.refuse(name, format!("only {want} is computed here")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses fields that nobody read and that are not known to be harmless.
    pub fn finish(&self, harmless: &[&[&str]]) -> Result<()> {
        let seen = self.seen.borrow();
        let known = |name: &str| {
            name.starts_with('_') || seen.contains(name) || harmless.iter().any(|list| list.contains(&name))
        };
        match self.map.iter().find(|(name, _)| !known(name)) {
            Some((name, _)) => Err(self
                .refuse(name, "this field is unknown, so what it changes is too; remove it if it changes no number")),
            None => Ok(()),
        }
    }
}

/// Equal as numbers where both are numbers: a file may say `1` or `1.0`.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// The value as JSON, cut where it would fill the screen.
fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 120 { text } else { text.chars().take(117).chain("...".chars()).collect() }
}

/// What every `save_pretrained` may write and no forward pass of these families reads.
pub(crate) const HARMLESS: &[&str] = &[
    "architectures",
    "auto_map",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_composition",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "transformers.js_config",
    "typical_p",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    "use_return_dict",
    "name_or_path",
    "attention_dropout",
    "dropout",
    "drop_path_rate",
    "hidden_dropout",
    "hidden_dropout_prob",
    "projection_dropout",
];

/// Of a decoder besides.
pub(crate) const HARMLESS_TEXT: &[&str] = &[
    "is_llama_config",
    "max_window_layers",
    "pretraining_tp",
    "sliding_window",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "torch_compile",
];

/// Of a tower besides. Pooling heads come after the features that are used here.
pub(crate) const HARMLESS_VISION: &[&str] =
    &["layer_scale_init_value", "projection_dim", "vision_use_head", "num_image_tokens", "vocab_size", "cls_token_id"];

/// Of the whole besides. The placeholder is always -200, whatever `image_token_index` says.
pub(crate) const HARMLESS_WHOLE: &[&str] = &[
    "freeze_mm_mlp_adapter",
    "freeze_mm_vision_resampler",
    "ignore_index",
    "image_aspect_ratio",
    "image_seq_length",
    "image_token_id",
    "image_token_index",
    "tune_mm_mlp_adapter",
    "unfreeze_mm_vision_tower",
    "use_mm_proj",
    "pad_token",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "max_position_embeddings",
    "vocab_size",
    "mm_hidden_size",
    "mm_patch_merge_type",
    "mm_projector_lr",
    "mm_use_im_patch_token",
    "mm_use_im_start_end",
    "mm_vision_tower",
    "mm_tunable_parts",
    "mm_vision_tower_lr",
    "image_crop_resolution",
    "image_split_resolution",
    "video_token_id",
    "video_token_index",
];
