//! What fusing and outlining read of an entry: who makes and reads each value, and what each node may do.

use omchat_ir::ops::{Cast, Rearrange};
use omchat_ir::{Action, Dtype, Function, Node, Op, Value};

/// What a node may do in fusion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Copied to its readers.
    Free,
    /// Joins groups.
    Point,
    /// Anchors a group.
    Fold,
    /// Becomes where a group writes, or stands alone.
    Concat,
    /// Becomes where a group writes, or stands alone.
    Update,
    /// Stands alone.
    Alone,
}

/// What grouping reads of the entry.
pub(super) struct Facts {
    /// What each node may do.
    pub kinds: Vec<Kind>,
    /// The node that defines each value; `None` for a parameter.
    pub maker: Vec<Option<usize>>,
    /// The nodes that read each value.
    pub users: Vec<Vec<usize>>,
    /// Whether each value is a result of the entry.
    pub result: Vec<bool>,
}

impl Facts {
    pub fn new(f: &Function) -> Facts {
        let mut maker = vec![None; f.values.len()];
        let mut users = vec![vec![]; f.values.len()];
        for (n, node) in f.nodes.iter().enumerate() {
            node.results.iter().for_each(|r| maker[r.0 as usize] = Some(n));
            for o in &node.operands {
                if users[o.0 as usize].last() != Some(&n) {
                    users[o.0 as usize].push(n);
                }
            }
        }
        let mut result = vec![false; f.values.len()];
        f.results.iter().for_each(|r| result[r.0 as usize] = true);
        Facts { kinds: f.nodes.iter().map(|n| kind(f, n)).collect(), maker, users, result }
    }

    /// Whether a value is made by a node that is copied to its readers.
    pub fn free(&self, v: Value) -> bool {
        self.maker[v.0 as usize].is_some_and(|n| self.kinds[n] == Kind::Free)
    }

    /// The values that must be in memory before `v` can be read: itself, or what its free makers read.
    pub fn bases(&self, f: &Function, v: Value, out: &mut Vec<Value>) {
        match self.maker[v.0 as usize] {
            Some(n) if self.kinds[n] == Kind::Free => f.nodes[n].operands.iter().for_each(|o| self.bases(f, *o, out)),
            _ => out.push(v),
        }
    }
}

fn kind(f: &Function, node: &Node) -> Kind {
    let Action::Op(op) = &node.action else { return Kind::Alone };
    match op {
        Op::Constant(_) | Op::Iota(_) | Op::Slice(_) => Kind::Free,
        Op::Cast(Cast { dtype: Dtype::F32 }) if f.ty(node.operands[0]).dtype.is_float() => Kind::Free,
        Op::Rearrange(r) if is_view(r) => Kind::Free,
        Op::Pointwise(_) | Op::Cast(_) | Op::Gather(_) => Kind::Point,
        Op::Reduce(_) | Op::ArgMax(_) | Op::Einsum(_) => Kind::Fold,
        Op::Concat(_) => Kind::Concat,
        Op::UpdateSlice(_) => Kind::Update,
        // A copy parts what is before it from what is after: no launch spans it.
        Op::Copy(_)
        | Op::Rearrange(_)
        | Op::KthLargest(_)
        | Op::ScatterAdd(_)
        | Op::CollectivePermute(_)
        | Op::AllReduce(_)
        | Op::AllGather(_)
        | Op::ReduceScatter(_) => Kind::Alone,
    }
}

/// Whether a rearrange merges nothing: then each of its axes is a stride of the operand.
fn is_view(r: &Rearrange) -> bool {
    r.axes.output.iter().all(|g| g.len() == 1)
}

/// Whether a rearrange neither merges nor splits nor repeats: its operand's axes in another order, without some of size 1.
pub(super) fn is_turn(f: &Function, node: &Node) -> bool {
    let Action::Op(Op::Rearrange(r)) = &node.action else { return false };
    let [x, y] = [node.operands[0], node.results[0]].map(|v| f.ty(v).elements());
    is_view(r) && r.axes.inputs[0].iter().all(|g| g.len() == 1) && x == y
}
