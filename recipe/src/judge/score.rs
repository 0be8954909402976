//! How good an answer is.

use super::extract;
use std::fmt;

/// What is right.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// A whole number: the first number of the answer must be it, commas and blanks between its digits aside.
    Number(String),
    /// One of some options, which the answer names by letter or by words.
    Choice {
        /// The options, of which the first is `A`.
        options: Vec<String>,
        /// The right one, counted from 0.
        right: usize,
    },
    /// One of few answers, of which any other is no answer at all: the same words, in the same spelling.
    OneOf {
        /// What may be answered.
        answers: Vec<String>,
        /// The right one, counted from 0.
        right: usize,
    },
    /// Words, weighed by a metric; the best of several answers counts.
    Words {
        /// What may be answered.
        answers: Vec<String>,
        /// How it is weighed.
        metric: Metric,
    },
}

/// How words are weighed against the right ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// 1 if they are the same but for case, punctuation, articles and blanks.
    Exact,
    /// 1 if the right words occur in the answer, as whole words.
    Within,
    /// The F1 of the longest common subsequence of words.
    /// Source: Lin 2004, ROUGE.
    RougeL,
    /// 1 − edit distance / length, and 0 below one half.
    /// Source: Biten et al. 2019, arXiv:1905.13648.
    Anls,
}

impl Metric {
    /// The metric of that name.
    pub fn named(name: &str) -> Option<Metric> {
        let all = [("exact", Self::Exact), ("within", Self::Within), ("rouge-l", Self::RougeL), ("anls", Self::Anls)];
        all.into_iter().find(|(known, _)| *known == name).map(|(_, metric)| metric)
    }

    /// How good an answer is against one right one.
    ///
    /// Units: from 0 to 1.
    pub fn score(self, given: &str, right: &str) -> f64 {
        match self {
            Metric::Exact => f64::from(words(given) == words(right)),
            Metric::Within => {
                let (given, right) = (words(given), words(right));
                f64::from(!right.is_empty() && given.windows(right.len()).any(|part| part == right))
            }
            Metric::RougeL => rouge_l(&words(given), &words(right)),
            Metric::Anls => anls(given, right),
        }
    }
}

/// What was made of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What was taken for the answer; nothing if none could be made out.
    pub read: Option<String>,
    /// From 0 to 1.
    pub score: f64,
}

impl Expected {
    /// Weighs an answer.
    pub fn judge(&self, given: &str) -> Verdict {
        match self {
            Expected::Number(right) => {
                let read = first_number(given);
                let score = f64::from(read.as_ref() == Some(right));
                Verdict { read, score }
            }
            Expected::Choice { options, right } => {
                let chosen = extract::option(given, options);
                let read = chosen.map(|at| extract::letter(at).to_string());
                Verdict { read, score: f64::from(chosen == Some(*right)) }
            }
            Expected::OneOf { answers, right } => {
                let same = |answer: &String| answer.split_whitespace().eq(given.split_whitespace());
                let chosen = answers.iter().position(same);
                let read = chosen.and_then(|at| answers.get(at)).cloned();
                Verdict { read, score: f64::from(chosen == Some(*right)) }
            }
            Expected::Words { answers, metric } => {
                let read = given.trim().to_owned();
                let score = answers.iter().map(|right| metric.score(&read, right)).fold(0.0, f64::max);
                Verdict { read: (!read.is_empty()).then_some(read), score }
            }
        }
    }

    /// What an answer drawn without looking scores on average.
    pub fn chance(&self) -> f64 {
        match self {
            Expected::Choice { options, .. } => 1.0 / options.len().max(1) as f64,
            Expected::OneOf { answers, .. } => 1.0 / answers.len().max(1) as f64,
            Expected::Number(_) | Expected::Words { .. } => 0.0,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Number(right) => f.write_str(right),
            Expected::Choice { options, right } => {
                let words = options.get(*right).map(String::as_str).unwrap_or_default();
                write!(f, "{}. {words}", extract::letter(*right))
            }
            Expected::OneOf { answers, right } => f.write_str(answers.get(*right).map_or("", String::as_str)),
            Expected::Words { answers, .. } => f.write_str(&answers.join(" | ")),
        }
    }
}

/// Blanks that stand between thousands; the last three keep a number on one line or are narrow.
const BLANKS: [char; 4] = [' ', '\u{a0}', '\u{202f}', '\u{2009}'];

/// The first run of digits, and the groups of just three digits that follow it, each after the same comma or blank.
///
/// Blanks also stand between numbers: they join only behind a first group of three digits at most.
fn first_number(text: &str) -> Option<String> {
    let rest: Vec<char> = text.chars().skip_while(|c| !c.is_ascii_digit()).collect();
    let digits = |from: usize| rest.iter().skip(from).take_while(|c| c.is_ascii_digit()).count();
    let first = digits(0);
    let mut out: String = rest.iter().take(first).collect();
    if let Some(mark) = rest.get(first).filter(|c| **c == ',' || first <= 3 && BLANKS.contains(c)) {
        let mut at = first;
        while rest.get(at) == Some(mark) && digits(at + 1) == 3 {
            out.extend(rest.iter().skip(at + 1).take(3));
            at += 4;
        }
    }
    (first > 0).then_some(out)
}

/// Words in small letters, without punctuation and articles.
pub fn words(text: &str) -> Vec<String> {
    let kept: String =
        text.chars().flat_map(char::to_lowercase).map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
    kept.split_whitespace().filter(|word| !["a", "an", "the"].contains(word)).map(str::to_owned).collect()
}

fn rouge_l(given: &[String], right: &[String]) -> f64 {
    let mut row = vec![0usize; right.len() + 1];
    for word in given {
        let mut corner = 0;
        for (at, other) in right.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if word == other { corner + 1 } else { above.max(row[at]) };
            corner = above;
        }
    }
    let common = row[right.len()] as f64;
    if common == 0.0 { 0.0 } else { 2.0 * common / (given.len() + right.len()) as f64 }
}

fn anls(given: &str, right: &str) -> f64 {
    let tidy = |text: &str| text.trim().to_lowercase().chars().collect::<Vec<_>>();
    let (given, right) = (tidy(given), tidy(right));
    let longest = given.len().max(right.len());
    if longest == 0 {
        return 1.0;
    }
    let far = distance(&given, &right) as f64 / longest as f64;
    if far < 0.5 { 1.0 - far } else { 0.0 }
}

/// Levenshtein's distance.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (corner + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            corner = above;
        }
    }
    row[b.len()]
}
