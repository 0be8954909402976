//! `omchat logits`, `generate`, `loss`: a case in, what the model makes of it out.

use super::Error;
use std::path::PathBuf;

/// What the parity commands take.
#[derive(clap::Args)]
pub struct Args {
    /// A model's folder.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// The case: safetensors with `input_ids`, and `pixel_values` and `labels` where they apply.
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Where the results are written.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// The device to run on; the best that there is if not given.
    #[arg(long)]
    pub device: Option<String>,
    /// The element type of weights and activations; the device's usual one if not given.
    #[arg(long)]
    pub dtype: Option<String>,
    /// How many ids `generate` picks.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub max_new_tokens: usize,
}

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Logits and features.
    Logits,
    /// Greedy ids.
    Generate,
    /// Loss and per-target nll.
    Loss,
}

/// Runs one of the three.
pub fn run(door: Door, args: &Args) -> Result<(), Error> {
    let _ = args;
    Err(Error::failed(format!("{door:?} is not written yet")))
}
