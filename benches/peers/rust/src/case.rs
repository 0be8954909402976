//! What is asked and what is answered.

use crate::Fault;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A line on stdin.
#[derive(Deserialize)]
pub struct Request {
    /// `gemm` or `candle`.
    pub peer: String,
    /// The work.
    pub case: Case,
    /// When to stop sampling, in seconds.
    pub time_s: f64,
    /// Samples at the least.
    pub least: usize,
    /// The last cache's size; operands rotate through copies that exceed it.
    pub cache_bytes: usize,
}

/// A row of the table, as benches/peers/cases.py has it.
#[derive(Deserialize)]
pub struct Case {
    /// What tells it from others.
    pub name: String,
    /// `matmul`, `prefill`, `decode`.
    pub op: String,
    /// `f32`, `bf16`.
    pub dtype: String,
    /// Rows of the product.
    #[serde(default)]
    pub m: usize,
    /// Columns of the product.
    #[serde(default)]
    pub n: usize,
    /// What is summed over.
    #[serde(default)]
    pub k: usize,
    /// Tokens of a prompt, or in the cache before a step.
    #[serde(default)]
    pub tokens: usize,
    /// A folder with config.json and model.safetensors.
    #[serde(default)]
    pub folder: Option<PathBuf>,
}

impl Case {
    /// The model's folder.
    ///
    /// Errors: none was given.
    pub fn folder(&self) -> Result<&PathBuf, Fault> {
        self.folder.as_ref().ok_or_else(|| "the model's files are not here".into())
    }
}

/// A line on stdout.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// Seconds a run of each sample.
    Seconds {
        /// In the order they were taken.
        seconds: Vec<f64>,
        /// How it was run, if that needs saying.
        note: Option<String>,
    },
    /// Why there are none.
    Refused {
        /// The reason.
        refused: String,
    },
}
