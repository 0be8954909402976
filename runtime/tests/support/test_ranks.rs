//! A rank that exchanges drawn messages and checks each byte, over MPI or TCP: what `runtime/tests/mpi.rs` starts by
//! `mpirun` and `runtime/tests/tcp.rs` by itself.
//!
//! ```text
//! mpirun -n 4 test_ranks check SEED ROUNDS     exchanges of drawn patterns and lengths, each byte checked
//! mpirun -n 4 test_ranks pause SECONDS         ranks compute for so long without an exchange; all must live
//! mpirun -n 4 test_ranks endless SEED          the same without end, for tests that kill
//! mpirun -n 4 test_ranks early RANK            this rank ends after 20 rounds, the others go on
//! mpirun -n 4 test_ranks error RANK            this rank gives up after 20 steps
//! mpirun -n 2 test_ranks speed                 latency and bandwidth between ranks 0 and 1
//! mpirun -n 2 test_ranks large BYTES           ranks 0 and 1 send each other so many bytes at once, each byte checked
//! mpirun -n 4 test_ranks world SEED            programs with every collective against the interpreter's ranks
//! mpirun -n 4 test_ranks steps                 a program without end, while the device computes too
//! mpirun -n 4 test_ranks apart                 rank 1 runs a program of another size
//! mpirun -n 4 test_ranks busy SECONDS          rank 1 computes for so long while the others wait for it
//! ```
//!
//! Over TCP: one process a rank, each with `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`. `DEVICE` names the device on which programs
//! run (cpu, if nothing is said), `EXCHANGE` how ranks exchange what is on it, as `--exchange` of the command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use omchat_ir::{Mode, Tensor, interpret, parse};
#[cfg(feature = "mpi")]
use omchat_runtime::collective::Mpi;
use omchat_runtime::collective::{Failure, Launched, Launcher, Lost, Rendezvous, Tcp, Transport, World, exit};
use omchat_runtime::{Device, Error, Executable, HostTensor, Store};
use std::time::{Duration, Instant};

/// Shortened by tests that wait for it.
fn silence() -> Duration {
    std::env::var("SILENCE_MS").map_or(Tcp::SILENCE, |ms| Duration::from_millis(ms.parse().unwrap()))
}

/// What carries between the processes that a launcher started.
fn transport() -> Box<dyn Transport> {
    let l = Launched::here().unwrap().expect("start it by mpirun, or with RANK and WORLD_SIZE");
    #[cfg(feature = "mpi")]
    if l.by != Launcher::Environment {
        return Box::new(Mpi::start(silence()).unwrap_or_else(|e| panic!("{e}")));
    }
    assert_eq!(l.by, Launcher::Environment, "this build has no MPI");
    let (host, port) = l.master.expect("MASTER_ADDR and MASTER_PORT");
    let meeting = Rendezvous { silence: silence(), ..Rendezvous::new(l.rank, l.ranks, &host, port) };
    Box::new(Tcp::join(&meeting).unwrap_or_else(|e| panic!("{e}")))
}

/// A line on stderr, in one piece: lines of several ranks go through one launcher.
fn say(line: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// A number of a seed and a place: splitmix64.
fn draw(seed: u64, at: u64) -> u64 {
    let mut z = seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How long the message of a rank is in a round: often empty or odd, round about what travels in one piece, and rarely
/// more than fits in a part.
fn length(seed: u64, round: u64, rank: usize) -> usize {
    let x = draw(seed ^ 0xabcd, round * 64 + rank as u64);
    let some = (x >> 8) as usize;
    match x % 16 {
        0 | 1 => 0,
        2 => 1,
        3..=6 => 3830 + some % 30,
        7..=11 => some % 5000,
        12..=14 => some % 1_000_000,
        _ if some.is_multiple_of(24) => (64 << 20) + some % 4099,
        _ => some % 8_000_000,
    }
}

fn message(seed: u64, round: u64, rank: usize) -> Vec<u8> {
    let start = draw(seed, round * 64 + rank as u64);
    (0..length(seed, round, rank) as u64).map(|i| (start.wrapping_add(i.wrapping_mul(0x9e37)) >> 3) as u8).collect()
}

/// Whom a rank sends to in a round, if any. Every rank can work it out for every other.
fn to(seed: u64, round: u64, rank: usize, ranks: usize) -> Option<usize> {
    let x = draw(seed ^ 0x1234, round);
    let (a, b) = ((x >> 8) as usize % ranks, (x >> 20) as usize % ranks);
    match x % 4 {
        // A shift, by 0 at times: each to itself.
        0 | 1 => Some((rank + a) % ranks),
        // One sends to one.
        2 => (rank == a).then_some(b),
        // A reflection: pairs swap.
        _ => Some((a + ranks - rank) % ranks),
    }
}

fn round(carrier: &mut dyn Transport, seed: u64, n: u64) -> Result<(), Lost> {
    let (rank, ranks) = (carrier.rank(), carrier.ranks());
    let from = (0..ranks).find(|r| to(seed, n, *r, ranks) == Some(rank));
    let got = carrier.exchange(to(seed, n, rank, ranks), &message(seed, n, rank), from)?;
    let want = from.map_or(vec![], |r| message(seed, n, r));
    assert!(got == want, "rank {rank}, round {n}: {} bytes from {from:?} are not the {} sent", got.len(), want.len());
    Ok(())
}

fn rounds(carrier: &mut dyn Transport, seed: u64, range: std::ops::Range<u64>) {
    for n in range {
        if let Err(lost) = round(carrier, seed, n) {
            say(&format!("error: rank {}: exchange of round {n}: {lost}", carrier.rank()));
            exit(1);
        }
        if n % 16 == 0 {
            println!("rank {} round {n}", carrier.rank());
        }
    }
}

fn pause(carrier: &mut dyn Transport, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        if let Err(lost) = carrier.idle() {
            say(&format!("error: rank {}: a pause: {lost}", carrier.rank()));
            exit(1);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Ping and pong of rank 0 and 1: the time one way.
fn ping(carrier: &mut dyn Transport, bytes: usize, times: u32) -> Duration {
    let send = vec![7; bytes];
    let go = |carrier: &mut dyn Transport| match carrier.rank() {
        0 => carrier.exchange(Some(1), &send, None).and_then(|_| carrier.exchange(None, &[], Some(1))).unwrap(),
        _ => carrier.exchange(None, &[], Some(0)).and_then(|got| carrier.exchange(Some(0), &got, None)).unwrap(),
    };
    go(carrier);
    let start = Instant::now();
    for _ in 0..times {
        go(carrier);
    }
    start.elapsed() / times / 2
}

/// Ranks 0 and 1 send each other so many bytes at once.
fn large(carrier: &mut dyn Transport, bytes: usize) {
    let (rank, words) = (carrier.rank() as u64, bytes.div_ceil(8) as u64);
    let mut send = Vec::with_capacity(bytes + 8);
    (0..words).for_each(|i| send.extend_from_slice(&draw(rank, i).to_le_bytes()));
    let (other, start) = (1 - rank, Instant::now());
    let got = carrier.exchange(Some(other as usize), &send[..bytes], Some(other as usize)).unwrap();
    let took = start.elapsed();
    assert_eq!(got.len(), bytes, "rank {rank}: bytes from rank {other}");
    let wrong = (0..words).zip(got.chunks(8)).find(|(i, word)| draw(other, *i).to_le_bytes()[..word.len()] != **word);
    assert!(wrong.is_none(), "rank {rank}: word {wrong:?} of rank {other}");
    println!("rank {rank}: {bytes} bytes each way in {took:?}, all as sent");
}

/// One program with every collective, on this rank and in lockstep by the interpreter: the numbers must be near.
fn program(device: &Device, world: &World, n: usize, seed: u64) {
    let (rank, ranks) = (world.rank(), world.ranks());
    let text = format!(
        "func @f(%x: f32[{n}], %all: f32[{m}], %sends: bool) -> (f32[{n}], f32[{n}], f32[{n}], f32[{m}], f32[{n}], f32[{n}]) {{
            %a = collective_permute %x shift=1
            %s = all_reduce.sum %x
            %u = mul %a, %s
            %t = all_reduce.max %u
            %g = all_gather %u parts={ranks}
            %r = reduce_scatter.sum %all parts={ranks}
            %p = collective_permute %r, %sends shift=-1
            return %a, %s, %t, %g, %r, %p
        }}",
        m = n * ranks
    );
    let module = parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let entry = module.named("f").unwrap();
    let types = module.function(entry).param_types();
    let value = |r: usize, p: usize, i: usize| (draw(seed, (r * 8 + p) as u64 * 1_000_003 + i as u64) >> 40) as f64;
    let inputs: Vec<Vec<Tensor>> = (0..ranks)
        .map(|r| {
            let of = |(p, ty): (usize, &omchat_ir::Type)| {
                let data = (0..ty.elements()).map(|i| value(r, p, i));
                let data = if p == 2 { data.map(|x| x % 2.0).collect() } else { data.map(|x| x / 1e7 - 0.8).collect() };
                Tensor::new(ty.clone(), data).unwrap().rounded()
            };
            types.iter().enumerate().map(of).collect()
        })
        .collect();
    let want = interpret(&module, entry, inputs.clone(), Mode::Typed).unwrap().swap_remove(rank);
    let exe = Executable::load_tuned(device, &module, entry, None, Some(world), &mut |_, _| {}).unwrap();
    let feed: Vec<(&str, HostTensor)> =
        ["x", "all", "sends"].into_iter().zip(inputs[rank].iter().map(HostTensor::from_tensor)).collect();
    let have = exe.run(&feed, &mut Store::default()).unwrap_or_else(|e| panic!("{e}"));
    for (i, (h, w)) in have.iter().map(HostTensor::to_tensor).zip(&want).enumerate() {
        for (j, (x, y)) in h.data.iter().zip(&w.data).enumerate() {
            assert!((x - y).abs() <= 1e-5 * (1.0 + y.abs()), "rank {rank}, result {i}[{j}] of n = {n}: {x} is not {y}");
        }
    }
}

/// Steps of a small program without end; the error of a run names rank, op and step.
fn steps(device: &Device, world: &World, n: usize, last: u64) -> Option<Error> {
    let text = format!("func @f(%x: f32[{n}]) -> f32[{n}] {{ %y = all_reduce.sum %x %z = mul %y, %y return %z }}");
    let module = parse(&text).unwrap();
    let exe =
        Executable::load_tuned(device, &module, module.named("f").unwrap(), None, Some(world), &mut |_, _| {}).unwrap();
    let x = HostTensor::f32([n], &vec![1.0; n]);
    for step in 0..last {
        world.at_step(step);
        if let Err(e) = exe.run(&[("x", x.clone())], &mut Store::default()) {
            return Some(e);
        }
        if step % 16 == 0 {
            println!("rank {} round {step}", world.rank());
        }
    }
    None
}

/// The modes in which a `World` owns the transport.
fn worldly(mode: &str, seed: u64) {
    let launched = Launched::here().unwrap().expect("start it by mpirun, or with RANK and WORLD_SIZE");
    let world = launched.join().unwrap_or_else(|e| {
        say(&format!("error: {e}"));
        exit(2)
    });
    println!("rank {} of {} is process {}", world.rank(), world.ranks(), std::process::id());
    world.on_failure(|f: &Failure| say(&format!("alarm: {f}")));
    if mode == "busy" {
        return busy(&world, Duration::from_secs(seed));
    }
    let said = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    let device = Device::open(&said("DEVICE", "cpu")).unwrap_or_else(|e| panic!("{e}"));
    world.exchange_by(said("EXCHANGE", "auto").parse().unwrap_or_else(|e| panic!("EXCHANGE: {e}")));
    match mode {
        "world" => {
            [1, 7, 30, 1009, 70_001].iter().for_each(|n| program(&device, &world, *n, seed));
            println!("rank {}: every collective as the interpreter has it, by {:?}", world.rank(), world.carrier());
        }
        _ => {
            let n = if mode == "apart" && world.rank() == 1 { 8 } else { 7 };
            let last = if mode == "error" && world.rank() as u64 == seed { 20 } else { u64::MAX };
            match steps(&device, &world, n, last) {
                Some(error) => say(&format!("error: rank {}: {error}", world.rank())),
                None => say(&format!("error: rank {}: no such file in step {last}", world.rank())),
            }
            exit(1);
        }
    }
    leave(&world);
}

/// Rank 1 computes while the others wait for it.
fn busy(world: &World, time: Duration) {
    let start = Instant::now();
    let mut sum = u64::from(world.rank() == 1);
    while world.rank() == 1 && start.elapsed() < time {
        sum = (0..1_000_000).fold(sum, |s, i| s.rotate_left(5) ^ draw(s, i));
    }
    let all = world.gather("a sum", sum.to_le_bytes().to_vec(), None).unwrap_or_else(|e| {
        say(&format!("error: rank {}: {e}", world.rank()));
        exit(1)
    });
    assert!(all.iter().enumerate().all(|(r, n)| (n == &[0; 8]) == (r != 1)), "{all:?}");
    leave(world);
}

fn leave(world: &World) {
    if let Err(e) = world.leave() {
        say(&format!("error: rank {}: at the end: {e}", world.rank()));
        exit(1);
    }
    println!("rank {} is done", world.rank());
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(mode @ ("world" | "steps" | "apart" | "error" | "busy")) = args.first().map(String::as_str) {
        return worldly(mode, args.get(1).map_or(0, |s| s.parse().unwrap()));
    }
    let number = |i: usize| args.get(i).expect("a number is missing").parse::<u64>().unwrap();
    let mut made = transport();
    let carrier = made.as_mut();
    let (rank, ranks) = (carrier.rank(), carrier.ranks());
    println!("rank {rank} of {ranks} is process {}", std::process::id());
    match args.first().map(String::as_str) {
        Some("check") => rounds(carrier, number(1), 0..number(2)),
        Some("pause") => {
            rounds(carrier, 1, 0..20);
            // All but one compute, and that one waits for them.
            if rank != 1 {
                pause(carrier, Duration::from_secs(number(1)) / (1 + rank as u32 % 2));
            }
            rounds(carrier, 1, 20..40);
        }
        Some("endless") => rounds(carrier, number(1), 0..u64::MAX),
        Some("early") => {
            let me = rank as u64 == number(1);
            rounds(carrier, 1, 0..20);
            if !me {
                rounds(carrier, 1, 20..u64::MAX);
            }
        }
        Some("large") => large(carrier, number(1) as usize),
        Some("speed") => {
            for (bytes, times) in [(8, 2000), (4096, 1000), (65536, 500), (1 << 20, 100), (64 << 20, 5)] {
                let time = ping(carrier, bytes, times);
                let rate = bytes as f64 / time.as_secs_f64() / 1e9;
                if rank == 0 {
                    println!("{bytes} bytes: {:.1} us one way, {rate:.2} GB/s", time.as_secs_f64() * 1e6);
                }
            }
        }
        other => panic!("unknown mode {other:?}"),
    }
    if let Err(lost) = carrier.leave() {
        say(&format!("error: rank {rank}: at the end: {lost}"));
        exit(1);
    }
    println!("rank {rank} is done");
}
