//! Kernels at the fixed list of work: timed, judged, read against the ceilings.

use super::judge::Judge;
use super::{Case, Options, Row, Said};
use crate::{Device, Error};
use omchat_codegen::{Amount, Program};
use omchat_ir::{Func, Module};
use omchat_kernels::LIST;
use omchat_runtime::{Ceilings, Trial};

/// A case on a device: its module, and its program where there is one.
pub struct Lowered {
    /// The functions.
    pub module: Module,
    /// The one that is run.
    pub entry: Func,
    /// What the device runs; nothing on the interpreter.
    pub program: Option<Program>,
}

/// A case lowered for a device.
///
/// Errors: what cannot be lowered there.
pub fn lower(case: &Case, device: &Device) -> Result<Lowered, Error> {
    let (module, entry) = case.module()?;
    let program = match device {
        Device::Interp => None,
        _ => Some(omchat_runtime::program(&module, entry, &device.target())?),
    };
    Ok(Lowered { module, entry, program })
}

/// A lowered case with its operands on the device; and what a run of it moves and computes.
///
/// Errors: what does not fit on the device.
pub fn trial(case: &Case, lowered: &Lowered, device: &Device, cold: bool) -> Result<(Trial, Amount), Error> {
    let operands = case.operands(&lowered.module, lowered.entry);
    match &lowered.program {
        Some(p) => Ok((Trial::new(device, p.clone(), &operands, cold)?, amount(p, case)?)),
        None => {
            // The interpreter has no launches; what another device's would move is not its measure.
            let flops = omchat_codegen::flops_of(&lowered.module, lowered.entry);
            Ok((Trial::interpreted(&lowered.module, lowered.entry, &operands)?, Amount { flops, ..Amount::default() }))
        }
    }
}

/// What all launches of a program move and compute together.
///
/// Errors: a function that is not the library's.
pub fn amount(program: &Program, case: &Case) -> Result<Amount, Error> {
    let mut sum = Amount::default();
    for l in &program.launches {
        let work = &program.chosen[l.chosen].work;
        let one = case.seen.map_or_else(|| Amount::of(work), |seen| Amount::seen(work, seen));
        let one = one.map_err(omchat_runtime::Error::from)?;
        sum.read = sum.read.saturating_add(one.read);
        sum.written = sum.written.saturating_add(one.written);
        sum.flops = sum.flops.saturating_add(one.flops);
    }
    Ok(sum)
}

/// Times and judges every case that is wanted, and yields whether all were right.
///
/// Errors: no row of that name; what the device answers.
pub fn kernels(
    device: &Device,
    cases: &[Case],
    options: &Options,
    say: &mut dyn FnMut(Said) -> Result<(), Error>,
) -> Result<bool, Error> {
    let wanted: Vec<&Case> = cases.iter().filter(|c| options.wants(&c.name)).collect();
    if wanted.is_empty() {
        let names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
        return Err(options.nothing(&names));
    }
    let ceilings = options.ceilings(device)?;
    let mut judge = Judge::new(device);
    let mut right = true;
    for case in wanted {
        let lowered = match lower(case, device) {
            Ok(l) => l,
            Err(e) => {
                say(Said::Skipped { name: case.name.clone(), reason: e.to_string() })?;
                continue;
            }
        };
        for (program, note) in variants(&lowered, device, options) {
            let one = Lowered { module: lowered.module.clone(), entry: lowered.entry, program };
            match measured(&mut judge, device, case, &one, options, ceilings.as_ref()) {
                Ok(mut row) => {
                    right &= row.checked != Some(false);
                    row.note = row.note.or(note);
                    say(Said::Row(Box::new(row)))?;
                }
                Err(Error::Runtime(e @ omchat_runtime::Error::OutOfMemory { .. })) => {
                    say(Said::Skipped { name: case.name.clone(), reason: e.to_string() })?;
                }
                Err(e) => return Err(e),
            }
        }
    }
    Ok(right)
}

/// The chosen program; with `all` also each that has one kernel or schedule changed to a wanted one, and what was changed.
fn variants(lowered: &Lowered, device: &Device, options: &Options) -> Vec<(Option<Program>, Option<String>)> {
    let mut out = vec![(lowered.program.clone(), None)];
    let Some(chosen) = lowered.program.as_ref().filter(|_| options.all) else { return out };
    let target = device.target();
    for (i, c) in chosen.chosen.iter().enumerate() {
        for kernel in LIST.iter().filter(|k| k.implements().takes(&c.work) && options.takes(k.name())) {
            for schedule in kernel.schedules(&c.work, &target).unwrap_or_default() {
                if kernel.name() == c.kernel && schedule == c.schedule {
                    continue;
                }
                // What its scratch memory does not fit into cannot be measured here.
                let Ok(p) = chosen.with(i, *kernel, schedule) else { continue };
                let note = (chosen.chosen.len() > 1).then(|| format!("with {} for launch {i}", kernel.name()));
                out.push((Some(p), note));
            }
        }
    }
    out
}

/// One row: judged first, on memory that nothing has written yet, then timed.
fn measured(
    judge: &mut Judge,
    device: &Device,
    case: &Case,
    lowered: &Lowered,
    options: &Options,
    ceilings: Option<&Ceilings>,
) -> Result<Row, Error> {
    let (mut trial, amount) = trial(case, lowered, device, !options.warm)?;
    let wrong = match trial.program().cloned() {
        Some(p) => wrong(judge, &p, &mut trial)?,
        None => None,
    };
    let (kernel, schedule) = lowered.program.as_ref().map_or(("interp".into(), String::new()), ways);
    let row = Row {
        suite: "kernels".into(),
        name: case.name.clone(),
        shape: case.shape.clone(),
        device: device.name().into(),
        kernel,
        schedule,
        checked: Some(wrong.is_none()),
        note: wrong,
        ..Row::default()
    };
    Ok(row.timed(&trial.time(&options.budget)?, amount, case.dtype, ceilings))
}

/// What is wrong with the launches of a program, if anything.
pub(super) fn wrong(judge: &mut Judge, program: &Program, trial: &mut Trial) -> Result<Option<String>, Error> {
    let mut first = None;
    trial.examine(&mut |e| {
        if first.is_none() {
            first = judge.judge(program, &e)?.map(|what| format!("{}: {what}", program.chosen[e.chosen].kernel));
        }
        Ok::<(), Error>(())
    })?;
    Ok(first)
}

/// Kernels and schedules of a program, each pair once, in the order of first use.
pub(super) fn ways(program: &Program) -> (String, String) {
    let mut pairs: Vec<(&str, String)> = vec![];
    for c in &program.chosen {
        let pair = (c.kernel, c.schedule.to_string());
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    let (kernels, schedules): (Vec<&str>, Vec<String>) = pairs.into_iter().unzip();
    (kernels.join(" + "), schedules.join("; "))
}
