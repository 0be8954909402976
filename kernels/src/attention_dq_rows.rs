//! Cotangents of attention's queries by blocks of queries over tiles of keys, in vectors: the CPU's.
//!
//! A block is what `attention.rows` has: the query heads of a group, neighbours in time. Scores and the values' side
//! of the softmax are products with tiles on their side; the sum is one with the keys' rows.
//!
//! Implements  `@attention_dq`
//! Schedule    `units` cores; `rows` queries a block; `tile` keys, `lanes` a vector; 4 queries a step
//! Needs       the CPU runtime (views of one array as scalars and as vectors; wide local arrays)
//! Cost        6·D FLOP a visible pair; keys and values are read once a block
//! Source      Dao 2023, FlashAttention-2, arXiv:2307.08691, section 3.1

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{BackPlaces, back_places, backward, blocks};
use crate::attention_tiles::{STEP, Shape, add_weighed, pack_row, pack_rows, pack_side, product, tiled, write_row};
use crate::bind::Buffers;
use crate::grid::{address, cubes};
use crate::prepared::{Prepared, runner, unfit};
use crate::{Launch, LaunchError};

/// Differentiates attention by blocks of queries.
pub struct AttentionDqRows;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    places: BackPlaces,
    shape: Shape,
    /// Queries a block.
    rows: usize,
}

impl Kernel for AttentionDqRows {
    fn name(&self) -> &'static str {
        "attention_dq.rows"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["attention_dq"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, ..) = backward(work, "attention_dq", 1)?;
        Ok(vec![tiled(target, n.d, n.b * n.h, n.g * n.t)?])
    }
}

impl Launch for AttentionDqRows {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = backward(work, "attention_dq", 1).map_err(unfit(self.name()))?;
        let (places, ins, outs) = back_places(operands, results);
        let (lanes, rows) = (schedule.get("lanes") as usize, schedule.get("rows") as usize);
        let plan = Plan { places, shape: Shape::new(n.d, schedule.get("tile") as usize, lanes), rows };
        let (items, words) = blocks(&n, n.g * n.t, rows);
        let (cubes, units) = cubes(items, schedule);
        let bits = address(schedule);
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| attention_dq_rows, bits, lanes, b.meta, b.operands, b.results, plan),
        ))
    }
}

/// What a block of queries keeps from tile to tile.
#[derive(CubeType)]
struct Block<N: Size> {
    /// Queries, scaled; a row each, whole vectors.
    q: Array<Vector<f32, N>>,
    /// Cotangents of their outputs.
    dout: Array<Vector<f32, N>>,
    /// What was summed so far.
    sum: Array<Vector<f32, N>>,
    lse: Array<f32>,
    delta: Array<f32>,
    lo: Array<i32>,
    hi: Array<i32>,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_dq_rows<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
    let item = ABSOLUTE_POS;
    if item < meta[0] as usize {
        let blocks = meta[1] as usize;
        let (times, groups) = (meta[2] as usize, meta[3] as usize);
        let (heads, keys) = (meta[4] as usize, meta[5] as usize);
        let head = item / blocks;
        let batch = head / heads;
        let first = (item % blocks) * plan.rows;
        let count = min(times * groups - first, plan.rows.runtime());
        let scale = f32::cast_from(1.0f32) / comptime![(plan.shape.d as f32).sqrt()].runtime();

        let mut b = Block::<N> {
            q: Array::new(comptime![plan.rows * plan.shape.dv]),
            dout: Array::new(comptime![plan.rows * plan.shape.dv]),
            sum: Array::new(comptime![plan.rows * plan.shape.dv]),
            lse: Array::new(comptime![plan.rows]),
            delta: Array::new(comptime![plan.rows]),
            lo: Array::new(comptime![plan.rows]),
            hi: Array::new(comptime![plan.rows]),
        };
        let steps = (count + comptime![STEP - 1]) / STEP;
        let mut lowest = i32::MAX.runtime();
        let mut highest = i32::MIN.runtime();
        for r in 0..steps * STEP {
            let real = r < count;
            let row = min(first + r, times * groups - 1);
            let t = row / groups;
            let query = (head * groups + row % groups) * times + t;
            let lo = select(real, operands.i32s.index(plan.places.lo.index)[batch * times + t], i32::MAX);
            let hi = select(real, operands.i32s.index(plan.places.hi.index)[batch * times + t], i32::MIN);
            b.lo[r] = lo;
            b.hi[r] = hi;
            lowest = min(lowest, lo);
            highest = max(highest, hi);
            b.lse[r] = operands.f32s.index(plan.places.lse.index)[query];
            b.delta[r] = operands.f32s.index(plan.places.delta.index)[query];
            #[unroll]
            for j in 0..plan.shape.dv {
                b.sum[r * plan.shape.dv + j] = Vector::new(0.0f32);
            }
            let from = query * plan.shape.d;
            pack_row::<N>(operands, from, &mut b.q, r, scale, plan.places.q, plan.shape);
            pack_row::<N>(operands, from, &mut b.dout, r, f32::cast_from(1.0f32), plan.places.dout, plan.shape);
        }

        let mut side_k = Array::<Vector<f32, N>>::new(comptime![plan.shape.d * plan.shape.tv]);
        let mut side_v = Array::<Vector<f32, N>>::new(comptime![plan.shape.d * plan.shape.tv]);
        let mut rows_k = Array::<Vector<f32, N>>::new(comptime![plan.shape.tile * plan.shape.dv]);
        let mut at = Array::<i32>::new(comptime![plan.shape.tile]);
        let tiles = (keys + comptime![plan.shape.tile - 1]) / plan.shape.tile;
        for i in 0..tiles {
            let start = i * plan.shape.tile;
            let width = min(keys - start, plan.shape.tile.runtime());
            let mut near = i32::MAX.runtime();
            let mut far = i32::MIN.runtime();
            for s in 0..width {
                let place = operands.i32s.index(plan.places.at.index)[batch * keys + start + s];
                at[s] = place;
                near = min(near, place);
                far = max(far, place);
            }
            if far >= lowest && near <= highest {
                let from = (head * keys + start) * plan.shape.d;
                pack_side::<N>(operands, from, width, &mut side_k, plan.places.k, plan.shape);
                pack_side::<N>(operands, from, width, &mut side_v, plan.places.v, plan.shape);
                pack_rows::<N>(operands, from, width, &mut rows_k, plan.places.k, plan.shape);
                for step in 0..steps {
                    let row = step * STEP;
                    let mut low = b.lo[row];
                    let mut high = b.hi[row];
                    #[unroll]
                    for r in 1..STEP {
                        low = min(low, b.lo[row + r]);
                        high = max(high, b.hi[row + r]);
                    }
                    if far >= low && near <= high {
                        let mut p = Array::<Vector<f32, N>>::new(comptime![STEP * plan.shape.tv]);
                        let mut dp = Array::<Vector<f32, N>>::new(comptime![STEP * plan.shape.tv]);
                        product::<N>(&b.q, &side_k, row, &mut p, plan.shape);
                        product::<N>(&b.dout, &side_v, row, &mut dp, plan.shape);
                        weigh::<N>(&b, &at, width, row, &mut p, &dp, plan);
                        add_weighed::<N>(&mut b.sum, &p, &rows_k, row, plan.shape);
                    }
                }
            }
        }
        for r in 0..count {
            let row = first + r;
            let query = (head * groups + row % groups) * times + row / groups;
            write_row::<N>(results, query * plan.shape.d, &b.sum, r, scale, plan.places.first, plan.shape);
        }
    }
}

/// Scores become ds = p (dp - delta); 0 where a query does not see.
#[cube]
fn weigh<N: Size>(
    b: &Block<N>,
    at: &Array<i32>,
    width: usize,
    row: usize,
    p: &mut Array<Vector<f32, N>>,
    dp: &Array<Vector<f32, N>>,
    #[comptime] plan: Plan,
) {
    let places = at.as_slice().as_vectorized().with_vector_size::<N>();
    #[unroll]
    for r in 0..STEP {
        let lo = Vector::<i32, N>::new(b.lo[row + r]);
        let hi = Vector::<i32, N>::new(b.hi[row + r]);
        let lse = Vector::<f32, N>::new(b.lse[row + r]);
        let delta = Vector::<f32, N>::new(b.delta[row + r]);
        #[unroll]
        for c in 0..plan.shape.tv {
            let i = comptime![r * plan.shape.tv + c];
            let place = crate::nest::lanes::<N>() + Vector::new(comptime![(c * plan.shape.lanes) as i32].runtime());
            let real = place.less_than(&Vector::new(width as i32));
            let here = places[c];
            let sees = here.greater_equal(&lo).vec_and(here.less_equal(&hi)).vec_and(real);
            let weight = select_many(sees, (p[i] - lse).exp(), Vector::new(0.0f32));
            p[i] = weight * (dp[i] - delta);
        }
    }
}
