//! The command's subcommands: one file each, with its arguments and its `run`.

mod bench;
mod case;
mod chat;
mod demo;
mod device;
mod doctor;
mod encode;
mod error;
mod eval;
mod init;
mod input;
mod inspect;
mod ir;
mod kernels;
mod loss;
mod mix;
mod parity;
mod place;
mod plan;
mod progress;
mod ranks;
mod scenes;
mod score;
mod step;
mod train;
mod tune;
mod visuals;
mod watch;

pub use error::Error;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::io::{self, Write};

/// Answers about pictures and videos, and shows every step on the way there: model, kernels, devices.
#[derive(Parser)]
#[command(name = "omchat", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What was typed. Options take negative numbers, so that whoever reads them says what their range is.
pub fn parsed() -> Cli {
    fn numbers(command: clap::Command) -> clap::Command {
        let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        let command = names.into_iter().fold(command, |command, name| command.mut_subcommand(name, numbers));
        command.mut_args(|arg| match arg.get_action().takes_values() && !arg.is_positional() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        })
    }
    Cli::from_arg_matches(&numbers(Cli::command()).get_matches()).unwrap_or_else(|e| e.exit())
}

#[derive(Subcommand)]
enum Command {
    /// Answers a question about pictures, a video or nothing; without a question it holds a conversation.
    Chat(chat::Args),
    /// Answers about a video with the small model that the command carries: it needs no download.
    Demo(demo::Args),
    /// Shows a model's parameters, a picture's tiles and tokens, and the memory that they would take.
    Inspect(inspect::Args),
    /// Writes what a chat turn feeds the model as a safetensors case.
    ///
    /// The file holds `input_ids`, i32 [T], with -200 where a tile stands; `pixel_values`, f32 [N, 3, S, S], the
    /// tiles in the order of their places; and `tile_grids`, i32 [images, 2], the columns and rows of each picture's
    /// canvas, (1, 1) for a frame. Without pictures and videos it holds `input_ids` alone.
    Encode(encode::Args),
    /// Writes a model from nothing: every tensor that a configuration asks for, drawn from a seed.
    ///
    /// Linears are normal with deviation 1 / sqrt(inputs), smaller by sqrt(2 L) where they end a branch of L layers;
    /// embeddings are normal with deviation 0.5, the output projection 0.02, positions 0.2; norms and layer scales are 1,
    /// biases 0.
    Init(init::Args),
    /// Writes rendered scenes with questions and answers: ms-swift JSONL, and PNG pictures, folders of frames or GIFs.
    ///
    /// docs/scenes.md says what is drawn and what is asked.
    Scenes(scenes::Args),
    /// Writes the logits and the image features of a case.
    Logits(parity::Args),
    /// Writes the ids that the model picks greedily after a case; stop tokens are ignored.
    Generate(parity::GenerateArgs),
    /// Writes the loss and the negative log likelihood of each target of a case with labels.
    ///
    /// With `--grads` also the gradient of the loss with respect to every parameter, under the checkpoint's own names.
    Loss(loss::LossArgs),
    /// Trains on one case with labels for some steps of AdamW, and writes the loss before each.
    Step(step::Args),
    /// Trains a model by a recipe: its stages, on its data, with checkpoints from which a run goes on.
    ///
    /// docs/recipe.md says what a recipe holds. The run's folder holds log.jsonl, TensorBoard's event files, the newest
    /// checkpoints, and the model after each stage.
    Train(train::Args),
    /// Scores every labelled token of a stage's data by a reference model, for stages that select tokens.
    Score(score::Args),
    /// Searches how long to tune on a mixture: a trunk at a constant rate, and a branch from each of its parts.
    Mix(mix::Args),
    /// Reads, checks, runs and lowers the text of the tensor language.
    Ir(ir::Args),
    /// Says what a run of many ranks holds, sends and takes before it is started; no device is needed.
    ///
    /// Memory by class, bytes of each collective, what hides behind attention, predicted tokens a second and what bounds
    /// them, with every figure that they rest on. What does not fit is refused with exit code 1, and what would is said.
    Plan(plan::Args),
    /// Measures how fast a device runs kernels and whole steps, as shares of what it can do.
    ///
    /// Each kernel is also checked; one whose numbers are wrong is printed as WRONG, and the exit code is 1. docs/bench.md
    /// says what is measured and what the fields of `--json` are.
    Bench(bench::Args),
    /// Lists the kernels with the schedules that they offer, and prints the generated text of each; no device is needed.
    #[command(subcommand)]
    Kernels(kernels::Command),
    /// Says which devices there are, what they can do, what is missing, and how to get it.
    Doctor(doctor::Args),
    /// Measures which kernel and schedule is the fastest for each class of work of a model, and keeps a table of them.
    ///
    /// A schedule enters the table only after it matched the interpreter on odd sizes over poisoned memory. The table
    /// is text, read by every command that runs a model on the same device; `OMCHAT_TUNED` names another, or is `off`.
    Tune(tune::Args),
    /// Asks a model questions with known answers, and says how many it answers right.
    #[command(subcommand)]
    Eval(eval::Command),
}

/// Runs what the command line asks for.
pub fn run(cli: Cli) -> Result<(), Error> {
    match cli.command {
        Command::Chat(args) => chat::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Encode(args) => encode::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Scenes(args) => scenes::run(&args),
        Command::Logits(args) => parity::run(parity::Door::Logits, &args),
        Command::Generate(args) => parity::run(parity::Door::Generate(args.max_new_tokens), &args.common),
        Command::Loss(args) => loss::loss(&args),
        Command::Step(args) => step::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Mix(args) => mix::run(&args),
        Command::Ir(args) => ir::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Eval(command) => eval::run(&command),
    }
}

/// Writes to stdout. A reader that went away is no panic, as it is with `print!`.
pub fn say(text: impl AsRef<str>) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref().as_bytes())?;
    Ok(out.flush()?)
}

/// Writes a line to stderr; nobody is told when nobody listens.
pub fn note(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr(), "{}", text.as_ref());
}
