//! Which function of a text, or of the library, a command is about.

use super::text::Text;
use crate::cli::Error;
use omchat::{Chunks, EngineOptions};
use omchat_codegen::Kernel;
use omchat_codegen::Target;
use omchat_ir::text::{Template, instantiate_call};
use omchat_ir::{Action, Bind, Builder, Diagnostics, Dtype, Func, Module, Scope, Value};
use omchat_model::OmChatConfig;
use omchat_model::graph::{
    DecoderSpec, Draw, ForwardSpec, Output, Recompute, Spread, TrainSpec, decoder_module, step_module, vision_module,
};
use omchat_model::presets::preset;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A function, by text, name and letters.
#[derive(clap::Args)]
pub struct Pick {
    /// The text to read; `-` stands for the standard input. Without one, `--function` names a function of the
    /// library or of the model's blocks.
    #[arg(value_name = "FILE", conflicts_with_all = ["model", "dtype"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    of: Selection,
}

/// A function by name and letters, of a text, of the library or of a model.
#[derive(clap::Args)]
pub struct Selection {
    /// The function to take; the last one that can be taken as it is if not given.
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// What free letters of the function stand for, as `T=16,E=f32`.
    #[arg(long, value_name = "LETTER=VALUE", value_delimiter = ',')]
    bind: Vec<String>,
    /// Takes a model's programs, by its folder or preset, instead of a text: `vision`, `prompt`, `loss`, `decode`, `draw`
    /// (a decode that draws an id) and `step`, which `--function` tells apart.
    #[arg(long, value_name = "DIR|PRESET", conflicts_with = "bind")]
    model: Option<String>,
    /// The element type of a model's programs.
    #[arg(long, default_value = "f32", requires = "model")]
    dtype: String,
}

/// A module and the function of it to take.
pub(crate) struct Picked {
    pub module: Module,
    pub entry: Func,
}

impl Picked {
    /// The same, behind a call where a kernel implements the function: kernels take calls, not entries.
    ///
    /// Errors: faults of the module.
    pub fn called(mut self, kernels: &[&dyn Kernel]) -> Result<Picked, Error> {
        let f = self.module.function(self.entry);
        if !kernels.iter().any(|k| k.implements().function(&f.name)) {
            return Ok(self);
        }
        let f = f.clone();
        let mut b = Builder::new(&mut self.module, &f.name, BTreeMap::new());
        let params: Vec<Value> = f
            .param_values()
            .zip(&f.params)
            .map(|(v, role)| b.param(*role, &f.value(v).name, f.ty(v).clone()))
            .collect();
        let names: Vec<String> = f.results.iter().map(|v| f.value(*v).name.clone()).collect();
        let action = Action::Call { callee: self.entry, remat: false };
        let results = b.node(&names, action, &params).map_err(Diagnostics::from)?;
        self.entry = b.finish(results);
        Ok(self)
    }
}

impl Pick {
    /// The one function that is meant; of a model's programs as a CPU runs them.
    ///
    /// Errors: faults of the text; no such function; a letter that is unknown or not bound.
    pub fn one(&self) -> Result<Picked, Error> {
        self.one_on(&Target::cpu(1))
    }

    /// The one function that is meant; of a model's programs as that target runs them.
    ///
    /// Errors: as [`Pick::one`].
    pub fn one_on(&self, target: &Target) -> Result<Picked, Error> {
        self.all(target)?.pop().ok_or_else(nothing)
    }

    /// A function by text, name and letters.
    pub fn of(file: Option<PathBuf>, function: Option<String>, bind: Vec<String>) -> Pick {
        Pick { file, of: Selection { function, bind, model: None, dtype: Dtype::F32.to_string() } }
    }

    /// The function that is meant, or every function of the text that can be taken as it is.
    ///
    /// Errors: as [`Pick::one`].
    pub fn all(&self, target: &Target) -> Result<Vec<Picked>, Error> {
        self.of.all(self.file.as_deref(), target, true)
    }
}

impl Selection {
    /// Whether it names a function, so that not the whole text is meant.
    pub fn names(&self) -> bool {
        self.function.is_some() || self.model.is_some()
    }

    /// The one function that is meant, of that text if there is one. A text without free letters may stand beside another
    /// with some: letters need not be its.
    ///
    /// Errors: as [`Pick::one`].
    pub fn one(&self, file: Option<&Path>) -> Result<Picked, Error> {
        self.all(file, &Target::cpu(1), false)?.pop().ok_or_else(nothing)
    }

    /// A text that is given is read, whatever model is named. With `all_bound` each letter must be one of the function.
    fn all(&self, file: Option<&Path>, target: &Target, all_bound: bool) -> Result<Vec<Picked>, Error> {
        if let (Some(model), None) = (&self.model, file) {
            return of_model(model, &self.dtype, self.function.as_deref(), Chunks::of(target));
        }
        let letters = self.letters()?;
        match (file, &self.function) {
            (Some(path), name) => of_text(&Text::open(path)?, name.as_deref(), &letters, all_bound),
            (None, Some(name)) => Ok(vec![of_library(name, &letters)?]),
            (None, None) => Err(Error::input(
                "name a FILE, or a function of the library by `--function NAME --bind LETTER=VALUE,…`",
            )),
        }
    }

    fn letters(&self) -> Result<Vec<(&str, Bind)>, Error> {
        let help = "a letter is bound to a size or a dtype, as `T=16,E=f32`";
        let all: Vec<(&str, Bind)> = self
            .bind
            .iter()
            .map(|b| {
                let (letter, value) = b.split_once('=').ok_or_else(|| Error::input(format!("`--bind {b}`: {help}")))?;
                let size = value.trim().parse().ok().map(Bind::Size);
                let bind = size.or_else(|| Dtype::from_name(value.trim()).map(Bind::Dtype));
                Ok((letter.trim(), bind.ok_or_else(|| Error::input(format!("`--bind {b}`: {help}")))?))
            })
            .collect::<Result<_, Error>>()?;
        match all.iter().enumerate().find(|(i, (letter, _))| all[..*i].iter().any(|(other, _)| other == letter)) {
            Some((_, (letter, _))) => {
                Err(Error::input(format!("`--bind {}`: {letter} is bound twice; bind it once", self.bind.join(","))))
            }
            None => Ok(all),
        }
    }
}

fn nothing() -> Error {
    Error::input("there is no function to take")
}

fn of_text(text: &Text, name: Option<&str>, letters: &[(&str, Bind)], all_bound: bool) -> Result<Vec<Picked>, Error> {
    let free = |t: &Template| t.letters.iter().any(|(_, b)| b.is_none());
    let mut own = text.file.functions.iter().rev();
    let template = match name {
        Some(name) => own.find(|t| t.name == name),
        None if letters.is_empty() => None,
        None => own.find(|t| free(t)),
    };
    let fault = |faults: Diagnostics| text.shown(&faults);
    match template {
        Some(t) if free(t) => instance(&text.scope()?, t, letters, &fault).map(|p| vec![p]),
        None if name.is_some() => {
            let library = omchat_ir::library::file()?;
            let t = library.functions.iter().find(|t| Some(t.name.as_str()) == name);
            let t = t.ok_or_else(|| unknown(name.unwrap_or_default(), &[&text.file.functions, &library.functions]))?;
            instance(&text.scope()?, t, letters, &fault).map(|p| vec![p])
        }
        _ => {
            let all = concrete(text, name)?;
            match letters.first().filter(|_| all_bound) {
                Some((letter, _)) => Err(Error::input(format!(
                    "{}: {} has a free letter `{letter}`; leave --bind out",
                    text.name,
                    name.map_or("no function".into(), |name| format!("no @{name}"))
                ))),
                None => Ok(all),
            }
        }
    }
}

/// The functions of a text that have no free letter, or those of that name among them, each with what it calls.
fn concrete(text: &Text, name: Option<&str>) -> Result<Vec<Picked>, Error> {
    // A fault anywhere in the text is told, whichever function is meant.
    text.module()?;
    let scope = text.scope()?;
    let bound = |t: &&Template| name.is_none_or(|n| n == t.name) && t.letters.iter().all(|(_, b)| b.is_some());
    let mut all = vec![];
    for t in text.file.functions.iter().filter(bound) {
        all.push(instance(&scope, t, &[], &|faults| text.shown(&faults))?);
    }
    if text.file.functions.is_empty() {
        return Err(Error::input(format!("{}: there is no function in it; write one, see docs/oir.md", text.name)));
    }
    if all.is_empty() {
        let names: Vec<&str> = text.file.functions.iter().map(|t| t.name.as_str()).collect();
        return Err(Error::input(format!(
            "{}: every function has free letters; choose one by `--function` and bind them by `--bind`: {}",
            text.name,
            names.join(", ")
        )));
    }
    Ok(all)
}

/// Slots of the cache in a model's programs here; kernels do not depend on it.
const SLOTS: usize = 4096;

/// A model's programs as a chat runs them, the parity door's losses among them.
fn of_model(model: &str, dtype: &str, name: Option<&str>, chunks: Chunks) -> Result<Vec<Picked>, Error> {
    let config = match preset(model) {
        Ok(config) => config,
        Err(_) => OmChatConfig::from_dir(Path::new(model))?,
    };
    let dtype =
        Dtype::from_name(dtype).ok_or_else(|| Error::input(format!("`{dtype}` is no dtype; give f32, bf16 or f16")))?;
    // Large, and asked for by name only.
    if name == Some("step") {
        let module = training(&config, chunks.large, dtype)?;
        return Ok(vec![Picked { entry: Func(module.functions.len() as u32 - 1), module }]);
    }
    let mut all = vec![];
    if config.vision.is_some() {
        all.push(("vision", vision_module(&config, EngineOptions::default().tiles, dtype)?));
    }
    let spec =
        |tokens, features, output| DecoderSpec { tokens, capacity: SLOTS, features, output, spread: Spread::Alone };
    let features = config.vision.is_some();
    all.push(("prompt", decoder_module(&config, spec(chunks.large, features, Output::Last), dtype)?));
    all.push(("loss", decoder_module(&config, spec(chunks.small, features, Output::Loss), dtype)?));
    all.push(("decode", decoder_module(&config, spec(1, false, Output::Last), dtype)?));
    let drawn = Output::Drawn(Draw { top_k: 50, top_p: true });
    all.push(("draw", decoder_module(&config, spec(1, false, drawn), dtype)?));
    let names: Vec<&str> = all.iter().map(|(n, _)| *n).chain(["step"]).collect();
    let taken: Vec<Picked> = all
        .iter()
        .filter(|(n, _)| name.is_none_or(|want| want == *n))
        .map(|(_, m)| Picked { entry: Func(m.functions.len() as u32 - 1), module: m.clone() })
        .collect();
    if taken.is_empty() {
        return Err(Error::input(format!(
            "the model has no program `{}`; it has {}",
            name.unwrap_or_default(),
            names.join(", ")
        )));
    }
    Ok(taken)
}

/// A training step as `omchat step` plans it where memory is scarce: one tile and a chunk of tokens.
fn training(config: &OmChatConfig, tokens: usize, dtype: Dtype) -> Result<Module, Error> {
    let tiles = usize::from(config.vision.is_some());
    let forward = ForwardSpec { tiles, mlp_tiles: 2, loss_tiles: 2, ..ForwardSpec::text(tokens) };
    let spec = TrainSpec { recompute: Recompute::AllButAttention, ..TrainSpec::whole(forward) };
    Ok(step_module(config, &spec, dtype)?)
}

fn of_library(name: &str, letters: &[(&str, Bind)]) -> Result<Picked, Error> {
    let (library, blocks) = (omchat_ir::library::file()?, omchat_model::graph::blocks()?);
    let t = blocks.functions.iter().chain(&library.functions).find(|t| t.name == name);
    let t = t.ok_or_else(|| unknown(name, &[&library.functions, &blocks.functions]))?;
    instance(&omchat_model::graph::scope()?, t, letters, &Error::failed)
}

fn instance(
    scope: &Scope,
    t: &Template,
    letters: &[(&str, Bind)],
    fault: &dyn Fn(Diagnostics) -> Error,
) -> Result<Picked, Error> {
    let free: Vec<&str> = t.letters.iter().filter(|(_, b)| b.is_none()).map(|(n, _)| n.as_str()).collect();
    if let Some((letter, _)) = letters.iter().find(|(n, _)| !free.contains(n)) {
        let has = if free.is_empty() { "none".into() } else { free.join(", ") };
        return Err(Error::input(format!("@{} has no free letter `{letter}`; it has {has}", t.name)));
    }
    let unbound: Vec<&str> = free.iter().copied().filter(|n| !letters.iter().any(|(l, _)| l == n)).collect();
    if !unbound.is_empty() {
        return Err(Error::input(format!(
            "@{} has free letters {}; bind each by `--bind LETTER=VALUE,…`",
            t.name,
            unbound.join(", ")
        )));
    }
    let given: Vec<(&str, Bind)> =
        t.letters.iter().filter_map(|(n, b)| b.map(|b| (n.as_str(), b))).chain(letters.iter().copied()).collect();
    let mut module = Module::default();
    let entry = instantiate_call(scope, &mut module, &t.name, &given).map_err(fault)?;
    Ok(Picked { module, entry })
}

fn unknown(name: &str, known: &[&[Template]]) -> Error {
    let names: Vec<&str> = known.iter().flat_map(|file| file.iter()).map(|t| t.name.as_str()).collect();
    Error::input(format!("there is no function `{name}`; there are {}", names.join(", ")))
}
