//! Ranks as processes, started by `mpirun`: what they exchange is whole, who computes for long lives, and who is killed,
//! stopped, ends or gives up is named by all others within seconds. Every run has a deadline that kills all it started.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Runs take turns: ranks of two runs on few cores would test the machine.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether `mpirun` is here; says so where it is not.
fn present() -> bool {
    let there = Command::new("mpirun").arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        println!("skipped: ranks as processes (no mpirun on PATH)");
    }
    there
}

/// A run under way, all that it started in a process group of its own.
struct Run {
    child: std::process::Child,
    text: Arc<Mutex<String>>,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Run {
    fn start(ranks: usize, args: &[&str], silence_ms: u64) -> Run {
        Run::over(None, ranks, args, silence_ms)
    }

    /// Ranks that Open MPI carries between by the named means only, on this machine alone.
    fn over(means: Option<&str>, ranks: usize, args: &[&str], silence_ms: u64) -> Run {
        let mut child = Command::new("mpirun")
            // Twice the time that the launcher leaves ranks for their errors: other tests use the cores too.
            // Other tests use the cores too: more time to tell an error than a launcher leaves.
            .args([
                "--allow-run-as-root",
                "--oversubscribe",
                "--bind-to",
                "none",
                "--mca",
                "odls_base_sigkill_timeout",
                "2",
                "-n",
                &ranks.to_string(),
            ])
            .arg(env!("CARGO_BIN_EXE_mpi_ranks"))
            .args(args)
            .env("SILENCE_MS", silence_ms.to_string())
            .envs(means.map(|m| ("OMPI_MCA_btl", m)))
            .env("OMPI_MCA_btl_tcp_if_include", "lo")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let text = Arc::new(Mutex::new(String::new()));
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let readers = vec![pour(out, &text), pour(err, &text)];
        Run { child, text, readers }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// Waits until the output says something.
    fn until(&mut self, say: impl Fn(&str) -> bool, seconds: u64) {
        let start = Instant::now();
        while !say(&self.text()) {
            if start.elapsed() > Duration::from_secs(seconds) {
                self.kill();
                panic!("after {seconds} s it has only said:\n{}", self.text());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Which process a rank is.
    fn process(&self, rank: usize) -> u32 {
        let (text, before) = (self.text(), format!("rank {rank} of "));
        let line = text.lines().find(|l| l.starts_with(&before)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Whether it ended well, and what it said. Fails the test, with all that it started killed, past the deadline.
    fn end(mut self, seconds: u64) -> (bool, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > Duration::from_secs(seconds) {
                self.kill();
                panic!("it still runs after {seconds} s:\n{}", self.text());
            }
            thread::sleep(Duration::from_millis(20));
        };
        for r in self.readers.drain(..) {
            r.join().unwrap();
        }
        (status.success(), self.text())
    }

    /// Kills `mpirun`, and the ranks, which it puts into groups of their own.
    fn kill(&mut self) {
        for line in self.text().lines().filter(|l| l.contains(" is process ")) {
            signal("KILL", line.rsplit(' ').next().unwrap().parse().unwrap());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

/// Whole lines only: two streams meet in one text.
fn pour(from: impl Read + Send + 'static, into: &Arc<Mutex<String>>) -> thread::JoinHandle<()> {
    let into = into.clone();
    thread::spawn(move || {
        let (mut from, mut line) = (BufReader::new(from), vec![]);
        while let Ok(1..) = from.read_until(b'\n', &mut line) {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}

fn signal(name: &str, process: u32) {
    Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).stderr(Stdio::null()).status().unwrap();
}

/// Other numbers in every run of the tests, told by each failure.
fn drawn(of: u64) -> u64 {
    let ns = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    u64::from(ns / 1000).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) % of
}

/// All but one rank must say so in an error that names the one, and the round in which they were.
fn others_name(text: &str, ranks: usize, gone: usize) {
    for rank in (0..ranks).filter(|r| *r != gone) {
        let before = format!("error: rank {rank}: ");
        let line = text.lines().find(|l| l.contains(&before)).unwrap_or_else(|| panic!("rank {rank} is mute:\n{text}"));
        let cause = line.split_once(&before).unwrap().1;
        assert!(cause.contains(&format!("rank {gone} ")), "{line}\nin\n{text}");
        assert!(cause.contains("round ") || cause.contains("step "), "{line}");
    }
}

#[test]
fn every_byte_of_drawn_exchanges_arrives() {
    if !present() {
        return;
    }
    let _turn = turn();
    for (ranks, means) in [(1, None), (2, None), (3, None), (4, None), (3, Some("self,tcp"))] {
        let seed = drawn(1 << 30).to_string();
        let (well, text) = Run::over(means, ranks, &["check", &seed, "150"], 5000).end(120);
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
    let (well, text) = Run::start(4, &["pause", "6"], 1000).end(60);
    assert!(well && text.matches(" is done").count() == 4, "{text}");
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
        let mut run = Run::over(means, 4, &[mode, &seed], 5000);
        run.until(|t| (0..4).all(|r| t.contains(&format!("rank {r} round 0"))), 60);
        thread::sleep(Duration::from_millis(wait));
        signal("KILL", run.process(gone));
        let (well, text) = run.end(10);
        assert!(!well, "seed {seed}, rank {gone} killed after {wait} ms:\n{text}");
        others_name(&text, 4, gone);
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
        let mut run = Run::start(4, &[mode, &seed], 5000);
        run.until(|t| (0..4).all(|r| t.contains(&format!("rank {r} round 0"))), 60);
        signal("STOP", run.process(gone));
        let (well, text) = run.end(10);
        assert!(!well, "seed {seed}, rank {gone} stopped:\n{text}");
        others_name(&text, 4, gone);
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
        let (well, text) = Run::start(4, &[mode, &gone.to_string()], 60_000).end(10);
        assert!(!well, "{mode} of rank {gone}:\n{text}");
        others_name(&text, 4, gone);
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
        let (well, text) = Run::start(ranks, &["world", &seed], 5000).end(120);
        assert!(well && text.matches(" is done").count() == ranks, "{ranks} ranks, seed {seed}:\n{text}");
    }
}

#[test]
fn processes_that_part_say_so() {
    if !present() {
        return;
    }
    let _turn = turn();
    let (well, text) = Run::start(4, &["apart"], 5000).end(20);
    assert!(!well && text.contains("do not run the same"), "{text}");
}
