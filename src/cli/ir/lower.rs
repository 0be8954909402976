//! `ir opt`, `plan` and `source`: what codegen and the kernels make of a function, with no device present.

use super::pick::{Pick, Picked};
use crate::cli::{Error, note, say};
use omchat::{After, Dump, watched};
use omchat_codegen::{
    Chosen, Context, Kernel, PIPELINE, Program, Schedule, Target, Tuned, Unit, Work, passes, ranks_of,
};
use omchat_kernels::{Dialect, Horizontal, LIST, Prepared, by_name};
use omchat_runtime::Table;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// A target by family and size.
#[derive(clap::Args)]
pub struct Aim {
    /// What the function is lowered for.
    #[arg(long, value_enum, default_value = "cpu")]
    target: Family,
    /// The compute capability of a CUDA device, as 80, 90 or sm_90a.
    #[arg(long, alias = "arch", default_value = "90", value_parser = sm)]
    sm: u32,
    /// The cores of a CPU.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    cores: u32,
    /// Allows CUDA's matrix units to round the factors of f32 einsums to tf32, 10 bits of fraction.
    #[arg(long)]
    tf32: bool,
}

/// What was measured.
#[derive(clap::Args)]
pub struct Measured {
    /// A table of measured schedules, as `omchat tune` writes it; whatever device it is from.
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
}

/// The families of devices.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Family {
    Cpu,
    Wgpu,
    Cuda,
}

impl Aim {
    /// The facts of the device that is meant.
    pub fn target(&self) -> Target {
        let target = match self.target {
            Family::Cpu => Target::cpu(self.cores),
            Family::Wgpu => Target::wgpu(),
            Family::Cuda => Target::cuda(self.sm),
        };
        if self.tf32 { target.with_tf32() } else { target }
    }
}

impl Measured {
    /// What the table that is named holds, of kernels that are as they were.
    ///
    /// Errors: a table that cannot be read.
    pub fn tuned(&self) -> Result<Option<Tuned>, Error> {
        let Some(path) = &self.table else { return Ok(None) };
        let table = Table::read(path)?;
        for (class, why) in table.stale() {
            note(format!("stale: {class}: {why}"));
        }
        Ok(Some(table.tuned()))
    }
}

/// What `ir opt` takes.
#[derive(clap::Args)]
pub struct Opt {
    #[command(flatten)]
    pick: Pick,
    #[command(flatten)]
    aim: Aim,
    /// The last pass to run; all of them if not given.
    #[arg(long, value_name = "PASS", value_parser = clap::builder::PossibleValuesParser::new(PIPELINE.iter().map(|p| clap::builder::PossibleValue::new(p.name).help(p.why))))]
    to: Option<String>,
}

/// What `ir plan` takes.
#[derive(clap::Args)]
pub struct Plan {
    #[command(flatten)]
    pick: Pick,
    #[command(flatten)]
    aim: Aim,
    #[command(flatten)]
    measured: Measured,
}

/// The languages that kernels are compiled to.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Language {
    /// CUDA C++.
    Cuda,
    /// WGSL.
    Wgsl,
}

impl Language {
    /// The facts of a usual device of it, with tf32 allowed or not.
    pub(crate) fn target(self, sm: u32, tf32: bool) -> Target {
        let target = match self {
            Language::Cuda => Target::cuda(sm),
            Language::Wgsl => Target::wgpu(),
        };
        if tf32 { target.with_tf32() } else { target }
    }

    /// The compiler that makes its text.
    pub(crate) fn dialect(self, sm: u32) -> Dialect {
        match self {
            Language::Cuda => Dialect::CudaCpp { sm },
            Language::Wgsl => Dialect::Wgsl,
        }
    }
}

/// What `ir source` takes.
#[derive(clap::Args)]
pub struct Source {
    #[command(flatten)]
    pick: Pick,
    /// The language to print: CUDA C++ or WGSL.
    #[arg(long, value_enum, default_value = "cuda")]
    target: Language,
    /// The compute capability that CUDA C++ is made for, as 80, 90 or sm_90a.
    #[arg(long, alias = "arch", default_value = "80", value_parser = sm)]
    sm: u32,
    /// Allows matrix units to round the factors of f32 einsums to tf32, 10 bits of fraction.
    #[arg(long)]
    tf32: bool,
}

/// A compute capability times ten, as `--sm` takes it.
pub(crate) fn sm(text: &str) -> Result<u32, String> {
    let digits = text.trim_start_matches("sm_").trim_end_matches('a');
    let number: Result<u32, _> = digits.parse();
    number.ok().filter(|n| *n >= 80).ok_or_else(|| "name a compute capability from 80, as 90 or sm_90a".into())
}

/// Prints the module after a pass.
pub fn opt(args: &Opt) -> Result<(), Error> {
    let target = args.aim.target();
    let picked = args.pick.one_on(&target)?.called(&kernels())?;
    say(after(picked, &target, args.to.as_deref(), Dump::of_env()?.as_ref())?.module.to_string())
}

/// The unit after the pass of that name, or after all.
///
/// Errors: what a pass cannot lower.
pub(super) fn after(picked: Picked, target: &Target, to: Option<&str>, dump: Option<&Dump>) -> Result<Unit, Error> {
    let Picked { module, entry } = picked;
    let kernels = kernels();
    let name = module.function(entry).name.clone();
    let lower = |after: After| {
        let context = Context { target, kernels: &kernels, tuned: None, ranks: ranks_of(&module) };
        passes::run_with(Unit { module, entry }, &context, to, after).map_err(omchat_runtime::Error::from)
    };
    Ok(watched(dump, &name, lower)?)
}

/// The program of a function.
///
/// Errors: what cannot be lowered.
fn program(picked: &Picked, target: &Target, tuned: Option<&Tuned>, dump: Option<&Dump>) -> Result<Program, Error> {
    let (module, entry) = (&picked.module, picked.entry);
    let name = &module.function(entry).name;
    let ranks = ranks_of(module);
    Ok(watched(dump, name, |after| omchat_runtime::program_tuned(module, entry, target, tuned, ranks, after))?)
}

/// Prints the program of each function.
pub fn plan(args: &Plan) -> Result<(), Error> {
    let (dump, tuned) = (Dump::of_env()?, args.measured.tuned()?);
    let target = args.aim.target();
    for picked in args.pick.all(&target)? {
        let picked = picked.called(&kernels())?;
        say(program(&picked, &target, tuned.as_ref(), dump.as_ref())?.to_string())?;
    }
    Ok(())
}

/// Prints the text of every distinct kernel of each program.
pub fn source(args: &Source) -> Result<(), Error> {
    let (target, dialect) = (args.target.target(args.sm, args.tf32), args.target.dialect(args.sm));
    let dump = Dump::of_env()?;
    let mut seen: Vec<String> = vec![];
    for picked in args.pick.all(&target)? {
        let picked = picked.called(&kernels())?;
        let program = program(&picked, &target, None, dump.as_ref())?;
        let mut show = |n: usize, name: &str, text: String| {
            if seen.contains(&text) {
                return Ok(());
            }
            say(format!("// unit: {}.{n}.{name}\n{}\n", program.name, text.trim_end()))?;
            seen.push(text);
            Ok::<(), Error>(())
        };
        // Where ranks meet there is no kernel.
        let kernels = program.chosen.iter().enumerate().filter(|(_, c)| !matches!(c.work, Work::Collective(_)));
        for (n, chosen) in kernels {
            let texts = texts_of(chosen.kernel, &chosen.work, &chosen.schedule, &program.name, dialect)?;
            for (step, text) in texts.into_iter().enumerate() {
                show(n, &step_name(chosen.kernel, step), text)?;
            }
        }
        let mut joined: Vec<Vec<usize>> = vec![];
        for range in &program.horizontals {
            let side: Vec<usize> = program.launches[range.clone()].iter().map(|l| l.chosen).collect();
            if !joined.contains(&side) {
                show(side[0], "horizontal", horizontal(&program, &side, dialect)?)?;
                joined.push(side);
            }
        }
    }
    Ok(())
}

/// The text of the launch that those choices of a program are side by side.
fn horizontal(program: &Program, side: &[usize], dialect: Dialect) -> Result<String, Error> {
    let of = format!("launches side by side of @{}", program.name);
    let one = |c: &Chosen| prepared(c.kernel, &c.work, &c.schedule, &of);
    let launches: Vec<Prepared> = side.iter().map(|c| one(&program.chosen[*c])).collect::<Result<_, _>>()?;
    let launches: Vec<&Prepared> = launches.iter().collect();
    let joint = Horizontal::of(&launches).ok_or_else(|| Error::failed(format!("{of}: they cannot be joined")))?;
    expanded(&of, || joint.source(&launches, dialect))
}

/// What the text of a kernel's launch is called: its name alone, or with the launch's number from the second on.
pub(crate) fn step_name(kernel: &str, step: usize) -> String {
    if step == 0 { kernel.into() } else { format!("{kernel}+{step}") }
}

/// The texts of a kernel's launches for some work at a schedule; `of` is what the work is from.
///
/// Errors: what the kernel or the compiler answers.
pub(crate) fn texts_of(
    name: &str,
    work: &Work,
    schedule: &Schedule,
    of: &str,
    dialect: Dialect,
) -> Result<Vec<String>, Error> {
    let what = format!("{name} of @{of}");
    let prepared = prepared(name, work, schedule, &what)?;
    expanded(&what, || prepared.sources(dialect))
}

fn prepared(name: &str, work: &Work, schedule: &Schedule, what: &str) -> Result<Prepared, Error> {
    let kernel = by_name(name).ok_or_else(|| Error::failed(format!("no kernel is called {name}")))?;
    kernel.prepare(work, schedule).map_err(|e| Error::failed(format!("{what}: {e}")))
}

/// What the compiler makes of a kernel; one that cannot be expanded panics inside CubeCL.
fn expanded<T>(what: &str, make: impl FnOnce() -> Result<T, String>) -> Result<T, Error> {
    let made = catch_unwind(AssertUnwindSafe(make));
    let made = made.map_err(|_| Error::failed(format!("{what}: the kernel cannot be compiled for this target")))?;
    made.map_err(|e| Error::failed(format!("{what}: {e}")))
}

/// THE LIST, as codegen takes it.
pub(crate) fn kernels() -> Vec<&'static dyn Kernel> {
    LIST.iter().map(|k| *k as &dyn Kernel).collect()
}
