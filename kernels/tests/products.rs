//! Products of bf16 and of f16, as matrix units take them, on every device against plain loops: whole tiles and tails,
//! every way that factors can lie, offsets that vectors cannot start at.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;

use common::Draw;
use common::device::devices;
use common::reference::{self, Host};
use omchat_codegen::{Body, Fold, Kind, Nest, Read, Step, Work, Write};
use omchat_ir::{Dtype, Scalar};
use omchat_kernels::LIST;

/// Batch, m, n and k: one fragment, less than one, tails of rows, columns and k, whole tiles, more than one.
const SIZES: [(usize, usize, usize, usize); 8] = [
    (1, 16, 16, 16),
    (2, 9, 8, 24),
    (1, 17, 40, 33),
    (1, 70, 72, 8),
    (1, 64, 64, 64),
    (2, 33, 130, 48),
    (1, 130, 136, 100),
    (1, 128, 128, 160),
];

/// How the factors lie (whether k is innermost), and at which element they start.
const LAYOUTS: [([bool; 2], [usize; 2]); 4] =
    [([true, true], [0, 8]), ([true, false], [16, 0]), ([false, true], [0, 0]), ([false, false], [1, 0])];

struct Case {
    nest: Nest,
    operands: Vec<Host>,
    results: Vec<Host>,
}

/// `out[b, m, n] = bias[n] + sum over k of x · y`.
fn case(
    d: &mut Draw,
    (b, m, n, k): (usize, usize, usize, usize),
    along: [bool; 2],
    offset: [usize; 2],
    dtype: Dtype,
    out: Dtype,
) -> Case {
    let lay = |rows: usize, along_k: bool| if along_k { (k, 1) } else { (1, rows) };
    let ((xm, xk), (yn, yk)) = (lay(m, along[0]), lay(n, along[1]));
    let read = |operand, dtype, offset, strides: [usize; 4]| Read {
        operand,
        dtype,
        offset,
        strides: strides.into(),
        at: None,
    };
    let mut draw = |dtype, n: usize| Host::new(dtype, (0..n).map(|_| d.real(-1.0, 1.0)).collect());
    let body = vec![
        Step::Read { read: 0, kind: Kind::Float },
        Step::Read { read: 1, kind: Kind::Float },
        Step::Apply { f: Scalar::Mul, args: vec![0, 1], of: Kind::Float },
    ];
    let epilogue = vec![
        Step::Folded { kind: Kind::Float },
        Step::Read { read: 2, kind: Kind::Float },
        Step::Apply { f: Scalar::Add, args: vec![0, 1], of: Kind::Float },
    ];
    Case {
        nest: Nest {
            kept: vec![b, m, n],
            folded: vec![k],
            fold: Some(Fold::Sum),
            reads: vec![
                read(0, dtype, offset[0], [m * k, xm, 0, xk]),
                read(1, dtype, offset[1], [n * k, 0, yn, yk]),
                read(2, Dtype::F32, 0, [0, 0, 1, 0]),
            ],
            body: Body { steps: body, results: vec![2] },
            epilogue: Body { steps: epilogue, results: vec![2] },
            writes: vec![Write { result: 0, dtype: out, offset: 0, strides: vec![m * n, n, 1], at: None }],
        },
        operands: vec![draw(dtype, b * m * k + offset[0]), draw(dtype, b * n * k + offset[1]), draw(Dtype::F32, n)],
        results: vec![Host { dtype: out, data: vec![f64::NAN; b * m * n] }],
    }
}

#[test]
fn products_of_halves() {
    for p in devices().into_iter().filter(|p| p.target.holds(Dtype::Bf16)) {
        let mut ran: BTreeMap<&str, usize> = BTreeMap::new();
        let d = &mut Draw::of(5);
        let all = SIZES.len() * LAYOUTS.len();
        for at in 0..p.draws(all as u64) as usize {
            // Each size comes with another layout before one comes again.
            let (i, j) = (at % SIZES.len(), (at + at / SIZES.len()) % LAYOUTS.len());
            let (size, (along, offset)) = (SIZES[i], LAYOUTS[j]);
            let dtype = [Dtype::Bf16, Dtype::F16][(i + j) % 2];
            let out = if (i + j) % 3 == 0 { dtype } else { Dtype::F32 };
            let c = case(d, size, along, offset, dtype, out);
            let mut want = c.results.clone();
            let weight = reference::nest(&c.nest, &c.operands, &mut want);
            let work = Work::Nest(c.nest.clone());
            for kernel in LIST {
                for s in p.offered(*kernel, &work) {
                    let got = p.run(*kernel, &work, &s, &c.operands, &c.results);
                    for (at, (w, g)) in want[0].data.iter().zip(&got[0]).enumerate() {
                        let slack = if out == Dtype::F32 { 4e-6 } else { 1.0 / 120.0 };
                        assert!(
                            (w - g).abs() <= slack * weight[0][at].max(w.abs()) + 2e-6,
                            "{} {s} on {}: {size:?} {along:?} {dtype} [{at}] is {g}, not {w}",
                            kernel.name(),
                            p.target.name
                        );
                    }
                    *ran.entry(kernel.name()).or_default() += 1;
                }
            }
        }
        println!("{}: {ran:?}", p.target.name);
        if p.target.sm >= 80 {
            assert!(ran.get("einsum.mma").copied().unwrap_or(0) > 5, "einsum.mma ran too seldom: {ran:?}");
        }
        if p.target.sm == 90 {
            assert!(ran.get("einsum.wgmma").copied().unwrap_or(0) > 5, "einsum.wgmma ran too seldom: {ran:?}");
        }
    }
}
