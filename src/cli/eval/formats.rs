//! `omchat eval formats`: one evaluation in each layout of pictures.

use super::{choice, engine, finish, once, temporal};
use crate::cli::{Error, note};
use omchat::{Engine, Model};
use omchat_model::format::Format;
use omchat_recipe::judge::{Grid, Report};
use std::path::Path;
use std::sync::Arc;

/// What is asked in each layout.
#[derive(clap::Subcommand)]
pub enum Command {
    /// A benchmark with questions in files.
    Choice {
        #[command(flatten)]
        args: choice::Args,
        /// The layouts.
        #[arg(long, default_value = "F0,F1,F2,F3,F4", value_name = "F,…")]
        formats: String,
    },
    /// Pictures hidden in videos.
    TemporalNeedle {
        #[command(flatten)]
        args: temporal::Args,
        /// The layouts.
        #[arg(long, default_value = "F0,F1,F2,F3,F4", value_name = "F,…")]
        formats: String,
    },
}

/// Asks the same in each layout and compares the scores.
pub fn run(command: &Command) -> Result<(), Error> {
    match command {
        Command::Choice { args, formats } => {
            let task = args.read()?;
            let engine = engine(&args.common, Model::open(&args.common.model)?)?;
            compare(formats, &args.common.out, &engine, &|format, out| choice::judge(args, &task, &engine, format, out))
        }
        Command::TemporalNeedle { args, formats } => {
            let model = Model::open(&args.common.model)?;
            let task = args.read(&model)?;
            let engine = engine(&args.common, model)?;
            compare(formats, &args.common.out, &engine, &|format, out| {
                temporal::judge(args, &task, &engine, format, out)
            })
        }
    }
}

fn compare(
    names: &str,
    out: &Path,
    engine: &Arc<Engine>,
    judge: &dyn Fn(Format, &Path) -> Result<Report, Error>,
) -> Result<(), Error> {
    let names = once(names.split(',').map(str::trim).collect());
    let formats = names.iter().map(|name| Format::named(name)).collect::<Result<Vec<_>, _>>()?;
    let (mut all, mut skipped, mut setups) = (vec![], vec![], serde_json::Map::new());
    for format in &formats {
        note(format!("format {}", format.name));
        let dir = out.join(format.name);
        let report = judge(*format, &dir)?;
        report.write(&dir)?;
        setups.insert(format.name.into(), report.setup.clone());
        skipped.extend(report.skipped.into_iter().map(|mut one| {
            one.what = format!("{} {}", format.name, one.what);
            one
        }));
        all.extend(report.outcomes.into_iter().map(|mut outcome| {
            (outcome.column, outcome.row) = (outcome.row, format.name.to_owned());
            outcome
        }));
    }
    let tasks = Grid::names(&all, |o| &o.column);
    let rows: Vec<String> = formats.iter().map(|format| format.name.to_owned()).collect();
    let whole: Vec<_> = all
        .iter()
        .cloned()
        .map(|mut outcome| {
            outcome.column = "all".into();
            outcome
        })
        .chain(all.iter().cloned())
        .collect();
    let columns = std::iter::once("all".to_owned()).chain(tasks).collect();
    let mut notes = vec!["the spelling of the formats, and F1 and F2 as a whole, are ours".to_owned()];
    if names.contains(&"F3") && names.contains(&"F4") {
        notes.push("F3 and F4 are one layout: what sets F4 apart is what the model was trained on".into());
    }
    let report = Report {
        title: format!("Formats of pictures: {}", engine.model().dir.display()),
        setup: setups.into(),
        grid: Grid::of(("format", rows), ("", columns), &whole),
        more: vec![],
        outcomes: all,
        skipped,
        notes,
    };
    finish(&report, out)
}
