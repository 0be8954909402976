//! Cotangents of attention's keys and values by blocks of keys over tiles of queries, in vectors: the CPU's.
//!
//! A core takes a block of keys and walks the queries of every query head of the group in tiles, so that nothing is
//! added across cores: no atomics, one order of summing.
//!
//! Implements  `@attention_dkv`
//! Schedule    `units` cores; `rows` keys a block; `tile` queries, `lanes` a vector; 4 keys a step
//! Needs       the CPU runtime (views of one array as scalars and as vectors; wide local arrays)
//! Cost        8·D FLOP a visible pair; queries and cotangents are read once a block
//! Source      Dao 2023, FlashAttention-2, arXiv:2307.08691, section 3.1

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{BackPlaces, back_places, backward, blocks};
use crate::attention_tiles::{STEP, Shape, add_weighed, pack_row, pack_rows, pack_side, product, tiled, write_row};
use crate::bind::Buffers;
use crate::grid::{address, cubes};
use crate::prepared::{Prepared, runner, unfit};
use crate::{Launch, LaunchError};

/// Differentiates attention by blocks of keys.
pub struct AttentionDkvRows;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    places: BackPlaces,
    shape: Shape,
    /// Keys a block.
    rows: usize,
}

impl Kernel for AttentionDkvRows {
    fn name(&self) -> &'static str {
        "attention_dkv.rows"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["attention_dkv"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, ..) = backward(work, "attention_dkv", 2)?;
        Ok(vec![tiled(target, n.d, n.b * n.h, n.s)?])
    }
}

impl Launch for AttentionDkvRows {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = backward(work, "attention_dkv", 2).map_err(unfit(self.name()))?;
        let (places, ins, outs) = back_places(operands, results);
        let (lanes, rows) = (schedule.get("lanes") as usize, schedule.get("rows") as usize);
        let plan = Plan { places, shape: Shape::new(n.d, schedule.get("tile") as usize, lanes), rows };
        let (items, words) = blocks(&n, n.s, rows);
        let (cubes, units) = cubes(items, schedule);
        let bits = address(schedule);
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| attention_dkv_rows, bits, lanes, b.meta, b.operands, b.results, plan),
        ))
    }
}

/// What a block of keys keeps from tile to tile.
#[derive(CubeType)]
struct Block<N: Size> {
    /// Keys, scaled; a row each, whole vectors.
    k: Array<Vector<f32, N>>,
    v: Array<Vector<f32, N>>,
    /// What was summed so far.
    dk: Array<Vector<f32, N>>,
    dv: Array<Vector<f32, N>>,
    at: Array<i32>,
}

/// What a tile of queries brings beside their rows; queries that are not there see nothing.
#[derive(CubeType)]
struct Tile {
    lse: Array<f32>,
    delta: Array<f32>,
    lo: Array<i32>,
    hi: Array<i32>,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_dkv_rows<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
    let item = ABSOLUTE_POS;
    if item < meta[0] as usize {
        let blocks = meta[1] as usize;
        let (times, groups) = (meta[2] as usize, meta[3] as usize);
        let (heads, keys) = (meta[4] as usize, meta[5] as usize);
        let head = item / blocks;
        let batch = head / heads;
        let first = (item % blocks) * plan.rows;
        let count = min(keys - first, plan.rows.runtime());
        let scale = f32::cast_from(1.0f32) / comptime![(plan.shape.d as f32).sqrt()].runtime();

        let mut b = Block::<N> {
            k: Array::new(comptime![plan.rows * plan.shape.dv]),
            v: Array::new(comptime![plan.rows * plan.shape.dv]),
            dk: Array::new(comptime![plan.rows * plan.shape.dv]),
            dv: Array::new(comptime![plan.rows * plan.shape.dv]),
            at: Array::new(comptime![plan.rows]),
        };
        let steps = (count + comptime![STEP - 1]) / STEP;
        let mut near = i32::MAX.runtime();
        let mut far = i32::MIN.runtime();
        for r in 0..steps * STEP {
            // A key that is not there repeats the last one; what it sums is not written.
            let key = min(first + r, keys - 1);
            let place = operands.i32s.index(plan.places.at.index)[batch * keys + key];
            b.at[r] = place;
            near = min(near, place);
            far = max(far, place);
            #[unroll]
            for j in 0..plan.shape.dv {
                b.dk[r * plan.shape.dv + j] = Vector::new(0.0f32);
                b.dv[r * plan.shape.dv + j] = Vector::new(0.0f32);
            }
            let from = (head * keys + key) * plan.shape.d;
            pack_row::<N>(operands, from, &mut b.k, r, scale, plan.places.k, plan.shape);
            pack_row::<N>(operands, from, &mut b.v, r, f32::cast_from(1.0f32), plan.places.v, plan.shape);
        }

        let mut side_q = Array::<Vector<f32, N>>::new(comptime![plan.shape.d * plan.shape.tv]);
        let mut side_d = Array::<Vector<f32, N>>::new(comptime![plan.shape.d * plan.shape.tv]);
        let mut rows_q = Array::<Vector<f32, N>>::new(comptime![plan.shape.tile * plan.shape.dv]);
        let mut rows_d = Array::<Vector<f32, N>>::new(comptime![plan.shape.tile * plan.shape.dv]);
        let mut tile = Tile {
            lse: Array::new(comptime![plan.shape.tile]),
            delta: Array::new(comptime![plan.shape.tile]),
            lo: Array::new(comptime![plan.shape.tile]),
            hi: Array::new(comptime![plan.shape.tile]),
        };
        let tiles = (times + comptime![plan.shape.tile - 1]) / plan.shape.tile;
        for i in 0..groups * tiles {
            let start = (i % tiles) * plan.shape.tile;
            let width = min(times - start, plan.shape.tile.runtime());
            let query = (head * groups + i / tiles) * times + start;
            let mut lowest = i32::MAX.runtime();
            let mut highest = i32::MIN.runtime();
            for t in 0..plan.shape.tile {
                let real = t < width;
                let from = min(t, width - 1);
                let lo = operands.i32s.index(plan.places.lo.index)[batch * times + start + from];
                let hi = operands.i32s.index(plan.places.hi.index)[batch * times + start + from];
                tile.lo[t] = select(real, lo, i32::MAX);
                tile.hi[t] = select(real, hi, i32::MIN);
                lowest = min(lowest, lo);
                highest = max(highest, hi);
                tile.lse[t] = operands.f32s.index(plan.places.lse.index)[query + from];
                tile.delta[t] = operands.f32s.index(plan.places.delta.index)[query + from];
            }
            if far >= lowest && near <= highest {
                let from = query * plan.shape.d;
                pack_side::<N>(operands, from, width, &mut side_q, plan.places.q, plan.shape);
                pack_side::<N>(operands, from, width, &mut side_d, plan.places.dout, plan.shape);
                pack_rows::<N>(operands, from, width, &mut rows_q, plan.places.q, plan.shape);
                pack_rows::<N>(operands, from, width, &mut rows_d, plan.places.dout, plan.shape);
                for step in 0..steps {
                    let row = step * STEP;
                    let mut low = b.at[row];
                    let mut high = b.at[row];
                    #[unroll]
                    for r in 1..STEP {
                        low = min(low, b.at[row + r]);
                        high = max(high, b.at[row + r]);
                    }
                    if high >= lowest && low <= highest {
                        let mut p = Array::<Vector<f32, N>>::new(comptime![STEP * plan.shape.tv]);
                        let mut ds = Array::<Vector<f32, N>>::new(comptime![STEP * plan.shape.tv]);
                        product::<N>(&b.k, &side_q, row, &mut p, plan.shape);
                        product::<N>(&b.v, &side_d, row, &mut ds, plan.shape);
                        weigh::<N>(&b.at, &tile, row, &mut p, &mut ds, plan);
                        add_weighed::<N>(&mut b.dk, &ds, &rows_q, row, plan.shape);
                        add_weighed::<N>(&mut b.dv, &p, &rows_d, row, plan.shape);
                    }
                }
            }
        }
        for r in 0..count {
            let to = (head * keys + first + r) * plan.shape.d;
            write_row::<N>(results, to, &b.dk, r, scale, plan.places.first, plan.shape);
            write_row::<N>(results, to, &b.dv, r, f32::cast_from(1.0f32), plan.places.second, plan.shape);
        }
    }
}

/// Scores become p, and products with values ds = p (dp - delta); 0 where a query does not see.
#[cube]
fn weigh<N: Size>(
    at: &Array<i32>,
    tile: &Tile,
    row: usize,
    p: &mut Array<Vector<f32, N>>,
    ds: &mut Array<Vector<f32, N>>,
    #[comptime] plan: Plan,
) {
    let los = tile.lo.as_slice().as_vectorized().with_vector_size::<N>();
    let his = tile.hi.as_slice().as_vectorized().with_vector_size::<N>();
    let lses = tile.lse.as_slice().as_vectorized().with_vector_size::<N>();
    let deltas = tile.delta.as_slice().as_vectorized().with_vector_size::<N>();
    #[unroll]
    for r in 0..STEP {
        let here = Vector::<i32, N>::new(at[row + r]);
        #[unroll]
        for c in 0..plan.shape.tv {
            let i = comptime![r * plan.shape.tv + c];
            let sees = here.greater_equal(&los[c]).vec_and(here.less_equal(&his[c]));
            let weight = select_many(sees, (p[i] - lses[c]).exp(), Vector::new(0.0f32));
            p[i] = weight;
            ds[i] = weight * (ds[i] - deltas[c]);
        }
    }
}
