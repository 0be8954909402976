//! `omchat score`: a reference model's loss of every labelled token of a stage.

use super::progress::Bars;
use super::{Error, device, note, say};
use omchat::Model;
use omchat::training::{Feeds, Scored, score};
use omchat_recipe::Recipe;
use std::path::PathBuf;

/// What `omchat score` takes.
#[derive(clap::Args)]
pub struct Args {
    /// The recipe that will train on the data.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The stage whose data is scored, packed as the stage packs it.
    #[arg(long, value_name = "NAME")]
    stage: String,
    /// The reference model: a folder, or a preset's name. Its tokenizer must be that of the recipe's model.
    #[arg(long, value_name = "DIR")]
    model: String,
    /// The folder of losses to write; the stage's `select.reference` if not given.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The device to run on; the best that there is if not given.
    #[arg(long)]
    device: Option<String>,
}

/// Runs `omchat score`.
pub fn run(args: &Args) -> Result<(), Error> {
    let recipe = Recipe::read(&args.config).map_err(Error::input)?;
    let Some(stage) = recipe.stages.iter().find(|s| s.name == args.stage) else {
        let names: Vec<&str> = recipe.stages.iter().map(|s| s.name.as_str()).collect();
        return Err(Error::input(format!("no stage is called `{}`; name one of {}", args.stage, names.join(", "))));
    };
    let own = stage.select.as_ref().map(|s| s.reference.clone());
    let Some(out) = args.out.clone().or(own) else {
        return Err(Error::input("the stage selects nothing, so no folder is known: give --out DIR"));
    };
    let reference = Model::open(&args.model)?;
    let device = device::open(args.device.as_deref())?;
    let mut supply = Feeds::new(&recipe)?;
    let mut bars = Bars::default();
    let done = score(&recipe, stage, &reference, &device, &out, &mut supply, &mut |p| bars.show(p));
    bars.end();
    let Scored { documents, tokens, mean } = done?;
    note(format!("{tokens} losses of {documents} documents are in {}", out.display()));
    say(format!("mean loss {mean:.4} of {tokens} tokens\n"))
}
