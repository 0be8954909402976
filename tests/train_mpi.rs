//! `omchat train` as processes under `mpirun`: the same losses as one process, and what is said and kept when a rank dies.
//! Built with `--features mpi` only.
#![cfg(feature = "mpi")]
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long any run may take here.
const LONG: Duration = Duration::from_secs(400);

fn here() -> bool {
    let found = Command::new("mpirun").arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        println!("skipped: training under mpirun: there is no mpirun; `scripts/setup.sh mpi` brings it");
    }
    found
}

/// A recipe of a text, whose projector-free part trains: few tensors, so that starting is what costs.
fn recipe(dir: &Path, steps: usize) -> PathBuf {
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir_all(dir).unwrap();
    let words: Vec<String> = (0..900).map(|i| format!("word {} of the story", i * 7 % 31)).collect();
    std::fs::write(dir.join("story.txt"), words.join(". ")).unwrap();
    let text = format!(
        r#"
        model = "{}/models/tiny"
        seed = 3
        [data.story]
        path = "story.txt"
        layout = "text"
        labels = "pretrain"
        [[stage]]
        name = "all"
        context = 45
        mix = {{ story = 100 }}
        train = {{ decoder = 1e-3 }}
        batch_tokens = 180
        steps = {steps}
        checkpoint_every = 2
        "#,
        env!("CARGO_MANIFEST_DIR")
    );
    let path = dir.join("recipe.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// `omchat train` on so many processes; one is no rank.
fn start(recipe: &Path, out: &Path, ranks: usize, ring: usize) -> Child {
    let omchat = env!("CARGO_BIN_EXE_omchat");
    let mut c = Command::new(if ranks > 1 { "mpirun" } else { omchat });
    if ranks > 1 {
        c.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", &ranks.to_string(), omchat]);
    }
    c.args(["train", "--device", "cpu", "--ring", &ring.to_string(), "--config"]).arg(recipe).arg("--out").arg(out);
    if out.join("checkpoints").is_dir() {
        c.arg("--resume");
    }
    c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What a run said, and whether it succeeded.
fn ended(mut child: Child) -> (bool, String) {
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut err, &mut text);
        let _ = std::io::Read::read_to_string(&mut out, &mut text);
        text
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > LONG => {
                let _ = child.kill();
                panic!("a run did not end in {LONG:?}");
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    (status.success(), read.join().unwrap())
}

fn curve(out: &Path) -> Vec<[f64; 2]> {
    let text = std::fs::read_to_string(out.join("log.jsonl")).unwrap_or_default();
    let line = |l: &str| {
        let v: Value = serde_json::from_str(l).ok()?;
        Some(["loss", "norm"].map(|k| v[k].as_f64().unwrap()))
    };
    text.lines().filter_map(line).collect()
}

fn near(what: &str, a: &[[f64; 2]], b: &[[f64; 2]]) {
    assert_eq!(a.len(), b.len(), "{what}: steps");
    let off = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max);
    assert!(off < 1e-4, "{what}: {off:e} off\n{a:?}\n{b:?}");
}

/// The processes whose command line names that folder and that are no launcher.
fn ranks_of(out: &Path) -> Vec<u32> {
    let name = out.to_string_lossy().into_owned();
    let mut found = vec![];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&name) && !line.contains("mpirun") {
            found.push(pid);
        }
    }
    found.sort_unstable();
    found
}

/// Four processes, of which one is killed at moments that a seed draws, and which go on as two, end where one does.
#[test]
fn processes_train_as_one_and_survive_a_death() {
    if !here() {
        return;
    }
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("train_mpi");
    let recipe = recipe(&work, 20);
    let [alone, ring, killed] = ["alone", "ring", "killed"].map(|n| work.join(n));
    let (good, said) = ended(start(&recipe, &alone, 1, 1));
    assert!(good, "{said}");
    let want = curve(&alone);
    let (good, said) = ended(start(&recipe, &ring, 4, 2));
    assert!(good, "{said}");
    assert!(said.contains("exchanged by rank 0, over mpi"), "{said}");
    near("four processes, twenty steps of AdamW", &curve(&ring), &want);

    let kills: usize = std::env::var("OMCHAT_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let mut seed = 9u64;
    let mut draw = |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    for _ in 0..kills {
        let before = curve(&killed).len();
        let child = start(&recipe, &killed, 4, 4);
        let begun = Instant::now();
        // Some step further than the last checkpoint, and a little.
        while curve(&killed).len() <= before.min(17) && begun.elapsed() < LONG {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(draw(700)));
        let ranks = ranks_of(&killed);
        if ranks.len() < 4 {
            let _ = ended(child);
            continue;
        }
        let victim = ranks[draw(4) as usize];
        assert!(Command::new("kill").args(["-9", &victim.to_string()]).status().unwrap().success());
        let died = Instant::now();
        let (good, said) = ended(child);
        assert!(!good && died.elapsed() < Duration::from_secs(10), "{:?}: {said}", died.elapsed());
        assert!(said.contains("of step") && said.contains("resume the last checkpoint"), "{said}");
        assert!(ranks_of(&killed).is_empty(), "a rank is left over");
    }
    let (good, said) = ended(start(&recipe, &killed, 2, 1));
    assert!(good, "{said}");
    near("killed, and resumed on two", &curve(&killed), &want);
}
