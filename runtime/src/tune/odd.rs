//! Odd work of a class: the same kind of work in sizes that no tile fits, small enough for the interpreter.

use super::drawn::{Instance, of_function};
use omchat_codegen::{Nest, Work};
use omchat_ir::Bind;
use std::cmp::Reverse;

/// Sizes that no tile divides, for the axes that matter most first.
const ODD: [usize; 6] = [131, 67, 19, 3, 2, 2];
/// Sizes that tiles of up to 64 divide and larger ones do not.
const EVEN: [usize; 6] = [192, 64, 64, 2, 1, 1];
/// A folded axis so long that kernels walk it in turns.
const LONG: [usize; 6] = [67, 4211, 9, 1, 1, 1];
/// The same with columns that tiles divide.
const LONG_EVEN: [usize; 6] = [64, 4211, 8, 1, 1, 1];
/// The most products, or elements, that the interpreter is given.
const MOST: usize = 4 << 20;

/// Instances of the work's class, the oddest first: a schedule is judged on the first at which its kernel offers it.
pub(super) fn instances(work: &Work) -> Vec<Instance> {
    let works: Vec<Work> = match work {
        Work::Nest(n) => {
            let columns = n.kept.last().copied().unwrap_or(1);
            let like = [[(5 * shared(columns)).min(columns), 67, 19, 3, 2, 2], [shared(columns), 4211, 8, 1, 1, 1]];
            [ODD, LONG, EVEN, LONG_EVEN].iter().chain(&like).map(|caps| Work::Nest(shrunk(n, caps))).collect()
        }
        Work::Function { .. } => return functions(work),
        Work::KthLargest { rows, width, k } => {
            let width = odd(*width, 1031);
            vec![Work::KthLargest { rows: odd(*rows, 5), width, k: (*k).min(width) }]
        }
        Work::ScatterAdd { dtype, height, width, tokens, ids, rows } => vec![Work::ScatterAdd {
            dtype: *dtype,
            height: odd(*height, 67),
            width: odd(*width, 131),
            tokens: odd(*tokens, 131),
            ids: *ids,
            rows: *rows,
        }],
        // Nothing to choose.
        Work::Prefetch { .. } | Work::Collective(_) => vec![],
    };
    let own = Some(work.clone()).filter(|w| effort(w) <= MOST);
    works.iter().chain(&own).filter(|w| effort(w) <= MOST).filter_map(Instance::of).collect()
}

fn effort(work: &Work) -> usize {
    match work {
        Work::Nest(n) => n.points().saturating_mul(n.depth()),
        Work::Function { .. } | Work::Prefetch { .. } | Work::Collective(_) => 0,
        Work::KthLargest { rows, width, .. } => rows.saturating_mul(*width),
        Work::ScatterAdd { width, tokens, .. } => width.saturating_mul(*tokens),
    }
}

/// The largest size that divides this one and 96: what tiles of columns can have in common with it.
fn shared(size: usize) -> usize {
    (1..=96).rfind(|d| size.is_multiple_of(*d) && 96 % d == 0).unwrap_or(1)
}

/// The largest odd number that neither the size nor the cap exceeds; a size of 2 stays.
fn odd(size: usize, cap: usize) -> usize {
    let n = size.min(cap);
    if n > 2 && n.is_multiple_of(2) { n - 1 } else { n }
}

/// Letters shrunk, the largest to the largest odd size; then those with the innermost letters as they are, for kernels
/// that ask something of a row's width; then all of them as they are.
fn functions(work: &Work) -> Vec<Instance> {
    let Work::Function { name, binds, .. } = work else { return vec![] };
    let Some(own) = Instance::of(work) else { return vec![] };
    let mut letters: Vec<(&str, usize)> =
        binds.iter().filter_map(|(l, b)| if let Bind::Size(n) = b { Some((l.as_str(), *n)) } else { None }).collect();
    letters.sort_by_key(|(l, n)| (usize::MAX - n, *l));
    let inner: Vec<usize> = own.operands.iter().filter_map(|(t, _)| t.shape.last().copied()).collect();
    let at = |caps: &[usize; 6], keep: bool| {
        let given: Vec<(&str, Bind)> = binds
            .iter()
            .map(|(l, b)| match b {
                // So many parts of an odd number of rows: one.
                Bind::Size(_) if *l == "N" => (l.as_str(), Bind::Size(1)),
                Bind::Size(n) if !(keep && inner.contains(n) && *n <= 512) => {
                    let rank = letters.iter().position(|(m, _)| m == l).unwrap_or(0);
                    (l.as_str(), Bind::Size(odd(*n, caps[rank.min(5)])))
                }
                b => (l.as_str(), *b),
            })
            .collect();
        of_function(name, &given)
    };
    let wide = [67, 131, 33, 3, 2, 2];
    let small = |i: &Instance| i.operands.iter().map(|(t, _)| t.elements()).sum::<usize>() <= MOST / 4;
    [at(&ODD, false), at(&wide, false), at(&ODD, true), Some(own)].into_iter().flatten().filter(small).collect()
}

/// A nest over smaller axes: the innermost kept axis takes the first cap, then the innermost folded, then the other
/// kept ones, the longest first, then the other folded. Views keep their order of axes and their gaps.
fn shrunk(n: &Nest, caps: &[usize; 6]) -> Nest {
    let kept = n.kept.len();
    let mut order: Vec<usize> = vec![];
    order.extend(kept.checked_sub(1));
    order.extend((!n.folded.is_empty()).then(|| kept + n.folded.len() - 1));
    let mut others: Vec<usize> = (0..kept.saturating_sub(1)).rev().collect();
    others.sort_by_key(|a| Reverse(n.kept[*a]));
    order.extend(others);
    order.extend((kept..kept + n.folded.len().saturating_sub(1)).rev());
    let old = [&n.kept[..], &n.folded].concat();
    let mut new = old.clone();
    for (rank, axis) in order.into_iter().enumerate() {
        let cap = caps[rank.min(5)];
        new[axis] = if cap.is_multiple_of(2) { old[axis].min(cap) } else { odd(old[axis], cap) };
    }
    let mut out = n.clone();
    out.kept = new[..kept].to_vec();
    out.folded = new[kept..].to_vec();
    for r in &mut out.reads {
        let rows = r.at.as_ref().map(|a| (a.size, a.size.min(7), a.stride));
        if let Some((strides, row)) = laid(&old, &new, &r.strides, rows) {
            (r.strides, r.offset) = (strides, r.offset % 7);
            if let (Some(at), Some((_, size, _))) = (&mut r.at, rows) {
                (at.size, at.stride) = (size, row);
            }
        }
        if let Some(at) = &mut r.at
            && let Some((strides, _)) = laid(&old, &new, &at.strides, None)
        {
            (at.strides, at.offset) = (strides, at.offset % 7);
        }
    }
    for i in 0..out.writes.len() {
        // Writes that share a result keep clear of each other as they are.
        let alone = out.writes.iter().filter(|w| w.result == out.writes[i].result).count() == 1;
        let w = &mut out.writes[i];
        let starts = w.at.as_ref().map(|s| (s.last + 1, (s.last + 1).min(5), s.stride));
        if let Some((strides, step)) = laid(&old[..kept], &new[..kept], &w.strides, starts).filter(|_| alone) {
            (w.strides, w.offset) = (strides, w.offset % 7);
            if let (Some(s), Some((_, size, _))) = (&mut w.at, starts) {
                (s.last, s.stride) = (size - 1, step);
            }
        }
    }
    out
}

/// Strides of a view after its axes shrank: dense where it was, with a gap of up to 3 where it had one. `rows` is one
/// more axis: its old size, its new size, its stride. Nothing where axes overlap: then the old strides stay right.
fn laid(
    old: &[usize],
    new: &[usize],
    strides: &[usize],
    rows: Option<(usize, usize, usize)>,
) -> Option<(Vec<usize>, usize)> {
    let mut axes: Vec<(usize, usize, usize)> =
        strides.iter().zip(old).zip(new).map(|((s, o), n)| (*s, *o, *n)).collect();
    axes.extend(rows.map(|(o, n, s)| (s, o, n)));
    let mut order: Vec<usize> = (0..axes.len()).filter(|a| axes[*a].0 > 0 && axes[*a].1 > 1).collect();
    order.sort_by_key(|a| axes[*a].0);
    let (mut before, mut now) = (1, 1);
    let mut out: Vec<usize> = axes.iter().map(|a| a.0).collect();
    for a in order {
        let (stride, o, n) = axes[a];
        let gap = stride.checked_sub(before)?;
        out[a] = now + gap.min(3);
        (before, now) = (stride * o, out[a] * n);
    }
    let row = if rows.is_some() { out.pop()? } else { 0 };
    Some((out, row))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn views_stay_dense_and_keep_their_gaps() {
        assert_eq!(laid(&[64, 32], &[5, 3], &[32, 1], None).unwrap().0, [3, 1]);
        assert_eq!(laid(&[64, 32], &[5, 3], &[1, 64], None).unwrap().0, [1, 5]);
        assert_eq!(laid(&[64, 32], &[5, 3], &[96, 1], None).unwrap().0, [6, 1]);
        assert_eq!(laid(&[64, 32], &[5, 3], &[0, 1], Some((100, 7, 32))).unwrap(), (vec![0, 1], 3));
        assert_eq!(laid(&[8, 8], &[3, 3], &[1, 1], None), None);
        assert_eq!([odd(576, 131), odd(64, 131), odd(2, 9), odd(1, 9)], [131, 63, 2, 1]);
        assert_eq!([588, 576, 64, 7].map(shared), [12, 96, 32, 1]);
    }
}
