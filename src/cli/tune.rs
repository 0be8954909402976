//! `omchat tune`: which kernel and schedule is the fastest for each class of a model's work, measured and kept.

use super::{Error, device, note, place, say};
use omchat::{Chunks, Device, EngineOptions, Program};
use omchat_codegen::Pick;
use omchat_ir::{Func, Module};
use omchat_kernels::{LIST, fingerprint};
use omchat_model::graph::{DecoderSpec, Output, Spread, decoder_module, vision_module};
use omchat_recipe::{Recipe, write_whole};
use omchat_runtime::tune::{Outcome, Task, Tuning, tasks, tune};
use omchat_runtime::{Entry, Table};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A recorded schedule holds until another takes less than this share of its time: clocks differ from run to run.
const HOLDS: f64 = 0.9;

/// What `omchat tune` takes.
#[derive(clap::Args)]
pub struct Args {
    /// The model whose programs are measured, as a chat runs them: a folder, the name of one that was fetched, or a preset. Weights are not read.
    #[arg(long, value_name = "DIR|PRESET", default_value = "mini")]
    model: String,
    /// Measures the training steps of this recipe's stages instead. Data and weights are not read.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "dtype", "context"])]
    config: Option<PathBuf>,
    /// The device to measure; the best that there is if not given.
    #[arg(long)]
    device: Option<String>,
    /// The element type of weights and activations; the device's usual one if not given.
    #[arg(long)]
    dtype: Option<String>,
    /// Room for that many tokens, as a chat has it.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    context: u32,
    /// The most time to take, as 60s, 5m or 500ms.
    #[arg(long, default_value = "60s", value_parser = duration)]
    budget: Duration,
    /// The table to read and write; the device's own if not given.
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// Writes nothing: says which entries are stale, and measures whether the others are still right and the fastest.
    /// Exit code 1 says that some are not.
    #[arg(long)]
    check: bool,
}

/// A span of time: `60s`, `5m`, `500ms`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => f64::NAN,
    };
    let seconds = digits.parse::<f64>().map_or(f64::NAN, |n| n * unit);
    match Duration::try_from_secs_f64(seconds) {
        Ok(d) if !d.is_zero() => Ok(d),
        _ => Err("give a span such as 60s, 5m or 500ms".into()),
    }
}

/// Runs `omchat tune`.
pub fn run(args: &Args) -> Result<(), Error> {
    let started = Instant::now();
    let device = device::open(args.device.as_deref())?;
    if matches!(device, Device::Interp) {
        return Err(Error::input("the interpreter has no kernels to tune; name another --device"));
    }
    let path = match &args.table {
        Some(path) => path.clone(),
        None => omchat::tuned::path(&device)
            .ok_or_else(|| Error::input("OMCHAT_TUNED is off: name a file by --table, or unset it"))?,
    };
    let programs = match &args.config {
        Some(path) => omchat::training::programs(&Recipe::read(path).map_err(Error::input)?, &device)?,
        None => programs(args, &device)?,
    };
    let mut all = tasks(&programs, LIST);
    if args.check {
        return check(args, &device, &path, all, started);
    }
    let mut table = if path.is_file() { Table::read(&path)? } else { Table::of(&device) };
    // Where it cannot be written, that is said before anything is measured.
    write(&path, &table)?;
    if let Some(why) = table.foreign(&device) {
        note(format!("{} begins anew: {why}", path.display()));
        table = Table::of(&device);
    }
    // What was not measured yet, or not with these kernels, comes first.
    all.sort_by_key(|t| table.entries.get(&t.class).is_some_and(|e| e.stale().is_none()));
    let found = measured(&device, &all, args.budget.saturating_sub(started.elapsed()))?;
    for o in &found.outcomes {
        enter(&mut table, o);
    }
    write(&path, &table)?;
    say(report(&found))?;
    say(format!("{} entries in {}\n", table.entries.len(), path.display()))
}

/// Writes a table, in a folder that is made for it.
fn write(path: &Path, table: &Table) -> Result<(), Error> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let made = folder.map_or(Ok(()), std::fs::create_dir_all);
    let written = made.and_then(|()| write_whole(path, table.to_string().as_bytes()));
    written.map_err(|e| Error::input(format!("cannot write {}: {e}; name another file by --table", path.display())))
}

/// Puts what was found for a class into the table; what was found wrong for it goes.
fn enter(table: &mut Table, o: &Outcome) {
    let recorded = table.entries.get(&o.class).map(|e| e.pick.clone());
    if o.rejected.iter().any(|(p, _)| Some(p) == recorded.as_ref()) {
        table.entries.remove(&o.class);
    }
    let Some((pick, seconds)) = &o.best else { return };
    let Some(source) = fingerprint(&pick.kernel) else { return };
    // What is taken without a table may be wrong here: then it has no time to compare with.
    let untuned = if o.before.1.is_finite() { o.before.1 } else { *seconds };
    let entry =
        Entry { pick: pick.clone(), source, us: seconds * 1e6, untuned_us: untuned * 1e6, of: o.program.clone() };
    table.entries.insert(o.class.clone(), entry);
}

/// The programs of the model as a chat runs them.
fn programs(args: &Args, device: &Device) -> Result<Vec<(String, Program)>, Error> {
    let (_, config) = place::find(&args.model)?;
    let name = Path::new(&args.model).file_name();
    let name = name.map_or("model".into(), |n| n.to_string_lossy().replace(char::is_whitespace, "-"));
    let dtype = device::options(args.dtype.as_deref())?.dtype.unwrap_or_else(|| device.default_dtype());
    let chunks = Chunks::of(&device.target());
    let capacity = chunks.slots(args.context as usize);
    let mut modules: Vec<(String, Module)> = vec![];
    for tokens in chunks.sizes() {
        let spec = DecoderSpec {
            tokens,
            capacity,
            features: tokens > 1 && config.vision.is_some(),
            output: Output::Last,
            spread: Spread::Alone,
        };
        modules.push((format!("{name}/decoder-{tokens}"), decoder_module(&config, spec, dtype)?));
    }
    if config.vision.is_some() {
        modules.push((format!("{name}/vision"), vision_module(&config, EngineOptions::default().tiles, dtype)?));
    }
    let mut out = vec![];
    for (name, module) in modules {
        let entry = Func(module.functions.len() as u32 - 1);
        match omchat_runtime::program(&module, entry, &device.target()) {
            Ok(program) => out.push((name, program)),
            Err(why) => note(format!("{name} is left out: {why}")),
        }
    }
    Ok(out)
}

/// Measures tasks and says on stderr how far it has come.
fn measured(device: &Device, tasks: &[Task], budget: Duration) -> Result<Tuning, Error> {
    let start = Instant::now();
    let found = tune(device, tasks, LIST, budget, &mut |done, task| {
        note(format!("{:>6.1} s  {} of {}: {}", start.elapsed().as_secs_f64(), done + 1, tasks.len(), task.class));
    })?;
    for o in &found.outcomes {
        for (pick, why) in &o.rejected {
            note(format!("kept out of {}: {}: {why}", o.class, shown(pick)));
        }
    }
    Ok(found)
}

fn shown(p: &Pick) -> String {
    format!("{} [{}]", p.kernel, p.schedule)
}

/// The closing table: a line a class, largest gain first.
fn report(found: &Tuning) -> String {
    let mut out = String::new();
    let mut rows: Vec<&Outcome> = found.outcomes.iter().collect();
    let gain = |o: &Outcome| o.best.as_ref().map_or(0.0, |(_, s)| o.before.1 / s);
    rows.sort_by(|a, b| gain(b).total_cmp(&gain(a)));
    for o in rows {
        let (before, seconds) = &o.before;
        let time = |s: f64| if s.is_finite() { format!("{:.1} us", s * 1e6) } else { "not right".into() };
        out += &format!("{}\n  before {:>12}  {}\n", o.class, time(*seconds), shown(before));
        out += &match &o.best {
            None => "  now    nothing was right and timed\n".to_string(),
            Some((pick, _)) if pick == before => "  now    the same\n".to_string(),
            Some((pick, s)) => format!("  now    {:>12}  {}  {:.2}x\n", time(*s), shown(pick), gain(o)),
        };
    }
    let changed = found.outcomes.iter().filter(|o| o.best.as_ref().is_some_and(|(p, _)| *p != o.before.0)).count();
    out += &format!(
        "{} classes measured, {changed} changed; {} have one schedule only; {} not measured\n",
        found.outcomes.len(),
        found.settled,
        found.left.len()
    );
    out + &reasons(&found.left)
}

/// Why classes were not measured, each reason once.
fn reasons(left: &[(String, String)]) -> String {
    let mut count: std::collections::BTreeMap<&str, usize> = Default::default();
    left.iter().for_each(|(_, why)| *count.entry(why).or_default() += 1);
    count.iter().map(|(why, n)| format!("  {n}: {why}\n")).collect()
}

/// Whether a table still holds: told line by line, and by the exit code.
fn check(args: &Args, device: &Device, path: &Path, all: Vec<Task>, started: Instant) -> Result<(), Error> {
    if !path.is_file() {
        return Err(Error::input(format!("there is no table {}; `omchat tune` makes one", path.display())));
    }
    let table = Table::read(path)?;
    if let Some(why) = table.foreign(device) {
        say(format!("stale: {}: {why}\n", path.display()))?;
        return Err(Error::Different);
    }
    let stale = table.stale();
    for (class, why) in &stale {
        say(format!("stale: {class}: {why}\n"))?;
    }
    let fresh: Vec<&String> = table.entries.keys().filter(|c| !stale.iter().any(|(s, _)| s == c)).collect();
    let tasks: Vec<Task> = all.into_iter().filter(|t| fresh.contains(&&t.class)).collect();
    let found = measured(device, &tasks, args.budget.saturating_sub(started.elapsed()))?;
    let mut broken = 0;
    for o in &found.outcomes {
        let Some(entry) = table.entries.get(&o.class) else { continue };
        let verdict = verdict(entry, o);
        broken += usize::from(verdict.is_err());
        let (Ok(line) | Err(line)) = verdict;
        say(format!("{}: {line}\n", o.class))?;
    }
    let open = fresh.len() - found.outcomes.len();
    say(format!(
        "{} stale, {broken} no longer hold, {} hold, {open} not measured: no such work in {}, one schedule only, or no time\n",
        stale.len(),
        found.outcomes.len() - broken,
        args.config.as_ref().map_or(args.model.clone(), |c| c.display().to_string())
    ))?;
    if stale.is_empty() && broken == 0 { Ok(()) } else { Err(Error::Different) }
}

/// Whether an entry holds against what was measured just now.
fn verdict(entry: &Entry, o: &Outcome) -> Result<String, String> {
    if let Some((_, why)) = o.rejected.iter().find(|(p, _)| *p == entry.pick) {
        return Err(format!("no longer right: {}: {why}", shown(&entry.pick)));
    }
    let Some((_, own)) = o.timed.iter().find(|(p, _)| *p == entry.pick) else {
        return Err(format!("no longer offered: {}", shown(&entry.pick)));
    };
    match o.timed.first() {
        Some((pick, s)) if *s < own * HOLDS => {
            Err(format!("no longer the fastest: {:.1} us, {} takes {:.1} us", own * 1e6, shown(pick), s * 1e6))
        }
        _ => Ok(format!("holds: {:.1} us, recorded {:.1} us", own * 1e6, entry.us)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn outcome(timed: &[(&str, f64)], rejected: &[&str]) -> Outcome {
        let pick = |k: &str| Pick { kernel: k.into(), schedule: "units=1".into() };
        Outcome {
            class: "c".into(),
            program: "p".into(),
            before: (pick("map.plain"), 2.0),
            best: timed.first().map(|(k, s)| (pick(k), *s)),
            rejected: rejected.iter().map(|k| (pick(k), "result 0[0] is 1, not 2".into())).collect(),
            timed: timed.iter().map(|(k, s)| (pick(k), *s)).collect(),
        }
    }

    #[test]
    fn an_entry_holds_while_it_is_right_and_about_the_fastest() {
        let pick = Pick { kernel: "map.plain".into(), schedule: "units=1".into() };
        let e = Entry { pick, source: 0, us: 1.0, untuned_us: 1.0, of: "p".into() };
        assert!(verdict(&e, &outcome(&[("map.plain", 1.0)], &[])).is_ok());
        assert!(verdict(&e, &outcome(&[("fold.plain", 0.95), ("map.plain", 1.0)], &[])).is_ok());
        assert!(
            verdict(&e, &outcome(&[("fold.plain", 0.5), ("map.plain", 1.0)], &[])).unwrap_err().contains("fastest")
        );
        assert!(verdict(&e, &outcome(&[("fold.plain", 2.0)], &["map.plain"])).unwrap_err().contains("no longer right"));
        assert!(verdict(&e, &outcome(&[("fold.plain", 2.0)], &[])).unwrap_err().contains("no longer offered"));
    }

    #[test]
    fn a_wrong_schedule_leaves_the_table_and_none_enters_for_it() {
        let device = Device::Interp;
        let mut table = Table::of(&device);
        enter(&mut table, &outcome(&[("map.plain", 1.0)], &[]));
        assert_eq!(table.entries["c"].source, fingerprint("map.plain").unwrap());
        enter(&mut table, &outcome(&[], &["map.plain"]));
        assert!(table.entries.is_empty());
    }

    #[test]
    fn spans_of_time() {
        assert_eq!(
            [duration("60s"), duration("0.5"), duration("2m")].map(|d| d.unwrap().as_millis()),
            [60_000, 500, 120_000]
        );
        assert!(["", "s", "-1s", "0", "5x", "inf"].iter().all(|t| duration(t).is_err()));
    }
}
