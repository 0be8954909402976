//! Attention, every kernel × schedule × device, against plain loops in f64.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Draw;
use common::attention::{Runs, SIZES, intervals, rounds, shapes, sizes_of};
use common::device::{Present, devices, software};
use common::reference::{self, Host};
use omchat_codegen::{Kernel, Target, Work, offers, preferred};
use omchat_ir::{Bind, Dtype, Type};
use omchat_kernels::LIST;

/// Runs the wanted kernels at the schedules that the device tries on one drawn case, the `turn`th; counts the runs of each.
fn forward(
    p: &Present,
    d: &mut Draw,
    turn: usize,
    n: reference::Sizes,
    [dtype, out]: [Dtype; 2],
    wanted: &str,
    ran: &mut Runs,
) {
    let mut floats = |n: usize| Host::new(dtype, (0..n).map(|_| d.real(-2.0, 2.0)).collect());
    let (q, k, v) = (floats(n.b * n.h * n.g * n.t * n.d), floats(n.b * n.h * n.s * n.d), floats(n.b * n.h * n.s * n.d));
    let (lo, hi, at) = intervals(d, n);
    let (want, lse) = reference::attention(n, &q.data, &k.data, &v.data, &lo, &hi, &at);
    let sizes = sizes_of(n, [&q, &k, &v], [&lo, &hi, &at]);
    let ints = |x: &Vec<f64>| Host::new(Dtype::I32, x.clone());
    let operands = [q, k, v, ints(&lo), ints(&hi), ints(&at)];
    let shapes = shapes(n);
    let work = Work::Function {
        name: ["attention", "attention_partial"][usize::from(out != dtype)].into(),
        binds: Default::default(),
        operands: operands.iter().zip(&shapes).map(|(o, s)| omchat_ir::Type::new(o.dtype, s.clone())).collect(),
        results: vec![
            omchat_ir::Type::new(out, shapes[0].clone()),
            omchat_ir::Type::new(Dtype::F32, [n.b, n.h, n.g, n.t]),
        ],
    };
    let blank = [
        Host { dtype: out, data: vec![f64::NAN; want.len()] },
        Host { dtype: Dtype::F32, data: vec![f64::NAN; lse.len()] },
    ];
    for k in LIST.iter().filter(|k| k.name().ends_with(wanted)) {
        for sch in p.tries(p.offered(*k, &work), turn) {
            let got = p.run(*k, &work, &sch, &operands, &blank);
            let slack = if out == Dtype::F32 { 3e-6 } else { 1.0 / 200.0 };
            for (j, (w, g)) in want.iter().zip(&got[0]).enumerate() {
                assert!(
                    (w - g).abs() <= slack * (2.0 + w.abs()) + rounds(k.name(), dtype) * sizes[j],
                    "{} {sch} on {}: {n:?} out[{j}] is {g}, not {w}",
                    k.name(),
                    p.target.name
                );
            }
            for (j, (w, g)) in lse.iter().zip(&got[1]).enumerate() {
                assert!(
                    (w - g).abs() <= 4e-6 * (2.0 + w.abs()),
                    "{} {sch} on {}: {n:?} lse[{j}] is {g}, not {w}",
                    k.name(),
                    p.target.name
                );
            }
            *ran.entry(k.name()).or_default() += 1;
        }
    }
}

#[test]
fn attention_of_every_mask() {
    for p in devices() {
        // The same cases for each device: what is emulated for one is known for the next.
        let d = &mut Draw::of(77);
        let (wide, writes) = (p.target.reads(Dtype::Bf16), p.target.holds(Dtype::Bf16));
        let mut ran = Runs::new();
        for (i, (b, h, g, t, s, width)) in SIZES.into_iter().enumerate().filter(|(i, _)| p.takes(*i, 0)) {
            let n = reference::Sizes { b, h, g, t, s, d: width };
            let dtype = if wide && (i % 3 == 2 || i >= 10) { d.pick(&[Dtype::Bf16, Dtype::F16]) } else { Dtype::F32 };
            let out = if writes && i % 5 == 2 { dtype } else { Dtype::F32 };
            forward(&p, d, i / 2, n, [dtype, out], "", &mut ran);
        }
        println!("{}: {} runs right", p.target.name, ran.values().sum::<usize>());
    }
}

/// A query that is no number yields none, and hides behind no mask; others are as they were.
#[test]
fn attention_of_no_number() {
    for p in devices() {
        let d = &mut Draw::of(83);
        let mut ran = Runs::new();
        for (t, s) in [(1, 300), (3, 70), (40, 40)] {
            let n = reference::Sizes { b: 1, h: 1, g: 2, t, s, d: 32 };
            for dtype in [Dtype::F32, Dtype::Bf16].into_iter().filter(|d| p.target.holds(*d)) {
                let mut floats = |n: usize| Host::new(dtype, (0..n).map(|_| d.real(-2.0, 2.0)).collect());
                let (mut q, k, v) = (floats(2 * t * 32), floats(s * 32), floats(s * 32));
                let wrong = t;
                q.data[wrong * 32 + 5] = f64::NAN;
                let ints = |n: usize, of: fn(usize) -> f64| Host::new(Dtype::I32, (0..n).map(of).collect());
                let operands = [q, k, v, ints(t, |_| 0.0), ints(t, |_| 1e6), ints(s, |i| i as f64)];
                let types = operands.iter().zip(shapes(n)).map(|(o, s)| Type::new(o.dtype, s)).collect::<Vec<_>>();
                let results = vec![Type::new(Dtype::F32, types[0].shape.clone()), Type::new(Dtype::F32, [1, 1, 2, t])];
                let blank: Vec<Host> =
                    results.iter().map(|r| Host { dtype: Dtype::F32, data: vec![0.0; r.elements()] }).collect();
                let name = "attention_partial".to_string();
                let work = Work::Function { name, binds: Default::default(), operands: types, results };
                for k in LIST {
                    for sch in p.offered(*k, &work) {
                        let got = p.run(*k, &work, &sch, &operands, &blank);
                        for (row, out) in got[0].chunks(32).enumerate() {
                            let fits = out.iter().all(|x| if row == wrong { x.is_nan() } else { x.is_finite() });
                            assert!(fits, "{} {sch} on {}: {n:?} row {row}: {out:?}", k.name(), p.target.name);
                        }
                        *ran.entry(k.name()).or_default() += 1;
                    }
                }
            }
        }
        println!("{}: {ran:?}", p.target.name);
        assert!(ran.len() >= 2, "{}: {ran:?}", p.target.name);
    }
}

#[test]
fn attention_on_a_software_driver() {
    let Some(p) = software() else { return };
    let (d, mut ran) = (&mut Draw::of(79), Runs::new());
    // A schedule each in turn, and full blocks with an end.
    for (i, (b, h, g, t, s, width)) in [SIZES[1], SIZES[3], SIZES[8], SIZES[9]].into_iter().enumerate() {
        let n = reference::Sizes { b, h, g, t, s, d: width };
        for (turn, end) in [(i, ".tiled"), (i, ".plain")] {
            forward(&p, d, turn, n, [Dtype::F32; 2], end, &mut ran);
        }
    }
    println!("{}: {ran:?}", p.target.name);
    assert!(ran["attention.tiled"] >= 4 && ran["attention.plain"] == 4, "ran too seldom: {ran:?}");
}

/// Sizes for warpgroups: several tiles, their ends, and so many unseen keys that they go by together.
const TILED: [(usize, usize, usize, usize, usize, usize); 9] = [
    (1, 1, 7, 19, 300, 128),
    (2, 1, 1, 33, 1290, 64),
    (1, 2, 7, 10, 129, 48),
    (2, 1, 2, 20, 1350, 16),
    (1, 1, 1, 65, 64, 112),
    (1, 1, 5, 13, 150, 256),
    (1, 2, 1, 129, 140, 72),
    (2, 1, 3, 30, 300, 40),
    (1, 1, 2, 40, 130, 8),
];

#[test]
fn attention_by_warpgroups() {
    for p in devices().into_iter().filter(|p| p.target.sm == 90) {
        let d = &mut Draw::of(81);
        let mut ran = Runs::new();
        for (i, (b, h, g, t, s, width)) in TILED.into_iter().enumerate() {
            let n = reference::Sizes { b, h, g, t, s, d: width };
            let dtype = [Dtype::Bf16, Dtype::F16][i % 2];
            let out = if i % 3 == 0 { dtype } else { Dtype::F32 };
            forward(&p, d, i, n, [dtype, out], ".wgmma", &mut ran);
        }
        println!("{}: {ran:?}", p.target.name);
        assert!(ran.values().sum::<usize>() >= TILED.len(), "ran too seldom: {ran:?}");
    }
}

/// What was seen before: a key for each query, of which the score is l and the value o; none for some.
fn carried(d: &mut Draw, queries: usize, width: usize) -> [Vec<f64>; 2] {
    let l: Vec<f64> = (0..queries).map(|_| if d.chance(30) { EMPTY } else { d.real(-3.0, 6.0) }).collect();
    let o = (0..queries * width).map(|i| if l[i / width] == EMPTY { 0.0 } else { d.real(-2.0, 2.0) }).collect();
    [o, l].map(|x: Vec<f64>| x.into_iter().map(|x| f64::from(x as f32)).collect())
}

const EMPTY: f64 = -1e30f32 as f64;

/// (o, l) and what a block yields, as one softmax.
fn folded([o, l]: [&[f64]; 2], (out, lse): (&[f64], &[f64])) -> [Vec<f64>; 2] {
    let width = o.len() / l.len();
    let weights: Vec<[f64; 2]> = l
        .iter()
        .zip(lse)
        .map(|(a, b)| {
            let top = a.max(*b);
            [a, b].map(|x| if *x < -1e29 { 0.0 } else { (x - top).exp() })
        })
        .collect();
    let total = |r: usize| weights[r][0] + weights[r][1];
    let both = (0..o.len()).map(|i| {
        let r = i / width;
        if total(r) > 0.0 { (weights[r][0] * o[i] + weights[r][1] * out[i]) / total(r) } else { 0.0 }
    });
    let logs = (0..l.len()).map(|r| if total(r) > 0.0 { l[r].max(lse[r]) + total(r).ln() } else { EMPTY });
    [both.collect(), logs.collect()]
}

/// The least of the kinds of queries there must have been: seen before, seen now.
fn kinds(l: &[f64], lse: &[f64], counts: &mut [usize; 4]) {
    for (l, lse) in l.iter().zip(lse) {
        counts[usize::from(*l > -1e29) * 2 + usize::from(*lse > -1e29)] += 1;
    }
}

fn near(what: &str, got: &[f64], want: &[f64], slack: f64) {
    within(what, got, want, slack, &vec![0.0; want.len()]);
}

fn within(what: &str, got: &[f64], want: &[f64], slack: f64, more: &[f64]) {
    for (j, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((w - g).abs() <= slack * (2.0 + w.abs()) + more[j], "{what}[{j}] is {g}, not {w}");
    }
}

#[test]
fn attention_goes_on_from_what_was_seen() {
    for p in devices() {
        // The same cases for each device: what is emulated for one is known for the next.
        let d = &mut Draw::of(79);
        let wide = p.target.reads(Dtype::Bf16);
        let (mut runs, mut counts) = (0, [0; 4]);
        for (i, (b, h, g, t, s, width)) in SIZES.into_iter().enumerate().filter(|(i, _)| p.takes(*i, 1)) {
            let n = reference::Sizes { b, h, g, t, s, d: width };
            let dtype = if wide && (i % 3 == 2 || i >= 10) { d.pick(&[Dtype::Bf16, Dtype::F16]) } else { Dtype::F32 };
            let mut floats = |n: usize| Host::new(dtype, (0..n).map(|_| d.real(-2.0, 2.0)).collect::<Vec<_>>());
            let queries = b * h * g * t;
            let (q, k, v) = (floats(queries * width), floats(b * h * s * width), floats(b * h * s * width));
            let (lo, hi, at) = intervals(d, n);
            let [o, l] = carried(d, queries, width);
            let (out, lse) = reference::attention(n, &q.data, &k.data, &v.data, &lo, &hi, &at);
            let sizes = sizes_of(n, [&q, &k, &v], [&lo, &hi, &at]);
            kinds(&l, &lse, &mut counts);
            let want = folded([&o, &l], (&out, &lse));
            let unit = [vec![0.0; o.len()], vec![EMPTY; l.len()]];
            let block: Vec<Host> = [vec![q, k, v], [lo, hi, at].map(|x| Host::new(Dtype::I32, x)).to_vec()].concat();
            let rows = vec![b, h, g, t];
            let list = [&shapes(n)[..], &[shapes(n)[0].clone(), rows.clone()]].concat();
            let results = vec![Type::new(Dtype::F32, shapes(n)[0].clone()), Type::new(Dtype::F32, rows)];
            let blank = [o.len(), l.len()].map(|n| Host { dtype: Dtype::F32, data: vec![f64::NAN; n] });
            let work = |name: &str, operands: &[Host]| Work::Function {
                name: name.into(),
                binds: Default::default(),
                operands: operands.iter().zip(&list).map(|(o, s)| Type::new(o.dtype, s.clone())).collect(),
                results: results.clone(),
            };
            let with = |[o, l]: [Vec<f64>; 2]| [&block[..], &[o, l].map(|x| Host::new(Dtype::F32, x))].concat();
            let (later, first) = (with([o, l]), with(unit));
            let (onto, partial) = (work("attention_onto", &later), work("attention_partial", &block));
            for k in LIST {
                let offers = k.schedules(&onto, &p.target).unwrap_or_default();
                assert_eq!(offers, k.schedules(&partial, &p.target).unwrap_or_default(), "{}: {n:?}", k.name());
                for sch in p.tries(offers, i / 2) {
                    let what = format!("{} {sch} on {}: {n:?}", k.name(), p.target.name);
                    let got = p.run(*k, &onto, &sch, &later, &blank);
                    let more: Vec<f64> = sizes.iter().map(|x| x * rounds(k.name(), dtype)).collect();
                    within(&format!("{what} out"), &got[0], &want[0], 3e-6, &more);
                    near(&format!("{what} lse"), &got[1], &want[1], 4e-6);
                    // The unit carries nothing.
                    let [begun, alone] =
                        [(&onto, &first), (&partial, &block)].map(|(w, x)| p.run(*k, w, &sch, x, &blank));
                    near(&format!("{what} out of the unit"), &begun[0], &alone[0], 1e-7);
                    near(&format!("{what} lse of the unit"), &begun[1], &alone[1], 1e-7);
                    runs += 1;
                }
            }
        }
        println!("{}: {runs} runs onto a carry right; queries by (before, now): {counts:?}", p.target.name);
        assert!(runs >= 12 && counts.iter().all(|c| *c > 0), "{runs} runs, {counts:?}");
    }
}

/// Queries that are few: B, H, G, T, S, D, and the parts that the keys are cut into, more than there are tiles among them.
const FEW: [(usize, usize, usize, usize, usize, usize, usize); 9] = [
    (1, 2, 7, 1, 531, 128, 5),
    (1, 1, 1, 1, 5, 16, 9),
    (2, 1, 7, 2, 200, 64, 3),
    (1, 1, 1, 16, 131, 40, 2),
    (1, 1, 3, 3, 70, 5, 7),
    (2, 2, 8, 1, 333, 80, 255),
    (1, 1, 2, 1, 70, 256, 4),
    (1, 3, 1, 1, 1, 8, 2),
    (1, 1, 13, 1, 97, 20, 6),
];

/// Keys cut into parts whose merge is a launch of its own: whatever is seen and carried, over memory that holds NaN.
#[test]
fn attention_in_parts() {
    let kernel = omchat_kernels::by_name("attention.split").unwrap();
    for p in devices() {
        let d = &mut Draw::of(81);
        let mut runs = 0;
        let mut counts = [0; 4];
        for (i, (b, h, g, t, s, width, parts)) in FEW.into_iter().enumerate() {
            let n = reference::Sizes { b, h, g, t, s, d: width };
            let dtype = if p.target.reads(Dtype::Bf16) && i % 2 == 0 {
                [Dtype::Bf16, Dtype::F16][i / 2 % 2]
            } else {
                Dtype::F32
            };
            let mut floats = |n: usize| Host::new(dtype, (0..n).map(|_| d.real(-2.0, 2.0)).collect::<Vec<_>>());
            let queries = b * h * g * t;
            let (q, k, v) = (floats(queries * width), floats(b * h * s * width), floats(b * h * s * width));
            let (mut lo, hi, at) = intervals(d, n);
            if i == 5 {
                // Nobody of the first batch sees anything.
                lo[..t].fill(f64::from(i32::MAX));
            }
            let [o, l] = carried(d, queries, width);
            let (out, lse) = reference::attention(n, &q.data, &k.data, &v.data, &lo, &hi, &at);
            kinds(&l, &lse, &mut counts);
            let onto = folded([&o, &l], (&out, &lse));
            let block: Vec<Host> = [vec![q, k, v], [lo, hi, at].map(|x| Host::new(Dtype::I32, x)).to_vec()].concat();
            let later = [&block[..], &[o, l].map(|x| Host::new(Dtype::F32, x))].concat();
            let rows = vec![b, h, g, t];
            let list = [&shapes(n)[..], &[shapes(n)[0].clone(), rows.clone()]].concat();
            let narrow = if p.target.holds(dtype) { dtype } else { Dtype::F32 };
            let cases = [
                ("attention_partial", &block, [&out, &lse], Dtype::F32),
                ("attention_onto", &later, [&onto[0], &onto[1]], Dtype::F32),
                ("attention", &block, [&out, &lse], narrow),
            ];
            for (name, operands, want, result) in cases.into_iter().take(if narrow == dtype { 3 } else { 2 }) {
                let types = [(result, shapes(n)[0].clone()), (Dtype::F32, rows.clone())];
                let work = Work::Function {
                    name: name.into(),
                    binds: Default::default(),
                    operands: operands.iter().zip(&list).map(|(o, s)| Type::new(o.dtype, s.clone())).collect(),
                    results: types.iter().map(|(dtype, s)| Type::new(*dtype, s.clone())).collect(),
                };
                let blank: Vec<Host> = types
                    .iter()
                    .zip(want)
                    .map(|((dtype, _), w)| Host { dtype: *dtype, data: vec![f64::NAN; w.len()] })
                    .collect();
                let Some(mut schedule) = kernel.schedules(&work, &p.target).ok().and_then(|s| s.into_iter().next())
                else {
                    continue;
                };
                schedule.0.insert("parts", parts as u32);
                schedule.0.insert("merge", if i % 3 == 1 { 32 } else { 64 });
                assert!(kernel.scratch(&work, &schedule) > 0);
                let what = format!("{name} {schedule} on {}: {n:?}", p.target.name);
                let got = p.run(kernel, &work, &schedule, operands, &blank);
                near(&format!("{what} out"), &got[0], want[0], if result == Dtype::F32 { 3e-6 } else { 1.0 / 200.0 });
                near(&format!("{what} lse"), &got[1], want[1], 4e-6);
                runs += 1;
            }
        }
        println!("{}: {runs} runs in parts right; queries by (before, now): {counts:?}", p.target.name);
        assert!(runs >= 2 * FEW.len() || p.target.family == omchat_codegen::Family::Cpu, "{runs} runs");
        assert!(counts.iter().all(|c| *c > 0), "{counts:?}");
    }
}

/// The schedule of a decode: parts enough for two cubes a core, none smaller than is worth a cube.
#[test]
fn parts_keep_every_core_busy() {
    let kernel = omchat_kernels::by_name("attention.split").unwrap();
    let offers = |h: usize, g: usize, s: usize| {
        let n = reference::Sizes { b: 1, h, g, t: 1, s, d: 128 };
        let [q, k, v, lo, hi, at] = shapes(n);
        let ty = |dtype, s: &[usize]| Type::new(dtype, s.to_vec());
        let floats = [q.clone(), k, v].map(|s| ty(Dtype::Bf16, &s));
        let operands = [floats, [lo, hi, at].map(|s| ty(Dtype::I32, &s))].concat();
        let work = Work::Function {
            name: "attention".into(),
            binds: Default::default(),
            operands,
            results: vec![ty(Dtype::Bf16, &q), ty(Dtype::F32, &[1, h, g, 1])],
        };
        let all = kernel.schedules(&work, &omchat_codegen::Target::cuda(90)).unwrap();
        all.iter().map(|s| (s.get("parts"), kernel.scratch(&work, s))).collect::<Vec<_>>()
    };
    let words = |parts: usize, floats: usize| vec![(parts as u32, floats), (parts as u32, floats), (1, 0)];
    // 4 heads of 64 parts of 7 rows of 128 values and an lse.
    assert_eq!(offers(4, 7, 16384), words(64, 4 * 64 * 7 * 129));
    assert_eq!(offers(4, 7, 640), words(8, 4 * 8 * 7 * 129));
    assert_eq!(offers(1, 16, 1 << 20), words(128, 2 * 128 * 8 * 129));
    // One part merges nothing.
    assert_eq!(offers(4, 7, 64), [(1, 0), (1, 0)]);
    assert_eq!(offers(264, 1, 4096), [(1, 0), (1, 0)]);
}

/// A hop: the function's name and its operands, to outputs and logarithms.
type Hop<'a> = dyn Fn(&str, Vec<Host>) -> [Vec<f64>; 2] + 'a;

/// Root mean square errors of hops over the keys, as they come and rounded to bf16.
fn ring_error(run: &Hop, block: &[Host], want: &[f64], ranks: usize) -> [f64; 2] {
    let keys = block[5].data.len() / ranks;
    let of = |h: &Host, r: usize| {
        let size = h.data.len() / ranks;
        Host::new(h.dtype, h.data[r * size..(r + 1) * size].to_vec())
    };
    let hop = |r: usize| {
        vec![block[0].clone(), of(&block[1], r), of(&block[2], r), block[3].clone(), block[4].clone(), of(&block[5], r)]
    };
    assert!(keys > 0);
    let mut carry = run("attention_partial", hop(0));
    for r in 1..ranks {
        let before = carry.map(|x| Host::new(Dtype::F32, x));
        carry = run("attention_onto", [hop(r), before.to_vec()].concat());
    }
    let rms = |round: &dyn Fn(f64) -> f64| {
        let sum: f64 = carry[0].iter().zip(want).map(|(g, w)| (round(*g) - w).powi(2)).sum();
        (sum / want.len() as f64).sqrt()
    };
    [rms(&|x| x), rms(&|x| Dtype::Bf16.round(x))]
}

/// Each kernel's hops over 2 and over 16 ranks, of keys in any order.
#[test]
fn attention_in_hops_does_not_lose_by_ranks() {
    let n = reference::Sizes { b: 1, h: 1, g: 2, t: 8, s: 256, d: 32 };
    for p in devices() {
        let d = &mut Draw::of(80);
        let mut floats =
            |n: usize| Host::new(Dtype::F32, (0..n).map(|_| Dtype::Bf16.round(d.real(-2.0, 2.0))).collect());
        let (q, k, v) = (floats(n.g * n.t * n.d), floats(n.s * n.d), floats(n.s * n.d));
        let mut at: Vec<f64> = (0..n.s).map(|s| s as f64).collect();
        (1..n.s).rev().for_each(|i| at.swap(i, d.below(i + 1)));
        let (lo, hi) = (vec![0.0; n.t], (0..n.t).map(|t| (t * 36) as f64).collect::<Vec<f64>>());
        let want = reference::attention(n, &q.data, &k.data, &v.data, &lo, &hi, &at).0;
        let block = [vec![q, k, v], [lo, hi, at].map(|x| Host::new(Dtype::I32, x)).to_vec()].concat();
        let rows = vec![1, 1, n.g, n.t];
        let results = [[&rows[..], &[n.d]].concat(), rows.clone()].map(|s| Type::new(Dtype::F32, s));
        let blank = results.clone().map(|t| Host { dtype: Dtype::F32, data: vec![f64::NAN; t.elements()] });
        let mut kernels = 0;
        for kernel in LIST {
            let work = |name: &str, operands: &[Host]| {
                let keys = operands[5].data.len();
                let shapes = shapes(reference::Sizes { s: keys, ..n });
                let block = operands.iter().zip(shapes).map(|(o, s)| Type::new(o.dtype, s));
                let carry = results.iter().take(operands.len() - 6).cloned();
                let operands = block.chain(carry).collect();
                Work::Function { name: name.into(), binds: Default::default(), operands, results: results.to_vec() }
            };
            let offers = kernel.schedules(&work("attention_partial", &block), &p.target).unwrap_or_default();
            let Some(schedule) = offers.first() else { continue };
            let run = |name: &str, operands: Vec<Host>| {
                let mut got = p.run(*kernel, &work(name, &operands), schedule, &operands, &blank).into_iter();
                [got.next().unwrap(), got.next().unwrap()]
            };
            let [two, sixteen] = [2, 16].map(|ranks| ring_error(&run, &block, &want, ranks));
            let ratios = [sixteen[0] / two[0], sixteen[1] / two[1]];
            println!(
                "{} on {}: f32 error R=2 {:.2e}, R=16 {:.2e}, ratio {:.3}; rounded to bf16 {:.2e}, ratio {:.4}",
                kernel.name(),
                p.target.name,
                two[0],
                sixteen[0],
                ratios[0],
                two[1],
                ratios[1]
            );
            assert!(two[1] > 0.0 && ratios[1] <= 1.05 && sixteen[0] < 1e-6, "{}: {two:?}, {sixteen:?}", kernel.name());
            kernels += 1;
        }
        assert!(kernels >= 2, "{}: {kernels} kernels", p.target.name);
    }
}

/// Blocks of queries on the CPU are even: none is left with a query or two, for which all keys would be packed again.
#[test]
fn blocks_of_queries_are_even() {
    let kernel = omchat_kernels::by_name("attention.rows").unwrap();
    let rows = |h: usize, t: usize| {
        let [f, i] = [Dtype::F32, Dtype::I32];
        let [q, k] = [Type::new(f, [1, h, 1, t, 64]), Type::new(f, [1, h, t, 64])];
        let at = Type::new(i, [1, t]);
        let operands = vec![q.clone(), k.clone(), k, at.clone(), at.clone(), at];
        let results = vec![q, Type::new(f, [1, h, 1, t])];
        let work = Work::Function { name: "attention".into(), binds: Default::default(), operands, results };
        kernel.schedules(&work, &Target::cpu(2)).unwrap()[0].get("rows")
    };
    // 256 patches and what stands before them.
    assert_eq!([rows(24, 257), rows(24, 1025), rows(24, 1024), rows(24, 383)], [260, 260, 256, 384]);
    assert_eq!([rows(24, 384), rows(1, 257), rows(1, 20), rows(1, 4)], [192, 20, 16, 4]);
}

/// A tile of 64 keys is not worth padding 8 keys to, and a long row is not for a unit a query.
#[test]
fn the_cost_model_counts_what_tiles_pad() {
    let list: Vec<&dyn Kernel> = LIST.iter().map(|k| *k as &dyn Kernel).collect();
    for name in ["attention", "attention_dq", "attention_dkv"] {
        for (long, want) in [(8, "plain"), (256, "rows")] {
            let (b, h, d) = (32, 4, 32);
            let [f, i] = [Dtype::F32, Dtype::I32];
            let [rows, keys] = [Type::new(f, [b, h, 1, long, d]), Type::new(f, [b, h, long, d])];
            let [at, lse] = [Type::new(i, [b, long]), Type::new(f, [b, h, 1, long])];
            let mut operands = vec![rows.clone(), keys.clone(), keys.clone(), at.clone(), at.clone(), at];
            if name != "attention" {
                operands.extend([lse.clone(), lse.clone(), rows.clone()]);
            }
            let results = match name {
                "attention" => vec![rows, lse],
                "attention_dq" => vec![rows],
                _ => vec![keys.clone(), keys],
            };
            let sizes = [("B", b), ("H", h), ("G", 1), ("T", long), ("S", long), ("D", d)];
            let mut binds: std::collections::BTreeMap<String, Bind> =
                sizes.into_iter().map(|(l, n)| (l.to_string(), Bind::Size(n))).collect();
            binds.insert("E".into(), Bind::Dtype(f));
            let work = Work::Function { name: name.into(), binds, operands, results };
            let (found, refusals) = offers(&work, &Target::cpu(2), &list);
            let taken = found[preferred(&found).unwrap()].kernel.name();
            assert_eq!(taken, format!("{name}.{want}"), "{long} keys: {refusals:?}");
        }
    }
}
