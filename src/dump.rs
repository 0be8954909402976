//! `OMCHAT_DUMP`: the module after chosen passes, written as text that can be fed back.

use crate::Error;
use omchat_codegen::{PIPELINE, Pass, Unit};
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// What is called after each pass.
pub type After<'a> = &'a mut dyn FnMut(&Pass, &Unit);

/// Writes the modules of programs that are being lowered: after which passes, and where to.
#[derive(Debug)]
pub struct Dump {
    passes: Vec<&'static str>,
    folder: PathBuf,
    /// How many programs of each name were begun.
    begun: Mutex<HashMap<String, usize>>,
}

impl Dump {
    /// What `OMCHAT_DUMP` asks for, if it is set and not empty: names of passes with commas between, or `all`.
    /// The files go to `OMCHAT_DUMP_DIR`, or to the current folder.
    ///
    /// Errors: `Input` for a pass that does not exist.
    pub fn of_env() -> Result<Option<Dump>, Error> {
        let Some(passes) = std::env::var_os("OMCHAT_DUMP").filter(|p| !p.is_empty()) else { return Ok(None) };
        let folder = std::env::var_os("OMCHAT_DUMP_DIR").filter(|d| !d.is_empty()).unwrap_or_else(|| ".".into());
        Dump::new(&passes.to_string_lossy(), folder).map(Some)
    }

    /// After the passes of a list with commas, or `all`, into a folder that need not exist yet.
    ///
    /// Errors: `Input` for a pass that does not exist.
    pub fn new(passes: &str, folder: impl Into<PathBuf>) -> Result<Dump, Error> {
        let mut chosen = vec![];
        for name in passes.split(',').map(str::trim) {
            match PIPELINE.iter().find(|p| p.name == name) {
                Some(p) => chosen.push(p.name),
                None if name == "all" => chosen.extend(PIPELINE.iter().map(|p| p.name)),
                None => return Err(unknown(name)),
            }
        }
        Ok(Dump { passes: chosen, folder: folder.into(), begun: Mutex::default() })
    }

    /// Lowers a program by `lower` and writes what it shows after the chosen passes: a file each, called
    /// `<name>.<NN>-<pass>.oir` where NN is the pass's place in the pipeline, and `<name>.2.<NN>-<pass>.oir` for the
    /// second program of that name. A line on stderr says where.
    ///
    /// Errors: those of `lower`; `Input` for a file that cannot be written.
    pub fn watch<T, E: Into<Error>>(&self, name: &str, lower: impl FnOnce(After) -> Result<T, E>) -> Result<T, Error> {
        let stem = self.stem(name);
        let (mut seen, mut written) = (0, Ok(()));
        let made = lower(&mut |pass, unit| {
            seen += 1;
            if written.is_ok() && self.passes.contains(&pass.name) {
                written = self.write(&stem, pass, unit);
            }
        });
        if made.is_ok() && seen == 0 {
            tell(&format!("OMCHAT_DUMP: @{name} is interpreted as it is: no pass runs, nothing is written"));
        }
        written?;
        made.map_err(Into::into)
    }

    fn stem(&self, name: &str) -> String {
        let plain = |c: char| if c.is_alphanumeric() || "_.-".contains(c) { c } else { '_' };
        let name: String = name.chars().map(plain).collect();
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let nth = begun.entry(name.clone()).or_default();
        *nth += 1;
        if *nth == 1 { name } else { format!("{name}.{nth}") }
    }

    fn write(&self, stem: &str, pass: &Pass, unit: &Unit) -> Result<(), Error> {
        let place = PIPELINE.iter().position(|p| p.name == pass.name).unwrap_or_default() + 1;
        let path = self.folder.join(format!("{stem}.{place:02}-{}.oir", pass.name));
        let done = std::fs::create_dir_all(&self.folder).and_then(|()| std::fs::write(&path, unit.module.to_string()));
        done.map_err(|e| Error::Input(format!("OMCHAT_DUMP: cannot write {}: {e}", path.display())))?;
        tell(&format!("after {}: {}", pass.name, path.display()));
        Ok(())
    }
}

/// Lowers a program, and dumps it if that is asked for.
///
/// Errors: as [`Dump::watch`].
pub fn watched<T, E: Into<Error>>(
    dump: Option<&Dump>,
    name: &str,
    lower: impl FnOnce(After) -> Result<T, E>,
) -> Result<T, Error> {
    match dump {
        Some(dump) => dump.watch(name, lower),
        None => lower(&mut |_, _| {}).map_err(Into::into),
    }
}

fn unknown(name: &str) -> Error {
    let names: Vec<&str> = PIPELINE.iter().map(|p| p.name).collect();
    Error::Input(format!("OMCHAT_DUMP: there is no pass `{name}`; give `all` or some of {}", names.join(", ")))
}

/// A line on stderr; nobody is told when nobody listens.
fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
