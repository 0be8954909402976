//! Indices: where an element of a value lies, as sums over a nest's axes.

use crate::nest::Fold;
use omchat_ir::Type;

/// What an anchor folds, and how its operands are walked.
#[derive(Default)]
pub(super) struct Contraction {
    /// Sizes of the folded axes.
    pub folded: Vec<usize>,
    /// How they are folded.
    pub fold: Option<Fold>,
    /// The index of each operand.
    pub operands: Vec<Index>,
}

/// An index along one axis of a value, as a sum over the nest's axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Affine {
    /// What is added.
    pub offset: usize,
    /// How far a step along each axis of the nest goes.
    pub steps: Vec<usize>,
}

/// The index of a value at the nest's current point: one sum an axis.
pub(super) type Index = Vec<Affine>;

/// The index that is one axis of the nest.
pub(super) fn unit(axis: usize, axes: usize) -> Affine {
    let mut steps = vec![0; axes];
    steps[axis] = 1;
    Affine { offset: 0, steps }
}

/// The index that stays at the first element.
pub(super) fn zero(rank: usize, axes: usize) -> Index {
    (0..rank).map(|_| Affine { offset: 0, steps: vec![0; axes] }).collect()
}

/// The index of operand `i` of a scalar function at the result's index.
pub(super) fn operand_index(axes: Option<&omchat_ir::Axes>, i: usize, ty: &Type, index: &Index) -> Index {
    match axes {
        None if ty.rank() == 0 => vec![],
        None => index.clone(),
        Some(a) => {
            a.inputs[i].iter().map(|g| index[a.output.iter().position(|o| o == g).unwrap_or(0)].clone()).collect()
        }
    }
}

/// The operand's index behind a slice.
pub(super) fn sliced(s: &omchat_ir::ops::Slice, index: &Index) -> Index {
    let mut index = index.clone();
    index[s.axis].offset += s.start;
    index
}

/// The operand's index behind a rearrange that merges nothing.
pub(super) fn rearranged(r: &omchat_ir::ops::Rearrange, x: &Type, index: &Index, axes: usize) -> Index {
    let words: Vec<&String> = r.axes.output.iter().flatten().collect();
    let sizes = r.moves(x).map(|m| m.sizes).unwrap_or_default();
    r.axes.inputs[0]
        .iter()
        .map(|group| {
            let mut out = Affine { offset: 0, steps: vec![0; axes] };
            for w in group {
                let Some(i) = words.iter().position(|o| *o == w) else { continue };
                out.offset = out.offset * sizes[i] + index[i].offset;
                out.steps.iter_mut().zip(&index[i].steps).for_each(|(o, s)| *o = *o * sizes[i] + s);
            }
            out
        })
        .collect()
}

/// Folded sizes, the fold and the operands' indices from axes words.
pub(super) fn contraction(
    inputs: &[Vec<Vec<String>>],
    output: &[Vec<String>],
    types: &[&Type],
    fold: Fold,
) -> Contraction {
    let out: Vec<&String> = output.iter().flatten().collect();
    let mut folded: Vec<(&String, usize)> = vec![];
    for (own, t) in inputs.iter().zip(types) {
        for (w, n) in own.iter().flatten().zip(&t.shape) {
            if !out.contains(&w) && !folded.iter().any(|(f, _)| *f == w) {
                folded.push((w, *n));
            }
        }
    }
    let axes = out.len() + folded.len();
    let place = |w: &String| {
        out.iter()
            .position(|o| *o == w)
            .or_else(|| folded.iter().position(|(f, _)| *f == w).map(|i| out.len() + i))
            .unwrap_or(0)
    };
    let index = inputs.iter().map(|own| own.iter().flatten().map(|w| unit(place(w), axes)).collect()).collect();
    Contraction { folded: folded.iter().map(|f| f.1).collect(), fold: Some(fold), operands: index }
}
