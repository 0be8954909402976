//! A recipe: from which model, on which data, in which stages. Read from TOML.

use crate::error::{Error, Result};
use crate::mixture::Mixture;
use crate::spec::Dataset;
use crate::stage::Stage;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// How a model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The model that training starts from: a folder, or a preset's name.
    pub model: String,
    /// What every draw of the run comes from.
    #[serde(default)]
    pub seed: u64,
    /// How pictures stand among words: `F0` to `F4` or a released layout; the model's where none is given.
    #[serde(default)]
    pub format: Option<String>,
    /// The element type of activations: `f32`, `bf16` or `f16`. Trained weights are kept in f32.
    #[serde(default = "single")]
    pub dtype: String,
    /// The element type of trained weights in the model after each stage: `f32`, `bf16` or `f16`; f32 where none is given.
    /// Checkpoints keep f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save_dtype: Option<String>,
    /// The numbers of AdamW.
    #[serde(default)]
    pub adamw: Hyper,
    /// The data sets, by name.
    #[serde(default)]
    pub data: BTreeMap<String, Dataset>,
    /// The search for how long to tune on a mixture; `omchat mix` runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixture: Option<Mixture>,
    /// The stages, in order.
    #[serde(rename = "stage")]
    pub stages: Vec<Stage>,
}

/// The numbers of AdamW that all stages share.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hyper {
    /// Decay of the first and the second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices.
    pub decay: f64,
    /// The largest norm of all gradients together.
    pub clip: f64,
}

impl Default for Hyper {
    fn default() -> Hyper {
        Hyper { betas: [0.9, 0.999], eps: 1e-8, decay: 0.0, clip: 1.0 }
    }
}

impl Hyper {
    /// Whether every number makes sense, as f32 too: the device has them so.
    ///
    /// Errors: the first that does not, with its range.
    pub fn check(&self) -> Result<()> {
        let bad = |field: &str, x: f64, range: &str| Err(Error::input(format!("adamw.{field} is {x}"), range));
        if let Some(beta) = self.betas.into_iter().find(|b| !(0.0..1.0).contains(b) || *b as f32 >= 1.0) {
            return bad("betas", beta, "give two numbers of 0 or more and below 1, such as [0.9, 0.95]");
        }
        for (field, x) in [("eps", self.eps), ("clip", self.clip)] {
            if !(x as f32 > 0.0 && (x as f32).is_finite()) {
                return bad(field, x, "give a number above 0 that f32 holds, such as 1e-8 for eps and 1.0 for clip");
            }
        }
        if !(self.decay >= 0.0 && (self.decay as f32).is_finite()) {
            return bad("decay", self.decay, "give 0 or more, such as 0.1");
        }
        Ok(())
    }
}

fn single() -> String {
    "f32".into()
}

impl Recipe {
    /// The recipe in a file: TOML, or JSON as a run's `recipe.json` where the name ends so. Paths in it are read from the
    /// file's folder, and are absolute then; those of a `recipe.json` are already.
    ///
    /// Errors: a file that cannot be read, or is no recipe, with the line; what [`Recipe::check`] says.
    pub fn read(path: &Path) -> Result<Recipe> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
        let wrong = |e: String| Error::format(path, e.trim_end().to_string(), "see docs/recipe.md");
        let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        let mut recipe = match json {
            true => serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?,
            false => Recipe::parse(&text).map_err(|e| wrong(e.to_string()))?,
        };
        // The same from wherever the file is named, and however.
        let here = Path::new(".");
        let folder = path.parent().filter(|p| !json && !p.as_os_str().is_empty()).unwrap_or(here);
        recipe.place(&std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf()));
        recipe.check().map_err(|e| match e {
            Error::Input { what, mend } => Error::format(path, what, mend),
            other => other,
        })?;
        Ok(recipe)
    }

    /// The recipe in a text; paths stay as they are written.
    ///
    /// Errors: what the parser says, with line and column.
    pub fn parse(text: &str) -> std::result::Result<Recipe, toml::de::Error> {
        toml::from_str(text)
    }

    /// Makes relative paths start at a folder.
    fn place(&mut self, folder: &Path) {
        let at = |p: &mut PathBuf| {
            if p.is_relative() {
                *p = folder.join(&*p);
            }
        };
        let held = self.mixture.iter_mut().flat_map(|m| m.held_out.iter_mut());
        for (name, set) in self.data.iter_mut().chain(held) {
            set.place(folder);
            set.name.clone_from(name);
        }
        for s in &mut self.stages {
            if let Some(select) = &mut s.select {
                at(&mut select.reference);
            }
        }
        let model = folder.join(&self.model);
        if model.is_dir() {
            self.model = model.to_string_lossy().into_owned();
        }
    }

    /// Whether the recipe makes sense by itself; no file is looked at.
    ///
    /// Errors: the first value that does not, with what it must be.
    pub fn check(&self) -> Result<()> {
        if self.stages.is_empty() {
            return Err(Error::input("no stage", "write one or more [[stage]]"));
        }
        self.adamw.check()?;
        let held = self.mixture.iter().flat_map(|m| &m.held_out);
        for (name, set) in self.data.iter().chain(held) {
            Dataset { name: name.clone(), ..set.clone() }.check()?;
        }
        let mut seen = BTreeSet::new();
        for s in &self.stages {
            s.check()?;
            if !seen.insert(&s.name) {
                return Err(Error::input(format!("two stages are called `{}`", s.name), "give each its own name"));
            }
            if let Some(name) = s.mix.keys().find(|n| !self.data.contains_key(*n)) {
                let known: Vec<&str> = self.data.keys().map(String::as_str).collect();
                return Err(Error::input(
                    format!("stage `{}` reads data set `{name}`, which is not there", s.name),
                    format!(
                        "name one of {}",
                        if known.is_empty() { "those under [data]".into() } else { known.join(", ") }
                    ),
                ));
            }
        }
        Ok(())
    }
}
