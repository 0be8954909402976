//! `omchat train`: a model by a recipe.

use super::watch::Shown;
use super::{Error, device, note, ranks};
use omchat::Device;
use omchat::training::{Feeds, Outcome, TrainOptions, train};
use omchat_recipe::Recipe;
use omchat_runtime::collective::World;
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
    #[command(flatten)]
    ranks: ranks::Ranks,
}

/// Runs `omchat train`.
pub fn run(args: &Args) -> Result<(), Error> {
    let mut recipe = Recipe::read(&args.config).map_err(Error::input)?;
    if let Some(ring) = args.ranks.ring() {
        recipe.stages.iter_mut().for_each(|s| s.ring = ring);
        recipe.check().map_err(Error::input)?;
    }
    let device = device::open(args.device.as_deref())?;
    let outcome = args.ranks.run(|world| rank(args, &recipe, &device, world))?;
    match outcome.model {
        Some(dir) => note(format!("{} steps: the model is in {}", outcome.steps, dir.display())),
        None => note(format!("stopped after {} steps; --resume goes on", outcome.steps)),
    }
    Ok(())
}

/// What one rank does; rank 0 shows it.
fn rank(args: &Args, recipe: &Recipe, device: &Device, world: Option<World>) -> Result<Outcome, Error> {
    let mut supply = Feeds::new(recipe)?;
    let (out, kept) = (args.out.clone(), args.kept.clone());
    let options = TrainOptions { out, resume: args.resume, until: args.until, kept, world };
    let mut shown = Shown::default();
    let outcome = train(recipe, device, &options, &mut supply, &mut |w| {
        if options.writes() {
            shown.watch(w);
        }
    });
    shown.end();
    if let Some(world) = options.world.as_ref().filter(|w| w.rank() == 0 && w.ranks() > 1) {
        let kept =
            world.carrier().and_then(Result::err).map(|why| format!(" (not by NCCL: {why})")).unwrap_or_default();
        note(format!("exchanged by rank 0, over {}{kept}:\n{}", world.engine(), world.traffic()));
    }
    Ok(outcome?)
}
