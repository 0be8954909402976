//! The named models, and how many numbers a model holds.

use crate::config::*;
use crate::error::{Error, Result};
use crate::weights::tensors;

/// The names that [`preset`] knows.
pub const PRESETS: &[&str] = &["omchat-13b", "omchat-8b", "mini"];

/// A model by its name.
///
/// Errors: `Input` listing the names, if it is none of [`PRESETS`].
pub fn preset(name: &str) -> Result<OmChatConfig> {
    match name {
        "omchat-13b" => Ok(omchat_13b()),
        "omchat-8b" => Ok(omchat_8b()),
        "mini" => Ok(mini()),
        _ => Err(Error::input(format!("no preset is called `{name}`"), format!("name one of {}", PRESETS.join(", ")))),
    }
}

/// OmChat-2.0-13B: InternViT-6B at 448 pixels, Qwen2-7B.
pub fn omchat_13b() -> OmChatConfig {
    let vision = VisionConfig {
        kind: VisionKind::InternVit,
        hidden: 3200,
        layers: 45,
        heads: 25,
        mlp: 12800,
        image_size: 448,
        patch_size: 14,
        norm: Norm::Rms,
        eps: 1e-6,
        qk_eps: 1e-6,
        qk_norm: true,
        qkv_bias: false,
        activation: Activation::Gelu,
        feature_layers: vec![45],
        drop_first: true,
    };
    whole(vision, qwen2_7b(152_064), released_grid(448), Precision::F16)
}

/// The 2.1-8B layout: SigLIP-so400m at 384 pixels, four hidden states concatenated, Qwen2-7B.
pub fn omchat_8b() -> OmChatConfig {
    let vision = VisionConfig {
        kind: VisionKind::Siglip,
        hidden: 1152,
        layers: 27,
        heads: 16,
        mlp: 4304,
        image_size: 384,
        patch_size: 14,
        norm: Norm::Layer,
        eps: 1e-6,
        qk_eps: 1e-6,
        qk_norm: false,
        qkv_bias: true,
        activation: Activation::GeluTanh,
        feature_layers: vec![12, 16, 22, 23],
        drop_first: true,
    };
    whole(vision, qwen2_7b(151_649), released_grid(384), Precision::F16)
}

/// A small model whose two halves have real weights: a ViT-S/14 of the DINOv2-small layout and SmolLM2-135M.
pub fn mini() -> OmChatConfig {
    let vision = VisionConfig {
        kind: VisionKind::InternVit,
        hidden: 384,
        layers: 12,
        heads: 6,
        mlp: 1536,
        image_size: 224,
        patch_size: 14,
        norm: Norm::Layer,
        eps: 1e-6,
        qk_eps: 1e-6,
        qk_norm: false,
        qkv_bias: true,
        activation: Activation::Gelu,
        feature_layers: vec![12],
        drop_first: true,
    };
    whole(vision, smollm2_135m(), released_grid(224), Precision::F32)
}

fn whole(vision: VisionConfig, text: TextConfig, grid: Vec<(u32, u32)>, dtype: Precision) -> OmChatConfig {
    let projector = ProjectorConfig { input: vision.feature_width(), output: text.hidden };
    OmChatConfig { vision: Some(vision), projector: Some(projector), text, grid, dtype }
}

fn qwen2_7b(vocab: usize) -> TextConfig {
    TextConfig {
        kind: TextKind::Qwen2,
        hidden: 3584,
        layers: 28,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        mlp: 18944,
        vocab,
        rope_theta: 1e6,
        eps: 1e-6,
        max_positions: 131_072,
        tied: false,
        eos: vec![151_645],
    }
}

fn smollm2_135m() -> TextConfig {
    TextConfig {
        kind: TextKind::Llama,
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        mlp: 1536,
        vocab: 49_152,
        rope_theta: 1e5,
        eps: 1e-5,
        max_positions: 8192,
        tied: true,
        eos: vec![2],
    }
}

/// The released canvas candidates for a tile of `tile` pixels, (width, height), in the released order.
pub fn released_grid(tile: u32) -> Vec<(u32, u32)> {
    [(2, 2), (1, 2), (2, 1), (1, 3), (3, 1), (3, 2), (2, 3), (3, 3)].map(|(w, h)| (w * tile, h * tile)).to_vec()
}

/// How many numbers each part of a model holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterCount {
    /// The vision tower, with SigLIP's final norm, which is stored and published but feeds no feature.
    pub vision: u64,
    /// The two linears.
    pub projector: u64,
    /// The decoder, a tied head counted once.
    pub text: u64,
}

impl ParameterCount {
    /// All parts together.
    pub fn total(&self) -> u64 {
        self.vision + self.projector + self.text
    }
}

/// The numbers that a model's tensors hold, by part.
pub fn parameters(config: &OmChatConfig) -> ParameterCount {
    let mut count = ParameterCount { vision: 0, projector: 0, text: 0 };
    for tensor in tensors(config) {
        let part = match tensor.name.split('.').next() {
            Some("vision_tower") => &mut count.vision,
            Some("multi_modal_projector") => &mut count.projector,
            _ => &mut count.text,
        };
        *part += tensor.shape.iter().map(|size| *size as u64).product::<u64>();
    }
    if let Some(vision) = config.vision.as_ref().filter(|vision| vision.kind == VisionKind::Siglip) {
        count.vision += 2 * vision.hidden as u64;
    }
    count
}
