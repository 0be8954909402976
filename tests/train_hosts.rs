//! `omchat train` on two hosts over TCP: the weights of the same run on one, bit for bit, also where the wire was cut in
//! its middle and all went on. The hosts are network namespaces of this machine.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "common/processes.rs"]
mod common;
#[path = "../runtime/tests/support/hosts.rs"]
mod hosts;

use common::{Run, curve, ended, kept, named, recipe, train, until, weights, whole};
use hosts::{ADDRESSES, Hosts};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const STEPS: usize = 10;
const RANKS: usize = 2;
const OMCHAT: &str = env!("CARGO_BIN_EXE_omchat");

/// A rank on each host.
fn start(hosts: &Hosts, recipe: &Path, out: &Path) -> Run {
    let one = |rank: usize| {
        let mut c = train(hosts.on(rank, OMCHAT), recipe, out, RANKS);
        c.env("RANK", rank.to_string()).env("WORLD_SIZE", RANKS.to_string());
        c.env("MASTER_ADDR", ADDRESSES[0]).env("MASTER_PORT", "29500");
        c
    };
    Run::of((0..RANKS).map(one).collect())
}

#[test]
fn hosts_train_as_one_and_survive_a_cut_wire() {
    let Some(made) = Hosts::two("training", env!("CARGO_TARGET_TMPDIR")) else { return };
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("train_hosts-{}", std::process::id()));
    let recipe = recipe(&work, STEPS);
    let [one, two] = ["one", "two"].map(|n| work.join(n));
    // On one host the ranks are threads.
    let mut c = train(Command::new(OMCHAT), &recipe, &one, RANKS);
    c.args(["--ranks", &RANKS.to_string()]);
    whole(Run::of(vec![c]));

    let run = start(&made, &recipe, &two);
    until("a checkpoint", &run, || kept(&two) >= 2);
    let cut = Instant::now();
    made.wire(false);
    let (good, said) = ended(run);
    let (took, said) = (cut.elapsed(), said.join("\n"));
    println!("the wire cut: both ranks had said so and ended after {took:?}; kept step {}", kept(&two));
    assert!(!good && took < Duration::from_secs(10), "{took:?}: {said}");
    let mut named = named(&said);
    named.sort_unstable();
    assert_eq!(named, [(0, 1), (1, 0)], "{said}");
    assert!(said.matches("of step").count() == RANKS && said.contains("resume the last checkpoint"), "{said}");

    made.wire(true);
    let said = whole(start(&made, &recipe, &two));
    assert!(said.contains("exchanged by rank 0, over tcp"), "{said}");
    assert!(curve(&one) == curve(&two) && weights(&one) == weights(&two), "other numbers than those of one host");
    let _ = std::fs::remove_dir_all(&work);
}
