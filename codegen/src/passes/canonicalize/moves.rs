//! Rules of slices and concatenations.

use super::{Rewrite, Site};
use omchat_ir::ops::{Concat, Slice};
use omchat_ir::{Op, Scalar, Value};

pub(super) fn empty(s: &Site) -> Option<Rewrite> {
    let stays = matches!(
        s.op,
        Op::Copy(_) | Op::CollectivePermute(_) | Op::AllReduce(_) | Op::AllGather(_) | Op::ReduceScatter(_)
    );
    (s.to().elements() == 0 && !stays).then_some(Rewrite::Splat(0.0))
}

fn slice<'a>(s: &Site<'a>) -> Option<&'a Slice> {
    match s.op {
        Op::Slice(x) => Some(x),
        _ => None,
    }
}

pub(super) fn slice_whole(s: &Site) -> Option<Rewrite> {
    slice(s)?;
    (s.ty(s.x[0]) == s.to()).then_some(Rewrite::Same(s.x[0]))
}

pub(super) fn slice_splat(s: &Site) -> Option<Rewrite> {
    slice(s)?;
    s.splat(s.x[0]).map(Rewrite::Splat)
}

pub(super) fn slice_of_slice(s: &Site) -> Option<Rewrite> {
    let outer = slice(s)?;
    let (Op::Slice(inner), x) = s.maker(s.x[0])? else { return None };
    let axis = outer.axis;
    let (start, end) = (inner.start + outer.start, inner.start + outer.end);
    (inner.axis == axis).then(|| Rewrite::Op(Slice { axis, start, end }.into(), x.to_vec()))
}

pub(super) fn slice_of_concat(s: &Site) -> Option<Rewrite> {
    let part = slice(s)?;
    let (Op::Concat(c), all) = s.maker(s.x[0])? else { return None };
    if c.axis != part.axis {
        return None;
    }
    let mut start = 0;
    for v in all {
        let end = start + s.ty(*v).shape[c.axis];
        if start <= part.start && part.end <= end {
            let inner = Slice { axis: c.axis, start: part.start - start, end: part.end - start };
            return Some(Rewrite::Op(inner.into(), vec![*v]));
        }
        start = end;
    }
    None
}

fn concat<'a>(s: &Site<'a>) -> Option<&'a Concat> {
    match s.op {
        Op::Concat(c) => Some(c),
        _ => None,
    }
}

pub(super) fn concat_one(s: &Site) -> Option<Rewrite> {
    concat(s)?;
    (s.x.len() == 1).then_some(Rewrite::Same(s.x[0]))
}

pub(super) fn concat_empty(s: &Site) -> Option<Rewrite> {
    let c = concat(s)?;
    let some: Vec<Value> = s.x.iter().copied().filter(|v| s.ty(*v).elements() > 0).collect();
    (some.len() < s.x.len()).then(|| Rewrite::Op(c.clone().into(), some))
}

pub(super) fn concat_of_concat(s: &Site) -> Option<Rewrite> {
    let c = concat(s)?;
    let parts = |v: Value| match s.maker(v) {
        Some((Op::Concat(inner), parts)) if inner.axis == c.axis && s.used_once(v) => Some(parts),
        _ => None,
    };
    s.x.iter().any(|v| parts(*v).is_some()).then(|| {
        let all = s.x.iter().flat_map(|v| parts(*v).unwrap_or(std::slice::from_ref(v)));
        Rewrite::Op(c.clone().into(), all.copied().collect())
    })
}

pub(super) fn concat_splat(s: &Site) -> Option<Rewrite> {
    concat(s)?;
    let value = s.splat(s.x[0])?;
    s.x.iter().all(|v| s.splat(*v) == Some(value)).then_some(Rewrite::Splat(value))
}

pub(super) fn concat_of_slices(s: &Site) -> Option<Rewrite> {
    let Concat { axis } = *concat(s)?;
    let mut whole: Option<(Value, usize, usize)> = None;
    for v in s.x {
        let (Op::Slice(part), from) = s.maker(*v)? else { return None };
        let start = match whole {
            None => part.start,
            Some((x, start, end)) if x == from[0] && part.start == end => start,
            Some(_) => return None,
        };
        if part.axis != axis {
            return None;
        }
        whole = Some((from[0], start, part.end));
    }
    let (x, start, end) = whole?;
    Some(Rewrite::Op(Slice { axis, start, end }.into(), vec![x]))
}

/// A part of a concatenation: where it starts and ends, what it is, whether it is zeros.
type Part = (usize, usize, Value, bool);

/// The axis of a concatenation, and its parts.
fn parts(s: &Site, v: Value) -> Option<(usize, Vec<Part>)> {
    let (Op::Concat(c), all) = s.maker(v)? else { return None };
    let mut start = 0;
    let mut out = vec![];
    for v in all {
        let n = s.ty(*v).shape[c.axis];
        out.push((start, start + n, *v, s.splat(*v) == Some(0.0)));
        start += n;
    }
    Some((c.axis, out))
}

pub(super) fn add_padded(s: &Site) -> Option<Rewrite> {
    let Op::Pointwise(p) = s.op else { return None };
    if p.f != Scalar::Add || p.axes.is_some() {
        return None;
    }
    let ((axis, a), (other, b)) = (parts(s, s.x[0])?, parts(s, s.x[1])?);
    let size = s.to().shape.get(axis).copied()?;
    let (mut at, mut all) = (0, vec![]);
    while axis == other && at < size {
        let covers = |q: &[Part]| q.iter().find(|p| p.0 <= at && at < p.1).copied();
        let (x, y) = (covers(&a)?, covers(&b)?);
        let (take, under) = if x.3 && (!y.3 || y.1 <= x.1) { (y, x) } else { (x, y) };
        // A part starts here and lies over zeros.
        if take.0 != at || !under.3 || take.1 > under.1 {
            return None;
        }
        all.push(take.2);
        at = take.1;
    }
    (at == size && axis == other).then(|| Rewrite::Op(Concat { axis }.into(), all))
}
