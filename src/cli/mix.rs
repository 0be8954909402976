//! `omchat mix`: how long to tune on a mixture, by a trunk and its branches.

use super::watch::Shown;
use super::{Error, device, note, say};
use omchat::training::{Feeds, mix};
use omchat_recipe::{Recipe, mixture};
use std::path::PathBuf;

/// What `omchat mix` takes.
#[derive(clap::Args)]
pub struct Args {
    /// The recipe: a TOML file with a `[mixture]` and one stage.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The search's folder. What is done there already is not done again.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The device to run on; the best that there is if not given.
    #[arg(long)]
    device: Option<String>,
}

/// Runs `omchat mix`.
pub fn run(args: &Args) -> Result<(), Error> {
    let recipe = Recipe::read(&args.config).map_err(Error::input)?;
    let device = device::open(args.device.as_deref())?;
    let mut supply = Feeds::new(&recipe)?;
    let mut shown = Shown::default();
    let branches = mix(&recipe, &device, &args.out, &mut supply, &mut |w| shown.watch(w));
    shown.end();
    say(mixture::table(&branches?))?;
    note(format!("runs, models and the table are in {}", args.out.display()));
    Ok(())
}
