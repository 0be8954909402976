//! The contraction.

use super::{Attrs, Cotangents, OpDef, Rearrange, arity, axes_of, each, want};
use crate::axes::{self, Axes, Sizes};
use crate::differentiate::{Emit, Local};
use crate::fault::{Code, Fault};
use crate::module::Value;
use crate::tensor::{Tensor, offsets, view};
use crate::types::{Dtype, Type};

/// `%y = einsum.f32 %a, %b "b t c, o c -> b t o"` — products summed over the axes missing on the right.
///
/// Shapes: the result has the axes of the right side, in that order. Two operands of one dtype.
/// Numbers: accumulates in f32 or wider, then rounds to the dtype of the suffix.
/// Errors: `axes` if the right side names an axis that no operand has; `dim` if sizes disagree.
/// Source: NumPy `einsum`; StableHLO `dot_general`.
#[derive(Clone, Debug, PartialEq)]
pub struct Einsum {
    /// The dtype of the result.
    pub dtype: Dtype,
    /// Which axes pair and which stay.
    pub axes: Axes,
}

impl Einsum {
    /// The result's words, and the folded words in the order of first appearance.
    pub fn words(&self) -> Result<(Vec<&str>, Vec<&str>), Fault> {
        self.axes.operands(2)?;
        let out = Axes::flat(&self.axes.output)?;
        let mut folded: Vec<&str> = vec![];
        for own in &self.axes.inputs {
            for w in Axes::flat(own)? {
                if !out.contains(&w) && !folded.contains(&w) {
                    folded.push(w);
                }
            }
        }
        Ok((out, folded))
    }

    /// The size of each word.
    pub fn sizes(&self, x: &[&Type]) -> Result<Sizes, Fault> {
        let mut sizes = Sizes::new();
        for (t, own) in x.iter().zip(&self.axes.inputs) {
            axes::bind(&mut sizes, &Axes::flat(own)?, &t.shape)?;
        }
        Ok(sizes)
    }
}

impl OpDef for Einsum {
    fn mnemonics() -> Vec<&'static str> {
        vec!["einsum"]
    }

    fn read(mnemonic: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(Einsum { dtype: attrs.take_dtype(mnemonic)?, axes: attrs.take_axes()? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        (
            "einsum",
            Attrs { suffix: Some(self.dtype.to_string()), axes: Some(self.axes.to_string()), ..Attrs::default() },
        )
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("einsum", x, 2)?;
        for t in x {
            want("einsum", "an operand", t, t.dtype.is_float(), "a float")?;
        }
        if x[0].dtype != x[1].dtype {
            return Err(Fault::new(
                Code::Dtype,
                format!("`einsum` takes operands of one dtype, not {}, {}", x[0].dtype, x[1].dtype),
            )
            .help("`cast` one of them"));
        }
        if !self.dtype.is_float() {
            return Err(Fault::new(Code::Dtype, format!("`einsum.{}` has no float result", self.dtype)));
        }
        let (out, _) = self.words()?;
        let sizes = self.sizes(&x.iter().collect::<Vec<_>>())?;
        Ok(Type::new(self.dtype, axes::shape(&sizes, &out)?))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |x| {
            let data = self.contract(x, to).unwrap_or_default();
            Tensor { ty: to.clone(), data }
        })
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], _: Value, dy: Local, wanted: &[bool]) -> Result<Cotangents, Fault> {
        let [a, b] = [0, 1].map(|i| wanted[i].then(|| self.cotangent(e, x, dy, i)));
        Ok(vec![a.transpose()?, b.transpose()?])
    }

    fn samples() -> Vec<String> {
        [
            ("f32[3, 7], %b: f32[5, 7]", "t c, o c -> t o", "f32[3, 5]"),
            ("f32[2, 3, 4], %b: f32[2, 4, 5]", "b t s, b s d -> b t d", "f32[2, 3, 5]"),
            ("f32[2, 3, 2, 4], %b: f32[3, 2, 4, 6]", "t h g d, h g d c -> c t", "f32[6, 2]"),
            ("f32[6], %b: f32[4]", "a, b -> b a", "f32[4, 6]"),
            ("f32[6], %b: f32[6]", "a, a ->", "f32"),
        ]
        .iter()
        .map(|(p, a, t)| format!("func @f(%a: {p}) -> {t} {{ %y = einsum.f32 %a, %b \"{a}\" return %y }}"))
        .collect()
    }
}

impl Einsum {
    /// The cotangent of one operand: that of the result times the other operand, in the wider of their dtypes.
    fn cotangent(&self, e: &mut Emit, x: &[Value], dy: Local, i: usize) -> Result<Local, Fault> {
        let (own, other) = (&self.axes.inputs[i], &self.axes.inputs[1 - i]);
        let ty = e.primal_ty(x[i]);
        let rest = e.primal(x[1 - i]);
        let dtype = if e.ty(dy).dtype == e.ty(rest).dtype { e.ty(dy).dtype } else { Dtype::F32 };
        let (dy, rest) = (e.cast(dy, dtype)?, e.cast(rest, dtype)?);
        let told = |g: &axes::Group| self.axes.output.contains(g) || other.contains(g);
        let part: Vec<axes::Group> = own.iter().filter(|g| told(g)).cloned().collect();
        let axes = axes_of(&[&self.axes.output, other], &part);
        let d = e.op("t", Einsum { dtype: ty.dtype, axes }, &[dy, rest])?;
        if part.len() == own.len() {
            return Ok(d);
        }
        // An axis that only this operand has was summed: the cotangent is the same all along it.
        let alone = own.iter().zip(&ty.shape).filter(|(g, _)| !told(g));
        let sizes = alone.map(|(g, n)| (g.join(" "), *n)).collect();
        e.op("spread", Rearrange { axes: axes_of(&[&part], own), sizes }, &[d])
    }

    fn contract(&self, x: &[&Tensor], to: &Type) -> Result<Vec<f64>, Fault> {
        let (out, folded) = self.words()?;
        let sizes = self.sizes(&[&x[0].ty, &x[1].ty])?;
        let inner: Vec<usize> = folded.iter().map(|w| sizes[*w]).collect();
        let mut at = vec![];
        for (t, own) in x.iter().zip(&self.axes.inputs) {
            let own = Axes::flat(own)?;
            let s = t.ty.strides();
            at.push((offsets(&to.shape, &view(&out, &own, &s)), offsets(&inner, &view(&folded, &own, &s))));
        }
        let [(ak, af), (bk, bf)] = &at[..] else { return Ok(vec![]) };
        let (a, b) = (&x[0].data, &x[1].data);
        Ok((0..to.elements())
            .map(|i| {
                // Over nothing, the first element may lie outside an empty operand.
                let (a, b) = (a.get(ak[i]..).unwrap_or_default(), b.get(bk[i]..).unwrap_or_default());
                af.iter().zip(bf).fold(0.0, |sum, (&p, &q)| sum + a[p] * b[q])
            })
            .collect())
    }
}
