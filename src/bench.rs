//! Benches: what `omchat bench` prints and `cargo bench` times, the same work under the same names.
//!
//! A [`Case`] is a function of IR text with drawn operands. [`kernels`] times each on a device and has each launch judged;
//! [`steps`], [`ring`] and [`memory`] do the same for whole models, for the hops of a ring and for planned bytes. The
//! fields of a [`Row`] are described in `docs/bench.md`.

mod cases;
mod draw;
mod judge;
mod kernels;
mod memory;
mod ring;
mod row;
mod steps;

pub use cases::{Case, Scale, cases};
pub use draw::drawn;
pub use kernels::{Lowered, amount, kernels, lower, trial};
pub use memory::{memory, memory_names};
pub use ring::ring;
pub use row::Row;
pub use steps::{Step, Whole, decode, prefill, train, train_name, vision};

use crate::{Device, Error};
use omchat_codegen::Family;
use omchat_model::OmChatConfig;
use omchat_model::presets::{mini, omchat_13b};
use omchat_runtime::{Budget, Ceilings};

/// How to bench.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only rows whose name contains one of them; every row if there is none.
    pub only: Vec<String>,
    /// Every kernel and schedule that takes the work, not only the chosen one.
    pub all: bool,
    /// Of those only kernels whose name contains it.
    pub kernel: Option<String>,
    /// Operands stay where the caches hold them.
    pub warm: bool,
    /// The device's ceilings are not measured, and rows have no shares of them.
    pub bare: bool,
    /// How long to sample.
    pub budget: Budget,
}

impl Options {
    /// Whether a row of that name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part))
    }

    /// Whether a kernel of that name is wanted beside the chosen one.
    fn takes(&self, kernel: &str) -> bool {
        self.kernel.as_deref().is_none_or(|part| kernel.contains(part))
    }

    /// The ceilings that rows are read against.
    fn ceilings(&self, device: &Device) -> Result<Option<Ceilings>, Error> {
        Ok(if self.bare { None } else { device.ceilings()? })
    }

    /// What to answer when none of these names is wanted.
    pub fn nothing(&self, names: &[&str]) -> Error {
        Error::Input(format!("no row's name contains `{}`; there is {}", self.only.join("` or `"), names.join(", ")))
    }
}

/// What a bench says: a row, or what it cannot run there and why.
#[derive(Clone, Debug)]
pub enum Said {
    /// A row.
    Row(Box<Row>),
    /// A name that has no row there.
    Skipped {
        /// The row's name.
        name: String,
        /// Why.
        reason: String,
    },
}

/// The model and the sizes that a device is benched at unless told otherwise: the 13B model on a card, `mini` on the CPU,
/// a few rows of [`small`] where nothing is fast.
pub fn usual(device: &Device) -> (OmChatConfig, Scale) {
    let target = device.target();
    match (device, target.family) {
        (Device::Interp, _) => (small(), Scale::tiny()),
        (_, Family::Wgpu) if target.software => (small(), Scale::tiny()),
        (_, Family::Cpu) => (mini(), Scale::cpu()),
        _ => (omchat_13b(), Scale::card()),
    }
}

/// The name of the model that [`usual`] takes.
pub fn usual_name(device: &Device) -> &'static str {
    match usual(device).0.text.layers {
        28 => "omchat-13b",
        30 => "mini",
        _ => "small",
    }
}

/// A model of `mini`'s kind whose every size is small and its own.
pub fn small() -> OmChatConfig {
    let mut config = mini();
    let t = &mut config.text;
    (t.hidden, t.layers, t.heads, t.kv_heads, t.head_dim, t.mlp, t.vocab) = (48, 2, 6, 2, 8, 80, 131);
    if let Some(v) = &mut config.vision {
        (v.hidden, v.layers, v.heads, v.mlp, v.image_size, v.feature_layers) = (24, 2, 3, 56, 56, vec![2]);
    }
    if let (Some(p), Some(v)) = (&mut config.projector, &config.vision) {
        (p.input, p.output) = (v.feature_width(), config.text.hidden);
    }
    config
}
