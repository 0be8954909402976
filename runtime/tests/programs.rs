//! Whole programs on every device present, against the interpreter: every op sample and library functions, with
//! odd sizes. Results are read back from memory that other programs have dirtied.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_ir::{Dtype, Func, Mode, Module, Op, Role, Tensor, Type, interpret, parse};
use omchat_runtime::{Device, Executable, HostTensor, Store};

fn random(ty: &Type, seed: &mut u64) -> Tensor {
    let mut next = || {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) as f64 / f64::from(1u32 << 31)
    };
    let data = (0..ty.elements())
        .map(|_| match ty.dtype {
            Dtype::I32 => (next() * 9.0).floor() - 2.0,
            Dtype::Bool => f64::from(u8::from(next() > 0.5)),
            _ => next() * 2.0 + 0.1,
        })
        .collect();
    Tensor::new(ty.clone(), data).unwrap().rounded()
}

fn devices() -> Vec<Device> {
    ["cpu", "wgpu", "cuda"]
        .iter()
        .filter_map(|name| match Device::open(name) {
            Ok(d) => Some(d),
            Err(e) => {
                println!("skipped: {name}: {e}");
                None
            }
        })
        .collect()
}

/// Error of a device run against `Exact` must be at most twice that of the `Typed` interpreter, plus a little.
fn check(device: &Device, module: &Module, entry: Func, label: &str, seed: &mut u64) {
    let f = module.function(entry);
    let inputs: Vec<Tensor> = f.param_types().iter().map(|t| random(t, seed)).collect();
    let exact = interpret(module, entry, vec![inputs.clone()], Mode::Exact).unwrap().remove(0);
    let typed = interpret(module, entry, vec![inputs.clone()], Mode::Typed).unwrap().remove(0);
    let exe = Executable::load(device, module, entry).unwrap_or_else(|e| panic!("{label} on {}: {e}", device.name()));
    let mut store = Store::default();
    let mut feed = vec![];
    for ((v, role), t) in f.param_values().zip(&f.params).zip(&inputs) {
        let host = HostTensor::from_tensor(t);
        match role {
            Role::Input => feed.push((f.value(v).name.as_str(), host)),
            _ => store.upload(device, &f.value(v).name, &host),
        }
    }
    let have = exe.run(&feed, &mut store).unwrap_or_else(|e| panic!("{label} on {}: {e}", device.name()));
    for ((h, e), t) in have.iter().map(HostTensor::to_tensor).zip(&exact).zip(&typed) {
        let top = e.data.iter().fold(1e-6f64, |a, b| if b.abs() < 1e29 { a.max(b.abs()) } else { a });
        let off = |x: &Tensor| {
            x.data.iter().zip(&e.data).fold(0f64, |a, (x, y)| {
                let d = (x - y).abs();
                if d.is_nan() { f64::INFINITY } else { a.max(d) }
            })
        };
        assert_eq!(h.ty.shape, e.ty.shape);
        assert!(
            off(&h) <= 2.0 * off(t) + 2e-6 * top,
            "{label} on {}: off by {} of {top}, typed {}\n{}",
            device.name(),
            off(&h),
            off(t),
            exe.program().map(ToString::to_string).unwrap_or_default()
        );
    }
}

#[test]
fn op_samples_match_the_interpreter() {
    let mut seed = 11;
    for device in devices() {
        for text in Op::samples() {
            let m = parse(&text).unwrap();
            check(&device, &m, m.named("f").unwrap(), &text, &mut seed);
        }
    }
}

#[test]
fn library_matches_the_interpreter() {
    let text = "
func @norms(%x: bf16[5, 33], %w: bf16[33]) -> (bf16[5, 33], bf16[5, 33]) {
    %n = call @rms_norm(%x, %w, 1e-6)
    %l = call @layer_norm(%n, %w, %w, 1e-5)
    return %n, %l
}
func @block(%x: f32[5, 24], %w: f32[24], %gate: f32[37, 24], %down: f32[24, 37], %b: f32[37]) -> (f32[5, 24], f32[5, 37]) {
    %n = call @rms_norm(%x, %w, 1e-6)
    %m = call @swiglu_mlp(%n, %gate, %gate, %down)
    %y = add %x, %m
    %l = call @linear(%y, %gate, %b)
    %g = call @gelu(%l)
    return %y, %g
}
func @attend(%q: f32[1, 2, 3, 5, 24], %k: f32[1, 2, 37, 24], %v: f32[1, 2, 37, 24], %lo: i32[1, 5], %hi: i32[1, 5], %at: i32[1, 37], %cos: f32[5, 12], %sin: f32[5, 12]) -> (f32[1, 2, 3, 5, 24], f32[1, 2, 3, 5]) {
    %r = call @rope(%q, %cos, %sin)
    %o, %l = call @attention(%r, %k, %v, %lo, %hi, %at)
    return %o, %l
}
func @losses(%x: f32[5, 6], %big: f32[9, 6], %labels: i32[5], %ref: f32[5]) -> (f32[5], f32, f32) {
    %nll, %lse = call @linear_cross_entropy(%x, %big, %labels)
    %sl, %keep = call @selective_loss[K=2, V=9](%nll, %ref, %labels)
    %mean = call @masked_mean[V=9](%nll, %labels)
    return %nll, %sl, %mean
}
func @selected(%x: f32[6, 4], %w: f32[9, 4], %labels: i32[6], %ref: f32[6], %sign: f32, %ratio: f32, %z: f32, %whole: bool) -> (f32, bool[6], i32, f32) {
    %at = iota 6
    %part, %keep, %missed, %lse, %total, %nll = call @two_pass_loss[J=1, N=3, K=4](%x, %w, %labels, %ref, %at, %sign, %ratio, %z, %whole)
    return %part, %keep, %missed, %total
}
func @places(%holds: bool[12]) -> (i32[6], i32[12]) {
    %ids, %slot = call @compact[N=3, K=6](%holds)
    return %ids, %slot
}
func @cache(%part: f32[2, 3], %start: i32, %other: f32[8, 3], state %c: f32[8, 3]) -> (f32[8, 3], f32[8, 3]) {
    %n = update_slice %c, %part, %start axis=0
    %y = mul %n, %other
    return %y, %n
}
func @views(%x: f32[4, 6], %y: f32[6, 4]) -> (f32[6, 4], f32[24], f32[4, 3]) {
    %t = rearrange %x \"a b -> b a\"
    %s = add %t, %y
    %f = rearrange %s \"a b -> (a b)\"
    %h = slice %x axis=1 start=1 end=4
    return %s, %f, %h
}
func @leaves(%x: f32[4, 6]) -> (f32[2, 4, 6], f32[3, 6], i32[3, 4], f32[12], f32[4, 12]) {
    %c = constant.f32 2
    %s = rearrange %c \"-> n r c\" n=2 r=4 c=6
    %y = mul %s, %x \"n r c, r c -> n r c\"
    %i = iota 4
    %p = slice %i axis=0 start=1 end=4
    %g = gather %x, %p \"r c, t -> t c\"
    %m = rearrange %i \"t -> n t\" n=3
    %q = slice %x axis=1 start=2 end=5
    %r = rearrange %q \"a b -> (b a)\"
    %j = concat %q, %x, %q axis=1
    return %y, %g, %m, %r, %j
}";
    let m = parse(text).unwrap_or_else(|e| panic!("{}", e.render("library", text)));
    let mut seed = 5;
    for device in devices() {
        for name in ["norms", "block", "attend", "losses", "selected", "places", "cache", "views", "leaves"] {
            check(&device, &m, m.named(name).unwrap(), name, &mut seed);
        }
    }
}

#[test]
fn states_stay_on_the_device() {
    let text = "func @count(%by: f32, state %n: f32[3]) -> (f32[3], f32[3]) { %m = add %n, %by %d = add %m, %m return %d, %m }";
    let m = parse(text).unwrap();
    for device in devices().into_iter().chain([Device::Interp]) {
        let exe = Executable::load(&device, &m, m.named("count").unwrap()).unwrap();
        let mut store = Store::default();
        store.upload(&device, "n", &HostTensor::f32([3], &[0.0; 3]));
        for i in 1..5 {
            let out = exe.run(&[("by", HostTensor::f32([], &[1.0]))], &mut store).unwrap();
            assert_eq!(out[0].to_f32(), vec![2.0 * i as f32; 3], "{}", device.name());
        }
    }
}

#[test]
fn what_is_missing_or_misshapen_is_named() {
    let m = parse("func @f(%x: f32[3], weight %w: f32[3]) -> f32[3] { %y = mul %x, %w return %y }").unwrap();
    for device in devices().into_iter().chain([Device::Interp]) {
        let exe = Executable::load(&device, &m, m.named("f").unwrap()).unwrap();
        let mut store = Store::default();
        let x = ("x", HostTensor::f32([3], &[1.0; 3]));
        assert!(exe.run(std::slice::from_ref(&x), &mut store).unwrap_err().to_string().contains("`%w` was not given"));
        store.upload(&device, "w", &HostTensor::f32([3], &[2.0; 3]));
        assert!(
            exe.run(&[("x", HostTensor::f32([4], &[1.0; 4]))], &mut store).unwrap_err().to_string().contains("f32[4]")
        );
        assert_eq!(exe.run(&[x], &mut store).unwrap()[0].to_f32(), vec![2.0; 3]);
    }
}
