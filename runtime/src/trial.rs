//! Trials: a program's launches run again and again with nothing between them, for benches and for checks.
//!
//! [`Executable`](crate::Executable) uploads inputs and reads results at each run; a trial holds its operands on the
//! device, in as many copies as it takes for each run to find them outside the caches, and only waits.

use crate::device::Device;
use crate::faults;
use crate::launches::{Bindings, Joints, Launches, Ready, buffer, enqueue, launches, prepare};
use crate::{Error, HostTensor};
use cubecl::prelude::Client;
use cubecl::server::Handle;
use omchat_codegen::{Family, Place, Program, Work};
use omchat_ir::{Func, Mode, Module, Role, Tensor, interpret};
use omchat_kernels::Buffer;
use std::time::{Duration, Instant};

/// Most copies of the operands.
const COPIES: usize = 64;
/// How long a card works before it is timed where nothing holds its clocks: Vulkan lets them fall while a kernel is compiled.
const CLOCKS: Duration = Duration::from_millis(150);

/// How long runs took.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    /// Seconds a run of each sample, sorted.
    pub seconds: Vec<f64>,
}

impl Times {
    /// The middle sample.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The distance between the first and the third quartile, as a share of the median.
    pub fn spread(&self) -> f64 {
        (self.quantile(0.75) - self.quantile(0.25)) / self.median().max(f64::MIN_POSITIVE)
    }

    /// The shortest.
    pub fn best(&self) -> f64 {
        self.quantile(0.0)
    }

    fn quantile(&self, share: f64) -> f64 {
        let last = self.seconds.len().saturating_sub(1);
        self.seconds.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

/// How long to sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Samples at the least, whatever they take.
    pub least: usize,
    /// Samples at the most.
    pub most: usize,
    /// When to stop between the two.
    pub time: Duration,
    /// The least that one sample takes: runs between two waits are as many as that needs.
    pub sample: Duration,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { least: 5, most: 101, time: Duration::from_millis(400), sample: Duration::from_millis(2) }
    }
}

/// What a launch read and what it made of it.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Index into `Program::chosen`.
    pub chosen: usize,
    /// What lay in its operands before.
    pub operands: Vec<HostTensor>,
    /// What lay in its results before, where the work adds to it; else nothing.
    pub before: Vec<HostTensor>,
    /// What lay in its results after; NaN (or -1) where it wrote nothing.
    pub results: Vec<HostTensor>,
}

/// A program with its operands on a device, ready to be timed.
pub struct Trial {
    body: Body,
}

enum Body {
    Interpreted { module: Box<Module>, entry: Func, operands: Vec<Tensor> },
    Compiled(Box<Compiled>),
}

struct Compiled {
    client: Client,
    device: String,
    program: Program,
    prepared: Vec<Ready>,
    joints: Joints,
    /// The buffers of each launch, for each copy of the operands.
    copies: Vec<Launches>,
    /// The results that are no state, of the first copy.
    results: Vec<Buffer>,
    next: usize,
    /// Whether the device is a card whose clocks nothing holds.
    idles: bool,
}

impl Trial {
    /// A module's entry on the interpreter, on those operands.
    ///
    /// Errors: faults of the module.
    pub fn interpreted(module: &Module, entry: Func, operands: &[HostTensor]) -> Result<Trial, Error> {
        module.verify()?;
        let operands = operands.iter().map(HostTensor::to_tensor).collect();
        Ok(Trial { body: Body::Interpreted { module: Box::new(module.clone()), entry, operands } })
    }

    /// A program on a device, on one operand a parameter. `cold` rotates copies that exceed the device's caches.
    ///
    /// Errors: `OutOfMemory` if one copy does not fit; a kernel that cannot be made ready; the interpreter, which has no
    /// programs.
    pub fn new(device: &Device, program: Program, operands: &[HostTensor], cold: bool) -> Result<Trial, Error> {
        let Device::Cube { client, target } = device else {
            return Err(Error::NoDevice { name: "interp".into(), reason: "the interpreter runs no programs".into() });
        };
        let need = program.peak_bytes() as u64;
        if let Some(have) = device.free_bytes().filter(|have| need > *have) {
            let what = format!("@{} and its operands", program.name);
            return Err(Error::OutOfMemory { what, need, have, device: device.name().into() });
        }
        let count = if cold { copies_of(need, cache_bytes(target.family), device.free_bytes()) } else { 1 };
        let prepared = prepare(client, device.name(), &program)?;
        let joints = Joints::of(&program, &prepared)?;
        let (mut copies, mut results) = (vec![], vec![]);
        for _ in 0..count {
            let (launches, out) = buffers(client, &program, operands)?;
            copies.push(launches);
            results = if copies.len() == 1 { out } else { results };
        }
        let device = device.name().to_string();
        Ok(Trial {
            body: Body::Compiled(Box::new(Compiled {
                client: client.clone(),
                device,
                program,
                prepared,
                joints,
                copies,
                results,
                next: 0,
                idles: target.family == Family::Wgpu && !target.software,
            })),
        })
    }

    /// The program, where there is one.
    pub fn program(&self) -> Option<&Program> {
        match &self.body {
            Body::Interpreted { .. } => None,
            Body::Compiled(c) => Some(&c.program),
        }
    }

    /// Runs that many times and waits for the device.
    ///
    /// Errors: what the device or the interpreter answers.
    pub fn run(&mut self, times: usize) -> Result<(), Error> {
        match &mut self.body {
            Body::Interpreted { module, entry, operands } => {
                for _ in 0..times {
                    interpret(module, *entry, vec![operands.clone()], Mode::Typed)?;
                }
                Ok(())
            }
            Body::Compiled(c) => c.run(times),
        }
    }

    /// Samples of runs, after some that compile and warm.
    ///
    /// Errors: as [`Trial::run`].
    pub fn time(&mut self, budget: &Budget) -> Result<Times, Error> {
        self.run(1)?;
        let mut one = f64::MAX;
        let begun = Instant::now();
        while one == f64::MAX || begun.elapsed() < self.warming() {
            let start = Instant::now();
            self.run(1)?;
            one = start.elapsed().as_secs_f64().max(1e-9);
        }
        let batch = (budget.sample.as_secs_f64() / one).ceil().clamp(1.0, 4096.0) as usize;
        let mut seconds = vec![];
        let begun = Instant::now();
        while seconds.len() < budget.least.max(1) || (begun.elapsed() < budget.time && seconds.len() < budget.most) {
            let start = Instant::now();
            self.run(batch)?;
            seconds.push(start.elapsed().as_secs_f64() / batch as f64);
        }
        seconds.sort_unstable_by(f64::total_cmp);
        Ok(Times { seconds })
    }

    fn warming(&self) -> Duration {
        match &self.body {
            Body::Compiled(c) if c.idles => CLOCKS,
            _ => Duration::ZERO,
        }
    }

    /// Runs once and yields the results that are no state.
    ///
    /// Errors: as [`Trial::run`].
    pub fn outcome(&mut self) -> Result<Vec<HostTensor>, Error> {
        match &mut self.body {
            Body::Interpreted { module, entry, operands } => {
                let f = module.function(*entry);
                let mut out = interpret(module, *entry, vec![operands.clone()], Mode::Typed)?.pop().unwrap_or_default();
                out.truncate(f.results.len() - f.states());
                Ok(out.iter().map(HostTensor::from_tensor).collect())
            }
            Body::Compiled(c) => {
                c.next = 0;
                c.run(1)?;
                let ports: Vec<usize> =
                    c.program.results.iter().filter(|r| r.role != Role::State).map(|r| r.buffer).collect();
                let mut out = c.read(&ports, &c.results)?;
                for (t, r) in out.iter_mut().zip(c.program.results.iter().filter(|r| r.role != Role::State)) {
                    t.ty = r.ty.clone();
                }
                Ok(out)
            }
        }
    }

    /// Runs once, launch by launch, and shows what the first launch of each kernel read and wrote, one at a time: together
    /// they may be more than the host holds. Nothing for the interpreter, which is the judge.
    ///
    /// Errors: as [`Trial::run`], and whatever `see` answers, which ends the run.
    pub fn examine<E: From<Error>>(&mut self, see: &mut dyn FnMut(Examined) -> Result<(), E>) -> Result<(), E> {
        match &mut self.body {
            Body::Interpreted { .. } => Ok(()),
            Body::Compiled(c) => c.examine(see),
        }
    }
}

impl Compiled {
    fn run(&mut self, times: usize) -> Result<(), Error> {
        let mut queued = 0;
        for _ in 0..times {
            let buffers = &self.copies[self.next];
            enqueue(&self.client, &self.program, &self.prepared, &self.joints, buffers, &mut queued)?;
            self.next = (self.next + 1) % self.copies.len();
        }
        self.wait()
    }

    fn wait(&self) -> Result<(), Error> {
        cubecl::future::block_on(self.client.sync()).map_err(|e| self.failed(format!("{e:?}")))?;
        match faults::take() {
            Some(message) => Err(self.failed(message)),
            None => Ok(()),
        }
    }

    fn examine<E: From<Error>>(&self, see: &mut dyn FnMut(Examined) -> Result<(), E>) -> Result<(), E> {
        let mut seen = vec![false; self.program.chosen.len()];
        for (l, buffers) in self.program.launches.iter().zip(&self.copies[0]) {
            let Bindings { operands, results, .. } = buffers;
            let new = !std::mem::replace(&mut seen[l.chosen], true);
            let read = if new { self.read(&l.operands, operands)? } else { vec![] };
            let adds = new && matches!(self.program.chosen[l.chosen].work, Work::ScatterAdd { .. });
            let before = if adds { self.read(&l.results, results)? } else { vec![] };
            self.prepared[l.chosen].launch(&self.client, &self.program, buffers)?;
            if new {
                let results = self.read(&l.results, results)?;
                // What went wrong is this launch's, not that of whoever looks.
                self.wait()?;
                see(Examined { chosen: l.chosen, operands: read, before, results })?;
            }
        }
        Ok(self.wait()?)
    }

    fn read(&self, plans: &[usize], buffers: &[Buffer]) -> Result<Vec<HostTensor>, Error> {
        let one = |(b, from): (&usize, &Buffer)| {
            let ty = self.program.buffers[*b].ty.clone();
            let bytes = self.client.read_one(from.handle.clone()).map_err(|e| self.failed(format!("{e:?}")))?;
            let bytes = bytes.get(..ty.bytes()).unwrap_or_default().to_vec();
            Ok(HostTensor { ty, bytes })
        };
        plans.iter().zip(buffers).map(one).collect()
    }

    fn failed(&self, message: String) -> Error {
        Error::Device { device: self.device.clone(), message: message.chars().take(600).collect() }
    }
}

/// One copy of a program's memory, by launch, and its results: parameters as given, the arena poisoned.
fn buffers(client: &Client, program: &Program, operands: &[HostTensor]) -> Result<(Launches, Vec<Buffer>), Error> {
    let slabs: Vec<Handle> =
        program.slabs.iter().map(|bytes| client.create_from_slice(&vec![0xff; (*bytes).max(1)])).collect();
    let mut held: Vec<Option<Handle>> = vec![None; program.buffers.len()];
    for (i, p) in program.params.iter().enumerate() {
        let given = operands.get(i).map(|t| t.in_dtype(p.ty.dtype));
        let fits = given.as_ref().is_some_and(|t| t.ty == p.ty);
        let Some(t) = given.as_ref().filter(|_| fits) else {
            let have = given.map_or("nothing".to_string(), |t| t.ty.to_string());
            let (name, entry) = (p.name.clone(), program.name.clone());
            return Err(Error::WrongType { name, entry, want: p.ty.to_string(), have });
        };
        held[p.buffer] = Some(client.create_from_slice(&t.words()));
    }
    // Memory that the caller would hold and no parameter names.
    for (b, plan) in program.buffers.iter().enumerate().filter(|(_, plan)| plan.place == Place::Own) {
        held[b].get_or_insert_with(|| client.empty(plan.ty.bytes().max(1)));
    }
    let ports = program.results.iter().filter(|r| r.role != Role::State);
    let results = ports.map(|r| buffer(program, r.buffer, &held, &slabs)).collect::<Result<_, _>>()?;
    Ok((launches(program, &held, &slabs)?, results))
}

/// Copies that together take twice the caches, but no more than a quarter of what is free.
fn copies_of(bytes: u64, cache: u64, free: Option<u64>) -> usize {
    let bytes = bytes.max(1);
    let wanted = (2 * cache).div_ceil(bytes) + 1;
    let room = free.map_or(u64::MAX, |f| f / 4 / bytes);
    usize::try_from(wanted.min(room)).unwrap_or(COPIES).clamp(1, COPIES)
}

/// Bytes of the last cache: as the system tells for the CPU, more than any card of today has elsewhere.
fn cache_bytes(family: Family) -> u64 {
    const USUAL: u64 = 64 << 20;
    if family != Family::Cpu {
        return USUAL;
    }
    let told = |level: u32| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{level}/size")).ok()?;
        text.trim().strip_suffix('K')?.parse::<u64>().ok().map(|k| k << 10)
    };
    told(3).or_else(|| told(2)).unwrap_or(USUAL).min(USUAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_and_its_spread() {
        let t = Times { seconds: vec![1.0, 2.0, 3.0, 4.0, 8.0] };
        assert_eq!((t.best(), t.median()), (1.0, 3.0));
        assert!((t.spread() - 2.0 / 3.0).abs() < 1e-12);
        assert!(Times { seconds: vec![] }.median().is_nan());
    }

    #[test]
    fn copies_exceed_the_caches_and_leave_room() {
        assert_eq!(copies_of(1 << 20, 8 << 20, None), 17);
        assert_eq!(copies_of(64 << 20, 8 << 20, None), 2);
        assert_eq!(copies_of(1, 8 << 20, None), COPIES);
        assert_eq!(copies_of(64 << 20, 8 << 20, Some(128 << 20)), 1);
    }
}
