//! Exchanges of device memory under way: what they read and write, and the waits before anything else may.
//!
//! A fabric works on a stream of its own and reads its operand where it lies, so nothing may write there until it ended;
//! and nothing may touch the place of its result. Those are places in memory, not values: where a value's last reader is an
//! exchange, the plan gives its place to whoever comes next.

use crate::Error;
use crate::collective::fabric::{carries, lengths};
use crate::collective::{Carrier, Errand, Exchange, Pending, World};
use crate::device::{Device, memory};
use crate::launches::{Bindings, failed};
use cubecl::bytes::Bytes;
use cubecl::prelude::Client;
use cubecl::server::ServerError;
use omchat_codegen::{Collective, Family, How, LaunchPlan, Place, Program};
use omchat_kernels::Buffer;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Joins what carries between devices, once a run: where ranks are processes, each with a GPU.
///
/// Errors: a rank is lost; it was asked for, and a rank cannot.
pub(crate) fn reach(world: &World, device: &Device) -> Result<(), Error> {
    let how = world.exchange();
    if how == Exchange::Host || world.carrier().is_some() {
        return Ok(());
    }
    let refused = |reason: String| match how {
        Exchange::Nccl => Err(Error::Exchange { reason }),
        _ => Ok(()),
    };
    if world.shared() {
        return refused("the ranks are threads of one process".into());
    }
    if device.target().family != Family::Cuda {
        return refused(format!("the device is {}", device.name()));
    }
    match world.over(memory::fabric(device))? {
        Some(why) => refused(why),
        None => Ok(()),
    }
}

/// What carries a program's collectives from device to device, if anything does.
pub(crate) fn carrier<'w>(world: &'w World, program: &Program) -> Option<&'w Carrier> {
    world.carrier().and_then(Result::ok).filter(|c| c.family == program.target.family)
}

/// A piece of a program's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// A slab, or a buffer of its own.
    place: (bool, usize),
    start: usize,
    end: usize,
}

impl Extent {
    fn of(program: &Program, b: usize) -> Extent {
        let plan = &program.buffers[b];
        let (place, start) = match plan.place {
            Place::Arena { slab, offset } => ((true, slab), offset),
            Place::Own => ((false, b), 0),
        };
        Extent { place, start, end: start + plan.ty.bytes() }
    }

    fn meets(&self, other: &Extent) -> bool {
        self.place == other.place && self.start < other.end && other.start < self.end
    }
}

type Future<'a, T> = Pin<Box<dyn std::future::Future<Output = Result<T, ServerError>> + Send + 'a>>;

/// A wait for the device, for a thread that may wait.
pub(crate) struct Wait<'a> {
    /// The device is past what was launched before.
    past: Future<'a, ()>,
    /// Whether a permute sends.
    gate: Option<Future<'a, Vec<Bytes>>>,
    tell: Sender<Result<bool, String>>,
}

impl Wait<'_> {
    fn hold(self) {
        let said = cubecl::future::block_on(self.past).and_then(|()| match self.gate {
            Some(gate) => Ok(cubecl::future::block_on(gate)?.iter().any(|b| b.iter().any(|x| *x != 0))),
            None => Ok(true),
        });
        // Who asked may have given up.
        let _ = self.tell.send(said.map_err(|e| format!("{e:?}").chars().take(600).collect()));
    }
}

/// Holds waits, one after the other.
pub(crate) fn hold(waits: Receiver<Wait<'_>>) {
    waits.into_iter().for_each(Wait::hold);
}

/// The exchanges of a run that are under way.
pub(crate) struct Carried<'a> {
    client: &'a Client,
    program: &'a Program,
    world: &'a World,
    waits: Sender<Wait<'a>>,
    under_way: VecDeque<UnderWay>,
}

struct UnderWay {
    pending: Pending,
    reads: Extent,
    writes: Extent,
}

impl<'a> Carried<'a> {
    pub(crate) fn new(
        client: &'a Client,
        program: &'a Program,
        world: &'a World,
        waits: Sender<Wait<'a>>,
    ) -> Carried<'a> {
        Carried { client, program, world, waits, under_way: VecDeque::new() }
    }

    /// Whether it carries such a collective.
    pub(crate) fn takes(&self, of: &Collective) -> bool {
        carries(of)
    }

    /// Waits for the exchanges that touch what a launch is about to touch.
    ///
    /// Errors: a rank is lost; what the fabric says.
    pub(crate) fn before(&mut self, l: &LaunchPlan) -> Result<(), Error> {
        if self.under_way.is_empty() {
            return Ok(());
        }
        let extent = |b: &usize| Extent::of(self.program, *b);
        let reads: Vec<Extent> = l.operands.iter().map(extent).collect();
        let writes: Vec<Extent> = l.results.iter().chain(&l.scratch).map(extent).collect();
        self.clear(&reads, &writes)
    }

    /// Waits for the last exchange in the way, and so for all before it: they end in order.
    fn clear(&mut self, reads: &[Extent], writes: &[Extent]) -> Result<(), Error> {
        let in_the_way = |u: &UnderWay| {
            reads.iter().chain(writes).any(|e| e.meets(&u.writes)) || writes.iter().any(|e| e.meets(&u.reads))
        };
        let Some(last) = self.under_way.iter().rposition(in_the_way) else { return Ok(()) };
        self.under_way.drain(..=last).try_for_each(|u| u.pending.wait().map(drop))?;
        Ok(())
    }

    /// Begins an exchange, as soon as the device is past what was launched before.
    ///
    /// What is under way comes before it, on the same stream: only the gate is read by the device's own.
    /// Errors: what the device answers.
    pub(crate) fn begin(&mut self, c: &Collective, l: &LaunchPlan, buffers: &Bindings) -> Result<(), Error> {
        let (program, client) = (self.program, self.client);
        let lacks = || failed(program, format!("{} has too few buffers", c.name()));
        let (Some(from), Some(to)) = (l.operands.first(), l.results.first()) else { return Err(lacks()) };
        let (Some(operand), Some(result)) = (buffers.operands.first(), buffers.results.first()) else {
            return Err(lacks());
        };
        let gated = matches!(c.how, How::Permute { gated: true, .. });
        let gate = match (gated, l.operands.get(1), buffers.operands.get(1)) {
            (false, ..) => None,
            (true, Some(b), Some(buffer)) => {
                self.clear(&[Extent::of(program, *b)], &[])?;
                Some(buffer)
            }
            _ => return Err(lacks()),
        };
        let held = |buffer: &Buffer, bytes: usize| {
            let held = memory::held(client, program.target.family, &buffer.handle, bytes);
            held.map_err(|why| failed(program, why))
        };
        // First the memory: this thread's stream then waits for what other streams do to it.
        let [reads, writes] = lengths(c);
        let (operand, result) = (held(operand, reads)?, held(result, writes)?);
        let gate: Option<Future<'a, Vec<Bytes>>> = match gate {
            Some(buffer) => Some(Box::pin(client.read_async(vec![buffer.handle.clone()]))),
            None => None,
        };
        let (tell, ready) = channel();
        let wait = Wait { past: client.sync(), gate, tell };
        // A thread that is gone drops the wait, and the exchange says so.
        let _ = self.waits.send(wait);
        let pending = self.world.carry(c, &l.label, Errand { operand, result, ready });
        self.under_way.push_back(UnderWay {
            pending,
            reads: Extent::of(program, *from),
            writes: Extent::of(program, *to),
        });
        Ok(())
    }

    /// Waits for all that is under way, so that nobody writes into memory that others get; yields the first error.
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        let ends: Vec<_> = self.under_way.drain(..).map(|u| u.pending.wait()).collect();
        ends.into_iter().try_for_each(|end| end.map(drop))?;
        Ok(())
    }
}
