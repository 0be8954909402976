//! `omchat ir`: the text of the tensor language, read, checked, run and lowered.

mod compare;
mod diff;
mod eval;
mod grad;
mod html;
pub(super) mod lower;
mod pick;
mod rename;
mod text;

pub(super) use pick::Pick;

use super::Error;
use clap::Subcommand;

/// What `omchat ir` takes.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the concrete functions of texts: letters bound, loops unrolled, types written out.
    Print(text::Print),
    /// Checks texts against every rule of the language and shows each fault at its place.
    Verify(text::Texts),
    /// Prints texts in the one layout, or checks or rewrites them in place.
    Fmt(text::Fmt),
    /// Runs a function with the reference interpreter on given or drawn inputs.
    Eval(eval::Args),
    /// Prints the module after a pass of the pipeline.
    Opt(lower::Opt),
    /// Shows what differs between two texts, or between a text before and after a pass; names of values do not count.
    Diff(diff::Args),
    /// Writes one page that shows a function pass by pass, and the program that it becomes.
    Html(html::Args),
    /// Prints the function that yields a function's results and its gradients.
    Grad(grad::Args),
    /// Prints the launches that a function becomes on a target, its memory by class, and why kernels refused.
    Plan(lower::Plan),
    /// Prints the generated text of every kernel of a program; no device is needed.
    Source(lower::Source),
}

/// Runs one of the commands.
pub fn run(args: &Args) -> Result<(), Error> {
    match &args.command {
        Command::Print(args) => text::print(args),
        Command::Verify(args) => text::verify(args),
        Command::Fmt(args) => text::fmt(args),
        Command::Eval(args) => eval::run(args),
        Command::Opt(args) => lower::opt(args),
        Command::Diff(args) => diff::run(args),
        Command::Html(args) => html::run(args),
        Command::Grad(args) => grad::run(args),
        Command::Plan(args) => lower::plan(args),
        Command::Source(args) => lower::source(args),
    }
}
