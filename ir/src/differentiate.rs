//! Reverse mode: a function's cotangents as another function of the same IR.
//!
//! Each callee is differentiated once, however often it is called: into a *forward* function, which also yields
//! what the backward needs, and a *backward* function, from those values and the results' cotangents to the
//! operands' cotangents. A call marked `remat` keeps its operands only: its backward runs the forward again.
//!
//! A function `@f.vjp` beside `@f`, with the same letters, is taken in place of the derived rule. It takes `@f`'s
//! operands, then its results, then the cotangent of each float result, and yields the cotangent of each float
//! operand, all in order.
//!
//! Source: Griewank & Walther 2008, *Evaluating Derivatives*; the split is JAX's `linearize` and `transpose` in one.

mod emit;
mod expr;
mod recompute;
mod split;

pub(crate) use emit::axis_words;
pub use emit::{Emit, Local};
pub use expr::Expr;
pub(crate) use expr::Site;

use crate::fault::{Code, Diagnostics, Fault};
use crate::module::{Action, Func, Function, Module, Node, Role, Value};
use crate::text::Scope;
use split::Splits;

/// How to differentiate.
#[derive(Clone, Copy, Default)]
pub struct Differentiate<'a> {
    /// Where `@f.vjp` texts are looked for; `None` derives every rule from the primitives.
    pub scope: Option<&'a Scope<'a>>,
    /// Functions whose results a `remat` call keeps beside its operands, by name: what costs more to run again
    /// than to store. The results of attention are the usual ones (LightSeq, arXiv:2310.03294).
    pub keep: &'a [&'a str],
}

/// Adds `@f.grad` with the `@f.vjp` texts of a scope; see [`Differentiate::run`].
///
/// Errors: as there.
pub fn differentiate(
    module: &mut Module,
    scope: &Scope,
    f: Func,
    of: &[usize],
    wrt: &[Value],
) -> Result<Func, Diagnostics> {
    Differentiate { scope: Some(scope), keep: &[] }.run(module, f, of, wrt)
}

impl Differentiate<'_> {
    /// Adds `@f.grad` and what it calls to the module.
    ///
    /// It takes `@f`'s operands and a cotangent `d.RESULT` for each result that `of` counts, and yields `@f`'s
    /// results, then a cotangent `d.PARAM` for each parameter in `wrt`; zeros where none reaches it. A scalar's
    /// gradient is what a cotangent of 1 yields. On several ranks the cotangents are those of the sum, over all
    /// ranks, of results times their cotangents.
    ///
    /// Shapes: a cotangent has the type of what it belongs to.
    /// Errors: `Arity` for a result or a parameter that is not there; `Dtype` where one is no float; faults of a
    /// `@f.vjp` text.
    pub fn run(&self, module: &mut Module, f: Func, of: &[usize], wrt: &[Value]) -> Result<Func, Diagnostics> {
        let primal = module.function(f).clone();
        check(&primal, of, wrt)?;
        let wanted: Vec<bool> = primal.param_values().map(|v| wrt.contains(&v)).collect();
        let cots: Vec<bool> = (0..primal.results.len()).map(|i| of.contains(&i)).collect();
        let mut splits = Splits::new(module, *self);
        let split = splits.split(f, &wanted, &cots)?;

        let mut e = Emit::new(&primal);
        let params: Vec<Local> = primal.param_values().map(|v| e.primal(v)).collect();
        let given: Vec<Local> = of.iter().map(|i| e.cotangent(primal.results[*i])).collect();
        let forward = splits.module.function(split.forward);
        let (names, types) = (result_names(forward), forward.result_types());
        let made = e.node(&names, Action::Call { callee: split.forward, remat: false }, &params, &types);
        let mut results: Vec<Local> = made[..primal.results.len()].to_vec();
        let found = match split.backward {
            Some(backward) => {
                let residuals = split.operands(&params, &made, primal.results.len());
                let ordered = (0..cots.len()).filter(|i| cots[*i]);
                let mut operands = residuals;
                operands.extend(ordered.filter_map(|i| of.iter().position(|o| *o == i).map(|at| given[at])));
                let types = splits.module.function(backward).result_types();
                let yielded = primal.param_values().filter(|v| split.yields[v.0 as usize]);
                let names: Vec<String> = yielded.map(|v| format!("d.{}", primal.value(v).name)).collect();
                e.node(&names, Action::Call { callee: backward, remat: false }, &operands, &types)
            }
            None => vec![],
        };
        let yielded: Vec<Value> = primal.param_values().filter(|v| split.yields[v.0 as usize]).collect();
        for v in wrt {
            results.push(match yielded.iter().position(|y| y == v) {
                Some(i) => found[i],
                None => e.splat(0.0, primal.ty(*v))?,
            });
        }
        let name = splits.unique(&format!("{}.grad", primal.name), &primal.binds);
        let mut grad = e.finish(name, &primal, &params, &given, &results);
        for (role, old) in grad.params.iter_mut().zip(&primal.params) {
            *role = if *old == Role::Weight { Role::Weight } else { Role::Input };
        }
        splits.module.functions.push(grad);
        Ok(Func(splits.module.functions.len() as u32 - 1))
    }
}

fn result_names(f: &Function) -> Vec<String> {
    f.results.iter().map(|v| f.value(*v).name.clone()).collect()
}

fn check(f: &Function, of: &[usize], wrt: &[Value]) -> Result<(), Fault> {
    if of.is_empty() || wrt.is_empty() {
        return Err(Fault::new(Code::Arity, format!("{} is differentiated of nothing or by nothing", f.signature()))
            .help("name at least one result and one parameter"));
    }
    for (n, i) in of.iter().enumerate() {
        let Some(v) = f.results.get(*i) else {
            let have = crate::fault::count(f.results.len(), "result");
            return Err(Fault::new(Code::Arity, format!("{} has {have}, not a result {i}", f.signature())));
        };
        if of[..n].contains(i) {
            return Err(Fault::new(Code::Arity, format!("result {i} of {} is named twice", f.signature())));
        }
        float(f, *v, "result")?;
    }
    for (n, v) in wrt.iter().enumerate() {
        if v.0 as usize >= f.params.len() {
            let have = crate::fault::count(f.params.len(), "parameter");
            return Err(Fault::new(Code::Arity, format!("{} has {have}, not a parameter {}", f.signature(), v.0)));
        }
        if wrt[..n].contains(v) {
            let name = &f.value(*v).name;
            return Err(Fault::new(Code::Arity, format!("parameter `%{name}` of {} is named twice", f.signature())));
        }
        float(f, *v, "parameter")?;
    }
    Ok(())
}

fn float(f: &Function, v: Value, what: &str) -> Result<(), Fault> {
    if f.ty(v).dtype.is_float() {
        return Ok(());
    }
    let (name, ty) = (&f.value(v).name, f.ty(v));
    Err(Fault::new(Code::Dtype, format!("{what} `%{name}` of {} is {ty}: it has no cotangent", f.signature()))
        .help("only floats are differentiated"))
}

/// The node that makes each value of a function; `None` for a parameter.
fn makers(f: &Function) -> Vec<Option<usize>> {
    let mut out = vec![None; f.values.len()];
    for (n, node) in f.nodes.iter().enumerate() {
        node.results.iter().for_each(|r| out[r.0 as usize] = Some(n));
    }
    out
}

/// A call's node, or none.
fn callee(node: &Node) -> Option<(Func, bool)> {
    match node.action {
        Action::Call { callee, remat } => Some((callee, remat)),
        Action::Op(_) => None,
    }
}
