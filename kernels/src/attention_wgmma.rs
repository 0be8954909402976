//! Attention of bf16 or f16 on Hopper's matrix units: warpgroups of 64 queries over tiles of keys.
//!
//! A cube takes the block of queries that `attention.mma` takes, and walks the keys the same way. Both factors of the
//! scores lie in shared memory; what the softmax makes of them is packed in registers, the left factor of the products
//! with the values. Products are asynchronous: the scores of the next tile and the values of this one are under way while
//! tiles come in, and the softmax of the next runs while the values of this one are still being summed. Every other
//! warpgroup is half a tile behind: one multiplies while the other makes weights (`take_turns`).
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
    FRAGMENT, Frame, Lines, PLANE, Shape, Sums, framed, hide_keys, multiplies_by, schedules, seek, view, zero,
};
use crate::attention_sight::{Sight, look, sought};
use crate::attention_softmax::{Plan, Softmax, carry_on, finish, rise, softmax, spread};
use crate::attention_warpgroups::{block, on_warpgroups, scores, tile};
use crate::bind::Buffers;
use crate::einsum_copies::{CHUNK, commit, shared_address, wait};
use crate::grid::{address, one_each};
use crate::prepared::{Prepared, runner, unfit};
use crate::warpgroups::{
    ATOM, Feed, GROUP, LINE, Pack, ROWS, STEP, Set, Side, bring_fed, bring_tile, close_products, declare, declare_pack,
    descriptor, even, feed, meet, multiply, multiply_packed, order, pack_sums, read_sums, scale_row, show,
    wait_products, write_sums,
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
        let base = shared_address(&memory);
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
        let until = min(first + comptime![f.m - 1], last) / groups + 1;
        let sight = view(operands, batch * times + first / groups, until - first / groups, plan.mask);

        let mut softmax = softmax(operands, batch * times, first, last, groups, plan);
        let held = comptime![sums(&f).count() / 4];
        let mut out = Sums::new(held);
        zero(&mut out, held);
        carry_on(operands, &mut softmax, &mut out, &queries, first, last, plan);
        write_sums(&out, comptime![sums(&f)]);

        let feeds = Feeds {
            k: feed(operands, &walk.others, comptime![tile(&f)], comptime![plan.places.k]),
            v: feed(operands, &walk.others, comptime![tile(&f)], comptime![plan.places.v]),
            to: (base + comptime![4 * block(&f).words() as u64]) as u32,
        };
        let (now, whole) = seek(operands, &sight, batch, keys, 0usize, plan.mask, f);
        if now * f.n < keys {
            let rest = comptime![block(&f).words()];
            // One lane's number, so that the whole plane takes the same way.
            let group = plane_broadcast(UNIT_POS / comptime![GROUP as u32], 0u32);
            let own = group as u64 * comptime![(ROWS * LINE * 2) as u64];
            let q = descriptor(base + own, comptime![Side::Along], comptime![block(&f)]);
            let k = descriptor(base + comptime![4 * rest as u64], comptime![Side::Along], comptime![tile(&f)]);
            let v_from = comptime![4 * (rest + f.depth * tile(&f).words()) as u64];
            let v = descriptor(base + v_from, comptime![Side::Across], comptime![tile(&f)]);
            fetch(operands, &mut memory, &feeds, &walk, true, 0u32, now, plan);
            commit();
            let (next, next_whole) = seek(operands, &sight, batch, keys, now + 1, plan.mask, f);
            fetch(operands, &mut memory, &feeds, &walk, true, 1u32, next, plan);
            fetch(operands, &mut memory, &feeds, &walk, false, 0u32, now, plan);
            commit();
            let (after, after_whole) = seek(operands, &sight, batch, keys, next + 1, plan.mask, f);
            let near = Near { now, whole, next, next_whole, after, after_whole };
            wait(1usize);
            show();
            sync_cube();
            order();
            multiply(q, k, true, comptime![block(&f)], comptime![tile(&f)], comptime![scores(&f)]);
            close_products();
            wait_products(0usize);
            let at = At { q, k, v };
            if group % 2 == 0 {
                take_turns(operands, &mut memory, &feeds, &mut softmax, &walk, &sight, &near, &at, true, plan);
            } else {
                take_turns(operands, &mut memory, &feeds, &mut softmax, &walk, &sight, &near, &at, false, plan);
            }
        }
        wait(0usize);
        read_sums(&mut out, comptime![sums(&f)]);
        finish(results, &softmax, &out, &queries, first, last, plan);
    }
}

/// Sixteenths of bytes to a tile of a kind.
#[cube]
fn tile_at(slot: u32, #[comptime] f: Frame) -> u64 {
    slot as u64 * comptime![tile(&f).words() as u64 / 4]
}

/// How a unit copies tiles: both kinds, and the address of the first slot.
#[derive(CubeType, Clone, Copy)]
struct Feeds {
    k: Feed,
    v: Feed,
    to: u32,
}

/// Starts to bring tile number `tile` of keys, or of values, to a slot; what is past the end is not read.
#[cube]
fn fetch(
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    feeds: &Feeds,
    walk: &Walk,
    #[comptime] keys: bool,
    slot: u32,
    number: usize,
    #[comptime] plan: Plan,
) {
    let f = comptime![plan.f];
    let (of, units) = comptime![(tile(&f), f.units())];
    let slot = slot + comptime![if keys { 0 } else { f.depth as u32 }];
    if comptime![even(&of, units)] {
        let into = feeds.to + slot * comptime![4 * of.words() as u32];
        if keys {
            bring_fed(&feeds.k, into, number * f.n, walk.keys, of, units);
        } else {
            bring_fed(&feeds.v, into, number * f.n, walk.keys, of, units);
        }
    } else if number * f.n < walk.keys {
        let into = comptime![block(&f).words()] + slot as usize * comptime![of.words()];
        let from = comptime![if keys { plan.places.k } else { plan.places.v }];
        bring_tile(operands, memory, into, &walk.others, number * f.n, of, from, false, units);
    }
}

/// Where the tiles are that products read.
#[derive(CubeType, Clone, Copy)]
struct At {
    q: u64,
    k: u64,
    v: u64,
}

/// The first tiles, and whether all queries see all of each.
#[derive(CubeType, Clone, Copy)]
struct Near {
    now: usize,
    whole: bool,
    next: usize,
    next_whole: bool,
    after: usize,
    after_whole: bool,
}

/// A warpgroup's way over the keys, its scores of the first tile at hand. All warpgroups meet once a tile, before the `first`
/// ones start products and when the others are half through their softmax: so the ones multiply while the others make weights.
#[cube]
fn take_turns(
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    feeds: &Feeds,
    softmax: &mut Softmax,
    walk: &Walk,
    sight: &Sight,
    near: &Near,
    at: &At,
    #[comptime] first: bool,
    #[comptime] plan: Plan,
) {
    let f = comptime![plan.f];
    let mut now = near.now;
    let mut whole = near.whole;
    let mut next = near.next;
    let mut next_whole = near.next_whole;
    let mut after = near.after;
    let mut after_whole = near.after_whole;
    let mut slot = 0u32.runtime();
    let mut places = Array::<i32>::new(comptime![f.n.div_ceil(PLANE)]);
    if first {
        soften(operands, memory, feeds, softmax, walk, now, whole, 0u32, 0usize, 0usize, true, plan);
    }
    while next * f.n < walk.keys {
        let other = 1u32 - slot;
        if first {
            gather_here();
        } else {
            soften(operands, memory, feeds, softmax, walk, now, whole, slot, next, after, false, plan);
        }
        look(operands, &mut places, walk.batch, walk.keys, after + 1, plan.mask, f);
        order();
        multiply(
            at.q,
            at.k + tile_at(other, f),
            true,
            comptime![block(&f)],
            comptime![tile(&f)],
            comptime![scores(&f)],
        );
        close_products();
        multiply_packed(at.v + tile_at(slot, f), comptime![weights(&f)], comptime![tile(&f)], comptime![sums(&f)]);
        close_products();
        if first {
            fetch(operands, memory, feeds, walk, true, slot, after, plan);
            fetch(operands, memory, feeds, walk, false, other, next, plan);
            commit();
        }
        let (far, far_whole) = sought(operands, &places, sight, walk.batch, walk.keys, after + 1, plan.mask, f);
        now = next;
        whole = next_whole;
        next = after;
        next_whole = after_whole;
        after = far;
        after_whole = far_whole;
        slot = other;
        wait_products(1usize);
        if first {
            soften(operands, memory, feeds, softmax, walk, now, whole, slot, next, after, true, plan);
        }
    }
    if first {
        gather_here();
    } else {
        soften(operands, memory, feeds, softmax, walk, now, whole, slot, next, after, false, plan);
    }
    order();
    multiply_packed(at.v + tile_at(slot, f), comptime![weights(&f)], comptime![tile(&f)], comptime![sums(&f)]);
    close_products();
    wait_products(0usize);
}

/// All units meet: the next keys and these values are there, and nobody reads these keys and the values before any more.
#[cube]
fn gather_here() {
    wait(0usize);
    show();
    meet();
}

/// Scores of tile `now` that are there become weights, the next left factor, and sums are brought to the new highest, once the
/// products with the values before are done. The `first` warpgroups do it in one go; the others meet them half way, and start
/// their copies of the keys after the next and of the next values there.
#[cube]
fn soften(
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    feeds: &Feeds,
    s: &mut Softmax,
    walk: &Walk,
    now: usize,
    whole: bool,
    slot: u32,
    next: usize,
    after: usize,
    #[comptime] first: bool,
    #[comptime] plan: Plan,
) {
    let f = comptime![plan.f];
    let mut p = Sums::new(comptime![f.scores()]);
    let mut falls = Array::<f32>::new(2usize);
    read_sums(&mut p, comptime![scores(&f)]);
    if !whole {
        let start = now * f.n;
        let count = min(walk.keys - start, comptime![f.n].runtime());
        hide_keys(operands, &mut p, &s.lo, &s.hi, walk.batch * walk.keys + start, count, plan.mask, f);
    }
    let above = rise(s, &mut p, &mut falls, 0usize, true, f);
    let below = rise(s, &mut p, &mut falls, 1usize, true, f);
    spread(s, &mut p, &mut falls, above, 0usize, true, f);
    if comptime![!first] {
        wait_products(0usize);
        gather_here();
        fetch(operands, memory, feeds, walk, true, slot, after, plan);
        fetch(operands, memory, feeds, walk, false, 1u32 - slot, next, plan);
        commit();
    }
    spread(s, &mut p, &mut falls, below, 1usize, true, f);
    if first {
        wait_products(0usize);
    }
    // Most tiles bring a plane's rows no new highest.
    if plane_any(falls[0] != 1.0f32 || falls[1] != 1.0f32) {
        scale_row(falls[0], 0usize, comptime![sums(&f)]);
        scale_row(falls[1], 1usize, comptime![sums(&f)]);
    }
    pack_sums(&p, comptime![weights(&f)]);
}
