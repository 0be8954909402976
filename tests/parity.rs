//! Small OmChat checkpoints on every device present, against what PyTorch computed for them.
//!
//! Features and logits within 1e-4 of the largest value in f32, loss within 1e-5, the same greedy ids.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat::{Device, Engine, EngineOptions, Model, Rows, Sampler, Sampling, Session};
use omchat_codegen::Target;
use omchat_ir::Dtype;
use omchat_model::splice::{Slot, splice};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::sync::Arc;

struct Case {
    bytes: Vec<u8>,
}

impl Case {
    fn f32(&self, name: &str) -> Option<Vec<f32>> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let t = file.tensor(name).ok()?;
        Some(t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
    }

    fn i32(&self, name: &str) -> Vec<i32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        file.tensor(name).unwrap().data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut out = vec![root.join("tiny-b"), root.join("tiny-c")];
    let mut extra: Vec<PathBuf> = std::fs::read_dir(root.join("extra"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("case.safetensors").exists())
        .collect();
    extra.sort();
    out.extend(extra);
    assert!(out.len() >= 10, "fixtures are missing: {out:?}");
    out
}

/// The largest difference, as a share of the largest value wanted.
fn off(have: &[f32], want: &[f32]) -> f32 {
    assert_eq!(have.len(), want.len());
    let top = want.iter().fold(0f32, |a, b| a.max(b.abs()));
    have.iter().zip(want).fold(0f32, |a, (h, w)| if (h - w).is_nan() { f32::INFINITY } else { a.max((h - w).abs()) })
        / top
}

fn check(device: &str) {
    let device = match Device::open(device) {
        Ok(d) => d,
        Err(e) => return println!("skipped: parity on {device}: {e}"),
    };
    for dir in fixtures() {
        let case = Case { bytes: std::fs::read(dir.join("case.safetensors")).unwrap() };
        let model = Model::open(&dir.to_string_lossy()).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let ids = case.i32("input_ids");
        let tiles = ids.iter().filter(|i| **i == -200).count();
        let spliced = splice(&ids, tiles, model.tokens_per_tile(), model.config.text.vocab).unwrap();
        let options = EngineOptions { dtype: Some(Dtype::F32), tiles: 2 };
        let engine = Arc::new(Engine::load(model, device.clone(), &options, &mut |_| {}).unwrap());
        let label = format!("{} on {}", dir.file_name().unwrap().to_string_lossy(), device.name());
        let mut features = vec![];
        if let Some(pixels) = case.f32("pixel_values") {
            let each = pixels.len() / tiles.max(1);
            features =
                engine.features(tiles, &mut |r| pixels[r.start * each..r.end * each].to_vec(), &mut |_| {}).unwrap();
            let o = off(&features, &case.f32("image_features").unwrap());
            assert!(o <= 1e-4, "{label}: features off by {o}");
        }
        let mut s = Session::new(engine.clone(), spliced.len() + 16).unwrap();
        let logits = s.read(&spliced.slots, &features, Rows::All, &mut |_| {}).unwrap();
        let o = off(&logits, &case.f32("logits").unwrap());
        assert!(o <= 1e-4, "{label}: logits off by {o}");

        let mut s = Session::new(engine.clone(), spliced.len() + 16).unwrap();
        let labels = spliced.labels(&case.i32("labels")).unwrap();
        let shifted: Vec<i32> = labels[1..].iter().copied().chain([-100]).collect();
        let nll = s.losses(&spliced.slots, &features, &shifted).unwrap();
        let want = case.f32("nll").unwrap();
        let n = shifted.iter().filter(|l| **l != -100).count();
        let loss = nll.iter().sum::<f32>() / n as f32;
        let want_loss = case.f32("loss").unwrap()[0];
        assert!(
            (loss - want_loss).abs() <= 1e-5 * want_loss.abs().max(1.0),
            "{label}: loss {loss}, PyTorch {want_loss}"
        );
        assert!(off(&nll[..want.len()], &want) <= 1e-4, "{label}: nll");

        let mut s = Session::new(engine.clone(), spliced.len() + 16).unwrap();
        let mut logits = s.read(&spliced.slots, &features, Rows::Last, &mut |_| {}).unwrap();
        let mut pick = Sampler::new(Sampling::default());
        let want = case.i32("greedy_ids");
        let mut have = vec![];
        for _ in 0..want.len() {
            let id = pick.pick(&logits, &[]);
            have.push(id as i32);
            logits = s.read(&[Slot::Text(id)], &[], Rows::Last, &mut |_| {}).unwrap();
        }
        assert_eq!(have, want, "{label}: greedy ids");
        println!("{label}: logits off by {o:.1e}, loss by {:.1e}", (loss - want_loss).abs());
    }
}

/// Weights in bf16 on a target that only reads them: the same maths in f32 on two devices, and half the bytes.
#[test]
fn packed_weights_are_read_alike() {
    let (Ok(wgpu), Ok(Device::Cube { client, target })) = (Device::open("wgpu"), Device::open("cpu")) else {
        return println!("skipped: packed weights: needs wgpu and cpu");
    };
    let facts = wgpu.target();
    let dtypes = facts.dtypes.clone();
    let lacking = Device::Cube { client, target: Target { dtypes, packed: facts.packed.clone(), ..target } };
    for dir in fixtures() {
        let case = Case { bytes: std::fs::read(dir.join("case.safetensors")).unwrap() };
        let ids = case.i32("input_ids");
        let tiles = ids.iter().filter(|i| **i == -200).count();
        let run = |device: &Device, dtype| {
            let model = Model::open(&dir.to_string_lossy()).unwrap();
            let spliced = splice(&ids, tiles, model.tokens_per_tile(), model.config.text.vocab).unwrap();
            let options = EngineOptions { dtype: Some(dtype), tiles: 2 };
            let engine = Arc::new(Engine::load(model, device.clone(), &options, &mut |_| {}).unwrap());
            let mut features = vec![];
            if let Some(pixels) = case.f32("pixel_values") {
                let each = pixels.len() / tiles.max(1);
                let tile = &mut |r: std::ops::Range<usize>| pixels[r.start * each..r.end * each].to_vec();
                features = engine.features(tiles, tile, &mut |_| {}).unwrap();
            }
            let mut s = Session::new(engine.clone(), spliced.len() + 16).unwrap();
            let logits = s.read(&spliced.slots, &features, Rows::All, &mut |_| {}).unwrap();
            (engine.weight_bytes(), features, logits)
        };
        let label = dir.file_name().unwrap().to_string_lossy().into_owned();
        let (bytes, features, logits) = run(&wgpu, Dtype::Bf16);
        let (_, want_features, want_logits) = run(&lacking, Dtype::Bf16);
        let (wide, ..) = run(&wgpu, Dtype::F32);
        assert_eq!(2 * bytes, wide, "{label}: bytes of weights in bf16 and in f32");
        if !features.is_empty() {
            let o = off(&features, &want_features);
            assert!(o <= 1e-4, "{label}: features off by {o}");
        }
        let o = off(&logits, &want_logits);
        assert!(o <= 1e-4, "{label}: logits off by {o}");
        // And against the checkpoint as it is: what bf16 loses of the weights.
        let lost = off(&logits, &case.f32("logits").unwrap());
        assert!(lost <= 0.05, "{label}: logits off by {lost} from unrounded weights");
        println!("{label}: logits off by {o:.1e}, by {lost:.1e} from unrounded weights; {bytes} bytes of weights");
    }
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
