//! `cargo bench --bench steps`: the work of `omchat bench prefill`, `decode`, `vision` and `train`, under the same names,
//! through criterion.
//!
//! `OMCHAT_BENCH_DEVICE` names the device; the best one that there is without it. The model is the one that
//! `omchat bench` takes there, with random weights.

use criterion::{Criterion, Throughput};
use omchat::{Device, bench};
use std::time::Instant;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    if let Err(e) = run(&mut criterion) {
        eprintln!("{e}");
        std::process::exit(1);
    }
    criterion.final_summary();
}

fn run(criterion: &mut Criterion) -> Result<(), omchat::Error> {
    let device = match std::env::var("OMCHAT_BENCH_DEVICE") {
        Ok(name) => Device::open(&name)?,
        Err(_) => Device::best()?.0,
    };
    // `-- --test` runs each once: a small model says as much, and at once.
    let (config, scale, name) = match std::env::args().any(|a| a == "--test") {
        true => (bench::small(), bench::Scale { tokens: 32, context: 64, ..bench::Scale::tiny() }, "small"),
        false => {
            let (config, scale) = bench::usual(&device);
            (config, scale, bench::usual_name(&device))
        }
    };
    let name = name.to_string();
    let whole =
        bench::Whole { name, config: &config, checkpoint: None, dtype: device.default_dtype(), device: &device };
    let mut group = criterion.benchmark_group("steps");
    group.sample_size(10);
    type Make<'a> = Box<dyn Fn() -> Result<bench::Step, omchat::Error> + 'a>;
    let steps: [Make; 4] = [
        Box::new(|| bench::prefill(&whole, scale.context)),
        Box::new(|| bench::decode(&whole, scale.context)),
        Box::new(|| bench::vision(&whole)),
        Box::new(|| bench::train(&whole, scale.tokens)),
    ];
    for make in steps {
        let mut step = make()?;
        group.throughput(Throughput::Elements(step.items.0 as u64));
        let name = step.row.name.clone();
        let mut failed = None;
        group.bench_function(name, |b| {
            b.iter_custom(|times| {
                let start = Instant::now();
                for _ in 0..times {
                    failed = step.run().err().or(failed.take());
                }
                start.elapsed()
            })
        });
        if let Some(e) = failed {
            return Err(e);
        }
    }
    group.finish();
    Ok(())
}
