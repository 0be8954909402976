//! The only two ops that cross ranks.

use super::fold::FoldKind;
use super::{Attrs, Cotangents, OpDef, Pointwise, arity, want};
use crate::differentiate::{Emit, Local};
use crate::fault::Fault;
use crate::module::Value;
use crate::scalar::Scalar;
use crate::tensor::Tensor;
use crate::types::{Dtype, Type};

/// `%y = collective_permute %x shift=1` — what rank r − shift holds, the ranks in a ring.
///
/// Shapes: as the operand. Every rank sends to rank + shift.
/// Source: StableHLO `collective_permute`.
#[derive(Clone, Debug, PartialEq)]
pub struct CollectivePermute {
    /// How far to the right each rank sends.
    pub shift: i64,
}

impl OpDef for CollectivePermute {
    fn mnemonics() -> Vec<&'static str> {
        vec!["collective_permute"]
    }

    fn read(_: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(CollectivePermute { shift: attrs.take_signed("shift")? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        ("collective_permute", Attrs { ints: vec![("shift".into(), self.shift)], ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("collective_permute", x, 1)?;
        Ok(x[0].clone())
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], _: &Type) -> Vec<Tensor> {
        let n = ranks.len() as i64;
        (0..n).map(|r| ranks[(r - self.shift).rem_euclid(n) as usize][0].clone()).collect()
    }

    fn vjp(&self, e: &mut Emit, _: &[Value], _: Value, dy: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        Ok(vec![Some(e.op("back", CollectivePermute { shift: -self.shift }, &[dy])?)])
    }

    fn samples() -> Vec<String> {
        vec!["func @f(%x: f32[5]) -> f32[5] { %y = collective_permute %x shift=1 return %y }".into()]
    }
}

/// `%y = all_reduce.sum %x` — the fold of all ranks' operands, on every rank.
///
/// Numbers: folds in rank order, so that a run repeats bit for bit.
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
        let data: Vec<f64> =
            (0..n).map(|i| ranks.iter().fold(self.fold.unit(), |a, x| self.fold.join(a, x[0].data[i]))).collect();
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
