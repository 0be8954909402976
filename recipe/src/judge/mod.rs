//! What a model must answer, and how good its answers are.
//!
//! A [`Question`] holds all that a model is shown and what is right. Whoever runs a model implements [`Answer`];
//! [`ask_all`] asks, weighs and keeps each answer in a [`Log`], and a [`Report`] makes tables and pictures of them.

pub mod choice;
pub mod draw;
mod extract;
mod font;
pub mod grid;
pub mod haystack;
pub mod log;
pub mod needle;
pub mod paint;
pub mod rendered;
pub mod report;
pub mod score;
pub mod temporal;

pub use grid::Grid;
pub use log::{Log, Outcome};
pub use report::Report;
pub use score::{Expected, Metric, Verdict};

use crate::error::{Error, Result};
use omchat_model::picture::Picture;
use omchat_model::video::Span;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

/// One thing to ask.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its name, unlike every other of the run and the same in every run: answers are found again by it.
    pub id: String,
    /// The row of the table that it counts for.
    pub row: String,
    /// The column of the table that it counts for.
    pub column: String,
    /// What it was made with, kept beside its answer.
    pub params: Map<String, Value>,
    /// What the model is shown.
    pub prompt: Prompt,
    /// What is right.
    pub expected: Expected,
    /// The answer ends after that many ids.
    pub room: usize,
}

impl Question {
    /// The same question of one frame in place of all there is to see; it counts for the column [`temporal::ONE`].
    pub fn with_one(mut self, frame: Arc<Picture>) -> Question {
        self.id += "/one";
        self.column = temporal::ONE.into();
        self.params.insert("view".into(), temporal::ONE.into());
        if let Prompt::Turn { sights, .. } = &mut self.prompt {
            *sights = vec![Sight::Frames(vec![frame])];
        }
        self
    }
}

/// What a model is shown.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// Exactly these ids, whatever template they already hold.
    Ids(Vec<u32>),
    /// A user's turn, with pictures where `<image>` or `<video>` marks a place, or before the words.
    Turn {
        /// The words.
        text: String,
        /// What there is to see.
        sights: Vec<Sight>,
    },
}

/// Something to see.
#[derive(Debug, Clone)]
pub enum Sight {
    /// A picture in a file.
    File(PathBuf),
    /// A picture.
    Picture(Arc<Picture>),
    /// A video: its frames, in order.
    Frames(Vec<Arc<Picture>>),
    /// A video in a file or a folder.
    Video {
        /// Where it is.
        path: PathBuf,
        /// How many frames are looked at.
        frames: usize,
        /// The stretch that is looked at; all of it if `None`.
        span: Option<Span>,
    },
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// This question cannot be asked; the others can.
    #[error("{0}")]
    Skip(String),
    /// Nothing can be asked any more.
    #[error(transparent)]
    Stop(Box<dyn std::error::Error + Send + Sync>),
}

/// Something that answers questions: a model, or a script in its place.
pub trait Answer {
    /// The words that it answers.
    ///
    /// Errors: see [`Refusal`].
    fn answer(&mut self, question: &Question) -> std::result::Result<String, Refusal>;
}

/// A question, or a cell of the table, without an answer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    /// Which.
    pub what: String,
    /// Why.
    pub why: String,
}

/// The answers to some questions, in their order, and the questions that could not be asked.
///
/// What the log already holds is not asked again. `told` hears how many are done, of how many.
///
/// Errors: `Input` naming what two questions are called; the log cannot be written; the model stops.
pub fn ask_all(
    questions: &[Question],
    log: &mut Log,
    model: &mut dyn Answer,
    told: &mut dyn FnMut(usize, usize),
) -> Result<(Vec<Outcome>, Vec<Skipped>)> {
    let mut names = HashSet::new();
    if let Some(twice) = questions.iter().find(|question| !names.insert(question.id.as_str())) {
        let what = format!("two questions are called `{}`, and one would get the other's answer", twice.id);
        return Err(Error::input(what, "ask each once, under a name of its own"));
    }
    let (mut outcomes, mut skipped) = (Vec::new(), Vec::new());
    for (done, question) in questions.iter().enumerate() {
        told(done, questions.len());
        if let Some(known) = log.known(&question.id) {
            let mut known = known.clone();
            // An older log may lack what is kept beside answers by now.
            known.params.extend(question.params.clone());
            outcomes.push(known);
            continue;
        }
        match model.answer(question) {
            Ok(given) => {
                let outcome = Outcome::of(question, given);
                log.append(&outcome)?;
                outcomes.push(outcome);
            }
            Err(Refusal::Skip(why)) => skipped.push(Skipped { what: question.id.clone(), why }),
            Err(Refusal::Stop(why)) => return Err(Error::Stopped(why)),
        }
    }
    told(questions.len(), questions.len());
    Ok((outcomes, skipped))
}
