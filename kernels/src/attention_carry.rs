//! What attention goes on from: an earlier result over other keys, or nothing.
//!
//! A normalised output o and the logarithm l of its sum are an online softmax whose highest score is l, whose weight is
//! 1 and whose values are o. Where l says that nothing was seen, the weight is 0.

use cubecl::prelude::*;

use crate::attention_panels::MASKED;
use crate::bind::{Buffers, Slot};
use crate::vector::{Lane, read_float};

/// Where an earlier result lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Carry {
    pub(crate) o: Slot,
    pub(crate) l: Slot,
}

/// A query's highest score so far.
#[cube]
#[allow(clippy::single_match)]
pub(crate) fn carried_top(operands: &Buffers, query: usize, #[comptime] carry: Option<Carry>) -> f32 {
    let mut top = MASKED.runtime();
    match comptime!(carry) {
        Some(c) => top = operands.f32s.index(c.l.index)[query],
        None => {}
    }
    top
}

/// The weight of what a query saw so far.
#[cube]
pub(crate) fn carried_weight(top: f32, #[comptime] carry: Option<Carry>) -> f32 {
    let mut weight = 0.0f32.runtime();
    if comptime![carry.is_some()] {
        weight = select(top < -1e29f32, 0.0f32, 1.0f32);
    }
    weight
}

/// An element of the values so far.
#[cube]
#[allow(clippy::single_match)]
pub(crate) fn carried_value(operands: &Buffers, at: usize, weight: f32, #[comptime] carry: Option<Carry>) -> f32 {
    let mut value = 0.0f32.runtime();
    match comptime!(carry) {
        Some(c) => {
            value = read_float::<Const<1>>(operands, at, 0usize, c.o, Lane::Zero).extract(0usize) * weight;
        }
        None => {}
    }
    value
}
