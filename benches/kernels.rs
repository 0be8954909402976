//! `cargo bench --bench kernels`: the work of `omchat bench kernels`, under the same names, through criterion.
//!
//! `OMCHAT_BENCH_DEVICE` names the device; the best one that there is without it.

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
    // `-- --test` runs each once: small sizes say as much, and at once.
    let (config, mut scale) = match std::env::args().any(|a| a == "--test") {
        true => (bench::small(), bench::Scale::tiny()),
        false => bench::usual(&device),
    };
    scale.dtypes.retain(|(a, w)| device.target().holds(*a) && device.target().holds(*w));
    let mut group = criterion.benchmark_group("kernels");
    group.sample_size(20);
    for case in bench::cases(&config, &scale) {
        let lowered = bench::lower(&case, &device)?;
        let amount = lowered.program.as_ref().map(|p| bench::amount(p, &case)).transpose()?.unwrap_or_default();
        group.throughput(match amount.flops {
            0 => Throughput::Bytes(amount.bytes()),
            flops => Throughput::ElementsAndBytes { elements: flops, bytes: amount.bytes() },
        });
        // Operands are drawn and uploaded only for what the filter lets through.
        let (mut ready, mut failed) = (None, None);
        group.bench_function(&case.name, |b| {
            if ready.is_none() && failed.is_none() {
                match bench::trial(&case, &lowered, &device, true) {
                    Ok((trial, _)) => ready = Some(trial),
                    Err(e) => failed = Some(e),
                }
            }
            b.iter_custom(|times| {
                let start = Instant::now();
                if let Some(Err(e)) = ready.as_mut().map(|t| t.run(times as usize)) {
                    failed = Some(e.into());
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
