//! Which tiles a block of attention's backward walks over, found before it walks: from the first that any of its rows
//! sees to the last. Tiles between them are looked at one by one, a vote of each plane.

use cubecl::prelude::*;

use crate::attention::Sizes;
use crate::attention_fragments::{Frame, PLANE};
use crate::attention_sight::{Mask, Sight, at, hi, lo};
use crate::bind::Buffers;

/// Blocks of `rows` out of `over` of each of `heads` heads, block by block so that the longest walks can go first: how
/// many there are, and the words that a kernel of blocks reads.
pub(crate) fn blocks_first(n: &Sizes, heads: usize, over: usize, rows: usize) -> (u32, Vec<u32>) {
    let blocks = over.div_ceil(rows);
    let items = (heads * blocks) as u32;
    (items, vec![items, heads as u32, n.t as u32, n.g as u32, n.h as u32, n.s as u32])
}

/// Tiles that stand together.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) first: usize,
    /// 0 if nothing is seen.
    pub(crate) count: usize,
}

/// Words of shared memory that finding a span takes.
pub(crate) fn span_words(f: &Frame) -> usize {
    2 * f.units() / PLANE
}

/// Tiles of queries that see a key at a place from `near` to `far`.
#[cube]
pub(crate) fn span_of_queries(
    operands: &Buffers,
    memory: &mut Shared<[u32]>,
    near_far: (i32, i32),
    batch: usize,
    times: usize,
    #[comptime] mask: Mask,
    #[comptime] f: Frame,
) -> Span {
    let (near, far) = near_far;
    let mut least = u32::MAX.runtime();
    let mut greatest = 0u32.runtime();
    for i in 0..times.div_ceil(f.units()) {
        let t = min(UNIT_POS as usize + i * f.units(), times - 1);
        if hi(operands, batch + t, mask) >= near && lo(operands, batch + t, mask) <= far {
            least = min(least, t as u32);
            greatest = max(greatest, t as u32);
        }
    }
    joined(memory, least, greatest, f)
}

/// Tiles of keys that a query of the block may see.
#[cube]
pub(crate) fn span_of_keys(
    operands: &Buffers,
    memory: &mut Shared<[u32]>,
    sight: &Sight,
    batch: usize,
    keys: usize,
    #[comptime] mask: Mask,
    #[comptime] f: Frame,
) -> Span {
    let mut least = u32::MAX.runtime();
    let mut greatest = 0u32.runtime();
    for i in 0..keys.div_ceil(f.units()) {
        let s = min(UNIT_POS as usize + i * f.units(), keys - 1);
        let place = at(operands, batch + s, mask);
        if place >= sight.lowest && place <= sight.highest {
            least = min(least, s as u32);
            greatest = max(greatest, s as u32);
        }
    }
    joined(memory, least, greatest, f)
}

/// The span of all units' rows.
#[cube]
fn joined(memory: &mut Shared<[u32]>, least: u32, greatest: u32, #[comptime] f: Frame) -> Span {
    let planes = comptime![f.units() / PLANE];
    let plane = UNIT_POS as usize / PLANE;
    let mut least = plane_min(least);
    let mut greatest = plane_max(greatest);
    if UNIT_POS as usize % PLANE == 0 {
        memory[plane] = least;
        memory[planes + plane] = greatest;
    }
    sync_cube();
    #[unroll]
    for i in 0..planes {
        least = min(least, memory[i]);
        greatest = max(greatest, memory[planes + i]);
    }
    let first = least as usize / f.n;
    let count = select(least <= greatest, greatest as usize / f.n + 1 - min(first, greatest as usize / f.n), 0usize);
    Span { first, count }
}

/// The next tile of queries that sees a key of the block, tile `from` of a head or a later one, or one of a later head's;
/// which head's it is, `heads` if there is none; and whether all of it sees all of the block.
#[cube]
pub(crate) fn seek_queries(
    operands: &Buffers,
    span: &Span,
    near_far: (i32, i32),
    sizes: (usize, usize, usize),
    head: usize,
    from: usize,
    #[comptime] mask: Mask,
    #[comptime] f: Frame,
) -> (usize, usize, bool) {
    let (near, far) = near_far;
    let (batch, times, heads) = sizes;
    let end = span.first + span.count;
    let mut head = select(span.count > 0, head, heads);
    let mut tile = from;
    let mut whole = false.runtime();
    let mut open = head < heads;
    while open {
        let over = tile >= end;
        tile = select(over, span.first, tile);
        head = select(over, head + 1, head);
        let start = tile * f.n;
        let count = min(times - start, comptime![f.n].runtime());
        let mut some = head >= heads;
        let mut all = true.runtime();
        #[unroll]
        for i in 0..comptime![f.n / PLANE] {
            let t = batch + start + min(UNIT_POS as usize % PLANE + i * PLANE, count - 1);
            let (first, last) = (lo(operands, t, mask), hi(operands, t, mask));
            some = some || (last >= near && first <= far);
            all = all && first <= near && last >= far;
        }
        let (some, all) = (plane_any(some), plane_all(all));
        if some {
            whole = all && count == f.n;
            open = false.runtime();
        } else {
            tile += 1;
        }
    }
    (head, tile, whole)
}

/// The next tile of keys, number `from` of the span or a later one, that a query of the block may see; and whether all
/// see all of it.
#[cube]
pub(crate) fn seek_keys(
    operands: &Buffers,
    span: &Span,
    sight: &Sight,
    sizes: (usize, usize),
    from: usize,
    #[comptime] mask: Mask,
    #[comptime] f: Frame,
) -> (usize, bool) {
    let (batch, keys) = sizes;
    let mut number = from;
    let mut whole = false.runtime();
    let mut open = from < span.count;
    while open {
        let start = (span.first + number) * f.n;
        let count = min(keys - start, comptime![f.n].runtime());
        let mut some = false.runtime();
        let mut all = true.runtime();
        #[unroll]
        for i in 0..comptime![f.n / PLANE] {
            let s = batch + start + min(UNIT_POS as usize % PLANE + i * PLANE, count - 1);
            let place = at(operands, s, mask);
            some = some || (place >= sight.lowest && place <= sight.highest);
            all = all && place >= sight.from && place <= sight.until;
        }
        let (some, all) = (plane_any(some), plane_all(all));
        if some {
            whole = all && count == f.n;
            open = false.runtime();
        } else {
            number += 1;
            open = number < span.count;
        }
    }
    (number, whole)
}
