//! Attention's backward, every kernel × schedule × device, against plain loops in f64.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Draw;
use common::attention::{Runs, SIZES, intervals, rounds, shapes};
use common::device::{Present, devices, software};
use common::reference::{self, Host};
use omchat_codegen::Work;
use omchat_ir::{Dtype, Type};
use omchat_kernels::LIST;

/// Sums of the terms of dq, dk and dv without their signs.
fn back_sizes(
    n: reference::Sizes,
    [q, k, v, lse, delta, dout]: [&Host; 6],
    [lo, hi, at]: [&[f64]; 3],
) -> [Vec<f64>; 3] {
    let mut sums = [vec![0.0; q.data.len()], vec![0.0; k.data.len()], vec![0.0; k.data.len()]];
    let scale = 1.0 / (n.d as f64).sqrt();
    let row = |h: &Host, r: usize| h.data[r * n.d..(r + 1) * n.d].to_vec();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| a * b).sum::<f64>();
    for r in 0..n.b * n.h * n.g * n.t {
        let (head, t) = (r / (n.g * n.t), r % n.t);
        let b = head / n.h;
        for s in (0..n.s).filter(|s| (lo[b * n.t + t]..=hi[b * n.t + t]).contains(&at[b * n.s + s])) {
            let key = head * n.s + s;
            let p = (scale * dot(&row(q, r), &row(k, key)) - lse.data[r]).exp();
            let ds = (scale * p * (dot(&row(dout, r), &row(v, key)) - delta.data[r])).abs();
            for d in 0..n.d {
                sums[0][r * n.d + d] += ds * k.data[key * n.d + d].abs();
                sums[1][key * n.d + d] += ds * q.data[r * n.d + d].abs();
                sums[2][key * n.d + d] += p * dout.data[r * n.d + d].abs();
            }
        }
    }
    sums
}

/// More for the backward on matrix units, in bf16: heads as wide as models have them, no size a multiple of a tile.
const HALVES: [(usize, usize, usize, usize, usize, usize); 5] = [
    (1, 1, 1, 150, 333, 128),
    (1, 2, 7, 67, 67, 64),
    (2, 1, 7, 71, 140, 128),
    (1, 1, 1, 1, 131, 96),
    (1, 2, 3, 201, 65, 64),
];

#[test]
fn backward_of_every_mask() {
    for p in devices() {
        // The same cases for each device: what is emulated for one is known for the next.
        let d = &mut Draw::of(78);
        let wide = p.target.reads(Dtype::Bf16);
        let mut ran = Runs::new();
        for (i, (b, h, g, t, s, width)) in SIZES.into_iter().enumerate() {
            let n = reference::Sizes { b, h, g, t, s, d: width };
            let dtype = if wide && (i % 3 == 2 || i >= 10) { d.pick(&[Dtype::Bf16, Dtype::F16]) } else { Dtype::F32 };
            backward(&p, d, i, n, dtype, "", &mut ran);
        }
        for (i, (b, h, g, t, s, width)) in HALVES.into_iter().enumerate().filter(|_| wide) {
            let n = reference::Sizes { b, h, g, t, s, d: width };
            backward(&p, d, i, n, Dtype::Bf16, "wgmma", &mut ran);
        }
        println!("{}: backward runs right: {ran:?}", p.target.name);
        assert!(ran.values().sum::<usize>() >= 20);
        for kernel in ["attention_dq.wgmma", "attention_dkv.wgmma"] {
            let times = ran.get(kernel).copied().unwrap_or(0);
            assert!(p.target.sm != 90 || times >= HALVES.len(), "{kernel} ran too seldom: {ran:?}");
        }
    }
}

#[test]
fn backward_on_a_software_driver() {
    let Some(p) = software() else { return };
    let (d, mut ran) = (&mut Draw::of(80), Runs::new());
    for (i, (b, h, g, t, s, width)) in [SIZES[1], SIZES[8], SIZES[9]].into_iter().enumerate() {
        let n = reference::Sizes { b, h, g, t, s, d: width };
        for end in [".tiled", ".plain"] {
            backward(&p, d, i, n, Dtype::F32, end, &mut ran);
        }
    }
    println!("{}: {ran:?}", p.target.name);
    assert!(ran.values().all(|n| *n == 3) && ran.len() == 4, "ran too seldom: {ran:?}");
}

/// The backward of drawn values, the `turn`th case, by each kernel of which the name ends so, at the schedules that the device
/// tries; counts the runs.
fn backward(p: &Present, d: &mut Draw, turn: usize, n: reference::Sizes, dtype: Dtype, end: &str, ran: &mut Runs) {
    let reference::Sizes { b, h, g, t, s, d: width } = n;
    let mut floats = |dtype, n: usize| Host::new(dtype, (0..n).map(|_| d.real(-1.0, 1.0)).collect::<Vec<_>>());
    let queries = b * h * g * t;
    let (q, k, v) =
        (floats(dtype, queries * width), floats(dtype, b * h * s * width), floats(dtype, b * h * s * width));
    let (dout, dlse) = (floats(dtype, queries * width), floats(Dtype::F32, queries));
    let (lo, hi, at) = intervals(d, n);
    let (out, lse) = reference::attention(n, &q.data, &k.data, &v.data, &lo, &hi, &at);
    let delta: Vec<f64> = (0..queries)
        .map(|r| {
            let row = r * width..(r + 1) * width;
            out[row.clone()].iter().zip(&dout.data[row]).map(|(x, y)| x * y).sum::<f64>() - dlse.data[r]
        })
        .collect();
    let (lse, delta) = (Host::new(Dtype::F32, lse), Host::new(Dtype::F32, delta));
    let [dq, dk, dv] =
        reference::attention_backward(n, &q.data, &k.data, &v.data, &lo, &hi, &at, &lse.data, &delta.data, &dout.data);
    let bounds = back_sizes(n, [&q, &k, &v, &lse, &delta, &dout], [&lo, &hi, &at]);
    let ints = |x: &Vec<f64>| Host::new(Dtype::I32, x.clone());
    let operands = [q, k, v, ints(&lo), ints(&hi), ints(&at), lse, delta, dout];
    let rows = vec![b, h, g, t];
    let list = [&shapes(n)[..], &[rows.clone(), rows, shapes(n)[0].clone()]].concat();
    let types: Vec<Type> = operands.iter().zip(&list).map(|(o, s)| Type::new(o.dtype, s.clone())).collect();
    for (name, want) in [("attention_dq", vec![dq]), ("attention_dkv", vec![dk, dv])] {
        let result = |x: &Vec<f64>| {
            Type::new(
                Dtype::F32,
                if x.len() == queries * width && name == "attention_dq" {
                    shapes(n)[0].clone()
                } else {
                    shapes(n)[1].clone()
                },
            )
        };
        let work = Work::Function {
            name: name.into(),
            binds: Default::default(),
            operands: types.clone(),
            results: want.iter().map(result).collect(),
        };
        let blank: Vec<Host> = want.iter().map(|w| Host { dtype: Dtype::F32, data: vec![f64::NAN; w.len()] }).collect();
        for k in LIST.iter().filter(|k| k.name().ends_with(end)) {
            for sch in p.tries(p.offered(*k, &work), turn) {
                let got = p.run(*k, &work, &sch, &operands, &blank);
                for (r, (want, got)) in want.iter().zip(&got).enumerate() {
                    let top = want.iter().fold(1.0f64, |a, x| a.max(x.abs()));
                    for (j, (w, g)) in want.iter().zip(got).enumerate() {
                        let which = if name == "attention_dq" { 0 } else { 1 + r };
                        let allowed = rounds(k.name(), dtype) * bounds[which][j];
                        let error = ((w - g).abs() - allowed).max(0.0) / top;
                        assert!(
                            error <= 4e-6,
                            "{} {sch} on {}: {n:?} result {r}[{j}] is {g}, not {w}",
                            k.name(),
                            p.target.name
                        );
                    }
                }
                *ran.entry(k.name()).or_default() += 1;
            }
        }
    }
}
