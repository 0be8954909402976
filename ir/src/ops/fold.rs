//! Ops that fold axes away.

use super::{Attrs, Cotangents, OpDef, Pointwise, Rearrange, arity, axes_of, each, want};
use crate::axes::{self, Axes, Sizes};
use crate::differentiate::{Emit, Local};
use crate::fault::{Code, Fault};
use crate::module::Value;
use crate::scalar::Scalar;
use crate::tensor::{Tensor, offsets, view};
use crate::types::{Dtype, Type};

/// How `reduce` and `all_reduce` combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FoldKind {
    /// Sum; 0 over nothing.
    Sum,
    /// Largest; −1e30 over nothing.
    Max,
}

impl FoldKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            FoldKind::Sum => "sum",
            FoldKind::Max => "max",
        }
    }

    pub(super) fn read(mnemonic: &str, attrs: &mut Attrs) -> Result<FoldKind, Fault> {
        match attrs.suffix.take().as_deref() {
            Some("sum") => Ok(FoldKind::Sum),
            Some("max") => Ok(FoldKind::Max),
            other => Err(Fault::new(Code::Attribute, format!("`{mnemonic}.{}` is no fold", other.unwrap_or("")))
                .help(format!("write `{mnemonic}.sum` or `{mnemonic}.max`"))),
        }
    }

    /// The fold over nothing.
    pub fn unit(self) -> f64 {
        match self {
            FoldKind::Sum => 0.0,
            FoldKind::Max => -1e30,
        }
    }

    /// The fold of values of that dtype; sums of integers wrap, as `add` does.
    pub fn of(self, dtype: Dtype, values: impl Iterator<Item = f64>) -> f64 {
        values.fold(self.unit(), |a, b| match self {
            FoldKind::Sum if dtype == Dtype::I32 => f64::from((a as i32).wrapping_add(b as i32)),
            FoldKind::Sum => a + b,
            FoldKind::Max => a.max(b),
        })
    }
}

/// Words of a one-operand op: its own, the result's, and the folded ones in the operand's order.
type Words<'a> = (Vec<&'a str>, Vec<&'a str>, Vec<&'a str>);

fn words(axes: &Axes) -> Result<Words<'_>, Fault> {
    axes.operands(1)?;
    let own = Axes::flat(&axes.inputs[0])?;
    let out = Axes::flat(&axes.output)?;
    let folded = own.iter().copied().filter(|w| !out.contains(w)).collect();
    Ok((own, out, folded))
}

fn result_shape(axes: &Axes, x: &Type) -> Result<Vec<usize>, Fault> {
    let (own, out, _) = words(axes)?;
    let mut sizes = Sizes::new();
    axes::bind(&mut sizes, &own, &x.shape)?;
    axes::shape(&sizes, &out)
}

/// Offsets of the kept points, and of the folded points, in the operand.
fn walk(axes: &Axes, x: &Type) -> (Vec<usize>, Vec<usize>) {
    let Ok((own, out, folded)) = words(axes) else { return (vec![], vec![]) };
    let mut sizes = Sizes::new();
    if axes::bind(&mut sizes, &own, &x.shape).is_err() {
        return (vec![], vec![]);
    }
    let at = |w: &[&str]| {
        let shape: Vec<usize> = w.iter().map(|w| sizes.get(*w).copied().unwrap_or(1)).collect();
        offsets(&shape, &view(w, &own, &x.strides()))
    };
    (at(&out), at(&folded))
}

/// A folded value at every point that was folded into it.
fn spread(e: &mut Emit, axes: &Axes, x: &Type, dy: Local) -> Result<Local, Fault> {
    let (own, out, _) = words(axes)?;
    let missing = own.iter().zip(&x.shape).filter(|(w, _)| !out.contains(w));
    let sizes = missing.map(|(w, n)| ((*w).to_string(), *n)).collect();
    e.op("spread", Rearrange { axes: axes_of(&[&axes.output], &axes.inputs[0]), sizes }, &[dy])
}

/// The cotangent in equal parts to the points that are as large as the value picked.
fn share(e: &mut Emit, axes: &Axes, x: Value, y: Value, dy: Local) -> Result<Local, Fault> {
    let (own, out) = (&axes.inputs[0], &axes.output);
    let (x, y) = (e.primal(x), e.primal(y));
    let dtype = e.ty(dy).dtype;
    let point = |f, b: &[axes::Group]| Pointwise { f, axes: Some(axes_of(&[own, b], own)) };
    let hit = e.op("hit", point(Scalar::Eq, out), &[x, y])?;
    let one = e.cast(hit, dtype)?;
    let count = e.op("count", Reduce { fold: FoldKind::Sum, axes: axes_of(&[own], out) }, &[one])?;
    let part = e.op("part", Pointwise::plain(Scalar::Div), &[dy, count])?;
    e.op("share", point(Scalar::Mul, out), &[one, part])
}

/// `%y = reduce.sum %x "b t d -> b t"` — folds the axes missing on the right.
///
/// Shapes: the result has the axes of the right side, in that order.
/// Numbers: accumulates in f32 or wider; sums of i32 wrap. A fold over nothing is 0, or −1e30 for `max`.
/// Errors: `axes` if the right side names an axis the left lacks.
/// Source: einops `reduce`; StableHLO `reduce`.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduce {
    /// How to combine.
    pub fold: FoldKind,
    /// Which axes stay.
    pub axes: Axes,
}

impl OpDef for Reduce {
    fn mnemonics() -> Vec<&'static str> {
        vec!["reduce"]
    }

    fn read(mnemonic: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(Reduce { fold: FoldKind::read(mnemonic, attrs)?, axes: attrs.take_axes()? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        (
            "reduce",
            Attrs { suffix: Some(self.fold.name().into()), axes: Some(self.axes.to_string()), ..Attrs::default() },
        )
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("reduce", x, 1)?;
        want("reduce", "the operand", &x[0], x[0].dtype != Dtype::Bool, "a number")?;
        Ok(Type::new(x[0].dtype, result_shape(&self.axes, &x[0])?))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |x| {
            let (kept, folded) = walk(&self.axes, &x[0].ty);
            let data = kept.iter().map(|k| self.fold.of(to.dtype, folded.iter().map(|f| x[0].data[k + f]))).collect();
            Tensor { ty: to.clone(), data }
        })
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], y: Value, dy: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        match self.fold {
            FoldKind::Sum => spread(e, &self.axes, e.primal_ty(x[0]), dy),
            FoldKind::Max => share(e, &self.axes, x[0], y, dy),
        }
        .map(|d| vec![Some(d)])
    }

    fn samples() -> Vec<String> {
        ["reduce.sum %x \"a b c -> a c\"", "reduce.max %x \"a b c -> c a\"", "reduce.sum %x \"a b c -> a b c\""]
            .iter()
            .zip(["f32[3, 4]", "f32[4, 3]", "f32[3, 5, 4]"])
            .map(|(s, t)| format!("func @f(%x: f32[3, 5, 4]) -> {t} {{ %y = {s} return %y }}"))
            .collect()
    }
}

/// `%y = arg_max %x "b v -> b"` — the index of the first largest along the folded axes.
///
/// Shapes: the result is i32 with the axes of the right side. Several folded axes count row-major.
/// Source: StableHLO has none; NumPy `argmax`.
#[derive(Clone, Debug, PartialEq)]
pub struct ArgMax {
    /// Which axes stay.
    pub axes: Axes,
}

impl OpDef for ArgMax {
    fn mnemonics() -> Vec<&'static str> {
        vec!["arg_max"]
    }

    fn read(_: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(ArgMax { axes: attrs.take_axes()? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        ("arg_max", Attrs { axes: Some(self.axes.to_string()), ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("arg_max", x, 1)?;
        want("arg_max", "the operand", &x[0], x[0].dtype != Dtype::Bool, "a number")?;
        Ok(Type::new(Dtype::I32, result_shape(&self.axes, &x[0])?))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |x| {
            let (kept, folded) = walk(&self.axes, &x[0].ty);
            let data = kept
                .iter()
                .map(|k| {
                    let mut best = 0;
                    for (i, f) in folded.iter().enumerate() {
                        if x[0].data[k + f] > x[0].data[k + folded[best]] {
                            best = i;
                        }
                    }
                    best as f64
                })
                .collect();
            Tensor { ty: to.clone(), data }
        })
    }

    fn vjp(&self, _: &mut Emit, _: &[Value], _: Value, _: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        Ok(vec![None])
    }

    fn samples() -> Vec<String> {
        vec!["func @f(%x: f32[3, 17]) -> i32[3] { %y = arg_max %x \"b v -> b\" return %y }".into()]
    }
}

/// `%y = kth_largest %x "b v -> b" k=5` — the k-th largest value along the last axis, ties counted.
///
/// Shapes: the operand's last axis is folded, the others stay in order. f32 only.
/// Errors: `attribute` unless 1 <= k <= the size of the last axis.
/// Source: NumPy `partition`; used as the bar of top-K token selection.
#[derive(Clone, Debug, PartialEq)]
pub struct KthLargest {
    /// Which axes stay: all but the last.
    pub axes: Axes,
    /// Which; 1 is the largest.
    pub k: usize,
}

impl OpDef for KthLargest {
    fn mnemonics() -> Vec<&'static str> {
        vec!["kth_largest"]
    }

    fn read(_: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(KthLargest { axes: attrs.take_axes()?, k: attrs.take("k")? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        (
            "kth_largest",
            Attrs { axes: Some(self.axes.to_string()), ints: vec![("k".into(), self.k as i64)], ..Attrs::default() },
        )
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("kth_largest", x, 1)?;
        want("kth_largest", "the operand", &x[0], x[0].dtype == Dtype::F32, "f32")?;
        let (own, out, folded) = words(&self.axes)?;
        if folded.len() != 1 || own.last() != folded.first() || own[..own.len() - 1] != out[..] {
            return Err(Fault::new(
                Code::Axes,
                format!("`kth_largest` folds the last axis and keeps the others in order, not \"{}\"", self.axes),
            ));
        }
        let width = x[0].shape.last().copied().unwrap_or(0);
        if self.k == 0 || self.k > width {
            return Err(Fault::new(Code::Attribute, format!("`k` is {}, the last axis has {width}", self.k))
                .help("1 <= k <= size of the last axis"));
        }
        Ok(Type::new(Dtype::F32, result_shape(&self.axes, &x[0])?))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |x| {
            let width = x[0].ty.shape.last().copied().unwrap_or(1).max(1);
            let data = x[0]
                .data
                .chunks(width)
                .map(|row| {
                    let mut row = row.to_vec();
                    row.sort_by(|a, b| b.total_cmp(a));
                    row.get(self.k - 1).copied().unwrap_or(0.0)
                })
                .collect();
            Tensor { ty: to.clone(), data }
        })
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], y: Value, dy: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        Ok(vec![Some(share(e, &self.axes, x[0], y, dy)?)])
    }

    fn samples() -> Vec<String> {
        vec![
            "func @f(%x: f32[3, 17]) -> f32[3] { %y = kth_largest %x \"b v -> b\" k=5 return %y }".into(),
            "func @f(%x: f32[33]) -> f32 { %y = kth_largest %x \"v ->\" k=33 return %y }".into(),
        ]
    }
}
