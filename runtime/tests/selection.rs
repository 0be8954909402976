//! Token selection on every device present: it is exact, so every device keeps what a sort keeps.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_ir::{Bind, Module, Scope, library, parse, text::instantiate_call};
use omchat_runtime::{Device, Executable, HostTensor, Store};

fn devices() -> Vec<Device> {
    let open = |name: &&str| Device::open(name).map_err(|e| println!("skipped: {name}: {e}")).ok();
    ["cpu", "wgpu", "cuda"].iter().filter_map(open).collect()
}

/// Seeded bits.
fn bits(seed: &mut u64) -> u32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 32) as u32
}

#[test]
fn a_key_is_the_pattern_of_the_number() {
    let mut seed = 3;
    let mut x: Vec<f32> = (0..3000).map(|_| f32::from_bits(bits(&mut seed))).filter(|x| x.is_finite()).collect();
    x.extend((-126..128).flat_map(|e| {
        let p = 2f32.powi(e).to_bits();
        [p - 1, p, p + 1].map(f32::from_bits)
    }));
    x.extend([0.0, -0.0, f32::MAX, f32::MIN]);
    let n = x.len();
    let scope = Scope::new(&[library::file().unwrap()]);
    let mut module = Module::default();
    let f = instantiate_call(&scope, &mut module, "order_key", &[("T", Bind::Size(n))]).unwrap();
    for device in devices() {
        let exe = Executable::load(&device, &module, f).unwrap();
        let out = exe.run(&[("x", HostTensor::f32([n], &x))], &mut Store::default()).unwrap();
        for (x, key) in x.iter().zip(out[0].to_tensor().data) {
            let size = if x.is_normal() { f64::from(x.abs().to_bits()) } else { 0.0 };
            assert_eq!(key, if *x < 0.0 { -size } else { size }, "{x:e} on {}", device.name());
        }
    }
}

#[test]
fn every_device_keeps_what_a_sort_keeps() {
    let (n, v) = (301, 9);
    let text = format!(
        "func @f(%loss: f32[{n}], %ref: f32[{n}], %labels: i32[{n}], %at: i32[{n}], %sign: f32, %ratio: f32) -> bool[{n}] {{
            %keep = call @select_tokens[J=1, V={v}](%loss, %ref, %labels, %at, %sign, %ratio) return %keep }}"
    );
    let module = parse(&text).unwrap();
    let mut seed = 8;
    for device in devices() {
        let exe = Executable::load(&device, &module, module.named("f").unwrap()).unwrap();
        for (ratio, sign, levels) in [(0.6, 1.0, 8), (0.25, -1.0, 1000), (0.0, 1.0, 3), (1.0, 1.0, 5)] {
            let mut draw = |below: u32| (0..n).map(|_| (bits(&mut seed) % below) as f32 / 4.0).collect::<Vec<f32>>();
            let (loss, reference) = (draw(levels), draw(levels));
            let labels: Vec<i32> = (0..n).map(|_| (bits(&mut seed) % 12) as i32 - 3).collect();
            // Tokens lie backwards, as they may.
            let at: Vec<i32> = (0..n as i32).rev().collect();
            let score = |i: usize| sign * (loss[i] - reference[i]);
            let mut order: Vec<usize> = (0..n).filter(|i| labels[*i] >= 0).collect();
            order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(at[a].cmp(&at[b])));
            let k = ((ratio * 1e4) as usize * order.len()).div_ceil(10_000);
            let mut want = vec![0.0; n];
            order[..k].iter().for_each(|i| want[*i] = 1.0);
            let feed = [
                ("loss", HostTensor::f32([n], &loss)),
                ("ref", HostTensor::f32([n], &reference)),
                ("labels", HostTensor::i32([n], &labels)),
                ("at", HostTensor::i32([n], &at)),
                ("sign", HostTensor::f32([], &[sign])),
                ("ratio", HostTensor::f32([], &[ratio])),
            ];
            let out = exe.run(&feed, &mut Store::default()).unwrap();
            assert!(out[0].to_tensor().data == want, "{} at ratio {ratio}", device.name());
        }
    }
}
