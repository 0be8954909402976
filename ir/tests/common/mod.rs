//! What several tests need: seeded numbers, tensors, runs of a text.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod grad;
pub mod rows;
pub mod stream;

use omchat_ir::{Dtype, Mode, Tensor, Type, interpret, parse};

/// Seeded numbers: splitmix64.
pub struct Rng(pub u64);

impl Rng {
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// A number in -1..1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// That many numbers in -scale..scale.
    pub fn vec(&mut self, n: usize, scale: f64) -> Vec<f64> {
        (0..n).map(|_| self.unit() * scale).collect()
    }

    /// 0..n in random order.
    pub fn order(&mut self, n: usize) -> Vec<usize> {
        let mut out: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            out.swap(i, self.below(i + 1));
        }
        out
    }
}

/// A tensor.
pub fn tensor(dtype: Dtype, shape: &[usize], data: Vec<f64>) -> Tensor {
    Tensor::new(Type::new(dtype, shape), data).unwrap()
}

/// An f32 tensor.
pub fn f32s(shape: &[usize], data: &[f64]) -> Tensor {
    tensor(Dtype::F32, shape, data.to_vec())
}

/// An i32 tensor.
pub fn i32s(shape: &[usize], data: &[i64]) -> Tensor {
    tensor(Dtype::I32, shape, data.iter().map(|&x| x as f64).collect())
}

/// A call of a library function as a whole text, `@main`, from the operands' types.
pub fn caller(callee: &str, results: &str, names: usize, operands: &[Tensor]) -> String {
    let params: Vec<String> = operands.iter().enumerate().map(|(i, t)| format!("%p{i}: {}", t.ty)).collect();
    let args: Vec<String> = (0..operands.len()).map(|i| format!("%p{i}")).collect();
    let outs: Vec<String> = (0..names).map(|i| format!("%r{i}")).collect();
    format!(
        "func @main({}) -> ({results}) {{ {} = call {callee}({}) return {} }}",
        params.join(", "),
        outs.join(", "),
        args.join(", "),
        outs.join(", ")
    )
}

/// The results of `@main` on every rank; what parses must also verify, print and parse back.
pub fn run(text: &str, ranks: Vec<Vec<Tensor>>, mode: Mode) -> Vec<Vec<Tensor>> {
    let m = parse(text).unwrap_or_else(|e| panic!("{}", e.render("test", text)));
    m.verify().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(parse(&m.to_string()).unwrap_or_else(|e| panic!("{}", e.render("printed", &m.to_string()))), m);
    interpret(&m, m.named("main").unwrap(), ranks, mode).unwrap_or_else(|e| panic!("{e}"))
}

/// The data of the results of a library function on one rank.
pub fn one(callee: &str, results: &str, names: usize, operands: Vec<Tensor>, mode: Mode) -> Vec<Vec<f64>> {
    let text = caller(callee, results, names, &operands);
    run(&text, vec![operands], mode).remove(0).into_iter().map(|t| t.data).collect()
}

/// The largest difference; infinite if a number is not finite.
pub fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| if (x - y).is_finite() { (x - y).abs() } else { f64::INFINITY }).fold(0.0, f64::max)
}

/// Fails unless all differences are at most `tolerance`.
#[track_caller]
pub fn near(what: &str, a: &[f64], b: &[f64], tolerance: f64) {
    let w = worst(a, b);
    assert!(w <= tolerance, "{what}: {w:e} > {tolerance:e}\n{a:?}\n{b:?}");
}
