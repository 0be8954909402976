//! Attention by blocks of queries over tiles of keys, in vectors: the CPU's flash attention.
//!
//! A core takes a block of `rows` queries (all the query heads of a group, neighbours in time) and walks the
//! keys in tiles. A tile of keys is turned on its side once a block, so that scores of `LANES` keys are one
//! vector and no sum across lanes is needed; values keep their rows. Tiles that no query of the block sees are
//! skipped before they are touched; tiles that all see are taken without masks. Queries that fill one step alone read keys
//! and values where they lie.
//!
//! Of few queries the keys are cut into parts, and a second launch merges what they came to.
//!
//! Implements  `@attention`, `@attention_partial`, `@attention_onto`
//! Schedule    `units` cores; `rows` queries a block; `tile` keys, `lanes` a vector; 4 queries a step; `parts` of the keys
//! Needs       the CPU runtime (views of one array as scalars and as vectors; wide local arrays)
//! Cost        4·D FLOP a visible pair; keys and values are read once a block
//! Source      Dao 2023, FlashAttention-2, arXiv:2307.08691; micro-kernels as in Goto & van de Geijn 2008

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{FORWARD, Places, blocks, instance, places};
use crate::attention_carry::{Carry, carried_top, carried_weight};
use crate::attention_parts::{Merge, floats, merge_rows, parts, queries};
use crate::attention_tiles::{
    STEP, Shape, TILE, add_weighed, add_weighed_in_place, block, pack_row, pack_rows, pack_side, product,
    product_in_place, write_row,
};
use crate::bind::{Buffers, Slot, Slots};
use crate::chain::Stage;
use crate::grid::{address, cubes};
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::vector::across;
use crate::{Launch, LaunchError};

/// What an unseen key scores.
const MASKED: f32 = -1e30;

/// Attends by blocks of queries.
pub struct AttentionRows;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    places: Places,
    carry: Option<Carry>,
    shape: Shape,
    /// Queries a block.
    rows: usize,
    /// Where a part of the keys leaves what it came to; else it is the whole.
    to: Option<Slot>,
}

impl Kernel for AttentionRows {
    fn name(&self) -> &'static str {
        "attention.rows"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(FORWARD)
    }

    fn chains(&self) -> bool {
        true
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, ..) = instance(work)?;
        if target.family != Family::Cpu {
            return Err(Refusal(format!("needs the CPU runtime's local arrays; {} is not one", target.name)));
        }
        if n.d > 512 {
            return Err(Refusal(format!("a head may be 512 wide, is {}", n.d)));
        }
        let fixed = [("bits", 64), ("units", target.cores), ("lanes", target.lanes as u32), ("tile", TILE as u32)];
        let with = |rows: usize, parts: usize| {
            let mut words = [&fixed[..], &[("rows", rows as u32)]].concat();
            words.extend((parts > 1).then_some(("parts", parts as u32)));
            Schedule::new(&words)
        };
        let best = block(n.b * n.h, n.g * n.t, target.cores as usize, 256);
        let parts = parts(&n, target.cores as usize);
        // Blocks that queries would not fill to a quarter are not worth a try.
        let others = [16, 64, 256].into_iter().filter(|rows| *rows != best && *rows <= 4 * n.g * n.t);
        let mut all = vec![(best, parts)];
        all.extend((parts > 1).then_some((best, 1)));
        all.extend(others.map(|rows| (rows, 1)));
        Ok(all.into_iter().map(|(rows, parts)| with(rows, parts)).collect())
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        instance(work).map_or(0, |(n, ..)| floats(&n, schedule.get("parts") as usize))
    }
}

impl Launch for AttentionRows {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = instance(work).map_err(unfit(self.name()))?;
        let (places, carry, ins, outs) = places(operands, results);
        let (lanes, rows, tile) =
            (schedule.get("lanes") as usize, schedule.get("rows") as usize, schedule.get("tile") as usize);
        let shape = Shape { in_place: rows == STEP, ..Shape::new(n.d, tile, lanes) };
        let parts = schedule.get("parts") as usize;
        let (items, mut words) = blocks(&n, n.g * n.t, rows);
        let items = items * parts as u32;
        words[0] = items;
        words.extend([parts as u32, queries(&n) as u32]);
        let grid = cubes(items, schedule);
        let bits = address(schedule);
        let launch = |outs: Slots, plan: Plan, words: Vec<u32>| {
            let run: Run = runner!(|b| attention_rows, bits, lanes, b.meta, b.operands, b.results, plan);
            Prepared::new(words, ins, outs, grid.0, grid.1, run).staged(Stage::Attention(plan), lanes)
        };
        if parts == 1 {
            return Ok(launch(outs, Plan { places, carry, shape, rows, to: None }, words));
        }
        let (mut left, mut taken) = (Slots::default(), Slots::default());
        let part = Plan { places, carry, shape, rows, to: Some(left.scratch()) };
        let merge = Merge { from: taken.scratch(), out: places.out, lse: places.lse, shape };
        let then: Run = runner!(|b| merge_rows, bits, lanes, b.meta, b.operands, b.results, merge);
        let last = cubes(queries(&n) as u32, schedule);
        let scratch = self.scratch(work, schedule);
        Ok(launch(left, part, words).then(scratch, taken, outs, last, then).staged(Stage::AttentionMerge(merge), lanes))
    }
}

/// What a block of queries keeps from tile to tile.
#[derive(CubeType)]
struct Block<N: Size> {
    /// Queries, scaled; a row each, whole vectors.
    q: Array<Vector<f32, N>>,
    /// Weighted sums of values so far.
    sum: Array<Vector<f32, N>>,
    /// Sums of weights so far, by lane.
    weight: Array<Vector<f32, N>>,
    /// The highest score so far.
    top: Array<f32>,
    lo: Array<i32>,
    hi: Array<i32>,
}

/// A tile of keys.
#[derive(CubeType)]
struct Tile<N: Size> {
    /// Keys on their side: [D, tile]; nothing where they are read where they lie.
    k: Array<Vector<f32, N>>,
    /// Values: [tile, D]; likewise.
    v: Array<Vector<f32, N>>,
    /// Where its keys and values begin, and those of the tile that is taken next.
    from: usize,
    next: usize,
    at: Array<Vector<i32, N>>,
    /// Keys there are; the rest of the tile is void.
    count: usize,
    lowest: i32,
    highest: i32,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_rows<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
    attend_block::<N>(meta, operands, results, ABSOLUTE_POS, plan);
}

/// An item: a block of queries.
#[cube]
pub(crate) fn attend_block<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    item: usize,
    #[comptime] plan: Plan,
) {
    if item < meta[0] as usize {
        let (blocks, parts) = (meta[1] as usize, meta[6] as usize);
        let (part, item) = (item % parts, item / parts);
        let (times, groups) = (meta[2] as usize, meta[3] as usize);
        let (heads, keys) = (meta[4] as usize, meta[5] as usize);
        let head = item / blocks;
        let batch = head / heads;
        let first = (item % blocks) * plan.rows;
        let count = min(times * groups - first, plan.rows.runtime());

        let mut b = Block::<N> {
            q: Array::new(comptime![plan.rows * plan.shape.dv]),
            sum: Array::new(comptime![plan.rows * plan.shape.dv]),
            weight: Array::new(comptime![plan.rows]),
            top: Array::new(comptime![plan.rows]),
            lo: Array::new(comptime![plan.rows]),
            hi: Array::new(comptime![plan.rows]),
        };
        let mut tile = Tile::<N> {
            k: Array::new(comptime![if plan.shape.in_place { 1 } else { plan.shape.d * plan.shape.tv }]),
            v: Array::new(comptime![if plan.shape.in_place { 1 } else { plan.shape.tile * plan.shape.dv }]),
            at: Array::new(comptime![plan.shape.tv]),
            from: 0usize.runtime(),
            next: 0usize.runtime(),
            count: 0usize.runtime(),
            lowest: 0i32.runtime(),
            highest: 0i32.runtime(),
        };
        let steps = (count + comptime![STEP - 1]) / STEP;
        let mut lowest = i32::MAX.runtime();
        let mut highest = i32::MIN.runtime();
        for r in 0..steps * STEP {
            let real = r < count;
            let row = min(first + r, times * groups - 1);
            let t = row / groups;
            let lo = select(real, operands.i32s.index(plan.places.lo.index)[batch * times + t], i32::MAX);
            let hi = select(real, operands.i32s.index(plan.places.hi.index)[batch * times + t], i32::MIN);
            b.lo[r] = lo;
            b.hi[r] = hi;
            lowest = min(lowest, lo);
            highest = max(highest, hi);
            let query = (head * groups + row % groups) * times + t;
            begin::<N>(operands, &mut b, r, query, part == 0, plan);
            pack_row::<N>(
                operands,
                query * plan.shape.d,
                &mut b.q,
                r,
                f32::cast_from(1.0f32) / comptime![(plan.shape.d as f32).sqrt()].runtime(),
                plan.places.q,
                plan.shape,
            );
        }

        let tiles = (keys + comptime![plan.shape.tile - 1]) / plan.shape.tile;
        let mut i = part;
        while i < tiles {
            tile.count = min(keys - i * plan.shape.tile, plan.shape.tile.runtime());
            bounds::<N>(operands, batch * keys + i * plan.shape.tile, &mut tile, plan);
            if tile.highest >= lowest && tile.lowest <= highest {
                tile.from = (head * keys + i * plan.shape.tile) * plan.shape.d;
                tile.next = tile.from + parts * comptime![plan.shape.tile * plan.shape.d];
                if comptime![!plan.shape.in_place] {
                    pack_side::<N>(operands, tile.from, tile.count, &mut tile.k, plan.places.k, plan.shape);
                    pack_rows::<N>(operands, tile.from, tile.count, &mut tile.v, plan.places.v, plan.shape);
                }
                for step in 0..steps {
                    attend::<N>(operands, &mut b, &tile, step * STEP, plan);
                }
            }
            i += parts;
        }

        for r in 0..count {
            let row = first + r;
            let query = (head * groups + row % groups) * times + row / groups;
            let weight = across::<N>(b.weight[r], false);
            let seen = weight != 0.0f32;
            let safe = select(seen, weight, 1.0f32);
            let share = select(seen, 1.0f32 / safe, 0.0f32);
            let lse = select(seen, b.top[r] + safe.ln(), MASKED);
            match comptime!(plan.to) {
                Some(to) => {
                    let (place, lses) = (part * meta[7] as usize + query, parts * meta[7] as usize * plan.shape.d);
                    write_row::<N>(results, place * plan.shape.d, &b.sum, r, share, to, plan.shape);
                    results.f32s.index_mut(to.index)[lses + place] = lse;
                }
                None => {
                    write_row::<N>(results, query * plan.shape.d, &b.sum, r, share, plan.places.out, plan.shape);
                    results.f32s.index_mut(plan.places.lse.index)[query] = lse;
                }
            }
        }
    }
}

/// What query `query`, which is row `r` of the block, goes on from: of its parts the `first` alone from what is carried.
#[cube]
fn begin<N: Size>(operands: &Buffers, b: &mut Block<N>, r: usize, query: usize, first: bool, #[comptime] plan: Plan) {
    let top = select(first, carried_top(operands, query, plan.carry), MASKED);
    b.top[r] = top;
    let mut lanes = Vector::<f32, N>::new(0.0f32);
    match comptime!(plan.carry) {
        Some(c) => {
            let weight = carried_weight(top, plan.carry);
            // Lanes are summed in the end.
            lanes.insert(0usize, weight);
            pack_row::<N>(operands, query * plan.shape.d, &mut b.sum, r, weight, c.o, plan.shape);
        }
        None =>
        {
            #[unroll]
            for j in 0..plan.shape.dv {
                b.sum[r * plan.shape.dv + j] = Vector::new(0.0f32);
            }
        }
    }
    b.weight[r] = lanes;
}

/// The keys' places in the stream, and their bounds; void keys lie at no place.
#[cube]
fn bounds<N: Size>(operands: &Buffers, from: usize, tile: &mut Tile<N>, #[comptime] plan: Plan) {
    let at = operands.i32s.index(plan.places.at.index);
    let mut low = Vector::<i32, N>::new(i32::MAX);
    let mut high = Vector::<i32, N>::new(i32::MIN);
    if tile.count == plan.shape.tile {
        for c in 0..plan.shape.tv {
            let places = crate::vector::load::<i32, N>(at, from + c * plan.shape.lanes);
            tile.at[c] = places;
            low = min(low, places);
            high = max(high, places);
        }
    } else {
        let one = tile.at.as_mut_slice().as_vectorized_mut().with_vector_size_mut::<Const<1>>();
        for s in 0..plan.shape.tile {
            one[s] = Vector::new(i32::MAX);
        }
        for s in 0..tile.count {
            let place = at[from + s];
            one[s] = Vector::new(place);
            low = min(low, Vector::new(place));
            high = max(high, Vector::new(place));
        }
    }
    tile.lowest = low.extract(0usize);
    tile.highest = high.extract(0usize);
    #[unroll]
    for l in 1..plan.shape.lanes {
        tile.lowest = min(tile.lowest, low.extract(l));
        tile.highest = max(tile.highest, high.extract(l));
    }
}

/// One step: `STEP` queries from `row` on against a tile.
#[cube]
fn attend<N: Size>(operands: &Buffers, b: &mut Block<N>, tile: &Tile<N>, row: usize, #[comptime] plan: Plan) {
    let mut low = b.lo[row];
    let mut low_most = b.lo[row];
    let mut high = b.hi[row];
    let mut high_least = b.hi[row];
    #[unroll]
    for r in 1..STEP {
        low = min(low, b.lo[row + r]);
        low_most = max(low_most, b.lo[row + r]);
        high = max(high, b.hi[row + r]);
        high_least = min(high_least, b.hi[row + r]);
    }
    if tile.highest >= low && tile.lowest <= high {
        let whole = tile.count == plan.shape.tile && tile.lowest >= low_most && tile.highest <= high_least;
        let mut p = Array::<Vector<f32, N>>::new(comptime![STEP * plan.shape.tv]);
        let (from, next, count) = (tile.from, tile.next, tile.count);
        if comptime![plan.shape.in_place] {
            product_in_place::<N>(operands, from, next, count, &b.q, row, &mut p, plan.places.k, plan.shape);
        } else {
            product::<N>(&b.q, &tile.k, row, &mut p, plan.shape);
        }
        if !whole {
            mask::<N>(b, tile, row, &mut p, plan);
        }
        weigh::<N>(b, row, &mut p, plan);
        if comptime![plan.shape.in_place] {
            let slot = plan.places.v;
            add_weighed_in_place::<N>(operands, from, next, count, &mut b.sum, &p, row, slot, plan.shape);
        } else {
            add_weighed::<N>(&mut b.sum, &p, &tile.v, row, plan.shape);
        }
    }
}

/// Scores of what a query does not see become `MASKED`.
#[cube]
fn mask<N: Size>(b: &mut Block<N>, tile: &Tile<N>, row: usize, p: &mut Array<Vector<f32, N>>, #[comptime] plan: Plan) {
    for r in 0..STEP {
        let lo = Vector::<i32, N>::new(b.lo[row + r]);
        let hi = Vector::<i32, N>::new(b.hi[row + r]);
        for c in 0..plan.shape.tv {
            let at = tile.at[c];
            let place = crate::nest::lanes::<N>() + Vector::new((c * plan.shape.lanes) as i32);
            let real = place.less_than(&Vector::new(tile.count as i32));
            let sees = at.greater_equal(&lo).vec_and(at.less_equal(&hi)).vec_and(real);
            p[r * plan.shape.tv + c] = select_many(sees, p[r * plan.shape.tv + c], Vector::new(MASKED));
        }
    }
}

/// Softmax so far: scores become weights, and sums are brought to the new highest.
#[cube]
fn weigh<N: Size>(b: &mut Block<N>, row: usize, p: &mut Array<Vector<f32, N>>, #[comptime] plan: Plan) {
    let mut old = Array::<Vector<f32, N>>::new(STEP);
    for r in 0..STEP {
        let mut most = p[r * plan.shape.tv];
        #[unroll]
        for c in 1..plan.shape.tv {
            most = max(most, p[r * plan.shape.tv + c]);
        }
        let top = max(b.top[row + r], across::<N>(most, true));
        let fall = Vector::<f32, N>::new(b.top[row + r] - top).exp();
        old[r] = fall;
        b.top[row + r] = top;
        let mut weight = b.weight[row + r] * fall;
        #[unroll]
        for c in 0..plan.shape.tv {
            let score = p[r * plan.shape.tv + c];
            // A masked score is far below any other; where all are masked, none may count.
            let hidden = score.less_than(&Vector::new(comptime![MASKED / 2.0].runtime()));
            let share = select_many(hidden, Vector::new(0.0f32), (score - Vector::new(top)).exp());
            p[r * plan.shape.tv + c] = share;
            weight += share;
        }
        b.weight[row + r] = weight;
    }
    for r in 0..STEP {
        #[unroll]
        for j in 0..plan.shape.dv {
            b.sum[(row + r) * plan.shape.dv + j] *= old[r];
        }
    }
}
