//! Folds of columns against plain loops: by cubes that share their rows, and by several vectors at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Draw;
use common::device::{Present, devices, poison};
use common::reference::{self, Host};
use omchat_codegen::{Body, Family, Fold, Kind, Nest, Read, Step, Work, Write};
use omchat_ir::{Dtype, Scalar};
use omchat_kernels::by_name;

/// Of the axes that stay, and of those that are folded.
type Axes = [&'static [usize]; 2];

/// Sizes and strides of the axes that stay and of those that are folded: a matrix, one with a gap behind its rows, heads of rows,
/// two folded axes. No number of rows is a multiple of the parts.
const LAYOUTS: [(Axes, Axes); 4] = [
    ([&[70], &[203]], [&[1], &[70]]),
    ([&[600], &[131]], [&[1], &[607]]),
    ([&[3, 40], &[1001]], [&[40_040, 1], &[40]]),
    ([&[33], &[2, 97]], [&[1], &[3300, 33]]),
];

/// The fold times a number of each column, written to every second place.
fn nest([kept, folded]: Axes, [stay, walk]: Axes, fold: Fold, dtype: Dtype) -> Nest {
    let mut places = vec![1; kept.len()];
    (0..kept.len() - 1).rev().for_each(|a| places[a] = places[a + 1] * kept[a + 1]);
    let still = [places.clone(), vec![0; folded.len()]].concat();
    let strides = [stay, walk].concat();
    let mut epilogue = Body::default();
    let float = fold != Fold::ArgMax;
    let held = epilogue.push(Step::Folded { kind: if float { Kind::Float } else { Kind::Int } });
    let mut result = held;
    if float {
        let scale = epilogue.push(Step::Read { read: 1, kind: Kind::Float });
        result = epilogue.push(Step::Apply { f: Scalar::Mul, args: vec![held, scale], of: Kind::Float });
    }
    epilogue.results = vec![result];
    Nest {
        kept: kept.to_vec(),
        folded: folded.to_vec(),
        fold: Some(fold),
        reads: vec![
            Read { operand: 0, dtype, offset: 2, strides, at: None },
            Read { operand: 1, dtype: Dtype::F32, offset: 0, strides: still, at: None },
        ],
        body: Body { steps: vec![Step::Read { read: 0, kind: Kind::Float }], results: vec![0] },
        epilogue,
        writes: vec![Write {
            result: 0,
            dtype: if float { Dtype::F32 } else { Dtype::I32 },
            offset: 1,
            strides: places.iter().map(|p| 2 * p).collect(),
            at: None,
        }],
    }
}

#[test]
fn cubes_share_the_rows_of_columns() {
    folds("fold.columns");
}

#[test]
fn vectors_of_columns_side_by_side() {
    folds("fold.plain");
}

fn folds(kernel: &str) {
    let kernel = by_name(kernel).unwrap();
    let takes = |p: &&Present| kernel.name() == "fold.plain" || p.target.family != Family::Cpu;
    for p in devices().iter().filter(takes) {
        let mut ran = 0;
        for dtype in [Dtype::F32, Dtype::Bf16].into_iter().filter(|d| p.target.reads(*d)) {
            for (seed, (sizes, strides)) in LAYOUTS.into_iter().enumerate() {
                for fold in [Fold::Sum, Fold::Max, Fold::ArgMax] {
                    let d = &mut Draw::of(300 + seed as u64);
                    let n = nest(sizes, strides, fold, dtype);
                    let span =
                        |sizes: &[usize], steps: &[usize]| sizes.iter().zip(steps).map(|(n, s)| (n - 1) * s).sum();
                    let reach: usize = [0, 1].map(|i| span(sizes[i], strides[i])).iter().sum();
                    // Few values, so that the largest is there more than once.
                    let mut x: Vec<f64> = (0..reach + 3).map(|_| (d.real(-2.0, 2.0) * 8.0).round() / 8.0).collect();
                    if fold == Fold::ArgMax {
                        x.iter_mut().step_by(7).for_each(|x| *x = -3.0);
                    }
                    let scale = (0..n.points()).map(|_| d.real(0.5, 1.5)).collect();
                    let operands = [Host::new(dtype, x), Host::new(Dtype::F32, scale)];
                    let to = n.writes[0].dtype;
                    let blank = [Host { dtype: to, data: vec![poison(to); 2 * n.points() + 1] }];
                    let mut want = blank.clone();
                    let weight = reference::nest(&n, &operands, &mut want);
                    let work = Work::Nest(n);
                    for s in p.offered(kernel, &work) {
                        let got = p.run(kernel, &work, &s, &operands, &blank);
                        for (at, (w, g)) in want[0].data.iter().zip(&got[0]).enumerate() {
                            let near = (w - g).abs() <= 1e-5 * weight[0][at] || w.is_nan() && g.is_nan();
                            assert!(
                                near,
                                "{} {s} on {}: {fold:?} of {dtype} {sizes:?}: [{at}] is {g}, not {w}",
                                kernel.name(),
                                p.target.name
                            );
                        }
                        ran += 1;
                    }
                }
            }
        }
        assert!(ran >= 12, "{}: {ran} folds ran", p.target.name);
    }
}
