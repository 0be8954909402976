//! Collectives to work in which ranks meet.

use super::{Lower, Lowered};
use crate::body::{Body, Kind, Step};
use crate::nest::{Nest, Read, Write};
use crate::{Collective, Error, How, Work};
use omchat_ir::{Action, Code, Dtype, Fault, Module, Node, Op, Scalar};

/// The ranks that a module speaks of: its parts, else its largest ring, else 1. A run may have several rings.
pub fn ranks_of(module: &Module) -> usize {
    let nodes = module.functions.iter().flat_map(|f| &f.nodes);
    let said = nodes.filter_map(|n| match &n.action {
        Action::Op(Op::CollectivePermute(p)) => p.ring,
        Action::Op(Op::AllGather(g)) => Some(g.parts),
        Action::Op(Op::ReduceScatter(r)) => Some(r.parts),
        _ => None,
    });
    said.max().unwrap_or(1)
}

/// The collective that an op asks for; its operand on one rank.
///
/// Errors: rings or parts that do not fit the number of ranks.
pub(super) fn lower(l: &Lower, node: &Node, op: &Op, ranks: usize) -> Result<Lowered, Error> {
    let x = l.f.ty(node.operands[0]);
    let gated = node.operands.len() > 1;
    let how = match op {
        Op::CollectivePermute(p) => How::Permute { shift: p.shift, ring: p.ring.unwrap_or(ranks), gated },
        Op::AllReduce(r) => How::AllReduce { fold: r.fold },
        Op::AllGather(_) => How::AllGather,
        _ => How::ReduceScatter,
    };
    let fits = match op {
        Op::CollectivePermute(p) => p.ring.is_none_or(|ring| ring > 0 && ranks.is_multiple_of(ring)),
        Op::AllGather(g) => g.parts == ranks,
        Op::ReduceScatter(r) => r.parts == ranks,
        _ => true,
    };
    if !fits {
        let what = format!("`{}` in a program of {ranks} ranks", op.write().0);
        return Err(Error::Invalid(Fault::new(Code::Rank, what).help("run as many ranks as it was built for").into()));
    }
    let piece = match (ranks, gated) {
        (1, false) => return Ok(Lowered::Alias),
        (1, true) => own(x.dtype, x.elements(), node),
        _ => Work::Collective(Collective { how, ranks, dtype: x.dtype, elements: x.elements() }),
    };
    Ok(Lowered::Work { pieces: vec![piece], onto: None })
}

/// What a rank sends itself: its operand, or zeros if it does not send.
fn own(dtype: Dtype, n: usize, node: &Node) -> Work {
    let [x, sends] = [node.operands[0].0 as usize, node.operands[1].0 as usize];
    let read = |operand, dtype, stride| Read { operand, dtype, offset: 0, strides: vec![stride], at: None };
    let mut body = Body::default();
    let held = body.push(Step::Read { read: 0, kind: Kind::of(dtype) });
    let sent = body.push(Step::Read { read: 1, kind: Kind::of(Dtype::Bool) });
    let zero = match Kind::of(dtype) {
        Kind::Float => body.push(Step::Float { bits: 0 }),
        _ => body.push(Step::Int { value: 0 }),
    };
    let y = body.push(Step::Apply { f: Scalar::Select, args: vec![sent, held, zero], of: Kind::of(dtype) });
    body.results = vec![y];
    Work::Nest(Nest {
        kept: vec![n],
        folded: vec![],
        fold: None,
        reads: vec![read(x, dtype, 1), read(sends, Dtype::Bool, 0)],
        body,
        epilogue: Body::default(),
        writes: vec![Write { result: 0, dtype, offset: 0, strides: vec![1], at: None }],
    })
}
