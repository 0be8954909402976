//! Named, directional rules on the entry; the right side is never worse.

use super::cse::drop_unused_values;
use super::{Context, Unit};
use crate::Error;
use omchat_ir::ops::{Cast, Constant, Pointwise};
use omchat_ir::{Action, Dtype, Function, Op, Scalar, Type, Value};

pub(super) fn run(mut unit: Unit, _: &Context) -> Result<Unit, Error> {
    let entry = unit.entry.0 as usize;
    let f = std::mem::take(&mut unit.module.functions[entry]);
    unit.module.functions[entry] = simplify(f);
    Ok(drop_unused_values(unit))
}

/// What a rule makes of a node.
enum Rewrite {
    /// The node's result is an operand.
    Same(Value),
    /// The node is a constant.
    Fold(f64),
}

fn simplify(mut f: Function) -> Function {
    let mut same: Vec<Value> = (0..f.values.len() as u32).map(Value).collect();
    let mut constants: Vec<Option<f64>> = vec![None; f.values.len()];
    let mut nodes = vec![];
    for mut node in std::mem::take(&mut f.nodes) {
        node.operands.iter_mut().for_each(|v| *v = same[v.0 as usize]);
        let Action::Op(op) = &node.action else {
            nodes.push(node);
            continue;
        };
        let result = node.results[0];
        match rewrite(op, &node.operands, result, &f, &constants) {
            Some(Rewrite::Same(v)) => {
                same[result.0 as usize] = v;
                continue;
            }
            Some(Rewrite::Fold(value)) => {
                node.action = Action::Op(Constant { dtype: f.ty(result).dtype, value }.into());
                node.operands.clear();
            }
            None => {}
        }
        if let Action::Op(Op::Constant(c)) = &node.action {
            constants[result.0 as usize] = Some(c.value);
        }
        nodes.push(node);
    }
    f.nodes = nodes;
    f.results.iter_mut().for_each(|v| *v = same[v.0 as usize]);
    f
}

fn rewrite(op: &Op, x: &[Value], result: Value, f: &Function, constants: &[Option<f64>]) -> Option<Rewrite> {
    let constant = |v: &Value| constants[v.0 as usize];
    match op {
        // cast_same: cast to the dtype it has.
        Op::Cast(Cast { dtype }) if *dtype == f.ty(x[0]).dtype => Some(Rewrite::Same(x[0])),
        // stop_gradient: programs are past differentiation.
        Op::Pointwise(p) if p.f == Scalar::StopGradient && in_step(p, x, result, f) => Some(Rewrite::Same(x[0])),
        // fold: a scalar function of constants.
        Op::Pointwise(p) if f.ty(result).rank() == 0 && x.iter().all(|v| constant(v).is_some()) => {
            let args: Vec<f64> = x.iter().filter_map(constant).collect();
            let dtype = f.ty(result).dtype;
            let value = if dtype == Dtype::I32 { p.f.value_i32(&args) } else { p.f.value(&args) };
            value.is_finite().then(|| Rewrite::Fold(dtype.round(value)))
        }
        // identity: x + 0, x - 0, x * 1, x / 1, where the result lies as x does.
        Op::Pointwise(p) if x.len() == 2 && in_step(p, x, result, f) => {
            let unit = match p.f {
                Scalar::Add | Scalar::Sub => 0.0,
                Scalar::Mul | Scalar::Div => 1.0,
                _ => return None,
            };
            (constant(&x[1]) == Some(unit)).then_some(Rewrite::Same(x[0]))
        }
        _ => None,
    }
}

/// Whether the result has the first operand's type and reads it in its own order: axes may turn it.
fn in_step(p: &Pointwise, x: &[Value], result: Value, f: &Function) -> bool {
    let types: Vec<&Type> = x.iter().map(|v| f.ty(*v)).collect();
    types[0] == f.ty(result) && p.views(&types)[0] == types[0].strides()
}
