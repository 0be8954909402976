//! What the backward kernels of attention on warpgroups share: the tiles of their shapes, and their refusals.

use omchat_codegen::{Refusal, Target};
use omchat_ir::Type;

use crate::attention::Sizes;
use crate::attention_fragments::{Frame, differentiates};
use crate::warpgroups::Tile;

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
