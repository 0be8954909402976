//! Long folds of columns on GPUs: cubes share the rows, a unit a column each, and a second launch folds what they hold.
//!
//! Implements  a nest with a fold of floats whose results are neighbours in memory: gradients of biases and of norms' weights
//! Schedule    `split` parts of the rows, `units` columns a cube; then a unit a column
//! Needs       a GPU; columns for at most half the cores by a cube each; at least 64 rows
//! Cost        each operand read once a point, by all cores: bandwidth-bound; two launches
//! Source      own; parts meet in the same order at every run

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::bind::{Buffers, Slots};
use crate::fold_plain::{column, finish, nothing, take};
use crate::fold_shared::axis;
use crate::fold_split::{CUBES, Cut, cores, cuttable, leave, left, left_by, stand};
use crate::grid::{address, looped, one_each};
use crate::key::Key;
use crate::loops::{ITEMS, Loops};
use crate::map_plain::nest_of;
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::{Launch, LaunchError};

/// Most parts: the second launch adds them one by one.
const MOST: usize = 64;
/// Rows that a unit alone takes as long for as another launch.
const SHORT: usize = 64;
/// The fewest rows that are worth a part.
const LEAST: usize = 16;

/// Folds columns by several cubes.
pub struct FoldColumns;

impl Kernel for FoldColumns {
    fn name(&self) -> &'static str {
        "fold.columns"
    }

    fn implements(&self) -> Implements {
        Implements::Nest
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let nest = nest_of(work)?;
        cuttable(nest, target)?;
        let loops = Loops::of(nest);
        if loops.cost_along(axis(&loops), 4) <= loops.cost_along(loops.inner(), 4) {
            return Err(Refusal("neighbours in memory are parts of one result, not neighbouring results".into()));
        }
        let (rows, cores) = (loops.size(axis(&loops)), cores(target));
        let cubes = nest.points().div_ceil(target.units as usize).max(1);
        if 2 * cubes > cores {
            return Err(Refusal(format!("{} results keep {cores} cores busy", nest.points())));
        }
        if rows < SHORT {
            return Err(Refusal(format!("a fold of {rows} takes a unit no longer than a second launch")));
        }
        let parts = (CUBES * cores / cubes).min(rows / LEAST).min(MOST) as u32;
        Ok(vec![Schedule::new(&[("bits", 32), ("units", target.units), ("lanes", 1), ("split", parts)])])
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok(nest) = nest_of(work) else { return usize::MAX };
        let loops = Loops::of(nest);
        let rows = loops.size(axis(&loops)).max(1);
        looped(nest.depth() / rows, looped(rows.div_ceil(schedule.get("split") as usize), 0))
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        left_by(work, schedule)
    }
}

impl Launch for FoldColumns {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let nest = nest_of(work).map_err(unfit(self.name()))?;
        let loops = Loops::of(nest);
        let (plan, words, ins, outs) = loops.plan(loops.inner(), 1, Some(1));
        let (units, parts, bits) = (schedule.get("units"), schedule.get("split"), address(schedule));
        let items = words[plan.rank + ITEMS];
        let (mut leaves, mut taken) = (Slots::default(), ins.clone());
        let (to, from) = (leaves.scratch(), taken.scratch());
        let cut = |scratch| Key::new(Cut { plan: plan.clone(), scratch, parts: parts as usize, units: units as usize });
        let (first, then) = (cut(to), cut(from));
        let run: Run = runner!(|b| columns, bits, b.meta, b.operands, b.results, first.clone());
        let merge: Run = runner!(|b| columns_merge, bits, b.meta, b.operands, b.results, then.clone());
        let (cubes, _) = one_each(items.div_ceil(units) * parts, units);
        let grid = one_each(items.div_ceil(units), units);
        let floats = left_by(work, schedule);
        Ok(Prepared::new(words, ins, leaves, cubes, units, run).then(floats, taken, outs, grid, merge))
    }
}

/// Folds a part of a column a unit, and leaves what it holds.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn columns(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] cut: Key<Cut>) {
    let items = meta[comptime![cut.plan.rank + ITEMS]];
    let blocks = items.div_ceil(CUBE_DIM);
    let part = CUBE_POS as u32 / blocks;
    let item = CUBE_POS as u32 % blocks * CUBE_DIM + UNIT_POS;
    if item < items && part < comptime![cut.parts as u32] {
        let (c, i) = stand(meta, operands, item, comptime![cut.plan.clone()]);
        let plan = comptime![cut.plan.clone()];
        let held = column::<Const<1>>(meta, operands, &c, i as usize, part, cut.parts, plan);
        leave(results, part * items + item, items * comptime![cut.parts as u32], &held, cut);
    }
}

/// Folds the parts of a column a unit, in their order, and runs the epilogue.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn columns_merge(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] cut: Key<Cut>) {
    let items = meta[comptime![cut.plan.rank + ITEMS]];
    let item = ABSOLUTE_POS as u32;
    if item < items {
        let mut all = nothing::<Const<1>>(comptime![cut.plan.clone()]);
        #[unroll]
        for part in 0..comptime![cut.parts as u32] {
            let count = items * comptime![cut.parts as u32];
            let held = left::<Const<1>>(operands, part * items + item, count, cut.clone());
            take::<Const<1>>(&mut all, held.float, held.int, held.place, comptime![cut.plan.clone()]);
        }
        let (c, i) = stand(meta, operands, item, comptime![cut.plan.clone()]);
        finish::<Const<1>>(meta, operands, results, &c, i as usize, &all, comptime![cut.plan.clone()]);
    }
}
