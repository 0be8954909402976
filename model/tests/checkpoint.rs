//! Checkpoints: both spellings, shards, and every fault in one error.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may end at the first surprise

use omchat_model::config::OmChatConfig;
use omchat_model::error::{Error, WeightFault};
use omchat_model::weights::tensors;
use omchat_model::{Checkpoint, presets};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// An empty folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("omchat-model-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn read_all(name: &str) -> (OmChatConfig, Tensors) {
    let dir = fixture(name);
    let config = OmChatConfig::from_dir(&dir).unwrap();
    let checkpoint = Checkpoint::load(&dir, &config).unwrap();
    let read = |name: &str| {
        let bytes = checkpoint.bytes(name).unwrap().into_owned();
        (checkpoint.dtype(name).unwrap(), checkpoint.shape(name).unwrap(), bytes)
    };
    let tensors = checkpoint.names().map(|name| (name.to_owned(), read(name))).collect();
    (config, tensors)
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

fn rename(tensors: &Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect()
}

fn same(config: &OmChatConfig, tensors: &Tensors, dir: &Path) {
    let checkpoint = Checkpoint::load(dir, config).unwrap();
    for (name, (_, _, bytes)) in tensors {
        assert_eq!(checkpoint.bytes(name).unwrap().as_ref(), bytes.as_slice(), "{name}");
    }
}

#[test]
fn fixtures_fit_their_configs() {
    for name in ["tiny-b", "tiny-c"] {
        let dir = fixture(name);
        let config = OmChatConfig::from_dir(&dir).unwrap();
        let checkpoint = Checkpoint::load(&dir, &config).unwrap();
        for tensor in tensors(&config) {
            let numbers = checkpoint.tensor_f32(&tensor.name).unwrap();
            assert_eq!(numbers.len(), tensor.shape.iter().product::<usize>(), "{}", tensor.name);
            checkpoint.check_finite(&tensor.name, omchat_ir::Dtype::F16).unwrap();
        }
        let stored: usize = tensors(&config).iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
        assert!(presets::parameters(&config).total() as usize - stored <= 96);
    }
}

#[test]
fn names_from_before_the_release() {
    let (config, tensors) = read_all("tiny-b");
    let dir = folder("native");
    let native = rename(&tensors, |name| {
        name.replace("vision_tower.", "model.vision_tower.vision_tower.")
            .replace("multi_modal_projector.linear_1", "model.mm_projector.0")
            .replace("multi_modal_projector.linear_2", "model.mm_projector.2")
            .replace("language_model.", "")
    });
    assert!(native.contains_key("model.embed_tokens.weight") && native.contains_key("lm_head.weight"));
    write(&dir.join("weights.safetensors"), &native);
    same(&config, &tensors, &dir);
}

#[test]
fn names_of_transformers_with_split_rows() {
    let (config, tensors) = read_all("tiny-b");
    let dir = folder("transformers");
    let mut split = Tensors::new();
    for (name, (dtype, shape, bytes)) in &tensors {
        let Some(stem) = name.strip_suffix(".attn.qkv.weight") else {
            let name =
                name.replace("encoder.layers", "encoder.layer").replace(".attn.proj", ".attention.projection_layer");
            split.insert(name.replace(".ls1", ".lambda_1"), (*dtype, shape.clone(), bytes.clone()));
            continue;
        };
        for (part, bytes) in ["q", "k", "v"].iter().zip(bytes.chunks(bytes.len() / 3)) {
            let name = format!("{}.attention.{part}_proj.weight", stem.replace("layers", "layer"));
            split.insert(name, (*dtype, vec![shape[0] / 3, shape[1]], bytes.to_vec()));
        }
    }
    let split =
        rename(&split, |name| if name.starts_with("vision") { format!("model.{name}") } else { name.to_owned() });
    write(&dir.join("model.safetensors"), &split);
    same(&config, &tensors, &dir);
}

#[test]
fn shards_with_and_without_an_index() {
    let (config, tensors) = read_all("tiny-c");
    let dir = folder("shards");
    let (mut one, mut two) = (tensors.clone(), tensors.clone());
    let middle = tensors.keys().nth(tensors.len() / 2).unwrap().clone();
    one.retain(|name, _| *name < middle);
    two.retain(|name, _| *name >= middle);
    write(&dir.join("model-00001-of-00002.safetensors"), &one);
    write(&dir.join("model-00002-of-00002.safetensors"), &two);
    same(&config, &tensors, &dir);
    let entry = |name: &String, shard: u32| format!("\"{name}\": \"model-0000{shard}-of-00002.safetensors\"");
    let map: Vec<String> = one.keys().map(|n| entry(n, 1)).chain(two.keys().map(|n| entry(n, 2))).collect();
    let index = dir.join("model.safetensors.index.json");
    std::fs::write(&index, format!("{{\"weight_map\": {{{}}}}}", map.join(","))).unwrap();
    same(&config, &tensors, &dir);
    std::fs::remove_file(dir.join("model-00002-of-00002.safetensors")).unwrap();
    let text = Checkpoint::open(&dir).unwrap_err().to_string();
    assert!(text.contains("model-00002-of-00002.safetensors"), "{text}");
    std::fs::write(&index, "{\"weight_map\": {\"a\": \"../up.safetensors\"}}").unwrap();
    assert!(Checkpoint::open(&dir).unwrap_err().to_string().contains("../up"));
}

#[test]
fn every_fault_is_in_one_error() {
    let (config, mut tensors) = read_all("tiny-b");
    let dir = folder("faults");
    tensors.remove("multi_modal_projector.linear_1.bias").unwrap();
    let norm = tensors.remove("language_model.model.norm.weight").unwrap();
    tensors.insert("language_model.model.extra.weight".into(), norm);
    tensors.get_mut("vision_tower.encoder.layers.0.ls1").unwrap().1 = vec![8, 8];
    let bias = tensors.get_mut("multi_modal_projector.linear_2.bias").unwrap();
    (bias.0, bias.1) = (Dtype::I32, vec![64]);
    write(&dir.join("model.safetensors"), &tensors);
    let error = Checkpoint::load(&dir, &config).unwrap_err();
    let text = error.to_string();
    let Error::Weights { faults, .. } = error else { panic!("{text}") };
    assert_eq!(faults.len(), 5, "{text}");
    assert!(
        faults.contains(&WeightFault::Missing { name: "language_model.model.norm.weight".into(), shape: vec![64] })
    );
    assert!(text.contains("extra language_model.model.extra.weight [64]"), "{text}");
    assert!(text.contains("misshapen vision_tower.encoder.layers.0.ls1: [8, 8], want [64]"), "{text}");
    assert!(text.contains("dtype I32"), "{text}");
}

#[test]
fn what_may_be_extra_is_not_a_fault() {
    let (mut config, mut tensors) = read_all("tiny-c");
    let some = tensors["language_model.model.norm.weight"].clone();
    for name in [
        "vision_tower.vision_model.post_layernorm.weight",
        "vision_tower.vision_model.head.probe",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    ] {
        tensors.insert(name.into(), some.clone());
    }
    let dir = folder("extras");
    write(&dir.join("model.safetensors"), &tensors);
    Checkpoint::load(&dir, &config).unwrap();
    config.text.tied = true;
    Checkpoint::load(&dir, &config).unwrap();
}

#[test]
fn other_precisions_are_read() {
    let dir = folder("dtypes");
    let f16 = [1.5f32, -2.0].map(|x| half::f16::from_f32(x).to_le_bytes()).concat();
    let bf16 = [1.5f32, f32::NAN].map(|x| half::bf16::from_f32(x).to_le_bytes()).concat();
    let f64 = [1.5f64, -2.0].map(f64::to_le_bytes).concat();
    let tensors = Tensors::from([
        ("h".into(), (Dtype::F16, vec![2], f16)),
        ("b".into(), (Dtype::BF16, vec![2], bf16)),
        ("d".into(), (Dtype::F64, vec![2], f64)),
    ]);
    write(&dir.join("a.safetensors"), &tensors);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!(checkpoint.tensor_f32("h").unwrap(), [1.5, -2.0]);
    assert_eq!(checkpoint.tensor_f32("d").unwrap(), [1.5, -2.0]);
    assert_eq!(checkpoint.bytes("h").unwrap().len(), 4);
    let text = checkpoint.check_finite("b", omchat_ir::Dtype::F32).unwrap_err().to_string();
    assert!(text.contains("b holds NaN at index 1 of 2"), "{text}");
    assert!(checkpoint.tensor_f32("nothing").is_err());
    let wide = [1.0f32, -66000.0].map(f32::to_le_bytes).concat();
    let dir = folder("wide");
    write(&dir.join("a.safetensors"), &Tensors::from([("w".into(), (Dtype::F32, vec![2], wide))]));
    let checkpoint = Checkpoint::open(&dir).unwrap();
    checkpoint.check_finite("w", omchat_ir::Dtype::Bf16).unwrap();
    let text = checkpoint.check_finite("w", omchat_ir::Dtype::F16).unwrap_err().to_string();
    assert!(text.contains("w holds -66000 at index 1 of 2, f16 holds at most 65504"), "{text}");
}

#[test]
fn broken_files_say_their_sizes() {
    let dir = folder("broken");
    let whole = std::fs::read(fixture("tiny-b/model.safetensors")).unwrap();
    let path = dir.join("model.safetensors");
    for cut in [0, 5, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let text = Checkpoint::open(&dir).unwrap_err().to_string();
        assert!(text.contains("model.safetensors") && text.contains(&format!("{cut} bytes")), "{text}");
    }
    std::fs::write(&path, [0xff; 64]).unwrap();
    assert!(matches!(Checkpoint::open(&dir), Err(Error::File { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(Checkpoint::open(&dir).unwrap_err().to_string().contains("no *.safetensors"));
}
