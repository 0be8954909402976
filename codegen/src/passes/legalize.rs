//! Only dtypes that the target holds: halves widen to f32 where it lacks them.

use super::inline::keep_called;
use super::{Context, Unit};
use crate::Error;
use omchat_ir::ops::{Cast, Constant, Einsum};
use omchat_ir::{Action, Bind, Dtype, Func, Op};

pub(super) fn run(mut unit: Unit, context: &Context) -> Result<Unit, Error> {
    let wide = |d: Dtype| if !context.target.holds(d) && d.is_float() { Dtype::F32 } else { d };
    for f in &mut unit.module.functions {
        for v in &mut f.values {
            v.ty.dtype = wide(v.ty.dtype);
            if !context.target.holds(v.ty.dtype) {
                let have = context.target.dtypes.iter().map(|d| d.name()).collect::<Vec<_>>().join(", ");
                return Err(Error::Unsupported { dtype: v.ty.dtype, target: context.target.name.clone(), have });
            }
        }
        for b in f.binds.values_mut() {
            if let Bind::Dtype(d) = b {
                *d = wide(*d);
            }
        }
        for n in &mut f.nodes {
            if let Action::Op(
                Op::Cast(Cast { dtype }) | Op::Constant(Constant { dtype, .. }) | Op::Einsum(Einsum { dtype, .. }),
            ) = &mut n.action
            {
                *dtype = wide(*dtype);
            }
        }
    }
    merge_twins(&mut unit);
    Ok(keep_called(unit))
}

/// Instances that differed only in a dtype that is now the same: callers go to the first.
fn merge_twins(unit: &mut Unit) {
    let functions = &unit.module.functions;
    let first: Vec<Func> = functions
        .iter()
        .map(|f| {
            let at = functions.iter().position(|g| g.name == f.name && g.binds == f.binds).unwrap_or(0);
            Func(at as u32)
        })
        .collect();
    for n in unit.module.functions.iter_mut().flat_map(|f| &mut f.nodes) {
        if let Action::Call { callee, .. } = &mut n.action {
            *callee = first[callee.0 as usize];
        }
    }
    // What stands after the entry is not part of the program.
    unit.module.functions.truncate(unit.entry.0 as usize + 1);
}
