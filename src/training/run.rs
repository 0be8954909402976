//! The loop over stages and steps.

use super::checkpoint::{self, Place};
use super::compare::{anywhere, begun, differs, model_sum, told, unplaced};
use super::failed::{self, Kept};
use super::flops::Flops;
use super::log::{Line, Log};
use super::stage::{adamw, labelled, room, shares, spec, tiles};
use super::{Changed, export, unwritable, write_whole};
use crate::{Batch, Begin, Device, Error, Model, Piece, Progress, Ranks, Select, Snapshot, Step, Trainer};
use omchat_ir::Dtype;
use omchat_model::config::IGNORE;
use omchat_recipe::pack::Origin;
use omchat_recipe::reference::Scores;
use omchat_recipe::stage::{Normalizer, Score, Stage, Start, Weigh};
use omchat_recipe::{Pack, Recipe};
use omchat_runtime::collective::World;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
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
    /// Whether the files of data sets are there, and those that a stage selects by. A run asks before its first step.
    ///
    /// Errors: a file that is not there, or is not to be read; reference losses of something else.
    fn check(&mut self, _stage: &Stage, _data: &[&str]) -> Result<(), Error> {
        Ok(())
    }

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

    /// The name of the file that a document came from; nothing where data are not in files.
    fn file(&mut self, _origin: &Origin) -> Option<String> {
        None
    }
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
    /// This process among ranks that train together; alone without. Rank 0 writes the folder, which all must see.
    pub world: Option<World>,
}

impl TrainOptions {
    /// Whether this rank writes the run's folder.
    pub fn writes(&self) -> bool {
        self.world.as_ref().is_none_or(|w| w.rank() == 0)
    }
}

/// This process among the ranks of a stage.
///
/// Errors: a ring and no ranks for it; as [`Ranks::new`].
fn among(options: &TrainOptions, stage: &Stage) -> Result<Option<Ranks>, Error> {
    match &options.world {
        Some(world) => Ranks::new(world, stage).map(Some),
        None if stage.ring > 1 => Err(Error::Input(format!(
            "stage `{1}`: a ring of {0} ranks, and this process is alone: start as many (--ranks {0}, or a launcher), or give ring = 1",
            stage.ring, stage.name
        ))),
        None => Ok(None),
    }
}

/// All ranks must go on from the same place.
///
/// Errors: one that does not.
fn agree(options: &TrainOptions, place: &Place) -> Result<(), Error> {
    let Some(world) = &options.world else { return Ok(()) };
    // Hosts may have the same files in different places.
    let own = Place { recipe: unplaced(place.recipe.clone()), ..place.clone() };
    let own = serde_json::to_vec(&own).map_err(|e| Error::Input(format!("the place of the run: {e}")))?;
    let all = world.gather("place", own, None).map_err(omchat_runtime::Error::from)?;
    match all.iter().position(|p| *p != all[0]) {
        Some(rank) => Err(Error::Input(format!(
            "ranks 0 and {rank} do not see the same run in {}: give all the same recipe, the same files of its model, and a \
             folder that all share",
            options.out.display()
        ))),
        None => Ok(()),
    }
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
/// the same device with the same numbers. One whose recipe has got more stages since, at its end, goes on with them.
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
    let saved = recipe.save_dtype.as_deref().map(dtype).transpose()?;
    let dtype = dtype(&recipe.dtype)?;
    let ranks = recipe.stages.iter().map(|s| among(options, s)).collect::<Result<Vec<_>, _>>()?;
    let data = |r: &Option<Ranks>| r.as_ref().map_or(1, Ranks::data);
    let stages = recipe.stages.iter().zip(&ranks);
    let room = room(device, options.world.as_ref())?;
    let specs = stages.map(|(s, r)| spec(&model, device, dtype, s, data(r), room)).collect::<Result<Vec<_>, _>>()?;
    let mut run = Run::begin(recipe, options, &model, watch)?;
    run.look_ahead(supply)?;
    let ceiling = device.ceilings()?.and_then(|c| c.einsum_of(dtype));
    for (i, ((stage, ranks), spec)) in recipe.stages.iter().zip(&ranks).zip(specs).enumerate().skip(run.place.stage) {
        if run.done() {
            return Ok(Outcome { steps: run.place.step, model: None });
        }
        run.refresh(stage);
        let parts = stage.packs() > data(ranks);
        let mut loading = |p| watch(Watched::Loading(p));
        let begin = Begin { dtype, parts, from: &run.snapshot, ranks: ranks.as_ref() };
        let trainer = Trainer::resume(&model, device.clone(), &spec, &begin, &mut loading)?;
        let tokens = if ranks.is_some() { Ranks::tokens(stage) } else { stage.context };
        let flops = trainer.program().map(|p| Flops::of(p, tokens)).transpose()?.unwrap_or_default();
        let state = Some(&run.place.feed).filter(|f| !f.is_null());
        let packs = supply.open(stage, state)?;
        let mut at = At { stage, ranks: ranks.as_ref(), trainer, packs, flops, ceiling };
        run.stage(&mut at, supply, watch)?;
        watch(Watched::Note(at.packs.report()));
        if run.place.stage_step < stage.total_steps() {
            return Ok(Outcome { steps: run.place.step, model: None });
        }
        let last = i + 1 == recipe.stages.len();
        let to = options.out.join("stages").join(&stage.name);
        if options.writes() {
            let changed = Changed { dtype: saved, theta: stage.theta, context: Some(stage.context) };
            export(&model, &run.snapshot.weights, &changed, &to)?;
        }
        watch(Watched::Note(format!("stage `{}` is done: {}", stage.name, to.display())));
        if last {
            return Ok(Outcome { steps: run.place.step, model: Some(to) });
        }
        run.place = Place { stage: i + 1, stage_step: 0, feed: Value::Null, ..run.place };
    }
    Ok(Outcome { steps: run.place.step, model: None })
}

/// A run between steps.
pub(super) struct Run<'a> {
    pub recipe: &'a Recipe,
    pub options: &'a TrainOptions,
    pub model: &'a Model,
    /// On the rank that writes.
    pub log: Option<Log>,
    pub place: Place,
    pub snapshot: Snapshot,
    /// On the rank that writes: no other process writes into the folder as long as this is open.
    pub _lock: Option<File>,
}

/// What a stage holds while it runs.
pub(super) struct At<'a> {
    pub stage: &'a Stage,
    pub ranks: Option<&'a Ranks>,
    pub trainer: Trainer,
    pub packs: Box<dyn Packs>,
    pub flops: Flops,
    /// The device's best einsum, 10¹² FLOPs a second.
    pub ceiling: Option<f64>,
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
        let (told, sum) = (told(recipe)?, model_sum(&model.dir)?);
        let found = checkpoint::newest(out)?;
        let (place, snapshot) = match found {
            Some(found) if options.resume => {
                found.refused.iter().for_each(|why| watch(Watched::Note(format!("refused: {why}"))));
                let was = anywhere(found.place.recipe.clone());
                if let Some(was) = found.place.model.as_ref().filter(|was| **was != sum) {
                    return Err(Error::Input(format!(
                        "{} was made from another model: the sum of the files in {} was {was}, it is {sum}; restore them, \
                         or begin in another folder",
                        found.path.display(),
                        model.dir.display()
                    )));
                }
                if let Some(what) = differs("recipe", &was, &begun(anywhere(told.clone()), &was)) {
                    return Err(Error::Input(format!(
                        "{} was made by another recipe: {what}; resume with the one in {}",
                        found.path.display(),
                        out.join("recipe.json").display()
                    )));
                }
                watch(Watched::Note(format!("resumed at step {} from {}", found.place.step, found.path.display())));
                (Place { recipe: told.clone(), model: Some(sum), ..found.place }, found.snapshot)
            }
            Some(found) => {
                return Err(Error::Input(format!(
                    "{} holds a run up to step {}; add --resume, or name another folder",
                    out.display(),
                    found.place.step
                )));
            }
            None => {
                if options.resume {
                    let dir = out.display();
                    watch(Watched::Note(format!("nothing to resume in {dir}: it begins with the first step")));
                }
                let recipe = told.clone();
                let place = Place { stage: 0, stage_step: 0, step: 0, feed: Value::Null, recipe, model: Some(sum) };
                (place, Snapshot::default())
            }
        };
        agree(options, &place)?;
        let (mut log, mut lock) = (None, None);
        if options.writes() {
            std::fs::create_dir_all(out).map_err(|e| unwritable(out, &e))?;
            lock = Some(checkpoint::locked(out)?);
            let text = serde_json::to_string_pretty(&told).map_err(|e| Error::Input(format!("the recipe: {e}")))?;
            write_whole(&out.join("recipe.json"), text.as_bytes())?;
            log = Some(Log::open(out, place.step)?);
        }
        Ok(Run { recipe, options, model, log, place, snapshot, _lock: lock })
    }

    /// Looks at what the stages up to the run's end will read and write, before any step is taken.
    ///
    /// Errors: as [`Supply::check`]; a file of kept tokens that cannot be written, or of which no stage has any.
    fn look_ahead(&self, supply: &mut dyn Supply) -> Result<(), Error> {
        if let Some(path) = &self.options.kept {
            if self.recipe.stages.iter().all(|s| s.select.is_none()) {
                return Err(Error::Input(format!(
                    "no stage has `select`, so none keeps tokens to tell in {}: leave --kept out",
                    path.display()
                )));
            }
            if self.options.writes() {
                let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
                file.map_err(|e| unwritable(path, &e))?;
            }
        }
        let mut start = 0;
        for (i, stage) in self.recipe.stages.iter().enumerate() {
            let taken = if i == self.place.stage { self.place.stage_step } else { 0 };
            let begins = i >= self.place.stage && taken < stage.total_steps();
            let comes = begins && self.options.until.is_none_or(|n| start < n);
            if comes {
                supply.check(stage, &stage.mix.keys().map(String::as_str).collect::<Vec<_>>())?;
            }
            start += stage.total_steps();
        }
        Ok(())
    }

    /// Gives up the moments before the first step of a stage that begins with none.
    pub(super) fn refresh(&mut self, stage: &Stage) {
        if self.place.stage_step == 0 && stage.optimizer == Start::Fresh {
            self.snapshot.moments.clear();
            self.snapshot.steps.clear();
        }
    }

    fn done(&self) -> bool {
        self.options.until.is_some_and(|n| self.place.step >= n)
    }

    /// The steps of a stage from where it stands.
    fn stage(&mut self, at: &mut At, supply: &mut dyn Supply, watch: &mut dyn FnMut(Watched)) -> Result<(), Error> {
        let total = at.stage.total_steps();
        while self.place.stage_step < total {
            let line = self.step(at, supply).inspect_err(|e| {
                // Data without a usable record: which kinds of faults they have.
                if matches!(e, Error::Recipe(_)) {
                    watch(Watched::Note(at.packs.report()));
                }
            })?;
            if let Some(log) = &mut self.log {
                log.step(&line)?;
            }
            watch(Watched::Step(&line, total));
            let keep = at.stage.keep.contains(&self.place.stage_step);
            let due = at.stage.checkpoint_every.is_some_and(|n| self.place.stage_step.is_multiple_of(n));
            let end = self.place.stage_step == total || self.done();
            if due || keep || end {
                self.snapshot = at.trainer.snapshot(&self.snapshot)?;
                self.place.feed = at.packs.state()?;
                if self.options.writes() {
                    checkpoint::save(&self.options.out, &self.place, &self.snapshot, keep)?;
                }
            }
            if self.done() {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn step(&mut self, at: &mut At, supply: &mut dyn Supply) -> Result<Line, Error> {
        let start = Instant::now();
        let stage = at.stage;
        let packs = (0..stage.packs()).map(|_| at.packs.pack()).collect::<Result<Vec<_>, _>>()?;
        let adamw = adamw(&self.recipe.adamw, stage, self.place.stage_step);
        // Each ring reads one of so many packs at once.
        let rings = at.ranks.map_or(1, Ranks::data);
        let shares: Vec<f64> = shares(stage, &packs).chunks(rings).map(|c| c.iter().sum()).collect();
        let references = match &stage.select {
            Some(_) => packs.iter().map(|p| supply.reference(stage, p)).collect::<Result<Vec<_>, _>>()?,
            None => vec![],
        };
        let own = packs.iter().enumerate().skip(at.ranks.map_or(0, Ranks::number)).step_by(rings);
        // One batch at a time: a step's pixels together may be more than the machine has room for.
        let mut parts = own.zip(shares).map(|((i, pack), share)| {
            let (per_tile, tiles) = (self.model.tokens_per_tile(), tiles(self.model, stage));
            let piece = at.ranks.map_or_else(|| Piece::whole(pack.len()), |r| r.piece(pack, per_tile, tiles));
            Ok((self.batch(stage, pack, &piece, references.get(i))?, share))
        });
        let taken = at.trainer.step_of(&mut parts, &adamw);
        drop(parts);
        let Step { loss, norm, keep, nll, memory } = match taken {
            Err(Error::Numeric { what, value, .. }) => {
                return Err(self.diverged(stage, (what, value), &packs, &references, supply)?);
            }
            other => other?,
        };
        self.place.stage_step += 1;
        self.place.step += 1;
        if let Some(path) = self.options.kept.as_ref().filter(|_| self.options.writes() && !keep.is_empty()) {
            tell_kept(path, self.place.step, &packs, &keep)?;
        }
        let labels: Vec<i32> = packs.iter().flat_map(|p| &p.labels).copied().collect();
        let scores = stage.select.as_ref().map(|_| Scores::of(&nll, &references.concat(), &labels));
        let seconds = start.elapsed().as_secs_f64();
        let tokens = packs.iter().map(Pack::len).sum::<usize>();
        let flops = at.flops.over(&packs) / rings as f64;
        let share = at.ceiling.filter(|_| flops > 0.0).map(|c| flops / seconds / 1e12 / c);
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

    fn batch(&self, stage: &Stage, pack: &Pack, piece: &Piece, reference: Option<&Vec<f32>>) -> Result<Batch, Error> {
        let theta = stage.theta.unwrap_or(self.model.config.text.rope_theta);
        let examples = stage.weigh == Weigh::Examples;
        let batch = Batch::placed(self.model, pack, piece, theta, tiles(self.model, stage), examples)?;
        let (Some(s), Some(reference)) = (&stage.select, reference) else { return Ok(batch) };
        let how = Select {
            ratio: s.ratio as f32,
            reference_minus_train: s.score == Score::RefMinusTrain,
            z: 0.0,
            whole: s.normalizer == Normalizer::All,
        };
        batch.selected(&piece.of(reference, 0.0), &how)
    }

    /// Keeps what made a step fail, and says so; a run without a log keeps nothing.
    fn diverged(
        &self,
        stage: &Stage,
        (what, value): (&'static str, f32),
        packs: &[Pack],
        references: &[Vec<f32>],
        supply: &mut dyn Supply,
    ) -> Result<Error, Error> {
        let folder = self.options.out.join("failed");
        let step = self.place.step + 1;
        if self.log.is_none() {
            return Ok(Error::Diverged { what, value, step, stage: stage.name.clone(), batch: folder });
        }
        for (i, pack) in packs.iter().enumerate() {
            // The whole pack, whatever each rank had of it.
            let whole = Piece::whole(pack.len());
            let batch = self.batch(&Stage { ring: 1, ..stage.clone() }, pack, &whole, references.get(i))?;
            let documents = failed::whence(pack, &mut |origin| supply.file(origin));
            failed::keep(&folder, step, i, &Kept { batch, documents })?;
        }
        Ok(Error::Diverged { what, value, step, stage: stage.name.clone(), batch: folder })
    }
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
    found.ok_or_else(|| Error::Input(format!("the recipe names the element type `{name}`; give f32, bf16 or f16")))
}
