//! Kernels on a device: run once to be judged, run often to be timed.

use super::drawn::{Draw, Instance};
use super::judge::Case;
use crate::faults;
use crate::host::HostTensor;
use crate::launches::QUEUE;
use cubecl::prelude::Client;
use omchat_codegen::{Schedule, Target};
use omchat_ir::{Dtype, Tensor, Type};
use omchat_kernels::{Args, Buffer, Launch, Prepared};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What lies around a buffer while it is judged: a write past its ends shows.
const GUARD: u8 = 0xee;
/// Bytes behind a buffer.
const BEHIND: usize = 64;
/// The least time that a sample takes: far above what the clock and the waiting cost.
const SAMPLE: Duration = Duration::from_millis(2);
/// Bytes of operands that launches of one sample walk through, so that small caches do not hold them all.
const WALK: usize = 64 << 20;

/// A device to run on.
pub(super) struct Clock<'a> {
    pub(super) client: &'a Client,
    pub(super) target: &'a Target,
}

/// A kernel fixed to its work, with its words on the device.
pub(super) struct Ready {
    prepared: Prepared,
    meta: Buffer,
    /// What it works in, and the whole with its guards.
    scratch: (Buffer, Buffer),
    /// Seconds of each sample.
    pub(super) samples: Vec<f64>,
    launches: usize,
}

impl Ready {
    /// The median of the samples.
    pub(super) fn median(&self) -> f64 {
        median(&self.samples)
    }
}

/// The middle of some numbers; infinite for none.
pub(super) fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::INFINITY)
}

/// Sets of operands and results, walked in turn.
pub(super) struct Sets(Vec<(Vec<Buffer>, Vec<Buffer>)>);

impl Clock<'_> {
    /// A kernel made ready for some work with that schedule.
    ///
    /// Errors: the kernel's own words.
    pub(super) fn ready(&self, kernel: &dyn Launch, instance: &Instance, schedule: &Schedule) -> Result<Ready, String> {
        let prepared = caught(|| kernel.prepare(&instance.work, schedule).map_err(|e| e.to_string()))?;
        let words = bytemuck::cast_slice(prepared.meta());
        let meta = Buffer { handle: self.client.create_from_slice(words), elements: prepared.meta().len() };
        // It holds anything when a launch begins: here floats that are none.
        let ty = Type::new(Dtype::F32, [prepared.scratch()]);
        let scratch = self.guarded(&HostTensor { bytes: vec![0xff; ty.bytes()], ty });
        Ok(Ready { prepared, meta, scratch, samples: vec![], launches: 0 })
    }

    /// Runs a kernel on a case between guards.
    ///
    /// Errors: what the device says; numbers that are not the wanted ones; a write outside the results.
    pub(super) fn judge(&self, kernel: &dyn Launch, case: &Case, schedule: &Schedule) -> Result<(), String> {
        let ready = self.ready(kernel, &case.instance, schedule)?;
        let up = |t: &Tensor| self.guarded(&HostTensor::from_tensor(t));
        let operands: Vec<(Buffer, Buffer)> = case.operands.iter().map(up).collect();
        let results: Vec<(Buffer, Buffer)> = case.before.iter().map(up).collect();
        let inner = |all: &[(Buffer, Buffer)]| all.iter().map(|(b, _)| b.clone()).collect::<Vec<_>>();
        self.launch(&ready, &inner(&operands), &inner(&results))?;
        let mut have = vec![];
        for ((_, whole), before) in results.iter().zip(&case.before) {
            let bytes = self.within("results", whole, before.ty.bytes())?;
            have.push(HostTensor { ty: before.ty.clone(), bytes }.to_tensor());
        }
        self.within("scratch memory", &ready.scratch.1, ready.prepared.scratch() * 4)?;
        faults::take().map_or(Ok(()), Err)?;
        case.check(&have, kernel.rounding())
    }

    /// A buffer at an offset in a larger one, as in an arena: what is bound, and the whole.
    fn guarded(&self, t: &HostTensor) -> (Buffer, Buffer) {
        let front = self.target.align;
        let mut bytes = vec![GUARD; front];
        bytes.extend(&t.bytes);
        // A device that packs halves binds whole words.
        bytes.resize(front + t.bytes.len().next_multiple_of(4) + BEHIND, GUARD);
        let whole = self.client.create_from_slice(&bytes);
        let handle = whole.clone().offset_start(front as u64).offset_end(BEHIND as u64);
        (Buffer { handle, elements: t.ty.elements() }, Buffer { handle: whole, elements: bytes.len() })
    }

    /// What a guarded buffer holds.
    ///
    /// Errors: what the device says; that its guards were written over.
    fn within(&self, what: &str, whole: &Buffer, size: usize) -> Result<Vec<u8>, String> {
        let bytes = self.client.read_one(whole.handle.clone()).map_err(|e| format!("{e:?}"))?;
        let front = self.target.align;
        let mut guards = bytes[..front].iter().chain(&bytes[front + size..front + size + BEHIND]);
        if guards.any(|b| *b != GUARD) {
            return Err(format!("it writes outside its {what}"));
        }
        Ok(bytes[front..front + size].to_vec())
    }

    fn launch(&self, ready: &Ready, operands: &[Buffer], results: &[Buffer]) -> Result<(), String> {
        let args = Args { operands, results, scratch: Some(&ready.scratch.0), meta: &ready.meta };
        caught(|| ready.prepared.launch(self.client, &args).map_err(|e| e.to_string()))
    }

    fn wait(&self) -> Result<(), String> {
        cubecl::future::block_on(self.client.sync()).map_err(|e| format!("{e:?}"))?;
        faults::take().map_or(Ok(()), Err)
    }

    /// Random operands of some work, in as many sets as it takes to leave small caches.
    pub(super) fn sets(&self, instance: &Instance) -> Sets {
        let count = (WALK / instance.bytes().max(1)).clamp(1, 8);
        let set = |n: usize| {
            let mut draw = Draw(n as u64 + 1);
            let operands = instance.operands.iter().map(|(t, r)| self.buffer(&draw.block(t, *r))).collect();
            let results = instance.results.iter().map(|t| self.buffer(&HostTensor::zeros(t.clone()))).collect();
            (operands, results)
        };
        Sets((0..count).map(set).collect())
    }

    fn buffer(&self, t: &HostTensor) -> Buffer {
        Buffer { handle: self.client.create_from_slice(&t.words()), elements: t.ty.elements() }
    }

    /// Compiles a kernel by a first launch, and finds how many launches make a sample by a second.
    ///
    /// Errors: what the device says.
    pub(super) fn warm(&self, ready: &mut Ready, sets: &Sets) -> Result<(), String> {
        let Some((operands, results)) = sets.0.first() else { return Ok(()) };
        self.launch(ready, operands, results)?;
        self.wait()?;
        let start = Instant::now();
        self.launch(ready, operands, results)?;
        self.wait()?;
        let once = start.elapsed().max(Duration::from_micros(1));
        ready.launches = (SAMPLE.as_secs_f64() / once.as_secs_f64()).ceil().clamp(1.0, 512.0) as usize;
        Ok(())
    }

    /// Takes one more sample of a kernel.
    ///
    /// Errors: what the device says.
    pub(super) fn sample(&self, ready: &mut Ready, sets: &Sets) -> Result<(), String> {
        self.wait()?;
        let start = Instant::now();
        for (n, (operands, results)) in (1..=ready.launches).zip(sets.0.iter().cycle()) {
            self.launch(ready, operands, results)?;
            if n % QUEUE == 0 {
                self.client.flush().map_err(|e| format!("{e:?}"))?;
            }
        }
        self.wait()?;
        ready.samples.push(start.elapsed().as_secs_f64() / ready.launches as f64);
        Ok(())
    }
}

/// A call into CubeCL, whose expansion panics on what it cannot compile.
fn caught<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(done) => done,
        Err(_) => Err(faults::take().unwrap_or_else(|| "it cannot be compiled for this device".into())),
    }
}
