//! Only dtypes that the target holds: halves widen to f32 where it lacks them. Weights may stay packed there, read
//! through a `cast` that every reader does in registers.

mod packed;

use super::inline::keep_called;
use super::{Context, Unit};
use crate::Error;
use omchat_ir::ops::{Cast, Constant, Einsum};
use omchat_ir::{Action, Bind, Dtype, Func, Function, Op};

pub(super) fn run(mut unit: Unit, context: &Context) -> Result<Unit, Error> {
    let wide = |d: Dtype| if !context.target.holds(d) && d.is_float() { Dtype::F32 } else { d };
    // What stands after the entry is not part of the program.
    unit.module.functions.truncate(unit.entry.0 as usize + 1);
    let packed = packed::params(&unit, context.target, &wide);
    for (f, packed) in unit.module.functions.iter_mut().zip(&packed) {
        widen(f, packed, &wide);
        if let Some(dtype) = f.values.iter().map(|v| v.ty.dtype).find(|d| !context.target.reads(*d)) {
            let have = context.target.dtypes.iter().map(|d| d.name()).collect::<Vec<_>>().join(", ");
            return Err(Error::Unsupported { dtype, target: context.target.name.clone(), have });
        }
    }
    packed::read_wide(&mut unit.module, &packed);
    merge_twins(&mut unit);
    Ok(keep_called(unit))
}

/// Widens every value but the packed parameters.
fn widen(f: &mut Function, packed: &[bool], wide: &dyn Fn(Dtype) -> Dtype) {
    for (i, v) in f.values.iter_mut().enumerate() {
        if !packed.get(i).is_some_and(|p| *p) {
            v.ty.dtype = wide(v.ty.dtype);
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
}
