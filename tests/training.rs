//! Training by a recipe: packed sequences are each sequence alone, parts of a step are the whole step, a run that was
//! stopped goes on as if it had not been, and what cannot be used is refused.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::training::{IGNORE, Source, document, folder, packed, tiny};
use omchat::training::{Outcome, Replay, TrainOptions, Watched, replay, train};
use omchat::{AdamW, Batch, Begin, Device, Error, ForwardSpec, Model, Part, Snapshot, TrainSpec, Trainer, Weigh};
use omchat_ir::Dtype;
use omchat_recipe::schedule::Schedule;
use omchat_recipe::stage::Start;
use omchat_recipe::{Pack, Recipe, Stage};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn spec(t: usize, tiles: usize) -> TrainSpec {
    TrainSpec::whole(ForwardSpec { tiles, ..ForwardSpec::text(t) })
}

fn labelled(p: &Pack) -> usize {
    p.labels.iter().filter(|l| **l != IGNORE).count()
}

/// One step of each of two ways, from the same weights; both losses, and the largest difference of weights after it.
fn close(what: &str, device: &Device, a: (&mut Trainer, f32), b: (&mut Trainer, f32)) {
    let off = (a.1 - b.1).abs() / b.1.abs();
    assert!(off < 2e-6, "{what} on {}: losses {} and {}", device.name(), a.1, b.1);
    let (x, y) = (a.0.snapshot(&Snapshot::default()).unwrap(), b.0.snapshot(&Snapshot::default()).unwrap());
    assert_eq!(x.weights.len(), y.weights.len());
    let mut worst = 0f32;
    for (name, [m, _]) in &x.moments {
        let n = &y.moments[name][0];
        let top = n.iter().fold(0f32, |a, x| a.max(x.abs())).max(1e-7);
        worst = m.iter().zip(n).fold(worst, |a, (m, n)| a.max((m - n).abs() / top));
    }
    assert!(worst < 2e-4, "{what} on {}: gradients differ by {worst:.1e} of the largest", device.name());
    println!("{what} on {}: losses differ by {off:.1e}, gradients by {worst:.1e}", device.name());
}

fn devices() -> Vec<Device> {
    vec![Device::Interp, Device::open("cpu").unwrap()]
}

/// Two documents in one pack are the two alone, and two parts of one step: loss, and every gradient.
#[test]
fn a_pack_is_its_documents_and_a_step_its_parts() {
    let model = tiny();
    let theta = model.config.text.rope_theta;
    let per = model.tokens_per_tile();
    let adamw = AdamW { lr: [1e-3; 3], ..AdamW::default() };
    let mut rng = StdRng::seed_from_u64(11);
    let (a, b) = (document(&mut rng, 13, 1, per, 1), document(&mut rng, 7, 0, per, 1));
    let t = 64;
    for examples in [false, true] {
        let both = packed(&model, &[&a, &b], t, 0);
        let alone = [packed(&model, &[&a], t, 0), packed(&model, &[&b], t, 0)];
        let total = (labelled(&alone[0]) + labelled(&alone[1])) as f64;
        let shares: Vec<f64> = alone.iter().map(|p| if examples { 0.5 } else { labelled(p) as f64 / total }).collect();
        let weigh = if examples { Weigh::Examples { most: 4 } } else { Weigh::Tokens };
        let spec = TrainSpec { weigh, ..spec(t, 1) };
        for device in devices() {
            let mut whole = Trainer::new(&model, device.clone(), Dtype::F32, &spec, &mut |_| {}).unwrap();
            let batch = |p: &Pack| Batch::packed(&model, p, theta, 1, examples).unwrap();
            let one = whole.step(&batch(&both), &adamw).unwrap();
            let from = Snapshot::default();
            let begin = Begin { dtype: Dtype::F32, parts: true, from: &from, ranks: None };
            let mut parts = Trainer::resume(&model, device.clone(), &spec, &begin, &mut |_| {}).unwrap();
            let mut each = alone.iter().map(batch).zip(shares.clone()).map(Ok);
            let two = parts.step_of(&mut each, &adamw).unwrap();
            assert!((one.norm - two.norm).abs() < 1e-4 * one.norm, "norms {} and {}", one.norm, two.norm);
            let what = if examples { "by examples" } else { "by tokens" };
            close(what, &device, (&mut whole, one.loss), (&mut parts, two.loss));
        }
    }
}

fn recipe(rate: &str) -> Recipe {
    let text = format!(
        r#"
        model = "{}"
        [data.drawn]
        path = "nowhere"
        layout = "text"
        labels = "pretrain"
        [[stage]]
        name = "projector"
        context = 48
        tiles = 1
        mix = {{ drawn = 100 }}
        train = {{ projector = 1e-3 }}
        schedule = {{ kind = "cosine", warmup = 0.3 }}
        steps = 4
        checkpoint_every = 3
        [[stage]]
        name = "all"
        context = 64
        tiles = 1
        theta = 5e6
        mix = {{ drawn = 100 }}
        train = {{ vision = 1e-4, projector = 1e-3, decoder = {rate} }}
        weigh = "examples"
        batch_tokens = 128
        steps = 5
        checkpoint_every = 2
        "#,
        tiny().dir.display()
    );
    let recipe = Recipe::parse(&text).unwrap();
    recipe.check().unwrap();
    recipe
}

fn run(recipe: &Recipe, out: &Path, resume: bool, until: Option<u64>) -> Result<(Outcome, Vec<String>), Error> {
    let options = TrainOptions { out: out.into(), resume, until, kept: None, world: None };
    let mut notes = vec![];
    let mut watch = |w: Watched| {
        if let Watched::Note(n) = w {
            notes.push(n);
        }
    };
    let device = Device::open("cpu").unwrap();
    let outcome = train(recipe, &device, &options, &mut Source::default(), &mut watch)?;
    Ok((outcome, notes))
}

/// What a log tells of each step, without what a clock had a say in.
fn curve(out: &Path) -> Vec<(u64, String, String, String, String)> {
    let text = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
    text.lines()
        .map(|l| {
            let v: Value = serde_json::from_str(l).unwrap();
            let s = |k: &str| v[k].to_string();
            (v["step"].as_u64().unwrap(), s("stage"), s("loss"), s("norm"), s("lr"))
        })
        .collect()
}

#[test]
fn a_stopped_run_goes_on_as_if_it_had_not_been() {
    let recipe = recipe("1e-3");
    let whole = folder("whole");
    let (outcome, _) = run(&recipe, &whole, false, None).unwrap();
    assert_eq!(outcome.steps, 9);
    let want = curve(&whole);
    assert_eq!(want.iter().map(|l| l.0).collect::<Vec<_>>(), (1..=9).collect::<Vec<_>>());
    for stops in [vec![1], vec![4], vec![2, 5, 6], vec![8]] {
        let dir = folder(&format!("stopped-{}", stops[0]));
        for (i, stop) in stops.iter().enumerate() {
            let (outcome, _) = run(&recipe, &dir, i > 0, Some(*stop)).unwrap();
            assert_eq!((outcome.steps, outcome.model), (*stop, None));
        }
        run(&recipe, &dir, true, None).unwrap();
        assert_eq!(curve(&dir), want, "stopped at {stops:?}");
        let model = |d: &Path| std::fs::read(d.join("stages/all/model.safetensors")).unwrap();
        assert!(model(&dir) == model(&whole), "stopped at {stops:?}: other weights");
    }
    // The model opens, says what its rotary base became, and what was not trained in stage 1 is the model's own.
    let trained = Model::open(&whole.join("stages/all").to_string_lossy()).unwrap();
    assert_eq!(trained.config.text.rope_theta, 5e6);
    let first = Model::open(&whole.join("stages/projector").to_string_lossy()).unwrap();
    let (own, embed) = (tiny(), "language_model.model.embed_tokens.weight");
    assert_eq!(first.checkpoint.tensor_f32(embed).unwrap(), own.checkpoint.tensor_f32(embed).unwrap());
    assert_ne!(trained.checkpoint.tensor_f32(embed).unwrap(), own.checkpoint.tensor_f32(embed).unwrap());
}

#[test]
fn a_damaged_checkpoint_is_refused_and_the_one_before_serves() {
    let recipe = recipe("1e-3");
    let dir = folder("damaged");
    run(&recipe, &dir, false, Some(8)).unwrap();
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(dir.join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    assert_eq!(all.len(), 2, "{all:?}");
    // What says where the run was is refused as well.
    let head = all[1].join("run.json");
    let text = std::fs::read_to_string(&head).unwrap();
    for (was, is) in
        [("\"adam_steps\": 4", "\"adam_steps\": 5"), ("\"feed\": 8", "\"feed\": 7"), ("2\": \"", "2\": \"0")]
    {
        let (was, is) = (was.to_string(), is.to_string());
        assert!(text.contains(&was), "{was}: {text}");
        std::fs::write(&head, text.replacen(&was, &is, 1)).unwrap();
        let found = omchat::training::newest(&dir).unwrap().unwrap();
        let why = &found.refused[0];
        assert!(found.path == all[0] && why.contains("run.json is damaged") && why.contains("00000008"), "{why}");
    }
    std::fs::write(&head, text).unwrap();
    assert_eq!(omchat::training::newest(&dir).unwrap().unwrap().path, all[1]);
    let state = all[1].join("state.safetensors");
    let mut bytes = std::fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&state, &bytes).unwrap();
    // What a killed run leaves behind is no checkpoint.
    std::fs::create_dir_all(dir.join("checkpoints/.part-1")).unwrap();
    let (_, notes) = run(&recipe, &dir, true, None).unwrap();
    assert!(
        notes.iter().any(|n| n.contains(&state.parent().unwrap().display().to_string()) && n.contains("CRC-32")),
        "{notes:?}"
    );
    assert!(notes.iter().any(|n| n.contains("resumed at step 6")), "{notes:?}");
    assert_eq!(curve(&dir).len(), 9);
    assert!(!dir.join("checkpoints/.part-1").exists());
    // Two processes do not write into one folder.
    let other = std::fs::File::create(dir.join(".lock")).unwrap();
    other.lock().unwrap();
    let e = run(&recipe, &dir, true, None).unwrap_err().to_string();
    assert!(e.contains("another process trains into"), "{e}");
    drop(other);
    for path in std::fs::read_dir(dir.join("checkpoints")).unwrap().map(|e| e.unwrap().path()) {
        std::fs::write(path.join("run.json"), "{").unwrap();
    }
    let e = run(&recipe, &dir, true, None).unwrap_err().to_string();
    assert!(e.contains("no checkpoint is usable") && e.contains("run.json"), "{e}");
}

/// Where moments are kept, a part that begins to train moves by its rate at its first step, while the others go on; a part
/// that paused begins anew.
#[test]
fn kept_moments_count_the_steps_of_their_own_part() {
    let mut recipe = recipe("1e-3");
    let stage = recipe.stages[0].clone();
    let train = |parts: &[(&str, f64)]| parts.iter().map(|(p, rate)| ((*p).to_string(), *rate)).collect();
    let of = |name: &str, parts, steps| Stage {
        name: name.into(),
        train: train(parts),
        steps: Some(steps),
        optimizer: Start::Kept,
        schedule: Schedule::default(),
        keep: (1..=steps).collect(),
        ..stage.clone()
    };
    recipe.adamw.clip = 1e9;
    recipe.stages = vec![
        of("first", &[("decoder", 1e-3)], 9),
        of("second", &[("projector", 2e-3), ("decoder", 1e-3)], 2),
        of("third", &[("projector", 2e-3)], 1),
        of("fourth", &[("projector", 2e-3), ("decoder", 1e-3)], 1),
    ];
    let dir = folder("kept");
    let steps = |projector, decoder| {
        let all = [(Part::Projector, projector), (Part::Decoder, decoder)];
        all.into_iter().filter(|(_, n)| *n > 0).collect::<BTreeMap<Part, u64>>()
    };
    let mut held: Vec<Snapshot> = vec![];
    for (until, want) in
        [(9, steps(0, 9)), (10, steps(1, 10)), (11, steps(2, 11)), (12, steps(3, 0)), (13, steps(4, 1))]
    {
        run(&recipe, &dir, until > 9, Some(until)).unwrap();
        let found = omchat::training::newest(&dir).unwrap().unwrap();
        assert_eq!((found.place.step, &found.snapshot.steps), (until, &want));
        held.push(found.snapshot);
    }
    let (new, old) = ("multi_modal_projector.linear_1.weight", "language_model.model.layers.0.mlp.up_proj.weight");
    let own = tiny();
    let first = |s: &Snapshot, name: &str| match s.weights.get(name) {
        Some(x) => x.clone(),
        None => own.checkpoint.tensor_f32(name).unwrap().to_vec(),
    };
    // The largest move: an element whose gradient is not near eps moves by the rate at step 1.
    let moved = |a: usize, b: usize, name: &str| {
        let (a, b) = (first(&held[a], name), first(&held[b], name));
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max)
    };
    for (what, moved, rate) in [
        ("the projector's first step", moved(0, 1, new), 2e-3),
        ("the decoder's first step after its pause", moved(3, 4, old), 1e-3),
    ] {
        assert!((moved / rate - 1.0).abs() < 0.01, "{what} moves by {moved}, its rate is {rate}");
    }

    // A checkpoint from before parts had steps of their own: one number for every part that has moments.
    let head = dir.join("checkpoints/00000011/run.json");
    let mut old: Value = serde_json::from_slice(&std::fs::read(&head).unwrap()).unwrap();
    for field in ["part_steps", "run_crc32"] {
        assert!(old.as_object_mut().unwrap().remove(field).is_some());
    }
    old["adam_steps"] = 7.into();
    std::fs::write(&head, old.to_string()).unwrap();
    for later in ["00000012", "00000013"] {
        std::fs::remove_dir_all(dir.join("checkpoints").join(later)).unwrap();
    }
    assert_eq!(omchat::training::newest(&dir).unwrap().unwrap().snapshot.steps, steps(7, 7));
}

/// A recipe that got a stage more, with data of its own, goes on from the run that it was begun with.
#[test]
fn a_run_goes_on_with_stages_that_were_added() {
    let whole = recipe("1e-3");
    let mut first = whole.clone();
    first.stages.truncate(1);
    let (one, two) = (folder("in-one-go"), folder("added"));
    run(&whole, &one, false, None).unwrap();
    for until in [Some(2), None] {
        run(&first, &two, until.is_none(), until).unwrap();
    }
    let mut more = whole.clone();
    more.data.insert("other".into(), more.data["drawn"].clone());
    assert_eq!(run(&more, &two, true, None).unwrap().0.steps, 9);
    assert_eq!(curve(&two), curve(&one));
    let model = |d: &Path| std::fs::read(d.join("stages/all/model.safetensors")).unwrap();
    assert!(model(&two) == model(&one), "other weights");
    // Less is another recipe.
    let e = run(&first, &two, true, None).unwrap_err().to_string();
    assert!(e.contains("was made by another recipe: recipe.data.other was"), "{e}");
}

#[test]
fn a_model_is_stored_in_the_element_type_that_the_recipe_names() {
    let mut recipe = recipe("1e-3");
    recipe.stages[1].steps = Some(2);
    let (single, half) = (folder("single"), folder("half"));
    run(&recipe, &single, false, None).unwrap();
    recipe.save_dtype = Some("f16".into());
    run(&recipe, &half, false, None).unwrap();
    let open = |d: &Path| Model::open(&d.join("stages/all").to_string_lossy()).unwrap();
    let (want, have) = (open(&single), open(&half));
    for name in want.checkpoint.names() {
        assert!(have.checkpoint.stored(name).unwrap().iter().all(|p| p.dtype == safetensors::Dtype::F16), "{name}");
        let want = want
            .checkpoint
            .tensor_f32(name)
            .unwrap()
            .iter()
            .map(|x| half::f16::from_f32(*x).to_f32())
            .collect::<Vec<_>>();
        assert_eq!(*have.checkpoint.tensor_f32(name).unwrap(), *want, "{name}");
    }
    let config = std::fs::read_to_string(half.join("stages/all/config.json")).unwrap();
    assert!(config.contains("\"torch_dtype\": \"float16\""), "{config}");
    // How it is stored is no part of what the run comes to: a finished run is stored again.
    recipe.save_dtype = Some("bf16".into());
    run(&recipe, &half, true, None).unwrap();
    let name = "multi_modal_projector.linear_1.weight";
    assert_eq!(open(&half).checkpoint.stored(name).unwrap()[0].dtype, safetensors::Dtype::BF16);

    recipe.stages.truncate(1);
    recipe.stages[0].steps = Some(1);
    recipe.stages[0].train.insert("projector".into(), 1e6);
    recipe.save_dtype = Some("f16".into());
    let e = run(&recipe, &folder("large"), false, None).unwrap_err().to_string();
    assert!(e.contains("multi_modal_projector") && e.contains("more than f16 holds") && e.contains("bf16"), "{e}");
    recipe.save_dtype = Some("f8".into());
    let e = run(&recipe, &folder("unknown"), false, None).unwrap_err().to_string();
    assert!(e.contains("`f8`") && e.contains("bf16"), "{e}");
}

/// A model that was put in another's place is not gone on with.
#[test]
fn a_run_does_not_go_on_with_another_model() {
    let model = folder("replaced-model");
    std::fs::create_dir_all(&model).unwrap();
    for entry in std::fs::read_dir(tiny().dir).unwrap().map(|e| e.unwrap()).filter(|e| e.path().is_file()) {
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let mut recipe = recipe("1e-3");
    recipe.model = model.display().to_string();
    let dir = folder("replaced");
    let (_, notes) = run(&recipe, &dir, true, Some(1)).unwrap();
    assert!(notes.iter().any(|n| n.contains("nothing to resume in") && n.contains("first step")), "{notes:?}");
    let weights = model.join("model.safetensors");
    let own = std::fs::read(&weights).unwrap();
    let mut other = own.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, &other).unwrap();
    let e = run(&recipe, &dir, true, Some(2)).unwrap_err().to_string();
    assert!(e.contains("was made from another model") && e.contains(&recipe.model), "{e}");
    std::fs::write(&weights, &own).unwrap();
    run(&recipe, &dir, true, Some(2)).unwrap();
}

#[test]
fn what_cannot_be_resumed_or_trained_is_refused() {
    let dir = folder("refused");
    let mut other = recipe("1e-3");
    run(&other, &dir, false, Some(2)).unwrap();
    let e = run(&other, &dir, false, None).unwrap_err().to_string();
    assert!(e.contains("--resume") && e.contains("step 2"), "{e}");
    other.stages[1].steps = Some(6);
    let e = run(&other, &dir, true, None).unwrap_err().to_string();
    assert!(e.contains("recipe.stage[1].steps was 5, it is 6"), "{e}");
    other = recipe("1e-3");
    other.stages[0].ring = 4;
    let e = run(&other, &folder("ring"), false, None).unwrap_err().to_string();
    assert!(e.contains("ring of 4"), "{e}");
}

/// Every file below a folder, with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let below =
        |p: PathBuf| if p.is_dir() { files(&p) } else { BTreeMap::from([(p.clone(), std::fs::read(&p).unwrap())]) };
    entries.flat_map(below).collect()
}

fn again(recipe: &Recipe, out: &Path, step: u64) -> Result<Replay, Error> {
    replay(recipe, &Device::open("cpu").unwrap(), out, step, &mut Source::default(), &mut |_| {})
}

/// A step that fails fails again when it is replayed, from the checkpoint and from the beginning, and says where; with a
/// rate that a healthy run has it is the healthy run's step.
#[test]
fn a_run_that_diverges_keeps_the_batch_and_replays_it() {
    let dir = folder("diverged");
    let e = run(&recipe("1e30"), &dir, false, None).unwrap_err();
    let Error::Diverged { what, value, step, ref batch, .. } = e else { panic!("{e}") };
    assert!(step > 5, "{e}");
    let kept: Vec<String> =
        std::fs::read_dir(batch).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(
        kept.contains(&format!("step-{step}-0.safetensors")) && kept.contains(&format!("step-{step}-1.json")),
        "{kept:?}"
    );
    assert!(e.to_string().contains(&format!("at step {step}")), "{e}");

    let before = files(&dir);
    let bad = again(&recipe("1e30"), &dir, step).unwrap();
    assert!(bad.from.as_ref().is_some_and(|p| p.ends_with("checkpoints/00000004")), "{:?}", bad.from);
    assert_eq!((bad.again, bad.stage.as_str(), &bad.differs), (step - 5, "all", &None));
    let Err((again_what, again_value)) = bad.came else { panic!("finite when replayed: {bad:?}") };
    assert_eq!((again_what, again_value.to_bits()), (what, value.to_bits()));
    assert!(bad.documents.iter().any(|d| d.broken > 0) || bad.gradients.iter().any(|n| n.broken.0 > 0), "{bad:?}");
    // Two packs of two documents a step; of stage 2 the data begin anew.
    let records: Vec<(usize, u64)> = bad.documents.iter().map(|d| (d.pack, d.whence.origin.record)).collect();
    let first = 4 * (step - 5);
    assert_eq!(records, [(0, first), (0, first + 1), (1, first + 2), (1, first + 3)]);

    let whole = folder("diverged-not");
    run(&recipe("1e-3"), &whole, false, None).unwrap();
    let good = again(&recipe("1e-3"), &dir, step).unwrap();
    assert!(good.finite() && good.differs.as_ref().is_some_and(|d| d.contains("train.decoder")), "{good:?}");
    let (loss, norm) = good.came.unwrap();
    let line = &curve(&whole)[step as usize - 1];
    assert_eq!((loss, norm), (line.2.parse().unwrap(), line.3.parse().unwrap()));
    // The stage weighs examples alike, so the step's loss is the mean of theirs; parts' norms make up the whole norm.
    let each: Vec<f32> = good.documents.iter().filter_map(|d| d.loss).collect();
    let mean = each.iter().sum::<f32>() / each.len() as f32;
    assert!(good.documents.iter().all(|d| d.broken == 0) && (mean - loss).abs() < 1e-5 * loss, "{mean} for {loss}");
    let parts = good.gradients.iter().map(|n| n.norm.powi(2)).sum::<f32>().sqrt();
    assert!(good.gradients.len() == 3 && (parts - norm).abs() < 1e-4 * norm, "{parts} for {norm}");
    assert!(good.gradients.iter().all(|n| n.broken.0 == 0 && n.tensor.1 <= n.norm * 1.0001), "{good:?}");
    assert!(files(&dir) == before, "a replay writes nothing");

    let e = again(&recipe("1e-3"), &dir, step + 1).unwrap_err().to_string();
    assert!(e.contains(&format!("of steps: {step}")), "{e}");
    // A recipe with other steps does not say where the checkpoint is.
    let mut shorter = recipe("1e-3");
    shorter.stages[0].steps = Some(3);
    let e = again(&shorter, &dir, step).unwrap_err().to_string();
    assert!(e.contains("the steps of the run's recipe"), "{e}");
    std::fs::remove_dir_all(dir.join("checkpoints")).unwrap();
    let far = again(&recipe("1e-3"), &dir, step).unwrap();
    assert_eq!((far.from, far.again, far.came.unwrap()), (None, step - 1, (loss, norm)));
    let told = batch.join(format!("step-{step}-1.json"));
    std::fs::write(&told, std::fs::read_to_string(&told).unwrap().replace("64", "65").replace("positions", "places"))
        .unwrap();
    assert!(again(&recipe("1e-3"), &dir, step).unwrap_err().to_string().contains("positions"));
}

/// The event file read by the rules of its format: lengths add up, and each step's loss is the log's.
#[test]
fn event_files_hold_what_the_log_holds() {
    let dir = folder("events");
    run(&recipe("1e-3"), &dir, false, Some(4)).unwrap();
    let find = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path());
    let path = find.into_iter().find(|p| p.to_string_lossy().contains("tfevents")).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let mut at = 0;
    let mut losses = vec![];
    while at < bytes.len() {
        let n = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let event = &bytes[at + 12..at + 12 + n];
        if let Some(i) = event.windows(6).position(|w| w == b"\x0a\x04loss") {
            assert_eq!(event[i + 6], 0x15);
            losses.push(f32::from_le_bytes(event[i + 7..i + 11].try_into().unwrap()));
        }
        at += 12 + n + 4;
    }
    assert_eq!(at, bytes.len());
    let want: Vec<f32> = curve(&dir).iter().map(|l| l.2.parse().unwrap()).collect();
    assert_eq!(losses, want);
}
