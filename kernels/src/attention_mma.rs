//! Attention of bf16 or f16 on matrix units: blocks of queries over tiles of keys, with the softmax in registers.
//!
//! A cube takes a block of queries (all the query heads of a group, neighbours in time, so keys are read once for the
//! group) and walks the keys in tiles, which come in while the ones before are multiplied. A plane has rows of its own:
//! their scores, weights and sums of values never leave its registers. Tiles that no query of the block sees are skipped
//! before they are brought; tiles that all see are taken without masks.
//!
//! Implements  `@attention`, `@attention_partial`, `@attention_onto`
//! Schedule    a cube `m` queries, a plane `rows` of them; `n` keys a tile, `stages` tiles of keys or values under way
//! Needs       CUDA of compute capability 8.0; bf16 or f16; D a multiple of 16, at most 256; 8 queries a group
//! Cost        4·D FLOP a visible pair in f32 sums of exact products; weights are rounded to halves before they weigh
//! Source      Dao 2023, FlashAttention-2, arXiv:2307.08691; PTX ISA, `mma.sync` and `ldmatrix`

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{FORWARD, blocks, instance, places};
use crate::attention_fragments::{
    Frame, Lines, Shape, Sums, add_weighed, bring, corner, fetch, flat, framed, hide_keys, multiplies, schedules,
    scores, seek, tall, view, zero,
};
use crate::attention_softmax::{Plan, carry_on, finish, lower, softmax, weigh};
use crate::bind::Buffers;
use crate::einsum_copies::{shared_address, wait};
use crate::grid::{address, one_each};
use crate::prepared::{Prepared, runner, unfit};
use crate::{Launch, LaunchError};

/// Least queries of a group that a block is worth.
const LEAST: usize = 8;

const SHAPES: [Shape; 6] = [
    [128, 64, 32, 1, 1],
    [128, 64, 16, 1, 1],
    [64, 64, 16, 1, 2],
    [64, 64, 16, 1, 1],
    [64, 32, 16, 1, 1],
    [16, 64, 16, 1, 1],
];

/// Attends by blocks of queries on matrix units.
pub struct AttentionMma;

/// Words of shared memory: queries, and tiles of keys and of values.
fn words(f: &Frame) -> usize {
    (f.m + 2 * f.depth * f.n) * f.pitch()
}

/// Sums that a unit holds.
fn held(f: &Frame) -> usize {
    4 * (f.scores() + f.sums())
}

impl Kernel for AttentionMma {
    fn name(&self) -> &'static str {
        "attention.mma"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(FORWARD)
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, operands, _) = instance(work)?;
        multiplies(target, &n, &operands[0])?;
        if n.g * n.t < LEAST {
            return Err(Refusal(format!("a block takes at least {LEAST} queries a group, not {}", n.g * n.t)));
        }
        schedules(target, n.d, (n.b * n.h, n.g * n.t), &SHAPES, words, held)
    }
}

impl Launch for AttentionMma {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = instance(work).map_err(unfit(self.name()))?;
        let (places, carry, ins, outs) = places(operands, results);
        let f = framed(&n, &operands[0], schedule);
        let (items, words) = blocks(&n, n.g * n.t, f.m);
        let (cubes, units) = one_each(items, schedule.get("units"));
        let bits = address(schedule);
        let plan = Plan { places, carry, mask: places.into(), f };
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| attention_mma, bits, b.meta, b.operands, b.results, plan),
        ))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_mma(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
    let mut memory = Shared::<[f32]>::new_aligned_slice(comptime![words(&plan.f)], 128usize);
    let item = CUBE_POS;
    if item < meta[0] as usize {
        let f = comptime![plan.f];
        let blocks = meta[1] as usize;
        let (times, groups) = (meta[2] as usize, meta[3] as usize);
        let (heads, keys) = (meta[4] as usize, meta[5] as usize);
        let head = item / blocks;
        let batch = head / heads;
        // Later queries see more keys: they go first.
        let first = (blocks - 1 - item % blocks) * f.m;
        let last = times * groups - 1;
        let queries = Lines { head, groups, times };
        let others = Lines { head, groups: 1usize.runtime(), times: keys };
        let until = min(first + comptime![f.m - 1], last) / groups + 1;
        let sight = view(operands, batch * times + first / groups, until - first / groups, plan.mask);

        let tile = comptime![f.n * f.pitch()];
        let k_from = comptime![f.m * f.pitch()];
        let v_from = comptime![(f.m + f.depth * f.n) * f.pitch()];
        let base = shared_address(&memory) as u32;
        let (row, column) = corner(f);
        let q_at = tall(base, row, 0usize, f);
        let k_at = flat(base + comptime![4 * k_from as u32], f);
        let v_at = tall(base + comptime![4 * v_from as u32], 0usize, column, f);

        let mut softmax = softmax(operands, batch * times, first, last, groups, plan);
        let mut p = Sums::new(comptime![f.scores()]);
        let mut falls = Array::<f32>::new(comptime![f.tall() * 2]);
        let mut out = Sums::new(comptime![f.sums()]);
        zero(&mut out, comptime![f.sums()]);
        carry_on(operands, &mut softmax, &mut out, &queries, first, last, plan);

        bring(operands, &mut memory, 0usize, &queries, first, comptime![f.m], plan.places.q, comptime![f.grouped], f);
        let (mut now, mut whole) = seek(operands, &sight, batch, keys, 0usize, plan.mask, f);
        let mut slot = 0u32.runtime();
        fetch(operands, &mut memory, k_from, &others, now, comptime![plan.places.k], f);
        if comptime![f.depth > 1] {
            fetch(operands, &mut memory, v_from, &others, now, comptime![plan.places.v], f);
        }
        while now * f.n < keys {
            let (next, next_whole) = seek(operands, &sight, batch, keys, now + 1, plan.mask, f);
            let mut other = 0u32.runtime();
            if comptime![f.depth > 1] {
                other = 1u32 - slot;
            }
            // These keys are there, for all units; and nobody reads the memory that is filled next.
            wait(comptime![f.depth - 1]);
            sync_cube();
            if comptime![f.depth > 1] {
                let to = k_from + other as usize * tile;
                fetch(operands, &mut memory, to, &others, next, comptime![plan.places.k], f);
            } else {
                fetch(operands, &mut memory, v_from, &others, now, comptime![plan.places.v], f);
            }
            scores(&mut p, q_at, k_at + slot * comptime![4 * tile as u32], f);
            if !whole {
                let start = now * f.n;
                let count = min(keys - start, comptime![f.n].runtime());
                hide_keys(operands, &mut p, &softmax.lo, &softmax.hi, batch * keys + start, count, plan.mask, f);
            }
            weigh(&mut softmax, &mut p, &mut falls, f);
            lower(&mut out, &falls, f);
            wait(comptime![f.depth - 1]);
            sync_cube();
            if comptime![f.depth > 1] {
                let to = v_from + other as usize * tile;
                fetch(operands, &mut memory, to, &others, next, comptime![plan.places.v], f);
            } else {
                fetch(operands, &mut memory, k_from, &others, next, comptime![plan.places.k], f);
            }
            add_weighed(&mut out, &p, v_at + slot * comptime![4 * tile as u32], f);
            now = next;
            whole = next_whole;
            slot = other;
        }
        wait(0usize);
        finish(results, &softmax, &out, &queries, first, last, plan);
    }
}
