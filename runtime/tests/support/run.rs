//! Runs of several processes: what they say, whom they blame, and a deadline that kills all that was started.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Runs take turns: ranks of two runs on few cores would test the machine.
static TURN: Mutex<()> = Mutex::new(());

pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run under way, all that it started in process groups of its own.
pub struct Run {
    children: Vec<Child>,
    text: Arc<Mutex<String>>,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Run {
    /// Starts all.
    pub fn of(commands: Vec<Command>) -> Run {
        let text = Arc::new(Mutex::new(String::new()));
        let (mut children, mut readers) = (vec![], vec![]);
        for mut command in commands {
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
            readers.push(pour(child.stdout.take().unwrap(), &text));
            readers.push(pour(child.stderr.take().unwrap(), &text));
            children.push(child);
        }
        Run { children, text, readers }
    }

    pub fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// Waits until the output says something.
    pub fn until(&mut self, say: impl Fn(&str) -> bool, seconds: u64) {
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
    pub fn process(&self, rank: usize) -> u32 {
        let (text, before) = (self.text(), format!("rank {rank} of "));
        let line = text.lines().find(|l| l.starts_with(&before)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Whether the first that was started still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.children[0].try_wait(), Ok(None))
    }

    /// Whether all ended well, and what was said. Fails the test, with all that was started killed, past the deadline.
    pub fn end(mut self, seconds: u64) -> (bool, String) {
        let (start, mut well) = (Instant::now(), true);
        for i in 0..self.children.len() {
            let status = loop {
                if let Some(status) = self.children[i].try_wait().unwrap() {
                    break status;
                }
                if start.elapsed() > Duration::from_secs(seconds) {
                    self.kill();
                    panic!("it still runs after {seconds} s:\n{}", self.text());
                }
                thread::sleep(Duration::from_millis(20));
            };
            well &= status.success();
        }
        for r in self.readers.drain(..) {
            r.join().unwrap();
        }
        (well, self.text())
    }

    /// Kills what was started, and the ranks, which `mpirun` puts into groups of their own.
    fn kill(&mut self) {
        for line in self.text().lines().filter(|l| l.contains(" is process ")) {
            signal("KILL", line.rsplit(' ').next().unwrap().parse().unwrap());
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.children.iter_mut().any(|c| matches!(c.try_wait(), Ok(None))) {
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

pub fn signal(name: &str, process: u32) {
    Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).stderr(Stdio::null()).status().unwrap();
}

/// Other numbers in every run of the tests, told by each failure.
pub fn drawn(of: u64) -> u64 {
    let ns = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    u64::from(ns / 1000).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) % of
}

/// All but one rank must say so in an error that names the one, and the round in which they were.
pub fn others_name(text: &str, ranks: usize, gone: usize) {
    for rank in (0..ranks).filter(|r| *r != gone) {
        let before = format!("error: rank {rank}: ");
        let line = text.lines().find(|l| l.contains(&before)).unwrap_or_else(|| panic!("rank {rank} is mute:\n{text}"));
        let cause = line.split_once(&before).unwrap().1;
        assert!(cause.contains(&format!("rank {gone} ")), "{line}\nin\n{text}");
        assert!(cause.contains("round ") || cause.contains("step "), "{line}");
    }
}
