//! `omchat init` and `omchat scenes`: the same files for the same seed, a model that loads and whose numbers are as the
//! page says, and refusals that name what is wrong.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat::Model;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("scenes").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

/// The exit code and stderr of a command line.
fn omchat(args: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_omchat")).args(args).output().unwrap();
    (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
}

fn init(config: &Path, seed: &str, out: &Path) -> (i32, String) {
    omchat(&["init", "--config", config.to_str().unwrap(), "--seed", seed, "--out", out.to_str().unwrap()])
}

#[test]
fn a_model_from_nothing_loads_and_is_as_stated() {
    let dirs = ["a", "b", "c"].map(folder);
    for (dir, seed) in dirs.iter().zip(["7", "7", "8"]) {
        let (code, text) = init(&root("models/needle"), seed, dir);
        assert_eq!(code, 0, "{text}");
    }
    let bytes = dirs.each_ref().map(|d| std::fs::read(d.join("model.safetensors")).unwrap());
    assert!(bytes[0] == bytes[1] && bytes[0] != bytes[2]);
    let model = Model::open(dirs[0].to_str().unwrap()).unwrap();
    model.tokenizer().unwrap();
    model.tiler().unwrap();
    let t = &model.config.text;
    for name in model.checkpoint.names() {
        let (shape, x) = (model.checkpoint.shape(name).unwrap(), model.checkpoint.tensor_f32(name).unwrap());
        let n = x.len() as f64;
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let deviation = (x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
        if shape.len() == 1 {
            let want = if name.ends_with("bias") { 0.0 } else { 1.0 };
            assert!(x.iter().all(|v| *v == want), "{name}");
            continue;
        }
        let inputs = x.len() as f64 / shape[0] as f64;
        let want = match name {
            _ if name.ends_with("embed_tokens.weight") => 0.5,
            _ if name.ends_with("lm_head.weight") => 0.02,
            _ if name.contains("class_embedding") || name.contains("position_embedding") => 0.2,
            _ if name.contains("o_proj") || name.contains("down_proj") => 1.0 / (inputs * 2.0 * t.layers as f64).sqrt(),
            _ if name.contains("attn.proj") || name.contains("fc2") => {
                1.0 / (inputs * 2.0 * model.config.vision.as_ref().unwrap().layers as f64).sqrt()
            }
            _ => 1.0 / inputs.sqrt(),
        };
        // Six standard errors of a sample of n.
        let play = 6.0 * want / n.sqrt();
        assert!((deviation - want).abs() < play && mean.abs() < play, "{name}: {mean} ± {deviation}, not 0 ± {want}");
    }
}

#[test]
fn what_init_cannot_do_is_refused() {
    let dir = folder("there");
    assert_eq!(init(&root("models/needle"), "1", &dir).0, 0);
    let (code, text) = init(&root("models/needle"), "1", &dir);
    assert!(code == 2 && text.contains("model.safetensors is there already"), "{code} {text}");
    let (code, text) = init(Path::new("/nowhere"), "1", &folder("no-config"));
    assert!(code == 2 && text.contains("/nowhere/config.json"), "{code} {text}");
    let huge = folder("huge");
    std::fs::create_dir_all(&huge).unwrap();
    let text = std::fs::read_to_string(root("models/needle/config.json")).unwrap();
    let field = |name: &str, to: &str| {
        let at = text.find(&format!("\"{name}\": ")).unwrap();
        let end = at + text[at..].find(',').unwrap();
        format!("{}\"{name}\": {to}{}", &text[..at], &text[end..])
    };
    std::fs::write(
        huge.join("config.json"),
        field("vocab_size", "16777216").replace("\"hidden_size\": 128", "\"hidden_size\": 65536"),
    )
    .unwrap();
    let (code, text) = init(&huge, "1", &folder("huge-out"));
    assert!(code == 2 && text.contains("parameters"), "{code} {text}");
}

#[test]
fn scenes_are_written_alike_and_wrong_options_named() {
    let run = |name: &str, more: &[&str]| {
        let dir = folder(name);
        let args = [&["scenes", "--count", "3", "--seed", "5", "--out", dir.to_str().unwrap()], more].concat();
        (omchat(&args), std::fs::read(dir.join("data.jsonl")).unwrap_or_default())
    };
    let a = run("written", &["--frames", "4-9", "--kind", "needles"]);
    let b = run("again", &["--frames", "4-9", "--kind", "needles"]);
    assert!(a.0.0 == 0 && a.1 == b.1 && a.1.iter().filter(|c| **c == b'\n').count() == 3, "{:?}", a.0);
    let refused = |more: &[&str], what: &str| {
        let ((code, text), _) = run("refused", more);
        assert!(code == 2 && text.contains(what), "{more:?}: {code} {text}");
    };
    refused(&["--frames", "many"], "--frames is `many`");
    refused(&["--frames", "9-4"], "frames from 9 to 4");
    refused(&["--frames", "2", "--needles", "3"], "3 needles in 2 frames");
    refused(&["--ask", "why"], "no question is called `why`");
    refused(&["--depth", "1.5"], "depth 1.5");
    refused(&["--faces", "/nowhere.png"], "/nowhere.png");
    refused(&["--kind", "stories", "--frames", "99"], "99 frames");
}
