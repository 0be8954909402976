//! Attention of few queries over many keys on GPUs: decode. Cubes split the keys, and the units of a cube split them again.
//!
//! A few units share a key, 8 columns each: they load keys and values side by side and keep queries, sums and softmax in
//! registers. Tiles of keys go to the parts of a head in turn, so that a cache that is filled to a small part still
//! spreads over all cubes; a tile that nobody sees is not loaded. The units' sums meet in shared memory. What the parts
//! came to lies in scratch memory, and a second launch merges it.
//!
//! Implements  `@attention`, `@attention_partial`, `@attention_onto`
//! Schedule    `parts` cubes a head, merged by cubes of `merge` units; `rows` queries a cube, `lanes` units a key; `ask` ahead
//! Needs       a GPU; D <= 256; at most 16 queries a group
//! Cost        keys and values are read once for each `rows` queries, side by side; a second launch where `parts` > 1
//! Source      Dao et al. 2023, Flash-Decoding; Kwon et al. 2023, PagedAttention, arXiv:2309.06180, section 5.1; online softmax, arXiv:1805.02867

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{FORWARD, Places, Sizes, instance, places};
use crate::attention_carry::Carry;
use crate::attention_fragments::PLANE;
use crate::attention_keys::{Plan, attend, begun, by_planes, scaled, take};
use crate::attention_merge::{self, COLUMNS, Merge, PARTS, finish, meet, merge_parts};
use crate::attention_panels::shares;
use crate::attention_sight::{at, hi, lo};
use crate::bind::{Buffers, Slots};
use crate::grid::{address, one_each};
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::{Launch, LaunchError};

/// Most queries of a group.
const MOST: usize = 16;
/// Most queries of a cube: their sums stay in registers.
const ROWS: usize = 8;
/// Keys that a unit has under way.
const DEEP: usize = 4;
/// Cubes that a core runs at once, by their registers.
const RESIDENT: usize = 2;
/// Parts come in multiples of it.
const EVEN: usize = 8;
/// The fewest keys that are worth a part.
const LEAST: usize = 64;

/// Attends with the keys split among cubes and units.
pub struct AttentionSplit;

/// Queries a cube: as even as can be.
fn rows(n: &Sizes) -> usize {
    let all = n.g * n.t;
    all.div_ceil(all.div_ceil(ROWS).max(1)).max(1)
}

/// Units that share a key of that width.
fn lanes(d: usize) -> usize {
    d.div_ceil(COLUMNS).next_power_of_two().clamp(4, 32)
}

/// Blocks of queries, over all heads.
fn blocks(n: &Sizes, rows: usize) -> usize {
    n.b * n.h * (n.g * n.t).div_ceil(rows)
}

/// Parts of the keys: so many that each core has its cubes at once, so few that each is worth it.
fn parts(n: &Sizes, target: &Target) -> usize {
    // WebGPU does not tell its cores.
    let cores = if target.family == Family::Cuda { target.cores } else { target.cores.max(16) };
    let wanted = RESIDENT * cores as usize / blocks(n, rows(n)).max(1);
    let all = wanted.min(n.s.div_ceil(LEAST)).clamp(1, PARTS);
    // The groups of a merge take as many each.
    if all > EVEN { all / EVEN * EVEN } else { all }
}

impl Kernel for AttentionSplit {
    fn name(&self) -> &'static str {
        "attention.split"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(FORWARD)
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, operands, results) = instance(work)?;
        shares(target, n.d)?;
        // Measured on one, against `attention.plain`: 0.1 to 0.24 times as fast.
        if target.software {
            return Err(Refusal(format!("{} has no shared memory of its own to merge in", target.name)));
        }
        if n.g * n.t > MOST {
            return Err(Refusal(format!("splits keys for at most {MOST} queries a group, not {}", n.g * n.t)));
        }
        let cuda = target.family == Family::Cuda;
        let with = |parts: usize, ask: usize| {
            let words = [
                ("bits", 32),
                ("units", if cuda { 128 } else { 64 }),
                ("plane", if cuda { PLANE } else { 1 }),
                ("rows", rows(&n)),
                ("lanes", lanes(n.d)),
                ("deep", DEEP),
                ("parts", parts),
                ("ask", ask),
            ];
            let mut words: Vec<(&str, u32)> = words.map(|(name, n)| (name, n as u32)).to_vec();
            words.extend((parts > 1).then(|| ("merge", attention_merge::units(target))));
            Schedule::new(&words)
        };
        let best = with(parts(&n, target), usize::from(cuda));
        let need = plan(&n, places(operands, results).0, None, &best).bytes();
        if need > target.shared_bytes {
            let (name, have) = (&target.name, target.shared_bytes);
            return Err(Refusal(format!("needs {need} bytes of shared memory, {name} has {have}")));
        }
        let mut all = vec![best.clone(), with(parts(&n, target), 0), with(1, 0)];
        all.dedup();
        Ok(all)
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        let parts = schedule.get("parts") as usize;
        let floats = |(n, ..): (Sizes, _, _)| {
            let rows = schedule.get("rows") as usize;
            blocks(&n, rows) * parts * rows * (schedule.get("lanes") as usize * COLUMNS + 1)
        };
        if parts > 1 { instance(work).map_or(0, floats) } else { 0 }
    }
}

/// The plan of an instance that a schedule says, of one part.
fn plan(n: &Sizes, places: Places, carry: Option<Carry>, schedule: &Schedule) -> Plan {
    let get = |name: &str| schedule.get(name) as usize;
    Plan {
        places,
        carry,
        mask: places.into(),
        to: None,
        d: n.d,
        rows: get("rows"),
        units: get("units"),
        lanes: get("lanes"),
        deep: get("deep"),
        plane: get("plane"),
        alike: n.t == 1,
        asks: get("ask") > 0 && get("plane") > 1,
    }
}

impl Launch for AttentionSplit {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = instance(work).map_err(unfit(self.name()))?;
        let (places, carry, ins, outs) = places(operands, results);
        let plan = plan(&n, places, carry, schedule);
        let (parts, scratch) = (schedule.get("parts") as usize, self.scratch(work, schedule));
        if parts > PARTS {
            return Err(unfit(self.name())(Refusal(format!("at most {PARTS} parts are merged, not {parts}"))));
        }
        let (blocks, queries) = (blocks(&n, plan.rows), n.b * n.h * n.g * n.t);
        let (cubes, lses) = (blocks * parts, scratch - scratch / (plan.width() + 1));
        let each = (n.g * n.t).div_ceil(plan.rows);
        let words = [cubes, parts, each, n.t, n.g, n.h, n.s, queries, lses].map(|n| n as u32).to_vec();
        let (grid, units) = one_each(cubes as u32, schedule.get("units"));
        let bits = address(schedule);
        if parts == 1 {
            let run: Run = runner!(|b| attention_split, bits, b.meta, b.operands, b.results, plan);
            return Ok(Prepared::new(words, ins, outs, grid, units, run));
        }
        // The parts know nothing of what is carried: the merge adds it.
        let (alone, _, part_ins, _) = crate::attention::places(&operands[..6], results);
        let (mut left, mut taken) = (Slots::default(), Slots::default());
        let part = Plan { places: alone, carry: None, to: Some(left.scratch()), ..plan };
        let from = taken.scratch();
        let carry = carry.map(|_| Carry { o: taken.slot(6, operands[6].dtype), l: taken.slot(7, operands[7].dtype) });
        let merge = Merge::new(from, &places, carry, [n.d, plan.rows, plan.lanes], schedule);
        let run: Run = runner!(|b| attention_split, bits, b.meta, b.operands, b.results, part);
        let then: Run = runner!(|b| merge_parts, bits, b.meta, b.operands, b.results, merge);
        let last = one_each(queries as u32, attention_merge::units_of(schedule));
        Ok(Prepared::new(words, part_ins, left, grid, units, run).then(scratch, taken, outs, last, then))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_split(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Plan) {
    let mut panel = Shared::<[f32]>::new_slice(comptime![plan.panel()]);
    let mut tops = Shared::<[f32]>::new_slice(comptime![plan.groups() * plan.rows]);
    let mut shares = Shared::<[f32]>::new_slice(comptime![plan.groups() * plan.rows]);
    let item = CUBE_POS;
    if item < meta[0] as usize {
        let (parts, blocks) = (meta[1] as usize, meta[2] as usize);
        let (times, groups) = (meta[3] as usize, meta[4] as usize);
        let (heads, keys) = (meta[5] as usize, meta[6] as usize);
        let (part, block) = (item % parts, item / parts);
        let (head, first) = (block / blocks, block % blocks * plan.rows);
        let batch = head / heads;
        let last = times * groups - 1;

        let mut s = begun(plan);
        let mut from = Array::<u32>::new(plan.rows);
        #[unroll]
        for r in 0..plan.rows {
            let row = min(first + r, last);
            from[r] = ((head * groups + row % groups) * times + row / groups) as u32;
            take(operands, &mut s.q, comptime![r * COLUMNS], from[r] as usize * plan.d, plan.places.q, plan);
            if comptime![r < plan.intervals()] {
                s.los[r] = lo(operands, batch * times + row / groups, plan.mask);
                s.his[r] = hi(operands, batch * times + row / groups, plan.mask);
                s.lowest = min(s.lowest, s.los[r]);
                s.highest = max(s.highest, s.his[r]);
            }
        }
        scaled(&mut s, plan);

        let tiles = keys.div_ceil(plan.tile());
        if comptime![plan.plane > 1] {
            by_planes(operands, &mut panel, &mut s, head, batch, keys, part, parts, tiles, plan);
        } else {
            let mut tile = part;
            while tile < tiles {
                let key = tile * plan.tile() + UNIT_POS as usize / plan.lanes * plan.deep;
                let mut sight = Array::<i32>::new(plan.deep);
                let mut bits = 0u32.runtime();
                #[unroll]
                for k in 0..plan.deep {
                    sight[k] = at(operands, batch * keys + min(key + k, keys - 1), plan.mask);
                    let seen = key + k < keys && sight[k] >= s.lowest && sight[k] <= s.highest;
                    bits |= select(seen, comptime![1u32 << k].runtime(), 0u32);
                }
                attend(operands, &mut panel, &mut s, &sight, bits, head, key, keys, plan);
                tile += parts;
            }
        }
        meet(&mut tops, &mut shares, &mut s, plan);
        finish(
            operands,
            results,
            &mut panel,
            &shares,
            &s,
            &from,
            item,
            min(last + 1 - first, plan.rows.runtime()),
            meta[8] as usize,
            plan,
        );
    }
}
