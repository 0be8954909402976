//! `omchat bench`: how fast a device runs kernels and whole steps, as shares of what it can do.

use super::ir::{Pick, lower};
use super::{Error, device, note, place, say};
use omchat::Device;
use omchat::bench::{self, Case, Options, Row, Said, Scale, Whole};
use omchat_model::{Checkpoint, OmChatConfig};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is benched.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// Each family of kernels at a model's shapes.
    Kernels,
    /// Any function: of the library, of the model's blocks, or of a text.
    Function,
    /// A prompt read into an empty cache.
    Prefill,
    /// One token over a filled cache.
    Decode,
    /// Tiles through tower and projector.
    Vision,
    /// A training step, and the bytes that losses hold.
    Train,
    /// Attention in hops and their merges against the same in one piece, on one device.
    Ring,
}

/// What `omchat bench` takes.
#[derive(clap::Args)]
pub struct Args {
    /// What to bench; kernels if not given.
    #[arg(value_enum, default_value = "kernels")]
    suite: Suite,
    /// The device to bench; the best that there is if not given.
    #[arg(long)]
    device: Option<String>,
    /// The model whose shapes are taken, by its folder or preset; weights are random where its files are not here.
    /// Without one: omchat-13b on a card, mini on the CPU, and a small one where nothing is fast.
    #[arg(long, value_name = "DIR|PRESET")]
    model: Option<String>,
    /// Of `function`: the text to read; `-` stands for the standard input. Without one `--function` names a function of the library.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Of `function`: the function to take; the last one of the text that can be taken as it is if not given.
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// Of `function`: what its free letters stand for, as `T=16,E=f32`.
    #[arg(long, value_name = "LETTER=VALUE", value_delimiter = ',')]
    bind: Vec<String>,
    /// Only rows whose name contains this, or one of several.
    #[arg(long, value_name = "NAME-PART")]
    only: Vec<String>,
    /// Prints the names of the rows of `kernels` and benches nothing.
    #[arg(long)]
    list: bool,
    /// Of `kernels` and `function`: every kernel and schedule that takes the work, not only the chosen one.
    #[arg(long)]
    all: bool,
    /// With `--all`: of the others only kernels whose name contains this.
    #[arg(long, value_name = "NAME-PART", requires = "all")]
    kernel: Option<String>,
    /// Leaves operands where the caches hold them, instead of rotating copies.
    #[arg(long)]
    warm: bool,
    /// Leaves out the shares of the device's ceilings, and the time that measuring those takes.
    #[arg(long)]
    bare: bool,
    /// Tokens of a prompt, slots of a filled cache, tokens of a training step, or queries and keys of attention.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    tokens: Option<u32>,
    /// The element type of a model's weights and activations; the device's usual one if not given.
    #[arg(long)]
    dtype: Option<String>,
    /// Milliseconds to sample each row for, and four times that for whole steps.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=600_000))]
    time: u32,
    /// Writes each row as a JSON object on a line of its own.
    #[arg(long)]
    json: bool,
}

/// The function that is asked for, as a row.
///
/// Errors: no such function; faults of the text; a letter that is unknown or not bound.
fn function(args: &Args, device: &Device) -> Result<Case, Error> {
    let picked = Pick::of(args.text.clone(), args.function.clone(), args.bind.clone()).one_on(&device.target())?;
    let f = picked.module.function(picked.entry);
    let (name, binds) = (f.name.clone(), f.binds.clone());
    let picked = picked.called(&lower::kernels())?;
    Ok(Case::of(&name, &binds, picked.module, picked.entry))
}

/// Benches and prints.
///
/// Errors: what cannot be benched; numbers that are wrong; not one row.
pub fn run(args: &Args) -> Result<(), Error> {
    if args.all && !matches!(args.suite, Suite::Kernels | Suite::Function) {
        return Err(Error::input(
            "--all: only `omchat bench kernels` and `function` choose among kernels; leave it out",
        ));
    }
    let device = device::open(args.device.as_deref())?;
    let (usual, mut scale) = bench::usual(&device);
    let (folder, config) = match &args.model {
        Some(model) => place::find(model)?,
        None => (None, usual),
    };
    if let Some(n) = args.tokens {
        (scale.context, scale.tokens) = (n as usize, scale.tokens.min(n as usize));
    }
    let dtype = device::options(args.dtype.as_deref())?.dtype;
    scale.dtypes.retain(|(a, w)| device.target().holds(*a) && device.target().holds(*w));
    if let (Some(d), Suite::Kernels | Suite::Ring) = (dtype, args.suite) {
        if !device.target().holds(d) {
            let name = device.name();
            return Err(Error::input(format!("--dtype {d}: kernels on {name} compute in no {d}; leave it out")));
        }
        scale.dtypes = vec![(d, d)];
    }
    let mut options = Options {
        only: args.only.clone(),
        all: args.all,
        kernel: args.kernel.clone(),
        warm: args.warm,
        bare: args.bare,
        ..Options::default()
    };
    options.budget.time = Duration::from_millis(args.time.into());
    let cases = match args.suite {
        Suite::Function => vec![function(args, &device)?],
        _ if args.text.is_some() || args.function.is_some() || !args.bind.is_empty() => {
            return Err(Error::input("--text, --function and --bind say what `omchat bench function` runs"));
        }
        suite if suite == Suite::Kernels || args.list => bench::cases(&config, &scale),
        _ => vec![],
    };
    if args.list {
        return cases.iter().filter(|c| options.wants(&c.name)).try_for_each(|c| say(format!("{}\n", c.name)));
    }
    // What went wrong in writing is kept beside: whoever benches knows nothing of readers that went away.
    let mut unsaid: Option<Error> = None;
    let mut rows = 0;
    let mut tell = |said: Said| -> Result<(), omchat::Error> {
        let written = match said {
            Said::Row(row) => {
                rows += 1;
                shown(&row, args.json)
            }
            Said::Skipped { name, reason } => {
                note(format!("skipped: {name}: {reason}"));
                Ok(())
            }
        };
        written.map_err(|e| {
            let message = e.to_string();
            unsaid = Some(e);
            omchat::Error::Input(message)
        })
    };
    let right = match args.suite {
        Suite::Kernels | Suite::Function => bench::kernels(&device, &cases, &options, &mut tell),
        Suite::Ring => bench::ring(&device, &config, &scale, &options, &mut tell),
        _ => steps(args, &device, folder.as_deref(), &config, &scale, &options, &mut tell).map(|()| true),
    };
    let right = match (right, unsaid) {
        (Err(_), Some(e)) => return Err(e),
        (right, _) => right?,
    };
    match (right, rows) {
        (false, _) => Err(Error::failed("a kernel is WRONG: its numbers are not what its work means")),
        (true, 0) => Err(Error::failed("every row was skipped: nothing was benched")),
        (true, _) => Ok(()),
    }
}

/// Whole steps of a model.
///
/// Errors: no row of the wanted name; what cannot be lowered, or does not run.
fn steps(
    args: &Args,
    device: &Device,
    folder: Option<&Path>,
    config: &OmChatConfig,
    scale: &Scale,
    options: &Options,
    tell: &mut dyn FnMut(Said) -> Result<(), omchat::Error>,
) -> Result<(), omchat::Error> {
    let input = |e: Error| omchat::Error::Input(e.to_string());
    let dtype = device::options(args.dtype.as_deref()).map_err(input)?.dtype.unwrap_or_else(|| device.default_dtype());
    // A folder of a configuration alone has random weights, as a preset has.
    let stored = folder.filter(|dir| Checkpoint::is_in(dir));
    let checkpoint = stored.map(|dir| Checkpoint::load(dir, config)).transpose()?;
    let name = match (&args.model, folder) {
        (Some(model), _) => Path::new(model).file_name().map_or(model.clone(), |n| n.to_string_lossy().into_owned()),
        (None, _) => bench::usual_name(device).to_string(),
    };
    let whole = Whole { name, config, checkpoint: checkpoint.as_ref(), dtype, device };
    let names = match args.suite {
        Suite::Train => {
            let tokens = args.tokens.map_or(scale.tokens, |n| n as usize);
            let name = bench::train_name(&whole, tokens);
            if options.wants(&name) {
                tell(Said::Row(Box::new(bench::train(&whole, tokens)?.row(dtype, device, options)?)))?;
            }
            bench::memory(device, options, tell)?;
            [vec![name], bench::memory_names(device)].concat()
        }
        suite => {
            let step = match suite {
                Suite::Prefill => bench::prefill(&whole, scale.context)?,
                Suite::Decode => bench::decode(&whole, scale.context)?,
                _ => bench::vision(&whole)?,
            };
            let name = step.row.name.clone();
            if options.wants(&name) {
                tell(Said::Row(Box::new(step.row(dtype, device, options)?)))?;
            }
            vec![name]
        }
    };
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    if known.iter().any(|n| options.wants(n)) { Ok(()) } else { Err(options.nothing(&known)) }
}

fn shown(row: &Row, json: bool) -> Result<(), Error> {
    let line = if json { serde_json::to_string(row).map_err(Error::failed)? } else { row.line() };
    say(format!("{line}\n"))
}
