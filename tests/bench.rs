//! `omchat bench`: rows with the fields that docs/bench.md promises, judged numbers, and clear refusals.
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::Value;
use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omchat")).arg("bench").args(args).output().unwrap()
}

fn rows(args: &[&str]) -> Vec<Value> {
    let out = bench(args);
    let (said, noted) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{args:?}: {said}\n{noted}");
    said.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{args:?}: {e}: {l}"))).collect()
}

fn failure(args: &[&str]) -> String {
    let out = bench(args);
    assert!(!out.status.success(), "{args:?} ended well");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// The table of fields in docs/bench.md.
fn fields() -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/bench.md")).unwrap();
    let table = page.split("| field | is |").nth(1).unwrap();
    let names = table.lines().filter_map(|l| l.strip_prefix("| `")).filter_map(|l| l.split(" |").next());
    names
        .flat_map(|n| n.split('`').map(str::trim).filter(|n| !n.is_empty()).map(String::from).collect::<Vec<_>>())
        .collect()
}

#[test]
fn a_row_has_the_fields_of_the_page() {
    let promised = fields();
    for device in ["interp", "cpu"] {
        let rows = rows(&["kernels", "--device", device, "--only", "swiglu/f32", "--time", "20", "--json"]);
        assert_eq!(rows.len(), 1, "{device}");
        for row in &rows {
            let mut have: Vec<&String> = row.as_object().unwrap().keys().collect();
            let mut want: Vec<&String> = promised.iter().collect();
            have.sort();
            want.sort();
            assert_eq!(have, want, "{device}");
            assert_eq!(row["device"], *device);
            assert_eq!(row["checked"], true, "{device}: {row}");
            assert!(row["median_s"].as_f64().unwrap() > 0.0 && row["tflop_s"].as_f64().unwrap() > 0.0, "{row}");
        }
    }
}

/// Every kernel and schedule that takes the work is timed and right.
#[test]
fn all_ways_are_judged() {
    let rows = rows(&["kernels", "--device", "cpu", "--only", "nt/m1n576k1536", "--all", "--time", "10", "--json"]);
    let kernels: std::collections::BTreeSet<&str> = rows.iter().filter_map(|r| r["kernel"].as_str()).collect();
    assert!(kernels.len() >= 2 && kernels.contains("einsum.dot"), "{kernels:?}");
    assert!(rows.iter().all(|r| r["checked"] == true), "{rows:?}");
}

#[test]
fn whole_steps_have_rates() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-b");
    for (suite, unit) in [("prefill", "tokens/s"), ("decode", "tokens/s"), ("vision", "tiles/s"), ("train", "tokens/s")]
    {
        let rows = rows(&[suite, "--device", "cpu", "--model", model, "--tokens", "64", "--time", "10", "--json"]);
        let row = &rows[0];
        assert_eq!((row["suite"].as_str(), row["unit"].as_str()), (Some(suite), Some(unit)));
        assert!(row["rate"].as_f64().unwrap() > 0.0, "{row}");
    }
}

/// The loss of 8,192 tokens of 152,064 words holds a hundredth of its logits; planned, so the same on any machine.
#[test]
fn a_tiled_loss_holds_a_hundredth_of_its_logits() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-b");
    let rows = rows(&["train", "--device", "cpu", "--model", model, "--tokens", "32", "--time", "10", "--json"]);
    let bytes = |name: &str| {
        let row = rows.iter().find(|r| r["name"].as_str().is_some_and(|n| n.starts_with(name) && n.ends_with("n128")));
        row.unwrap_or_else(|| panic!("no row {name}: {rows:?}"))["bytes"].as_u64().unwrap()
    };
    let logits = 8192 * 152_064 * 4;
    assert!(bytes("loss_forward") * 100 <= logits, "{}", bytes("loss_forward"));
    // The weight's gradient is a result, gathered in f32.
    let gradient = 152_064 * 3584 * 4;
    assert!((bytes("loss_backward") - gradient) * 100 <= logits, "{}", bytes("loss_backward") - gradient);
}

#[test]
fn what_there_is_not_is_named() {
    let said = failure(&["kernels", "--device", "cpu", "--only", "no-such-row"]);
    assert!(said.contains("no row's name contains `no-such-row`") && said.contains("einsum/f32"), "{said}");
    let said = failure(&["kernels", "--device", "abacus"]);
    assert!(said.contains("abacus") && said.contains("cpu"), "{said}");
}

#[test]
fn anybodys_function_is_timed_and_judged() {
    let path = std::env::temp_dir().join(format!("omchat-bench-{}.oir", std::process::id()));
    let text = "func @turned(%a: f32[70, 90], %b: f32[50, 70]) -> f32[90, 50] {\n%y = einsum.f32 %a, %b \"k m, n k -> m n\"\n\
                return %y\n}";
    std::fs::write(&path, text).unwrap();
    let path_text = path.to_str().unwrap();
    let all = ["function", "--text", path_text, "--device", "cpu", "--bare", "--all", "--time", "10", "--json"];
    let found = rows(&all);
    let kernels: Vec<&str> = found.iter().filter_map(|r| r["kernel"].as_str()).collect();
    assert_eq!(kernels.first(), Some(&"einsum.panels"), "columns are turned: {kernels:?}");
    assert!(kernels.contains(&"einsum.rows") && kernels.contains(&"fold.plain"), "{kernels:?}");
    assert!(found.iter().all(|r| r["checked"] == true), "{found:?}");
    std::fs::remove_file(&path).unwrap();
    let attention = "E=f32,B=1,H=2,G=7,T=1,S=400,D=64";
    let of = ["function", "--function", "attention", "--bind", attention, "--device", "cpu", "--bare", "--time", "10"];
    let found = rows(&[&of[..], &["--json"]].concat());
    assert_eq!((&found[0]["kernel"], &found[0]["checked"]), (&"attention.rows".into(), &true.into()), "{found:?}");
    assert!(found[0]["name"].as_str().unwrap().starts_with("function/attention/"), "{found:?}");
    assert!(failure(&["kernels", "--function", "softmax"]).contains("omchat bench function"));
    assert!(failure(&["function", "--function", "softmax", "--device", "cpu"]).contains("has free letters R, C"));
}

#[test]
fn a_bench_without_a_row_fails() {
    let path = std::env::temp_dir().join(format!("omchat-bench-big-{}.oir", std::process::id()));
    std::fs::write(
        &path,
        "func @big(%a: f32[1000000, 30000000]) -> f32[1000000, 30000000] {\n%y = neg %a\nreturn %y\n}",
    )
    .unwrap();
    let said = failure(&["function", "--text", path.to_str().unwrap(), "--device", "cpu", "--bare", "--time", "10"]);
    assert!(said.contains("skipped: function/big") && said.contains("nothing was benched"), "{said}");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_configuration_alone_has_random_weights() {
    let dir = std::env::temp_dir().join(format!("omchat-bench-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny/config.json"), dir.join("config.json")).unwrap();
    let model = dir.to_str().unwrap();
    let rows =
        rows(&["prefill", "--model", model, "--device", "cpu", "--bare", "--tokens", "7", "--time", "10", "--json"]);
    // A session pads seven tokens to a chunk of 32.
    assert!(rows[0]["name"].as_str().unwrap().ends_with("t32") && rows[0]["note"] == "random weights", "{rows:?}");
    std::fs::remove_dir_all(&dir).unwrap();
}
