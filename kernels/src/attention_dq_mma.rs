//! Cotangents of attention's queries on matrix units, for bf16: blocks of queries over tiles of keys.
//!
//! A cube takes the block that `attention.mma` takes and walks the keys the same way. Scores and the values' side of the
//! softmax are products along D; what they give stays in registers and weighs the keys' rows.
//!
//! Implements  `@attention_dq`
//! Schedule    a cube `m` queries, a plane `rows` of them; `n` keys a tile, `stages` tiles of keys or values under way
//! Needs       CUDA of compute capability 8.0; bf16 (cotangents of scores may be too large for f16); D a multiple of 16, at most 256
//! Cost        6·D FLOP a visible pair; the scores' cotangents are rounded to bf16 before they weigh; no atomics
//! Source      Dao 2023, FlashAttention-2, arXiv:2307.08691, section 3.1; PTX ISA, `mma.sync` and `ldmatrix`

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{BackPlaces, back_places, backward, blocks};
use crate::attention_fragments::{
    Frame, Lines, Shape, Sums, add_weighed, bring, corner, differentiates, flat, framed, hide_keys, level, line,
    own_row, power, schedules, scores, seek, tall, view, write_row, zero,
};
use crate::attention_sight::{Mask, hi, lo};
use crate::bind::Buffers;
use crate::einsum_copies::{commit, shared_address, wait};
use crate::grid::{address, one_each};
use crate::prepared::{Prepared, runner, unfit};
use crate::{Launch, LaunchError};

const SHAPES: [Shape; 4] = [[128, 32, 32, 1, 2], [64, 64, 16, 1, 2], [64, 32, 16, 1, 2], [32, 32, 16, 1, 1]];

/// Differentiates attention by blocks of queries on matrix units.
pub struct AttentionDqMma;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    places: BackPlaces,
    mask: Mask,
    f: Frame,
}

/// Words of shared memory: queries and cotangents, and tiles of keys and of values.
fn words(f: &Frame) -> usize {
    2 * (f.m + f.depth * f.n) * f.pitch()
}

/// Sums that a unit holds.
fn held(f: &Frame) -> usize {
    4 * (2 * f.scores() + f.sums())
}

impl Kernel for AttentionDqMma {
    fn name(&self) -> &'static str {
        "attention_dq.mma"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["attention_dq"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, operands, _) = backward(work, "attention_dq", 1)?;
        differentiates(target, &n, &operands[0])?;
        schedules(target, n.d, (n.b * n.h, n.g * n.t), &SHAPES, words, held)
    }
}

impl Launch for AttentionDqMma {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = backward(work, "attention_dq", 1).map_err(unfit(self.name()))?;
        let (places, ins, outs) = back_places(operands, results);
        let f = framed(&n, &operands[0], schedule);
        let (items, words) = blocks(&n, n.g * n.t, f.m);
        let (cubes, units) = one_each(items, schedule.get("units"));
        let bits = address(schedule);
        let plan = Plan { places, mask: places.into(), f };
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| attention_dq_mma, bits, b.meta, b.operands, b.results, plan),
        ))
    }
}

/// What a unit keeps of its rows: two a fragment.
#[derive(CubeType)]
struct Rows {
    level: Array<f32>,
    delta: Array<f32>,
    lo: Array<i32>,
    hi: Array<i32>,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_dq_mma(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
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
        let own = own(operands, &queries, batch * times, first, last, plan);

        let base = shared_address(&memory) as u32;
        let (row, column) = corner(f);
        let block = comptime![f.m * f.pitch()];
        let tile = comptime![f.n * f.pitch()];
        let q_at = tall(base, row, 0usize, f);
        let d_at = q_at + comptime![4 * block as u32];
        let keys_at = base + comptime![8 * block as u32];
        let k_at = flat(keys_at, f);
        let v_at = k_at + comptime![4 * tile as u32];
        let rows_at = tall(keys_at, 0usize, column, f);
        let mut p = Sums::new(comptime![f.scores()]);
        let mut ds = Sums::new(comptime![f.scores()]);
        let mut sum = Sums::new(comptime![f.sums()]);
        zero(&mut sum, comptime![f.sums()]);

        let (grouped, q, d) = comptime![(f.grouped, plan.places.q, plan.places.dout)];
        bring(operands, &mut memory, 0usize, &queries, first, comptime![f.m], q, grouped, f);
        bring(operands, &mut memory, block.runtime(), &queries, first, comptime![f.m], d, grouped, f);
        let (mut now, mut whole) = seek(operands, &sight, batch, keys, 0usize, plan.mask, f);
        let mut slot = 0u32.runtime();
        pair(operands, &mut memory, slot, &others, now, plan);
        while now * f.n < keys {
            let (next, next_whole) = seek(operands, &sight, batch, keys, now + 1, plan.mask, f);
            // These tiles are there, for all units; and nobody reads those that are filled next.
            wait(0usize);
            sync_cube();
            let here = slot * comptime![8 * tile as u32];
            if comptime![f.depth > 1] {
                slot = 1u32 - slot;
                pair(operands, &mut memory, slot, &others, next, plan);
            }
            scores(&mut p, q_at, k_at + here, f);
            if !whole {
                let start = now * f.n;
                let count = min(keys - start, comptime![f.n].runtime());
                hide_keys(operands, &mut p, &own.lo, &own.hi, batch * keys + start, count, plan.mask, f);
            }
            scores(&mut ds, d_at, v_at + here, f);
            weigh(&own, &p, &mut ds, f);
            add_weighed(&mut sum, &ds, rows_at + here, f);
            if comptime![f.depth == 1] {
                sync_cube();
                pair(operands, &mut memory, slot, &others, next, plan);
            }
            now = next;
            whole = next_whole;
        }
        wait(0usize);
        let scale = comptime![1.0 / (f.d as f32).sqrt()].runtime();
        #[unroll]
        for r in 0..comptime![f.tall() * 2] {
            let row = first + own_row(r, f);
            if row <= last {
                write_row(results, &sum, line(&queries, row, grouped), scale, r, plan.places.first, f);
            }
        }
    }
}

/// Starts to bring a tile of keys and its values, if there is one.
#[cube]
fn pair(operands: &Buffers, memory: &mut Shared<[f32]>, slot: u32, l: &Lines, tile: usize, #[comptime] plan: Plan) {
    let f = comptime![plan.f];
    if tile * f.n < l.times {
        let to = comptime![2 * f.m * f.pitch()] + slot as usize * comptime![2 * f.n * f.pitch()];
        bring(operands, memory, to, l, tile * f.n, comptime![f.n], plan.places.k, false, f);
        let to = to + comptime![f.n * f.pitch()];
        bring(operands, memory, to, l, tile * f.n, comptime![f.n], plan.places.v, false, f);
    }
    commit();
}

#[cube]
fn own(operands: &Buffers, queries: &Lines, times: usize, first: usize, last: usize, #[comptime] plan: Plan) -> Rows {
    let rows = comptime![plan.f.tall() * 2];
    let mut own = Rows { level: Array::new(rows), delta: Array::new(rows), lo: Array::new(rows), hi: Array::new(rows) };
    #[unroll]
    for r in 0..rows {
        let row = min(first + own_row(r, plan.f), last);
        let query = line(queries, row, comptime![plan.f.grouped]);
        own.level[r] = level(operands.f32s.index(plan.places.lse.index)[query]);
        own.delta[r] = operands.f32s.index(plan.places.delta.index)[query];
        own.lo[r] = lo(operands, times + row / queries.groups, plan.mask);
        own.hi[r] = hi(operands, times + row / queries.groups, plan.mask);
    }
    own
}

/// Products with values become ds = p (dp - delta); 0 where a query does not see.
#[cube]
fn weigh(own: &Rows, p: &Sums, ds: &mut Sums, #[comptime] f: Frame) {
    let scale = comptime![f.scale()].runtime();
    #[unroll]
    for r in 0..comptime![f.tall() * 2] {
        #[unroll]
        for j in 0..comptime![f.n / 8] {
            let at = comptime![r / 2 * f.n / 8 + j];
            let mut four = ds[at];
            #[unroll]
            for e in 0..2usize {
                let l = comptime![r % 2 * 2 + e];
                let weight = power(fma(p[at].extract(l), scale, -own.level[r]));
                four.insert(l, weight * (four.extract(l) - own.delta[r]));
            }
            ds[at] = four;
        }
    }
}
