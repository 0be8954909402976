//! What the backward kernels of attention on warpgroups share: the tiles of their shapes, left factors that are multiplied
//! in parts while the next is made, and their refusals.

use cubecl::prelude::*;
use omchat_codegen::{Refusal, Target};
use omchat_ir::Type;

use crate::attention::Sizes;
use crate::attention_fragments::{Frame, Sums, differentiates};
use crate::warpgroups::{LINE, Pack, Set, Tile, close_products, multiply_packed, order};

/// Widest head of which a unit has room for all sums.
const WIDEST: usize = 128;

/// A cube's rows.
pub(crate) fn block(f: &Frame) -> Tile {
    Tile { rows: f.m, wide: f.d }
}

/// What it walks over.
pub(crate) fn tile(f: &Frame) -> Tile {
    Tile { rows: f.n, wide: f.d }
}

/// Parts of a left factor.
pub(crate) const PARTS: usize = 2;

/// A part of a left factor as deep as a tile has rows.
pub(crate) fn part(names: [&'static str; PARTS], i: usize, f: &Frame) -> Pack {
    Pack { name: names[i], depth: f.n / PARTS, dtype: f.dtype }
}

/// Rounds part `i` of a unit's blocks and starts to add its products with the rows of a tile that are the part's: a group
/// of its own.
#[cube]
pub(crate) fn multiply_part(
    from: &Sums,
    b: u64,
    #[comptime] i: usize,
    #[comptime] pack: Pack,
    #[comptime] of_b: Tile,
    #[comptime] set: Set,
) {
    let (name, dtype) = comptime![(pack.name, pack.dtype)];
    #[unroll]
    for j in 0..comptime![pack.depth / 8] {
        let four = from[comptime![i * pack.depth / 8 + j]];
        #[unroll]
        for r in 0..2usize {
            let (to, low, high) = (comptime![2 * j + r], four.extract(2 * r), four.extract(2 * r + 1));
            gpu_asm!("cvt.rn.{dtype}x2.f32 {name}{to}, {high}, {low};", high = in(_) high, low = in(_) low);
        }
    }
    order();
    // A row is a line of a panel; descriptors count sixteenths of bytes.
    multiply_packed(b + comptime![(i * pack.depth * LINE / 8) as u64], pack, of_b, set);
    close_products();
}

/// Refuses devices without warpgroups, and what those do not differentiate.
pub(crate) fn differentiates_here(target: &Target, n: &Sizes, q: &Type) -> Result<(), Refusal> {
    differentiates(target, n, q)?;
    if target.sm != 90 {
        return Err(Refusal(format!("the instruction is of sm_90a alone, not of {}", target.name)));
    }
    if n.d > WIDEST {
        return Err(Refusal(format!("a unit has registers for heads at most {WIDEST} wide, not {}", n.d)));
    }
    Ok(())
}
