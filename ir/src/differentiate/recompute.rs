//! `remat`: the forward once more, from a call's operands and from what it was told to keep.

use super::callee;
use super::emit::{Emit, Local, Primal};
use super::split::{Residual, Split, Splits, free_name};
use crate::fault::{Diagnostics, Fault};
use crate::module::{Action, Func, Function, Named, Node, Role, Value};
use crate::ops::Copy;
use std::collections::BTreeMap;

impl Splits<'_, '_> {
    /// The forward of a derived split: the function's nodes, and the extras behind its results.
    pub(super) fn forward(&mut self, primal: &Function, split: &Split) -> Func {
        let f = self.with_extras(primal, split, false);
        self.add(f)
    }

    /// The split of a `remat` call, from the split of a plain one.
    pub(super) fn recompute(&mut self, f: Func, inner: &Split) -> Result<Split, Diagnostics> {
        let primal = self.module.function(f).clone();
        let kept = self.kept(f);
        let asks = inner.residuals.iter().any(|r| !matches!(r, Residual::Param(_)));
        let mut split = Split {
            forward: f,
            extras: vec![],
            backward: inner.backward,
            residuals: inner.residuals.clone(),
            yields: inner.yields.clone(),
            takes: inner.takes.clone(),
            calls: BTreeMap::new(),
            kept: vec![],
            recomputes: false,
        };
        let Some(backward) = inner.backward.filter(|_| asks) else { return Ok(split) };
        let replayed = if kept.is_empty() { inner.forward } else { self.replay(&primal, inner) };
        if !kept.is_empty() {
            split.forward = self.saving(&primal);
        }

        let mut e = Emit::new(&primal);
        let params: Vec<Local> = primal.param_values().map(|v| e.primal(v)).collect();
        let stored: Vec<Local> =
            kept.iter().enumerate().map(|(k, v)| e.extra(usize::MAX, k, &v.name, v.ty.clone())).collect();
        let mut given = vec![];
        for (v, _) in primal.results.iter().zip(&inner.takes).filter(|(_, t)| **t) {
            given.push(e.cotangent(*v));
        }
        let operands: Vec<Local> = params.iter().chain(&stored).copied().collect();
        let made = self.emit_call(&mut e, replayed, &operands);
        let mut operands = inner.operands(&params, &made, primal.results.len());
        operands.extend(&given);
        let results = self.emit_call(&mut e, backward, &operands);
        let reads: Vec<Local> = params.iter().chain(&stored).copied().collect();
        let name = self.unique(&format!("{}.remat", primal.name), &primal.binds);
        let function = e.finish(name, &primal, &reads, &given, &results);
        split.backward = Some(self.add(function));
        split.residuals = (0..params.len()).map(Residual::Param).collect();
        split.residuals.extend((0..kept.len()).map(Residual::Extra));
        split.extras = kept;
        split.recomputes = true;
        Ok(split)
    }

    fn emit_call(&self, e: &mut Emit, f: Func, operands: &[Local]) -> Vec<Local> {
        let callee = self.module.function(f);
        let names: Vec<String> = callee.results.iter().map(|v| callee.value(*v).name.clone()).collect();
        let types = callee.result_types();
        e.node(&names, Action::Call { callee: f, remat: false }, operands, &types)
    }

    /// Copies of the operands that stand between the forward and its repetition: without them the two would be
    /// merged again as common subexpressions. Parameters of the calling function need none beside computed operands.
    pub(super) fn part(
        &mut self,
        e: &mut Emit,
        primal: &Function,
        node: &Node,
        split: &Split,
        operands: &mut [Local],
    ) -> Result<(), Fault> {
        let float = |v: Value| primal.ty(v).dtype.is_float();
        let computed = |v: Value| v.0 as usize >= primal.params.len();
        let any = node.operands.iter().any(|v| float(*v) && computed(*v));
        let plain = |v: Value| matches!(primal.params.get(v.0 as usize), Some(Role::Input));
        for (r, operand) in split.residuals.iter().zip(operands) {
            let name = match r {
                Residual::Param(i) => {
                    let v = node.operands[*i];
                    let parts = float(v) && (if any { computed(v) } else { plain(v) });
                    parts.then(|| primal.value(v).name.clone())
                }
                // What was kept is read again too: else what the forward made of it would be kept as well.
                Residual::Extra(k) => Some(split.extras[*k].name.clone()),
                Residual::Result(_) => None,
            };
            if let Some(name) = name {
                *operand = e.op(&name, Copy, &[*operand])?;
            }
        }
        Ok(())
    }

    fn marked(&self, f: Func) -> bool {
        self.how.keep.contains(&self.module.function(f).name.as_str())
    }

    /// What a `remat` call of a function keeps: results of marked calls in it, in order of the nodes.
    fn kept(&self, f: Func) -> Vec<Named> {
        let function = self.module.function(f);
        let mut out = vec![];
        for node in &function.nodes {
            match callee(node) {
                Some((g, false)) if self.marked(g) => {
                    out.extend(node.results.iter().map(|r| function.value(*r).clone()));
                }
                Some((g, false)) => out.extend(self.kept(g)),
                _ => {}
            }
        }
        out
    }

    /// The function with what is kept behind its results.
    fn saving(&mut self, primal: &Function) -> Func {
        let mut out = Function { nodes: vec![], params: vec![Role::Input; primal.params.len()], ..primal.clone() };
        let mut extra = vec![];
        for node in &primal.nodes {
            let mut node = node.clone();
            match callee(&node) {
                Some((g, false)) if self.marked(g) => extra.extend(node.results.iter().copied()),
                Some((g, false)) if !self.kept(g).is_empty() => {
                    let (kept, inner) = (self.kept(g), self.module.function(g).clone());
                    let saved = self.saving(&inner);
                    node.action = Action::Call { callee: saved, remat: false };
                    for k in kept {
                        let v = define(&mut out, k);
                        node.results.push(v);
                        extra.push(v);
                    }
                }
                _ => {}
            }
            out.nodes.push(node);
        }
        out.results.extend(extra);
        let mut out = in_order(out);
        out.name = format!("{}.save", primal.name);
        if let Some(found) = self.module.find(&out.name, &out.binds).filter(|g| *self.module.function(*g) == out) {
            return found;
        }
        out.name = self.unique(&out.name, &primal.binds);
        self.add(out)
    }

    /// The forward of a split that is given what was kept.
    fn replay(&mut self, primal: &Function, split: &Split) -> Func {
        let function = self.with_extras(primal, split, true);
        self.add(function)
    }

    /// The function with the extras of a split behind its results; replayed, marked calls become parameters.
    fn with_extras(&mut self, primal: &Function, split: &Split, replay: bool) -> Function {
        let mut out = Function { nodes: vec![], params: vec![Role::Input; primal.params.len()], ..primal.clone() };
        let mut extra: BTreeMap<(usize, usize), Value> = BTreeMap::new();
        // Parameters stand first: those for kept values are put in at the end, and numbered from here until then.
        let mut given: Vec<Named> = vec![];
        let mut swapped: BTreeMap<Value, usize> = BTreeMap::new();
        for (n, node) in primal.nodes.iter().enumerate() {
            let mut node = node.clone();
            let inner = split.calls.get(&n).cloned();
            let Some((g, remat)) = callee(&node) else {
                out.nodes.push(node);
                continue;
            };
            let kept = if replay && !remat && !self.marked(g) { self.kept(g) } else { vec![] };
            if replay && !remat && self.marked(g) {
                // What the backward reads inside a marked call must be run again after all.
                let again = inner.as_ref().is_some_and(|s| !s.extras.is_empty());
                for r in &node.results {
                    given.push(primal.value(*r).clone());
                    if !again {
                        swapped.insert(*r, given.len() - 1);
                    }
                }
                if !again {
                    continue;
                }
            }
            let mut target = inner.as_ref().map_or(g, |s| s.forward);
            let mut more = vec![];
            if !kept.is_empty() {
                let callee = self.module.function(g).clone();
                target = match &inner {
                    Some(s) => self.replay(&callee, s),
                    None => g,
                };
                for k in kept {
                    given.push(k);
                    more.push(given.len() - 1);
                }
                if inner.is_none() {
                    more.clear();
                }
            }
            node.action = Action::Call { callee: target, remat: remat && inner.is_none() };
            for (k, named) in inner.iter().flat_map(|s| s.extras.iter().enumerate()) {
                let v = define(&mut out, named.clone());
                node.results.push(v);
                extra.insert((n, k), v);
            }
            node.operands.extend(more.into_iter().map(|i| Value(u32::MAX - i as u32)));
            out.nodes.push(node);
        }
        for p in &split.kept {
            out.results.push(match p {
                Primal::Value(v) => *v,
                Primal::Extra(n, k) => extra.get(&(*n, *k)).copied().unwrap_or(Value(0)),
            });
        }
        out.name = if replay { format!("{}.replay", primal.name) } else { format!("{}.fwd", primal.name) };
        out.name = self.unique(&out.name, &primal.binds);
        in_order(with_params(out, given, &swapped))
    }
}

/// Adds a value under a free name.
fn define(f: &mut Function, mut named: Named) -> Value {
    named.name = free_name(f, &named.name);
    f.values.push(named);
    Value(f.values.len() as u32 - 1)
}

/// The function with its values numbered in order of definition.
fn in_order(mut f: Function) -> Function {
    let defined = f.nodes.iter().flat_map(|n| n.results.iter().copied());
    let order: Vec<Value> = f.param_values().chain(defined).collect();
    let mut at = vec![Value(0); f.values.len()];
    order.iter().enumerate().for_each(|(i, v)| at[v.0 as usize] = Value(i as u32));
    f.values = order.iter().map(|v| f.values[v.0 as usize].clone()).collect();
    let turn = |v: &mut Value| *v = at[v.0 as usize];
    for n in &mut f.nodes {
        n.operands.iter_mut().for_each(turn);
        n.results.iter_mut().for_each(turn);
    }
    f.results.iter_mut().for_each(turn);
    f
}

/// The function with further parameters; `swapped` values are those parameters, `u32::MAX - i` names one.
fn with_params(mut f: Function, given: Vec<Named>, swapped: &BTreeMap<Value, usize>) -> Function {
    if given.is_empty() {
        return f;
    }
    let first = f.params.len();
    let mut values: Vec<Named> = f.values[..first].to_vec();
    let mut order = vec![Value(0); f.values.len()];
    (0..first).for_each(|i| order[i] = Value(i as u32));
    for (i, named) in given.iter().enumerate() {
        let mut named = named.clone();
        // The value that it takes the place of gives up its name.
        let own = swapped.iter().find(|(_, k)| **k == i).map(|(v, _)| *v);
        if own.is_none() {
            named.name = free_name(&f, &format!("kept.{}", named.name));
            while values.iter().any(|v| v.name == named.name) {
                named.name.push('.');
            }
        }
        values.push(named);
    }
    for (i, named) in f.values.iter().enumerate().skip(first) {
        order[i] = match swapped.get(&Value(i as u32)) {
            Some(k) => Value((first + k) as u32),
            None => {
                values.push(named.clone());
                Value(values.len() as u32 - 1)
            }
        };
    }
    let turn = |v: &mut Value| {
        let beyond = (u32::MAX - v.0) as usize;
        *v = if beyond < given.len() { Value((first + beyond) as u32) } else { order[v.0 as usize] };
    };
    for n in &mut f.nodes {
        n.operands.iter_mut().for_each(turn);
        n.results.iter_mut().for_each(turn);
    }
    f.results.iter_mut().for_each(turn);
    f.params.extend(vec![Role::Input; given.len()]);
    f.values = values;
    f
}
