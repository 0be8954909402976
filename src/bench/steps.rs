//! Whole steps of a model: a prompt, a token, tiles, a training step; through an executable as a session runs it, the
//! upload of inputs and the reading of results included.

use super::draw::{Draw, drawn};
use super::{Options, Row, kernels::ways};
use crate::tuned::Tables;
use crate::{Chunks, Device, EngineOptions, Error};
use omchat_codegen::{Amount, Seen};
use omchat_ir::{Dtype, Func, Module, Role};
use omchat_model::graph::{
    DecoderSpec, ForwardSpec, Output, Spread, TrainSpec, decoder_module, step_module, vision_module,
};
use omchat_model::rope::rope_table;
use omchat_model::{Checkpoint, OmChatConfig};
use omchat_runtime::{Executable, HostTensor, Param, Store, Times};
use serde_json::{Map, Value, json};
use std::time::Instant;

/// A model to bench, with its weights or without.
pub struct Whole<'a> {
    /// The name that rows bear.
    pub name: String,
    /// What it is.
    pub config: &'a OmChatConfig,
    /// Its weights; random ones without.
    pub checkpoint: Option<&'a Checkpoint>,
    /// Element type of weights and activations; of the working copies in training.
    pub dtype: Dtype,
    /// The device.
    pub device: &'a Device,
}

/// A step ready to be run again and again.
pub struct Step {
    /// The row it fills: suite, name, shape, device, kernels.
    pub row: Row,
    /// Items of one run, and what they are.
    pub items: (usize, &'static str),
    /// What a run moves and computes; nothing is counted on the interpreter.
    pub amount: Amount,
    exe: Executable,
    store: Store,
    /// The inputs of each run of the program that make one step.
    feeds: Vec<Vec<(&'static str, HostTensor)>>,
    /// Whether a step is timed without what goes to the device and comes from it: one run, of which the host needs nothing.
    stays: bool,
}

impl Step {
    /// Runs once.
    ///
    /// Errors: what the device answers; a result that is not finite.
    pub fn run(&mut self) -> Result<(), Error> {
        for feed in &self.feeds {
            let out = self.exe.run(feed, &mut self.store)?;
            if let Some(t) = out.first() {
                crate::engine::finite("a result", &t.to_f32())?;
            }
        }
        Ok(())
    }

    /// The row, after runs for as long as the options say.
    ///
    /// Errors: as [`Step::run`].
    pub fn row(mut self, dtype: Dtype, device: &Device, options: &Options) -> Result<Row, Error> {
        let ceilings = options.ceilings(device)?;
        self.run()?;
        let (begun, mut seconds) = (Instant::now(), vec![]);
        let budget = &options.budget;
        while seconds.len() < budget.least || (begun.elapsed() < 4 * budget.time && seconds.len() < budget.most) {
            let start = Instant::now();
            if self.stays {
                self.feeds.iter().try_for_each(|feed| self.exe.run_again(feed, &mut self.store))?;
            } else {
                self.run()?;
            }
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_unstable_by(f64::total_cmp);
        let row = self.row.timed(&Times { seconds }, self.amount, dtype, ceilings.as_ref());
        Ok(row.rated(self.items.0, self.items.1))
    }
}

/// The chunks of a prompt of `tokens` read into an empty cache: as many whole ones as it has, or the padded one that a session
/// takes of fewer; by what they hold the row is named.
///
/// Errors: what cannot be lowered or does not fit.
pub fn prefill(whole: &Whole, tokens: usize) -> Result<Step, Error> {
    let chunks = Chunks::of(&whole.device.target());
    let chunk = match chunks.sizes().into_iter().find(|c| *c <= tokens) {
        Some(1) | None if tokens > 1 => chunks.small,
        found => found.unwrap_or(1),
    };
    let starts: Vec<usize> = (0..(tokens / chunk).max(1)).map(|i| i * chunk).collect();
    decoding(whole, "prefill", chunk, starts.len() * chunk, &starts)
}

/// One token over a cache of `filled` slots.
///
/// Errors: as [`prefill`].
pub fn decode(whole: &Whole, filled: usize) -> Result<Step, Error> {
    decoding(whole, "decode", 1, 1, &[filled])
}

/// `tokens` in chunks that begin at `starts`.
fn decoding(whole: &Whole, suite: &str, chunk: usize, tokens: usize, starts: &[usize]) -> Result<Step, Error> {
    let t = &whole.config.text;
    // The cache of a session: its context and room for a padded chunk.
    let capacity = Chunks::of(&whole.device.target()).slots(starts[0] + tokens);
    let spec = DecoderSpec { tokens: chunk, capacity, features: false, output: Output::Last, spread: Spread::Alone };
    let module = decoder_module(whole.config, spec, whole.dtype)?;
    let context = starts.last().copied().unwrap_or(0);
    let named = if suite == "decode" { context } else { tokens };
    let name = format!("{suite}/{}/{}/t{named}", whole.name, whole.dtype);
    let shape = [("tokens", json!(tokens)), ("context", json!(context)), ("chunk", json!(chunk))];
    let mut step = loaded(whole, suite, name, &shape, &module, (starts.len() * chunk, "tokens/s"))?;
    // Slots that were written before hold keys; the rest is empty.
    let at: Vec<i32> = (0..capacity).map(|i| if i < starts[0] { i as i32 } else { i32::MAX }).collect();
    step.store.upload(whole.device, "cache.at", &HostTensor::i32([1, capacity], &at));
    for start in starts {
        let index: Vec<i32> = (*start..start + chunk).map(|i| i as i32).collect();
        let positions: Vec<u32> = index.iter().map(|i| *i as u32).collect();
        let (cos, sin) = rope_table(&positions, t.head_dim, t.rope_theta);
        let ids =
            drawn(&omchat_ir::Type::new(Dtype::I32, [chunk]), &Draw::Range(0.0, t.vocab as f64), *start as u64 + 1);
        step.feeds.push(vec![
            ("ids", ids),
            ("cos", HostTensor::f32([chunk, t.head_dim / 2], &cos)),
            ("sin", HostTensor::f32([chunk, t.head_dim / 2], &sin)),
            ("lo", HostTensor::i32([1, chunk], &vec![0; chunk])),
            ("hi", HostTensor::i32([1, chunk], &index)),
            ("slots", HostTensor::i32([1, chunk], &index)),
            ("start", HostTensor::i32([], &[*start as i32])),
            ("last", HostTensor::i32([1], &[chunk as i32 - 1])),
        ]);
        let pairs = (*start..start + chunk).map(|i| i as u64 + 1).sum();
        step.count(Seen { pairs, keys: (start + chunk) as u64 })?;
    }
    Ok(step)
}

/// Tiles through the tower and the projector, as many as an engine encodes in one run.
///
/// Errors: as [`prefill`]; a model without a tower.
pub fn vision(whole: &Whole) -> Result<Step, Error> {
    let Some(v) = &whole.config.vision else {
        return Err(Error::Input(format!("{} has no vision tower: bench another suite", whole.name)));
    };
    let tiles = EngineOptions::default().tiles;
    let module = vision_module(whole.config, tiles, whole.dtype)?;
    let name = format!("vision/{}/{}/n{tiles}", whole.name, whole.dtype);
    let shape = [("tiles", json!(tiles)), ("side", json!(v.image_size))];
    let mut step = loaded(whole, "vision", name, &shape, &module, (tiles, "tiles/s"))?;
    let ty = omchat_ir::Type::new(Dtype::F32, [tiles, 3, v.image_size, v.image_size]);
    step.feeds.push(vec![("pixels", drawn(&ty, &Draw::Range(-2.0, 2.0), 1))]);
    step.stays = true;
    // A tile's rows see each other, whatever there are of them.
    step.count(Seen { pairs: u64::MAX, keys: u64::MAX })?;
    Ok(step)
}

/// The name of the row of [`train`].
pub fn train_name(whole: &Whole, tokens: usize) -> String {
    format!("train/{}/{}/t{tokens}", whole.name, whole.dtype)
}

/// A step of AdamW on one sequence of `tokens`, of the whole decoder.
///
/// Errors: as [`prefill`].
pub fn train(whole: &Whole, tokens: usize) -> Result<Step, Error> {
    let t = &whole.config.text;
    let text = OmChatConfig { vision: None, projector: None, ..whole.config.clone() };
    let spec = TrainSpec { parts: vec![crate::Part::Decoder], ..TrainSpec::whole(ForwardSpec::text(tokens)) };
    let plan =
        crate::plan_training(&text, &spec, whole.dtype, false, &whole.device.target(), whole.device.free_bytes())?;
    let module = step_module(&text, &plan.spec, whole.dtype)?;
    let name = train_name(whole, tokens);
    let shape = [
        ("tokens", json!(tokens)),
        ("recompute", json!(format!("{:?}", plan.spec.recompute))),
        ("loss_parts", json!(plan.spec.forward.loss_tiles)),
    ];
    let mut step = loaded(whole, "train", name, &shape, &module, (tokens, "tokens/s"))?;
    let index: Vec<i32> = (0..tokens as i32).collect();
    let positions: Vec<u32> = (0..tokens as u32).collect();
    let (cos, sin) = rope_table(&positions, t.head_dim, t.rope_theta);
    let words = |seed| drawn(&omchat_ir::Type::new(Dtype::I32, [tokens]), &Draw::Range(0.0, t.vocab as f64), seed);
    let mut feed = vec![
        ("ids", words(1)),
        ("labels", words(2)),
        ("cos", HostTensor::f32([tokens, t.head_dim / 2], &cos)),
        ("sin", HostTensor::f32([tokens, t.head_dim / 2], &sin)),
        ("lo", HostTensor::i32([1, tokens], &vec![0; tokens])),
        ("hi", HostTensor::i32([1, tokens], &index)),
        ("at", HostTensor::i32([1, tokens], &index)),
    ];
    // A rate so small that a thousand steps leave random weights what they are.
    let numbers = [
        ("lr.decoder", 1e-9),
        ("beta1", 0.9),
        ("beta2", 0.999),
        ("eps", 1e-8),
        ("decay", 0.0),
        ("clip", 1.0),
        ("c1.decoder", 0.1),
        ("c2.decoder", 1e-3),
    ];
    feed.extend(numbers.map(|(name, x)| (name, HostTensor::f32([], &[x]))));
    step.feeds.push(feed);
    let n = tokens as u64;
    step.count(Seen { pairs: n * (n + 1) / 2, keys: n })?;
    step.row.bytes = Some(plan.program.peak_bytes() as u64);
    Ok(step)
}

impl Step {
    /// Adds what one run of the program moves and computes.
    fn count(&mut self, seen: Seen) -> Result<(), Error> {
        let Some(p) = self.exe.program() else { return Ok(()) };
        for l in &p.launches {
            let one = Amount::seen(&p.chosen[l.chosen].work, seen).map_err(omchat_runtime::Error::from)?;
            self.amount.read = self.amount.read.saturating_add(one.read);
            self.amount.written = self.amount.written.saturating_add(one.written);
            self.amount.flops = self.amount.flops.saturating_add(one.flops);
        }
        Ok(())
    }
}

/// A module's entry on the device, with its weights and states uploaded.
fn loaded(
    whole: &Whole,
    suite: &str,
    name: String,
    shape: &[(&str, Value)],
    module: &Module,
    items: (usize, &'static str),
) -> Result<Step, Error> {
    let entry = Func(module.functions.len().saturating_sub(1) as u32);
    let tuned = Tables::of(whole.device)?.tuned();
    let exe = Executable::load_tuned(whole.device, module, entry, Some(&tuned), None, &mut |_, _| {})?;
    let params: Vec<_> = exe.params().into_iter().filter(|p| p.role != Role::Input).collect();
    let need: u64 = params.iter().map(|p| p.ty.bytes() as u64).sum();
    if let Some(have) = whole.device.free_bytes().filter(|have| need > *have) {
        let (what, device) = ("weights and states".to_string(), whole.device.name().to_string());
        return Err(omchat_runtime::Error::OutOfMemory { what, need, have, device }.into());
    }
    let mut store = Store::default();
    for (i, p) in params.iter().enumerate() {
        let stored = whole.checkpoint.filter(|c| c.contains(&p.name));
        match stored {
            Some(c) => {
                let t = HostTensor::floats(p.ty.dtype, p.ty.shape.clone(), &c.tensor_f32(&p.name)?);
                store.upload(whole.device, &p.name, &t);
            }
            None => draw(whole.device, &mut store, p, i as u64 + 1)?,
        }
    }
    let (kernel, schedule) = match exe.program() {
        Some(p) => {
            // A step has a hundred schedules; its kernels say enough.
            let mut names: Vec<String> = ways(p).0.split(" + ").map(str::to_owned).collect();
            names.sort();
            names.dedup();
            (names.join(" + "), String::new())
        }
        None => ("interp".into(), String::new()),
    };
    let shape: Map<String, Value> = shape.iter().map(|(l, v)| ((*l).to_string(), v.clone())).collect();
    let weights = if whole.checkpoint.is_some() { "its own weights" } else { "random weights" };
    let row = Row {
        suite: suite.into(),
        name,
        shape,
        device: whole.device.name().into(),
        kernel,
        schedule,
        note: Some(weights.into()),
        ..Row::default()
    };
    Ok(Step { row, items, amount: Amount::default(), exe, store, feeds: vec![], stays: false })
}

/// Rows of a large matrix that are drawn; the device repeats them.
const ROWS: usize = 128;

/// Draws a weight or a state. Of a large matrix few rows come from the host: a model of gigabytes takes it half a minute.
fn draw(device: &Device, store: &mut Store, p: &Param, seed: u64) -> Result<(), Error> {
    let t = &p.ty;
    let large = t.rank() == 2 && t.shape[0].is_multiple_of(ROWS) && t.bytes() > 16 << 20;
    if !large || !t.dtype.is_float() || !device.target().holds(t.dtype) {
        store.upload(device, &p.name, &drawn(t, &usual(p), seed));
        return Ok(());
    }
    let (e, n, k, times) = (t.dtype, t.shape[0], t.shape[1], t.shape[0] / ROWS);
    let text = format!(
        "func @repeated(state %w: {e}[{n}, {k}], %rows: {e}[{ROWS}, {k}]) -> {e}[{n}, {k}] {{ %y = rearrange %rows \"r k -> (c r) k\" c={times} return %y }}"
    );
    let module = omchat_ir::parse(&text)?;
    let exe = Executable::load(device, &module, Func(0))?;
    let mut one = Store::default();
    one.reserve(device, "w", t.clone());
    exe.run(&[("rows", drawn(&omchat_ir::Type::new(e, [ROWS, k]), &usual(p), seed))], &mut one)?;
    if let Some(filled) = one.get("w") {
        store.put(&p.name, filled.clone());
    }
    Ok(())
}

/// How a weight or a state is drawn: so that a product keeps the size of its rows, a norm's weight is about 1 and a second
/// moment is positive.
fn usual(p: &Param) -> Draw {
    let width = p.ty.shape.last().copied().unwrap_or(1).max(1) as f64;
    let reach = (3.0 / width).sqrt();
    match p.role {
        _ if p.ty.dtype == Dtype::I32 => Draw::Is(f64::from(i32::MAX)),
        Role::State if p.name.starts_with("adam.") => Draw::Range(1e-8, 1e-7),
        _ if p.ty.rank() == 1 => Draw::Range(0.5, 1.5),
        _ => Draw::Range(-reach, reach),
    }
}
