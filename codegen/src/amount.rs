//! What a piece of work moves and computes at the least: what speeds are measured by and schedules are weighed by.
//!
//! Bytes are the compulsory ones: each element that is read is read once, each that is written is written once, however
//! often a kernel comes back to it. A FLOP is a function of floats of one element, or one step of a fold; integers,
//! casts, copies and moves cost none. In a function that holds einsums those alone count, 2 a product, as the field
//! counts; the rest is of a lower order.

use crate::Error;
use crate::body::{Body, Kind, Step};
use crate::kernel::Work;
use crate::nest::{Fold, Nest, Read};
use omchat_ir::{Action, Axes, Bind, Dtype, Func, Function, Module, Op, Scope, Type};

/// Bytes read, bytes written, FLOPs. Each saturates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes that must be read.
    pub read: u64,
    /// Bytes that must be written.
    pub written: u64,
    /// Functions of floats.
    pub flops: u64,
}

/// What the queries of an attention see, which its types do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Pairs of a query and a key that it sees, counted once for all heads and summed over the batch.
    pub pairs: u64,
    /// Keys that any query sees, summed over the batch.
    pub keys: u64,
}

impl Amount {
    /// The amount of a piece of work; an attention sees everything.
    ///
    /// Errors: a function that is not the library's, or whose types are not.
    pub fn of(work: &Work) -> Result<Amount, Error> {
        Ok(match work {
            Work::Nest(n) => of_nest(n),
            Work::Function { operands, results, .. } => {
                let flops = function_flops(work)?;
                Amount { read: bytes(operands), written: bytes(results), flops }
            }
            Work::KthLargest { rows, width, .. } => {
                let all = product([*rows, *width]);
                Amount { read: all.saturating_mul(4), written: *rows as u64 * 4, flops: all }
            }
            Work::ScatterAdd { dtype, height, width, tokens, .. } => {
                let size = dtype.bytes() as u64;
                let (added, touched) = (product([*tokens, *width]), product([*tokens.min(height), *width]));
                let read = (added + touched) * size + *tokens as u64 * 4;
                Amount { read, written: touched * size, flops: added }
            }
            // Its bytes are the reader's.
            Work::Prefetch { .. } => Amount::default(),
            // What crosses the wire is read there and written here.
            Work::Collective(c) => Amount { read: c.wire_bytes(), written: c.wire_bytes(), flops: 0 },
        })
    }

    /// The amount of an attention, forward or backward, of which only some is seen: products of unseen pairs and keys
    /// and values that no query sees do not count. Other work has the amount that [`Amount::of`] says.
    ///
    /// Errors: as [`Amount::of`].
    pub fn seen(work: &Work, seen: Seen) -> Result<Amount, Error> {
        let whole = Amount::of(work)?;
        let Work::Function { name, operands, .. } = work else { return Ok(whole) };
        let ([q, k, v, ..], true) = (&operands[..], name.starts_with("attention")) else { return Ok(whole) };
        let ([batch, _, _, queries, _], [_, _, keys, _]) = (&q.shape[..], &k.shape[..]) else { return Ok(whole) };
        let unseen = part(bytes(&[k.clone(), v.clone()]), seen.keys, product([*batch, *keys]));
        let flops = part(whole.flops, seen.pairs, product([*batch, *queries, *keys]));
        Ok(Amount { read: whole.read - bytes(&[k.clone(), v.clone()]) + unseen, flops, ..whole })
    }

    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.read.saturating_add(self.written)
    }
}

/// `share` of `of` parts of an amount.
fn part(amount: u64, share: u64, of: u64) -> u64 {
    let exact = u128::from(amount) * u128::from(share.min(of)) / u128::from(of.max(1));
    u64::try_from(exact).unwrap_or(u64::MAX)
}

fn product(sizes: impl IntoIterator<Item = usize>) -> u64 {
    sizes.into_iter().fold(1u64, |n, s| n.saturating_mul(s as u64))
}

fn bytes(types: &[Type]) -> u64 {
    types.iter().fold(0u64, |n, t| n.saturating_add(t.bytes() as u64))
}

/// A nest: what its views touch, and its bodies at every point.
fn of_nest(n: &Nest) -> Amount {
    let axes: Vec<usize> = n.kept.iter().chain(&n.folded).copied().collect();
    let points = product(axes.iter().copied());
    if points == 0 {
        return Amount::default();
    }
    let starts = n.writes.iter().filter(|w| w.at.is_some()).count() as u64;
    let written = n.writes.iter().map(|w| touched(&n.kept, &w.strides) * w.dtype.bytes() as u64).sum();
    let folds = match n.fold {
        Some(Fold::Sum | Fold::Max) => u64::from(n.body.results.iter().any(|r| n.body.kind(*r) == Kind::Float)),
        Some(Fold::ArgMax) => 1,
        None => 0,
    };
    let body = points.saturating_mul(float_steps(&n.body) + folds);
    let epilogue = product(n.kept.iter().copied()).saturating_mul(float_steps(&n.epilogue));
    Amount { read: nest_reads(n, &axes) + 4 * starts, written, flops: body.saturating_add(epilogue) }
}

/// Scalar functions of floats in a body.
fn float_steps(body: &Body) -> u64 {
    body.steps.iter().filter(|s| matches!(s, Step::Apply { of: Kind::Float, .. })).count() as u64
}

/// Bytes read: views of one operand overlap at most as far as the part of it that they span.
fn nest_reads(n: &Nest, axes: &[usize]) -> u64 {
    let mut total = 0u64;
    let mut operands: Vec<usize> = n.reads.iter().map(|r| r.operand).collect();
    operands.sort_unstable();
    operands.dedup();
    for operand in operands {
        let views: Vec<&Read> = n.reads.iter().filter(|r| r.operand == operand).collect();
        let size = views.first().map_or(0, |r| r.dtype.bytes() as u64);
        let each: u64 = views.iter().map(|r| view_elements(r, axes)).fold(0, u64::saturating_add);
        let ends = views.iter().map(|r| r.offset as u64 + view_span(r, axes)).max().unwrap_or(0);
        let start = views.iter().map(|r| r.offset as u64).min().unwrap_or(0);
        total = total.saturating_add(each.min(ends - start).saturating_mul(size));
    }
    let mut ids: Vec<(usize, usize, &[usize])> =
        n.reads.iter().filter_map(|r| r.at.as_ref()).map(|a| (a.operand, a.offset, &a.strides[..])).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.iter().fold(total, |t, (_, _, strides)| t.saturating_add(touched(axes, strides) * 4))
}

/// Elements that a view reads; with an id, as many rows as there are ids, but no more than there are rows.
fn view_elements(r: &Read, axes: &[usize]) -> u64 {
    let row = touched(axes, &r.strides);
    match &r.at {
        None => row,
        Some(a) => {
            let moves = |(s, i): (&usize, &usize)| usize::from(*s != 0 || *i != 0);
            let either: Vec<usize> = r.strides.iter().zip(&a.strides).map(moves).collect();
            let drawn = axes.iter().zip(&either).filter(|(_, e)| **e == 1).map(|(n, _)| *n);
            product(drawn).min(row.saturating_mul(a.size as u64))
        }
    }
}

/// Elements from the first that a view may reach to the last.
fn view_span(r: &Read, axes: &[usize]) -> u64 {
    let rows = r.at.as_ref().map_or(0, |a| product([a.size.saturating_sub(1), a.stride]));
    span(axes, &r.strides).saturating_add(rows)
}

/// Distinct places of an affine view: steps along axes that move, but no more than the view spans.
fn touched(axes: &[usize], strides: &[usize]) -> u64 {
    let moving = axes.iter().zip(strides).filter(|(_, s)| **s != 0).map(|(n, _)| *n);
    product(moving).min(span(axes, strides))
}

fn span(axes: &[usize], strides: &[usize]) -> u64 {
    let reach = |(n, s): (&usize, &usize)| product([n.saturating_sub(1), *s]);
    axes.iter().zip(strides).map(reach).fold(1, u64::saturating_add)
}

/// FLOPs of a library function, from its own text. Floats count as f32: weights may lie packed beside wider activations, and
/// no count depends on it.
fn function_flops(work: &Work) -> Result<u64, Error> {
    let Work::Function { name, binds, operands, .. } = work else { return Ok(0) };
    let scope = Scope::new(&[omchat_ir::library::file()?]);
    let mut module = Module::default();
    let wide = |d: Dtype| if d.is_float() { Dtype::F32 } else { d };
    let types: Vec<Option<Type>> = operands.iter().map(|t| Some(Type::new(wide(t.dtype), t.shape.clone()))).collect();
    let bind = |b: &Bind| if let Bind::Dtype(d) = b { Bind::Dtype(wide(*d)) } else { *b };
    let binds = binds.iter().map(|(letter, b)| (letter.clone(), bind(b))).collect();
    let f = scope.instantiate(&mut module, name, &binds, &types, 0)?;
    Ok(flops_of(&module, f))
}

/// FLOPs of a function of a module and of what it calls.
///
/// Einsums alone count where there are any.
pub fn flops_of(module: &Module, f: Func) -> u64 {
    let mut count = Count::default();
    count.add(module, module.function(f));
    if count.products > 0 { count.products } else { count.rest }
}

#[derive(Default)]
struct Count {
    products: u64,
    rest: u64,
}

impl Count {
    fn add(&mut self, module: &Module, f: &Function) {
        for node in &f.nodes {
            let types: Vec<&Type> = node.operands.iter().map(|v| f.ty(*v)).collect();
            match &node.action {
                Action::Call { callee, .. } => self.add(module, module.function(*callee)),
                Action::Op(Op::Einsum(e)) => {
                    let pairs = product(walked(&e.axes, &types));
                    self.products = self.products.saturating_add(pairs.saturating_mul(2));
                }
                Action::Op(op) => {
                    let result = node.results.first().map_or(0, |r| f.ty(*r).elements() as u64);
                    self.rest = self.rest.saturating_add(op_flops(op, &types, result));
                }
            }
        }
    }
}

/// Sizes of the distinct words of an einsum's operands.
fn walked(axes: &Axes, types: &[&Type]) -> Vec<usize> {
    let mut sizes = std::collections::BTreeMap::new();
    for (own, t) in axes.inputs.iter().zip(types) {
        sizes.extend(own.iter().flatten().zip(t.shape.iter().copied()));
    }
    sizes.into_values().collect()
}

fn op_flops(op: &Op, types: &[&Type], result: u64) -> u64 {
    let float = types.last().is_some_and(|t| t.dtype.is_float());
    match op {
        Op::Pointwise(_) | Op::AllReduce(_) | Op::ReduceScatter(_) if float => result,
        Op::Reduce(_) | Op::ArgMax(_) | Op::KthLargest(_) | Op::ScatterAdd(_) if float => {
            types.last().map_or(0, |t| t.elements() as u64)
        }
        _ => 0,
    }
}
