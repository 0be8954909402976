//! `omchat train`: a model by a recipe.

use super::watch::Shown;
use super::{Error, device, note};
use omchat::training::{Feeds, TrainOptions, train};
use omchat_recipe::Recipe;
use std::path::PathBuf;

/// What `omchat train` takes.
#[derive(clap::Args)]
pub struct Args {
    /// The recipe: a TOML file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The run's folder.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Goes on from the newest checkpoint of the folder that is whole.
    #[arg(long)]
    resume: bool,
    /// Stops after this many steps of the whole run, with a checkpoint.
    #[arg(long, value_name = "STEPS")]
    until: Option<u64>,
    /// Appends which tokens each selective step kept: JSON, a line a document.
    #[arg(long, value_name = "FILE")]
    kept: Option<PathBuf>,
    /// The device to run on; the best that there is if not given.
    #[arg(long)]
    device: Option<String>,
}

/// Runs `omchat train`.
pub fn run(args: &Args) -> Result<(), Error> {
    let recipe = Recipe::read(&args.config).map_err(Error::input)?;
    let device = device::open(args.device.as_deref())?;
    let mut supply = Feeds::new(&recipe)?;
    let options = TrainOptions {
        out: args.out.clone(),
        resume: args.resume,
        until: args.until,
        kept: args.kept.clone(),
        world: None,
    };
    let mut shown = Shown::default();
    let outcome = train(&recipe, &device, &options, &mut supply, &mut |w| shown.watch(w));
    shown.end();
    let outcome = outcome?;
    match outcome.model {
        Some(dir) => note(format!("{} steps: the model is in {}", outcome.steps, dir.display())),
        None => note(format!("stopped after {} steps; --resume goes on", outcome.steps)),
    }
    Ok(())
}
