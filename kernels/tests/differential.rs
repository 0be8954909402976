//! Every kernel × schedule × device against plain loops in f64, over drawn sizes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Draw;
use common::device::{devices, poison};
use common::reference::{self, Host};
use omchat_codegen::{At, Body, Family, Fold, Kind, Nest, Read, Start, Step, Target, Work, Write};
use omchat_ir::{Dtype, Scalar};
use omchat_kernels::LIST;

const SIZES: [usize; 11] = [1, 2, 3, 5, 7, 16, 17, 31, 33, 48, 64];

/// A nest with the operands it reads.
struct Case {
    nest: Nest,
    operands: Vec<Host>,
    results: Vec<Host>,
    /// Rounding inside the body, or a narrow result: one step of bf16 is allowed.
    narrow: bool,
}

fn sizes(d: &mut Draw, most: usize, limit: usize) -> Vec<usize> {
    let mut out: Vec<usize> = (0..1 + d.below(most)).map(|_| d.pick(&SIZES)).collect();
    while out.iter().product::<usize>() > limit {
        let i = d.below(out.len());
        out[i] = out[i].div_ceil(2);
    }
    out
}

/// Strides of a dense layout of some of the axes in drawn order; the rest repeat.
fn layout(d: &mut Draw, sizes: &[usize], repeat: usize) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    if d.chance(40) {
        for i in (1..order.len()).rev() {
            order.swap(i, d.below(i + 1));
        }
    }
    let mut strides = vec![0; sizes.len()];
    let mut n = 1;
    for &a in order.iter().rev() {
        if !d.chance(repeat) {
            strides[a] = n;
            n *= sizes[a];
        }
    }
    (strides, n)
}

fn dtypes(wide: bool) -> Vec<Dtype> {
    if wide {
        vec![Dtype::F32, Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::I32, Dtype::Bool]
    } else {
        vec![Dtype::F32, Dtype::F32, Dtype::I32, Dtype::Bool]
    }
}

fn data(d: &mut Draw, dtype: Dtype, n: usize) -> Host {
    Host::new(
        dtype,
        (0..n)
            .map(|_| match dtype {
                Dtype::I32 => d.below(40) as f64 - 20.0,
                Dtype::Bool => d.below(2) as f64,
                _ => d.real(-2.0, 2.0),
            })
            .collect(),
    )
}

/// Steps of a drawn program over those reads; yields the last step of each kind.
fn program(d: &mut Draw, reads: &[Dtype], axes: usize, folded: Option<Kind>, narrow: &mut bool) -> Body {
    let mut b = Body::default();
    let mut floats = vec![b.push(Step::Float { bits: d.real(-1.0, 1.0).to_bits_f32() })];
    let mut ints = vec![b.push(Step::Int { value: d.below(9) as i32 - 4 })];
    let mut raw = Vec::new();
    for (read, dtype) in reads.iter().enumerate() {
        let kind = Kind::of(*dtype);
        let s = b.push(Step::Read { read, kind });
        if kind == Kind::Float {
            floats.push(s);
            raw.push(s);
        } else {
            ints.push(s);
        }
    }
    if let Some(kind) = folded {
        let s = b.push(Step::Folded { kind });
        if kind == Kind::Float {
            floats.push(s);
        } else {
            ints.push(s);
        }
    }
    for _ in 0..3 + d.below(6) {
        let (f, g) = (d.pick(&floats), d.pick(&floats));
        let (i, j) = (d.pick(&ints), d.pick(&ints));
        use Scalar::*;
        match d.below(12) {
            0..=3 => floats.push(b.push(Step::Apply {
                f: d.pick(&[Add, Sub, Mul, Max, Min]),
                args: vec![f, g],
                of: Kind::Float,
            })),
            4 => floats.push(b.push(Step::Apply {
                f: d.pick(&[Neg, Abs, Sin, Cos, Tanh, Erf, Logistic]),
                args: vec![f],
                of: Kind::Float,
            })),
            5 => {
                let t = b.push(Step::Apply { f: Tanh, args: vec![f], of: Kind::Float });
                floats.push(b.push(Step::Apply { f: Exp, args: vec![t], of: Kind::Float }));
            }
            6 if axes > 0 => ints.push(b.push(Step::Index { axis: d.below(axes) })),
            7 => ints.push(b.push(Step::Apply {
                f: d.pick(&[Add, Sub, Mul, Div, Max, Min]),
                args: vec![i, j],
                of: Kind::Int,
            })),
            8 if raw.len() > 1 => {
                let (x, y) = (d.pick(&raw), d.pick(&raw));
                let c = b.push(Step::Apply { f: d.pick(&[Ge, Gt, Eq]), args: vec![x, y], of: Kind::Float });
                floats.push(b.push(Step::Apply { f: Select, args: vec![c, f, g], of: Kind::Float }));
            }
            9 => {
                let c = b.push(Step::Apply { f: d.pick(&[Ge, Gt, Eq]), args: vec![i, j], of: Kind::Int });
                let n = b.push(Step::Apply { f: Not, args: vec![c], of: Kind::Int });
                let t = b.push(Step::Truth { arg: i });
                let a = b.push(Step::Apply { f: And, args: vec![n, t], of: Kind::Int });
                ints.push(b.push(Step::Apply { f: Select, args: vec![a, i, j], of: Kind::Int }));
            }
            10 => floats.push(b.push(Step::Convert { arg: i, to: Kind::Float })),
            11 if !raw.is_empty() && d.chance(40) => {
                *narrow = true;
                let r = d.pick(&raw);
                floats.push(b.push(Step::Round { arg: r, to: d.pick(&[Dtype::Bf16, Dtype::F16]) }));
            }
            _ => {}
        }
    }
    b.results = vec![*floats.last().unwrap_or(&0), *ints.last().unwrap_or(&1)];
    b
}

trait F32Bits {
    fn to_bits_f32(self) -> u32;
}
impl F32Bits for f64 {
    fn to_bits_f32(self) -> u32 {
        (self as f32).to_bits()
    }
}

/// A nest of 1 to 4 kept axes, with drawn views, gathers, updates and programs.
fn case(seed: u64, fold: Option<Fold>, wide: bool, out: bool) -> Case {
    let d = &mut Draw::of(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
    let kept = sizes(d, 4, 4000);
    let folded = if fold.is_some() { sizes(d, 2, 200) } else { vec![] };
    let axes = [kept.clone(), folded.clone()].concat();
    let mut operands = Vec::new();
    let mut reads = Vec::new();
    for r in 0..1 + d.below(3) {
        let dtype = if r == 0 && !wide { Dtype::F32 } else { d.pick(&dtypes(wide)) };
        let (strides, n) = layout(d, &axes, if r == 0 { 0 } else { 35 });
        let offset = d.below(4);
        let mut read = Read { operand: operands.len(), dtype, offset, strides, at: None };
        let mut len = offset + n;
        if d.chance(20) {
            // Rows picked by an id that runs over some axes of the nest; some ids point outside.
            let size = 1 + d.below(6);
            let (at_strides, m) = layout(d, &axes, 50);
            read.at = Some(At { operand: operands.len() + 1, offset: 1, strides: at_strides, size, stride: n });
            len += (size - 1) * n;
            operands.push(data(d, dtype, len));
            operands.push(Host::new(Dtype::I32, (0..m + 1).map(|_| d.below(size + 2) as f64 - 1.0).collect()));
        } else {
            operands.push(data(d, dtype, len));
        }
        reads.push(read);
    }
    let mut narrow = false;
    let kinds: Vec<Dtype> = reads.iter().map(|r| r.dtype).collect();
    let mut body = program(d, &kinds, if fold == Some(Fold::Sum) { 0 } else { axes.len() }, None, &mut narrow);
    let mut epilogue = Body::default();
    if let Some(f) = fold {
        let float = d.chance(80);
        body.results = vec![body.results[usize::from(!float)]];
        let kind = if f == Fold::ArgMax || !float { Kind::Int } else { Kind::Float };
        // Reads of the epilogue stand still along the folded axes.
        let still: Vec<usize> = (0..reads.len())
            .filter(|&r| {
                reads[r].strides[kept.len()..].iter().all(|&s| s == 0)
                    && reads[r].at.as_ref().is_none_or(|a| a.strides[kept.len()..].iter().all(|&s| s == 0))
            })
            .collect();
        epilogue =
            program(d, &still.iter().map(|&r| reads[r].dtype).collect::<Vec<_>>(), kept.len(), Some(kind), &mut narrow);
        for s in &mut epilogue.steps {
            if let Step::Read { read, .. } = s {
                *read = still[*read];
            }
        }
        if f == Fold::ArgMax || d.chance(50) {
            let at = epilogue.steps.iter().position(|s| matches!(s, Step::Folded { .. })).unwrap();
            epilogue.results[usize::from(kind == Kind::Int)] = at;
        }
    }
    let mut results = Vec::new();
    let mut writes = Vec::new();
    for w in 0..1 + d.below(2) {
        let dtype = match (w, out) {
            (0, true) => d.pick(&[Dtype::F32, Dtype::F32, Dtype::Bf16, Dtype::F16]),
            (0, false) => Dtype::F32,
            _ => Dtype::I32,
        };
        let (strides, n) = layout(d, &kept, 0);
        let offset = d.below(5);
        let mut write = Write { result: w, dtype, offset, strides, at: None };
        let mut len = offset + n;
        if d.chance(25) {
            let last = d.below(4);
            write.at = Some(Start { operand: operands.len(), last, stride: n });
            operands.push(Host::new(Dtype::I32, vec![d.below(8) as f64 - 2.0]));
            len += last * n;
        }
        narrow |= dtype == Dtype::Bf16 || dtype == Dtype::F16;
        results.push(Host { dtype, data: vec![poison(dtype); len] });
        writes.push(write);
    }
    let nest = Nest { kept, folded, fold, reads, body, epilogue, writes };
    Case { nest, operands, results, narrow }
}

fn check(name: &str, c: &Case, want: &[Host], weight: &[Vec<f64>], got: &[Vec<f64>]) {
    for (r, (want, got)) in want.iter().zip(got).enumerate() {
        for (i, (w, g)) in want.data.iter().zip(got).enumerate() {
            let scale = weight[r][i].max(w.abs());
            let slack = if c.narrow { 1.0 / 120.0 } else { 4e-6 };
            let near = (w - g).abs() <= slack * scale + 2e-6 || (w.is_nan() && g.is_nan()) || w == g;
            assert!(near, "{name}: result {r}[{i}] is {g}, not {w} (of size {scale})\n{:#?}", c.nest);
        }
    }
}

fn sweep(fold: Option<Fold>, count: u64) {
    for p in devices() {
        let (wide, out) = (p.target.reads(Dtype::Bf16), p.target.holds(Dtype::Bf16));
        let mut tried = 0;
        let count = p.draws(count);
        for seed in 0..count {
            let c = case(seed + 1000 * fold.map_or(0, |f| f as u64 + 1), fold, wide, out);
            let mut want = c.results.clone();
            let weight = reference::nest(&c.nest, &c.operands, &mut want);
            let work = Work::Nest(c.nest.clone());
            for k in LIST {
                for s in p.offered(*k, &work) {
                    let got = p.run(*k, &work, &s, &c.operands, &c.results);
                    check(&format!("{} {s} on {} seed {seed}", k.name(), p.target.name), &c, &want, &weight, &got);
                    tried += 1;
                }
            }
        }
        println!("{}: {tried} runs right", p.target.name);
        assert!(tried >= count);
    }
}

#[test]
fn maps() {
    sweep(None, 40);
}

#[test]
fn sums() {
    sweep(Some(Fold::Sum), 30);
}

#[test]
fn largest() {
    sweep(Some(Fold::Max), 15);
}

#[test]
fn places_of_the_largest() {
    sweep(Some(Fold::ArgMax), 15);
}

#[test]
fn kth_largest_counts_ties() {
    const SIZES: [(usize, usize, usize); 12] = [
        (1, 1, 1),
        (3, 7, 7),
        (5, 33, 4),
        (2, 1000, 1),
        (17, 64, 40),
        (1, 4096, 1),
        (2, 5000, 5000),
        (3, 2053, 700),
        (1, 10_007, 5_000),
        (2, 4099, 64),
        (5, 6000, 5999),
        (1, 70_001, 9),
    ];
    let mut ran: std::collections::BTreeMap<&str, usize> = Default::default();
    for p in devices() {
        for (i, (rows, width, k)) in SIZES.into_iter().enumerate() {
            let d = &mut Draw::of(rows as u64 * 31 + width as u64);
            // Ties, both zeros, infinities, numbers that differ in their last bits, and all equal.
            let x: Vec<f64> = (0..rows * width)
                .map(|_| {
                    let near = f32::from_bits(0x3f80_0000 + d.below(3000) as u32);
                    let any = d.real(-4.0, 4.0) as f32;
                    let few = d.pick(&[-1.5f32, -0.25, 0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, -1e-3]);
                    f64::from(match i % 4 {
                        0 => d.pick(&[few, any]),
                        1 => near,
                        2 => few,
                        _ => d.pick(&[any, any * 1e-30, -near]),
                    })
                })
                .map(|x| if i == 5 { 2.5 } else { x })
                .collect();
            let x = Host::new(Dtype::F32, x);
            let work = Work::KthLargest { rows, width, k };
            for kernel in LIST {
                for s in p.offered(*kernel, &work) {
                    let blank = [Host { dtype: Dtype::F32, data: vec![f64::NAN; rows] }];
                    let got = p.run(*kernel, &work, &s, std::slice::from_ref(&x), &blank);
                    for (r, &got) in got[0].iter().enumerate() {
                        let mut row = x.data[r * width..][..width].to_vec();
                        row.sort_by(|a, b| b.total_cmp(a));
                        let (want, name) = (row[k - 1], kernel.name());
                        let same = got.to_bits() == want.to_bits();
                        assert!(
                            same,
                            "{name} {s} on {}: row {r} of {rows} x {width}, k {k} is {got}, not {want}",
                            p.target.name
                        );
                    }
                    *ran.entry(kernel.name()).or_default() += 1;
                }
            }
        }
    }
    println!("{ran:?}");
    let split = if devices().iter().all(|p| p.target.family == Family::Cpu) { 0 } else { 2 };
    for (name, least) in [("kth_largest.plain", 7), ("kth_largest.radix", 7), ("kth_largest.split", split)] {
        assert!(ran.get(name).copied().unwrap_or(0) >= least, "{name} ran too seldom: {ran:?}");
    }
}

#[test]
fn nan_is_the_same_kth_for_every_kernel() {
    // A NaN with the sign bit is the least, one without it the largest.
    let mut x: Vec<f32> = (0..5000).map(|i| (i as f32 * 0.7).sin()).collect();
    (x[3], x[4999]) = (f32::from_bits(0x7fc0_0000), f32::from_bits(0xffc0_0000));
    for p in devices() {
        for k in [1, 2, 4999, 5000] {
            let work = Work::KthLargest { rows: 1, width: x.len(), k };
            let mut found = vec![];
            for kernel in LIST {
                for s in p.offered(*kernel, &work) {
                    let operand = Host { dtype: Dtype::F32, data: x.iter().map(|x| f64::from(*x)).collect() };
                    let blank = [Host { dtype: Dtype::F32, data: vec![7.0] }];
                    found.push(p.run(*kernel, &work, &s, &[operand], &blank)[0][0]);
                }
            }
            assert!(!found.is_empty());
            assert!(found.iter().all(|f| f.is_nan() == matches!(k, 1 | 5000)), "k {k} on {}: {found:?}", p.target.name);
            assert!(found.windows(2).all(|w| w[0] == w[1] || w[0].is_nan() && w[1].is_nan()), "k {k}: {found:?}");
        }
    }
}

/// A fold of `fold` over `width` neighbours of `rows` rows, times a scalar of the row.
fn long_fold(d: &mut Draw, fold: Fold, dtype: Dtype, rows: usize, folded: &[usize], gap: usize) -> Case {
    let width: usize = folded.iter().product();
    let mut strides = vec![width + gap];
    strides.extend((0..folded.len()).map(|i| folded[i + 1..].iter().product::<usize>()));
    let kind = Kind::of(dtype);
    let still = [vec![1], vec![0; folded.len()]].concat();
    let mut epilogue = Body::default();
    let held = epilogue.push(Step::Folded { kind: if fold == Fold::ArgMax { Kind::Int } else { kind } });
    let of_float = fold != Fold::ArgMax && kind == Kind::Float;
    let result = if of_float {
        let scale = epilogue.push(Step::Read { read: 1, kind: Kind::Float });
        epilogue.push(Step::Apply { f: Scalar::Mul, args: vec![held, scale], of: Kind::Float })
    } else {
        held
    };
    epilogue.results = vec![result];
    let out = if of_float { Dtype::F32 } else { Dtype::I32 };
    Case {
        nest: Nest {
            kept: vec![rows],
            folded: folded.to_vec(),
            fold: Some(fold),
            reads: vec![
                Read { operand: 0, dtype, offset: 3, strides, at: None },
                Read { operand: 1, dtype: Dtype::F32, offset: 0, strides: still, at: None },
            ],
            body: Body { steps: vec![Step::Read { read: 0, kind }], results: vec![0] },
            epilogue,
            writes: vec![Write { result: 0, dtype: out, offset: 1, strides: vec![2], at: None }],
        },
        operands: vec![data(d, dtype, 3 + rows * (width + gap)), data(d, Dtype::F32, rows)],
        results: vec![Host { dtype: out, data: vec![poison(out); 2 * rows + 1] }],
        narrow: false,
    }
}

#[test]
fn long_folds_of_every_kind() {
    let d = &mut Draw::of(91);
    for p in devices() {
        let mut ran: std::collections::BTreeMap<&str, usize> = Default::default();
        let dtypes = [Dtype::F32, Dtype::I32, Dtype::Bf16].into_iter().filter(|d| p.target.reads(*d));
        for dtype in dtypes {
            for fold in [Fold::Sum, Fold::Max, Fold::ArgMax] {
                let shapes: [(usize, &[usize], usize); 8] = [
                    (1, &[4097], 0),
                    (1, &[35_003], 0),
                    (3, &[2, 16_421], 1),
                    (3, &[64], 0),
                    (7, &[1009], 1),
                    (33, &[300], 0),
                    (2, &[3, 257], 0),
                    (5, &[63], 2),
                ];
                for (rows, folded, gap) in shapes {
                    let c = long_fold(d, fold, dtype, rows, folded, gap);
                    let mut want = c.results.clone();
                    let weight = reference::nest(&c.nest, &c.operands, &mut want);
                    let work = Work::Nest(c.nest.clone());
                    for k in LIST {
                        for s in p.offered(*k, &work) {
                            let got = p.run(*k, &work, &s, &c.operands, &c.results);
                            let name = format!("{} {s} on {}: {fold:?} of {dtype}", k.name(), p.target.name);
                            check(&name, &c, &want, &weight, &got);
                            *ran.entry(k.name()).or_default() += 1;
                        }
                    }
                }
            }
        }
        println!("{}: {ran:?}", p.target.name);
        let least = if p.target.family == Family::Cpu { "fold.plain" } else { "fold.shared" };
        assert!(ran.get(least).is_some_and(|n| *n > 20), "{least} ran too seldom: {ran:?}");
        let split = p.target.family == Family::Cpu || ran.get("fold.split").is_some_and(|n| *n > 8);
        assert!(split, "fold.split ran too seldom: {ran:?}");
    }
}

/// Dense strides of the axes `of`, innermost last; 0 elsewhere.
fn dense(axes: &[usize], of: &[usize]) -> (Vec<usize>, usize) {
    let mut strides = vec![0; axes.len()];
    let mut n = 1;
    for &a in of.iter().rev() {
        strides[a] = n;
        n *= axes[a];
    }
    (strides, n)
}

/// An einsum whose letters are up to two axes each, in drawn orders, with a drawn epilogue.
fn einsum(seed: u64, wide: bool, out: bool) -> Case {
    let d = &mut Draw::of(seed * 77 + 5);
    let (nb, nm, nn, nk) = (d.below(2), d.below(3), 1 + d.below(2), 1 + d.below(2));
    let size = |d: &mut Draw| d.pick(&[1, 2, 3, 4, 5, 8, 16, 17, 24, 50]);
    let kept: Vec<usize> = (0..nb + nm + nn).map(|_| size(d)).collect();
    let folded: Vec<usize> =
        (0..nk).map(|i| if i + 1 == nk { d.pick(&[4, 16, 24, 35, 64]) } else { d.pick(&[1, 3]) }).collect();
    let axes = [kept.clone(), folded.clone()].concat();
    let (batch, m, n): (Vec<_>, Vec<_>, Vec<_>) =
        ((0..nb).collect(), (nb..nb + nm).collect(), (nb + nm..kept.len()).collect());
    let k: Vec<usize> = (kept.len()..axes.len()).collect();
    let order = |d: &mut Draw, parts: [&[usize]; 3]| {
        if d.chance(50) { parts.concat() } else { [parts[0], parts[2], parts[1]].concat() }
    };
    let (sa, la) = dense(&axes, &order(d, [&batch, &m, &k]));
    let (sb, lb) = dense(&axes, &order(d, [&batch, &n, &k]));
    let (dta, dtb) =
        (d.pick(&dtypes(wide)[..if wide { 4 } else { 1 }]), d.pick(&dtypes(wide)[..if wide { 4 } else { 1 }]));
    let mut reads = vec![
        Read { operand: 0, dtype: dta, offset: 1, strides: sa, at: None },
        Read { operand: 1, dtype: dtb, offset: 0, strides: sb, at: None },
    ];
    let mut operands = vec![data(d, dta, la + 1), data(d, dtb, lb)];
    if d.chance(50) {
        reads.swap(0, 1);
    }
    // A bias, or a residual.
    let (mut strides, len) = if d.chance(50) { dense(&axes, &n) } else { dense(&axes, &[&batch[..], &m, &n].concat()) };
    strides.truncate(axes.len());
    reads.push(Read { operand: 2, dtype: Dtype::F32, offset: 0, strides, at: None });
    operands.push(data(d, Dtype::F32, len));
    let body = Body {
        steps: vec![
            Step::Read { read: 0, kind: Kind::Float },
            Step::Read { read: 1, kind: Kind::Float },
            Step::Apply { f: Scalar::Mul, args: vec![0, 1], of: Kind::Float },
        ],
        results: vec![2],
    };
    let mut narrow = false;
    let mut epilogue = program(d, &[Dtype::F32], kept.len(), Some(Kind::Float), &mut narrow);
    for s in &mut epilogue.steps {
        if let Step::Read { read, .. } = s {
            *read = 2;
        }
    }
    let folded_at = epilogue.steps.iter().position(|s| matches!(s, Step::Folded { .. })).unwrap();
    if d.chance(60) {
        epilogue.results[0] = folded_at;
    }
    let (strides, len) = dense(&axes, &order(d, [&batch, &m, &n]));
    let dtype = if out { d.pick(&[Dtype::F32, Dtype::F32, Dtype::Bf16]) } else { Dtype::F32 };
    narrow |= dtype == Dtype::Bf16;
    let mut write = Write { result: 0, dtype, offset: 3, strides: strides[..kept.len()].to_vec(), at: None };
    let mut room = len + 3;
    // Into a slice of a longer buffer, which a number read in the run places.
    if d.chance(35) {
        let last = d.below(4);
        write.offset = d.pick(&[0, 8, 1]);
        write.at = Some(Start { operand: operands.len(), last, stride: len });
        operands.push(Host::new(Dtype::I32, vec![d.below(6) as f64 - 1.0]));
        room = write.offset + len * (last + 1);
    }
    let (writes, results) = (vec![write], vec![Host { dtype, data: vec![f64::NAN; room] }]);
    Case {
        nest: Nest { kept, folded, fold: Some(Fold::Sum), reads, body, epilogue, writes },
        operands,
        results,
        narrow,
    }
}

#[test]
fn einsums() {
    for p in devices() {
        let (wide, out) = (p.target.reads(Dtype::Bf16), p.target.holds(Dtype::Bf16));
        let mut ran: std::collections::BTreeMap<&str, usize> = Default::default();
        for seed in 0..40 {
            let c = einsum(seed, wide, out);
            let mut want = c.results.clone();
            let weight = reference::nest(&c.nest, &c.operands, &mut want);
            let work = Work::Nest(c.nest.clone());
            for k in LIST {
                for s in p.offered(*k, &work) {
                    let got = p.run(*k, &work, &s, &c.operands, &c.results);
                    check(&format!("{} {s} on {} seed {seed}", k.name(), p.target.name), &c, &want, &weight, &got);
                    *ran.entry(k.name()).or_default() += 1;
                }
            }
        }
        println!("{}: {ran:?}", p.target.name);
        let also: &[&str] = match p.target.family {
            Family::Cpu => &["einsum.panels"],
            _ => &["einsum.tiled", "einsum.vector"],
        };
        for name in ["einsum.dot", "einsum.rows", "fold.plain"].iter().chain(also) {
            assert!(ran.get(name).copied().unwrap_or(0) > 5, "{name} ran too seldom: {ran:?}");
        }
    }
}

fn add(kept: Vec<usize>, strides: [Vec<usize>; 3]) -> Nest {
    let [x, y, z] = strides;
    let read = |operand, strides| Read { operand, dtype: Dtype::F32, offset: 0, strides, at: None };
    Nest {
        kept,
        folded: vec![],
        fold: None,
        reads: vec![read(0, x), read(1, y)],
        body: Body {
            steps: vec![
                Step::Read { read: 0, kind: Kind::Float },
                Step::Read { read: 1, kind: Kind::Float },
                Step::Apply { f: Scalar::Add, args: vec![0, 1], of: Kind::Float },
            ],
            results: vec![2],
        },
        epilogue: Body::default(),
        writes: vec![Write { result: 0, dtype: Dtype::F32, offset: 0, strides: z, at: None }],
    }
}

#[test]
fn large_maps_are_cut_and_turn_to_a_second_row_of_cubes() {
    let d = &mut Draw::of(9);
    for p in devices() {
        for (kept, strides) in [
            (vec![3_000_001], [vec![1], vec![0], vec![1]]),
            (vec![3, 40_001], [vec![40_001, 1], vec![0, 1], vec![1, 3]]),
        ] {
            let n = kept.iter().product();
            let (x, y) = (data(d, Dtype::F32, n), data(d, Dtype::F32, *kept.last().unwrap()));
            let c = Case {
                nest: add(kept, strides),
                operands: vec![x, y],
                results: vec![Host { dtype: Dtype::F32, data: vec![f64::NAN; n] }],
                narrow: false,
            };
            let mut want = c.results.clone();
            let weight = reference::nest(&c.nest, &c.operands, &mut want);
            let work = Work::Nest(c.nest.clone());
            let k = omchat_kernels::by_name("map.plain").unwrap();
            let s = &k.schedules(&work, &p.target).unwrap()[0];
            check(p.target.name.as_str(), &c, &want, &weight, &p.run(k, &work, s, &c.operands, &c.results));
        }
    }
}

#[test]
fn long_einsums_run_in_panels() {
    // k so long that a factor's rows do not stay in the cache together: several runs of tiles, or several panels, with rests of
    // rows, columns and k. Columns lie along k, side by side, or apart.
    let d = &mut Draw::of(11);
    let (m, n, k) = (98, 21, 1100);
    let (f, h) = (Dtype::F32, Dtype::Bf16);
    let near = (m * k, n * k);
    let cases = [
        (m, n, k, [vec![k, 0, 1], vec![0, k, 1]], near, [f, f]),
        (m, n, k, [vec![k, 0, 1], vec![0, k, 1]], near, [h, h]),
        (m, n, k, [vec![k, 0, 1], vec![0, 1, n]], near, [f, h]),
        (m, n, k, [vec![1, 0, m], vec![0, 1, n]], near, [f, f]),
        (m, n, k, [vec![1, 0, m], vec![0, 2, 2 * n]], (m * k, 2 * n * k), [h, f]),
        (20, 70, 2100, [vec![2100, 0, 1], vec![0, 1, 70]], (20 * 2100, 70 * 2100), [f, f]),
        (100, 200, 70, [vec![70, 0, 1], vec![0, 70, 1]], (100 * 70, 200 * 70), [f, f]),
        (600, 40, 130, [vec![130, 0, 1], vec![0, 130, 1]], (600 * 130, 40 * 130), [Dtype::F16, f]),
    ];
    let panels = omchat_kernels::by_name("einsum.panels").unwrap();
    for (m, n, k, [sa, sb], (la, lb), [da, db]) in cases {
        let mut nest = add(vec![m, n], [sa, sb, vec![n, 1]]);
        (nest.reads[0].dtype, nest.reads[1].dtype) = (da, db);
        nest.folded = vec![k];
        nest.fold = Some(Fold::Sum);
        nest.body.steps[2] = Step::Apply { f: Scalar::Mul, args: vec![0, 1], of: Kind::Float };
        nest.epilogue = Body { steps: vec![Step::Folded { kind: Kind::Float }], results: vec![0] };
        let c = Case {
            nest,
            operands: vec![data(d, da, la), data(d, db, lb)],
            results: vec![Host { dtype: Dtype::F32, data: vec![f64::NAN; m * n] }],
            narrow: false,
        };
        let mut want = c.results.clone();
        let weight = reference::nest(&c.nest, &c.operands, &mut want);
        let work = Work::Nest(c.nest.clone());
        assert!(panels.schedules(&work, &Target::cpu(2)).is_ok(), "{m} x {n} x {k}");
        for p in devices() {
            for kernel in LIST {
                for s in p.offered(*kernel, &work) {
                    let name = format!("{} {s}, {m} x {n} x {k} of {da} and {db}", kernel.name());
                    check(&name, &c, &want, &weight, &p.run(*kernel, &work, &s, &c.operands, &c.results));
                }
            }
        }
    }
}

#[test]
fn every_half_widens() {
    // From every place of a word; what f32 holds below its least normal number a GPU may flush.
    for p in devices() {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let all = (0..=u16::MAX).map(|b| match dtype {
                Dtype::Bf16 => half::bf16::from_bits(b).to_f64(),
                _ => half::f16::from_bits(b).to_f64(),
            });
            let x = Host { dtype, data: all.filter(|x| !x.is_nan() && (*x == 0.0 || x.abs() > 2e-38)).collect() };
            for (offset, lanes) in [(0, 1), (1, 1), (1, 2), (0, 3)] {
                let n = (x.data.len() - offset) / lanes;
                let mut nest = add(vec![n], [vec![lanes], vec![0], vec![1]]);
                (nest.reads[0].dtype, nest.reads[0].offset) = (dtype, offset);
                let work = Work::Nest(nest);
                let k = omchat_kernels::by_name("map.plain").unwrap();
                for s in k.schedules(&work, &p.target).unwrap() {
                    let operands = [x.clone(), Host::new(Dtype::F32, vec![0.0])];
                    let got = p.run(k, &work, &s, &operands, &[Host { dtype: Dtype::F32, data: vec![f64::NAN; n] }]);
                    for (i, g) in got[0].iter().enumerate() {
                        let want = x.data[offset + i * lanes];
                        assert_eq!(*g, want, "{dtype} from {offset} by {lanes} on {}", p.target.name);
                    }
                }
            }
        }
    }
}

#[test]
fn a_map_may_write_where_it_reads() {
    use omchat_kernels::{Args, Buffer};
    for p in devices() {
        let Some(client) = &p.client else {
            println!("skipped: a map in place: {} has no client", p.target.name);
            continue;
        };
        let n = 5000;
        let work = Work::Nest(add(vec![n], [vec![1], vec![0], vec![1]]));
        let k = omchat_kernels::by_name("map.plain").unwrap();
        let prepared = k.prepare(&work, &k.schedules(&work, &p.target).unwrap()[0]).unwrap();
        let up = |b: Vec<u8>, elements| Buffer { handle: client.create_from_slice(&b), elements };
        let x = up((0..n).flat_map(|i| (i as f32).to_le_bytes()).collect(), n);
        let one = up(1.0f32.to_le_bytes().to_vec(), 1);
        let meta = up(prepared.meta().iter().flat_map(|w| w.to_le_bytes()).collect(), prepared.meta().len());
        for _ in 0..3 {
            prepared
                .launch(
                    client,
                    &Args {
                        operands: &[x.clone(), one.clone()],
                        results: std::slice::from_ref(&x),
                        scratch: None,
                        meta: &meta,
                    },
                )
                .unwrap();
        }
        let bytes = client.read_one(x.handle.clone()).unwrap();
        for (i, c) in bytes.chunks_exact(4).enumerate().take(n) {
            assert_eq!(f32::from_le_bytes([c[0], c[1], c[2], c[3]]), i as f32 + 3.0, "{} [{i}]", p.target.name);
        }
    }
}

#[test]
fn a_launch_that_lacks_a_buffer_says_so() {
    use omchat_kernels::{Args, Buffer};
    let devices = devices();
    let Some(p) = devices.first() else { return };
    let Some(client) = &p.client else {
        println!("skipped: a launch of too few buffers: {} has no client", p.target.name);
        return;
    };
    let work = Work::Nest(add(vec![4], [vec![1], vec![1], vec![1]]));
    let k = omchat_kernels::by_name("map.plain").unwrap();
    let prepared = k.prepare(&work, &k.schedules(&work, &p.target).unwrap()[0]).unwrap();
    let one = Buffer { handle: client.empty(16), elements: 4 };
    let error = prepared
        .launch(
            client,
            &Args {
                operands: std::slice::from_ref(&one),
                results: std::slice::from_ref(&one),
                scratch: None,
                meta: &one,
            },
        )
        .unwrap_err();
    assert_eq!(error.to_string(), "a launch needs 2 operands, not 1");
}

#[test]
fn refusals_name_the_limit() {
    let work = Work::Nest(add(vec![1 << 20, 1 << 12], [vec![1 << 12, 1], vec![1 << 12, 1], vec![1 << 12, 1]]));
    let k = omchat_kernels::by_name("map.plain").unwrap();
    let said = |t: &omchat_codegen::Target, w: &Work| k.schedules(w, t).unwrap_err().0;
    let wgpu = omchat_codegen::Target::wgpu();
    assert_eq!(said(&wgpu, &work), "indices are 32-bit: at most 2147483648 elements, not 4294967296");
    let work = Work::Nest(add(vec![1 << 26], [vec![1], vec![1], vec![1]]));
    assert_eq!(said(&wgpu, &work), "needs a binding of 268435456 bytes, wgpu has 134217728");
}

#[test]
fn norms_of_rows() {
    const SIZES: [(usize, usize); 7] = [(1, 1), (3, 576), (257, 33), (5, 64), (2, 47), (9, 1024), (1, 3001)];
    let d = &mut Draw::of(21);
    let mut ran: std::collections::BTreeMap<&str, usize> = Default::default();
    for p in devices() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16].into_iter().filter(|d| p.target.reads(*d)) {
            for ((rows, width), name) in SIZES.into_iter().flat_map(|s| [(s, "rms_norm"), (s, "layer_norm")]) {
                // Where halves are only read, the weights alone are narrow.
                let of_x = if p.target.holds(dtype) { dtype } else { Dtype::F32 };
                let (x, w) = (data(d, of_x, rows * width), data(d, dtype, width));
                let (b, eps) = (data(d, dtype, width), 1e-5);
                let type_of = |t: Dtype, shape: &[usize]| omchat_ir::Type::new(t, shape.to_vec());
                let mut types = vec![type_of(of_x, &[rows, width]), type_of(dtype, &[width])];
                let mut operands = vec![x.clone(), w.clone()];
                if name == "layer_norm" {
                    types.push(type_of(dtype, &[width]));
                    operands.push(b.clone());
                }
                types.push(type_of(Dtype::F32, &[]));
                operands.push(Host::new(Dtype::F32, vec![eps]));
                let results = vec![types[0].clone()];
                let work = Work::Function { name: name.into(), binds: Default::default(), results, operands: types };
                for k in LIST {
                    for s in p.offered(*k, &work) {
                        let blank = [Host { dtype: of_x, data: vec![f64::NAN; rows * width] }];
                        let got = p.run(*k, &work, &s, &operands, &blank);
                        *ran.entry(k.name()).or_default() += 1;
                        for (i, &g) in got[0].iter().enumerate() {
                            let row = &x.data[i / width * width..][..width];
                            let level = row.iter().sum::<f64>() / width as f64;
                            let (mean, shift) =
                                if name == "rms_norm" { (0.0, 0.0) } else { (level, b.data[i % width]) };
                            let power = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width as f64;
                            let scale = w.data[i % width] / (power + eps).sqrt();
                            let want = (x.data[i] - mean) * scale + shift;
                            let slack = if of_x == Dtype::F32 { 4e-6 } else { 1.0 / 100.0 };
                            assert!(
                                (want - g).abs() <= slack * (0.3 + want.abs() + (x.data[i] * scale).abs()),
                                "{} {s} on {}: {rows} x {width} {dtype} [{i}] is {g}, not {want}",
                                k.name(),
                                p.target.name
                            );
                        }
                    }
                }
            }
        }
    }
    println!("{ran:?}");
    for (name, gpu) in [("rms_norm.rows", false), ("layer_norm.rows", false), ("norm.shared", true)] {
        let present = !gpu || devices().iter().any(|p| p.target.family != Family::Cpu);
        assert!(!present || ran.get(name).is_some_and(|n| *n > 5), "{name} ran too seldom: {ran:?}");
    }
}
