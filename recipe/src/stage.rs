//! A stage of training: how long its contexts are, what it reads, what it trains and how.

use crate::error::{Error, Result};
use crate::ring::Layout;
use crate::schedule::Schedule;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One stage of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// What it is called; no two stages of a recipe alike.
    pub name: String,
    /// Positions of a pack: T.
    pub context: usize,
    /// Tiles that a pack may hold: N. 0 for a stage of words only.
    #[serde(default)]
    pub tiles: usize,
    /// The base of RoPE; the model's where none is given.
    #[serde(default)]
    pub theta: Option<f64>,
    /// Percentages of the data sets, by their names; they add up to 100.
    pub mix: BTreeMap<String, f64>,
    /// Learning rates of the parts that train: `vision`, `projector`, `decoder`.
    pub train: BTreeMap<String, f64>,
    /// How the rates rise and fall.
    #[serde(default)]
    pub schedule: Schedule,
    /// Steps of the optimizer; or `tokens`.
    #[serde(default)]
    pub steps: Option<u64>,
    /// Positions to train on in all, padding among them; or `steps`.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Positions of a step, whole packs; one pack where none is given. More than one are accumulated.
    #[serde(default)]
    pub batch_tokens: Option<usize>,
    /// Ranks that share a context. Of W ranks W / ring rings train on packs of their own.
    #[serde(default = "one")]
    pub ring: usize,
    /// How a pack's positions lie on the ranks of a ring.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ring_layout: Layout,
    /// How labelled tokens weigh.
    #[serde(default)]
    pub weigh: Weigh,
    /// Which labelled tokens train; all where none is given.
    #[serde(default)]
    pub select: Option<Select>,
    /// What the optimizer starts from.
    #[serde(default)]
    pub optimizer: Start,
    /// Bytes that a step may hold: what is computed again is chosen to fit.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Steps between checkpoints; one is written at the end of the stage in any case.
    #[serde(default)]
    pub checkpoint_every: Option<u64>,
    /// Steps of the stage whose checkpoints are written and never removed: branches leave from them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<u64>,
}

fn is_default(x: &Layout) -> bool {
    *x == Layout::default()
}

fn one() -> usize {
    1
}

/// How labelled tokens weigh in the loss of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weigh {
    /// Each token the same.
    #[default]
    Tokens,
    /// Each example the same, however many tokens it has: packed samples count as padded ones do.
    Examples,
}

/// Where the optimizer's moments come from when a stage begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Moments are 0 and the step counts from 1, as in a run of its own.
    #[default]
    Fresh,
    /// Moments of the stage before go on, with each part's own count of steps; a part that it did not train begins.
    Kept,
}

/// Selective training (Rho-1; OmChat's SVLM): of the labelled tokens only those with the largest score train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// The folder of reference losses that `omchat score` wrote.
    pub reference: std::path::PathBuf,
    /// The share of labelled tokens that is kept, to four decimals: 0.0001 at the least. 0.6 is Rho-1's for a model of a
    /// billion parameters; OmChat's is not published.
    #[serde(default = "six_tenths")]
    pub ratio: f64,
    /// Which difference is large for a token that is kept.
    #[serde(default)]
    pub score: Score,
    /// Among which tokens the largest are chosen.
    #[serde(default)]
    pub scope: Scope,
    /// What the sum of losses is divided by.
    #[serde(default)]
    pub normalizer: Normalizer,
}

fn six_tenths() -> f64 {
    0.6
}

/// The sign of a token's score.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// This model's loss less the reference's: keeps what the reference knows and this one lacks, as Rho-1 does.
    #[default]
    TrainMinusRef,
    /// The other reading of OmChat's text.
    RefMinusTrain,
}

/// Among which tokens the largest scores are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Those of one pass of the model, over all ranks.
    #[default]
    Batch,
    /// Those of each rank by itself.
    Rank,
}

/// What a selective loss is divided by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalizer {
    /// The tokens that were kept.
    #[default]
    Kept,
    /// All labelled tokens.
    All,
}

/// Parts of a model that may have a learning rate.
const PARTS: [&str; 3] = ["vision", "projector", "decoder"];

impl Stage {
    /// Packs of a step.
    pub fn packs(&self) -> usize {
        self.batch_tokens.map_or(1, |n| n / self.context.max(1)).max(1)
    }

    /// Steps of the stage.
    pub fn total_steps(&self) -> u64 {
        let each = (self.packs() * self.context.max(1)) as u64;
        self.steps.unwrap_or_else(|| self.tokens.unwrap_or(0).div_ceil(each))
    }

    /// Learning rates of the vision tower, the projector and the decoder at a step of the stage, 0 where frozen.
    pub fn rates(&self, step: u64) -> [f32; 3] {
        let factor = self.schedule.factor(step, self.total_steps());
        PARTS.map(|p| (self.train.get(p).copied().unwrap_or(0.0) * factor) as f32)
    }

    /// Whether the stage makes sense by itself.
    ///
    /// Errors: the first value that does not, with what it must be.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String, mend: &str| Err(Error::input(format!("stage `{}`: {what}", self.name), mend));
        if self.name.is_empty() || !self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return bad("its name is used for folders".into(), "use letters, digits, `-`, `_` and `.`");
        }
        if self.name.chars().all(|c| c == '.') {
            return bad("its name is that of a folder that is there already".into(), "use a letter or a digit in it");
        }
        if self.context == 0 {
            return bad("a context of 0 positions".into(), "give 1 or more");
        }
        if self.ring == 0 {
            return bad("a ring of 0 ranks".into(), "give 1 or more");
        }
        if let Some(n) = self.batch_tokens.filter(|n| *n == 0 || !n.is_multiple_of(self.context)) {
            return bad(format!("batch_tokens {n} for a context of {}", self.context), "give whole packs");
        }
        if self.steps.is_some() == self.tokens.is_some() {
            return bad("it has both or none of `steps` and `tokens`".into(), "give one of them");
        }
        if self.total_steps() == 0 {
            return bad("no step".into(), "give `steps` or `tokens` above 0");
        }
        if let Some(t) = self.theta.filter(|t| !(t.is_finite() && *t > 1.0)) {
            return bad(format!("theta is {t}"), "give a number above 1, such as 1e6");
        }
        self.check_mix()?;
        if self.train.is_empty() {
            return bad("nothing trains".into(), "give `train` a part with its rate: decoder = 2e-5");
        }
        for (part, rate) in &self.train {
            if !PARTS.contains(&part.as_str()) {
                return bad(format!("`{part}` is no part of a model"), "give vision, projector or decoder");
            }
            if !(rate.is_finite() && *rate >= 0.0) {
                return bad(format!("the rate of {part} is {rate}"), "give 0 or more");
            }
            let held = *rate as f32;
            if !held.is_finite() || (held == 0.0 && *rate > 0.0) {
                return bad(
                    format!("the rate of {part} is {rate}, in f32 it would be {held}"),
                    "give a number that f32 holds, such as 2e-5",
                );
            }
        }
        if let Some(s) = &self.select {
            if !(s.ratio > 0.0 && s.ratio <= 1.0) {
                return bad(format!("the ratio of kept tokens is {}", s.ratio), "give a share above 0, at most 1");
            }
            if s.ratio < 1e-4 {
                return bad(
                    format!("the ratio of kept tokens is {}, and four decimals count", s.ratio),
                    "give 0.0001 or more",
                );
            }
            if self.weigh == Weigh::Examples {
                return bad("a selection weighs each kept token the same".into(), "drop `weigh` or `select`");
            }
        }
        if self.checkpoint_every == Some(0) {
            return bad("checkpoint_every is 0".into(), "give 1 or more");
        }
        self.schedule.check().map_err(|e| match e {
            Error::Input { what, mend } => Error::input(format!("stage `{}`: {what}", self.name), mend),
            other => other,
        })
    }

    fn check_mix(&self) -> Result<()> {
        let sum: f64 = self.mix.values().sum();
        let wrong = self.mix.iter().find(|(_, p)| !(p.is_finite() && **p > 0.0));
        let mend = "give each data set a percentage above 0, 100 in all";
        match wrong {
            Some((name, p)) => Err(Error::input(format!("stage `{}`: {p} % of data set `{name}`", self.name), mend)),
            None if (sum - 100.0).abs() > 0.1 => {
                Err(Error::input(format!("stage `{}`: its mix adds up to {sum} %", self.name), mend))
            }
            None => Ok(()),
        }
    }
}
