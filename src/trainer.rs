//! Training on one device: gradients of a batch, and steps of AdamW.

use crate::engine::finite;
use crate::ranks::{Ranks, joined};
use crate::snapshot::{Origin, Snapshot};
use crate::train_plan::shared_bytes;
use crate::tuned::Tables;
use crate::{AdamW, Batch, Dump, Error, Model, Progress, watched};
use omchat_ir::{Dtype, Func, Module, Role};
use omchat_model::OmChatConfig;
use omchat_model::graph::{self, Part, TrainSpec, accumulate_module, apply_module, grads_module, step_module};
use omchat_runtime::collective::World;
use omchat_runtime::{Device, Executable, HostTensor, Store};
use std::collections::BTreeMap;

/// The loss of a batch and its gradients.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// The mean over labelled tokens.
    pub loss: f32,
    /// Each position's loss against the next label, 0 where none counts: [T].
    pub nll: Vec<f32>,
    /// Released name and numbers of each trained tensor's gradient, row-major as the tensor is stored.
    pub grads: Vec<(String, Vec<f32>)>,
}

/// What a step yields.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The mean over labelled tokens, before the step.
    pub loss: f32,
    /// The norm of all gradients together, before clipping.
    pub norm: f32,
    /// Whether each position trained, of all parts in order, where a selection chose.
    pub keep: Vec<bool>,
    /// Each position's loss before the step, of all parts in order, where a selection chose.
    pub nll: Vec<f32>,
    /// What the step held of the device's memory; nothing for the interpreter.
    pub memory: Option<MemoryUse>,
}

impl Step {
    /// How many tokens trained, where a selection chose them.
    pub fn kept(&self) -> Option<usize> {
        Some(self.keep.iter().filter(|k| **k).count()).filter(|_| !self.keep.is_empty())
    }
}

/// Bytes of a device's memory, as planned before a run and as counted in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// What the plans of all programs of a step say that they hold together; of ranks that are threads of one process, of
    /// all of them.
    pub planned: u64,
    /// What the device held more, in the run, than before the programs were loaded.
    pub actual: u64,
}

/// The gradients of one batch.
///
/// Errors: what cannot be lowered; a device too small; a loss or a gradient that is not finite.
pub fn gradients(
    model: &Model,
    device: &Device,
    dtype: Dtype,
    spec: &TrainSpec,
    batch: &Batch,
    progress: &mut dyn FnMut(Progress),
) -> Result<Gradients, Error> {
    fits(spec, batch)?;
    let module = grads_module(&model.config, spec, dtype)?;
    if spec.select.is_some() {
        return Err(Error::Input("gradients of a selection come from a step; select nothing".into()));
    }
    let names = gradient_names(&module);
    let mut store = Store::default();
    let origin = Origin { model, from: &Snapshot::default(), dtype, trained: &[], rank: (0, 1) };
    let exe = load(&origin, device, &module, &mut store, None, progress)?;
    let mut out = exe.run(batch.inputs(), &mut store)?.into_iter();
    let loss = out.next().map_or(0.0, |t| t.to_f32()[0]);
    let nll = out.next().map_or(vec![], |t| t.to_f32());
    finite("the loss", &[loss])?;
    let mut grads = vec![];
    for (name, t) in names.into_iter().zip(out) {
        let data = t.to_f32();
        finite("a gradient", &data)?;
        grads.push((name, data));
    }
    Ok(Gradients { loss, nll, grads })
}

/// Whose gradients a module of them yields, in order.
fn gradient_names(module: &Module) -> Vec<String> {
    graph::entry(module).map_or(vec![], |f| {
        let of = |v| f.value(v).name.trim_start_matches("d.").to_string();
        f.results.iter().skip(2).map(|v| of(*v)).collect()
    })
}

/// Hears the number of a batch and its gradients by released name.
pub(crate) type Heard<'a> = &'a mut dyn FnMut(usize, &[(String, Vec<f32>)]);

/// The gradients of some batches, finite or not, from where a snapshot was taken; `each` hears
/// those of each.
///
/// Errors: as [`gradients`].
#[allow(clippy::too_many_arguments)] // a program's origin, its batches, and who hears
pub(crate) fn raw_gradients(
    model: &Model,
    from: &Snapshot,
    device: &Device,
    dtype: Dtype,
    spec: &TrainSpec,
    batches: &[&Batch],
    progress: &mut dyn FnMut(Progress),
    each: Heard,
) -> Result<(), Error> {
    let module = grads_module(&model.config, spec, dtype)?;
    let names = gradient_names(&module);
    let mut store = Store::default();
    let origin = Origin { model, from, dtype, trained: &[], rank: (0, 1) };
    let exe = load(&origin, device, &module, &mut store, None, progress)?;
    for (i, batch) in batches.iter().enumerate() {
        fits(spec, batch)?;
        let out = exe.run(&taken(&exe, batch), &mut store)?;
        let grads = names.iter().cloned().zip(out.iter().skip(2).map(HostTensor::to_f32));
        each(i, &grads.collect::<Vec<_>>());
    }
    Ok(())
}

/// What a program takes of a batch that may hold more.
pub(crate) fn taken(exe: &Executable, batch: &Batch) -> Vec<(&'static str, HostTensor)> {
    let params = exe.params();
    let wanted = |name: &str| params.iter().any(|p| p.role == Role::Input && p.name == name);
    batch.inputs().iter().filter(|(name, _)| wanted(name)).cloned().collect()
}

/// The modules of a step: all of it, or that of each of its batches, and what their sums come to.
///
/// Errors: as [`step_module`].
pub(crate) fn step_modules(
    config: &OmChatConfig,
    spec: &TrainSpec,
    dtype: Dtype,
    parts: bool,
) -> Result<(Module, Option<Module>), Error> {
    Ok(match parts {
        true => (accumulate_module(config, spec, dtype)?, Some(apply_module(config, spec, dtype)?)),
        false => (step_module(config, spec, dtype)?, None),
    })
}

/// A model in training: its weights in f32 and their moments on a device.
pub struct Trainer {
    device: Device,
    store: Store,
    exe: Executable,
    /// AdamW on gradients that `exe` adds up, where a step has several parts.
    apply: Option<Executable>,
    spec: TrainSpec,
    /// Steps that the moments of each trained part have seen.
    steps: BTreeMap<Part, u64>,
    /// Bytes that the device held before.
    before: u64,
    /// Bytes that the programs hold together, as planned; nothing for the interpreter.
    planned: Option<u64>,
    ranks: Option<Ranks>,
    /// Elements of each trained tensor.
    sizes: BTreeMap<String, usize>,
}

/// What a training starts from.
#[derive(Clone, Copy)]
pub struct Begin<'a> {
    /// The element type of the forward pass.
    pub dtype: Dtype,
    /// Whether a step takes several batches.
    pub parts: bool,
    /// Weights and moments; moments that it does not hold are 0, and the steps of their part count from 1.
    pub from: &'a Snapshot,
    /// The ranks that train together; each holds its part of the states.
    pub ranks: Option<&'a Ranks>,
}

impl Trainer {
    /// Uploads a model for training from step 0.
    ///
    /// Errors: what cannot be lowered; a device too small; a weight that is not finite.
    pub fn new(
        model: &Model,
        device: Device,
        dtype: Dtype,
        spec: &TrainSpec,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Trainer, Error> {
        let begin = Begin { dtype, parts: false, from: &Snapshot::default(), ranks: None };
        Trainer::resume(model, device, spec, &begin, progress)
    }

    /// Uploads a model for training from where a snapshot was taken, on any number of ranks.
    ///
    /// Errors: as [`Trainer::new`]; a snapshot of another model; a spec of other ranks.
    pub fn resume(
        model: &Model,
        device: Device,
        spec: &TrainSpec,
        begin: &Begin,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Trainer, Error> {
        let mut store = Store::default();
        let &Begin { dtype, parts, from, ranks } = begin;
        let world = ranks.map(Ranks::world);
        let before = held_before(&device, world)?;
        let rank = world.map_or((0, 1), |w| (w.rank(), w.ranks()));
        let (data, ring) = (spec.data, spec.forward.ring);
        if data * ring != rank.1 {
            let have = rank.1;
            return Err(Error::Input(format!("{data} rings of {ring} ranks on {have} ranks: start {}", data * ring)));
        }
        let origin = Origin { model, from, dtype, trained: &spec.parts, rank };
        let mut load = |module: &Module| load(&origin, &device, module, &mut store, world, progress);
        let (first, apply) = step_modules(&model.config, spec, dtype, parts)?;
        let exe = load(&first)?;
        let apply = apply.map(|m| load(&m)).transpose()?;
        let ranks = ranks.filter(|r| r.world().ranks() > 1).cloned();
        let sharing = world.filter(|w| w.shared()).map_or(1, World::ranks) as u64;
        let planned = together(&exe, apply.as_ref()).map(|bytes| bytes * sharing);
        let spec = spec.clone();
        let steps = spec.parts.iter().map(|p| (*p, from.steps.get(p).copied().unwrap_or(0))).collect();
        let mut trainer =
            Trainer { device, store, exe, apply, spec, steps, before, planned, ranks, sizes: BTreeMap::new() };
        trainer.sizes = trainer.masters().map(|n| origin.size(&n).map(|s| (n, s))).collect::<Result<_, _>>()?;
        Ok(trainer)
    }

    /// Steps taken, of the part that has trained longest.
    pub fn steps(&self) -> u64 {
        self.steps.values().copied().max().unwrap_or(0)
    }

    /// The program, where there is one: the interpreter has none.
    pub fn program(&self) -> Option<&omchat_codegen::Program> {
        self.exe.program()
    }

    /// One step on a batch.
    ///
    /// Errors: numbers of AdamW that make no sense; a batch of other sizes; a loss or a norm that is not finite: the
    /// weights are then what the step made of them, and no longer to be used.
    pub fn step(&mut self, batch: &Batch, adamw: &AdamW) -> Result<Step, Error> {
        self.step_of(&mut std::iter::once(Ok((batch.clone(), 1.0))), adamw)
    }

    /// One step on several batches, each with its share of the mean: its labelled tokens (or kept ones, or examples) over
    /// those of all. Shares add up to 1. A trainer without parts takes one batch.
    ///
    /// Errors: as [`Trainer::step`]; whatever a batch is in place of one.
    pub fn step_of(
        &mut self,
        batches: &mut dyn Iterator<Item = Result<(Batch, f64), Error>>,
        adamw: &AdamW,
    ) -> Result<Step, Error> {
        adamw.check()?;
        let scalar = |x: f64| HostTensor::f32([], &[x as f32]);
        let hyper = self.hyper(adamw);
        let mut step = Step { loss: 0.0, norm: f32::NAN, keep: vec![], nll: vec![], memory: None };
        let mut taken = 0;
        if let Some(ranks) = &self.ranks {
            ranks.world().at_step(self.steps() + 1);
        }
        for batch in batches {
            let (batch, share) = batch?;
            fits(&self.spec, &batch)?;
            let positions = batch.positions().to_vec();
            let mut feed = batch.into_inputs();
            match self.apply {
                Some(_) => feed.push(("share", scalar(share))),
                None if taken > 0 => return Err(Error::Input("several batches for a trainer without parts".into())),
                None => feed.extend(hyper.iter().cloned()),
            }
            let (out, held) = self.exe.run_measured(&feed, &mut self.store)?;
            let memory = self.planned.zip(held);
            step.memory = memory.map(|(planned, held)| MemoryUse { planned, actual: held.saturating_sub(self.before) });
            let loss = number(out.first());
            finite("the loss", &[loss])?;
            step.loss += (f64::from(loss) * share) as f32;
            if self.spec.select.is_some() {
                let (keep, nll) = (kept(&self.spec, &out)?, out.get(3).map_or(vec![], HostTensor::to_f32));
                let (keep, nll) = self.of_all(&positions, keep, nll)?;
                step.keep.extend(keep);
                step.nll.extend(nll);
            }
            step.norm = number(out.last());
            taken += 1;
        }
        if taken == 0 {
            return Err(Error::Input("a step on no batch; give one or more".into()));
        }
        if let Some(apply) = &self.apply {
            step.norm = number(apply.run(&hyper, &mut self.store)?.first());
        }
        finite("the gradients' norm", &[step.norm])?;
        self.steps.values_mut().for_each(|n| *n += 1);
        Ok(step)
    }

    /// What a selection says of all positions of the packs that ranks read at once.
    fn of_all(&self, positions: &[usize], keep: Vec<bool>, nll: Vec<f32>) -> Result<(Vec<bool>, Vec<f32>), Error> {
        let Some(ranks) = &self.ranks else { return Ok((keep, nll)) };
        let told: Vec<f32> = keep.iter().map(|k| f32::from(u8::from(*k))).collect();
        let keep = ranks.gathered("keep", positions, &told)?.into_iter().map(|k| k > 0.0).collect();
        Ok((keep, ranks.gathered("nll", positions, &nll)?))
    }

    /// How long each launch of a step takes. The step is taken, but not counted.
    ///
    /// Errors: as [`Trainer::step`].
    pub fn timed(&mut self, batch: &Batch, adamw: &AdamW) -> Result<Vec<omchat_runtime::Timing>, Error> {
        fits(&self.spec, batch)?;
        let feed = [batch.inputs().to_vec(), self.hyper(adamw)].concat();
        Ok(self.exe.timed(&feed, &mut self.store)?)
    }

    /// The scalars of the next step.
    fn hyper(&self, adamw: &AdamW) -> Vec<(&'static str, HostTensor)> {
        let (b1, b2) = adamw.betas;
        let scalar = |x: f64| HostTensor::f32([], &[x as f32]);
        let mut feed = vec![
            ("beta1", scalar(b1)),
            ("beta2", scalar(b2)),
            ("eps", scalar(adamw.eps.into())),
            ("decay", scalar(adamw.decay.into())),
            ("clip", scalar(adamw.clip.into())),
        ];
        let rates = ["lr.vision", "lr.projector", "lr.decoder"].into_iter().zip(adamw.lr);
        feed.extend(rates.map(|(name, lr)| (name, scalar(lr.into()))));
        for (part, steps) in &self.steps {
            let t = i32::try_from(steps + 1).unwrap_or(i32::MAX);
            let names = match part {
                Part::Vision => ["c1.vision", "c2.vision"],
                Part::Projector => ["c1.projector", "c2.projector"],
                Part::Decoder => ["c1.decoder", "c2.decoder"],
            };
            feed.extend(names.into_iter().zip([b1, b2]).map(|(name, b)| (name, scalar(1.0 - b.powi(t)))));
        }
        feed
    }

    /// Released name and numbers of each trained tensor, as it is now; all ranks must ask at once.
    ///
    /// Errors: what the device answers; a rank that is lost.
    pub fn weights(&self) -> Result<Vec<(String, Vec<f32>)>, Error> {
        self.masters().map(|name| self.held(&name, &name).map(|x| (name, x))).collect()
    }

    /// Weights and moments as they are now. What is frozen here keeps what `before` holds of it. All ranks must ask at
    /// once.
    ///
    /// Errors: what the device answers; a rank that is lost.
    pub fn snapshot(&self, before: &Snapshot) -> Result<Snapshot, Error> {
        let mut weights = before.weights.clone();
        weights.extend(self.weights()?);
        let mut moments = BTreeMap::new();
        for name in self.masters() {
            let of = |at: &str| self.held(&format!("adam.{at}.{name}"), &name);
            let pair = [of("m")?, of("v")?];
            moments.insert(name, pair);
        }
        Ok(Snapshot { weights, moments, steps: self.steps.clone() })
    }

    /// Names of what is trained.
    fn masters(&self) -> impl Iterator<Item = String> {
        let params = self.apply.as_ref().unwrap_or(&self.exe).params();
        let kept = |p: &omchat_runtime::Param| {
            p.role == Role::State && !p.name.starts_with("adam.") && !p.name.starts_with("grad.")
        };
        params.into_iter().filter(kept).map(|p| p.name)
    }

    /// A state as it is now, of a tensor: whole.
    fn held(&self, state: &str, tensor: &str) -> Result<Vec<f32>, Error> {
        let own = self.store.download(&self.device, state)?.to_f32();
        match (&self.ranks, self.sizes.get(tensor)) {
            (Some(ranks), Some(size)) => joined(ranks.world(), state, &own, *size),
            _ => Ok(own),
        }
    }
}

/// What a device holds before any rank of this process loads its programs.
///
/// Errors: a rank is lost.
fn held_before(device: &Device, world: Option<&World>) -> Result<u64, Error> {
    let shared = world.filter(|w| w.shared() && w.ranks() > 1);
    // Nobody reads before all have given up what they held, and nobody loads before all have read.
    let meet = || shared.map_or(Ok(()), |w| w.gather("memory", vec![], None).map(drop));
    meet().map_err(omchat_runtime::Error::from)?;
    let before = device.bytes_in_use().unwrap_or(0);
    meet().map_err(omchat_runtime::Error::from)?;
    Ok(before)
}

/// Bytes that the programs of a step hold at once, as planned: what they share counts once.
fn together(exe: &Executable, apply: Option<&Executable>) -> Option<u64> {
    let Some(apply) = apply else { return exe.planned_bytes() };
    let shared = shared_bytes(exe.program()?, apply.program()?);
    Some((exe.planned_bytes()? + apply.planned_bytes()?).saturating_sub(shared))
}

fn number(t: Option<&HostTensor>) -> f32 {
    t.and_then(|t| t.to_f32().first().copied()).unwrap_or(f32::NAN)
}

/// Which positions trained, where a selection chose them.
///
/// Errors: some of them found no room.
fn kept(spec: &TrainSpec, out: &[HostTensor]) -> Result<Vec<bool>, Error> {
    let room = spec.select.map_or(0, |s| s.room);
    let missed = out.get(2).and_then(|t| t.to_i32().first().copied()).unwrap_or(0);
    if missed > 0 {
        return Err(Error::Input(format!(
            "{missed} kept tokens found no room among {room} rows: give the selection more room"
        )));
    }
    Ok(out.get(1).map_or(vec![], |keep| keep.to_i32().iter().map(|k| *k != 0).collect()))
}

fn fits(spec: &TrainSpec, batch: &Batch) -> Result<(), Error> {
    let (t, n) = (spec.forward.tokens, spec.forward.tiles);
    if (t, n) == (batch.tokens(), batch.tiles()) {
        return Ok(());
    }
    Err(Error::Input(format!(
        "a batch of {} tokens and {} tiles for a program of {t} and {n}: build one for its sizes",
        batch.tokens(),
        batch.tiles()
    )))
}

/// The last function of a module ready on a device, what it keeps uploaded where it is not there yet.
pub(crate) fn load(
    origin: &Origin,
    device: &Device,
    module: &Module,
    store: &mut Store,
    world: Option<&World>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Executable, Error> {
    let entry = Func(module.functions.len() as u32 - 1);
    let dump = Dump::of_env()?;
    let name = &module.function(entry).name;
    let tuned = Tables::of(device)?.tuned();
    let exe = watched(dump.as_ref(), name, |after| {
        Executable::load_tuned(device, module, entry, Some(&tuned), world, after)
    })?;
    let params: Vec<_> =
        exe.params().into_iter().filter(|p| p.role != Role::Input && !store.contains(&p.name)).collect();
    let need: u64 = params.iter().map(|p| p.ty.bytes() as u64).sum();
    if let Some(have) = device.free_bytes().filter(|have| need > *have) {
        let (what, device) = ("weights and optimizer state".to_string(), device.name().to_string());
        return Err(omchat_runtime::Error::OutOfMemory { what, need, have, device }.into());
    }
    for (i, p) in params.iter().enumerate() {
        store.upload(device, &p.name, &origin.of(p)?);
        progress(Progress { stage: "loading", done: i + 1, total: params.len() });
    }
    Ok(exe)
}
