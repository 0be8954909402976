//! Bodies on the device: a comptime program unrolled over vectors.

use cubecl::prelude::*;
use omchat_codegen::{Body, Kind, Step};
use omchat_ir::{Dtype, Scalar as Function};

use crate::vector::{round_bf16, round_f16};

/// What the steps of a body may ask for at one place of the loop, in both kinds; what is not of a kind is 0.
#[derive(CubeType)]
pub(crate) struct Inputs<N: Size> {
    /// One a read.
    pub(crate) float: Sequence<Vector<f32, N>>,
    /// One a read.
    pub(crate) int: Sequence<Vector<i32, N>>,
    /// One an axis.
    pub(crate) index: Sequence<Vector<i32, N>>,
    /// What the fold yielded.
    pub(crate) folded_float: Vector<f32, N>,
    /// What the fold yielded.
    pub(crate) folded_int: Vector<i32, N>,
}

/// Values of the steps, in both kinds.
#[derive(CubeType)]
pub(crate) struct Values<N: Size> {
    pub(crate) float: Sequence<Vector<f32, N>>,
    pub(crate) int: Sequence<Vector<i32, N>>,
}

/// Runs a body; the results are the steps that `body.results` names.
#[cube]
pub(crate) fn evaluate<N: Size>(x: &Inputs<N>, #[comptime] body: Body) -> Values<N> {
    let mut v = Values::<N> { float: Sequence::new(), int: Sequence::new() };
    #[unroll]
    for s in 0..comptime![body.steps.len()] {
        let mut f = Vector::<f32, N>::new(0.0f32);
        let mut i = Vector::<i32, N>::new(0i32);
        let step = comptime![body.steps[s].clone()];
        match step {
            Step::Read { read, kind } => {
                if comptime![kind == Kind::Float] {
                    f = *x.float.index(read);
                } else {
                    i = *x.int.index(read);
                }
            }
            Step::Folded { kind } => {
                if comptime![kind == Kind::Float] {
                    f = x.folded_float;
                } else {
                    i = x.folded_int;
                }
            }
            Step::Index { axis } => {
                i = *x.index.index(axis);
            }
            Step::Float { bits } => {
                f = Vector::new(comptime![f32::from_bits(bits)].runtime());
            }
            Step::Int { value } => {
                i = Vector::new(value.runtime());
            }
            Step::Apply { f: function, args, of } => {
                let a = comptime![args[0]];
                let b = comptime![args.get(1).copied().unwrap_or(args[0])];
                let c = comptime![args.get(2).copied().unwrap_or(args[0])];
                if comptime![function == Function::Select] {
                    let hold = (*v.int.index(a)).not_equal(&Vector::new(0i32));
                    if comptime![of == Kind::Float] {
                        f = select_many(hold, *v.float.index(b), *v.float.index(c));
                    } else {
                        i = select_many(hold, *v.int.index(b), *v.int.index(c));
                    }
                } else if comptime![compares(function)] {
                    if comptime![of == Kind::Float] {
                        i = compare::<f32, N>(*v.float.index(a), *v.float.index(b), function);
                    } else {
                        i = compare::<i32, N>(*v.int.index(a), *v.int.index(b), function);
                    }
                } else if comptime![of == Kind::Float] {
                    f = float::<N>(*v.float.index(a), *v.float.index(b), function);
                } else {
                    i = int::<N>(*v.int.index(a), *v.int.index(b), function);
                }
            }
            Step::Convert { arg, to } => {
                if comptime![to == body.kind(arg)] {
                    f = *v.float.index(arg);
                    i = *v.int.index(arg);
                } else if comptime![to == Kind::Float] {
                    f = Vector::cast_from(*v.int.index(arg));
                } else {
                    // The bounds are the outermost floats that an i32 can hold: beyond them casts are undefined.
                    let held =
                        clamp(*v.float.index(arg), Vector::new(-2_147_483_648.0f32), Vector::new(2_147_483_520.0f32));
                    i = Vector::cast_from(held);
                }
            }
            Step::Round { arg, to } => {
                if comptime![to == Dtype::Bf16] {
                    f = round_bf16::<N>(*v.float.index(arg));
                } else if comptime![to == Dtype::F16] {
                    f = round_f16::<N>(*v.float.index(arg));
                } else {
                    f = *v.float.index(arg);
                }
            }
            Step::Truth { arg } => {
                if comptime![body.kind(arg) == Kind::Float] {
                    i = truth::<N>((*v.float.index(arg)).not_equal(&Vector::new(0.0f32)));
                } else {
                    i = truth::<N>((*v.int.index(arg)).not_equal(&Vector::new(0i32)));
                }
            }
        }
        v.float.push(f);
        v.int.push(i);
    }
    v
}

fn compares(f: Function) -> bool {
    matches!(f, Function::Ge | Function::Gt | Function::Eq)
}

#[cube]
fn truth<N: Size>(hold: Vector<bool, N>) -> Vector<i32, N> {
    select_many(hold, Vector::new(1i32), Vector::new(0i32))
}

#[cube]
fn compare<T: Numeric, N: Size>(a: Vector<T, N>, b: Vector<T, N>, #[comptime] f: Function) -> Vector<i32, N> {
    if comptime![f == Function::Ge] {
        truth::<N>(a.greater_equal(&b))
    } else if comptime![f == Function::Gt] {
        truth::<N>(a.greater_than(&b))
    } else {
        truth::<N>(a.equal(&b))
    }
}

#[cube]
fn float<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>, #[comptime] f: Function) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    match f {
        Function::Add => a + b,
        Function::Sub => a - b,
        Function::Mul => a * b,
        Function::Div => a / b,
        Function::Max => max(a, b),
        Function::Min => min(a, b),
        Function::Neg => -a,
        Function::Abs => a.abs(),
        Function::Exp => a.exp(),
        Function::Log => a.ln(),
        Function::Sqrt => a.sqrt(),
        Function::Rsqrt => one / a.sqrt(),
        Function::Sin => a.sin(),
        Function::Cos => a.cos(),
        Function::Tanh => a.tanh(),
        Function::Erf => a.erf(),
        Function::Logistic => one / (one + (-a).exp()),
        _ => a,
    }
}

#[cube]
fn int<N: Size>(a: Vector<i32, N>, b: Vector<i32, N>, #[comptime] f: Function) -> Vector<i32, N> {
    let zero = Vector::<i32, N>::new(0i32);
    match f {
        Function::Add => a + b,
        Function::Sub => a - b,
        Function::Mul => a * b,
        Function::Div => quotient::<N>(a, b),
        Function::Max => max(a, b),
        Function::Min => min(a, b),
        Function::Neg => zero - a,
        Function::Abs => max(a, zero - a),
        Function::And => truth::<N>(a.not_equal(&zero)) * truth::<N>(b.not_equal(&zero)),
        Function::Not => truth::<N>(a.equal(&zero)),
        _ => a,
    }
}

/// Truncating quotient; 0 by 0. The divisors 0 and -1 are kept from the machine, where they may trap.
#[cube]
fn quotient<N: Size>(a: Vector<i32, N>, b: Vector<i32, N>) -> Vector<i32, N> {
    let zero = Vector::<i32, N>::new(0i32);
    let one = Vector::<i32, N>::new(1i32);
    let none = b.equal(&zero);
    let minus = b.equal(&Vector::new(-1i32));
    let safe = select_many(none, one, select_many(minus, one, b));
    select_many(none, zero, select_many(minus, zero - a, a / safe))
}
