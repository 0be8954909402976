//! `omchat eval needle`.

use super::{Common, ask, counts, engine, finish, percents, seeds, setup};
use crate::cli::{Error, note};
use omchat::{AskOptions, Engine, Model, Session};
use omchat_model::format::Format;
use omchat_recipe::judge::haystack::Haystack;
use omchat_recipe::judge::needle::{NEEDLE, Needles, QUESTION, depth_name, length_name};
use omchat_recipe::judge::{Grid, Log, Report, Skipped};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// What the text needle takes.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Text files, or folders with .txt and .md files, to hide the needle in; repeat it for several.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    haystack: Vec<PathBuf>,
    /// Starts the haystack over where it ends.
    #[arg(long)]
    repeat: bool,
    /// Tokens of whole prompts.
    #[arg(long, default_value = "1K,2K,4K", value_name = "N,…")]
    lengths: String,
    /// Depths in percent, 0 at the start; or how many.
    #[arg(long, default_value = "0,25,50,75,100", value_name = "P,…|N")]
    depths: String,
    /// How many needles a length and depth, each with a city and a number of its own; other lengths and depths have the same.
    #[arg(long, default_value_t = 3, value_name = "N")]
    seeds: u64,
    /// The first needle's seed.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// The needle; {city} and {number} are filled in.
    #[arg(long, default_value = NEEDLE, value_name = "TEXT")]
    needle: String,
    /// The question; {city} is filled in. With --raw there is none: the prompt ends with the needle up to the number.
    #[arg(long, default_value = QUESTION, value_name = "TEXT")]
    question: String,
    /// Asks also beyond the positions that the model's configuration names.
    #[arg(long)]
    past_positions: bool,
}

/// Hides needles and asks for them.
pub fn run(args: &Args) -> Result<(), Error> {
    let common = &args.common;
    let (lengths, depths) = (counts(&args.lengths)?, percents(&args.depths)?);
    let model = Model::open(&common.model)?;
    let tokenizer = model.tokenizer()?;
    let most = if args.past_positions { usize::MAX } else { model.config.text.max_positions };
    let mut needles = Needles {
        lengths,
        depths,
        seeds: seeds(args.seed, args.seeds)?,
        needle: args.needle.clone(),
        question: args.question.clone(),
        raw: common.raw,
        system: common.system.clone(),
        most,
    };
    needles.check()?;
    beyond(&needles)?;
    let haystack = Haystack::read(&args.haystack, &tokenizer, needles.wanted(), args.repeat)?;
    // What cannot be hidden is said before anything is loaded.
    needles.hide(&haystack, &tokenizer)?;
    let engine = engine(common, model)?;
    let small = fit(&mut needles, &engine)?;
    let hidden = needles.hide(&haystack, &tokenizer)?;
    let digest = format!("{:016x}", haystack.digest);
    let more = json!({ "needle": args.needle, "question": args.question, "haystack": digest });
    let setup = setup("needle", common, &engine, more);
    let mut log = Log::open(&common.out, &setup, common.fresh)?;
    let options = AskOptions {
        context: context(&needles),
        system: common.system.clone(),
        format: Format::released(engine.model().config.vision.as_ref()),
        raw: common.raw,
        letters: false,
    };
    let (outcomes, mut skipped) = ask(&hidden.questions, &mut log, &engine, options)?;
    skipped.extend(hidden.skipped.into_iter().chain(small));
    let rows = needles.depths.iter().map(|depth| depth_name(*depth)).collect();
    let columns = needles.lengths.iter().map(|length| length_name(*length)).collect();
    let report = Report {
        title: format!("Needle in a text: {}", common.model),
        setup,
        grid: Grid::of(("depth", rows), ("tokens", columns), &outcomes),
        more: vec![],
        outcomes,
        skipped,
        notes: vec![],
    };
    finish(&report, &common.out)
}

/// Slots for the longest prompt and its answer.
fn context(needles: &Needles) -> usize {
    needles.wanted() + 24
}

/// Gives up the longest lengths until a cache fits the device's memory; says which.
fn fit(needles: &mut Needles, engine: &Arc<Engine>) -> Result<Vec<Skipped>, Error> {
    let mut skipped = vec![];
    while needles.wanted() > 0 {
        let longest = needles.wanted();
        match Session::new(engine.clone(), context(needles)) {
            Ok(_) => break,
            Err(fault @ omchat::Error::Runtime(omchat_runtime::Error::OutOfMemory { .. })) => {
                note(format!("length {longest} is left out: {fault}"));
                skipped.push(Skipped { what: format!("length {longest}"), why: fault.to_string() });
                needles.lengths.retain(|length| *length != longest);
                if needles.wanted() == 0 {
                    return Err(fault.into());
                }
            }
            Err(fault) => return Err(fault.into()),
        }
    }
    Ok(skipped)
}

/// Refuses lengths that are all beyond the model's positions.
fn beyond(needles: &Needles) -> Result<(), Error> {
    if needles.wanted() > 0 {
        return Ok(());
    }
    Err(Error::input(format!(
        "the model has {} positions, fewer than every length; give shorter --lengths, or --past-positions",
        needles.most
    )))
}
