//! Benchmarks with questions in files: several options, or an answer in words.
//!
//! Records are known by their fields, in the layouts in which MVBench, MileBench, Mantis-Eval, Q-Bench and MMBench are
//! published. Every benchmark is asked in one wording of ours: the question, the options by letter, and the request for
//! the letter.

mod apart;
mod base64;
mod json;
mod media;
mod table;

use super::{Expected, Outcome, Prompt, Question, Sight, Skipped};
use crate::error::{Error, Result};
use media::Media;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// What asks for a letter.
pub const BY_LETTER: &str = "Answer with the option's letter from the given choices directly.";
/// What asks for words.
pub const BY_WORDS: &str = "Answer the question using a single word or phrase.";
/// What is kept beside an answer of a question in several orders: how many there are.
const ROTATIONS: &str = "rotations";

/// One record of a benchmark.
#[derive(Debug, Clone)]
pub struct Record {
    /// Where it is from.
    pub file: PathBuf,
    /// Its name, unlike every other of what was loaded together.
    pub id: String,
    /// What it counts for.
    pub task: String,
    /// The question, with `<image>` where a picture stands.
    pub text: String,
    /// What is right.
    pub expected: Expected,
    /// What there is to see.
    pub sights: Vec<Sight>,
    /// Of a question asked in several orders of its options: which it is.
    pub group: Option<String>,
    /// Other fields that are kept beside the answer.
    pub params: Map<String, Value>,
}

/// The records of some files, and those that are not usable.
#[derive(Debug, Default)]
pub struct Loaded {
    /// In the order of the files.
    pub records: Vec<Record>,
    /// What is wrong with the others.
    pub bad: Vec<Skipped>,
}

/// How records become questions.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Where pictures and videos are; beside the file if `None`.
    pub media: Option<PathBuf>,
    /// How many frames of a video are looked at.
    pub frames: usize,
    /// Words are weighed so, whatever the benchmark says.
    pub metric: Option<super::Metric>,
}

/// A layout's way to read one record: its number, its fields, where files are.
type Read = fn(usize, &Map<String, Value>, &Context) -> std::result::Result<Record, String>;

/// What records of a file share.
struct Context<'a> {
    file: &'a Path,
    name: String,
    media: Media,
    reading: &'a Reading,
    /// What MileBench says of the whole file.
    meta: Map<String, Value>,
}

/// The records of files, and of the `.json`, `.jsonl` and `.tsv` files of folders. A file named twice is read once.
///
/// A record is called by its file's name and its own; where two would be called the same, by its file's path, and by a
/// number if that does not tell them apart.
///
/// Errors: `File` for what cannot be read; `Format` for a file that is no list of records in a known layout, or of which
/// no record is usable.
pub fn load(paths: &[PathBuf], reading: &Reading) -> Result<Loaded> {
    let mut files = Vec::new();
    for path in paths {
        list(path, &mut files)?;
    }
    let mut named = HashSet::new();
    files.retain(|file| named.insert(file.clone()));
    let mut out = Loaded::default();
    for file in &files {
        let before = out.records.len();
        let bad = out.bad.len();
        match ending(file).as_str() {
            "tsv" => table::read(file, &mut out)?,
            _ => json::read(file, reading, &mut out)?,
        }
        if out.records.len() == before {
            let why = out.bad.get(bad).map_or("it holds none".to_owned(), |first| first.why.clone());
            return Err(Error::format(file, format!("none of its records can be used: {why}"), LAYOUTS));
        }
    }
    if out.records.is_empty() {
        return Err(Error::input("there is no file with questions", LAYOUTS));
    }
    apart::apart(&mut out.records);
    Ok(out)
}

const LAYOUTS: &str = "give files of MVBench, MileBench, Mantis-Eval or Q-Bench (.json, .jsonl) or of MMBench (.tsv)";

fn ending(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase()
}

/// A file's text, without the byte order mark that it may begin with.
fn text_of(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).map_err(|why| Error::file(file, why))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn stem(path: &Path) -> String {
    path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned()
}

fn list(path: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    let kind = std::fs::metadata(path).map_err(|why| Error::file(path, why))?;
    if !kind.is_dir() {
        out.push(path.to_path_buf());
        return Ok(());
    }
    let listing = std::fs::read_dir(path).map_err(|why| Error::file(path, why))?;
    let mut inside: Vec<PathBuf> = listing.filter_map(|item| item.ok().map(|item| item.path())).collect();
    inside.sort();
    out.extend(inside.into_iter().filter(|p| p.is_file() && ["json", "jsonl", "tsv"].contains(&ending(p).as_str())));
    Ok(())
}

/// The options' words without a letter that they begin with: `(A) red`, `A. red`.
fn bare(option: &str, at: usize) -> String {
    let letter = super::extract::letter(at);
    for lead in [format!("({letter})"), format!("{letter}."), format!("{letter})")] {
        if let Some(rest) = option.trim().strip_prefix(&lead) {
            return rest.trim().to_owned();
        }
    }
    option.trim().to_owned()
}

/// Options with the right one, named by its letter or by its words.
fn choice(options: Vec<String>, answer: &str) -> std::result::Result<Expected, String> {
    if options.len() < 2 || options.len() > 26 {
        return Err(format!("it has {} options; 2 to 26 can be asked for", options.len()));
    }
    let same = |at: &usize| options[..*at].iter().any(|other| other.trim() == options[*at].trim());
    if let Some(at) = (0..options.len()).find(same) {
        return Err(format!("two of its options are `{}`: an answer could mean either", options[at].trim()));
    }
    let answer = answer.trim();
    let inner = answer.trim_start_matches('(').trim_end_matches([')', '.']);
    let letter = (0..options.len()).find(|at| inner == super::extract::letter(*at).to_string());
    let words = options.iter().position(|option| option.trim() == answer);
    match words.or(letter) {
        Some(right) => Ok(Expected::Choice { options, right }),
        None => Err(format!("its answer `{answer}` is none of its {} options", options.len())),
    }
}

impl Record {
    fn question(&self) -> Question {
        let mut text = self.text.trim().to_owned();
        match &self.expected {
            Expected::Choice { options, .. } => {
                for (at, option) in options.iter().enumerate() {
                    text += &format!("\n{}. {option}", super::extract::letter(at));
                }
                text += &format!("\n{BY_LETTER}");
            }
            _ => text += &format!("\n{BY_WORDS}"),
        }
        let mut params = self.params.clone();
        params.insert("group".into(), json!(self.group.clone().unwrap_or_else(|| self.id.clone())));
        Question {
            id: self.id.clone(),
            row: self.task.clone(),
            column: "score".into(),
            params,
            prompt: Prompt::Turn { text, sights: self.sights.clone() },
            expected: self.expected.clone(),
            room: 64,
        }
    }
}

/// Records as questions. With `circular` each question with options is asked once for each rotation of them, unless its
/// file already holds such rotations.
///
/// Source: MMBench, arXiv:2307.06281, CircularEval.
pub fn questions(records: &[Record], circular: bool) -> Vec<Question> {
    let turned = |record: &&Record| record.group.as_ref().is_some_and(|group| *group != record.id);
    let rotated: HashSet<&Path> = records.iter().filter(turned).map(|record| record.file.as_path()).collect();
    let mut out = Vec::new();
    for record in records {
        let Expected::Choice { options, right } = &record.expected else {
            out.push(record.question());
            continue;
        };
        let turns = if circular && !rotated.contains(record.file.as_path()) { options.len() } else { 1 };
        for turn in 0..turns {
            let mut turned = record.clone();
            if turns > 1 {
                turned.params.insert(ROTATIONS.into(), json!(turns));
            }
            if turn > 0 {
                let mut order = options.clone();
                order.rotate_left(turn);
                let right = (right + options.len() - turn) % options.len();
                turned.expected = Expected::Choice { options: order, right };
                turned.id = format!("{}+{turn}", record.id);
                turned.group = Some(record.group.clone().unwrap_or_else(|| record.id.clone()));
            }
            out.push(turned.question());
        }
    }
    out
}

/// One outcome for each group: right only if all its questions are. A group of which a question has no answer is left
/// out: whether it is right is not known.
pub fn by_group(outcomes: &[Outcome]) -> Vec<Outcome> {
    let mut groups: BTreeMap<(String, String), (Outcome, u64)> = BTreeMap::new();
    let mut order = Vec::new();
    for outcome in outcomes {
        let name = outcome.params.get("group").and_then(Value::as_str).unwrap_or(&outcome.id).to_owned();
        let key = (outcome.row.clone(), name);
        match groups.get_mut(&key) {
            Some((whole, answers)) => {
                *answers += 1;
                whole.score = whole.score.min(outcome.score);
                whole.right &= outcome.right;
                whole.chance *= outcome.chance;
                if !outcome.right {
                    (whole.given, whole.read) = (outcome.given.clone(), outcome.read.clone());
                }
            }
            None => {
                order.push(key.clone());
                groups.insert(key, (outcome.clone(), 1));
            }
        }
    }
    let whole = |(outcome, answers): &(Outcome, u64)| {
        let all = outcome.params.get(ROTATIONS).and_then(Value::as_u64).unwrap_or(1);
        (*answers >= all).then(|| outcome.clone())
    };
    order.iter().filter_map(|key| groups.get(key).and_then(whole)).collect()
}
