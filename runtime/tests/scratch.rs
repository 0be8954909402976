//! Programs whose launches work in scratch memory: run, replayed and tried over poisoned arenas, against the interpreter.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_codegen::{Schedule, Target};
use omchat_ir::{Dtype, Func, Mode, Module, Tensor, Type, interpret, parse};
use omchat_kernels::by_name;
use omchat_runtime::{Device, Error, Examined, Executable, HostTensor, Store, Trial, program};

/// Devices whose facts say that they have shared memory of their own: then attention cuts its keys into parts.
fn devices() -> Vec<Device> {
    let open = |name: &&str| match Device::open(name) {
        Ok(Device::Cube { client, target }) => {
            Some(Device::Cube { client, target: Target { software: false, turns: usize::MAX, ..target } })
        }
        Ok(Device::Interp) => None,
        Err(e) => {
            println!("skipped: {name}: {e}");
            None
        }
    };
    ["wgpu", "cuda"].iter().filter_map(open).collect()
}

/// Two decodes over one cache, the second of what the first yields.
fn module() -> (Module, Func) {
    let text = "
func @f(%q: f32[1, 2, 3, 1, 40], %k: f32[1, 2, 333, 40], %v: f32[1, 2, 333, 40], %lo: i32[1, 1], %hi: i32[1, 1], %at: i32[1, 333]) -> (f32[1, 2, 3, 1, 40], f32[1, 2, 3, 1]) {
    %o, %l = call @attention(%q, %k, %v, %lo, %hi, %at)
    %r     = add %o, %q
    %p, %m = call @attention(%r, %k, %v, %lo, %hi, %at)
    %y     = mul %p, %o
    %n     = add %l, %m
    return %y, %n
}";
    let m = parse(text).unwrap_or_else(|e| panic!("{}", e.render("scratch", text)));
    let f = m.named("f").unwrap();
    (m, f)
}

fn inputs(seed: u64, filled: usize) -> Vec<Tensor> {
    let mut seed = seed;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as f64 / f64::from(1u32 << 30) - 1.0
    };
    let (m, f) = module();
    let types: Vec<Type> = m.function(f).param_types();
    let one = |(i, t): (usize, &Type)| {
        let data = (0..t.elements()).map(|s| match i {
            0..3 => next(),
            3 => 0.0,
            4 => filled as f64 - 1.0,
            _ if s < filled => s as f64,
            _ => f64::from(i32::MAX),
        });
        Tensor::new(t.clone(), data.collect()).unwrap().rounded()
    };
    types.iter().enumerate().map(one).collect()
}

fn near(what: &str, have: &[HostTensor], want: &[Tensor]) {
    for (h, w) in have.iter().map(HostTensor::to_tensor).zip(want) {
        for (i, (a, b)) in h.data.iter().zip(&w.data).enumerate() {
            assert!((a - b).abs() <= 4e-6 * (1.0 + b.abs()), "{what}[{i}] is {a}, not {b}");
        }
    }
}

fn wanted(inputs: &[Tensor]) -> Vec<Tensor> {
    let (m, f) = module();
    interpret(&m, f, vec![inputs.to_vec()], Mode::Exact).unwrap().remove(0)
}

#[test]
fn runs_and_replays_of_parts_are_right() {
    let (m, f) = module();
    for device in devices() {
        let exe = Executable::load(&device, &m, f).unwrap();
        let p = exe.program().unwrap();
        assert_eq!(p.launches.iter().filter(|l| l.scratch.is_some()).count(), 2, "{p}");
        let mut store = Store::default();
        for run in 0..6 {
            // A cache that fills from run to run.
            let given = inputs(run + 3, [1, 70, 64, 333, 200, 5][run as usize]);
            let names = ["q", "k", "v", "lo", "hi", "at"];
            let feed: Vec<(&str, HostTensor)> =
                names.into_iter().zip(given.iter().map(HostTensor::from_tensor)).collect();
            let have = exe.run(&feed, &mut store).unwrap();
            near(&format!("run {run} on {}", device.name()), &have, &wanted(&given));
        }
        assert!(exe.replays() > 0, "{} replays nothing", device.name());
    }
}

#[test]
fn other_parts_are_planned_anew_over_poison() {
    let (m, f) = module();
    let given = inputs(9, 111);
    let (want, operands) = (wanted(&given), given.iter().map(HostTensor::from_tensor).collect::<Vec<_>>());
    let kernel = by_name("attention.split").unwrap();
    for device in devices() {
        let Device::Cube { target, .. } = &device else { continue };
        let p = program(&m, f, target).unwrap();
        let at = p.chosen.iter().position(|c| c.scratch > 0).unwrap();
        for parts in [1, 2, 17, 256] {
            let mut schedule: Schedule = p.chosen[at].schedule.clone();
            schedule.0.insert("parts", parts);
            let q = p.with(at, kernel, schedule.clone()).unwrap();
            assert_eq!(q.chosen[at].scratch, kernel.scratch(&q.chosen[at].work, &schedule));
            assert_eq!(q.chosen[at].scratch > 0, parts > 1);
            // Arenas of trials hold no numbers at first.
            let mut trial = Trial::new(&device, q, &operands, false).unwrap();
            for _ in 0..2 {
                near(&format!("{parts} parts on {}", device.name()), &trial.outcome().unwrap(), &want);
            }
            let f32s = |e: &Examined| e.results.iter().all(|r| r.ty.dtype == Dtype::F32);
            trial
                .examine(&mut |e| {
                    assert!(f32s(&e));
                    Ok::<(), Error>(())
                })
                .unwrap();
        }
    }
}
