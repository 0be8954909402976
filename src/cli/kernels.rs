//! `omchat kernels`: THE LIST at a fixed list of work, every schedule that is offered, and the generated text of each.

use super::ir::lower::{Language, sm, step_name, texts_of};
use super::{Error, say};
use omchat::bench::{self, Case, Scale};
use omchat_codegen::{Schedule, Target, Work};
use omchat_ir::Dtype;
use omchat_kernels::LIST;
use omchat_model::presets::{mini, omchat_13b};
use std::collections::{BTreeMap, BTreeSet};

/// What `omchat kernels` takes.
#[derive(clap::Subcommand)]
pub enum Command {
    /// One line a kernel: how much of the work it takes, and its schedules there
    List(Args),
    /// The text of every kernel at every schedule, each once
    Dump(Args),
}

/// What both take.
#[derive(clap::Args)]
pub struct Args {
    /// Only kernels whose name contains this.
    name: Option<String>,
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

/// A kernel's offer for some work.
struct Offer {
    case: String,
    kernel: &'static str,
    work: Work,
    schedule: Schedule,
}

/// Lists or prints.
///
/// Errors: no kernel of that name takes any of the work; a text that cannot be made.
pub fn run(command: &Command) -> Result<(), Error> {
    let (Command::List(args) | Command::Dump(args)) = command;
    let target = args.target.target(args.sm, args.tf32);
    let offers = offers(&target, args.name.as_deref())?;
    match command {
        Command::List(_) => list(&offers),
        Command::Dump(_) => dump(&offers, args),
    }
}

/// The list of work: a large model's shapes, a small one's, and sizes that nothing divides; in every dtype there is.
fn cases(target: &Target) -> Vec<Case> {
    let floats = [Dtype::Bf16, Dtype::F16, Dtype::F32].into_iter().filter(|d| target.holds(*d));
    let dtypes: Vec<(Dtype, Dtype)> = floats.map(|d| (d, d)).collect();
    let scale = |scale: Scale| Scale { dtypes: dtypes.clone(), ..scale };
    let mut out = bench::cases(&omchat_13b(), &scale(Scale::card()));
    out.extend(bench::cases(&mini(), &scale(Scale::cpu())));
    out.extend(bench::cases(&bench::small(), &scale(Scale::tiny())));
    out
}

/// Every offer of every kernel for every launch of the work, each once.
fn offers(target: &Target, part: Option<&str>) -> Result<Vec<Offer>, Error> {
    let wanted = |name: &str| part.is_none_or(|p| name.contains(p));
    let (mut out, mut seen) = (vec![], BTreeSet::new());
    let mut add = |case: &str, work: &Work| {
        for kernel in LIST.iter().filter(|k| wanted(k.name()) && k.implements().takes(work)) {
            for schedule in kernel.schedules(work, target).unwrap_or_default() {
                if seen.insert(format!("{}{schedule}{work:?}", kernel.name())) {
                    let (case, work) = (case.to_string(), work.clone());
                    out.push(Offer { case, kernel: kernel.name(), work, schedule });
                }
            }
        }
    };
    for case in cases(target) {
        let (module, entry) = case.module()?;
        // What a limit of the target forbids has no launches there.
        let Ok(program) = omchat_runtime::program(&module, entry, target) else { continue };
        program.chosen.iter().for_each(|chosen| add(&case.name, &chosen.work));
    }
    // No function asks for it: the plan of a decode does.
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        add(&format!("prefetch/{dtype}"), &Work::Prefetch { dtype, bytes: 16 << 20 });
    }
    match (out.is_empty(), part) {
        (true, Some(part)) => {
            let names: Vec<&str> = LIST.iter().map(|k| k.name()).collect();
            let target = &target.name;
            Err(Error::input(format!(
                "no kernel whose name contains `{part}` runs on {target}; the list is {}",
                names.join(", ")
            )))
        }
        _ => Ok(out),
    }
}

fn list(offers: &[Offer]) -> Result<(), Error> {
    for kernel in LIST {
        let mine: Vec<&Offer> = offers.iter().filter(|o| o.kernel == kernel.name()).collect();
        if mine.is_empty() {
            continue;
        }
        let works: BTreeSet<String> = mine.iter().map(|o| format!("{:?}", o.work)).collect();
        let mut schedules: BTreeMap<String, &str> = BTreeMap::new();
        for o in &mine {
            schedules.entry(o.schedule.to_string()).or_insert(&o.case);
        }
        say(format!("{:<26} {} pieces of work, {} schedules\n", kernel.name(), works.len(), schedules.len()))?;
        for (schedule, case) in schedules {
            say(format!("    [{schedule}]  {case}\n"))?;
        }
    }
    Ok(())
}

fn dump(offers: &[Offer], args: &Args) -> Result<(), Error> {
    let dialect = args.target.dialect(args.sm);
    let mut seen = BTreeSet::new();
    for o in offers {
        for (step, text) in texts_of(o.kernel, &o.work, &o.schedule, &o.case, dialect)?.iter().enumerate() {
            if seen.insert(text.clone()) {
                let name = step_name(o.kernel, step);
                say(format!("// unit: {}.[{}].{name}\n{}\n", o.case, o.schedule, text.trim_end()))?;
            }
        }
    }
    Ok(())
}
