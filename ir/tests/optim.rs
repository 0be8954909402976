//! AdamW over several steps, clipping and accumulation against formulas in doubles.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Rng, caller, f32s, near, one, run, tensor};
use omchat_ir::{Dtype, Mode, Tensor};

const N: usize = 6;

/// AdamW as its paper has it (algorithm 2, with PyTorch's decay by the learning rate): the moments' averages are
/// written out as sums over the steps so far, not carried along.
fn paper(p0: &[f64], g: &[Vec<f64>], (lr, b1, b2, eps, decay): (f64, f64, f64, f64, f64)) -> Vec<f64> {
    let mut p = p0.to_vec();
    for t in 1..=g.len() {
        for i in 0..p.len() {
            let average = |b: f64, x: &dyn Fn(f64) -> f64| {
                let sum: f64 = (1..=t).map(|s| (1.0 - b) * b.powi((t - s) as i32) * x(g[s - 1][i])).sum();
                sum / (1.0 - b.powi(t as i32))
            };
            let (m, v) = (average(b1, &|x| x), average(b2, &|x| x * x));
            p[i] -= lr * decay * p[i] + lr * m / (v.sqrt() + eps);
        }
    }
    p
}

fn stepped(p0: &[f64], g: &[Vec<f64>], h: (f64, f64, f64, f64, f64), mode: Mode) -> Vec<f64> {
    let (lr, b1, b2, eps, decay) = h;
    let mut now: Vec<Tensor> = vec![f32s(&[N], p0), f32s(&[N], &[0.0; N]), f32s(&[N], &[0.0; N])];
    for (t, g) in g.iter().enumerate() {
        let (c1, c2) = (1.0 - b1.powi(t as i32 + 1), 1.0 - b2.powi(t as i32 + 1));
        let scalars = [lr, b1, b2, eps, decay, c1, c2].map(|x| f32s(&[], &[x]));
        let mut operands = vec![now[0].clone(), f32s(&[N], g), now[1].clone(), now[2].clone()];
        operands.extend(scalars);
        let text = caller("@adamw", "f32[6], f32[6], f32[6]", 3, &operands);
        now = run(&text, vec![operands], mode).remove(0);
    }
    now.remove(0).data
}

#[test]
fn adamw_over_ten_steps() {
    let mut rng = Rng(1);
    let p = rng.vec(N, 1.0);
    let mut g: Vec<Vec<f64>> = (0..10).map(|_| rng.vec(N, 1.0)).collect();
    g.iter_mut().for_each(|g| g[2] = 0.0); // Only the decay moves it.
    for h in [(1e-2, 0.9, 0.999, 1e-8, 0.1), (3e-3, 0.8, 0.95, 1e-3, 0.0)] {
        let want = paper(&p, &g, h);
        near("adamw in doubles", &stepped(&p, &g, h, Mode::Exact), &want, 1e-12);
        near("adamw in f32", &stepped(&p, &g, h, Mode::Typed), &want, 2e-6);
    }
}

#[test]
fn a_gradient_of_zero_makes_no_nan() {
    let still = stepped(&[1.0; N], &[vec![0.0; N]], (1e-2, 0.9, 0.999, 1e-8, 0.0), Mode::Typed);
    assert_eq!(still, [1.0; N]);
}

#[test]
fn clipping_and_accumulation() {
    let mut rng = Rng(2);
    let g = rng.vec(N, 2.0);
    let squares = one("@sum_squares", "f32", 1, vec![f32s(&[N], &g)], Mode::Exact)[0][0];
    near("sum_squares", &[squares], &[g.iter().map(|x| x * x).sum()], 1e-12);
    let scale = |norm: f64, most: f64| {
        one("@clip_scale", "f32", 1, vec![f32s(&[], &[norm]), f32s(&[], &[most])], Mode::Exact)[0][0]
    };
    near("clipped", &[scale(4.0, 1.0), scale(0.0, 1.0), scale(0.5, 1.0)], &[1.0 / 4.000_001, 1.0, 1.0], 1e-12);
    // Halves add up in f32 where bf16 would lose the small one.
    let operands = vec![f32s(&[2], &[256.0, 1.0]), tensor(Dtype::Bf16, &[2], vec![0.5, 0.25])];
    assert_eq!(one("@accumulate", "f32[2]", 1, operands, Mode::Typed)[0], [256.5, 1.25]);
}
