//! Training as modules: gradients of a batch, and a whole step with its optimizer.

use super::entry::{Entry, verified};
use super::forward::{ForwardSpec, Hidden, hidden};
use super::{GRADS, OBJECTIVE, STEP, scope};
use crate::config::OmChatConfig;
use omchat_ir::ops::{AllReduce, Cast, Constant, FoldKind, Pointwise, Rearrange};
use omchat_ir::{Axes, Code, Diagnostics, Differentiate, Dtype, Fault, Func, Module, Role, Scalar, Scope, Type, Value};
use std::collections::BTreeMap;

/// A part of the model that is trained or frozen as a whole, with a learning rate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The vision tower.
    Vision,
    /// The projector.
    Projector,
    /// The decoder, its embedding and its output projection.
    Decoder,
}

impl Part {
    /// Every part, in the order of the model.
    pub const ALL: [Part; 3] = [Part::Vision, Part::Projector, Part::Decoder];

    /// The name in options and of the learning rate's input, `lr.NAME`.
    pub fn name(self) -> &'static str {
        match self {
            Part::Vision => "vision",
            Part::Projector => "projector",
            Part::Decoder => "decoder",
        }
    }

    /// The part of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Part> {
        Part::ALL.into_iter().find(|p| p.name() == name)
    }

    /// The part that a tensor of the checkpoint belongs to, by its released name.
    pub fn of(weight: &str) -> Part {
        if weight.starts_with("vision_tower.") {
            Part::Vision
        } else if weight.starts_with("multi_modal_projector.") {
            Part::Projector
        } else {
            Part::Decoder
        }
    }
}

/// What the backward pass keeps of the forward; what it does not keep it computes again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Recompute {
    /// Everything that it reads.
    #[default]
    Nothing,
    /// Each layer's operands, and the output and log-sum-exp of its attention.
    AllButAttention,
    /// Each layer's operands only.
    Layers,
}

impl Recompute {
    /// Every kind, from the one that keeps most.
    pub const ALL: [Recompute; 3] = [Recompute::Nothing, Recompute::AllButAttention, Recompute::Layers];

    /// The name in options.
    pub fn name(self) -> &'static str {
        match self {
            Recompute::Nothing => "nothing",
            Recompute::AllButAttention => "all-but-attention",
            Recompute::Layers => "layers",
        }
    }
}

/// How the labelled tokens of a batch weigh in its loss; over all ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Weigh {
    /// Each token the same.
    #[default]
    Tokens,
    /// Each example the same, however long: short samples are packed. Takes `document: i32[T]`, the example of each
    /// token.
    Examples {
        /// Examples there may be.
        most: usize,
    },
}

/// Selective training (Rho-1, SVLM): only the tokens with the largest score train, and pay for their logits' backward.
///
/// Takes `reference: f32[T]`, what a reference model's loss is; `sign: f32`, 1 to keep what this model lacks, −1 for the
/// other reading; `ratio: f32` of the labelled tokens that is kept; `z: f32`, the z-loss; `whole: bool`, whether to
/// divide by all labelled tokens instead of the kept ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Selection {
    /// Rows of this rank that there is room for; whole parts of the loss.
    pub room: usize,
    /// Whether tokens are chosen over all ranks, or on each for itself.
    pub joined: bool,
}

/// What one run of `@grads` or `@step` takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrainSpec {
    /// The sequences; its `remat` is set by `recompute`.
    pub forward: ForwardSpec,
    /// What is trained.
    pub parts: Vec<Part>,
    /// What is computed again.
    pub recompute: Recompute,
    /// How tokens weigh.
    pub weigh: Weigh,
    /// Which tokens train; all labelled ones without.
    pub select: Option<Selection>,
    /// Whether every parameter decays, or matrices only.
    pub decay_all: bool,
}

impl TrainSpec {
    /// The whole model over that forward pass, nothing computed again, matrices decay.
    pub fn whole(forward: ForwardSpec) -> TrainSpec {
        TrainSpec {
            forward,
            parts: Part::ALL.to_vec(),
            recompute: Recompute::Nothing,
            weigh: Weigh::Tokens,
            select: None,
            decay_all: false,
        }
    }
}

/// Functions whose results [`Recompute::AllButAttention`] keeps.
const KEPT: &[&str] = &["attention", "ring_attention"];

/// The loss and its gradients, entry `@grads`.
///
/// Inputs and weights as [`super::forward_module`], then those that [`Weigh`] and [`Selection`] name. Results:
/// `loss: f32`, the mean over the labelled (or kept) tokens of all ranks; `nll: f32[T]`, or with a selection
/// `keep: bool[T]` and `missed: i32`, how many kept tokens of all ranks found no room: their gradients are not there,
/// so the caller refuses when it is not 0. Then `d.NAME` for each trained tensor, summed over ranks, in the order of the
/// weights and of their types.
///
/// Errors: as [`super::forward_module`]; nothing to train.
pub fn grads_module(config: &OmChatConfig, spec: &TrainSpec, dtype: Dtype) -> Result<Module, Diagnostics> {
    let (mut module, scope) = (Module::default(), scope()?);
    let o = Objective::build(&mut module, &scope, config, spec, dtype)?;
    let mut e = Entry::new(&mut module, &scope, GRADS, dtype)?;
    let operands = o.params.iter().map(|p| e.given(p.role, &p.name, p.ty.clone())).collect();
    let (mut results, grads) = o.call(&mut e, operands)?;
    results.extend(grads);
    e.finish(results);
    verified(module)
}

/// A whole training step, entry `@step`: forward, loss, backward and AdamW.
///
/// Inputs: those of [`super::forward_module`]; then scalars f32: `lr.PART` of each trained part, `beta1`, `beta2`, `eps`,
/// `decay`, `clip` (the largest norm of all gradients together), and `c1`, `c2`: 1 − beta^t of step t = 1, 2, …, which
/// the host takes in f64. Then frozen weights. States: each trained tensor in f32, and its moments `adam.m.NAME` and
/// `adam.v.NAME`. Where the element type is narrower, the forward reads the tensor rounded to it.
///
/// Results: as [`grads_module`] up to the gradients, then `norm: f32` of all of them before clipping; then the next states.
///
/// Errors: as [`grads_module`].
/// Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
pub fn step_module(config: &OmChatConfig, spec: &TrainSpec, dtype: Dtype) -> Result<Module, Diagnostics> {
    let (mut module, scope) = (Module::default(), scope()?);
    let o = Objective::build(&mut module, &scope, config, spec, dtype)?;
    let mut e = Entry::new(&mut module, &scope, STEP, dtype)?;
    let mut operands: Vec<Option<Value>> = vec![None; o.params.len()];
    for (p, v) in o.params.iter().zip(&mut operands).filter(|(p, _)| p.role == Role::Input) {
        *v = Some(e.given(Role::Input, &p.name, p.ty.clone()));
    }
    let rates: BTreeMap<Part, Value> =
        o.parts().into_iter().map(|p| (p, e.input(&format!("lr.{}", p.name()), Dtype::F32, &[]))).collect();
    let [beta1, beta2, eps, decay, clip, c1, c2] =
        ["beta1", "beta2", "eps", "decay", "clip", "c1", "c2"].map(|n| e.input(n, Dtype::F32, &[]));
    let frozen = |p: &Param| p.role == Role::Weight && !p.trained;
    for (p, v) in o.params.iter().zip(&mut operands).filter(|(p, _)| frozen(p)) {
        *v = Some(e.given(Role::Weight, &p.name, p.ty.clone()));
    }
    let masters: Vec<[Value; 3]> = o
        .trained()
        .map(|p| ["", "adam.m.", "adam.v."].map(|at| e.state(&format!("{at}{}", p.name), Dtype::F32, &p.ty.shape)))
        .collect();
    let mut narrow = masters.iter();
    for (p, v) in o.params.iter().zip(&mut operands).filter(|(p, _)| p.trained) {
        let Some([w, ..]) = narrow.next() else { continue };
        *v = Some(if dtype == Dtype::F32 { *w } else { e.op(&p.name, Cast { dtype }, &[*w])? });
    }
    let (mut results, grads) = o.call(&mut e, operands.into_iter().flatten().collect())?;

    let mut flat = vec![];
    for g in &grads {
        let wide = if dtype == Dtype::F32 { *g } else { e.op("wide", Cast { dtype: Dtype::F32 }, &[*g])? };
        flat.push(flatten(&mut e, wide)?);
    }
    let norm = norm(&mut e, &flat)?;
    let scale = e.call("scale", "clip_scale", &[norm, clip])?;
    results.push(norm);
    let none = e.constant("none", 0.0)?;
    for ((p, state), g) in o.trained().zip(&masters).zip(flat) {
        let g = e.op("g", Pointwise::plain(Scalar::Mul), &[g, scale])?;
        let [w, m, v] = [0, 1, 2].map(|i| flatten(&mut e, state[i]));
        let decays = spec.decay_all || decays(&p.name, &p.ty);
        let hyper = [rates[&Part::of(&p.name)], beta1, beta2, eps, if decays { decay } else { none }, c1, c2];
        let operands: Vec<Value> = [w?, g, m?, v?].into_iter().chain(hyper).collect();
        for next in e.calls(&["p", "m", "v"], "adamw", &operands)? {
            results.push(unflatten(&mut e, next, &p.ty.shape)?);
        }
    }
    e.finish(results);
    verified(module)
}

/// Whether decoupled decay applies to a tensor: to matrices, not to norms, biases and scales. Biases are grouped by
/// heads, so the released name tells more than the shape.
pub fn decays(name: &str, ty: &Type) -> bool {
    let vector = name.ends_with(".bias") || name.contains("norm") || name.ends_with(".ls1") || name.ends_with(".ls2");
    ty.rank() >= 2 && !vector
}

/// The scalar that is differentiated, and its parameters.
struct Objective {
    grad: Func,
    params: Vec<Param>,
    /// Names of the results before the gradients.
    results: Vec<&'static str>,
    ranks: usize,
}

struct Param {
    role: Role,
    name: String,
    ty: Type,
    trained: bool,
}

impl Objective {
    fn build(
        module: &mut Module,
        scope: &Scope<'static>,
        config: &OmChatConfig,
        spec: &TrainSpec,
        dtype: Dtype,
    ) -> Result<Objective, Diagnostics> {
        let mut e = Entry::new(module, scope, OBJECTIVE, dtype)?;
        let forward = ForwardSpec { remat: spec.recompute != Recompute::Nothing, ..spec.forward };
        let extra = extra_inputs(&mut e, spec)?;
        let h = hidden(&mut e, config, forward)?;
        let (names, results) = match spec.select {
            None => (vec!["loss", "nll"], weighed(&mut e, config, spec, &h, &extra)?),
            Some(s) => (vec!["loss", "keep", "missed"], selected(&mut e, spec, s, &h, &extra)?),
        };
        let f = e.finish(results);
        let function = module.function(f);
        let params: Vec<Param> = function
            .param_values()
            .zip(&function.params)
            .map(|(v, role)| {
                let (name, ty) = (function.value(v).name.clone(), function.ty(v).clone());
                let trained = *role == Role::Weight && spec.parts.contains(&Part::of(&name));
                Param { role: *role, name, ty, trained }
            })
            .collect();
        let wrt: Vec<Value> = function.param_values().filter(|v| params[v.0 as usize].trained).collect();
        let keep = if spec.recompute == Recompute::AllButAttention { KEPT } else { &[] };
        let grad = Differentiate { scope: Some(scope), keep }.run(module, f, &[0], &wrt)?;
        Ok(Objective { grad, params, results: names, ranks: spec.forward.ranks })
    }

    fn trained(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|p| p.trained)
    }

    /// Parts of which something is trained.
    fn parts(&self) -> Vec<Part> {
        Part::ALL.into_iter().filter(|part| self.trained().any(|p| Part::of(&p.name) == *part)).collect()
    }

    /// What comes before the gradients, and the gradients of the trained tensors; of all ranks.
    fn call(&self, e: &mut Entry, mut operands: Vec<Value>) -> Result<(Vec<Value>, Vec<Value>), Diagnostics> {
        operands.push(e.op("one", Constant { dtype: Dtype::F32, value: 1.0 }, &[])?);
        // Each rank has its part of the mean, and of its gradients; only sums over all bear the names.
        let part = if self.ranks > 1 { "part." } else { "d." };
        let grads = self.trained().map(|p| format!("{part}{}", p.name));
        let names: Vec<String> = self.results.iter().map(|n| (*n).to_string()).chain(grads).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut results = e.calls_of(&names, self.grad, &operands)?;
        let mut grads = results.split_off(self.results.len());
        if self.ranks > 1 {
            let sum = || AllReduce { fold: FoldKind::Sum };
            results[0] = e.op("loss", sum(), &[results[0]])?;
            for (g, p) in grads.iter_mut().zip(self.trained()) {
                *g = e.op(&format!("d.{}", p.name), sum(), &[*g])?;
            }
        }
        Ok((results, grads))
    }
}

/// The inputs that the weights or the selection take, before those of the forward.
fn extra_inputs(e: &mut Entry, spec: &TrainSpec) -> Result<Vec<Value>, Diagnostics> {
    let n = spec.forward.tokens;
    let Some(s) = spec.select else {
        return match spec.weigh {
            Weigh::Tokens => Ok(vec![]),
            Weigh::Examples { most } => {
                e.positive("examples", most)?;
                Ok(vec![e.input("document", Dtype::I32, &[n])])
            }
        };
    };
    if spec.weigh != Weigh::Tokens {
        return Err(Fault::new(Code::Attribute, "a selection weighs each kept token the same")
            .help("weigh by tokens, or select nothing")
            .into());
    }
    e.divides("loss_tiles", spec.forward.loss_tiles, "tokens", n)?;
    e.positive("room", s.room)?;
    e.fits("room", s.room, "tokens", n)?;
    e.divides("a part of the loss", n / spec.forward.loss_tiles, "room", s.room)?;
    let mut out = vec![e.input("reference", Dtype::F32, &[n])];
    out.extend(["sign", "ratio", "z"].map(|name| e.input(name, Dtype::F32, &[])));
    out.push(e.input("whole", Dtype::Bool, &[]));
    Ok(out)
}

/// This rank's part of the mean over labelled tokens, and each token's loss.
fn weighed(
    e: &mut Entry,
    config: &OmChatConfig,
    spec: &TrainSpec,
    h: &Hidden,
    extra: &[Value],
) -> Result<Vec<Value>, Diagnostics> {
    let (joined, vocab) = (usize::from(spec.forward.ranks > 1), config.text.vocab);
    let [nll, _] = h.losses(e, spec.forward.loss_tiles)?;
    let weights = match spec.weigh {
        Weigh::Tokens => {
            e.calls_with(&["weight", "total"], "token_weights", &[("J", joined), ("V", vocab)], &[h.labels])?
        }
        Weigh::Examples { most } => {
            let letters = [("J", joined), ("M", most), ("V", vocab)];
            e.calls_with(&["weight", "total"], "example_weights", &letters, &[h.labels, extra[0]])?
        }
    };
    let loss = e.call("loss", "weighted_loss", &[nll, weights[0], weights[1]])?;
    Ok(vec![loss, nll])
}

/// This rank's part of the mean over kept tokens, which they are, and how many found no room.
fn selected(
    e: &mut Entry,
    spec: &TrainSpec,
    s: Selection,
    h: &Hidden,
    extra: &[Value],
) -> Result<Vec<Value>, Diagnostics> {
    let parts = spec.forward.loss_tiles;
    let at = flatten(e, h.at)?;
    let operands: Vec<Value> = [h.x, h.head, h.labels, extra[0], at].iter().chain(&extra[1..]).copied().collect();
    let letters = [("J", usize::from(s.joined)), ("N", parts), ("K", s.room)];
    let names = ["loss", "keep", "missed", "lse", "total"];
    let out = e.calls_with(&names, "two_pass_loss", &letters, &operands)?;
    Ok(out[..3].to_vec())
}

/// The norm of all gradients together.
fn norm(e: &mut Entry, grads: &[Value]) -> Result<Value, Diagnostics> {
    let mut total = e.constant("squares", 0.0)?;
    for g in grads {
        let squares = e.call("squares", "sum_squares", &[*g])?;
        total = e.op("squares", Pointwise::plain(Scalar::Add), &[total, squares])?;
    }
    e.op("norm", Pointwise::plain(Scalar::Sqrt), &[total])
}

fn flatten(e: &mut Entry, x: Value) -> Result<Value, Diagnostics> {
    let words: Vec<String> = (0..e.ty(x).rank()).map(|i| format!("i{i}")).collect();
    let axes = Axes::parse(&format!("{w} -> ({w})", w = words.join(" ")))?;
    e.op("flat", Rearrange { axes, sizes: BTreeMap::new() }, &[x])
}

fn unflatten(e: &mut Entry, x: Value, shape: &[usize]) -> Result<Value, Diagnostics> {
    let words: Vec<String> = (0..shape.len()).map(|i| format!("i{i}")).collect();
    let axes = Axes::parse(&format!("({w}) -> {w}", w = words.join(" ")))?;
    let sizes = words.into_iter().zip(shape.iter().copied()).collect();
    e.op("next", Rearrange { axes, sizes }, &[x])
}
