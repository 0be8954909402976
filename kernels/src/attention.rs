//! What the attention kernels share: the sizes of an instance, where its operands lie, and its refusals.

use omchat_codegen::{Refusal, Schedule, Target, Work};
use omchat_ir::{Dtype, Type};

use crate::attention_carry::Carry;
use crate::bind::{Slot, Slots};
use crate::grid::units;

/// Functions that are attention: they differ in the output's dtype, and the last goes on from an earlier result.
pub(crate) const FORWARD: &[&str] = &["attention", "attention_partial", ONTO];

const ONTO: &str = "attention_onto";

/// The letters of `@attention`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) b: usize,
    pub(crate) h: usize,
    pub(crate) g: usize,
    pub(crate) t: usize,
    pub(crate) s: usize,
    pub(crate) d: usize,
}

/// Where the kernel finds q, k, v, lo, hi, at, and out, lse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Places {
    pub(crate) q: Slot,
    pub(crate) k: Slot,
    pub(crate) v: Slot,
    pub(crate) lo: Slot,
    pub(crate) hi: Slot,
    pub(crate) at: Slot,
    pub(crate) out: Slot,
    pub(crate) lse: Slot,
}

/// Where the backward kernels find q, k, v, lo, hi, at, lse, delta, do, and their results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BackPlaces {
    pub(crate) q: Slot,
    pub(crate) k: Slot,
    pub(crate) v: Slot,
    pub(crate) lo: Slot,
    pub(crate) hi: Slot,
    pub(crate) at: Slot,
    pub(crate) lse: Slot,
    pub(crate) delta: Slot,
    pub(crate) dout: Slot,
    /// `dq`, or `dk`.
    pub(crate) first: Slot,
    /// `dv`; `dq` again where there is none.
    pub(crate) second: Slot,
}

/// An instance of a forward function: its sizes, its types.
pub(crate) fn instance(work: &Work) -> Result<(Sizes, &[Type], &[Type]), Refusal> {
    let onto = matches!(work, Work::Function { name, .. } if name == ONTO);
    let (sizes, operands, results) = of(work, FORWARD, if onto { 8 } else { 6 }, 2)?;
    let carried = if onto { &results[..1] } else { &[] };
    match operands[6..].iter().chain(carried).chain(&results[1..]).find(|t| t.dtype != Dtype::F32) {
        Some(t) => Err(Refusal(format!("lse and what is carried must be f32, one is {t}"))),
        None => Ok((sizes, operands, results)),
    }
}

/// An instance of a backward function with that many results.
pub(crate) fn backward<'w>(
    work: &'w Work,
    name: &'static str,
    results: usize,
) -> Result<(Sizes, &'w [Type], &'w [Type]), Refusal> {
    let found = of(work, &[name], 9, results)?;
    let wide = found.1[6..8].iter().chain(found.2).find(|t| t.dtype != Dtype::F32);
    match wide {
        Some(t) => Err(Refusal(format!("lse, delta and results must be f32, one is {t}"))),
        None => Ok(found),
    }
}

fn of<'w>(work: &'w Work, names: &[&str], ins: usize, outs: usize) -> Result<(Sizes, &'w [Type], &'w [Type]), Refusal> {
    let Work::Function { name, operands, results, .. } = work else {
        return Err(Refusal(format!("this kernel runs @{}", names.join(", @"))));
    };
    if !names.contains(&name.as_str()) || operands.len() != ins || results.len() != outs {
        return Err(Refusal(format!(
            "this kernel runs @{} of {ins} operands and {outs} results, not @{name} of {} and {}",
            names.join(", @"),
            operands.len(),
            results.len()
        )));
    }
    let ([b, h, g, t, d], [_, _, s, _]) = (&operands[0].shape[..], &operands[1].shape[..]) else {
        return Err(Refusal("q must have the axes [B, H, G, T, D] and k [B, H, S, D]".into()));
    };
    let sizes = Sizes { b: *b, h: *h, g: *g, t: *t, s: *s, d: *d };
    let most = operands.iter().chain(results).map(Type::elements).max().unwrap_or(0);
    if most >= 1 << 31 {
        return Err(Refusal(format!("indices are 32-bit: at most {} elements, not {most}", 1u32 << 31)));
    }
    Ok((sizes, operands, results))
}

/// Blocks of `rows` out of `over` of each key head: how many there are, and the words that a kernel of blocks reads.
pub(crate) fn blocks(n: &Sizes, over: usize, rows: usize) -> (u32, Vec<u32>) {
    let blocks = over.div_ceil(rows);
    let items = (n.b * n.h * blocks) as u32;
    (items, vec![items, blocks as u32, n.t as u32, n.g as u32, n.h as u32, n.s as u32])
}

/// Widest head whose loops are unrolled where turns are counted.
const UNROLLED: usize = 128;

/// The schedule of a kernel in which a unit has a query or a key. Where turns are counted its loops along D are unrolled,
/// so that only those over keys or queries count.
pub(crate) fn plain(target: &Target, d: usize) -> Schedule {
    let Schedule(mut words) = units(target, usize::MAX);
    if target.turns < usize::MAX && d <= UNROLLED {
        words.insert("unroll", d as u32);
    }
    Schedule(words)
}

/// Whether the loops along D are unrolled.
pub(crate) fn whole(schedule: &Schedule) -> bool {
    schedule.get("unroll") > 1
}

/// The places of an instance, what it goes on from, and what to bind.
pub(crate) fn places(operands: &[Type], results: &[Type]) -> (Places, Option<Carry>, Slots, Slots) {
    let (mut ins, mut outs) = (Slots::default(), Slots::default());
    let mut from = |i: usize| ins.slot(i, operands[i].dtype);
    let (q, k, v, lo, hi, at) = (from(0), from(1), from(2), from(3), from(4), from(5));
    let carry = (operands.len() == 8).then(|| Carry { o: from(6), l: from(7) });
    let (out, lse) = (outs.slot(0, results[0].dtype), outs.slot(1, results[1].dtype));
    (Places { q, k, v, lo, hi, at, out, lse }, carry, ins, outs)
}

/// The places of a backward instance, and what to bind.
pub(crate) fn back_places(operands: &[Type], results: &[Type]) -> (BackPlaces, Slots, Slots) {
    let (mut ins, mut outs) = (Slots::default(), Slots::default());
    let mut from = |i: usize| ins.slot(i, operands[i].dtype);
    let (q, k, v, lo, hi, at) = (from(0), from(1), from(2), from(3), from(4), from(5));
    let (lse, delta, dout) = (from(6), from(7), from(8));
    let first = outs.slot(0, results[0].dtype);
    let second = results.get(1).map_or(first, |t| outs.slot(1, t.dtype));
    (BackPlaces { q, k, v, lo, hi, at, lse, delta, dout, first, second }, ins, outs)
}
