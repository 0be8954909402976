//! The chain of recipes/passkey.toml at a size for every day: its data are drawn by the command, its first stage reads
//! them, and a few steps of it lower the loss.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat::Device;
use omchat::training::{Feeds, TrainOptions, train};
use omchat_recipe::Recipe;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("passkey").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

fn omchat(args: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_omchat")).args(args).output().unwrap();
    (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
}

#[test]
fn a_few_steps_of_the_first_stage_lower_the_loss() {
    let work = folder("steps");
    let at = |name: &str| work.join(name).to_str().unwrap().to_string();
    let config = root().join("models/passkey");
    let (code, text) = omchat(&["init", "--config", config.to_str().unwrap(), "--seed", "7", "--out", &at("start")]);
    assert_eq!(code, 0, "{text}");
    let recipe = root().join("recipes/passkey.toml");
    let mut recipe = Recipe::read(&recipe).unwrap();
    recipe.model = at("start");
    recipe.stages.truncate(1);
    let stage = &mut recipe.stages[0];
    (stage.context, stage.steps, stage.batch_tokens) = (512, Some(20), None);
    let names: Vec<String> = stage.mix.keys().cloned().collect();
    recipe.data.retain(|name, _| names.contains(name));
    for (seed, (name, set)) in recipe.data.iter_mut().enumerate() {
        let seed = (seed + 40).to_string();
        let draw = ["scenes", "--kind", "passkeys", "--sentences", "0-5", "--needles", "1-2", "--turns", "2"];
        let (code, text) = omchat(&[&draw[..], &["--count", "200", "--seed", &seed, "--out", &at(name)]].concat());
        assert_eq!(code, 0, "{text}");
        set.path = work.join(name).join("data.jsonl");
    }
    let options = TrainOptions { out: work.join("run"), resume: false, until: None, kept: None, world: None };
    let mut supply = Feeds::new(&recipe).unwrap();
    train(&recipe, &Device::open("cpu").unwrap(), &options, &mut supply, &mut |_| {}).unwrap();
    let log = std::fs::read_to_string(work.join("run/log.jsonl")).unwrap();
    let losses: Vec<f64> =
        log.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 20);
    assert!(losses[19] < losses[0] / 2.0, "{losses:?}");
}

/// Each stage reads longer contexts over a larger base of RoPE, by the rule that docs/needle.md states.
#[test]
fn the_chain_is_as_its_page_says() {
    let recipe = Recipe::read(&root().join("recipes/passkey.toml")).unwrap();
    for stage in &recipe.stages {
        let reach: f64 = match stage.name.as_str() {
            "256" => 256.0,
            "1k" => 1024.0,
            "4k" => 4096.0,
            "16k" | "ends" | "far" => 16384.0,
            other => panic!("a stage `{other}`"),
        };
        let want = (2.0 * reach / std::f64::consts::PI).powf(1.81);
        let theta = stage.theta.unwrap();
        assert!(theta / want < 1.15 && want / theta < 1.15, "{}: {theta:e}, not {want:e}", stage.name);
        assert!(stage.context >= reach as usize);
    }
}

#[test]
fn texts_are_written_alike_and_wrong_options_named() {
    let run = |name: &str, file: &str, more: &[&str]| {
        let dir = folder(name);
        let args = [&["scenes", "--count", "3", "--seed", "5", "--out", dir.to_str().unwrap()], more].concat();
        (omchat(&args), std::fs::read(dir.join(file)).unwrap_or_default())
    };
    for (file, kind) in [("data.jsonl", "passkeys"), ("haystack.txt", "haystack")] {
        let [a, b] = ["a", "b"].map(|name| run(&format!("{kind}-{name}"), file, &["--kind", kind]));
        assert!(a.0.0 == 0 && a.1 == b.1 && !a.1.is_empty(), "{:?}", a.0);
    }
    let refused = |more: &[&str], what: &str| {
        let ((code, text), _) = run("refused", "data.jsonl", more);
        assert!(code == 2 && text.contains(what), "{more:?}: {code} {text}");
    };
    refused(&["--kind", "passkeys", "--needles", "30"], "needles from 30 to 30");
    refused(&["--kind", "passkeys", "--depth", "2"], "a needle at depth 2");
    refused(&["--kind", "passkeys", "--digits", "few"], "--digits is `few`");
    refused(&["--kind", "haystack", "--sentences", "0"], "0 sentences");
}

/// The weights of models/passkey find needles of other seeds, in a haystack of another seed than training's and the page's.
#[test]
fn the_chain_s_model_finds_numbers() {
    let work = folder("found");
    let at = |name: &str| work.join(name).to_str().unwrap().to_string();
    let (code, text) =
        omchat(&["scenes", "--kind", "haystack", "--seed", "23", "--sentences", "2000", "--out", &at("")]);
    assert_eq!(code, 0, "{text}");
    let model = root().join("models/passkey");
    let ask = [
        "eval",
        "needle",
        "--device",
        "cpu",
        "--lengths",
        "256,1K,16K",
        "--depths",
        "0,50,100",
        "--seeds",
        "3",
        "--seed",
        "900",
    ];
    let more = ["--model", model.to_str().unwrap(), "--haystack", &at("haystack.txt"), "--out", &at("eval")];
    let (code, text) = omchat(&[&ask[..], &more].concat());
    assert_eq!(code, 0, "{text}");
    let answers = std::fs::read_to_string(work.join("eval/answers.jsonl")).unwrap();
    let answers: Vec<Value> = answers.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(answers.len(), 27);
    let right = |length: u64| {
        let asked = answers.iter().filter(|a| a["params"]["length"] == length);
        asked.filter(|a| a["given"].as_str().unwrap().contains(a["expected"].as_str().unwrap())).count()
    };
    // Guessing finds one in nine million. docs/needle.md: more than nineteen of twenty are found at 16K.
    for length in [256, 1024, 16384] {
        assert!(right(length) >= 8, "{length}: {}", right(length));
    }
}
