//! A call that no kernel offers to take becomes its body. The entry is left with primitives and kept calls.

use super::{Context, Unit};
use crate::{Error, Work};
use omchat_ir::{Action, Func, Function, Module, Named, Node, Value};
use std::collections::BTreeSet;

pub(super) fn run(mut unit: Unit, context: &Context) -> Result<Unit, Error> {
    let old = unit.module.function(unit.entry).clone();
    let mut out = Function {
        name: old.name.clone(),
        binds: old.binds.clone(),
        params: old.params.clone(),
        ..Function::default()
    };
    let mut names = BTreeSet::new();
    let args: Vec<Value> = old.param_values().map(|v| define(&mut out, &mut names, old.value(v).clone())).collect();
    out.results = splice(&unit.module, &old, &args, &mut out, &mut names, context);
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

fn define(out: &mut Function, names: &mut BTreeSet<String>, mut value: Named) -> Value {
    let base = value.name.clone();
    let mut n = 0;
    while !names.insert(value.name.clone()) {
        n += 1;
        value.name = format!("{base}.{n}");
    }
    out.values.push(value);
    Value(out.values.len() as u32 - 1)
}

/// Copies a function's nodes into `out`; yields the values of its results.
fn splice(
    module: &Module,
    f: &Function,
    args: &[Value],
    out: &mut Function,
    names: &mut BTreeSet<String>,
    context: &Context,
) -> Vec<Value> {
    let mut map: Vec<Option<Value>> = vec![None; f.values.len()];
    for (v, a) in f.param_values().zip(args) {
        map[v.0 as usize] = Some(*a);
    }
    let at = |map: &[Option<Value>], v: &Value| map[v.0 as usize].unwrap_or(Value(0));
    for node in &f.nodes {
        let operands: Vec<Value> = node.operands.iter().map(|v| at(&map, v)).collect();
        let results = match &node.action {
            Action::Call { callee, .. } if !kept(module.function(*callee), context) => {
                splice(module, module.function(*callee), &operands, out, names, context)
            }
            action => {
                let results: Vec<Value> =
                    node.results.iter().map(|v| define(out, names, f.value(*v).clone())).collect();
                out.nodes.push(Node { action: action.clone(), operands, results: results.clone() });
                results
            }
        };
        for (v, r) in node.results.iter().zip(results) {
            map[v.0 as usize] = Some(r);
        }
    }
    f.results.iter().map(|v| at(&map, v)).collect()
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
