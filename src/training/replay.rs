//! A step that failed, taken again: what it comes to now, which documents lose how much, which gradients are not finite.

use super::checkpoint::{self, Found, Place};
use super::compare::{anywhere, differs, told};
use super::failed::{self, Kept, Whence};
use super::flops::Flops;
use super::losses::Losses;
use super::run::{At, Packs, Run, Supply, TrainOptions, Watched, dtype};
use super::stage::{adamw, room, shares, spec};
use crate::trainer::raw_gradients;
use crate::{Begin, Device, Error, Model, Part, Snapshot, Step, TrainSpec, Trainer};
use omchat_ir::Dtype;
use omchat_model::config::IGNORE;
use omchat_recipe::{Pack, Recipe, Stage, pack};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What taking a failed step again came to.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The step of the run, from 1.
    pub step: u64,
    /// Its stage.
    pub stage: String,
    /// The checkpoint that was gone on from; the recipe's model if nothing.
    pub from: Option<PathBuf>,
    /// Steps between it and the failed one, which were taken again.
    pub again: u64,
    /// Where the recipe is not the one that the checkpoint was made by.
    pub differs: Option<String>,
    /// What the step came to: loss and norm, or what is not finite and its value.
    pub came: Result<(f32, f32), (&'static str, f32)>,
    /// A weight or moment before the step that is not finite.
    pub broken: Option<String>,
    /// The documents of its batches, in order.
    pub documents: Vec<Loss>,
    /// Gradients by part of the model.
    pub gradients: Vec<Norm>,
}

impl Replay {
    /// Whether loss and norm are finite now.
    pub fn finite(&self) -> bool {
        self.came.is_ok()
    }
}

/// A document's loss before the step.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Where it came from.
    pub whence: Whence,
    /// Which pack of the step it is in, from 0.
    pub pack: usize,
    /// Labelled positions.
    pub labelled: usize,
    /// Of which the loss is not finite.
    pub broken: usize,
    /// The mean over labelled positions; nothing if there are none.
    pub loss: Option<f32>,
}

/// The gradients of a part of the model, of the whole step.
#[derive(Clone, Debug)]
pub struct Norm {
    /// The part.
    pub part: Part,
    /// Their norm.
    pub norm: f32,
    /// The tensor with the largest norm, or the first in the model's order that is not finite, and its norm.
    pub tensor: (String, f32),
    /// How many tensors are not finite, of how many.
    pub broken: (usize, usize),
}

/// Takes a step again whose loss or norm was not finite, from the batches that the run kept of it. Steps between the last
/// checkpoint before it and the step are taken again, over the same data; nothing is written.
///
/// The recipe may differ from the run's, to see whether another rate would have done.
///
/// Errors: no batch of that step; no usable checkpoint before it; data that are not there for the steps between; what
/// running says.
pub fn replay(
    recipe: &Recipe,
    device: &Device,
    out: &Path,
    step: u64,
    supply: &mut dyn Supply,
    watch: &mut dyn FnMut(Watched),
) -> Result<Replay, Error> {
    let kept = failed::read(&out.join("failed"), step)?;
    let mut recipe = recipe.clone();
    // A batch that is kept is whole: one rank reads it.
    recipe.stages.iter_mut().for_each(|s| s.ring = 1);
    let (at, stage_step) = place_of(&recipe, step)?;
    let (from, place, snapshot) = before(&recipe, out, step)?;
    let differs = differs("recipe", &anywhere(place.recipe.clone()), &anywhere(told(&recipe)?));
    let model = Model::open(&recipe.model)?;
    let options = TrainOptions { out: out.into(), resume: true, until: None, kept: None, world: None };
    let again = step - 1 - place.step;
    let mut run = Run { recipe: &recipe, options: &options, model: &model, log: None, place, snapshot, _lock: None };
    let stage = &recipe.stages[at];
    let room = room(device, None)?;
    let spec_of = |stage: &Stage| spec(&model, device, dtype(&recipe.dtype)?, stage, 1, room);
    // The end of a stage is the beginning of the next.
    while run.place.stage < at && recipe.stages[run.place.stage].total_steps() == run.place.stage_step {
        run.place = Place { stage: run.place.stage + 1, stage_step: 0, feed: Value::Null, ..run.place };
    }
    let mut last = None;
    for (i, stage) in recipe.stages.iter().enumerate().take(at + 1).skip(run.place.stage) {
        // One trainer at a time has room.
        drop(last.take());
        let mut ready = run.ready(device, stage, &spec_of(stage)?, step - 1, supply, watch)?;
        while run.place.stage_step < stage.total_steps() && run.place.step < step - 1 {
            let line = run.step(&mut ready, supply)?;
            watch(Watched::Step(&line, stage.total_steps()));
        }
        run.snapshot = ready.trainer.snapshot(&run.snapshot)?;
        if i < at {
            run.place = Place { stage: i + 1, stage_step: 0, feed: Value::Null, ..run.place };
        }
        last = Some(ready);
    }
    let shares = shares(stage, &kept.iter().map(skeleton).collect::<Vec<_>>());
    let mut batches = kept.iter().zip(&shares).map(|(k, share)| Ok((k.batch.clone(), *share)));
    let came = match last {
        Some(mut ready) => ready.trainer.step_of(&mut batches, &adamw(&recipe.adamw, stage, stage_step)),
        None => Err(Error::Input(format!("the checkpoint is beyond stage `{}`", stage.name))),
    };
    let came = match came {
        Ok(Step { loss, norm, .. }) => Ok((loss, norm)),
        Err(Error::Numeric { what, value, .. }) => Err((what, value)),
        Err(other) => return Err(other),
    };
    // The trainer is gone by now: there is room for what looks into the step.
    let snapshot = std::mem::take(&mut run.snapshot);
    let look = Look { model: &model, device, snapshot: &snapshot, dtype: dtype(&recipe.dtype)?, stage, kept: &kept };
    Ok(Replay {
        step,
        stage: stage.name.clone(),
        from,
        again,
        differs,
        came,
        broken: broken(&snapshot),
        documents: look.losses(&recipe.dtype, watch)?,
        gradients: look.gradients(&spec_of(stage)?, &shares, watch)?,
    })
}

impl Run<'_> {
    /// A stage's trainer, and its data if steps up to `until` are still to be taken.
    fn ready<'s>(
        &mut self,
        device: &Device,
        stage: &'s Stage,
        spec: &TrainSpec,
        until: u64,
        supply: &mut dyn Supply,
        watch: &mut dyn FnMut(Watched),
    ) -> Result<At<'s>, Error> {
        self.refresh(stage);
        let begin =
            Begin { dtype: dtype(&self.recipe.dtype)?, parts: stage.packs() > 1, from: &self.snapshot, ranks: None };
        let trainer = Trainer::resume(self.model, device.clone(), spec, &begin, &mut |p| watch(Watched::Loading(p)))?;
        // Cleaned data are tried by a replay: they need not be the files that the run read.
        let mut feed = self.place.feed.clone();
        if let Some(fields) = feed.as_object_mut() {
            fields.remove("sums");
        }
        let state = Some(&feed).filter(|f| !f.is_null());
        let reads = self.place.step < until && self.place.stage_step < stage.total_steps();
        let packs: Box<dyn Packs> = if reads { supply.open(stage, state)? } else { Box::new(Nothing) };
        Ok(At { stage, ranks: None, trainer, packs, flops: Flops::default(), ceiling: None })
    }
}

/// The data of a stage of which no step is taken.
struct Nothing;

impl Packs for Nothing {
    fn pack(&mut self) -> Result<Pack, Error> {
        Err(Error::Input("no data are open".into()))
    }

    fn state(&self) -> Result<Value, Error> {
        Ok(Value::Null)
    }

    fn report(&self) -> String {
        String::new()
    }
}

/// The stage of a step of the run, and the steps of the stage before it.
fn place_of(recipe: &Recipe, step: u64) -> Result<(usize, u64), Error> {
    let mut left = step.checked_sub(1).ok_or_else(|| Error::Input("steps count from 1".into()))?;
    for (i, stage) in recipe.stages.iter().enumerate() {
        if left < stage.total_steps() {
            return Ok((i, left));
        }
        left -= stage.total_steps();
    }
    Err(Error::Input(format!("the recipe has no step {step}: replay by the recipe of the run")))
}

/// The newest usable checkpoint before a step; where a run has none at all, its beginning.
fn before(recipe: &Recipe, out: &Path, step: u64) -> Result<(Option<PathBuf>, Place, Snapshot), Error> {
    let Some(Found { path, place, snapshot, .. }) = checkpoint::before(out, step)? else {
        let place = Place { stage: 0, stage_step: 0, step: 0, feed: Value::Null, recipe: told(recipe)?, model: None };
        return Ok((None, place, Snapshot::default()));
    };
    let at = (place.stage, place.stage_step);
    let here = place_of(recipe, place.step + 1)?;
    // The end of a stage is the beginning of the next, too.
    let total = recipe.stages.get(at.0).map(Stage::total_steps);
    let ended = total == Some(at.1) && here == (at.0 + 1, 0);
    if at == here || ended {
        return Ok((Some(path), place, snapshot));
    }
    Err(Error::Input(format!(
        "{} is {} steps into stage {}, by this recipe {} into stage {}: replay by one with the steps of the run's recipe",
        path.display(),
        at.1,
        at.0,
        here.1,
        here.0
    )))
}

/// What of a pack its share of a step depends on.
fn skeleton(kept: &Kept) -> Pack {
    let part = |w: &Whence| pack::Part { origin: w.origin.clone(), range: w.positions[0]..w.positions[1] };
    Pack {
        slots: vec![],
        labels: kept.batch.input("labels").map_or(vec![], |t| t.to_i32()),
        positions: vec![],
        lo: vec![],
        hi: vec![],
        document: vec![],
        tiles: vec![],
        parts: kept.documents.iter().map(part).collect(),
    }
}

/// The first tensor of a snapshot that is not finite.
fn broken(s: &Snapshot) -> Option<String> {
    let bad = |x: &[f32]| x.iter().any(|x| !x.is_finite());
    let weight = s.weights.iter().find(|(_, x)| bad(x)).map(|(n, _)| n.clone());
    let moment = || s.moments.iter().find(|(_, [m, v])| bad(m) || bad(v)).map(|(n, _)| format!("a moment of {n}"));
    weight.or_else(moment)
}

/// A step's batches before the weights that it began with.
struct Look<'a> {
    model: &'a Model,
    device: &'a Device,
    snapshot: &'a Snapshot,
    dtype: Dtype,
    stage: &'a Stage,
    kept: &'a [Kept],
}

impl Look<'_> {
    fn losses(&self, element: &str, watch: &mut dyn FnMut(Watched)) -> Result<Vec<Loss>, Error> {
        let told = &mut |p| watch(Watched::Loading(p));
        let mut losses = Losses::new(self.model, self.snapshot, self.device, element, self.stage, told)?;
        let mut out = vec![];
        for (pack, kept) in self.kept.iter().enumerate() {
            let all = losses.raw(&kept.batch)?;
            let labels = skeleton(kept).labels;
            for whence in &kept.documents {
                let places = (whence.positions[0]..whence.positions[1]).filter(|i| labels.get(*i) != Some(&IGNORE));
                let own: Vec<f32> = places.filter_map(|i| all.get(i).copied()).collect();
                let mean = || own.iter().map(|x| f64::from(*x)).sum::<f64>() / own.len() as f64;
                out.push(Loss {
                    whence: whence.clone(),
                    pack,
                    labelled: own.len(),
                    broken: own.iter().filter(|x| !x.is_finite()).count(),
                    loss: (!own.is_empty()).then(|| mean() as f32),
                });
            }
        }
        Ok(out)
    }

    /// Of a selection's step the gradients of every label.
    fn gradients(&self, spec: &TrainSpec, shares: &[f64], watch: &mut dyn FnMut(Watched)) -> Result<Vec<Norm>, Error> {
        let spec = TrainSpec { select: None, ..spec.clone() };
        let mut sums: Vec<(String, Vec<f32>)> = vec![];
        let batches: Vec<_> = self.kept.iter().map(|k| &k.batch).collect();
        let told = &mut |p| watch(Watched::Loading(p));
        raw_gradients(self.model, self.snapshot, self.device, self.dtype, &spec, &batches, told, &mut |i, grads| {
            let share = shares.get(i).copied().unwrap_or(0.0) as f32;
            if sums.is_empty() {
                sums = grads.iter().map(|(n, g)| (n.clone(), vec![0.0; g.len()])).collect();
            }
            for ((_, sum), (_, g)) in sums.iter_mut().zip(grads) {
                sum.iter_mut().zip(g).for_each(|(s, g)| *s += share * g);
            }
        })?;
        let mut parts = BTreeMap::<usize, Norm>::new();
        for (name, g) in sums {
            let square: f64 = g.iter().map(|x| f64::from(*x).powi(2)).sum();
            let (part, norm) = (Part::of(&name), square.sqrt() as f32);
            let order = Part::ALL.into_iter().position(|p| p == part).unwrap_or(0);
            let all =
                parts.entry(order).or_insert(Norm { part, norm: 0.0, tensor: (name.clone(), norm), broken: (0, 0) });
            let ahead = all.tensor.1.is_finite() && (!norm.is_finite() || norm > all.tensor.1);
            if ahead {
                all.tensor = (name, norm);
            }
            all.norm = (f64::from(all.norm).powi(2) + square).sqrt() as f32;
            all.broken = (all.broken.0 + usize::from(!norm.is_finite()), all.broken.1 + 1);
        }
        Ok(parts.into_values().collect())
    }
}
