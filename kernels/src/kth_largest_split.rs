//! The k-th largest of few long rows on GPUs: cubes count parts of a row, another one picks the bin, digit by digit.
//!
//! Implements  `kth_largest` over the last axis
//! Schedule    `split` cubes of `units` a row count, a cube a row picks; three times
//! Needs       1 <= k <= width; f32; at most half as many rows as cores; at least 32 elements a unit
//! Cost        reads each row 3 times, by all cores; six launches; 8 KiB a part written and read at each digit
//! Source      as `kth_largest.radix`

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::Dtype;

use crate::bind::{Buffers, Slot, Slots};
use crate::fold_split::{cores, own_cores};
use crate::grid::{address, looped, one_each};
use crate::kth_largest_plain::{image, number, sizes};
use crate::kth_largest_radix::{BINS, SHIFTS, bins_of, digit, open, pick};
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::{Launch, LaunchError};

/// Most parts: a cube reads the bins of all.
const MOST: usize = 32;
/// Elements of a unit of a cube alone below which it is as fast.
const SHORT: usize = 32;
/// The fewest elements of a unit that are worth a part.
const LEAST: usize = 8;
/// Numbers of a row between launches: the bits found so far, in halves that a float holds, and how manieth is sought.
const STATE: usize = 3;

/// Finds the k-th largest by several cubes a row.
pub struct KthLargestSplit;

/// One of the launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Turn {
    /// The states of all rows, and behind them the bins of their parts: counts as floats, exact below 2^24.
    scratch: Slot,
    pass: usize,
    parts: usize,
    units: usize,
}

impl Kernel for KthLargestSplit {
    fn name(&self) -> &'static str {
        "kth_largest.split"
    }

    fn implements(&self) -> Implements {
        Implements::KthLargest
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (rows, width, _) = sizes(work)?;
        own_cores(target)?;
        let cores = cores(target);
        let turns = width / target.units as usize;
        if 2 * rows > cores || turns < SHORT || width >= 1 << 24 {
            return Err(Refusal(format!(
                "is for rows of {} to 2^24 and at most {} of them, not {rows} of {width}",
                SHORT * target.units as usize,
                cores / 2
            )));
        }
        let parts = (2 * cores / rows.max(1)).min(turns / LEAST).min(MOST);
        Ok(vec![Schedule::new(&[("bits", 32), ("units", target.units), ("split", parts as u32)])])
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok((_, width, _)) = sizes(work) else { return usize::MAX };
        let (units, parts) = (schedule.get("units") as usize, schedule.get("split") as usize);
        let each = BINS / units;
        looped(width.div_ceil(units * parts), 0)
            + looped(each, looped(parts, 0))
            + 3 * looped(each, 0)
            + looped(units, 0)
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        sizes(work).map_or(0, |(rows, ..)| rows * (STATE + schedule.get("split") as usize * BINS))
    }
}

impl Launch for KthLargestSplit {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (rows, width, k) = sizes(work).map_err(unfit(self.name()))?;
        let (units, parts, bits) = (schedule.get("units"), schedule.get("split"), address(schedule));
        let (mut ins, mut left, mut outs) = (Slots::default(), Slots::default(), Slots::default());
        ins.slot(0, Dtype::F32);
        let inside = left.scratch();
        outs.slot(0, Dtype::F32);
        let last = outs.scratch();
        let turn = |scratch, pass| Turn { scratch, pass, parts: parts as usize, units: units as usize };
        let (wide, narrow) = (one_each(rows as u32 * parts, units), one_each(rows as u32, units));
        let counts = |pass: usize| -> Run {
            let t = turn(inside, pass);
            runner!(|b| count, bits, b.meta, b.operands, b.results, t)
        };
        let picks = |pass: usize| -> Run {
            let t = turn(if pass == 2 { last } else { inside }, pass);
            runner!(|b| choose, bits, b.meta, b.operands, b.results, t)
        };
        let floats = self.scratch(work, schedule);
        let words = vec![rows as u32, width as u32, k as u32];
        let mut all = Prepared::new(words, ins.clone(), left.clone(), wide.0, wide.1, counts(0));
        for pass in 0..3 {
            let outs = if pass == 2 { &outs } else { &left };
            all = all.then(floats, Slots::default(), outs.clone(), narrow, picks(pass));
            if pass < 2 {
                all = all.then(floats, ins.clone(), left.clone(), wide, counts(pass + 1));
            }
        }
        Ok(all)
    }
}

/// The bits of a row found so far, of their halves.
#[cube]
fn whole(high: f32, low: f32) -> u32 {
    u32::cast_from(high) << 16u32 | u32::cast_from(low)
}

/// Counts a digit of a part of a row, of elements that are still in question.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn count(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] turn: Turn) {
    let all = meta[0] * comptime![turn.parts as u32];
    // A cube past the end counts the last part again and writes nothing: all units of a cube meet.
    let item = min(CUBE_POS as u32, all - 1) as usize;
    let (row, part) = (item / turn.parts, item % turn.parts);
    let width = meta[1] as usize;
    let at = UNIT_POS as usize;
    let each = comptime![bins_of(turn.pass) / turn.units];
    let x = operands.f32s.index(0usize);
    let scratch = results.f32s.index_mut(turn.scratch.index);
    let bins = Shared::<[Atomic<u32>]>::new_slice(BINS);
    for b in 0..each {
        bins[at * each + b].store(0u32);
    }
    sync_cube();
    let mut before = 0u32.runtime();
    if comptime![turn.pass > 0] {
        before = whole(scratch[row * STATE], scratch[row * STATE + 1]);
    }
    let share = width.div_ceil(turn.parts);
    let end = row * width + min((part + 1) * share, width);
    let mut i = row * width + part * share + at;
    while i < end {
        let one = image::<Const<1>>(Vector::new(x[i]));
        let mut counts = true.runtime();
        if comptime![turn.pass > 0] {
            counts = open::<Const<1>>(one, before, turn.pass).extract(0usize);
        }
        if counts {
            bins[digit(one.extract(0usize), turn.pass)].fetch_add(1u32);
        }
        i += turn.units;
    }
    sync_cube();
    if (CUBE_POS as u32) < all {
        let to = meta[0] as usize * STATE + item * BINS;
        for b in 0..each {
            scratch[to + b * turn.units + at] = f32::cast_from(bins[b * turn.units + at].load());
        }
    }
}

/// Picks the digit of a row out of the bins of all its parts; the last one yields the number.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn choose(meta: &[u32], _operands: &Buffers, results: &mut Buffers, #[comptime] turn: Turn) {
    let row = min(CUBE_POS as u32, meta[0] - 1) as usize;
    let at = UNIT_POS as usize;
    let each = comptime![bins_of(turn.pass) / turn.units];
    let scratch = results.f32s.index(turn.scratch.index);
    // The bins, a sum a unit, and what unit 0 tells, as `pick` has them.
    let bins = Shared::<[Atomic<u32>]>::new_slice(comptime![BINS + turn.units + 2]);
    let from = meta[0] as usize * STATE + row * comptime![turn.parts * BINS];
    for b in 0..each {
        let bin = b * turn.units + at;
        let mut sum = 0.0f32.runtime();
        for part in 0..turn.parts {
            sum += scratch[from + part * BINS + bin];
        }
        bins[bin].store(u32::cast_from(sum));
    }
    sync_cube();
    let mut want = meta[2];
    let mut so_far = 0u32.runtime();
    if comptime![turn.pass > 0] {
        want = u32::cast_from(scratch[row * STATE + 2]);
        so_far = whole(scratch[row * STATE], scratch[row * STATE + 1]);
    }
    pick(&bins, want, each, turn.units);
    so_far |= bins[comptime![BINS + turn.units]].load() << comptime![SHIFTS[turn.pass]];
    if at == 0 && (CUBE_POS as u32) < meta[0] {
        if comptime![turn.pass < 2] {
            let state = results.f32s.index_mut(turn.scratch.index);
            state[row * STATE] = f32::cast_from(so_far >> 16u32);
            state[row * STATE + 1] = f32::cast_from(so_far & 0xffffu32);
            state[row * STATE + 2] = f32::cast_from(bins[comptime![BINS + turn.units + 1]].load());
        } else {
            results.f32s.index_mut(0usize)[row] = number(so_far);
        }
    }
}
