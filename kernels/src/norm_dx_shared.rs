//! What a norm's rows get of their cotangent, on GPUs: a cube a row, its units side by side; sums meet in shared memory.
//!
//! Implements  `@rms_norm_dx`, `@layer_norm_dx`
//! Schedule    `units` a row
//! Needs       units that share memory; rows of 32 elements or more
//! Cost        reads 2·R·C + C, writes R·C elements: bandwidth-bound; a row comes again from the nearest cache
//! Source      own; the formula is in the text of `@layer_norm_dx`

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::bind::{Buffers, Slots};
use crate::grid::{address, looped, one_each};
use crate::norm_dx_rows::{NormDx, add, finish, no_sums, noted, turned};
use crate::norm_shared::{NARROW, cube_sum};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::{Lane, read_float};
use crate::{Launch, LaunchError};

/// Backward of norms by cubes.
pub struct NormDxShared;

impl Kernel for NormDxShared {
    fn name(&self) -> &'static str {
        "norm_dx.shared"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["rms_norm_dx", "layer_norm_dx"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (_, dx) = NormDx::of(work, &mut Slots::default(), &mut Slots::default())?;
        if target.family == Family::Cpu {
            return Err(Refusal("needs units that share memory; a cube of the CPU is a core".into()));
        }
        if !target.holds(dx.dtype) {
            return Err(Refusal(format!("{} writes no {}", target.name, dx.dtype)));
        }
        let width = dx.shape[1];
        if width < NARROW {
            return Err(Refusal(format!("a cube pays for rows of {NARROW} or more, they are {width} wide")));
        }
        // Units that each get two elements or more, up to what pays.
        let most = (width / 2).next_power_of_two().clamp(NARROW, target.units as usize) as u32;
        Ok(vec![Schedule::new(&[("bits", 32), ("units", most)])])
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let norm = NormDx::of(work, &mut Slots::default(), &mut Slots::default());
        let units = schedule.get("units") as usize;
        norm.map_or(usize::MAX, |(_, dx)| 3 * looped(dx.shape[1].div_ceil(units), 0))
    }
}

impl Launch for NormDxShared {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (mut ins, mut outs) = (Slots::default(), Slots::default());
        let (norm, dx) = NormDx::of(work, &mut ins, &mut outs).map_err(unfit(self.name()))?;
        let (rows, width) = (dx.shape[0] as u32, dx.shape[1] as u32);
        let bits = address(schedule);
        let (grid, units) = one_each(rows, schedule.get("units"));
        Ok(Prepared::new(
            vec![rows, width],
            ins,
            outs,
            grid,
            units,
            runner!(|b| norm_dx_shared, bits, b.meta, b.operands, b.results, norm, units as usize),
        ))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn norm_dx_shared(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    #[comptime] n: NormDx,
    #[comptime] units: usize,
) {
    let width = meta[1] as usize;
    // A cube past the end takes the last row again and writes nothing: all units of a cube meet.
    let row = min(CUBE_POS as u32, meta[0] - 1) as usize;
    let live = (CUBE_POS as u32) < meta[0];
    let from = row * width;
    let size = f32::cast_from(meta[1]);
    let at = UNIT_POS as usize;
    let mut shared = Shared::<[f32]>::new_slice(units);
    let mut mean = 0.0f32.runtime();
    if comptime![n.mean.is_some()] {
        let mut sum = 0.0f32.runtime();
        let mut i = at;
        while i < width {
            sum += read_float::<Const<1>>(operands, from + i, 1usize, n.x, Lane::One).extract(0usize);
            i += units;
        }
        mean = cube_sum(&mut shared, sum, units) / size;
    }
    let mut sums = no_sums::<Const<1>>();
    let mut i = at;
    while i < width {
        add::<Const<1>>(operands, &mut sums, from, i, mean, n);
        i += units;
    }
    let squares = cube_sum(&mut shared, sums.squares.extract(0usize), units);
    let along = cube_sum(&mut shared, sums.along.extract(0usize), units);
    let mut level = 0.0f32.runtime();
    if comptime![n.mean.is_some()] {
        level = cube_sum(&mut shared, sums.level.extract(0usize), units);
    }
    let r = finish(operands, mean, squares, level, along, size, n);
    if live {
        let mut i = at;
        while i < width {
            turned::<Const<1>>(operands, results, from, i, &r, n);
            i += units;
        }
        if at == 0 {
            noted(results, row, &r, n);
        }
    }
}
