//! Ranks as processes over TCP: what they exchange is whole, who computes for long lives, who is killed, stopped, ends or
//! gives up is named by all others within seconds; who does not come or does not fit is named at the start, and
//! strangers hold nobody up. Every run has a deadline that kills all it started.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/run.rs"]
mod run;

use run::{Run, drawn, others_name, signal, turn};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// A port of this machine that nobody listens at.
fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// One rank, not started yet.
fn rank(rank: usize, ranks: usize, port: u16, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_test_ranks"));
    command.args(args).env("RANK", rank.to_string()).env("WORLD_SIZE", ranks.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command
}

/// All ranks, started in a drawn order.
fn start(ranks: usize, args: &[&str], silence_ms: u64) -> Run {
    let (port, first) = (free(), drawn(ranks as u64) as usize);
    let silence = silence_ms.to_string();
    let one = |i| {
        let mut command = rank((first + i) % ranks, ranks, port, args);
        command.env("SILENCE_MS", &silence);
        command
    };
    Run::of((0..ranks).map(one).collect())
}

/// A line of each rank that lives says that another is gone.
fn told(text: &str, ranks: usize, gone: usize) -> bool {
    (0..ranks).filter(|r| *r != gone).all(|r| text.contains(&format!("error: rank {r}: ")))
}

#[test]
fn every_byte_of_drawn_exchanges_arrives() {
    let _turn = turn();
    for ranks in [1, 2, 3, 4, 7] {
        let seed = drawn(1 << 30).to_string();
        let (well, text) = start(ranks, &["check", &seed, "150"], 5000).end(120);
        assert!(well && text.matches(" is done").count() == ranks, "{ranks} ranks, seed {seed}:\n{text}");
    }
}

#[test]
fn who_computes_for_long_lives() {
    let _turn = turn();
    // Six times as long as silence is borne; then one alone, for longer than silence is borne as a rule.
    for (args, silence) in [(["pause", "6"], 1000), (["busy", "8"], 5000)] {
        let (well, text) = start(4, &args, silence).end(60);
        assert!(well && text.matches(" is done").count() == 4, "{args:?}:\n{text}");
    }
}

#[test]
fn who_is_killed_is_named_by_all() {
    let _turn = turn();
    for mode in ["endless", "endless", "endless", "steps", "steps"] {
        let (gone, wait, seed) = (drawn(4) as usize, drawn(1500), drawn(1 << 30).to_string());
        let mut run = start(4, &[mode, &seed], 5000);
        run.until(|t| (0..4).all(|r| t.contains(&format!("rank {r} round 0"))), 60);
        thread::sleep(Duration::from_millis(wait));
        let died = Instant::now();
        signal("KILL", run.process(gone));
        run.until(|t| told(t, 4, gone), 10);
        println!("rank {gone} killed after {wait} ms of {mode}: named by all others after {:?}", died.elapsed());
        let (well, text) = run.end(10);
        assert!(!well, "seed {seed}, rank {gone} killed after {wait} ms:\n{text}");
        others_name(&text, 4, gone);
    }
}

#[test]
fn who_stands_still_is_named_by_all() {
    let _turn = turn();
    for mode in ["endless", "steps"] {
        let (gone, seed) = (drawn(4) as usize, drawn(1 << 30).to_string());
        let mut run = start(4, &[mode, &seed], 5000);
        run.until(|t| (0..4).all(|r| t.contains(&format!("rank {r} round 0"))), 60);
        let stopped = Instant::now();
        signal("STOP", run.process(gone));
        run.until(|t| told(t, 4, gone), 10);
        println!("rank {gone} stopped in {mode}: named by all others after {:?}", stopped.elapsed());
        others_name(&run.text(), 4, gone);
        // What goes on later finds that it was given up, and ends.
        signal("CONT", run.process(gone));
        let (well, text) = run.end(10);
        assert!(!well && text.contains(&format!("error: rank {gone}: ")), "seed {seed}, rank {gone} stopped:\n{text}");
    }
}

#[test]
fn who_ends_or_gives_up_is_named_at_once() {
    let _turn = turn();
    for (mode, why) in [("early", "ended"), ("error", "ended with an error")] {
        let gone = drawn(4) as usize;
        // Far below the silence that is borne: it is told, not found.
        let (well, text) = start(4, &[mode, &gone.to_string()], 60_000).end(10);
        assert!(!well, "{mode} of rank {gone}:\n{text}");
        others_name(&text, 4, gone);
        assert!(text.contains(&format!("rank {gone} {why}")), "{text}");
    }
}

#[test]
fn programs_on_processes_yield_what_the_interpreter_has() {
    let _turn = turn();
    for ranks in [1, 2, 3, 4] {
        let seed = drawn(1 << 30).to_string();
        let (well, text) = start(ranks, &["world", &seed], 5000).end(120);
        assert!(well && text.matches(" is done").count() == ranks, "{ranks} ranks, seed {seed}:\n{text}");
    }
}

#[test]
fn processes_that_part_say_so() {
    let _turn = turn();
    let (well, text) = start(4, &["apart"], 5000).end(20);
    assert!(!well && text.contains("do not run the same"), "{text}");
}

/// A build without MPI that `mpirun` starts goes over TCP, if it is told where.
#[test]
fn mpirun_without_mpi_goes_over_tcp() {
    let said = Command::new("mpirun").arg("--version").output().map(|o| o.stdout).unwrap_or_default();
    if cfg!(feature = "mpi") || !String::from_utf8_lossy(&said).contains("Open MPI") {
        println!("skipped: mpirun without MPI (this build has MPI, or there is no mpirun of Open MPI)");
        return;
    }
    let _turn = turn();
    let mut command = Command::new("mpirun");
    command.args([
        "--allow-run-as-root",
        "--oversubscribe",
        "--bind-to",
        "none",
        "-x",
        "MASTER_ADDR",
        "-x",
        "MASTER_PORT",
    ]);
    command.args(["-n", "3", env!("CARGO_BIN_EXE_test_ranks"), "busy", "1"]);
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", free().to_string());
    let (well, text) = Run::of(vec![command]).end(60);
    assert!(well && text.matches(" is done").count() == 3, "{text}");
}

/// Connects as soon as somebody listens.
fn knock(port: u16) -> TcpStream {
    let start = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(e) => assert!(start.elapsed() < Duration::from_secs(20), "nobody listens: {e}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A hello of a rank, by what `collective/tcp/hello.rs` says of it.
fn hello(protocol: u32, run: u64, ranks: u32, rank: u32, port: u16) -> Vec<u8> {
    let mut bytes = b"OmChat\r\n".to_vec();
    bytes.extend(protocol.to_le_bytes());
    bytes.extend(run.to_le_bytes());
    bytes.extend(ranks.to_le_bytes());
    bytes.extend(rank.to_le_bytes());
    bytes.extend(port.to_le_bytes());
    bytes
}

#[test]
fn strangers_at_the_port_hold_nobody_up() {
    let _turn = turn();
    let (port, seed) = (free(), drawn(1 << 30));
    let first = Run::of(vec![rank(0, 3, port, &["busy", "0"])]);
    let noise: Vec<u8> = (0..100_000u64).map(|i| (i.wrapping_mul(seed) >> 7) as u8).collect();
    let mut held = vec![];
    for said in [
        &b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"[..],
        &noise,
        &[],
        &hello(1, 0, 3, 1, 0)[..17],
        // Ranks of another run, a rank that there is not, rank 0 again.
        &hello(1, 77, 3, 1, 0),
        &hello(1, 0, 3, 3, 0),
        &hello(1, 0, 3, 0, 0),
        &[0; 30],
    ] {
        for _ in 0..20 {
            let mut stream = knock(port);
            // It may be shown out before it has said all.
            let _ = stream.write_all(said);
            held.push(stream);
        }
    }
    let others = Run::of(vec![rank(2, 3, port, &["busy", "0"]), rank(1, 3, port, &["busy", "0"])]);
    let begun = Instant::now();
    let (well, text) = others.end(20);
    assert!(well && text.matches(" is done").count() == 2, "seed {seed}:\n{text}");
    let (well, text) = first.end(20);
    assert!(well && text.contains("rank 0 is done"), "seed {seed}:\n{text}");
    println!("160 strangers at the port: three ranks met and were done after {:?}", begun.elapsed());
}

#[test]
fn who_does_not_come_is_named() {
    let _turn = turn();
    let port = free();
    let late = |r| {
        let mut command = rank(r, 4, port, &["busy", "0"]);
        command.env("OMCHAT_JOIN_TIMEOUT", "2");
        command
    };
    let (well, text) = Run::of(vec![late(2), late(0)]).end(20);
    let said = "ranks 1 and 3 of 4 did not come to 127.0.0.1";
    assert!(!well && text.matches(said).count() == 2 && text.contains("OMCHAT_JOIN_TIMEOUT=10"), "{text}");
    // Without rank 0 nobody can say who came.
    let (well, text) = Run::of(vec![late(2)]).end(20);
    assert!(!well && text.contains("rank 0 was not reached at 127.0.0.1") && text.contains("within 2 s"), "{text}");
}

#[test]
fn who_does_not_fit_is_named_by_all() {
    let _turn = turn();
    let busy = &["busy", "0"][..];
    let port = free();
    let twice = Run::of(vec![rank(1, 3, port, busy), rank(1, 3, port, busy), rank(0, 3, port, busy)]);
    let (well, text) = twice.end(20);
    assert!(!well && text.matches("two processes say that they are rank 1").count() == 3, "{text}");

    let port = free();
    let (well, text) = Run::of(vec![rank(0, 3, port, busy), rank(1, 2, port, busy)]).end(20);
    let said = "says that there are 2 ranks, and rank 0 that there are 3";
    assert!(!well && text.matches(said).count() == 2, "{text}");

    let port = free();
    let run = Run::of(vec![rank(0, 3, port, busy)]);
    let mut others: Vec<TcpStream> = [(1, 2), (9, 1)]
        .map(|(protocol, rank)| {
            let mut stream = knock(port);
            stream.write_all(&hello(protocol, 0, 3, rank, 1)).unwrap();
            stream
        })
        .into();
    let said = "speaks protocol 9, and rank 0 protocol 1";
    for stream in &mut others {
        let mut answer = vec![];
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.read_to_end(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer).contains(said), "{answer:?}");
    }
    let (well, text) = run.end(20);
    assert!(!well && text.contains(said), "{text}");
}

#[test]
fn who_dies_while_ranks_meet_is_named() {
    let _turn = turn();
    let port = free();
    let run = Run::of(vec![rank(0, 3, port, &["busy", "0"]), rank(2, 3, port, &["busy", "0"])]);
    let mut one = knock(port);
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    one.write_all(&hello(1, 0, 3, 1, door.local_addr().unwrap().port())).unwrap();
    // It gets the table, connects to nobody, and ends.
    one.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut table = [0; 5 + 8 + 3 * 18];
    one.read_exact(&mut table).unwrap();
    drop((one, door));
    let (well, text) = run.end(20);
    assert!(!well && text.matches("rank 1 ended while the ranks were meeting").count() == 2, "{text}");
}

#[test]
fn a_place_where_ranks_cannot_meet_is_named() {
    let _turn = turn();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (well, text) = Run::of(vec![rank(0, 2, port, &["busy", "0"])]).end(20);
    assert!(!well && text.contains(&format!("127.0.0.1:{port}, which is in use")), "{text}");

    // Something else listens there.
    let answers = thread::spawn(move || {
        let (mut stream, _) = taken.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let _ = stream.read(&mut [0; 100]);
    });
    let (well, text) = Run::of(vec![rank(1, 2, port, &["busy", "0"])]).end(20);
    answers.join().unwrap();
    assert!(!well && text.contains("is no rank of a run"), "{text}");

    for (host, r, said) in [
        ("no.such.host.invalid", 1, "MASTER_ADDR=no.such.host.invalid has no address here"),
        // Kept for documents: no machine has it.
        ("192.0.2.1", 0, "MASTER_ADDR must be an address of rank 0's own machine"),
    ] {
        let mut command = rank(r, 2, free(), &["busy", "0"]);
        command.env("MASTER_ADDR", host);
        let (well, text) = Run::of(vec![command]).end(30);
        assert!(!well && text.contains(said), "{text}");
    }
}
