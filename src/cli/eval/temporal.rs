//! `omchat eval temporal-needle`.

use super::{Common, View, ask, counts, engine, finish, once, percents, seeds, setup};
use crate::cli::Error;
use crate::cli::progress::Bars;
use omchat::{AskOptions, Engine, Model};
use omchat_model::format::Format;
use omchat_model::picture::Picture;
use omchat_model::tiler::{TileMode, Tiler};
use omchat_model::video::{sample, sample_indices};
use omchat_recipe::judge::draw::digest;
use omchat_recipe::judge::grid::{Cell, mean};
use omchat_recipe::judge::rendered::Rendered;
use omchat_recipe::judge::temporal::{Kind, ONE, Single, Temporal, blank, column, digits, folder, row};
use omchat_recipe::judge::{Grid, Log, Outcome, Question, Report};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the temporal needle takes.
#[derive(clap::Args, Clone)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub view: View,
    /// The video that pictures are hidden in: a file, an animated GIF or a folder of frames; a drawn sky if not given.
    #[arg(long, value_name = "FILE")]
    video: Option<PathBuf>,
    /// A folder of pictures to hide, each named as its file; drawn digits if not given.
    #[arg(long, value_name = "DIR")]
    needles: Option<PathBuf>,
    /// Asks about rendered scenes, as models/needle was trained on: handwritten digits held out of training, among
    /// moving shapes and noise.
    #[arg(long, conflicts_with_all = ["video", "needles", "gaps", "repeat", "letters"])]
    scenes: bool,
    /// A sheet of faces for scenes, by scripts/scenes.sh; no faces if not given.
    #[arg(long, value_name = "FILE", requires = "scenes")]
    faces: Option<PathBuf>,
    /// How many pictures are hidden; of scenes the most digits of a video, from one on.
    #[arg(long, default_value_t = 4, value_name = "N")]
    hide: usize,
    /// Lengths of videos, in frames.
    #[arg(long, default_value = "8,16,32", value_name = "N,…")]
    lengths: String,
    /// Where the first picture stands, in percent of the places that leave room for all, or how many; of scenes where a
    /// lone digit stands.
    #[arg(long, default_value = "0,50,100", value_name = "P,…|N")]
    depths: String,
    /// Frames from one hidden picture to the next.
    #[arg(long, default_value = "1,2", value_name = "N,…")]
    gaps: String,
    /// What is asked: first, after, count, order; of scenes digit, first-digit, last-digit, digit-after, digit-before,
    /// digits, colour-of, is-there, is-face, moves. All if not given.
    #[arg(long, value_name = "KIND,…")]
    kinds: Option<String>,
    /// How often each is asked, with other pictures.
    #[arg(long, default_value_t = 2, value_name = "N")]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// What the baseline of one frame sees: first (the first hidden picture), random (any frame) or none.
    #[arg(long, default_value = "first", value_name = "FRAME")]
    single: String,
    /// Starts the video over where it has fewer frames than a length.
    #[arg(long)]
    repeat: bool,
}

/// Questions that are asked under some setup.
pub struct Task {
    questions: Vec<Question>,
    rows: Vec<String>,
    lengths: Vec<usize>,
    kinds: Vec<String>,
    single: Option<Single>,
    digest: u64,
    title: &'static str,
    note: &'static str,
}

impl Args {
    /// The questions; pictures are as large as the model's tile.
    pub fn read(&self, model: &Model) -> Result<Task, Error> {
        let tiler = model.tiler()?;
        if self.scenes { self.rendered(&tiler) } else { self.hidden(&tiler) }
    }

    /// Of rendered scenes.
    fn rendered(&self, tiler: &Tiler) -> Result<Task, Error> {
        let named = self.names();
        let rendered = Rendered {
            lengths: counts(&self.lengths)?,
            depths: percents(&self.depths)?,
            digits: self.hide,
            kinds: named.unwrap_or_else(|| Rendered::kinds(self.faces.is_some())),
            seeds: seeds(self.seed, self.seeds)?,
            single: self.single()?,
            side: tiler.tile(),
            faces: self.faces.clone(),
        };
        Ok(Task {
            questions: rendered.questions()?,
            rows: rendered.rows(),
            digest: rendered.digest()?,
            lengths: rendered.lengths,
            kinds: rendered.kinds,
            single: rendered.single,
            title: "Digits in rendered scenes",
            note: "digits and faces are held out of training; an answer is right word for word",
        })
    }

    /// Of pictures in a video.
    fn hidden(&self, tiler: &Tiler) -> Result<Task, Error> {
        let kinds = match self.names() {
            Some(names) => names.iter().map(|name| Kind::named(name)).collect::<Result<Vec<_>, _>>()?,
            None => Kind::ALL.to_vec(),
        };
        let temporal = Temporal {
            lengths: counts(&self.lengths)?,
            depths: percents(&self.depths)?,
            gaps: counts(&self.gaps)?,
            needles: self.hide,
            kinds,
            seeds: seeds(self.seed, self.seeds)?,
            single: self.single()?,
        };
        let pool = match &self.needles {
            Some(path) => folder(path)?,
            None => digits(tiler.tile()),
        };
        temporal.check(&pool)?;
        let what = match self.needles {
            Some(_) => pool.iter().map(|needle| needle.name.as_str()).collect::<Vec<_>>().join(", "),
            None => "large digits".into(),
        };
        let longest = temporal.lengths.iter().copied().max().unwrap_or(0);
        let video = self.frames(longest, tiler)?;
        let mut frames = |length: usize| {
            Ok(sample_indices(video.len(), length).into_iter().filter_map(|at| video.get(at).cloned()).collect())
        };
        let questions = temporal.questions(&pool, &what, &mut frames)?;
        let drawn = video.iter().chain(pool.iter().map(|needle| &needle.picture)).map(|p| digest(&p.rgb));
        let t = temporal;
        Ok(Task {
            questions,
            digest: drawn.fold(digest(what.as_bytes()), |sum, one| sum.rotate_left(1) ^ one),
            rows: t.depths.iter().flat_map(|depth| t.gaps.iter().map(move |gap| row(*depth, *gap))).collect(),
            kinds: t.kinds.iter().map(|kind| kind.name().to_owned()).collect(),
            lengths: t.lengths,
            single: t.single,
            title: "Temporal needle",
            note: "the construction is ours; OmChat's own videos and questions are not published",
        })
    }

    fn names(&self) -> Option<Vec<String>> {
        self.kinds.as_ref().map(|names| once(names.split(',').map(|name| name.trim().to_owned()).collect()))
    }

    fn single(&self) -> Result<Option<Single>, Error> {
        match self.single.as_str() {
            "first" => Ok(Some(Single::First)),
            "random" => Ok(Some(Single::Random)),
            "none" => Ok(None),
            other => Err(Error::input(format!("`{other}` is no frame to show alone; name first, random or none"))),
        }
    }

    /// The frames of the longest video, squashed to a tile, which is how the model sees them.
    fn frames(&self, longest: usize, tiler: &Tiler) -> Result<Vec<Arc<Picture>>, Error> {
        let Some(path) = &self.video else { return Ok(blank(longest, tiler.tile(), self.seed)) };
        let mut bars = Bars::default();
        let take = |frame: Picture| {
            let tile = tiler.cut(&frame, TileMode::Single)?;
            Picture::new("frame", tile.size, tile.size, tile.rgb).map(Arc::new)
        };
        let mut frames = sample(path, longest, &mut |done, total| bars.step("decoding", done, total), take)?;
        bars.end();
        if frames.len() < longest && !self.repeat {
            return Err(Error::input(format!(
                "{} has {} frames and {longest} are wanted; give a longer video, shorter --lengths, or --repeat",
                path.display(),
                frames.len()
            )));
        }
        while frames.len() < longest {
            let again = frames.len().min(longest - frames.len());
            frames.extend_from_within(..again);
        }
        Ok(frames)
    }
}

/// Hides pictures and asks for them.
pub fn run(args: &Args) -> Result<(), Error> {
    let model = Model::open(&args.common.model)?;
    let format = args.view.format(&model)?;
    let task = args.read(&model)?;
    let engine = engine(&args.common, model)?;
    let report = judge(args, &task, &engine, format, &args.common.out)?;
    finish(&report, &args.common.out)
}

/// Asks in one layout of pictures.
pub fn judge(args: &Args, task: &Task, engine: &Arc<Engine>, format: Format, out: &Path) -> Result<Report, Error> {
    let mut more = json!({
        "format": format.name, "letters": args.view.letters, "hide": args.hide, "single": args.single,
        "pictures": format!("{:016x}", task.digest),
    });
    if let (true, Some(more)) = (args.scenes, more.as_object_mut()) {
        more.insert("scenes".into(), true.into());
    }
    let setup = setup("temporal-needle", &args.common, engine, more);
    let mut log = Log::open(out, &setup, args.common.fresh)?;
    let options = AskOptions {
        context: args.view.context,
        system: args.common.system.clone(),
        format,
        raw: args.common.raw,
        letters: args.view.letters,
    };
    let (outcomes, skipped) = ask(&task.questions, &mut log, engine, options)?;
    let mut columns: Vec<String> = task.lengths.iter().map(|length| column(*length)).collect();
    columns.extend(task.single.map(|_| ONE.to_owned()));
    let kinds = by_kind(task, &outcomes);
    let (whole, _): (Vec<Outcome>, Vec<Outcome>) = outcomes.iter().cloned().partition(|o| o.column != ONE);
    let down = if args.scenes { "hidden" } else { "first picture" };
    Ok(Report {
        title: format!("{}: {}", task.title, args.common.model),
        setup,
        grid: Grid::of((down, task.rows.clone()), ("", columns), &outcomes),
        more: vec![kinds],
        outcomes: whole,
        skipped,
        notes: vec![
            task.note.into(),
            "the score is of whole videos; `one frame` and `guessing` are what it must be above".into(),
        ],
    })
}

/// A row for each kind of question: whole videos of each length and of all, one frame, guessing.
fn by_kind(task: &Task, outcomes: &[Outcome]) -> Grid {
    let lengths: Vec<String> = task.lengths.iter().map(|length| column(*length)).collect();
    let columns = lengths.iter().cloned().chain(["video".into(), ONE.to_owned(), "guessing".into()]).collect();
    let mut grid = Grid::of(("kind", task.kinds.clone()), ("", columns), &[]);
    let mean_of = |asked: usize, scores: Vec<f64>| (!scores.is_empty()).then(|| Cell { asked, score: mean(&scores) });
    for (name, cells) in grid.rows.iter().zip(&mut grid.cells) {
        let kind = |o: &&Outcome| o.params.get("kind").and_then(Value::as_str) == Some(name.as_str());
        let (one, whole): (Vec<_>, Vec<_>) = outcomes.iter().filter(kind).partition(|o| o.column == ONE);
        let score = |list: &[&Outcome]| mean_of(list.len(), list.iter().map(|o| o.score).collect());
        let of = |length: &String| score(&whole.iter().copied().filter(|o| o.column == *length).collect::<Vec<_>>());
        let guessing = mean_of(0, whole.iter().map(|o| o.chance).collect());
        *cells = lengths.iter().map(of).chain([score(&whole), score(&one), guessing]).collect();
    }
    grid
}
