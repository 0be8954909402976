//! Einsums as models have them: a batch, a bias, an activation, a residual, factors that lie in any way, two axes of k.

use omchat_codegen::{Body, Fold, Kind, Nest, Read, Start, Step, Work, Write};
use omchat_ir::{Dtype, Scalar};

use super::Draw;
use super::reference::{self, Host};

/// Sizes and layout of an einsum.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    /// Outer and inner; where the outer is not 1 no two views walk both in the same order.
    pub k: [usize; 2],
    /// Whether k is innermost in each factor.
    pub along: [bool; 2],
    /// Where each factor starts.
    pub offset: [usize; 2],
    pub dtype: Dtype,
    pub out: Dtype,
    /// Rows that the result has more, where a number read in the run says after how many of them the einsum's are written.
    pub slack: usize,
}

impl Shape {
    /// A shape with k innermost in both factors, which start at 0.
    pub fn of(m: usize, n: usize, k: usize, dtype: Dtype) -> Shape {
        Shape { batch: 1, m, n, k: [1, k], along: [true, true], offset: [0, 0], dtype, out: dtype, slack: 0 }
    }
}

/// An einsum, its operands, and its results full of poison.
pub struct Case {
    pub shape: Shape,
    pub nest: Nest,
    pub operands: Vec<Host>,
    pub results: Vec<Host>,
}

/// `out[b, m + start, n] = max(bias[n] + sum over k of x · y, -1) + rest[b, m, n]`, of drawn numbers.
pub fn case(d: &mut Draw, s: Shape) -> Case {
    let Shape { batch, m, n, k: [k1, k2], .. } = s;
    let k = k1 * k2;
    let read = |operand, dtype, offset, strides: [usize; 5]| Read {
        operand,
        dtype,
        offset,
        strides: strides.into(),
        at: None,
    };
    // Along b, rows, k1 and k2: the first factor has k1 outside, the second k2.
    let first = if s.along[0] { [m * k, k, k2, 1] } else { [m * k, 1, k2 * m, m] };
    let second = match (s.along[1], k1) {
        (true, 1) => [n * k, k, 0, 1],
        (true, _) => [n * k, k2, n * k2, 1],
        (false, _) => [n * k, 1, n, k1 * n],
    };
    let rows = m + s.slack;
    let at = (s.slack > 0).then_some(Start { operand: 4, last: s.slack, stride: n });
    let apply = |f, a, b| Step::Apply { f, args: vec![a, b], of: Kind::Float };
    let body = vec![
        Step::Read { read: 0, kind: Kind::Float },
        Step::Read { read: 1, kind: Kind::Float },
        apply(Scalar::Mul, 0, 1),
    ];
    let epilogue = vec![
        Step::Folded { kind: Kind::Float },
        Step::Read { read: 2, kind: Kind::Float },
        apply(Scalar::Add, 0, 1),
        Step::Float { bits: (-1.0f32).to_bits() },
        apply(Scalar::Max, 2, 3),
        Step::Read { read: 3, kind: Kind::Float },
        apply(Scalar::Add, 4, 5),
    ];
    let nest = Nest {
        kept: vec![batch, m, n],
        folded: vec![k1, k2],
        fold: Some(Fold::Sum),
        reads: vec![
            read(0, s.dtype, s.offset[0], [first[0], first[1], 0, first[2], first[3]]),
            read(1, s.dtype, s.offset[1], [second[0], 0, second[1], second[2], second[3]]),
            read(2, Dtype::F32, 0, [0, 0, 1, 0, 0]),
            read(3, s.out, 0, [m * n, n, 1, 0, 0]),
        ],
        body: Body { steps: body, results: vec![2] },
        epilogue: Body { steps: epilogue, results: vec![6] },
        writes: vec![Write { result: 0, dtype: s.out, offset: 0, strides: vec![rows * n, n, 1], at }],
    };
    let mut draw = |dtype, n: usize| Host::new(dtype, (0..n).map(|_| d.real(-1.0, 1.0)).collect());
    let mut operands = vec![
        draw(s.dtype, batch * m * k + s.offset[0]),
        draw(s.dtype, batch * n * k + s.offset[1]),
        draw(Dtype::F32, n),
        draw(s.out, batch * m * n),
    ];
    if s.slack > 0 {
        // One too far is clamped.
        operands.push(Host::new(Dtype::I32, vec![d.below(s.slack + 2) as f64]));
    }
    let results = vec![Host { dtype: s.out, data: vec![f64::NAN; batch * rows * n] }];
    Case { shape: s, nest, operands, results }
}

impl Case {
    pub fn work(&self) -> Work {
        Work::Nest(self.nest.clone())
    }

    /// What is wrong with a result, if anything. Sums of f32 lose 2^-24 of their terms an addition, what is written in
    /// halves a step of their last bit, and products `rounding` of themselves.
    pub fn wrong(&self, got: &[f64], rounding: f64) -> Option<String> {
        let mut want = self.results.clone();
        let weight = reference::nest(&self.nest, &self.operands, &mut want);
        let k = self.shape.k.iter().product::<usize>() as f64;
        let last = match self.shape.out {
            Dtype::Bf16 => 1.0 / 128.0,
            Dtype::F16 => 1.0 / 1024.0,
            _ => 0.0,
        };
        let sums = (k + 40.0) / f64::from(1 << 24) + rounding;
        (0..got.len()).find_map(|at| {
            let (w, g) = (want[0].data[at], got[at]);
            let near = (w - g).abs() <= sums * (weight[0][at] + 2.0) + last * w.abs();
            let poison = w.is_nan() && g.is_nan();
            (!near && !poison).then(|| format!("[{at}] of {:?} is {g}, not {w}", self.shape))
        })
    }
}
