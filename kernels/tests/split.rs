//! Einsums whose k is cut among cubes: parts of any number at odd sizes, every way that factors can lie, with epilogues;
//! and where the cost model expects a gain of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Each test file brings its own `common`.
#![allow(clippy::duplicate_mod)]

mod common;

use std::collections::BTreeMap;

use common::Draw;
use common::device::devices;
use common::einsum::{Shape, case};
use omchat_codegen::{Kernel, Schedule, Target, offers, preferred};
use omchat_ir::Dtype;
use omchat_kernels::{LIST, by_name};

/// Kernels that cut k.
const KERNELS: [&str; 4] = ["einsum.wgmma", "einsum.mma", "einsum.tf32", "einsum.tiled"];

/// The schedules of a kernel for large work whose factors lie so, by the smallest tile first, without a cut.
fn tiles(kernel: &dyn Kernel, dtype: Dtype, along: [bool; 2], target: &Target) -> Vec<Schedule> {
    let work = case(&mut Draw::of(0), Shape { along, ..Shape::of(160, 160, 64, dtype) }).work();
    let mut all = kernel.schedules(&work, target).unwrap_or_default();
    all.retain(|s| !s.0.contains_key("split"));
    all.sort_by_key(|s| s.get("m") * s.get("n"));
    all
}

fn cut(s: &Schedule, parts: u32) -> Schedule {
    let mut words = s.0.clone();
    words.insert("split", parts);
    Schedule(words)
}

/// Shapes and parts (one part: no cut): one, primes, fewer steps than parts, k that parts do not divide, batches, factors on their sides,
/// two axes of k that no view walks as one.
fn drawn(d: &mut Draw, dtype: Dtype) -> (Shape, u32) {
    let k = [[1, d.pick(&[1, 7, 40, 97, 256])], [d.pick(&[2, 3, 5]), d.pick(&[8, 33, 64])]];
    let shape = Shape {
        batch: d.pick(&[1, 2, 3]),
        m: d.pick(&[1, 2, 9, 31, 64, 67]),
        n: d.pick(&[2, 8, 13, 40, 66]),
        k: d.pick(&k),
        along: [d.chance(60), d.chance(60)],
        offset: [d.pick(&[0, 0, 8, 3]), d.pick(&[0, 0, 16, 1])],
        dtype,
        out: d.pick(&[dtype, Dtype::F32]),
        slack: d.pick(&[0, 0, 1, 6]),
    };
    (shape, d.pick(&[1, 2, 3, 4, 5, 7, 8, 16]))
}

/// The same in whole 16 bytes, as Hopper's matrix units take factors.
fn whole(s: Shape) -> Shape {
    let up = |n: usize| n.next_multiple_of(8);
    // Of two axes of k the same one must be innermost in both.
    let along = if s.k[0] > 1 { [s.along[0]; 2] } else { s.along };
    Shape { m: up(s.m), n: up(s.n), k: [s.k[0], up(s.k[1])], along, offset: s.offset.map(|o| o / 8 * 8), ..s }
}

fn tried(seed: u64, cases: u64) {
    let mut ran: BTreeMap<String, usize> = BTreeMap::new();
    for p in devices() {
        let target = p.target.clone().with_tf32();
        for name in KERNELS {
            let kernel = by_name(name).unwrap();
            let d = &mut Draw::of(seed);
            for i in 0..p.draws(cases) {
                let dtype = match (name, i % 2) {
                    ("einsum.tf32", _) => Dtype::F32,
                    ("einsum.tiled", 0) => Dtype::F32,
                    (_, 0) => Dtype::F16,
                    _ => Dtype::Bf16,
                };
                if !target.holds(dtype) {
                    continue;
                }
                let (shape, parts) = drawn(d, dtype);
                let shape = if name == "einsum.wgmma" { whole(shape) } else { shape };
                let tiles = tiles(kernel, dtype, shape.along, &target);
                let Some(tile) = tiles.get(i as usize % tiles.len().max(1)) else { continue };
                let (c, s) = (case(d, shape), if parts > 1 { cut(tile, parts) } else { tile.clone() });
                // The scratch memory holds no numbers before, as the results.
                let got = p.run(kernel, &c.work(), &s, &c.operands, &c.results);
                if let Some(wrong) = c.wrong(&got[0], kernel.rounding()) {
                    panic!("{name} [{s}] on {}, seed {seed}: {wrong}", target.name);
                }
                *ran.entry(format!("{} {name}", target.name)).or_default() += 1;
            }
        }
    }
    println!("{ran:?}");
    for p in devices().iter().filter(|p| p.target.sm >= 80) {
        let all = KERNELS.iter().filter(|k| **k != "einsum.wgmma" || p.target.sm == 90);
        for name in all {
            let target = p.target.clone().with_tf32();
            assert!(ran.contains_key(&format!("{} {name}", target.name)), "{name} ran nowhere: {ran:?}");
        }
    }
}

#[test]
fn parts_of_k_make_the_whole() {
    tried(3, 24);
}

#[test]
fn parts_of_k_make_the_whole_for_another_seed() {
    tried(71, 12);
}

/// Kernel, tile and parts that are taken on an H200 for `m` rows of bf16.
fn taken(m: usize, n: usize, k: usize) -> (Schedule, f64, f64) {
    let mut shape = Shape::of(1, 2, 1, Dtype::Bf16);
    (shape.m, shape.n, shape.k) = (2, 2, [1, 8]);
    let mut c = case(&mut Draw::of(1), shape);
    (c.nest.kept, c.nest.folded) = (vec![1, m, n], vec![1, k]);
    (c.nest.reads[0].strides, c.nest.reads[1].strides) = (vec![m * k, k, 0, k, 1], vec![n * k, 0, k, k, 1]);
    c.nest.reads[3].strides = vec![m * n, n, 1, 0, 0];
    c.nest.writes[0].strides = vec![m * n, n, 1];
    let list: Vec<&dyn Kernel> = LIST.iter().map(|k| *k as &dyn Kernel).collect();
    let (all, _) = offers(&c.work(), &Target::cuda(90), &list);
    let best = &all[preferred(&all).unwrap()];
    let plain: Vec<_> = all.iter().filter(|o| o.scratch == 0).cloned().collect();
    let before = &plain[preferred(&plain).unwrap()];
    (best.schedule.clone(), before.seconds * 1e6, best.seconds * 1e6)
}

#[test]
fn k_is_cut_where_there_are_few_tiles_and_nowhere_else() {
    // Out of the decoder's MLP and into it, its projections, keys, logits; the tower's; gradients of weights.
    let shapes = [
        (3584, 18944, "mlp out"),
        (18944, 3584, "mlp in"),
        (3584, 3584, "q, o"),
        (512, 3584, "k, v"),
        (152_064, 3584, "logits"),
        (3200, 12800, "tower mlp out"),
        (12800, 3200, "tower mlp in"),
        (3200, 3200, "tower o"),
    ];
    let mut cut = BTreeMap::new();
    for (n, k, what) in shapes {
        for m in [1, 8, 16, 64, 128, 256, 1024, 2048] {
            let (s, before, now) = taken(m, n, k);
            println!("| {what} | {m} x {n} x {k} | {before:.1} | {now:.1} | {:.2} | {s} |", before / now);
            assert!(now <= before, "{what} {m}: {now} us with parts, {before} without");
            cut.insert((what, m), s.0.contains_key("split") && s.0.contains_key("m"));
        }
    }
    for (m, n, k, what) in [
        (512, 3584, 2048, "dW of k, v"),
        (512, 3584, 32768, "dW of k, v"),
        (3584, 3584, 2048, "dW of q, o"),
        (256, 1024, 65536, "dW of a small model"),
    ] {
        let (s, before, now) = taken(m, n, k);
        println!("| {what} | {m} x {n} x {k} | {before:.1} | {now:.1} | {:.2} | {s} |", before / now);
    }
    let is = |what, m| cut[&(what, m)];
    assert!(is("mlp out", 64) && is("mlp out", 256) && is("k, v", 64), "{cut:?}");
    assert!(![1, 8].iter().any(|m| is("mlp out", *m)), "{cut:?}");
    let many = ["mlp out", "mlp in", "q, o", "logits", "tower mlp out"];
    assert!(!many.iter().any(|what| is(what, 2048)) && !is("logits", 64), "{cut:?}");
}

#[test]
fn more_parts_need_more_memory_and_are_bounded() {
    let target = Target::cuda(90);
    for (m, n, k) in [(64, 3584, 18944), (16, 64, 1 << 20), (4096, 4096, 4096), (64, 64, 64)] {
        let mut most = 0;
        let mut c = case(&mut Draw::of(1), Shape::of(2, 2, 8, Dtype::Bf16));
        (c.nest.kept, c.nest.folded) = (vec![1, m, n], vec![1, k]);
        (c.nest.reads[0].strides, c.nest.reads[1].strides) = (vec![m * k, k, 0, k, 1], vec![n * k, 0, k, k, 1]);
        for name in ["einsum.wgmma", "einsum.mma"] {
            let kernel = by_name(name).unwrap();
            for s in kernel.schedules(&c.work(), &target).unwrap() {
                let parts = s.get("split") as usize;
                assert_eq!(kernel.scratch(&c.work(), &s), if parts > 1 { m * n * parts } else { 0 }, "{name} {s}");
                let tile = |size: usize, word: &str| size.div_ceil(s.get(word) as usize);
                let cubes = tile(m, "m") * tile(n, "n") * parts;
                assert!(parts == 1 || cubes <= 2 * target.cores as usize, "{name} {s} for {m} x {n} x {k}");
                most = most.max(parts);
            }
        }
        assert!(most <= 32 && (most > 1) == (m < 100 && k > 1000), "{m} x {n} x {k}: {most}");
    }
}
