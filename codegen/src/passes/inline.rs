//! A call that no kernel offers to take becomes its body. The entry is left with primitives and kept calls.
//!
//! The entry's own names stay: a result of a call has the name that the entry gives it, whatever the callee calls
//! it. Names tell what memory is for (`d.NAME` is a gradient), and plans are read by them.

use super::{Context, Unit};
use crate::{Error, Work};
use omchat_ir::{Action, Func, Function, Module, Named, Node, Value};
use std::collections::HashMap;

pub(super) fn run(mut unit: Unit, context: &Context) -> Result<Unit, Error> {
    let old = unit.module.function(unit.entry).clone();
    let kept = unit.module.functions.iter().map(|f| kept(f, context)).collect();
    let mut s = Splice { module: &unit.module, kept, out: Function::default(), names: HashMap::new() };
    s.out.name.clone_from(&old.name);
    s.out.binds.clone_from(&old.binds);
    s.out.params.clone_from(&old.params);
    old.values.iter().for_each(|v| s.reserve(&v.name));
    let args: Vec<Value> = old.param_values().map(|v| s.define(old.value(v).clone())).collect();
    let own: Vec<Option<String>> = old.values.iter().map(|v| Some(v.name.clone())).collect();
    s.out.results = s.body(&old, &args, &own);
    let out = s.out;
    unit.module.functions.truncate(unit.entry.0 as usize);
    unit.module.functions.push(out);
    Ok(keep_called(unit))
}

/// The work that a call asks for.
pub(crate) fn call_work(f: &Function) -> Work {
    Work::Function {
        name: f.name.clone(),
        binds: f.binds.clone(),
        operands: f.param_types(),
        results: f.result_types(),
    }
}

fn kept(f: &Function, context: &Context) -> bool {
    context.kernels.iter().any(|k| {
        k.implements().function(&f.name) && k.schedules(&call_work(f), context.target).is_ok_and(|s| !s.is_empty())
    })
}

/// An entry in the making.
struct Splice<'a> {
    module: &'a Module,
    /// Whether a call of each function stays.
    kept: Vec<bool>,
    out: Function,
    /// Names taken, and the next suffix to try for each.
    names: HashMap<String, usize>,
}

impl Splice<'_> {
    fn reserve(&mut self, name: &str) {
        self.names.insert(name.to_string(), 1);
    }

    /// A value under the name it has: the entry's own.
    fn define(&mut self, value: Named) -> Value {
        self.out.values.push(value);
        Value(self.out.values.len() as u32 - 1)
    }

    /// A value under a name that nothing has yet.
    fn local(&mut self, value: &Named) -> Value {
        let mut name = value.name.clone();
        while let Some(n) = self.names.get(&name).copied() {
            // Only the name's first bearer counts on: `y`, `y.1`, `y.2`.
            let next = self.names.entry(value.name.clone()).or_insert(n);
            name = format!("{}.{next}", value.name);
            *next += 1;
        }
        self.reserve(&name);
        self.define(Named { name, ty: value.ty.clone() })
    }

    /// Copies a function's nodes; yields the values of its results. `own` names values for the entry.
    fn body(&mut self, f: &Function, args: &[Value], own: &[Option<String>]) -> Vec<Value> {
        let mut map: Vec<Option<Value>> = vec![None; f.values.len()];
        for (v, a) in f.param_values().zip(args) {
            map[v.0 as usize] = Some(*a);
        }
        let at = |map: &[Option<Value>], v: &Value| map[v.0 as usize].unwrap_or(Value(0));
        for node in &f.nodes {
            let operands: Vec<Value> = node.operands.iter().map(|v| at(&map, v)).collect();
            let names: Vec<Option<&String>> = node.results.iter().map(|v| own[v.0 as usize].as_ref()).collect();
            let results = match &node.action {
                Action::Call { callee, .. } if !self.kept[callee.0 as usize] => {
                    let module = self.module;
                    let g = module.function(*callee);
                    let mut inner = vec![None; g.values.len()];
                    for (r, name) in g.results.iter().zip(names) {
                        let slot = &mut inner[r.0 as usize];
                        *slot = slot.take().or(name.cloned());
                    }
                    self.body(g, &operands, &inner)
                }
                action => {
                    let mut results = vec![];
                    for (v, name) in node.results.iter().zip(names) {
                        let value = f.value(*v);
                        results.push(match name {
                            Some(name) => self.define(Named { name: name.clone(), ty: value.ty.clone() }),
                            None => self.local(value),
                        });
                    }
                    self.out.nodes.push(Node { action: action.clone(), operands, results: results.clone() });
                    results
                }
            };
            for (v, r) in node.results.iter().zip(results) {
                map[v.0 as usize] = Some(r);
            }
        }
        f.results.iter().map(|v| at(&map, v)).collect()
    }
}

/// Drops functions that the entry, which stands last, does not reach.
pub(super) fn keep_called(unit: Unit) -> Unit {
    let entry = unit.module.functions.len() - 1;
    let mut live = vec![false; entry + 1];
    live[entry] = true;
    for i in (0..=entry).rev() {
        if live[i] {
            for n in &unit.module.functions[i].nodes {
                if let Action::Call { callee, .. } = n.action {
                    live[callee.0 as usize] = true;
                }
            }
        }
    }
    let mut renumber = vec![Func(0); entry + 1];
    let mut module = Module::default();
    for (i, mut f) in unit.module.functions.into_iter().enumerate().filter(|(i, _)| live[*i]) {
        for n in &mut f.nodes {
            if let Action::Call { callee, .. } = &mut n.action {
                *callee = renumber[callee.0 as usize];
            }
        }
        renumber[i] = Func(module.functions.len() as u32);
        module.functions.push(f);
    }
    Unit { entry: Func(module.functions.len() as u32 - 1), module }
}
