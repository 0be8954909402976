//! OmChat as modules of the IR: a model is a module, not a program.
//!
//! Seven entries are built here; each layer of the model is one function, called once a layer with that layer's
//! weights, so a model of 45 layers holds one copy of its maths. The maths is text, in `model/src/blocks/`.
//!
//! | entry | built by | what it yields |
//! |---|---|---|
//! | `@vision` | [`vision_module`] | the projected features of tiles |
//! | `@decode` | [`decoder_module`] | logits or losses of tokens that join a cache |
//! | `@forward` | [`forward_module`] | losses of whole sequences, over one rank or a ring: what training differentiates |
//! | `@grads` | [`grads_module`] | the loss of a batch, and its gradients |
//! | `@step` | [`step_module`] | a whole training step: the next weights and moments |
//! | `@accumulate_gradients` | [`accumulate_module`] | the gradients of a part of a batch, added to those before |
//! | `@apply_gradients` | [`apply_module`] | the next weights and moments, from gradients added up |
//!
//! A parameter of role `weight` bears the released name of its tensor. Its shape may regroup the stored one:
//! the elements are the same, row-major, so a loader checks how many there are and uploads them as they lie.

mod decoder;
mod entry;
mod forward;
mod shard;
mod step;
mod tower;
mod train;
mod vision;

pub use decoder::{DecoderSpec, Draw, Output, Spread, decoder_module};
pub use forward::{ForwardSpec, forward_module, ring_chunks};
pub use shard::shard_elements;
pub use step::{accumulate_module, apply_module, decays, step_module};
pub use train::{Part, Recompute, Selection, TrainSpec, Weigh, grads_module};
pub use vision::vision_module;

use omchat_ir::text::{File, parse_file};
use omchat_ir::{Diagnostics, Function, Module, Role, Scope, Type};
use std::sync::OnceLock;

/// The entry of [`vision_module`].
pub const VISION: &str = "vision";
/// The entry of [`decoder_module`].
pub const DECODE: &str = "decode";
/// The entry of [`forward_module`].
pub const FORWARD: &str = "forward";

/// The function that [`grads_module`] differentiates.
pub const OBJECTIVE: &str = "objective";
/// The entry of [`grads_module`].
pub const GRADS: &str = "grads";
/// The entry of [`step_module`].
pub const STEP: &str = "step";
/// The entry of [`accumulate_module`].
pub const ACCUMULATE: &str = "accumulate_gradients";
/// The entry of [`apply_module`].
pub const APPLY: &str = "apply_gradients";

/// Name and text of each file of blocks.
pub const BLOCKS: &[(&str, &str)] = &[
    ("decoder.oir", include_str!("blocks/decoder.oir")),
    ("spread.oir", include_str!("blocks/spread.oir")),
    ("vision.oir", include_str!("blocks/vision.oir")),
];

/// Every template of the blocks.
///
/// Errors: faults of their text; a test shows that there are none.
pub fn blocks() -> Result<&'static File, Diagnostics> {
    static PARSED: OnceLock<Result<File, Diagnostics>> = OnceLock::new();
    let parsed = PARSED.get_or_init(|| {
        let mut all = File::default();
        for (_, text) in BLOCKS {
            all.functions.extend(parse_file(text)?.functions);
        }
        Ok(all)
    });
    parsed.as_ref().map_err(Clone::clone)
}

/// The blocks and the library: what a model calls.
///
/// Errors: faults of their text.
pub fn scope() -> Result<Scope<'static>, Diagnostics> {
    Ok(Scope::new(&[omchat_ir::library::file()?, blocks()?]))
}

/// The entry function of a module: its last function.
pub fn entry(module: &Module) -> Option<&Function> {
    module.functions.last()
}

/// Name and type of each parameter of a role, in the order of the parameters.
pub fn params(function: &Function, role: Role) -> impl Iterator<Item = (&str, &Type)> {
    let all = function.param_values().zip(&function.params);
    all.filter(move |(_, r)| **r == role).map(|(v, _)| (function.value(v).name.as_str(), function.ty(v)))
}

/// The tensors that an entry reads: released name, and type as the entry groups it.
pub fn weights(function: &Function) -> impl Iterator<Item = (&str, &Type)> {
    params(function, Role::Weight)
}
