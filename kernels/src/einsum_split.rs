//! Einsums whose folded axes are cut: each cube sums a part of k, and a second launch adds the parts.
//!
//! Where the result has fewer tiles than the device has cores, k is what is left to share. A part leaves its sums in
//! scratch memory, in f32; the second launch adds the parts of an element in their order, the same at every run, and
//! runs the epilogue.

use cubecl::prelude::*;
use omchat_codegen::{Family, Schedule, Target, Work};

use crate::bind::{Buffers, Slot, Slots};
use crate::einsum::Roles;
use crate::einsum_tiles::{Laid, Spot, Tiles, end, plane};
use crate::grid::{address, one_each};
use crate::key::Key;
use crate::prepared::{Prepared, Run, runner};

/// Most parts.
const MOST: usize = 32;
/// The fewest tiles along k that are worth a part.
const LEAST: usize = 4;
/// Units of a cube that adds parts.
const UNITS: u32 = 128;
/// Elements that 32-bit indices reach.
const REACH: usize = 1 << 31;

/// Parts into which k is worth cutting for tiles of that size, none of them 1: so many that each core has a cube, then
/// twice as many.
pub(crate) fn cuts(roles: &Roles, [m, n, k]: [usize; 3], target: &Target) -> Vec<usize> {
    let nest = &roles.loops.nest;
    let outer = nest.depth() / roles.k().max(1);
    let (cubes, steps) = (roles.count(m, n).max(1), outer * roles.k().div_ceil(k));
    let cores = target.cores as usize;
    let most = (steps / LEAST).min(MOST).min(2 * cores / cubes).min(REACH / nest.points().max(1));
    let best = 1 << (cores / cubes).min(most).max(1).ilog2();
    let cuda = target.family == Family::Cuda;
    [best, 2 * best].into_iter().filter(|&parts| cuda && parts > 1 && parts <= most).collect()
}

/// The schedules of some tiles, and after them those tiles with k cut.
pub(crate) fn with_cuts(roles: &Roles, whole: Vec<Schedule>, target: &Target) -> Vec<Schedule> {
    let cut = |s: &Schedule| {
        let tile = ["m", "n", "k"].map(|word| s.get(word) as usize);
        let with = |parts: usize| {
            let mut words = s.0.clone();
            words.insert("split", parts as u32);
            Schedule(words)
        };
        cuts(roles, tile, target).into_iter().map(with).collect::<Vec<_>>()
    };
    let cut: Vec<Schedule> = whole.iter().flat_map(cut).collect();
    whole.into_iter().chain(cut).collect()
}

/// Parts that a schedule says.
pub(crate) fn parts(schedule: &Schedule) -> usize {
    schedule.get("split").max(1) as usize
}

/// Floats of scratch memory: the sums of every part.
pub(crate) fn scratch(work: &Work, schedule: &Schedule) -> usize {
    match (work, parts(schedule)) {
        (Work::Nest(nest), parts) if parts > 1 => nest.points().saturating_mul(parts),
        _ => 0,
    }
}

/// The launches of an einsum by tiles: `run` alone where it takes all of k, else followed by the one that adds the parts.
pub(crate) fn prepared(
    (t, words, ins, outs, (cubes, units)): Laid,
    work: &Work,
    schedule: &Schedule,
    run: Run,
) -> Prepared {
    if t.parts == 1 {
        return Prepared::new(words, ins, outs, cubes, units, run);
    }
    let (mut left, mut taken) = (Slots::default(), ins.clone());
    left.scratch();
    let merge = Merge { from: taken.scratch(), t };
    let (floats, bits) = (scratch(work, schedule), address(schedule));
    let row = words[merge.t.e.plan.kept - 1];
    let fours = floats / merge.t.parts / row.max(1) as usize * row.div_ceil(4) as usize;
    let grid = one_each((fours as u32).div_ceil(UNITS), UNITS);
    let m = Key::new(merge);
    let then: Run = runner!(|b| einsum_merge, bits, b.meta, b.operands, b.results, m.clone());
    Prepared::new(words, ins, left, cubes, units, run).then(floats, taken, outs, grid, then)
}

/// The steps along the folded axes that a cube takes, of so many: from, to.
#[cube]
pub(crate) fn steps_of(s: &Spot, steps: u32, #[comptime] t: Key<Tiles>) -> (u32, u32) {
    let mut from = 0u32.runtime();
    let mut to = steps;
    if comptime![t.parts > 1] {
        from = steps * s.part / comptime![t.parts as u32];
        to = steps * (s.part + 1) / comptime![t.parts as u32];
    }
    (from, to)
}

/// Leaves 4 sums of a part for the merge: those inside.
#[cube]
pub(crate) fn hold(
    meta: &[u32],
    results: &mut Buffers,
    to: usize,
    row: u32,
    column: usize,
    sums: Vector<f32, Const<4>>,
    #[comptime] t: Key<Tiles>,
) {
    let size = meta[comptime![t.e.plan.kept - 1]] as usize;
    let at = to + row as usize * size + column;
    let scratch = results.f32s.index_mut(0usize);
    if comptime![t.whole] {
        if column < size {
            scratch.as_vectorized_mut().with_vector_size_mut::<Const<4>>()[at / 4] = sums;
        }
    } else {
        #[unroll]
        for l in 0..4usize {
            if column + l < size {
                scratch[at + l] = sums.extract(l);
            }
        }
    }
}

/// What the second launch adds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Merge {
    /// The scratch memory.
    from: Slot,
    t: Key<Tiles>,
}

/// Adds the parts of 4 elements a unit, and runs the epilogue.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn einsum_merge(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] m: Key<Merge>) {
    let size = meta[comptime![m.t.e.plan.kept - 1]];
    let rows = meta[m.t.e.m];
    let mut points = 1u32.runtime();
    #[unroll]
    for a in 0..m.t.e.plan.kept {
        points *= meta[a];
    }
    let wide = size.div_ceil(4u32);
    let item = ABSOLUTE_POS as u32;
    if item < points / size * wide {
        let column = (item % wide * 4u32) as usize;
        let line = item / wide;
        let from = line as usize * size as usize + column;
        let scratch = operands.f32s.index(m.from.index);
        let mut sums = Vector::<f32, Const<4>>::new(0.0f32);
        #[unroll]
        for p in 0..m.t.parts {
            let at = from + p * points as usize;
            if comptime![m.t.whole] {
                sums += scratch.as_vectorized().with_vector_size::<Const<4>>()[at / 4];
            } else {
                #[unroll]
                for l in 0..4usize {
                    // Past the end the last again: nobody writes that sum.
                    let inside = min(column + l, size as usize - 1) - column;
                    sums.insert(l, sums.extract(l) + scratch[at + inside]);
                }
            }
        }
        let cursor = plane(meta, operands, line / rows, m.t.clone());
        end(meta, operands, results, &cursor, line % rows, column, sums, m.t.clone());
    }
}
