//! A function as two: a forward that also yields what the backward reads, and the backward.

use super::emit::{Emit, Local, Primal};
use super::{Differentiate, callee};
use crate::Bind;
use crate::fault::{Diagnostics, Fault};
use crate::module::{Action, Func, Function, Module, Named, Node, Value};
use crate::ops::{Cotangents, Pointwise};
use crate::scalar::Scalar;
use crate::types::Type;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// What a backward function takes before the cotangents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Residual {
    /// An operand of the function.
    Param(usize),
    /// A result of the function.
    Result(usize),
    /// What the forward yields beside the results.
    Extra(usize),
}

/// A function, split for some wanted parameters and some results that have cotangents.
#[derive(Debug)]
pub(super) struct Split {
    /// Yields the results, then the extras; the function itself when there are none.
    pub forward: Func,
    /// Types of the extras.
    pub extras: Vec<Named>,
    /// From the residuals and the given cotangents to the cotangents of the parameters in `yields`.
    pub backward: Option<Func>,
    pub residuals: Vec<Residual>,
    /// Which parameters' cotangents the backward yields.
    pub yields: Vec<bool>,
    /// Which results' cotangents the backward takes.
    pub takes: Vec<bool>,
    /// The split of each call of the function that the backward passes through.
    pub calls: BTreeMap<usize, Rc<Split>>,
    /// The extras, as values of the function.
    pub kept: Vec<Primal>,
    /// Whether the backward runs the forward again.
    pub recomputes: bool,
}

impl Split {
    /// The backward's operands before the cotangents, from the function's operands and what its forward yields.
    pub fn operands(&self, params: &[Local], made: &[Local], results: usize) -> Vec<Local> {
        let pick = |r: &Residual| match r {
            Residual::Param(i) => params[*i],
            Residual::Result(i) => made[*i],
            Residual::Extra(k) => made[results + k],
        };
        self.residuals.iter().map(pick).collect()
    }
}

type Key = (Func, Vec<bool>, Vec<bool>, bool);

/// All functions split so far.
pub(super) struct Splits<'m, 's> {
    pub module: &'m mut Module,
    pub how: Differentiate<'s>,
    done: HashMap<Key, Rc<Split>>,
}

/// Values through which a cotangent may pass: floats that depend on a wanted parameter.
fn varied(f: &Function, wanted: &[bool]) -> Vec<bool> {
    let mut out = vec![false; f.values.len()];
    out[..wanted.len()].copy_from_slice(wanted);
    for node in &f.nodes {
        let stops = matches!(&node.action, Action::Op(crate::Op::Pointwise(Pointwise { f: Scalar::StopGradient, .. })));
        if !stops && node.operands.iter().any(|o| out[o.0 as usize]) {
            node.results.iter().filter(|r| f.ty(**r).dtype.is_float()).for_each(|r| out[r.0 as usize] = true);
        }
    }
    out
}

impl<'m, 's> Splits<'m, 's> {
    pub fn new(module: &'m mut Module, how: Differentiate<'s>) -> Splits<'m, 's> {
        Splits { module, how, done: HashMap::new() }
    }

    /// A function's split; made once for each set of wanted parameters and given cotangents.
    pub fn split(&mut self, f: Func, wanted: &[bool], takes: &[bool]) -> Result<Rc<Split>, Diagnostics> {
        self.cached((f, wanted.to_vec(), takes.to_vec(), false))
    }

    /// The split of a `remat` call of a function.
    fn split_remat(&mut self, f: Func, wanted: &[bool], takes: &[bool]) -> Result<Rc<Split>, Diagnostics> {
        self.cached((f, wanted.to_vec(), takes.to_vec(), true))
    }

    fn cached(&mut self, key: Key) -> Result<Rc<Split>, Diagnostics> {
        if let Some(s) = self.done.get(&key) {
            return Ok(s.clone());
        }
        let (f, wanted, takes, remat) = &key;
        let split = if *remat {
            let inner = self.split(*f, wanted, takes)?;
            self.recompute(*f, &inner)?
        } else if let Some(rule) = self.written_rule(*f)? {
            self.written(*f, rule, wanted, takes)
        } else {
            self.derived(*f, wanted, takes)?
        };
        let split = Rc::new(split);
        self.done.insert(key, split.clone());
        Ok(split)
    }

    /// The `@f.vjp` text of a function, instantiated.
    fn written_rule(&mut self, f: Func) -> Result<Option<Func>, Diagnostics> {
        let function = self.module.function(f);
        let name = format!("{}.vjp", function.name);
        let Some(scope) = self.how.scope.filter(|s| s.stand_together(&function.name, &name)) else { return Ok(None) };
        let float = |t: &&Type| t.dtype.is_float();
        let mut types = function.param_types();
        types.extend(function.result_types());
        types.extend(function.result_types().iter().filter(float).cloned());
        let (binds, types) = (function.binds.clone(), types.into_iter().map(Some).collect::<Vec<_>>());
        let rule = scope.instantiate(self.module, &name, &binds, &types, 0)?;
        let (have, want) = (self.module.function(rule).result_types(), self.module.function(f).param_types());
        let want: Vec<Type> = want.iter().filter(float).cloned().collect();
        if have != want {
            let list = |t: &[Type]| t.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
            let message = format!("@{name} yields {}, the operands' cotangents are {}", list(&have), list(&want));
            return Err(Fault::new(crate::Code::Return, message)
                .help("a `.vjp` function yields the cotangent of each float operand, in order")
                .into());
        }
        Ok(Some(rule))
    }

    /// A split by a written rule: the function stays whole.
    fn written(&mut self, f: Func, rule: Func, wanted: &[bool], takes: &[bool]) -> Split {
        let (nparams, nresults) = (wanted.len(), takes.len());
        let mut residuals: Vec<Residual> = (0..nparams).map(Residual::Param).collect();
        residuals.extend((0..nresults).map(Residual::Result));
        let all = self.written_backward(f, rule, wanted, takes);
        Split {
            forward: f,
            extras: vec![],
            backward: Some(all),
            residuals,
            yields: wanted.to_vec(),
            takes: takes.to_vec(),
            calls: BTreeMap::new(),
            kept: vec![],
            recomputes: false,
        }
    }

    /// The rule with zeros for cotangents that are not given, and only the wanted results.
    fn written_backward(&mut self, f: Func, rule: Func, wanted: &[bool], takes: &[bool]) -> Func {
        let primal = self.module.function(f).clone();
        let floats: Vec<usize> = (0..takes.len()).filter(|i| primal.ty(primal.results[*i]).dtype.is_float()).collect();
        let params: Vec<usize> = (0..wanted.len()).filter(|i| primal.ty(Value(*i as u32)).dtype.is_float()).collect();
        if floats.iter().all(|i| takes[*i]) && params.iter().all(|i| wanted[*i]) {
            return rule;
        }
        // Types were checked by `written_rule`; a splat of a float is always a value.
        let mut module = Function { name: String::new(), ..Function::default() };
        let callee = self.module.function(rule).clone();
        let mut operands = vec![];
        for v in callee.param_values() {
            let at = (v.0 as usize).checked_sub(primal.params.len() + primal.results.len());
            if at.is_none_or(|k| takes[floats[k]]) {
                module.params.push(crate::Role::Input);
                module.values.push(callee.value(v).clone());
                operands.push(Some(Value(module.values.len() as u32 - 1)));
            } else {
                operands.push(None);
            }
        }
        let mut counter = 0;
        let operands = operands
            .into_iter()
            .zip(callee.param_values())
            .map(|(o, v)| o.unwrap_or_else(|| zeros(&mut module, callee.ty(v), &mut counter)))
            .collect();
        let results: Vec<Value> = callee
            .results
            .iter()
            .map(|r| {
                let named = callee.value(*r);
                module
                    .values
                    .push(Named { name: free_name(&module, &format!("y.{}", named.name)), ty: named.ty.clone() });
                Value(module.values.len() as u32 - 1)
            })
            .collect();
        module.nodes.push(Node {
            action: Action::Call { callee: rule, remat: false },
            operands,
            results: results.clone(),
        });
        module.results = params.iter().zip(&results).filter(|(i, _)| wanted[**i]).map(|(_, r)| *r).collect();
        module.name = self.unique(&format!("{}.bwd", primal.name), &primal.binds);
        module.binds = primal.binds;
        self.add(module)
    }

    /// A split by the rules of the function's nodes.
    fn derived(&mut self, f: Func, wanted: &[bool], takes: &[bool]) -> Result<Split, Diagnostics> {
        let primal = self.module.function(f).clone();
        let varied = varied(&primal, wanted);
        let mut e = Emit::new(&primal);
        let mut cots: HashMap<Value, Local> = HashMap::new();
        let mut given = vec![];
        for (v, _) in primal.results.iter().zip(takes).filter(|(_, t)| **t) {
            let d = e.cotangent(*v);
            given.push(d);
            add(&mut e, &mut cots, *v, d)?;
        }
        let mut calls = BTreeMap::new();
        for (n, node) in primal.nodes.iter().enumerate().rev() {
            let dys: Vec<Option<Local>> = node.results.iter().map(|r| cots.remove(r)).collect();
            let wanted: Vec<bool> = node.operands.iter().map(|o| varied[o.0 as usize]).collect();
            if dys.iter().all(Option::is_none) || !wanted.contains(&true) {
                continue;
            }
            let found = match (&node.action, dys[0]) {
                (Action::Op(op), Some(dy)) => op.vjp(&mut e, &node.operands, node.results[0], dy, &wanted)?,
                (Action::Op(_), None) => continue,
                (Action::Call { .. }, _) => {
                    let Some((split, found)) = self.call(&mut e, &primal, n, &dys, &wanted)? else { continue };
                    calls.insert(n, split);
                    found
                }
            };
            for ((o, d), w) in node.operands.iter().zip(found).zip(&wanted) {
                if let (Some(d), true) = (d, *w) {
                    if e.is_made(d) && !cots.contains_key(o) {
                        e.rename(d, *o);
                    }
                    add(&mut e, &mut cots, *o, d)?;
                }
            }
        }
        let reached = |v: &Value| wanted[v.0 as usize] && cots.contains_key(v);
        let yields: Vec<bool> = primal.param_values().map(|v| reached(&v)).collect();
        let results: Vec<Local> = primal.param_values().filter(reached).map(|v| cots[&v]).collect();
        self.assemble(f, &primal, e, Outcome { given, results, yields, takes: takes.to_vec(), calls })
    }

    /// The backward of a call: its split and the cotangents of its operands.
    fn call(
        &mut self,
        e: &mut Emit,
        primal: &Function,
        n: usize,
        dys: &[Option<Local>],
        wanted: &[bool],
    ) -> Result<Option<Passed>, Diagnostics> {
        let node = &primal.nodes[n];
        let Some((f, remat)) = callee(node) else { return Ok(None) };
        let takes: Vec<bool> = dys.iter().map(Option::is_some).collect();
        let split = if remat { self.split_remat(f, wanted, &takes)? } else { self.split(f, wanted, &takes)? };
        let Some(backward) = split.backward else { return Ok(None) };
        let mut operands = vec![];
        for r in &split.residuals {
            operands.push(match r {
                Residual::Param(i) => e.primal(node.operands[*i]),
                Residual::Result(i) => e.primal(node.results[*i]),
                Residual::Extra(k) => e.extra(n, *k, &split.extras[*k].name, split.extras[*k].ty.clone()),
            });
        }
        if split.recomputes {
            self.part(e, primal, node, &split, &mut operands)?;
        }
        operands.extend(dys.iter().flatten());
        let callee = self.module.function(backward);
        let types = callee.result_types();
        let names: Vec<String> = vec!["d".into(); types.len()];
        let made = e.node(&names, Action::Call { callee: backward, remat: false }, &operands, &types);
        let mut made = made.into_iter();
        let found = split.yields.iter().map(|y| if *y { made.next() } else { None }).collect();
        Ok(Some((split, found)))
    }

    /// The functions of a split from its backward in the making.
    fn assemble(&mut self, f: Func, primal: &Function, e: Emit, out: Outcome) -> Result<Split, Diagnostics> {
        let mut imports = e.imports.clone();
        let result_of = |v: &Value| primal.results.iter().position(|r| r == v);
        let mut kept: Vec<Primal> = vec![];
        let residual = |p: &Primal, kept: &mut Vec<Primal>| match p {
            Primal::Value(v) if (v.0 as usize) < primal.params.len() => Residual::Param(v.0 as usize),
            Primal::Value(v) if result_of(v).is_some() => Residual::Result(result_of(v).unwrap_or(0)),
            _ => {
                kept.push(*p);
                Residual::Extra(kept.len() - 1)
            }
        };
        imports.sort_by_key(|(p, _)| *p);
        let mut residuals: Vec<(Residual, Local)> = imports.iter().map(|(p, l)| (residual(p, &mut kept), *l)).collect();
        residuals.sort_by_key(|(r, _)| *r);
        let reads: Vec<Local> = residuals.iter().map(|(_, l)| *l).collect();
        let extras: Vec<Named> = kept
            .iter()
            .map(|p| match p {
                Primal::Value(v) => primal.value(*v).clone(),
                Primal::Extra(n, k) => out.calls[n].extras[*k].clone(),
            })
            .collect();
        let mut split = Split {
            forward: f,
            extras,
            backward: None,
            residuals: residuals.iter().map(|(r, _)| *r).collect(),
            yields: out.yields,
            takes: out.takes,
            calls: out.calls,
            kept,
            recomputes: false,
        };
        if out.results.is_empty() {
            split.residuals.clear();
            split.extras.clear();
            split.kept.clear();
            return Ok(split);
        }
        let name = self.unique(&format!("{}.bwd", primal.name), &primal.binds);
        let backward = e.finish(name, primal, &reads, &out.given, &out.results);
        split.backward = Some(self.add(backward));
        if !split.extras.is_empty() {
            split.forward = self.forward(primal, &split);
        }
        Ok(split)
    }

    /// A name that no function of these letters has.
    pub fn unique(&self, base: &str, binds: &BTreeMap<String, Bind>) -> String {
        let mut name = base.to_string();
        let mut n = 1;
        while self.module.find(&name, binds).is_some() {
            n += 1;
            name = format!("{base}.{n}");
        }
        name
    }

    pub fn add(&mut self, f: Function) -> Func {
        self.module.functions.push(f);
        Func(self.module.functions.len() as u32 - 1)
    }
}

/// A call's split, and the cotangents of its operands.
type Passed = (Rc<Split>, Cotangents);

/// What walking a function back yields.
struct Outcome {
    given: Vec<Local>,
    results: Vec<Local>,
    yields: Vec<bool>,
    takes: Vec<bool>,
    calls: BTreeMap<usize, Rc<Split>>,
}

/// One more cotangent of a value.
fn add(e: &mut Emit, cots: &mut HashMap<Value, Local>, v: Value, d: Local) -> Result<(), Fault> {
    let sum = match cots.get(&v) {
        Some(old) => {
            let sum = e.op("t", Pointwise::plain(Scalar::Add), &[*old, d])?;
            e.rename(sum, v);
            sum
        }
        None => d,
    };
    cots.insert(v, sum);
    Ok(())
}

/// A name that no value has.
pub(super) fn free_name(f: &Function, base: &str) -> String {
    let taken = |n: &str| f.values.iter().any(|v| v.name == n);
    let mut name = base.to_string();
    let mut n = 0;
    while taken(&name) {
        n += 1;
        name = format!("{base}.{n}");
    }
    name
}

/// Adds a tensor of zeros to a function.
fn zeros(f: &mut Function, ty: &Type, counter: &mut usize) -> Value {
    use crate::ops::{Constant, Rearrange};
    *counter += 1;
    let scalar = Type::new(ty.dtype, []);
    let mut push = |action: Action, operands: Vec<Value>, name: String, ty: Type| {
        let name = free_name(f, &name);
        f.values.push(Named { name, ty });
        let v = Value(f.values.len() as u32 - 1);
        f.nodes.push(Node { action, operands, results: vec![v] });
        v
    };
    let c = push(Action::Op(Constant { dtype: ty.dtype, value: 0.0 }.into()), vec![], format!("zero{counter}"), scalar);
    if ty.rank() == 0 {
        return c;
    }
    let words = super::emit::axis_words(ty.rank());
    let sizes = words.iter().map(|g| g[0].clone()).zip(ty.shape.iter().copied()).collect();
    let op = Rearrange { axes: crate::Axes { inputs: vec![vec![]], output: words }, sizes };
    push(Action::Op(op.into()), vec![c], format!("zeros{counter}"), ty.clone())
}
