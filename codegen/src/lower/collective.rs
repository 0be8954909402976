//! Collectives to work in which ranks meet.

use super::{Lower, Lowered};
use crate::{Collective, Error, How, Work};
use omchat_ir::{Code, Fault, Node, Op};

/// The collective that an op asks for.
///
/// Errors: rings or parts that do not fit the number of ranks.
pub(super) fn lower(l: &Lower, node: &Node, op: &Op, ranks: usize) -> Result<Lowered, Error> {
    let how = match op {
        Op::CollectivePermute(p) => How::Permute { shift: p.shift, ring: ranks, reach: None },
        Op::AllReduce(r) => How::AllReduce { fold: r.fold },
        _ => return Err(Error::Invalid(Fault::new(Code::Rank, format!("{op:?} is no collective")).into())),
    };
    let x = l.f.ty(node.operands[0]);
    let work = Work::Collective(Collective { how, ranks, dtype: x.dtype, elements: x.elements() });
    Ok(Lowered::Work { pieces: vec![work], onto: None })
}
