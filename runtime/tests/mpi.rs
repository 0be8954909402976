//! Ranks as processes, started by `mpirun` or MPICH's `mpiexec`: what they exchange is whole, who computes for long lives, and who is killed,
//! stopped, ends or gives up is named by all others within seconds. Every run has a deadline that kills all it started.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/launcher.rs"]
mod launcher;
#[path = "support/run.rs"]
mod run;

use launcher::{flags, launcher, mpich};
use run::{Run, drawn, others_name, signal, turn};
use std::process::Command;
use std::thread;
use std::time::Duration;

fn present() -> bool {
    launcher("ranks as processes").is_some()
}

fn start(ranks: usize, args: &[&str], silence_ms: u64) -> Run {
    over(None, ranks, args, silence_ms)
}

/// Ranks that Open MPI carries between by the named means only, on this machine alone. Other MPIs are not told.
fn over(means: Option<&str>, ranks: usize, args: &[&str], silence_ms: u64) -> Run {
    let mut command = Command::new(launcher("ranks as processes").unwrap());
    // Twice the time that the launcher leaves ranks for their errors: other tests use the cores too.
    command.args(flags(2)).args(["-n", &ranks.to_string()]);
    command.arg(env!("CARGO_BIN_EXE_test_ranks")).args(args);
    command.env("SILENCE_MS", silence_ms.to_string()).envs(means.map(|m| ("OMPI_MCA_btl", m)));
    command.env("OMPI_MCA_btl_tcp_if_include", "lo");
    Run::of(vec![command])
}

#[test]
fn every_byte_of_drawn_exchanges_arrives() {
    if !present() {
        return;
    }
    let _turn = turn();
    for (ranks, means) in [(1, None), (2, None), (3, None), (4, None), (3, Some("self,tcp"))] {
        let seed = drawn(1 << 30).to_string();
        let (well, text) = over(means, ranks, &["check", &seed, "150"], 5000).end(120);
        assert!(well && text.matches(" is done").count() == ranks, "{ranks} ranks, seed {seed}:\n{text}");
    }
}

#[test]
fn who_computes_for_long_lives() {
    if !present() {
        return;
    }
    let _turn = turn();
    // Six times as long as silence is borne.
    let (well, text) = start(4, &["pause", "6"], 1000).end(60);
    assert!(well && text.matches(" is done").count() == 4, "{text}");
}

/// All others name a rank in their errors; under MPICH one does, whose end is the others' end.
fn named(text: &str, gone: usize) {
    if !mpich() {
        return others_name(text, 4, gone);
    }
    let says = |line: &str| line.contains("error: rank ") && line.contains(&format!(": rank {gone} "));
    assert!(text.lines().any(says), "{text}");
}

#[test]
fn who_is_killed_is_named_by_all() {
    if !present() {
        return;
    }
    let _turn = turn();
    let tcp = Some("self,tcp");
    for (mode, means) in
        [("endless", None), ("endless", None), ("endless", tcp), ("steps", None), ("steps", None), ("steps", tcp)]
    {
        let (gone, wait, seed) = (drawn(4) as usize, drawn(1500), drawn(1 << 30).to_string());
        let mut run = over(means, 4, &[mode, &seed], 5000);
        run.until(|t| (0..4).all(|r| t.contains(&format!("rank {r} round 0"))), 60);
        thread::sleep(Duration::from_millis(wait));
        signal("KILL", run.process(gone));
        let (well, text) = run.end(10);
        assert!(!well, "seed {seed}, rank {gone} killed after {wait} ms:\n{text}");
        // MPICH's launcher kills the others, mostly before they can say anything.
        if !mpich() {
            others_name(&text, 4, gone);
        }
    }
}

#[test]
fn who_stands_still_is_named_by_all() {
    if !present() {
        return;
    }
    let _turn = turn();
    for mode in ["endless", "steps"] {
        let (gone, seed) = (drawn(4) as usize, drawn(1 << 30).to_string());
        let mut run = start(4, &[mode, &seed], 5000);
        run.until(|t| (0..4).all(|r| t.contains(&format!("rank {r} round 0"))), 60);
        signal("STOP", run.process(gone));
        let (well, text) = run.end(10);
        assert!(!well, "seed {seed}, rank {gone} stopped:\n{text}");
        named(&text, gone);
    }
}

#[test]
fn who_ends_or_gives_up_is_named_at_once() {
    if !present() {
        return;
    }
    let _turn = turn();
    for (mode, why) in [("early", "ended"), ("error", "ended with an error")] {
        let gone = drawn(4) as usize;
        // Far below the silence that is borne: it is told, not found.
        let (well, text) = start(4, &[mode, &gone.to_string()], 60_000).end(10);
        assert!(!well, "{mode} of rank {gone}:\n{text}");
        if mpich() && mode == "error" {
            assert!(text.contains(&format!("error: rank {gone}: ")), "{text}");
            continue;
        }
        named(&text, gone);
        assert!(text.contains(&format!("rank {gone} {why}")), "{text}");
    }
}

#[test]
fn programs_on_processes_yield_what_the_interpreter_has() {
    if !present() {
        return;
    }
    let _turn = turn();
    for ranks in [1, 2, 3, 4] {
        let seed = drawn(1 << 30).to_string();
        let (well, text) = start(ranks, &["world", &seed], 5000).end(120);
        assert!(well && text.matches(" is done").count() == ranks, "{ranks} ranks, seed {seed}:\n{text}");
    }
}

#[test]
fn processes_that_part_say_so() {
    if !present() {
        return;
    }
    let _turn = turn();
    let (well, text) = start(4, &["apart"], 5000).end(20);
    assert!(!well && text.contains("do not run the same"), "{text}");
}
