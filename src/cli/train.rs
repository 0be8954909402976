//! `omchat train`: a model by a recipe.

use super::watch::Shown;
use super::{Error, device, note, ranks, say};
use omchat::Device;
use omchat::training::{Feeds, Outcome, Replay, TrainOptions, replay, train};
use omchat_recipe::Recipe;
use omchat_runtime::collective::World;
use std::path::PathBuf;

/// What `omchat train` takes.
#[derive(clap::Args)]
pub struct Args {
    /// The recipe: a TOML file, or the `recipe.json` of a run.
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
    /// Takes a step of the run again whose loss or norm was not finite, from the batch in failed/ and the checkpoint
    /// before it, and tells each document's loss and which gradients are not finite. Writes nothing; exit code 1 if the
    /// step still fails. The recipe may have other rates than the run's.
    #[arg(long, value_name = "STEP", conflicts_with_all = ["resume", "until", "kept", "ranks", "ring", "data"])]
    replay: Option<u64>,
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
    if let Some(step) = args.replay {
        return again(args, &recipe, &device, step);
    }
    let outcome = args.ranks.run(|world| rank(args, &recipe, &device, world))?;
    match outcome.model {
        Some(dir) => note(format!("{} steps: the model is in {}", outcome.steps, dir.display())),
        None => note(format!("stopped after {} steps; --resume goes on", outcome.steps)),
    }
    Ok(())
}

/// Takes a failed step again.
fn again(args: &Args, recipe: &Recipe, device: &Device, step: u64) -> Result<(), Error> {
    let mut shown = Shown::default();
    let came = replay(recipe, device, &args.out, step, &mut Feeds::new(recipe)?, &mut |w| shown.watch(w));
    shown.end();
    let came = came?;
    say(told(&came))?;
    match came.came {
        Ok(_) => Ok(()),
        Err((what, value)) => Err(Error::failed(format!("{what} is still not finite at step {step}: {value}"))),
    }
}

/// What a replay came to, in words.
fn told(r: &Replay) -> String {
    let from = r.from.as_ref().map_or("the recipe's model".into(), |p| p.display().to_string());
    let mut out = format!("step {} of stage `{}`, {} steps after {from}\n", r.step, r.stage, r.again);
    let lines = [
        r.differs.as_ref().map(|d| format!("{d}\n")),
        r.broken.as_ref().map(|b| format!("before it {b} is not finite\n")),
    ];
    out += &lines.into_iter().flatten().collect::<String>();
    out += &format!("\n{:>10}  {:>6}  {:>10}  document\n", "loss", "labels", "not finite");
    for d in &r.documents {
        let (loss, o) = (d.loss.map_or("-".into(), |x| format!("{x:.4}")), &d.whence.origin);
        let file = d.whence.file.as_ref().map_or(format!("file {}", o.shard), Clone::clone);
        let place = format!("{} record {} from position {}, {file}, pack {}", o.dataset, o.record, o.offset, d.pack);
        out += &format!("{loss:>10}  {:>6}  {:>10}  {place}\n", d.labelled, d.broken);
    }
    out += &format!("\n{:>10}  {:<10}  {:>10}  tensor\n", "norm", "part", "not finite");
    for n in &r.gradients {
        let (broken, all) = n.broken;
        let which = if broken > 0 { "the first" } else { "the largest" };
        let tensor = format!("{} {:.4e}, {which}", n.tensor.0, n.tensor.1);
        out += &format!("{:>10.4e}  {:<10}  {:>10}  {tensor}\n", n.norm, n.part.name(), format!("{broken} of {all}"));
    }
    if let Ok((loss, norm)) = r.came {
        out += &format!("\nthe step is finite now: loss {loss:.6}, norm {norm:.4}\n");
    }
    out
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
