//! No twin node, no dead node in the entry.

use super::{Context, Unit, inline::keep_called};
use crate::Error;
use omchat_ir::{Action, Function, Op, Value};
use std::collections::HashMap;

/// Of two nodes that do the same to the same operands, the first stays. A `copy` is nobody's twin: what is computed
/// from it is computed again on purpose.
pub(super) fn cse(mut unit: Unit, _: &Context) -> Result<Unit, Error> {
    let f = &mut unit.module.functions[unit.entry.0 as usize];
    let mut same: Vec<Value> = (0..f.values.len() as u32).map(Value).collect();
    let mut seen: HashMap<String, Vec<Value>> = HashMap::new();
    let mut nodes = vec![];
    for mut node in std::mem::take(&mut f.nodes) {
        node.operands.iter_mut().for_each(|v| *v = same[v.0 as usize]);
        if matches!(node.action, Action::Op(Op::Copy(_))) {
            nodes.push(node);
            continue;
        }
        let key = format!("{:?} {:?}", node.action, node.operands);
        if let Some(first) = seen.get(&key) {
            for (r, s) in node.results.iter().zip(first) {
                same[r.0 as usize] = *s;
            }
            continue;
        }
        seen.insert(key, node.results.clone());
        nodes.push(node);
    }
    f.nodes = nodes;
    f.results.iter_mut().for_each(|v| *v = same[v.0 as usize]);
    Ok(drop_unused_values(unit))
}

/// What no result needs goes; so do functions that nothing calls.
pub(super) fn dce(mut unit: Unit, _: &Context) -> Result<Unit, Error> {
    let f = &mut unit.module.functions[unit.entry.0 as usize];
    let mut live = vec![false; f.values.len()];
    for r in &f.results {
        live[r.0 as usize] = true;
    }
    let mut nodes = vec![];
    for node in std::mem::take(&mut f.nodes).into_iter().rev() {
        let collective = matches!(
            &node.action,
            Action::Op(Op::CollectivePermute(_) | Op::AllReduce(_) | Op::AllGather(_) | Op::ReduceScatter(_))
        );
        if collective || node.results.iter().any(|r| live[r.0 as usize]) {
            for o in &node.operands {
                live[o.0 as usize] = true;
            }
            nodes.push(node);
        }
    }
    nodes.reverse();
    f.nodes = nodes;
    Ok(keep_called(drop_unused_values(unit)))
}

/// Renumbers the entry's values in order of definition; values that nothing defines any more go.
pub(super) fn drop_unused_values(mut unit: Unit) -> Unit {
    renumber(&mut unit.module.functions[unit.entry.0 as usize]);
    unit
}

/// Renumbers a function's values in order of definition; values that nothing defines any more go.
pub(super) fn renumber(f: &mut Function) {
    let defined = f.param_values().chain(f.nodes.iter().flat_map(|n| n.results.iter().copied()));
    let order: Vec<Value> = defined.collect();
    let mut number = vec![Value(0); f.values.len()];
    order.iter().enumerate().for_each(|(i, v)| number[v.0 as usize] = Value(i as u32));
    f.values = order.iter().map(|v| f.values[v.0 as usize].clone()).collect();
    let at = |v: &mut Value| *v = number[v.0 as usize];
    for n in &mut f.nodes {
        n.operands.iter_mut().for_each(at);
        n.results.iter_mut().for_each(at);
    }
    f.results.iter_mut().for_each(at);
}
