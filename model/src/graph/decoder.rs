//! The decoder with its cache, as the entry `@decode`.

use super::entry::{Entry, verified};
use super::{DECODE, scope};
use crate::config::{OmChatConfig, TextConfig};
use omchat_ir::ops::{AllReduce, FoldKind, UpdateSlice};
use omchat_ir::{Diagnostics, Dtype, Module, Value};

/// What one run of `@decode` takes and yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecoderSpec {
    /// Tokens a run, padding included: T.
    pub tokens: usize,
    /// Slots of the cache: S. A run writes slots `start` to `start + tokens`, padding included; those that
    /// do not fit would move the whole write, so `start + tokens` must not exceed it.
    pub capacity: usize,
    /// Whether feature rows are given beside the ids.
    pub features: bool,
    /// What comes out.
    pub output: Output,
    /// How tokens and cache are spread over ranks.
    pub spread: Spread,
}

/// How tokens and cache are spread over ranks. Each rank has slots of its own, as many as the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spread {
    /// One rank has all.
    Alone,
    /// That many ranks read the same tokens; one of them gives their slots indices, and so keeps them. What comes out
    /// is the same on all, bit for bit.
    Same(usize),
    /// That many ranks read T tokens each. What comes out is of each rank's own tokens, but [`Output::Last`] and
    /// [`Output::Likeliest`] and [`Output::Drawn`] are of the one token that one rank names, the same on all.
    Parts(usize),
}

impl Spread {
    /// How many ranks there are.
    pub fn ranks(self) -> usize {
        match self {
            Spread::Alone => 1,
            Spread::Same(n) | Spread::Parts(n) => n,
        }
    }
}

/// By what an id is drawn, as far as a program is made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Draw {
    /// The k of top-k; 0 for none.
    pub top_k: usize,
    /// Whether top-p filters.
    pub top_p: bool,
}

/// What `@decode` yields before the next states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// Logits f32[1, V] of the row that `%last: i32[1]` names.
    Last,
    /// The id i32[1] with the largest logit of the row that `%last: i32[1]` names, the first of equals; then f32[1],
    /// the sum of its logits, finite only where all are. Logits stay on the device.
    Likeliest,
    /// The id i32[1] that is drawn by the logits of the row that `%last: i32[1]` names; then f32[1], their sum, as above.
    Drawn(Draw),
    /// Logits f32[T, V].
    All,
    /// Loss f32[T] of each token against `%labels: i32[T]`, which are already shifted: the label of token t is
    /// the id that follows it, −100 where none counts. The log-sum-exp f32[T] comes second.
    Loss,
}

/// The decoder over a cache, entry `@decode`.
///
/// Inputs, in order: `ids: i32[T]` (−1 where no text token stands: its embedding is 0), `features: f32[T, C]` if
/// the spec says so (added to the embedding; 0 where text stands), `cos: f32[T, P]` and `sin: f32[T, P]`
/// (P = head size / 2, by [`crate::rope::rope_table`]), `lo: i32[1, T]` and `hi: i32[1, T]` (what each token sees), `slots: i32[1, T]`
/// (the `at` that each token's slot gets; `i32::MAX` for padding), `start: i32` (the first slot written), and `last`
/// or `labels` by the output. Of several ranks with tokens of their own, `lo` and `hi` are i32[R, 1, T], row s of the
/// rank s to the left, and `last` is −1 on every rank but one. What draws an id takes the same on all ranks: `u: f32[1]`
/// (the chance, in [0, 1)), `temperature: f32`, `min_p: f32`, `top_p: f32`. Then weights. Then states: `cache.at: i32[1, S]` (`i32::MAX` where a slot is empty),
/// and `cache.k.N: E[1, H, S, D]`, `cache.v.N` of each layer N.
///
/// Results: see [`Output`]; then the next states, in the order of the states.
///
/// Shapes: T tokens, S slots, both a rank, R ranks, C width, V vocabulary, H key heads, D head size, E `dtype`. Batch
/// is 1.
/// Errors: a spec without tokens or ranks, or with fewer slots than tokens; a `dtype` that is no float.
pub fn decoder_module(config: &OmChatConfig, spec: DecoderSpec, dtype: Dtype) -> Result<Module, Diagnostics> {
    let (mut module, scope, t) = (Module::default(), scope()?, &config.text);
    let mut e = Entry::new(&mut module, &scope, DECODE, dtype)?;
    e.positive("tokens", spec.tokens)?;
    e.positive("ranks", spec.spread.ranks())?;
    e.fits("tokens", spec.tokens, "capacity", spec.capacity)?;
    let given = Given::declare(&mut e, t, &spec);
    let weights = Weights::declare(&mut e, t);
    let cache = Cache::declare(&mut e, t, spec.capacity);

    let eps = e.constant("eps", t.eps)?;
    let mut x = e.rows("x", weights.embed, given.ids)?;
    if let Some(features) = given.features {
        x = e.call("x", "add_features", &[x, features])?;
    }
    let at = e.op("at", UpdateSlice { axis: 1 }, &[cache.at, given.slots, given.start])?;
    let (block, ranks) = block(t, spec.spread);
    let mut next = vec![at];
    for (layer, (keys, values)) in weights.layers.iter().zip(&cache.layers) {
        let mut operands = vec![x, given.cos, given.sin, given.lo, given.hi, at, given.start, *keys, *values, eps];
        operands.extend(layer);
        let out = e.calls_with(&["x", "k", "v"], block, ranks.as_slice(), &operands)?;
        x = out[0];
        next.extend(&out[1..]);
    }
    let mut results = head(&mut e, &spec, &weights, x, eps, &given)?;
    results.extend(next);
    e.finish(results);
    verified(module)
}

/// The block of a layer, and the letter that its operands do not tell.
fn block(t: &TextConfig, spread: Spread) -> (&'static str, Option<(&'static str, usize)>) {
    match (spread, t.qkv_bias()) {
        (Spread::Alone, true) => ("qwen2_cached_layer", None),
        (Spread::Alone, false) => ("llama_cached_layer", None),
        (Spread::Same(n), true) => ("qwen2_spread_layer", Some(("R", n))),
        (Spread::Same(n), false) => ("llama_spread_layer", Some(("R", n))),
        (Spread::Parts(_), true) => ("qwen2_query_ring_layer", None),
        (Spread::Parts(_), false) => ("llama_query_ring_layer", None),
    }
}

fn head(
    e: &mut Entry,
    spec: &DecoderSpec,
    w: &Weights,
    x: Value,
    eps: Value,
    given: &Given,
) -> Result<Vec<Value>, Diagnostics> {
    match (spec.output, given.asked) {
        (Output::Loss, Some(labels)) => {
            let x = e.call("x", "rms_norm", &[x, w.norm, eps])?;
            e.calls(&["nll", "lse"], "linear_cross_entropy", &[x, w.head, labels])
        }
        (_, last) => {
            let x = match last {
                // One rank has the row, the others 0: the sum is that row on all.
                Some(last) => match (e.rows("x", x, last)?, spec.spread) {
                    (x, Spread::Parts(_)) => e.op("x", AllReduce { fold: FoldKind::Sum }, &[x])?,
                    (x, _) => x,
                },
                None => x,
            };
            let x = e.call("x", "rms_norm", &[x, w.norm, eps])?;
            let logits = e.call("logits", "logits", &[x, w.head])?;
            match (spec.output, given.chance) {
                (Output::Likeliest, _) => e.calls(&["id", "sum"], "likeliest", &[logits]),
                (Output::Drawn(draw), Some(chance)) => drawn(e, draw, logits, chance),
                _ => Ok(vec![logits]),
            }
        }
    }
}

/// An id of each row by chance, and the row's sum.
fn drawn(e: &mut Entry, draw: Draw, logits: Value, chance: [Value; 4]) -> Result<Vec<Value>, Diagnostics> {
    let vocab = e.ty(logits).shape[1];
    let filters = (1..vocab).contains(&draw.top_k);
    let letters = [
        ("J", usize::from(filters)),
        ("K", if filters { draw.top_k } else { 1 }),
        ("N", usize::from(draw.top_p)),
        ("B", vocab.div_ceil(256)),
    ];
    let [u, temperature, min_p, top_p] = chance;
    e.calls_with(&["id", "sum"], "draw", &letters, &[logits, u, temperature, min_p, top_p])
}

/// What is given at each run.
struct Given {
    ids: Value,
    features: Option<Value>,
    cos: Value,
    sin: Value,
    lo: Value,
    hi: Value,
    slots: Value,
    start: Value,
    asked: Option<Value>,
    /// What an id is drawn with: u, temperature, min_p, top_p.
    chance: Option<[Value; 4]>,
}

impl Given {
    fn declare(e: &mut Entry, t: &TextConfig, spec: &DecoderSpec) -> Given {
        let (n, pairs) = (spec.tokens, t.head_dim / 2);
        let seen = match spec.spread {
            Spread::Parts(ranks) => vec![ranks, 1, n],
            _ => vec![1, n],
        };
        Given {
            ids: e.input("ids", Dtype::I32, &[n]),
            features: spec.features.then(|| e.input("features", Dtype::F32, &[n, t.hidden])),
            cos: e.input("cos", Dtype::F32, &[n, pairs]),
            sin: e.input("sin", Dtype::F32, &[n, pairs]),
            lo: e.input("lo", Dtype::I32, &seen),
            hi: e.input("hi", Dtype::I32, &seen),
            slots: e.input("slots", Dtype::I32, &[1, n]),
            start: e.input("start", Dtype::I32, &[]),
            asked: match spec.output {
                Output::Last | Output::Likeliest | Output::Drawn(_) => Some(e.input("last", Dtype::I32, &[1])),
                Output::Loss => Some(e.input("labels", Dtype::I32, &[n])),
                Output::All => None,
            },
            chance: matches!(spec.output, Output::Drawn(_)).then(|| {
                let u = e.input("u", Dtype::F32, &[1]);
                let [temperature, min_p, top_p] =
                    ["temperature", "min_p", "top_p"].map(|name| e.input(name, Dtype::F32, &[]));
                [u, temperature, min_p, top_p]
            }),
        }
    }
}

/// The decoder's tensors.
pub(super) struct Weights {
    /// The embedding, [V, C].
    pub embed: Value,
    /// Each layer's, in the order in which the layer's block takes them.
    pub layers: Vec<Vec<Value>>,
    /// The last norm.
    pub norm: Value,
    /// The output projection, [V, C]; the embedding itself where they are tied.
    pub head: Value,
}

impl Weights {
    /// Declares them under their released names.
    pub fn declare(e: &mut Entry, t: &TextConfig) -> Weights {
        let embed = e.weight("language_model.model.embed_tokens.weight", &[t.vocab, t.hidden]);
        let list = layer_weights(t);
        let layers = (0..t.layers)
            .map(|layer| {
                let at = format!("language_model.model.layers.{layer}");
                list.iter().map(|(name, shape)| e.weight(&format!("{at}.{name}"), shape)).collect()
            })
            .collect();
        let norm = e.weight("language_model.model.norm.weight", &[t.hidden]);
        let head = if t.tied { embed } else { e.weight("language_model.lm_head.weight", &[t.vocab, t.hidden]) };
        Weights { embed, layers, norm, head }
    }
}

/// Name and shape of a layer's tensors, in the order in which its block takes them. Projections are grouped by
/// heads, and those that make heads have a batch axis of 1, so that one einsum yields what `@attention` takes.
fn layer_weights(t: &TextConfig) -> Vec<(&'static str, Vec<usize>)> {
    let (c, h, g, d, f) = (t.hidden, t.kv_heads, t.group(), t.head_dim, t.mlp);
    let mut list = vec![
        ("input_layernorm.weight", vec![c]),
        ("self_attn.q_proj.weight", vec![1, h, g, d, c]),
        ("self_attn.k_proj.weight", vec![1, h, 1, d, c]),
        ("self_attn.v_proj.weight", vec![1, h, d, c]),
    ];
    if t.qkv_bias() {
        list.extend([
            ("self_attn.q_proj.bias", vec![h, g, d]),
            ("self_attn.k_proj.bias", vec![h, 1, d]),
            ("self_attn.v_proj.bias", vec![h, d]),
        ]);
    }
    list.extend([
        ("self_attn.o_proj.weight", vec![c, h, g, d]),
        ("post_attention_layernorm.weight", vec![c]),
        ("mlp.gate_proj.weight", vec![f, c]),
        ("mlp.up_proj.weight", vec![f, c]),
        ("mlp.down_proj.weight", vec![c, f]),
    ]);
    list
}

/// The states.
struct Cache {
    at: Value,
    layers: Vec<(Value, Value)>,
}

impl Cache {
    fn declare(e: &mut Entry, t: &TextConfig, slots: usize) -> Cache {
        let shape = [1, t.kv_heads, slots, t.head_dim];
        let at = e.state("cache.at", Dtype::I32, &[1, slots]);
        let dtype = e.dtype();
        let layers = (0..t.layers)
            .map(|n| {
                let keys = e.state(&format!("cache.k.{n}"), dtype, &shape);
                (keys, e.state(&format!("cache.v.{n}"), dtype, &shape))
            })
            .collect();
        Cache { at, layers }
    }
}
