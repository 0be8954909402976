//! The files beside the weights: configuration, tokenizer, and what the folder was made from.

use crate::text::Text;
use crate::tokenizer;
use crate::vision::{PATCH, Tower};
use crate::weights::Dtype;
use crate::{Result, TILE};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::path::{Path, PathBuf};

/// OmChat-2.0's grids of tiles, width and height.
const GRIDS: [[usize; 2]; 8] = [[2, 2], [1, 2], [2, 1], [1, 3], [3, 1], [3, 2], [2, 3], [3, 3]];

/// Writes all but the weights and the manifest.
pub fn write(out: &Path, text: &Text, tower: &Tower, dtype: Dtype) -> Result<()> {
    let pins = GRIDS.map(|grid| grid.map(|n| n * TILE));
    put(out, "config.json", &config(text, tower, dtype, &pins)?)?;
    put(out, "tokenizer.json", &tokenizer::json(text)?)?;
    put(
        out,
        "tokenizer_config.json",
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": false, "clean_up_tokenization_spaces": false,
            "bos_token": text.token("bos")?, "eos_token": text.token("eos")?, "pad_token": text.token("padding")?,
            "unk_token": text.token("unknown")?, "model_max_length": text.number("llama.context_length")?,
            "chat_template": text.string("tokenizer.chat_template")?,
        }),
    )?;
    put(
        out,
        "generation_config.json",
        &json!({
            "bos_token_id": text.token_id("bos")?, "eos_token_id": text.token_id("eos")?,
            "pad_token_id": text.token_id("padding")?,
        }),
    )?;
    put(
        out,
        "preprocessor_config.json",
        &json!({
            "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "size": TILE, "resample": 3,
            "image_grid_pinpoints": pins,
        }),
    )
}

fn config(text: &Text, tower: &Tower, dtype: Dtype, pins: &[[usize; 2]]) -> Result<Value> {
    // The released configurations spell this list as a Python text.
    let pins: Vec<String> = pins.iter().map(|[w, h]| format!("({w}, {h})")).collect();
    Ok(json!({
        "architectures": ["OmChatForConditionalGeneration"], "model_type": "omchat", "ignore_index": -100,
        "image_token_index": -200, "projector_hidden_act": "gelu", "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default", "image_grid_pinpoints": format!("[{}]", pins.join(", ")),
        "tie_word_embeddings": true, "torch_dtype": dtype.name(),
        "vision_config": {
            "hidden_size": tower.width, "num_hidden_layers": tower.layers, "num_attention_heads": tower.heads(),
            "intermediate_size": tower.inner, "image_size": TILE, "patch_size": PATCH, "layer_norm_eps": 1e-6,
            "model_type": "intern_vit_6b", "hidden_act": "gelu", "norm_type": "layer_norm", "qk_normalization": false,
            "qkv_bias": true,
        },
        "text_config": {
            "model_type": "llama", "hidden_size": text.number("llama.embedding_length")?,
            "num_hidden_layers": text.number("llama.block_count")?,
            "num_attention_heads": text.number("llama.attention.head_count")?,
            "num_key_value_heads": text.number("llama.attention.head_count_kv")?,
            "intermediate_size": text.number("llama.feed_forward_length")?,
            "vocab_size": text.number("llama.vocab_size")?,
            "rms_norm_eps": text.float("llama.attention.layer_norm_rms_epsilon")?,
            "rope_theta": text.float("llama.rope.freq_base")?,
            "max_position_embeddings": text.number("llama.context_length")?,
            "hidden_act": "silu", "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true,
        },
    }))
}

/// Writes `manifest.json`: what the files were made from and by, and their checksums.
pub fn manifest(out: &Path, sources: &[&PathBuf], stamp: &str) -> Result<()> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(out)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    files.retain(|p| p.file_name().is_some_and(|n| n != "manifest.json"));
    files.sort();
    put(
        out,
        "manifest.json",
        &json!({
            "about": "SmolLM2-135M-Instruct and a ViT-S/14, joined by a projector that is random: not trained yet.",
            "untrained": ["multi_modal_projector"], "converter": stamp,
            "sources": hashes(sources.iter().copied())?, "files": hashes(files.iter())?,
        }),
    )
}

fn hashes<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Result<Value> {
    let mut out = Map::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut digest = Sha256::new();
        File::open(path)
            .and_then(|mut file| std::io::copy(&mut file, &mut digest))
            .map_err(|e| format!("{}: {e}", path.display()))?;
        out.insert(name, json!(digest.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>()));
    }
    Ok(Value::Object(out))
}

fn put(out: &Path, name: &str, value: &Value) -> Result<()> {
    let path = out.join(name);
    Ok(std::fs::write(&path, format!("{value:#}\n")).map_err(|e| format!("{}: {e}", path.display()))?)
}
