//! Rules of scalar functions and casts.

use super::{Rewrite, Site};
use omchat_ir::ops::{Cast, Pointwise, Rearrange};
use omchat_ir::{Axes, Dtype, Op, Scalar, Type, Value};

/// Whether every number of `a` is one of `b`.
fn widens(a: Dtype, b: Dtype) -> bool {
    matches!((a, b), (Dtype::Bf16 | Dtype::F16, Dtype::F32) | (Dtype::Bool, _))
}

pub(super) fn cast_same(s: &Site) -> Option<Rewrite> {
    let Op::Cast(Cast { dtype }) = s.op else { return None };
    (*dtype == s.ty(s.x[0]).dtype).then_some(Rewrite::Same(s.x[0]))
}

/// The operand of a widening cast that this is a cast of.
fn behind(s: &Site) -> Option<(Value, Dtype)> {
    let Op::Cast(Cast { dtype }) = s.op else { return None };
    let (Op::Cast(_), inner) = s.maker(s.x[0])? else { return None };
    widens(s.ty(inner[0]).dtype, s.ty(s.x[0]).dtype).then_some((inner[0], *dtype))
}

pub(super) fn cast_of_cast(s: &Site) -> Option<Rewrite> {
    let (x, dtype) = behind(s)?;
    Some(Rewrite::Op(Cast { dtype }.into(), vec![x]))
}

/// What the dtype holds of a constant is the constant, so that no rounding is skipped; f32 constants that go on as
/// floats may be the doubles that they were written as.
fn held(dtype: Dtype, value: f64) -> bool {
    dtype.round(value) == value
}

pub(super) fn cast_splat(s: &Site) -> Option<Rewrite> {
    let Op::Cast(Cast { dtype }) = s.op else { return None };
    let (from, value) = (s.ty(s.x[0]).dtype, s.splat(s.x[0])?);
    let exact = held(from, value) || (from == Dtype::F32 && dtype.is_float());
    let to = if dtype.is_float() { value } else { dtype.round(value) };
    (exact && dtype.round(to).is_finite()).then_some(Rewrite::Splat(to))
}

fn pointwise<'a>(s: &Site<'a>) -> Option<&'a Pointwise> {
    match s.op {
        Op::Pointwise(p) => Some(p),
        _ => None,
    }
}

/// The scalar function and its two operands' numbers.
fn binary(s: &Site) -> Option<(Scalar, Option<f64>, Option<f64>)> {
    let p = pointwise(s)?;
    (s.x.len() == 2).then(|| (p.f, s.splat(s.x[0]), s.splat(s.x[1])))
}

/// Whether operand `i` is read in the result's own order, all of it.
fn in_step(s: &Site, i: usize) -> bool {
    let Some(p) = pointwise(s) else { return false };
    let types: Vec<&Type> = s.x.iter().map(|v| s.ty(*v)).collect();
    types[i].shape == s.to().shape && p.views(&types)[i] == types[i].strides()
}

/// Operand `i` over the result's axes: itself, or a view of it.
fn operand(s: &Site, i: usize) -> Option<Rewrite> {
    let (p, x, to) = (pointwise(s)?, s.ty(s.x[i]), s.to());
    if x.dtype != to.dtype {
        return None;
    }
    if in_step(s, i) {
        return Some(Rewrite::Same(s.x[i]));
    }
    let (own, output) = match &p.axes {
        Some(a) => (a.inputs[i].clone(), a.output.clone()),
        None => (vec![], (0..to.rank()).map(|n| vec![super::shape::word(n)]).collect()),
    };
    let sizes = output
        .iter()
        .zip(&to.shape)
        .filter(|(g, _)| !own.contains(g))
        .filter_map(|(g, n)| Some((g.first()?.clone(), *n)))
        .collect();
    let view = Rearrange { axes: Axes { inputs: vec![own], output }, sizes };
    let fits = view.moves(x).is_ok_and(|m| m.shape == to.shape);
    fits.then(|| Rewrite::Op(view.into(), vec![s.x[i]]))
}

pub(super) fn stop_gradient(s: &Site) -> Option<Rewrite> {
    if pointwise(s)?.f == Scalar::StopGradient { operand(s, 0) } else { None }
}

pub(super) fn fold(s: &Site) -> Option<Rewrite> {
    let p = pointwise(s)?;
    let args: Vec<f64> = s.x.iter().map(|v| s.splat(*v)).collect::<Option<_>>()?;
    let of = s.x.last().map(|v| s.ty(*v).dtype)?;
    let narrow = matches!(of, Dtype::Bf16 | Dtype::F16);
    if narrow && !args.iter().all(|a| held(of, *a)) {
        return None;
    }
    let value = if of == Dtype::I32 { p.f.value_i32(&args) } else { p.f.value(&args) };
    s.to().dtype.round(value).is_finite().then_some(Rewrite::Splat(value))
}

pub(super) fn add_zero(s: &Site) -> Option<Rewrite> {
    match binary(s)? {
        (Scalar::Add | Scalar::Sub, _, Some(0.0)) => operand(s, 0),
        (Scalar::Add, Some(0.0), _) => operand(s, 1),
        _ => None,
    }
}

pub(super) fn zero_sub(s: &Site) -> Option<Rewrite> {
    let (Scalar::Sub, Some(0.0), None) = binary(s)? else { return None };
    let neg = Op::from(Pointwise::plain(Scalar::Neg));
    in_step(s, 1).then(|| Rewrite::Op(neg, vec![s.x[1]]))
}

pub(super) fn sub_same(s: &Site) -> Option<Rewrite> {
    let (Scalar::Sub, _, _) = binary(s)? else { return None };
    (s.x[0] == s.x[1] && in_step(s, 0) && in_step(s, 1)).then_some(Rewrite::Splat(0.0))
}

pub(super) fn mul_one(s: &Site) -> Option<Rewrite> {
    match binary(s)? {
        (Scalar::Mul | Scalar::Div, _, Some(1.0)) => operand(s, 0),
        (Scalar::Mul, Some(1.0), _) => operand(s, 1),
        _ => None,
    }
}

pub(super) fn mul_zero(s: &Site) -> Option<Rewrite> {
    match binary(s)? {
        (Scalar::Mul, Some(0.0), _) | (Scalar::Mul, _, Some(0.0)) | (Scalar::Div, Some(0.0), None) => {
            Some(Rewrite::Splat(0.0))
        }
        _ => None,
    }
}

/// The operand of `f` behind operand `i`, where both are read in step.
fn under(s: &Site, i: usize, f: Scalar) -> Option<Value> {
    let (Op::Pointwise(p), inner) = s.maker(s.x[i])? else { return None };
    let types = [s.ty(inner[0])];
    let still = types[0].shape == s.ty(s.x[i]).shape && p.views(&types)[0] == types[0].strides();
    (p.f == f && still && in_step(s, i)).then_some(inner[0])
}

pub(super) fn neg_neg(s: &Site) -> Option<Rewrite> {
    if pointwise(s)?.f != Scalar::Neg {
        return None;
    }
    under(s, 0, Scalar::Neg).map(Rewrite::Same)
}

pub(super) fn not_not(s: &Site) -> Option<Rewrite> {
    if pointwise(s)?.f != Scalar::Not {
        return None;
    }
    under(s, 0, Scalar::Not).map(Rewrite::Same)
}

pub(super) fn add_neg(s: &Site) -> Option<Rewrite> {
    let (f, _, _) = binary(s)?;
    let f = match f {
        Scalar::Add => Scalar::Sub,
        Scalar::Sub => Scalar::Add,
        _ => return None,
    };
    let y = under(s, 1, Scalar::Neg)?;
    in_step(s, 0).then(|| Rewrite::Op(Pointwise::plain(f).into(), vec![s.x[0], y]))
}

pub(super) fn select_constant(s: &Site) -> Option<Rewrite> {
    if pointwise(s)?.f != Scalar::Select {
        return None;
    }
    operand(s, if s.splat(s.x[0])? != 0.0 { 1 } else { 2 })
}

pub(super) fn select_same(s: &Site) -> Option<Rewrite> {
    if pointwise(s)?.f != Scalar::Select {
        return None;
    }
    match (s.splat(s.x[1]), s.splat(s.x[2])) {
        (Some(a), Some(b)) if a == b => Some(Rewrite::Splat(a)),
        _ if s.x[1] == s.x[2] && in_step(s, 1) && in_step(s, 2) => Some(Rewrite::Same(s.x[1])),
        _ => None,
    }
}

pub(super) fn and_constant(s: &Site) -> Option<Rewrite> {
    match binary(s)? {
        (Scalar::And, Some(0.0), _) | (Scalar::And, _, Some(0.0)) => Some(Rewrite::Splat(0.0)),
        (Scalar::And, Some(_), _) => operand(s, 1),
        (Scalar::And, _, Some(_)) => operand(s, 0),
        _ => None,
    }
}
