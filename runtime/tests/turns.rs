//! Drivers that end a unit's loops after so many turns: what is offered there stays below, and is right near the limit.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_codegen::{Chosen, Kernel, Target, offers};
use omchat_ir::{Func, Mode, Module, Tensor, Type, interpret, parse};
use omchat_kernels::LIST;
use omchat_runtime::{Device, HostTensor, Trial, program};

/// Programs of one launch that come near the limit, and the kernel of which some schedule must.
const NEAR: [(&str, &str); 10] = [
    ("fold.plain", "(%x: f32[60000, 3]) -> (f32[3]) { %y = reduce.sum %x \"r c -> c\" return %y }"),
    ("kth_largest.plain", "(%x: f32[3, 1900]) -> (f32[3]) { %y = kth_largest %x \"b v -> b\" k=700 return %y }"),
    (
        "rms_norm.rows",
        "(%x: f32[2, 30000], %w: f32[30000], %eps: f32) -> (f32[2, 30000]) { %y = call @rms_norm(%x, %w, %eps) return %y }",
    ),
    (
        "einsum.tiled",
        "(%a: f32[16, 50000], %b: f32[17, 50000]) -> (f32[16, 17]) { %y = einsum.f32 %a, %b \"m k, n k -> m n\" return %y }",
    ),
    (
        "einsum.dot",
        "(%a: f32[3, 200000], %b: f32[3, 200000]) -> (f32[3, 3]) { %y = einsum.f32 %a, %b \"m k, n k -> m n\" return %y }",
    ),
    (
        "einsum.rows",
        "(%a: f32[3, 60000], %b: f32[60000, 8]) -> (f32[3, 8]) { %y = einsum.f32 %a, %b \"m k, k n -> m n\" return %y }",
    ),
    (
        "scatter_add.plain",
        "(%t: f32[7, 3], %i: i32[15000], %r: f32[15000, 3]) -> (f32[7, 3]) { %y = scatter_add %t, %i, %r \"v d, t, t d -> v d\" return %y }",
    ),
    (
        "attention.tiled",
        "(%q: f32[1, 1, 3, 4, 8], %k: f32[1, 1, 40000, 8], %v: f32[1, 1, 40000, 8], %lo: i32[1, 4], %hi: i32[1, 4], %at: i32[1, 40000]) -> (f32[1, 1, 3, 4, 8], f32[1, 1, 3, 4]) { %o, %l = call @attention(%q, %k, %v, %lo, %hi, %at) return %o, %l }",
    ),
    (
        "attention.plain",
        "(%q: f32[1, 1, 1, 2, 40], %k: f32[1, 1, 63000, 40], %v: f32[1, 1, 63000, 40], %lo: i32[1, 2], %hi: i32[1, 2], %at: i32[1, 63000]) -> (f32[1, 1, 1, 2, 40], f32[1, 1, 1, 2]) { %o, %l = call @attention(%q, %k, %v, %lo, %hi, %at) return %o, %l }",
    ),
    (
        "attention_dkv.plain",
        "(%q: f32[1, 1, 2, 30000, 8], %k: f32[1, 1, 5, 8], %v: f32[1, 1, 5, 8], %lo: i32[1, 30000], %hi: i32[1, 30000], %at: i32[1, 5], %l: f32[1, 1, 2, 30000], %e: f32[1, 1, 2, 30000], %d: f32[1, 1, 2, 30000, 8]) -> (f32[1, 1, 5, 8], f32[1, 1, 5, 8]) { %a, %b = call @attention_dkv(%q, %k, %v, %lo, %hi, %at, %l, %e, %d) return %a, %b }",
    ),
];

fn module(text: &str) -> (Module, Func) {
    let text = format!("func @f{}", text.replace("{ ", "{\n").replace(" return", "\nreturn").replace(" }", "\n}"));
    let m = parse(&text).unwrap_or_else(|e| panic!("{}", e.render("turns", &text)));
    let f = m.named("f").unwrap();
    (m, f)
}

fn kernels() -> Vec<&'static dyn Kernel> {
    LIST.iter().map(|k| *k as &dyn Kernel).collect()
}

/// Drawn floats; intervals that see all, and every key at its place; ids in turn.
fn inputs(m: &Module, f: Func) -> Vec<Tensor> {
    let mut seed = 5u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as f64 / f64::from(1u32 << 30) - 1.0
    };
    let function = m.function(f);
    let one = |(i, t): (usize, &Type)| {
        let hi = i == 4;
        let data = (0..t.elements()).map(|j| match (t.dtype.is_float(), hi) {
            (true, _) => next(),
            (false, true) => f64::from(i32::MAX),
            (false, false) if i == 3 => 0.0,
            (false, false) => (j % 7) as f64,
        });
        Tensor::new(t.clone(), data.collect()).unwrap().rounded()
    };
    function.param_types().iter().enumerate().map(one).collect()
}

#[test]
fn what_is_offered_near_the_limit_is_right() {
    let device = match Device::open("wgpu") {
        Ok(device @ Device::Cube { .. }) if device.target().software => device,
        Ok(device) => return println!("skipped: {} counts no turns", device.name()),
        Err(e) => return println!("skipped: wgpu: {e}"),
    };
    let target = device.target();
    for (kernel, text) in NEAR {
        let (m, f) = module(text);
        let given = inputs(&m, f);
        let want = interpret(&m, f, vec![given.clone()], Mode::Exact).unwrap().remove(0);
        let operands: Vec<HostTensor> = given.iter().map(HostTensor::from_tensor).collect();
        let p = program(&m, f, &target).unwrap();
        let takes = |c: &Chosen| offers(&c.work, &target, &kernels()).0.iter().any(|o| o.kernel.name() == kernel);
        let at = p.chosen.iter().position(takes).unwrap_or_else(|| panic!("{kernel} is not offered\n{p}"));
        let work = p.chosen[at].work.clone();
        let mut most = 0;
        for offer in offers(&work, &target, &kernels()).0 {
            let turns = offer.kernel.turns(&work, &offer.schedule);
            let what = format!("{} [{}], {turns} turns", offer.kernel.name(), offer.schedule);
            most = most.max(if offer.kernel.name() == kernel { turns } else { 0 });
            let q = p.with(at, offer.kernel, offer.schedule).unwrap();
            let have = Trial::new(&device, q, &operands, false).unwrap().outcome().unwrap();
            for (h, w) in have.iter().map(HostTensor::to_tensor).zip(&want) {
                let size = w.data.iter().fold(1.0f64, |a, b| a.max(b.abs()));
                for (i, (a, b)) in h.data.iter().zip(&w.data).enumerate() {
                    assert!((a - b).abs() <= 2e-4 * size, "{what}: [{i}] is {a}, not {b}");
                }
            }
        }
        assert!(most > target.turns / 2, "{kernel}: {most} turns are far from {}", target.turns);
    }
}

#[test]
fn more_turns_than_a_driver_takes_are_refused_by_number() {
    let (any, counts) = (Target::wgpu(), Target { turns: 65_535, ..Target::wgpu() });
    for (kernel, text) in NEAR {
        let longest = ["60000", "1900", "30000", "50000", "15000", "40000", "63000", "200000"];
        let text = longest.iter().fold(text.to_string(), |text, n| text.replace(n, &format!("{n}0")));
        let (m, f) = module(&text);
        let p = program(&m, f, &any).unwrap();
        let refusals: Vec<_> = p.chosen.iter().flat_map(|c| offers(&c.work, &counts, &kernels()).1).collect();
        let said = |(name, why): &(&str, String)| *name == kernel && why.contains("turns, wgpu ends them after 65535");
        assert!(refusals.iter().any(said), "{kernel}: {refusals:?}");
    }
}
