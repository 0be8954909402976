//! Cross entropy behind its projection on Hopper's matrix units: tiles of logits by `einsum.wgmma`,
//! folded in the registers that they are summed in.
//!
//! Implements  `@linear_cross_entropy`, `@linear_cross_entropy_tiled` of bf16 or f16
//! Schedule    as `einsum.wgmma`, k whole
//! Needs       CUDA of compute capability 9.0 (sm_90a); at least 9 tokens and 8 words; C in whole 16 bytes
//! Cost        2·T·V·C FLOP in f32 sums of exact products; 8 bytes a token and tile leave; a second launch merges tiles
//! Source      Wijmans et al. 2024, Cut your losses, arXiv:2411.09009; the accumulators' layout of `wgmma`, PTX ISA

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::bind::Buffers;
use crate::cross_entropy::{
    Ends, FUNCTIONS, LEAST, ends, floats, instance, label_from, leave_hit, leave_part, left, merged, worth,
};
use crate::einsum_tiles::{Spot, exists, spot};
use crate::einsum_wgmma::{ATOM, Groups, PLANE, read, shapes, sums};
use crate::grid::address;
use crate::key::Key;
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::{Launch, LaunchError};

/// Folds logits in registers.
pub struct LinearCrossEntropyWgmma;

/// What a cube's warpgroups do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Fold {
    g: Key<Groups>,
    ends: Ends,
}

impl Kernel for LinearCrossEntropyWgmma {
    fn name(&self) -> &'static str {
        "linear_cross_entropy.wgmma"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(FUNCTIONS)
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, roles) = instance(work, Some(target))?;
        worth(work, &n, shapes(&roles, target)?, |s| n.v.div_ceil(s.get("n") as usize), target)
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        instance(work, None).map_or(0, |(n, _)| floats(&n, n.v.div_ceil(schedule.get("n") as usize)))
    }
}

impl Launch for LinearCrossEntropyWgmma {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, roles) = instance(work, None).map_err(unfit(self.name()))?;
        let (g, (_, mut words, mut ins, _, (grid, units))) =
            Groups::of(&roles, schedule).map_err(unfit(self.name()))?;
        let parts = n.v.div_ceil(schedule.get("n") as usize);
        let ends = ends(&n, parts, &mut words, &mut ins);
        let (bits, f) = (address(schedule), Key::new(Fold { g: Key::new(g), ends }));
        let run: Run = runner!(|b| linear_cross_entropy_wgmma, bits, b.meta, b.operands, b.results, f.clone());
        Ok(merged(Prepared::new(words, ins, left(), grid, units, run), &n, parts, ends, schedule))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn linear_cross_entropy_wgmma(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] f: Key<Fold>) {
    let g = comptime![f.g.clone()];
    let mut memory = Shared::<[f32]>::new_aligned_slice(comptime![g.memory()], ATOM);
    // As in `einsum.wgmma`: the sums are registers of their own.
    let count = comptime![g.t.n / 2];
    gpu_asm!(".reg .f32 acc<{count}>;", options(nomem));
    if exists(meta, g.t.clone()) {
        let s = spot(meta, operands, g.t.clone());
        sums(meta, operands, &s, &mut memory, g.clone());
        #[unroll]
        for half in 0..2usize {
            fold(meta, operands, results, &s, half, f.clone());
        }
    }
}

/// Folds a unit's row of the upper eight of its plane's sixteen, or of the lower. Of each 8 columns it holds 2 neighbours; the
/// four units of a row meet at the end.
#[cube]
fn fold(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    s: &Spot,
    #[comptime] half: usize,
    #[comptime] f: Key<Fold>,
) {
    let n = comptime![f.g.t.n];
    let (rows, size) = (meta[comptime![f.ends.words + 1]] as usize, meta[comptime![f.ends.words + 2]] as usize);
    let (plane, lane) = (UNIT_POS as usize / PLANE, UNIT_POS as usize % PLANE);
    let row = s.m as usize + plane * 16 + lane / 4 + half * 8;
    let first = s.n + lane % 4 * 2;
    let mut top = LEAST.runtime();
    #[unroll]
    for i in 0..comptime![n / 4] {
        let logit = read(comptime![i / 2 * 4 + half * 2 + i % 2]);
        if comptime![f.g.t.n_tail] {
            top = select(first + comptime![i / 2 * 8 + i % 2] < size, max(top, logit), top);
        } else {
            top = max(top, logit);
        }
    }
    top = max(top, plane_shuffle_xor(top, 1u32));
    top = max(top, plane_shuffle_xor(top, 2u32));
    let mut sum = 0.0f32.runtime();
    #[unroll]
    for i in 0..comptime![n / 4] {
        let weight = (read(comptime![i / 2 * 4 + half * 2 + i % 2]) - top).exp();
        if comptime![f.g.t.n_tail] {
            sum += select(first + comptime![i / 2 * 8 + i % 2] < size, weight, 0.0f32);
        } else {
            sum += weight;
        }
    }
    sum += plane_shuffle_xor(sum, 1u32);
    sum += plane_shuffle_xor(sum, 2u32);
    if row < rows {
        if lane % 4 == 0 {
            leave_part(meta, results, row, s.n / n, top, sum, f.ends);
        }
        // One tile of hundreds has it.
        let label = label_from(operands, row, first, f.ends);
        if label >= 0 && label < n as i32 {
            #[unroll]
            for i in 0..comptime![n / 4] {
                if label == comptime![(i / 2 * 8 + i % 2) as i32] {
                    leave_hit(meta, results, row, read(comptime![i / 2 * 4 + half * 2 + i % 2]), f.ends);
                }
            }
        }
    }
}
