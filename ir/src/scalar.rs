//! Scalar functions: one row a function. A row is its name, its operands, its class, its value, where tests draw
//! operands, and the cotangents of its operands from its result `r` and the result's cotangent `g`.

use crate::differentiate::Expr;
use crate::types::Dtype;

/// Which dtypes a scalar function takes and yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Floats to the same float.
    Float,
    /// Floats or integers to the same dtype.
    Number,
    /// Two numbers of one dtype to a truth value.
    Compare,
    /// Truth values to a truth value.
    Logic,
    /// A truth value and two alike to the alike.
    Select,
}

macro_rules! pointwise {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal, $class:ident, |$($x:ident),+| $value:expr, $sample:expr,
        |$r:ident, $g:ident| [$($d:expr),*];)+) => {
        /// A function of scalars, applied element by element.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Scalar { $($(#[doc = $doc])* $variant,)+ }

        impl Scalar {
            /// Every scalar function, in the order of the documents.
            pub const ALL: &'static [Scalar] = &[$(Scalar::$variant,)+];

            /// The mnemonic in the text.
            pub fn name(self) -> &'static str {
                match self { $(Scalar::$variant => $name,)+ }
            }

            /// How many operands it takes.
            pub fn arity(self) -> usize {
                match self { $(Scalar::$variant => [$(stringify!($x)),+].len(),)+ }
            }

            /// Which dtypes it takes and yields.
            pub fn class(self) -> Class {
                match self { $(Scalar::$variant => Class::$class,)+ }
            }

            /// Its value. Truth values are 0 and 1. Missing operands count as 0.
            #[allow(unused_variables)]
            pub fn value(self, x: &[f64]) -> f64 {
                let mut it = x.iter().copied();
                match self { $(Scalar::$variant => { $(let $x = it.next().unwrap_or(0.0);)+ $value })+ }
            }

            /// The open range from which tests draw operands, where the function is smooth and finite.
            pub fn sample_range(self) -> (f64, f64) {
                match self { $(Scalar::$variant => $sample,)+ }
            }

            /// The cotangent of each operand; empty where none passes. A truth value takes none: its entry is not read.
            #[allow(unused_variables)]
            pub fn cotangents(self) -> Vec<Expr> {
                let (r, g) = (&Expr::Result, &Expr::Cotangent);
                let mut at = 0..;
                match self { $(Scalar::$variant => {
                    $(let $x = &Expr::Operand(at.next().unwrap_or(0));)+
                    let ($r, $g) = (r, g);
                    vec![$(Expr::from($d)),*]
                })+ }
            }

            /// What it yields, in one line.
            pub fn doc(self) -> &'static str {
                match self { $(Scalar::$variant => concat!($($doc),*),)+ }
            }
        }
    };
}

pointwise! {
    /// Sum.
    Add = "add", Number, |x, y| x + y, (-2.0, 2.0),
        |r, g| [g, g];
    /// Difference.
    Sub = "sub", Number, |x, y| x - y, (-2.0, 2.0),
        |r, g| [g, -g];
    /// Product.
    Mul = "mul", Number, |x, y| x * y, (-2.0, 2.0),
        |r, g| [g * y, g * x];
    /// Quotient; integers truncate towards zero and a zero divisor yields 0.
    Div = "div", Number, |x, y| x / y, (0.5, 2.0),
        |r, g| [g / y, -(g * r / y)];
    /// The larger of two.
    Max = "max", Number, |x, y| x.max(y), (-2.0, 2.0),
        |r, g| [g.where_ge(x, y, 0.0), Expr::from(0.0).where_ge(x, y, g)];
    /// The smaller of two.
    Min = "min", Number, |x, y| x.min(y), (-2.0, 2.0),
        |r, g| [g.where_ge(y, x, 0.0), Expr::from(0.0).where_ge(y, x, g)];
    /// The negative.
    Neg = "neg", Number, |x| -x, (-2.0, 2.0),
        |r, g| [-g];
    /// The distance from zero.
    Abs = "abs", Number, |x| x.abs(), (0.1, 2.0),
        |r, g| [g.where_ge(x, 0.0, -g)];
    /// e to the x.
    Exp = "exp", Float, |x| x.exp(), (-2.0, 2.0),
        |r, g| [g * r];
    /// The natural logarithm.
    Log = "log", Float, |x| x.ln(), (0.2, 3.0),
        |r, g| [g / x];
    /// The square root.
    Sqrt = "sqrt", Float, |x| x.sqrt(), (0.2, 3.0),
        |r, g| [g * 0.5 / r];
    /// One over the square root.
    Rsqrt = "rsqrt", Float, |x| 1.0 / x.sqrt(), (0.2, 3.0),
        |r, g| [g * -0.5 * r * r * r];
    /// The sine.
    Sin = "sin", Float, |x| x.sin(), (-2.0, 2.0),
        |r, g| [g * Expr::of(Scalar::Cos, x)];
    /// The cosine.
    Cos = "cos", Float, |x| x.cos(), (-2.0, 2.0),
        |r, g| [-(g * Expr::of(Scalar::Sin, x))];
    /// The hyperbolic tangent.
    Tanh = "tanh", Float, |x| x.tanh(), (-2.0, 2.0),
        |r, g| [g * (Expr::from(1.0) - r * r)];
    /// The error function.
    Erf = "erf", Float, |x| erf(x), (-2.0, 2.0),
        |r, g| [g * std::f64::consts::FRAC_2_SQRT_PI * Expr::of(Scalar::Exp, -(x * x))];
    /// 1 / (1 + e^-x).
    Logistic = "logistic", Float, |x| 1.0 / (1.0 + (-x).exp()), (-2.0, 2.0),
        |r, g| [g * r * (Expr::from(1.0) - r)];
    /// Whether x >= y.
    Ge = "ge", Compare, |x, y| f64::from(u8::from(x >= y)), (-2.0, 2.0),
        |r, g| [];
    /// Whether x > y.
    Gt = "gt", Compare, |x, y| f64::from(u8::from(x > y)), (-2.0, 2.0),
        |r, g| [];
    /// Whether x = y.
    Eq = "eq", Compare, |x, y| f64::from(u8::from(x == y)), (-2.0, 2.0),
        |r, g| [];
    /// Whether both.
    And = "and", Logic, |x, y| f64::from(u8::from(x != 0.0 && y != 0.0)), (-2.0, 2.0),
        |r, g| [];
    /// Whether not.
    Not = "not", Logic, |x| f64::from(u8::from(x == 0.0)), (-2.0, 2.0),
        |r, g| [];
    /// The second operand where the first holds, else the third.
    Select = "select", Select, |c, x, y| if c != 0.0 { x } else { y }, (-2.0, 2.0),
        |r, g| [0.0, g.select(c, 0.0), Expr::from(0.0).select(c, g)];
    /// The operand itself; no cotangent passes.
    StopGradient = "stop_gradient", Float, |x| x, (-2.0, 2.0),
        |r, g| [];
}

impl Scalar {
    /// The scalar function of that mnemonic, if there is one.
    pub fn from_name(name: &str) -> Option<Scalar> {
        Scalar::ALL.iter().copied().find(|s| s.name() == name)
    }

    /// The dtype it yields from operands of these dtypes.
    ///
    /// Errors: a message that names the operand dtypes and what would do.
    pub fn infer(self, x: &[Dtype]) -> Result<Dtype, String> {
        let alike = |d: &[Dtype]| d.windows(2).all(|w| w[0] == w[1]);
        let ok = match self.class() {
            Class::Float => alike(x) && x[0].is_float(),
            Class::Number | Class::Compare => alike(x) && x[0] != Dtype::Bool,
            Class::Logic => x.iter().all(|&d| d == Dtype::Bool),
            Class::Select => x[0] == Dtype::Bool && alike(&x[1..]),
        };
        let want = match self.class() {
            Class::Float => "operands of one float dtype",
            Class::Number | Class::Compare => "operands of one number dtype",
            Class::Logic => "bool operands",
            Class::Select => "bool, then two of one dtype",
        };
        if !ok {
            let have: Vec<_> = x.iter().map(|d| d.name()).collect();
            return Err(format!("`{}` takes {want}, not {}", self.name(), have.join(", ")));
        }
        Ok(match self.class() {
            Class::Compare | Class::Logic => Dtype::Bool,
            Class::Select => x[1],
            _ => x[0],
        })
    }

    /// Its value with integer rules: quotients truncate, a zero divisor yields 0, sums wrap.
    pub fn value_i32(self, x: &[f64]) -> f64 {
        let i = |k: usize| x.get(k).copied().unwrap_or(0.0) as i32;
        let v = match self {
            Scalar::Add => i(0).wrapping_add(i(1)),
            Scalar::Sub => i(0).wrapping_sub(i(1)),
            Scalar::Mul => i(0).wrapping_mul(i(1)),
            Scalar::Div => {
                if i(1) == 0 {
                    0
                } else {
                    i(0).wrapping_div(i(1))
                }
            }
            Scalar::Neg => i(0).wrapping_neg(),
            Scalar::Abs => i(0).wrapping_abs(),
            _ => return self.value(x),
        };
        f64::from(v)
    }
}

/// The error function in double precision, within 1.2e-16 relative of the exact value near zero.
///
/// Source: series for |x| < 2.5 (Abramowitz and Stegun 7.1.6), continued fraction beyond (7.1.14).
pub fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let a = x.abs();
    let value = if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term > 1e-18 * sum && n < 200.0 {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum
    } else if a < 6.0 {
        let mut tail = 0.0;
        for n in (1..=60).rev() {
            tail = f64::from(n) / 2.0 / (a + tail);
        }
        1.0 - (-a * a).exp() / (std::f64::consts::PI.sqrt() * (a + tail))
    } else {
        1.0
    };
    value.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_tabled_values() {
        for (x, want) in [
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
        ] {
            assert!((erf(x) - want).abs() < 1e-15, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn names_are_unique() {
        for s in Scalar::ALL {
            assert_eq!(Scalar::from_name(s.name()), Some(*s));
        }
    }
}
