//! Programs of several ranks, each a thread with a program of its own, against the interpreter's ranks in lockstep; and
//! what is said when ranks part. Results are read from memory that other programs have dirtied.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/beside.rs"]
mod beside;

use beside::BESIDE;
use omchat_ir::{Dtype, Func, Mode, Module, Op, Role, Tensor, Type, interpret, parse};
use omchat_runtime::collective::{Failure, Flow, World, threads};
use omchat_runtime::{Device, Error, Executable, HostTensor, Store};
use std::convert::Infallible;
use std::thread;
use std::time::{Duration, Instant};

/// Runs `f` on each rank of so many, each on a thread of its own; the results in order.
fn on_ranks<T: Send>(ranks: usize, f: impl Fn(World) -> T + Sync) -> Vec<T> {
    thread::scope(|s| {
        let f = &f;
        let running: Vec<_> = threads(ranks)
            .into_iter()
            .map(|t| s.spawn(move || f(World::join(move || Ok::<_, Infallible>(t)).unwrap())))
            .collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

fn random(ty: &Type, seed: &mut u64) -> Tensor {
    let mut next = || {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) as f64 / f64::from(1u32 << 31)
    };
    let data = (0..ty.elements())
        .map(|_| match ty.dtype {
            Dtype::I32 => (next() * 9.0).floor() - 2.0,
            Dtype::Bool => f64::from(u8::from(next() > 0.5)),
            _ => next() * 2.0 - 0.9,
        })
        .collect();
    Tensor::new(ty.clone(), data).unwrap().rounded()
}

fn load(device: &Device, module: &Module, entry: Func, world: &World) -> Result<Executable, Error> {
    Executable::load_tuned(device, module, entry, None, Some(world), &mut |_, _| {})
}

/// The results of each rank, run twice: the second run must repeat the first bit for bit.
fn ranked(device: &Device, module: &Module, entry: Func, inputs: &[Vec<Tensor>]) -> Vec<(Vec<HostTensor>, Flow)> {
    let f = module.function(entry);
    let names: Vec<String> = f.param_values().map(|v| f.value(v).name.clone()).collect();
    assert!(f.params.iter().all(|r| *r == Role::Input));
    on_ranks(inputs.len(), |world| {
        let exe = load(device, module, entry, &world).unwrap();
        let mine = &inputs[world.rank()];
        let feed: Vec<(&str, HostTensor)> =
            names.iter().map(String::as_str).zip(mine.iter().map(HostTensor::from_tensor)).collect();
        let run = || exe.run(&feed, &mut Store::default()).unwrap_or_else(|e| panic!("{e}"));
        let first = run();
        let once = world.traffic().total();
        let again = run();
        assert!(first.iter().zip(&again).all(|(a, b)| a.bytes == b.bytes), "a second run differs");
        (first, once)
    })
}

fn check(device: &Device, text: &str, ranks: usize, seed: &mut u64) -> Vec<Flow> {
    let module = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let entry = module.named("f").unwrap();
    let types: Vec<Type> = module.function(entry).param_types();
    let inputs: Vec<Vec<Tensor>> = (0..ranks).map(|_| types.iter().map(|t| random(t, seed)).collect()).collect();
    let exact = interpret(&module, entry, inputs.clone(), Mode::Exact).unwrap();
    let typed = interpret(&module, entry, inputs.clone(), Mode::Typed).unwrap();
    let have = ranked(device, &module, entry, &inputs);
    for (rank, ((have, _), (exact, typed))) in have.iter().zip(exact.iter().zip(&typed)).enumerate() {
        for ((h, e), t) in have.iter().map(HostTensor::to_tensor).zip(exact).zip(typed) {
            let top = e.data.iter().fold(1e-6f64, |a, b| if b.abs() < 1e29 { a.max(b.abs()) } else { a });
            let off = |x: &Tensor| {
                let far = x.data.iter().zip(&e.data).map(|(x, y)| (x - y).abs());
                far.fold(0f64, |a, d| if d.is_nan() { f64::INFINITY } else { a.max(d) })
            };
            assert!(off(&h) <= 2.0 * off(t) + 2e-6 * top, "rank {rank} of {ranks}, {text}: off by {}", off(&h));
        }
    }
    have.into_iter().map(|(_, flow)| flow).collect()
}

fn device() -> Device {
    Device::open("cpu").unwrap()
}

#[test]
fn every_collective_on_every_number_of_ranks() {
    let device = device();
    let mut seed = 5;
    for ranks in [1, 2, 3, 4, 5] {
        for (dtype, n) in [("f32", 7), ("bf16", 12), ("i32", 1), ("f32", 1), ("f16", 30)] {
            let t = format!("{dtype}[{n}]");
            let all = format!("{dtype}[{}]", n * ranks);
            for (params, result, body) in [
                (format!("%x: {t}"), &t, "%y = collective_permute %x shift=1".to_string()),
                (format!("%x: {t}"), &t, "%y = collective_permute %x shift=-2".to_string()),
                (format!("%x: {t}, %s: bool"), &t, "%y = collective_permute %x, %s shift=1".to_string()),
                (format!("%x: {t}"), &t, format!("%y = collective_permute %x shift=1 ring={ranks}")),
                (format!("%x: {t}"), &t, "%y = collective_permute %x shift=1 ring=1".to_string()),
                (format!("%x: {t}"), &t, "%y = all_reduce.sum %x".to_string()),
                (format!("%x: {t}"), &t, "%y = all_reduce.max %x".to_string()),
                (format!("%x: {t}"), &all, format!("%y = all_gather %x parts={ranks}")),
                (format!("%x: {all}"), &t, format!("%y = reduce_scatter.sum %x parts={ranks}")),
            ] {
                check(&device, &format!("func @f({params}) -> {result} {{ {body} return %y }}"), ranks, &mut seed);
            }
        }
    }
    check(
        &device,
        "func @f(%x: f32[5]) -> f32[5] { %y = collective_permute %x shift=1 ring=2 return %y }",
        4,
        &mut seed,
    );
}

/// What is sent on before it was used, written over, and used late: exchanges beside launches.
#[test]
fn exchanges_beside_launches() {
    let mut seed = 77;
    for ranks in [1, 2, 3, 4] {
        let flows = check(&device(), BESIDE, ranks, &mut seed);
        let permutes = if ranks > 1 { 4 * 33 * 4 } else { 0 };
        let reduce = 2 * 33usize.div_ceil(ranks) * 4 * (ranks - 1);
        for f in flows {
            assert_eq!((f.sent, f.received), ((permutes + reduce) as u64, (permutes + reduce) as u64), "{ranks} ranks");
        }
    }
}

#[test]
fn samples_of_collectives() {
    let mut seed = 3;
    let texts = Op::samples().into_iter().filter(|t| t.contains("collective_") || t.contains("all_reduce"));
    for text in texts {
        let rings = if text.contains("ring=") { 4 } else { 3 };
        check(&device(), &text, rings, &mut seed);
    }
}

/// A ring of attention, its backward with it, sums to what the interpreter has.
#[test]
fn a_ring_of_attention() {
    let mut seed = 21;
    for (ranks, dtype) in [(2, "f32"), (3, "f32"), (4, "bf16")] {
        let (q, k) = (format!("{dtype}[1, 2, 2, 6, 8]"), format!("{dtype}[1, 2, 6, 8]"));
        let text = format!(
            "func @f(%q: {q}, %k: {k}, %v: {k}, %lo: i32[1, 6], %hi: i32[1, 6], %at: i32[1, 6]) -> ({q}, f32[1, 2, 2, 6]) {{
                %y, %l = call @ring_attention[R={ranks}](%q, %k, %v, %lo, %hi, %at) return %y, %l }}"
        );
        check(&device(), &text, ranks, &mut seed);
    }
}

const SUM: &str = "func @f(%x: f32[3]) -> f32[3] { %y = all_reduce.sum %x return %y }";

#[test]
fn ranks_that_part_say_so() {
    let device = device();
    let found = on_ranks(2, |world| {
        let n = 3 + world.rank();
        let module = parse(&SUM.replace("[3]", &format!("[{n}]"))).unwrap();
        let exe = load(&device, &module, Func(0), &world).unwrap();
        world.at_step(7);
        exe.run(&[("x", HostTensor::f32([n], &vec![1.0; n]))], &mut Store::default()).unwrap_err().to_string()
    });
    for (rank, message) in found.iter().enumerate() {
        let other = 1 - rank;
        assert!(message.contains(&format!("ranks {rank} and {other} do not run the same")), "{message}");
        assert!(message.contains("all_reduce.sum %y of 3 f32") && message.contains("of 4 f32"), "{message}");
        assert!(message.contains("step 7"), "{message}");
    }
}

#[test]
fn a_rank_that_ends_is_named() {
    let device = device();
    let start = Instant::now();
    let found = on_ranks(3, |world| {
        if world.rank() == 1 {
            return None;
        }
        let exe = load(&device, &parse(SUM).unwrap(), Func(0), &world).unwrap();
        world.at_step(12);
        Some(exe.run(&[("x", HostTensor::f32([3], &[1.0; 3]))], &mut Store::default()).unwrap_err())
    });
    assert!(start.elapsed() < Duration::from_secs(10));
    for error in found.into_iter().flatten() {
        let Error::Ranks(Failure::Lost { lost, step: 12, op, .. }) = &error else { panic!("{error}") };
        // The first to notice names rank 1; whom its own end surprises may name it.
        assert_eq!(op, "all_reduce.sum %y");
        assert!(lost.rank != 3, "{error}");
    }
}

#[test]
fn parts_of_other_ranks_are_refused() {
    let device = device();
    let module = parse("func @f(%x: f32[3]) -> f32[12] { %y = all_gather %x parts=4 return %y }").unwrap();
    for error in on_ranks(3, |world| load(&device, &module, Func(0), &world).err().unwrap().to_string()) {
        assert!(error.contains("`all_gather` in a program of 3 ranks"), "{error}");
    }
}

#[test]
fn bytes_of_any_length_are_gathered() {
    let parts = |r: usize| vec![r as u8; r * 100_000];
    for (rank, (all, one)) in on_ranks(4, |w| {
        let own = parts(w.rank());
        (w.gather("a", own.clone(), None).unwrap(), w.gather("b", own, Some(2)).unwrap())
    })
    .into_iter()
    .enumerate()
    {
        let want: Vec<Vec<u8>> = (0..4).map(parts).collect();
        assert_eq!(all, want);
        assert_eq!(one, if rank == 2 { want } else { vec![] });
    }
}
