//! Ops without operands.

use super::{Attrs, Cotangents, OpDef, arity, each};
use crate::differentiate::{Emit, Local};
use crate::fault::{Code, Fault};
use crate::module::Value;
use crate::tensor::Tensor;
use crate::types::{Dtype, Type};

/// `%y = constant.f32 0.5` — a scalar.
///
/// Numbers: the value is rounded to its dtype and must stay finite. `dim.f32 D` is the constant that a letter stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Its dtype.
    pub dtype: Dtype,
    /// Its value.
    pub value: f64,
}

impl OpDef for Constant {
    fn mnemonics() -> Vec<&'static str> {
        vec!["constant"]
    }

    fn read(mnemonic: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        let value = attrs
            .number
            .take()
            .ok_or_else(|| Fault::new(Code::Attribute, "`constant` has no number").help("write `constant.f32 0.5`"))?;
        Ok(Constant { dtype: attrs.take_dtype(mnemonic)?, value })
    }

    fn write(&self) -> (&'static str, Attrs) {
        ("constant", Attrs { suffix: Some(self.dtype.to_string()), number: Some(self.value), ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("constant", x, 0)?;
        let held = self.dtype.round(self.value);
        let whole = matches!(self.dtype, Dtype::I32 | Dtype::Bool);
        if !held.is_finite() || (whole && held != self.value) {
            return Err(Fault::new(
                Code::Attribute,
                format!("{} is not a number of {}", crate::text::number(self.value), self.dtype),
            )
            .help("a constant must be finite in its dtype, and whole as an i32; a bool is 0 or 1"));
        }
        Ok(Type::new(self.dtype, []))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |_| Tensor::full(to.clone(), self.value))
    }

    fn vjp(&self, _: &mut Emit, _: &[Value], _: Value, _: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        Ok(vec![])
    }

    fn samples() -> Vec<String> {
        vec!["func @f(%x: f32[3]) -> f32[3] { %c = constant.f32 0.5 %y = mul %x, %c return %y }".into()]
    }
}

/// `%y = iota T` — 0, 1, … T−1 as i32.
///
/// Shapes: the result is i32[T].
#[derive(Clone, Debug, PartialEq)]
pub struct Iota {
    /// How many.
    pub size: usize,
}

impl OpDef for Iota {
    fn mnemonics() -> Vec<&'static str> {
        vec!["iota"]
    }

    fn read(_: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        match attrs.number.take() {
            Some(n) if n >= 0.0 && n.fract() == 0.0 && n <= f64::from(i32::MAX) => Ok(Iota { size: n as usize }),
            Some(n) => Err(Fault::new(Code::Attribute, format!("`iota` needs a size from 0 to {}, not {n}", i32::MAX))),
            None => Err(Fault::new(Code::Attribute, "`iota` has no size").help("write `iota T`")),
        }
    }

    fn write(&self) -> (&'static str, Attrs) {
        ("iota", Attrs { number: Some(self.size as f64), ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("iota", x, 0)?;
        Ok(Type::new(Dtype::I32, [self.size]))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |_| Tensor { ty: to.clone(), data: (0..self.size).map(|i| i as f64).collect() })
    }

    fn vjp(&self, _: &mut Emit, _: &[Value], _: Value, _: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        Ok(vec![])
    }

    fn samples() -> Vec<String> {
        vec!["func @f(%x: i32[2, 5]) -> i32[2, 5] { %c = iota 5 %y = add %x, %c \"a b, b -> a b\" return %y }".into()]
    }
}
