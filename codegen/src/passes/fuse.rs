//! Fusion: nodes form groups, and each group of two or more becomes a function, which is one launch.
//!
//! A group has at most one anchor (a fold). In short: (1) a pointwise node joins the group of an operand that it
//! reads element by element; (2) a reduction takes in the pointwise group that feeds nothing else; (3) constants,
//! slices, transposes and widening casts are copied to their readers, where they cost strides only; (4) a
//! concatenation of one group's results, and a slice of a buffer that takes what one group makes, become where that group
//! writes; (5) everything else stands alone.
//!
//! So an einsum has its epilogue (bias, activation, residual, the sum into an accumulator) in its launch. Of what
//! feeds it, only (3) is taken in: each element of an operand is read once for each tile of the other's columns, so
//! pointwise work there would be done that many times over, and the fast kernels want plain reads. A reduction reads
//! each element once, so what feeds it costs no more inside it.

mod group;

use super::emit::{Keep, emit};
use super::facts::{Facts, Kind};
use super::{Context, Unit};
use crate::{Error, Work};
use group::Groups;

pub(super) fn run(unit: Unit, context: &Context) -> Result<Unit, Error> {
    let f = unit.module.function(unit.entry);
    let facts = Facts::new(f);
    let mut groups = Groups::new(f, &facts, context.target.max_bindings.saturating_sub(Work::OVERHEAD).max(2));
    for (n, node) in f.nodes.iter().enumerate() {
        match facts.kinds[n] {
            Kind::Free => {}
            Kind::Point => groups.place_point(n, node),
            Kind::Fold => groups.place_fold(n, node),
            Kind::Concat => groups.place_concat(n, node),
            Kind::Update => groups.place_update(n, node),
            Kind::Alone => groups.place_alone(n),
        }
    }
    let order = groups.ordered();
    Ok(emit(&unit, &facts, &order, Keep::Lone))
}
