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
    let (config, mut scale) = bench::usual(&device);
    scale.dtypes.retain(|(a, w)| device.target().holds(*a) && device.target().holds(*w));
    let mut group = criterion.benchmark_group("kernels");
    group.sample_size(20);
    for case in bench::cases(&config, &scale) {
        let lowered = bench::lower(&case, &device)?;
        let (mut trial, amount) = bench::trial(&case, &lowered, &device, true)?;
        group.throughput(match amount.flops {
            0 => Throughput::Bytes(amount.bytes()),
            flops => Throughput::ElementsAndBytes { elements: flops, bytes: amount.bytes() },
        });
        let mut failed = None;
        group.bench_function(&case.name, |b| {
            b.iter_custom(|times| {
                let start = Instant::now();
                failed = trial.run(times as usize).err().or(failed.take());
                start.elapsed()
            })
        });
        if let Some(e) = failed {
            return Err(e.into());
        }
    }
    group.finish();
    Ok(())
}
