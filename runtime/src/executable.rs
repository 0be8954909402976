//! Executables: a program made ready on a device, run as often as wanted.

use crate::Error;
use crate::device::Device;
use crate::faults;
use crate::host::HostTensor;
use crate::store::{Store, Stored};
use cubecl::prelude::Client;
use cubecl::server::Handle;
use omchat_codegen::{Context, Kernel, Pass, Place, Program, Target, Unit, compile_with};
use omchat_ir::{Func, Mode, Module, Role, Tensor, Type, interpret};
use omchat_kernels::{Args, Buffer, LIST, Prepared, by_name};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Launches that CubeCL's CPU client queues before it makes the host wait.
const QUEUE: usize = 32;

/// A program ready on a device. Threads may share it; their runs take turns.
pub struct Executable {
    body: Body,
}

/// How long a launch took.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// The values that it yields.
    pub label: String,
    /// Its kernel.
    pub kernel: &'static str,
    /// From the launch to its results.
    pub took: Duration,
}

enum Body {
    Interpreted { module: Box<Module>, entry: Func },
    Compiled(Box<Compiled>),
}

struct Compiled {
    client: Client,
    program: Program,
    /// One a chosen kernel, with its metadata on the device.
    prepared: Vec<(Prepared, Buffer)>,
    slabs: Vec<Handle>,
    /// Held during a run: the arena serves one at a time, and each thread has a stream of its own.
    turn: Mutex<()>,
}

/// A parameter as the caller must feed it.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// The name, without `%`.
    pub name: String,
    /// Dtype and shape on the device.
    pub ty: Type,
    /// Input, weight or state.
    pub role: Role,
}

/// The program of a module's entry for a device's facts, without touching the device.
///
/// Errors: what cannot be lowered.
pub fn program(module: &Module, entry: Func, target: &Target) -> Result<Program, Error> {
    program_with(module, entry, target, &mut |_, _| {})
}

/// As [`program`], and shows the module after each pass.
///
/// Errors: as [`program`].
pub fn program_with(
    module: &Module,
    entry: Func,
    target: &Target,
    after: &mut dyn FnMut(&Pass, &Unit),
) -> Result<Program, Error> {
    let kernels: Vec<&dyn Kernel> = LIST.iter().map(|k| *k as &dyn Kernel).collect();
    Ok(compile_with(module, entry, &Context { target, kernels: &kernels }, after)?)
}

impl Executable {
    /// Makes a module's entry ready on a device: lowers it, fixes its kernels and allocates its arena.
    ///
    /// Errors: what cannot be lowered; `OutOfMemory` if the arena does not fit.
    pub fn load(device: &Device, module: &Module, entry: Func) -> Result<Executable, Error> {
        Executable::load_with(device, module, entry, &mut |_, _| {})
    }

    /// As [`Executable::load`], and shows the module after each pass. The interpreter has none.
    ///
    /// Errors: as [`Executable::load`].
    pub fn load_with(
        device: &Device,
        module: &Module,
        entry: Func,
        after: &mut dyn FnMut(&Pass, &Unit),
    ) -> Result<Executable, Error> {
        let body = match device {
            Device::Interp => {
                module.verify()?;
                Body::Interpreted { module: Box::new(module.clone()), entry }
            }
            Device::Cube { client, target } => {
                let program = program_with(module, entry, target, after)?;
                Body::Compiled(Box::new(Compiled::load(device, client, program)?))
            }
        };
        Ok(Executable { body })
    }

    /// The program, where there is one: the interpreter has none.
    pub fn program(&self) -> Option<&Program> {
        match &self.body {
            Body::Interpreted { .. } => None,
            Body::Compiled(c) => Some(&c.program),
        }
    }

    /// The entry's parameters, in order.
    pub fn params(&self) -> Vec<Param> {
        match &self.body {
            Body::Interpreted { module, entry } => {
                let f = module.function(*entry);
                f.param_values()
                    .zip(&f.params)
                    .map(|(v, r)| Param { name: f.value(v).name.clone(), ty: f.ty(v).clone(), role: *r })
                    .collect()
            }
            Body::Compiled(c) => c
                .program
                .params
                .iter()
                .map(|p| Param { name: p.name.clone(), ty: p.ty.clone(), role: p.role })
                .collect(),
        }
    }

    /// Distinct kernels; a device compiles each at most once, at its first launch.
    pub fn kernels(&self) -> usize {
        self.program().map_or(0, |p| p.chosen.len())
    }

    /// Kernels that the device compiled for it so far; at most one for each of [`Executable::kernels`] and alignment of
    /// the buffers. Fewer where another program had compiled the same one.
    pub fn compilations(&self) -> usize {
        match &self.body {
            Body::Interpreted { .. } => 0,
            Body::Compiled(c) => c.prepared.iter().map(|(p, _)| p.compilations()).sum(),
        }
    }

    /// Bytes that a run holds on the device at once, as planned; nothing for the interpreter.
    pub fn planned_bytes(&self) -> Option<u64> {
        match &self.body {
            Body::Interpreted { .. } => None,
            Body::Compiled(c) => {
                let words: usize = c.prepared.iter().map(|(ready, _)| ready.meta().len() * 4).sum();
                Some((c.program.peak_bytes() + words) as u64)
            }
        }
    }

    /// Runs once, and says how many bytes the device holds while it does; nothing for the interpreter.
    ///
    /// The count is of everything on the device, other programs included.
    /// Errors: as [`Executable::run`].
    pub fn run_measured(
        &self,
        inputs: &[(&str, HostTensor)],
        store: &mut Store,
    ) -> Result<(Vec<HostTensor>, Option<u64>), Error> {
        match &self.body {
            Body::Interpreted { .. } => Ok((self.run(inputs, store)?, None)),
            Body::Compiled(c) => {
                let mut bytes = 0;
                let out = c.go(inputs, store, None, Some(&mut bytes))?;
                Ok((out, Some(bytes)))
            }
        }
    }

    /// Runs once. Weights and states come from `store`, where the states' next values are left.
    ///
    /// Yields the results that are no state, in order.
    /// Errors: `Missing` or `WrongType` for a parameter; `Device` if anything failed on the device.
    pub fn run(&self, inputs: &[(&str, HostTensor)], store: &mut Store) -> Result<Vec<HostTensor>, Error> {
        match &self.body {
            Body::Interpreted { module, entry } => self.interpreted(module, *entry, inputs, store),
            Body::Compiled(c) => c.run(inputs, store),
        }
    }

    /// Runs once and waits after each launch: how long each took, by the values it yields and its kernel.
    ///
    /// The sum exceeds a run's time by the waiting. The interpreter has no launches and yields nothing.
    /// Errors: as [`Executable::run`].
    pub fn timed(&self, inputs: &[(&str, HostTensor)], store: &mut Store) -> Result<Vec<Timing>, Error> {
        let mut timings = vec![];
        match &self.body {
            Body::Interpreted { .. } => drop(self.run(inputs, store)?),
            Body::Compiled(c) => drop(c.go(inputs, store, Some(&mut timings), None)?),
        }
        Ok(timings)
    }

    fn interpreted(
        &self,
        module: &Module,
        entry: Func,
        inputs: &[(&str, HostTensor)],
        store: &mut Store,
    ) -> Result<Vec<HostTensor>, Error> {
        let f = module.function(entry);
        let mut operands = vec![];
        for p in self.params() {
            let given = inputs.iter().find(|(n, _)| *n == p.name).map(|(_, t)| t);
            let tensor = match (p.role, given) {
                (Role::Input, Some(t)) => t.to_tensor(),
                (Role::Input, None) => return Err(missing(&p.name, &p.ty, &f.name)),
                _ => regrouped(store.tensor(&p.name).ok_or_else(|| missing(&p.name, &p.ty, &f.name))?, &p.ty),
            };
            check(&p.name, &p.ty, &tensor.ty, &f.name)?;
            operands.push(tensor);
        }
        let mut results = interpret(module, entry, vec![operands], Mode::Typed)?.pop().unwrap_or_default();
        let states: Vec<Param> = self.params().into_iter().filter(|p| p.role == Role::State).collect();
        let next = results.split_off(results.len() - states.len());
        for (p, t) in states.into_iter().zip(next) {
            store.put(&p.name, Stored::Host(t.into()));
        }
        Ok(results.iter().map(HostTensor::from_tensor).collect())
    }
}

/// A stored tensor in the shape of the parameter that reads it: the same elements in the same order.
fn regrouped(t: &Tensor, ty: &Type) -> Tensor {
    let same = t.ty.dtype == ty.dtype && t.ty.elements() == ty.elements();
    Tensor { ty: if same { ty.clone() } else { t.ty.clone() }, data: t.data.clone() }
}

fn missing(name: &str, want: &Type, entry: &str) -> Error {
    Error::Missing { name: name.into(), entry: entry.into(), want: want.to_string() }
}

fn check(name: &str, want: &Type, have: &Type, entry: &str) -> Result<(), Error> {
    if have == want {
        return Ok(());
    }
    Err(Error::WrongType { name: name.into(), entry: entry.into(), want: want.to_string(), have: have.to_string() })
}

/// The chosen kernels of a program, each with its metadata on the device.
///
/// Errors: a kernel that is not in the list, or that refuses what was chosen for it.
pub(crate) fn prepare(client: &Client, device: &str, program: &Program) -> Result<Vec<(Prepared, Buffer)>, Error> {
    let mut prepared = vec![];
    for c in &program.chosen {
        let kernel = by_name(c.kernel)
            .ok_or_else(|| Error::Device { device: device.into(), message: format!("no kernel {}", c.kernel) })?;
        let ready = kernel.prepare(&c.work, &c.schedule)?;
        let meta = Buffer {
            handle: client.create_from_slice(bytemuck::cast_slice(ready.meta())),
            elements: ready.meta().len(),
        };
        prepared.push((ready, meta));
    }
    Ok(prepared)
}

impl Compiled {
    fn load(device: &Device, client: &Client, program: Program) -> Result<Compiled, Error> {
        let need: u64 = program.slabs.iter().map(|s| *s as u64).sum();
        if let Some(have) = device.free_bytes().filter(|have| need > *have) {
            return Err(Error::OutOfMemory {
                what: format!("the arena of @{}", program.name),
                need,
                have,
                device: device.name().into(),
            });
        }
        let slabs = program.slabs.iter().map(|bytes| client.empty(*bytes)).collect();
        let prepared = prepare(client, device.name(), &program)?;
        Ok(Compiled { client: client.clone(), program, prepared, slabs, turn: Mutex::new(()) })
    }

    fn run(&self, inputs: &[(&str, HostTensor)], store: &mut Store) -> Result<Vec<HostTensor>, Error> {
        self.go(inputs, store, None, None)
    }

    fn go(
        &self,
        inputs: &[(&str, HostTensor)],
        store: &mut Store,
        mut timings: Option<&mut Vec<Timing>>,
        held_bytes: Option<&mut u64>,
    ) -> Result<Vec<HostTensor>, Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held: Vec<Option<Handle>> = vec![None; self.program.buffers.len()];
        for p in &self.program.params {
            let entry = &self.program.name;
            held[p.buffer] = Some(match p.role {
                Role::Input => {
                    let (_, t) =
                        inputs.iter().find(|(n, _)| *n == p.name).ok_or_else(|| missing(&p.name, &p.ty, entry))?;
                    let t = t.in_dtype(p.ty.dtype);
                    check(&p.name, &p.ty, &t.ty, entry)?;
                    self.client.create_from_slice(&t.bytes)
                }
                Role::Weight | Role::State => {
                    let (ty, handle) = store.handle(&p.name).ok_or_else(|| missing(&p.name, &p.ty, entry))?;
                    if ty.dtype != p.ty.dtype || ty.elements() != p.ty.elements() {
                        check(&p.name, &p.ty, ty, entry)?;
                    }
                    handle.clone()
                }
            });
        }
        let buffer = |b: &usize| self.buffer(*b, &held);
        for (at, l) in self.program.launches.iter().enumerate() {
            let operands: Vec<Buffer> = l.operands.iter().map(buffer).collect();
            let results: Vec<Buffer> = l.results.iter().map(buffer).collect();
            let (ready, meta) = &self.prepared[l.chosen];
            let start = Instant::now();
            ready.launch(&self.client, &Args { operands: &operands, results: &results, meta })?;
            if let Some(timings) = timings.as_deref_mut() {
                let touched: Vec<Handle> = results.iter().map(|b| b.handle.clone()).collect();
                cubecl::future::block_on(self.client.sync_buffers(touched.iter()))
                    .map_err(|e| self.failed(format!("{e:?}")))?;
                timings.push(Timing {
                    label: l.label.clone(),
                    kernel: self.program.chosen[l.chosen].kernel,
                    took: start.elapsed(),
                });
            } else if (at + 1) % QUEUE == 0 {
                self.client.flush().map_err(|e| self.failed(format!("{e:?}")))?;
            }
        }
        if let Some(bytes) = held_bytes {
            *bytes = crate::device::bytes_in_use(&self.client);
        }
        let wanted: Vec<_> = self.program.results.iter().filter(|r| r.role != Role::State).collect();
        let mut out = vec![];
        for r in wanted {
            let bytes =
                self.client.read_one(self.buffer(r.buffer, &held).handle).map_err(|e| self.failed(format!("{e:?}")))?;
            out.push(HostTensor { ty: r.ty.clone(), bytes: bytes[..r.ty.bytes()].to_vec() });
        }
        match faults::take() {
            Some(message) => Err(self.failed(message)),
            None => Ok(out),
        }
    }

    fn buffer(&self, b: usize, held: &[Option<Handle>]) -> Buffer {
        let plan = &self.program.buffers[b];
        let handle = match (plan.place, &held[b]) {
            (_, Some(h)) => h.clone(),
            (Place::Arena { slab, offset }, None) => {
                let h = &self.slabs[slab];
                let end = self.program.slabs[slab] - offset - plan.ty.bytes();
                h.clone().offset_start(offset as u64).offset_end(end as u64)
            }
            (Place::Own, None) => self.slabs[0].clone(),
        };
        Buffer { handle, elements: plan.ty.elements() }
    }

    fn failed(&self, message: String) -> Error {
        Error::Device { device: self.program.target.name.clone(), message: message.chars().take(600).collect() }
    }
}
