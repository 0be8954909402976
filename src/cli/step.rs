//! `omchat step`: some steps of AdamW on one case.

use super::case::{self, Data};
use super::input::{Case, apart, writable};
use super::loss::{TrainArgs, batch, dtype};
use super::progress::Bars;
use super::{Error, device, note};
use omchat::training::{Changed, export, exportable};
use omchat::{AdamW, Device, Model, Select, Selection, Step, TrainSpec, Trainer};
use omchat_ir::Dtype;
use std::path::PathBuf;

/// What `omchat step` takes.
#[derive(clap::Args)]
pub struct Args {
    /// A model's folder.
    #[arg(long, value_name = "DIR")]
    model: String,
    /// The case: safetensors with `input_ids` and `labels`, and `pixel_values` where they apply.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where `adamw_losses` is written, the loss before each step.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Where the model is written after the last step.
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// The device to run on; the best that there is if not given.
    #[arg(long)]
    device: Option<String>,
    /// The element type of activations and of the weights that they meet; the trained weights are kept in f32.
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Steps to take.
    #[arg(long, default_value_t = 1, value_name = "N")]
    steps: usize,
    /// The learning rate.
    #[arg(long, default_value_t = 2e-5)]
    lr: f32,
    /// Decay of the first and the second moment.
    #[arg(long, default_value = "0.9,0.999", value_name = "B1,B2")]
    betas: String,
    /// Added to the root of the second moment.
    #[arg(long, default_value_t = 1e-8)]
    eps: f32,
    /// Decoupled weight decay of matrices.
    #[arg(long, default_value_t = 0.0)]
    decay: f32,
    /// Every parameter decays, not matrices only.
    #[arg(long)]
    decay_all: bool,
    /// Only this share of the labelled tokens trains: those whose loss exceeds the reference model's most. The case
    /// holds `reference`, f32 [T], the reference model's loss of each target.
    #[arg(long, value_name = "RATIO")]
    keep: Option<f32>,
    /// With `--keep`: those whose loss falls short of the reference's most, the other reading.
    #[arg(long, requires = "keep")]
    reference_minus_train: bool,
    /// The largest norm of all gradients together; larger ones are scaled down to it.
    #[arg(long, value_name = "NORM")]
    clip: Option<f32>,
    /// The most bytes that a step may hold, such as 6GB: what is computed again, and in how many parts, is chosen to
    /// fit.
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["recompute", "mlp_tiles", "loss_tiles"])]
    memory: Option<String>,
    #[command(flatten)]
    train: TrainArgs,
}

/// Runs `omchat step`.
pub fn run(args: &Args) -> Result<(), Error> {
    let adamw = args.adamw()?;
    apart(&[("--input", &args.input), ("--output", &args.output)])?;
    writable(&[&args.output])?;
    let case = Case::read(&args.input)?;
    let model = Model::open(&args.model)?;
    if let Some(dir) = &args.save {
        exportable(&model, dir)?;
    }
    let mut batch = batch(&model, &case, &args.input)?;
    let mut spec = TrainSpec { decay_all: args.decay_all, ..args.train.spec(&batch)? };
    if let Some(ratio) = args.keep {
        let how = Select { ratio, reference_minus_train: args.reference_minus_train, ..Select::default() };
        batch = batch.selected(&case.reference(&args.input, spec.forward.tokens)?, &how)?;
        spec.select = Some(Selection { room: spec.forward.tokens, joined: true });
    }
    let (device, dtype) = (device::open(args.device.as_deref())?, dtype(&args.dtype)?);
    let spec = match &args.memory {
        Some(budget) => plan(&model, &spec, dtype, &device, bytes(budget)?)?,
        None => spec,
    };
    let mut bars = Bars::default();
    let mut trainer = Trainer::new(&model, device, dtype, &spec, &mut |p| bars.show(p))?;
    bars.end();
    let mut losses = vec![];
    for n in 0..args.steps {
        let step = trainer.step(&batch, &adamw)?;
        let Step { loss, norm, memory, .. } = step;
        let memory = match memory {
            Some(m) => format!(", {} bytes held of {} planned", m.actual, m.planned),
            None => String::new(),
        };
        let kept = step.kept().map_or(String::new(), |k| format!(", {k} tokens kept"));
        note(format!("step {}: loss {loss:.6}, gradient norm {norm:.4}{kept}{memory}", n + 1));
        losses.push(loss);
    }
    if let Some(dir) = &args.save {
        export(&model, &trainer.weights()?.into_iter().collect(), &Changed::default(), dir)?;
    }
    case::write(&args.output, &[("adamw_losses".into(), Data::f32(vec![losses.len()], &losses))])
}

/// The first plan that fits, told on stderr with what was passed over.
fn plan(model: &Model, spec: &TrainSpec, dtype: Dtype, device: &Device, budget: u64) -> Result<TrainSpec, Error> {
    let plan = omchat::plan_training(&model.config, spec, dtype, false, &device.target(), Some(budget))?;
    let told = |s: &TrainSpec| {
        let f = &s.forward;
        format!("recompute {}, loss in {} parts, MLPs in {}", s.recompute.name(), f.loss_tiles, f.mlp_tiles)
    };
    for (spec, peak) in &plan.tried {
        note(format!("plan: {}: {peak} bytes, above {budget}", told(spec)));
    }
    note(format!("plan: {}: {} bytes, taken", told(&plan.spec), plan.bytes));
    Ok(plan.spec)
}

/// A number of bytes: `123`, `800MB`, `6GB`, `6GiB`.
fn bytes(text: &str) -> Result<u64, Error> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => f64::NAN,
    };
    match digits.parse::<f64>() {
        Ok(n) if n > 0.0 && (n * unit).is_finite() => Ok((n * unit) as u64),
        _ => Err(Error::input(format!("`{text}` is no number of bytes; write 800MB, 6GB or 6GiB"))),
    }
}

impl Args {
    fn adamw(&self) -> Result<AdamW, Error> {
        let bad = || Error::input(format!("--betas is `{}`; give two numbers, such as 0.9,0.95", self.betas));
        let (b1, b2) = self.betas.split_once(',').ok_or_else(bad)?;
        let number = |x: &str| x.trim().parse::<f64>().map_err(|_| bad());
        let adamw = AdamW {
            lr: [self.lr; 3],
            betas: (number(b1)?, number(b2)?),
            eps: self.eps,
            decay: self.decay,
            clip: self.clip.unwrap_or(f32::MAX),
        };
        adamw.check()?;
        Ok(adamw)
    }
}
