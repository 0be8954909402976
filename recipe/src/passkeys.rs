//! Passkey documents: numbers hidden among sentences without meaning, and the questions that ask for them.
//!
//! The needle and the question are those of [`crate::judge::needle`]. A document is a pure function of the options, a
//! seed and an index, so any of them can be made again.

use crate::error::{Error, Result};
use crate::judge::needle::{CITIES, NEEDLE, QUESTION};
use crate::scenes::Random;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const KINDS: [&str; 12] =
    ["old", "small", "quiet", "red", "tall", "round", "warm", "slow", "bright", "empty", "wide", "plain"];
const THINGS: [&str; 16] = [
    "river", "house", "garden", "horse", "window", "bridge", "child", "table", "forest", "road", "bird", "tower",
    "boat", "stone", "market", "lamp",
];
const DEEDS: [&str; 10] =
    ["sees", "follows", "leaves", "finds", "passes", "likes", "carries", "waits for", "turns to", "stands by"];
const WHEN: [&str; 8] =
    ["today", "again", "at night", "in the morning", "every day", "for a while", "in silence", "once more"];

/// What documents are like.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The fewest and the most sentences without meaning. With `models/passkey` one takes 8 to 11 tokens.
    pub sentences: [usize; 2],
    /// The fewest and the most places with a number. With `models/passkey` a needle of 7 digits takes 16 or 17 tokens.
    pub needles: [usize; 2],
    /// The fewest and the most digits of a number.
    pub digits: [usize; 2],
    /// Where a lone needle stands, as a share of the sentences: 0 before the first, 1 after the last; anywhere if `None`.
    pub depth: Option<f32>,
    /// Questions of a document: each needle in turn, in a drawn order. With `models/passkey` a turn takes 40 to 42 tokens.
    pub turns: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { sentences: [4, 12], needles: [1, 3], digits: [7, 7], depth: None, turns: 4 }
    }
}

/// A document and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The sentences, needles among them.
    pub text: String,
    /// Places and their numbers, in the order of the text.
    pub needles: Vec<(&'static str, String)>,
    /// Which needles are asked for, in order.
    pub asked: Vec<usize>,
}

/// Most sentences of a text.
const MOST: usize = 1 << 24;
/// Most digits of a number.
const DIGITS: usize = 64;

impl Options {
    /// Whether documents can be drawn by them.
    ///
    /// Errors: the first number that is out of its range.
    pub fn check(&self) -> Result<()> {
        let ranges = [
            ("sentences", self.sentences, 0, MOST),
            ("needles", self.needles, 1, CITIES.len()),
            ("digits", self.digits, 1, DIGITS),
        ];
        for (name, [least, most], low, high) in ranges {
            if least < low || least > most || most > high {
                return Err(Error::input(
                    format!("{name} from {least} to {most}"),
                    format!("give two numbers from {low} to {high}, the smaller one first"),
                ));
            }
        }
        if let Some(depth) = self.depth.filter(|depth| !(0.0..=1.0).contains(depth)) {
            return Err(Error::input(format!("a needle at depth {depth}"), "give a number from 0 to 1"));
        }
        if self.turns == 0 {
            return Err(Error::input("0 questions a document", "give 1 or more"));
        }
        Ok(())
    }
}

/// The document of an index: the same whenever it is asked for.
///
/// Errors: as [`Options::check`].
pub fn document(options: &Options, seed: u64, index: u64) -> Result<Document> {
    options.check()?;
    let random = &mut Random::of(seed, index);
    let mut parts: Vec<String> = (0..within(random, options.sentences)).map(|_| sentence(random)).collect();
    let mut cities = CITIES;
    random.shuffle(&mut cities);
    let count = within(random, options.needles);
    let mut needles: Vec<(usize, &str, String)> = cities
        .into_iter()
        .take(count)
        .map(|city| (random.below(parts.len() + 1), city, number(random, options.digits)))
        .collect();
    // Drawn above all the same, so that a depth moves the needle of a text and changes nothing else.
    if let (Some(depth), [(at, ..)]) = (options.depth, &mut needles[..]) {
        *at = (depth * parts.len() as f32).round() as usize;
    }
    needles.sort_by_key(|(at, ..)| *at);
    // The last goes in first, so that places before it stay as they are.
    for (at, city, number) in needles.iter().rev() {
        parts.insert(*at, needle(city, number));
    }
    let mut asked: Vec<usize> = (0..options.turns).map(|turn| turn % count).collect();
    let mut order: Vec<usize> = (0..count).collect();
    random.shuffle(&mut order);
    for which in &mut asked {
        *which = order.get(*which).copied().unwrap_or(0);
    }
    random.shuffle(&mut asked);
    let needles = needles.into_iter().map(|(_, city, number)| (city, number)).collect();
    Ok(Document { text: parts.join(" "), needles, asked })
}

/// Sentences without meaning and nothing else: a haystack.
pub fn haystack(sentences: usize, seed: u64) -> String {
    let random = &mut Random::of(seed, u64::MAX);
    (0..sentences).map(|_| sentence(random)).collect::<Vec<_>>().join(" ")
}

/// Writes the documents `first` to below `first + count` as `data.jsonl` of a folder, in ms-swift's layout.
///
/// Errors: as [`Options::check`]; what cannot be written.
pub fn write(options: &Options, seed: u64, first: u64, count: u64, dir: &Path) -> Result<()> {
    let mut lines = String::new();
    for index in first..first.saturating_add(count) {
        lines.push_str(&document(options, seed, index)?.record().to_string());
        lines.push('\n');
    }
    std::fs::create_dir_all(dir).map_err(|why| Error::file(dir, why))?;
    let path = dir.join("data.jsonl");
    std::fs::write(&path, lines).map_err(|why| Error::file(&path, why))
}

/// Writes [`haystack`] as `haystack.txt` of a folder; its path.
///
/// Errors: a text without sentences or too long; what cannot be written.
pub fn write_haystack(sentences: usize, seed: u64, dir: &Path) -> Result<PathBuf> {
    if sentences == 0 || sentences > MOST {
        return Err(Error::input(format!("a haystack of {sentences} sentences"), format!("give 1 to {MOST}")));
    }
    std::fs::create_dir_all(dir).map_err(|why| Error::file(dir, why))?;
    let path = dir.join("haystack.txt");
    std::fs::write(&path, haystack(sentences, seed) + "\n").map_err(|why| Error::file(&path, why))?;
    Ok(path)
}

impl Document {
    /// The document as a record of ms-swift: the text stands before the first question. An answer is the needle, word for
    /// word: what is to be found then stands in the same words where it was said, so that looking it up is going on with
    /// what went before, which small models learn first (induction).
    pub fn record(&self) -> Value {
        let mut messages = vec![];
        for (city, number) in self.asked.iter().filter_map(|which| self.needles.get(*which)) {
            let question = QUESTION.replace("{city}", city);
            let words = if messages.is_empty() { format!("{}\n\n{question}", self.text) } else { question };
            messages.push(json!({"role": "user", "content": words}));
            messages.push(json!({"role": "assistant", "content": needle(city, number)}));
        }
        json!({ "messages": messages })
    }
}

fn needle(city: &str, number: &str) -> String {
    NEEDLE.replace("{city}", city).replace("{number}", number)
}

fn within(random: &mut Random, [least, most]: [usize; 2]) -> usize {
    least + random.below(most - least + 1)
}

/// A number without a leading 0, unless it has one digit.
fn number(random: &mut Random, digits: [usize; 2]) -> String {
    let count = within(random, digits);
    let first = if count == 1 { random.below(10) } else { 1 + random.below(9) };
    let rest: String = (1..count).map(|_| random.below(10).to_string()).collect();
    format!("{first}{rest}")
}

fn sentence(random: &mut Random) -> String {
    let mut of = |words: &[&'static str]| random.pick(words).copied().unwrap_or_default();
    let (kind, one, deed, other, when) = (of(&KINDS), of(&THINGS), of(&DEEDS), of(&THINGS), of(&WHEN));
    format!("The {kind} {one} {deed} the {other} {when}.")
}
