//! Cross entropy behind its projection on matrix units: tiles of logits by `einsum.mma`, folded a row of
//! fragments at a time.
//!
//! Implements  `@linear_cross_entropy`, `@linear_cross_entropy_tiled` of bf16 or f16
//! Schedule    as `einsum.mma`, k whole
//! Needs       CUDA of compute capability 8.0 or more; at least 9 tokens and 8 words
//! Cost        2·T·V·C FLOP in f32 sums of exact products; 8 bytes a token and plane leave; a second launch merges them
//! Source      Wijmans et al. 2024, Cut your losses, arXiv:2411.09009

use cubecl::ir::ElemType;
use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::bind::Buffers;
use crate::cross_entropy::{
    Ends, FUNCTIONS, LEAST, ends, floats, instance, label_from, leave_hit, leave_part, left, merged, worth,
};
use crate::einsum_mma::{FRAGMENT, PLANE, Planes, SHAPES, bytes, elem, lay, suits, sums, uncut, units};
use crate::einsum_tiles::{Spot, exists, shares, spot};
use crate::grid::address;
use crate::key::Key;
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::{Launch, LaunchError};

/// Folds fragments of logits.
pub struct LinearCrossEntropyMma;

/// What a cube's planes do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Fold {
    p: Key<Planes>,
    ends: Ends,
}

/// Parts of so many words: the columns of a plane.
fn parts(v: usize, schedule: &Schedule) -> usize {
    let (n, cols) = (schedule.get("n") as usize, schedule.get("cols") as usize);
    v.div_ceil(n) * (n / cols)
}

impl Kernel for LinearCrossEntropyMma {
    fn name(&self) -> &'static str {
        "linear_cross_entropy.mma"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(FUNCTIONS)
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, roles) = instance(work, Some(target))?;
        roles.narrow()?;
        suits(&roles, target, 80)?;
        shares(target, bytes(SHAPES[2]), units(SHAPES[2]))?;
        let fitting = SHAPES.into_iter().filter(|&s| bytes(s) <= target.shared_bytes).collect();
        let all = uncut(&roles, fitting, target);
        worth(work, &n, all, |s| parts(n.v, s), target)
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        instance(work, None).map_or(0, |(n, _)| floats(&n, parts(n.v, schedule)))
    }
}

impl Launch for LinearCrossEntropyMma {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, roles) = instance(work, None).map_err(unfit(self.name()))?;
        let dtype = elem(roles.narrow().map_err(unfit(self.name()))?);
        let tile = ["m", "n", "k"].map(|word| schedule.get(word) as usize);
        let (t, mut words, mut ins, _, (grid, units)) = roles.tiles(tile, schedule.get("units"), 1, 4);
        let parts = parts(n.v, schedule);
        let ends = ends(&n, parts, &mut words, &mut ins);
        let p = Key::new(Planes::of(&roles, t, schedule));
        let (bits, f) = (address(schedule), Key::new(Fold { p, ends }));
        let run: Run = runner!(|b| linear_cross_entropy_mma, bits, b.meta, b.operands, b.results, f.clone(), dtype);
        Ok(merged(Prepared::new(words, ins, left(), grid, units, run), &n, parts, ends, schedule))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn linear_cross_entropy_mma<F: Float>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    #[comptime] f: Key<Fold>,
    #[define(F)] _dtype: ElemType,
) {
    let p = comptime![f.p.clone()];
    let mut a = Shared::<[F]>::new_aligned_slice(comptime![p.stages * p.a.size()], 128usize);
    let mut b = Shared::<[F]>::new_aligned_slice(comptime![p.stages * p.b.size()], 128usize);
    let mut out = Shared::<[f32]>::new_aligned_slice(comptime![p.t.units / PLANE * FRAGMENT * p.pitch()], 128usize);
    if exists(meta, p.t.clone()) {
        let s = spot(meta, operands, p.t.clone());
        let acc = sums::<F>(meta, operands, &s, &mut a, &mut b, p.clone());
        #[unroll]
        for i in 0..p.rows {
            lay(&acc, &mut out, i, p.clone());
            sync_plane();
            fold(meta, operands, results, &s, &out, i, f.clone());
            sync_plane();
        }
    }
}

/// Folds row `i` of a plane's fragments, which lie in shared memory: two units share a token's columns.
#[cube]
fn fold(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    s: &Spot,
    out: &Shared<[f32]>,
    #[comptime] i: usize,
    #[comptime] f: Key<Fold>,
) {
    let p = comptime![f.p.clone()];
    let (rows, size) = (meta[comptime![f.ends.words + 1]] as usize, meta[comptime![f.ends.words + 2]] as usize);
    let (plane, lane) = (UNIT_POS as usize / PLANE, UNIT_POS as usize % PLANE);
    let wide = comptime![p.cols * FRAGMENT / 2];
    let (line, column) = (lane / 2, lane % 2 * wide);
    let row = s.m as usize + plane / p.across * comptime![p.rows * FRAGMENT] + i * FRAGMENT + line;
    let first = s.n + plane % p.across * comptime![p.cols * FRAGMENT] + column;
    let from = plane * comptime![FRAGMENT * p.pitch()] + line * comptime![p.pitch()] + column;
    let mut top = LEAST.runtime();
    let mut logits = Array::<f32>::new(wide);
    #[unroll]
    for c in 0..wide {
        logits[c] = select(first + c < size, out[from + c], LEAST);
        top = max(top, logits[c]);
    }
    top = max(top, plane_shuffle_xor(top, 1u32));
    let mut sum = 0.0f32.runtime();
    #[unroll]
    for c in 0..wide {
        sum += select(first + c < size, (logits[c] - top).exp(), 0.0f32);
    }
    sum += plane_shuffle_xor(sum, 1u32);
    if row < rows {
        if lane % 2 == 0 {
            let part = s.n / p.t.n * p.across + plane % p.across;
            leave_part(meta, results, row, part, top, sum, f.ends);
        }
        let label = label_from(operands, row, first, f.ends);
        if label >= 0 && label < wide as i32 {
            leave_hit(meta, results, row, out[from + label as usize], f.ends);
        }
    }
}
