//! `omchat logits`, `generate`, `loss`: a case in, what the model makes of it out.

use super::case::{self, Data};
use super::input::{self, Case};
use super::loss::trained;
use super::progress::Bars;
use super::{Error, device};
use omchat::{Engine, Model, Rows, Sampler, Sampling, Session};
use omchat_model::config::IGNORE;
use omchat_model::splice::{Slot, Spliced, splice};
use std::path::PathBuf;
use std::sync::Arc;

/// What the parity commands take.
#[derive(clap::Args)]
pub struct Args {
    /// A model's folder.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// The case: safetensors with `input_ids`, and `pixel_values` and `labels` where they apply.
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Where the results are written.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// The device to run on; the best that there is if not given.
    #[arg(long)]
    pub device: Option<String>,
    /// The element type of weights and activations.
    #[arg(long, default_value = "f32")]
    pub dtype: String,
}

/// What `omchat generate` takes.
#[derive(clap::Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub common: Args,
    /// How many ids are picked.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub max_new_tokens: usize,
}

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Logits and features.
    Logits,
    /// That many greedy ids.
    Generate(usize),
    /// Loss and per-target nll.
    Loss,
}

/// Runs one of the three.
pub fn run(door: Door, args: &Args) -> Result<(), Error> {
    input::apart(&[("--input", &args.input), ("--output", &args.output)])?;
    input::writable(&[&args.output])?;
    let case = Case::read(&args.input)?;
    let model = Model::open(&args.model)?;
    let per_tile = model.tokens_per_tile();
    let vocab = model.config.text.vocab;
    let tiles = case.tiles(&model)?;
    let spliced = splice(&case.ids, tiles, per_tile, vocab)?;
    let labels = match (door, &case.labels) {
        (Door::Loss, None) => {
            return Err(Error::input(format!("{} holds no `labels`; `loss` needs them", args.input.display())));
        }
        (Door::Loss, Some(labels)) => {
            let labels = spliced.labels(labels)?;
            trained(&labels, &args.input)?;
            Some(labels)
        }
        _ => None,
    };
    let device = device::open(args.device.as_deref())?;
    let mut bars = Bars::default();
    let engine = Arc::new(Engine::load(model, device, &device::options(Some(&args.dtype))?, &mut |p| bars.show(p))?);
    let features = match tiles {
        0 => vec![],
        n => {
            let tile = case.pixels.len() / n;
            engine.features(n, &mut |r| case.pixels[r.start * tile..r.end * tile].to_vec(), &mut |p| bars.show(p))?
        }
    };
    bars.end();
    let extra = if let Door::Generate(n) = door { n } else { 0 };
    let mut session = Session::new(engine.clone(), spliced.len().saturating_add(extra))?;
    let mut out: Vec<(String, Data)> = vec![];
    match door {
        Door::Logits => {
            let logits = session.read(&spliced.slots, &features, Rows::All, &mut |_| {})?;
            out.push(("logits".into(), Data::f32(vec![spliced.len(), vocab], &logits)));
            if tiles > 0 {
                let width = engine.model().config.text.hidden;
                out.push(("image_features".into(), Data::f32(vec![features.len() / width, width], &features)));
            }
        }
        Door::Generate(n) => {
            let ids = generate(&mut session, &spliced, &features, n)?;
            out.push(("greedy_ids".into(), Data::i32(vec![ids.len()], &ids)));
        }
        Door::Loss => {
            let (nll, loss) = losses(&mut session, &spliced, &features, &labels.unwrap_or_default())?;
            out.push(("nll".into(), Data::f32(vec![nll.len()], &nll)));
            out.push(("loss".into(), Data::f32(vec![1], &[loss])));
        }
    }
    case::write(&args.output, &out)
}

fn generate(session: &mut Session, spliced: &Spliced, features: &[f32], n: usize) -> Result<Vec<i32>, Error> {
    let mut greedy = Sampler::new(Sampling::default());
    let mut logits = session.read(&spliced.slots, features, Rows::Last, &mut |_| {})?;
    let mut ids = vec![];
    while ids.len() < n {
        let id = greedy.pick(&logits, &[]);
        ids.push(id as i32);
        if ids.len() < n {
            logits = session.read(&[Slot::Text(id)], &[], Rows::Last, &mut |_| {})?;
        }
    }
    Ok(ids)
}

/// The loss of each target, and their mean; a sequence without targets has loss 0.
fn losses(
    session: &mut Session,
    spliced: &Spliced,
    features: &[f32],
    labels: &[i32],
) -> Result<(Vec<f32>, f32), Error> {
    // Position t predicts the label of t + 1; the last predicts nothing.
    let mut shifted = labels[1..].to_vec();
    shifted.push(IGNORE);
    let mut nll = session.losses(&spliced.slots, features, &shifted)?;
    nll.pop();
    let counted = shifted.iter().filter(|l| **l != IGNORE).count();
    let sum: f64 = nll.iter().map(|x| f64::from(*x)).sum();
    Ok((nll, if counted == 0 { 0.0 } else { (sum / counted as f64) as f32 }))
}
