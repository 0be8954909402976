//! Whole sequences without a cache, over one rank or a ring, as the entry `@forward`.

use super::decoder::Weights;
use super::entry::{Entry, verified};
use super::vision::{Vision, tower};
use super::{FORWARD, scope};
use crate::config::OmChatConfig;
use omchat_ir::{Diagnostics, Dtype, Module, Value};

/// What one run of `@forward` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ForwardSpec {
    /// Ranks of the ring: R. With 1 the program has no collective.
    pub ring: usize,
    /// Tokens of each rank: T.
    pub tokens: usize,
    /// Tiles that each rank encodes: N; 0 for a text-only run, which asks for no weight of the tower.
    pub tiles: usize,
    /// Whether the backward pass recomputes each layer from its operands.
    pub remat: bool,
    /// Parts that the rows of an MLP are computed in, each recomputed in the backward pass; it must divide T.
    pub mlp_tiles: usize,
    /// Parts that the tokens' losses are computed in: logits exist for one part at a time. It must divide T.
    pub loss_tiles: usize,
}

impl ForwardSpec {
    /// Whole sequences of text on one rank, nothing recomputed, nothing in parts.
    pub fn text(tokens: usize) -> ForwardSpec {
        ForwardSpec { ring: 1, tokens, tiles: 0, remat: false, mlp_tiles: 1, loss_tiles: 1 }
    }
}

/// The whole model over sequences without a cache, entry `@forward`: what training differentiates.
///
/// Inputs, in order: if there are tiles, `pixels: f32[N, 3, S, S]` and `rows: i32[T]` (the row of this rank's features
/// that fills each position; −1 where text stands); `ids: i32[T]` (−1 where a feature row stands), `cos: f32[T, P]`,
/// `sin: f32[T, P]`, `lo: i32[1, T]`, `hi: i32[1, T]`, `at: i32[1, T]` (each token's index in the packed stream;
/// any layout of tokens over ranks is right), `labels: i32[T]`, already shifted, −100 where none counts. Then weights.
///
/// Results: the loss f32[T] of each of this rank's tokens, 0 where ignored, and the log-sum-exp f32[T].
///
/// Shapes: T tokens a rank, N tiles a rank, S side of a tile, P = head size / 2. Batch is 1: documents are packed.
/// Errors: no rank or no token; tiles for a model without a tower; parts that do not divide the tokens; a `dtype` that
/// is no float.
pub fn forward_module(config: &OmChatConfig, spec: ForwardSpec, dtype: Dtype) -> Result<Module, Diagnostics> {
    let (mut module, scope) = (Module::default(), scope()?);
    let mut e = Entry::new(&mut module, &scope, FORWARD, dtype)?;
    let h = hidden(&mut e, config, spec)?;
    let results = h.losses(&mut e, spec.loss_tiles)?;
    e.finish(results.to_vec());
    verified(module)
}

/// What the losses are taken from.
pub(super) struct Hidden {
    /// The last hidden state, normed: [T, C].
    pub x: Value,
    /// The output projection: [V, C].
    pub head: Value,
    /// The label of each token: [T].
    pub labels: Value,
    /// Each token's index in the packed stream: [1, T].
    pub at: Value,
}

impl Hidden {
    /// Each token's loss and log-sum-exp, in parts.
    pub fn losses(&self, e: &mut Entry, parts: usize) -> Result<[Value; 2], Diagnostics> {
        let operands = [self.x, self.head, self.labels];
        let out = match parts {
            1 => e.calls(&["nll", "lse"], "linear_cross_entropy", &operands)?,
            n => e.calls_with(&["nll", "lse"], "linear_cross_entropy_tiled", &[("N", n)], &operands)?,
        };
        Ok([out[0], out[1]])
    }
}

/// The body of `@forward` up to the losses.
pub(super) fn hidden(e: &mut Entry, config: &OmChatConfig, spec: ForwardSpec) -> Result<Hidden, Diagnostics> {
    let (t, n) = (&config.text, spec.tokens);
    e.positive("ring", spec.ring)?;
    e.positive("tokens", n)?;
    e.divides("mlp_tiles", spec.mlp_tiles, "tokens", n)?;
    e.divides("loss_tiles", spec.loss_tiles, "tokens", n)?;
    let v = if spec.tiles > 0 { Some(tower(config)?) } else { None };
    let pictures = v.map(|(v, _)| {
        (e.input("pixels", Dtype::F32, &[spec.tiles, 3, v.image_size, v.image_size]), e.input("rows", Dtype::I32, &[n]))
    });
    let ids = e.input("ids", Dtype::I32, &[n]);
    let [cos, sin] = ["cos", "sin"].map(|name| e.input(name, Dtype::F32, &[n, t.head_dim / 2]));
    let [lo, hi, at] = ["lo", "hi", "at"].map(|name| e.input(name, Dtype::I32, &[1, n]));
    let labels = e.input("labels", Dtype::I32, &[n]);
    let vision = v.map(|(v, p)| Vision::declare(e, v, p));
    let weights = Weights::declare(e, t);

    let mut x = e.rows("x", weights.embed, ids)?;
    if let (Some(vision), Some((pixels, rows))) = (vision, pictures) {
        let features = vision.features(e, spec.tiles, pixels, spec.remat)?;
        let placed = e.rows("placed", features, rows)?;
        x = e.call("x", "add_features", &[x, placed])?;
    }
    let eps = e.constant("eps", t.eps)?;
    let mut letters = vec![("R", spec.ring)];
    if spec.mlp_tiles > 1 {
        letters.push(("N", spec.mlp_tiles));
    }
    // How far this rank's keys must travel is the same for all layers.
    let reach = match spec.ring {
        1 => None,
        ring => Some(e.call_with("reach", "ring_reach", &[("R", ring), ("C", ring_chunks(n))], &[lo, hi, at])?),
    };
    let block = block(t.qkv_bias(), spec.mlp_tiles > 1, reach.is_some());
    e.remat(spec.remat);
    for layer in &weights.layers {
        let mut operands = vec![x, cos, sin, lo, hi, at];
        operands.extend(reach);
        operands.push(eps);
        operands.extend(layer);
        x = e.call_with("x", block, &letters, &operands)?;
    }
    e.remat(false);
    let x = e.call("x", "rms_norm", &[x, weights.norm, eps])?;
    Ok(Hidden { x, head: weights.head, labels, at })
}

/// The block of a layer.
fn block(bias: bool, tiled: bool, reach: bool) -> &'static str {
    match (bias, tiled, reach) {
        (true, false, false) => "qwen2_ring_layer",
        (false, false, false) => "llama_ring_layer",
        (true, true, false) => "qwen2_ring_layer_tiled",
        (false, true, false) => "llama_ring_layer_tiled",
        (true, false, true) => "qwen2_reach_layer",
        (false, false, true) => "llama_reach_layer",
        (true, true, true) => "qwen2_reach_layer_tiled",
        (false, true, true) => "llama_reach_layer_tiled",
    }
}

/// The chunks of a rank's tokens that tell how far its keys travel: each is compared with each of every other rank's, so
/// there are 64 at most.
pub fn ring_chunks(tokens: usize) -> usize {
    (1..=tokens.min(64)).rev().find(|n| tokens.is_multiple_of(*n)).unwrap_or(1)
}
