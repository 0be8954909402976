//! One layer of a vision tower, as a function of the module.
//!
//! The towers differ in four choices that do not depend on each other (norm, q/k norm, biases, activation), which a
//! text without branches would spell sixteen times. So the function is put together here, from blocks of text.

use super::entry::Entry;
use crate::config::{Activation, Norm, VisionConfig, VisionKind};
use omchat_ir::{Code, Diagnostics, Dtype, Fault, Func, Value};
use std::collections::VecDeque;

/// The tensors of a layer, taken in the order in which they are declared.
pub(super) struct Layer(VecDeque<Value>);

impl Layer {
    /// Name and shape of each, in the order in which the layer's function takes them.
    pub fn weights(v: &VisionConfig) -> Vec<(&'static str, Vec<usize>)> {
        match v.kind {
            VisionKind::InternVit => intern_vit(v),
            VisionKind::Siglip => siglip(v),
        }
    }

    fn take(&mut self, n: usize) -> Vec<Value> {
        self.0.drain(..n.min(self.0.len())).collect()
    }
}

/// The function `@vision_layer`: rows, the tiles' intervals, epsilon and the layer's tensors to rows.
pub(super) fn layer_function(outer: &mut Entry, v: &VisionConfig, tiles: usize) -> Result<Func, Diagnostics> {
    let mut e = outer.function("vision_layer")?;
    let rows = v.positions();
    let x = e.input("x", e.dtype(), &[tiles * rows, v.hidden]);
    let sees = ["lo", "hi", "at"].map(|name| e.input(name, Dtype::I32, &[tiles, rows]));
    let eps = e.input("eps", Dtype::F32, &[]);
    let declared = Layer::weights(v).into_iter().map(|(name, shape)| e.input(name, e.dtype(), &shape)).collect();
    let mut layer = Layer(declared);

    let unit = norm(&mut e, v, &mut layer, x, eps)?;
    let mut heads = qkv(&mut e, v, &mut layer, tiles, unit, eps)?;
    heads.extend(sees);
    heads.extend(layer.take(2));
    let branch = e.call("attention", "tile_attention", &heads)?;
    let x = residual(&mut e, v, &mut layer, x, branch)?;

    let unit = norm(&mut e, v, &mut layer, x, eps)?;
    let operands: Vec<Value> = [unit].into_iter().chain(layer.take(4)).collect();
    let branch = e.call("mlp", mlp(v)?, &operands)?;
    let y = residual(&mut e, v, &mut layer, x, branch)?;
    Ok(e.finish(vec![y]))
}

fn norm(e: &mut Entry, v: &VisionConfig, layer: &mut Layer, x: Value, eps: Value) -> Result<Value, Diagnostics> {
    let (block, n) = match v.norm {
        Norm::Rms => ("rms_norm", 1),
        Norm::Layer => ("layer_norm", 2),
    };
    let operands: Vec<Value> = [x].into_iter().chain(layer.take(n)).chain([eps]).collect();
    e.call("norm", block, &operands)
}

fn qkv(
    e: &mut Entry,
    v: &VisionConfig,
    layer: &mut Layer,
    tiles: usize,
    x: Value,
    eps: Value,
) -> Result<Vec<Value>, Diagnostics> {
    let (block, n) = match (v.kind, v.qkv_bias, v.qk_norm) {
        (VisionKind::Siglip, _, _) => ("split_qkv", 6),
        (_, false, false) => ("fused_qkv", 1),
        (_, true, false) => ("fused_qkv_biased", 2),
        (_, false, true) => ("fused_qkv_normed", 3),
        (_, true, true) => ("fused_qkv_biased_normed", 4),
    };
    let normed = v.kind == VisionKind::InternVit && v.qk_norm;
    let eps = if normed && v.qk_eps != v.eps { e.constant("qk_eps", v.qk_eps)? } else { eps };
    let operands: Vec<Value> = [x].into_iter().chain(layer.take(n)).chain(normed.then_some(eps)).collect();
    let letters = [("B", tiles), ("T", v.positions()), ("H", v.heads), ("D", v.head_dim())];
    e.calls_with(&["q", "k", "v"], block, &letters, &operands)
}

fn residual(e: &mut Entry, v: &VisionConfig, layer: &mut Layer, x: Value, branch: Value) -> Result<Value, Diagnostics> {
    if !v.layer_scale() {
        return e.call("x", "residual", &[x, branch]);
    }
    let operands: Vec<Value> = [x, branch].into_iter().chain(layer.take(1)).collect();
    e.call("x", "scaled_residual", &operands)
}

fn mlp(v: &VisionConfig) -> Result<&'static str, Diagnostics> {
    match v.activation {
        Activation::Gelu => Ok("gelu_mlp"),
        Activation::GeluTanh => Ok("gelu_tanh_mlp"),
        Activation::Silu => {
            Err(Fault::new(Code::Name, "a vision tower's activation is SiLU").help("gelu or gelu_pytorch_tanh").into())
        }
    }
}

fn intern_vit(v: &VisionConfig) -> Vec<(&'static str, Vec<usize>)> {
    let (c, h, d) = (v.hidden, v.heads, v.head_dim());
    // Normalised over all heads together, q and k stay rows until after the norm.
    let (weight, bias) = if v.qk_norm { (vec![3, c, c], vec![3, c]) } else { (vec![3, h, 1, d, c], vec![3, h, 1, d]) };
    let mut list = norm_weights(v, ["norm1.weight", "norm1.bias"]);
    list.push(("attn.qkv.weight", weight));
    if v.qkv_bias {
        list.push(("attn.qkv.bias", bias));
    }
    if v.qk_norm {
        list.extend([("attn.q_norm.weight", vec![c]), ("attn.k_norm.weight", vec![c])]);
    }
    list.extend([("attn.proj.weight", vec![c, h, 1, d]), ("attn.proj.bias", vec![c]), ("ls1", vec![c])]);
    list.extend(norm_weights(v, ["norm2.weight", "norm2.bias"]));
    list.extend(mlp_weights(v));
    list.push(("ls2", vec![c]));
    list
}

fn siglip(v: &VisionConfig) -> Vec<(&'static str, Vec<usize>)> {
    let (c, h, d) = (v.hidden, v.heads, v.head_dim());
    let mut list = norm_weights(v, ["layer_norm1.weight", "layer_norm1.bias"]);
    list.extend([
        ("self_attn.q_proj.weight", vec![h, 1, d, c]),
        ("self_attn.q_proj.bias", vec![h, 1, d]),
        ("self_attn.k_proj.weight", vec![h, d, c]),
        ("self_attn.k_proj.bias", vec![h, d]),
        ("self_attn.v_proj.weight", vec![h, d, c]),
        ("self_attn.v_proj.bias", vec![h, d]),
        ("self_attn.out_proj.weight", vec![c, h, 1, d]),
        ("self_attn.out_proj.bias", vec![c]),
    ]);
    list.extend(norm_weights(v, ["layer_norm2.weight", "layer_norm2.bias"]));
    list.extend(mlp_weights(v));
    list
}

fn norm_weights(v: &VisionConfig, names: [&'static str; 2]) -> Vec<(&'static str, Vec<usize>)> {
    let n = if v.norm == Norm::Layer { 2 } else { 1 };
    names.into_iter().take(n).map(|name| (name, vec![v.hidden])).collect()
}

fn mlp_weights(v: &VisionConfig) -> [(&'static str, Vec<usize>); 4] {
    let (c, f) = (v.hidden, v.mlp);
    [
        ("mlp.fc1.weight", vec![f, c]),
        ("mlp.fc1.bias", vec![f]),
        ("mlp.fc2.weight", vec![c, f]),
        ("mlp.fc2.bias", vec![c]),
    ]
}
