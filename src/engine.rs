//! A model on a device: its weights uploaded, its programs lowered when they are first wanted.

use crate::tuned::Tables;
use crate::{Dump, Error, Model, watched};
use omchat_codegen::Tuned;
use omchat_ir::{Dtype, Func, Module, Role, Type};
use omchat_model::checkpoint::lost;
use omchat_model::graph::{DECODE, DecoderSpec, Spread, VISION, decoder_module, vision_module};
use omchat_model::tiler::check_pixels;
use omchat_runtime::collective::World;
use omchat_runtime::{Device, Executable, HostTensor, Store};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How a model is put on a device.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Element type of weights and activations; the device's usual one if `None`.
    pub dtype: Option<Dtype>,
    /// Tiles encoded in one run: bounds the tower's memory whatever the number of frames.
    pub tiles: usize,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions { dtype: None, tiles: 4 }
    }
}

/// How far something long has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// What: `loading`, `encoding`, `reading`.
    pub stage: &'static str,
    /// How much is done.
    pub done: usize,
    /// Of how much.
    pub total: usize,
}

/// A model on a device.
pub struct Engine {
    model: Model,
    device: Device,
    dtype: Dtype,
    options: EngineOptions,
    weights: Store,
    decoders: Mutex<HashMap<DecoderSpec, Arc<Executable>>>,
    vision: Mutex<HashMap<usize, Arc<Executable>>>,
    programs: AtomicUsize,
    dump: Option<Dump>,
    world: Option<World>,
    tables: Tables,
    tuned: Tuned,
}

impl Engine {
    /// Uploads a model's weights.
    ///
    /// `OMCHAT_DUMP` and `OMCHAT_DUMP_DIR` are read here: see [`Dump::of_env`]; and the device's table of measured
    /// schedules: see [`Tables::of`].
    ///
    /// Errors: a tensor that cannot be read or is not finite; a device too small for the weights; a table
    /// that cannot be read.
    pub fn load(
        model: Model,
        device: Device,
        options: &EngineOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Engine, Error> {
        Engine::load_among(None, model, device, options, progress)
    }

    /// As [`Engine::load`], as one rank of several: each holds all weights and a part of every session's cache.
    ///
    /// All ranks make the same calls in the same order, on devices of one kind, and get the same answers.
    ///
    /// Errors: as [`Engine::load`]; sessions among ranks need a device other than `interp`.
    pub fn load_among(
        world: Option<World>,
        model: Model,
        device: Device,
        options: &EngineOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Engine, Error> {
        let dtype = options.dtype.unwrap_or_else(|| device.default_dtype());
        if options.tiles == 0 {
            return Err(Error::Input("0 tiles a run; give 1 or more".into()));
        }
        let tables = Tables::of(&device)?;
        let mut e = Engine {
            model,
            device,
            dtype,
            options: options.clone(),
            weights: Store::default(),
            decoders: Mutex::default(),
            vision: Mutex::default(),
            programs: AtomicUsize::new(0),
            dump: Dump::of_env()?,
            world,
            tuned: tables.tuned(),
            tables,
        };
        e.upload(progress)?;
        Ok(e)
    }

    fn upload(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<(), Error> {
        let wanted = self.weight_types()?;
        let bytes = if self.device.target().reads(self.dtype) { self.dtype.bytes() } else { 4 };
        let need: u64 = wanted.iter().map(|(_, t)| (t.elements() * bytes) as u64).sum();
        if let Some(have) = self.device.free_bytes().filter(|have| need > *have) {
            let device = self.device.name().to_string();
            return Err(omchat_runtime::Error::OutOfMemory { what: "the weights".into(), need, have, device }.into());
        }
        for (i, (name, ty)) in wanted.iter().enumerate() {
            let data = self.model.checkpoint.tensor_f32(name)?;
            if lost(&data, self.dtype).is_some() {
                self.model.checkpoint.check_finite(name, self.dtype)?;
            }
            self.weights.upload(&self.device, name, &HostTensor::floats(self.dtype, ty.shape.clone(), &data));
            progress(Progress { stage: "loading", done: i + 1, total: wanted.len() });
        }
        Ok(())
    }

    /// Name and type of every tensor that the programs read.
    fn weight_types(&self) -> Result<Vec<(String, Type)>, Error> {
        let spec = DecoderSpec {
            tokens: 1,
            capacity: 1,
            features: false,
            output: omchat_model::graph::Output::Last,
            spread: Spread::Alone,
        };
        let mut modules = vec![decoder_module(&self.model.config, spec, self.dtype)?];
        if self.model.config.vision.is_some() {
            modules.push(vision_module(&self.model.config, 1, self.dtype)?);
        }
        let mut out: Vec<(String, Type)> = vec![];
        for m in &modules {
            let Some(f) = omchat_model::graph::entry(m) else { continue };
            out.extend(omchat_model::graph::weights(f).map(|(n, t)| (n.to_string(), t.clone())));
        }
        Ok(out)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Element type of weights and activations.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.world.as_ref().map_or(0, World::rank)
    }

    /// Ranks that share every session's cache; 1 if it is alone.
    pub fn ranks(&self) -> usize {
        self.world.as_ref().map_or(1, World::ranks)
    }

    /// The numbers of each rank, in order.
    pub(crate) fn gathered(&self, what: &str, own: Vec<f32>) -> Result<Vec<Vec<f32>>, Error> {
        let Some(world) = self.world.as_ref().filter(|w| w.ranks() > 1) else { return Ok(vec![own]) };
        let bytes = own.iter().flat_map(|x| x.to_le_bytes()).collect();
        let parts = world.gather(what, bytes, None).map_err(omchat_runtime::Error::from)?;
        let numbers = |part: &Vec<u8>| part.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Ok(parts.iter().map(numbers).collect())
    }

    /// The table of measured schedules, and whether it is taken.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    /// Bytes of the states of a session on this rank, as its programs declare them: the cache. 0 before the first session,
    /// and of the largest where there were several.
    pub fn state_bytes(&self) -> u64 {
        let states = |e: &Arc<Executable>| {
            e.params().iter().filter(|p| p.role == Role::State).map(|p| p.ty.bytes() as u64).sum::<u64>()
        };
        held(&self.decoders).values().map(states).max().unwrap_or(0)
    }

    /// Programs lowered so far. A longer conversation lowers no more: its chunks have the same sizes.
    pub fn programs(&self) -> usize {
        self.programs.load(Ordering::Relaxed)
    }

    /// Distinct kernels of those programs, summed over the programs.
    pub fn kernels(&self) -> usize {
        self.sum(|e| e.kernels())
    }

    /// Kernels that the device compiled for those programs so far, each at its first launch. Programs share what is
    /// equal, so these are fewer than [`Engine::kernels`]. A longer conversation compiles no more.
    pub fn compilations(&self) -> usize {
        self.sum(|e| e.compilations())
    }

    /// Runs that replayed recorded launches in place of making them: on CUDA and WGPU a decode's, from the third on.
    pub fn replays(&self) -> usize {
        self.sum(|e| e.replays())
    }

    fn sum(&self, of: impl Fn(&Executable) -> usize) -> usize {
        held(&self.decoders).values().chain(held(&self.vision).values()).map(|e| of(e)).sum()
    }

    /// A store that shares this engine's weights and has states of its own.
    pub(crate) fn store(&self) -> Store {
        self.weights.clone()
    }

    /// The decoder of a spec, lowered at its first use.
    pub(crate) fn decoder(&self, spec: DecoderSpec) -> Result<Arc<Executable>, Error> {
        if let Some(e) = held(&self.decoders).get(&spec) {
            return Ok(e.clone());
        }
        let m = decoder_module(&self.model.config, spec, self.dtype)?;
        let e = self.lower(&m, DECODE)?;
        held(&self.decoders).insert(spec, e.clone());
        Ok(e)
    }

    /// How long each launch of one run of the decoder takes, with that many slots of the cache filled.
    ///
    /// Errors: as a run.
    pub fn profile(&self, tokens: usize, capacity: usize, filled: usize) -> Result<Vec<omchat_runtime::Timing>, Error> {
        let spec = DecoderSpec {
            tokens,
            capacity,
            features: false,
            output: omchat_model::graph::Output::Last,
            spread: Spread::Alone,
        };
        let exe = self.decoder(spec)?;
        let mut store = self.store();
        reset(&exe, &self.device, &mut store);
        let at: Vec<i32> = (0..capacity).map(|i| if i < filled { i as i32 } else { i32::MAX }).collect();
        store.upload(&self.device, "cache.at", &HostTensor::i32([1, capacity], &at));
        let inputs: Vec<_> = exe.params().into_iter().filter(|p| p.role == Role::Input).collect();
        let feed: Vec<(&str, HostTensor)> = inputs
            .iter()
            .map(|p| {
                let ints = |f: &dyn Fn(usize) -> i32| {
                    HostTensor::i32(p.ty.shape.clone(), &(0..p.ty.elements()).map(f).collect::<Vec<_>>())
                };
                let t = match p.name.as_str() {
                    "hi" | "slots" => ints(&|i| (filled + i) as i32),
                    "start" => ints(&|_| filled as i32),
                    _ if p.ty.dtype == Dtype::I32 => ints(&|_| 0),
                    _ => HostTensor::f32(
                        p.ty.shape.clone(),
                        &(0..p.ty.elements()).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>(),
                    ),
                };
                (p.name.as_str(), t)
            })
            .collect();
        Ok(exe.timed(&feed, &mut store)?)
    }

    fn lower(&self, m: &Module, entry: &str) -> Result<Arc<Executable>, Error> {
        let f = m.named(entry).unwrap_or(Func(m.functions.len() as u32 - 1));
        let e = watched(self.dump.as_ref(), entry, |after| {
            Executable::load_tuned(&self.device, m, f, Some(&self.tuned), self.world.as_ref(), after)
        })?;
        let e = Arc::new(e);
        self.programs.fetch_add(1, Ordering::Relaxed);
        Ok(e)
    }

    /// The projected features of tiles, a bounded number of tiles at a time. Ranks share the tiles, and all get all rows.
    ///
    /// `pixels` yields the numbers of a range of tiles, so that no more than one run's need exist.
    ///
    /// Shapes: pixels [n, 3, S, S]; the result is [tiles · tokens a tile, C].
    /// Errors: `Config` for a model without a tower; pixels that are not finite or not whole tiles.
    pub fn features(
        &self,
        tiles: usize,
        pixels: &mut dyn FnMut(std::ops::Range<usize>) -> Vec<f32>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<f32>, Error> {
        let Some(vision) = &self.model.config.vision else {
            return Err(Error::Input(format!("{} tiles for a model without a vision tower; give text only", tiles)));
        };
        let side = vision.image_size;
        let mut store = self.store();
        let mut out = vec![];
        let share = |rank: usize| tiles * rank / self.ranks();
        let (mut done, end) = (share(self.rank()), share(self.rank() + 1));
        while done < end {
            let n = self.options.tiles.min(end - done);
            let data = pixels(done..done + n);
            let have = check_pixels(&data, side)?;
            if have != n {
                return Err(Error::Input(format!("{have} tiles of pixels where {n} were asked for")));
            }
            let exe = self.vision(n)?;
            let x = HostTensor::f32([n, 3, side, side], &data);
            let y = exe.run(&[("pixels", x)], &mut store)?;
            out.extend(y.first().map(HostTensor::to_f32).unwrap_or_default());
            done += n;
            progress(Progress { stage: "encoding", done, total: end });
        }
        let mut parts = self.gathered("image features", out)?;
        let out = if parts.len() == 1 { parts.swap_remove(0) } else { parts.concat() };
        finite("image features", &out)?;
        Ok(out)
    }

    fn vision(&self, tiles: usize) -> Result<Arc<Executable>, Error> {
        if let Some(e) = held(&self.vision).get(&tiles) {
            return Ok(e.clone());
        }
        let m = vision_module(&self.model.config, tiles, self.dtype)?;
        let e = self.lower(&m, VISION)?;
        held(&self.vision).insert(tiles, e.clone());
        Ok(e)
    }
}

/// A map of programs. A thread that panicked while it held the lock left a whole map behind.
fn held<K>(map: &Mutex<HashMap<K, Arc<Executable>>>) -> MutexGuard<'_, HashMap<K, Arc<Executable>>> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fresh states of a program: caches of zeros, and no slot filled.
pub(crate) fn reset(exe: &Executable, device: &Device, store: &mut Store) {
    for p in exe.params().into_iter().filter(|p| p.role == Role::State) {
        if store.contains(&p.name) {
            continue;
        }
        let t = if p.ty.dtype == Dtype::I32 {
            HostTensor::i32(p.ty.shape.clone(), &vec![i32::MAX; p.ty.elements()])
        } else {
            HostTensor::zeros(p.ty)
        };
        store.upload(device, &p.name, &t);
    }
}

/// Checks that every number is finite.
pub(crate) fn finite(what: &'static str, x: &[f32]) -> Result<(), Error> {
    match x.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(Error::Numeric { what, value: x[index], index }),
        None => Ok(()),
    }
}
