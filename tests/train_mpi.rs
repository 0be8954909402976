//! `omchat train` as processes under `mpirun` or MPICH's `mpiexec`: the same losses as one process, and what is said and kept
//! when a rank dies.
//! Built with `--features mpi` only.
#![cfg(feature = "mpi")]
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "common/processes.rs"]
mod common;
#[path = "../runtime/tests/support/launcher.rs"]
mod launcher;

use common::{Run, column, curve, ended, kept, named, near, recipe, train, until, weights, whole};
use launcher::{flags, launcher, mpich};
use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a run may take to end once a rank of it is dead.
const SOON: Duration = Duration::from_secs(10);
/// How many steps the run has.
const STEPS: usize = 20;

/// `omchat train` on so many processes; one is no rank.
fn start(recipe: &Path, out: &Path, ranks: usize, ring: usize) -> Run {
    let omchat = env!("CARGO_BIN_EXE_omchat");
    let mut c = Command::new(if ranks > 1 { launcher("training").unwrap() } else { omchat });
    if ranks > 1 {
        // More ranks than cores: a rank may need longer than a second to tell its error.
        c.args(flags(3)).args(["-n", &ranks.to_string(), omchat]);
    }
    Run::of(vec![train(c, recipe, out, ring)])
}

/// The processes whose command line names that folder and that are no launcher, with their ranks.
fn ranks_of(out: &Path) -> Vec<(u32, usize)> {
    let name = out.to_string_lossy().into_owned();
    let mut found = vec![];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let read = |what: &str| {
            String::from_utf8_lossy(&std::fs::read(entry.path().join(what)).unwrap_or_default()).replace('\0', " ")
        };
        let line = read("cmdline");
        if line.contains(&name) && line.starts_with(env!("CARGO_BIN_EXE_omchat")) {
            let environ = read("environ");
            let rank = ["OMPI_COMM_WORLD_RANK=", "PMI_RANK="];
            let rank = environ.split(' ').find_map(|v| rank.iter().find_map(|r| v.strip_prefix(r))?.parse().ok());
            found.extend(rank.map(|rank| (pid, rank)));
        }
    }
    found.sort_unstable_by_key(|(_, rank)| *rank);
    found
}

/// Numbers from a seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    /// From 0 to 0.8 of that long.
    fn part(&mut self, of: Duration) -> Duration {
        of.mul_f64(self.below(1000) as f64 / 1250.0)
    }
}

/// Waits for so long, or until it is enough.
fn pass(time: Duration, enough: impl Fn() -> bool) {
    let begun = Instant::now();
    while begun.elapsed() < time && !enough() {
        sleep(Duration::from_millis(5));
    }
}

/// Waits for a moment of a run that a seed draws: one of four while it starts, others between two steps of training.
/// Yields whether the ranks had met by then, and what the moment is called.
fn moment(draw: &mut Draw, run: &Run, out: &Path, ranks: usize, starts: Duration) -> (bool, String) {
    let from = kept(out);
    until("all ranks", run, || ranks_of(out).len() == ranks);
    // What a run goes on from, it says once its ranks have met.
    let met = || run.said().contains("resumed at step");
    if draw.below(4) == 0 {
        let part = draw.part(starts);
        // A machine that has got faster may be through with the start, and with all steps, before.
        let log = Cell::new(from == 0);
        pass(part, || {
            log.set(log.get() || met() && curve(out).len() <= from);
            log.get() && curve(out).len() > from
        });
        return (met(), format!("{:.1} s into the start", part.as_secs_f64()));
    }
    // Never past the last checkpoint but one, so that all kills find something to do.
    let step = (from + 1 + draw.below(2)).min(STEPS - 3);
    until("ranks that meet", run, || from == 0 || met());
    // Steps after the checkpoint stay in the log until the run has read it.
    until("the log of what is resumed", run, || curve(out).len() <= from);
    until("a step", run, || curve(out).len() >= step);
    let took = column(out, ["seconds"]).last().map_or(0.0, |s| s[0]);
    let part = draw.part(Duration::from_secs_f64(took));
    pass(part, || curve(out).len() > step.max(from));
    (true, format!("{:.2} s after step {step}", part.as_secs_f64()))
}

/// When each of those processes was gone, in order. A rank ends as soon as it has named who is lost; what it says comes
/// later, since `mpirun` passes nothing on while it ends a run.
fn gone(run: &Run, alive: &[(u32, usize)], since: Instant) -> Vec<Duration> {
    let mut left: Vec<u32> = alive.iter().map(|(pid, _)| *pid).collect();
    let mut ends = vec![];
    until("the others' end", run, || {
        // Who is dead and not yet waited for has no command line.
        left.retain(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()));
        ends.resize(alive.len() - left.len(), since.elapsed());
        left.is_empty()
    });
    ends
}

/// Starts or resumes a run, kills a rank of it with -9 at a moment, and holds the others to naming it.
fn kill(draw: &mut Draw, recipe: &Path, out: &Path, ranks: usize, starts: Duration) {
    let run = start(recipe, out, ranks, 2);
    let (met, when) = moment(draw, &run, out, ranks, starts);
    let alive = ranks_of(out);
    assert_eq!(alive.len(), ranks, "a run ended by itself: {}", run.said());
    let (pid, victim) = alive[draw.below(ranks)];
    let died = Instant::now();
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let gone = gone(&run, &alive, died);
    let (good, said) = ended(run);
    let (took, said) = (died.elapsed(), said.join("\n"));
    let named = named(&said);
    println!(
        "rank {victim} of {ranks} killed {when}: named by {} others, the first gone after {:.2} s, the last after {:.2} s; \
         the launcher after {:.2} s; kept step {}",
        named.len(),
        gone[1].as_secs_f64(),
        gone[ranks - 1].as_secs_f64(),
        took.as_secs_f64(),
        kept(out)
    );
    assert!(!good && took < SOON, "{took:?}: {said}");
    assert!(named.iter().all(|(_, whom)| *whom == victim), "not rank {victim}: {said}");
    // MPICH's launcher kills the others, mostly before they can say anything.
    if met && !mpich() {
        assert_eq!(named.len(), ranks - 1, "all others name rank {victim}: {said}");
        assert!(said.contains("of step") && said.contains("resume the last checkpoint"), "{said}");
    }
    assert!(ranks_of(out).is_empty(), "a rank is left over");
}

/// Four processes, of which one is killed at moments that a seed draws, which go on as eight, of which one is killed, and
/// which go on as two, end where one does. `OMCHAT_KILLS` says how many die in all.
#[test]
fn processes_train_as_one_and_survive_a_death() {
    if launcher("training").is_none() {
        return;
    }
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("train_mpi");
    let recipe = recipe(&work, STEPS);
    let [alone, ring, killed] = ["alone", "ring", "killed"].map(|n| work.join(n));
    whole(start(&recipe, &alone, 1, 1));
    let want = curve(&alone);
    let begun = Instant::now();
    let said = whole(start(&recipe, &ring, 4, 2));
    assert!(said.contains("exchanged by rank 0, over mpi"), "{said}");
    let on_four = curve(&ring);
    near("four processes, twenty steps of AdamW", &on_four, &want);
    let steps: f64 = column(&ring, ["seconds"]).iter().skip(1).map(|s| s[0]).sum();
    let starts = begun.elapsed().saturating_sub(Duration::from_secs_f64(steps));

    let kills: usize = std::env::var("OMCHAT_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let mut draw = Draw(7 + kills as u64);
    for _ in 1..kills {
        kill(&mut draw, &recipe, &killed, 4, starts);
        let have = curve(&killed);
        assert_eq!(have, on_four[..have.len()], "a resumed run is the whole run, bit for bit");
    }
    if kills > 2 {
        let copy = work.join("copy");
        assert!(Command::new("cp").arg("-r").args([&killed, &copy]).status().unwrap().success());
        whole(start(&recipe, &copy, 4, 2));
        assert!(
            curve(&copy) == on_four && weights(&copy) == weights(&ring),
            "other weights than those of the whole run"
        );
        println!("killed {} times, and resumed on four: the weights of the whole run, bit for bit", kills - 1);
    }
    kill(&mut draw, &recipe, &killed, 8, starts);
    whole(start(&recipe, &killed, 2, 1));
    near("killed, and resumed on eight and on two", &curve(&killed), &want);
}
