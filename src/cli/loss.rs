//! `omchat loss --grads`, and what it shares with `omchat step`.

use super::case::{self, Data};
use super::input::Case;
use super::progress::Bars;
use super::{Error, device, input, parity};
use omchat::{Batch, ForwardSpec, Model, Part, Recompute, TrainSpec};
use omchat_ir::Dtype;
use omchat_model::config::IGNORE;
use omchat_model::splice::splice;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What `omchat loss` takes.
#[derive(clap::Args)]
#[command(
    mut_arg("trainable", |a| a.requires("grads")),
    mut_arg("recompute", |a| a.requires("grads")),
    mut_arg("mlp_tiles", |a| a.requires("grads")),
    mut_arg("loss_tiles", |a| a.requires("grads"))
)]
pub struct LossArgs {
    #[command(flatten)]
    common: parity::Args,
    /// Where the gradients are written, as safetensors.
    #[arg(long, value_name = "FILE")]
    grads: Option<PathBuf>,
    #[command(flatten)]
    train: TrainArgs,
}

/// What is trained, and how its memory is bounded.
#[derive(clap::Args)]
pub struct TrainArgs {
    /// What is trained.
    #[arg(long, value_name = "PARTS", value_delimiter = ',', default_value = "vision,projector,decoder")]
    pub trainable: Vec<String>,
    /// What the backward pass computes again: `nothing`, `all-but-attention` or `layers`.
    #[arg(long, value_name = "WHAT", default_value = "nothing")]
    pub recompute: String,
    /// Parts that the rows of each MLP are computed in; it must divide the tokens.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub mlp_tiles: usize,
    /// Parts that the losses are computed in; it must divide the tokens.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub loss_tiles: usize,
}

impl TrainArgs {
    /// The spec for a batch of these sizes.
    pub fn spec(&self, batch: &Batch) -> Result<TrainSpec, Error> {
        let part = |name: &String| {
            Part::from_name(name).ok_or_else(|| {
                Error::input(format!("`{name}` is no part of a model; give vision, projector or decoder"))
            })
        };
        let recompute = Recompute::ALL.into_iter().find(|r| r.name() == self.recompute).ok_or_else(|| {
            let names = Recompute::ALL.map(Recompute::name).join(", ");
            Error::input(format!("`{}` is nothing to recompute; give one of {names}", self.recompute))
        })?;
        let forward = ForwardSpec {
            tiles: batch.tiles(),
            mlp_tiles: self.mlp_tiles,
            loss_tiles: self.loss_tiles,
            ..ForwardSpec::text(batch.tokens())
        };
        let parts: Vec<Part> = self.trainable.iter().map(part).collect::<Result<_, _>>()?;
        if batch.tiles() == 0 && !parts.is_empty() && !parts.contains(&Part::Decoder) {
            return Err(Error::input(format!(
                "the case has no tile, so {} has no part in its loss; give a case with a picture, or train the decoder",
                self.trainable.join(" and ")
            )));
        }
        Ok(TrainSpec { parts, recompute, ..TrainSpec::whole(forward) })
    }
}

/// A case with labels as a batch.
pub fn batch(model: &Model, case: &Case, path: &std::path::Path) -> Result<Batch, Error> {
    let tiles = case.tiles(model)?;
    let spliced = splice(&case.ids, tiles, model.tokens_per_tile(), model.config.text.vocab)?;
    let Some(labels) = &case.labels else {
        return Err(Error::input(format!("{} holds no `labels`; training needs them", path.display())));
    };
    let labels = spliced.labels(labels)?;
    trained(&labels, path)?;
    Ok(Batch::sequence(model, &spliced, &labels, &case.pixels)?)
}

/// That a position predicts something: the mean over none is no loss. The first label is predicted by nothing.
pub fn trained(labels: &[i32], path: &std::path::Path) -> Result<(), Error> {
    match labels.iter().skip(1).any(|l| *l != IGNORE) {
        true => Ok(()),
        false => Err(Error::input(format!(
            "{}: no position has a next label that counts; give `labels` other than {IGNORE} after the first",
            path.display()
        ))),
    }
}

/// The element type of that name.
pub fn dtype(name: &str) -> Result<Dtype, Error> {
    Ok(device::options(Some(name))?.dtype.unwrap_or(Dtype::F32))
}

/// Runs `omchat loss`.
pub fn loss(args: &LossArgs) -> Result<(), Error> {
    let Some(path) = &args.grads else { return parity::run(parity::Door::Loss, &args.common) };
    input::apart(&[("--input", &args.common.input), ("--output", &args.common.output), ("--grads", path)])?;
    input::writable(&[&args.common.output, path])?;
    let case = Case::read(&args.common.input)?;
    let model = Model::open(&args.common.model)?;
    let batch = batch(&model, &case, &args.common.input)?;
    let spec = args.train.spec(&batch)?;
    let device = device::open(args.common.device.as_deref())?;
    let mut bars = Bars::default();
    let dtype = dtype(&args.common.dtype)?;
    let found = omchat::gradients(&model, &device, dtype, &spec, &batch, &mut |p| bars.show(p))?;
    bars.end();
    let nll = &found.nll[..found.nll.len() - 1];
    let out =
        [("nll".to_string(), Data::f32(vec![nll.len()], nll)), ("loss".to_string(), Data::f32(vec![1], &[found.loss]))];
    case::write(&args.common.output, &out)?;
    case::write(path, &spelled(&model, found.grads.into_iter().collect())?)
}

/// Tensors under the checkpoint's own names; zeros for what is not given.
pub fn spelled(model: &Model, given: BTreeMap<String, Vec<f32>>) -> Result<Vec<(String, Data)>, Error> {
    let mut out = vec![];
    for name in model.checkpoint.names() {
        let mut rest = given.get(name).map(Vec::as_slice);
        for part in model.checkpoint.stored(name)? {
            let n = part.shape.iter().product();
            let data = match &mut rest {
                Some(all) => {
                    let (own, more) = all.split_at(n);
                    *all = more;
                    Data::f32(part.shape.to_vec(), own)
                }
                None => Data::f32(part.shape.to_vec(), &vec![0.0; n]),
            };
            out.push((part.name.to_string(), data));
        }
    }
    Ok(out)
}
