//! The softmax of attention on matrix units, from tile to tile: what a unit keeps of its rows, in the fragments' layout.

use cubecl::prelude::*;

use crate::attention::Places;
use crate::attention_carry::{Carry, carried_top, carried_weight};
use crate::attention_fragments::{
    Four, Frame, Lines, MASKED, Sums, corner, line, own_column, own_row, power, power_here, write_row,
};
use crate::attention_sight::{Mask, hi, lo};
use crate::bind::Buffers;
use crate::vector::{Lane, read_float};

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    pub(crate) places: Places,
    pub(crate) carry: Option<Carry>,
    pub(crate) mask: Mask,
    pub(crate) f: Frame,
}

/// What a unit keeps of its rows from tile to tile: two rows a fragment.
#[derive(CubeType)]
pub(crate) struct Softmax {
    /// The highest score so far, before it is scaled.
    top: Array<f32>,
    /// This unit's part of the weights.
    weight: Array<f32>,
    pub(crate) lo: Array<i32>,
    pub(crate) hi: Array<i32>,
}

#[cube]
pub(crate) fn softmax(
    operands: &Buffers,
    times: usize,
    first: usize,
    last: usize,
    groups: usize,
    #[comptime] plan: Plan,
) -> Softmax {
    let rows = comptime![plan.f.tall() * 2];
    let mut s = Softmax { top: Array::new(rows), weight: Array::new(rows), lo: Array::new(rows), hi: Array::new(rows) };
    #[unroll]
    for r in 0..rows {
        let t = times + min(first + own_row(r, plan.f), last) / groups;
        s.top[r] = f32::cast_from(MASKED);
        s.weight[r] = f32::cast_from(0.0f32);
        s.lo[r] = lo(operands, t, plan.mask);
        s.hi[r] = hi(operands, t, plan.mask);
    }
    s
}

/// Rows go on from an earlier result, where there is one.
#[allow(clippy::single_match)]
#[cube]
pub(crate) fn carry_on(
    operands: &Buffers,
    s: &mut Softmax,
    out: &mut Sums,
    queries: &Lines,
    first: usize,
    last: usize,
    #[comptime] plan: Plan,
) {
    match comptime!(plan.carry) {
        Some(c) => {
            let f = comptime![plan.f];
            let (_, column) = corner(f);
            let scale = comptime![(f.d as f32).sqrt()].runtime();
            #[unroll]
            for r in 0..comptime![f.tall() * 2] {
                let at = line(queries, min(first + own_row(r, f), last), comptime![f.grouped]);
                let top = carried_top(operands, at, plan.carry);
                let weight = carried_weight(top, plan.carry);
                s.top[r] = select(weight == 0.0f32, MASKED, top * scale);
                // The four units of a row have a part of its weight each: the first has what is carried.
                s.weight[r] = select(UNIT_POS % 4 == 0, weight, 0.0f32);
                #[unroll]
                for j in 0..comptime![f.wide() / 8] {
                    let from = at * f.d + column + own_column(j);
                    let two = read_float::<Const<2>>(operands, from, 1usize, c.o, Lane::One) * Vector::new(weight);
                    let to = comptime![r / 2 * f.wide() / 8 + j];
                    let mut four: Four = out[to];
                    four.insert(comptime![r % 2 * 2], two.extract(0usize));
                    four.insert(comptime![r % 2 * 2 + 1], two.extract(1usize));
                    out[to] = four;
                }
            }
        }
        None => {}
    }
}

/// Softmax so far: scores become weights, and what sums are to be multiplied by is left for each row.
#[cube]
pub(crate) fn weigh(s: &mut Softmax, p: &mut Sums, falls: &mut Array<f32>, #[comptime] f: Frame) {
    #[unroll]
    for r in 0..comptime![f.tall() * 2] {
        let level = rise(s, p, falls, r, false, f);
        spread(s, p, falls, level, r, false, f);
    }
}

/// Chains of comparisons, or of additions, of a row: one alone would wait for itself.
const CHAINS: usize = 4;

/// The highest score of row `r` so far, which becomes 2^0; what was before falls by so much. `firm` powers are taken where
/// they stand, not after a wait that follows.
#[cube]
pub(crate) fn rise(
    s: &mut Softmax,
    p: &mut Sums,
    falls: &mut Array<f32>,
    #[comptime] r: usize,
    #[comptime] firm: bool,
    #[comptime] f: Frame,
) -> f32 {
    let scale = comptime![f.scale()].runtime();
    let l = comptime![r % 2 * 2];
    let from = comptime![r / 2 * f.n / 8];
    let mut tops = Array::<f32>::new(CHAINS);
    #[unroll]
    for j in 0..comptime![f.n / 8] {
        let four = p[from + j];
        let two = max(four.extract(l), four.extract(l + 1));
        let chain = comptime![j % CHAINS];
        if comptime![j < CHAINS] {
            tops[chain] = two;
        } else {
            tops[chain] = max(tops[chain], two);
        }
    }
    let mut top = s.top[r];
    #[unroll]
    for j in 0..comptime![CHAINS.min(f.n / 8)] {
        top = max(top, tops[j]);
    }
    // The four units that share a row.
    top = max(top, plane_shuffle_xor(top, 1u32));
    top = max(top, plane_shuffle_xor(top, 2u32));
    // Where all is masked so far every weight is 2^-huge = 0.
    let level = select(top > comptime![MASKED / 2.0].runtime(), top * scale, 0.0f32);
    falls[r] = raise(s.top[r] * scale - level, firm);
    s.top[r] = top;
    level
}

/// The scores of row `r` become weights under that level.
#[cube]
pub(crate) fn spread(
    s: &mut Softmax,
    p: &mut Sums,
    falls: &mut Array<f32>,
    level: f32,
    #[comptime] r: usize,
    #[comptime] firm: bool,
    #[comptime] f: Frame,
) {
    let scale = comptime![f.scale()].runtime();
    let l = comptime![r % 2 * 2];
    let from = comptime![r / 2 * f.n / 8];
    let mut sum = s.weight[r] * falls[r];
    let mut other = 0.0f32.runtime();
    #[unroll]
    for j in 0..comptime![f.n / 8] {
        let mut four = p[from + j];
        let x = raise(fma(four.extract(l), scale, -level), firm);
        let y = raise(fma(four.extract(l + 1), scale, -level), firm);
        four.insert(l, x);
        four.insert(l + 1, y);
        p[from + j] = four;
        if comptime![j % 2 == 0] {
            sum += x + y;
        } else {
            other += x + y;
        }
    }
    s.weight[r] = sum + other;
}

/// 2 to that power.
#[allow(unused_assignments)]
#[cube]
fn raise(x: f32, #[comptime] firm: bool) -> f32 {
    let mut out = 0.0f32.runtime();
    if firm {
        out = power_here(x);
    } else {
        out = power(x);
    }
    out
}

/// Brings sums to the new highest.
#[cube]
pub(crate) fn lower(out: &mut Sums, falls: &Array<f32>, #[comptime] f: Frame) {
    #[unroll]
    for r in 0..comptime![f.tall() * 2] {
        let l = comptime![r % 2 * 2];
        let fall = falls[r];
        #[unroll]
        for j in 0..comptime![f.wide() / 8] {
            let at = comptime![r / 2 * f.wide() / 8 + j];
            let mut four: Four = out[at];
            four.insert(l, four.extract(l) * fall);
            four.insert(l + 1, four.extract(l + 1) * fall);
            out[at] = four;
        }
    }
}

/// Outputs and logarithms of the rows that there are.
#[cube]
pub(crate) fn finish(
    results: &mut Buffers,
    s: &Softmax,
    out: &Sums,
    queries: &Lines,
    first: usize,
    last: usize,
    #[comptime] plan: Plan,
) {
    let f = comptime![plan.f];
    let (_, column) = corner(f);
    #[unroll]
    for r in 0..comptime![f.tall() * 2] {
        let mut weight = s.weight[r];
        weight += plane_shuffle_xor(weight, 1u32);
        weight += plane_shuffle_xor(weight, 2u32);
        let row = first + own_row(r, f);
        if row <= last {
            let at = line(queries, row, comptime![f.grouped]);
            let seen = weight != 0.0f32;
            let safe = select(seen, weight, 1.0f32);
            let share = select(seen, 1.0f32 / safe, 0.0f32);
            write_row(results, out, at, share, r, plan.places.out, f);
            if UNIT_POS % 4 == 0 && column == 0 {
                let scale = comptime![1.0 / (f.d as f32).sqrt()].runtime();
                let lse = select(seen, s.top[r] * scale + safe.ln(), MASKED);
                results.f32s.index_mut(plan.places.lse.index)[at] = lse;
            }
        }
    }
}
