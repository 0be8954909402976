//! The mini model, real weights, against what PyTorch says of it, through the command. Skipped where nobody fetched it.
#![allow(clippy::unwrap_used, clippy::panic)] // a test may end at the first surprise

use omchat::home;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::process::Command;

fn figures(path: &Path, name: &str) -> Vec<f64> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let t = file.tensor(name).unwrap();
    let ints = t.dtype() == safetensors::Dtype::I32;
    let number = |b: &[u8; 4]| if ints { f64::from(i32::from_le_bytes(*b)) } else { f64::from(f32::from_le_bytes(*b)) };
    t.data().as_chunks::<4>().0.iter().map(number).collect()
}

/// The largest difference, as a share of the largest value wanted.
fn off(have: &[f64], want: &[f64]) -> f64 {
    assert_eq!(have.len(), want.len());
    let top = want.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    have.iter().zip(want).fold(0.0f64, |a, (h, w)| if h.is_finite() { a.max((h - w).abs()) } else { f64::INFINITY })
        / top
}

fn run(door: &str, case: &Path, output: &Path) {
    let mut c = Command::new(env!("CARGO_BIN_EXE_omchat"));
    c.args([door, "--model", "mini", "--device", "cpu", "--dtype", "f32"])
        .arg("--input")
        .arg(case)
        .arg("--output")
        .arg(output);
    if door == "generate" {
        c.args(["--max-new-tokens", "16"]);
    }
    let done = c.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn mini_agrees_with_pytorch() {
    if !home().join("mini/model.safetensors").is_file() {
        return println!("skipped: mini is not in {}; fetch it by scripts/mini.sh", home().display());
    }
    if omchat::Device::open("cpu").is_err() {
        return println!("skipped: mini: the device cpu is not here");
    }
    for case in ["text", "picture"] {
        let recorded =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/mini/{case}.safetensors"));
        let out = std::env::temp_dir().join(format!("omchat-mini-{}-{case}.safetensors", std::process::id()));
        run("generate", &recorded, &out);
        assert_eq!(figures(&out, "greedy_ids"), figures(&recorded, "greedy_ids"), "{case}");
        run("logits", &recorded, &out);
        let want = figures(&recorded, "last_logits");
        let logits = figures(&out, "logits");
        let mut worst = vec![off(&logits[logits.len() - want.len()..], &want)];
        if case == "picture" {
            worst.push(off(&figures(&out, "image_features"), &figures(&recorded, "image_features")));
        }
        println!("mini, {case}: 16 greedy ids; last logits and features off by {worst:?}");
        assert!(worst.iter().all(|o| *o <= 1e-4), "{case}: {worst:?}");
        std::fs::remove_file(&out).unwrap();
    }
}

/// A training step of the decoder over 2,048 tokens, planned for 4 GB.
#[test]
fn mini_trains() {
    if !home().join("mini/model.safetensors").is_file() {
        return println!("skipped: mini is not in {}; fetch it by scripts/mini.sh", home().display());
    }
    let Ok(device) = omchat::Device::open("cpu") else { return println!("skipped: mini: the device cpu is not here") };
    let model = omchat::Model::open("mini").unwrap();
    let vocab = model.config.text.vocab;
    let ids: Vec<i32> = (0..2048).map(|i| (i * 7919 + 13) % vocab as i32).collect();
    let spliced = omchat_model::splice::splice(&ids, 0, 1, vocab).unwrap();
    let batch = omchat::Batch::sequence(&model, &spliced, &ids, &[]).unwrap();
    let base = omchat::TrainSpec::whole(omchat::ForwardSpec::text(2048));
    let f32 = omchat_ir::Dtype::F32;
    let plan = omchat::plan_training(&model.config, &base, f32, false, &device.target(), Some(4_000_000_000)).unwrap();
    let mut trainer = omchat::Trainer::new(&model, device, f32, &plan.spec, &mut |_| {}).unwrap();
    let adamw = omchat::AdamW { lr: [1e-4; 3], ..omchat::AdamW::default() };
    let steps = [0, 1].map(|_| trainer.step(&batch, &adamw).unwrap());
    let memory = steps[0].memory.unwrap();
    println!(
        "mini, 2048 tokens, {}: losses {:.4} {:.4}, {memory:?}",
        plan.spec.recompute.name(),
        steps[0].loss,
        steps[1].loss
    );
    assert!(steps[1].loss < steps[0].loss, "{steps:?}");
    assert!(memory.planned <= 4_000_000_000);
}
