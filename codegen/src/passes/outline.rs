//! Fusion: nodes form groups, and each group becomes a function; the entry is left with calls only.
//!
//! A group has at most one anchor (a fold). In short: (1) a pointwise node joins the group of an operand that it
//! reads element by element; (2) a fold takes in the pointwise group that feeds nothing else; (3) constants,
//! slices, transposes and widening casts are copied to their readers, where they cost strides only; (4) a
//! concatenation of one group's results becomes where that group writes; (5) everything else stands alone.

mod emit;
mod group;

use super::{Context, Unit};
use crate::Error;
use group::{Groups, Kind};
use omchat_ir::ops::{Cast, Rearrange};
use omchat_ir::{Action, Dtype, Function, Node, Op, Value};

pub(super) fn run(unit: Unit, context: &Context) -> Result<Unit, Error> {
    let f = unit.module.function(unit.entry);
    let facts = Facts::new(f);
    // Two bindings are taken: a launch's own sizes and strides, and the lengths that CubeCL adds.
    let mut groups = Groups::new(f, &facts, context.target.max_bindings.saturating_sub(2).max(2));
    for (n, node) in f.nodes.iter().enumerate() {
        match facts.kinds[n] {
            Kind::Free => {}
            Kind::Point => groups.place_point(n, node),
            Kind::Fold => groups.place_fold(n, node),
            Kind::Concat => groups.place_concat(n, node),
            Kind::Alone => groups.place_alone(n),
        }
    }
    let order = groups.ordered();
    Ok(emit::emit(&unit, &facts, &order))
}

/// What grouping reads of the entry.
struct Facts {
    /// What each node may do.
    kinds: Vec<Kind>,
    /// The node that defines each value; `None` for a parameter.
    maker: Vec<Option<usize>>,
    /// The nodes that read each value.
    users: Vec<Vec<usize>>,
    /// Whether each value is a result of the entry.
    result: Vec<bool>,
}

impl Facts {
    fn new(f: &Function) -> Facts {
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
    fn free(&self, v: Value) -> bool {
        self.maker[v.0 as usize].is_some_and(|n| self.kinds[n] == Kind::Free)
    }

    /// The values that must be in memory before `v` can be read: itself, or what its free makers read.
    fn bases(&self, f: &Function, v: Value, out: &mut Vec<Value>) {
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
        Op::Pointwise(_) | Op::Cast(_) | Op::Gather(_) | Op::Copy(_) => Kind::Point,
        Op::Reduce(_) | Op::ArgMax(_) | Op::Einsum(_) => Kind::Fold,
        Op::Concat(_) => Kind::Concat,
        Op::Rearrange(_)
        | Op::KthLargest(_)
        | Op::ScatterAdd(_)
        | Op::UpdateSlice(_)
        | Op::CollectivePermute(_)
        | Op::AllReduce(_) => Kind::Alone,
    }
}

/// Whether a rearrange merges nothing: then each of its axes is a stride of the operand.
fn is_view(r: &Rearrange) -> bool {
    r.axes.output.iter().all(|g| g.len() == 1)
}
