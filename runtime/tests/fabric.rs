//! Collectives of device memory over a fabric, by a stand-in for NCCL over host memory: all of them against formulas
//! written here and against the interpreter, places that are reused, ranks that are lost, calls that fail.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/beside.rs"]
mod beside;
#[path = "support/standin.rs"]
mod standin;

use beside::BESIDE;
use omchat_codegen::{Collective, How, Place};
use omchat_ir::ops::FoldKind;
use omchat_ir::{Dtype, Mode, Tensor, Type, interpret, parse};
use omchat_runtime::collective::fabric::{Fabric, Held, lengths};
use omchat_runtime::collective::{Errand, Exchange, Failure, Lost, Transport, World, threads};
use omchat_runtime::{Device, Error, Executable, HostTensor, Store};
use standin::{Seen, StandIn, Wrong};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Nobody.
const ALL_LIVE: usize = usize::MAX;

/// Threads that hear of a rank's end between exchanges too, as processes do.
struct Mortal<T> {
    inner: T,
    dead: Arc<AtomicUsize>,
}

impl<T: Transport> Transport for Mortal<T> {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn ranks(&self) -> usize {
        self.inner.ranks()
    }

    fn exchange(&mut self, to: Option<usize>, send: &[u8], from: Option<usize>) -> Result<Vec<u8>, Lost> {
        // Who waits for one that ended because of another's loss names the first, as MPI's ranks tell each other.
        self.inner.exchange(to, send, from).map_err(|lost| self.idle().err().unwrap_or(lost))
    }

    fn idle(&mut self) -> Result<(), Lost> {
        match self.dead.load(Ordering::SeqCst) {
            rank if rank == ALL_LIVE || rank == self.rank() => Ok(()),
            rank => Err(Lost { rank, why: "ended with an error".into() }),
        }
    }
}

/// A rank of a test.
struct Rank {
    world: World,
    seen: Arc<Seen>,
    dead: Arc<AtomicUsize>,
    /// Why exchanges stay with the host.
    kept: Option<String>,
}

/// Runs `f` on each rank of so many, each on a thread of its own and over a stand-in with what `wrong` says of it.
fn on_ranks<R: Send>(
    ranks: usize,
    delay: Duration,
    wrong: impl Fn(usize) -> Wrong + Sync,
    f: impl Fn(&Rank) -> R + Sync,
) -> Vec<R> {
    let dead = Arc::new(AtomicUsize::new(ALL_LIVE));
    thread::scope(|s| {
        let (f, wrong) = (&f, &wrong);
        let one = |(rank, inner)| {
            let dead = dead.clone();
            s.spawn(move || {
                let mortal = Mortal { inner, dead: dead.clone() };
                let world = World::join(move || Ok::<_, Infallible>(mortal)).unwrap();
                let seen = Arc::new(Seen::default());
                let fabric = StandIn::new(&format!("device {rank}"), delay, wrong(rank), seen.clone());
                let kept = world.over(Ok(Box::new(fabric) as Box<dyn Fabric>)).unwrap();
                f(&Rank { world, seen, dead, kept })
            })
        };
        let running: Vec<_> = threads(ranks).into_iter().enumerate().map(one).collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

struct Draw(u64);

impl Draw {
    /// A number below `n`: splitmix64.
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A collective of so many ranks: sums of halves apart, which no fabric carries.
fn drawn(draw: &mut Draw, ranks: usize) -> Collective {
    let dtype = [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::I32, Dtype::Bool][draw.below(5)];
    let elements = [0, 1, 2, 3, 7, 31, 250, 4099][draw.below(8)];
    let rings: Vec<usize> = (1..=ranks).filter(|r| ranks.is_multiple_of(*r)).collect();
    let half = matches!(dtype, Dtype::Bf16 | Dtype::F16);
    let (how, elements) = match draw.below(if half { 4 } else { 6 }) {
        0 | 1 => {
            let (shift, ring) = (draw.below(9) as i64 - 4, rings[draw.below(rings.len())]);
            (How::Permute { shift, ring, gated: draw.below(2) == 0 }, elements)
        }
        2 => (How::AllGather, elements),
        3 => (How::AllReduce { fold: FoldKind::Max }, elements),
        4 => (How::AllReduce { fold: FoldKind::Sum }, elements),
        _ => (How::ReduceScatter, elements * ranks),
    };
    Collective { how, ranks, dtype, elements }
}

/// Whole numbers, which sums keep exactly in any order.
fn numbers(seed: u64, n: usize) -> Vec<i32> {
    let mut draw = Draw(seed);
    (0..n).map(|_| draw.below(31) as i32 - 15).collect()
}

fn bytes(dtype: Dtype, x: &[i32]) -> Vec<u8> {
    let one = |x: &i32| match dtype {
        Dtype::F32 => (*x as f32).to_le_bytes().to_vec(),
        Dtype::Bf16 => half::bf16::from_f32(*x as f32).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(*x as f32).to_le_bytes().to_vec(),
        Dtype::I32 | Dtype::Bool => x.to_le_bytes().to_vec(),
    };
    x.iter().flat_map(one).collect()
}

/// What a rank should get of what all have.
fn want(of: &Collective, all: &[Vec<i32>], sends: &[bool], rank: usize) -> Vec<i32> {
    let sum = |i: usize| all.iter().map(|x| x[i]).sum::<i32>();
    match of.how {
        How::Permute { shift, ring, .. } => {
            let first = rank / ring * ring;
            let from = first + (rank as i64 - first as i64 - shift).rem_euclid(ring as i64) as usize;
            if sends[from] { all[from].clone() } else { vec![0; of.elements] }
        }
        How::AllGather => all.concat(),
        How::AllReduce { fold: FoldKind::Sum } => (0..of.elements).map(sum).collect(),
        How::AllReduce { fold: FoldKind::Max } => {
            (0..of.elements).map(|i| all.iter().map(|x| x[i]).max().unwrap()).collect()
        }
        How::ReduceScatter => {
            let part = of.elements / of.ranks;
            (rank * part..(rank + 1) * part).map(sum).collect()
        }
    }
}

/// Memory that stays, as a device's does.
fn memory(bytes: Vec<u8>) -> (Held, usize) {
    let (n, start) = (bytes.len(), Box::leak(bytes.into_boxed_slice()).as_mut_ptr() as usize);
    // SAFETY: leaked.
    (unsafe { Held::new(start as u64, n, Box::new(())) }, start)
}

fn look(start: usize, n: usize) -> Vec<u8> {
    // SAFETY: leaked, and nothing writes: the exchange has ended.
    unsafe { std::slice::from_raw_parts(start as *const u8, n) }.to_vec()
}

/// So many drawn collectives on so many ranks, some of them under way together; yields what differed or failed.
fn exchanges(ranks: usize, seed: u64, wrong: impl Fn(usize) -> Wrong + Sync) -> Vec<Result<(), String>> {
    on_ranks(ranks, Duration::from_millis(seed % 3), wrong, |me| {
        assert_eq!(me.kept, None);
        let (mut draw, rank) = (Draw(seed), me.world.rank());
        let (mut under_way, mut sent) = (vec![], 0);
        for n in 0..8u64 {
            let of = drawn(&mut draw, ranks);
            let all: Vec<Vec<i32>> =
                (0..ranks).map(|r| numbers(seed ^ (n << 20) ^ ((r as u64) << 40), of.elements)).collect();
            let gated = matches!(of.how, How::Permute { gated: true, .. });
            let sends: Vec<bool> = (0..ranks).map(|_| !gated || draw.below(2) == 0).collect();
            let [_, length] = lengths(&of);
            let (operand, _) = memory(bytes(of.dtype, &all[rank]));
            let (result, start) = memory(vec![0xff; length]);
            let (tell, ready) = channel();
            let (late, mine) = (draw.below(3) as u64, sends[rank]);
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(late));
                let _ = tell.send(Ok(mine));
            });
            let pending = me.world.carry(&of, &format!("%x{n}"), Errand { operand, result, ready });
            sent += if gated && !mine { 0 } else { of.wire_bytes() };
            under_way.push((pending, start, bytes(of.dtype, &want(&of, &all, &sends, rank)), of));
        }
        for (pending, start, want, of) in under_way {
            pending.wait().map_err(|e| e.to_string())?;
            if look(start, want.len()) != want {
                return Err(format!("rank {rank} of {ranks}, seed {seed}: {of:?} differs"));
            }
        }
        let counted = me.world.traffic().total().sent - me.world.traffic().of("join").sent;
        if counted == sent { Ok(()) } else { Err(format!("{counted} bytes counted, {sent} sent")) }
    })
}

#[test]
fn drawn_collectives_are_what_formulas_say() {
    let (tell, told) = channel();
    thread::spawn(move || {
        for ranks in 1..=5 {
            for seed in 0..12 {
                for came in exchanges(ranks, 1000 * ranks as u64 + seed, |_| Wrong::Nothing) {
                    let _ = tell.send(came);
                }
            }
        }
    });
    // A send that nobody receives would wait for ever.
    for rank in 0..12 * (1 + 2 + 3 + 4 + 5) {
        told.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|e| panic!("answer {rank}: {e}")).unwrap();
    }
}

#[test]
fn wrong_neighbours_and_stale_results_are_caught() {
    for wrong in [Wrong::Stale, Wrong::Neighbour] {
        // Where a permute is gated, a receive from a wrong rank may wait for ever.
        let caught = (0..6).any(|seed| {
            let (tell, told) = channel();
            thread::spawn(move || tell.send(exchanges(3, 7 + seed, |_| wrong)));
            told.recv_timeout(Duration::from_secs(2)).is_ok_and(|all| all.iter().any(Result::is_err))
        });
        assert!(caught, "{wrong:?}");
    }
}

fn random(ty: &Type, seed: &mut u64) -> Tensor {
    let mut draw = Draw(*seed);
    *seed += 1;
    let mut one = || match ty.dtype {
        Dtype::I32 => draw.below(9) as f64 - 2.0,
        Dtype::Bool => draw.below(2) as f64,
        _ => draw.below(2000) as f64 / 1000.0 - 0.9,
    };
    let data = (0..ty.elements()).map(|_| one()).collect();
    Tensor::new(ty.clone(), data).unwrap().rounded()
}

/// A program on ranks over stand-ins, twice, against the interpreter's ranks. Yields the works of rank 0's stand-in.
fn check(text: &str, ranks: usize, delay: Duration, seed: &mut u64) -> u64 {
    let device = Device::open("cpu").unwrap();
    let module = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let entry = module.named("f").unwrap();
    let f = module.function(entry);
    let names: Vec<String> = f.param_values().map(|v| f.value(v).name.clone()).collect();
    let types = f.param_types();
    let inputs: Vec<Vec<Tensor>> = (0..ranks).map(|_| types.iter().map(|t| random(t, seed)).collect()).collect();
    let exact = interpret(&module, entry, inputs.clone(), Mode::Exact).unwrap();
    let typed = interpret(&module, entry, inputs.clone(), Mode::Typed).unwrap();
    let have = on_ranks(
        ranks,
        delay,
        |_| Wrong::Nothing,
        |me| {
            let exe = Executable::load_tuned(&device, &module, entry, None, Some(&me.world), &mut |_, _| {}).unwrap();
            let mine = &inputs[me.world.rank()];
            let feed: Vec<(&str, HostTensor)> =
                names.iter().map(String::as_str).zip(mine.iter().map(HostTensor::from_tensor)).collect();
            let run = || exe.run(&feed, &mut Store::default()).unwrap_or_else(|e| panic!("{e}"));
            let (first, again) = (run(), run());
            assert!(first.iter().zip(&again).all(|(a, b)| a.bytes == b.bytes), "a second run differs: {text}");
            (first, me.seen.works.load(Ordering::SeqCst))
        },
    );
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
    have[0].1
}

#[test]
fn programs_are_the_interpreters() {
    let mut seed = 5;
    for ranks in [2, 3, 4] {
        for (dtype, n) in [("f32", 7), ("bf16", 12), ("i32", 1), ("f16", 30)] {
            let (t, all) = (format!("{dtype}[{n}]"), format!("{dtype}[{}]", n * ranks));
            let text = format!(
                "func @f(%x: {t}, %y: {all}, %s: bool) -> ({t}, {t}, {t}, {t}, {all}, {t}, {t}) {{
                    %a = collective_permute %x shift=1
                    %b = collective_permute %a, %s shift=-2
                    %c = all_reduce.sum %b
                    %d = all_reduce.max %c
                    %u = add %a, %x
                    %e = all_gather %u parts={ranks}
                    %g = reduce_scatter.sum %y parts={ranks}
                    %h = collective_permute %g shift=1 ring=1
                    return %a, %b, %c, %d, %e, %g, %h
                }}"
            );
            let works = check(&text, ranks, Duration::from_millis(1), &mut seed);
            assert!(works > 0, "nothing went over the fabric");
        }
    }
}

/// What is sent on before it was used, written over, and used late: exchanges beside launches.
#[test]
fn exchanges_beside_launches() {
    let mut seed = 77;
    for ranks in [2, 3, 4] {
        check(BESIDE, ranks, Duration::from_millis(5), &mut seed);
    }
}

/// A ring of attention, as training and long prompts have it.
#[test]
fn a_ring_of_attention() {
    let mut seed = 21;
    for (ranks, dtype) in [(2, "f32"), (4, "bf16")] {
        let (q, k) = (format!("{dtype}[1, 2, 2, 6, 8]"), format!("{dtype}[1, 2, 6, 8]"));
        let text = format!(
            "func @f(%q: {q}, %k: {k}, %v: {k}, %lo: i32[1, 6], %hi: i32[1, 6], %at: i32[1, 6]) -> ({q}, f32[1, 2, 2, 6]) {{
                %y, %l = call @ring_attention[R={ranks}](%q, %k, %v, %lo, %hi, %at) return %y, %l }}"
        );
        check(&text, ranks, Duration::from_millis(3), &mut seed);
    }
}

/// A value whose last reader is an exchange gives its place to the next; the exchange must have read it before.
#[test]
fn what_is_being_sent_is_not_written_over() {
    let n = 501;
    let text = format!(
        "func @f(%x: f32[{n}], %w: f32[{n}]) -> (f32[{n}], f32[{n}], f32[{n}]) {{
            %u = mul %x, %w
            %a = collective_permute %u shift=1
            %v = add %x, %w
            %b = collective_permute %v shift=1
            %t = sub %x, %w
            %c = collective_permute %t shift=-1
            return %a, %b, %c
        }}"
    );
    // The plan does give places on: else this proves nothing.
    let (device, module) = (Device::open("cpu").unwrap(), parse(&text).unwrap());
    let entry = module.named("f").unwrap();
    let given_on = on_ranks(
        2,
        Duration::ZERO,
        |_| Wrong::Nothing,
        |me| {
            let exe = Executable::load_tuned(&device, &module, entry, None, Some(&me.world), &mut |_, _| {}).unwrap();
            let p = exe.program().unwrap();
            let place = |b: usize| match p.buffers[b].place {
                Place::Arena { slab, offset } => Some((slab, offset)),
                Place::Own => None,
            };
            let sent =
                p.launches.iter().enumerate().filter(|(_, l)| l.label == "%a").map(|(at, l)| (at, l.operands[0]));
            let mut later = sent.map(|(at, b)| {
                p.launches[at + 1..]
                    .iter()
                    .flat_map(|l| &l.results)
                    .any(|r| place(b).is_some() && place(*r) == place(b))
            });
            later.any(|x| x)
        },
    );
    assert!(given_on.iter().all(|x| *x), "no place is given on while it may be being sent");
    let mut seed = 9;
    for ranks in [2, 3] {
        check(&text, ranks, Duration::from_millis(60), &mut seed);
    }
}

/// One collective without end on this rank; how it failed, and when.
fn until_it_fails(me: &Rank) -> (Failure, Instant) {
    let of = Collective {
        how: How::AllReduce { fold: FoldKind::Sum },
        ranks: me.world.ranks(),
        dtype: Dtype::F32,
        elements: 5,
    };
    for n in 0u64.. {
        me.world.at_step(n);
        let (operand, _) = memory(bytes(Dtype::F32, &[1; 5]));
        let (result, _) = memory(vec![0xff; 20]);
        let (tell, ready) = channel();
        tell.send(Ok(true)).unwrap();
        if let Err(failure) = me.world.carry(&of, "%x", Errand { operand, result, ready }).wait() {
            return (failure, Instant::now());
        }
    }
    unreachable!()
}

#[test]
fn a_rank_lost_in_an_exchange_is_named_by_all() {
    let lost_at = Mutex::new(None);
    let came = on_ranks(
        4,
        Duration::ZERO,
        |rank| if rank == 2 { Wrong::Call(12) } else { Wrong::Nothing },
        |me| {
            let told = Arc::new(Mutex::new(None));
            let heard = told.clone();
            me.world.on_failure(move |f| *heard.lock().unwrap() = Some(f.clone()));
            let (failure, at) = until_it_fails(me);
            if me.world.rank() == 2 {
                // What its process does then.
                *lost_at.lock().unwrap() = Some(at);
                me.dead.store(2, Ordering::SeqCst);
            }
            let alarm = told.lock().unwrap().clone();
            (failure, at, alarm, me.seen.aborts.load(Ordering::SeqCst))
        },
    );
    let lost_at = lost_at.into_inner().unwrap().unwrap();
    for (rank, (failure, at, alarm, aborts)) in came.into_iter().enumerate() {
        assert_eq!(alarm.as_ref(), Some(&failure));
        assert_eq!(aborts, 1, "rank {rank}");
        match failure {
            Failure::Devices { here: 2, what, .. } if rank == 2 => assert!(what.contains("invalid usage"), "{what}"),
            Failure::Lost { lost, op, here, .. } if rank != 2 => {
                assert_eq!((lost.rank, here), (2, rank));
                assert!(["all_reduce.sum %x", "what lies between collectives"].contains(&op.as_str()), "{op}");
                assert!(at.saturating_duration_since(lost_at) < Duration::from_secs(2), "rank {rank}");
            }
            other => panic!("rank {rank}: {other}"),
        }
    }
}

#[test]
fn a_devices_fault_is_told_with_its_place() {
    for came in on_ranks(
        3,
        Duration::ZERO,
        |rank| if rank == 0 { Wrong::Device(9, false) } else { Wrong::Nothing },
        |me| {
            let (failure, _) = until_it_fails(me);
            if me.world.rank() == 0 {
                me.dead.store(0, Ordering::SeqCst);
            }
            (me.world.rank(), failure, me.seen.aborts.load(Ordering::SeqCst))
        },
    ) {
        let (rank, failure, aborts) = came;
        let text = failure.to_string();
        assert_eq!(aborts, 1);
        assert!(text.contains(" of step "), "{text}");
        if rank == 0 {
            assert!(text.contains("the device: unhandled device error") && text.contains("--exchange host"), "{text}");
        } else {
            assert!(text.starts_with("rank 0 ended with an error"), "{text}");
        }
    }
}

/// NCCL feels that another process is gone, and cannot say whose; the transport can, a little later.
#[test]
fn a_remote_fault_is_the_lost_ranks() {
    let came = on_ranks(
        2,
        Duration::ZERO,
        |rank| if rank == 0 { Wrong::Device(5, true) } else { Wrong::Nothing },
        |me| {
            if me.world.rank() == 0 {
                let dead = me.dead.clone();
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(400));
                    dead.store(1, Ordering::SeqCst);
                });
            }
            if me.world.rank() == 1 { None } else { Some(until_it_fails(me).0) }
        },
    );
    // Rank 1 left before the first exchange: over threads that is seen at once.
    let Some(Failure::Lost { lost, .. }) = &came[0] else { panic!("{:?}", came[0]) };
    assert_eq!(lost.rank, 1);
}

#[test]
fn ranks_that_part_say_so() {
    for (rank, failure) in on_ranks(
        2,
        Duration::ZERO,
        |_| Wrong::Nothing,
        |me| {
            let n = 3 + me.world.rank();
            let of = Collective { how: How::AllGather, ranks: 2, dtype: Dtype::F32, elements: n };
            let (operand, _) = memory(vec![0; 4 * n]);
            let (result, _) = memory(vec![0; 8 * n]);
            let (tell, ready) = channel();
            tell.send(Ok(true)).unwrap();
            (me.world.rank(), me.world.carry(&of, "%x", Errand { operand, result, ready }).wait().unwrap_err())
        },
    ) {
        let text = failure.to_string();
        assert!(text.contains(&format!("ranks {rank} and {} do not run the same", 1 - rank)), "{text}");
        assert!(text.contains("of 3 f32 on devices") && text.contains("of 4 f32 on devices"), "{text}");
    }
}

#[test]
fn an_operand_that_never_comes_is_told() {
    let came = on_ranks(
        1,
        Duration::ZERO,
        |_| Wrong::Nothing,
        |me| {
            let of = Collective { how: How::AllGather, ranks: 1, dtype: Dtype::F32, elements: 1 };
            let carry = |ready| {
                let ((operand, _), (result, _)) = (memory(vec![0; 4]), memory(vec![0; 4]));
                me.world.carry(&of, "%x", Errand { operand, result, ready }).wait().unwrap_err().to_string()
            };
            let (tell, ready) = channel();
            tell.send(Err("the kernel failed".into())).unwrap();
            carry(ready)
        },
    );
    assert!(came[0].contains("the kernel failed"), "{}", came[0]);
}

#[test]
fn all_stay_with_the_host_where_one_must() {
    for (wrong, want) in [(Wrong::Identity, "rank 1: identity: no such device"), (Wrong::Join, "rank 1: join: no way")]
    {
        let device = Device::open("cpu").unwrap();
        let module = parse("func @f(%x: f32[3]) -> f32[3] { %y = all_reduce.sum %x return %y }").unwrap();
        for (rank, kept, sum, works) in on_ranks(
            3,
            Duration::ZERO,
            |r| if r == 1 { wrong } else { Wrong::Nothing },
            |me| {
                let entry = module.named("f").unwrap();
                let exe =
                    Executable::load_tuned(&device, &module, entry, None, Some(&me.world), &mut |_, _| {}).unwrap();
                let x = HostTensor::f32([3], &[me.world.rank() as f32; 3]);
                let sum = exe.run(&[("x", x)], &mut Store::default()).unwrap()[0].to_f32();
                assert_eq!(me.world.engine(), "threads");
                (me.world.rank(), me.kept.clone(), sum, me.seen.works.load(Ordering::SeqCst))
            },
        ) {
            let kept = kept.unwrap();
            assert!(kept.starts_with(want), "rank {rank}: {kept}");
            assert_eq!((sum, works), (vec![3.0; 3], 0));
        }
    }
}

#[test]
fn a_device_is_one_ranks() {
    let came: Vec<_> = thread::scope(|s| {
        let one = |t| {
            s.spawn(move || {
                let world = World::join(move || Ok::<_, Infallible>(t)).unwrap();
                let fabric = StandIn::new("the same", Duration::ZERO, Wrong::Nothing, Arc::default());
                world.over(Ok(Box::new(fabric) as Box<dyn Fabric>)).unwrap()
            })
        };
        let running: Vec<_> = threads(3).into_iter().map(one).collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    });
    assert!(came.iter().all(|why| why.as_deref() == Some("ranks 0 and 1 share a device")), "{came:?}");
}

#[test]
fn what_was_asked_for_and_cannot_be_is_an_error() {
    let (device, module) =
        (Device::open("cpu").unwrap(), parse("func @f(%x: f32[3]) -> f32[3] { return %x }").unwrap());
    let asked = |t, how| {
        let world = World::join(move || Ok::<_, Infallible>(t)).unwrap();
        world.exchange_by(how);
        Executable::load_tuned(&device, &module, module.named("f").unwrap(), None, Some(&world), &mut |_, _| {}).err()
    };
    let error = asked(threads(2).remove(0), Exchange::Nccl).unwrap();
    assert!(matches!(&error, Error::Exchange { reason } if reason.contains("threads")), "{error}");
    assert!(error.to_string().contains("--exchange nccl"), "{error}");
    for how in [Exchange::Auto, Exchange::Host] {
        assert!(asked(threads(2).remove(0), how).is_none());
    }
    assert_eq!(
        ["auto", "host", "nccl"].map(|t| t.parse::<Exchange>().unwrap()),
        [Exchange::Auto, Exchange::Host, Exchange::Nccl]
    );
    assert!("mpi".parse::<Exchange>().unwrap_err().contains("auto, host and nccl"));
}
