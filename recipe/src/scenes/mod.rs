//! Rendered scenes with questions whose answers are known: data that needs no download and never ends.
//!
//! A sample is a picture or a video with some questions about it. It is a pure function of the options, a seed and an
//! index, so a run needs no files, and any record of it can be made again.

mod ask;
mod draw;
mod frame;
mod paint;
mod random;
mod real;
mod write;

pub use ask::Ask;
pub use frame::{COUNTS, Colour, Frame, Kind, Place, Shape};
pub use random::Random;
pub use real::{Grey, Real, Split};
pub use write::write;

use crate::error::{Error, Result};
use omchat_model::picture::Picture;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::PathBuf;

/// What samples are like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Pictures one after the other in a conversation: what each shows, which colour, how many, where.
    Captions,
    /// A video of frames that all differ: what comes first, last, before and after.
    Stories,
    /// A video of moving shapes and noise in which some frames show digits: which, in which order, how many.
    #[default]
    Needles,
}

/// Which scenes are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What everything is drawn from.
    pub seed: u64,
    /// Samples of an epoch, for a run that counts them; any index has a sample.
    pub records: u64,
    /// What samples are like.
    pub task: Task,
    /// The fewest and the most frames of a video, or pictures of a conversation.
    pub frames: [usize; 2],
    /// The fewest and the most digits of a video with needles.
    pub needles: [usize; 2],
    /// Where a lone needle stands: 0 is the first frame, 1 the last; anywhere where none is given.
    pub depth: Option<f32>,
    /// The most questions of a video, or of each picture of a conversation.
    pub turns: usize,
    /// Which questions are asked, by the names of [`Ask`]; every kind where none is given. A sample has fewer turns, or
    /// none, where few of them fit its scene.
    pub asks: Vec<String>,
    /// Pixels along a side of a frame.
    pub side: usize,
    /// Which real pictures are used.
    pub split: Split,
    /// A sheet of faces, by scripts/scenes.sh; no faces where none is given.
    pub faces: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 0,
            records: 1 << 20,
            task: Task::Needles,
            frames: [4, 8],
            needles: [1, 3],
            depth: None,
            turns: 6,
            asks: vec![],
            side: 28,
            split: Split::Train,
            faces: None,
        }
    }
}

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// The frames that are shown with the question: a video's with its first, a picture with the first about it.
    pub shows: Range<usize>,
    /// What is asked.
    pub ask: Ask,
    /// The same in words.
    pub question: String,
    /// The answer.
    pub answer: String,
}

/// A picture or a video with questions about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// What each frame shows.
    pub scene: Vec<Frame>,
    /// The frames' pixels.
    pub frames: Vec<Picture>,
    /// Whether the frames are a video; else they are pictures of a conversation.
    pub video: bool,
    /// Questions, in the order in which they are asked.
    pub turns: Vec<Turn>,
}

/// An endless source of samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenes {
    options: Options,
    real: Real,
}

/// Most frames of a video, and most pixels along a side of one.
const MOST: usize = 1 << 14;

impl Scenes {
    /// The samples of some options.
    ///
    /// Errors: options that contradict each other; a sheet of faces that cannot be read.
    pub fn new(options: &Options) -> Result<Scenes> {
        options.check()?;
        let real = Real::new(options.split, options.faces.as_deref())?;
        Ok(Scenes { options: options.clone(), real })
    }

    /// The sample of an index: the same whenever it is asked for.
    pub fn sample(&self, index: u64) -> Sample {
        let random = &mut Random::of(self.options.seed, index);
        let scene = draw::scene(&self.options, &self.real, random);
        let turns = ask::turns(&self.options, &scene, random);
        let frames = scene.iter().map(|f| paint::paint(f, &self.real, self.options.side, random)).collect();
        Sample { scene, frames, video: self.options.task != Task::Captions, turns }
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }
}

/// The crate's door for one sample; [`Scenes`] reads the real pictures once for many.
///
/// Errors: as [`Scenes::new`].
pub fn sample(options: &Options, index: u64) -> Result<Sample> {
    Ok(Scenes::new(options)?.sample(index))
}

impl Options {
    /// Whether scenes can be drawn by them.
    ///
    /// Errors: the first number that is out of its range.
    pub fn check(&self) -> Result<()> {
        if self.records == 0 {
            return Err(Error::input("0 samples an epoch", "give 1 or more"));
        }
        let [least, most] = self.frames;
        if least == 0 || least > most || most > MOST {
            return Err(Error::input(
                format!("frames from {least} to {most}"),
                format!("give two numbers from 1 to {MOST}, the smaller one first"),
            ));
        }
        let [few, many] = self.needles;
        if few == 0 || few > many || many > NEEDLES {
            return Err(Error::input(
                format!("needles from {few} to {many}"),
                format!("give two numbers from 1 to {NEEDLES}, the smaller one first"),
            ));
        }
        if self.task == Task::Needles && many > least {
            return Err(Error::input(
                format!("{many} needles in {least} frames"),
                "give no more needles than the fewest frames",
            ));
        }
        if self.task == Task::Stories && most > STORY {
            return Err(Error::input(
                format!("a story of {most} frames that all differ"),
                format!("give {STORY} frames at most, or the task needles"),
            ));
        }
        if let Some(depth) = self.depth.filter(|d| !(0.0..=1.0).contains(d)) {
            return Err(Error::input(format!("a needle at depth {depth}"), "give a number from 0 to 1"));
        }
        if self.turns == 0 {
            return Err(Error::input("0 questions a sample", "give 1 or more"));
        }
        if let Some(name) = self.asks.iter().find(|n| !Ask::NAMES.contains(&n.as_str())) {
            return Err(Error::input(
                format!("no question is called `{name}`"),
                format!("name some of {}", Ask::NAMES.join(", ")),
            ));
        }
        if !(8..=MOST).contains(&self.side) {
            return Err(Error::input(
                format!("frames of {} pixels a side", self.side),
                format!("give a number from 8 to {MOST}"),
            ));
        }
        Ok(())
    }
}

/// Most needles of a video: its digits differ, and counts have words.
pub const NEEDLES: usize = 4;
/// Most frames of a story: 24 shapes and 10 digits.
pub const STORY: usize = 34;
