//! What the kernels of cross entropy behind its projection share: the instance, what a part of the words leaves of a row, and
//! the launch that makes losses of that.
//!
//! A part leaves of each row its largest logit and the sum of exp(logit - largest); whoever meets the row's label leaves its
//! logit. They lie in scratch memory: [row, part], [row, part], [row]. Logits are in no memory.

use cubecl::prelude::*;
use omchat_codegen::{Body, Fold, Kind, Nest, Read, Refusal, Schedule, Step, Target, Work, Write};
use omchat_ir::{Dtype, Scalar as Function, Type};

use crate::bind::{Buffers, Slot, Slots};
use crate::einsum::Roles;
use crate::grid::{address, cubes, looped, one_each};
use crate::nest::item;
use crate::prepared::{Prepared, Run, runner};

/// Functions that are this cross entropy: they differ in how many tokens the text takes at once.
pub(crate) const FUNCTIONS: &[&str] = &["linear_cross_entropy", "linear_cross_entropy_tiled"];

/// Less than any logit.
pub(crate) const LEAST: f32 = -1e30;
/// Units of a GPU that merge a row's parts.
const UNITS: usize = 64;

/// The sizes of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Tokens.
    pub(crate) t: usize,
    /// Channels.
    pub(crate) c: usize,
    /// Words.
    pub(crate) v: usize,
}

/// The comptime half of what parts leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(crate) labels: Slot,
    /// Where the words `[parts, rows, size of the vocabulary]` begin.
    pub(crate) words: usize,
}

/// The sizes of an instance, and the einsum that its logits are.
///
/// Errors: another function; a size that is 0; a single word; more elements than 32-bit indices reach; a dtype that the target
/// lacks.
pub(crate) fn instance(work: &Work, target: Option<&Target>) -> Result<(Sizes, Roles), Refusal> {
    let Work::Function { name, operands, .. } = work else {
        return Err(Refusal(format!("this kernel runs @{}", FUNCTIONS.join(", @"))));
    };
    let ([x, w, _], true) = (&operands[..], FUNCTIONS.contains(&name.as_str())) else {
        return Err(Refusal(format!("this kernel runs @{}, not @{name}", FUNCTIONS.join(", @"))));
    };
    let ([t, c], [v, _]) = (&x.shape[..], &w.shape[..]) else {
        return Err(Refusal("x must have the axes [T, C] and w [V, C]".into()));
    };
    let n = Sizes { t: *t, c: *c, v: *v };
    let most = operands.iter().map(Type::elements).max().unwrap_or(0);
    if most >= 1 << 31 || operands.iter().any(|o| o.elements() == 0) || n.v < 2 {
        return Err(Refusal(format!("takes two words and more, and fewer than {} elements, not {most}", 1u32 << 31)));
    }
    for operand in [x, w] {
        if let Some(t) = target.filter(|t| !t.reads(operand.dtype)) {
            return Err(Refusal(format!("{} reads no {}", t.name, operand.dtype)));
        }
    }
    Ok((n, Roles::of(&Work::Nest(logits(&n, [x.dtype, w.dtype])))?))
}

/// The schedules whose parts are worth their memory: less than logits take of the tokens that the text takes at once.
///
/// Errors: none are; or 32-bit indices or a binding do not reach their parts.
pub(crate) fn worth(
    work: &Work,
    n: &Sizes,
    schedules: Vec<Schedule>,
    parts: impl Fn(&Schedule) -> usize,
    target: &Target,
) -> Result<Vec<Schedule>, Refusal> {
    let fewest = schedules.iter().map(&parts).min().unwrap_or(0);
    pays(work, n, fewest, target)?;
    Ok(schedules.into_iter().filter(|s| pays(work, n, parts(s), target).is_ok()).collect())
}

fn pays(work: &Work, n: &Sizes, parts: usize, target: &Target) -> Result<(), Refusal> {
    let (need, logits) = (floats(n, parts), n.t / work.dim("N").max(1) * n.v);
    if need > logits {
        return Err(Refusal(format!("its parts leave {need} floats, and logits of {} tokens are {logits}", n.t)));
    }
    if need >= 1 << 31 || 4 * need > target.max_binding_bytes {
        let have = target.max_binding_bytes;
        return Err(Refusal(format!("its parts take a binding of {} bytes, {} has {have}", 4 * need, target.name)));
    }
    Ok(())
}

/// Logits of every word for every token; weights may stay packed where activations are wide.
fn logits(n: &Sizes, dtypes: [Dtype; 2]) -> Nest {
    let mut body = Body::default();
    let factors: Vec<usize> = (0..2).map(|read| body.push(Step::Read { read, kind: Kind::Float })).collect();
    let product = body.push(Step::Apply { f: Function::Mul, args: factors, of: Kind::Float });
    body.results = vec![product];
    let mut epilogue = Body::default();
    let sum = epilogue.push(Step::Folded { kind: Kind::Float });
    epilogue.results = vec![sum];
    let read = |operand: usize, strides| Read { operand, dtype: dtypes[operand], offset: 0, strides, at: None };
    Nest {
        kept: vec![n.t, n.v],
        folded: vec![n.c],
        fold: Some(Fold::Sum),
        reads: vec![read(0, vec![n.c, 0, 1]), read(1, vec![0, n.c, 1])],
        body,
        epilogue,
        writes: vec![Write { result: 0, dtype: Dtype::F32, offset: 0, strides: vec![n.v, 1], at: None }],
    }
}

/// Floats that so many parts leave.
pub(crate) fn floats(n: &Sizes, parts: usize) -> usize {
    n.t * (2 * parts + 1)
}

/// Turns of the loops that merge so many parts.
pub(crate) fn merge_turns(parts: usize) -> usize {
    looped(parts.div_ceil(UNITS), 0) + looped(UNITS, 0)
}

/// Binds the labels, and appends the words that parts and merge read.
pub(crate) fn ends(n: &Sizes, parts: usize, words: &mut Vec<u32>, ins: &mut Slots) -> Ends {
    let at = words.len();
    words.extend([parts, n.t, n.v].map(|x| x as u32));
    Ends { labels: ins.slot(2, Dtype::I32), words: at }
}

/// The buffers that a launch of parts writes.
pub(crate) fn left() -> Slots {
    let mut left = Slots::default();
    left.scratch();
    left
}

/// Followed by the launch that makes losses of what so many parts left.
pub(crate) fn merged(first: Prepared, n: &Sizes, parts: usize, e: Ends, schedule: &Schedule) -> Prepared {
    let (mut taken, mut outs) = (Slots::default(), Slots::default());
    let from = taken.scratch();
    let labels = taken.slot(2, Dtype::I32);
    let (loss, lse) = (outs.slot(0, Dtype::F32), outs.slot(1, Dtype::F32));
    let alone = schedule.get("bits") == 64;
    let units = if alone { 1 } else { UNITS };
    let grid = if alone { cubes(n.t as u32, schedule) } else { one_each(n.t as u32, UNITS as u32) };
    let (bits, m) = (address(schedule), Merge { e: Ends { labels, ..e }, from, loss, lse, units });
    let then: Run = runner!(|b| cross_entropy_merge, bits, b.meta, b.operands, b.results, m);
    first.then(floats(n, parts), taken, outs, grid, then)
}

/// The comptime half of the merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Merge {
    e: Ends,
    from: Slot,
    loss: Slot,
    lse: Slot,
    /// Units that share a row.
    units: usize,
}

/// A row a cube; on a CPU a row a unit.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn cross_entropy_merge(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] m: Merge) {
    let parts = meta[m.e.words] as usize;
    let rows = meta[comptime![m.e.words + 1]] as usize;
    let mut row = item(true) as usize;
    let mut p = 0usize.runtime();
    if comptime![m.units > 1] {
        row = CUBE_POS;
        p = UNIT_POS as usize;
    }
    if row < rows {
        let from = operands.f32s.index(m.from.index);
        let mut top = LEAST.runtime();
        let mut sum = 0.0f32.runtime();
        while p < parts {
            let at = row * parts + p;
            (top, sum) = join(top, sum, from[at], from[rows * parts + at]);
            p += m.units;
        }
        if comptime![m.units > 1] {
            let mut shared = Shared::<[f32]>::new_slice(comptime![2 * m.units]);
            shared[UNIT_POS as usize] = top;
            shared[UNIT_POS as usize + m.units] = sum;
            sync_cube();
            top = LEAST.runtime();
            sum = 0.0f32.runtime();
            if UNIT_POS == 0 {
                for u in 0..m.units {
                    (top, sum) = join(top, sum, shared[u], shared[u + m.units]);
                }
            }
        }
        if comptime![m.units == 1] {
            finish(meta, operands, results, row, top + sum.ln(), m);
        } else if UNIT_POS == 0 {
            finish(meta, operands, results, row, top + sum.ln(), m);
        }
    }
}

/// The largest logit of two parts, and the sum of exp(logit - largest).
#[cube]
pub(crate) fn join(top: f32, sum: f32, other_top: f32, other_sum: f32) -> (f32, f32) {
    let high = max(top, other_top);
    (high, sum * (top - high).exp() + other_sum * (other_top - high).exp())
}

/// The loss of a row; 0 where its label is outside the vocabulary.
#[cube]
fn finish(meta: &[u32], operands: &Buffers, results: &mut Buffers, row: usize, lse: f32, #[comptime] m: Merge) {
    let (parts, rows) = (meta[m.e.words] as usize, meta[comptime![m.e.words + 1]] as usize);
    let label = operands.i32s.index(m.e.labels.index)[row];
    let known = label >= 0 && label < meta[comptime![m.e.words + 2]] as i32;
    let hit = operands.f32s.index(m.from.index)[2 * rows * parts + row];
    results.f32s.index_mut(m.lse.index)[row] = lse;
    results.f32s.index_mut(m.loss.index)[row] = select(known, lse - hit, 0.0f32);
}

/// How far a row's label lies from word `from` on; less than 0 where it lies before it.
#[cube]
pub(crate) fn label_from(operands: &Buffers, row: usize, from: usize, #[comptime] e: Ends) -> i32 {
    operands.i32s.index(e.labels.index)[row] - from as i32
}

/// Leaves what a part came to in a row.
#[cube]
pub(crate) fn leave_part(
    meta: &[u32],
    results: &mut Buffers,
    row: usize,
    part: usize,
    top: f32,
    sum: f32,
    #[comptime] e: Ends,
) {
    let (parts, rows) = (meta[e.words] as usize, meta[comptime![e.words + 1]] as usize);
    let at = row * parts + part;
    let to = results.f32s.index_mut(0usize);
    to[at] = top;
    to[rows * parts + at] = sum;
}

/// Leaves the logit of a row's label.
#[cube]
pub(crate) fn leave_hit(meta: &[u32], results: &mut Buffers, row: usize, logit: f32, #[comptime] e: Ends) {
    let (parts, rows) = (meta[e.words] as usize, meta[comptime![e.words + 1]] as usize);
    results.f32s.index_mut(0usize)[2 * rows * parts + row] = logit;
}
