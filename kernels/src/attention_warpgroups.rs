//! What the kernels of attention on warpgroups share: the tiles of their shapes, the registers of scores and of what is made
//! of them, and their refusals.

use omchat_codegen::{Refusal, Target};
use omchat_ir::Type;

use crate::attention::Sizes;
use crate::attention_fragments::{Frame, differentiates};
use crate::warpgroups::{Pack, STEP, Set, Tile};

/// Widest head of which a unit has room for all sums of a backward.
const WIDEST: usize = 128;

/// A cube's rows.
pub(crate) fn block(f: &Frame) -> Tile {
    Tile { rows: f.m, wide: f.d.next_multiple_of(STEP), line: f.d }
}

/// What it walks over.
pub(crate) fn tile(f: &Frame) -> Tile {
    Tile { rows: f.n, wide: f.d.next_multiple_of(STEP), line: f.d }
}

/// Scores.
pub(crate) fn scores(f: &Frame) -> Set {
    Set { name: "s", columns: f.n, dtype: f.dtype }
}

/// Cotangents of weights.
pub(crate) fn shares(f: &Frame) -> Set {
    Set { name: "g", columns: f.n, dtype: f.dtype }
}

/// Cotangents of scores, the left factor of a product.
pub(crate) fn slopes(f: &Frame) -> Pack {
    Pack { name: "t", depth: f.n, dtype: f.dtype }
}

/// Refuses devices without warpgroups.
pub(crate) fn on_warpgroups(target: &Target) -> Result<(), Refusal> {
    if target.sm == 90 {
        return Ok(());
    }
    Err(Refusal(format!("the instruction is of sm_90a alone, not of {}", target.name)))
}

/// Refuses devices without warpgroups, and what those do not differentiate.
pub(crate) fn differentiates_here(target: &Target, n: &Sizes, q: &Type) -> Result<(), Refusal> {
    differentiates(target, n, q)?;
    on_warpgroups(target)?;
    if n.d > WIDEST {
        return Err(Refusal(format!("a unit has registers for heads at most {WIDEST} wide, not {}", n.d)));
    }
    Ok(())
}
