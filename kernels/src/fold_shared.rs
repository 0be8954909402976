//! Long folds on GPUs: a cube a result, its units side by side along the fold, meeting in shared memory.
//!
//! Implements  any nest with a fold: sums and largest of rows, log-sum-exps, places of the largest
//! Schedule    `units` a cube, `lanes` neighbours a unit
//! Needs       units that share memory; a fold along memory, as long as the cube is wide
//! Cost        each operand read once a point, by neighbours: bandwidth-bound
//! Source      Harris 2007, Optimizing parallel reduction in CUDA

use cubecl::prelude::*;
use omchat_codegen::{Family, Fold, Implements, Kernel, Kind, Nest, Refusal, Schedule, Target, Work};

use crate::bind::Buffers;
use crate::body::evaluate;
use crate::fold_plain::{Held, body_kind, comptime_lanes, finish, meet, nothing, take};
use crate::grid::{address, cubes, looped};
use crate::key::Key;
use crate::loops::{ITEMS, Loops, PARTS, Plan};
use crate::map_plain::{fits, nest_of};
use crate::nest::{Cursor, depth, lanes, look, origin, seek};
use crate::prepared::{Prepared, runner, unfit};
use crate::{Launch, LaunchError};

/// Folds by cubes.
pub struct FoldShared;

impl Kernel for FoldShared {
    fn name(&self) -> &'static str {
        "fold.shared"
    }

    fn implements(&self) -> Implements {
        Implements::Nest
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let nest = nest_of(work)?;
        if nest.fold.is_none() {
            return Err(Refusal("the nest does not fold".into()));
        }
        if target.family == Family::Cpu {
            return Err(Refusal("needs units that share memory; a cube of the CPU is a core".into()));
        }
        fits(nest, target)?;
        let loops = Loops::of(nest);
        let (kept, folded) = (loops.inner(), axis(&loops));
        let (width, units) = (loops.size(folded), target.units);
        if width < units as usize {
            return Err(Refusal(format!("a fold must give {units} units an element each, is {width} long")));
        }
        if loops.cost_along(folded, 4) > loops.cost_along(kept, 4) {
            return Err(Refusal("neighbours in memory are neighbouring results, not parts of one".into()));
        }
        let with = |lanes: u32| Schedule::new(&[("bits", 32), ("units", units), ("lanes", lanes)]);
        // Four loads in flight a unit where the fold is long enough; all units at work where it is not.
        Ok(if width >= 4 * units as usize { vec![with(4), with(1)] } else { vec![with(1)] })
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok(nest) = nest_of(work) else { return usize::MAX };
        let loops = Loops::of(nest);
        let width = loops.size(axis(&loops)).max(1);
        let each = (schedule.get("units") * schedule.get("lanes")) as usize;
        looped(nest.depth() / width, looped(width.div_ceil(each), 0) + looped(1, 0))
    }
}

/// The axis that the units of a cube lie along.
pub(crate) fn axis(loops: &Loops) -> usize {
    let Nest { kept, folded, .. } = &loops.nest;
    kept.len() + folded.len() - 1
}

impl Launch for FoldShared {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let nest = nest_of(work).map_err(unfit(self.name()))?;
        let loops = Loops::of(nest);
        let width = schedule.get("lanes") as usize;
        let (plan, words, ins, outs) = loops.plan(axis(&loops), width, Some(1));
        let (units, bits) = (schedule.get("units"), address(schedule));
        let (grid, _) = cubes(words[plan.rank + ITEMS], &Schedule::new(&[("units", 1), ("bits", 32)]));
        Ok(Prepared::new(
            words,
            ins,
            outs,
            grid,
            units,
            runner!(|b| fold_shared, bits, width, b.meta, b.operands, b.results, plan.clone(), units as usize),
        ))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn fold_shared<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    #[comptime] plan: Key<Plan>,
    #[comptime] units: usize,
) {
    let rank = comptime![plan.rank];
    let items = meta[comptime![rank + ITEMS]];
    // A cube past the end folds the last result again and writes nothing: all units of a cube meet.
    let item = min(CUBE_POS as u32, items - 1);
    let parts = meta[comptime![rank + PARTS]];
    let start = origin(meta, operands, plan.clone());
    let c = seek(meta, &start, item / parts, 0usize, comptime![plan.kept - 1], plan.clone());
    let i = item % parts;
    let held = share::<N>(meta, operands, &c, i, 0u32.runtime(), 1usize, plan.clone(), units);
    let all = together(held, plan.clone(), units);
    if UNIT_POS == 0 && (CUBE_POS as u32) < items {
        finish::<Const<1>>(meta, operands, results, &c, i as usize, &all, plan.clone());
    }
}

/// What a unit folds: every `units`-th vector of its part of each row.
#[cube]
pub(crate) fn share<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    c: &Cursor,
    i: u32,
    part: u32,
    #[comptime] parts: usize,
    #[comptime] plan: Key<Plan>,
    #[comptime] units: usize,
) -> Held<Const<1>> {
    let mut held = nothing::<N>(plan.clone());
    let mut rest = nothing::<Const<1>>(plan.clone());
    let last = comptime![plan.rank - 1];
    let width = meta[last];
    let vectors = width / comptime_lanes::<N>();
    let point = seek(meta, c, i, comptime![plan.kept - 1], plan.kept, plan.clone());
    for row in 0..depth(meta, plan.clone()) {
        let outer = seek(meta, &point, row, plan.kept, last, plan.clone());
        let mut j = UNIT_POS;
        let mut end = vectors;
        if comptime![parts > 1] {
            let each = vectors.div_ceil(comptime![parts as u32]);
            j += part * each;
            end = min((part + 1) * each, vectors);
        }
        while j < end {
            element::<N>(meta, operands, &outer, &mut held, row * width, j * comptime_lanes::<N>(), plan.clone());
            j += comptime![units as u32];
        }
        if comptime![plan.tail] {
            let mut f = vectors * comptime_lanes::<N>() + UNIT_POS;
            if comptime![parts > 1] {
                // What is no whole vector is the last part's.
                f = select(part == comptime![parts as u32 - 1], f, width);
            }
            while f < width {
                element::<Const<1>>(meta, operands, &outer, &mut rest, row * width, f, plan.clone());
                f += comptime![units as u32];
            }
        }
    }
    meet::<N>(&held, &mut rest, plan.clone());
    rest
}

/// Folds in the neighbours from place `f` of a row on.
#[cube]
fn element<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    outer: &Cursor,
    held: &mut Held<N>,
    first: u32,
    f: u32,
    #[comptime] plan: Key<Plan>,
) {
    let last = comptime![plan.rank - 1];
    let x = look::<N>(meta, operands, outer, f as usize, last, comptime![plan.body.clone()], plan.clone());
    let v = evaluate::<N>(&x, comptime![plan.body.clone()]);
    let result = comptime![plan.body.results[0]];
    let place = Vector::new((first + f) as i32) + lanes::<N>();
    take::<N>(held, *v.float.index(result), *v.int.index(result), place, plan.clone());
}

/// What all units of a cube hold together, in unit 0: halves meet halves in shared memory.
#[cube]
pub(crate) fn together(mine: Held<Const<1>>, #[comptime] plan: Key<Plan>, #[comptime] units: usize) -> Held<Const<1>> {
    let is_float = comptime![body_kind(&plan) == Kind::Float];
    let places = comptime![plan.fold == Some(Fold::ArgMax)];
    // One piece, numbers as bits and places behind them: CubeCL names several in any order, and texts would differ.
    let mut shared = Shared::<[u32]>::new_slice(comptime![if places { 2 * units } else { units }]);
    let mut held = mine;
    let at = UNIT_POS as usize;
    put(&mut shared, at, &held, is_float, places, units);
    sync_cube();
    #[unroll]
    for step in 0..comptime![units.ilog2() as usize] {
        let span = comptime![units >> (step + 1)];
        if at < span {
            let bits = shared[at + span];
            let float = if is_float { f32::reinterpret(bits) } else { 0.0f32.runtime() };
            let int = if is_float { 0i32.runtime() } else { i32::reinterpret(bits) };
            let place = if places { i32::reinterpret(shared[at + comptime![span + units]]) } else { 0i32.runtime() };
            take::<Const<1>>(&mut held, Vector::new(float), Vector::new(int), Vector::new(place), plan.clone());
            put(&mut shared, at, &held, is_float, places, units);
        }
        sync_cube();
    }
    held
}

/// Leaves what a unit holds where others find it.
#[cube]
fn put(
    shared: &mut Shared<[u32]>,
    at: usize,
    held: &Held<Const<1>>,
    #[comptime] is_float: bool,
    #[comptime] places: bool,
    #[comptime] units: usize,
) {
    if is_float {
        shared[at] = u32::reinterpret(held.float.extract(0usize));
    } else {
        shared[at] = u32::reinterpret(held.int.extract(0usize));
    }
    if places {
        shared[at + units] = u32::reinterpret(held.place.extract(0usize));
    }
}
