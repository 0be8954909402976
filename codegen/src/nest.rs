//! Nests: the one shape of loop that every primitive lowers to.
//!
//! A nest walks its kept axes; at each point it folds its folded axes (if it has a fold) and writes.
//! Operands are read through affine views, so that a transpose, a slice or a broadcast costs nothing
//! but strides. Two kernels (`map.plain`, `fold.plain`) take every nest that a target can address.

use crate::body::Body;
use omchat_ir::Dtype;
use std::collections::BTreeSet;

/// How a nest folds the values of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fold {
    /// Sum, accumulated in f32 (or i32).
    Sum,
    /// Largest; -1e30 over nothing.
    Max,
    /// Index of the first largest, counted row-major over the folded axes; an integer.
    ArgMax,
}

/// A loop nest over dense buffers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Nest {
    /// Sizes of the axes that stay, outermost first.
    pub kept: Vec<usize>,
    /// Sizes of the axes that are folded away, outermost first; empty without a fold.
    pub folded: Vec<usize>,
    /// How; `None` for a map, whose `body` yields one result a write and whose `epilogue` is empty.
    pub fold: Option<Fold>,
    /// Operands, read at the current index.
    pub reads: Vec<Read>,
    /// Runs at every point of kept and folded axes.
    pub body: Body,
    /// Runs once a kept point, after the fold: one result a write.
    pub epilogue: Body,
    /// Where results go.
    pub writes: Vec<Write>,
}

/// A view of an operand over a nest's axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Read {
    /// Index into the launch's operands.
    pub operand: usize,
    /// How the buffer stores elements.
    pub dtype: Dtype,
    /// First element.
    pub offset: usize,
    /// Elements to step along each axis of the nest: kept, then folded. 0 repeats.
    pub strides: Vec<usize>,
    /// An id read from another operand that picks a row, for `gather`.
    pub at: Option<At>,
}

/// A row picked by an id: `offset + id * stride`; a read outside `0..size` yields 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct At {
    /// Index into the launch's operands; the buffer holds i32.
    pub operand: usize,
    /// First element of the ids.
    pub offset: usize,
    /// Elements to step along each axis of the nest.
    pub strides: Vec<usize>,
    /// Rows there are.
    pub size: usize,
    /// Elements from row to row of the gathered operand.
    pub stride: usize,
}

/// A view of a result over a nest's kept axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// Index into the launch's results.
    pub result: usize,
    /// How the buffer stores elements.
    pub dtype: Dtype,
    /// First element.
    pub offset: usize,
    /// Elements to step along each kept axis.
    pub strides: Vec<usize>,
    /// A run-time start along one axis, for `update_slice`.
    pub at: Option<Start>,
}

/// A start read from an i32 scalar and clamped to `0..=last`: adds `start * stride` to the offset.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Start {
    /// Index into the launch's operands; the buffer holds one i32.
    pub operand: usize,
    /// The largest start that keeps the update inside.
    pub last: usize,
    /// Elements from one start to the next.
    pub stride: usize,
}

impl Nest {
    /// Points at which the nest writes.
    pub fn points(&self) -> usize {
        self.kept.iter().product()
    }

    /// Points folded for each write; 1 for a map.
    pub fn depth(&self) -> usize {
        self.folded.iter().product()
    }

    /// Buffers that the nest touches: operands that it reads or is addressed by, and results.
    pub fn buffers(&self) -> usize {
        let results: BTreeSet<usize> = self.writes.iter().map(|w| w.result).collect();
        self.operands().len() + results.len()
    }

    /// The operands that it reads or is addressed by, in order.
    fn operands(&self) -> BTreeSet<usize> {
        let ids = self.reads.iter().filter_map(|r| r.at.as_ref().map(|a| a.operand));
        let starts = self.writes.iter().filter_map(|w| w.at.as_ref().map(|a| a.operand));
        self.reads.iter().map(|r| r.operand).chain(ids).chain(starts).collect()
    }

    /// Renumbers its operands so that it has none that it does not touch; yields which of the old ones these are.
    pub(crate) fn drop_untouched(&mut self) -> Vec<usize> {
        let kept: Vec<usize> = self.operands().into_iter().collect();
        let place = |o: &mut usize| *o = kept.iter().position(|k| k == o).unwrap_or(*o);
        for r in &mut self.reads {
            place(&mut r.operand);
            r.at.iter_mut().for_each(|a| place(&mut a.operand));
        }
        self.writes.iter_mut().filter_map(|w| w.at.as_mut()).for_each(|a| place(&mut a.operand));
        kept
    }
}
