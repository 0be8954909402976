//! `omchat train` as processes that meet by `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`, as `torchrun` starts them: the
//! same losses as one process, also where one was killed and all went on.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "common/processes.rs"]
mod common;

use common::{Run, curve, ended, kept, named, near, recipe, train, until, whole};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const STEPS: usize = 6;

/// `omchat train` on so many processes; one is no rank.
fn start(recipe: &Path, out: &Path, ranks: usize, ring: usize) -> Run {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let one = |rank: usize| {
        let mut c = train(Command::new(env!("CARGO_BIN_EXE_omchat")), recipe, out, ring);
        if ranks > 1 {
            c.env("RANK", rank.to_string()).env("WORLD_SIZE", ranks.to_string());
            c.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        }
        c
    };
    Run::of((0..ranks).map(one).collect())
}

#[test]
fn processes_train_as_one_and_survive_a_death() {
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("train_tcp");
    let recipe = recipe(&work, STEPS);
    let [alone, ring] = ["alone", "ring"].map(|n| work.join(n));
    whole(start(&recipe, &alone, 1, 1));

    let mut run = start(&recipe, &ring, 4, 2);
    until("a checkpoint", &run, || kept(&ring) >= 2);
    let victim = 1 + std::process::id() as usize % 3;
    let died = Instant::now();
    run.children[victim].kill().unwrap();
    let (good, said) = ended(run);
    let (took, said) = (died.elapsed(), said.join("\n"));
    println!("rank {victim} of 4 killed: all others had named it and ended after {took:?}; kept step {}", kept(&ring));
    assert!(!good && took < Duration::from_secs(10), "{took:?}: {said}");
    let named = named(&said);
    assert!(named.len() == 3 && named.iter().all(|(_, whom)| *whom == victim), "not rank {victim}: {said}");
    assert!(said.contains("resume the last checkpoint"), "{said}");

    let (have, want) = (curve(&ring), curve(&alone));
    near("four processes over TCP", &have, &want[..have.len()]);

    let said = whole(start(&recipe, &ring, 2, 2));
    assert!(said.contains("exchanged by rank 0, over tcp"), "{said}");
    near("one of them killed, and resumed on two", &curve(&ring), &want);
}
