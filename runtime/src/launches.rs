//! A program's launches: kernels prepared, where each buffer lies, and how launches are queued.

use crate::Error;
use cubecl::prelude::Client;
use cubecl::server::Handle;
use omchat_codegen::{Collective, LaunchPlan, Place, Program, Work};
use omchat_kernels::{Args, Buffer, Prepared, by_name};

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

/// Makes every launch, in order. While the client records, they are recorded in place of run. `queued` counts launches
/// from run to run: the queue is emptied before it is full.
///
/// Errors: fewer buffers than the work names; what the device answers.
pub(crate) fn enqueue(
    client: &Client,
    program: &Program,
    prepared: &[Ready],
    buffers: &Launches,
    queued: &mut usize,
) -> Result<(), Error> {
    for (l, buffers) in program.launches.iter().zip(buffers) {
        prepared[l.chosen].launch(client, program, buffers)?;
        if full(queued, prepared[l.chosen].launches()) && !client.is_capturing() {
            client.flush().map_err(|e| failed(program, format!("{e:?}")))?;
        }
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
