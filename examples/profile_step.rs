//! Where a training step spends its time, launch by launch, summed by kernel.
//!
//! `cargo run --example profile_step -- MODEL DEVICE TOKENS [LOSS_TILES] [MLP_TILES] [RECOMPUTE]`
#![allow(clippy::unwrap_used)]

use omchat::{AdamW, Batch, Device, ForwardSpec, Model, Recompute, TrainSpec, Trainer};
use omchat_ir::Dtype;
use omchat_model::splice::splice;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn main() -> Result<(), omchat::Error> {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize, usual: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(usual);
    let model = Model::open(args.get(1).map_or("mini", String::as_str))?;
    let device = Device::open(args.get(2).map_or("cpu", String::as_str))?;
    let tokens = number(3, 256);
    let vocab = model.config.text.vocab;
    let ids: Vec<i32> = (0..tokens).map(|i| ((i * 7919 + 13) % vocab) as i32).collect();
    let batch = Batch::sequence(&model, &splice(&ids, 0, 1, vocab)?, &ids, &[])?;
    let forward = ForwardSpec { loss_tiles: number(4, 1), mlp_tiles: number(5, 1), ..ForwardSpec::text(tokens) };
    let recompute = Recompute::ALL.into_iter().find(|r| Some(r.name()) == args.get(6).map(String::as_str));
    let spec = TrainSpec { recompute: recompute.unwrap_or_default(), ..TrainSpec::whole(forward) };
    let start = Instant::now();
    let mut trainer = Trainer::new(&model, device, Dtype::F32, &spec, &mut |_| {})?;
    println!("lowered and loaded in {:.1} s", start.elapsed().as_secs_f64());
    if let Some(program) = trainer.program() {
        print!("{}", program.peak());
    }
    for round in 0..2 {
        let start = Instant::now();
        let step = trainer.step(&batch, &AdamW::default())?;
        println!("step {round}: {:.2} s, loss {:.4}", start.elapsed().as_secs_f64(), step.loss);
    }
    let mut by: BTreeMap<(String, &str), (Duration, usize)> = BTreeMap::new();
    for t in trainer.timed(&batch, &AdamW::default())? {
        let label = t.label.split(',').next().unwrap_or_default();
        let label = label.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.').to_string();
        let e = by.entry((label, t.kernel)).or_default();
        e.0 += t.took;
        e.1 += 1;
    }
    let mut rows: Vec<_> = by.into_iter().collect();
    rows.sort_by_key(|r| std::cmp::Reverse(r.1.0));
    for ((label, kernel), (took, n)) in rows.into_iter().take(40) {
        println!("{:>9.2} ms {n:>4} x {kernel:<20} {label}", took.as_secs_f64() * 1e3);
    }
    Ok(())
}
