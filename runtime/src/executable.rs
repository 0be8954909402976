//! Executables: a program made ready on a device, run as often as wanted.

use crate::Error;
use crate::collective::World;
use crate::compiled::{Compiled, check, missing};
use crate::device::Device;
use crate::host::HostTensor;
use crate::store::{Store, Stored};
use omchat_codegen::{Context, Kernel, Pass, Program, Target, Tuned, Unit, compile_with};
use omchat_ir::{Func, Mode, Module, Role, Tensor, Type, interpret};
use omchat_kernels::LIST;
use std::time::Duration;

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
    program_tuned(module, entry, target, None, 1, after)
}

/// As [`program_with`], takes what was measured, and is one rank's of so many.
///
/// Errors: as [`program`].
pub fn program_tuned(
    module: &Module,
    entry: Func,
    target: &Target,
    tuned: Option<&Tuned>,
    ranks: usize,
    after: &mut dyn FnMut(&Pass, &Unit),
) -> Result<Program, Error> {
    let kernels: Vec<&dyn Kernel> = LIST.iter().map(|k| *k as &dyn Kernel).collect();
    Ok(compile_with(module, entry, &Context { target, kernels: &kernels, tuned, ranks }, after)?)
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
        Executable::load_tuned(device, module, entry, None, None, after)
    }

    /// As [`Executable::load_with`], takes what was measured, and is this rank's part of a run of several.
    ///
    /// Errors: as [`Executable::load`]; the interpreter, which runs all ranks in one process or none.
    pub fn load_tuned(
        device: &Device,
        module: &Module,
        entry: Func,
        tuned: Option<&Tuned>,
        world: Option<&World>,
        after: &mut dyn FnMut(&Pass, &Unit),
    ) -> Result<Executable, Error> {
        let ranks = world.map_or(1, World::ranks);
        let body = match device {
            Device::Interp if ranks > 1 => {
                let name = "interp".to_string();
                let reason = format!("it runs all {ranks} ranks in one process: take cpu, wgpu or cuda");
                return Err(Error::NoDevice { name, reason });
            }
            Device::Interp => {
                module.verify()?;
                Body::Interpreted { module: Box::new(module.clone()), entry }
            }
            Device::Cube { client, target } => {
                let program = program_tuned(module, entry, target, tuned, ranks, after)?;
                let world = world.filter(|_| ranks > 1).cloned();
                Body::Compiled(Box::new(Compiled::load(device, client, program, world)?))
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
            Body::Compiled(c) => c.compilations(),
        }
    }

    /// Runs that replayed a recording of the launches in place of making them.
    ///
    /// Where the device can (CUDA, WGPU), the third run with one store records them, and later ones replay.
    pub fn replays(&self) -> usize {
        match &self.body {
            Body::Interpreted { .. } => 0,
            Body::Compiled(c) => c.replays(),
        }
    }

    /// Bytes that a run holds on the device at once, as planned; nothing for the interpreter.
    pub fn planned_bytes(&self) -> Option<u64> {
        match &self.body {
            Body::Interpreted { .. } => None,
            Body::Compiled(c) => Some(c.planned_bytes()),
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
                let (out, bytes) = c.measured(inputs, store)?;
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

    /// Runs once more over the inputs of the run before, and waits: what the device alone takes. Where there is one, inputs are
    /// not written again, and results that are no state stay there.
    ///
    /// Errors: as [`Executable::run`].
    pub fn run_again(&self, inputs: &[(&str, HostTensor)], store: &mut Store) -> Result<(), Error> {
        match &self.body {
            Body::Interpreted { .. } => self.run(inputs, store).map(drop),
            Body::Compiled(c) => c.again(store),
        }
    }

    /// Runs once and waits after each launch: how long each took, by the values it yields and its kernel.
    ///
    /// The sum exceeds a run's time by the waiting. The interpreter has no launches and yields nothing.
    /// Errors: as [`Executable::run`].
    pub fn timed(&self, inputs: &[(&str, HostTensor)], store: &mut Store) -> Result<Vec<Timing>, Error> {
        match &self.body {
            Body::Interpreted { .. } => self.run(inputs, store).map(|_| vec![]),
            Body::Compiled(c) => c.timed(inputs, store),
        }
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
