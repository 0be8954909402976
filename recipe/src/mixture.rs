//! OmChat's search for how long to tune on a mixture of data: a trunk at a constant rate, and from the end of each of its
//! parts a branch whose rate falls to the end. The best branch is the model.
//!
//! 1. Each data set has a percentage (the mix of the recipe's only stage); small ones repeat.
//! 2. The trunk trains on one part after the other, each with these percentages, at a constant rate.
//! 3. From each part's last checkpoint, optimizer and place in the data with it, a branch goes on over the same data while
//!    the rate falls in a straight line, over an extra tenth of the steps so far.
//! 4. Each branch is evaluated.
//!
//! Source: the OmChat article (after MiniCPM, arXiv:2404.06395). Whether the tenth is of all steps so far or of a part is
//! not said there; `base` chooses.

use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::schedule::{Kind, Schedule};
use crate::spec::Dataset;
use crate::stage::{Stage, Start};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a trunk is cut and branched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixture {
    /// Parts of the trunk. The stage's steps are cut evenly.
    pub parts: u64,
    /// A branch's steps over those of `base`.
    #[serde(default = "tenth")]
    pub decay: f64,
    /// What the decay is a share of.
    #[serde(default)]
    pub base: Base,
    /// The factor of the rates at a branch's end.
    #[serde(default)]
    pub end: f64,
    /// What branches are judged by: the mean loss over each of these data sets, which no stage reads.
    pub held_out: BTreeMap<String, Dataset>,
    /// Packs of each held-out data set that are looked at, at most.
    #[serde(default = "packs")]
    pub packs: usize,
}

/// Of which steps a branch has a share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Base {
    /// All steps of the trunk so far.
    #[default]
    SoFar,
    /// Those of one part.
    Part,
}

fn tenth() -> f64 {
    0.1
}

fn packs() -> usize {
    16
}

/// A recipe's trunk and how it is branched.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The trunk: one stage at a constant rate.
    pub trunk: Recipe,
    /// Steps of the trunk at the end of each part.
    pub ends: Vec<u64>,
    /// The branch of each part.
    pub branches: Vec<Recipe>,
}

impl Plan {
    /// The plan of a recipe with a `[mixture]`.
    ///
    /// Errors: no mixture; not one stage; fewer steps than parts; a share that is none; a held-out set that is trained on.
    pub fn new(recipe: &Recipe) -> Result<Plan> {
        let bad = |what: String, mend: &str| Err(Error::input(what, mend));
        let Some(m) = &recipe.mixture else {
            return bad("the recipe has no [mixture]".into(), "see docs/recipe.md");
        };
        let [stage] = recipe.stages.as_slice() else {
            return bad(
                format!("a mixture is searched in one stage, and there are {}", recipe.stages.len()),
                "keep one",
            );
        };
        let total = stage.total_steps();
        if m.parts == 0 || total < m.parts {
            return bad(format!("{} parts of {total} steps", m.parts), "give each part a step or more");
        }
        let sound = m.decay > 0.0 && m.decay.is_finite() && (0.0..=1.0).contains(&m.end);
        if !sound {
            return bad(format!("decay {} and end {}", m.decay, m.end), "give a decay above 0 and an end from 0 to 1");
        }
        if let Some(name) = m.held_out.keys().find(|n| recipe.data.contains_key(*n)) {
            return bad(format!("`{name}` is trained on and held out"), "give held-out data sets names of their own");
        }
        if m.held_out.is_empty() {
            return bad("nothing is held out to judge branches by".into(), "name data sets under [mixture.held_out]");
        }
        let ends: Vec<u64> = (1..=m.parts).map(|p| total * p / m.parts).collect();
        let every = ends.clone();
        let constant = Schedule { kind: Kind::Constant, ..stage.schedule };
        let trunk_stage = Stage { schedule: constant, steps: Some(total), tokens: None, keep: every, ..stage.clone() };
        let of = |stage: Stage| Recipe { stages: vec![stage], mixture: None, ..recipe.clone() };
        let branch = |(i, end): (usize, &u64)| {
            let part = end - if i == 0 { 0 } else { ends[i - 1] };
            let base = if m.base == Base::SoFar { *end } else { part };
            let steps = ((base as f64 * m.decay).ceil() as u64).max(1);
            of(Stage {
                name: format!("{}-part-{}", stage.name, i + 1),
                schedule: Schedule { kind: Kind::Linear, warmup: 0.0, end: m.end, ..stage.schedule },
                steps: Some(steps),
                tokens: None,
                optimizer: Start::Kept,
                keep: vec![],
                ..stage.clone()
            })
        };
        Ok(Plan { trunk: of(trunk_stage), branches: ends.iter().enumerate().map(branch).collect(), ends })
    }
}

/// A branch and how it was judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Branch {
    /// Which part of the trunk it left, from 1.
    pub part: usize,
    /// Steps of the trunk before it.
    pub trunk_steps: u64,
    /// Its own steps.
    pub steps: u64,
    /// Positions that trunk and branch trained on.
    pub tokens: u64,
    /// The mean loss of labelled tokens of each held-out data set.
    pub losses: BTreeMap<String, f64>,
}

impl Branch {
    /// The mean over the held-out data sets, each the same.
    pub fn mean(&self) -> f64 {
        self.losses.values().sum::<f64>() / self.losses.len().max(1) as f64
    }
}

/// The branches as a Markdown table, the best marked.
pub fn table(branches: &[Branch]) -> String {
    let names: Vec<&String> = branches.first().map_or(vec![], |b| b.losses.keys().collect());
    let best = branches.iter().map(Branch::mean).fold(f64::INFINITY, f64::min);
    let mut out = String::from("| part | trunk steps | branch steps | tokens |");
    let mut rule = String::from("|---|---|---|---|");
    for name in names.iter().map(|n| n.as_str()).chain(["mean"]) {
        out += &format!(" {name} |");
        rule += "---|";
    }
    out += &format!("\n{rule}\n");
    for b in branches {
        out += &format!("| {} | {} | {} | {} |", b.part, b.trunk_steps, b.steps, b.tokens);
        for x in b.losses.values() {
            out += &format!(" {x:.4} |");
        }
        let mark = if b.mean() == best { " ← best" } else { "" };
        out += &format!(" {:.4}{mark} |\n", b.mean());
    }
    out
}
