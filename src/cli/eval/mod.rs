//! `omchat eval`: how good a model's answers are.

mod choice;
mod formats;
mod needle;
mod temporal;

use super::progress::Bars;
use super::{Error, device, note, say};
use omchat::{AskOptions, Asker, Engine, Model};
use omchat_model::chat::SYSTEM;
use omchat_model::format::Format;
use omchat_recipe::judge::draw::digest;
use omchat_recipe::judge::{Log, Outcome, Question, Report, Skipped, ask_all};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is asked.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Hides a number in long texts and asks for it.
    Needle(needle::Args),
    /// Hides pictures among a video's frames and asks which, how many, and in which order.
    ///
    /// The construction is ours: what OmChat's authors used is not published.
    TemporalNeedle(temporal::Args),
    /// Asks a benchmark of questions with options, or with answers in words.
    Choice(choice::Args),
    /// Asks the same in each layout of pictures, F0 to F4, and compares the scores.
    #[command(subcommand)]
    Formats(formats::Command),
}

/// What every evaluation takes.
#[derive(clap::Args, Clone)]
pub struct Common {
    /// A model's folder, or the name of a preset.
    #[arg(long, value_name = "DIR|PRESET")]
    pub model: String,
    /// The folder for answers.jsonl, summary.json, report.html and heatmap.png. Answers that it holds are not asked for
    /// again.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Gives up the answers that the folder holds.
    #[arg(long)]
    pub fresh: bool,
    /// The device to run on; the best that there is if not given.
    #[arg(long)]
    pub device: Option<String>,
    /// The element type of weights and activations; the device's usual one if not given.
    #[arg(long)]
    pub dtype: Option<String>,
    /// What the system turn says.
    #[arg(long, value_name = "TEXT", default_value = SYSTEM)]
    pub system: String,
    /// Without a chat's turns, for models that were not trained on chats.
    #[arg(long)]
    pub raw: bool,
}

/// What evaluations with pictures take.
#[derive(clap::Args, Clone)]
pub struct View {
    /// How pictures are announced in the prompt: F0 to F4; the released layout if not given.
    #[arg(long, value_name = "F")]
    format: Option<String>,
    /// Room for that many tokens: a question that takes more is skipped, and said to be.
    #[arg(long, default_value_t = 8192, value_name = "N")]
    context: usize,
    /// Takes the letter with the largest logit in place of generated words: no answer is unreadable.
    #[arg(long)]
    letters: bool,
}

impl View {
    fn format(&self, model: &Model) -> Result<Format, Error> {
        match &self.format {
            Some(name) => Ok(Format::named(name)?),
            None => Ok(Format::released(model.config.vision.as_ref())),
        }
    }
}

/// Asks.
pub fn run(command: &Command) -> Result<(), Error> {
    match command {
        Command::Needle(args) => needle::run(args),
        Command::TemporalNeedle(args) => temporal::run(args),
        Command::Choice(args) => choice::run(args),
        Command::Formats(command) => formats::run(command),
    }
}

/// A model on a device.
fn engine(common: &Common, model: Model) -> Result<Arc<Engine>, Error> {
    let device = device::open(common.device.as_deref())?;
    let mut bars = Bars::default();
    let options = device::options(common.dtype.as_deref())?;
    let engine = Engine::load(model, device, &options, &mut |p| bars.show(p))?;
    bars.end();
    Ok(Arc::new(engine))
}

/// What all answers of a run have in common, beside what a task adds.
fn setup(task: &str, common: &Common, engine: &Engine, more: Value) -> Value {
    let mut out = json!({
        "task": task,
        "model": common.model,
        "weights": weights(&engine.model().dir),
        "dtype": engine.dtype().to_string(),
        "system": common.system,
        "raw": common.raw,
    });
    if let (Some(out), Some(more)) = (out.as_object_mut(), more.as_object()) {
        out.extend(more.clone());
    }
    out
}

/// Tells a folder's weights from others by name, size and time, so that gigabytes need not be read.
fn weights(dir: &Path) -> String {
    let mut files: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|item| item.ok())
        .filter(|item| item.path().extension().is_some_and(|e| e == "safetensors"))
        .filter_map(|item| {
            let about = item.metadata().ok()?;
            Some(format!("{:?} {} {:?}", item.file_name(), about.len(), about.modified().ok()?))
        })
        .collect();
    files.sort();
    format!("{:016x}", digest(files.join("\n").as_bytes()))
}

/// The answers to some questions, asked where the log does not hold them.
fn ask(
    questions: &[Question],
    log: &mut Log,
    engine: &Arc<Engine>,
    options: AskOptions,
) -> Result<(Vec<Outcome>, Vec<Skipped>), Error> {
    if log.found > 0 {
        note(format!("{} answers are there already", log.found));
    }
    let bars = RefCell::new(Bars::default());
    // A long prompt shows how far it is read; a short one would only flicker.
    let mut progress = |p: omchat::Progress| {
        if p.total >= 4096 || p.stage == "encoding" {
            bars.borrow_mut().show(p);
        }
    };
    let mut asker = Asker::new(engine.clone(), options, &mut progress)?;
    let found = ask_all(questions, log, &mut asker, &mut |done, total| bars.borrow_mut().step("asking", done, total))?;
    bars.borrow_mut().end();
    note(format!("{} positions read, {} that were in the cache already", asker.read, asker.spared));
    Ok(found)
}

/// Writes and prints what was found.
///
/// Errors: nothing was asked, which is no score.
fn finish(report: &Report, out: &Path) -> Result<(), Error> {
    report.write(out)?;
    say(report.text())?;
    note(format!("wrote {}", out.join("report.html").display()));
    if report.outcomes.is_empty() {
        let why = report.skipped.first().map_or(String::new(), |one| format!(": {} {}", one.what, one.why));
        return Err(Error::input(format!(
            "no question could be asked{why}; give what --data, --lengths or --context lack"
        )));
    }
    Ok(())
}

/// That many seeds, from one on.
fn seeds(first: u64, count: u64) -> Result<Vec<u64>, Error> {
    let most = 1 << 20;
    match first.checked_add(count) {
        Some(end) if count <= most => Ok((first..end).collect()),
        _ => Err(Error::input(format!(
            "--seeds {count} from --seed {first} on; give at most {most}, and none beyond {}",
            u64::MAX
        ))),
    }
}

/// Whole numbers between commas; `K` is 1024.
fn counts(text: &str) -> Result<Vec<usize>, Error> {
    text.split(',')
        .map(|part| {
            let part = part.trim();
            let (digits, unit) = match part.strip_suffix(['k', 'K']) {
                Some(digits) => (digits, 1024),
                None => (part, 1),
            };
            let found = digits.parse::<usize>().ok().and_then(|n| n.checked_mul(unit)).filter(|n| *n > 0);
            found.ok_or_else(|| Error::input(format!("`{part}` of `{text}` is no count; write 512,4K,128K")))
        })
        .collect::<Result<Vec<_>, _>>()
        .map(once)
}

/// The same without repeats: what is asked twice is one answer.
fn once<T: PartialEq>(all: Vec<T>) -> Vec<T> {
    let mut out = Vec::with_capacity(all.len());
    for one in all {
        if !out.contains(&one) {
            out.push(one);
        }
    }
    out
}

/// Percents between commas; a lone number without `%` is how many, evenly from 0 to 100.
fn percents(text: &str) -> Result<Vec<f64>, Error> {
    if let Ok(count) = text.trim().parse::<usize>() {
        return match count {
            0 => Err(Error::input("0 depths; write how many, or the depths as 0,50,100 or 50%")),
            1 => Ok(vec![50.0]),
            n => Ok((0..n).map(|i| (10_000.0 * i as f64 / (n - 1) as f64).round() / 100.0).collect()),
        };
    }
    text.split(',')
        .filter(|part| !part.trim().is_empty())
        .map(|part| {
            let number = part.trim().trim_end_matches('%').parse::<f64>().ok();
            let found = number.filter(|depth| (0.0..=100.0).contains(depth));
            found.ok_or_else(|| Error::input(format!("`{}` of `{text}` is no depth from 0 to 100 %", part.trim())))
        })
        .collect::<Result<Vec<_>, _>>()
        .map(once)
}
