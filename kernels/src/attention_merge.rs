//! Sums over different keys merged: of the groups of units of a cube, and of the parts of a row.
//!
//! A part of a row leaves its values, normalised, and its lse in scratch memory. A second launch weighs parts by exp(lse),
//! and what is carried with them.

use cubecl::prelude::*;
use omchat_codegen::{Family, Schedule, Target};

use crate::attention::Places;
use crate::attention_carry::{Carry, carried_top, carried_value, carried_weight};
use crate::attention_keys::{Plan, State, grown};
use crate::attention_panels::MASKED;
use crate::bind::{Buffers, Slot};
use crate::vector::{Lane, write_float};

/// Columns that a unit has of a row.
pub(crate) const COLUMNS: usize = 8;
/// Most parts of a row.
pub(crate) const PARTS: usize = 256;
/// Parts whose values a unit loads at once.
const DEEP: usize = 8;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Merge {
    /// The scratch memory.
    pub(crate) from: Slot,
    pub(crate) out: Slot,
    pub(crate) lse: Slot,
    pub(crate) carry: Option<Carry>,
    pub(crate) d: usize,
    /// Queries that a cube of the parts took.
    pub(crate) rows: usize,
    /// Units that shared a row's columns there.
    pub(crate) lanes: usize,
    pub(crate) units: usize,
    /// Units that run in step; 1 where none do.
    pub(crate) plane: usize,
}

impl Merge {
    /// Floats of a row's values.
    fn width(&self) -> usize {
        self.lanes * COLUMNS
    }

    /// Units side by side along a row.
    fn across(&self) -> usize {
        self.width().min(self.units)
    }

    /// Columns that a unit sums.
    fn columns(&self) -> usize {
        self.width() / self.across()
    }

    /// Groups of units that sum different parts.
    fn groups(&self) -> usize {
        self.units / self.across()
    }
}

/// Units of a merge's cube.
pub(crate) fn units(target: &Target) -> u32 {
    if target.family == Family::Cuda { 1024 } else { 64 }
}

/// The units of a merge as a schedule says.
pub(crate) fn units_of(schedule: &Schedule) -> u32 {
    schedule.get("merge")
}

/// What a row's sums and what it goes on from are multiplied with, and its lse.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Whole {
    pub(crate) share: f32,
    pub(crate) before: f32,
    pub(crate) lse: f32,
}

/// A row whose weights e^(score - top) sum to `weight`, 0 where it saw nothing, onto what is carried.
#[cube]
pub(crate) fn whole(
    operands: &Buffers,
    query: usize,
    top: f32,
    weight: f32,
    #[comptime] carry: Option<Carry>,
) -> Whole {
    let old = carried_top(operands, query, carry);
    let highest = max(top, old);
    let now = select(weight == 0.0f32, 0.0f32, (top - highest).exp());
    let before = carried_weight(old, carry) * (old - highest).exp();
    let sum = weight * now + before;
    let seen = sum != 0.0f32;
    let safe = select(seen, sum, 1.0f32);
    Whole { share: now / safe, before: before / safe, lse: select(seen, highest + safe.ln(), MASKED) }
}

/// The column of D at a place of a row: a unit's columns are neighbours, its places are `lanes` apart, so that
/// neighbouring units meet different banks.
#[cube]
pub(crate) fn column(place: usize, #[comptime] lanes: usize) -> usize {
    place % lanes * COLUMNS + place / lanes
}

/// Merges the parts of a query: a cube each.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
pub(crate) fn merge_parts(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Merge) {
    let mut weights = Shared::<[f32]>::new_slice(PARTS);
    let mut panel = Shared::<[f32]>::new_slice(comptime![plan.groups() * plan.width()]);
    let query = CUBE_POS;
    let unit = UNIT_POS as usize;
    let (parts, blocks) = (meta[1] as usize, meta[2] as usize);
    let (times, groups) = (meta[3] as usize, meta[4] as usize);
    if query < meta[7] as usize {
        let scratch = operands.f32s.index(plan.from.index);
        let (head, rest) = (query / (times * groups), query % (times * groups));
        let row = rest % times * groups + rest / times;
        let first = (head * blocks + row / plan.rows) * parts * plan.rows + row % plan.rows;
        let lses = meta[8] as usize;
        let (group, near) = (unit / plan.across(), unit % plan.across());
        // Values are on their way before their weights are known.
        let mut values = Array::<f32>::new(comptime![plan.columns() * DEEP]);
        values_of(scratch, &mut values, first, group, near, parts, plan);
        let mut p = unit;
        while p < parts {
            weights[p] = scratch[lses + first + p * plan.rows];
            p += plan.units;
        }
        sync_cube();
        let top = over_parts(&weights, parts, true, plan);
        sync_cube();
        let mut p = unit;
        while p < parts {
            let lse = weights[p];
            weights[p] = select(lse < -1e29f32, 0.0f32, (lse - top).exp());
            p += plan.units;
        }
        sync_cube();
        let weight = over_parts(&weights, parts, false, plan);
        let mut sums = Array::<f32>::new(plan.columns());
        #[unroll]
        for c in 0..plan.columns() {
            sums[c] = 0.0f32;
        }
        let mut p = group;
        while p < parts {
            #[unroll]
            for u in 0..DEEP {
                let other = p + comptime![u * plan.groups()];
                let share = select(other < parts, weights[min(other, parts - 1)], 0.0f32);
                #[unroll]
                for c in 0..plan.columns() {
                    sums[c] += share * values[comptime![c * DEEP + u]];
                }
            }
            p += comptime![DEEP * plan.groups()];
            if p < parts {
                values_of(scratch, &mut values, first, p, near, parts, plan);
            }
        }
        #[unroll]
        for c in 0..plan.columns() {
            panel[group * comptime![plan.width()] + near + comptime![c * plan.across()]] = sums[c];
        }
        sync_cube();
        let whole = whole(operands, query, top, weight, plan.carry);
        let mut place = unit;
        while place < comptime![plan.width()] {
            let d = column(place, plan.lanes);
            if d < plan.d {
                let mut sum = 0.0f32.runtime();
                #[unroll]
                for g in 0..comptime![plan.groups()] {
                    sum += panel[comptime![g * plan.width()] + place];
                }
                leave(operands, results, query * plan.d + d, sum * whole.share, whole.before, plan.out, plan.carry);
            }
            place += plan.units;
        }
        if unit == 0 {
            results.f32s.index_mut(plan.lse.index)[query] = whole.lse;
        }
    }
}

/// Loads a unit's columns of the next parts of its group, from part `p` on. Parts past the end repeat the last.
#[cube]
fn values_of(
    scratch: &[f32],
    values: &mut Array<f32>,
    first: usize,
    p: usize,
    near: usize,
    parts: usize,
    #[comptime] plan: Merge,
) {
    #[unroll]
    for u in 0..DEEP {
        let part = min(p + comptime![u * plan.groups()], parts - 1);
        let at = (first + part * plan.rows) * comptime![plan.width()] + near;
        #[unroll]
        for c in 0..plan.columns() {
            values[comptime![c * DEEP + u]] = scratch[at + comptime![c * plan.across()]];
        }
    }
}

/// The highest of the parts' numbers, or their sum, in every unit: by planes where there are some.
#[cube]
fn over_parts(of: &Shared<[f32]>, parts: usize, #[comptime] highest: bool, #[comptime] plan: Merge) -> f32 {
    let mut all = comptime![if highest { MASKED } else { 0.0 }].runtime();
    let mut p = UNIT_POS as usize % plan.plane;
    while p < parts {
        if comptime![highest] {
            all = max(all, of[p]);
        } else {
            all += of[p];
        }
        p += plan.plane;
    }
    if comptime![plan.plane > 1 && highest] {
        all = plane_max(all);
    } else if comptime![plan.plane > 1] {
        all = plane_sum(all);
    }
    all
}

/// Writes an element of the output, onto what is carried.
#[cube]
pub(crate) fn leave(
    operands: &Buffers,
    results: &mut Buffers,
    at: usize,
    value: f32,
    before: f32,
    #[comptime] out: Slot,
    #[comptime] carry: Option<Carry>,
) {
    let value = Vector::new(value + carried_value(operands, at, before, carry));
    write_float::<Const<1>>(results, at, 1usize, value, out, Lane::One);
}

impl Merge {
    /// The merge of parts into those places.
    pub(crate) fn new(
        from: Slot,
        p: &Places,
        carry: Option<Carry>,
        [d, rows, lanes]: [usize; 3],
        schedule: &Schedule,
    ) -> Merge {
        Merge {
            from,
            out: p.out,
            lse: p.lse,
            carry,
            d,
            rows,
            lanes,
            units: units_of(schedule) as usize,
            plane: schedule.get("plane") as usize,
        }
    }
}

/// Brings the groups' softmax to one highest score.
#[cube]
pub(crate) fn meet(tops: &mut Shared<[f32]>, shares: &mut Shared<[f32]>, s: &mut State, #[comptime] plan: Plan) {
    let (group, lane) = (UNIT_POS as usize / plan.lanes, UNIT_POS as usize % plan.lanes);
    if lane == 0 {
        #[unroll]
        for r in 0..plan.rows {
            tops[group * plan.rows + r] = s.top[r];
        }
    }
    sync_cube();
    #[unroll]
    for r in 0..plan.rows {
        let mut top = MASKED.runtime();
        for g in 0..plan.groups() {
            top = max(top, tops[g * plan.rows + r]);
        }
        let fall = grown(s.top[r] - top, plan);
        s.top[r] = top;
        s.weight[r] *= fall;
        #[unroll]
        for c in 0..COLUMNS {
            s.sums[comptime![r * COLUMNS + c]] *= fall;
        }
        if lane == 0 {
            shares[group * plan.rows + r] = s.weight[r];
        }
    }
}

/// Sums over the groups of units: the results, or what a part leaves for the merge.
#[cube]
pub(crate) fn finish(
    operands: &Buffers,
    results: &mut Buffers,
    panel: &mut Shared<[f32]>,
    shares: &Shared<[f32]>,
    s: &State,
    from: &Array<u32>,
    item: usize,
    count: usize,
    lses: usize,
    #[comptime] plan: Plan,
) {
    let (group, lane) = (UNIT_POS as usize / plan.lanes, UNIT_POS as usize % plan.lanes);
    let (turn, width) = comptime![(plan.turn(), plan.width())];
    #[unroll]
    for t in 0..comptime![plan.rows.div_ceil(turn)] {
        sync_cube();
        #[unroll]
        for i in 0..comptime![turn.min(plan.rows - t * turn)] {
            #[unroll]
            for c in 0..COLUMNS {
                let sum = s.sums[comptime![(t * turn + i) * COLUMNS + c]];
                panel[(group * turn + i) * width + comptime![c * plan.lanes] + lane] = sum;
            }
        }
        sync_cube();
        #[unroll]
        for i in 0..comptime![turn.min(plan.rows - t * turn)] {
            if comptime![t * turn + i].runtime() < count {
                row(operands, results, panel, shares, s, from, item, i, comptime![t * turn + i], lses, plan);
            }
        }
    }
}

/// Row `r` of the cube's, whose sums are row `i` of the panel's.
#[cube]
#[allow(clippy::single_match_else)]
fn row(
    operands: &Buffers,
    results: &mut Buffers,
    panel: &mut Shared<[f32]>,
    shares: &Shared<[f32]>,
    s: &State,
    from: &Array<u32>,
    item: usize,
    #[comptime] i: usize,
    #[comptime] r: usize,
    lses: usize,
    #[comptime] plan: Plan,
) {
    let mut weight = 0.0f32.runtime();
    #[unroll]
    for g in 0..plan.groups() {
        weight += shares[comptime![g * plan.rows + r]];
    }
    let mut top = s.top[r];
    if comptime![plan.plane > 1] {
        top *= comptime![std::f32::consts::LN_2].runtime();
    }
    let query = from[r] as usize;
    let whole = whole(operands, query, top, weight, plan.carry);
    let mut place = UNIT_POS as usize;
    while place < plan.width() {
        let d = column(place, plan.lanes);
        if d < plan.d {
            let mut sum = 0.0f32.runtime();
            #[unroll]
            for g in 0..plan.groups() {
                sum += panel[comptime![(g * plan.turn() + i) * plan.width()] + place];
            }
            let value = sum * whole.share;
            match comptime!(plan.to) {
                Some(to) => {
                    let at = (item * plan.rows + r) * plan.width() + place;
                    results.f32s.index_mut(to.index)[at] = value;
                }
                None => {
                    let at = query * plan.d + d;
                    leave(operands, results, at, value, whole.before, plan.places.out, plan.carry);
                }
            }
        }
        place += plan.units;
    }
    if UNIT_POS == 0 {
        match comptime!(plan.to) {
            Some(to) => {
                results.f32s.index_mut(to.index)[lses + item * plan.rows + r] = whole.lse;
            }
            None => {
                results.f32s.index_mut(plan.places.lse.index)[query] = whole.lse;
            }
        }
    }
}
