//! Cotangents of attention's queries on Hopper's matrix units, for bf16: blocks of queries over tiles of keys.
//!
//! A cube takes a block of one head's queries, a warpgroup 64 of them, and walks the tiles of keys that they see. Scores
//! and the values' side of the softmax are products along D; what they give is packed in registers, the left factor that
//! weighs the keys' rows. Products are asynchronous: weights are made while the values' side is still multiplied, and the
//! sums are under way when the next tile begins.
//!
//! Implements  `@attention_dq`
//! Schedule    a cube `m` queries, a warpgroup 64 of them; `n` keys a tile, `stages` tiles of keys or values under way
//! Needs       CUDA of compute capability 9.0 (sm_90a); bf16 (cotangents of scores may be too large for f16); D a multiple of 16, at most 128
//! Cost        6·D FLOP a visible pair; the scores' cotangents are rounded to bf16 before they weigh; no atomics
//! Source      Shah et al. 2024, FlashAttention-3, arXiv:2407.08608; PTX ISA, `wgmma.mma_async`

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{BackPlaces, back_places, backward};
use crate::attention_fragments::{
    FRAGMENT, Frame, Lines, Shape, Sums, framed, hide_keys, level, line, own_row, power, schedules, view, write_row,
};
use crate::attention_sight::{Mask, hi, lo};
use crate::attention_spans::{Span, blocks_first, seek_keys, span_of_keys, span_words};
use crate::attention_warpgroups::{block, differentiates_here, scores, shares, slopes, tile};
use crate::bind::Buffers;
use crate::einsum_copies::{commit, shared_address, wait};
use crate::grid::{address, one_each};
use crate::prepared::{Prepared, runner, unfit};
use crate::warpgroups::{
    ATOM, GROUP, LINE, ROWS, Set, Side, bring_tile, clear, close_products, declare, declare_pack, descriptor, multiply,
    multiply_packed, order, pack_sums, read_sums, show, wait_products,
};
use crate::{Launch, LaunchError};

const SHAPES: [Shape; 4] =
    [[128, 64, FRAGMENT, 1, 3], [128, 128, FRAGMENT, 1, 2], [64, 64, FRAGMENT, 1, 2], [64, 32, FRAGMENT, 1, 3]];

/// Differentiates attention by blocks of queries on warpgroups.
pub struct AttentionDqWgmma;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    places: BackPlaces,
    mask: Mask,
    f: Frame,
}

fn sums(f: &Frame) -> Set {
    Set { name: "x", columns: f.d, dtype: f.dtype }
}

/// Words of shared memory: queries and cotangents, tiles of keys and of values, and the span.
fn words(f: &Frame) -> usize {
    tiles(f) + span_words(f)
}

/// Those of them that are tiles.
fn tiles(f: &Frame) -> usize {
    2 * block(f).words() + 2 * f.depth * tile(f).words()
}

/// Registers that a unit cannot do without, less those of the factors that other matrix units take.
fn held(f: &Frame) -> usize {
    let all = scores(f).count() + shares(f).count() + sums(f).count() + slopes(f).count();
    all.saturating_sub(32)
}

impl Kernel for AttentionDqWgmma {
    fn name(&self) -> &'static str {
        "attention_dq.wgmma"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["attention_dq"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, operands, _) = backward(work, "attention_dq", 1)?;
        differentiates_here(target, &n, &operands[0])?;
        schedules(target, n.d, (n.b * n.h * n.g, n.t), &SHAPES, words, held)
    }
}

impl Launch for AttentionDqWgmma {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = backward(work, "attention_dq", 1).map_err(unfit(self.name()))?;
        let (places, ins, outs) = back_places(operands, results);
        let f = framed(&n, &operands[0], schedule);
        let (items, words) = blocks_first(&n, n.b * n.h * n.g, n.t, f.m);
        let (cubes, units) = one_each(items, schedule.get("units"));
        let bits = address(schedule);
        let plan = Plan { places, mask: places.into(), f };
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| attention_dq_wgmma, bits, b.meta, b.operands, b.results, plan),
        ))
    }
}

/// What a unit keeps of its two rows.
#[derive(CubeType)]
struct Rows {
    level: Array<f32>,
    delta: Array<f32>,
    lo: Array<i32>,
    hi: Array<i32>,
}

/// The keys that a cube walks over.
#[derive(CubeType, Clone, Copy)]
struct Walk {
    span: Span,
    lines: Lines,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_dq_wgmma(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
    let mut memory = Shared::<[f32]>::new_aligned_slice(comptime![tiles(&plan.f)], ATOM);
    let mut ends = Shared::<[u32]>::new_slice(comptime![span_words(&plan.f)]);
    declare(comptime![scores(&plan.f)]);
    declare(comptime![shares(&plan.f)]);
    declare(comptime![sums(&plan.f)]);
    declare_pack(comptime![slopes(&plan.f)]);
    let item = CUBE_POS;
    if item < meta[0] as usize {
        let f = comptime![plan.f];
        let all = meta[1] as usize;
        let (times, groups) = (meta[2] as usize, meta[3] as usize);
        let (heads, keys) = (meta[4] as usize, meta[5] as usize);
        // Heads of a group are neighbours; later queries see more keys: they go first.
        let (query_head, turn) = (item % all, item / all);
        let head = query_head / groups;
        let batch = head / heads;
        let blocks = times.div_ceil(f.m);
        let first = (blocks - 1 - turn) * f.m;
        let count = min(times - first, comptime![f.m].runtime());
        let queries = Lines { head: query_head, groups: 1usize.runtime(), times };
        let sight = view(operands, batch * times + first, count, plan.mask);
        let span = span_of_keys(operands, &mut ends, &sight, batch * keys, keys, plan.mask, f);
        let walk = Walk { span, lines: Lines { head, groups: 1usize.runtime(), times: keys } };
        let own = own(operands, &queries, batch * times, first, plan);

        let base = shared_address(&memory);
        let mine = base + (UNIT_POS / comptime![GROUP as u32]) as u64 * comptime![(ROWS * LINE * 2) as u64];
        let q = descriptor(mine, comptime![Side::Along], comptime![block(&f)]);
        let d = q + comptime![block(&f).words() as u64 / 4];
        let from = base + comptime![8 * block(&f).words() as u64];
        let k = descriptor(from, comptime![Side::Along], comptime![tile(&f)]);
        let k_rows = descriptor(from, comptime![Side::Across], comptime![tile(&f)]);
        let size = comptime![tile(&f).words() as u64 / 4];
        let mut p = Sums::new(comptime![f.scores()]);
        let mut ds = Sums::new(comptime![f.scores()]);
        clear(comptime![sums(&f)]);

        let (of, units) = comptime![(block(&f), f.units())];
        bring_tile(operands, &mut memory, 0usize, &queries, first, of, comptime![plan.places.q], false, units);
        let into = comptime![block(&f).words()].runtime();
        bring_tile(operands, &mut memory, into, &queries, first, of, comptime![plan.places.dout], false, units);
        let sizes = (batch * keys, keys);
        let (mut now, mut whole) = seek_keys(operands, &walk.span, &sight, sizes, 0usize, plan.mask, f);
        let mut slot = 0u32.runtime();
        fetch(operands, &mut memory, slot, &walk, now, plan);
        while now < walk.span.count {
            // These tiles are there, for all units and for matrix units; and nobody reads those that are filled next.
            wait(0usize);
            show();
            sync_cube();
            let here = slot as u64 * comptime![2 * size];
            order();
            multiply(q, k + here, true, comptime![block(&f)], comptime![tile(&f)], comptime![scores(&f)]);
            close_products();
            multiply(d, k + here + size, true, comptime![block(&f)], comptime![tile(&f)], comptime![shares(&f)]);
            close_products();

            let after = select(slot == comptime![f.depth as u32 - 1], 0u32, slot + 1);
            let (next, next_whole) = seek_keys(operands, &walk.span, &sight, sizes, now + 1, plan.mask, f);
            fetch(operands, &mut memory, after, &walk, next, plan);

            // The sums of the tile before and the scores.
            wait_products(1usize);
            read_sums(&mut p, comptime![scores(&f)]);
            if !whole {
                let start = (walk.span.first + now) * f.n;
                let count = min(keys - start, comptime![f.n].runtime());
                hide_keys(operands, &mut p, &own.lo, &own.hi, batch * keys + start, count, plan.mask, f);
            }
            weigh(&own, &mut p, f);
            // The values' side.
            wait_products(0usize);
            read_sums(&mut ds, comptime![shares(&f)]);
            share(&own, &p, &mut ds, f);
            pack_sums(&ds, comptime![slopes(&f)]);
            order();
            multiply_packed(k_rows + here, comptime![slopes(&f)], comptime![tile(&f)], comptime![sums(&f)]);
            close_products();
            if comptime![f.depth == 2] {
                // Of two tiles this one is filled as soon as all units are here.
                wait_products(0usize);
            }
            slot = after;
            now = next;
            whole = next_whole;
        }
        wait(0usize);
        wait_products(0usize);
        let scale = comptime![1.0 / (f.d as f32).sqrt()].runtime();
        let mut out = Sums::new(comptime![f.sums()]);
        read_sums(&mut out, comptime![sums(&f)]);
        #[unroll]
        for r in 0..2usize {
            let row = first + own_row(r, f);
            if row < times {
                write_row(results, &out, line(&queries, row, false), scale, r, plan.places.first, f);
            }
        }
    }
}

/// Starts to bring a tile of keys and its values, if there is one.
#[cube]
fn fetch(operands: &Buffers, memory: &mut Shared<[f32]>, slot: u32, w: &Walk, number: usize, #[comptime] plan: Plan) {
    let f = comptime![plan.f];
    if number < w.span.count {
        let start = (w.span.first + number) * f.n;
        let (of, units) = comptime![(tile(&f), f.units())];
        let to = comptime![2 * block(&f).words()] + slot as usize * comptime![2 * tile(&f).words()];
        bring_tile(operands, memory, to, &w.lines, start, of, comptime![plan.places.k], false, units);
        let to = to + comptime![tile(&f).words()];
        bring_tile(operands, memory, to, &w.lines, start, of, comptime![plan.places.v], false, units);
    }
    commit();
}

#[cube]
fn own(operands: &Buffers, queries: &Lines, batch: usize, first: usize, #[comptime] plan: Plan) -> Rows {
    let mut own =
        Rows { level: Array::new(2usize), delta: Array::new(2usize), lo: Array::new(2usize), hi: Array::new(2usize) };
    #[unroll]
    for r in 0..2usize {
        let row = min(first + own_row(r, plan.f), queries.times - 1);
        let query = line(queries, row, false);
        own.level[r] = level(operands.f32s.index(plan.places.lse.index)[query]);
        own.delta[r] = operands.f32s.index(plan.places.delta.index)[query];
        own.lo[r] = lo(operands, batch + row, plan.mask);
        own.hi[r] = hi(operands, batch + row, plan.mask);
    }
    own
}

/// Scores become p.
#[cube]
fn weigh(own: &Rows, p: &mut Sums, #[comptime] f: Frame) {
    let scale = comptime![f.scale()].runtime();
    #[unroll]
    for j in 0..comptime![f.n / 8] {
        let mut four = p[j];
        #[unroll]
        for l in 0..4usize {
            four.insert(l, power(fma(four.extract(l), scale, -own.level[comptime![l / 2]])));
        }
        p[j] = four;
    }
}

/// Products with values become ds = p (dp - delta); 0 where a query does not see.
#[cube]
fn share(own: &Rows, p: &Sums, ds: &mut Sums, #[comptime] f: Frame) {
    #[unroll]
    for j in 0..comptime![f.n / 8] {
        let (weights, mut four) = (p[j], ds[j]);
        #[unroll]
        for l in 0..4usize {
            four.insert(l, weights.extract(l) * (four.extract(l) - own.delta[comptime![l / 2]]));
        }
        ds[j] = four;
    }
}
