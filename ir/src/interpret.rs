//! The reference interpreter: what a module means.
//!
//! Ranks run in lockstep in one process: at each node every rank has its operands before any rank has
//! its result, so a ring of sixteen is tested on two cores.

use crate::fault::{Code, Diagnostics, Fault};
use crate::module::{Action, Func, Module};
use crate::tensor::Tensor;

/// How numbers are held between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each result is rounded to its dtype: what a device should come near.
    Typed,
    /// Floats stay doubles whatever their dtype: what the maths says.
    Exact,
}

/// The results of a function on every rank, from its operands on every rank.
///
/// Errors: `Rank` if there is no rank; `Arity` or `Dim` if a rank's operands are not what the function takes.
pub fn interpret(module: &Module, entry: Func, ranks: Vec<Vec<Tensor>>, mode: Mode) -> Result<Vec<Vec<Tensor>>, Diagnostics> {
    let f = module.function(entry);
    if ranks.is_empty() {
        return Err(Fault::new(Code::Rank, "there must be one rank or more").into());
    }
    let want = f.param_types();
    for (r, operands) in ranks.iter().enumerate() {
        if operands.len() != want.len() {
            return Err(Fault::new(Code::Arity, format!("{} takes {} operands, rank {r} has {}", f.signature(), want.len(), operands.len())).into());
        }
        for (v, (t, w)) in f.param_values().zip(operands.iter().zip(&want)) {
            if t.ty != *w {
                return Err(Fault::new(Code::Dim, format!("`%{}` is {} on rank {r}, it must be {w}", f.value(v).name, t.ty)).into());
            }
        }
    }
    let ranks = ranks.into_iter().map(|x| x.into_iter().map(|t| settle(t, mode)).collect()).collect();
    Ok(run(module, entry, ranks, mode))
}

fn settle(t: Tensor, mode: Mode) -> Tensor {
    if mode == Mode::Typed || !t.ty.dtype.is_float() { t.rounded() } else { t }
}

fn run(module: &Module, entry: Func, ranks: Vec<Vec<Tensor>>, mode: Mode) -> Vec<Vec<Tensor>> {
    let f = module.function(entry);
    let last = last_uses(module, entry);
    let mut values: Vec<Vec<Option<Tensor>>> = ranks.into_iter().map(|x| {
        let mut v: Vec<Option<Tensor>> = x.into_iter().map(Some).collect();
        v.resize(f.values.len(), None);
        v
    }).collect();
    for (at, node) in f.nodes.iter().enumerate() {
        let results: Vec<Vec<Tensor>> = match &node.action {
            Action::Op(op) => {
                let operands: Vec<Vec<&Tensor>> = values.iter().map(|v| node.operands.iter().filter_map(|o| v[o.0 as usize].as_ref()).collect()).collect();
                op.eval(&operands, f.ty(node.results[0])).into_iter().map(|t| vec![settle(t, mode)]).collect()
            }
            Action::Call { callee, .. } => {
                let operands = values.iter().map(|v| node.operands.iter().filter_map(|o| v[o.0 as usize].clone()).collect()).collect();
                run(module, *callee, operands, mode)
            }
        };
        for (v, r) in values.iter_mut().zip(results) {
            for (slot, t) in node.results.iter().zip(r) {
                v[slot.0 as usize] = Some(t);
            }
            for dead in node.operands.iter().filter(|o| last[o.0 as usize] == at) {
                v[dead.0 as usize] = None;
            }
        }
    }
    values.iter().map(|v| f.results.iter().filter_map(|r| v[r.0 as usize].clone()).collect()).collect()
}

/// The node after which each value is dead; results live on.
fn last_uses(module: &Module, entry: Func) -> Vec<usize> {
    let f = module.function(entry);
    let mut last = vec![usize::MAX; f.values.len()];
    for (at, node) in f.nodes.iter().enumerate() {
        for o in &node.operands {
            last[o.0 as usize] = at;
        }
    }
    for r in &f.results {
        last[r.0 as usize] = usize::MAX;
    }
    last
}
