//! The plan before training: what to compute again and in how many parts, so that a step fits a budget.
//!
//! Candidates stand from the fastest to the leanest; the first whose programs fit is taken. Programs are lowered for
//! each that is tried, so their memory is known, not estimated.

use crate::Error;
use crate::trainer::step_modules;
use omchat_codegen::{Program, Target};
use omchat_ir::{Dtype, Func, Module, Role};
use omchat_model::OmChatConfig;
use omchat_model::graph::{ForwardSpec, Recompute, TrainSpec};

/// Tokens whose logits exist at once where the loss is computed in parts.
const LOSS_TOKENS: usize = 256;
/// The same in the leanest plans.
const FEW_TOKENS: usize = 64;
/// Rows of an MLP that exist at once where it is computed in parts.
const MLP_ROWS: usize = 256;

/// A training step whose memory is known.
#[derive(Clone, Debug)]
pub struct TrainPlan {
    /// What was chosen.
    pub spec: TrainSpec,
    /// Its program; of a step in several parts that of each part.
    pub program: Program,
    /// Bytes that a step holds: those of the program, and of the one beside it that applies the sum of several parts.
    pub bytes: u64,
    /// What was tried before, and what it would hold.
    pub tried: Vec<(TrainSpec, u64)>,
}

/// The first plan of a step that holds no more than `budget` bytes; the fastest without one.
///
/// `base` says what is trained and on what; its recomputation and its parts are chosen here. `parts`: a step takes several
/// batches, whose gradients are added up. Of several ranks the bytes are those of one. Nothing is allocated.
///
/// Errors: what cannot be lowered; `Budget` with the least that was found if nothing fits.
pub fn plan_training(
    config: &OmChatConfig,
    base: &TrainSpec,
    dtype: Dtype,
    parts: bool,
    target: &Target,
    budget: Option<u64>,
) -> Result<TrainPlan, Error> {
    let mut tried = vec![];
    let lowered = |module: &Module, spec: &TrainSpec| {
        let entry = Func(module.functions.len() as u32 - 1);
        let ranks = spec.data * spec.forward.ring;
        omchat_runtime::program_tuned(module, entry, target, None, ranks, &mut |_, _| {})
    };
    // The same for all candidates: it reads sums of gradients, however they were made.
    let mut apply = None;
    for spec in candidates(base) {
        let (module, second) = step_modules(config, &spec, dtype, parts)?;
        if let (None, Some(second)) = (&apply, second) {
            apply = Some(lowered(&second, &spec)?);
        }
        let program = match lowered(&module, &spec) {
            Ok(program) => program,
            // A buffer that the target cannot bind: parts may make it smaller.
            Err(e) if budget.is_some() && is_limit(&e) => {
                tried.push((spec, u64::MAX));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let peak = together(&program, apply.as_ref());
        if budget.is_none_or(|b| peak <= b) {
            return Ok(TrainPlan { spec, program, bytes: peak, tried });
        }
        tried.push((spec, peak));
    }
    let least = tried.iter().map(|(_, peak)| *peak).min().unwrap_or(0);
    Err(Error::Budget { need: least, have: budget.unwrap_or(0) })
}

/// Bytes of programs that are loaded at once: weights and states that both name are there once.
fn together(first: &Program, second: Option<&Program>) -> u64 {
    let Some(second) = second else { return first.peak_bytes() as u64 };
    ((first.peak_bytes() + second.peak_bytes()) as u64).saturating_sub(shared_bytes(first, second))
}

/// Bytes of weights and states that two programs both name.
pub(crate) fn shared_bytes(first: &Program, second: &Program) -> u64 {
    let both = |name: &str| first.params.iter().any(|p| p.name == name);
    let kept = second.params.iter().filter(|p| p.role != Role::Input && both(&p.name));
    kept.map(|p| p.ty.bytes() as u64).sum()
}

fn is_limit(e: &omchat_runtime::Error) -> bool {
    matches!(e, omchat_runtime::Error::Codegen(omchat_codegen::Error::Limit { .. }))
}

/// From the fastest to the leanest; without repetitions where the tokens allow no parts.
pub(crate) fn candidates(base: &TrainSpec) -> Vec<TrainSpec> {
    let tokens = base.forward.tokens;
    let (loss, fewer, mlp) = (parts(tokens, LOSS_TOKENS), parts(tokens, FEW_TOKENS), parts(tokens, MLP_ROWS));
    let list = [
        (Recompute::Nothing, 1, 1),
        (Recompute::Nothing, loss, 1),
        (Recompute::AllButAttention, loss, 1),
        (Recompute::Layers, loss, 1),
        (Recompute::Layers, fewer, mlp),
        (Recompute::Layers, fewer, fewer),
    ];
    let mut out: Vec<TrainSpec> = vec![];
    for (recompute, loss_tiles, mlp_tiles) in list {
        let forward = ForwardSpec { loss_tiles, mlp_tiles, ..base.forward };
        let spec = TrainSpec { forward, recompute, ..base.clone() };
        if !out.contains(&spec) {
            out.push(spec);
        }
    }
    out
}

/// The fewest parts of at most `most` tokens each.
fn parts(tokens: usize, most: usize) -> usize {
    (1..=tokens).find(|n| tokens.is_multiple_of(*n) && tokens / n <= most).unwrap_or(tokens.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_divide() {
        assert_eq!(parts(2048, 256), 8);
        assert_eq!(parts(300, 256), 2);
        assert_eq!(parts(100, 256), 1);
        assert_eq!(parts(257, 256), 257);
    }

    #[test]
    fn candidates_get_leaner_and_do_not_repeat() {
        let all = candidates(&TrainSpec::whole(ForwardSpec::text(100)));
        assert_eq!(all.len(), 5, "a short text has one part of the loss: the first two are the same");
        let all = candidates(&TrainSpec::whole(ForwardSpec::text(2048)));
        assert_eq!(all.len(), 6);
        assert!(all.iter().all(|s| s.forward.tokens == 2048));
    }
}
