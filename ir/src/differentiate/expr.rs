//! Cotangents of scalar functions, as expressions over their operands `x`, their result `r` and its cotangent `g`.

use super::emit::{Emit, Local, axis_words};
use crate::axes::{Axes, Group};
use crate::fault::Fault;
use crate::module::Value;
use crate::ops::FoldKind;
use crate::ops::{Constant, Pointwise, Rearrange, Reduce};
use crate::scalar::Scalar;
use std::collections::BTreeMap;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// An expression of a row of the table of scalar functions.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// An operand.
    Operand(usize),
    /// The result.
    Result,
    /// The result's cotangent.
    Cotangent,
    /// A number.
    Number(f64),
    /// A scalar function of expressions.
    Apply(Scalar, Vec<Expr>),
}

impl Expr {
    /// A function of one expression.
    pub fn of(f: Scalar, x: impl Into<Expr>) -> Expr {
        Expr::Apply(f, vec![x.into()])
    }

    /// This where `x >= y`, else `other`.
    pub fn where_ge(&self, x: &Expr, y: impl Into<Expr>, other: impl Into<Expr>) -> Expr {
        self.select(&Expr::Apply(Scalar::Ge, vec![x.clone(), y.into()]), other)
    }

    /// This where the condition holds, else `other`.
    pub fn select(&self, condition: &Expr, other: impl Into<Expr>) -> Expr {
        Expr::Apply(Scalar::Select, vec![condition.clone(), self.clone(), other.into()])
    }

    /// `other` where the condition holds, else this.
    pub fn unless(&self, condition: &Expr, other: impl Into<Expr>) -> Expr {
        Expr::Apply(Scalar::Select, vec![condition.clone(), other.into(), self.clone()])
    }
}

impl From<f64> for Expr {
    fn from(x: f64) -> Expr {
        Expr::Number(x)
    }
}

impl From<&Expr> for Expr {
    fn from(x: &Expr) -> Expr {
        x.clone()
    }
}

macro_rules! binary {
    ($($trait:ident $method:ident),+) => {
        $(impl<T: Into<Expr>> $trait<T> for Expr {
            type Output = Expr;
            fn $method(self, y: T) -> Expr {
                Expr::Apply(Scalar::$trait, vec![self, y.into()])
            }
        }
        impl<T: Into<Expr>> $trait<T> for &Expr {
            type Output = Expr;
            fn $method(self, y: T) -> Expr {
                Expr::Apply(Scalar::$trait, vec![self.clone(), y.into()])
            }
        })+
    };
}
binary!(Add add, Sub sub, Mul mul, Div div);

impl Neg for Expr {
    type Output = Expr;
    fn neg(self) -> Expr {
        Expr::of(Scalar::Neg, self)
    }
}

impl Neg for &Expr {
    type Output = Expr;
    fn neg(self) -> Expr {
        Expr::of(Scalar::Neg, self)
    }
}

/// A value and the words of its axes.
type Term = (Local, Vec<String>);

/// One pointwise op, seen from its backward.
pub(crate) struct Site<'s> {
    pub(crate) op: &'s Pointwise,
    pub(crate) x: &'s [Value],
    pub(crate) y: Value,
    pub(crate) dy: Local,
}

impl Site<'_> {
    /// The cotangent of one operand: the expression at every point, summed over the axes that the operand lacks.
    pub(crate) fn cotangent(&self, e: &mut Emit, operand: usize, expr: &Expr) -> Result<Local, Fault> {
        let (full, own) = (self.result_words(e), self.operand_words(e, operand));
        let (value, words) = self.eval(e, expr, &full)?;
        if words == own {
            return Ok(value);
        }
        let axes = Axes { inputs: vec![groups(&words)], output: groups(&own) };
        if words.len() == own.len() {
            return e.op("turned", Rearrange { axes, sizes: BTreeMap::new() }, &[value]);
        }
        e.op("sum", Reduce { fold: FoldKind::Sum, axes }, &[value])
    }

    fn result_words(&self, e: &Emit) -> Vec<String> {
        match &self.op.axes {
            Some(a) => flat(&a.output),
            None => flat(&axis_words(e.primal_ty(self.y).rank())),
        }
    }

    fn operand_words(&self, e: &Emit, i: usize) -> Vec<String> {
        match &self.op.axes {
            Some(a) => flat(&a.inputs[i]),
            None => flat(&axis_words(e.primal_ty(self.x[i]).rank())),
        }
    }

    fn eval(&self, e: &mut Emit, expr: &Expr, full: &[String]) -> Result<Term, Fault> {
        Ok(match expr {
            Expr::Operand(i) => (e.primal(self.x[*i]), self.operand_words(e, *i)),
            Expr::Result => (e.primal(self.y), full.to_vec()),
            Expr::Cotangent => (self.dy, full.to_vec()),
            Expr::Number(value) => {
                let dtype = e.ty(self.dy).dtype;
                (e.op("c", Constant { dtype, value: *value }, &[])?, vec![])
            }
            Expr::Apply(f, args) => {
                let terms = args.iter().map(|a| self.eval(e, a, full)).collect::<Result<Vec<_>, _>>()?;
                apply(e, *f, &terms, full)?
            }
        })
    }
}

/// A scalar function of terms over the axes that any of them has, in the result's order.
fn apply(e: &mut Emit, f: Scalar, terms: &[Term], full: &[String]) -> Result<Term, Fault> {
    let words: Vec<String> = full.iter().filter(|w| terms.iter().any(|t| t.1.contains(w))).cloned().collect();
    let plain = terms.iter().all(|t| t.1 == words || t.1.is_empty());
    let axes = (!plain).then(|| Axes { inputs: terms.iter().map(|t| groups(&t.1)).collect(), output: groups(&words) });
    let locals: Vec<Local> = terms.iter().map(|t| t.0).collect();
    Ok((e.op("t", Pointwise { f, axes }, &locals)?, words))
}

fn flat(groups: &[Group]) -> Vec<String> {
    groups.iter().flatten().cloned().collect()
}

fn groups(words: &[String]) -> Vec<Group> {
    words.iter().map(|w| vec![w.clone()]).collect()
}
