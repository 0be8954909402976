//! The only ops that cross ranks.

use super::fold::FoldKind;
use super::{Attrs, Cotangents, Op, OpDef, Pointwise, arity, axes_of, want};
use crate::differentiate::{Emit, Local};
use crate::fault::{Code, Fault, count};
use crate::module::Value;
use crate::scalar::Scalar;
use crate::tensor::Tensor;
use crate::types::{Dtype, Type};

impl Op {
    /// Whether the op has a meaning on that many ranks.
    ///
    /// Errors: `Rank` if rings do not divide the ranks, or parts are for another number of them.
    pub fn on_ranks(&self, ranks: usize) -> Result<(), Fault> {
        let (what, have, fits) = match self {
            Op::CollectivePermute(CollectivePermute { ring: Some(n), .. }) => ("ring", *n, ranks.is_multiple_of(*n)),
            Op::AllGather(AllGather { parts: n }) | Op::ReduceScatter(ReduceScatter { parts: n }) => {
                ("parts", *n, ranks == *n)
            }
            _ => return Ok(()),
        };
        if fits {
            return Ok(());
        }
        let mnemonic = self.write().0;
        Err(Fault::new(Code::Rank, format!("`{mnemonic}` has {what}={have}, it runs on {}", count(ranks, "rank")))
            .help(if what == "ring" { "run on a multiple of `ring` ranks" } else { "run on as many ranks as `parts`" }))
    }
}

/// `%y = collective_permute %x shift=1 ring=4` — what rank r − shift holds, each `ring` ranks in a ring.
///
/// Shapes: as the operand. Every rank sends to rank + shift, round its ring: rank r is in ring r / `ring`, with the
/// ranks before and after it. Without `ring` all ranks are one ring. A second operand, `%sends: bool`, says whether
/// this rank sends at all: whom it would have sent to gets zeros.
/// Errors: `rank` where `ring` does not divide the number of ranks.
/// Source: StableHLO `collective_permute`.
#[derive(Clone, Debug, PartialEq)]
pub struct CollectivePermute {
    /// How far to the right each rank sends.
    pub shift: i64,
    /// Ranks of a ring; all ranks where it is not said.
    pub ring: Option<usize>,
}

impl CollectivePermute {
    /// Whom a rank receives from, of that many ranks.
    pub fn source(&self, rank: usize, ranks: usize) -> usize {
        let ring = self.ring.unwrap_or(ranks).max(1);
        let first = rank / ring * ring;
        first + ((rank - first) as i64 - self.shift % ring as i64).rem_euclid(ring as i64) as usize
    }
}

impl OpDef for CollectivePermute {
    fn mnemonics() -> Vec<&'static str> {
        vec!["collective_permute"]
    }

    fn read(_: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        let shift = attrs.take_signed("shift")?;
        let ring = if attrs.has("ring") { Some(attrs.take("ring")?) } else { None };
        Ok(CollectivePermute { shift, ring })
    }

    fn write(&self) -> (&'static str, Attrs) {
        let ring = self.ring.map(|n| ("ring".to_string(), n as i64));
        let ints = [("shift".to_string(), self.shift)].into_iter().chain(ring).collect();
        ("collective_permute", Attrs { ints, ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        if x.len() != 2 {
            arity("collective_permute", x, 1)?;
        }
        if let Some(sends) = x.get(1) {
            want("collective_permute", "whether a rank sends", sends, *sends == Type::new(Dtype::Bool, []), "a bool")?;
        }
        one_or_more("ring", self.ring.unwrap_or(1))?;
        Ok(x[0].clone())
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        let receive = |r: usize| match ranks[self.source(r, ranks.len())][..] {
            [_, sends] if sends.data[0] == 0.0 => Tensor::full(to.clone(), 0.0),
            ref x => x[0].clone(),
        };
        (0..ranks.len()).map(receive).collect()
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], _: Value, dy: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        let back = e.op("back", CollectivePermute { shift: -self.shift, ring: self.ring }, &[dy])?;
        let Some(sends) = x.get(1) else { return Ok(vec![Some(back)]) };
        // Zeros were received of a rank that did not send: nothing of them is its own.
        let (sends, ty) = (e.primal(*sends), e.ty(back).clone());
        let none = e.splat(0.0, &ty)?;
        let words = crate::differentiate::axis_words(ty.rank());
        let axes = (ty.rank() > 0).then(|| axes_of(&[&[], &words, &words], &words));
        let own = e.op("own", Pointwise { f: Scalar::Select, axes }, &[sends, back, none])?;
        Ok(vec![Some(own), None])
    }

    fn samples() -> Vec<String> {
        vec![
            "func @f(%x: f32[5]) -> f32[5] { %y = collective_permute %x shift=1 return %y }".into(),
            "func @f(%x: f32[2, 3]) -> f32[2, 3] { %y = collective_permute %x shift=-2 ring=1 return %y }".into(),
        ]
    }
}

/// `%y = all_reduce.sum %x` — the fold of all ranks' operands, on every rank.
///
/// Numbers: folds in rank order, so that a run repeats bit for bit; sums of i32 wrap.
/// Source: StableHLO `all_reduce`.
#[derive(Clone, Debug, PartialEq)]
pub struct AllReduce {
    /// How to combine.
    pub fold: FoldKind,
}

impl OpDef for AllReduce {
    fn mnemonics() -> Vec<&'static str> {
        vec!["all_reduce"]
    }

    fn read(mnemonic: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(AllReduce { fold: FoldKind::read(mnemonic, attrs)? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        ("all_reduce", Attrs { suffix: Some(self.fold.name().into()), ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("all_reduce", x, 1)?;
        want("all_reduce", "the operand", &x[0], x[0].dtype != Dtype::Bool, "a number")?;
        Ok(x[0].clone())
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        let n = to.elements();
        let data: Vec<f64> = (0..n).map(|i| self.fold.of(to.dtype, ranks.iter().map(|x| x[0].data[i]))).collect();
        ranks.iter().map(|_| Tensor { ty: to.clone(), data: data.clone() }).collect()
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], y: Value, dy: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        let total = e.op("total", AllReduce { fold: FoldKind::Sum }, &[dy])?;
        if self.fold == FoldKind::Sum {
            return Ok(vec![Some(total)]);
        }
        // In equal parts to the ranks that hold the largest.
        let (x, y) = (e.primal(x[0]), e.primal(y));
        let hit = e.op("hit", Pointwise::plain(Scalar::Eq), &[x, y])?;
        let one = e.cast(hit, e.ty(dy).dtype)?;
        let count = e.op("count", AllReduce { fold: FoldKind::Sum }, &[one])?;
        let part = e.op("part", Pointwise::plain(Scalar::Div), &[total, count])?;
        Ok(vec![Some(e.op("share", Pointwise::plain(Scalar::Mul), &[one, part])?)])
    }

    fn samples() -> Vec<String> {
        vec!["func @f(%x: f32[5]) -> f32[5] { %y = all_reduce.sum %x return %y }".into()]
    }
}

/// `%y = all_gather %x parts=4` — what all ranks hold, one after another.
///
/// Shapes: E[N] to E[parts N], rank order along the only axis; `parts` is the number of ranks.
/// Errors: `rank` on another number of ranks than `parts`.
/// Source: StableHLO `all_gather`.
#[derive(Clone, Debug, PartialEq)]
pub struct AllGather {
    /// How many ranks there are.
    pub parts: usize,
}

impl OpDef for AllGather {
    fn mnemonics() -> Vec<&'static str> {
        vec!["all_gather"]
    }

    fn read(_: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(AllGather { parts: attrs.take("parts")? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        ("all_gather", Attrs { ints: vec![("parts".into(), self.parts as i64)], ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        let own = row("all_gather", x, self.parts)?;
        let whole = Type::new(x[0].dtype, [own.saturating_mul(self.parts)]);
        if !whole.fits() {
            return Err(Fault::new(Code::Dim, format!("{} parts of {} are too large to address", self.parts, x[0])));
        }
        Ok(whole)
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        let data: Vec<f64> = ranks.iter().flat_map(|x| x[0].data.iter().copied()).collect();
        ranks.iter().map(|_| Tensor { ty: to.clone(), data: data.clone() }).collect()
    }

    fn vjp(&self, e: &mut Emit, _: &[Value], _: Value, dy: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        Ok(vec![Some(e.op("part", ReduceScatter { parts: self.parts }, &[dy])?)])
    }

    fn samples() -> Vec<String> {
        vec!["func @f(%x: f32[5]) -> f32[5] { %y = all_gather %x parts=1 return %y }".into()]
    }
}

/// `%y = reduce_scatter.sum %x parts=4` — this rank's part of the sum of all ranks' operands.
///
/// Shapes: E[parts N] to E[N]; rank r has elements r N to (r + 1) N of the sum; `parts` is the number of ranks.
/// Numbers: adds in rank order, in f32, and rounds once, so that a run repeats bit for bit.
/// Errors: `rank` on another number of ranks than `parts`.
/// Source: StableHLO `reduce_scatter`.
#[derive(Clone, Debug, PartialEq)]
pub struct ReduceScatter {
    /// How many ranks there are.
    pub parts: usize,
}

impl OpDef for ReduceScatter {
    fn mnemonics() -> Vec<&'static str> {
        vec!["reduce_scatter"]
    }

    fn read(mnemonic: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        match attrs.suffix.take().as_deref() {
            Some("sum") => Ok(ReduceScatter { parts: attrs.take("parts")? }),
            other => Err(Fault::new(Code::Attribute, format!("`{mnemonic}.{}` is no fold", other.unwrap_or("")))
                .help("write `reduce_scatter.sum`")),
        }
    }

    fn write(&self) -> (&'static str, Attrs) {
        let ints = vec![("parts".into(), self.parts as i64)];
        ("reduce_scatter", Attrs { suffix: Some("sum".into()), ints, ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        let whole = row("reduce_scatter", x, self.parts)?;
        want("reduce_scatter", "the operand", &x[0], x[0].dtype != Dtype::Bool, "a number")?;
        if !whole.is_multiple_of(self.parts) {
            return Err(Fault::new(Code::Dim, format!("{} is not {} equal parts", x[0], self.parts))
                .help("fill the operand up with zeros"));
        }
        Ok(Type::new(x[0].dtype, [whole / self.parts]))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        let n = to.elements();
        let sum = |i: usize| ranks.iter().fold(0.0, |a, x| a + x[0].data[i]);
        let part = |r: usize| Tensor { ty: to.clone(), data: (r * n..(r + 1) * n).map(sum).collect() };
        (0..ranks.len()).map(part).collect()
    }

    fn vjp(&self, e: &mut Emit, _: &[Value], _: Value, dy: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        Ok(vec![Some(e.op("whole", AllGather { parts: self.parts }, &[dy])?)])
    }

    fn samples() -> Vec<String> {
        vec!["func @f(%x: f32[5]) -> f32[5] { %y = reduce_scatter.sum %x parts=1 return %y }".into()]
    }
}

/// The size of the only axis of the only operand.
fn row(mnemonic: &str, x: &[Type], parts: usize) -> Result<usize, Fault> {
    arity(mnemonic, x, 1)?;
    one_or_more("parts", parts)?;
    let [n] = x[0].shape[..] else {
        return Err(Fault::new(Code::Dim, format!("the operand of `{mnemonic}` must have one axis, it is {}", x[0]))
            .help("flatten it with `rearrange`"));
    };
    Ok(n)
}

fn one_or_more(name: &str, n: usize) -> Result<(), Fault> {
    if n > 0 {
        return Ok(());
    }
    Err(Fault::new(Code::Attribute, format!("`{name}` is 0; it must be 1 or more")))
}
