//! Shards: each of W ranks keeps a part of every trained tensor, of its moments and of its gradient.
//!
//! A tensor of n elements, row-major, is filled up with zeros to a multiple of W and cut into W equal parts; rank r
//! keeps the r-th, in f32. A step gathers the parts, in the element type, and sums gradients part by part. The zeros
//! stay zeros: their gradient is 0.
//!
//! Source: Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054.

use super::entry::Entry;
use super::train::{Objective, Param, flatten};
use omchat_ir::ops::{AllGather, AllReduce, Cast, Concat, FoldKind, Rearrange, ReduceScatter, Slice};
use omchat_ir::{Axes, Diagnostics, Dtype, Value};
use std::collections::BTreeMap;

/// Elements of a rank's shard of a tensor, zeros at the end included: ceil(elements / ranks).
pub fn shard_elements(elements: usize, ranks: usize) -> usize {
    elements.div_ceil(ranks.max(1))
}

/// The shape in which a rank keeps a trained tensor: its own, or that of a shard.
pub(super) fn kept_shape(o: &Objective, p: &Param) -> Vec<usize> {
    if o.ranks == 1 { p.ty.shape.clone() } else { vec![shard_elements(p.ty.elements(), o.ranks)] }
}

/// Puts the trained tensors, kept in f32, whole and in the element type, among the operands.
pub(super) fn gathered(
    o: &Objective,
    e: &mut Entry,
    operands: &mut [Option<Value>],
    kept: &[Value],
) -> Result<(), Diagnostics> {
    let trained = o.params.iter().zip(operands).filter(|(p, _)| p.trained);
    for ((p, v), w) in trained.zip(kept) {
        let plain = e.dtype() == Dtype::F32;
        let narrow = |e: &mut Entry, name: &str| match plain {
            true => Ok(*w),
            false => e.op(name, Cast { dtype: e.dtype() }, &[*w]),
        };
        *v = Some(match o.ranks {
            1 => narrow(e, &p.name)?,
            ranks => {
                let part = narrow(e, "part")?;
                let all = e.op("all", AllGather { parts: ranks }, &[part])?;
                let filled = e.ty(all).elements() > p.ty.elements();
                let cut = Slice { axis: 0, start: 0, end: p.ty.elements() };
                let flat = if filled { e.op("flat", cut, &[all])? } else { all };
                unflatten(e, &p.name, flat, &p.ty.shape)?
            }
        });
    }
    Ok(())
}

/// A gradient of all ranks in f32: whole, or this rank's shard.
pub(super) fn reduced(o: &Objective, e: &mut Entry, p: &Param, grad: Value) -> Result<Value, Diagnostics> {
    let wide = if e.dtype() == Dtype::F32 { grad } else { e.op("wide", Cast { dtype: Dtype::F32 }, &[grad])? };
    if o.ranks == 1 {
        return Ok(wide);
    }
    let flat = flatten(e, wide)?;
    let lacks = shard_elements(p.ty.elements(), o.ranks) * o.ranks - p.ty.elements();
    let even = if lacks == 0 {
        flat
    } else {
        let zero = e.constant("zero", 0.0)?;
        let zeros = filled(e, zero, &[lacks])?;
        e.op("even", Concat { axis: 0 }, &[flat, zeros])?
    };
    e.op(&format!("d.{}", p.name), ReduceScatter { parts: o.ranks }, &[even])
}

/// A sum over all ranks of what each has of it.
pub(super) fn total(o: &Objective, e: &mut Entry, x: Value) -> Result<Value, Diagnostics> {
    if o.ranks == 1 { Ok(x) } else { e.op("total", AllReduce { fold: FoldKind::Sum }, &[x]) }
}

/// One number at every place of that shape.
pub(super) fn filled(e: &mut Entry, x: Value, shape: &[usize]) -> Result<Value, Diagnostics> {
    let words: Vec<String> = (0..shape.len()).map(|i| format!("i{i}")).collect();
    let axes = Axes::parse(&format!("-> {}", words.join(" ")))?;
    let sizes = words.into_iter().zip(shape.iter().copied()).collect();
    e.op("none", Rearrange { axes, sizes }, &[x])
}

/// One axis as a tensor of that shape.
pub(super) fn unflatten(e: &mut Entry, name: &str, x: Value, shape: &[usize]) -> Result<Value, Diagnostics> {
    let words: Vec<String> = (0..shape.len()).map(|i| format!("i{i}")).collect();
    let axes = Axes::parse(&format!("({w}) -> {w}", w = words.join(" ")))?;
    let sizes: BTreeMap<String, usize> = words.into_iter().zip(shape.iter().copied()).collect();
    e.op(name, Rearrange { axes, sizes }, &[x])
}
