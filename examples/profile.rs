//! Where a decode step and a prompt chunk spend their time, launch by launch, summed by kernel.
//!
//! `cargo run --example profile -- MODEL DEVICE TOKENS CAPACITY [FILLED]`
#![allow(clippy::unwrap_used)]

use omchat::{Device, Engine, EngineOptions, Model};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn main() -> Result<(), omchat::Error> {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize, usual: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(usual);
    let model = Model::open(args.get(1).map_or("mini", String::as_str))?;
    let device = Device::open(args.get(2).map_or("cpu", String::as_str))?;
    let engine = Engine::load(model, device, &EngineOptions::default(), &mut |_| {})?;
    let (tokens, capacity) = (number(3, 1), number(4, 4352));
    let filled = number(5, 0);
    for round in 0..3 {
        let start = Instant::now();
        let timings = engine.profile(tokens, capacity, filled)?;
        println!("round {round}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        if round == 2 {
            let mut by: BTreeMap<(String, &str), (Duration, usize)> = BTreeMap::new();
            for t in timings {
                let label = t
                    .label
                    .split(',')
                    .next()
                    .unwrap_or_default()
                    .trim_end_matches(|c: char| c.is_ascii_digit() || c == '.')
                    .to_string();
                let e = by.entry((label, t.kernel)).or_default();
                e.0 += t.took;
                e.1 += 1;
            }
            let mut rows: Vec<_> = by.into_iter().collect();
            rows.sort_by_key(|r| std::cmp::Reverse(r.1.0));
            for ((label, kernel), (took, n)) in rows {
                println!("{:>9.2} ms {n:>4} x {kernel:<16} {label}", took.as_secs_f64() * 1e3);
            }
        }
    }
    Ok(())
}
