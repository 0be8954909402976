//! The loop over stages and steps.

use super::checkpoint::{self, Place};
use super::log::{Line, Log};
use super::stage::{adamw, labelled, shares, spec};
use super::{export, unwritable, write_whole};
use crate::{Batch, Device, Error, Model, Progress, Select, Snapshot, Step, Trainer};
use omchat_ir::Dtype;
use omchat_model::config::IGNORE;
use omchat_recipe::reference::Scores;
use omchat_recipe::stage::{Normalizer, Score, Stage, Start, Weigh};
use omchat_recipe::{Pack, Recipe};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A stage's data, pack by pack.
pub trait Packs {
    /// The next pack.
    ///
    /// Errors: data that no longer yields any.
    fn pack(&mut self) -> Result<Pack, Error>;

    /// Where the data goes on after the last pack.
    ///
    /// Errors: as [`Packs::pack`].
    fn state(&self) -> Result<Value, Error>;

    /// What was read and what was skipped, in words.
    fn report(&self) -> String;
}

/// Where packs come from.
pub trait Supply {
    /// A stage's data from its beginning, or from where a state was taken.
    ///
    /// Errors: files that are not there or hold nothing; a state of other data.
    fn open(&mut self, stage: &Stage, state: Option<&Value>) -> Result<Box<dyn Packs>, Error>;

    /// Each document of some data sets once, in order, as the stage would pack them.
    ///
    /// Errors: files that are not there or hold nothing.
    fn once(&mut self, stage: &Stage, data: &[&str]) -> Result<Box<dyn Iterator<Item = Result<Pack, Error>>>, Error>;

    /// The reference model's loss of each position's label: [T].
    ///
    /// Errors: a position that was not scored.
    fn reference(&mut self, stage: &Stage, pack: &Pack) -> Result<Vec<f32>, Error>;
}

/// Where and how a recipe is run.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The run's folder.
    pub out: PathBuf,
    /// Whether to go on from the newest checkpoint.
    pub resume: bool,
    /// Steps of the whole run after which to stop, with a checkpoint; all of them without.
    pub until: Option<u64>,
    /// Where each selective step tells which tokens it kept: a line a document.
    pub kept: Option<PathBuf>,
}

/// What a run tells while it goes on.
pub enum Watched<'a> {
    /// Something worth a line.
    Note(String),
    /// A model on its way to the device.
    Loading(Progress),
    /// A step was taken, of as many as the stage has.
    Step(&'a Line, u64),
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Steps taken in the whole run.
    pub steps: u64,
    /// The folder of the model after the last stage; nothing where the run stopped before.
    pub model: Option<PathBuf>,
}

/// Trains by a recipe.
///
/// The folder then holds `recipe.json`, `log.jsonl`, TensorBoard's event files, the newest `checkpoints/`, and the model
/// after each stage under `stages/NAME`. A run that was killed goes on from its newest checkpoint with the same data; on
/// the same device with the same numbers.
///
/// Errors: a stage that the model or the device cannot run; `Diverged` where a loss or a norm is not finite, with the
/// file that holds the batch; what the system says.
pub fn train(
    recipe: &Recipe,
    device: &Device,
    options: &TrainOptions,
    supply: &mut dyn Supply,
    watch: &mut dyn FnMut(Watched),
) -> Result<Outcome, Error> {
    let model = Model::open(&recipe.model)?;
    let dtype = dtype(&recipe.dtype)?;
    let specs = recipe.stages.iter().map(|s| spec(&model, device, dtype, s)).collect::<Result<Vec<_>, _>>()?;
    let mut run = Run::begin(recipe, options, &model, watch)?;
    let ceiling = device.ceilings()?.and_then(|c| c.einsum_of(dtype));
    for (i, (stage, spec)) in recipe.stages.iter().zip(specs).enumerate().skip(run.place.stage) {
        if run.done() {
            return Ok(Outcome { steps: run.place.step, model: None });
        }
        if run.place.stage_step == 0 && stage.optimizer == Start::Fresh {
            run.snapshot.moments.clear();
            run.snapshot.steps = 0;
        }
        let parts = stage.packs() > 1;
        let (from, mut loading) = (&run.snapshot, |p| watch(Watched::Loading(p)));
        let trainer = Trainer::resume(&model, device.clone(), dtype, &spec, parts, from, &mut loading)?;
        let flops: u64 = match trainer.program() {
            Some(program) => omchat_runtime::amounts(program)?.iter().map(|a| a.flops).sum(),
            None => 0,
        };
        let state = Some(&run.place.feed).filter(|f| !f.is_null());
        let packs = supply.open(stage, state)?;
        let mut at = At { stage, trainer, packs, flops: flops as f64 * stage.packs() as f64, ceiling };
        run.stage(&mut at, supply, watch)?;
        watch(Watched::Note(at.packs.report()));
        if run.place.stage_step < stage.total_steps() {
            return Ok(Outcome { steps: run.place.step, model: None });
        }
        let last = i + 1 == recipe.stages.len();
        let to = options.out.join("stages").join(&stage.name);
        export(&model, &run.snapshot.weights, stage.theta, Some(stage.context), &to)?;
        watch(Watched::Note(format!("stage `{}` is done: {}", stage.name, to.display())));
        if last {
            return Ok(Outcome { steps: run.place.step, model: Some(to) });
        }
        run.place = Place { stage: i + 1, stage_step: 0, feed: Value::Null, ..run.place };
    }
    Ok(Outcome { steps: run.place.step, model: None })
}

/// A run between steps.
struct Run<'a> {
    recipe: &'a Recipe,
    options: &'a TrainOptions,
    model: &'a Model,
    log: Log,
    place: Place,
    snapshot: Snapshot,
}

/// What a stage holds while it runs.
struct At<'a> {
    stage: &'a Stage,
    trainer: Trainer,
    packs: Box<dyn Packs>,
    /// FLOPs of a step.
    flops: f64,
    /// The device's best einsum, 10¹² FLOPs a second.
    ceiling: Option<f64>,
}

impl<'a> Run<'a> {
    /// A new run, or the newest checkpoint of one.
    fn begin(
        recipe: &'a Recipe,
        options: &'a TrainOptions,
        model: &'a Model,
        watch: &mut dyn FnMut(Watched),
    ) -> Result<Run<'a>, Error> {
        let out = &options.out;
        std::fs::create_dir_all(out).map_err(|e| unwritable(out, &e))?;
        let told = serde_json::to_value(recipe).map_err(|e| Error::Input(format!("the recipe: {e}")))?;
        let found = checkpoint::newest(out)?;
        let (place, snapshot) = match found {
            Some(found) if options.resume => {
                found.refused.iter().for_each(|why| watch(Watched::Note(format!("refused: {why}"))));
                if let Some(what) = differs("recipe", &found.place.recipe, &told) {
                    return Err(Error::Input(format!(
                        "{} was made by another recipe: {what}; resume with the one in {}",
                        found.path.display(),
                        out.join("recipe.json").display()
                    )));
                }
                watch(Watched::Note(format!("resumed at step {} from {}", found.place.step, found.path.display())));
                (found.place, found.snapshot)
            }
            Some(found) => {
                return Err(Error::Input(format!(
                    "{} holds a run up to step {}; add --resume, or name another folder",
                    out.display(),
                    found.place.step
                )));
            }
            None => {
                let place = Place { stage: 0, stage_step: 0, step: 0, feed: Value::Null, recipe: told.clone() };
                (place, Snapshot::default())
            }
        };
        let text = serde_json::to_string_pretty(&told).map_err(|e| Error::Input(format!("the recipe: {e}")))?;
        write_whole(&out.join("recipe.json"), text.as_bytes())?;
        let log = Log::open(out, place.step)?;
        Ok(Run { recipe, options, model, log, place, snapshot })
    }

    fn done(&self) -> bool {
        self.options.until.is_some_and(|n| self.place.step >= n)
    }

    /// The steps of a stage from where it stands.
    fn stage(&mut self, at: &mut At, supply: &mut dyn Supply, watch: &mut dyn FnMut(Watched)) -> Result<(), Error> {
        let total = at.stage.total_steps();
        while self.place.stage_step < total {
            let line = self.step(at, supply)?;
            self.log.step(&line)?;
            watch(Watched::Step(&line, total));
            let keep = at.stage.keep.contains(&self.place.stage_step);
            let due = at.stage.checkpoint_every.is_some_and(|n| self.place.stage_step.is_multiple_of(n));
            let end = self.place.stage_step == total || self.done();
            if due || keep || end {
                self.snapshot = at.trainer.snapshot(&self.snapshot)?;
                self.place.feed = at.packs.state()?;
                checkpoint::save(&self.options.out, &self.place, &self.snapshot, keep)?;
            }
            if self.done() {
                break;
            }
        }
        Ok(())
    }

    fn step(&mut self, at: &mut At, supply: &mut dyn Supply) -> Result<Line, Error> {
        let start = Instant::now();
        let stage = at.stage;
        let packs = (0..stage.packs()).map(|_| at.packs.pack()).collect::<Result<Vec<_>, _>>()?;
        let adamw = adamw(&self.recipe.adamw, stage, self.place.stage_step);
        let shares = shares(stage, &packs);
        let mut references = vec![];
        // One batch at a time: a step's pixels together may be more than the machine has room for.
        let mut parts = packs.iter().zip(shares).map(|(pack, share)| {
            let batch = self.batch(stage, pack, supply, &mut references)?;
            Ok((batch, share))
        });
        let taken = at.trainer.step_of(&mut parts, &adamw);
        drop(parts);
        let Step { loss, norm, keep, nll, memory } = match taken {
            Err(Error::Numeric { what, value, .. }) => return Err(self.diverged(stage, what, value, &packs, supply)?),
            other => other?,
        };
        self.place.stage_step += 1;
        self.place.step += 1;
        if let Some(path) = self.options.kept.as_ref().filter(|_| !keep.is_empty()) {
            tell_kept(path, self.place.step, &packs, &keep)?;
        }
        let labels: Vec<i32> = packs.iter().flat_map(|p| &p.labels).copied().collect();
        let scores = stage.select.as_ref().map(|_| Scores::of(&nll, &references, &labels));
        let seconds = start.elapsed().as_secs_f64();
        let tokens = packs.iter().map(Pack::len).sum::<usize>();
        let share = at.ceiling.filter(|_| at.flops > 0.0).map(|c| at.flops / seconds / 1e12 / c);
        Ok(Line {
            step: self.place.step,
            stage: stage.name.clone(),
            stage_step: self.place.stage_step,
            loss,
            norm,
            lr: adamw.lr,
            tokens,
            labelled: packs.iter().map(labelled).sum(),
            kept: stage.select.as_ref().map(|_| keep.iter().filter(|k| **k).count()),
            kept_of: by_set(&packs, &keep),
            scores,
            fill: packs.iter().map(Pack::fill).sum::<f64>() / packs.len().max(1) as f64,
            seconds,
            tokens_per_s: tokens as f64 / seconds,
            share,
            planned: memory.map(|m| m.planned),
            held: memory.map(|m| m.actual),
        })
    }

    fn batch(
        &self,
        stage: &Stage,
        pack: &Pack,
        supply: &mut dyn Supply,
        references: &mut Vec<f32>,
    ) -> Result<Batch, Error> {
        let theta = stage.theta.unwrap_or(self.model.config.text.rope_theta);
        let examples = stage.weigh == Weigh::Examples;
        let batch = Batch::packed(self.model, pack, theta, stage.tiles, examples)?;
        let Some(s) = &stage.select else { return Ok(batch) };
        let how = Select {
            ratio: s.ratio as f32,
            reference_minus_train: s.score == Score::RefMinusTrain,
            z: 0.0,
            whole: s.normalizer == Normalizer::All,
        };
        let reference = supply.reference(stage, pack)?;
        references.extend(&reference);
        batch.selected(&reference, &how)
    }

    /// Keeps what made a step fail, and says so.
    fn diverged(
        &self,
        stage: &Stage,
        what: &'static str,
        value: f32,
        packs: &[Pack],
        supply: &mut dyn Supply,
    ) -> Result<Error, Error> {
        let folder = self.options.out.join("failed");
        std::fs::create_dir_all(&folder).map_err(|e| unwritable(&folder, &e))?;
        let step = self.place.step + 1;
        for (i, pack) in packs.iter().enumerate() {
            let to = folder.join(format!("step-{step}-{i}"));
            let batch = self.batch(stage, pack, supply, &mut vec![])?;
            write_batch(&to.with_extension("safetensors"), &batch)?;
            let told: Vec<Value> = pack
                .parts
                .iter()
                .map(|p| {
                    let (o, r) = (&p.origin, &p.range);
                    json!({"dataset": o.dataset, "shard": o.shard, "record": o.record, "offset": o.offset, "positions": [r.start, r.end]})
                })
                .collect();
            let text = serde_json::to_string_pretty(&told).unwrap_or_default();
            write_whole(&to.with_extension("json"), text.as_bytes())?;
        }
        Ok(Error::Diverged { what, value, step, stage: stage.name.clone(), batch: folder })
    }
}

/// A batch's inputs under their names.
fn write_batch(path: &Path, batch: &Batch) -> Result<(), Error> {
    let fail = |e: safetensors::SafeTensorError| Error::Input(format!("cannot write {}: {e}", path.display()));
    let mut views = vec![];
    for (name, t) in batch.inputs() {
        let dtype = if t.ty.dtype == Dtype::F32 { safetensors::Dtype::F32 } else { safetensors::Dtype::I32 };
        views.push((*name, TensorView::new(dtype, t.ty.shape.clone(), &t.bytes).map_err(fail)?));
    }
    write_whole(path, &safetensors::serialize(views, None).map_err(fail)?)
}

/// Appends a line a document: where it came from, its labels, and whether each was kept.
fn tell_kept(path: &Path, step: u64, packs: &[Pack], keep: &[bool]) -> Result<(), Error> {
    let (mut text, mut start) = (String::new(), 0);
    for pack in packs {
        for part in &pack.parts {
            let places: Vec<usize> = part.range.clone().filter(|i| pack.labels[*i] != IGNORE).collect();
            let labels: Vec<i32> = places.iter().map(|i| pack.labels[*i]).collect();
            let kept: Vec<bool> = places.iter().map(|i| keep.get(start + i).copied().unwrap_or(false)).collect();
            let o = &part.origin;
            let line = json!({"step": step, "dataset": o.dataset, "shard": o.shard, "record": o.record, "offset": o.offset, "labels": labels, "kept": kept});
            text += &format!("{line}\n");
        }
        start += pack.len();
    }
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut f| f.write_all(text.as_bytes())).map_err(|e| unwritable(path, &e))
}

/// Labelled positions and those kept, by data set; nothing where no selection chose.
fn by_set(packs: &[Pack], keep: &[bool]) -> BTreeMap<String, [usize; 2]> {
    let mut out = BTreeMap::<String, [usize; 2]>::new();
    let mut start = 0;
    for pack in packs.iter().filter(|_| !keep.is_empty()) {
        for part in &pack.parts {
            let counts = out.entry(part.origin.dataset.clone()).or_default();
            for i in part.range.clone().filter(|i| pack.labels[*i] != IGNORE) {
                counts[0] += 1;
                counts[1] += usize::from(keep.get(start + i).copied().unwrap_or(false));
            }
        }
        start += pack.len();
    }
    out
}

pub(super) fn dtype(name: &str) -> Result<Dtype, Error> {
    let all = [Dtype::F32, Dtype::Bf16, Dtype::F16];
    let found = all.into_iter().find(|d| d.to_string() == name);
    found.ok_or_else(|| Error::Input(format!("dtype is `{name}`; give f32, bf16 or f16")))
}

/// The first place where two values differ, with both.
fn differs(at: &str, was: &Value, is: &Value) -> Option<String> {
    match (was, is) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let none = Value::Null;
            keys.into_iter()
                .find_map(|k| differs(&format!("{at}.{k}"), a.get(k).unwrap_or(&none), b.get(k).unwrap_or(&none)))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| differs(&format!("{at}[{i}]"), a, b))
        }
        _ if was == is => None,
        _ => Some(format!("{at} was {was}, it is {is}")),
    }
}
