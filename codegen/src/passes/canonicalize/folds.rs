//! Rules of reductions, contractions and addressed rows.

use super::{Rewrite, Site};
use omchat_ir::ops::{FoldKind, Rearrange, Reduce};
use omchat_ir::{Dtype, Op};
use std::collections::BTreeMap;

fn reduce<'a>(s: &Site<'a>) -> Option<&'a Reduce> {
    match s.op {
        Op::Reduce(r) => Some(r),
        _ => None,
    }
}

pub(super) fn reduce_splat(s: &Site) -> Option<Rewrite> {
    let (r, value) = (reduce(s)?, s.splat(s.x[0])?);
    let n = s.ty(s.x[0]).elements() / s.to().elements().max(1);
    let total = match r.fold {
        _ if n == 0 => r.fold.unit(),
        FoldKind::Sum => value * n as f64,
        FoldKind::Max => value.max(r.fold.unit()),
    };
    let dtype = s.to().dtype;
    let fits = if dtype == Dtype::I32 { dtype.round(total) == total } else { dtype.round(total).is_finite() };
    fits.then_some(Rewrite::Splat(total))
}

pub(super) fn reduce_one(s: &Site) -> Option<Rewrite> {
    let r = reduce(s)?;
    let view = Rearrange { axes: r.axes.clone(), sizes: BTreeMap::new() };
    let fits = s.ty(s.x[0]).elements() == s.to().elements() && view.moves(s.ty(s.x[0])).is_ok();
    // What is below the fold over nothing would not stay.
    (fits && r.fold == FoldKind::Sum).then(|| Rewrite::Op(view.into(), s.x.to_vec()))
}

pub(super) fn einsum_zero(s: &Site) -> Option<Rewrite> {
    let Op::Einsum(_) = s.op else { return None };
    s.x.iter().any(|v| s.splat(*v) == Some(0.0)).then_some(Rewrite::Splat(0.0))
}

pub(super) fn gather_zero(s: &Site) -> Option<Rewrite> {
    let Op::Gather(_) = s.op else { return None };
    (s.splat(s.x[0]) == Some(0.0)).then_some(Rewrite::Splat(0.0))
}

pub(super) fn scatter_zero(s: &Site) -> Option<Rewrite> {
    let Op::ScatterAdd(_) = s.op else { return None };
    let none = s.splat(s.x[2]) == Some(0.0) || s.ty(s.x[2]).elements() == 0;
    none.then_some(Rewrite::Same(s.x[0]))
}

pub(super) fn update_whole(s: &Site) -> Option<Rewrite> {
    let Op::UpdateSlice(_) = s.op else { return None };
    (s.ty(s.x[1]) == s.to()).then_some(Rewrite::Same(s.x[1]))
}
