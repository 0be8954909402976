//! Samples: batches of runs long enough for the clock.

use crate::Fault;
use std::time::Instant;

/// Seconds that a sample takes at the least.
const SAMPLE: f64 = 0.002;

/// Work that can be run again and again.
pub trait Work {
    /// Runs it `runs` times and yields the seconds of one.
    fn seconds(&mut self, runs: usize) -> Result<f64, Fault>;
    /// How it is run, if that needs saying.
    fn note(&self) -> Option<String> {
        None
    }
}

/// How long to sample.
pub struct Budget {
    /// Samples at the least.
    pub least: usize,
    /// When to stop after those.
    pub time_s: f64,
}

/// Seconds a run, sample by sample, after one run that does not count.
pub fn samples(work: &mut dyn Work, budget: &Budget) -> Result<Vec<f64>, Fault> {
    let one = work.seconds(1)?.max(1e-9);
    let runs = (SAMPLE / one).ceil().max(1.0) as usize;
    let start = Instant::now();
    let mut out = vec![];
    while out.len() < budget.least || start.elapsed().as_secs_f64() < budget.time_s {
        out.push(work.seconds(runs)?);
    }
    Ok(out)
}

/// Copies of operands of that many bytes that together exceed the cache.
pub fn copies(bytes: usize, cache_bytes: usize) -> usize {
    (2 * cache_bytes).div_ceil(bytes.max(1)).clamp(1, 64)
}
