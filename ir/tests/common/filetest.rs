//! The walker of `tests/filetests/**/*.oir`: one test a file, `BLESS=1` rewrites what is expected.
//!
//! A file is IR text. Its header lines, `; test COMMAND …`, and what a command expects are comments: on the
//! offending line, on `; run:` lines, or in sections `; print:` at the end of the file.
//! A test binary gives one function that runs a command or says that it is another binary's.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};

/// What came of a command.
pub enum Outcome {
    /// It holds, or was blessed.
    Passed,
    /// It does not hold, and why.
    Failed(String),
    /// It could not run here, and what it needs.
    Skipped(String),
    /// Another test binary runs it.
    Elsewhere,
}

/// A file being tested.
pub struct FileTest {
    /// Its path below `tests/filetests`.
    pub name: String,
    /// Its lines, which blessing changes.
    pub lines: Vec<String>,
}

/// A header line, `; test NAME WORDS…`.
pub struct Command {
    /// Its first word.
    pub name: String,
    /// The words after it.
    pub words: Vec<String>,
}

impl Command {
    /// The value of a word `name=value`.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.words.iter().find_map(|w| w.strip_prefix(name)?.strip_prefix('='))
    }

    /// The functions named, `@f, @g`.
    pub fn functions(&self) -> Vec<&str> {
        self.words.iter().filter_map(|w| w.strip_prefix('@')).map(|w| w.trim_end_matches(',')).collect()
    }
}

/// Whether expectations are to be rewritten.
pub fn blessing() -> bool {
    std::env::var_os("BLESS").is_some_and(|v| v != "0")
}

/// The folder of the file tests.
pub fn folder() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    [here.join("tests/filetests"), here.join("../tests/filetests")]
        .into_iter()
        .find(|p| p.is_dir())
        .expect("tests/filetests is missing")
}

/// All `.oir` files below a folder, sorted.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut out = vec![];
    for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "oir") {
            out.push(path);
        }
    }
    out.sort();
    out
}

impl FileTest {
    /// Reads a file.
    pub fn read(path: &Path) -> FileTest {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let name = path.strip_prefix(folder()).unwrap_or(path).display().to_string();
        FileTest { name, lines: text.lines().map(String::from).collect() }
    }

    /// The header's commands.
    pub fn commands(&self) -> Vec<Command> {
        self.lines
            .iter()
            .filter_map(|l| l.strip_prefix("; test "))
            .map(|l| {
                let mut words = l.split_whitespace().map(String::from);
                Command { name: words.next().unwrap_or_default(), words: words.collect() }
            })
            .collect()
    }

    /// The IR text.
    pub fn source(&self) -> String {
        self.lines.join("\n")
    }

    /// The lines of a section `; NAME:` at the end of the file.
    pub fn section(&self, name: &str) -> Option<String> {
        let (from, to) = self.bounds(name)?;
        let lines: Vec<&str> = self.lines[from + 1..to]
            .iter()
            .map(|l| l.strip_prefix("; ").unwrap_or_else(|| l.trim_start_matches(';')))
            .collect();
        Some(lines.join("\n"))
    }

    /// Fails unless the section holds that text; blessing writes it.
    pub fn expect(&mut self, name: &str, text: &str) -> Outcome {
        let text = text.trim_end();
        if self.section(name).as_deref() == Some(text) {
            return Outcome::Passed;
        }
        if !blessing() {
            let want = self.section(name).unwrap_or_else(|| format!("(there is no section `; {name}:`)"));
            return Outcome::Failed(format!(
                "`test {name}` expects\n{want}\n\nbut it is\n{text}\n\nBLESS=1 rewrites it"
            ));
        }
        let section =
            std::iter::once(format!("; {name}:")).chain(text.lines().map(|l| format!("; {l}").trim_end().to_string()));
        match self.bounds(name) {
            Some((from, to)) => drop(self.lines.splice(from..to, section)),
            None => {
                if self.lines.last().is_some_and(|l| !l.is_empty() && !l.starts_with("; ")) {
                    self.lines.push(String::new());
                }
                self.lines.extend(section);
            }
        }
        Outcome::Passed
    }

    fn bounds(&self, name: &str) -> Option<(usize, usize)> {
        let head = |l: &str| {
            l.strip_prefix("; ").and_then(|l| l.strip_suffix(':')).filter(|n| SECTIONS.contains(n)).map(String::from)
        };
        let from = self.lines.iter().position(|l| head(l).as_deref() == Some(name))?;
        let to = (from + 1..self.lines.len())
            .find(|&i| head(&self.lines[i]).is_some() || !self.lines[i].starts_with(';'))
            .unwrap_or(self.lines.len());
        Some((from, to))
    }
}

/// Commands whose expectation is a section of its own at the end of the file.
pub const SECTIONS: [&str; 7] = ["print", "format", "render", "pass", "plan", "source", "explain"];

/// Runs every file whose commands this binary knows, and ends the process.
pub fn main(run: fn(&mut FileTest, &Command) -> Outcome) {
    let root = folder();
    let trials = files(&root)
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
            Trial::test(name, move || one(&path, run))
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn one(path: &Path, run: fn(&mut FileTest, &Command) -> Outcome) -> Result<(), Failed> {
    let mut file = FileTest::read(path);
    let before = file.lines.clone();
    let commands = file.commands();
    let mut faults = if commands.is_empty() { vec!["the file has no line `; test …`".to_string()] } else { vec![] };
    for c in &commands {
        match run(&mut file, c) {
            Outcome::Passed | Outcome::Elsewhere => {}
            Outcome::Skipped(why) => println!("skipped: {}: test {}: {why}", file.name, c.name),
            Outcome::Failed(why) => faults.push(why),
        }
    }
    if blessing() && file.lines != before {
        std::fs::write(path, file.lines.join("\n") + "\n")?;
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}
