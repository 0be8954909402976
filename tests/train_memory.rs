//! What a training step holds: no T×V and no T×S buffer in the plan of a real model, a planner that keeps a budget,
//! and planned bytes that the devices confirm.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat::{AdamW, Batch, Begin, Device, ForwardSpec, Model, Recompute, Snapshot, TrainSpec, Trainer, plan_training};
use omchat_codegen::Target;
use omchat_ir::{Dtype, Func};
use omchat_model::graph::step_module;
use omchat_model::splice::splice;

/// A step of the mini model over 2,048 tokens: its decoder, 30 layers, 49,152 ids.
#[test]
fn a_step_of_mini_holds_neither_logits_nor_scores() {
    let config = omchat_model::presets::mini();
    let (tokens, vocab) = (2048, config.text.vocab);
    let forward = ForwardSpec { loss_tiles: 8, ..ForwardSpec::text(tokens) };
    for target in [Target::cpu(2), Target::wgpu()] {
        let spec = TrainSpec { recompute: Recompute::AllButAttention, ..TrainSpec::whole(forward) };
        let module = step_module(&config, &spec, Dtype::F32).unwrap();
        let program = omchat_runtime::program(&module, Func(module.functions.len() as u32 - 1), &target).unwrap();
        for b in &program.buffers {
            let holds = |n: usize| b.ty.shape.contains(&n);
            let tokens_by_tokens = b.ty.shape.iter().filter(|n| **n == tokens).count() > 1;
            assert!(!(holds(tokens) && holds(vocab)), "{}: a buffer of logits: {}", target.name, b.ty);
            assert!(!tokens_by_tokens, "{}: a buffer of scores: {}", target.name, b.ty);
            let largest = vocab * config.text.hidden;
            assert!(b.ty.elements() <= largest, "{}: {} is larger than any weight", target.name, b.ty);
        }
        // Gradients of all tensors, and a few buffers of the embedding's size: not one part of the logits after another.
        let (peak, weights) = (program.peak(), trained_bytes(&program));
        assert!(2 * peak.arena < 5 * weights, "{}: {peak}", target.name);
        println!("{}: {} launches, {} bytes", target.name, program.launches.len(), program.peak_bytes());
    }
    // In one part, the logits are there: the check above can fail.
    let spec = TrainSpec::whole(ForwardSpec::text(tokens));
    let module = step_module(&config, &spec, Dtype::F32).unwrap();
    let entry = Func(module.functions.len() as u32 - 1);
    let program = omchat_runtime::program(&module, entry, &Target::cpu(2)).unwrap();
    let logits = |b: &omchat_codegen::BufferPlan| b.ty.shape.contains(&tokens) && b.ty.shape.contains(&vocab);
    assert!(program.buffers.iter().any(logits));
}

/// Bytes of the trained tensors.
fn trained_bytes(program: &omchat_codegen::Program) -> usize {
    let trained = program.params.iter().filter(|p| p.role == omchat_ir::Role::State && !p.name.starts_with("adam."));
    trained.map(|p| p.ty.bytes()).sum()
}

fn model() -> Model {
    Model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-b")).unwrap()
}

fn text(model: &Model, tokens: usize) -> Batch {
    let vocab = model.config.text.vocab;
    let ids: Vec<i32> = (0..tokens).map(|i| (i * 31 % (vocab - 1)) as i32).collect();
    Batch::sequence(model, &splice(&ids, 0, 1, vocab).unwrap(), &ids, &[]).unwrap()
}

/// One test for all: what other programs hold at the same time would be counted too.
#[test]
fn planned_bytes_are_what_devices_hold() {
    let model = model();
    for name in ["cpu", "wgpu", "cuda"] {
        let device = match Device::open(name) {
            Ok(d) => d,
            Err(e) => {
                println!("skipped: memory of training on {name}: {e}");
                continue;
            }
        };
        let sizes: &[usize] = if name == "cpu" { &[16, 64, 192, 320, 512] } else { &[16, 192] };
        for &tokens in sizes {
            for recompute in [Recompute::Nothing, Recompute::Layers] {
                let forward = ForwardSpec { loss_tiles: 2, ..ForwardSpec::text(tokens) };
                let spec = TrainSpec { recompute, ..TrainSpec::whole(forward) };
                let mut trainer = Trainer::new(&model, device.clone(), Dtype::F32, &spec, &mut |_| {}).unwrap();
                let step = trainer.step(&text(&model, tokens), &AdamW::default()).unwrap();
                let m = step.memory.unwrap();
                let off = (m.actual as f64 / m.planned as f64 - 1.0).abs();
                println!(
                    "{name}: {tokens} tokens, recompute {}: {} planned, {} held, off by {:.2} %",
                    recompute.name(),
                    m.planned,
                    m.actual,
                    off * 100.0
                );
                assert!(off < 0.05, "{name}: {tokens} tokens: {m:?}");
            }
        }
        // Several packs a step: the program that adds gradients up and the one that applies them are there at once.
        let (tokens, dtype) = (192, Dtype::F32);
        let base = TrainSpec::whole(ForwardSpec::text(tokens));
        let plan = |budget| plan_training(&model.config, &base, dtype, true, &device.target(), budget);
        let most = plan(None).unwrap().bytes;
        let plan = plan(Some(most - 1)).unwrap();
        assert!(plan.bytes < most && !plan.tried.is_empty(), "{} bytes of {most}", plan.bytes);
        let begin = Begin { dtype, parts: true, from: &Snapshot::default(), ranks: None };
        let mut trainer = Trainer::resume(&model, device.clone(), &plan.spec, &begin, &mut |_| {}).unwrap();
        let batches = [0.5, 0.5].map(|share| Ok((text(&model, tokens), share)));
        let m = trainer.step_of(&mut batches.into_iter(), &AdamW::default()).unwrap().memory.unwrap();
        println!("{name}: two packs of {tokens} tokens: {} bytes of {most} planned: {m:?}", plan.bytes);
        for (what, bytes) in [("planned", m.planned), ("held", m.actual)] {
            let off = (bytes as f64 / plan.bytes as f64 - 1.0).abs();
            assert!(off < 0.02, "{name}: {bytes} bytes {what}, the planner said {}", plan.bytes);
        }
    }
}

#[test]
fn the_planner_keeps_its_budget() {
    let config = model().config;
    let base = TrainSpec::whole(ForwardSpec::text(1024));
    let target = Target::cpu(2);
    let plan = |budget| plan_training(&config, &base, Dtype::F32, false, &target, budget);
    let fastest = plan(None).unwrap();
    assert_eq!((fastest.spec.recompute, fastest.tried.len()), (Recompute::Nothing, 0));
    let mut budget = fastest.program.peak_bytes() as u64;
    let mut plans = 0;
    let least = loop {
        match plan(Some(budget)) {
            Ok(p) => {
                let peak = p.program.peak_bytes() as u64;
                assert!(peak <= budget, "{peak} bytes in a budget of {budget}");
                assert!(p.tried.iter().all(|(_, bytes)| *bytes > budget), "a faster plan fits {budget}");
                println!("{budget}: {} after {} tried", p.spec.recompute.name(), p.tried.len());
                plans += 1;
                budget = peak - 1;
            }
            Err(omchat::Error::Budget { need, have }) => {
                assert_eq!(have, budget);
                break need;
            }
            Err(e) => panic!("{e}"),
        }
    };
    assert!(plans >= 3, "{plans} plans");
    assert!(plan(Some(least)).is_ok(), "{least} bytes are what the error asks for");
}
