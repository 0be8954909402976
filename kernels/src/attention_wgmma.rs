//! Attention of bf16 or f16 on Hopper's matrix units: warpgroups of 64 queries over tiles of keys.
//!
//! A cube takes the block of queries that `attention.mma` takes, and walks the keys the same way. Both factors of the
//! scores lie in shared memory; what the softmax makes of them is packed in registers, the left factor of the products
//! with the values. Products are asynchronous: the scores of the next tile and the values of this one are under way while
//! tiles come in, and the softmax of the next runs while the values of this one are still being summed.
//!
//! Implements  `@attention`, `@attention_partial`, `@attention_onto`
//! Schedule    a cube `m` queries, a warpgroup 64 of them; `n` keys a tile, two tiles of keys and two of values under way
//! Needs       CUDA of compute capability 9.0 (sm_90a); bf16 or f16; D a multiple of 8, at most 256; 32 queries a group
//! Cost        4·D FLOP a visible pair in f32 sums of exact products; weights are rounded to halves before they weigh
//! Source      Shah et al. 2024, FlashAttention-3, arXiv:2407.08608; PTX ISA, `wgmma.mma_async`

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{FORWARD, blocks, instance, places};
use crate::attention_fragments::{
    FRAGMENT, Frame, Lines, Shape, Sums, framed, hide_keys, multiplies_by, schedules, seek, view, zero,
};
use crate::attention_softmax::{Plan, Softmax, carry_on, finish, softmax, weigh};
use crate::attention_warpgroups::{block, on_warpgroups, scores, tile};
use crate::bind::{Buffers, Slot};
use crate::einsum_copies::{CHUNK, commit, shared_address, wait};
use crate::grid::{address, one_each};
use crate::prepared::{Prepared, runner, unfit};
use crate::warpgroups::{
    ATOM, GROUP, LINE, Pack, ROWS, STEP, Set, Side, bring_tile, close_products, declare, declare_pack, descriptor,
    multiply, multiply_packed, order, pack_sums, read_sums, scale_row, show, wait_products, write_sums,
};
use crate::{Launch, LaunchError};

/// Least queries of a group that a warpgroup is worth.
const LEAST: usize = ROWS / 2;

const SHAPES: [Shape; 4] =
    [[128, 128, FRAGMENT, 1, 2], [192, 64, FRAGMENT, 1, 2], [128, 64, FRAGMENT, 1, 2], [64, 64, FRAGMENT, 1, 2]];

/// Attends by warpgroups.
pub struct AttentionWgmma;

/// The registers of products.
fn sums(f: &Frame) -> Set {
    Set { name: "o", columns: f.d.next_multiple_of(STEP), dtype: f.dtype }
}

fn weights(f: &Frame) -> Pack {
    Pack { name: "p", depth: f.n, dtype: f.dtype }
}

/// Words of shared memory: queries, and tiles of keys and of values.
fn words(f: &Frame) -> usize {
    block(f).words() + 2 * f.depth * tile(f).words()
}

/// Registers that a unit cannot do without; those of a third warpgroup are taken from the first two.
fn held(f: &Frame) -> usize {
    let taken = if f.units() > 2 * GROUP { 80 } else { 0 };
    scores(f).count() + sums(f).count() + weights(f).count() + taken
}

impl Kernel for AttentionWgmma {
    fn name(&self) -> &'static str {
        "attention.wgmma"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(FORWARD)
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, operands, _) = instance(work)?;
        multiplies_by(target, &n, &operands[0], CHUNK)?;
        on_warpgroups(target)?;
        if n.g * n.t < LEAST {
            return Err(Refusal(format!("a block takes at least {LEAST} queries a group, not {}", n.g * n.t)));
        }
        // A head that ends inside a step is filled up with zeros.
        schedules(target, n.d.next_multiple_of(STEP), (n.b * n.h, n.g * n.t), &SHAPES, words, held)
    }
}

impl Launch for AttentionWgmma {
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
            runner!(|b| attention_wgmma, bits, b.meta, b.operands, b.results, plan),
        ))
    }
}

/// Where a block's keys are, and which of them it sees.
#[derive(CubeType, Clone, Copy)]
struct Walk {
    others: Lines,
    batch: usize,
    keys: usize,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_wgmma(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
    let mut memory = Shared::<[f32]>::new_aligned_slice(comptime![words(&plan.f)], ATOM);
    declare(comptime![scores(&plan.f)]);
    declare(comptime![sums(&plan.f)]);
    declare_pack(comptime![weights(&plan.f)]);
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
        let walk = Walk { others: Lines { head, groups: 1usize.runtime(), times: keys }, batch, keys };
        let until = min(first + comptime![f.m - 1], last) / groups + 1;
        let sight = view(operands, batch * times + first / groups, until - first / groups, plan.mask);

        let mut softmax = softmax(operands, batch * times, first, last, groups, plan);
        let held = comptime![sums(&f).count() / 4];
        let mut out = Sums::new(held);
        zero(&mut out, held);
        carry_on(operands, &mut softmax, &mut out, &queries, first, last, plan);
        write_sums(&out, comptime![sums(&f)]);

        let (mut now, mut whole) = seek(operands, &sight, batch, keys, 0usize, plan.mask, f);
        if now * f.n < keys {
            let base = shared_address(&memory);
            let rest = comptime![block(&f).words()];
            let own = (UNIT_POS / comptime![GROUP as u32]) as u64 * comptime![(ROWS * LINE * 2) as u64];
            let q = descriptor(base + own, comptime![Side::Along], comptime![block(&f)]);
            let k = descriptor(base + comptime![4 * rest as u64], comptime![Side::Along], comptime![tile(&f)]);
            let v_from = comptime![4 * (rest + f.depth * tile(&f).words()) as u64];
            let v = descriptor(base + v_from, comptime![Side::Across], comptime![tile(&f)]);
            let mut p = Sums::new(comptime![f.scores()]);
            let mut falls = Array::<f32>::new(2usize);

            let grouped = comptime![f.grouped];
            bring_tile(
                operands,
                &mut memory,
                0usize,
                &queries,
                first,
                comptime![block(&f)],
                plan.places.q,
                grouped,
                comptime![f.units()],
            );
            fetch(operands, &mut memory, 0u32, &walk, now, comptime![plan.places.k], f);
            commit();
            let (mut next, mut next_whole) = seek(operands, &sight, batch, keys, now + 1, plan.mask, f);
            fetch(operands, &mut memory, 1u32, &walk, next, comptime![plan.places.k], f);
            fetch(operands, &mut memory, 2u32, &walk, now, comptime![plan.places.v], f);
            commit();
            wait(1usize);
            show();
            sync_cube();
            order();
            multiply(q, k, true, comptime![block(&f)], comptime![tile(&f)], comptime![scores(&f)]);
            close_products();
            wait_products(0usize);
            soften(operands, &mut softmax, &mut p, &mut falls, &walk, now, whole, plan);
            let mut slot = 0u32.runtime();
            while next * f.n < keys {
                let other = 1u32 - slot;
                // The next keys and these values are there, for all units, and nobody reads the tiles before these.
                wait(0usize);
                show();
                wait_products(0usize);
                sync_cube();
                lower(&falls, &p, f);
                order();
                multiply(
                    q,
                    k + tile_at(other, f),
                    true,
                    comptime![block(&f)],
                    comptime![tile(&f)],
                    comptime![scores(&f)],
                );
                close_products();
                multiply_packed(v + tile_at(slot, f), comptime![weights(&f)], comptime![tile(&f)], comptime![sums(&f)]);
                close_products();
                // Beside the products.
                now = next;
                whole = next_whole;
                let (after, after_whole) = seek(operands, &sight, batch, keys, now + 1, plan.mask, f);
                next = after;
                next_whole = after_whole;
                fetch(operands, &mut memory, slot, &walk, next, comptime![plan.places.k], f);
                fetch(operands, &mut memory, 2 + other, &walk, now, comptime![plan.places.v], f);
                commit();
                wait_products(1usize);
                soften(operands, &mut softmax, &mut p, &mut falls, &walk, now, whole, plan);
                slot = other;
            }
            wait(0usize);
            show();
            sync_cube();
            wait_products(0usize);
            lower(&falls, &p, f);
            order();
            multiply_packed(v + tile_at(slot, f), comptime![weights(&f)], comptime![tile(&f)], comptime![sums(&f)]);
            close_products();
            wait_products(0usize);
        }
        read_sums(&mut out, comptime![sums(&f)]);
        finish(results, &softmax, &out, &queries, first, last, plan);
    }
}

/// Sixteenths of bytes to a tile of a kind.
#[cube]
fn tile_at(slot: u32, #[comptime] f: Frame) -> u64 {
    slot as u64 * comptime![tile(&f).words() as u64 / 4]
}

/// Starts to bring tile number `tile` of keys or of values to a slot, if there is one.
#[cube]
fn fetch(
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    slot: u32,
    walk: &Walk,
    number: usize,
    #[comptime] from: Slot,
    #[comptime] f: Frame,
) {
    if number * f.n < walk.keys {
        let into = comptime![block(&f).words()] + slot as usize * comptime![tile(&f).words()];
        bring_tile(
            operands,
            memory,
            into,
            &walk.others,
            number * f.n,
            comptime![tile(&f)],
            from,
            false,
            comptime![f.units()],
        );
    }
}

/// Scores that are there become weights, in registers that no product uses.
#[cube]
fn soften(
    operands: &Buffers,
    s: &mut Softmax,
    p: &mut Sums,
    falls: &mut Array<f32>,
    walk: &Walk,
    number: usize,
    whole: bool,
    #[comptime] plan: Plan,
) {
    let f = comptime![plan.f];
    read_sums(p, comptime![scores(&f)]);
    if !whole {
        let start = number * f.n;
        let count = min(walk.keys - start, comptime![f.n].runtime());
        hide_keys(operands, p, &s.lo, &s.hi, walk.batch * walk.keys + start, count, plan.mask, f);
    }
    weigh(s, p, falls, true, f);
}

/// Sums are brought to the new highest, and weights become the next left factor: no product is under way.
#[cube]
fn lower(falls: &Array<f32>, p: &Sums, #[comptime] f: Frame) {
    // Most tiles bring a plane's rows no new highest.
    if plane_any(falls[0] != 1.0f32 || falls[1] != 1.0f32) {
        scale_row(falls[0], 0usize, comptime![sums(&f)]);
        scale_row(falls[1], 1usize, comptime![sums(&f)]);
    }
    pack_sums(p, comptime![weights(&f)]);
}
