//! Answers kept as they come, so that a run that broke off goes on where it was.

use super::Question;
use crate::error::{Error, Result};
use crate::whole::write_whole;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A question with its answer: one line of `answers.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The question's name.
    pub id: String,
    /// The row of the table that it counts for.
    pub row: String,
    /// The column of the table that it counts for.
    pub column: String,
    /// What the question was made with.
    pub params: Map<String, Value>,
    /// What is right, in words.
    pub expected: String,
    /// What was answered.
    pub given: String,
    /// What was taken for the answer; nothing if none could be made out.
    pub read: Option<String>,
    /// From 0 to 1.
    pub score: f64,
    /// Whether it is right; of a graded score, whether it is 1.
    pub right: bool,
    /// What guessing scores on average.
    pub chance: f64,
}

impl Outcome {
    /// A question's outcome with that answer.
    pub fn of(question: &Question, given: String) -> Outcome {
        let verdict = question.expected.judge(&given);
        Outcome {
            id: question.id.clone(),
            row: question.row.clone(),
            column: question.column.clone(),
            params: question.params.clone(),
            expected: question.expected.to_string(),
            read: verdict.read,
            score: verdict.score,
            right: verdict.score >= 1.0,
            chance: question.expected.chance(),
            given,
        }
    }

    /// What in it contradicts itself or its range, if anything does.
    fn wrong(&self) -> Option<String> {
        let outside =
            [("score", self.score), ("chance", self.chance)].into_iter().find(|n| !(0.0..=1.0).contains(&n.1));
        match outside {
            Some((name, number)) => Some(format!("`{name}` is {number}, and goes from 0 to 1")),
            None if self.right != (self.score >= 1.0) => {
                Some(format!("`right` is {} at a `score` of {}", self.right, self.score))
            }
            None => None,
        }
    }
}

/// The answers of a folder, which belong to one process while it is there.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    known: HashMap<String, Outcome>,
    /// How many answers there were when it was opened.
    pub found: usize,
}

impl Log {
    /// The log of a folder, which is made if it is not there. `setup` is what all its answers have in common.
    ///
    /// A last line that was not written to its end is dropped. With `fresh` the answers that are there are given up.
    ///
    /// Errors: `File` if it cannot be read or written; `Format` for a line that is no answer, a score outside 0 to 1, or
    /// answers that were given under another setup; `Input` if another run writes there.
    pub fn open(dir: &Path, setup: &Value, fresh: bool) -> Result<Log> {
        std::fs::create_dir_all(dir).map_err(|why| Error::file(dir, why))?;
        let (path, run) = (dir.join("answers.jsonl"), dir.join("run.json"));
        let refused = |why| Error::file(&path, why);
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(refused)?;
        // The system gives it back when the process ends; where files cannot be locked, nobody is told.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let what = format!("another run writes its answers into {}", dir.display());
            return Err(Error::input(what, "wait for it, stop it, or name another --out"));
        }
        let bytes = if fresh { Vec::new() } else { read_if_there(&path)? };
        if !bytes.is_empty() {
            same_setup(&run, setup)?;
        }
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let mut known = HashMap::new();
        for (number, line) in bytes[..whole].split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let bad = |why: String| {
                let what = format!("line {} is no answer: {why}", number + 1);
                Error::format(&path, what, "remove the line, or start over with --fresh")
            };
            let outcome: Outcome = serde_json::from_slice(line).map_err(|why| bad(why.to_string()))?;
            if let Some(why) = outcome.wrong() {
                return Err(bad(why));
            }
            known.insert(outcome.id.clone(), outcome);
        }
        file.set_len(whole as u64).map_err(refused)?;
        // Only now: answers of another setup are gone, if there were some.
        let text = format!("{setup:#}\n");
        if read_if_there(&run)? != text.as_bytes() {
            write_whole(&run, text.as_bytes()).map_err(|why| Error::file(&run, why))?;
        }
        Ok(Log { found: known.len(), path, file, known })
    }

    /// The answer to a question, if there is one.
    pub fn known(&self, id: &str) -> Option<&Outcome> {
        self.known.get(id)
    }

    /// How many answers there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Adds an answer, on the disk before this returns.
    ///
    /// Errors: `File` if it cannot be written.
    pub fn append(&mut self, outcome: &Outcome) -> Result<()> {
        let mut line = serde_json::to_string(outcome).map_err(|why| Error::file(&self.path, why.into()))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|why| Error::file(&self.path, why))?;
        self.known.insert(outcome.id.clone(), outcome.clone());
        Ok(())
    }
}

fn read_if_there(path: &Path) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|why| Error::file(path, why)),
    }
}

/// Answers of two models, or to two wordings, must not be counted together.
fn same_setup(path: &Path, setup: &Value) -> Result<()> {
    let mend = "name another --out, or start over with --fresh";
    let before: Value = serde_json::from_slice(&read_if_there(path)?).map_err(|why| {
        Error::format(path, format!("it does not say what the answers beside it belong to: {why}"), mend)
    })?;
    let empty = Map::new();
    let (old, new) = (before.as_object().unwrap_or(&empty), setup.as_object().unwrap_or(&empty));
    let differs = old.keys().chain(new.keys()).find(|key| old.get(*key) != new.get(*key));
    match differs {
        Some(key) => {
            let show = |map: &Map<String, Value>| map.get(key).map_or("nothing".into(), Value::to_string);
            let what = format!("the answers there belong to another run: {key} was {} and is {}", show(old), show(new));
            Err(Error::format(path, what, mend))
        }
        None => Ok(()),
    }
}
