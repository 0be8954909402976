//! The command from outside: what it prints, where, and with which exit code.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may end at the first surprise

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn omchat(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omchat")).current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap()
}

/// Stdout of a command that succeeds.
fn said(arguments: &[&str]) -> String {
    let run = omchat(arguments);
    assert!(run.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

/// Exit code and stderr of a command that fails.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let run = omchat(arguments);
    let text = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success() && !text.contains("panicked"), "{arguments:?}: {text}");
    (run.status.code(), text)
}

/// A file of this test's own with that text.
fn text(name: &str, text: &str) -> String {
    let dir = std::env::temp_dir().join(format!("omchat-cli-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path: PathBuf = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

const ATTENTION: &str = "E=bf16,B=1,H=2,G=3,T=5,S=9,D=32";
const NORM: &str = "E=f32,R=5,C=48";

#[test]
fn verify_shows_every_fault_at_its_place() {
    let bad = text(
        "bad.oir",
        "func @f(%x: f32[3]) -> f32[3] {\n    %y = add %x, %z\n    %w = mul %x, %q\n    return %y\n}\n",
    );
    let (code, text) = refused(&["ir", "verify", &bad]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("bad.oir:2:5") && text.contains("bad.oir:3:5") && text.contains("^^^") && text.contains("help:"),
        "{text}"
    );
    assert!(said(&["ir", "verify", "ir/library/norm.oir"]).starts_with("ok: "));
    let mut child = Command::new(env!("CARGO_BIN_EXE_omchat"))
        .args(["ir", "verify", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"func @f(%x: f32[3]) -> f32[3] { return %x }").unwrap();
    let run = child.wait_with_output().unwrap();
    assert!(run.status.success() && String::from_utf8_lossy(&run.stdout).contains("<stdin>: 1 functions"));
}

#[test]
fn fmt_is_idempotent_and_loses_no_comment() {
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("ir/library")).unwrap() {
        let path = entry.unwrap().path().display().to_string();
        let once = said(&["ir", "fmt", &path]);
        assert_eq!(said(&["ir", "fmt", &text("once.oir", &once)]), once, "{path}");
    }
    let untidy = text("untidy.oir", "; test print\nfunc @f(%x: f32[3]) -> f32[3] {\n%y   = neg %x\nreturn %y }\n");
    assert_eq!(refused(&["ir", "fmt", "--check", &untidy]).0, Some(1));
    assert!(said(&["ir", "fmt", "--write", &untidy]).is_empty());
    assert!(std::fs::read_to_string(&untidy).unwrap().starts_with("; test print\nfunc @f"));
    said(&["ir", "fmt", "--check", &untidy]);
    let inner = text("inner.oir", "func @f(%x: f32[3]) -> f32[3] {\n    return %x ; as it is\n}\n");
    said(&["ir", "fmt", "--write", &inner]);
    assert!(std::fs::read_to_string(&inner).unwrap().contains("return %x ; as it is\n"));
}

#[test]
fn eval_prints_and_saves_what_the_interpreter_says() {
    let double = text("double.oir", "func @double(%x: f32[3]) -> f32[3] { %y = add %x, %x return %y }");
    let drawn = said(&["ir", "eval", &double, "--seed", "7"]);
    assert!(
        drawn.starts_with("%y: f32[3]\n")
            && drawn == said(&["ir", "eval", &double, "--seed", "7"])
            && drawn != said(&["ir", "eval", &double])
    );
    let saved = text("saved.safetensors", "");
    said(&[
        "ir",
        "eval",
        "--function",
        "ring_attention",
        "--bind",
        "R=3,E=f32,B=1,H=1,G=2,T=4,S=4,D=8",
        "--ranks",
        "3",
        "--exact",
        "--output",
        &saved,
    ]);
    let bytes = std::fs::read(&saved).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("y.2").unwrap().shape(), [1, 1, 2, 4, 8]);
    assert_eq!(file.tensor("y.2").unwrap().dtype(), safetensors::Dtype::F64);
}

#[test]
fn plan_and_source_need_no_device() {
    for (function, bind) in [("attention", ATTENTION), ("rms_norm", NORM)] {
        for target in ["cpu", "wgpu", "cuda"] {
            let plan = said(&["ir", "plan", "--function", function, "--bind", bind, "--target", target]);
            assert!(
                plan.starts_with(&format!("program @{function} for {target}")) && plan.contains("workspace"),
                "{plan}"
            );
        }
        if cfg!(feature = "cuda") {
            let cuda =
                said(&["ir", "source", "--function", function, "--bind", bind, "--target", "cuda", "--sm", "90"]);
            assert!(cuda.starts_with(&format!("// unit: {function}.0.")) && cuda.contains("__global__"), "{cuda}");
        }
        if cfg!(feature = "wgpu") {
            let wgsl = said(&["ir", "source", "--function", function, "--bind", bind, "--target", "wgsl"]);
            assert!(wgsl.contains("@compute"), "{wgsl}");
        }
    }
    let plan = said(&["ir", "plan", "--function", "attention", "--bind", ATTENTION, "--target", "cuda"]);
    assert!(plan.contains("= attention.") && plan.contains("not "), "{plan}");
}

#[test]
fn opt_stops_after_a_pass() {
    let early = said(&["ir", "opt", "--function", "softmax", "--bind", "R=3,C=4", "--to", "legalize"]);
    assert!(early.contains("reduce.max") && !early.contains("@fused"), "{early}");
    let late = said(&["ir", "opt", "--function", "softmax", "--bind", "R=3,C=4"]);
    assert!(late.contains("call @"), "{late}");
    said(&["ir", "verify", &text("late.oir", &late)]);
}

#[test]
fn bad_usage_is_answered() {
    for (arguments, code, part) in [
        (&["ir", "plan", "--function", "attention", "--bind", "E=f32"][..], 2, "H, G, T, S, D"),
        (&["ir", "plan", "--function", "rms_norm", "--bind", "E=f32,R=3,C=many"], 2, "C=many"),
        (&["ir", "plan", "--function", "no_such"], 2, "no_such"),
        (&["ir", "print", "/no/such.oir"], 2, "/no/such.oir"),
        (&["ir", "print", "ir/library/norm.oir"], 2, "--bind"),
        (&["ir", "eval", "--function", "softmax", "--bind", "R=9999999,C=99999"], 1, "interpreter"),
        (&["inspect", "--model", "gpt-5"], 2, "omchat-13b"),
        (&["inspect", "--model", "mini", "--device", "abacus"], 2, "abacus"),
        (&["inspect", "--model", "omchat-13b", "--device", "cuda", "--dtype", "i32"], 2, "i32"),
        (&["inspect"], 2, "--model"),
        (&["sing"], 2, "sing"),
    ] {
        let (have, text) = refused(arguments);
        assert!(have == Some(code) && text.contains(part), "{arguments:?}: {have:?} {text}");
    }
}

/// What would be lost is refused before anything runs.
#[test]
fn files_are_not_written_over_one_another() {
    let case = "tests/fixtures/tiny-b/case.safetensors";
    let model = ["--model", "tests/fixtures/tiny-b", "--device", "cpu", "--input", case];
    let out = text("out.safetensors", "");
    let with = |command: &'static str, more: &[&str]| {
        let all: Vec<&str> = [&[command][..], &model, more].concat();
        refused(&all)
    };
    for (command, more, part) in [
        ("loss", &["--output", &out, "--grads", &out][..], "--output and --grads are both"),
        ("loss", &["--output", case], "--input and --output are both"),
        ("step", &["--output", "/no/such/losses.safetensors"], "cannot write /no/such/losses.safetensors"),
        ("step", &["--output", &out, "--save", "tests/fixtures/tiny-b"], "the model's own folder"),
        ("step", &["--output", &out, "--lr", "-1"], "-1"),
    ] {
        let (code, said) = with(command, more);
        assert!(code == Some(2) && said.contains(part) && !said.contains("step 1:"), "{command} {more:?}: {said}");
    }
    assert_eq!(std::fs::read(&out).unwrap(), b"", "what is there stays as it is");
}

/// Operands of a file are the function's, under their names.
#[test]
fn operands_that_the_function_does_not_take_are_refused() {
    let f = text("f.oir", "func @f(%x: i32[3]) -> i32[3] { %y = add %x, %x return %y }");
    let file = |name: &str, dtype, bytes: &[u8]| {
        let path = text(name, "");
        let view = safetensors::tensor::TensorView::new(dtype, vec![3], bytes).unwrap();
        std::fs::write(&path, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
        path
    };
    let ints = file("x", safetensors::Dtype::I32, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
    assert!(said(&["ir", "eval", &f, "--input", &ints]).contains("2 4 6"));
    let floats = file("x", safetensors::Dtype::F32, &[0; 12]);
    assert!(refused(&["ir", "eval", &f, "--input", &floats]).1.contains("f32[3], the function takes i32[3]"));
    let long = [1i64 << 33, 0, 0].map(i64::to_le_bytes).concat();
    let long = file("x", safetensors::Dtype::I64, &long);
    assert!(refused(&["ir", "eval", &f, "--input", &long]).1.contains("8589934592, which no i32 holds"));
    let other = file("z", safetensors::Dtype::I32, &[0; 12]);
    assert!(refused(&["ir", "eval", &f, "--input", &other]).1.contains("holds `z`"));
}

#[test]
fn presets_are_as_large_as_published() {
    for (preset, parameters) in [("omchat-13b", "13,176,433,536"), ("omchat-8b", "8,054,996,336")] {
        let shown = said(&["inspect", "--model", preset, "--device", "cuda"]);
        assert!(shown.contains(parameters) && shown.contains("workspace"), "{shown}");
    }
    let page = said(&[
        "inspect",
        "--model",
        "omchat-13b",
        "--device",
        "cuda",
        "--context",
        "131072",
        "--image",
        "tests/fixtures/pictures/page.png",
        "--json",
    ]);
    let report: serde_json::Value = serde_json::from_str(&page).unwrap();
    assert_eq!(report["model"]["parameters"]["total"], 13_176_433_536u64);
    assert_eq!(report["tokens"], 3 * 1024);
    // 28 layers of 4 key and value heads of 128 bf16, and each slot's place.
    assert_eq!(report["memory"]["classes"]["state"], 131_072u64 * (28 * 2 * 4 * 128 * 2 + 4));
}

#[test]
fn doctor_tells_of_every_device() {
    let report: serde_json::Value = serde_json::from_str(&said(&["doctor", "--json"])).unwrap();
    let names: Vec<&str> = report["devices"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cuda", "wgpu", "cpu", "interp"]);
    for d in report["devices"].as_array().unwrap() {
        let told = if d["present"] == true {
            d["works"]["seconds"].is_f64()
        } else {
            d["reason"].is_string() && d["mend"].is_string()
        };
        assert!(told, "{d}");
    }
    assert!(said(&["doctor"]).contains("chosen"));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_omchat"))
        .args(["ir", "source", "--function", "attention", "--bind", ATTENTION])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let run = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && !text.contains("panicked"), "{text}");
}

/// What scripts/cuda_compile.sh compiles has every kernel that runs on CUDA.
#[test]
fn every_cuda_kernel_is_compiled() {
    if !cfg!(feature = "cuda") {
        return;
    }
    let text = said(&["kernels", "list", "--target", "cuda", "--tf32", "--sm", "90a"]);
    for kernel in omchat_kernels::LIST {
        // Local arrays of the CPU runtime's.
        let elsewhere = kernel.name().starts_with("attention") && kernel.name().ends_with(".rows")
            || ["linear_cross_entropy.dot", "einsum.panels"].contains(&kernel.name());
        let listed = text.lines().any(|l| l.split(' ').next() == Some(kernel.name()));
        assert!(elsewhere != listed, "{}:\n{text}", kernel.name());
    }
    let text = said(&["kernels", "dump", "rms_norm", "--target", "cuda"]);
    assert!(text.starts_with("// unit: rms_norm/") && text.contains("__global__"), "{text}");
    let (_, why) = refused(&["kernels", "dump", "no-such-kernel"]);
    assert!(why.contains("`no-such-kernel`") && why.contains("einsum.mma"), "{why}");
}
