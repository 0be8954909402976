//! A program's launches: kernels prepared, where each buffer lies, and how launches are queued.

use crate::Error;
use cubecl::prelude::Client;
use cubecl::server::Handle;
use omchat_codegen::{Collective, LaunchPlan, Place, Program, Work};
use omchat_kernels::{Args, Buffer, Chain, Horizontal, LaunchError, Prepared, by_name};
use std::ops::Range;

/// Launches that CubeCL's CPU client queues before it makes the host wait.
pub(crate) const QUEUE: usize = 32;

/// What a launch binds.
pub(crate) struct Bindings {
    pub(crate) operands: Vec<Buffer>,
    pub(crate) results: Vec<Buffer>,
    pub(crate) scratch: Option<Buffer>,
}

/// What each launch binds.
pub(crate) type Launches = Vec<Bindings>;

/// What was chosen for a piece of work, made ready.
pub(crate) enum Ready {
    /// A kernel, with its metadata on the device.
    Kernel(Prepared, Buffer),
    /// Ranks meet.
    Collective(Collective),
}

impl Ready {
    /// Words of its metadata.
    pub(crate) fn words(&self) -> usize {
        match self {
            Ready::Kernel(ready, _) => ready.meta().len(),
            Ready::Collective(_) => 0,
        }
    }

    /// The kernel, unless ranks meet.
    pub(crate) fn kernel(&self) -> Option<&Prepared> {
        match self {
            Ready::Kernel(ready, _) => Some(ready),
            Ready::Collective(_) => None,
        }
    }

    /// Kernels that the device compiled for it.
    pub(crate) fn compilations(&self) -> usize {
        match self {
            Ready::Kernel(ready, _) => ready.compilations(),
            Ready::Collective(_) => 0,
        }
    }

    /// Launches on the device that it takes.
    pub(crate) fn launches(&self) -> usize {
        match self {
            Ready::Kernel(ready, _) => ready.steps().len(),
            Ready::Collective(_) => 0,
        }
    }

    /// Launches a kernel.
    ///
    /// Errors: a collective, in which one rank alone cannot meet; what the device answers.
    pub(crate) fn launch(
        &self,
        client: &Client,
        program: &Program,
        Bindings { operands, results, scratch }: &Bindings,
    ) -> Result<(), Error> {
        match self {
            Ready::Kernel(ready, meta) => {
                let args = Args { operands, results, scratch: scratch.as_ref(), meta };
                Ok(ready.launch(client, &args)?)
            }
            Ready::Collective(c) => {
                Err(failed(program, format!("a trial of {}, which takes {} ranks", c.name(), c.ranks)))
            }
        }
    }
}

/// What was chosen for each piece of a program's work, made ready.
///
/// Errors: a kernel that is not in the list, or that refuses what was chosen for it.
pub(crate) fn prepare(client: &Client, device: &str, program: &Program) -> Result<Vec<Ready>, Error> {
    let mut prepared = vec![];
    for c in &program.chosen {
        if let Work::Collective(collective) = &c.work {
            prepared.push(Ready::Collective(*collective));
            continue;
        }
        let kernel = by_name(c.kernel)
            .ok_or_else(|| Error::Device { device: device.into(), message: format!("no kernel {}", c.kernel) })?;
        let ready = kernel.prepare(&c.work, &c.schedule)?;
        let meta = Buffer {
            handle: client.create_from_slice(bytemuck::cast_slice(ready.meta())),
            elements: ready.meta().len(),
        };
        prepared.push(Ready::Kernel(ready, meta));
    }
    Ok(prepared)
}

/// A buffer of a program: in `slabs`, or in `held`, which has every buffer that the caller holds.
pub(crate) fn buffer(program: &Program, b: usize, held: &[Option<Handle>], slabs: &[Handle]) -> Result<Buffer, Error> {
    let plan = &program.buffers[b];
    let handle = match (plan.place, &held[b]) {
        (_, Some(h)) => h.clone(),
        (Place::Arena { slab, offset }, None) => {
            let end = program.slabs[slab] - offset - plan.ty.bytes();
            slabs[slab].clone().offset_start(offset as u64).offset_end(end as u64)
        }
        (Place::Own, None) => {
            let (device, message) =
                (program.target.name.clone(), format!("buffer {b} of @{} is held by nobody", program.name));
            return Err(Error::Device { device, message });
        }
    };
    Ok(Buffer { handle, elements: plan.ty.elements() })
}

/// The buffers of every launch.
///
/// Errors: a buffer of the caller's that it does not hold.
pub(crate) fn launches(program: &Program, held: &[Option<Handle>], slabs: &[Handle]) -> Result<Launches, Error> {
    let of = |list: &[usize]| list.iter().map(|b| buffer(program, *b, held, slabs)).collect::<Result<Vec<_>, _>>();
    let one = |l: &LaunchPlan| {
        let scratch = l.scratch.map(|b| buffer(program, b, held, slabs)).transpose()?;
        Ok(Bindings { operands: of(&l.operands)?, results: of(&l.results)?, scratch })
    };
    program.launches.iter().map(one).collect()
}

/// A kernel of several launches.
enum Joint {
    /// One after the other.
    Chain(Chain),
    /// Side by side.
    Horizontal(Horizontal),
}

impl Joint {
    fn launch(&self, client: &Client, parts: &[&Prepared], args: &[Args<'_>]) -> Result<(), LaunchError> {
        match self {
            Joint::Chain(c) => c.launch(client, parts, args),
            Joint::Horizontal(h) => h.launch(client, parts, args),
        }
    }
}

/// Launches of a program that are made as one; those of other layers share the kernel.
struct Joined {
    joint: Joint,
    /// What the kernel was made of: a choice a launch.
    chosen: Vec<usize>,
}

/// What of a program is made as one, and by launch which of it begins there and how long it is.
pub(crate) struct Joints {
    joined: Vec<Joined>,
    at: Vec<Option<(usize, usize)>>,
}

impl Joints {
    /// Makes a program's joint launches ready, each distinct kernel once.
    ///
    /// Errors: launches that cannot be joined, which codegen would not have chosen.
    pub(crate) fn of(program: &Program, prepared: &[Ready]) -> Result<Joints, Error> {
        let mut out = Joints { joined: vec![], at: vec![None; program.launches.len()] };
        let (chain, beside) = (
            |p: &[&Prepared]| Chain::of(p).map(Joint::Chain),
            |p: &[&Prepared]| Horizontal::of(p).map(Joint::Horizontal),
        );
        out.add(program, prepared, &program.chains, chain)?;
        out.add(program, prepared, &program.horizontals, beside)?;
        Ok(out)
    }

    fn add(
        &mut self,
        program: &Program,
        prepared: &[Ready],
        ranges: &[Range<usize>],
        of: impl Fn(&[&Prepared]) -> Option<Joint>,
    ) -> Result<(), Error> {
        for range in ranges {
            let chosen: Vec<usize> = program.launches[range.clone()].iter().map(|l| l.chosen).collect();
            let known = self.joined.iter().position(|j| j.chosen == chosen);
            let which = match known {
                Some(i) => i,
                None => {
                    let parts: Vec<&Prepared> = chosen.iter().filter_map(|c| prepared[*c].kernel()).collect();
                    let joint = of(&parts).filter(|_| parts.len() == chosen.len());
                    let joint = joint.ok_or_else(|| failed(program, "launches that cannot be joined".into()))?;
                    self.joined.push(Joined { joint, chosen });
                    self.joined.len() - 1
                }
            };
            self.at[range.start] = Some((which, range.len()));
        }
        Ok(())
    }

    /// Kernels that the device compiled for them.
    pub(crate) fn compilations(&self) -> usize {
        let one = |j: &Joined| match &j.joint {
            Joint::Chain(c) => c.compilations(),
            Joint::Horizontal(h) => h.compilations(),
        };
        self.joined.iter().map(one).sum()
    }
}

impl Joined {
    fn launch(&self, client: &Client, prepared: &[Ready], buffers: &[Bindings]) -> Result<(), Error> {
        let (mut parts, mut args) = (vec![], vec![]);
        for (chosen, Bindings { operands, results, scratch }) in self.chosen.iter().zip(buffers) {
            if let Ready::Kernel(ready, meta) = &prepared[*chosen] {
                parts.push(ready);
                args.push(Args { operands, results, scratch: scratch.as_ref(), meta });
            }
        }
        Ok(self.joint.launch(client, &parts, &args)?)
    }
}

/// Makes every launch, in order. While the client records, they are recorded in place of run. `queued` counts launches
/// from run to run: the queue is emptied before it is full.
///
/// Errors: fewer buffers than the work names; what the device answers.
pub(crate) fn enqueue(
    client: &Client,
    program: &Program,
    prepared: &[Ready],
    joints: &Joints,
    buffers: &Launches,
    queued: &mut usize,
) -> Result<(), Error> {
    let mut at = 0;
    while let Some(l) = program.launches.get(at) {
        let (passed, made) = match joints.at[at] {
            Some((which, launches)) => {
                joints.joined[which].launch(client, prepared, &buffers[at..at + launches])?;
                (launches, 1)
            }
            None => {
                prepared[l.chosen].launch(client, program, &buffers[at])?;
                (1, prepared[l.chosen].launches())
            }
        };
        if full(queued, made) && !client.is_capturing() {
            client.flush().map_err(|e| failed(program, format!("{e:?}")))?;
        }
        at += passed;
    }
    Ok(())
}

/// Counts so many more launches, and says whether with them the queue is full again.
pub(crate) fn full(queued: &mut usize, more: usize) -> bool {
    let before = *queued / QUEUE;
    *queued += more;
    *queued / QUEUE > before
}

/// A device's answer as an error of that program's run.
pub(crate) fn failed(program: &Program, message: String) -> Error {
    Error::Device { device: program.target.name.clone(), message: message.chars().take(600).collect() }
}
