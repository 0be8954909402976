//! Classes of work: one readable token for all work that the same schedule should serve.
//!
//! A class keeps what decides which schedule is fast and forgets the rest: the kind of work, sizes rounded up to powers
//! of two, dtypes, and of every view which axes repeat (`0`), run along memory (`1`) or step (`n`). An einsum of 200
//! rows and one of 256 are of one class, an einsum with transposed weights is of another. A recorded schedule is
//! taken only where the kernel still offers it, so a class may be coarse.

use crate::body::{Body, Kind, Step};
use crate::kernel::Work;
use crate::nest::{Fold, Nest};
use omchat_ir::{Dtype, Scalar, Type};

impl Work {
    /// The class, as `einsum:256x2048/1024:f32[n01],f32[0n1]->f32[n1]:1+0`: kept axes, folded axes, views of what is
    /// read and written, and the steps of the body and of the epilogue. No white space; equal work, equal class.
    pub fn class(&self) -> String {
        match self {
            Work::Nest(n) => nest(&n.clone().collapsed()),
            Work::Function { name, operands, results, .. } => {
                format!("{name}:{}->{}", list(operands, tensor), list(results, tensor))
            }
            Work::KthLargest { rows, width, k } => {
                format!("kth_largest:{}:{}", sizes(&[*rows, *width]), up(*k))
            }
            Work::ScatterAdd { dtype, height, width, tokens, .. } => {
                format!("scatter_add:{dtype}[{}]:{}", sizes(&[*height, *width]), up(*tokens))
            }
            Work::Prefetch { dtype, bytes } => format!("prefetch:{dtype}:{}", up(*bytes)),
            Work::Collective(c) => format!("{}:{}[{}]:{}", c.name(), c.dtype, up(c.elements), c.ranks),
        }
    }
}

fn nest(n: &Nest) -> String {
    let kind = match n.fold {
        None => "map",
        Some(Fold::Sum) if is_product(&n.body) => "einsum",
        Some(Fold::Sum) => "sum",
        Some(Fold::Max) => "max",
        Some(Fold::ArgMax) => "arg_max",
    };
    let axes = [&n.kept[..], &n.folded].concat();
    let folded = if n.fold.is_some() { format!("/{}", sizes(&n.folded)) } else { String::new() };
    let reads = list(&n.reads, |r| view(r.dtype, &axes, &r.strides, r.at.is_some()));
    let writes = list(&n.writes, |w| view(w.dtype, &n.kept, &w.strides, w.at.is_some()));
    format!("{kind}:{}{folded}:{reads}->{writes}:{}+{}", sizes(&n.kept), steps(&n.body), steps(&n.epilogue))
}

/// Whether a body multiplies two float reads and does nothing else.
pub(crate) fn is_product(body: &Body) -> bool {
    let [result] = body.results[..] else { return false };
    let Step::Apply { f: Scalar::Mul, args, of: Kind::Float } = &body.steps[result] else { return false };
    let reads = |s: &usize| matches!(body.steps[*s], Step::Read { kind: Kind::Float, .. });
    body.steps.len() == 3 && args.iter().all(reads)
}

/// Scalar functions that a body applies, rounded up.
fn steps(body: &Body) -> usize {
    let n = body.steps.iter().filter(|s| matches!(s, Step::Apply { .. })).count();
    if n == 0 { 0 } else { up(n) }
}

fn view(dtype: Dtype, axes: &[usize], strides: &[usize], addressed: bool) -> String {
    let kind = |(n, s): (&usize, &usize)| match (n, s) {
        (1, _) | (_, 0) => '0',
        (_, 1) => '1',
        _ => 'n',
    };
    let kinds: String = axes.iter().zip(strides).map(kind).collect();
    format!("{dtype}[{kinds}]{}", if addressed { "@" } else { "" })
}

fn tensor(t: &Type) -> String {
    format!("{}[{}]", t.dtype, sizes(&t.shape))
}

fn sizes(of: &[usize]) -> String {
    if of.is_empty() {
        return "1".into();
    }
    of.iter().map(|n| up(*n).to_string()).collect::<Vec<_>>().join("x")
}

fn up(n: usize) -> usize {
    n.checked_next_power_of_two().unwrap_or(usize::MAX)
}

fn list<T>(of: &[T], name: impl Fn(&T) -> String) -> String {
    of.iter().map(name).collect::<Vec<_>>().join(",")
}
