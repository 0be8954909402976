//! Norms of rows on GPUs: a cube a row, its units side by side; sums meet in shared memory.
//!
//! Implements  `@rms_norm`, `@layer_norm`
//! Schedule    `units` a row; on CUDA `lanes` elements a load, 16 bytes of the widest, where rows hold whole vectors
//! Needs       units that share memory; rows at least as wide as the plane or as 32 elements
//! Cost        reads R·C + C, writes R·C elements: bandwidth-bound; a row comes again from the nearest cache
//! Source      Zhang & Sennrich 2019, arXiv:1910.07467; Ba et al. 2016, arXiv:1607.06450

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::bind::{Buffers, Slots};
use crate::grid::{address, cubes, looped};
use crate::horizontal::{Part, Side};
use crate::layer_norm_rows::{Norm, moved};
use crate::prefetch_lines::bring;
use crate::prepared::{Prepared, runner, unfit};
use crate::rms_norm_rows::scaled;
use crate::vector::{Lane, read_float};
use crate::{Launch, LaunchError};

/// The narrowest row that a cube pays for.
pub(crate) const NARROW: usize = 32;

/// Rows that do not bring the weights near for each other.
const FEW: u32 = 8;

/// Norms rows by cubes.
pub struct NormShared;

impl Kernel for NormShared {
    fn name(&self) -> &'static str {
        "norm.shared"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["rms_norm", "layer_norm"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (_, x, y) = Norm::of(work, &mut Slots::default(), &mut Slots::default())?;
        if target.family == Family::Cpu {
            return Err(Refusal("needs units that share memory; a cube of the CPU is a core".into()));
        }
        if !target.holds(y.dtype) {
            return Err(Refusal(format!("{} writes no {}", target.name, y.dtype)));
        }
        if x.shape[1] < NARROW {
            return Err(Refusal(format!("a cube pays for rows of {NARROW} or more, they are {} wide", x.shape[1])));
        }
        let width = x.shape[1];
        let with = |lanes: usize| {
            // Units that each get two elements or more (or a vector), up to what pays.
            let most = (width / lanes.max(2)).next_power_of_two().clamp(NARROW, target.units as usize);
            Schedule::new(&[("bits", 32), ("units", most as u32), ("lanes", lanes as u32)])
        };
        let Work::Function { operands, results, .. } = work else { return Ok(vec![with(1)]) };
        // A number alone, as eps, is no row.
        let rows = operands.iter().chain(results).filter(|t| t.elements() >= width);
        let lanes = 16 / rows.map(|t| t.dtype.bytes()).max().unwrap_or(4);
        let wide = target.family == Family::Cuda && width.is_multiple_of(lanes) && width >= lanes * NARROW;
        Ok(wide.then_some(lanes).into_iter().chain([1]).map(with).collect())
    }

    fn horizontal(&self) -> bool {
        true
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok((_, x, _)) = Norm::of(work, &mut Slots::default(), &mut Slots::default()) else { return usize::MAX };
        3 * looped(x.shape[1].div_ceil((schedule.get("units") * schedule.get("lanes")) as usize), 0)
    }
}

impl Launch for NormShared {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (mut ins, mut outs) = (Slots::default(), Slots::default());
        let (norm, x, _) = Norm::of(work, &mut ins, &mut outs).map_err(unfit(self.name()))?;
        let (rows, width) = (x.shape[0] as u32, x.shape[1] as u32);
        let (units, bits) = (schedule.get("units"), address(schedule));
        let lanes = schedule.get("lanes") as usize;
        let lane = if lanes > 1 { Lane::Whole } else { Lane::One };
        let (grid, _) = cubes(rows, &Schedule::new(&[("units", 1), ("bits", 32)]));
        let normed = Normed { norm, units: units as usize, lane };
        Ok(Prepared::new(
            vec![rows, width],
            ins,
            outs,
            grid,
            units,
            runner!(|b| norm_shared, bits, lanes, b.meta, b.operands, b.results, normed),
        )
        .beside(Side { part: Part::Norm(normed), lanes }))
    }
}

/// What is compiled in: the norm, units a row, how rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Normed {
    norm: Norm,
    units: usize,
    lane: Lane,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn norm_shared<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] normed: Normed) {
    norm_row::<N>(meta, operands, results, CUBE_POS as u32, normed);
}

/// Rows that there are.
#[cube]
pub(crate) fn items(meta: &[u32]) -> u32 {
    meta[0]
}

/// Norms a row by all units of a cube.
#[cube]
pub(crate) fn norm_row<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    item: u32,
    #[comptime] normed: Normed,
) {
    let Normed { norm: n, units, lane } = comptime!(normed);
    let width = meta[1] as usize;
    // A cube past the end takes the last row again and writes nothing: all units of a cube meet.
    let row = min(item, items(meta) - 1) as usize;
    let live = item < items(meta);
    let from = row * width;
    let size = f32::cast_from(meta[1]);
    // What is needed last is on its way first. Weights come from far in a decode, whose rows are few.
    let eps = operands.f32s.index(n.eps.index)[0];
    if comptime![lane == Lane::Whole] {
        let mut i = select(items(meta) <= FEW, UNIT_POS as usize * N::value(), width);
        while i < width {
            bring(operands, i, n.w);
            i += units * N::value();
        }
    }
    let mut shared = Shared::<[f32]>::new_slice(units);
    let mut mean = 0.0f32.runtime();
    if comptime![n.b.is_some()] {
        let sum = row_sum::<N>(operands, &mut shared, from, width, 0.0f32, n, false, units, lane);
        mean = sum / size;
    }
    let squares = row_sum::<N>(operands, &mut shared, from, width, mean, n, true, units, lane);
    let scale = 1.0f32 / (squares / size + eps).sqrt();
    if live {
        let mut i = UNIT_POS as usize * N::value();
        while i < width {
            if comptime![n.b.is_some()] {
                moved::<N>(operands, results, from, i, mean, scale, n, lane);
            } else {
                scaled::<N>(operands, results, from, i, scale, n.x, n.w, n.y, lane);
            }
            i += units * N::value();
        }
    }
}

/// The sum over a row of its elements less `mean`, or of their squares, in every unit.
#[cube]
#[allow(clippy::too_many_arguments)]
fn row_sum<N: Size>(
    operands: &Buffers,
    shared: &mut Shared<[f32]>,
    from: usize,
    width: usize,
    mean: f32,
    #[comptime] n: Norm,
    #[comptime] squared: bool,
    #[comptime] units: usize,
    #[comptime] lane: Lane,
) -> f32 {
    let mut sums = Vector::<f32, N>::new(0.0f32);
    let mut i = UNIT_POS as usize * N::value();
    while i < width {
        let x = read_float::<N>(operands, from + i, 1usize, n.x, lane) - Vector::new(mean);
        if squared {
            sums += x * x;
        } else {
            sums += x;
        }
        i += units * N::value();
    }
    let mut sum = sums.extract(0usize);
    #[unroll]
    for l in 1..N::value() {
        sum += sums.extract(l);
    }
    if comptime![lane == Lane::Whole] { plane_cube_sum(shared, sum, units) } else { cube_sum(shared, sum, units) }
}

/// The same as [`cube_sum`] by planes of 32 (CUDA): units of a plane meet without memory.
#[cube]
fn plane_cube_sum(shared: &mut Shared<[f32]>, sum: f32, #[comptime] units: usize) -> f32 {
    let mut all = plane_sum(sum);
    if comptime![units > 32] {
        let at = UNIT_POS as usize;
        if at % 32 == 0 {
            shared[at / 32] = all;
        }
        sync_cube();
        all = shared[0];
        #[unroll]
        for i in 1..comptime![units / 32] {
            all += shared[i];
        }
        // What is read here is written again by the next sum.
        sync_cube();
    }
    all
}

/// The sum of a number of each unit of a cube, in every unit.
#[cube]
pub(crate) fn cube_sum(shared: &mut Shared<[f32]>, sum: f32, #[comptime] units: usize) -> f32 {
    let at = UNIT_POS as usize;
    shared[at] = sum;
    sync_cube();
    #[unroll]
    for step in 0..comptime![units.ilog2() as usize] {
        let span = comptime![units >> (step + 1)];
        if at < span {
            let other = shared[at + span];
            shared[at] += other;
        }
        sync_cube();
    }
    let all = shared[0];
    // What is read here is written again by the next sum.
    sync_cube();
    all
}
