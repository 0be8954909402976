//! A rank that exchanges drawn messages over MPI and checks each byte: what `runtime/tests/mpi.rs` starts by `mpirun`.
//!
//! ```text
//! mpirun -n 4 mpi_ranks check SEED ROUNDS      exchanges of drawn patterns and lengths, each byte checked
//! mpirun -n 4 mpi_ranks pause SECONDS          ranks compute for so long without an exchange; all must live
//! mpirun -n 4 mpi_ranks endless SEED           the same without end, for tests that kill
//! mpirun -n 4 mpi_ranks early RANK             this rank ends after 20 rounds, the others go on
//! mpirun -n 4 mpi_ranks error RANK             this rank gives up after 20 rounds
//! mpirun -n 2 mpi_ranks speed                  latency and bandwidth between ranks 0 and 1
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use omchat_runtime::collective::{Lost, Mpi, Transport, abort};
use std::time::{Duration, Instant};

/// Shortened by tests that wait for it.
fn silence() -> Duration {
    std::env::var("SILENCE_MS").map_or(Mpi::SILENCE, |ms| Duration::from_millis(ms.parse().unwrap()))
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

fn round(mpi: &mut Mpi, seed: u64, n: u64) -> Result<(), Lost> {
    let (rank, ranks) = (mpi.rank(), mpi.ranks());
    let from = (0..ranks).find(|r| to(seed, n, *r, ranks) == Some(rank));
    let got = mpi.exchange(to(seed, n, rank, ranks), &message(seed, n, rank), from)?;
    let want = from.map_or(vec![], |r| message(seed, n, r));
    assert!(got == want, "rank {rank}, round {n}: {} bytes from {from:?} are not the {} sent", got.len(), want.len());
    Ok(())
}

fn rounds(mpi: &mut Mpi, seed: u64, range: std::ops::Range<u64>) {
    for n in range {
        if let Err(lost) = round(mpi, seed, n) {
            eprintln!("error: rank {}: exchange of round {n}: {lost}", mpi.rank());
            abort(1);
        }
        if n % 16 == 0 {
            println!("rank {} round {n}", mpi.rank());
        }
    }
}

fn pause(mpi: &mut Mpi, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        if let Err(lost) = mpi.idle() {
            eprintln!("error: rank {}: a pause: {lost}", mpi.rank());
            abort(1);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Ping and pong of rank 0 and 1: the time one way.
fn ping(mpi: &mut Mpi, bytes: usize, times: u32) -> Duration {
    let send = vec![7; bytes];
    let go = |mpi: &mut Mpi| match mpi.rank() {
        0 => mpi.exchange(Some(1), &send, None).and_then(|_| mpi.exchange(None, &[], Some(1))).unwrap(),
        _ => mpi.exchange(None, &[], Some(0)).and_then(|got| mpi.exchange(Some(0), &got, None)).unwrap(),
    };
    go(mpi);
    let start = Instant::now();
    for _ in 0..times {
        go(mpi);
    }
    start.elapsed() / times / 2
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| args.get(i).expect("a number is missing").parse::<u64>().unwrap();
    let mut mpi = Mpi::start(silence()).unwrap_or_else(|e| panic!("{e}"));
    let (rank, ranks) = (mpi.rank(), mpi.ranks());
    println!("rank {rank} of {ranks} is process {}", std::process::id());
    match args.first().map(String::as_str) {
        Some("check") => rounds(&mut mpi, number(1), 0..number(2)),
        Some("pause") => {
            rounds(&mut mpi, 1, 0..20);
            // All but one compute, and that one waits for them.
            if rank != 1 {
                pause(&mut mpi, Duration::from_secs(number(1)) / (1 + rank as u32 % 2));
            }
            rounds(&mut mpi, 1, 20..40);
        }
        Some("endless") => rounds(&mut mpi, number(1), 0..u64::MAX),
        Some(how @ ("early" | "error")) => {
            let me = rank as u64 == number(1);
            rounds(&mut mpi, 1, 0..20);
            if me && how == "error" {
                eprintln!("error: rank {rank}: no such file");
                abort(3);
            }
            if !me {
                rounds(&mut mpi, 1, 20..u64::MAX);
            }
        }
        Some("speed") => {
            for (bytes, times) in [(8, 2000), (4096, 1000), (65536, 500), (1 << 20, 100), (64 << 20, 5)] {
                let time = ping(&mut mpi, bytes, times);
                let rate = bytes as f64 / time.as_secs_f64() / 1e9;
                if rank == 0 {
                    println!("{bytes} bytes: {:.1} us one way, {rate:.2} GB/s", time.as_secs_f64() * 1e6);
                }
            }
        }
        other => panic!("unknown mode {other:?}"),
    }
    if let Err(lost) = mpi.leave() {
        eprintln!("error: rank {rank}: at the end: {lost}");
        abort(1);
    }
    println!("rank {rank} is done");
}
