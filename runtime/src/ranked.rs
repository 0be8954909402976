//! A program's launches among ranks: an exchange begins where its collective stands, and lands where its result is
//! first touched, so that what stands between runs beside it.

use crate::Error;
use crate::carried::{Carried, carrier, hold};
use crate::collective::{Pending, World};
use crate::launches::{Bindings, Launches, Ready, failed, full};
use cubecl::bytes::Bytes;
use cubecl::prelude::Client;
use omchat_codegen::{Collective, How, LaunchPlan, Place, Program};
use omchat_kernels::Buffer;
use std::collections::HashMap;
use std::sync::mpsc::channel;
use std::thread;

/// What a collective yields, on its way to a buffer of the device.
enum Flight {
    /// Not here yet.
    Pending(Pending),
    /// On the host, not on the device yet.
    Host(Vec<u8>),
    /// On the device, and kept for the collective that sends it on.
    Landed(Vec<u8>),
}

/// A run of a program on one rank.
pub(crate) struct Ranked<'a> {
    pub client: &'a Client,
    pub program: &'a Program,
    pub prepared: &'a [Ready],
    pub world: &'a World,
}

impl Ranked<'_> {
    /// Makes every launch, in order, and every exchange.
    ///
    /// Errors: a rank is lost; what the device answers.
    pub(crate) fn run(&self, buffers: &Launches) -> Result<(), Error> {
        if carrier(self.world, self.program).is_none() {
            return self.launch(buffers, None);
        }
        thread::scope(|s| {
            let (waits, held) = channel();
            s.spawn(move || hold(held));
            let mut carried = Carried::new(self.client, self.program, self.world, waits);
            let launched = self.launch(buffers, Some(&mut carried));
            // Whatever happened: what is under way ends first.
            let ended = carried.finish();
            launched.and(ended)
        })
    }

    /// `carried`: what goes from device to device, where something carries that.
    fn launch(&self, buffers: &Launches, mut carried: Option<&mut Carried<'_>>) -> Result<(), Error> {
        let last = self.sent_last();
        let mut flights: HashMap<usize, (Flight, Buffer)> = HashMap::new();
        let mut queued = 0;
        for (at, (l, bound)) in self.program.launches.iter().zip(buffers).enumerate() {
            match (&self.prepared[l.chosen], &mut carried) {
                (Ready::Collective(c), Some(carried)) if carried.takes(c) => {
                    for b in l.operands.iter().chain(&l.results) {
                        self.land(*b, &mut flights)?;
                    }
                    carried.begin(c, l, bound)?;
                    l.results.iter().for_each(|b| drop(flights.remove(b)));
                }
                (Ready::Collective(c), carried) => {
                    if let Some(carried) = carried {
                        carried.before(l)?;
                    }
                    let pending = self.begin(c, l, bound, &mut flights)?;
                    if let (Some(to), Some(buffer)) = (l.results.first(), bound.results.first()) {
                        flights.insert(*to, (Flight::Pending(pending), buffer.clone()));
                    }
                }
                (kernel, carried) => {
                    if let Some(carried) = carried {
                        carried.before(l)?;
                    }
                    for b in l.operands.iter().chain(&l.results) {
                        self.land(*b, &mut flights)?;
                    }
                    kernel.launch(self.client, self.program, bound)?;
                    if full(&mut queued, kernel.launches()) {
                        self.client.flush().map_err(|e| failed(self.program, format!("{e:?}")))?;
                    }
                    l.results.iter().for_each(|b| drop(flights.remove(b)));
                }
            }
            flights.retain(|b, (f, _)| !matches!(f, Flight::Landed(_)) || last.get(b).is_some_and(|n| *n > at));
        }
        let left: Vec<usize> = flights.keys().copied().collect();
        left.into_iter()
            .try_for_each(|b| if self.outlives(b) { self.land(b, &mut flights) } else { self.missed(b, &mut flights) })
    }

    /// Whether anyone may look at a buffer after the last launch.
    fn outlives(&self, b: usize) -> bool {
        let own = self.program.buffers.get(b).is_none_or(|plan| !matches!(plan.place, Place::Arena { .. }));
        own || self.program.results.iter().any(|r| r.buffer == b)
    }

    /// What came and nobody touched: another buffer may have its bytes by now, so it is waited for and written nowhere.
    fn missed(&self, b: usize, flights: &mut HashMap<usize, (Flight, Buffer)>) -> Result<(), Error> {
        if let Some((Flight::Pending(p), _)) = flights.remove(&b) {
            p.wait()?;
        }
        Ok(())
    }

    /// The last collective that reads each buffer.
    fn sent_last(&self) -> HashMap<usize, usize> {
        let launches = self.program.launches.iter().enumerate();
        let sends = launches.filter(|(_, l)| matches!(self.prepared[l.chosen], Ready::Collective(_)));
        sends.flat_map(|(at, l)| l.operands.iter().map(move |b| (*b, at))).collect()
    }

    /// Begins an exchange: of what just came, straight from the host.
    fn begin(
        &self,
        c: &Collective,
        l: &LaunchPlan,
        Bindings { operands, .. }: &Bindings,
        flights: &mut HashMap<usize, (Flight, Buffer)>,
    ) -> Result<Pending, Error> {
        let mut read = |i: usize, bytes: usize| match (l.operands.get(i), operands.get(i)) {
            (Some(b), Some(buffer)) => self.bytes(*b, buffer, bytes, flights),
            _ => Err(failed(self.program, format!("{} has no operand {i}", c.name()))),
        };
        let data = read(0, c.elements * c.dtype.bytes())?;
        let sends = match c.how {
            How::Permute { gated: true, .. } => read(1, 4)?.iter().any(|b| *b != 0),
            _ => true,
        };
        Ok(self.world.start(c, &l.label, data, sends))
    }

    /// What a buffer holds: from the host where it came by an exchange.
    fn bytes(
        &self,
        b: usize,
        buffer: &Buffer,
        bytes: usize,
        flights: &mut HashMap<usize, (Flight, Buffer)>,
    ) -> Result<Vec<u8>, Error> {
        if let Some((flight, place)) = flights.remove(&b) {
            let flight = match flight {
                Flight::Pending(p) => Flight::Host(p.wait()?),
                here => here,
            };
            let (Flight::Host(data) | Flight::Landed(data)) = &flight else { return Ok(vec![]) };
            let data = data.clone();
            flights.insert(b, (flight, place));
            return Ok(data);
        }
        let held = self.client.read_one(buffer.handle.clone()).map_err(|e| failed(self.program, format!("{e:?}")))?;
        Ok(held.get(..bytes).unwrap_or(&held).to_vec())
    }

    /// Puts what came for a buffer onto the device.
    fn land(&self, b: usize, flights: &mut HashMap<usize, (Flight, Buffer)>) -> Result<(), Error> {
        let Some((flight, buffer)) = flights.remove(&b) else { return Ok(()) };
        let data = match flight {
            Flight::Pending(p) => p.wait()?,
            Flight::Host(data) => data,
            landed @ Flight::Landed(_) => {
                flights.insert(b, (landed, buffer));
                return Ok(());
            }
        };
        if !data.is_empty() {
            self.client.write(&buffer.handle, Bytes::from_bytes_vec(data.clone()));
        }
        flights.insert(b, (Flight::Landed(data), buffer));
        Ok(())
    }
}
