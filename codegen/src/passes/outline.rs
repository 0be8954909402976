//! What fusion left alone becomes a function of its own: the entry is left with calls only, each one launch.

use super::emit::{Keep, emit};
use super::facts::{Facts, Kind};
use super::{Context, Unit};
use crate::Error;

pub(super) fn run(unit: Unit, _: &Context) -> Result<Unit, Error> {
    let f = unit.module.function(unit.entry);
    let facts = Facts::new(f);
    let order: Vec<Vec<usize>> =
        (0..f.nodes.len()).filter(|n| facts.kinds[*n] != Kind::Free).map(|n| vec![n]).collect();
    Ok(emit(&unit, &facts, &order, Keep::Calls))
}
