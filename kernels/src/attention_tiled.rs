//! Attention by blocks of queries over tiles of keys in shared memory: a GPU's flash attention in f32.
//!
//! A cube takes a block of queries (all the query heads of a group, neighbours in time, so keys are read once for the
//! group) and walks the keys in tiles. Scores, their softmax and the sums of values stay in the units' registers;
//! queries, keys and values pass through shared memory in chunks that are as deep as the device has room for. Tiles
//! that no query of the block sees are skipped before they are touched; tiles that all see are taken without masks.
//!
//! Implements  `@attention`, `@attention_partial`, `@attention_onto`
//! Schedule    a cube `m` queries, `n` keys a tile; a unit `rows` x `cols` scores; `chunk` columns, `deep` values a turn;
//!             `apart` where units keep to their rows when they fill panels
//! Needs       a GPU; D <= 256; 8 queries a group, below which `attention.split` splits keys instead
//! Cost        4·D FLOP a visible pair in f32; keys and values are read once a block of queries
//! Source      Dao 2023, FlashAttention-2, arXiv:2307.08691; register blocks as in Volkov & Demmel 2008

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{FORWARD, Places, blocks, instance, places};
use crate::attention_carry::{Carry, carried_top, carried_weight};
use crate::attention_panels::{
    Four, LANES, MASKED, Panel, Sums, Tiling, add_weighed, lay_weights, row_of, schedules, scores, shares, span,
    tiling, write_block, zero,
};
use crate::attention_sight::{Mask, bounds, list_keys, list_places, list_queries, seen_turns, sight};
use crate::bind::Buffers;
use crate::grid::{address, looped, one_each};
use crate::prepared::{Prepared, runner, unfit};
use crate::{Launch, LaunchError};

/// Least queries of a group that a block is worth.
const LEAST: usize = 8;

/// Attends by blocks of queries in shared memory.
pub struct AttentionTiled;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    places: Places,
    carry: Option<Carry>,
    mask: Mask,
    t: Tiling,
}

impl Kernel for AttentionTiled {
    fn name(&self) -> &'static str {
        "attention.tiled"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(FORWARD)
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, ..) = instance(work)?;
        shares(target, n.d)?;
        if n.g * n.t < LEAST {
            return Err(Refusal(format!("a block takes at least {LEAST} queries a group, not {}", n.g * n.t)));
        }
        // A software driver finds shared memory lane by lane: there a unit takes large blocks, and few units meet.
        let shapes: &[_] = if target.software {
            &[(4, 4, 4, 4), (4, 4, 2, 4), (2, 8, 1, 2)]
        } else {
            &[(16, 16, 2, 1), (8, 8, 2, 1), (4, 8, 2, 2), (8, 8, 1, 1)]
        };
        // Beside its panels a cube keeps where rows start, and keys' starts and places.
        Ok(schedules(target, n.d, (n.b * n.h, n.g * n.t), shapes, (1, 2)))
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok((n, ..)) = instance(work) else { return usize::MAX };
        let t = tiling(n.d, schedule);
        let meet = t.rows * looped(t.across, 0);
        let tile = seen_turns(t.n()) + t.score_turns() + meet + t.sum_turns();
        seen_turns(t.m()) + looped(n.s.div_ceil(t.n()), tile) + meet
    }
}

impl Launch for AttentionTiled {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = instance(work).map_err(unfit(self.name()))?;
        let (places, carry, ins, outs) = places(operands, results);
        let t = tiling(n.d, schedule);
        let (items, words) = blocks(&n, n.g * n.t, t.m());
        let (cubes, units) = one_each(items, schedule.get("units"));
        let bits = address(schedule);
        let plan = Plan { places, carry, mask: places.into(), t };
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| attention_tiled, bits, b.meta, b.operands, b.results, plan),
        ))
    }
}

/// What a unit keeps of its rows from tile to tile; vectors along the rows.
#[derive(CubeType)]
struct Softmax {
    top: Array<Four>,
    /// This unit's part of the weights.
    weight: Array<Four>,
    lo: Array<Vector<i32, Const<LANES>>>,
    hi: Array<Vector<i32, Const<LANES>>>,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_tiled(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
    let mut panel = Panel::new_slice(comptime![plan.t.work()]);
    let mut weights = Panel::new_slice(comptime![plan.t.weights()]);
    let mut rows = Shared::<[u32]>::new_slice(comptime![plan.t.m()]);
    let mut columns = Shared::<[u32]>::new_slice(comptime![plan.t.n()]);
    let mut places = Shared::<[i32]>::new_slice(comptime![plan.t.n()]);
    let item = CUBE_POS;
    if item < meta[0] as usize {
        let blocks = meta[1] as usize;
        let (times, groups) = (meta[2] as usize, meta[3] as usize);
        let (heads, keys) = (meta[4] as usize, meta[5] as usize);
        let head = item / blocks;
        let batch = head / heads;
        // Later queries see more keys: they go first.
        let first = (blocks - 1 - item % blocks) * comptime![plan.t.m()];
        let last = times * groups - 1;
        list_queries(&mut rows, head, first, times, groups, comptime![plan.t.m()], plan.t);
        let until = min(first + comptime![plan.t.m()] - 1, last) / groups + 1;
        let sight = sight(operands, batch * times + first / groups, batch * times + until, plan.mask);
        let mut softmax = softmax(operands, batch * times, first, last, groups, plan);
        let mut acc = Sums::new(comptime![plan.t.rows * LANES * plan.t.cols]);
        let mut out = Sums::new(comptime![plan.t.rows * LANES * plan.t.wide()]);
        zero(&mut out, comptime![plan.t.rows * LANES * plan.t.wide()]);
        carry_on(operands, &mut softmax, &mut out, &rows, plan);

        let tiles = (keys + comptime![plan.t.n() - 1]) / comptime![plan.t.n()];
        for i in 0..tiles {
            let start = i * comptime![plan.t.n()];
            let count = min(keys - start, comptime![plan.t.n()].runtime());
            let (near, far) = bounds(operands, batch * keys + start, batch * keys + start + count, plan.mask);
            if far >= sight.lowest && near <= sight.highest {
                sync_cube();
                list_keys(&mut columns, head, start, keys, comptime![plan.t.n()], plan.t);
                list_places(operands, &mut places, batch * keys, start, keys, comptime![plan.t.n()], plan.mask, plan.t);
                scores(
                    operands,
                    &mut panel,
                    &rows,
                    &columns,
                    &mut acc,
                    comptime![(plan.places.q, plan.places.k)],
                    plan.t,
                );
                let whole = count == comptime![plan.t.n()] && near >= sight.from && far <= sight.until;
                shade(&softmax, &places, count, whole, &mut acc, plan.t);
                weigh(&mut softmax, &mut weights, &mut acc, &mut out, plan.t);
                lay_weights(&mut weights, &acc, plan.t);
                add_weighed(operands, &mut panel, &weights, &columns, &mut out, plan.places.v, plan.t);
            }
        }
        finish(results, &softmax, &mut weights, &rows, &out, first, last, plan);
    }
}

#[cube]
fn softmax(
    operands: &Buffers,
    times: usize,
    first: usize,
    last: usize,
    groups: usize,
    #[comptime] plan: Plan,
) -> Softmax {
    let mut s = Softmax {
        top: Array::new(plan.t.rows),
        weight: Array::new(plan.t.rows),
        lo: Array::new(plan.t.rows),
        hi: Array::new(plan.t.rows),
    };
    #[unroll]
    for i in 0..plan.t.rows {
        s.top[i] = Vector::new(MASKED);
        s.weight[i] = Vector::new(0.0f32);
        let mut lo = Vector::<i32, Const<LANES>>::new(0i32);
        let mut hi = Vector::<i32, Const<LANES>>::new(0i32);
        #[unroll]
        for l in 0..LANES {
            let t = times + min(first + row_of(i, l, plan.t), last) / groups;
            lo.insert(l, crate::attention_sight::lo(operands, t, plan.mask));
            hi.insert(l, crate::attention_sight::hi(operands, t, plan.mask));
        }
        s.lo[i] = lo;
        s.hi[i] = hi;
    }
    s
}

/// Rows go on from an earlier result, where there is one.
#[cube]
#[allow(clippy::single_match)]
fn carry_on(operands: &Buffers, s: &mut Softmax, out: &mut Sums, rows: &Shared<[u32]>, #[comptime] plan: Plan) {
    match comptime!(plan.carry) {
        Some(c) => {
            let column = UNIT_POS as usize % plan.t.across;
            sync_cube();
            #[unroll]
            for i in 0..plan.t.rows {
                let mut tops = Four::new(MASKED);
                let mut weights = Four::new(0.0f32);
                #[unroll]
                for l in 0..LANES {
                    let start = rows[row_of(i, l, plan.t)] as usize;
                    let top = carried_top(operands, start / plan.t.d, plan.carry);
                    let weight = carried_weight(top, plan.carry);
                    tops.insert(l, top);
                    // Units of a row have a part of its weight each: the first has what is carried.
                    weights.insert(l, select(column == 0, weight, 0.0f32));
                    #[unroll]
                    for j in 0..comptime![plan.t.wide()] {
                        let at = (comptime![j * plan.t.across] + column) * LANES;
                        out[comptime![(i * LANES + l) * plan.t.wide() + j]] =
                            span(operands, start, at, c.o, plan.t) * Vector::new(weight);
                    }
                }
                s.top[i] = tops;
                s.weight[i] = weights;
            }
        }
        None => {}
    }
}

/// Scales scores; those of what a query does not see become `MASKED`.
#[cube]
fn shade(s: &Softmax, places: &Shared<[i32]>, count: usize, whole: bool, acc: &mut Sums, #[comptime] t: Tiling) {
    let scale = comptime![1.0 / (t.d as f32).sqrt()].runtime();
    #[unroll]
    for i in 0..comptime![t.rows * LANES * t.cols] {
        acc[i] *= Vector::new(scale);
    }
    if !whole {
        let column = UNIT_POS as usize % t.across;
        #[unroll]
        for j in 0..t.cols {
            let first = (comptime![j * t.across] + column) * LANES;
            #[unroll]
            for e in 0..LANES {
                let at = places[first + e];
                let real = first + e < count;
                #[unroll]
                for i in 0..t.rows {
                    #[unroll]
                    for l in 0..LANES {
                        let sees = real && at >= s.lo[i].extract(l) && at <= s.hi[i].extract(l);
                        let mut four = acc[comptime![(i * LANES + l) * t.cols + j]];
                        four.insert(e, select(sees, four.extract(e), MASKED));
                        acc[comptime![(i * LANES + l) * t.cols + j]] = four;
                    }
                }
            }
        }
    }
}

/// Softmax so far: scores become weights, and sums are brought to the new highest. `part`, where weights will lie, holds
/// the highest scores of each unit meanwhile.
#[cube]
fn weigh(s: &mut Softmax, part: &mut Panel, acc: &mut Sums, out: &mut Sums, #[comptime] t: Tiling) {
    let row = UNIT_POS as usize / t.across;
    let column = UNIT_POS as usize % t.across;
    let fours = comptime![t.m() / LANES];
    #[unroll]
    for i in 0..t.rows {
        let mut most = Four::new(0.0f32);
        #[unroll]
        for l in 0..LANES {
            let mut four = acc[comptime![(i * LANES + l) * t.cols]];
            #[unroll]
            for j in 1..t.cols {
                four = max(four, acc[comptime![(i * LANES + l) * t.cols + j]]);
            }
            let low = max(four.extract(0usize), four.extract(1usize));
            most.insert(l, max(low, max(four.extract(2usize), four.extract(3usize))));
        }
        part[column * fours + row + comptime![i * t.down]] = most;
    }
    sync_cube();
    #[unroll]
    for i in 0..t.rows {
        let mut top = s.top[i];
        for c in 0..t.across {
            top = max(top, part[c * fours + row + comptime![i * t.down]]);
        }
        let fall = (s.top[i] - top).exp();
        s.top[i] = top;
        let mut sum = Four::new(0.0f32);
        #[unroll]
        for l in 0..LANES {
            let mut own = Four::new(0.0f32);
            #[unroll]
            for j in 0..t.cols {
                let score = acc[comptime![(i * LANES + l) * t.cols + j]];
                // A masked score is far below any other; where all are masked, none may count.
                let hidden = score.less_than(&Vector::new(comptime![MASKED / 2.0].runtime()));
                let share = select_many(hidden, Vector::new(0.0f32), (score - Vector::new(top.extract(l))).exp());
                acc[comptime![(i * LANES + l) * t.cols + j]] = share;
                own += share;
            }
            sum.insert(l, own.extract(0usize) + own.extract(1usize) + (own.extract(2usize) + own.extract(3usize)));
            #[unroll]
            for j in 0..comptime![t.wide()] {
                out[comptime![(i * LANES + l) * t.wide() + j]] *= Vector::new(fall.extract(l));
            }
        }
        s.weight[i] = s.weight[i] * fall + sum;
    }
    // Weights go where others may still read.
    sync_cube();
}

/// Outputs and logarithms of the rows that there are.
#[cube]
fn finish(
    results: &mut Buffers,
    s: &Softmax,
    part: &mut Panel,
    rows: &Shared<[u32]>,
    out: &Sums,
    first: usize,
    last: usize,
    #[comptime] plan: Plan,
) {
    let row = UNIT_POS as usize / plan.t.across;
    let column = UNIT_POS as usize % plan.t.across;
    let fours = comptime![plan.t.m() / LANES];
    sync_cube();
    #[unroll]
    for i in 0..plan.t.rows {
        part[column * fours + row + comptime![i * plan.t.down]] = s.weight[i];
    }
    sync_cube();
    #[unroll]
    for i in 0..plan.t.rows {
        let mut weight = Four::new(0.0f32);
        for c in 0..plan.t.across {
            weight += part[c * fours + row + comptime![i * plan.t.down]];
        }
        #[unroll]
        for l in 0..LANES {
            let r = row_of(i, l, plan.t);
            if first + r <= last {
                let start = rows[r] as usize;
                let seen = weight.extract(l) != 0.0f32;
                let safe = select(seen, weight.extract(l), 1.0f32);
                let share = select(seen, 1.0f32 / safe, 0.0f32);
                write_block(results, start, out, share, comptime![i * LANES + l], plan.places.out, plan.t);
                if column == 0 {
                    let lse = select(seen, s.top[i].extract(l) + safe.ln(), MASKED);
                    results.f32s.index_mut(plan.places.lse.index)[start / plan.t.d] = lse;
                }
            }
        }
    }
}
