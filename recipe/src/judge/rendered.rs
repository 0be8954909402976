//! Questions about rendered scenes: real handwritten digits, held out of training, hidden among moving shapes and noise.
//!
//! The videos, questions and answers are those of [`crate::scenes`]. An answer must be the right one word for word, and
//! guessing draws from the answers that the question allows.

use super::draw::digest;
use super::temporal::{Single, column};
use super::{Expected, Prompt, Question, Sight};
use crate::error::{Error, Result};
use crate::scenes::{Ask, COUNTS, Colour, NEEDLES, Options, Sample, Scenes, Shape, Split, Task, Turn};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// What can be asked of a video with digits; `is-face` only where there are faces.
pub const KINDS: [&str; 10] = [
    "digit",
    "first-digit",
    "last-digit",
    "digit-after",
    "digit-before",
    "digits",
    "colour-of",
    "is-there",
    "is-face",
    "moves",
];

/// What all scenes are drawn from, beside their cell and seed: no recipe has it.
const SEED: u64 = 0x0005_eed0_fea1;

/// Which scenes are shown, and what is asked of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// Lengths of videos, in frames.
    pub lengths: Vec<usize>,
    /// Where a lone digit stands, in percent of the video.
    pub depths: Vec<f64>,
    /// Videos have one digit to that many.
    pub digits: usize,
    /// What is asked, of [`KINDS`].
    pub kinds: Vec<String>,
    /// Each draws other videos.
    pub seeds: Vec<u64>,
    /// Whether each question is also asked with one frame: the first digit's, or any.
    pub single: Option<Single>,
    /// Pixels along a side of a frame.
    pub side: usize,
    /// A sheet of faces, of which those held out are shown.
    pub faces: Option<PathBuf>,
}

/// A row of the table: how many digits, and where a lone one stands.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    digits: usize,
    depth: Option<f64>,
}

impl Row {
    fn name(self) -> String {
        match self.depth {
            Some(depth) => format!("1 digit at {depth}%"),
            None => format!("{} digits", self.digits),
        }
    }
}

impl Rendered {
    /// Every kind that these scenes can be asked about.
    pub fn kinds(faces: bool) -> Vec<String> {
        KINDS.iter().filter(|kind| faces || **kind != "is-face").map(|kind| (*kind).to_owned()).collect()
    }

    fn cells(&self) -> Vec<Row> {
        let lone = self.depths.iter().map(|depth| Row { digits: 1, depth: Some(*depth) });
        lone.chain((2..=self.digits).map(|digits| Row { digits, depth: None })).collect()
    }

    /// The rows of the table: a lone digit by its depth, then more digits, which stand anywhere.
    pub fn rows(&self) -> Vec<String> {
        self.cells().into_iter().map(Row::name).collect()
    }

    /// Checks numbers and kinds against each other.
    ///
    /// Errors: `Input` naming what cannot be asked.
    pub fn check(&self) -> Result<()> {
        if !(1..=NEEDLES).contains(&self.digits) {
            return Err(Error::input(format!("{} hidden digits", self.digits), format!("hide 1 to {NEEDLES}")));
        }
        if let Some(kind) = self.kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
            let names = KINDS.join(", ");
            return Err(Error::input(
                format!("no question about scenes is called `{kind}`"),
                format!("name some of {names}"),
            ));
        }
        if self.faces.is_none() && self.kinds.iter().any(|kind| kind == "is-face") {
            return Err(Error::input("`is-face` without faces has one answer", "give a sheet of faces (--faces)"));
        }
        if let Some(depth) = self.depths.iter().find(|depth| !(0.0..=100.0).contains(*depth)) {
            return Err(Error::input(format!("a depth of {depth} %"), "give depths from 0 to 100"));
        }
        self.lengths
            .iter()
            .flat_map(|length| self.cells().into_iter().map(move |row| (*length, row)))
            .try_for_each(|(length, row)| self.options(length, row.digits, row.depth).check())
    }

    /// What scenes of a cell are drawn by. Kinds are picked afterwards, so that they do not change what is seen.
    pub fn options(&self, length: usize, digits: usize, depth: Option<f64>) -> Options {
        let name = Row { digits, depth }.name();
        Options {
            seed: SEED ^ digest(format!("rendered {length} {name}").as_bytes()),
            task: Task::Needles,
            frames: [length; 2],
            needles: [digits; 2],
            depth: depth.map(|depth| (depth / 100.0) as f32),
            turns: usize::MAX,
            side: self.side,
            split: Split::Test,
            faces: self.faces.clone(),
            ..Options::default()
        }
    }

    /// The questions.
    ///
    /// Errors: as [`Rendered::check`]; a sheet of faces that cannot be read; kinds of which none fits the scenes.
    pub fn questions(&self) -> Result<Vec<Question>> {
        self.check()?;
        let mut out = Vec::new();
        for length in &self.lengths {
            for row in self.cells() {
                let scenes = Scenes::new(&self.options(*length, row.digits, row.depth))?;
                for seed in &self.seeds {
                    out.extend(self.about(&scenes.sample(*seed), row, *seed));
                }
            }
        }
        if out.is_empty() {
            let what = format!("no question of {} fits these scenes", self.kinds.join(", "));
            return Err(Error::input(what, "name other kinds, more digits, or more seeds"));
        }
        Ok(out)
    }

    /// All that is asked of one video, then of its one frame: what the cache holds is not read again.
    fn about(&self, sample: &Sample, row: Row, seed: u64) -> Vec<Question> {
        let frames: Vec<_> = sample.frames.iter().cloned().map(Arc::new).collect();
        let wanted = |kind: &String| sample.turns.iter().find(|turn| turn.ask.name() == kind);
        let asked = |turn: &Turn| self.one(sample, &frames, turn, row, seed);
        let whole: Vec<Question> = self.kinds.iter().filter_map(wanted).filter_map(asked).collect();
        let lone = self.single.and_then(|single| {
            let at = match single {
                Single::First => sample.scene.iter().position(|frame| frame.digit().is_some())?,
                Single::Random => super::draw::Draw::new(seed, &format!("one of {}", frames.len())).below(frames.len()),
            };
            frames.get(at).cloned()
        });
        let alone =
            lone.iter().flat_map(|frame| whole.iter().cloned().map(|q| q.with_one(frame.clone()))).collect::<Vec<_>>();
        whole.into_iter().chain(alone).collect()
    }

    fn one(
        &self,
        sample: &Sample,
        frames: &[Arc<omchat_model::picture::Picture>],
        turn: &Turn,
        row: Row,
        seed: u64,
    ) -> Option<Question> {
        let (length, kind, name) = (frames.len(), turn.ask.name(), row.name());
        let answers = self.answers(&turn.ask);
        let right = answers.iter().position(|answer| *answer == turn.answer)?;
        let shown = sample.scene.iter().enumerate().filter_map(|(at, frame)| Some((at, frame.digit()?)));
        let (at, hidden): (Vec<usize>, Vec<u8>) = shown.unzip();
        let params = json!({
            "frames": length, "depth": row.depth, "seed": seed, "kind": kind, "hidden": hidden, "at": at,
            "question": turn.question, "view": "video",
        });
        Some(Question {
            id: format!("rendered/{length}/{name}/{kind}/{seed}"),
            row: name,
            column: column(length),
            params: params.as_object().cloned().unwrap_or_default(),
            prompt: Prompt::Turn {
                text: format!("<video>{}", turn.question),
                sights: vec![Sight::Frames(frames.to_vec())],
            },
            expected: Expected::OneOf { answers, right },
            room: 12,
        })
    }

    /// What a question may be answered with by someone who knows the scenes and has not looked.
    fn answers(&self, ask: &Ask) -> Vec<String> {
        let digits = |but: Option<u8>| (0..10).filter(|d| Some(*d) != but).map(|d| format!("a {d}")).collect();
        match ask {
            Ask::DigitAfter(d) | Ask::DigitBefore(d) => digits(Some(*d)),
            Ask::Digits => COUNTS.iter().skip(1).take(self.digits).map(|n| (*n).to_owned()).collect(),
            Ask::ColourOf(_) => Colour::ALL.iter().map(|c| format!("it is {}", c.name())).collect(),
            Ask::IsThere(_) | Ask::IsFace => vec!["yes".into(), "no".into()],
            Ask::Moves => Shape::all().into_iter().map(|shape| format!("a {}", shape.name())).collect(),
            _ => digits(None),
        }
    }

    /// Tells what is shown from what another version, size or sheet of faces would show.
    ///
    /// Errors: a sheet of faces that cannot be read.
    pub fn digest(&self) -> Result<u64> {
        let sheet = match &self.faces {
            Some(path) => std::fs::read(path).map_err(|why| Error::file(path, why))?,
            None => Vec::new(),
        };
        let scenes = Scenes::new(&self.options(8, 2, None))?;
        let sums = scenes.sample(0).frames.into_iter().map(|frame| digest(&frame.rgb));
        Ok(sums.fold(digest(&sheet), |sum, one| sum.rotate_left(1) ^ one))
    }
}
