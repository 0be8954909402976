//! Ranks on two hosts, two on each: what they exchange is whole, also over a slow wire; a rank that is killed on the other
//! host is named, and where the wire is cut both sides say so. The hosts are network namespaces of this machine.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/hosts.rs"]
mod hosts;
#[cfg(feature = "mpi")]
#[path = "support/launcher.rs"]
mod launcher;
#[path = "support/run.rs"]
mod run;

use hosts::{ADDRESSES, Hosts};
use run::{Run, drawn, others_name, signal, turn};
use std::time::{Duration, Instant};

const RANKS: usize = 4;
/// How long a run may take to end once a rank or the wire is gone.
const SOON: Duration = Duration::from_secs(10);

fn two() -> Option<Hosts> {
    Hosts::two("ranks", env!("CARGO_TARGET_TMPDIR"))
}

/// Four ranks that meet over TCP. A host has ports of its own, so none is taken.
fn over_tcp(hosts: &Hosts, args: &[&str]) -> Run {
    let one = |rank: usize| {
        let mut command = hosts.on(rank / 2, env!("CARGO_BIN_EXE_test_ranks"));
        command.args(args).env("RANK", rank.to_string()).env("WORLD_SIZE", RANKS.to_string());
        command.env("MASTER_ADDR", ADDRESSES[0]).env("MASTER_PORT", "29500");
        command
    };
    Run::of((0..RANKS).map(one).collect())
}

fn meet(run: &mut Run) {
    run.until(|t| (0..RANKS).all(|r| t.contains(&format!("rank {r} round 0"))), 60);
}

fn done(what: &str, run: Run) {
    let (begun, (well, text)) = (Instant::now(), run.end(120));
    assert!(well && text.matches(" is done").count() == RANKS, "{what}:\n{text}");
    println!("{what}: done after {:?}", begun.elapsed());
}

/// Whom each rank's error names, where it says where it was.
fn blames(text: &str) -> Vec<(usize, usize)> {
    let number = |s: &str| s.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok());
    let one = |line: &str| {
        let (who, cause) = line.split_once("error: rank ")?.1.split_once(": ")?;
        let place = ["all_reduce.sum %y of step ", "exchange of round "].iter().any(|p| cause.contains(p));
        place.then_some((number(who)?, number(cause.split_once("rank ")?.1)?))
    };
    text.lines().filter_map(one).collect()
}

/// Each of these ranks blames one that it could not reach any more.
fn both_sides(text: &str, ranks: &[usize]) {
    let blames = blames(text);
    for rank in ranks {
        let whom =
            blames.iter().find(|(who, _)| who == rank).unwrap_or_else(|| panic!("rank {rank} is mute:\n{text}")).1;
        assert!(whom / 2 != rank / 2, "rank {rank} blames rank {whom}, which it reached:\n{text}");
    }
}

#[test]
fn every_byte_arrives_also_over_a_slow_wire() {
    let _turn = turn();
    let Some(hosts) = two() else { return };
    let seed = drawn(1 << 30).to_string();
    done(&format!("seed {seed}"), over_tcp(&hosts, &["check", &seed, "60"]));
    match hosts.slow() {
        Ok(how) => done(&format!("seed {seed}, {how}"), over_tcp(&hosts, &["check", &seed, "60"])),
        Err(why) => println!("skipped: ranks over a slow wire ({why})"),
    }
}

#[test]
fn who_is_killed_on_the_other_host_is_named_by_all() {
    let _turn = turn();
    let Some(hosts) = two() else { return };
    for mode in ["endless", "steps"] {
        let (gone, seed) = (2 + drawn(2) as usize, drawn(1 << 30).to_string());
        let mut run = over_tcp(&hosts, &[mode, &seed]);
        meet(&mut run);
        let died = Instant::now();
        signal("KILL", run.process(gone));
        let (well, text) = run.end(SOON.as_secs());
        assert!(!well, "seed {seed}, rank {gone} killed:\n{text}");
        others_name(&text, RANKS, gone);
        println!("rank {gone} killed in {mode}: named by all others, which had ended after {:?}", died.elapsed());
    }
}

#[test]
fn a_wire_that_is_cut_is_told_on_both_sides() {
    let _turn = turn();
    let Some(hosts) = two() else { return };
    let mut run = over_tcp(&hosts, &["steps"]);
    meet(&mut run);
    let cut = Instant::now();
    hosts.wire(false);
    let (well, text) = run.end(SOON.as_secs());
    assert!(!well, "{text}");
    both_sides(&text, &[0, 1, 2, 3]);
    println!("the wire cut: all had ended after {:?}", cut.elapsed());
}

/// The launcher of this build's MPI on the first host, for two ranks on each.
#[cfg(feature = "mpi")]
fn over_mpi(hosts: &Hosts, args: &[&str]) -> Option<Run> {
    let mut command = hosts.on(0, launcher::launcher("ranks on two hosts")?);
    let (places, agent) = (ADDRESSES.map(|a| format!("{a}:2")).join(","), hosts.agent());
    command.args(launcher::flags(2));
    if launcher::mpich() {
        command.args(["-launcher", "ssh", "-launcher-exec"]).arg(agent).args(["-hosts", &places]);
        // Both hosts have one kernel, by which UCX would go around the wire.
        command.env("UCX_TLS", "tcp,self");
    } else {
        command.args(["--host", &places, "--mca", "plm_rsh_agent"]).arg(agent);
        // `mpirun` learns that it cannot reach the other host: first asked after 2 s, then each second, three times.
        for (name, value) in [("time", "2"), ("intvl", "1"), ("probes", "3")] {
            command.args(["--mca", &format!("oob_tcp_keepalive_{name}"), value]);
        }
    }
    command.args(["-n", &RANKS.to_string(), env!("CARGO_BIN_EXE_test_ranks")]).args(args);
    Some(Run::of(vec![command]))
}

#[cfg(feature = "mpi")]
#[test]
fn mpi_carries_between_hosts_and_a_killed_rank_is_named() {
    let _turn = turn();
    let Some(hosts) = two() else { return };
    let seed = drawn(1 << 30).to_string();
    let Some(run) = over_mpi(&hosts, &["check", &seed, "60"]) else { return };
    done(&format!("over MPI, seed {seed}"), run);
    let (gone, Some(mut run)) = (2 + drawn(2) as usize, over_mpi(&hosts, &["steps"])) else { return };
    meet(&mut run);
    let died = Instant::now();
    signal("KILL", run.process(gone));
    let (well, text) = run.end(2 * SOON.as_secs());
    assert!(!well, "rank {gone} killed:\n{text}");
    println!("rank {gone} killed over MPI: ended after {:?}", died.elapsed());
    // MPICH's launcher kills the others, mostly before they can say anything.
    if !launcher::mpich() {
        others_name(&text, RANKS, gone);
    }
}

/// What the far side says has no way to the launcher; its ranks must end all the same.
#[cfg(feature = "mpi")]
#[test]
fn a_wire_that_is_cut_under_mpi_is_told_on_the_launchers_side() {
    let _turn = turn();
    let Some(hosts) = two() else { return };
    let Some(mut run) = over_mpi(&hosts, &["steps"]) else { return };
    meet(&mut run);
    let processes: Vec<u32> = (0..RANKS).map(|r| run.process(r)).collect();
    let cut = Instant::now();
    hosts.wire(false);
    run.until(|t| blames(t).len() >= RANKS / 2, SOON.as_secs());
    both_sides(&run.text(), &[0, 1]);
    // Who is dead and not yet waited for has no command line.
    let lives = |pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
    while processes.iter().any(lives) {
        assert!(cut.elapsed() < 2 * SOON, "ranks are left over:\n{}", run.text());
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("the wire cut under MPI: all ranks had ended after {:?}", cut.elapsed());
    // MPICH's launcher waits for the other host until it is ended.
    while !launcher::mpich() && run.runs() {
        assert!(cut.elapsed() < 2 * SOON, "mpirun does not end:\n{}", run.text());
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("and the launcher: {}", if run.runs() { "waits".into() } else { format!("after {:?}", cut.elapsed()) });
    // What the launcher started on the far side may wait for it, and has its streams.
    hosts.clear(1);
    hosts.clear(0);
    let (well, text) = run.end(SOON.as_secs());
    assert!(!well, "{text}");
}
