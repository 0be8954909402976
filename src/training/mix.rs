//! The search for how long to tune on a mixture: a trunk, a branch from each of its parts, a table of what they are worth.

use super::checkpoint::{self, Place};
use super::compare::{anywhere, differs, told};
use super::losses::Losses;
use super::run::{Supply, TrainOptions, Watched, train};
use super::{unwritable, write_whole};
use crate::{Device, Error, Model, Snapshot};
use omchat_recipe::Recipe;
use omchat_recipe::mixture::{Branch, Plan, table};
use std::path::Path;

/// Runs the search of a recipe in a folder; what is done there already is not done again.
///
/// The folder then holds `trunk/`, a run with a checkpoint at the end of each part; `part-N/`, the run of each branch with
/// its model; `branches.json` and `table.md`.
///
/// Errors: as [`train`]; a recipe without a mixture.
pub fn mix(
    recipe: &Recipe,
    device: &Device,
    out: &Path,
    supply: &mut dyn Supply,
    watch: &mut dyn FnMut(Watched),
) -> Result<Vec<Branch>, Error> {
    let plan = Plan::new(recipe)?;
    let judged = |part: usize| out.join(format!("part-{part}")).join("losses.json");
    if let Some(m) = recipe.mixture.as_ref().filter(|_| (1..=plan.ends.len()).any(|part| !judged(part).is_file())) {
        // What branches are judged by is wanted last, and looked for first.
        let held: Vec<&str> = m.held_out.keys().map(String::as_str).collect();
        supply.check(&plan.trunk.stages[0], &held)?;
    }
    begin(recipe, out)?;
    let mut branches: Vec<Branch> = vec![];
    for (i, (end, branch)) in plan.ends.iter().zip(&plan.branches).enumerate() {
        let trunk = out.join("trunk");
        if !checkpoint::at(&trunk, *end).is_dir() {
            let resume = trunk.join("checkpoints").is_dir();
            let options = TrainOptions { out: trunk.clone(), resume, until: Some(*end), kept: None, world: None };
            train(&plan.trunk, device, &options, supply, watch)?;
        }
        let dir = out.join(format!("part-{}", i + 1));
        let name = &branch.stages[0].name;
        if checkpoint::newest(&dir)?.is_none() {
            fork(&checkpoint::at(&trunk, *end), &dir, branch)?;
        }
        if !dir.join("stages").join(name).join("config.json").is_file() {
            let options = TrainOptions { out: dir.clone(), resume: true, until: None, kept: None, world: None };
            train(branch, device, &options, supply, watch)?;
        }
        let judged = judged(i + 1);
        let losses = match std::fs::read(&judged).ok().and_then(|b| serde_json::from_slice(&b).ok()) {
            Some(losses) => losses,
            None => {
                let losses = judge(recipe, branch, &dir.join("stages").join(name), device, supply)?;
                write_json(&judged, &losses)?;
                losses
            }
        };
        let stage = &branch.stages[0];
        let steps = stage.total_steps();
        let tokens = (end + steps) * (stage.packs() * stage.context) as u64;
        branches.push(Branch { part: i + 1, trunk_steps: *end, steps, tokens, losses });
        watch(Watched::Note(format!("part {}: mean held-out loss {:.4}", i + 1, branches[i].mean())));
        write_json(&out.join("branches.json"), &branches)?;
        write_whole(&out.join("table.md"), table(&branches).as_bytes())?;
    }
    Ok(branches)
}

/// Writes the recipe down, or sees that it is the one that was.
///
/// Errors: another recipe: what is there was made by the old one.
fn begin(recipe: &Recipe, out: &Path) -> Result<(), Error> {
    let (path, told) = (out.join("recipe.json"), told(recipe)?);
    let unreadable = |e: &dyn std::fmt::Display| Error::Input(format!("cannot read {}: {e}", path.display()));
    match std::fs::read(&path) {
        Ok(bytes) => {
            let was = serde_json::from_slice(&bytes).map_err(|e| unreadable(&e))?;
            match differs("recipe", &anywhere(was), &anywhere(told)) {
                None => Ok(()),
                Some(what) => Err(Error::Input(format!(
                    "{} holds a search by another recipe: {what}; name another folder, or go on with that recipe",
                    out.display()
                ))),
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(out).map_err(|e| unwritable(out, &e))?;
            write_json(&path, &told)
        }
        Err(e) => Err(unreadable(&e)),
    }
}

/// A run that goes on from a checkpoint of another, by another recipe: weights, moments and place in the data are kept.
fn fork(from: &Path, to: &Path, recipe: &Recipe) -> Result<(), Error> {
    let (place, snapshot) =
        checkpoint::read(from).map_err(|why| Error::Input(format!("cannot branch from {}: {why}", from.display())))?;
    let told = serde_json::to_value(recipe).map_err(|e| Error::Input(format!("the recipe: {e}")))?;
    let place = Place { stage: 0, stage_step: 0, recipe: told, ..place };
    checkpoint::save(to, &place, &snapshot, false)?;
    Ok(())
}

/// The mean loss of each held-out data set.
fn judge(
    recipe: &Recipe,
    branch: &Recipe,
    model: &Path,
    device: &Device,
    supply: &mut dyn Supply,
) -> Result<std::collections::BTreeMap<String, f64>, Error> {
    let model = Model::open(&model.to_string_lossy())?;
    let stage = &branch.stages[0];
    let mut losses = Losses::new(&model, &Snapshot::default(), device, &recipe.dtype, stage, &mut |_| {})?;
    let mut out = std::collections::BTreeMap::new();
    let Some(m) = &recipe.mixture else { return Ok(out) };
    for name in m.held_out.keys() {
        let mut packs = supply.once(stage, &[name])?.take(m.packs);
        out.insert(name.clone(), losses.mean(&mut packs)?);
    }
    Ok(out)
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(|e| unwritable(path, &e.into()))?;
    write_whole(path, format!("{text}\n").as_bytes())
}
