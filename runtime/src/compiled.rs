//! A program on a device: kernels prepared, the arena and the inputs' buffers allocated, once.

use crate::Error;
use crate::bound::Bound;
use crate::carried;
use crate::collective::World;
use crate::device::Device;
use crate::executable::Timing;
use crate::faults;
use crate::host::HostTensor;
use crate::launches::{self, Joints, Ready, buffer, enqueue, launches, prepare};
use crate::ranked::Ranked;
use crate::store::Store;
use crate::window;
use cubecl::bytes::Bytes;
use cubecl::prelude::Client;
use cubecl::server::Handle;
use omchat_codegen::{Port, Program};
use omchat_ir::{Role, Type};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Names for stores to keep their bindings by.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A program ready on a device.
pub(crate) struct Compiled {
    id: u64,
    pub(crate) client: Client,
    pub(crate) program: Program,
    /// One a chosen kernel, with its metadata on the device.
    prepared: Vec<Ready>,
    joints: Joints,
    /// The ranks that run it together.
    world: Option<World>,
    slabs: Vec<Handle>,
    /// What each input is written to, by buffer.
    inputs: Vec<Option<Handle>>,
    /// Held during a run: the arena serves one at a time, and each thread has a stream of its own.
    turn: Mutex<()>,
    replays: AtomicUsize,
}

impl Compiled {
    pub(crate) fn load(
        device: &Device,
        client: &Client,
        program: Program,
        world: Option<World>,
    ) -> Result<Compiled, Error> {
        if let Some(world) = &world {
            carried::reach(world, device)?;
        }
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
        let mut inputs = vec![None; program.buffers.len()];
        for p in program.params.iter().filter(|p| p.role == Role::Input) {
            inputs[p.buffer] = Some(client.empty(p.ty.bytes().max(1)));
        }
        let prepared = prepare(client, device.name(), &program)?;
        let joints = Joints::of(&program, &prepared)?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let client = client.clone();
        let (turn, replays) = (Mutex::new(()), 0.into());
        Ok(Compiled { id, client, program, prepared, joints, slabs, inputs, world, turn, replays })
    }

    pub(crate) fn compilations(&self) -> usize {
        self.prepared.iter().map(Ready::compilations).sum::<usize>() + self.joints.compilations()
    }

    pub(crate) fn replays(&self) -> usize {
        self.replays.load(Ordering::Relaxed)
    }

    pub(crate) fn planned_bytes(&self) -> u64 {
        let words: usize = self.prepared.iter().map(|ready| ready.words() * 4).sum();
        (self.program.peak_bytes() + words) as u64
    }

    /// Runs once: by a replay where one was recorded.
    pub(crate) fn run(&self, inputs: &[(&str, HostTensor)], store: &mut Store) -> Result<Vec<HostTensor>, Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = self.fed(inputs, store)?;
        self.queue(bound)?;
        self.read(bound)
    }

    /// Runs once more over the inputs that are on the device, and waits; results stay there.
    pub(crate) fn again(&self, store: &mut Store) -> Result<(), Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = store.bound(self.id, |store| self.bind(store))?;
        self.queue(bound)?;
        let _open = window::open();
        let results = bound.results.iter().map(|(_, handle)| handle);
        cubecl::future::block_on(self.client.sync_buffers(results)).map_err(|e| self.failed(format!("{e:?}")))?;
        self.faultless(())
    }

    fn queue(&self, bound: &mut Bound) -> Result<(), Error> {
        if bound.replay(self)? {
            self.replays.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let _open = window::open();
        self.launch(bound)
    }

    /// Runs once by launches, and says what the device then holds.
    pub(crate) fn measured(
        &self,
        inputs: &[(&str, HostTensor)],
        store: &mut Store,
    ) -> Result<(Vec<HostTensor>, u64), Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = self.fed(inputs, store)?;
        let bytes = {
            let _open = window::open();
            self.launch(bound)?;
            crate::device::bytes_in_use(&self.client)
        };
        Ok((self.read(bound)?, bytes))
    }

    /// Runs once and waits after each launch.
    pub(crate) fn timed(&self, inputs: &[(&str, HostTensor)], store: &mut Store) -> Result<Vec<Timing>, Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = self.fed(inputs, store)?;
        let _open = window::open();
        let mut timings = vec![];
        for (l, buffers) in self.program.launches.iter().zip(&bound.launches) {
            let start = Instant::now();
            self.prepared[l.chosen].launch(&self.client, &self.program, buffers)?;
            let touched: Vec<Handle> = buffers.results.iter().map(|b| b.handle.clone()).collect();
            cubecl::future::block_on(self.client.sync_buffers(touched.iter()))
                .map_err(|e| self.failed(format!("{e:?}")))?;
            let kernel = self.program.chosen[l.chosen].kernel;
            timings.push(Timing { label: l.label.clone(), kernel, took: start.elapsed() });
        }
        self.faultless(timings)
    }

    /// Makes every launch, in order, and the exchanges with other ranks.
    pub(crate) fn launch(&self, bound: &Bound) -> Result<(), Error> {
        if let Some(world) = &self.world {
            let (client, program, prepared) = (&self.client, &self.program, &self.prepared);
            return Ranked { client, program, prepared, world }.run(&bound.launches);
        }
        enqueue(&self.client, &self.program, &self.prepared, &self.joints, &bound.launches, &mut 0)
    }

    /// Writes the inputs, and yields the store's binding to this program.
    fn fed<'s>(&self, inputs: &[(&str, HostTensor)], store: &'s mut Store) -> Result<&'s mut Bound, Error> {
        let entry = &self.program.name;
        let mut fed = vec![];
        for p in self.program.params.iter().filter(|p| p.role == Role::Input) {
            let (_, t) = inputs.iter().find(|(n, _)| *n == p.name).ok_or_else(|| missing(&p.name, &p.ty, entry))?;
            let t = t.in_dtype(p.ty.dtype);
            check(&p.name, &p.ty, &t.ty, entry)?;
            fed.push((self.inputs[p.buffer].as_ref(), t));
        }
        let bound = store.bound(self.id, |store| self.bind(store))?;
        let _open = window::open();
        for (to, t) in fed {
            if let Some(to) = to.filter(|_| !t.bytes.is_empty()) {
                self.client.write(to, Bytes::from_bytes_vec(t.bytes.to_vec()));
            }
        }
        Ok(bound)
    }

    /// Every launch's buffers, with a store's weights and states.
    fn bind(&self, store: &mut Store) -> Result<Bound, Error> {
        let mut held = self.inputs.clone();
        for p in self.program.params.iter().filter(|p| p.role != Role::Input) {
            let entry = &self.program.name;
            if p.role == Role::State {
                store.widen_state(&self.client, &self.program.target, &p.name)?;
            }
            let (ty, handle) = store.handle(&p.name).ok_or_else(|| missing(&p.name, &p.ty, entry))?;
            if ty.dtype != p.ty.dtype || ty.elements() != p.ty.elements() {
                check(&p.name, &p.ty, ty, entry)?;
            }
            held[p.buffer] = Some(handle.clone());
        }
        let wanted = self.program.results.iter().filter(|r| r.role != Role::State);
        let one = |r: &Port| Ok((r.ty.clone(), buffer(&self.program, r.buffer, &held, &self.slabs)?.handle));
        let results = wanted.map(one).collect::<Result<_, Error>>()?;
        Ok(Bound::new(launches(&self.program, &held, &self.slabs)?, results))
    }

    fn read(&self, bound: &Bound) -> Result<Vec<HostTensor>, Error> {
        let _open = window::open();
        let mut out = vec![];
        for (ty, handle) in &bound.results {
            let bytes = self.client.read_one(handle.clone()).map_err(|e| self.failed(format!("{e:?}")))?;
            out.push(HostTensor { ty: ty.clone(), bytes: bytes[..ty.bytes()].to_vec() });
        }
        self.faultless(out)
    }

    fn faultless<T>(&self, out: T) -> Result<T, Error> {
        match faults::take() {
            Some(message) => Err(self.failed(message)),
            None => Ok(out),
        }
    }

    pub(crate) fn failed(&self, message: String) -> Error {
        launches::failed(&self.program, message)
    }
}

pub(crate) fn missing(name: &str, want: &Type, entry: &str) -> Error {
    Error::Missing { name: name.into(), entry: entry.into(), want: want.to_string() }
}

pub(crate) fn check(name: &str, want: &Type, have: &Type, entry: &str) -> Result<(), Error> {
    if have == want {
        return Ok(());
    }
    Err(Error::WrongType { name: name.into(), entry: entry.into(), want: want.to_string(), have: have.to_string() })
}
