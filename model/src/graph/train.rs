//! Training as modules: what is trained and how, and the gradients of a batch.

use super::entry::{Entry, verified};
use super::forward::{ForwardSpec, Hidden, hidden};
use super::{GRADS, OBJECTIVE, scope};
use crate::config::OmChatConfig;
use omchat_ir::ops::{AllReduce, Constant, FoldKind, Rearrange};
use omchat_ir::{Axes, Code, Diagnostics, Differentiate, Dtype, Fault, Func, Module, Role, Scope, Type, Value};
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

    /// The name in options, and of the inputs `lr.NAME`, `c1.NAME` and `c2.NAME` of a step.
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
    /// Rings that train the model together, each on sequences of its own: W = `data` x `forward.ring` ranks in all,
    /// ring by ring. `at`, `lo`, `hi` and `document` are numbered through over all of them.
    pub data: usize,
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
            data: 1,
            parts: Part::ALL.to_vec(),
            recompute: Recompute::Nothing,
            weigh: Weigh::Tokens,
            select: None,
            decay_all: false,
        }
    }

    /// Ranks in all: W. With more than one, each holds a shard of each trained tensor and of its moments.
    pub fn ranks(&self) -> usize {
        self.data.saturating_mul(self.forward.ring)
    }
}

/// Functions whose results [`Recompute::AllButAttention`] keeps.
const KEPT: &[&str] = &["attention", "ring_attention", "ring_attention_reach"];

/// The loss and its gradients, entry `@grads`.
///
/// Inputs and weights as [`super::forward_module`], then those that [`Weigh`] and [`Selection`] name. Results:
/// `loss: f32`, the mean over the labelled (or kept) tokens of all ranks; with a selection `keep: bool[T]` and
/// `missed: i32`, how many kept tokens of all ranks found no room: their gradients are not there, so the caller refuses
/// when it is not 0; `nll: f32[T]`. Then `d.NAME` for each trained tensor, summed over ranks, in the order of the
/// weights and of their types.
///
/// Errors: as [`super::forward_module`]; nothing to train.
pub fn grads_module(config: &OmChatConfig, spec: &TrainSpec, dtype: Dtype) -> Result<Module, Diagnostics> {
    let (mut module, scope) = (Module::default(), scope()?);
    let o = Objective::build(&mut module, &scope, config, spec, dtype)?;
    let mut e = Entry::new(&mut module, &scope, GRADS, dtype)?;
    let operands = o.params.iter().map(|p| e.given(p.role, &p.name, p.ty.clone())).collect();
    let (mut results, grads) = o.call(&mut e, operands)?;
    results.extend(o.all_reduced(&mut e, grads)?);
    e.finish(results);
    verified(module)
}

/// The scalar that is differentiated, and its parameters.
pub(super) struct Objective {
    grad: Func,
    pub(super) params: Vec<Param>,
    /// Names of the results before the gradients.
    results: Vec<&'static str>,
    /// Ranks in all.
    pub(super) ranks: usize,
}

/// A parameter of the objective.
pub(super) struct Param {
    pub(super) role: Role,
    pub(super) name: String,
    pub(super) ty: Type,
    pub(super) trained: bool,
}

impl Objective {
    pub(super) fn build(
        module: &mut Module,
        scope: &Scope<'static>,
        config: &OmChatConfig,
        spec: &TrainSpec,
        dtype: Dtype,
    ) -> Result<Objective, Diagnostics> {
        let mut e = Entry::new(module, scope, OBJECTIVE, dtype)?;
        e.positive("data", spec.data)?;
        let forward = ForwardSpec { remat: spec.recompute != Recompute::Nothing, ..spec.forward };
        let extra = extra_inputs(&mut e, spec)?;
        let h = hidden(&mut e, config, forward)?;
        let (names, results) = match spec.select {
            None => (vec!["loss", "nll"], weighed(&mut e, config, spec, &h, &extra)?),
            Some(s) => (vec!["loss", "keep", "missed", "nll"], selected(&mut e, spec, s, &h, &extra)?),
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
        Ok(Objective { grad, params, results: names, ranks: spec.ranks() })
    }

    pub(super) fn trained(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|p| p.trained)
    }

    /// Parts of which something is trained.
    pub(super) fn parts(&self) -> Vec<Part> {
        Part::ALL.into_iter().filter(|part| self.trained().any(|p| Part::of(&p.name) == *part)).collect()
    }

    /// What comes before the gradients, of all ranks, and this rank's part of the gradients of the trained tensors.
    pub(super) fn call(
        &self,
        e: &mut Entry,
        mut operands: Vec<Value>,
    ) -> Result<(Vec<Value>, Vec<Value>), Diagnostics> {
        operands.push(e.op("one", Constant { dtype: Dtype::F32, value: 1.0 }, &[])?);
        // Each rank has its part of the mean, and of its gradients; only sums over all bear the names.
        let part = if self.ranks > 1 { "part." } else { "d." };
        let grads = self.trained().map(|p| format!("{part}{}", p.name));
        let names: Vec<String> = self.results.iter().map(|n| (*n).to_string()).chain(grads).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut results = e.calls_of(&names, self.grad, &operands)?;
        let grads = results.split_off(self.results.len());
        if self.ranks > 1 {
            results[0] = e.op("loss", AllReduce { fold: FoldKind::Sum }, &[results[0]])?;
        }
        Ok((results, grads))
    }

    /// The whole gradients of all ranks, on every rank.
    fn all_reduced(&self, e: &mut Entry, mut grads: Vec<Value>) -> Result<Vec<Value>, Diagnostics> {
        if self.ranks > 1 {
            for (g, p) in grads.iter_mut().zip(self.trained()) {
                *g = e.op(&format!("d.{}", p.name), AllReduce { fold: FoldKind::Sum }, &[*g])?;
            }
        }
        Ok(grads)
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
    let (joined, vocab) = (usize::from(spec.ranks() > 1), config.text.vocab);
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

/// This rank's part of the mean over kept tokens, which they are, how many found no room, and each token's loss.
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
    let names = ["loss", "keep", "missed", "lse", "total", "nll"];
    let out = e.calls_with(&names, "two_pass_loss", &letters, &operands)?;
    Ok([&out[..3], &out[5..]].concat())
}

/// A value as one axis.
pub(super) fn flatten(e: &mut Entry, x: Value) -> Result<Value, Diagnostics> {
    let words: Vec<String> = (0..e.ty(x).rank()).map(|i| format!("i{i}")).collect();
    let axes = Axes::parse(&format!("{w} -> ({w})", w = words.join(" ")))?;
    e.op("flat", Rearrange { axes, sizes: BTreeMap::new() }, &[x])
}
