//! Only dtypes that the target holds: halves widen to f32 where it lacks them.

use super::{Context, Unit};
use crate::Error;
use omchat_ir::ops::{Cast, Constant, Einsum};
use omchat_ir::{Action, Bind, Dtype, Op};

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
            if let Action::Op(Op::Cast(Cast { dtype }) | Op::Constant(Constant { dtype, .. }) | Op::Einsum(Einsum { dtype, .. })) = &mut n.action {
                *dtype = wide(*dtype);
            }
        }
    }
    Ok(unit)
}
