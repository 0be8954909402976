//! Cotangents of attention's keys and values by blocks of keys over tiles of queries in shared memory: a GPU's, in f32.
//!
//! A cube takes a block of keys and walks the queries of all the heads of its group in tiles, so that a group's sums are
//! made in one place and in one order. Scores and the values' side of the softmax are products along D; what they give is
//! laid in shared memory and weighs the rows of queries and of their outputs' cotangents.
//!
//! Implements  `@attention_dkv`
//! Schedule    a cube `m` keys, `n` queries a tile; a unit `rows` x `cols` scores; `chunk` columns, `deep` queries a turn
//! Needs       a GPU; D <= 256
//! Cost        8·D FLOP a visible pair in f32; queries are read once a block of keys; no atomics
//! Source      Dao 2023, FlashAttention-2, arXiv:2307.08691, section 3.1

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{BackPlaces, back_places, backward, blocks};
use crate::attention_panels::{
    LANES, Panel, Sums, Tiling, add_weighed, lay_weights, row_of, schedules, scores, shares, tiling, write_block, zero,
};
use crate::attention_sight::{Mask, at, bounds, hi, list_keys, list_queries, lo, seen_turns, sight};
use crate::bind::Buffers;
use crate::grid::{address, looped, one_each};
use crate::prepared::{Prepared, runner, unfit};
use crate::{Launch, LaunchError};

/// Differentiates attention by blocks of keys in shared memory.
pub struct AttentionDkvTiled;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    places: BackPlaces,
    mask: Mask,
    t: Tiling,
}

impl Kernel for AttentionDkvTiled {
    fn name(&self) -> &'static str {
        "attention_dkv.tiled"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["attention_dkv"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, ..) = backward(work, "attention_dkv", 2)?;
        shares(target, n.d)?;
        let shapes = [(16, 16, 1, 1), (8, 8, 1, 1), (4, 16, 1, 1)];
        Ok(schedules(target, n.d, (n.b * n.h, n.s), &shapes, (1, 5)))
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok((n, ..)) = backward(work, "attention_dkv", 2) else { return usize::MAX };
        let t = tiling(n.d, schedule);
        let tile = seen_turns(t.n()) + 2 * (t.score_turns() + t.sum_turns());
        seen_turns(t.m()) + looped((n.g * n.t).div_ceil(t.n()), tile)
    }
}

impl Launch for AttentionDkvTiled {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = backward(work, "attention_dkv", 2).map_err(unfit(self.name()))?;
        let (places, ins, outs) = back_places(operands, results);
        let t = tiling(n.d, schedule);
        let (items, words) = blocks(&n, n.s, t.m());
        let (cubes, units) = one_each(items, schedule.get("units"));
        let bits = address(schedule);
        let plan = Plan { places, mask: places.into(), t };
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| attention_dkv_tiled, bits, b.meta, b.operands, b.results, plan),
        ))
    }
}

/// What a cube knows of a tile of queries.
#[derive(CubeType)]
struct Tile {
    starts: Shared<[u32]>,
    lse: Shared<[f32]>,
    delta: Shared<[f32]>,
    lo: Shared<[i32]>,
    hi: Shared<[i32]>,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_dkv_tiled(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
    let mut panel = Panel::new_slice(comptime![plan.t.work()]);
    let mut weights = Panel::new_slice(comptime![plan.t.weights()]);
    let mut rows = Shared::<[u32]>::new_slice(comptime![plan.t.m()]);
    let mut tile = Tile {
        starts: Shared::new_slice(comptime![plan.t.n()]),
        lse: Shared::new_slice(comptime![plan.t.n()]),
        delta: Shared::new_slice(comptime![plan.t.n()]),
        lo: Shared::new_slice(comptime![plan.t.n()]),
        hi: Shared::new_slice(comptime![plan.t.n()]),
    };
    let item = CUBE_POS;
    if item < meta[0] as usize {
        let blocks = meta[1] as usize;
        let (times, groups) = (meta[2] as usize, meta[3] as usize);
        let (heads, keys) = (meta[4] as usize, meta[5] as usize);
        let head = item / blocks;
        let batch = head / heads;
        let first = (item % blocks) * comptime![plan.t.m()];
        list_keys(&mut rows, head, first, keys, comptime![plan.t.m()], plan.t);
        let until = min(first + comptime![plan.t.m()], keys);
        let (near, far) = bounds(operands, batch * keys + first, batch * keys + until, plan.mask);
        let mut places = Array::<i32>::new(comptime![plan.t.rows * LANES]);
        #[unroll]
        for i in 0..plan.t.rows {
            #[unroll]
            for l in 0..LANES {
                let key = min(first + row_of(i, l, plan.t), keys - 1);
                places[comptime![i * LANES + l]] = at(operands, batch * keys + key, plan.mask);
            }
        }
        let mut p = Sums::new(comptime![plan.t.rows * LANES * plan.t.cols]);
        let mut ds = Sums::new(comptime![plan.t.rows * LANES * plan.t.cols]);
        let mut dk = Sums::new(comptime![plan.t.rows * LANES * plan.t.wide()]);
        let mut dv = Sums::new(comptime![plan.t.rows * LANES * plan.t.wide()]);
        zero(&mut dk, comptime![plan.t.rows * LANES * plan.t.wide()]);
        zero(&mut dv, comptime![plan.t.rows * LANES * plan.t.wide()]);

        let queries = times * groups;
        let tiles = (queries + comptime![plan.t.n() - 1]) / comptime![plan.t.n()];
        for i in 0..tiles {
            let start = i * comptime![plan.t.n()];
            let count = min(queries - start, comptime![plan.t.n()].runtime());
            let from = batch * times + start / groups;
            let sight = sight(operands, from, batch * times + (start + count - 1) / groups + 1, plan.mask);
            if far >= sight.lowest && near <= sight.highest {
                sync_cube();
                list_queries(&mut tile.starts, head, start, times, groups, comptime![plan.t.n()], plan.t);
                list(operands, &mut tile, head, batch, start, times, groups, plan);
                let k = comptime![(plan.places.k, plan.places.q)];
                scores(operands, &mut panel, &rows, &tile.starts, &mut p, k, plan.t);
                let v = comptime![(plan.places.v, plan.places.dout)];
                scores(operands, &mut panel, &rows, &tile.starts, &mut ds, v, plan.t);
                weigh(&places, &tile, count, &mut p, &mut ds, plan.t);
                lay_weights(&mut weights, &p, plan.t);
                add_weighed(operands, &mut panel, &weights, &tile.starts, &mut dv, plan.places.dout, plan.t);
                sync_cube();
                lay_weights(&mut weights, &ds, plan.t);
                add_weighed(operands, &mut panel, &weights, &tile.starts, &mut dk, plan.places.q, plan.t);
            }
        }
        sync_cube();
        let scale = comptime![1.0 / (plan.t.d as f32).sqrt()].runtime();
        #[unroll]
        for i in 0..plan.t.rows {
            #[unroll]
            for l in 0..LANES {
                let r = row_of(i, l, plan.t);
                if first + r < keys {
                    let row = comptime![i * LANES + l];
                    let to = rows[r] as usize;
                    write_block(results, to, &dk, scale, row, plan.places.first, plan.t);
                    write_block(results, to, &dv, f32::cast_from(1.0f32), row, plan.places.second, plan.t);
                }
            }
        }
    }
}

/// Intervals and stored sums of a tile's queries.
#[cube]
fn list(
    operands: &Buffers,
    tile: &mut Tile,
    head: usize,
    batch: usize,
    start: usize,
    times: usize,
    groups: usize,
    #[comptime] plan: Plan,
) {
    #[unroll]
    for i in 0..comptime![plan.t.n().div_ceil(plan.t.units())] {
        let r = UNIT_POS as usize + comptime![i * plan.t.units()];
        if r < comptime![plan.t.n()] {
            let row = min(start + r, times * groups - 1);
            let query = (head * groups + row % groups) * times + row / groups;
            let t = batch * times + row / groups;
            tile.lse[r] = operands.f32s.index(plan.places.lse.index)[query];
            tile.delta[r] = operands.f32s.index(plan.places.delta.index)[query];
            tile.lo[r] = lo(operands, t, plan.mask);
            tile.hi[r] = hi(operands, t, plan.mask);
        }
    }
}

/// Scores become p, and products with values ds = p (dp - delta); 0 where a query does not see.
#[cube]
fn weigh(places: &Array<i32>, tile: &Tile, count: usize, p: &mut Sums, ds: &mut Sums, #[comptime] t: Tiling) {
    let scale = comptime![1.0 / (t.d as f32).sqrt()].runtime();
    let column = UNIT_POS as usize % t.across;
    #[unroll]
    for j in 0..t.cols {
        #[unroll]
        for e in 0..LANES {
            let c = (comptime![j * t.across] + column) * LANES + e;
            #[unroll]
            for r in 0..comptime![t.rows * LANES] {
                let i = comptime![r * t.cols + j];
                let sees = c < count && places[r] >= tile.lo[c] && places[r] <= tile.hi[c];
                let mut weight = p[i];
                let mut share = ds[i];
                let one = select(sees, weight.extract(e) * scale - tile.lse[c], -1e30f32).exp();
                weight.insert(e, one);
                share.insert(e, one * (share.extract(e) - tile.delta[c]));
                p[i] = weight;
                ds[i] = share;
            }
        }
    }
}
