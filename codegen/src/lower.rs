//! An outlined function to the work it asks for: one nest, or what cannot be one.

mod collective;
mod index;
mod scatter;

use crate::body::{Body, Kind, Step};
use crate::nest::{At, Fold, Nest, Read, Start, Write};
use crate::{Error, Work};
pub use collective::ranks_of;
use index::{Affine, Contraction, Index, contraction, operand_index, rearranged, sliced, unit, zero};
use omchat_ir::ops::{ArgMax, Cast, Concat, Einsum, FoldKind, Gather, Reduce, UpdateSlice};
use omchat_ir::{Action, Dtype, Fault, Function, Node, Op, Scalar, Type, Value, strides};
use std::collections::HashMap;

/// What a function lowers to.
#[derive(Clone, Debug, PartialEq)]
pub enum Lowered {
    /// Its result is its operand's memory: a reshape.
    Alias,
    /// Work, one piece after another, on the function's operands and results.
    Work {
        /// The pieces.
        pieces: Vec<Work>,
        /// An operand that result 0 must start as; the pieces write over parts of it.
        onto: Option<usize>,
    },
}

/// What a function asks for, in a program of so many ranks. With one, a collective is its operand.
///
/// Errors: a movement whose axes do not fit, which `verify` would have found; a collective over other ranks.
pub fn lower(f: &Function, ranks: usize) -> Result<Lowered, Error> {
    let l = Lower::new(f);
    // Nodes before the last are free ones that it reads through.
    if let Some(node) = f.nodes.last()
        && let Action::Op(op) = &node.action
    {
        match op {
            Op::Rearrange(r) => return l.rearrange(node, r),
            Op::UpdateSlice(u) if l.turned(node.operands[1], vec![]).0.0 < f.params.len() as u32 => {
                return Ok(l.update_slice(node, u));
            }
            Op::UpdateSlice(_) => {
                let onto = Some(node.operands[0].0 as usize);
                return Ok(Lowered::Work { pieces: vec![Work::Nest(l.nest().collapsed())], onto });
            }
            Op::ScatterAdd(s) => return scatter::scatter_add(&l, node, s),
            Op::KthLargest(k) => {
                let x = f.ty(node.operands[0]);
                let width = x.shape.last().copied().unwrap_or(1);
                let work = Work::KthLargest { rows: x.elements() / width.max(1), width, k: k.k };
                return Ok(Lowered::Work { pieces: vec![work], onto: None });
            }
            // A copy is its operand's memory while both are wanted: nothing writes over what another value holds.
            Op::Copy(_) => return Ok(Lowered::Alias),
            Op::CollectivePermute(_) | Op::AllReduce(_) | Op::AllGather(_) | Op::ReduceScatter(_) => {
                return collective::lower(&l, node, op, ranks);
            }
            Op::Concat(c) if !l.written_in_place(node) => return Ok(l.concat(node, c)),
            _ => {}
        }
    }
    Ok(Lowered::Work { pieces: vec![Work::Nest(l.nest().collapsed())], onto: None })
}

struct Lower<'a> {
    f: &'a Function,
    /// The node that makes each value.
    maker: Vec<Option<usize>>,
    /// The one fold, if any.
    anchor: Option<usize>,
}

/// A nest in the making.
struct Making {
    axes: usize,
    reads: Vec<Read>,
    body: Body,
    /// Steps of this body by what they yield: a value that is used twice is walked once.
    known: HashMap<(Value, Index), usize>,
}

impl Making {
    fn new(axes: usize) -> Making {
        Making { axes, reads: vec![], body: Body::default(), known: HashMap::new() }
    }

    /// The body so far; the next begins.
    fn taken(&mut self) -> Body {
        self.known.clear();
        std::mem::take(&mut self.body)
    }
}

impl<'a> Lower<'a> {
    fn new(f: &'a Function) -> Lower<'a> {
        let mut maker = vec![None; f.values.len()];
        for (n, node) in f.nodes.iter().enumerate() {
            node.results.iter().for_each(|r| maker[r.0 as usize] = Some(n));
        }
        let fold = |n: &Node| matches!(n.action, Action::Op(Op::Reduce(_) | Op::ArgMax(_) | Op::Einsum(_)));
        Lower { f, maker, anchor: f.nodes.iter().position(fold) }
    }

    fn op(&self, v: Value) -> Option<(&'a Op, &'a Node)> {
        let node = &self.f.nodes[self.maker[v.0 as usize]?];
        match &node.action {
            Action::Op(op) => Some((op, node)),
            Action::Call { .. } => None,
        }
    }

    /// The values that results of the function consist of, and where each is written.
    fn sinks(&self) -> Vec<(Value, Write)> {
        let mut out = vec![];
        for (result, r) in self.f.results.iter().enumerate() {
            let ty = self.f.ty(*r);
            let (v, strides, at) = match self.op(*r) {
                Some((Op::UpdateSlice(u), node)) => {
                    let (part, strides) = self.turned(node.operands[1], ty.strides());
                    (part, strides, Some(self.start(node, u)))
                }
                _ => (*r, ty.strides(), None),
            };
            let write = Write { result, dtype: ty.dtype, offset: 0, strides, at };
            match self.op(v) {
                Some((Op::Concat(c), node)) => {
                    let mut start = 0;
                    for o in &node.operands {
                        out.push((*o, Write { offset: start * write.strides[c.axis], ..write.clone() }));
                        start += self.f.ty(*o).shape[c.axis];
                    }
                }
                _ => out.push((v, write)),
            }
        }
        out
    }

    /// The value behind rearranges that only turn it, and the strides of its axes where those of the turned one are these.
    fn turned(&self, v: Value, strides: Vec<usize>) -> (Value, Vec<usize>) {
        let Some((Op::Rearrange(r), node)) = self.op(v) else { return (v, strides) };
        let words: Vec<&String> = r.axes.output.iter().flatten().collect();
        let of = |w: &String| words.iter().position(|o| *o == w).and_then(|i| strides.get(i)).copied().unwrap_or(0);
        self.turned(node.operands[0], r.axes.inputs[0].iter().flatten().map(of).collect())
    }

    /// Where an update begins.
    fn start(&self, node: &Node, u: &UpdateSlice) -> Start {
        let (x, part) = (self.f.ty(node.operands[0]), self.f.ty(node.operands[1]));
        let operand = node.operands[2].0 as usize;
        Start { operand, last: x.shape[u.axis] - part.shape[u.axis], stride: x.strides()[u.axis] }
    }

    fn nest(&self) -> Nest {
        let sinks = self.sinks();
        let kept = sinks.first().map(|s| self.f.ty(s.0).shape.clone()).unwrap_or_default();
        let Contraction { folded, fold, operands: start } =
            self.anchor.map(|n| self.folds(&self.f.nodes[n])).unwrap_or_default();
        let axes = kept.len() + folded.len();
        let mut m = Making::new(axes);
        let identity: Index = (0..kept.len()).map(|i| unit(i, axes)).collect();
        let mut body = Body::default();
        if let Some(n) = self.anchor {
            let node = &self.f.nodes[n];
            let steps: Vec<usize> =
                node.operands.iter().zip(&start).map(|(o, ix)| self.value(*o, ix, &mut m)).collect();
            let result = match steps[..] {
                [a, b] => m.body.push(Step::Apply { f: Scalar::Mul, args: vec![a, b], of: Kind::Float }),
                _ => steps[0],
            };
            body = m.taken();
            body.results = vec![result];
        }
        let results = sinks.iter().map(|s| self.value(s.0, &identity, &mut m)).collect();
        m.body.results = results;
        let writes = sinks.into_iter().map(|(_, write)| write).collect();
        let (body, epilogue) = if self.anchor.is_some() { (body, m.body) } else { (m.body, Body::default()) };
        Nest { kept, folded, fold, reads: m.reads, body, epilogue, writes }
    }

    /// What an anchor folds.
    fn folds(&self, node: &Node) -> Contraction {
        let Action::Op(op) = &node.action else { return Contraction::default() };
        let types: Vec<&Type> = node.operands.iter().map(|v| self.f.ty(*v)).collect();
        match op {
            Op::Einsum(Einsum { axes, .. }) => contraction(&axes.inputs, &axes.output, &types, Fold::Sum),
            Op::Reduce(Reduce { fold, axes }) => {
                let fold = if *fold == FoldKind::Sum { Fold::Sum } else { Fold::Max };
                contraction(&axes.inputs, &axes.output, &types, fold)
            }
            Op::ArgMax(ArgMax { axes }) => contraction(&axes.inputs, &axes.output, &types, Fold::ArgMax),
            _ => Contraction::default(),
        }
    }

    /// The step that yields a value at an index.
    fn value(&self, v: Value, index: &Index, m: &mut Making) -> usize {
        let key = (v, index.clone());
        if let Some(step) = m.known.get(&key) {
            return *step;
        }
        let step = self.made(v, index, m);
        m.known.insert(key, step);
        step
    }

    fn made(&self, v: Value, index: &Index, m: &mut Making) -> usize {
        let ty = self.f.ty(v);
        if let Some((op, node)) = self.op(v) {
            if self.maker[v.0 as usize] == self.anchor {
                let kind = Kind::of(ty.dtype);
                return m.body.push(Step::Folded { kind });
            }
            match op {
                Op::Constant(c) => {
                    return m.body.push(if c.dtype.is_float() {
                        Step::Float { bits: (c.dtype.round(c.value) as f32).to_bits() }
                    } else {
                        Step::Int { value: c.value as i32 }
                    });
                }
                Op::Iota(_) => return iota(&index[0], m),
                Op::Pointwise(p) => {
                    let types: Vec<&Type> = node.operands.iter().map(|o| self.f.ty(*o)).collect();
                    let args = node
                        .operands
                        .iter()
                        .enumerate()
                        .map(|(i, o)| self.value(*o, &operand_index(p.axes.as_ref(), i, types[i], index), m))
                        .collect::<Vec<_>>();
                    let of = Kind::of(types[types.len() - 1].dtype);
                    return m.body.push(Step::Apply { f: p.f, args, of });
                }
                Op::Cast(Cast { dtype }) => {
                    let from = self.f.ty(node.operands[0]).dtype;
                    let arg = self.value(node.operands[0], index, m);
                    return cast(arg, from, *dtype, m);
                }
                Op::Slice(s) => return self.value(node.operands[0], &sliced(s, index), m),
                Op::Rearrange(r) => {
                    return self.value(node.operands[0], &rearranged(r, self.f.ty(node.operands[0]), index, m.axes), m);
                }
                Op::Gather(g) => return self.gather(node, g, index, m),
                _ => {}
            }
        }
        let (operand, offset, steps) = self.view(v, index, m.axes);
        read(m, Read { operand, dtype: ty.dtype, offset, strides: steps, at: None })
    }

    /// The parameter behind a value, and the element read at an index.
    fn view(&self, v: Value, index: &Index, axes: usize) -> (usize, usize, Vec<usize>) {
        if let Some((op, node)) = self.op(v)
            && let Some(&x) = node.operands.first()
        {
            match op {
                Op::Slice(s) => return self.view(x, &sliced(s, index), axes),
                Op::Rearrange(r) => return self.view(x, &rearranged(r, self.f.ty(x), index, axes), axes),
                // Only casts that widen are read through: the nest widens what it reads anyway.
                Op::Cast(_) => return self.view(x, index, axes),
                _ => {}
            }
        }
        let mut offset = 0;
        let mut steps = vec![0; axes];
        for (a, s) in index.iter().zip(self.f.ty(v).strides()) {
            offset += a.offset * s;
            steps.iter_mut().zip(&a.steps).for_each(|(t, k)| *t += k * s);
        }
        (v.0 as usize, offset, steps)
    }

    fn gather(&self, node: &Node, g: &Gather, index: &Index, m: &mut Making) -> usize {
        let (table, ids) = (node.operands[0], node.operands[1]);
        let out: Vec<&String> = g.axes.output.iter().flatten().collect();
        let pick = |groups: &[Vec<String>]| -> Index {
            groups
                .iter()
                .flatten()
                .map(|w| {
                    out.iter()
                        .position(|o| *o == w)
                        .map_or(Affine { offset: 0, steps: vec![0; m.axes] }, |i| index[i].clone())
                })
                .collect()
        };
        let (operand, offset, steps) = self.view(table, &pick(&g.axes.inputs[0]), m.axes);
        let (at, at_offset, at_steps) = self.view(ids, &pick(&g.axes.inputs[1]), m.axes);
        let row = g.axes.inputs[0].iter().flatten().position(|w| !out.contains(&w)).unwrap_or(0);
        let mut along: Index =
            (0..self.f.ty(table).rank()).map(|_| Affine { offset: 0, steps: vec![0; m.axes] }).collect();
        along[row].offset = 1;
        let stride =
            self.view(table, &along, m.axes).1.saturating_sub(self.view(table, &zero(along.len(), m.axes), m.axes).1);
        let size = self.f.ty(table).shape[row];
        let dtype = self.f.ty(Value(operand as u32)).dtype;
        read(
            m,
            Read {
                operand,
                dtype,
                offset,
                strides: steps,
                at: Some(At { operand: at, offset: at_offset, strides: at_steps, size, stride }),
            },
        )
    }

    /// Whether a concatenation's operands are computed here over one shape, so that a nest writes each where it belongs.
    fn written_in_place(&self, node: &Node) -> bool {
        let computed = |v: &Value| {
            !matches!(self.op(*v), None | Some((Op::Constant(_) | Op::Iota(_) | Op::Slice(_) | Op::Rearrange(_), _)))
        };
        let shape = &self.f.ty(node.operands[0]).shape;
        node.operands.iter().all(|v| computed(v) && self.f.ty(*v).shape == *shape)
    }

    /// A rearrange alone: a reshape, or a copy over its elementary axes.
    fn rearrange(&self, node: &Node, r: &omchat_ir::ops::Rearrange) -> Result<Lowered, Error> {
        let x = self.f.ty(node.operands[0]);
        let moves = r.moves(x).map_err(invalid)?;
        let whole = x.elements() == moves.sizes.iter().product::<usize>();
        if whole && moves.strides == strides(&moves.sizes) && self.op(node.operands[0]).is_none() {
            return Ok(Lowered::Alias);
        }
        let axes = moves.sizes.len();
        let index = rearranged(r, x, &(0..axes).map(|i| unit(i, axes)).collect(), axes);
        let write = Write { result: 0, dtype: x.dtype, offset: 0, strides: strides(&moves.sizes), at: None };
        let work = self.copy_of(node.operands[0], &index, moves.sizes, write);
        Ok(Lowered::Work { pieces: vec![work], onto: None })
    }

    /// A nest that writes one value, read at an index.
    fn copy_of(&self, v: Value, index: &Index, kept: Vec<usize>, write: Write) -> Work {
        let mut m = Making::new(kept.len());
        let step = self.value(v, index, &mut m);
        m.body.results = vec![step];
        Work::Nest(
            Nest {
                kept,
                folded: vec![],
                fold: None,
                reads: m.reads,
                body: m.body,
                epilogue: Body::default(),
                writes: vec![write],
            }
            .collapsed(),
        )
    }

    fn update_slice(&self, node: &Node, u: &UpdateSlice) -> Lowered {
        let (x, part) = (self.f.ty(node.operands[0]), self.f.ty(node.operands[1]));
        let operand = node.operands[1].0 as usize;
        let reads = vec![Read { operand, dtype: part.dtype, offset: 0, strides: part.strides(), at: None }];
        let at = Some(self.start(node, u));
        let write = Write { result: 0, dtype: x.dtype, offset: 0, strides: x.strides(), at };
        copy_nest(part.shape.clone(), reads, write, Some(node.operands[0].0 as usize))
    }

    fn concat(&self, node: &Node, c: &Concat) -> Lowered {
        let ty = self.f.ty(node.results[0]);
        let mut start = 0;
        let mut pieces = vec![];
        for o in &node.operands {
            let shape = self.f.ty(*o).shape.clone();
            let index = (0..shape.len()).map(|i| unit(i, shape.len())).collect();
            let write = Write {
                result: 0,
                dtype: ty.dtype,
                offset: start * ty.strides()[c.axis],
                strides: ty.strides(),
                at: None,
            };
            start += shape[c.axis];
            pieces.push(self.copy_of(*o, &index, shape, write));
        }
        Lowered::Work { pieces, onto: None }
    }
}

fn invalid(f: Fault) -> Error {
    Error::Invalid(f.into())
}

fn read(m: &mut Making, r: Read) -> usize {
    let kind = Kind::of(r.dtype);
    let read = m.reads.iter().position(|x| *x == r).unwrap_or_else(|| {
        m.reads.push(r);
        m.reads.len() - 1
    });
    m.body.push(Step::Read { read, kind })
}

fn iota(a: &Affine, m: &mut Making) -> usize {
    let mut sum = None;
    for (axis, &k) in a.steps.iter().enumerate().filter(|(_, k)| **k > 0) {
        let mut term = m.body.push(Step::Index { axis });
        if k > 1 {
            let by = m.body.push(Step::Int { value: k as i32 });
            term = m.body.push(Step::Apply { f: Scalar::Mul, args: vec![term, by], of: Kind::Int });
        }
        sum = Some(match sum {
            None => term,
            Some(s) => m.body.push(Step::Apply { f: Scalar::Add, args: vec![s, term], of: Kind::Int }),
        });
    }
    match (sum, a.offset) {
        (Some(s), 0) => s,
        (s, offset) => {
            let c = m.body.push(Step::Int { value: offset as i32 });
            s.map_or(c, |s| m.body.push(Step::Apply { f: Scalar::Add, args: vec![s, c], of: Kind::Int }))
        }
    }
}

fn cast(arg: usize, from: Dtype, to: Dtype, m: &mut Making) -> usize {
    match (from, to) {
        (_, Dtype::Bool) if from == Dtype::Bool => arg,
        (_, Dtype::Bool) => m.body.push(Step::Truth { arg }),
        (_, Dtype::Bf16 | Dtype::F16) => {
            let arg = if from.is_float() { arg } else { m.body.push(Step::Convert { arg, to: Kind::Float }) };
            m.body.push(Step::Round { arg, to })
        }
        _ if Kind::of(from) == Kind::of(to) => arg,
        _ => m.body.push(Step::Convert { arg, to: Kind::of(to) }),
    }
}

fn copy_nest(kept: Vec<usize>, reads: Vec<Read>, write: Write, onto: Option<usize>) -> Lowered {
    let mut body = Body::default();
    let step = body.push(Step::Read { read: 0, kind: Kind::of(write.dtype) });
    body.results = vec![step];
    let nest = Nest { kept, folded: vec![], fold: None, reads, body, epilogue: Body::default(), writes: vec![write] };
    Lowered::Work { pieces: vec![Work::Nest(nest.collapsed())], onto }
}
