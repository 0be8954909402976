//! What kernels of Hopper's warpgroups are made of: tiles as its matrix units read them in shared memory, and products of
//! 64 rows whose sums are PTX registers of their own.
//!
//! A tile is rows of halves, in panels of 64 columns: a row of a panel is a line of 128 bytes, whose 16-byte parts change
//! places as the swizzle has it. The same tile is a factor along its rows ([`Side::Along`]) or across them
//! ([`Side::Across`]). A warpgroup of 128 units multiplies 64 rows; a plane has 16 of them, as in the fragments of
//! `mma.sync`: of a block of 16 x 8 sums a unit holds row `lane / 4`, columns `lane % 4 * 2` and the next, and the same 8
//! rows below. Two such blocks, packed to halves, are the left factor of a step of 16.
//!
//! Products run on while their units do other things. Until [`wait_products`] says that they are done nobody may touch
//! their sums, nor the registers of a left factor; after other statements changed those, [`order`] comes before the next
//! product.

use cubecl::prelude::*;

use crate::attention_fragments::{Lines, Sums, line};
use crate::bind::{Buffers, Slot};
use crate::einsum_copies::{CHUNK, bring_16, buffer_address};

/// Units of a warpgroup, and the rows that it multiplies.
pub(crate) const GROUP: usize = 128;
pub(crate) const ROWS: usize = 64;
/// Halves of a swizzled line.
pub(crate) const LINE: usize = 64;
/// Bytes of a swizzled atom, 8 lines: tiles start at multiples of it.
pub(crate) const ATOM: usize = 1024;
/// The upper word of every descriptor: the swizzle, and the way to the next 8 lines. Steps change the lower word alone.
const UPPER: u32 = 1 << 30 | (ATOM / 16) as u32;
/// Elements of depth of one instruction.
pub(crate) const STEP: usize = 16;

/// Rows of halves in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    /// Rows, a multiple of 8.
    pub(crate) rows: usize,
    /// Halves of a row, a multiple of 16.
    pub(crate) wide: usize,
    /// Halves of a row in memory, a multiple of 8; zeros behind them.
    pub(crate) line: usize,
}

impl Tile {
    /// Words of shared memory.
    pub(crate) const fn words(&self) -> usize {
        self.wide.div_ceil(LINE) * self.rows * LINE / 2
    }

    /// Sixteenths of bytes from a panel to the next.
    const fn panel(&self) -> u64 {
        (self.rows * LINE / CHUNK) as u64
    }

    /// Sixteenths of bytes to step `i`: of depth along rows, or across them.
    const fn step(&self, side: Side, i: usize) -> u64 {
        match side {
            Side::Along => (i * STEP / LINE) as u64 * self.panel() + (i * STEP % LINE / CHUNK) as u64,
            Side::Across => (i * STEP * LINE / CHUNK) as u64,
        }
    }
}

/// Which way a product sums over a tile: along its rows, or across them, row after row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Along,
    Across,
}

/// A warpgroup's sums of 64 rows: registers `name0`, `name1` and so on, declared once; several sets live at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Set {
    /// Starts with a letter, and is no other set's name with digits behind.
    pub(crate) name: &'static str,
    /// A multiple of 8, at most 256.
    pub(crate) columns: usize,
    /// What is multiplied: `bf16` or `f16`.
    pub(crate) dtype: &'static str,
}

impl Set {
    /// Sums of a unit.
    pub(crate) const fn count(&self) -> usize {
        self.columns / 2
    }

    /// The registers, by commas.
    fn list(&self) -> String {
        (0..self.count()).map(|i| format!("{}{i}", self.name)).collect::<Vec<_>>().join(", ")
    }

    /// A statement for each sum of one of a unit's two rows, or of both.
    fn each(&self, row: Option<usize>, say: impl Fn(String) -> String) -> String {
        let of = (0..self.count()).filter(|i| row.is_none_or(|r| i / 2 % 2 == r));
        of.map(|i| say(format!("{}{i}", self.name))).collect::<Vec<_>>().join(" ")
    }
}

/// A warpgroup's left factor of 64 rows in registers, two halves each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pack {
    pub(crate) name: &'static str,
    /// Columns: the depth of the product, a multiple of 16.
    pub(crate) depth: usize,
    pub(crate) dtype: &'static str,
}

impl Pack {
    /// Registers of a unit.
    pub(crate) const fn count(&self) -> usize {
        self.depth / 4
    }

    /// Those of step `i`.
    fn step(&self, i: usize) -> String {
        (0..4).map(|r| format!("{}{}", self.name, 4 * i + r)).collect::<Vec<_>>().join(", ")
    }
}

/// Declares a set's registers, once a kernel and outside of loops.
#[cube]
pub(crate) fn declare(#[comptime] set: Set) {
    let (name, count) = comptime![(set.name, set.count())];
    gpu_asm!(".reg .f32 {name}<{count}>;", options(nomem));
}

/// Declares a left factor's registers, once a kernel and outside of loops.
#[cube]
pub(crate) fn declare_pack(#[comptime] pack: Pack) {
    let (name, count) = comptime![(pack.name, pack.count())];
    gpu_asm!(".reg .b32 {name}<{count}>;", options(nomem));
}

/// Sets a set to 0.
#[cube]
pub(crate) fn clear(#[comptime] set: Set) {
    let text = comptime![set.each(None, |x| format!("mov.f32 {x}, 0f00000000;"))];
    gpu_asm!("{text}");
}

/// Sum `i` of this unit: of each 4 two are neighbours and two lie 8 rows below.
#[cube]
pub(crate) fn read_sum(#[comptime] i: usize, #[comptime] set: Set) -> f32 {
    let name = comptime![set.name];
    let sum: f32;
    gpu_asm!("mov.f32 {sum}, {name}{i};", sum = out(_) sum);
    sum
}

/// A unit's sums, 4 a block of 8 columns.
#[cube]
pub(crate) fn read_sums(to: &mut Sums, #[comptime] set: Set) {
    #[unroll]
    for j in 0..comptime![set.count() / 4] {
        let mut four = Vector::<f32, Const<4>>::empty();
        #[unroll]
        for l in 0..4usize {
            four.insert(l, read_sum(comptime![4 * j + l], set));
        }
        to[j] = four;
    }
}

/// Sets a unit's sums.
#[cube]
pub(crate) fn write_sums(from: &Sums, #[comptime] set: Set) {
    let name = comptime![set.name];
    #[unroll]
    for j in 0..comptime![set.count() / 4] {
        #[unroll]
        for l in 0..4usize {
            let (i, x) = (comptime![4 * j + l], from[j].extract(l));
            gpu_asm!("mov.f32 {name}{i}, {x};", x = in(_) x);
        }
    }
}

/// Multiplies the sums of one of a unit's two rows, 0 or 1.
#[cube]
pub(crate) fn scale_row(by: f32, #[comptime] row: usize, #[comptime] set: Set) {
    let text = comptime![set.each(Some(row), |x| format!("mul.f32 {x}, {x}, factor;"))];
    gpu_asm!("{{ .reg .f32 factor; mov.f32 factor, {by}; {text} }}", by = in(_) by);
}

/// Rounds a unit's blocks of 16 x 8 to a left factor.
#[cube]
pub(crate) fn pack_sums(from: &Sums, #[comptime] pack: Pack) {
    let (name, dtype) = comptime![(pack.name, pack.dtype)];
    #[unroll]
    for j in 0..comptime![pack.depth / 8] {
        #[unroll]
        for r in 0..2usize {
            let (i, low, high) = (comptime![2 * j + r], from[j].extract(2 * r), from[j].extract(2 * r + 1));
            gpu_asm!("cvt.rn.{dtype}x2.f32 {name}{i}, {high}, {low};", high = in(_) high, low = in(_) low);
        }
    }
}

/// The descriptor of a tile at that address of shared memory. Of a tile's rows a warpgroup's 64, or any from a multiple of
/// 8 on, start 128 bytes a row further.
#[cube]
pub(crate) fn descriptor(address: u64, #[comptime] side: Side, #[comptime] tile: Tile) -> u64 {
    let leading = comptime![if side == Side::Along { 1 } else { tile.panel() }];
    let fixed = comptime![(UPPER as u64) << 32 | leading << 16];
    ((address & 0x3_ffffu64) >> 4u64) | fixed.runtime()
}

/// What was copied to shared memory, or written there, is from here on in the eyes of matrix units too; a barrier is to
/// follow.
#[cube]
pub(crate) fn show() {
    gpu_asm!("fence.proxy.async.shared::cta;");
}

/// A barrier of the cube to which warpgroups may come by different ways; `sync_cube` is for units on the same one.
#[cube]
pub(crate) fn meet() {
    gpu_asm!("bar.sync 1;");
}

/// Registers are as other statements left them when the next product starts.
#[cube]
pub(crate) fn order() {
    gpu_asm!("wgmma.fence.sync.aligned;");
}

/// Closes a group of products.
#[cube]
pub(crate) fn close_products() {
    gpu_asm!("wgmma.commit_group.sync.aligned;");
}

/// Waits until at most `left` groups of products are under way.
#[cube]
pub(crate) fn wait_products(#[comptime] left: usize) {
    gpu_asm!("wgmma.wait_group.sync.aligned {left};");
}

/// Starts the products of 64 rows of one tile with all rows of another, along both; `fresh` sums start at 0, others go on.
#[cube]
pub(crate) fn multiply(
    a: u64,
    b: u64,
    #[comptime] fresh: bool,
    #[comptime] of_a: Tile,
    #[comptime] of_b: Tile,
    #[comptime] set: Set,
) {
    let (n, dtype, sums) = comptime![(set.columns, set.dtype, set.list())];
    #[unroll]
    for i in 0..comptime![of_a.wide / STEP] {
        let a = a as u32 + comptime![of_a.step(Side::Along, i) as u32];
        let b = b as u32 + comptime![of_b.step(Side::Along, i) as u32];
        let keep = comptime![u32::from(!(fresh && i == 0))];
        gpu_asm!(
            "{{ .reg .b32 upper; .reg .b64 left; .reg .b64 right; mov.b32 upper, {UPPER}; mov.b64 left, {{{a}, upper}}; \
             mov.b64 right, {{{b}, upper}}; \
             wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{dtype}.{dtype} {{{sums}}}, left, right, {keep}, 1, 1, 0, 0; }}",
            a = in(_) a, b = in(_) b,
        );
    }
}

/// Starts to add the products of a left factor in registers with a tile's rows; its columns are the set's.
#[cube]
pub(crate) fn multiply_packed(b: u64, #[comptime] pack: Pack, #[comptime] of_b: Tile, #[comptime] set: Set) {
    let (n, dtype, sums) = comptime![(set.columns, set.dtype, set.list())];
    #[unroll]
    for i in 0..comptime![pack.depth / STEP] {
        let b = b as u32 + comptime![of_b.step(Side::Across, i) as u32];
        let a = comptime![pack.step(i)];
        gpu_asm!(
            "{{ .reg .b32 upper; .reg .b64 right; mov.b32 upper, {UPPER}; mov.b64 right, {{{b}, upper}}; \
             wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{dtype}.{dtype} {{{sums}}}, {{{a}}}, right, 1, 1, 1, 1; }}",
            b = in(_) b,
        );
    }
}

/// Starts to copy a tile from row `first` on to word `into` of shared memory. Rows past the end repeat the last.
#[cube]
pub(crate) fn bring_tile(
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    into: usize,
    l: &Lines,
    first: usize,
    #[comptime] tile: Tile,
    #[comptime] slot: Slot,
    #[comptime] grouped: bool,
    #[comptime] units: usize,
) {
    let parts = comptime![tile.wide / CHUNK];
    let chunks = comptime![tile.rows * parts];
    // A unit that has the same part of each of its rows, and the same place in their swizzle, says so.
    let even = comptime![chunks % units == 0 && units % (8 * parts) == 0 && tile.line == tile.wide];
    if comptime![even && !grouped] {
        if first + comptime![tile.rows] <= l.times {
            let (row, part) = (UNIT_POS as usize / parts, UNIT_POS as usize % parts);
            let from = line(l, first + row, grouped) * tile.wide + part * CHUNK;
            let to = into + place(row, part, tile);
            #[unroll]
            for i in 0..comptime![chunks / units] {
                let rows = comptime![i * units / parts];
                bring_16::<f32>(operands, memory, to + rows * LINE / 2, from + rows * tile.wide, 4usize, 4usize, slot);
            }
        } else {
            bring_rows(operands, memory, into, l, first, tile, slot, grouped, units);
        }
    } else {
        bring_rows(operands, memory, into, l, first, tile, slot, grouped, units);
    }
}

/// The same, row by row.
#[cube]
fn bring_rows(
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    into: usize,
    l: &Lines,
    first: usize,
    #[comptime] tile: Tile,
    #[comptime] slot: Slot,
    #[comptime] grouped: bool,
    #[comptime] units: usize,
) {
    let parts = comptime![tile.wide / CHUNK];
    let chunks = comptime![tile.rows * parts];
    let last = l.times * l.groups - 1;
    #[unroll]
    for i in 0..comptime![chunks.div_ceil(units)] {
        let mut row = UNIT_POS as usize / parts + comptime![i * units / parts];
        let mut part = UNIT_POS as usize % parts;
        if comptime![units % parts != 0] {
            row = (UNIT_POS as usize + comptime![i * units]) / parts;
            part = (UNIT_POS as usize + comptime![i * units]) % parts;
        }
        if row < comptime![tile.rows] {
            let from = line(l, min(first + row, last), grouped) * tile.line;
            let to = into + place(row, part, tile);
            if comptime![tile.line == tile.wide] {
                bring_16::<f32>(operands, memory, to, from + part * CHUNK, 4usize, 4usize, slot);
            } else {
                let there = part < comptime![tile.line / CHUNK];
                let from = from + select(there, part * CHUNK, 0);
                bring_16::<f32>(operands, memory, to, from, select(there, 4usize, 0usize), 4usize, slot);
            }
        }
    }
}

/// Where a unit's copies of tiles of a kind start; others follow at even distances.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Feed {
    /// The address of its part of 16 bytes of the unit's first row of tile 0.
    from: u64,
    /// Where that goes, from a slot's first byte on.
    to: u32,
    /// That row.
    row: usize,
    /// Bytes of the part that there are: 16, or 0 behind the end of a row.
    size: u32,
}

/// Whether each unit has the same part of each of its rows of a tile, and the same place in their swizzle.
pub(crate) const fn even(tile: &Tile, units: usize) -> bool {
    let parts = tile.wide / CHUNK;
    (tile.rows * parts).is_multiple_of(units) && units.is_multiple_of(8 * parts)
}

/// A unit's feed of tiles of keys or values, which it shares [`even`]ly.
#[cube]
pub(crate) fn feed(operands: &Buffers, l: &Lines, #[comptime] tile: Tile, #[comptime] slot: Slot) -> Feed {
    let parts = comptime![tile.wide / CHUNK];
    let (row, part) = (UNIT_POS as usize / parts, UNIT_POS as usize % parts);
    let first = line(l, row, false) * tile.line + part * CHUNK;
    let from = buffer_address(operands, slot) + first as u64 * 2;
    let there = part < comptime![tile.line / CHUNK];
    Feed { from, to: (place(row, part, tile) * 4) as u32, row, size: select(there, 16u32, 0u32) }
}

/// Starts to copy the tile from row `first` of `rows` on to byte `into` of shared memory, by a few
/// instructions a copy. Rows past the end are zeros.
#[cube]
pub(crate) fn bring_fed(
    f: &Feed,
    into: u32,
    first: usize,
    rows: usize,
    #[comptime] tile: Tile,
    #[comptime] units: usize,
) {
    let parts = comptime![tile.wide / CHUNK];
    let from = f.from + first as u64 * comptime![2 * tile.line as u64];
    let to = into + f.to;
    let left = max(rows, first) - first;
    #[unroll]
    for i in 0..comptime![tile.rows * parts / units] {
        let row = comptime![i * units / parts];
        let size = select(f.row + row < left, f.size, 0u32);
        let (further, there) = comptime![(row * LINE * 2, row * tile.line * 2)];
        gpu_asm!(
            "cp.async.cg.shared::cta.global [{to} + {further}], [{from} + {there}], 16, {size};",
            to = in(_) to, from = in(_) from, size = in(_) size,
        );
    }
}

/// The word of a tile where a row's part of 16 bytes lies.
#[cube]
fn place(row: usize, part: usize, #[comptime] tile: Tile) -> usize {
    let panel = part / comptime![LINE / CHUNK] * comptime![tile.rows * LINE / 2];
    panel + row * comptime![LINE / 2] + ((part % 8) ^ (row % 8)) * 4
}
