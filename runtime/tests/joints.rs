//! Launches made as one give what they give one by one, bit for bit, and what the interpreter says.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_codegen::Program;
use omchat_ir::{Func, Mode, Module, Tensor, Type, interpret, parse};
use omchat_runtime::{Device, Executable, HostTensor, Store, Trial, program};
use std::ops::Range;

const LAYERS: usize = 10;

/// Layers of a decode of `t` tokens: a norm, queries, attention over a state that it writes, and two products; `e` as the
/// element. No size is a multiple of a vector or a tile.
fn module([t, c, f, h, g, d, s]: [usize; 7], e: &str) -> (Module, Func) {
    let mut text = format!(
        "func @f(%x: {e}[{t}, {c}], %w: {e}[{c}], %wq: {e}[1, {h}, {g}, {d}, {c}], %wk: {e}[1, {h}, {d}, {c}], \
         %wo: {e}[{c}, {h}, {g}, {d}], %up: {e}[{f}, {c}], %down: {e}[{c}, {f}], %start: i32, %lo: i32[1, {t}], \
         %hi: i32[1, {t}], %at: i32[1, {s}], %eps: f32"
    );
    for i in 0..LAYERS {
        text += &format!(", state %k{i}: {e}[1, {h}, {s}, {d}]");
    }
    text += &format!(") -> ({e}[{t}, {c}]");
    text += &format!(", {e}[1, {h}, {s}, {d}]").repeat(LAYERS);
    text += ") {\n";
    for i in 0..LAYERS {
        text += &format!(
            "%n = call @rms_norm(%x, %w, %eps)\n\
             %q = einsum.{e} %n, %wq \"t c, b h g d c -> b h g t d\"\n\
             %new = einsum.{e} %n, %wk \"t c, b h d c -> b h t d\"\n\
             %k{i} = update_slice %k{i}, %new, %start axis=2\n\
             %o, %l = call @attention(%q, %k{i}, %k{i}, %lo, %hi, %at)\n\
             %y = einsum.{e} %o, %wo \"b h g t d, c h g d -> t c\"\n\
             %x = add %x, %y\n\
             %m = call @rms_norm(%x, %w, %eps)\n\
             %z = einsum.{e} %m, %up \"t c, f c -> t f\"\n\
             %z = logistic %z\n\
             %z = einsum.{e} %z, %down \"t f, c f -> t c\"\n\
             %x = add %x, %z\n"
        );
    }
    text += "return %x";
    for i in 0..LAYERS {
        text += &format!(", %k{i}");
    }
    text += "\n}";
    let m = parse(&text).unwrap_or_else(|e| panic!("{}", e.render("chains", &text)));
    let f = m.named("f").unwrap();
    (m, f)
}

fn inputs(m: &Module, f: Func, seed: u64, start: usize) -> Vec<Tensor> {
    let mut seed = seed;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as f64 / f64::from(1u32 << 30) - 1.0
    };
    let types: Vec<Type> = m.function(f).param_types();
    let one = |(i, t): (usize, &Type)| {
        let width = t.shape.last().copied().unwrap_or(1) as f64;
        let data = (0..t.elements()).map(|j| match i {
            7 => start as f64,
            8 => (j % 2) as f64,
            9 => (start + j) as f64,
            10 => j as f64,
            11 => 1e-5,
            2..=6 => next() * 1.7 / width.sqrt(),
            _ => next(),
        });
        Tensor::new(t.clone(), data.collect()).unwrap().rounded()
    };
    types.iter().enumerate().map(one).collect()
}

/// T, C, F, heads, queries a head, D, slots.
const SIZES: [[usize; 7]; 4] =
    [[1, 96, 200, 3, 3, 32, 700], [1, 67, 130, 1, 5, 24, 77], [2, 80, 81, 2, 1, 40, 300], [1, 64, 64, 3, 1, 16, 1100]];

/// Runs the layers as they are planned and launch by launch: the same bits; and as an executable, run after run: what the
/// interpreter says.
fn joined(device: &Device, sizes: [usize; 7], e: &str, seed: u64, planned: impl Fn(&Program) -> &Vec<Range<usize>>) {
    let (m, f) = module(sizes, e);
    let operands = inputs(&m, f, seed, sizes[6] * 2 / 3);
    let hosts: Vec<HostTensor> = operands.iter().map(HostTensor::from_tensor).collect();
    let whole = program(&m, f, &device.target()).unwrap();
    let lengths: Vec<usize> = planned(&whole).iter().map(Range::len).collect();
    assert!(
        lengths.len() >= LAYERS - 1 && lengths.iter().all(|n| *n == lengths[0]),
        "{sizes:?} {e}: {lengths:?}\n{whole}"
    );
    let mut single = whole.clone();
    single.chains.clear();
    single.horizontals.clear();
    let [joined, alone] =
        [whole, single].map(|p| Trial::new(device, p, &hosts, false).unwrap().outcome().unwrap().remove(0));
    assert_eq!(joined.bytes, alone.bytes, "{sizes:?} {e}");
    // And as it is used: the states too, run after run.
    let exe = Executable::load(device, &m, f).unwrap();
    let mut store = Store::default();
    let params = exe.params();
    for (p, h) in params.iter().zip(&hosts).skip(12) {
        store.upload(device, &p.name, h);
    }
    let fed: Vec<(&str, HostTensor)> =
        params.iter().zip(&hosts).take(12).map(|(p, h)| (p.name.as_str(), h.clone())).collect();
    // The third run records the launches, where a device can, and the fourth replays them.
    let runs: Vec<HostTensor> = (0..4).map(|_| exe.run(&fed, &mut store).unwrap().remove(0)).collect();
    assert!(runs.iter().all(|r| r.bytes == joined.bytes), "{sizes:?} {e}");
    let want = HostTensor::from_tensor(&interpret(&m, f, vec![operands], Mode::Typed).unwrap().remove(0)[0]).to_f32();
    let slack = if e == "f32" { 2e-4 } else { 0.08 };
    let top = want.iter().fold(1.0f32, |a, x| a.max(x.abs()));
    for (j, (w, g)) in want.iter().zip(runs[0].to_f32()).enumerate() {
        assert!((w - g).abs() <= slack * top, "{sizes:?} {e}: [{j}] is {g}, not {w}");
    }
}

#[test]
fn chains_are_their_launches() {
    let Ok(device @ Device::Cube { .. }) = Device::open("cpu") else {
        println!("skipped: cpu: not built in");
        return;
    };
    for (i, (sizes, e)) in SIZES.into_iter().zip(["f32", "bf16", "f16", "bf16"]).enumerate() {
        joined(&device, sizes, e, 5 + i as u64, |p| &p.chains);
    }
}

#[test]
fn launches_side_by_side_are_their_launches() {
    for name in ["wgpu", "cuda"] {
        let Ok(device @ Device::Cube { .. }) = Device::open(name) else {
            println!("skipped: {name}: not built in, or there is none");
            continue;
        };
        let halves = device.target().holds(omchat_ir::Dtype::Bf16);
        for (i, (sizes, e)) in SIZES.into_iter().zip(["f32", "bf16", "f16", "bf16"]).enumerate() {
            joined(&device, sizes, if halves { e } else { "f32" }, 25 + i as u64, |p| &p.horizontals);
        }
    }
}
