//! Cotangents of attention's keys and values on Hopper's matrix units, for bf16: blocks of keys over tiles of queries.
//!
//! A cube takes a block of keys, a warpgroup 64 of them, and walks the queries of each head of its group in turn, so that
//! a group's sums are made in one place and in one order. Scores lie on their side, keys by queries: what becomes of them
//! in registers is the left factor that weighs the rows of queries and of their outputs' cotangents. Products are
//! asynchronous: weights are made while the values' side is still multiplied, and the keys' sums are under way when the
//! next tile begins.
//!
//! Implements  `@attention_dkv`
//! Schedule    a cube `m` keys, a warpgroup 64 of them; `n` queries a tile, `stages` tiles of queries or cotangents
//! Needs       CUDA of compute capability 9.0 (sm_90a); bf16 (cotangents of scores may be too large for f16); D a multiple of 16, at most 128
//! Cost        8·D FLOP a visible pair; weights and the scores' cotangents are rounded to bf16 before they weigh; no atomics
//! Source      Shah et al. 2024, FlashAttention-3, arXiv:2407.08608; PTX ISA, `wgmma.mma_async`

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{BackPlaces, back_places, backward};
use crate::attention_fragments::{
    FRAGMENT, Frame, Lines, MASKED, Shape, Sums, framed, level, line, own_column, own_row, power, reach, schedules,
    write_row,
};
use crate::attention_sight::{Mask, at, hi, lo};
use crate::attention_spans::{Span, blocks_first, seek_queries, span_of_queries, span_words};
use crate::attention_warpgroups::{block, differentiates_here, scores, shares, slopes, tile};
use crate::bind::Buffers;
use crate::einsum_copies::{commit, shared_address, wait};
use crate::grid::{address, one_each};
use crate::prepared::{Prepared, runner, unfit};
use crate::warpgroups::{
    ATOM, GROUP, LINE, Pack, ROWS, Set, Side, bring_tile, clear, close_products, declare, declare_pack, descriptor,
    multiply, multiply_packed, order, pack_sums, read_sums, show, wait_products,
};
use crate::{Launch, LaunchError};

const SHAPES: [Shape; 3] = [[128, 64, FRAGMENT, 1, 3], [64, 64, FRAGMENT, 1, 2], [64, 32, FRAGMENT, 1, 3]];

/// Differentiates attention by blocks of keys on warpgroups.
pub struct AttentionDkvWgmma;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    places: BackPlaces,
    mask: Mask,
    f: Frame,
}

fn sums_k(f: &Frame) -> Set {
    Set { name: "x", columns: f.d, dtype: f.dtype }
}

fn sums_v(f: &Frame) -> Set {
    Set { name: "y", columns: f.d, dtype: f.dtype }
}

fn weights(f: &Frame) -> Pack {
    Pack { name: "p", depth: f.n, dtype: f.dtype }
}

/// Words of shared memory: keys and values, tiles of queries and of cotangents, two words of each query, and the span.
fn words(f: &Frame) -> usize {
    tiles(f) + 2 * f.depth * f.n + span_words(f)
}

/// Those of them that are tiles.
fn tiles(f: &Frame) -> usize {
    2 * block(f).words() + 2 * f.depth * tile(f).words()
}

/// Registers that a unit cannot do without, less those of the factors that other matrix units take.
fn held(f: &Frame) -> usize {
    let all = scores(f).count() + shares(f).count() + sums_k(f).count() + sums_v(f).count();
    (all + weights(f).count() + slopes(f).count()).saturating_sub(32)
}

impl Kernel for AttentionDkvWgmma {
    fn name(&self) -> &'static str {
        "attention_dkv.wgmma"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["attention_dkv"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, operands, _) = backward(work, "attention_dkv", 2)?;
        differentiates_here(target, &n, &operands[0])?;
        schedules(target, n.d, (n.b * n.h, n.s), &SHAPES, words, held)
    }
}

impl Launch for AttentionDkvWgmma {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = backward(work, "attention_dkv", 2).map_err(unfit(self.name()))?;
        let (places, ins, outs) = back_places(operands, results);
        let f = framed(&n, &operands[0], schedule);
        let (items, words) = blocks_first(&n, n.b * n.h, n.s, f.m);
        let (cubes, units) = one_each(items, schedule.get("units"));
        let bits = address(schedule);
        let plan = Plan { places, mask: places.into(), f };
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| attention_dkv_wgmma, bits, b.meta, b.operands, b.results, plan),
        ))
    }
}

/// The queries that a cube walks over.
#[derive(CubeType, Clone, Copy)]
struct Walk {
    span: Span,
    /// The first query head of the group, and how many there are.
    head: usize,
    groups: usize,
    times: usize,
    /// The batch's first query in the masks.
    batch: usize,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_dkv_wgmma(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
    let mut memory = Shared::<[f32]>::new_aligned_slice(comptime![tiles(&plan.f)], ATOM);
    let mut known = Shared::<[f32]>::new_aligned_slice(comptime![2 * plan.f.depth * plan.f.n], 16usize);
    let mut ends = Shared::<[u32]>::new_slice(comptime![span_words(&plan.f)]);
    declare(comptime![scores(&plan.f)]);
    declare(comptime![shares(&plan.f)]);
    declare(comptime![sums_k(&plan.f)]);
    declare(comptime![sums_v(&plan.f)]);
    declare_pack(comptime![weights(&plan.f)]);
    declare_pack(comptime![slopes(&plan.f)]);
    let item = CUBE_POS;
    if item < meta[0] as usize {
        let f = comptime![plan.f];
        let all = meta[1] as usize;
        let (times, groups) = (meta[2] as usize, meta[3] as usize);
        let (heads, keys) = (meta[4] as usize, meta[5] as usize);
        let head = item % all;
        let batch = head / heads;
        // The first keys are seen by the most queries: they go first.
        let first = item / all * f.m;
        let own = Lines { head, groups: 1usize.runtime(), times: keys };
        let count = min(keys - first, comptime![f.m].runtime());
        let near_far = reach(operands, batch * keys + first, count, comptime![f.m], plan.mask);
        let span = span_of_queries(operands, &mut ends, near_far, batch * times, times, plan.mask, f);
        let walk = Walk { span, head: head * groups, groups, times, batch: batch * times };
        let mut places = Array::<i32>::new(2usize);
        #[unroll]
        for r in 0..2usize {
            places[r] = at(operands, batch * keys + min(first + own_row(r, f), keys - 1), plan.mask);
        }

        let base = shared_address(&memory);
        let mine = base + (UNIT_POS / comptime![GROUP as u32]) as u64 * comptime![(ROWS * LINE * 2) as u64];
        let k = descriptor(mine, comptime![Side::Along], comptime![block(&f)]);
        let v = k + comptime![block(&f).words() as u64 / 4];
        let from = base + comptime![8 * block(&f).words() as u64];
        let q = descriptor(from, comptime![Side::Along], comptime![tile(&f)]);
        let q_rows = descriptor(from, comptime![Side::Across], comptime![tile(&f)]);
        let size = comptime![tile(&f).words() as u64 / 4];
        let mut p = Sums::new(comptime![f.scores()]);
        let mut ds = Sums::new(comptime![f.scores()]);
        clear(comptime![sums_k(&f)]);
        clear(comptime![sums_v(&f)]);

        let (of, units) = comptime![(block(&f), f.units())];
        bring_tile(operands, &mut memory, 0usize, &own, first, of, comptime![plan.places.k], false, units);
        let into = comptime![block(&f).words()].runtime();
        bring_tile(operands, &mut memory, into, &own, first, of, comptime![plan.places.v], false, units);
        let sizes = (walk.batch, times, groups);
        let start = walk.span.first;
        let (mut turn, mut now, mut whole) =
            seek_queries(operands, &walk.span, near_far, sizes, 0usize, start, plan.mask, f);
        let mut slot = 0u32.runtime();
        let (of_level, of_delta) = fetch(operands, &mut memory, slot, &walk, turn, now, plan);
        list(&mut known, slot, of_level, of_delta, f);
        while turn < groups {
            // This tile is there, for all units and for matrix units; and nobody reads the one that is filled next.
            wait(0usize);
            show();
            sync_cube();
            let here = slot as u64 * comptime![2 * size];
            order();
            multiply(k, q + here, true, comptime![block(&f)], comptime![tile(&f)], comptime![scores(&f)]);
            close_products();
            multiply(v, q + here + size, true, comptime![block(&f)], comptime![tile(&f)], comptime![shares(&f)]);
            close_products();

            let after = select(slot == comptime![f.depth as u32 - 1], 0u32, slot + 1);
            let (next_turn, next, next_whole) =
                seek_queries(operands, &walk.span, near_far, sizes, turn, now + 1, plan.mask, f);
            let (of_level, of_delta) = fetch(operands, &mut memory, after, &walk, next_turn, next, plan);

            // The keys' sums of the tile before and the scores.
            wait_products(1usize);
            read_sums(&mut p, comptime![scores(&f)]);
            if !whole {
                hide(operands, &mut p, &places, &walk, now, plan);
            }
            weigh(&known, slot, &mut p, f);
            pack_sums(&p, comptime![weights(&f)]);
            order();
            multiply_packed(q_rows + here + size, comptime![weights(&f)], comptime![tile(&f)], comptime![sums_v(&f)]);
            close_products();
            // The values' side.
            wait_products(1usize);
            read_sums(&mut ds, comptime![shares(&f)]);
            share(&known, slot, &p, &mut ds, f);
            pack_sums(&ds, comptime![slopes(&f)]);
            order();
            multiply_packed(q_rows + here, comptime![slopes(&f)], comptime![tile(&f)], comptime![sums_k(&f)]);
            close_products();
            // The weights may change; and of two tiles this one is filled as soon as all units are here.
            wait_products(comptime![usize::from(f.depth > 2)]);
            list(&mut known, after, of_level, of_delta, f);
            slot = after;
            turn = next_turn;
            now = next;
            whole = next_whole;
        }
        wait(0usize);
        wait_products(0usize);
        let scale = comptime![1.0 / (f.d as f32).sqrt()].runtime();
        let mut out = Sums::new(comptime![f.sums()]);
        read_sums(&mut out, comptime![sums_k(&f)]);
        #[unroll]
        for r in 0..2usize {
            let row = first + own_row(r, f);
            if row < keys {
                write_row(results, &out, line(&own, row, false), scale, r, plan.places.first, f);
            }
        }
        read_sums(&mut out, comptime![sums_v(&f)]);
        #[unroll]
        for r in 0..2usize {
            let row = first + own_row(r, f);
            if row < keys {
                write_row(results, &out, line(&own, row, false), 1.0f32.runtime(), r, plan.places.second, f);
            }
        }
    }
}

/// Starts to bring a tile of queries and their outputs' cotangents, if there is one; yields the level and the delta of
/// the unit's query, which nobody waits for yet.
#[cube]
fn fetch(
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    slot: u32,
    w: &Walk,
    turn: usize,
    number: usize,
    #[comptime] plan: Plan,
) -> (f32, f32) {
    let f = comptime![plan.f];
    let mut of_level = 0.0f32.runtime();
    let mut of_delta = 0.0f32.runtime();
    if turn < w.groups {
        let l = Lines { head: w.head + turn, groups: 1usize.runtime(), times: w.times };
        let start = number * f.n;
        let (of, units) = comptime![(tile(&f), f.units())];
        let to = comptime![2 * block(&f).words()] + slot as usize * comptime![2 * tile(&f).words()];
        bring_tile(operands, memory, to, &l, start, of, comptime![plan.places.q], false, units);
        let to = to + comptime![tile(&f).words()];
        bring_tile(operands, memory, to, &l, start, of, comptime![plan.places.dout], false, units);
        let query = line(&l, min(start + UNIT_POS as usize % f.n, w.times - 1), false);
        of_level = operands.f32s.index(plan.places.lse.index)[query];
        of_delta = operands.f32s.index(plan.places.delta.index)[query];
    }
    commit();
    (of_level, of_delta)
}

/// Lists what is known of a tile's queries.
#[cube]
fn list(known: &mut Shared<[f32]>, slot: u32, of_level: f32, of_delta: f32, #[comptime] f: Frame) {
    if (UNIT_POS as usize) < f.n {
        let into = slot as usize * comptime![2 * f.n] + UNIT_POS as usize;
        known[into] = level(of_level);
        known[into + f.n] = of_delta;
    }
}

/// Scores of what a query does not see become `MASKED`; rows are keys, columns queries.
#[cube]
fn hide(operands: &Buffers, p: &mut Sums, places: &Array<i32>, w: &Walk, number: usize, #[comptime] plan: Plan) {
    let f = comptime![plan.f];
    let start = number * f.n;
    #[unroll]
    for j in 0..comptime![f.n / 8] {
        #[unroll]
        for e in 0..2usize {
            let t = start + own_column(j) + e;
            let query = w.batch + min(t, w.times - 1);
            let (from, until) = (lo(operands, query, plan.mask), hi(operands, query, plan.mask));
            let mut four = p[j];
            #[unroll]
            for r in 0..2usize {
                let l = comptime![r * 2 + e];
                let sees = t < w.times && places[r] >= from && places[r] <= until;
                four.insert(l, select(sees, four.extract(l), MASKED));
            }
            p[j] = four;
        }
    }
}

/// Scores become p.
#[cube]
fn weigh(known: &Shared<[f32]>, slot: u32, p: &mut Sums, #[comptime] f: Frame) {
    let scale = comptime![f.scale()].runtime();
    let from = slot as usize * comptime![2 * f.n] + own_column(0usize);
    let levels = &known[from..from + comptime![f.n - 6]];
    #[unroll]
    for j in 0..comptime![f.n / 8] {
        let (even, odd) = (levels[comptime![8 * j]], levels[comptime![8 * j + 1]]);
        let mut four = p[j];
        #[unroll]
        for r in 0..2usize {
            let (a, b) = (four.extract(comptime![2 * r]), four.extract(comptime![2 * r + 1]));
            four.insert(comptime![2 * r], power(fma(a, scale, -even)));
            four.insert(comptime![2 * r + 1], power(fma(b, scale, -odd)));
        }
        p[j] = four;
    }
}

/// Products with values become ds = p (dp - delta); 0 where a query does not see.
#[cube]
fn share(known: &Shared<[f32]>, slot: u32, p: &Sums, ds: &mut Sums, #[comptime] f: Frame) {
    let from = slot as usize * comptime![2 * f.n] + comptime![f.n] + own_column(0usize);
    let deltas = &known[from..from + comptime![f.n - 6]];
    #[unroll]
    for j in 0..comptime![f.n / 8] {
        let (even, odd) = (deltas[comptime![8 * j]], deltas[comptime![8 * j + 1]]);
        let (weights, mut four) = (p[j], ds[j]);
        #[unroll]
        for r in 0..2usize {
            let (a, b) = (comptime![2 * r], comptime![2 * r + 1]);
            four.insert(a, weights.extract(a) * (four.extract(a) - even));
            four.insert(b, weights.extract(b) * (four.extract(b) - odd));
        }
        ds[j] = four;
    }
}
