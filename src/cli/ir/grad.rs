//! `ir grad`: a function's results and gradients as another function.

use super::lower::{self, Aim};
use super::pick::{Pick, Picked};
use crate::cli::{Error, say};
use omchat::Dump;
use omchat_codegen::PIPELINE;
use omchat_ir::{Action, Func, Function, Module, Node, Value, differentiate};

/// What `ir grad` takes.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pick: Pick,
    /// The parameters whose gradients are wanted; all that are floats if not given.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    wrt: Vec<String>,
    /// The results that are differentiated, by name or by place from 0; all that are floats if not given.
    #[arg(long, value_name = "RESULT", value_delimiter = ',')]
    of: Vec<String>,
    /// The last pass to run over it; none if not given.
    #[arg(long, value_name = "PASS", value_parser = clap::builder::PossibleValuesParser::new(PIPELINE.iter().map(|p| clap::builder::PossibleValue::new(p.name).help(p.why))))]
    to: Option<String>,
    #[command(flatten)]
    aim: Aim,
}

/// Prints the differentiated function with what it calls.
pub fn run(args: &Args) -> Result<(), Error> {
    let Picked { mut module, entry } = args.pick.one()?;
    let f = module.function(entry);
    let (wrt, of) = (parameters(f, &args.wrt)?, results(f, &args.of)?);
    let entry = differentiate(&mut module, &omchat_model::graph::scope()?, entry, &of, &wrt)?;
    let picked = needed(&module, entry);
    let Some(to) = &args.to else { return say(picked.module.to_string()) };
    say(lower::after(picked, &args.aim.target(), Some(to), Dump::of_env()?.as_ref())?.module.to_string())
}

/// A function with what it calls, and nothing else.
fn needed(module: &Module, entry: Func) -> Picked {
    let callee = |n: &Node| if let Action::Call { callee, .. } = n.action { Some(callee.0 as usize) } else { None };
    let mut keep = vec![false; module.functions.len()];
    keep[entry.0 as usize] = true;
    // A callee stands before its callers.
    for i in (0..keep.len()).rev() {
        if keep[i] {
            module.functions[i].nodes.iter().filter_map(callee).for_each(|c| keep[c] = true);
        }
    }
    let place = |i: usize| Func(keep[..i].iter().filter(|k| **k).count() as u32);
    let mut out = Module::default();
    for (f, _) in module.functions.iter().zip(&keep).filter(|(_, k)| **k) {
        let mut f = f.clone();
        for n in &mut f.nodes {
            if let Action::Call { callee, .. } = &mut n.action {
                *callee = place(callee.0 as usize);
            }
        }
        out.functions.push(f);
    }
    Picked { module: out, entry: place(entry.0 as usize) }
}

/// The parameters of those names, or all that are floats.
fn parameters(f: &Function, names: &[String]) -> Result<Vec<Value>, Error> {
    let float = |v: &Value| f.ty(*v).dtype.is_float();
    if names.is_empty() {
        let all: Vec<Value> = f.param_values().filter(float).collect();
        return if all.is_empty() { Err(none(f, "parameter")) } else { Ok(all) };
    }
    let known: Vec<Value> = f.param_values().collect();
    names.iter().map(|name| one(f, "parameter", &known, name).map(|i| known[i])).collect()
}

/// The places of the results of those names, or of all that are floats.
fn results(f: &Function, names: &[String]) -> Result<Vec<usize>, Error> {
    if names.is_empty() {
        let all: Vec<usize> = (0..f.results.len()).filter(|i| f.ty(f.results[*i]).dtype.is_float()).collect();
        return if all.is_empty() { Err(none(f, "result")) } else { Ok(all) };
    }
    names.iter().map(|name| one(f, "result", &f.results, name)).collect()
}

/// The place of a float among values, by its name, or by the place itself for results.
fn one(f: &Function, what: &str, known: &[Value], name: &str) -> Result<usize, Error> {
    let name = name.trim().trim_start_matches('%');
    let list = || known.iter().map(|v| format!("{}: {}", f.value(*v).name, f.ty(*v))).collect::<Vec<_>>().join(", ");
    let place = || name.parse().ok().filter(|i| what == "result" && *i < known.len());
    let found = known.iter().position(|v| f.value(*v).name == name).or_else(place);
    let Some(i) = found else {
        return Err(Error::input(format!("{} has no {what} `{name}`; it has {}", f.signature(), list())));
    };
    if f.ty(known[i]).dtype.is_float() {
        return Ok(i);
    }
    let name = &f.value(known[i]).name;
    Err(Error::input(format!(
        "{what} `{name}` of {} is no float: it has no gradient; there are {}",
        f.signature(),
        list()
    )))
}

fn none(f: &Function, what: &str) -> Error {
    Error::input(format!("{} has no float {what}: there is nothing to differentiate", f.signature()))
}
