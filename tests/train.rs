//! Gradients and steps of AdamW on every device present, against what PyTorch computed for small checkpoints.
//!
//! Every gradient within 1e-4 of its tensor's largest value, ten losses of AdamW within 1e-3 of each; both are held to
//! a tenth of that here.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat::{AdamW, Batch, Device, ForwardSpec, Model, Recompute, TrainSpec, Trainer, gradients};
use omchat_ir::Dtype;
use omchat_model::splice::splice;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut out = vec![root.join("tiny-b"), root.join("tiny-c")];
    out.extend(std::fs::read_dir(root.join("extra")).unwrap().map(|e| e.unwrap().path()));
    out.retain(|p| p.join("case.safetensors").exists());
    out.sort();
    assert!(out.len() >= 10, "fixtures are missing: {out:?}");
    out
}

/// A file's f32 tensors by name.
fn floats(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let f32s = file.tensors().into_iter().filter(|(_, t)| t.dtype() == safetensors::Dtype::F32);
    f32s.map(|(n, t)| (n, t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()))
        .collect()
}

fn ints(path: &Path, name: &str) -> Vec<i32> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensor(name).unwrap().data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
}

struct Case {
    name: String,
    dir: PathBuf,
    model: Model,
    batch: Batch,
    figures: BTreeMap<String, Vec<f32>>,
}

impl Case {
    fn open(dir: &Path) -> Case {
        let path = dir.join("case.safetensors");
        let model = Model::open(&dir.to_string_lossy()).unwrap();
        let (ids, figures) = (ints(&path, "input_ids"), floats(&path));
        let tiles = ids.iter().filter(|i| **i == -200).count();
        let spliced = splice(&ids, tiles, model.tokens_per_tile(), model.config.text.vocab).unwrap();
        let labels = spliced.labels(&ints(&path, "labels")).unwrap();
        let pixels = figures.get("pixel_values").cloned().unwrap_or_default();
        let batch = Batch::sequence(&model, &spliced, &labels, &pixels).unwrap();
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        Case { name, dir: dir.into(), model, batch, figures }
    }

    fn spec(&self) -> TrainSpec {
        let forward = ForwardSpec { tiles: self.batch.tiles(), ..ForwardSpec::text(self.batch.tokens()) };
        TrainSpec { decay_all: true, ..TrainSpec::whole(forward) }
    }

    /// The gradients that PyTorch computed, by released names; nothing where the fixture keeps none.
    fn wanted(&self) -> Option<BTreeMap<String, Vec<f32>>> {
        let path = self.dir.join("grads.safetensors");
        if !path.is_file() {
            return None;
        }
        let figures = floats(&path);
        let names = self.model.checkpoint.names();
        let whole = |name: &str| {
            let parts = self.model.checkpoint.stored(name).unwrap();
            parts.iter().flat_map(|p| figures[p.name].clone()).collect()
        };
        Some(names.map(|n| (n.to_string(), whole(n))).collect())
    }
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |a, x| a.max(x.abs()))
}

fn check_gradients(case: &Case, device: &Device) -> bool {
    let Some(wanted) = case.wanted() else { return false };
    let spec = TrainSpec { recompute: Recompute::AllButAttention, ..case.spec() };
    let found = gradients(&case.model, device, Dtype::F32, &spec, &case.batch, &mut |_| {}).unwrap();
    let loss = case.figures["loss"][0];
    assert!((found.loss - loss).abs() <= 1e-5 * loss.abs().max(1.0), "{}: loss {} not {loss}", case.name, found.loss);
    let all = wanted.values().map(|x| largest(x)).fold(0f32, f32::max);
    let found: BTreeMap<String, Vec<f32>> = found.grads.into_iter().collect();
    let mut worst = (0f32, String::new());
    for (name, want) in &wanted {
        let zeros = vec![0.0; want.len()];
        let have = found.get(name).unwrap_or(&zeros);
        assert_eq!(have.len(), want.len(), "{}: {name}", case.name);
        // A key's bias moves all scores of a query alike: its gradient is rounding, in PyTorch too.
        let top = if largest(want) < 1e-7 * all { all } else { largest(want) };
        let off = have.iter().zip(want).fold(0f32, |a, (h, w)| a.max((h - w).abs())) / top;
        assert!(!off.is_nan() && off <= 1e-5, "{} on {}: d.{name} is off by {off:.1e}", case.name, device.name());
        if off > worst.0 {
            worst = (off, name.clone());
        }
    }
    let (off, name) = worst;
    println!("{} on {}: {} gradients, worst {off:.1e} of {name}", case.name, device.name(), wanted.len());
    true
}

fn check_steps(case: &Case, device: &Device) {
    let adamw = AdamW { lr: [1e-3; 3], betas: (0.9, 0.95), eps: 1e-8, decay: 0.1, ..AdamW::default() };
    let mut trainer = Trainer::new(&case.model, device.clone(), Dtype::F32, &case.spec(), &mut |_| {}).unwrap();
    let mut worst = 0f32;
    let want = &case.figures["adamw_losses"];
    assert_eq!(want.len(), 10);
    for (i, want) in want.iter().enumerate() {
        let step = trainer.step(&case.batch, &adamw).unwrap();
        let off = (step.loss - want).abs() / want.abs();
        assert!(
            !off.is_nan() && off <= 1e-4,
            "{} on {}: step {i} has loss {}, PyTorch {want}",
            case.name,
            device.name(),
            step.loss
        );
        worst = worst.max(off);
    }
    println!("{} on {}: ten steps of AdamW, worst loss off by {worst:.1e}", case.name, device.name());
}

fn check(name: &str) {
    let device = match Device::open(name) {
        Ok(d) => d,
        Err(e) => return println!("skipped: training on {name}: {e}"),
    };
    let mut with_gradients = 0;
    for dir in fixtures() {
        let case = Case::open(&dir);
        with_gradients += usize::from(check_gradients(&case, &device));
        check_steps(&case, &device);
    }
    assert_eq!(with_gradients, 10);
}

#[test]
fn interp() {
    check("interp");
}

#[test]
fn cpu() {
    check("cpu");
}

#[test]
fn wgpu() {
    check("wgpu");
}

#[test]
fn cuda() {
    check("cuda");
}

/// A projector-only stage moves the projector and nothing else, and its gradients are those of the whole.
#[test]
fn frozen_parts_stay() {
    let case = Case::open(&fixtures().into_iter().find(|d| d.ends_with("tiny-b")).unwrap());
    let device = Device::open("interp").unwrap();
    let all = gradients(&case.model, &device, Dtype::F32, &case.spec(), &case.batch, &mut |_| {}).unwrap();
    let spec = TrainSpec { parts: vec![omchat::Part::Projector], ..case.spec() };
    let some = gradients(&case.model, &device, Dtype::F32, &spec, &case.batch, &mut |_| {}).unwrap();
    assert_eq!(some.grads.len(), 4, "two linears with biases");
    for (name, grad) in &some.grads {
        assert!(name.starts_with("multi_modal_projector."));
        let whole = &all.grads.iter().find(|(n, _)| n == name).unwrap().1;
        assert_eq!(grad, whole, "{name}");
    }
    let mut trainer = Trainer::new(&case.model, device, Dtype::F32, &spec, &mut |_| {}).unwrap();
    trainer.step(&case.batch, &AdamW { lr: [1e-2; 3], ..AdamW::default() }).unwrap();
    for (name, now) in trainer.weights().unwrap() {
        assert!(name.starts_with("multi_modal_projector."));
        assert_ne!(now, case.model.checkpoint.tensor_f32(&name).unwrap(), "{name} did not move");
    }
}

/// A selection of everything is the plain mean; one of some tokens is the interpreter's on every device.
#[test]
fn selected_tokens_train_on_every_device() {
    let case = Case::open(&fixtures().into_iter().find(|d| d.ends_with("tiny-b")).unwrap());
    let n = case.batch.tokens();
    let reference: Vec<f32> = (0..n).map(|i| 5.0 + (i * 37 % 23) as f32 / 10.0).collect();
    let adamw = AdamW { lr: [1e-3; 3], ..AdamW::default() };
    let steps = |device: &str, ratio: Option<f32>| -> Option<Vec<omchat::Step>> {
        let device = match Device::open(device) {
            Ok(d) => d,
            Err(e) => {
                println!("skipped: selection on {device}: {e}");
                return None;
            }
        };
        let select = ratio.map(|_| omchat::Selection { room: n, joined: true });
        let spec = TrainSpec { select, ..case.spec() };
        let batch = match ratio {
            Some(ratio) => {
                case.batch.clone().selected(&reference, &omchat::Select { ratio, ..Default::default() }).unwrap()
            }
            None => case.batch.clone(),
        };
        let mut trainer = Trainer::new(&case.model, device, Dtype::F32, &spec, &mut |_| {}).unwrap();
        Some((0..3).map(|_| trainer.step(&batch, &adamw).unwrap()).collect())
    };
    let near = |a: &[omchat::Step], b: &[omchat::Step], what: &str| {
        for (a, b) in a.iter().zip(b) {
            assert!((a.loss - b.loss).abs() <= 1e-5 * b.loss, "{what}: {a:?} {b:?}");
            assert!((a.norm - b.norm).abs() <= 1e-4 * b.norm, "{what}: {a:?} {b:?}");
        }
    };
    let plain = steps("interp", None).unwrap();
    let all = steps("interp", Some(1.0)).unwrap();
    near(&all, &plain, "everything kept");
    let some = steps("interp", Some(0.6)).unwrap();
    assert!(some[0].kept() < all[0].kept() && (some[0].loss - all[0].loss).abs() > 1e-3, "{some:?}");
    for device in ["cpu", "wgpu", "cuda"] {
        let Some(have) = steps(device, Some(0.6)) else { continue };
        near(&have, &some, device);
        assert!(have.iter().zip(&some).all(|(a, b)| a.keep == b.keep), "{have:?} {some:?}");
    }
}
