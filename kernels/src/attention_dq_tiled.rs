//! Cotangents of attention's queries by blocks of queries over tiles of keys in shared memory: a GPU's, in f32.
//!
//! A cube takes the block that `attention.tiled` takes and walks the keys the same way. Scores and the values' side of
//! the softmax are products along D; what they give is laid in shared memory and weighs the keys' rows.
//!
//! Implements  `@attention_dq`
//! Schedule    a cube `m` queries, `n` keys a tile; a unit `rows` x `cols` scores; `chunk` columns, `deep` keys a turn
//! Needs       a GPU; D <= 256
//! Cost        6·D FLOP a visible pair in f32; keys and values are read once a block of queries; no atomics
//! Source      Dao 2023, FlashAttention-2, arXiv:2307.08691, section 3.1

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{BackPlaces, back_places, backward, blocks};
use crate::attention_panels::{
    LANES, Panel, Sums, Tiling, add_weighed, lay_weights, row_of, schedules, scores, shares, tiling, write_block, zero,
};
use crate::attention_sight::{Mask, bounds, hi, list_keys, list_places, list_queries, lo, seen_turns, sight};
use crate::bind::Buffers;
use crate::grid::{address, looped, one_each};
use crate::prepared::{Prepared, runner, unfit};
use crate::{Launch, LaunchError};

/// Differentiates attention by blocks of queries in shared memory.
pub struct AttentionDqTiled;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    places: BackPlaces,
    mask: Mask,
    t: Tiling,
}

impl Kernel for AttentionDqTiled {
    fn name(&self) -> &'static str {
        "attention_dq.tiled"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["attention_dq"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, ..) = backward(work, "attention_dq", 1)?;
        shares(target, n.d)?;
        let shapes = [(16, 16, 1, 1), (8, 8, 2, 1), (8, 8, 1, 1)];
        Ok(schedules(target, n.d, (n.b * n.h, n.g * n.t), &shapes, (1, 2)))
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok((n, ..)) = backward(work, "attention_dq", 1) else { return usize::MAX };
        let t = tiling(n.d, schedule);
        let tile = seen_turns(t.n()) + 2 * t.score_turns() + t.sum_turns();
        seen_turns(t.m()) + looped(n.s.div_ceil(t.n()), tile)
    }
}

impl Launch for AttentionDqTiled {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = backward(work, "attention_dq", 1).map_err(unfit(self.name()))?;
        let (places, ins, outs) = back_places(operands, results);
        let t = tiling(n.d, schedule);
        let (items, words) = blocks(&n, n.g * n.t, t.m());
        let (cubes, units) = one_each(items, schedule.get("units"));
        let bits = address(schedule);
        let plan = Plan { places, mask: places.into(), t };
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| attention_dq_tiled, bits, b.meta, b.operands, b.results, plan),
        ))
    }
}

/// What a unit keeps of its rows.
#[derive(CubeType)]
struct Rows {
    lse: Array<f32>,
    delta: Array<f32>,
    lo: Array<i32>,
    hi: Array<i32>,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_dq_tiled(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
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
        let own = own(operands, head, first, times, groups, heads, plan);
        let mut p = Sums::new(comptime![plan.t.rows * LANES * plan.t.cols]);
        let mut ds = Sums::new(comptime![plan.t.rows * LANES * plan.t.cols]);
        let mut sum = Sums::new(comptime![plan.t.rows * LANES * plan.t.wide()]);
        zero(&mut sum, comptime![plan.t.rows * LANES * plan.t.wide()]);

        let tiles = (keys + comptime![plan.t.n() - 1]) / comptime![plan.t.n()];
        for i in 0..tiles {
            let start = i * comptime![plan.t.n()];
            let count = min(keys - start, comptime![plan.t.n()].runtime());
            let (near, far) = bounds(operands, batch * keys + start, batch * keys + start + count, plan.mask);
            if far >= sight.lowest && near <= sight.highest {
                sync_cube();
                list_keys(&mut columns, head, start, keys, comptime![plan.t.n()], plan.t);
                list_places(operands, &mut places, batch * keys, start, keys, comptime![plan.t.n()], plan.mask, plan.t);
                let q = comptime![(plan.places.q, plan.places.k)];
                scores(operands, &mut panel, &rows, &columns, &mut p, q, plan.t);
                let d = comptime![(plan.places.dout, plan.places.v)];
                scores(operands, &mut panel, &rows, &columns, &mut ds, d, plan.t);
                weigh(&own, &places, count, &p, &mut ds, plan.t);
                lay_weights(&mut weights, &ds, plan.t);
                add_weighed(operands, &mut panel, &weights, &columns, &mut sum, plan.places.k, plan.t);
            }
        }
        sync_cube();
        let scale = comptime![1.0 / (plan.t.d as f32).sqrt()].runtime();
        #[unroll]
        for i in 0..plan.t.rows {
            #[unroll]
            for l in 0..LANES {
                let r = row_of(i, l, plan.t);
                if first + r <= last {
                    let row = comptime![i * LANES + l];
                    write_block(results, rows[r] as usize, &sum, scale, row, plan.places.first, plan.t);
                }
            }
        }
    }
}

#[cube]
fn own(
    operands: &Buffers,
    head: usize,
    first: usize,
    times: usize,
    groups: usize,
    heads: usize,
    #[comptime] plan: Plan,
) -> Rows {
    let mut own = Rows {
        lse: Array::new(comptime![plan.t.rows * LANES]),
        delta: Array::new(comptime![plan.t.rows * LANES]),
        lo: Array::new(comptime![plan.t.rows * LANES]),
        hi: Array::new(comptime![plan.t.rows * LANES]),
    };
    #[unroll]
    for i in 0..plan.t.rows {
        #[unroll]
        for l in 0..LANES {
            let r = comptime![i * LANES + l];
            let row = min(first + row_of(i, l, plan.t), times * groups - 1);
            let query = (head * groups + row % groups) * times + row / groups;
            let t = head / heads * times + row / groups;
            own.lse[r] = operands.f32s.index(plan.places.lse.index)[query];
            own.delta[r] = operands.f32s.index(plan.places.delta.index)[query];
            own.lo[r] = lo(operands, t, plan.mask);
            own.hi[r] = hi(operands, t, plan.mask);
        }
    }
    own
}

/// Products with values become ds = p (dp - delta); 0 where a query does not see.
#[cube]
fn weigh(own: &Rows, places: &Shared<[i32]>, count: usize, p: &Sums, ds: &mut Sums, #[comptime] t: Tiling) {
    let scale = comptime![1.0 / (t.d as f32).sqrt()].runtime();
    let column = UNIT_POS as usize % t.across;
    #[unroll]
    for j in 0..t.cols {
        let first = (comptime![j * t.across] + column) * LANES;
        #[unroll]
        for e in 0..LANES {
            let at = places[first + e];
            let real = first + e < count;
            #[unroll]
            for r in 0..comptime![t.rows * LANES] {
                let sees = real && at >= own.lo[r] && at <= own.hi[r];
                let off = select(sees, p[comptime![r * t.cols + j]].extract(e) * scale - own.lse[r], -1e30f32);
                let mut four = ds[comptime![r * t.cols + j]];
                four.insert(e, off.exp() * (four.extract(e) - own.delta[r]));
                ds[comptime![r * t.cols + j]] = four;
            }
        }
    }
}
