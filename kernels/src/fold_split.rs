//! Long folds to few results on GPUs: cubes share a fold, and a second launch folds what they hold.
//!
//! Implements  a nest with a fold of floats: sums, largest, places of the largest
//! Schedule    `split` cubes a result, `units` each, `lanes` neighbours a unit; then a cube of `split` units a result
//! Needs       units that share memory; at most half as many results as cores; a row of at least 16 vectors a unit
//! Cost        each operand read once a point, by all cores: bandwidth-bound; two launches
//! Source      Harris 2007, Optimizing parallel reduction in CUDA; parts meet in the same order at every run

use cubecl::prelude::*;
use omchat_codegen::{Family, Fold, Implements, Kernel, Kind, Nest, Refusal, Schedule, Target, Work};

use crate::bind::{Buffers, Slot, Slots};
use crate::fold_plain::{Held, finish};
use crate::fold_shared::{FoldShared, axis, share, together};
use crate::grid::{address, looped, one_each};
use crate::key::Key;
use crate::loops::{ITEMS, Loops, PARTS, Plan};
use crate::map_plain::{fits, nest_of};
use crate::nest::{Cursor, origin, seek};
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::{Launch, LaunchError};

/// Cubes of a core that keep its memory busy.
pub(crate) const CUBES: usize = 8;
/// Vectors of a unit that take a cube alone as long as another launch.
const SHORT: usize = 16;
/// The fewest vectors of a unit that are worth a part.
const LEAST: usize = 4;
/// Cores of a card that does not say.
const CORES: usize = 16;
/// Places that an f32 can hold.
const PLACES: usize = 1 << 24;

/// Folds by several cubes a result.
pub struct FoldSplit;

/// How a fold is cut.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cut {
    pub(crate) plan: Key<Plan>,
    /// What the parts hold: a number each, and behind all of them the places of the largest.
    pub(crate) scratch: Slot,
    pub(crate) parts: usize,
    pub(crate) units: usize,
}

impl Cut {
    fn places(&self) -> bool {
        self.plan.fold == Some(Fold::ArgMax)
    }
}

/// Numbers that a part leaves for each result.
fn each(nest: &Nest) -> usize {
    if nest.fold == Some(Fold::ArgMax) { 2 } else { 1 }
}

/// Refuses devices whose cubes share the same cores.
pub(crate) fn own_cores(target: &Target) -> Result<(), Refusal> {
    if target.family == Family::Cpu || target.software {
        return Err(Refusal("needs cubes that have cores of their own".into()));
    }
    Ok(())
}

/// Refuses what is no fold, folds whose parts cannot be left in scratch memory, and devices on which parts do not pay.
pub(crate) fn cuttable(nest: &Nest, target: &Target) -> Result<(), Refusal> {
    if nest.fold.is_none() {
        return Err(Refusal("the nest does not fold".into()));
    }
    own_cores(target)?;
    fits(nest, target)?;
    let kind = nest.body.results.first().map_or(Kind::Float, |&r| nest.body.kind(r));
    if kind != Kind::Float {
        return Err(Refusal("parts are left as floats; this fold is of integers".into()));
    }
    if nest.fold == Some(Fold::ArgMax) && nest.depth() > PLACES {
        return Err(Refusal(format!("places are left as floats: at most {PLACES}, not {}", nest.depth())));
    }
    Ok(())
}

/// Cores of a GPU.
pub(crate) fn cores(target: &Target) -> usize {
    if target.family == Family::Cuda { target.cores as usize } else { CORES }
}

/// Floats that the parts of a fold leave.
pub(crate) fn left_by(work: &Work, schedule: &Schedule) -> usize {
    nest_of(work).map_or(0, |n| n.points() * schedule.get("split") as usize * each(n))
}

impl Kernel for FoldSplit {
    fn name(&self) -> &'static str {
        "fold.split"
    }

    fn implements(&self) -> Implements {
        Implements::Nest
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let nest = nest_of(work)?;
        cuttable(nest, target)?;
        let whole = FoldShared.schedules(work, target)?;
        let (loops, cores) = (Loops::of(nest), cores(target));
        let (results, width) = (nest.points().max(1), loops.size(axis(&loops)));
        if 2 * results > cores {
            return Err(Refusal(format!("{results} results keep {cores} cores busy by a cube each")));
        }
        // As the widest of a cube alone, which comes first.
        let whole = whole.into_iter().next().unwrap_or_default();
        let turns = width / (whole.get("units") * whole.get("lanes")) as usize;
        if turns < SHORT {
            return Err(Refusal(format!("a fold of {width} takes a cube no longer than a second launch")));
        }
        // A unit each of the cube that folds them.
        let parts = (CUBES * cores / results).min(turns / LEAST).min(target.max_units as usize);
        let mut words = whole.0;
        words.insert("split", 1 << parts.ilog2());
        Ok(vec![Schedule(words)])
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok(nest) = nest_of(work) else { return usize::MAX };
        let loops = Loops::of(nest);
        let width = loops.size(axis(&loops)).max(1);
        let all = (schedule.get("units") * schedule.get("lanes") * schedule.get("split")) as usize;
        looped(nest.depth() / width, looped(width.div_ceil(all), 0) + looped(1, 0))
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        left_by(work, schedule)
    }
}

impl Launch for FoldSplit {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let nest = nest_of(work).map_err(unfit(self.name()))?;
        let loops = Loops::of(nest);
        let lanes = schedule.get("lanes") as usize;
        let (plan, words, ins, outs) = loops.plan(axis(&loops), lanes, Some(1));
        let (units, parts, bits) = (schedule.get("units"), schedule.get("split"), address(schedule));
        let items = words[plan.rank + ITEMS];
        let (mut left, mut taken) = (Slots::default(), ins.clone());
        let (to, from) = (left.scratch(), taken.scratch());
        let cut = |scratch| Key::new(Cut { plan: plan.clone(), scratch, parts: parts as usize, units: units as usize });
        let (first, then) = (cut(to), cut(from));
        let run: Run = runner!(|b| fold_parts, bits, lanes, b.meta, b.operands, b.results, first.clone());
        let merge: Run = runner!(|b| fold_merge, bits, b.meta, b.operands, b.results, then.clone());
        let (cubes, _) = one_each(items * parts, units);
        let grid = one_each(items, parts);
        Ok(Prepared::new(words, ins, left, cubes, units, run).then(
            self.scratch(work, schedule),
            taken,
            outs,
            grid,
            merge,
        ))
    }
}

/// Where result `item` stands: its views at the innermost kept axis, and its place along that.
#[cube]
pub(crate) fn stand(meta: &[u32], operands: &Buffers, item: u32, #[comptime] plan: Key<Plan>) -> (Cursor, u32) {
    let parts = meta[comptime![plan.rank + PARTS]];
    let start = origin(meta, operands, plan.clone());
    let inner = comptime![plan.kept - 1];
    (seek(meta, &start, item / parts, 0usize, inner, plan), item % parts)
}

/// Folds a part a cube, and leaves what it holds.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn fold_parts<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] cut: Key<Cut>) {
    let items = meta[comptime![cut.plan.rank + ITEMS]];
    let count = items * comptime![cut.parts as u32];
    // A cube past the end folds the last part again and writes nothing: all units of a cube meet.
    let at = min(CUBE_POS as u32, count - 1);
    let (c, i) = stand(meta, operands, at / comptime![cut.parts as u32], comptime![cut.plan.clone()]);
    let part = at % comptime![cut.parts as u32];
    let held = share::<N>(meta, operands, &c, i, part, cut.parts, comptime![cut.plan.clone()], cut.units);
    let all = together(held, comptime![cut.plan.clone()], cut.units);
    if UNIT_POS == 0 && (CUBE_POS as u32) < count {
        leave(results, at, count, &all, cut);
    }
}

/// Folds the parts of a result a cube, a part a unit, and runs the epilogue.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn fold_merge(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] cut: Key<Cut>) {
    let items = meta[comptime![cut.plan.rank + ITEMS]];
    let item = min(CUBE_POS as u32, items - 1);
    let at = item * comptime![cut.parts as u32] + UNIT_POS;
    let held = left::<Const<1>>(operands, at, items * comptime![cut.parts as u32], cut.clone());
    let all = together(held, comptime![cut.plan.clone()], cut.parts);
    let (c, i) = stand(meta, operands, item, comptime![cut.plan.clone()]);
    if UNIT_POS == 0 && (CUBE_POS as u32) < items {
        finish::<Const<1>>(meta, operands, results, &c, i as usize, &all, comptime![cut.plan.clone()]);
    }
}

/// Leaves what part `at` of `count` holds.
#[cube]
pub(crate) fn leave(results: &mut Buffers, at: u32, count: u32, held: &Held<Const<1>>, #[comptime] cut: Key<Cut>) {
    let scratch = results.f32s.index_mut(cut.scratch.index);
    scratch[at as usize] = held.float.extract(0usize);
    if comptime![cut.places()] {
        // Where nothing was found, a place before all.
        let place = held.place.extract(0usize);
        let none = place == comptime![i32::MAX].runtime();
        scratch[(count + at) as usize] = select(none, -1.0f32, f32::cast_from(place));
    }
}

/// What part `at` of `count` left.
#[cube]
pub(crate) fn left<N: Size>(operands: &Buffers, at: u32, count: u32, #[comptime] cut: Key<Cut>) -> Held<N> {
    let scratch = operands.f32s.index(cut.scratch.index);
    let mut place = 0i32.runtime();
    if comptime![cut.places()] {
        let found = scratch[(count + at) as usize];
        place = select(found < 0.0f32, comptime![i32::MAX].runtime(), i32::cast_from(found));
    }
    Held::<N> { float: Vector::new(scratch[at as usize]), int: Vector::new(0i32), place: Vector::new(place) }
}
