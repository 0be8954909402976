//! The programs of a recipe, without its data: what there is to measure before a run.

use super::run::dtype;
use super::stage::{room, spec};
use crate::trainer::step_modules;
use crate::{Device, Error, Model};
use omchat_codegen::Program;
use omchat_ir::Func;
use omchat_recipe::Recipe;

/// What the stages of a recipe launch on a device, each on one ring, by `STAGE/step` or `STAGE/batch` and `STAGE/apply`.
///
/// No weight is read and nothing is allocated.
///
/// Errors: as [`super::train`] before its first step.
pub fn programs(recipe: &Recipe, device: &Device) -> Result<Vec<(String, Program)>, Error> {
    let model = Model::open(&recipe.model)?;
    let dtype = dtype(&recipe.dtype)?;
    let room = room(device, None)?;
    let mut out = vec![];
    for stage in &recipe.stages {
        let spec = spec(&model, device, dtype, stage, 1, room)?;
        let parts = stage.packs() > 1;
        let (first, apply) = step_modules(&model.config, &spec, dtype, parts)?;
        for (what, module) in [(if parts { "batch" } else { "step" }, Some(first)), ("apply", apply)] {
            let Some(module) = module else { continue };
            let entry = Func(module.functions.len() as u32 - 1);
            let ranks = stage.ring;
            let program = omchat_runtime::program_tuned(&module, entry, &device.target(), None, ranks, &mut |_, _| {})?;
            out.push((format!("{}/{what}", stage.name), program));
        }
    }
    Ok(out)
}
