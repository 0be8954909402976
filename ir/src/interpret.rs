//! The reference interpreter: what a module means.
//!
//! Ranks run in lockstep in one process: at each node every rank has its operands before any rank has
//! its result, so a ring of sixteen is tested on two cores.

use crate::fault::{Code, Diagnostics, Fault, Place, count};
use crate::module::{Action, Func, Function, Module};
use crate::ops::Op;
use crate::tensor::Tensor;
use crate::types::Type;

/// How numbers are held between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each result is rounded to its dtype: what a device should come near.
    Typed,
    /// Floats stay doubles whatever their dtype: what the maths says.
    Exact,
}

/// Most elements of one value on all ranks together: the interpreter is for small sizes, on purpose.
pub const MOST_ELEMENTS: usize = 1 << 26;

/// The results of a function on every rank, from its operands on every rank.
///
/// Errors: what `verify` finds; `Rank` if there is no rank or a collective is for another number of them; `Arity` or `Dim` if a rank's operands are not what
/// the function takes; `Dim` if a value has more than [`MOST_ELEMENTS`].
pub fn interpret(
    module: &Module,
    entry: Func,
    ranks: Vec<Vec<Tensor>>,
    mode: Mode,
) -> Result<Vec<Vec<Tensor>>, Diagnostics> {
    module.verify()?;
    check(module, entry, ranks.len())?;
    let f = module.function(entry);
    let want = f.param_types();
    for (r, operands) in ranks.iter().enumerate() {
        if operands.len() != want.len() {
            return Err(Fault::new(
                Code::Arity,
                format!("{} takes {}, rank {r} has {}", f.signature(), count(want.len(), "operand"), operands.len()),
            )
            .into());
        }
        for (v, (t, w)) in f.param_values().zip(operands.iter().zip(&want)) {
            if t.ty != *w || t.data.len() != w.elements() {
                let have = t.data.len();
                return Err(Fault::new(
                    Code::Dim,
                    format!("`%{}` is {} of {have} elements on rank {r}, it must be {w}", f.value(v).name, t.ty),
                )
                .into());
            }
        }
    }
    let ranks = ranks.into_iter().map(|x| x.into_iter().map(|t| settle(t, mode)).collect()).collect();
    Ok(run(module, entry, ranks, mode))
}

/// Whether a function is small enough to interpret on that many ranks, before operands are made.
///
/// Errors: `Name` if the function is not in the module, `Rank` if there is no rank or a collective is for another
/// number of them, `Dim` with the largest value if it is above [`MOST_ELEMENTS`].
pub fn check(module: &Module, entry: Func, ranks: usize) -> Result<(), Diagnostics> {
    if ranks == 0 {
        return Err(Fault::new(Code::Rank, "there must be one rank or more").into());
    }
    if entry.0 as usize >= module.functions.len() {
        return Err(Fault::new(
            Code::Name,
            format!("function {} is not in the module of {}", entry.0, module.functions.len()),
        )
        .into());
    }
    let mut seen = vec![false; module.functions.len()];
    let mut open = vec![entry];
    while let Some(f) = open.pop() {
        if std::mem::replace(&mut seen[f.0 as usize], true) {
            continue;
        }
        let f = module.function(f);
        let place = || Place { function: f.name.clone(), ..Place::default() };
        for op in f.nodes.iter().filter_map(|n| if let Action::Op(op) = &n.action { Some(op) } else { None }) {
            op.on_ranks(ranks).map_err(|fault| fault.at(place()))?;
        }
        for (name, need) in needs(f) {
            if need.saturating_mul(ranks) > MOST_ELEMENTS {
                let fault = Fault::new(
                    Code::Dim,
                    format!(
                        "`%{name}` needs {need} elements on each of {ranks} ranks, the interpreter takes {MOST_ELEMENTS}"
                    ),
                );
                return Err(fault
                    .help("interpret an instance with smaller sizes; a device runs large ones")
                    .at(place())
                    .into());
            }
        }
        open.extend(f.nodes.iter().filter_map(|n| match n.action {
            Action::Call { callee, .. } => Some(callee),
            Action::Op(_) => None,
        }));
    }
    Ok(())
}

/// How many elements each value needs: its own, and for a contraction those it sums over.
fn needs(f: &Function) -> impl Iterator<Item = (&str, usize)> {
    let own = f.values.iter().map(|v| (v.name.as_str(), v.ty.elements()));
    let inner = f.nodes.iter().filter_map(|n| {
        let Action::Op(Op::Einsum(e)) = &n.action else { return None };
        let types: Vec<&Type> = n.operands.iter().map(|v| f.ty(*v)).collect();
        let (sizes, (_, folded)) = (e.sizes(&types).ok()?, e.words().ok()?);
        let need = folded.iter().fold(1usize, |a, w| a.saturating_mul(sizes[*w]));
        Some((f.value(n.results[0]).name.as_str(), need))
    });
    own.chain(inner)
}

fn settle(t: Tensor, mode: Mode) -> Tensor {
    if mode == Mode::Typed || !t.ty.dtype.is_float() { t.rounded() } else { t }
}

fn run(module: &Module, entry: Func, ranks: Vec<Vec<Tensor>>, mode: Mode) -> Vec<Vec<Tensor>> {
    let f = module.function(entry);
    let last = last_uses(module, entry);
    let mut values: Vec<Vec<Option<Tensor>>> = ranks
        .into_iter()
        .map(|x| {
            let mut v: Vec<Option<Tensor>> = x.into_iter().map(Some).collect();
            v.resize(f.values.len(), None);
            v
        })
        .collect();
    for (at, node) in f.nodes.iter().enumerate() {
        let results: Vec<Vec<Tensor>> = match &node.action {
            Action::Op(op) => {
                let operands: Vec<Vec<&Tensor>> = values
                    .iter()
                    .map(|v| node.operands.iter().filter_map(|o| v[o.0 as usize].as_ref()).collect())
                    .collect();
                op.eval(&operands, f.ty(node.results[0])).into_iter().map(|t| vec![settle(t, mode)]).collect()
            }
            Action::Call { callee, .. } => {
                let operands = values
                    .iter()
                    .map(|v| node.operands.iter().filter_map(|o| v[o.0 as usize].clone()).collect())
                    .collect();
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
