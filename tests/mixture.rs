//! The search over a trunk and its branches against the same steps taken by hand, also where it was cut off; token
//! selection by losses that a reference model left on disk.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::training::{Source, folder, tiny};
use omchat::training::{Supply, TrainOptions, Watched, mix, score, train};
use omchat::{AdamW, Batch, Device, Error, Select, Snapshot, TrainSpec, Trainer};
use omchat_ir::Dtype;
use omchat_recipe::Recipe;
use omchat_recipe::mixture::{Branch, Plan};
use serde_json::Value;
use std::path::Path;

fn recipe(extra: &str) -> Recipe {
    let text = format!(
        r#"
        model = "{}"
        [data.drawn]
        path = "nowhere"
        layout = "text"
        labels = "pretrain"
        [mixture]
        parts = 3
        decay = 0.3
        [mixture.held_out.one]
        path = "nowhere"
        layout = "text"
        labels = "pretrain"
        [mixture.held_out.other]
        path = "nowhere"
        layout = "text"
        labels = "pretrain"
        [[stage]]
        name = "tune"
        context = 48
        mix = {{ drawn = 100 }}
        train = {{ decoder = 1e-3 }}
        steps = 9
        checkpoint_every = 2
        {extra}
        "#,
        tiny().dir.display()
    );
    let recipe = Recipe::parse(&text).unwrap();
    recipe.check().unwrap();
    recipe
}

fn cpu() -> Device {
    Device::open("cpu").unwrap()
}

fn search(out: &Path, supply: &mut dyn Supply) -> Result<Vec<Branch>, Error> {
    mix(&recipe(""), &cpu(), out, supply, &mut |_| {})
}

#[test]
fn trunk_and_branches_are_the_steps_that_they_say() {
    let dir = folder("mix");
    let branches = search(&dir, &mut Source::default()).unwrap();
    let told: Vec<(usize, u64, u64, u64)> =
        branches.iter().map(|b| (b.part, b.trunk_steps, b.steps, b.tokens)).collect();
    assert_eq!(told, [(1, 3, 1, 4 * 48), (2, 6, 2, 8 * 48), (3, 9, 3, 12 * 48)]);
    assert!(branches.iter().all(|b| b.losses.len() == 2 && b.mean().is_finite()));

    // By hand: six steps at 1e-3, then two more over the packs that follow, at 1e-3 and half of it.
    let model = tiny();
    let stage = recipe("").stages[0].clone();
    let mut packs = Source::default().open(&stage, None).unwrap();
    let spec =
        TrainSpec { parts: vec![omchat::Part::Decoder], ..TrainSpec::whole(omchat::ForwardSpec::text(stage.context)) };
    let mut trainer = Trainer::new(&model, cpu(), Dtype::F32, &spec, &mut |_| {}).unwrap();
    for lr in [1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 5e-4] {
        let batch = Batch::packed(&model, &packs.pack().unwrap(), model.config.text.rope_theta, 0, false).unwrap();
        let adamw = AdamW { lr: [0.0, 0.0, lr], clip: 1.0, ..AdamW::default() };
        trainer.step(&batch, &adamw).unwrap();
    }
    let want = trainer.snapshot(&Snapshot::default()).unwrap().weights;
    let have = omchat::Model::open(&dir.join("part-2/stages/tune-part-2").to_string_lossy()).unwrap();
    for (name, want) in &want {
        assert!(have.checkpoint.tensor_f32(name).unwrap() == *want, "{name} is not what eight steps by hand make");
    }
    let text = std::fs::read_to_string(dir.join("table.md")).unwrap();
    assert_eq!(text.lines().count(), 5, "{text}");
    assert_eq!(text.matches("best").count(), 1, "{text}");

    // Cut off at every few packs and run again: the same table.
    let cut = folder("mix-cut");
    // As a kill leaves it while a branch forks.
    std::fs::create_dir_all(cut.join("part-2/checkpoints/.part-1")).unwrap();
    let mut tries = 0;
    let again = loop {
        tries += 1;
        match search(&cut, &mut Source { left: Some(2), ..Source::default() }) {
            Ok(branches) => break branches,
            Err(e) => assert!(e.to_string().contains("cut off"), "{e}"),
        }
        assert!(tries < 20);
    };
    assert!(tries > 2, "it was never cut off");
    assert_eq!(again, branches);

    // What is there was made by that recipe.
    let mut other = recipe("");
    other.stages[0].train.insert("decoder".into(), 1e-4);
    let e = mix(&other, &cpu(), &cut, &mut Source::default(), &mut |_| {}).unwrap_err().to_string();
    assert!(e.contains("recipe.stage[0].train.decoder was 0.001, it is 0.0001"), "{e}");
}

#[test]
fn plans_that_make_no_sense_are_refused() {
    let mut r = recipe("");
    r.stages[0].steps = Some(2);
    let e = Plan::new(&r).unwrap_err().to_string();
    assert!(e.contains("3 parts of 2 steps"), "{e}");
    r = recipe("");
    let held = r.mixture.as_mut().unwrap().held_out.remove("one").unwrap();
    r.data.insert("other".into(), held);
    let e = Plan::new(&r).unwrap_err().to_string();
    assert!(e.contains("`other` is trained on and held out"), "{e}");
    r.mixture = None;
    assert!(Plan::new(&r).unwrap_err().to_string().contains("no [mixture]"));
}

#[test]
fn a_selection_trains_on_what_a_reference_scored() {
    let reference = folder("scored");
    let text = format!("select = {{ reference = \"{}\", ratio = 0.6 }}", reference.display());
    let recipe = recipe(&text);
    let (stage, device) = (&recipe.stages[0], cpu());
    let mut supply = Source::default();
    let scored = score(&recipe, stage, &tiny(), &device, &reference, &mut supply, &mut |_| {}).unwrap();
    assert!(scored.documents == 18 && scored.tokens > 60 && scored.mean > 1.0, "{scored:?}");
    let run = |out: &Path, supply: &mut Source| {
        let kept = Some(out.with_extension("kept"));
        let options = TrainOptions { out: out.into(), resume: false, until: None, kept, world: None };
        let trunk = Recipe { mixture: None, ..recipe.clone() };
        train(&trunk, &device, &options, supply, &mut |_: Watched| {})
    };
    let dir = folder("selected");
    let told = dir.with_extension("kept");
    let _ = std::fs::remove_file(&told);
    run(&dir, &mut supply).unwrap();
    let told = std::fs::read_to_string(&told).unwrap();
    let told: Vec<Value> = told.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(told.len(), 18);
    let log = std::fs::read_to_string(dir.join("log.jsonl")).unwrap();
    let lines: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 9);
    for (i, line) in lines.iter().enumerate() {
        let labelled = line["labelled"].as_u64().unwrap();
        assert_eq!(line["kept"].as_u64().unwrap(), (6 * labelled).div_ceil(10), "{line}");
        let here = told.iter().filter(|t| t["step"] == line["step"]);
        let kept = here.flat_map(|t| t["kept"].as_array().unwrap()).filter(|k| k.as_bool().unwrap()).count();
        assert_eq!(line["kept"].as_u64().unwrap(), kept as u64);
        let s = &line["scores"];
        let shares: f64 = ["tied", "loose", "odd"].iter().map(|k| s[k].as_f64().unwrap()).sum();
        assert!((shares - 1.0).abs() < 1e-9, "{s}");
        // Before the first step the model is its own reference: every score is near 0.
        if i == 0 {
            assert_eq!(s["loose"].as_f64().unwrap(), 1.0, "{s}");
        }
    }
    // Where kept tokens are told is seen to before the first step.
    let (kept, nowhere) = (Some(folder("no-such-folder").join("kept.jsonl")), folder("unwritten"));
    let options = TrainOptions { out: nowhere.clone(), resume: false, until: None, kept, world: None };
    let trunk = Recipe { mixture: None, ..recipe.clone() };
    let e = train(&trunk, &device, &options, &mut Source::default(), &mut |_: Watched| {}).unwrap_err().to_string();
    assert!(e.contains("cannot write") && e.contains("kept.jsonl") && !nowhere.join("checkpoints").exists(), "{e}");
    let mut plain = trunk.clone();
    plain.stages[0].select = None;
    let options = TrainOptions { kept: Some(dir.join("kept")), ..options };
    let e = train(&plain, &device, &options, &mut Source::default(), &mut |_: Watched| {}).unwrap_err().to_string();
    assert!(e.contains("no stage has `select`"), "{e}");
    // So small a share keeps nothing.
    let model = tiny();
    let batch = Batch::packed(&model, &supply.open(stage, None).unwrap().pack().unwrap(), 1e4, 0, false).unwrap();
    let how = Select { ratio: 4e-5, ..Select::default() };
    let e = batch.selected(&vec![0.0; stage.context], &how).unwrap_err().to_string();
    assert!(e.contains("0.00004") && e.contains("from 0.0001"), "{e}");
    // Data that was not scored.
    let other = &mut Source { seed: 900, ..Source::default() };
    let e = run(&folder("unscored"), other).unwrap_err().to_string();
    assert!(e.contains("not scored") || e.contains("were scored"), "{e}");
}
