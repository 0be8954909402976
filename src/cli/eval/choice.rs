//! `omchat eval choice`.

use super::{Common, View, ask, engine, finish, setup};
use crate::cli::{Error, note};
use omchat::{AskOptions, Engine, Model};
use omchat_model::format::Format;
use omchat_recipe::judge::choice::{Loaded, Reading, by_group, load, questions};
use omchat_recipe::judge::draw::digest;
use omchat_recipe::judge::{Grid, Log, Metric, Prompt, Question, Report, Sight, grid};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a benchmark takes.
#[derive(clap::Args, Clone)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub view: View,
    /// Files of MVBench, MileBench, Mantis-Eval or Q-Bench (.json, .jsonl) or of MMBench (.tsv), or folders with some.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// The folder of pictures and videos; beside the file if not given.
    #[arg(long, value_name = "DIR")]
    media: Option<PathBuf>,
    /// How many frames of a video are looked at.
    #[arg(long, default_value_t = 8, value_name = "N")]
    frames: usize,
    /// Asks only that many questions of each task.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Asks each question once for each rotation of its options; all must be right. MMBench is judged so.
    #[arg(long)]
    circular: bool,
    /// How answers in words are weighed: exact, within, rouge-l or anls; as the benchmark does if not given.
    #[arg(long, value_name = "METRIC")]
    metric: Option<String>,
}

/// Questions that are asked under some setup.
pub struct Task {
    questions: Vec<Question>,
    loaded: Loaded,
    digest: String,
}

impl Args {
    /// The questions.
    pub fn read(&self) -> Result<Task, Error> {
        if self.frames == 0 || self.limit == Some(0) {
            return Err(Error::input("0 frames or questions are asked for; ask for one at least"));
        }
        let metric = match self.metric.as_deref() {
            Some(name) => Some(Metric::named(name).ok_or_else(|| {
                Error::input(format!("no metric is called `{name}`; name exact, within, rouge-l or anls"))
            })?),
            None => None,
        };
        let reading = Reading { media: self.media.clone(), frames: self.frames, metric };
        let loaded = load(&self.data, &reading)?;
        let mut records = loaded.records.clone();
        if let Some(limit) = self.limit {
            let mut counts = std::collections::HashMap::new();
            records.retain(|record| {
                // Rotations of one question are one question.
                let group = record.group.clone().unwrap_or_else(|| record.id.clone());
                let known: &mut Vec<String> = counts.entry(record.task.clone()).or_default();
                if known.contains(&group) {
                    return true;
                }
                let takes = known.len() < limit;
                if takes {
                    known.push(group);
                }
                takes
            });
        }
        for bad in loaded.bad.iter().take(3) {
            note(format!("{} cannot be used: {}", bad.what, bad.why));
        }
        if loaded.bad.len() > 3 {
            note(format!("and {} more", loaded.bad.len() - 3));
        }
        // Of all there are: a limit may be raised and the answers kept.
        let sum = questions(&loaded.records, self.circular).iter().fold(0u64, |sum, q| {
            sum.rotate_left(1) ^ digest(format!("{}{}{}", q.id, shown(&q.prompt), q.expected).as_bytes())
        });
        Ok(Task { questions: questions(&records, self.circular), loaded, digest: format!("{sum:016x}") })
    }
}

/// What tells a prompt from others: its words, the content of pictures, of videos, which may be gigabytes, size and time.
fn shown(prompt: &Prompt) -> String {
    let (text, sights) = match prompt {
        Prompt::Ids(ids) => return format!("{ids:?}"),
        Prompt::Turn { text, sights } => (text, sights),
    };
    let about = |sight: &Sight| match sight {
        Sight::File(path) => format!("{:016x}", std::fs::read(path).map_or(0, |bytes| digest(&bytes))),
        Sight::Picture(picture) => format!("{:016x}", digest(&picture.rgb)),
        Sight::Frames(frames) => frames.iter().map(|frame| format!("{:016x}", digest(&frame.rgb))).collect(),
        Sight::Video { path, frames, span } => {
            let about = std::fs::metadata(path).ok().map(|m| (m.len(), m.modified().ok()));
            // What a stretch shows is part of the question: other frames, another question.
            let rule = if span.is_some() { " by times" } else { "" };
            format!("{} {frames} {span:?} {about:?}{rule}", path.display())
        }
    };
    sights.iter().map(about).fold(text.clone(), |all, one| all + &one)
}

/// Asks a benchmark.
pub fn run(args: &Args) -> Result<(), Error> {
    let task = args.read()?;
    let model = Model::open(&args.common.model)?;
    let format = args.view.format(&model)?;
    let engine = engine(&args.common, model)?;
    let report = judge(args, &task, &engine, format, &args.common.out)?;
    finish(&report, &args.common.out)
}

/// Asks a benchmark in one layout of pictures.
pub fn judge(args: &Args, task: &Task, engine: &Arc<Engine>, format: Format, out: &Path) -> Result<Report, Error> {
    let more = json!({
        "format": format.name, "letters": args.view.letters, "frames": args.frames, "circular": args.circular,
        "metric": args.metric, "questions": task.digest,
    });
    let setup = setup("choice", &args.common, engine, more);
    let mut log = Log::open(out, &setup, args.common.fresh)?;
    let options = AskOptions {
        context: args.view.context,
        system: args.common.system.clone(),
        format,
        raw: args.common.raw,
        letters: args.view.letters,
    };
    let (answers, mut skipped) = ask(&task.questions, &mut log, engine, options)?;
    skipped.extend(task.loaded.bad.iter().cloned());
    let outcomes = if args.circular { by_group(&answers) } else { answers };
    let mut grid = Grid::of(
        ("task", Grid::names(&outcomes, |o| &o.row)),
        ("", vec!["score".into(), "guessing".into(), "unread".into()]),
        &[],
    );
    for (row, cells) in grid.rows.iter().zip(&mut grid.cells) {
        let of: Vec<_> = outcomes.iter().filter(|o| o.row == *row).collect();
        let mean = |asked: usize, value: &dyn Fn(usize) -> f64| {
            let values: Vec<f64> = (0..of.len()).map(value).collect();
            Some(grid::Cell { asked, score: grid::mean(&values) })
        };
        let score = mean(of.len(), &|i| of[i].score);
        *cells = vec![score, mean(0, &|i| of[i].chance), mean(of.len(), &|i| f64::from(of[i].read.is_none()))];
    }
    let mut notes = vec![];
    if args.circular {
        notes.push(format!("of {} answers, each question is right only if all its rotations are", log.len()));
    }
    Ok(Report {
        title: format!("Questions with options: {}", args.common.model),
        setup,
        grid,
        more: vec![],
        outcomes,
        skipped,
        notes,
    })
}
