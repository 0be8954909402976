//! The vision tower and the projector, as the entry `@vision`.

use super::entry::{Entry, verified};
use super::tower::{Layer, layer_function};
use super::{VISION, scope};
use crate::config::{OmChatConfig, ProjectorConfig, VisionConfig, VisionKind};
use omchat_ir::ops::{Concat, Slice};
use omchat_ir::{Code, Diagnostics, Dtype, Fault, Module, Value};

/// The vision tower and the projector over a batch of tiles, entry `@vision`.
///
/// Inputs: `pixels: f32[N, 3, S, S]`, normalised. Then weights. The one result is the features f32[N·n, C], the n
/// rows of each tile in turn, as the decoder takes them.
///
/// Layers after the last hidden state that is used are not built, and their weights are not asked for.
///
/// Shapes: N tiles, S side of a tile in pixels, n [`VisionConfig::tokens_per_tile`], C width of the decoder.
/// Errors: a configuration without a tower; no tile; a `dtype` that is no float.
pub fn vision_module(config: &OmChatConfig, tiles: usize, dtype: Dtype) -> Result<Module, Diagnostics> {
    let (mut module, scope, v) = (Module::default(), scope()?, tower(config)?);
    let mut e = Entry::new(&mut module, &scope, VISION, dtype)?;
    e.positive("tiles", tiles)?;
    let pixels = e.input("pixels", Dtype::F32, &[tiles, 3, v.0.image_size, v.0.image_size]);
    let vision = Vision::declare(&mut e, v.0, v.1);
    let features = vision.features(&mut e, tiles, pixels, false)?;
    e.finish(vec![features]);
    verified(module)
}

/// The tower and the projector of a configuration.
///
/// Errors: there is none.
pub(super) fn tower(config: &OmChatConfig) -> Result<(&VisionConfig, &ProjectorConfig), Diagnostics> {
    match (&config.vision, &config.projector) {
        (Some(vision), Some(projector)) => Ok((vision, projector)),
        _ => Err(Fault::new(Code::Name, "the configuration has no vision tower").help("feed it text only").into()),
    }
}

/// The tensors of a tower and its projector.
pub(super) struct Vision<'c> {
    config: &'c VisionConfig,
    /// Convolution and its bias, class token where there is one, positions.
    embeddings: Vec<Value>,
    layers: Vec<Vec<Value>>,
    projector: Vec<Value>,
}

impl<'c> Vision<'c> {
    /// Declares them under their released names.
    pub fn declare(e: &mut Entry, v: &'c VisionConfig, p: &ProjectorConfig) -> Vision<'c> {
        let embeddings = embeddings(v)
            .into_iter()
            .map(|(name, shape)| e.weight(&format!("{}.embeddings.{name}", root(v)), &shape))
            .collect();
        let list = Layer::weights(v);
        let layers = (0..v.layers_used())
            .map(|layer| {
                let at = format!("{}.encoder.layers.{layer}", root(v));
                list.iter().map(|(name, shape)| e.weight(&format!("{at}.{name}"), shape)).collect()
            })
            .collect();
        let linears = [
            ("linear_1.weight", vec![p.output, p.input]),
            ("linear_1.bias", vec![p.output]),
            ("linear_2.weight", vec![p.output, p.output]),
            ("linear_2.bias", vec![p.output]),
        ];
        let projector = linears
            .into_iter()
            .map(|(name, shape)| e.weight(&format!("multi_modal_projector.{name}"), &shape))
            .collect();
        Vision { config: v, embeddings, layers, projector }
    }

    /// The features of tiles, f32[N·n, C]; the backward pass may recompute each layer.
    pub fn features(&self, e: &mut Entry, tiles: usize, pixels: Value, remat: bool) -> Result<Value, Diagnostics> {
        let v = self.config;
        let layer = layer_function(e, v, tiles)?;
        let sees = e.calls_with(&["lo", "hi", "at"], "whole_tile", &[("B", tiles), ("T", v.positions())], &[])?;
        let eps = e.constant("eps", v.eps)?;
        let mut hidden = vec![self.embed(e, pixels)?];
        for weights in &self.layers {
            let x = hidden[hidden.len() - 1..].iter();
            let operands: Vec<Value> = x.chain(&sees).chain([&eps]).chain(weights).copied().collect();
            e.remat(remat);
            hidden.extend(e.calls_of(&["x"], layer, &operands)?);
            e.remat(false);
        }
        let picked: Vec<Value> = v.feature_layers.iter().filter_map(|i| hidden.get(*i).copied()).collect();
        let mut x = match picked[..] {
            [one] => one,
            _ => e.op("x", Concat { axis: 1 }, &picked)?,
        };
        if v.drop_first {
            x = e.call_with("x", "drop_first", &[("B", tiles), ("T", v.positions())], &[x])?;
        }
        let operands: Vec<Value> = [x].iter().chain(&self.projector).copied().collect();
        e.call("features", "projector", &operands)
    }

    fn embed(&self, e: &mut Entry, pixels: Value) -> Result<Value, Diagnostics> {
        let v = self.config;
        let seen = v.side() * v.patch_size;
        let mut pixels = pixels;
        if seen < v.image_size {
            // The convolution has no padding: what is left of whole patches is not seen.
            for axis in [2, 3] {
                pixels = e.op("pixels", Slice { axis, start: 0, end: seen }, &[pixels])?;
            }
        }
        let [kernel, bias, rest @ ..] = &self.embeddings[..] else { return Ok(pixels) };
        let patches =
            e.call_with("patches", "patch_embed", &[("Y", v.side()), ("P", v.patch_size)], &[pixels, *kernel, *bias])?;
        let block = if v.has_cls() { "class_and_position" } else { "position" };
        let operands: Vec<Value> = [patches].iter().chain(rest).copied().collect();
        e.call("x", block, &operands)
    }
}

fn root(v: &VisionConfig) -> &'static str {
    match v.kind {
        VisionKind::InternVit => "vision_tower",
        VisionKind::Siglip => "vision_tower.vision_model",
    }
}

fn embeddings(v: &VisionConfig) -> Vec<(&'static str, Vec<usize>)> {
    let mut list = vec![
        ("patch_embedding.weight", vec![v.hidden, 3 * v.patch_size * v.patch_size]),
        ("patch_embedding.bias", vec![v.hidden]),
    ];
    let positions = vec![v.positions(), v.hidden];
    match v.kind {
        VisionKind::InternVit => list.extend([("class_embedding", vec![v.hidden]), ("position_embedding", positions)]),
        VisionKind::Siglip => list.push(("position_embedding.weight", positions)),
    }
    list
}
