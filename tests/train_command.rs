//! `omchat train` as its users run it: data files, a recipe, a process that is killed at random moments.
#![allow(clippy::unwrap_used, clippy::panic)]

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("train_command").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// A small recipe beside its data: captions of pictures, and a text.
fn recipe(dir: &Path, steps: usize) -> PathBuf {
    let root = env!("CARGO_MANIFEST_DIR");
    let caption = |i: usize| {
        let colour = ["red", "green", "blue"][i % 3];
        format!(
            r#"{{"image": "{root}/models/tiny/ball.gif", "conversations": [{{"from": "human", "value": "<image>\nWhat is it?"}}, {{"from": "gpt", "value": "Ball {i} is {colour}."}}]}}"#
        )
    };
    let mut captions: Vec<String> = (0..12).map(caption).collect();
    // One record that cannot be used: it is told, and no reason to stop.
    captions.push(r#"{"image": "nowhere.png", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "-"}]}"#.into());
    std::fs::write(dir.join("captions.json"), format!("[{}]", captions.join(",\n"))).unwrap();
    let words: Vec<String> = (0..400).map(|i| format!("word {} of the story", i * 7 % 31)).collect();
    std::fs::write(dir.join("story.txt"), words.join(". ")).unwrap();
    let text = format!(
        r#"
        model = "{root}/models/tiny"
        seed = 3
        format = "F3"
        [data.captions]
        path = "captions.json"
        layout = "llava"
        labels = "instruct"
        tiling = "single"
        [data.story]
        path = "story.txt"
        layout = "text"
        labels = "pretrain"
        [[stage]]
        name = "align"
        context = 128
        tiles = 1
        mix = {{ captions = 100 }}
        train = {{ projector = 1e-3 }}
        steps = 6
        checkpoint_every = 2
        [[stage]]
        name = "all"
        context = 128
        tiles = 2
        theta = 5e6
        mix = {{ captions = 60, story = 40 }}
        train = {{ vision = 1e-4, projector = 1e-3, decoder = 1e-3 }}
        schedule = {{ kind = "cosine", warmup = 0.1 }}
        steps = {steps}
        checkpoint_every = 3
        "#
    );
    let path = dir.join("recipe.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn command(recipe: &Path, out: &Path, resume: bool) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_omchat"));
    c.args(["train", "--device", "cpu", "--config"]).arg(recipe).arg("--out").arg(out);
    if resume {
        c.arg("--resume");
    }
    c
}

fn lines(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("log.jsonl")).unwrap_or_default();
    text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

/// What no clock has a say in.
fn curve(out: &Path) -> Vec<String> {
    let of = |v: &Value| ["step", "stage", "loss", "norm", "lr", "fill"].map(|k| v[k].to_string()).join(" ");
    lines(out).iter().map(of).collect()
}

#[test]
fn a_run_killed_at_random_moments_is_the_run_that_was_not() {
    let dir = folder("killed");
    let recipe = recipe(&dir, 24);
    let whole = dir.join("whole");
    let out = command(&recipe, &whole, false).output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{told}");
    assert!(told.contains("nowhere.png"), "what was skipped must be told: {told}");
    let want = curve(&whole);
    assert_eq!(want.len(), 30);
    let first: f64 = lines(&whole)[6]["loss"].as_f64().unwrap();
    let last: f64 = lines(&whole)[29]["loss"].as_f64().unwrap();
    assert!(last < 0.9 * first, "it learns nothing: {first} to {last}");

    let killed = dir.join("killed");
    let mut rng = StdRng::seed_from_u64(8);
    let mut kills = 0;
    while kills < 20 {
        let resume = killed.join("checkpoints").is_dir();
        let mut child = command(&recipe, &killed, resume).stderr(Stdio::null()).spawn().unwrap();
        // Some steps further on, and a moment more: between steps, in one, in a checkpoint.
        let (before, more) = (lines(&killed).len(), rng.random_range(0..5));
        let start = Instant::now();
        while lines(&killed).len() < before + more && start.elapsed() < Duration::from_secs(60) {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..120)));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    let resume = killed.join("checkpoints").is_dir();
    let out = command(&recipe, &killed, resume).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(curve(&killed), want);
    let model = |d: &Path| std::fs::read(d.join("stages/all/model.safetensors")).unwrap();
    assert!(model(&killed) == model(&whole), "other weights");
}

/// A recipe's path may be typed in any way and in any folder, and `recipe.json` of the run is the recipe too.
#[test]
fn a_run_goes_on_however_its_recipe_is_named() {
    let dir = folder("named");
    let path = recipe(&dir, 3);
    let text = std::fs::read_to_string(&path).unwrap();
    let (first, _) = text.split_once("[[stage]]\n        name = \"all\"").unwrap();
    std::fs::write(&path, first).unwrap();
    std::fs::create_dir_all(dir.join("below")).unwrap();
    let go = |from: &Path, config: &str, until: &str| {
        let mut c = command(Path::new(config), &dir.join("out"), true);
        let out = c.current_dir(from).args(["--until", until]).output().unwrap();
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{config}: {told}");
        told
    };
    let told = go(&dir, "recipe.toml", "1");
    assert!(told.contains("nothing to resume in") && told.contains("first step"), "{told}");
    let whole = dir.join("recipe.toml").display().to_string();
    let ways = [(".", "./recipe.toml", 1), ("below", "../recipe.toml", 2), ("below", whole.as_str(), 3)];
    for (from, config, at) in ways {
        let told = go(&dir.join(from), config, &(at + 1).to_string());
        assert!(told.contains(&format!("resumed at step {at}")), "{config}: {told}");
    }
    assert!(go(&dir.join("below"), "../out/recipe.json", "5").contains("resumed at step 4"));
    // As an earlier version wrote paths, from the folder that the command ran in.
    let head = dir.join("out/checkpoints/00000005/run.json");
    let mut old: Value = serde_json::from_slice(&std::fs::read(&head).unwrap()).unwrap();
    old.as_object_mut().unwrap().remove("run_crc32");
    old["place"]["recipe"]["data"]["captions"]["path"] = "captions.json".into();
    std::fs::write(&head, old.to_string()).unwrap();
    assert!(go(&dir, "recipe.toml", "6").contains("resumed at step 5"));
    // The whole on another disk, or where another host has it.
    let (moved, out) = (folder("named-moved").join("all"), |dir: &Path| dir.join("out"));
    std::fs::rename(&dir, &moved).unwrap();
    let resumed = |until: &str| {
        command(&moved.join("recipe.toml"), &out(&moved), true).args(["--until", until]).output().unwrap()
    };
    let told = resumed("7");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    // Another file is another recipe.
    let text = std::fs::read_to_string(moved.join("recipe.toml")).unwrap();
    std::fs::copy(moved.join("captions.json"), moved.join("others.json")).unwrap();
    std::fs::write(moved.join("recipe.toml"), text.replace("captions.json", "others.json")).unwrap();
    let told = String::from_utf8_lossy(&resumed("8").stderr).into_owned();
    assert!(told.contains("made by another recipe") && told.contains("others.json"), "{told}");
}

/// What later stages read, and what branches are judged by, is looked for before the first step.
#[test]
fn files_of_later_stages_are_looked_for_first() {
    let dir = folder("later");
    let path = recipe(&dir, 3);
    let text = std::fs::read_to_string(&path).unwrap();
    let select = "steps = 3\n        select = { reference = \"nowhere\" }";
    for (text, want) in [
        (text.replace("story.txt", "absent.txt"), "absent.txt"),
        (text.replace("steps = 3", select), "no reference losses"),
    ] {
        std::fs::write(&path, &text).unwrap();
        let out = dir.join(want);
        let run = command(&path, &out, false).output().unwrap();
        let told = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.code() == Some(2) && told.contains(want), "{told}");
        assert!(lines(&out).is_empty() && !out.join("checkpoints").exists(), "it took steps first: {told}");
        // Steps that end before are taken.
        let run = command(&path, &out, false).args(["--until", "1"]).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }
    let (first, _) = text.split_once("[[stage]]\n        name = \"all\"").unwrap();
    let held =
        "[mixture]\nparts = 2\n[mixture.held_out.h]\npath = \"unseen.txt\"\nlayout = \"text\"\nlabels = \"pretrain\"\n";
    std::fs::write(&path, format!("{first}\n{held}")).unwrap();
    let mut mix = Command::new(env!("CARGO_BIN_EXE_omchat"));
    let run =
        mix.args(["mix", "--device", "cpu", "--config"]).arg(&path).arg("--out").arg(dir.join("mix")).output().unwrap();
    let told = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.code() == Some(2) && told.contains("unseen.txt"), "{told}");
    assert!(!dir.join("mix/trunk").exists(), "{told}");
}

#[test]
fn what_cannot_be_trained_is_told_with_its_mend() {
    let dir = folder("bad");
    let path = recipe(&dir, 3);
    let text = std::fs::read_to_string(&path).unwrap();
    let cases = [
        (text.replace("captions = 60", "captions = 50"), "adds up to 90 %"),
        (text.replace("layout = \"llava\"", "layout = \"lava\""), "lava"),
        (text.replace("captions.json", "absent.json"), "absent.json"),
        (text.replace("decoder = 1e-3", "head = 1e-3"), "`head` is no part of a model"),
        (text.replace("steps = 6", "steps = 6\n        stops = 1"), "stops"),
        (text.replace("models/tiny\"", "models/none\""), "models/none"),
        (text.replace("context = 128\n        tiles = 1", "context = 8\n        tiles = 1"), "no usable record"),
    ];
    for (text, want) in cases {
        std::fs::write(&path, text).unwrap();
        let out = command(&path, &dir.join("out"), false).output().unwrap();
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && told.contains(want), "wanted `{want}`: {told}");
        assert!(want != "no usable record" || told.contains("skipped"), "what was skipped must be told: {told}");
        let _ = std::fs::remove_dir_all(dir.join("out"));
    }
}

/// A step that failed, replayed from outside: what is told, and the exit codes.
#[test]
fn a_failed_step_is_replayed() {
    let dir = folder("replay");
    let path = recipe(&dir, 6);
    let text = std::fs::read_to_string(&path).unwrap();
    let wild = dir.join("wild.toml");
    std::fs::write(&wild, text.replace("decoder = 1e-3", "decoder = 1e30")).unwrap();
    let out = dir.join("out");
    let run = command(&wild, &out, false).output().unwrap();
    let told = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(!run.status.success() && told.contains("--replay") && told.contains("another folder"), "{told}");
    let step = told.split("at step ").nth(1).unwrap().split([',', ' ']).next().unwrap().to_string();
    let replay = |recipe: &Path, step: &str| {
        let run = command(recipe, &out, false).args(["--replay", step]).output().unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        (run.status.code().unwrap(), text(&run.stdout), text(&run.stderr))
    };
    let (code, told, why) = replay(&wild, &step);
    assert!(code == 1 && why.contains("still not finite"), "{code}: {told}{why}");
    for words in ["checkpoints/000000", "record ", "decoder", "vision", "NaN", "not finite"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(told.contains("captions.json") || told.contains("story.txt"), "the file of each document: {told}");
    // Data that were cleaned since are tried too.
    let story = dir.join("story.txt");
    std::fs::write(&story, std::fs::read_to_string(&story).unwrap().replacen("word", "town", 1)).unwrap();
    let (code, told, why) = replay(&path, &step);
    assert!(code == 0 && told.contains("is finite now") && told.contains("train.decoder was"), "{code}: {told}{why}");
    let (code, _, why) = replay(&path, "1");
    assert!(code == 2 && why.contains(&format!("of steps: {step}")), "{code}: {why}");
    let both = command(&path, &out, true).args(["--replay", &step]).output().unwrap();
    assert_eq!(both.status.code(), Some(2));
}
