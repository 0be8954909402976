//! A stage as a training program: what the recipe says, checked against the model and the device.

use crate::ranks::Ranks;
use crate::{AdamW, Device, Error, ForwardSpec, Model, Part, Recompute, Selection, TrainSpec, Weigh, plan_training};
use omchat_ir::Dtype;
use omchat_model::config::IGNORE;
use omchat_recipe::recipe::Hyper;
use omchat_recipe::stage::{Normalizer, Scope, Select, Stage};
use omchat_recipe::{Pack, stage};
use omchat_runtime::collective::World;

/// Of the device's free memory the share that a step may plan for, where the recipe names no budget.
const ROOM: f64 = 0.8;

/// Bytes that a step of each rank may plan for, where the recipe names no budget: the least that any rank has, so that all
/// take the same programs. Ranks that are threads of one process share what is free.
///
/// Errors: a rank is lost.
pub(super) fn room(device: &Device, world: Option<&World>) -> Result<Option<u64>, Error> {
    let free = device.free_bytes().map(|b| (b as f64 * ROOM) as u64);
    let Some(world) = world.filter(|w| w.ranks() > 1) else { return Ok(free) };
    let own = free.unwrap_or(u64::MAX).to_le_bytes().to_vec();
    let all = world.gather("free memory", own, None).map_err(omchat_runtime::Error::from)?;
    let least = all.iter().filter_map(|b| b.first_chunk().map(|b| u64::from_le_bytes(*b))).min();
    let sharing = if world.shared() { world.ranks() as u64 } else { 1 };
    Ok(least.filter(|b| *b < u64::MAX).map(|b| b / sharing))
}

/// The training program of a stage on so many rings: recomputation and parts are the fastest that fit the stage's budget, or
/// the [`room`] that there is.
///
/// Errors: what the model has not; nothing that fits.
pub(super) fn spec(
    model: &Model,
    device: &Device,
    dtype: Dtype,
    stage: &Stage,
    data: usize,
    room: Option<u64>,
) -> Result<TrainSpec, Error> {
    let bad = |what: &str| Err(Error::Input(format!("stage `{}`: {what}", stage.name)));
    let parts: Vec<Part> = Part::ALL.into_iter().filter(|p| stage.train.contains_key(p.name())).collect();
    let sees = stage.tiles > 0;
    if sees && model.config.vision.is_none() {
        return bad("it reads tiles, and the model has no tower: give tiles = 0");
    }
    if !sees && parts.iter().any(|p| *p != Part::Decoder) {
        return bad("it trains the tower or the projector and reads no tile: give `tiles`, or train the decoder only");
    }
    let tokens = Ranks::tokens(stage);
    let forward = ForwardSpec { ring: stage.ring, tiles: tiles(model, stage), ..ForwardSpec::text(tokens) };
    let base = TrainSpec {
        forward,
        data,
        parts,
        recompute: Recompute::Nothing,
        weigh: match stage.weigh {
            stage::Weigh::Tokens => Weigh::Tokens,
            stage::Weigh::Examples => Weigh::Examples { most: data * stage.context },
        },
        select: stage.select.as_ref().map(|s| Selection { room: tokens, joined: s.scope == Scope::Batch }),
        decay_all: false,
    };
    let Some(budget) = stage.memory.or(room) else { return Ok(base) };
    let parts = stage.packs() > data;
    Ok(plan_training(&model.config, &base, dtype, parts, &device.target(), Some(budget))?.spec)
}

/// Tiles that a rank may have to encode: all of a pack, or those that its positions can touch.
pub(super) fn tiles(model: &Model, stage: &Stage) -> usize {
    if stage.ring <= 1 {
        return stage.tiles;
    }
    // Zigzag's positions are two runs, each of which may begin and end within a tile. What lies otherwise has no more.
    stage.tiles.min(Ranks::tokens(stage) / model.tokens_per_tile().max(1) + 4)
}

/// AdamW at a step of a stage.
pub(super) fn adamw(hyper: &Hyper, stage: &Stage, step: u64) -> AdamW {
    AdamW {
        lr: stage.rates(step),
        betas: (hyper.betas[0], hyper.betas[1]),
        eps: hyper.eps as f32,
        decay: hyper.decay as f32,
        clip: hyper.clip as f32,
    }
}

/// Each pack's share of the mean that all packs of a step make, by what its tokens weigh. They add up to 1.
pub(super) fn shares(stage: &Stage, packs: &[Pack]) -> Vec<f64> {
    let weights: Vec<f64> = packs.iter().map(|p| weight(stage, p) as f64).collect();
    let total: f64 = weights.iter().sum();
    let even = 1.0 / packs.len().max(1) as f64;
    weights.into_iter().map(|w| if total > 0.0 { w / total } else { even }).collect()
}

/// What a pack's loss is divided by.
fn weight(stage: &Stage, pack: &Pack) -> usize {
    match (&stage.select, stage.weigh) {
        (Some(s), _) => kept(s, labelled(pack)),
        (None, stage::Weigh::Tokens) => labelled(pack),
        (None, stage::Weigh::Examples) => {
            let counts = |p: &&omchat_recipe::pack::Part| pack.labels[p.range.clone()].iter().any(|l| *l != IGNORE);
            pack.parts.iter().filter(counts).count()
        }
    }
}

/// How many of n labelled tokens count in a selective loss: as `@keep_count` says, the ratio in ten-thousandths.
fn kept(s: &Select, n: usize) -> usize {
    match s.normalizer {
        Normalizer::All => n,
        Normalizer::Kept => (n * (s.ratio * 10_000.0).round() as usize).div_ceil(10_000),
    }
}

/// Labelled positions of a pack.
pub(super) fn labelled(pack: &Pack) -> usize {
    pack.labels.iter().filter(|l| **l != IGNORE).count()
}
