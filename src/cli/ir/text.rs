//! `ir print`, `verify` and `fmt`: what needs the text only.

use super::pick::Pick;
use crate::cli::{Error, say};
use omchat_ir::text::{File, parse_file};
use omchat_ir::{Diagnostics, Scope};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Texts by name.
#[derive(clap::Args)]
pub struct Texts {
    /// The texts to read; `-` stands for the standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What `ir print` takes.
#[derive(clap::Args)]
pub struct Print {
    /// The texts to read; `-` stands for the standard input.
    #[arg(required_unless_present = "function", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Prints this function, with what it calls, instead of all; without a FILE it is looked for in the library.
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// What free letters of the function stand for, as `T=16,E=f32`.
    #[arg(long, value_name = "LETTER=VALUE", value_delimiter = ',', requires = "function")]
    bind: Vec<String>,
}

/// What `ir fmt` takes.
#[derive(clap::Args)]
pub struct Fmt {
    #[command(flatten)]
    texts: Texts,
    /// Changes nothing and exits with 1 if a text is laid out otherwise.
    #[arg(long, conflicts_with = "write")]
    check: bool,
    /// Rewrites the files instead of printing them.
    #[arg(long)]
    write: bool,
}

/// A text and what it says.
pub(super) struct Text {
    /// What faults call it.
    pub name: String,
    source: String,
    /// Its functions and templates.
    pub file: File,
}

impl Text {
    /// Reads a file, or the standard input for `-`.
    ///
    /// Errors: it cannot be read; faults of the grammar.
    pub fn open(path: &Path) -> Result<Text, Error> {
        let (name, source) = read(path)?;
        match parse_file(&source) {
            Ok(file) => Ok(Text { name, source, file }),
            Err(faults) => Err(Error::Rendered(faults.render(&name, &source))),
        }
    }

    /// The functions that it may call: its own and the library's.
    pub fn scope(&self) -> Result<Scope<'_>, Error> {
        Ok(Scope::new(&[omchat_ir::library::file()?, &self.file]))
    }

    /// Its functions without free letters.
    ///
    /// Errors: all faults, at their places.
    pub fn module(&self) -> Result<omchat_ir::Module, Error> {
        self.scope()?.module(&self.file).map_err(|faults| self.shown(&faults))
    }

    /// Faults as the user reads them.
    pub fn shown(&self, faults: &Diagnostics) -> Error {
        Error::Rendered(faults.render(&self.name, &self.source))
    }
}

/// Prints the concrete modules.
pub fn print(args: &Print) -> Result<(), Error> {
    let picks = |file| Pick::of(file, args.function.clone(), args.bind.clone()).one();
    if args.files.is_empty() {
        return say(picks(None)?.module.to_string());
    }
    for path in &args.files {
        if args.function.is_some() {
            say(picks(Some(path.clone()))?.module.to_string())?;
            continue;
        }
        let text = Text::open(path)?;
        let module = text.module()?;
        if text.file.functions.is_empty() {
            return Err(Error::input(format!("{}: there is no function in it; write one, see docs/oir.md", text.name)));
        }
        if module.functions.is_empty() {
            return Err(Error::input(format!(
                "{}: every function has free letters; choose one by `--function` and bind them by `--bind`",
                text.name
            )));
        }
        say(module.to_string())?;
    }
    Ok(())
}

/// Says `ok`, or shows all faults of all texts.
pub fn verify(args: &Texts) -> Result<(), Error> {
    let mut shown = String::new();
    for path in &args.files {
        match verified(path) {
            Ok(line) => say(line)?,
            Err(Error::Rendered(faults)) => shown += &faults,
            Err(other) => return Err(other),
        }
    }
    if shown.is_empty() { Ok(()) } else { Err(Error::Rendered(shown)) }
}

fn verified(path: &Path) -> Result<String, Error> {
    let text = Text::open(path)?;
    let module = text.module()?;
    module.verify().map_err(|faults| text.shown(&faults))?;
    let free = text.file.functions.iter().filter(|t| t.letters.iter().any(|(_, b)| b.is_none())).count();
    let rest = if free > 0 {
        format!("; {free} with free letters, of which only the grammar was checked")
    } else {
        String::new()
    };
    Ok(format!("ok: {}: {} functions{rest}\n", text.name, text.file.functions.len() - free))
}

/// Lays texts out.
pub fn fmt(args: &Fmt) -> Result<(), Error> {
    let mut other = vec![];
    for path in &args.texts.files {
        let (name, source) = read(path)?;
        let laid = omchat_ir::format(&source).map_err(|faults| Error::Rendered(faults.render(&name, &source)))?;
        if args.check {
            if laid != source {
                other.push(name);
            }
        } else if args.write {
            rewrite(path, &name, &source, &laid)?;
        } else {
            say(laid)?;
        }
    }
    if other.is_empty() {
        return Ok(());
    }
    Err(Error::failed(format!("laid out otherwise: {}; `omchat ir fmt --write` mends it", other.join(", "))))
}

fn rewrite(path: &Path, name: &str, source: &str, laid: &str) -> Result<(), Error> {
    if path == Path::new("-") {
        return Err(Error::input("the standard input cannot be written: leave out `--write`"));
    }
    if laid == source {
        return Ok(());
    }
    std::fs::write(path, laid).map_err(|e| Error::input(format!("cannot write {name}: {e}")))
}

fn read(path: &Path) -> Result<(String, String), Error> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| Error::input(format!("cannot read the standard input: {e}")))?;
        return unmarked("<stdin>".into(), text);
    }
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| Error::input(format!("cannot read {name}: {e}")))?;
    unmarked(name, text)
}

/// A text that does not begin with a byte order mark, which nobody sees and the grammar does not have.
fn unmarked(name: String, text: String) -> Result<(String, String), Error> {
    if text.starts_with('\u{feff}') {
        return Err(Error::input(format!(
            "{name} begins with a byte order mark (the bytes EF BB BF); write it as UTF-8 without one"
        )));
    }
    Ok((name, text))
}
