//! `omchat scenes`: drawn data with questions and answers, as files: rendered scenes, and numbers hidden in texts.

use super::{Error, note};
use omchat_recipe::passkeys;
use omchat_recipe::scenes::{Options, Scenes, Split, Task, write};
use std::path::PathBuf;

/// What `omchat scenes` takes.
#[derive(clap::Args)]
pub struct Args {
    /// What is drawn: single pictures, videos whose frames all differ, digits among moving shapes, numbers in a text, or a
    /// text to hide numbers in.
    #[arg(long, value_enum, default_value_t = Kind::Needles)]
    kind: Kind,
    /// What the scenes are drawn from: the same seed, the same files.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Samples to write.
    #[arg(long, default_value_t = 16, value_name = "N")]
    count: u64,
    /// The index of the first of them.
    #[arg(long, default_value_t = 0, value_name = "N")]
    first: u64,
    /// Frames of a video: a number, or the fewest and the most as in 4-16.
    #[arg(long, default_value = "8", value_name = "N|N-N")]
    frames: String,
    /// Digits of a video with needles, numbers of a text with passkeys: a number, or the fewest and the most as in 1-3.
    #[arg(long, default_value = "1-3", value_name = "N|N-N")]
    needles: String,
    /// Other sentences of a text with passkeys, or of a haystack: a number, or the fewest and the most as in 4-12.
    #[arg(long, default_value = "4-12", value_name = "N|N-N")]
    sentences: String,
    /// Digits of each passkey: a number, or the fewest and the most as in 3-7.
    #[arg(long, default_value = "7", value_name = "N|N-N")]
    digits: String,
    /// Where a lone needle stands: 0 is the first frame or the start of a text, 1 the last or the end; anywhere if not given.
    #[arg(long, value_name = "SHARE")]
    depth: Option<f32>,
    /// The most questions of a sample.
    #[arg(long, default_value_t = 6, value_name = "N")]
    turns: usize,
    /// Asks only questions of this kind; may be given more than once.
    #[arg(long, value_name = "NAME")]
    ask: Vec<String>,
    /// Pixels along a side of a frame.
    #[arg(long, default_value_t = 28, value_name = "PIXELS")]
    side: usize,
    /// Draws the real pictures that are held out of training.
    #[arg(long)]
    held_out: bool,
    /// A sheet of faces, as scripts/scenes.sh makes it; no faces if not given.
    #[arg(long, value_name = "FILE")]
    faces: Option<PathBuf>,
    /// Writes each video as an animated GIF instead of a folder of PNG frames.
    #[arg(long)]
    gif: bool,
    /// The folder to write `data.jsonl` and `media/` into; `haystack.txt` of a haystack.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(clap::ValueEnum, Clone, Copy)]
enum Kind {
    Captions,
    Stories,
    Needles,
    Passkeys,
    Haystack,
}

/// Writes the scenes.
pub fn run(args: &Args) -> Result<(), Error> {
    let task = match args.kind {
        Kind::Captions => Task::Captions,
        Kind::Stories => Task::Stories,
        Kind::Needles => Task::Needles,
        Kind::Passkeys => return passkeys(args),
        Kind::Haystack => return haystack(args),
    };
    let options = Options {
        seed: args.seed,
        task,
        frames: range("--frames", &args.frames)?,
        needles: range("--needles", &args.needles)?,
        depth: args.depth,
        turns: args.turns,
        asks: args.ask.clone(),
        side: args.side,
        split: if args.held_out { Split::Test } else { Split::Train },
        faces: args.faces.clone(),
        ..Options::default()
    };
    let scenes = Scenes::new(&options).map_err(Error::input)?;
    let written = write(&scenes, args.first, args.count, &args.out, args.gif).map_err(Error::input)?;
    let passed = match args.count - written {
        0 => String::new(),
        n => format!("; {n} passed over, which no question that is asked for fits"),
    };
    note(format!("{}: {written} samples{passed}", args.out.join("data.jsonl").display()));
    Ok(())
}

/// Writes texts with passkeys.
fn passkeys(args: &Args) -> Result<(), Error> {
    let options = passkeys::Options {
        sentences: range("--sentences", &args.sentences)?,
        needles: range("--needles", &args.needles)?,
        digits: range("--digits", &args.digits)?,
        depth: args.depth,
        turns: args.turns,
    };
    passkeys::write(&options, args.seed, args.first, args.count, &args.out).map_err(Error::input)?;
    note(format!("{}: {} documents", args.out.join("data.jsonl").display(), args.count));
    Ok(())
}

/// Writes a text to hide passkeys in: the most sentences of the range.
fn haystack(args: &Args) -> Result<(), Error> {
    let [_, sentences] = range("--sentences", &args.sentences)?;
    let path = passkeys::write_haystack(sentences, args.seed, &args.out).map_err(Error::input)?;
    note(format!("{}: {sentences} sentences", path.display()));
    Ok(())
}

/// `8` or `4-16`.
fn range(name: &str, text: &str) -> Result<[usize; 2], Error> {
    let number = |t: &str| t.trim().parse::<usize>().ok();
    let pair = match text.split_once('-') {
        Some((least, most)) => number(least).zip(number(most)),
        None => number(text).map(|n| (n, n)),
    };
    pair.map(|(a, b)| [a, b])
        .ok_or_else(|| Error::input(format!("{name} is `{text}`; give a number, or two as in 4-16")))
}
