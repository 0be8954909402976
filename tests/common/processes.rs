//! `omchat train` as processes: a recipe, runs and what they say, the numbers of their steps.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

/// How long any run may take here.
const LONG: Duration = Duration::from_secs(400);

/// A recipe of a text, whose projector-free part trains: few tensors, so that starting is what costs.
pub fn recipe(dir: &Path, steps: usize) -> PathBuf {
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

/// A run under way, and each line that it said.
pub struct Run {
    pub children: Vec<Child>,
    said: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Run {
    /// Starts all.
    pub fn of(commands: Vec<Command>) -> Run {
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let (mut children, mut readers) = (vec![], vec![]);
        for mut c in commands {
            let mut child = c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            readers.push(read(child.stdout.take().unwrap(), Arc::clone(&said)));
            readers.push(read(child.stderr.take().unwrap(), Arc::clone(&said)));
            children.push(child);
        }
        Run { children, said, readers }
    }

    /// All that it said until now.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }
}

impl Drop for Run {
    /// A test that fails leaves no process behind.
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `omchat train`, or what its options follow: more of a command line that ends with the program's path.
pub fn train(mut c: Command, recipe: &Path, out: &Path, ring: usize) -> Command {
    c.args(["train", "--device", "cpu", "--ring", &ring.to_string(), "--config"]).arg(recipe).arg("--out").arg(out);
    if out.join("checkpoints").is_dir() {
        c.arg("--resume");
    }
    c
}

/// Notes lines as they come.
fn read(from: impl Read + Send + 'static, said: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            said.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
        }
    })
}

/// Whether a run succeeded, and what it said.
pub fn ended(mut run: Run) -> (bool, Vec<String>) {
    let (start, mut good) = (Instant::now(), true);
    for i in 0..run.children.len() {
        let status = loop {
            match run.children[i].try_wait().unwrap() {
                Some(status) => break status,
                None if start.elapsed() > LONG => panic!("a run did not end in {LONG:?}"),
                None => sleep(Duration::from_millis(20)),
            }
        };
        good &= status.success();
    }
    run.readers.drain(..).for_each(|r| r.join().unwrap());
    let said = std::mem::take(&mut *run.said.lock().unwrap());
    (good, said)
}

/// What a run says that succeeds.
pub fn whole(run: Run) -> String {
    let (good, said) = ended(run);
    let said = said.join("\n");
    assert!(good, "{said}");
    said
}

/// Numbers of each step, by name.
pub fn column<const N: usize>(out: &Path, names: [&str; N]) -> Vec<[f64; N]> {
    let text = std::fs::read_to_string(out.join("log.jsonl")).unwrap_or_default();
    let line = |l: &str| {
        let v: Value = serde_json::from_str(l).ok()?;
        Some(names.map(|k| v[k].as_f64().unwrap()))
    };
    text.lines().filter_map(line).collect()
}

pub fn curve(out: &Path) -> Vec<[f64; 2]> {
    column(out, ["loss", "norm"])
}

/// The newest checkpoint's step.
pub fn kept(out: &Path) -> usize {
    let names = std::fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten();
    names.filter_map(|e| e.file_name().to_string_lossy().parse().ok()).max().unwrap_or(0)
}

pub fn near(what: &str, a: &[[f64; 2]], b: &[[f64; 2]]) {
    assert_eq!(a.len(), b.len(), "{what}: steps");
    let off = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max);
    println!("{what}: losses and norms within {off:.1e}");
    assert!(off < 1e-4, "{what}: {off:e} off\n{a:?}\n{b:?}");
}

/// Waits for something of a run.
pub fn until(what: &str, run: &Run, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "{what}: not in {LONG:?}: {}", run.said());
        sleep(Duration::from_millis(10));
    }
}

/// Who named whom as lost: `omchat: rank 0: rank 3 is silent ...`.
pub fn named(said: &str) -> Vec<(usize, usize)> {
    let number = |s: &str| s.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok());
    let one = |line: &str| {
        let (who, whom) = line.split_once("omchat: rank ")?.1.split_once(": rank ")?;
        Some((number(who)?, number(whom)?))
    };
    said.lines().filter_map(one).collect()
}

pub fn weights(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("stages/all/model.safetensors")).unwrap()
}
