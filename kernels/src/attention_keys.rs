//! What a cube of `attention.split` does: its units share its keys, and meet at the end.
//!
//! `lanes` units share a key, 8 columns each. Where units run in step (planes) they hand each other what they scored;
//! elsewhere scores meet in shared memory.

use cubecl::prelude::*;

use crate::attention::Places;
use crate::attention_carry::Carry;
use crate::attention_fragments::{PLANE, power};
use crate::attention_merge::COLUMNS;
use crate::attention_panels::MASKED;
use crate::attention_sight::{Mask, at};
use crate::bind::{Buffers, Slot, Storage};
use crate::prefetch_lines::{SECTOR, bring};
use crate::vector::{Lane, read_float, read_whole};

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    pub(crate) places: Places,
    pub(crate) carry: Option<Carry>,
    pub(crate) mask: Mask,
    /// The scratch memory that a part is left in; nothing where there is one part.
    pub(crate) to: Option<Slot>,
    pub(crate) d: usize,
    /// Queries a cube.
    pub(crate) rows: usize,
    pub(crate) units: usize,
    /// Units that share a key.
    pub(crate) lanes: usize,
    /// Keys that a unit has under way.
    pub(crate) deep: usize,
    /// Units that run in step and hand each other values; 1 where none do.
    pub(crate) plane: usize,
    /// Whether all queries of a cube see the same keys: they are of one time.
    pub(crate) alike: bool,
    /// Whether planes ask for keys before they load them.
    pub(crate) asks: bool,
}

impl Plan {
    /// Keys that a cube takes at a time.
    pub(crate) fn tile(&self) -> usize {
        self.units / self.lanes * self.deep
    }

    /// Groups of units with keys of their own.
    pub(crate) fn groups(&self) -> usize {
        self.units / self.lanes
    }

    /// Keys that a plane takes at a time.
    pub(crate) fn near(&self) -> usize {
        self.plane / self.lanes * self.deep
    }

    /// Intervals of a cube's queries.
    pub(crate) fn intervals(&self) -> usize {
        if self.alike { 1 } else { self.rows }
    }

    /// Elements of a load of that operand.
    pub(crate) fn wide(&self, slot: Slot) -> usize {
        let narrow = matches!(slot.storage, Storage::Bf16 | Storage::F16);
        match self.d {
            d if d.is_multiple_of(8) && narrow && self.plane > 1 => 8,
            d if d.is_multiple_of(4) => 4,
            _ => 1,
        }
    }

    /// Floats of a row of sums.
    pub(crate) fn width(&self) -> usize {
        self.lanes * COLUMNS
    }

    /// Rows whose sums meet at a time.
    pub(crate) fn turn(&self) -> usize {
        if self.plane > 1 { self.rows } else { (self.deep * self.rows / COLUMNS).max(1).min(self.rows) }
    }

    /// Floats of the panel that holds a tile's scores, where planes do not sum them, and sums at the end.
    pub(crate) fn panel(&self) -> usize {
        let scores = if self.plane > 1 { 0 } else { self.units * self.deep * self.rows };
        scores.max(self.groups() * self.turn() * self.width())
    }

    /// Bytes of shared memory.
    pub(crate) fn bytes(&self) -> usize {
        4 * (self.panel() + 2 * self.groups() * self.rows)
    }

    /// What scores are multiplied with: planes take powers of 2.
    pub(crate) fn scale(&self) -> f32 {
        let scale = 1.0 / (self.d as f64).sqrt();
        (if self.plane > 1 { scale * std::f64::consts::LOG2_E } else { scale }) as f32
    }
}

/// What a unit holds of its queries: their columns, sums and softmax.
#[derive(CubeType)]
pub(crate) struct State {
    pub(crate) q: Array<f32>,
    pub(crate) sums: Array<f32>,
    pub(crate) top: Array<f32>,
    pub(crate) weight: Array<f32>,
    /// What queries see, one for all where they are alike.
    pub(crate) los: Array<i32>,
    pub(crate) his: Array<i32>,
    pub(crate) lowest: i32,
    pub(crate) highest: i32,
}

/// The state of queries that saw nothing.
#[cube]
pub(crate) fn begun(#[comptime] plan: Plan) -> State {
    let mut sums = Array::<f32>::new(comptime![plan.rows * COLUMNS]);
    let mut top = Array::<f32>::new(plan.rows);
    let mut weight = Array::<f32>::new(plan.rows);
    #[unroll]
    for r in 0..plan.rows {
        top[r] = MASKED;
        weight[r] = 0.0f32;
        #[unroll]
        for c in 0..COLUMNS {
            sums[comptime![r * COLUMNS + c]] = 0.0f32;
        }
    }
    State {
        q: Array::<f32>::new(comptime![plan.rows * COLUMNS]),
        sums,
        top,
        weight,
        los: Array::<i32>::new(plan.intervals()),
        his: Array::<i32>::new(plan.intervals()),
        lowest: i32::MAX.runtime(),
        highest: i32::MIN.runtime(),
    }
}

/// Queries times the scale of their scores; nothing beyond D, so that no key counts there.
#[cube]
pub(crate) fn scaled(s: &mut State, #[comptime] plan: Plan) {
    let first = UNIT_POS as usize % plan.lanes * COLUMNS;
    let scale = comptime![plan.scale()].runtime();
    #[unroll]
    for i in 0..comptime![plan.rows * COLUMNS] {
        let inside = first + comptime![i % COLUMNS] < plan.d;
        s.q[i] = select(inside, s.q[i] * scale, 0.0f32);
    }
}

/// The unit's columns of the row that starts at element `row`, in as few loads as can be. Those beyond D repeat others.
#[cube]
pub(crate) fn take(
    operands: &Buffers,
    to: &mut Array<f32>,
    #[comptime] base: usize,
    row: usize,
    #[comptime] slot: Slot,
    #[comptime] plan: Plan,
) {
    let first = UNIT_POS as usize % plan.lanes * COLUMNS;
    let wide = comptime![plan.wide(slot)];
    #[unroll]
    for i in 0..comptime![COLUMNS / wide] {
        let from = row + min(first + comptime![i * wide], comptime![plan.d - wide].runtime());
        if comptime![wide == 8] {
            let x = read_whole::<Const<8>>(operands, from, slot);
            #[unroll]
            for l in 0..8usize {
                to[comptime![base + l]] = x.extract(l);
            }
        } else if comptime![wide == 4] {
            let x = four(operands, from, slot, plan);
            #[unroll]
            for l in 0..4usize {
                to[comptime![base + i * 4 + l]] = x.extract(l);
            }
        } else {
            to[comptime![base + i]] = read_float::<Const<1>>(operands, from, 0usize, slot, Lane::Zero).extract(0usize);
        }
    }
}

#[allow(unused_assignments)]
#[cube]
fn four(operands: &Buffers, from: usize, #[comptime] slot: Slot, #[comptime] plan: Plan) -> Vector<f32, Const<4>> {
    let mut x = Vector::<f32, Const<4>>::empty();
    if comptime![plan.plane > 1] {
        x = read_whole::<Const<4>>(operands, from, slot);
    } else {
        x = read_float::<Const<4>>(operands, from, 1usize, slot, Lane::One);
    }
    x
}

/// The part's tiles by planes: each looks at the places of as many keys as it has units at once, of several tiles, and
/// loads the tiles of which somebody sees a key.
#[cube]
pub(crate) fn by_planes(
    operands: &Buffers,
    panel: &mut Shared<[f32]>,
    s: &mut State,
    head: usize,
    batch: usize,
    keys: usize,
    part: usize,
    parts: usize,
    tiles: usize,
    #[comptime] plan: Plan,
) {
    let lane = UNIT_POS as usize % PLANE;
    let near = comptime![plan.near()];
    let ahead = comptime![PLANE / plan.near()];
    let start = UNIT_POS as usize / PLANE * near;
    // The key that the unit looks at in a round of tiles, and the first of those that it takes in a tile.
    let looked = lane / near * parts * plan.tile() + start + lane % near;
    let mine = lane / plan.lanes * plan.deep;
    let only = comptime![u32::MAX >> (PLANE - plan.near()) as u32].runtime();
    let mut tile = part;
    let mut next = at(operands, batch * keys + min(tile * plan.tile() + looked, keys - 1), plan.mask);
    while tile < tiles {
        let place = next;
        let there = tile * plan.tile() + looked < keys;
        let later = tile + parts * ahead;
        next = at(operands, batch * keys + min(later * plan.tile() + looked, keys - 1), plan.mask);
        let seen = plane_ballot(there && place >= s.lowest && place <= s.highest).extract(0usize);
        // All that will be loaded is on its way before the first of it is waited for.
        if comptime![plan.asks] {
            for j in 0..ahead {
                if (seen >> (j * near) as u32) & only != 0 {
                    let key = (tile + j * parts) * plan.tile() + start;
                    ask(operands, head, key, keys, plan.places.k, plan);
                    ask(operands, head, key, keys, plan.places.v, plan);
                }
            }
        }
        for j in 0..ahead {
            let shift = j * near;
            let some = (seen >> shift as u32) & only;
            if some != 0 {
                let mut sight = Array::<i32>::new(plan.deep);
                #[unroll]
                for k in 0..plan.deep {
                    sight[k] = place;
                    if comptime![!plan.alike] {
                        sight[k] = plane_shuffle(place, (shift + mine + k) as u32);
                    }
                }
                let key = (tile + j * parts) * plan.tile() + start + mine;
                attend(operands, panel, s, &sight, some >> mine as u32, head, key, keys, plan);
            }
        }
        tile = later;
    }
}

/// Asks for the rows of a plane's keys ahead of time, a sector a unit: they lie side by side.
#[cube]
fn ask(operands: &Buffers, head: usize, key: usize, keys: usize, #[comptime] slot: Slot, #[comptime] plan: Plan) {
    let sector = comptime![if slot.storage == Storage::F32 { SECTOR / 4 } else { SECTOR / 2 }];
    let end = (head * keys + keys) * plan.d - 1;
    #[unroll]
    for i in 0..comptime![(plan.near() * plan.d).div_ceil(PLANE * sector)] {
        let unit = UNIT_POS as usize % PLANE + comptime![i * PLANE];
        let at = min((head * keys + key) * plan.d + unit * sector, end);
        bring(operands, at, slot);
    }
}

/// Takes keys `key..key + deep` of the unit's group: bit `k` says whether anybody sees key `k`, `sight` where it is.
#[cube]
pub(crate) fn attend(
    operands: &Buffers,
    panel: &mut Shared<[f32]>,
    s: &mut State,
    sight: &Array<i32>,
    bits: u32,
    head: usize,
    key: usize,
    keys: usize,
    #[comptime] plan: Plan,
) {
    let mut k = Array::<f32>::new(comptime![plan.deep * COLUMNS]);
    let mut v = Array::<f32>::new(comptime![plan.deep * COLUMNS]);
    if comptime![plan.plane > 1] {
        rows_of(operands, &mut k, head, key, keys, plan.places.k, plan);
        rows_of(operands, &mut v, head, key, keys, plan.places.v, plan);
    } else {
        #[unroll]
        for i in 0..comptime![plan.deep * COLUMNS] {
            k[i] = 0.0f32;
            v[i] = 0.0f32;
        }
        if bits != 0 {
            rows_of(operands, &mut k, head, key, keys, plan.places.k, plan);
            rows_of(operands, &mut v, head, key, keys, plan.places.v, plan);
        }
    }
    let mut scores = Array::<f32>::new(comptime![plan.rows * plan.deep]);
    #[unroll]
    for r in 0..plan.rows {
        #[unroll]
        for i in 0..plan.deep {
            let mut score = s.q[comptime![r * COLUMNS]] * k[comptime![i * COLUMNS]];
            #[unroll]
            for c in 1..COLUMNS {
                score = fma(s.q[comptime![r * COLUMNS + c]], k[comptime![i * COLUMNS + c]], score);
            }
            scores[comptime![r * plan.deep + i]] = score;
        }
    }
    summed(&mut scores, panel, plan);
    #[unroll]
    for r in 0..plan.rows {
        let old = s.top[r];
        let mut top = old;
        #[unroll]
        for i in 0..plan.deep {
            top = max(top, select(sees(s, r, sight, bits, i, plan), scores[comptime![r * plan.deep + i]], MASKED));
        }
        let fall = grown(old - top, plan);
        s.top[r] = top;
        let mut weight = s.weight[r] * fall;
        let mut shares = Array::<f32>::new(plan.deep);
        #[unroll]
        for i in 0..plan.deep {
            let share = grown(scores[comptime![r * plan.deep + i]] - top, plan);
            shares[i] = select(sees(s, r, sight, bits, i, plan), share, 0.0f32);
            weight += shares[i];
        }
        s.weight[r] = weight;
        #[unroll]
        for c in 0..COLUMNS {
            let mut sum = s.sums[comptime![r * COLUMNS + c]] * fall;
            #[unroll]
            for i in 0..plan.deep {
                sum = fma(shares[i], v[comptime![i * COLUMNS + c]], sum);
            }
            s.sums[comptime![r * COLUMNS + c]] = sum;
        }
    }
}

/// Whether query `r` of the cube sees key `i` of the unit's.
#[cube]
fn sees(
    s: &mut State,
    #[comptime] r: usize,
    sight: &Array<i32>,
    bits: u32,
    #[comptime] i: usize,
    #[comptime] plan: Plan,
) -> bool {
    let mut seen = (bits & comptime![1u32 << i].runtime()) != 0;
    if comptime![!plan.alike] {
        seen = seen && sight[i] >= s.los[r] && sight[i] <= s.his[r];
    }
    seen
}

/// The unit's columns of its keys' rows. Keys past the end repeat the last.
#[cube]
fn rows_of(
    operands: &Buffers,
    to: &mut Array<f32>,
    head: usize,
    key: usize,
    keys: usize,
    #[comptime] slot: Slot,
    #[comptime] plan: Plan,
) {
    #[unroll]
    for i in 0..plan.deep {
        take(operands, to, comptime![i * COLUMNS], (head * keys + min(key + i, keys - 1)) * plan.d, slot, plan);
    }
}

/// Sums over the units that share a key; all of them get the sums.
#[cube]
fn summed(scores: &mut Array<f32>, panel: &mut Shared<[f32]>, #[comptime] plan: Plan) {
    let count = comptime![plan.rows * plan.deep];
    if comptime![plan.plane > 1] {
        #[unroll]
        for step in 0..comptime![plan.lanes.ilog2() as usize] {
            #[unroll]
            for i in 0..count {
                scores[i] += plane_shuffle_xor(scores[i], comptime![1u32 << step].runtime());
            }
        }
    } else {
        let unit = UNIT_POS as usize;
        let group = unit / plan.lanes * plan.lanes;
        sync_cube();
        #[unroll]
        for i in 0..count {
            panel[comptime![i * plan.units] + unit] = scores[i];
        }
        sync_cube();
        let mut i = unit % plan.lanes;
        while i < count {
            let from = i * plan.units + group;
            let mut sum = 0.0f32.runtime();
            for l in 0..plan.lanes {
                sum += panel[from + l];
            }
            panel[from] = sum;
            i += plan.lanes;
        }
        sync_cube();
        #[unroll]
        for i in 0..count {
            scores[i] = panel[comptime![i * plan.units] + group];
        }
    }
}

/// The weight of a score that is so far below the highest.
#[allow(unused_assignments)]
#[cube]
pub(crate) fn grown(x: f32, #[comptime] plan: Plan) -> f32 {
    let mut out = 0.0f32.runtime();
    if comptime![plan.plane > 1] {
        out = power(x);
    } else {
        out = x.exp();
    }
    out
}
