//! Who sees whom, as the kernels with shared memory ask it: intervals and places, their bounds over a tile, and where
//! the rows of a tile start.

use cubecl::prelude::*;

use crate::attention::{BackPlaces, Places};
use crate::attention_fragments::{Frame, PLANE};
use crate::attention_panels::Tiling;
use crate::bind::{Buffers, Slot};
use crate::grid::looped;

/// Where the intervals lie. All that knows how they are bound is `lo`, `hi` and `at` below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mask {
    lo: Slot,
    hi: Slot,
    at: Slot,
}

impl From<Places> for Mask {
    fn from(p: Places) -> Mask {
        Mask { lo: p.lo, hi: p.hi, at: p.at }
    }
}

impl From<BackPlaces> for Mask {
    fn from(p: BackPlaces) -> Mask {
        Mask { lo: p.lo, hi: p.hi, at: p.at }
    }
}

/// The first place that query `i` sees, counted over all batches.
#[cube]
pub(crate) fn lo(operands: &Buffers, i: usize, #[comptime] mask: Mask) -> i32 {
    operands.i32s.index(mask.lo.index)[i]
}

/// The last place that query `i` sees.
#[cube]
pub(crate) fn hi(operands: &Buffers, i: usize, #[comptime] mask: Mask) -> i32 {
    operands.i32s.index(mask.hi.index)[i]
}

/// The place of key `i`.
#[cube]
pub(crate) fn at(operands: &Buffers, i: usize, #[comptime] mask: Mask) -> i32 {
    operands.i32s.index(mask.at.index)[i]
}

/// What queries see, at least and at most.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Sight {
    pub(crate) lowest: i32,
    pub(crate) highest: i32,
    /// The interval that all of them see.
    pub(crate) from: i32,
    pub(crate) until: i32,
}

/// Numbers that a unit asks of memory at once.
const AHEAD: usize = 8;

/// Turns of the loop over the places of `n` keys, or the intervals of `n` queries.
pub(crate) const fn seen_turns(n: usize) -> usize {
    looped(n.div_ceil(AHEAD), 0)
}

/// What queries `from..until` see.
#[cube]
pub(crate) fn sight(operands: &Buffers, from: usize, until: usize, #[comptime] mask: Mask) -> Sight {
    let mut s = Sight {
        lowest: i32::MAX.runtime(),
        highest: i32::MIN.runtime(),
        from: i32::MIN.runtime(),
        until: i32::MAX.runtime(),
    };
    for turn in 0..(until - from).div_ceil(AHEAD) {
        #[unroll]
        for i in 0..AHEAD {
            // Past the end the last again.
            let t = min(from + turn * AHEAD + i, until - 1);
            let first = lo(operands, t, mask);
            let last = hi(operands, t, mask);
            s.lowest = min(s.lowest, first);
            s.highest = max(s.highest, last);
            s.from = max(s.from, first);
            s.until = min(s.until, last);
        }
    }
    s
}

/// The least and the greatest place of keys `from..until`.
#[cube]
pub(crate) fn bounds(operands: &Buffers, from: usize, until: usize, #[comptime] mask: Mask) -> (i32, i32) {
    let mut near = i32::MAX.runtime();
    let mut far = i32::MIN.runtime();
    for turn in 0..(until - from).div_ceil(AHEAD) {
        #[unroll]
        for i in 0..AHEAD {
            let place = at(operands, min(from + turn * AHEAD + i, until - 1), mask);
            near = min(near, place);
            far = max(far, place);
        }
    }
    (near, far)
}

/// The least and the greatest place of up to `size` keys from `first` on, found by a plane together.
#[cube]
pub(crate) fn reach(
    operands: &Buffers,
    first: usize,
    count: usize,
    #[comptime] size: usize,
    #[comptime] mask: Mask,
) -> (i32, i32) {
    let mut places = Array::<i32>::new(comptime![size.div_ceil(PLANE)]);
    // All loads are under way at once.
    #[unroll]
    for i in 0..comptime![size.div_ceil(PLANE)] {
        let s = min(UNIT_POS as usize % PLANE + i * PLANE, count - 1);
        places[i] = at(operands, first + s, mask);
    }
    extremes(&places, size)
}

/// The least and the greatest of the places that a plane's units loaded, `size` together.
#[cube]
fn extremes(places: &Array<i32>, #[comptime] size: usize) -> (i32, i32) {
    let mut near = places[0];
    let mut far = places[0];
    #[unroll]
    for i in 1..comptime![size.div_ceil(PLANE)] {
        near = min(near, places[i]);
        far = max(far, places[i]);
    }
    (least(near), most(far))
}

/// The least of a plane's numbers, on CUDA of compute capability 8.0.
#[cube]
fn least(x: i32) -> i32 {
    // A variable would be named by its address.
    let value = min(x, i32::MAX.runtime());
    let out: i32;
    gpu_asm!("redux.sync.min.s32 {out}, {x}, 0xffffffff;", x = in(_) value, out = out(_) out);
    out
}

/// The greatest of a plane's numbers, on CUDA of compute capability 8.0.
#[cube]
fn most(x: i32) -> i32 {
    // A variable would be named by its address.
    let value = max(x, i32::MIN.runtime());
    let out: i32;
    gpu_asm!("redux.sync.max.s32 {out}, {x}, 0xffffffff;", x = in(_) value, out = out(_) out);
    out
}

/// Keys that are looked at together where nobody sees any: a multiple of every tile.
const LEAP: usize = 1024;

/// The next tile of keys, from tile `from` on, that a query of the block sees; and whether all see all of it.
#[cube]
pub(crate) fn seek(
    operands: &Buffers,
    sight: &Sight,
    batch: usize,
    keys: usize,
    from: usize,
    #[comptime] mask: Mask,
    #[comptime] f: Frame,
) -> (usize, bool) {
    let mut tile = from;
    let mut whole = false.runtime();
    let mut open = from * f.n < keys;
    // The first tile from which on nobody has looked far ahead yet.
    let mut near_by = from;
    while open {
        let first = tile * f.n;
        let count = min(keys - first, comptime![f.n].runtime());
        let (near, far) = reach(operands, batch * keys + first, count, comptime![f.n], mask);
        if far >= sight.lowest && near <= sight.highest {
            whole = count == f.n && near >= sight.from && far <= sight.until;
            open = false.runtime();
        } else {
            tile += 1;
            open = tile * f.n < keys;
            // Where a tile is unseen many are, as ahead of a causal block: they go by together.
            let mut far_off = open && tile >= near_by;
            while far_off {
                let first = tile * f.n;
                let count = min(keys - first, LEAP);
                let (near, far) = reach(operands, batch * keys + first, count, LEAP, mask);
                if far >= sight.lowest && near <= sight.highest {
                    far_off = false.runtime();
                    near_by = tile + comptime![LEAP / f.n];
                } else {
                    tile += comptime![LEAP / f.n];
                    open = tile * f.n < keys;
                    far_off = open;
                }
            }
        }
    }
    (tile, whole)
}

/// Starts to load the places of a tile's keys, which [`sought`] asks for later.
#[cube]
pub(crate) fn look(
    operands: &Buffers,
    places: &mut Array<i32>,
    batch: usize,
    keys: usize,
    tile: usize,
    #[comptime] mask: Mask,
    #[comptime] f: Frame,
) {
    #[unroll]
    for i in 0..comptime![f.n.div_ceil(PLANE)] {
        let s = tile * f.n + min(UNIT_POS as usize % PLANE + i * PLANE, f.n - 1);
        places[i] = at(operands, batch * keys + min(s, keys - 1), mask);
    }
}

/// As [`seek`], where the places of tile `from` were loaded before.
#[cube]
pub(crate) fn sought(
    operands: &Buffers,
    places: &Array<i32>,
    sight: &Sight,
    batch: usize,
    keys: usize,
    from: usize,
    #[comptime] mask: Mask,
    #[comptime] f: Frame,
) -> (usize, bool) {
    let mut tile = from;
    let mut whole = false.runtime();
    if from * f.n < keys {
        let (near, far) = extremes(places, comptime![f.n]);
        if far >= sight.lowest && near <= sight.highest {
            whole = (from + 1) * f.n <= keys && near >= sight.from && far <= sight.until;
        } else {
            let (next, all) = seek(operands, sight, batch, keys, from + 1, mask, f);
            tile = next;
            whole = all;
        }
    }
    (tile, whole)
}

/// What `count` queries from `first` on see, found by a plane together.
#[cube]
pub(crate) fn view(operands: &Buffers, first: usize, count: usize, #[comptime] mask: Mask) -> Sight {
    let mut lowest = i32::MAX.runtime();
    let mut highest = i32::MIN.runtime();
    let mut from = i32::MIN.runtime();
    let mut until = i32::MAX.runtime();
    for i in 0..count.div_ceil(PLANE) {
        let t = first + min(UNIT_POS as usize % PLANE + i * PLANE, count - 1);
        lowest = min(lowest, lo(operands, t, mask));
        highest = max(highest, hi(operands, t, mask));
        from = max(from, lo(operands, t, mask));
        until = min(until, hi(operands, t, mask));
    }
    Sight { lowest: least(lowest), highest: most(highest), from: most(from), until: least(until) }
}

/// Where `size` queries start: all query heads of a group, neighbours in time. Those past the end repeat the last.
#[cube]
pub(crate) fn list_queries(
    to: &mut Shared<[u32]>,
    head: usize,
    first: usize,
    times: usize,
    groups: usize,
    #[comptime] size: usize,
    #[comptime] t: Tiling,
) {
    #[unroll]
    for i in 0..comptime![size.div_ceil(t.units())] {
        let r = UNIT_POS as usize + comptime![i * t.units()];
        if r < size {
            let row = min(first + r, times * groups - 1);
            to[r] = (((head * groups + row % groups) * times + row / groups) * t.d) as u32;
        }
    }
}

/// Where `size` keys start. Those past the end repeat the last.
#[cube]
pub(crate) fn list_keys(
    to: &mut Shared<[u32]>,
    head: usize,
    first: usize,
    keys: usize,
    #[comptime] size: usize,
    #[comptime] t: Tiling,
) {
    #[unroll]
    for i in 0..comptime![size.div_ceil(t.units())] {
        let s = UNIT_POS as usize + comptime![i * t.units()];
        if s < size {
            to[s] = ((head * keys + min(first + s, keys - 1)) * t.d) as u32;
        }
    }
}

/// The places of `size` keys. Those past the end repeat the last; nobody counts them.
#[cube]
pub(crate) fn list_places(
    operands: &Buffers,
    to: &mut Shared<[i32]>,
    batch: usize,
    first: usize,
    keys: usize,
    #[comptime] size: usize,
    #[comptime] mask: Mask,
    #[comptime] t: Tiling,
) {
    #[unroll]
    for i in 0..comptime![size.div_ceil(t.units())] {
        let s = UNIT_POS as usize + comptime![i * t.units()];
        if s < size {
            to[s] = at(operands, batch + min(first + s, keys - 1), mask);
        }
    }
}
