//! `ir diff`: what differs between two modules, function by function.

use super::compare::{Comparison, Pair, Side, compare};
use super::lower::{self, Aim};
use super::pick::{Picked, Selection};
use super::text::Text;
use crate::cli::{Error, say};
use omchat_codegen::PIPELINE;
use omchat_ir::Module;
use similar::{DiffOp, group_diff_ops};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What `ir diff` takes.
#[derive(clap::Args)]
pub struct Args {
    /// A text, or `FILE@PASS`: the text's function after that pass. `@PASS` is the function of the library or of the
    /// model that `--function` and `--model` name after that pass, `@input` the same before any.
    #[arg(value_name = "A")]
    a: String,
    /// The other, in the same way.
    #[arg(value_name = "B")]
    b: String,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    aim: Aim,
}

/// What stands for no pass at all.
const INPUT: &str = "input";

/// Lines shown around a change.
const AROUND: usize = 3;

/// Prints the differences; exit code 1 if there are some, 2 if the two cannot be compared.
pub fn run(args: &Args) -> Result<(), Error> {
    let found = compared(args).map_err(Error::trouble)?;
    say(shown(&args.a, &args.b, &found))?;
    if found.same() { Ok(()) } else { Err(Error::Different) }
}

fn compared(args: &Args) -> Result<Comparison, Error> {
    let (a, b) = (Source::of(&args.a)?, Source::of(&args.b)?);
    if [&a.file, &b.file].iter().all(|file| file.as_deref() == Some(Path::new("-"))) {
        return Err(Error::input(
            "A and B are both the standard input, which is read once; name a file for one of them",
        ));
    }
    let whole = !args.selection.names() && a.pass.is_none() && b.pass.is_none();
    let module = |s: &Source| if whole { s.text() } else { s.module(&args.selection, &args.aim) };
    Ok(compare(&module(&a)?, &module(&b)?))
}

/// A text and the last pass to run over it.
struct Source {
    file: Option<PathBuf>,
    pass: Option<String>,
}

impl Source {
    /// What `FILE`, `FILE@PASS` or `@PASS` means; a file whose name holds an `@` is a file.
    ///
    /// Errors: a pass that does not exist.
    fn of(text: &str) -> Result<Source, Error> {
        let file = |path: &str| Some(path).filter(|p| !p.is_empty()).map(PathBuf::from);
        match text.rsplit_once('@') {
            Some((path, pass)) if !Path::new(text).exists() => {
                if pass != INPUT && !PIPELINE.iter().any(|p| p.name == pass) {
                    let names: Vec<&str> = PIPELINE.iter().map(|p| p.name).collect();
                    let names = names.join(", ");
                    return Err(Error::input(format!(
                        "`{text}`: there is no pass `{pass}`; there are {INPUT}, {names}"
                    )));
                }
                Ok(Source { file: file(path), pass: Some(pass.into()) })
            }
            _ => Ok(Source { file: file(text), pass: None }),
        }
    }

    /// The whole text.
    fn text(&self) -> Result<Module, Error> {
        match &self.file {
            Some(path) => Text::open(path)?.module(),
            None => Err(Error::input("name a file, `FILE@PASS`, or `@PASS` with `--function` or `--model`")),
        }
    }

    /// The function that is meant after the pass, with what it calls.
    fn module(&self, selection: &Selection, aim: &Aim) -> Result<Module, Error> {
        let picked: Picked = selection.one(self.file.as_deref())?;
        // A text as it is may be a dump, which has its call already.
        let Some(pass) = self.pass.as_deref() else { return Ok(picked.module) };
        let picked = picked.called(&lower::kernels())?;
        match pass {
            INPUT => Ok(picked.module),
            to => Ok(lower::after(picked, &aim.target(), Some(to), None)?.module),
        }
    }
}

/// The differences as text: what one side lacks in a line each, then each changed function, then the count.
fn shown(a: &str, b: &str, found: &Comparison) -> String {
    let mut out = String::new();
    if !found.same() {
        let _ = writeln!(out, "--- {a}\n+++ {b}");
    }
    for (side, sign, says) in [(Side::A, '-', "only in A"), (Side::B, '+', "only in B")] {
        for p in found.on(side) {
            let _ = writeln!(out, "{sign} {}: {says}, {} lines", p.name, p.a.len() + p.b.len());
        }
    }
    found.on(Side::Changed).for_each(|p| changed(&mut out, p));
    let _ = writeln!(out, "{}", found.summary());
    out
}

fn changed(out: &mut String, p: &Pair) {
    let there = p.there.as_ref().map_or(String::new(), |t| format!(" (in B {t})"));
    let _ = writeln!(out, "\n{}{there}", p.name);
    for group in group_diff_ops(p.edits.clone(), AROUND) {
        if let (Some(first), Some(last)) = (group.first(), group.last()) {
            let (from, to) =
                (first.old_range().start..last.old_range().end, first.new_range().start..last.new_range().end);
            let _ = writeln!(out, "@@ -{},{} +{},{} @@", from.start + 1, from.len(), to.start + 1, to.len());
        }
        for edit in group {
            let equal = matches!(edit, DiffOp::Equal { .. });
            for line in &p.a[edit.old_range()] {
                let _ = writeln!(out, "{} {line}", if equal { ' ' } else { '-' });
            }
            for line in p.b[edit.new_range()].iter().filter(|_| !equal) {
                let _ = writeln!(out, "+ {line}");
            }
        }
    }
}
