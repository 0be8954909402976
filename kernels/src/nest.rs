//! Walking a nest on the device: where each view stands at an item, and what it reads and writes there.

use cubecl::prelude::*;
use omchat_codegen::{Body, Kind, Step};

use crate::bind::{Buffers, Slot};
use crate::body::{Inputs, Values};
use crate::key::Key;
use crate::loops::{Plan, View};
use crate::vector::{Lane, read, write_float, write_int};

/// Where every view stands: reads, then their ids, then writes.
#[derive(CubeType)]
pub(crate) struct Cursor {
    pub(crate) reads: Sequence<usize>,
    pub(crate) ids: Sequence<usize>,
    pub(crate) writes: Sequence<usize>,
    /// Index along each axis, where some step asks.
    pub(crate) index: Sequence<u32>,
}

/// The cursor at the start: offsets, and starts of updates.
#[cube]
pub(crate) fn origin(meta: &[u32], operands: &Buffers, #[comptime] plan: Key<Plan>) -> Cursor {
    let mut c =
        Cursor { reads: Sequence::new(), ids: Sequence::new(), writes: Sequence::new(), index: Sequence::new() };
    #[unroll]
    for r in 0..comptime![plan.reads.len()] {
        c.reads.push(meta[comptime![plan.reads[r].view.words]] as usize);
        let words = comptime![plan.reads[r].at.as_ref().map_or(plan.reads[r].view.words, |a| a.words)];
        c.ids.push(meta[words] as usize);
    }
    #[unroll]
    for w in 0..comptime![plan.writes.len()] {
        let words = comptime![plan.writes[w].view.words];
        let offset = meta[words] as usize;
        let at = comptime![plan.writes[w].at];
        if comptime![at.is_some()] {
            let slot = comptime![at.map_or(Slot { storage: crate::bind::Storage::I32, index: 0 }, |s| s)];
            let last = meta[comptime![words + 1 + plan.rank]] as i32;
            let stride = meta[comptime![words + 2 + plan.rank]] as usize;
            let start = clamp(operands.i32s.index(slot.index)[0], 0i32, last);
            c.writes.push(offset + start as usize * stride);
        } else {
            c.writes.push(offset);
        }
    }
    #[unroll]
    for _ in 0..comptime![plan.rank] {
        c.index.push(0u32.runtime());
    }
    c
}

/// The cursor moved to row `row` of the axes `first..last`.
#[cube]
pub(crate) fn seek(
    meta: &[u32],
    from: &Cursor,
    row: u32,
    #[comptime] first: usize,
    #[comptime] last: usize,
    #[comptime] plan: Key<Plan>,
) -> Cursor {
    // Digits of the row, innermost axis first.
    let mut digits = Sequence::<u32>::new();
    let mut rest = row;
    #[unroll]
    for j in 0..comptime![last - first] {
        if comptime![j + 1 < last - first] {
            let size = meta[comptime![last - 1 - j]];
            digits.push(rest % size);
            rest /= size;
        } else {
            digits.push(rest);
        }
    }
    let mut c =
        Cursor { reads: Sequence::new(), ids: Sequence::new(), writes: Sequence::new(), index: Sequence::new() };
    #[unroll]
    for r in 0..comptime![plan.reads.len()] {
        c.reads.push(moved(meta, *from.reads.index(r), &digits, first, last, comptime![plan.reads[r].view.clone()]));
        let ids = comptime![plan.reads[r].at.clone()];
        if comptime![ids.is_some()] {
            let view = comptime![ids.unwrap_or_else(|| plan.reads[r].view.clone())];
            c.ids.push(moved(meta, *from.ids.index(r), &digits, first, last, view));
        } else {
            c.ids.push(*from.ids.index(r));
        }
    }
    #[unroll]
    for w in 0..comptime![plan.writes.len()] {
        c.writes.push(moved(meta, *from.writes.index(w), &digits, first, last, comptime![plan.writes[w].view.clone()]));
    }
    #[unroll]
    for a in 0..comptime![plan.rank] {
        if comptime![a >= first && a < last] {
            c.index.push(*digits.index(comptime![last - 1 - a]));
        } else {
            c.index.push(*from.index.index(a));
        }
    }
    c
}

#[cube]
fn moved(
    meta: &[u32],
    from: usize,
    digits: &Sequence<u32>,
    #[comptime] first: usize,
    #[comptime] last: usize,
    #[comptime] view: View,
) -> usize {
    let mut at = from;
    #[unroll]
    for a in first..last {
        if comptime![view.lanes[a] != Lane::Zero] {
            at += *digits.index(comptime![last - 1 - a]) as usize * meta[comptime![view.words + 1 + a]] as usize;
        }
    }
    at
}

/// The item of this unit. A CPU's core takes a run of items, so that two cores do not write to one cache line;
/// a GPU's units take neighbours, so that they read together.
#[cube]
pub(crate) fn item(#[comptime] run: bool) -> u32 {
    if run { UNIT_POS * CUBE_COUNT as u32 + CUBE_POS as u32 } else { ABSOLUTE_POS as u32 }
}

/// Rows of the outer folded axes.
#[cube]
pub(crate) fn depth(meta: &[u32], #[comptime] plan: Key<Plan>) -> u32 {
    let mut rows = 1u32.runtime();
    #[unroll]
    for a in plan.kept..comptime![plan.rank - 1] {
        rows *= meta[a];
    }
    rows
}

/// What the body sees at position `i` along the axis `plan.along`; only what its steps read is loaded.
#[cube]
pub(crate) fn look<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    c: &Cursor,
    i: usize,
    #[comptime] along: usize,
    #[comptime] body: Body,
    #[comptime] plan: Key<Plan>,
) -> Inputs<N> {
    let mut x = Inputs::<N> {
        float: Sequence::new(),
        int: Sequence::new(),
        index: Sequence::new(),
        folded_float: Vector::new(0.0f32),
        folded_int: Vector::new(0i32),
    };
    #[unroll]
    for r in 0..comptime![plan.reads.len()] {
        let kind = comptime![read_kind(&body, r)];
        let at = *c.reads.index(r);
        let ids = *c.ids.index(r);
        if comptime![kind == Some(Kind::Float)] {
            x.float.push(element::<f32, N>(meta, operands, at, ids, i, r, along, plan.clone()));
            x.int.push(Vector::new(0i32));
        } else if comptime![kind == Some(Kind::Int)] {
            x.float.push(Vector::new(0.0f32));
            x.int.push(element::<i32, N>(meta, operands, at, ids, i, r, along, plan.clone()));
        } else {
            x.float.push(Vector::new(0.0f32));
            x.int.push(Vector::new(0i32));
        }
    }
    #[unroll]
    for a in 0..comptime![plan.rank] {
        if comptime![!plan.indexed[a]] {
            x.index.push(Vector::new(0i32));
        } else if comptime![a == along] {
            x.index.push(Vector::new(i as i32) + lanes::<N>());
        } else {
            x.index.push(Vector::new(*c.index.index(a) as i32));
        }
    }
    x
}

/// 0, 1, 2, …
#[cube]
pub(crate) fn lanes<N: Size>() -> Vector<i32, N> {
    let mut out = Vector::<i32, N>::new(0i32);
    #[unroll]
    for l in 1..N::value() {
        out.insert(l, comptime![l as i32].runtime());
    }
    out
}

fn read_kind(body: &Body, r: usize) -> Option<Kind> {
    body.steps.iter().find_map(|s| match s {
        Step::Read { read, kind } if *read == r => Some(*kind),
        _ => None,
    })
}

/// Elements of read `r` from position `i` on; 0 where an id points outside.
#[cube]
#[allow(clippy::too_many_arguments)]
fn element<T: Numeric, N: Size>(
    meta: &[u32],
    operands: &Buffers,
    from: usize,
    ids: usize,
    i: usize,
    #[comptime] r: usize,
    #[comptime] along: usize,
    #[comptime] plan: Key<Plan>,
) -> Vector<T, N> {
    let view = comptime![plan.reads[r].view.clone()];
    let lane = comptime![view.lanes[along]];
    let slot = comptime![view.slot];
    let step = meta[comptime![view.words + 1 + along]] as usize;
    let mut at = from;
    if comptime![lane != Lane::Zero] {
        at += i * step;
    }
    let mut out = Vector::<T, N>::empty();
    if comptime![plan.reads[r].at.is_none()] {
        out = read::<T, N>(operands, at, step, slot, lane);
    } else {
        let id_view = comptime![plan.reads[r].at.clone().unwrap_or_else(|| plan.reads[r].view.clone())];
        let id_lane = comptime![id_view.lanes[along]];
        let id_slot = comptime![id_view.slot];
        let id_step = meta[comptime![id_view.words + 1 + along]] as usize;
        let rows = meta[comptime![id_view.words + 1 + plan.rank]] as i32;
        let row = meta[comptime![id_view.words + 2 + plan.rank]] as usize;
        if comptime![id_lane == Lane::Zero] {
            let id = operands.i32s.index(id_slot.index)[ids];
            let inside = id >= 0i32 && id < rows;
            let safe = select(inside, id, 0i32);
            let found = read::<T, N>(operands, at + safe as usize * row, step, slot, lane);
            out = select_many(Vector::new(inside), found, Vector::new(T::from_int(0)));
        } else {
            #[unroll]
            for l in 0..N::value() {
                let id = operands.i32s.index(id_slot.index)[ids + (i + l) * id_step];
                let inside = id >= 0i32 && id < rows;
                let safe = select(inside, id, 0i32);
                let mut place = at + safe as usize * row;
                if comptime![lane != Lane::Zero] {
                    place += l * step;
                }
                let found = read::<T, Const<1>>(operands, place, step, slot, Lane::Zero).extract(0usize);
                out.insert(l, select(inside, found, T::from_int(0)));
            }
        }
    }
    out
}

/// Writes the results of a body at position `i` along the axis `along`.
#[cube]
pub(crate) fn deliver<N: Size>(
    meta: &[u32],
    results: &mut Buffers,
    c: &Cursor,
    i: usize,
    v: &Values<N>,
    #[comptime] along: usize,
    #[comptime] body: Body,
    #[comptime] plan: Key<Plan>,
) {
    #[unroll]
    for w in 0..comptime![plan.writes.len()] {
        let view = comptime![plan.writes[w].view.clone()];
        let step = meta[comptime![view.words + 1 + along]] as usize;
        let at = *c.writes.index(w) + i * step;
        let result = comptime![body.results[w]];
        let slot = comptime![view.slot];
        let lane = comptime![view.lanes[along]];
        if comptime![slot.storage == crate::bind::Storage::I32] {
            write_int::<N>(results, at, step, *v.int.index(result), slot, lane);
        } else {
            write_float::<N>(results, at, step, *v.float.index(result), slot, lane);
        }
    }
}
