//! Which ids of a record are trained.
//!
//! Source: OmChat's `preprocess_qwen_batch`; [`Labelling::AnswersOnly`] is the usual practice elsewhere.

use crate::error::Result;
use crate::record::{Record, Role, Turn};
use crate::spec::Labelling;
use omchat_model::chat::{self, SYSTEM, Visual};
use omchat_model::config::IMAGE_TOKEN;
use omchat_model::format::Format;
use omchat_model::tokenizer::Tokenizer;

/// The ids of a record, -200 for each tile, and whether each is trained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tape {
    /// Ids.
    pub ids: Vec<i32>,
    /// One a id; never a tile.
    pub trained: Vec<bool>,
}

impl Tape {
    fn push(&mut self, ids: &[i32], trained: bool) {
        self.ids.extend(ids);
        self.trained.extend(ids.iter().map(|id| trained && *id != IMAGE_TOKEN));
    }
}

/// Writes records of one data set.
#[derive(Debug, Clone)]
pub struct Writer {
    /// Spells.
    pub tokenizer: Tokenizer,
    /// Lays out pictures.
    pub format: Format,
    /// Which ids are trained.
    pub labels: Labelling,
    /// What the system turn says where a record has none.
    pub system: String,
}

impl Writer {
    /// A writer with the released system words.
    pub fn new(tokenizer: &Tokenizer, format: Format, labels: Labelling) -> Writer {
        Writer { tokenizer: tokenizer.clone(), format, labels, system: SYSTEM.to_owned() }
    }

    /// The id that ends a text and fills a pack: `<|endoftext|>`, else the first stop id.
    ///
    /// Errors: `Tokenizer` if there is neither.
    pub fn end_of_text(tokenizer: &Tokenizer) -> Result<u32> {
        match tokenizer.id("<|endoftext|>").or(tokenizer.stops().first().copied()) {
            Some(id) => Ok(id),
            None => Ok(tokenizer.required("<|endoftext|>")?),
        }
    }

    /// A record's ids; `visuals` holds what each turn shows.
    ///
    /// Errors: what the model crate says of words and marks.
    pub fn write(&self, record: &Record, visuals: &[Vec<Visual>]) -> Result<Tape> {
        let none = Vec::new();
        let shown = |turn: usize| visuals.get(turn).unwrap_or(&none).as_slice();
        let alone = match record.turns.as_slice() {
            // A text without turns, also where it is written as one answer to nothing.
            [turn] if matches!(turn.role, Role::Text | Role::Assistant) => Some(turn),
            _ => None,
        };
        match (self.labels, alone) {
            (Labelling::Align, _) => self.caption(record, visuals),
            (Labelling::Pretrain, Some(turn)) => self.text(turn, shown(0)),
            _ => self.conversation(record, shown),
        }
    }

    fn conversation<'a>(&self, record: &Record, shown: impl Fn(usize) -> &'a [Visual]) -> Result<Tape> {
        let (mut tape, mut numbered) = (Tape::default(), 0);
        if record.turns.first().is_none_or(|turn| turn.role != Role::System) {
            let system = Turn { role: Role::System, text: self.system.clone() };
            self.turn(&mut tape, &system, &[], &mut numbered)?;
        }
        for (number, turn) in record.turns.iter().enumerate() {
            self.turn(&mut tape, turn, shown(number), &mut numbered)?;
        }
        Ok(tape)
    }

    fn turn(&self, tape: &mut Tape, turn: &Turn, shown: &[Visual], numbered: &mut usize) -> Result<()> {
        let role = match turn.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant | Role::Text => "assistant",
        };
        let (all, answer) = (self.labels == Labelling::Pretrain, turn.role == Role::Assistant);
        // OmChat trains the marks of every turn; answers-only the one that ends an answer.
        let frame = self.labels != Labelling::AnswersOnly;
        let (body, pictures) = chat::body(&self.tokenizer, self.format, &turn.text, shown, *numbered)?;
        *numbered = pictures;
        let mark = |token| self.tokenizer.required(token).map(|id| id as i32);
        let newline = self.words("\n")?;
        tape.push(&[mark("<|im_start|>")?], frame);
        tape.push(&[self.words(role)?, newline.clone()].concat(), all);
        tape.push(&body, all || answer);
        tape.push(&[mark("<|im_end|>")?], frame || answer);
        tape.push(&newline, frame);
        Ok(())
    }

    /// Every id of a text, and the end of it. Pictures stay where their marks are.
    fn text(&self, turn: &Turn, shown: &[Visual]) -> Result<Tape> {
        let mut tape = Tape::default();
        let format = Format { lone_first: false, ..self.format };
        tape.push(&chat::body(&self.tokenizer, format, &turn.text, shown, 0)?.0, true);
        tape.push(&[Self::end_of_text(&self.tokenizer)? as i32], true);
        Ok(tape)
    }

    /// The pictures, the first answer, a line end: what was asked is left out.
    fn caption(&self, record: &Record, visuals: &[Vec<Visual>]) -> Result<Tape> {
        let mut tape = Tape::default();
        let bare = Format { before: "{img}", inside: "{img}", frame: "{img}", ..self.format };
        tape.push(&chat::body(&self.tokenizer, bare, "", &visuals.concat(), 0)?.0, false);
        let caption = record.turns.iter().find(|turn| matches!(turn.role, Role::Assistant | Role::Text));
        let caption = caption.map(|turn| turn.text.replace("<image>", "").replace("<video>", "")).unwrap_or_default();
        tape.push(&self.words(&format!("{}\n", caption.trim()))?, true);
        Ok(tape)
    }

    fn words(&self, text: &str) -> Result<Vec<i32>> {
        Ok(self.tokenizer.encode(text)?.into_iter().map(|id| id as i32).collect())
    }
}
