//! `ir html`: one page, without script or network, that shows a function pass by pass and the program it becomes.

mod arena;
mod changes;
mod page;
mod plan;

use super::lower::{self, Aim, Measured};
use super::pick::{Pick, Picked};
use crate::cli::{Error, say};
use omchat_codegen::{Pass, Program, Target};
use omchat_ir::Module;
use omchat_recipe::write_whole;
use std::path::PathBuf;

/// What `ir html` takes.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pick: Pick,
    #[command(flatten)]
    aim: Aim,
    #[command(flatten)]
    measured: Measured,
    /// Where the page is written.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// A function on its way to a program.
struct Journey {
    /// The entry's name.
    name: String,
    target: Target,
    /// The module before any pass.
    input: Module,
    stages: Vec<Stage>,
    /// The program, or why there is none.
    program: Result<Program, String>,
}

/// A module after a pass.
struct Stage {
    pass: &'static str,
    why: &'static str,
    module: Module,
}

/// Writes the page. A function that becomes no program gets its page, with the reason.
pub fn run(args: &Args) -> Result<(), Error> {
    let Picked { module, entry } = args.pick.one()?.called(&lower::kernels())?;
    let mut stages = vec![];
    let mut keep = |pass: &Pass, unit: &omchat_codegen::Unit| {
        stages.push(Stage { pass: pass.name, why: pass.why, module: unit.module.clone() });
    };
    let target = args.aim.target();
    let tuned = args.measured.tuned()?;
    let program = omchat_runtime::program_tuned(
        &module,
        entry,
        &target,
        tuned.as_ref(),
        omchat_codegen::ranks_of(&module),
        &mut keep,
    );
    let program = program.map_err(|e| e.to_string());
    let name = module.function(entry).name.clone();
    let text = page::page(&Journey { name, target, input: module, stages, program });
    let path = args.output.display();
    write_whole(&args.output, text.as_bytes()).map_err(|e| Error::input(format!("cannot write {path}: {e}")))?;
    say(format!("{path}: {} bytes\n", text.len()))
}

/// Text as HTML holds it.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number with commas between thousands.
fn grouped(n: usize) -> String {
    crate::cli::inspect::grouped(n as u64)
}
