//! Reads an [`OmChatConfig`] from a Hugging Face `config.json`.
//!
//! Families: `omchat` (released), `omchat_qwen2` (before the release), `llava` around the same parts, and the
//! text-only `qwen2` and `llama`. Fields left out take the defaults of the class that wrote the file.

use crate::config::*;
use crate::config_fields::{Fields, HARMLESS, HARMLESS_TEXT, HARMLESS_VISION, HARMLESS_WHOLE};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

impl OmChatConfig {
    /// The configuration in a folder's `config.json`.
    ///
    /// Errors: `File` if there is none or it is no JSON; `Config` naming the first field that is unknown,
    /// contradicts another or asks for other maths.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|cause| Error::file(&path, cause, "name a folder that holds a config.json"))?;
        Self::from_json(&text).map_err(|error| match error {
            Error::File { cause, mend, .. } => Error::File { path, cause, mend },
            other => other,
        })
    }

    /// The configuration in the text of a `config.json`.
    pub fn from_json(text: &str) -> Result<Self> {
        let broken =
            |cause: &dyn std::fmt::Display| Error::file(Path::new("config.json"), cause, "write one JSON object");
        let value: Value = serde_json::from_str(text).map_err(|cause| broken(&cause))?;
        let map = value.as_object().ok_or_else(|| broken(&"not an object"))?;
        let config = read(map)?;
        config.check()?;
        Ok(config)
    }
}

fn read(map: &Map<String, Value>) -> Result<OmChatConfig> {
    let top = Fields::new("", map);
    match top.text("model_type", "omchat")? {
        "qwen2" | "llama" => read_text_only(map),
        family @ ("omchat" | "omchat_qwen2" | "llava") => read_whole(&top, map, family),
        _ => Err(top.refuse("model_type", "one of omchat, omchat_qwen2, llava, qwen2, llama")),
    }
}

fn read_text_only(map: &Map<String, Value>) -> Result<OmChatConfig> {
    let fields = Fields::new("", map);
    let text = read_text(&fields, "qwen2", None)?;
    fields.finish(&[HARMLESS, HARMLESS_TEXT])?;
    Ok(OmChatConfig { vision: None, projector: None, text, grid: Vec::new(), dtype: read_dtype(&fields, None)? })
}

fn read_whole(top: &Fields, map: &Map<String, Value>, family: &str) -> Result<OmChatConfig> {
    let tied = top.maybe_flag("tie_word_embeddings")?;
    let (text, inner) = match top.object("text_config")? {
        Some(nested) => {
            let fields = Fields::new("text_config", nested);
            let text = read_text(&fields, if family == "llava" { "llama" } else { "qwen2" }, tied)?;
            fields.finish(&[HARMLESS, HARMLESS_TEXT])?;
            (text, Some(fields))
        }
        // Before the release the decoder's fields stood at the top.
        None if map.contains_key("hidden_size") => {
            top.get("model_type");
            (read_text(top, "qwen2", None)?, None)
        }
        None => return Err(top.refuse("text_config", "an object with the decoder's sizes")),
    };
    let vision = read_vision(top, family)?;
    let grid = read_grid(top, vision.image_size)?;
    let dtype = read_dtype(top, inner.as_ref())?;
    read_projector(top)?;
    top.finish(&[HARMLESS, HARMLESS_TEXT, HARMLESS_WHOLE])?;
    let projector = ProjectorConfig { input: vision.feature_width(), output: text.hidden };
    Ok(OmChatConfig { vision: Some(vision), projector: Some(projector), text, grid, dtype })
}

fn read_text(fields: &Fields, default: &'static str, whole_tied: Option<bool>) -> Result<TextConfig> {
    let kind = match fields.text("model_type", default)? {
        "qwen2" | "omchat_qwen2" | "omchat" => TextKind::Qwen2,
        "llama" => TextKind::Llama,
        _ => return Err(fields.refuse("model_type", "qwen2 or llama")),
    };
    must_text(fields, kind)?;
    let llama = kind == TextKind::Llama;
    let hidden = fields.size("hidden_size", 4096)?;
    let heads = fields.size("num_attention_heads", 32)?;
    let vocab = fields.size("vocab_size", if llama { 32000 } else { 151_936 })?;
    Ok(TextConfig {
        kind,
        hidden,
        layers: fields.size("num_hidden_layers", 32)?,
        heads,
        // Written as null it is as many as there are heads; left out it is the class's own.
        kv_heads: fields
            .size("num_key_value_heads", if llama || fields.has("num_key_value_heads") { heads } else { 32 })?,
        head_dim: read_head_dim(fields, hidden, heads)?,
        mlp: fields.size("intermediate_size", if llama { 11008 } else { 22016 })?,
        vocab,
        rope_theta: read_theta(fields)?,
        eps: fields.real("rms_norm_eps", 1e-6)?,
        max_positions: fields.size("max_position_embeddings", if llama { 2048 } else { 32768 })?,
        tied: read_tied(fields, whole_tied)?,
        eos: fields.ids("eos_token_id")?,
    })
}

fn must_text(fields: &Fields, kind: TextKind) -> Result<()> {
    fields.must(&[
        ("hidden_act", json!("silu")),
        ("attention_bias", json!(kind == TextKind::Qwen2)),
        ("qkv_bias", json!(kind == TextKind::Qwen2)),
        ("mlp_bias", json!(false)),
        ("use_sliding_window", json!(false)),
        ("use_mrope", json!(false)),
        ("rope_interleaved", json!(false)),
        ("partial_rotary_factor", json!(1.0)),
        ("is_decoder", json!(false)),
        ("is_encoder_decoder", json!(false)),
        ("add_cross_attention", json!(false)),
        ("tie_encoder_decoder", json!(false)),
        ("pruned_heads", json!({})),
    ])?;
    match fields.get("layer_types") {
        Some(Value::Array(types)) if types.iter().all(|kind| kind == "full_attention") => Ok(()),
        Some(_) => Err(fields.refuse("layer_types", "full_attention in every layer")),
        None => Ok(()),
    }
}

fn read_head_dim(fields: &Fields, hidden: usize, heads: usize) -> Result<usize> {
    match fields.maybe_size("head_dim")? {
        Some(size) => Ok(size),
        None if heads > 0 && hidden.is_multiple_of(heads) => Ok(hidden / heads),
        None => {
            Err(fields.refuse("num_attention_heads", format!("it divides hidden_size {hidden}, or head_dim is given")))
        }
    }
}

/// Takes the base from `rope_theta` or from `rope_parameters`, and refuses any scaling of positions.
fn read_theta(fields: &Fields) -> Result<f64> {
    let mut theta = fields.get("rope_theta").is_some().then(|| fields.real("rope_theta", 0.0)).transpose()?;
    for name in ["rope_parameters", "rope_scaling"] {
        let Some(map) = fields.object(name)? else { continue };
        let rope = Fields::new(&fields.at(name), map);
        rope.must(&[
            ("rope_type", json!("default")),
            ("type", json!("default")),
            ("partial_rotary_factor", json!(1.0)),
        ])?;
        if rope.get("rope_theta").is_some() {
            let inner = rope.real("rope_theta", 0.0)?;
            if theta.is_some_and(|outer| outer != inner) {
                return Err(fields.refuse("rope_theta", format!("`{}` says {inner}; keep one", rope.at("rope_theta"))));
            }
            theta = Some(inner);
        }
        rope.finish(&[])?;
    }
    Ok(theta.unwrap_or(10_000.0))
}

fn read_tied(fields: &Fields, whole: Option<bool>) -> Result<bool> {
    let own = fields.maybe_flag("tie_word_embeddings")?;
    match (own, whole) {
        (Some(own), Some(whole)) if own != whole => {
            let mend = format!("the whole model's tie_word_embeddings says {whole}; say the same in both");
            Err(fields.refuse("tie_word_embeddings", mend))
        }
        _ => Ok(own.or(whole).unwrap_or(false)),
    }
}

fn read_vision(top: &Fields, family: &str) -> Result<VisionConfig> {
    let nested = top.object("vision_config")?.ok_or_else(|| {
        top.refuse("vision_config", "an object with the tower's sizes; {} for the released InternViT-6B")
    })?;
    let fields = Fields::new("vision_config", nested);
    let default = if family == "llava" { "clip_vision_model" } else { "intern_vit_6b" };
    let mut vision = match fields.text("model_type", default)? {
        "intern_vit_6b" => read_intern_vit(&fields)?,
        "internvl_vision" => read_internvl(&fields)?,
        "siglip_vision_model" => read_siglip(&fields)?,
        _ => return Err(fields.refuse("model_type", "intern_vit_6b, internvl_vision or siglip_vision_model")),
    };
    fields.must(&[
        ("num_channels", json!(3)),
        ("is_encoder_decoder", json!(false)),
        ("is_decoder", json!(false)),
        ("add_cross_attention", json!(false)),
        ("tie_encoder_decoder", json!(false)),
        ("pruned_heads", json!({})),
    ])?;
    fields.get("tie_word_embeddings");
    fields.finish(&[HARMLESS, HARMLESS_VISION])?;
    vision.feature_layers = read_layers(top, vision.layers, if family == "llava" { -2 } else { -1 })?;
    vision.drop_first = match top.text("vision_feature_select_strategy", "default")? {
        "default" => true,
        "full" => false,
        _ => return Err(top.refuse("vision_feature_select_strategy", "default or full")),
    };
    top.must(&[("mm_vision_select_feature", json!("patch"))])?;
    Ok(vision)
}

/// OmChat's own tower; its class defaults are the released InternViT-6B.
fn read_intern_vit(fields: &Fields) -> Result<VisionConfig> {
    Ok(VisionConfig {
        kind: VisionKind::InternVit,
        hidden: fields.size("hidden_size", 3200)?,
        layers: fields.size("num_hidden_layers", 45)?,
        heads: fields.size("num_attention_heads", 25)?,
        mlp: fields.size("intermediate_size", 12800)?,
        image_size: fields.square("image_size", 448)?,
        patch_size: fields.square("patch_size", 14)?,
        norm: read_norm(fields, Norm::Rms)?,
        eps: fields.real("layer_norm_eps", 1e-6)?,
        qk_eps: fields.real("layer_norm_eps", 1e-6)?,
        qk_norm: fields.flag("qk_normalization", true)?,
        qkv_bias: fields.flag("qkv_bias", false)?,
        activation: read_activation(fields, Activation::Gelu)?,
        feature_layers: Vec::new(),
        drop_first: true,
    })
}

/// The same tower by the fields of transformers' InternVL.
fn read_internvl(fields: &Fields) -> Result<VisionConfig> {
    fields.must(&[
        ("use_mask_token", json!(false)),
        ("use_absolute_position_embeddings", json!(true)),
        // False would put one more norm after the last block.
        ("use_mean_pooling", json!(true)),
    ])?;
    Ok(VisionConfig {
        kind: VisionKind::InternVit,
        hidden: fields.size("hidden_size", 1024)?,
        layers: fields.size("num_hidden_layers", 24)?,
        heads: fields.size("num_attention_heads", 16)?,
        mlp: fields.size("intermediate_size", 4096)?,
        image_size: fields.square("image_size", 448)?,
        patch_size: fields.square("patch_size", 14)?,
        norm: read_norm(fields, Norm::Layer)?,
        eps: fields.real("layer_norm_eps", 1e-6)?,
        // Its class gives these norms no epsilon, so they have their own class's.
        qk_eps: 1e-6,
        qk_norm: fields.flag("use_qk_norm", false)?,
        qkv_bias: fields.flag("attention_bias", false)?,
        activation: read_activation(fields, Activation::Gelu)?,
        feature_layers: Vec::new(),
        drop_first: true,
    })
}

fn read_siglip(fields: &Fields) -> Result<VisionConfig> {
    Ok(VisionConfig {
        kind: VisionKind::Siglip,
        hidden: fields.size("hidden_size", 768)?,
        layers: fields.size("num_hidden_layers", 12)?,
        heads: fields.size("num_attention_heads", 12)?,
        mlp: fields.size("intermediate_size", 3072)?,
        image_size: fields.square("image_size", 224)?,
        patch_size: fields.square("patch_size", 16)?,
        norm: Norm::Layer,
        eps: fields.real("layer_norm_eps", 1e-6)?,
        qk_eps: 1e-6,
        qk_norm: false,
        qkv_bias: true,
        activation: read_activation(fields, Activation::GeluTanh)?,
        feature_layers: Vec::new(),
        drop_first: true,
    })
}

fn read_norm(fields: &Fields, absent: Norm) -> Result<Norm> {
    match fields.get("norm_type").map(|value| value.as_str()) {
        None => Ok(absent),
        Some(Some("rms_norm")) => Ok(Norm::Rms),
        Some(Some("layer_norm")) => Ok(Norm::Layer),
        Some(_) => Err(fields.refuse("norm_type", "rms_norm or layer_norm")),
    }
}

fn read_activation(fields: &Fields, absent: Activation) -> Result<Activation> {
    match fields.get("hidden_act").map(|value| value.as_str()) {
        None => Ok(absent),
        Some(Some("gelu")) => Ok(Activation::Gelu),
        Some(Some("gelu_pytorch_tanh" | "gelu_new")) => Ok(Activation::GeluTanh),
        Some(_) => Err(fields.refuse("hidden_act", "gelu or gelu_pytorch_tanh")),
    }
}

/// Hidden states by index; negative ones count from the last block's output.
fn read_layers(top: &Fields, layers: usize, absent: i64) -> Result<Vec<usize>> {
    let name = if top.get("vision_feature_layer").is_none() && top.get("mm_vision_select_layer").is_some() {
        "mm_vision_select_layer"
    } else {
        "vision_feature_layer"
    };
    let found = top.any(&["vision_feature_layer", "mm_vision_select_layer"])?;
    let list = match found {
        None => vec![json!(absent)],
        Some(Value::Array(list)) => list.clone(),
        Some(one) => vec![one.clone()],
    };
    let last = layers as i64;
    let mend = format!("an index, or a list of them, from {} to {last}", -last - 1);
    let resolve = |value: &Value| {
        let index = value.as_i64().map(|index| if index < 0 { index + last + 1 } else { index });
        index.filter(|index| (0..=last).contains(index)).map(|index| index as usize)
    };
    list.iter().map(|value| resolve(value).ok_or_else(|| top.refuse(name, mend.clone()))).collect()
}

fn read_projector(top: &Fields) -> Result<()> {
    top.must(&[
        ("projector_hidden_act", json!("gelu")),
        ("multimodal_projector_bias", json!(true)),
        ("mm_projector_type", json!("mlp2x_gelu")),
        ("is_encoder_decoder", json!(false)),
        ("is_decoder", json!(false)),
        ("add_cross_attention", json!(false)),
        ("tie_encoder_decoder", json!(false)),
        ("pruned_heads", json!({})),
    ])
}

/// The tiler's candidates: a list of pairs, or the text of one, as released.
fn read_grid(top: &Fields, tile: usize) -> Result<Vec<(u32, u32)>> {
    let name = "image_grid_pinpoints";
    let refuse = || top.refuse(name, "pairs of sides in pixels, as \"[(896, 896), (448, 896)]\"");
    let pairs = match top.get(name) {
        None => return Ok(crate::presets::released_grid(tile as u32)),
        Some(Value::String(text)) => {
            let list = text.replace('(', "[").replace(')', "]").replace(",]", "]");
            serde_json::from_str(&list).map_err(|_| refuse())?
        }
        Some(value) => value.clone(),
    };
    let pairs: Vec<(u32, u32)> = serde_json::from_value(pairs).map_err(|_| refuse())?;
    if pairs.is_empty() { Err(refuse()) } else { Ok(pairs) }
}

fn read_dtype(top: &Fields, inner: Option<&Fields>) -> Result<Precision> {
    let own = top.any(&["dtype", "torch_dtype"])?;
    let value = match (own, inner) {
        (None, Some(inner)) => inner.any(&["dtype", "torch_dtype"])?,
        _ => own,
    };
    let name = value.and_then(Value::as_str).map(|name| name.trim_start_matches("torch."));
    match (value, name) {
        (None, _) => Ok(Precision::F32),
        (_, Some("float32" | "float64" | "auto")) => Ok(Precision::F32),
        (_, Some("float16")) => Ok(Precision::F16),
        (_, Some("bfloat16")) => Ok(Precision::Bf16),
        (Some(value), _) => Err(Error::config("dtype", value, "float32, float16 or bfloat16")),
    }
}
