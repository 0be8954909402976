//! Scalar functions element by element, and casts.

use super::{Attrs, Cotangents, OpDef, arity, each};
use crate::axes::{self, Axes, Sizes};
use crate::differentiate::{Emit, Expr, Local, Site};
use crate::fault::{Code, Fault};
use crate::module::Value;
use crate::scalar::{Class, Scalar};
use crate::tensor::{Tensor, offsets, view};
use crate::types::{Dtype, Type};

/// `%y = add %x, %b "r c, c -> r c"` — a scalar function at every point of the result's axes.
///
/// Shapes: without axes, every operand is a scalar or has the shape of the others. With axes, an operand
/// repeats along the result's axes that it lacks; it may have no axis that the result lacks.
/// Numbers: the result is rounded to its dtype.
#[derive(Clone, Debug, PartialEq)]
pub struct Pointwise {
    /// The function.
    pub f: Scalar,
    /// How operands lie over the result.
    pub axes: Option<Axes>,
}

impl Pointwise {
    /// The function without axes.
    pub fn plain(f: Scalar) -> Pointwise {
        Pointwise { f, axes: None }
    }

    /// The strides of each operand over the result's axes; 0 where it repeats.
    pub fn views(&self, x: &[&Type]) -> Vec<Vec<usize>> {
        match &self.axes {
            None => {
                let rank = x.iter().map(|t| t.rank()).max().unwrap_or(0);
                x.iter().map(|t| if t.rank() == 0 { vec![0; rank] } else { t.strides() }).collect()
            }
            Some(a) => {
                let words = |g: &[axes::Group]| g.iter().map(|w| w.join(" ")).collect::<Vec<_>>();
                let out = words(&a.output);
                let out: Vec<&str> = out.iter().map(String::as_str).collect();
                x.iter()
                    .zip(&a.inputs)
                    .map(|(t, own)| {
                        let own = words(own);
                        let own: Vec<&str> = own.iter().map(String::as_str).collect();
                        view(&out, &own, &t.strides())
                    })
                    .collect()
            }
        }
    }

    fn shape(&self, x: &[Type]) -> Result<Vec<usize>, Fault> {
        let Some(a) = &self.axes else {
            let mut shape: &[usize] = &[];
            for t in x.iter().filter(|t| t.rank() > 0) {
                if !shape.is_empty() && shape != t.shape.as_slice() {
                    return Err(Fault::new(
                        Code::Dim,
                        format!("`{}` has operands of shapes {shape:?} and {:?}", self.f.name(), t.shape),
                    )
                    .help("give an axes string to repeat one along the other"));
                }
                shape = &t.shape;
            }
            return Ok(shape.to_vec());
        };
        a.operands(x.len())?;
        let mut sizes = Sizes::new();
        let out = Axes::flat(&a.output)?;
        for (t, own) in x.iter().zip(&a.inputs) {
            let own = Axes::flat(own)?;
            axes::bind(&mut sizes, &own, &t.shape)?;
            if let Some(w) = own.iter().find(|w| !out.contains(w)) {
                return Err(Fault::new(
                    Code::Axes,
                    format!("axis `{w}` of an operand is not in the result of `{}`", self.f.name()),
                )
                .help("a scalar function folds nothing: use `reduce` first"));
            }
        }
        axes::shape(&sizes, &out)
    }
}

impl OpDef for Pointwise {
    fn mnemonics() -> Vec<&'static str> {
        Scalar::ALL.iter().map(|s| s.name()).collect()
    }

    fn read(mnemonic: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        let f = Scalar::from_name(mnemonic)
            .ok_or_else(|| Fault::new(Code::Name, format!("there is no op `{mnemonic}`")))?;
        let axes = attrs.axes.take().map(|t| Axes::parse(&t)).transpose()?;
        Ok(Pointwise { f, axes })
    }

    fn write(&self) -> (&'static str, Attrs) {
        (self.f.name(), Attrs { axes: self.axes.as_ref().map(Axes::to_string), ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity(self.f.name(), x, self.f.arity())?;
        let dtypes: Vec<Dtype> = x.iter().map(|t| t.dtype).collect();
        let dtype = self.f.infer(&dtypes).map_err(|m| Fault::new(Code::Dtype, m).help("`cast` one of them"))?;
        Ok(Type::new(dtype, self.shape(x)?))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |x| {
            let types: Vec<&Type> = x.iter().map(|t| &t.ty).collect();
            let at: Vec<Vec<usize>> = self.views(&types).iter().map(|s| offsets(&to.shape, s)).collect();
            let int = x.last().is_some_and(|t| t.ty.dtype == Dtype::I32) && self.f.class() == Class::Number;
            let mut args = [0.0; 3];
            let data = (0..to.elements())
                .map(|i| {
                    for (k, t) in x.iter().enumerate() {
                        args[k] = t.data[at[k][i]];
                    }
                    let args = &args[..x.len()];
                    if int { self.f.value_i32(args) } else { self.f.value(args) }
                })
                .collect();
            Tensor { ty: to.clone(), data }
        })
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], y: Value, dy: Local, wanted: &[bool]) -> Result<Cotangents, Fault> {
        let site = Site { op: self, x, y, dy };
        let mut rows = self.f.cotangents();
        rows.resize(x.len(), Expr::from(0.0));
        let passes = self.f.cotangents().len() == x.len();
        let one = |(i, (expr, wanted)): (usize, (&Expr, &bool))| {
            (*wanted && passes).then(|| site.cotangent(e, i, expr)).transpose()
        };
        rows.iter().zip(wanted).enumerate().map(one).collect()
    }

    fn samples() -> Vec<String> {
        let mut out = vec![];
        for f in Scalar::ALL {
            let name = f.name();
            out.push(match f.class() {
                Class::Float | Class::Number if f.arity() == 1 => format!("func @f(%x: f32[3, 5]) -> f32[3, 5] {{ %y = {name} %x return %y }}"),
                Class::Float | Class::Number => format!("func @f(%x: f32[3, 5], %b: f32[5]) -> f32[3, 5] {{ %y = {name} %x, %b \"r c, c -> r c\" return %y }}"),
                Class::Compare => format!("func @f(%x: i32[4], %b: i32[3]) -> bool[3, 4] {{ %y = {name} %x, %b \"s, t -> t s\" return %y }}"),
                Class::Logic if f.arity() == 1 => format!("func @f(%x: bool[7]) -> bool[7] {{ %y = {name} %x return %y }}"),
                Class::Logic => format!("func @f(%x: bool[7], %b: bool[7]) -> bool[7] {{ %y = {name} %x, %b return %y }}"),
                Class::Select => format!("func @f(%c: bool[2, 3], %x: f32[2, 3]) -> f32[2, 3] {{ %y = {name} %c, %x, -1e30 return %y }}"),
            });
        }
        out.push("func @f(%x: i32[6], %b: i32[6]) -> i32[6] { %y = div %x, %b return %y }".into());
        out.push(
            "func @f(%x: i32[6], %b: i32[6]) -> i32[6] { %y = max %x, %b %z = sub %y, %b %w = mul %z, 3 return %w }"
                .into(),
        );
        out
    }
}

/// `%y = cast.bf16 %x` — the same numbers in another dtype.
///
/// Numbers: floats round to nearest even; a float becomes an integer by truncation; a number becomes a
/// truth value by `x != 0`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cast {
    /// The dtype of the result.
    pub dtype: Dtype,
}

impl OpDef for Cast {
    fn mnemonics() -> Vec<&'static str> {
        vec!["cast"]
    }

    fn read(mnemonic: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(Cast { dtype: attrs.take_dtype(mnemonic)? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        ("cast", Attrs { suffix: Some(self.dtype.to_string()), ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("cast", x, 1)?;
        Ok(Type::new(self.dtype, x[0].shape.clone()))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |x| {
            let t = Tensor { ty: to.clone(), data: x[0].data.clone() };
            if to.dtype.is_float() { t } else { t.rounded() }
        })
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], _: Value, dy: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        Ok(vec![Some(e.cast(dy, e.primal_ty(x[0]).dtype)?)])
    }

    fn samples() -> Vec<String> {
        ["bf16", "f16", "i32", "bool"]
            .iter()
            .map(|d| format!("func @f(%x: f32[3, 7]) -> f32[3, 7] {{ %h = cast.{d} %x %y = cast.f32 %h return %y }}"))
            .collect()
    }
}

/// `%y = copy %x` — the same tensor as another value, which no pass takes for `%x`.
///
/// It is the barrier of recomputation: what a `remat` backward computes again, it computes from copies. No pass
/// removes a copy, merges two, or lets one launch compute both sides of one; else the second computation would be
/// found equal to the first, and its values would stay in memory from forward to backward. It costs no launch
/// and no memory: a program reads the operand's buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy;

impl OpDef for Copy {
    fn mnemonics() -> Vec<&'static str> {
        vec!["copy"]
    }

    fn read(_: &str, _: &mut Attrs) -> Result<Self, Fault> {
        Ok(Copy)
    }

    fn write(&self) -> (&'static str, Attrs) {
        ("copy", Attrs::default())
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("copy", x, 1)?;
        Ok(x[0].clone())
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], _: &Type) -> Vec<Tensor> {
        each(ranks, |x| x[0].clone())
    }

    fn vjp(&self, _: &mut Emit, _: &[Value], _: Value, dy: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        Ok(vec![Some(dy)])
    }

    fn samples() -> Vec<String> {
        vec!["func @f(%x: f32[11]) -> f32[11] { %y = copy %x return %y }".into()]
    }
}
