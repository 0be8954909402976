//! The sizes and choices that make an OmChat: plain data, checked.
//!
//! Decides what a model is; reading a `config.json` is in [`crate::config_json`], the named models in
//! [`crate::presets`], the tensors that follow from a configuration in [`crate::weights`].

use crate::error::{Error, Result};

/// The number that stands for one tile in `input_ids`.
pub const IMAGE_TOKEN: i32 = -200;
/// The label of a position that no loss counts.
pub const IGNORE: i32 = -100;
/// Most blocks of a tower or decoder. With [`MAX_WIDTH`] and [`MAX_ROWS`] no product of sizes leaves 64 bits.
pub const MAX_LAYERS: usize = 1 << 10;
/// Widest residual stream, and widest queries of all heads together.
pub const MAX_WIDTH: usize = 1 << 20;
/// Most rows of an embedding, and widest MLP.
pub const MAX_ROWS: usize = 1 << 24;
/// Most pixels along a side of a tile.
pub const MAX_SIDE: usize = 1 << 14;

/// Everything that fixes a model's graph and the names of its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct OmChatConfig {
    /// The vision tower; absent in a text-only model.
    pub vision: Option<VisionConfig>,
    /// The two linears between tower and decoder; present exactly when `vision` is.
    pub projector: Option<ProjectorConfig>,
    /// The decoder.
    pub text: TextConfig,
    /// Canvas candidates of the tiler, (width, height) in pixels, in the order that breaks ties.
    pub grid: Vec<(u32, u32)>,
    /// The numbers that the checkpoint's author declared; files may hold others.
    pub dtype: Precision,
}

/// Stored precision of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Upper half of a single.
    Bf16,
}

/// The two layouts of vision tower; they differ in names, qkv fusion, CLS and layer scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VisionKind {
    /// InternViT and DINOv2: CLS token, fused qkv, layer scale.
    InternVit,
    /// SigLIP: no CLS, split and biased q, k, v, no layer scale.
    Siglip,
}

/// Which normalisation a tower uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Root mean square, weight only.
    Rms,
    /// Mean and variance, weight and bias.
    Layer,
}

/// The nonlinearity of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Exact GELU (erf).
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// x · sigmoid(x), the gate of SwiGLU.
    Silu,
}

/// A vision tower: patches of one tile in, one feature row a patch out.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// The layout.
    pub kind: VisionKind,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks in the checkpoint.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the MLP.
    pub mlp: usize,
    /// Side of a tile, pixels.
    pub image_size: usize,
    /// Side of a patch, pixels.
    pub patch_size: usize,
    /// The normalisation of the blocks; that of q and k is RMS whichever this is.
    pub norm: Norm,
    /// Epsilon of every norm of the tower but those of q and k.
    pub eps: f64,
    /// Epsilon of the norms of q and k.
    pub qk_eps: f64,
    /// RMS norm of q and k over the full width (all heads together), before the head split.
    pub qk_norm: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// The MLP's nonlinearity.
    pub activation: Activation,
    /// Hidden states concatenated along channels: 0 = the embeddings, `layers` = the last block's output.
    /// No final norm is applied to any of them.
    pub feature_layers: Vec<usize>,
    /// Whether the first row of the sequence is dropped: CLS for InternViT, the top-left patch for SigLIP.
    pub drop_first: bool,
}

/// Linear, exact GELU, linear; both biased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectorConfig {
    /// Width of a feature row.
    pub input: usize,
    /// Width between and after the linears: the decoder's.
    pub output: usize,
}

/// The two families of decoder; they differ in the q, k, v biases only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextKind {
    /// Biased q, k and v.
    Qwen2,
    /// No bias anywhere.
    Llama,
}

/// A pre-norm decoder with grouped-query attention, SwiGLU, RMS norm and rotate-half RoPE.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// The family.
    pub kind: TextKind,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the SwiGLU.
    pub mlp: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Base of the RoPE frequencies.
    pub rope_theta: f64,
    /// Epsilon of every RMS norm.
    pub eps: f64,
    /// Positions the model was trained for; a hint, not a limit of the maths.
    pub max_positions: usize,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Stop ids named by the configuration; `generation_config.json` overrules them.
    pub eos: Vec<u32>,
}

impl VisionConfig {
    /// The width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Whole patches along one side of a tile. SigLIP's 384 pixels hold 27 patches of 14: the last 6 pixels of
    /// each row and column are not seen.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of one tile.
    pub fn patches(&self) -> usize {
        self.side() * self.side()
    }

    /// Whether a class token precedes the patches.
    pub fn has_cls(&self) -> bool {
        self.kind == VisionKind::InternVit
    }

    /// Rows of the position table: the patches, and CLS where there is one.
    pub fn positions(&self) -> usize {
        self.patches() + usize::from(self.has_cls())
    }

    /// Feature rows, hence decoder positions, that one tile costs.
    pub fn tokens_per_tile(&self) -> usize {
        self.positions() - usize::from(self.drop_first)
    }

    /// Width of a feature row: one hidden state for each entry of `feature_layers`.
    pub fn feature_width(&self) -> usize {
        self.hidden * self.feature_layers.len()
    }

    /// Blocks that must run to have every feature; later ones are in the checkpoint but change nothing.
    pub fn layers_used(&self) -> usize {
        self.feature_layers.iter().copied().max().unwrap_or(0)
    }

    /// Whether blocks scale their branches by a learned vector.
    pub fn layer_scale(&self) -> bool {
        self.kind == VisionKind::InternVit
    }

    fn check(&self) -> Result<()> {
        let at = |name: &str| format!("vision_config.{name}");
        within(at("hidden_size"), self.hidden, MAX_WIDTH)?;
        within(at("num_hidden_layers"), self.layers, MAX_LAYERS)?;
        within(at("intermediate_size"), self.mlp, MAX_ROWS)?;
        within(at("image_size"), self.image_size, MAX_SIDE)?;
        divides(at("num_attention_heads"), self.heads, "hidden_size", self.hidden)?;
        match self.kind {
            VisionKind::InternVit => divides(at("patch_size"), self.patch_size, "image_size", self.image_size)?,
            VisionKind::Siglip if (1..=self.image_size).contains(&self.patch_size) => {}
            VisionKind::Siglip => {
                let mend = format!("from 1 to image_size {}", self.image_size);
                return Err(Error::config(at("patch_size"), self.patch_size, mend));
            }
        }
        small(at("layer_norm_eps"), self.eps)?;
        if self.kind == VisionKind::Siglip && (self.norm, self.qk_norm, self.qkv_bias) != (Norm::Layer, false, true) {
            return Err(Error::config(
                at("norm_type"),
                "not SigLIP's",
                "SigLIP has LayerNorm, biased q, k, v and no qk-norm",
            ));
        }
        match self.feature_layers.iter().find(|layer| **layer > self.layers) {
            Some(layer) => Err(Error::config(
                "vision_feature_layer",
                layer,
                format!("the tower has hidden states 0 to {}", self.layers),
            )),
            None if self.feature_layers.is_empty() => {
                Err(Error::config("vision_feature_layer", "[]", "name one hidden state at least"))
            }
            None => Ok(()),
        }
    }
}

impl TextConfig {
    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Whether q, k and v have biases.
    pub fn qkv_bias(&self) -> bool {
        self.kind == TextKind::Qwen2
    }

    fn check(&self) -> Result<()> {
        let at = |name: &str| format!("text_config.{name}");
        within(at("hidden_size"), self.hidden, MAX_WIDTH)?;
        within(at("num_hidden_layers"), self.layers, MAX_LAYERS)?;
        within(at("num_attention_heads"), self.heads, MAX_WIDTH)?;
        within(at("intermediate_size"), self.mlp, MAX_ROWS)?;
        within(at("vocab_size"), self.vocab, MAX_ROWS)?;
        divides(at("num_key_value_heads"), self.kv_heads, "num_attention_heads", self.heads)?;
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::config(at("head_dim"), self.head_dim, "RoPE turns pairs: it is even"));
        }
        within(at("head_dim"), self.head_dim, MAX_WIDTH / self.heads)?;
        small(at("rms_norm_eps"), self.eps)?;
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return Err(Error::config(at("rope_theta"), self.rope_theta, "a base above 1, as 1000000"));
        }
        Ok(())
    }
}

impl OmChatConfig {
    /// Decoder positions that one tile costs; 0 without a tower.
    pub fn tokens_per_tile(&self) -> usize {
        self.vision.as_ref().map_or(0, VisionConfig::tokens_per_tile)
    }

    /// Says whether the sizes agree with each other.
    ///
    /// Errors: `Config` naming the first field that contradicts another.
    pub fn check(&self) -> Result<()> {
        self.text.check()?;
        let (vision, projector) = match (&self.vision, &self.projector) {
            (Some(vision), Some(projector)) => (vision, projector),
            (None, None) => return Ok(()),
            (Some(_), None) => return Err(Error::config("projector", "absent", "a vision tower needs one")),
            (None, Some(_)) => {
                return Err(Error::config("vision_config", "absent", "a projector needs a vision tower"));
            }
        };
        vision.check()?;
        equal("projector input", projector.input, "the features' width", vision.feature_width())?;
        equal("projector output", projector.output, "text_config.hidden_size", self.text.hidden)?;
        self.check_grid(vision.image_size)
    }

    fn check_grid(&self, tile: usize) -> Result<()> {
        let whole = |side: u32| side > 0 && (side as usize).is_multiple_of(tile);
        match self.grid.iter().find(|(w, h)| !(whole(*w) && whole(*h))) {
            Some(pair) => Err(Error::config(
                "image_grid_pinpoints",
                format!("{pair:?}"),
                format!("both sides are multiples of vision_config.image_size {tile}"),
            )),
            None => Ok(()),
        }
    }
}

fn within(field: String, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) { Ok(()) } else { Err(Error::config(field, value, format!("from 1 to {most}"))) }
}

fn small(field: String, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 && value < 1.0 {
        return Ok(());
    }
    Err(Error::config(field, value, "a small positive number, as 1e-6"))
}

fn divides(field: String, part: usize, of: &str, whole: usize) -> Result<()> {
    if part > 0 && whole.is_multiple_of(part) {
        return Ok(());
    }
    Err(Error::config(field, part, format!("it divides {of} {whole}")))
}

fn equal(field: &str, have: usize, of: &str, want: usize) -> Result<()> {
    if have == want { Ok(()) } else { Err(Error::config(field, have, format!("it equals {of} {want}"))) }
}
