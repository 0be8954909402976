//! Training steps as modules: the optimizer, on the gradients of one batch or of several added up.

use super::entry::{Entry, verified};
use super::shard::{filled, gathered, kept_shape, reduced, total, unflatten};
use super::train::{Objective, Param, Part, TrainSpec, flatten};
use super::{ACCUMULATE, APPLY, STEP, scope};
use crate::config::OmChatConfig;
use omchat_ir::ops::Pointwise;
use omchat_ir::{Diagnostics, Dtype, Module, Role, Scalar, Type, Value};
use std::collections::BTreeMap;

/// A whole training step, entry `@step`: forward, loss, backward and AdamW.
///
/// Inputs: those of [`super::forward_module`]; then scalars f32: `lr.PART` of each trained part, `beta1`, `beta2`, `eps`,
/// `decay`, `clip` (the largest norm of all gradients together), and of each trained part `c1.PART`, `c2.PART`:
/// 1 − beta^t of the part's step t = 1, 2, …, which the host takes in f64. Then frozen weights. States: each trained tensor
/// in f32, and its moments `adam.m.NAME` and `adam.v.NAME`. Where the element type is narrower, the forward reads the
/// tensor rounded to it. On W ranks each is this rank's shard, f32[[`super::shard_elements`]], and so is every gradient;
/// what is global stays global: the loss, the norm and what is selected.
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
    let hyper = Hyper::declare(&mut e, &o);
    let frozen = |p: &Param| p.role == Role::Weight && !p.trained;
    for (p, v) in o.params.iter().zip(&mut operands).filter(|(p, _)| frozen(p)) {
        *v = Some(e.given(Role::Weight, &p.name, p.ty.clone()));
    }
    let masters: Vec<[Value; 3]> = o
        .trained()
        .map(|p| {
            ["", "adam.m.", "adam.v."].map(|at| e.state(&format!("{at}{}", p.name), Dtype::F32, &kept_shape(&o, p)))
        })
        .collect();
    let kept: Vec<Value> = masters.iter().map(|[w, ..]| *w).collect();
    gathered(&o, &mut e, &mut operands, &kept)?;
    let (mut results, grads) = o.call(&mut e, operands.into_iter().flatten().collect())?;
    let mut flat = vec![];
    for (p, g) in o.trained().zip(grads) {
        let g = reduced(&o, &mut e, p, g)?;
        flat.push(flatten(&mut e, g)?);
    }
    let updated = hyper.update(&mut e, &o, &masters, &flat, spec.decay_all)?;
    results.push(updated.norm);
    results.extend(updated.states.into_iter().flatten());
    e.finish(results);
    verified(module)
}

/// The gradients of a part of a batch, added to those of its other parts, entry `@accumulate_gradients`.
///
/// Inputs: those of [`grads_module`], then `share: f32`, this part's share of the whole mean: its labelled (or kept)
/// tokens over those of all parts. Then weights; the trained ones in f32, as [`step_module`] keeps them. States:
/// `grad.NAME` of each trained tensor, f32. On W ranks the trained ones and their gradients are shards.
///
/// Results: as [`grads_module`] up to the gradients, the loss being the part's own mean; then the next states.
///
/// Errors: as [`grads_module`].
pub fn accumulate_module(config: &OmChatConfig, spec: &TrainSpec, dtype: Dtype) -> Result<Module, Diagnostics> {
    let (mut module, scope) = (Module::default(), scope()?);
    let o = Objective::build(&mut module, &scope, config, spec, dtype)?;
    let mut e = Entry::new(&mut module, &scope, ACCUMULATE, dtype)?;
    let mut operands: Vec<Option<Value>> = vec![None; o.params.len()];
    for (p, v) in o.params.iter().zip(&mut operands).filter(|(p, _)| p.role == Role::Input) {
        *v = Some(e.given(Role::Input, &p.name, p.ty.clone()));
    }
    let share = e.input("share", Dtype::F32, &[]);
    let mut kept = vec![];
    for (p, v) in o.params.iter().zip(&mut operands).filter(|(p, _)| p.role == Role::Weight) {
        let ty = if p.trained { Type::new(Dtype::F32, kept_shape(&o, p)) } else { p.ty.clone() };
        let w = e.given(Role::Weight, &p.name, ty);
        if p.trained { kept.push(w) } else { *v = Some(w) }
    }
    let sums: Vec<Value> =
        o.trained().map(|p| e.state(&format!("grad.{}", p.name), Dtype::F32, &kept_shape(&o, p))).collect();
    gathered(&o, &mut e, &mut operands, &kept)?;
    let (mut results, grads) = o.call(&mut e, operands.into_iter().flatten().collect())?;
    for ((p, sum), g) in o.trained().zip(sums).zip(grads) {
        let g = reduced(&o, &mut e, p, g)?;
        let part = e.op("part", Pointwise::plain(Scalar::Mul), &[g, share])?;
        let [sum, part] = [sum, part].map(|x| flatten(&mut e, x));
        let next = e.call("sum", "accumulate", &[sum?, part?])?;
        results.push(unflatten(&mut e, "next", next, &kept_shape(&o, p))?);
    }
    e.finish(results);
    verified(module)
}

/// AdamW on the gradients that [`accumulate_module`] added up, entry `@apply_gradients`.
///
/// Inputs: the scalars of [`step_module`]. States: those of [`step_module`], with `grad.NAME` after the moments of each
/// tensor. Results: `norm: f32`; then the next states, the gradients 0.
///
/// Errors: as [`grads_module`].
pub fn apply_module(config: &OmChatConfig, spec: &TrainSpec, dtype: Dtype) -> Result<Module, Diagnostics> {
    let (mut module, scope) = (Module::default(), scope()?);
    // Only what is trained is wanted of it; its function is no part of this module.
    let o = Objective::build(&mut Module::default(), &scope, config, spec, dtype)?;
    let mut e = Entry::new(&mut module, &scope, APPLY, dtype)?;
    let hyper = Hyper::declare(&mut e, &o);
    let (mut masters, mut sums, mut flat, mut empty) = (vec![], vec![], vec![], vec![]);
    for p in o.trained() {
        let of = |at: &str, e: &mut Entry| e.state(&format!("{at}{}", p.name), Dtype::F32, &kept_shape(&o, p));
        masters.push(["", "adam.m.", "adam.v."].map(|at| of(at, &mut e)));
        sums.push(of("grad.", &mut e));
    }
    for sum in sums {
        flat.push(flatten(&mut e, sum)?);
    }
    let zero = e.constant("zero", 0.0)?;
    for p in o.trained() {
        empty.push(filled(&mut e, zero, &kept_shape(&o, p))?);
    }
    let updated = hyper.update(&mut e, &o, &masters, &flat, spec.decay_all)?;
    let mut results = vec![updated.norm];
    for (next, none) in updated.states.into_iter().zip(empty) {
        results.extend(next);
        results.push(none);
    }
    e.finish(results);
    verified(module)
}

/// The scalars of AdamW, as inputs.
struct Hyper {
    rates: BTreeMap<Part, Value>,
    betas: [Value; 2],
    eps: Value,
    decay: Value,
    clip: Value,
    /// Of each part: moments count the steps that their own part has trained.
    corrections: BTreeMap<Part, [Value; 2]>,
}

/// What an update yields.
struct Updated {
    norm: Value,
    /// The next tensor and moments of each trained tensor.
    states: Vec<Vec<Value>>,
}

impl Hyper {
    fn declare(e: &mut Entry, o: &Objective) -> Hyper {
        let rates = o.parts().into_iter().map(|p| (p, e.input(&format!("lr.{}", p.name()), Dtype::F32, &[]))).collect();
        let [b1, b2, eps, decay, clip] =
            ["beta1", "beta2", "eps", "decay", "clip"].map(|n| e.input(n, Dtype::F32, &[]));
        let mut of = |p: Part| ["c1", "c2"].map(|n| e.input(&format!("{n}.{}", p.name()), Dtype::F32, &[]));
        let corrections = o.parts().into_iter().map(|p| (p, of(p))).collect();
        Hyper { rates, betas: [b1, b2], eps, decay, clip, corrections }
    }

    /// AdamW on every trained tensor, by its gradient as one axis.
    fn update(
        &self,
        e: &mut Entry,
        o: &Objective,
        masters: &[[Value; 3]],
        flat: &[Value],
        decay_all: bool,
    ) -> Result<Updated, Diagnostics> {
        let norm = norm(e, o, flat)?;
        let scale = e.call("scale", "clip_scale", &[norm, self.clip])?;
        let none = e.constant("none", 0.0)?;
        let mut states = vec![];
        for ((p, state), g) in o.trained().zip(masters).zip(flat) {
            let g = e.op("g", Pointwise::plain(Scalar::Mul), &[*g, scale])?;
            let [w, m, v] = [0, 1, 2].map(|i| flatten(e, state[i]));
            let decay = if decay_all || decays(&p.name, &p.ty) { self.decay } else { none };
            let [b1, b2] = self.betas;
            let part = Part::of(&p.name);
            let [c1, c2] = self.corrections[&part];
            let operands = [w?, g, m?, v?, self.rates[&part], b1, b2, self.eps, decay, c1, c2];
            let mut next = vec![];
            for x in e.calls(&["p", "m", "v"], "adamw", &operands)? {
                next.push(unflatten(e, "next", x, &kept_shape(o, p))?);
            }
            states.push(next);
        }
        Ok(Updated { norm, states })
    }
}

/// Whether decoupled decay applies to a tensor: to matrices, not to norms, biases and scales. Biases are grouped by
/// heads, so the released name tells more than the shape.
pub fn decays(name: &str, ty: &Type) -> bool {
    let vector = name.ends_with(".bias") || name.contains("norm") || name.ends_with(".ls1") || name.ends_with(".ls2");
    ty.rank() >= 2 && !vector
}

/// The norm of all gradients together, of all ranks' shards.
fn norm(e: &mut Entry, o: &Objective, grads: &[Value]) -> Result<Value, Diagnostics> {
    let mut squares = e.constant("squares", 0.0)?;
    for g in grads {
        let more = e.call("squares", "sum_squares", &[*g])?;
        squares = e.op("squares", Pointwise::plain(Scalar::Add), &[squares, more])?;
    }
    let squares = total(o, e, squares)?;
    e.op("norm", Pointwise::plain(Scalar::Sqrt), &[squares])
}
