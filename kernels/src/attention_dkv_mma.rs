//! Cotangents of attention's keys and values on matrix units, for bf16: blocks of keys over tiles of queries.
//!
//! A cube takes a block of keys and walks the queries of all the heads of its group in tiles, so that a group's sums are
//! made in one place and in one order. Scores lie on their side, keys by queries: what becomes of them in registers
//! weighs the rows of queries and of their outputs' cotangents as it lies.
//!
//! Implements  `@attention_dkv`
//! Schedule    a cube `m` keys, a plane `rows` of them, `share` planes a part of D each; `n` queries a tile, `stages` tiles of queries or cotangents
//! Needs       CUDA of compute capability 8.0; bf16 (cotangents of scores may be too large for f16); D a multiple of 16, at most 256
//! Cost        8·D FLOP a visible pair; weights and the scores' cotangents are rounded to bf16 before they weigh; no atomics
//! Source      Dao 2023, FlashAttention-2, arXiv:2307.08691, section 3.1; PTX ISA, `mma.sync` and `ldmatrix`

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{BackPlaces, back_places, backward, blocks};
use crate::attention_fragments::{
    Frame, Lines, MASKED, Shape, Sums, add_weighed, bring, corner, differentiates, flat, framed, level, line,
    own_column, own_row, power, reach, schedules, scores, tall, view, write_row, zero,
};
use crate::attention_sight::{Mask, at, hi, lo};
use crate::bind::Buffers;
use crate::einsum_copies::{commit, shared_address, wait};
use crate::grid::{address, one_each};
use crate::prepared::{Prepared, runner, unfit};
use crate::{Launch, LaunchError};

const SHAPES: [Shape; 6] = [
    [64, 64, 16, 1, 2],
    [64, 32, 16, 1, 2],
    [32, 32, 16, 1, 1],
    [64, 32, 16, 2, 2],
    [64, 32, 16, 2, 1],
    [32, 32, 16, 2, 1],
];

/// Differentiates attention by blocks of keys on matrix units.
pub struct AttentionDkvMma;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    places: BackPlaces,
    mask: Mask,
    f: Frame,
}

/// Words of shared memory: keys and values, tiles of queries and of cotangents, and four words of each query.
fn words(f: &Frame) -> usize {
    2 * (f.m + f.depth * f.n) * f.pitch() + 4 * f.depth * f.n
}

/// Sums that a unit holds.
fn held(f: &Frame) -> usize {
    4 * (2 * f.scores() + 2 * f.sums())
}

impl Kernel for AttentionDkvMma {
    fn name(&self) -> &'static str {
        "attention_dkv.mma"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["attention_dkv"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, operands, _) = backward(work, "attention_dkv", 2)?;
        differentiates(target, &n, &operands[0])?;
        schedules(target, n.d, (n.b * n.h, n.s), &SHAPES, words, held)
    }
}

impl Launch for AttentionDkvMma {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = backward(work, "attention_dkv", 2).map_err(unfit(self.name()))?;
        let (places, ins, outs) = back_places(operands, results);
        let f = framed(&n, &operands[0], schedule);
        let (items, words) = blocks(&n, n.s, f.m);
        let (cubes, units) = one_each(items, schedule.get("units"));
        let bits = address(schedule);
        let plan = Plan { places, mask: places.into(), f };
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| attention_dkv_mma, bits, b.meta, b.operands, b.results, plan),
        ))
    }
}

/// What a cube knows of the queries of its tiles.
#[derive(CubeType)]
struct Tile {
    level: Shared<[f32]>,
    delta: Shared<[f32]>,
    lo: Shared<[i32]>,
    hi: Shared<[i32]>,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_dkv_mma(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
    let mut memory = Shared::<[f32]>::new_aligned_slice(
        comptime![2 * (plan.f.m + plan.f.depth * plan.f.n) * plan.f.pitch()],
        128usize,
    );
    let listed = comptime![plan.f.depth * plan.f.n];
    let mut tile = Tile {
        level: Shared::new_slice(listed),
        delta: Shared::new_slice(listed),
        lo: Shared::new_slice(listed),
        hi: Shared::new_slice(listed),
    };
    let item = CUBE_POS;
    if item < meta[0] as usize {
        let f = comptime![plan.f];
        let blocks = meta[1] as usize;
        let (times, groups) = (meta[2] as usize, meta[3] as usize);
        let (heads, keys) = (meta[4] as usize, meta[5] as usize);
        let head = item / blocks;
        let batch = head / heads;
        let first = item % blocks * f.m;
        let queries = Lines { head, groups, times };
        let own = Lines { head, groups: 1usize.runtime(), times: keys };
        let count = min(keys - first, comptime![f.m].runtime());
        let near_far = reach(operands, batch * keys + first, count, comptime![f.m], plan.mask);
        let mut places = Array::<i32>::new(comptime![f.tall() * 2]);
        #[unroll]
        for r in 0..comptime![f.tall() * 2] {
            places[r] = at(operands, batch * keys + min(first + own_row(r, f), keys - 1), plan.mask);
        }

        let base = shared_address(&memory) as u32;
        let (row, column) = corner(f);
        let block = comptime![f.m * f.pitch()];
        let size = comptime![f.n * f.pitch()];
        let k_at = tall(base, row, 0usize, f);
        let v_at = k_at + comptime![4 * block as u32];
        let tiles_at = base + comptime![8 * block as u32];
        let q_at = flat(tiles_at, f);
        let d_at = q_at + comptime![4 * size as u32];
        let q_rows = tall(tiles_at, 0usize, column, f);
        let d_rows = q_rows + comptime![4 * size as u32];
        let mut p = Sums::new(comptime![f.scores()]);
        let mut ds = Sums::new(comptime![f.scores()]);
        let mut dk = Sums::new(comptime![f.sums()]);
        let mut dv = Sums::new(comptime![f.sums()]);
        zero(&mut dk, comptime![f.sums()]);
        zero(&mut dv, comptime![f.sums()]);

        let (k, v) = comptime![(plan.places.k, plan.places.v)];
        bring(operands, &mut memory, 0usize, &own, first, comptime![f.m], k, false, f);
        bring(operands, &mut memory, block.runtime(), &own, first, comptime![f.m], v, false, f);
        let (mut now, mut whole) = seek_queries(operands, near_far, batch * times, &queries, 0usize, plan);
        let mut slot = 0usize.runtime();
        pair(operands, &mut memory, &mut tile, slot, &queries, batch * times, now, plan);
        while now * f.n < times * groups {
            let (next, next_whole) = seek_queries(operands, near_far, batch * times, &queries, now + 1, plan);
            // These tiles are there, for all units; and nobody reads those that are filled next.
            wait(0usize);
            sync_cube();
            let here = slot as u32 * comptime![8 * size as u32];
            let listed = slot * f.n;
            if comptime![f.depth > 1] {
                slot = 1 - slot;
                pair(operands, &mut memory, &mut tile, slot, &queries, batch * times, next, plan);
            }
            scores(&mut p, k_at, q_at + here, f);
            if !whole {
                hide(&mut p, &places, &tile, listed, times * groups - now * f.n, f);
            }
            scores(&mut ds, v_at, d_at + here, f);
            weigh(&tile, listed, &mut p, &mut ds, f);
            add_weighed(&mut dv, &p, d_rows + here, f);
            add_weighed(&mut dk, &ds, q_rows + here, f);
            if comptime![f.depth == 1] {
                sync_cube();
                pair(operands, &mut memory, &mut tile, slot, &queries, batch * times, next, plan);
            }
            now = next;
            whole = next_whole;
        }
        wait(0usize);
        let scale = comptime![1.0 / (f.d as f32).sqrt()].runtime();
        #[unroll]
        for r in 0..comptime![f.tall() * 2] {
            let row = first + own_row(r, f);
            if row < keys {
                let to = line(&own, row, false);
                write_row(results, &dk, to, scale, r, plan.places.first, f);
                write_row(results, &dv, to, 1.0f32.runtime(), r, plan.places.second, f);
            }
        }
    }
}

/// The next tile of queries, from tile `from` on, that sees a key of the block; and whether all see all of it.
#[cube]
fn seek_queries(
    operands: &Buffers,
    near_far: (i32, i32),
    batch: usize,
    l: &Lines,
    from: usize,
    #[comptime] plan: Plan,
) -> (usize, bool) {
    let f = comptime![plan.f];
    let (near, far) = near_far;
    let rows = l.times * l.groups;
    let mut tile = from;
    let mut whole = false.runtime();
    let mut open = from * f.n < rows;
    while open {
        let start = tile * f.n;
        let count = min(rows - start, comptime![f.n].runtime());
        let first = start / l.groups;
        let sight = view(operands, batch + first, (start + count - 1) / l.groups + 1 - first, plan.mask);
        if far >= sight.lowest && near <= sight.highest {
            whole = count == f.n && near >= sight.from && far <= sight.until;
            open = false.runtime();
        } else {
            tile += 1;
            open = tile * f.n < rows;
        }
    }
    (tile, whole)
}

/// Starts to bring a tile of queries and their outputs' cotangents, and lists what else is known of them.
#[cube]
fn pair(
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    tile: &mut Tile,
    slot: usize,
    l: &Lines,
    batch: usize,
    number: usize,
    #[comptime] plan: Plan,
) {
    let f = comptime![plan.f];
    let rows = l.times * l.groups;
    let start = number * f.n;
    if start < rows {
        let (grouped, q, d) = comptime![(f.grouped, plan.places.q, plan.places.dout)];
        let to = comptime![2 * f.m * f.pitch()] + slot * comptime![2 * f.n * f.pitch()];
        bring(operands, memory, to, l, start, comptime![f.n], q, grouped, f);
        bring(operands, memory, to + comptime![f.n * f.pitch()], l, start, comptime![f.n], d, grouped, f);
        #[unroll]
        for i in 0..comptime![f.n.div_ceil(f.units())] {
            let r = UNIT_POS as usize + comptime![i * f.units()];
            if r < f.n {
                let row = min(start + r, rows - 1);
                let query = line(l, row, grouped);
                let into = slot * f.n + r;
                tile.level[into] = level(operands.f32s.index(plan.places.lse.index)[query]);
                tile.delta[into] = operands.f32s.index(plan.places.delta.index)[query];
                tile.lo[into] = lo(operands, batch + row / l.groups, plan.mask);
                tile.hi[into] = hi(operands, batch + row / l.groups, plan.mask);
            }
        }
    }
    commit();
}

/// Scores of what a query does not see become `MASKED`; rows are keys, columns the `count` queries that there are.
#[cube]
fn hide(p: &mut Sums, places: &Array<i32>, tile: &Tile, listed: usize, count: usize, #[comptime] f: Frame) {
    #[unroll]
    for j in 0..comptime![f.n / 8] {
        #[unroll]
        for e in 0..2usize {
            let column = own_column(j) + e;
            let (from, until) = (tile.lo[listed + column], tile.hi[listed + column]);
            #[unroll]
            for r in 0..comptime![f.tall() * 2] {
                let at = comptime![r / 2 * f.n / 8 + j];
                let l = comptime![r % 2 * 2 + e];
                let sees = column < count && places[r] >= from && places[r] <= until;
                let mut four = p[at];
                four.insert(l, select(sees, four.extract(l), MASKED));
                p[at] = four;
            }
        }
    }
}

/// Scores become p, and products with values ds = p (dp - delta); 0 where a query does not see.
#[cube]
fn weigh(tile: &Tile, listed: usize, p: &mut Sums, ds: &mut Sums, #[comptime] f: Frame) {
    let scale = comptime![f.scale()].runtime();
    #[unroll]
    for j in 0..comptime![f.n / 8] {
        #[unroll]
        for e in 0..2usize {
            let column = listed + own_column(j) + e;
            let (level, delta) = (tile.level[column], tile.delta[column]);
            #[unroll]
            for r in 0..comptime![f.tall() * 2] {
                let at = comptime![r / 2 * f.n / 8 + j];
                let l = comptime![r % 2 * 2 + e];
                let (mut weights, mut shares) = (p[at], ds[at]);
                let weight = power(fma(weights.extract(l), scale, -level));
                weights.insert(l, weight);
                shares.insert(l, weight * (shares.extract(l) - delta));
                p[at] = weights;
                ds[at] = shares;
            }
        }
    }
}
