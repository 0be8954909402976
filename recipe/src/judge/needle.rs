//! A number hidden in a long text: the text needle.
//!
//! The needle, its question and the insertion backed up to a sentence's end are those of LWM's `eval_needle.py`; what
//! OmChat's authors used is not published. A prompt is made of ids, so that its length is exact.

use super::draw::Draw;
use super::haystack::Haystack;
use super::{Expected, Prompt, Question, Skipped};
use crate::error::{Error, Result};
use omchat_model::chat::Conversation;
use omchat_model::format::OMCHAT_2_0;
use omchat_model::tokenizer::Tokenizer;
use serde_json::json;

/// The needle's words unless told otherwise.
pub const NEEDLE: &str = "The special magic {city} number is: {number}.";
/// The question's words unless told otherwise.
pub const QUESTION: &str = "What is the special magic {city} number? Answer with the number alone.";

/// Places that have a number.
pub const CITIES: [&str; 20] = [
    "Chicago",
    "Yangon",
    "Antananarivo",
    "Colombo",
    "Almaty",
    "Sydney",
    "Mexico City",
    "Seattle",
    "Lagos",
    "Amsterdam",
    "Belgrade",
    "Cairo",
    "Baghdad",
    "Damascus",
    "Kigali",
    "Dakar",
    "Sofia",
    "Victoria",
    "Tashkent",
    "Singapore",
];

/// Which needles are hidden, and how they are asked for.
#[derive(Debug, Clone)]
pub struct Needles {
    /// Lengths of whole prompts, in ids.
    pub lengths: Vec<usize>,
    /// Depths, in percent of the haystack: 0 is its start.
    pub depths: Vec<f64>,
    /// Each draws another place and number.
    pub seeds: Vec<u64>,
    /// The needle: `{number}` once, `{city}` where the place stands.
    pub needle: String,
    /// The question of a chat.
    pub question: String,
    /// Without a chat's template: the prompt ends with the needle's words up to the number.
    pub raw: bool,
    /// What the system turn says.
    pub system: String,
    /// More positions than that the model has not.
    pub most: usize,
}

/// Needles as questions, and the lengths that cannot be asked for.
#[derive(Debug)]
pub struct Hidden {
    /// In an order in which each shares as long a beginning as it can with the one before.
    pub questions: Vec<Question>,
    /// Lengths beyond the model's positions.
    pub skipped: Vec<Skipped>,
}

impl Needles {
    /// Checks words and numbers.
    ///
    /// Errors: `Input` naming what cannot be used.
    pub fn check(&self) -> Result<()> {
        if self.needle.matches("{number}").count() != 1 {
            let what = format!("the needle `{}` does not say {{number}} once", self.needle);
            return Err(Error::input(what, format!("write it as `{NEEDLE}`")));
        }
        if let Some(depth) = self.depths.iter().find(|depth| !(0.0..=100.0).contains(*depth)) {
            return Err(Error::input(format!("a depth of {depth} %"), "give depths from 0 to 100"));
        }
        for (name, empty) in
            [("length", self.lengths.is_empty()), ("depth", self.depths.is_empty()), ("seed", self.seeds.is_empty())]
        {
            if empty {
                return Err(Error::input(format!("no {name} is asked for"), "give one at least"));
            }
        }
        Ok(())
    }

    /// The most ids of haystack that a prompt takes.
    pub fn wanted(&self) -> usize {
        self.lengths.iter().copied().filter(|length| *length <= self.most).max().unwrap_or(0)
    }

    /// Every needle of every length and depth as a question.
    ///
    /// Errors: `Input` if a length leaves no room for the needle, or the haystack is too short for it; what the
    /// tokenizer answers.
    pub fn hide(&self, haystack: &Haystack, tokenizer: &Tokenizer) -> Result<Hidden> {
        self.check()?;
        let mut found: Vec<(usize, usize, Question)> = Vec::new();
        let mut skipped = Vec::new();
        for length in &self.lengths {
            if *length > self.most {
                let why = format!("the model has {} positions", self.most);
                skipped.push(Skipped { what: format!("length {length}"), why });
                continue;
            }
            for (depth, seed) in self.depths.iter().flat_map(|d| self.seeds.iter().map(move |s| (*d, *s))) {
                let (cut, question) = self.one(*length, depth, seed, haystack, tokenizer)?;
                found.push((cut, *length, question));
            }
        }
        // What two prompts share is what stands before the earlier needle: the deepest goes first, and each next
        // one keeps the text up to its own.
        found.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.cmp(&a.1)));
        Ok(Hidden { questions: found.into_iter().map(|(_, _, question)| question).collect(), skipped })
    }

    fn one(
        &self,
        length: usize,
        depth: f64,
        seed: u64,
        haystack: &Haystack,
        tokenizer: &Tokenizer,
    ) -> Result<(usize, Question)> {
        let mut draw = Draw::new(seed, "needle");
        let city = CITIES[draw.below(CITIES.len())];
        let number = (1_000_000 + draw.below(9_000_000)).to_string();
        let needle = self.needle.replace("{city}", city);
        let (head, tail) = self.around(city, tokenizer)?;
        let written = needle.replace("{number}", &number);
        let (first, inside) = (tokenizer.encode(&format!("{written} "))?, tokenizer.encode(&format!(" {written}"))?);
        let fixed = head.len() + tail.len() + first.len().max(inside.len());
        let Some(room) = length.checked_sub(fixed) else {
            return Err(Error::input(
                format!("a prompt of {length} tokens has no room for the needle and its question, which take {fixed}"),
                format!("give lengths of {fixed} or more"),
            ));
        };
        let (cut, inserted, room) = if depth == 0.0 {
            (0, first, room)
        } else {
            let target = (room as f64 * depth / 100.0).round() as usize;
            let cut = if depth == 100.0 { room } else { haystack.back_to_end(target) };
            (cut, inside, room)
        };
        // A needle of two spellings leaves some ids to fill, so that the length is exact.
        let room = room + fixed - head.len() - tail.len() - inserted.len();
        if room > haystack.ids.len() {
            return Err(Error::input(
                format!("the haystack has {} tokens, a prompt of {length} takes {room} of it", haystack.ids.len()),
                "give more text with --haystack, shorter --lengths, or --repeat",
            ));
        }
        let cut = if depth == 100.0 { room } else { cut };
        let hay = &haystack.ids[..room];
        let ids = [head.as_slice(), &hay[..cut], &inserted, &hay[cut..], &tail].concat();
        let params = json!({
            "length": length, "depth": depth, "seed": seed, "city": city, "at": head.len() + cut, "tokens": ids.len(),
        });
        let question = Question {
            id: format!("needle/{length}/{depth}/{seed}"),
            row: depth_name(depth),
            column: length_name(length),
            params: params.as_object().cloned().unwrap_or_default(),
            prompt: Prompt::Ids(ids),
            expected: Expected::Number(number),
            room: 24,
        };
        Ok((cut, question))
    }

    /// What stands before the haystack, and after it.
    fn around(&self, city: &str, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
        if self.raw {
            let stem = self.needle.replace("{city}", city);
            let stem = stem.split("{number}").next().unwrap_or_default().trim_end().to_owned();
            return Ok((Vec::new(), tokenizer.encode(&format!("\n\n{stem}"))?));
        }
        let mut turn = Conversation::new(tokenizer, OMCHAT_2_0, &self.system)?;
        turn.user("", vec![])?;
        let ids: Vec<u32> = turn.ids().iter().map(|id| *id as u32).collect();
        // An empty turn is `<|im_start|>user\n` and `<|im_end|>`: the words go between.
        let end = tokenizer.required("<|im_end|>")?;
        let middle = ids.iter().rposition(|id| *id == end).unwrap_or(ids.len());
        let question = tokenizer.encode(&format!("\n\n{}", self.question.replace("{city}", city)))?;
        Ok((ids[..middle].to_vec(), [question.as_slice(), &ids[middle..]].concat()))
    }
}

/// A length as tables name it: `16K` for 16384.
pub fn length_name(length: usize) -> String {
    if length >= 1024 && length.is_multiple_of(1024) { format!("{}K", length / 1024) } else { length.to_string() }
}

/// A depth as tables name it.
pub fn depth_name(depth: f64) -> String {
    format!("{depth}%")
}
