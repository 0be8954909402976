//! `omchat eval` from outside, on the tiny model: files, resumption, errors.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may end at the first surprise

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn omchat(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omchat"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("OMCHAT_TUNED", "off").arg("eval").args(arguments);
    command.output().unwrap()
}

fn eval(task: &[&str], out: &Path, more: &[&str]) -> Output {
    let common = ["--model", "models/tiny", "--device", "cpu", "--out", out.to_str().unwrap()];
    omchat(&[task, &common, more].concat())
}

/// Stdout and stderr of a command that succeeds.
fn said(run: Output) -> (String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(run.stdout), text(run.stderr));
    assert!(run.status.success(), "{err}");
    (out, err)
}

/// Stderr of a command that is refused as misused.
fn refused(run: Output) -> String {
    let text = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.code() == Some(2) && !text.contains("panicked"), "{:?}: {text}", run.status);
    text
}

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("omchat-eval-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn haystack(dir: &Path) -> String {
    let path = dir.join("hay.txt");
    std::fs::write(&path, "The sun was low. Birds flew home, one by one! Who saw them? ".repeat(60)).unwrap();
    path.display().to_string()
}

#[test]
fn needles_are_asked_once_and_found_again() {
    let dir = folder("needle");
    let hay = haystack(&dir);
    let out = dir.join("out");
    let run = |more: &[&str]| eval(&["needle"], &out, &[&["--haystack", &hay, "--raw", "--seeds", "1"], more].concat());
    let grid = ["--lengths", "130,201", "--depths", "0,50"];
    let (table, words) = said(run(&grid));
    assert!(table.contains("depth \\ tokens") && table.contains("201") && table.contains("50%"), "{table}");
    assert!(words.contains("in the cache already"), "{words}");
    for file in ["answers.jsonl", "summary.json", "report.html", "heatmap.png", "run.json"] {
        assert!(out.join(file).metadata().unwrap().len() > 50, "{file}");
    }
    let answers = std::fs::read_to_string(out.join("answers.jsonl")).unwrap();
    let lines: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    for line in &lines {
        assert_eq!(line["params"]["tokens"], line["params"]["length"]);
        assert_eq!(line["expected"].as_str().unwrap().len(), 7);
    }
    let summary = json(&out.join("summary.json"));
    assert_eq!((summary["asked"].as_u64(), summary["setup"]["raw"].as_bool()), (Some(4), Some(true)));

    // The last answer is torn; a length is new. What is whole is not asked again, nor changed.
    std::fs::write(out.join("answers.jsonl"), &answers[..answers.len() - 9]).unwrap();
    let (_, words) = said(run(&["--lengths", "130,201,163", "--depths", "0,50"]));
    assert!(words.contains("3 answers are there already"), "{words}");
    let again = std::fs::read_to_string(out.join("answers.jsonl")).unwrap();
    assert_eq!(again.lines().count(), 6);
    assert_eq!(again.lines().take(3).collect::<Vec<_>>(), answers.lines().take(3).collect::<Vec<_>>());
    // The same question is answered the same, whatever the cache held when it was asked.
    let torn: Value = lines[3].clone();
    let found = again.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).find(|l| l["id"] == torn["id"]);
    assert_eq!(found.unwrap(), torn);

    // Another wording is another run.
    let other = [&grid[..], &["--needle", "In {city} it is {number}."]].concat();
    let words = refused(run(&other));
    assert!(words.contains("needle was") && words.contains("--fresh"), "{words}");
    said(run(&[&["--lengths", "130", "--depths", "50%", "--fresh"], &other[4..]].concat()));
    assert_eq!(std::fs::read_to_string(out.join("answers.jsonl")).unwrap().lines().count(), 1);
}

#[test]
fn needles_that_cannot_be_asked() {
    let dir = folder("needle-bad");
    let hay = haystack(&dir);
    let run = |more: &[&str]| refused(eval(&["needle"], &dir.join("out"), more));
    assert!(run(&["--haystack", "/nowhere"]).contains("/nowhere"));
    assert!(run(&["--haystack", &hay, "--depths", "0,101"]).contains("101"));
    assert!(run(&["--haystack", &hay, "--depths", "0"]).contains("0 depths"));
    assert!(run(&["--haystack", &hay, "--lengths", "4X"]).contains("4X"));
    assert!(run(&["--haystack", &hay, "--lengths", "20"]).contains("no room"));
    assert!(run(&["--haystack", &hay, "--lengths", "64K"]).contains("--repeat"));
    assert!(run(&["--haystack", &hay, "--lengths", "512K"]).contains("131072 positions"));
    assert!(run(&["--haystack", &hay, "--seeds", "0"]).contains("seed"));
    assert!(run(&["--haystack", &hay, "--needle", "nothing"]).contains("{number}"));
    assert!(!dir.join("out").exists(), "nothing is written for what is refused");
    // One length too long is left out, and said to be.
    let both = ["--haystack", &hay, "--lengths", "130,512K", "--depths", "50%", "--seeds", "1", "--raw"];
    let (table, _) = said(eval(&["needle"], &dir.join("out"), &both));
    assert!(table.contains("skipped length 524288: the model has 131072 positions"), "{table}");
}

#[test]
fn pictures_are_hidden_in_a_video() {
    let dir = folder("temporal");
    let few = ["--lengths", "5", "--depths", "100%", "--gaps", "1", "--hide", "3", "--seeds", "1", "--letters"];
    let few = [&few[..], &["--video", "models/tiny/ball.gif", "--kinds", "first,count"]].concat();
    let (table, _) = said(eval(&["temporal-needle"], &dir.join("out"), &few));
    assert!(table.contains("100% gap 1") && table.contains("one frame") && table.contains("guessing"), "{table}");
    assert!(table.contains("construction is ours"), "{table}");
    let answers = std::fs::read_to_string(dir.join("out/answers.jsonl")).unwrap();
    assert_eq!(answers.lines().count(), 4, "two kinds, each with the video and with one frame");
    assert!(dir.join("out/heatmap-2.png").exists());
    assert_eq!(json(&dir.join("out/summary.json"))["unread"], 0, "a letter is always read");

    let run = |more: &[&str]| refused(eval(&["temporal-needle"], &dir.join("no"), more));
    assert!(run(&["--lengths", "4", "--gaps", "2"]).contains("take 7 frames of 4"));
    assert!(run(&["--kinds", "last"]).contains("first, after, count, order"));
    assert!(run(&["--hide", "2"]).contains("--kinds first,count,order"));
    assert!(run(&["--single", "all"]).contains("random"));
    assert!(run(&["--needles", "/nowhere"]).contains("/nowhere"));
    let empty = dir.join("empty");
    std::fs::create_dir_all(&empty).unwrap();
    assert!(run(&["--needles", empty.to_str().unwrap()]).contains("there are 0 pictures"));
    assert!(run(&["--video", "/nowhere.mp4"]).contains("/nowhere.mp4"));
    assert!(run(&["--video", "models/tiny/ball.gif", "--lengths", "500"]).contains("24 frames and 500"));
    assert!(run(&["--format", "F9"]).contains("F9"));
}

/// The model that the repository carries, on the scenes that it was trained for, of digits that it never saw.
#[test]
fn the_shipped_model_is_asked_about_scenes() {
    let dir = folder("scenes");
    let out = dir.join("out");
    let run = |more: &[&str]| {
        let fixed = ["--model", "models/needle", "--device", "cpu", "--scenes", "--hide", "2", "--depths", "50%"];
        omchat(&[&["temporal-needle", "--out", out.to_str().unwrap()], &fixed[..], more].concat())
    };
    let (table, _) = said(run(&["--lengths", "6", "--seeds", "20"]));
    for words in ["1 digit at 50%", "2 digits", "6 frames", "one frame", "guessing", "first-digit", "held out"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    assert!(!table.contains("is-face"), "there are no faces: {table}");
    let summary = json(&out.join("summary.json"));
    let cells = summary["tables"][1]["cells"].as_array().unwrap().clone();
    let cell = |kind: &str, column: &str| cells.iter().find(|c| c["row"] == kind && c["column"] == column).unwrap();
    for kind in ["digit", "first-digit", "last-digit", "digits"] {
        let video = cell(kind, "video");
        assert!(video["score"].as_f64().unwrap() >= 0.8, "{video}");
        assert!(video["low"].as_f64().unwrap() < video["score"].as_f64().unwrap(), "{video}");
    }
    assert!(cell("digits", "one frame")["score"].as_f64().unwrap() < 0.8, "one frame does not say how many");
    assert!((cell("digit", "guessing")["score"].as_f64().unwrap() - 0.1).abs() < 1e-9);
    let answers = std::fs::read_to_string(out.join("answers.jsonl")).unwrap();
    // Another length and other seeds are added; what is there is kept.
    let (_, words) = said(run(&["--lengths", "6,3", "--seeds", "21", "--kinds", "digits"]));
    assert!(words.contains(&format!("{} answers are there already", answers.lines().count())), "{words}");
    let more = std::fs::read_to_string(out.join("answers.jsonl")).unwrap();
    // One seed of two rows at 6 frames, 21 of two rows at 3, each with the video and with one frame.
    assert!(more.starts_with(&answers) && more.lines().count() - answers.lines().count() == 2 * 2 * (1 + 21));
    let refused = |more: &[&str]| refused(run(more));
    assert!(refused(&["--kinds", "order"]).contains("first-digit, last-digit"));
    assert!(refused(&["--gaps", "1"]).contains("--gaps"));
    assert!(refused(&["--letters"]).contains("--letters"));
    assert!(refused(&["--lengths", "1"]).contains("2 needles in 1 frames"));
    assert!(refused(&["--faces", "/nowhere.png"]).contains("/nowhere.png"));
}

#[test]
fn a_benchmark_in_every_format() {
    let dir = folder("choice");
    let data = dir.join("moving_count.json");
    let media = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let rows = serde_json::json!([
        { "video": "ball.gif", "question": "What moves?", "candidates": ["a ball", "a bird"], "answer": "a ball" },
        { "video": "gone.gif", "question": "What moves?", "candidates": ["a ball", "a bird"], "answer": "a ball" },
        { "video": "ball.gif", "question": "How many?", "candidates": ["1", "2", "3"], "answer": "1" },
    ]);
    std::fs::write(&data, rows.to_string()).unwrap();
    let given = ["--data", data.to_str().unwrap(), "--media", media.to_str().unwrap(), "--frames", "2"];
    let (table, words) = said(eval(&["choice"], &dir.join("out"), &[&given[..], &["--circular"]].concat()));
    assert!(table.contains("moving count") && table.contains("skipped moving_count/1: `gone.gif`"), "{table}");
    assert!(words.contains("moving_count/1 cannot be used"), "{words}");
    assert_eq!(std::fs::read_to_string(dir.join("out/answers.jsonl")).unwrap().lines().count(), 5);
    assert_eq!(json(&dir.join("out/summary.json"))["asked"], 2);
    // A context that is too small skips questions, one by one; a score of none is no score.
    let words = refused(eval(&["choice"], &dir.join("small"), &[&given[..], &["--context", "40"]].concat()));
    assert!(words.contains("no question could be asked: moving_count/0") && words.contains("context of 40"), "{words}");
    let page = std::fs::read_to_string(dir.join("small/report.html")).unwrap();
    assert!(page.contains("moving_count/2"), "{page}");

    let more = [&given[..], &["--letters", "--formats", "F0,F3"]].concat();
    let (table, _) = said(eval(&["formats", "choice"], &dir.join("formats"), &more));
    assert!(table.contains("F0 ") && table.contains("F3 ") && !table.contains("\nF1 "), "{table}");
    for file in ["F0/answers.jsonl", "F3/report.html", "summary.json", "heatmap.png"] {
        assert!(dir.join("formats").join(file).exists(), "{file}");
    }
    let run = |more: &[&str]| refused(eval(&["choice"], &dir.join("no"), more));
    assert!(run(&["--data", "/nowhere.json"]).contains("/nowhere.json"));
    assert!(run(&[&given[..], &["--metric", "bleu"]].concat()).contains("bleu"));
    assert!(run(&["--data", data.to_str().unwrap(), "--media", "/nowhere"]).contains("none of its records"));
}
