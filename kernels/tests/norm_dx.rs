//! The backward of norms' rows against the formula in f64, on every device, over odd sizes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Draw;
use common::device::devices;
use common::reference::Host;
use omchat_codegen::{Family, Work};
use omchat_ir::{Dtype, Type};
use omchat_kernels::LIST;

const SIZES: [(usize, usize); 8] = [(1, 1), (3, 576), (257, 33), (5, 64), (2, 47), (9, 1024), (1, 3001), (70, 31)];
const EPS: f64 = 1e-3;

/// What a row yields: dx, mean, scale, slope. The derivative of `sum(dy w (x - mean) scale)` by each x, written out.
fn row(x: &[f64], w: &[f64], dy: &[f64], centred: bool) -> (Vec<f64>, f64, f64, f64) {
    let n = x.len() as f64;
    let mean = if centred { x.iter().sum::<f64>() / n } else { 0.0 };
    let scale = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + EPS).sqrt();
    let along: f64 = (0..x.len()).map(|i| dy[i] * w[i] * (x[i] - mean)).sum();
    let level = if centred { (0..x.len()).map(|i| dy[i] * w[i]).sum::<f64>() / n } else { 0.0 };
    let dx = (0..x.len()).map(|i| scale * (dy[i] * w[i] - level) - scale.powi(3) * along * (x[i] - mean) / n);
    (dx.collect(), mean, scale, -0.5 * scale.powi(3) * along)
}

fn drawn(d: &mut Draw, dtype: Dtype, n: usize, shift: f64) -> Host {
    Host::new(dtype, (0..n).map(|_| shift + d.real(-2.0, 2.0)).collect())
}

#[test]
fn rows_get_their_cotangent() {
    let d = &mut Draw::of(77);
    let mut ran: std::collections::BTreeMap<&str, usize> = Default::default();
    for p in devices() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16].into_iter().filter(|d| p.target.reads(*d)) {
            for ((rows, width), centred) in SIZES.into_iter().flat_map(|s| [(s, false), (s, true)]) {
                let name = if centred { "layer_norm_dx" } else { "rms_norm_dx" };
                // Where halves are only read, the weights alone are narrow.
                let of_x = if p.target.holds(dtype) { dtype } else { Dtype::F32 };
                // Off zero, so that a forgotten mean shows.
                let (x, w) = (drawn(d, of_x, rows * width, 1.5), drawn(d, dtype, width, 0.5));
                let dy = drawn(d, of_x, rows * width, 0.25);
                let (table, stat) = (Type::new(of_x, [rows, width]), Type::new(Dtype::F32, [rows]));
                let types = vec![table.clone(), Type::new(dtype, [width]), Type::new(Dtype::F32, []), table.clone()];
                let mut results = vec![table];
                results.extend(vec![stat; 2 + usize::from(centred)]);
                let blank: Vec<Host> =
                    results.iter().map(|t| Host { dtype: t.dtype, data: vec![f64::NAN; t.elements()] }).collect();
                let work = Work::Function { name: name.into(), binds: Default::default(), operands: types, results };
                let operands = [x.clone(), w.clone(), Host::new(Dtype::F32, vec![EPS]), dy.clone()];
                for k in LIST {
                    for s in p.offered(*k, &work) {
                        let got = p.run(*k, &work, &s, &operands, &blank);
                        *ran.entry(k.name()).or_default() += 1;
                        let near = |what: &str, got: f64, want: f64, size: f64, slack: f64| {
                            assert!(
                                (got - want).abs() <= slack * size,
                                "{} {s} on {}: {name} {rows} x {width} {dtype}: {what} is {got}, not {want}",
                                k.name(),
                                p.target.name
                            );
                        };
                        for r in 0..rows {
                            let at = r * width..(r + 1) * width;
                            let (dx, mean, scale, slope) =
                                row(&x.data[at.clone()], &w.data, &dy.data[at.clone()], centred);
                            // A lone element of a layer norm divides by eps alone: what cancels is of that size.
                            let most = dx.iter().fold(scale * 8.0, |m, v| m.max(v.abs()));
                            let step = if of_x == Dtype::F32 { 1e-5 } else { 1e-2 };
                            for (i, want) in dx.iter().enumerate() {
                                near(&format!("dx[{r}, {i}]"), got[0][r * width + i], *want, most, step);
                            }
                            let stats = &got[1..];
                            if centred {
                                near("mean", stats[0][r], mean, 4.0, 1e-5);
                            }
                            near("scale", stats[stats.len() - 2][r], scale, scale, 2e-5);
                            let size = scale.powi(3) * width as f64 * 8.0;
                            near("slope", stats[stats.len() - 1][r], slope, size, 1e-5);
                        }
                    }
                }
            }
        }
    }
    println!("{ran:?}");
    for (name, gpu) in [("norm_dx.rows", false), ("norm_dx.shared", true)] {
        let present = !gpu || devices().iter().any(|p| p.target.family != Family::Cpu);
        assert!(!present || ran.get(name).is_some_and(|n| *n > 5), "{name} ran too seldom: {ran:?}");
    }
}
