//! Attention of few queries over many keys on GPUs: decode. The units of a cube split the keys.
//!
//! A cube takes up to `rows` queries of a group and walks the keys in tiles of a key a unit. A unit scores its own key
//! for all rows, out of a tile that the cube brought in side by side; then it turns to its own columns of the values,
//! which it sums over the tile's keys. What groups of units summed over different keys is merged in shared memory: a
//! launch cannot wait for another cube, and a second launch would need memory that the plan does not give.
//!
//! Implements  `@attention`, `@attention_partial`, `@attention_onto`
//! Schedule    a cube `rows` queries of a group; `units` keys a tile, `chunk` columns of them at a time
//! Needs       a GPU; D <= 256; at most 16 queries a group
//! Cost        keys and values are read once for each `rows` queries, side by side
//! Source      Kwon et al. 2023, PagedAttention, arXiv:2309.06180, section 5.1; online softmax, arXiv:1805.02867

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{FORWARD, Places, Sizes, instance, places};
use crate::attention_carry::{Carry, carried_top, carried_value, carried_weight};
use crate::attention_panels::{MASKED, shares};
use crate::attention_sight::{Mask, at, bounds, hi, lo, sight};
use crate::bind::{Buffers, Slot};
use crate::grid::{address, one_each};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::{Lane, read_float, write_float};
use crate::{Launch, LaunchError};

/// Most queries of a group.
const MOST: usize = 16;

/// Attends with the keys split among units.
pub struct AttentionSplit;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    places: Places,
    carry: Option<Carry>,
    mask: Mask,
    d: usize,
    /// Queries a cube.
    rows: usize,
    /// Keys a tile.
    units: usize,
    /// Columns of a tile at a time.
    chunk: usize,
}

impl Plan {
    /// Groups of units that sum different keys.
    fn groups(&self) -> usize {
        (self.units / self.d).max(1)
    }

    /// Columns of the values that a unit sums.
    fn columns(&self) -> usize {
        self.d.div_ceil(self.units)
    }

    /// Floats of the panel that holds keys first and the groups' sums last.
    fn panel(&self) -> usize {
        (self.units * (self.chunk + 1)).max(self.groups() * self.rows * self.d)
    }
}

impl Kernel for AttentionSplit {
    fn name(&self) -> &'static str {
        "attention.split"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(FORWARD)
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, ..) = instance(work)?;
        shares(target, n.d)?;
        // Measured on one, against `attention.plain`: 0.1 to 0.24 times as fast.
        if target.software {
            return Err(Refusal(format!("{} has no shared memory of its own to merge in", target.name)));
        }
        if n.g * n.t > MOST {
            return Err(Refusal(format!("splits keys for at most {MOST} queries a group, not {}", n.g * n.t)));
        }
        let units = if target.family == Family::Cuda { 256 } else { 64 };
        let fits = |rows: usize| {
            [64, 32, 16, 8, 4].into_iter().find(|&chunk| bytes(n.d, rows, units, chunk) <= target.shared_bytes)
        };
        let all: Vec<(usize, usize)> = [8, 4, 2, 1].into_iter().filter_map(|r| Some((r, fits(r)?))).collect();
        // Rows that share the keys are worth it while every core has a cube, and no wider than the group.
        let busy = |rows: usize| cubes(&n, rows) >= target.cores as usize && (rows == 1 || rows < 2 * n.g * n.t);
        let best = all.iter().copied().find(|(rows, _)| busy(*rows)).or(all.last().copied());
        let with = |(rows, chunk): (usize, usize)| {
            let words = [("bits", 32), ("units", units), ("rows", rows), ("chunk", chunk)];
            Schedule::new(&words.map(|(name, n)| (name, n as u32)))
        };
        Ok(best.into_iter().map(with).collect())
    }
}

fn bytes(d: usize, rows: usize, units: usize, chunk: usize) -> usize {
    let groups = (units / d).max(1);
    4 * ((units * (chunk + 1)).max(groups * rows * d) + rows * (d + units))
}

fn cubes(n: &Sizes, rows: usize) -> usize {
    n.b * n.h * (n.g * n.t).div_ceil(rows)
}

impl Launch for AttentionSplit {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = instance(work).map_err(unfit(self.name()))?;
        let (places, carry, ins, outs) = places(operands, results);
        let get = |name: &str| schedule.get(name) as usize;
        let (rows, units, chunk) = (get("rows"), get("units"), get("chunk"));
        let plan = Plan { places, carry, mask: places.into(), d: n.d, rows, units, chunk };
        let items = cubes(&n, plan.rows) as u32;
        let blocks = (n.g * n.t).div_ceil(plan.rows) as u32;
        let words = vec![items, blocks, n.t as u32, n.g as u32, n.h as u32, n.s as u32];
        let (grid, units) = one_each(items, schedule.get("units"));
        let bits = address(schedule);
        Ok(Prepared::new(
            words,
            ins,
            outs,
            grid,
            units,
            runner!(|b| attention_split, bits, b.meta, b.operands, b.results, plan),
        ))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_split(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
    let mut panel = Shared::<[f32]>::new_slice(comptime![plan.panel()]);
    let mut queries = Shared::<[f32]>::new_slice(comptime![plan.rows * plan.d]);
    let mut weights = Shared::<[f32]>::new_slice(comptime![plan.rows * plan.units]);
    let item = CUBE_POS;
    let unit = UNIT_POS as usize;
    if item < meta[0] as usize {
        let blocks = meta[1] as usize;
        let (times, groups) = (meta[2] as usize, meta[3] as usize);
        let (heads, keys) = (meta[4] as usize, meta[5] as usize);
        let head = item / blocks;
        let batch = head / heads;
        let first = (item % blocks) * plan.rows;
        let last = times * groups - 1;
        let until = min(first + comptime![plan.rows - 1], last) / groups + 1;
        let sight = sight(operands, batch * times + first / groups, batch * times + until, plan.mask);

        let mut from = Array::<u32>::new(plan.rows);
        let mut los = Array::<i32>::new(plan.rows);
        let mut his = Array::<i32>::new(plan.rows);
        let mut top = Array::<f32>::new(plan.rows);
        let mut weight = Array::<f32>::new(plan.rows);
        let mut sums = Array::<f32>::new(comptime![plan.rows * plan.columns()]);
        #[unroll]
        for r in 0..plan.rows {
            let row = min(first + r, last);
            from[r] = (((head * groups + row % groups) * times + row / groups) * plan.d) as u32;
            los[r] = lo(operands, batch * times + row / groups, plan.mask);
            his[r] = hi(operands, batch * times + row / groups, plan.mask);
            top[r] = carried_top(operands, from[r] as usize / plan.d, plan.carry);
            // Groups of units sum different keys: the first has what is carried.
            let leads = unit < plan.d;
            weight[r] = select(leads, carried_weight(top[r], plan.carry), 0.0f32);
            #[unroll]
            for c in 0..comptime![plan.columns()] {
                let d = min(unit % plan.d + comptime![c * plan.units], comptime![plan.d - 1].runtime());
                sums[comptime![r * plan.columns() + c]] =
                    carried_value(operands, from[r] as usize + d, weight[r], plan.carry);
            }
            let mut d = unit;
            while d < plan.d {
                queries[comptime![r * plan.d] + d] = one(operands, from[r] as usize + d, plan.places.q);
                d += plan.units;
            }
        }

        let tiles = (keys + comptime![plan.units - 1]) / plan.units;
        for i in 0..tiles {
            let start = i * plan.units;
            let count = min(keys - start, plan.units.runtime());
            let (near, far) = bounds(operands, batch * keys + start, batch * keys + start + count, plan.mask);
            if far >= sight.lowest && near <= sight.highest {
                let mut score = Array::<f32>::new(plan.rows);
                score_key(operands, &mut panel, &queries, &mut score, head * keys + start, count, plan);
                let place = at(operands, batch * keys + start + min(unit, count - 1), plan.mask);
                #[unroll]
                for r in 0..plan.rows {
                    let sees = unit < count && place >= los[r] && place <= his[r];
                    weights[comptime![r * plan.units] + unit] = select(sees, score[r], MASKED);
                }
                sync_cube();
                let mut fall = Array::<f32>::new(plan.rows);
                #[unroll]
                for r in 0..plan.rows {
                    let old = top[r];
                    for s in 0..plan.units {
                        top[r] = max(top[r], weights[comptime![r * plan.units] + s]);
                    }
                    fall[r] = (old - top[r]).exp();
                }
                sync_cube();
                #[unroll]
                for r in 0..plan.rows {
                    // A masked score is far below any other; where all are masked, none may count.
                    let mine = weights[comptime![r * plan.units] + unit];
                    let seen = mine > comptime![MASKED / 2.0].runtime();
                    weights[comptime![r * plan.units] + unit] = select(seen, (mine - top[r]).exp(), 0.0f32);
                    weight[r] *= fall[r];
                    #[unroll]
                    for c in 0..comptime![plan.columns()] {
                        sums[comptime![r * plan.columns() + c]] *= fall[r];
                    }
                }
                sync_cube();
                sum_values(operands, &weights, &mut weight, &mut sums, head * keys + start, count, plan);
                sync_cube();
            }
        }
        merge(results, &mut panel, &mut weights, &from, &top, &weight, &sums, first, last, plan);
    }
}

/// What the unit's key scores for each row. The cube brings its keys side by side, some columns at a time.
#[cube]
fn score_key(
    operands: &Buffers,
    panel: &mut Shared<[f32]>,
    queries: &Shared<[f32]>,
    score: &mut Array<f32>,
    key: usize,
    count: usize,
    #[comptime] plan: Plan,
) {
    let unit = UNIT_POS as usize;
    let pitch = comptime![plan.chunk + 1];
    #[unroll]
    for r in 0..plan.rows {
        score[r] = 0.0f32;
    }
    for c in 0..comptime![plan.d.div_ceil(plan.chunk)] {
        sync_cube();
        for i in 0..plan.chunk {
            let v = unit + i * plan.units;
            let (s, d) = (v / plan.chunk, c * plan.chunk + v % plan.chunk);
            let inside = min(d, comptime![plan.d - 1].runtime());
            let value = one(operands, (key + min(s, count - 1)) * plan.d + inside, plan.places.k);
            panel[s * pitch + v % plan.chunk] = select(d < plan.d, value, 0.0f32);
        }
        sync_cube();
        for d in 0..min(comptime![plan.d].runtime() - c * plan.chunk, plan.chunk.runtime()) {
            let k = panel[unit * pitch + d];
            #[unroll]
            for r in 0..plan.rows {
                score[r] += queries[comptime![r * plan.d] + c * plan.chunk + d] * k;
            }
        }
    }
    #[unroll]
    for r in 0..plan.rows {
        score[r] *= comptime![1.0 / (plan.d as f32).sqrt()].runtime();
    }
}

/// Adds the tile's weighed values to the unit's columns, over the keys that are its group's.
#[cube]
fn sum_values(
    operands: &Buffers,
    weights: &Shared<[f32]>,
    weight: &mut Array<f32>,
    sums: &mut Array<f32>,
    key: usize,
    count: usize,
    #[comptime] plan: Plan,
) {
    let unit = UNIT_POS as usize;
    let mut s = 0usize.runtime();
    if comptime![plan.groups() > 1] {
        s = unit / plan.d;
    }
    while s < count {
        #[unroll]
        for r in 0..plan.rows {
            weight[r] += weights[comptime![r * plan.units] + s];
        }
        #[unroll]
        for c in 0..comptime![plan.columns()] {
            let d = min(unit % plan.d + comptime![c * plan.units], comptime![plan.d - 1].runtime());
            let value = one(operands, (key + s) * plan.d + d, plan.places.v);
            #[unroll]
            for r in 0..plan.rows {
                sums[comptime![r * plan.columns() + c]] += weights[comptime![r * plan.units] + s] * value;
            }
        }
        s += comptime![plan.groups()];
    }
}

/// Sums over the groups of units, and the results of the rows that there are.
#[cube]
fn merge(
    results: &mut Buffers,
    panel: &mut Shared<[f32]>,
    weights: &mut Shared<[f32]>,
    from: &Array<u32>,
    top: &Array<f32>,
    weight: &Array<f32>,
    sums: &Array<f32>,
    first: usize,
    last: usize,
    #[comptime] plan: Plan,
) {
    let unit = UNIT_POS as usize;
    let group = unit / plan.d;
    sync_cube();
    #[unroll]
    for r in 0..plan.rows {
        weights[comptime![r * plan.units] + unit] = weight[r];
        #[unroll]
        for c in 0..comptime![plan.columns()] {
            let d = unit % plan.d + comptime![c * plan.units];
            if comptime![plan.units >= plan.d] {
                if group < comptime![plan.groups()] {
                    panel[(group * plan.rows + r) * plan.d + d] = sums[comptime![r * plan.columns() + c]];
                }
            } else if d < plan.d {
                panel[r * plan.d + d] = sums[comptime![r * plan.columns() + c]];
            }
        }
    }
    sync_cube();
    #[unroll]
    for r in 0..plan.rows {
        if first + r <= last {
            let mut whole = 0.0f32.runtime();
            for g in 0..comptime![plan.groups()] {
                whole += weights[comptime![r * plan.units] + g * comptime![plan.d.min(plan.units)]];
            }
            let seen = whole > 0.0f32;
            let safe = select(seen, whole, 1.0f32);
            let share = select(seen, 1.0f32 / safe, 0.0f32);
            let start = from[r] as usize;
            let mut d = unit;
            while d < plan.d {
                let mut sum = 0.0f32.runtime();
                for g in 0..comptime![plan.groups()] {
                    sum += panel[(g * plan.rows + r) * plan.d + d];
                }
                let value = Vector::new(sum * share);
                write_float::<Const<1>>(results, start + d, 1usize, value, plan.places.out, Lane::One);
                d += plan.units;
            }
            if unit == 0 {
                results.f32s.index_mut(plan.places.lse.index)[start / plan.d] =
                    select(seen, top[r] + safe.ln(), MASKED);
            }
        }
    }
}

#[cube]
fn one(operands: &Buffers, at: usize, #[comptime] slot: Slot) -> f32 {
    read_float::<Const<1>>(operands, at, 0usize, slot, Lane::Zero).extract(0usize)
}
