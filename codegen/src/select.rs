//! Which kernel runs a piece of work, and how: the measured one, else the one that the cost model expects to be fastest.

use crate::Amount;
use crate::Error;
use crate::cost;
use crate::kernel::{Kernel, Schedule, Work};
use crate::passes::Context;
use crate::program::{By, Chosen};
use crate::target::Target;

/// How much less time a later offer must be expected to take before it is preferred: the list's order, and a kernel's
/// own, know more than a model of a few lines.
const MARGIN: f64 = 1.25;

/// A kernel with a schedule that it offers for some work.
#[derive(Clone)]
pub struct Offer<'a> {
    /// The kernel.
    pub kernel: &'a dyn Kernel,
    /// How it would run.
    pub schedule: Schedule,
    /// Floats (f32) of scratch memory that it takes.
    pub scratch: usize,
    /// Seconds that the cost model expects.
    pub seconds: f64,
}

/// Why kernels will not run some work, in the order of the list.
pub type Refusals = Vec<(&'static str, String)>;

/// Every offer for some work, in the order of the list and of each kernel's preference, and every refusal.
pub fn offers<'a>(work: &Work, target: &Target, kernels: &[&'a dyn Kernel]) -> (Vec<Offer<'a>>, Refusals) {
    let (mut found, mut refusals) = (vec![], vec![]);
    // A function that is not the library's has no amount: its offers are expected to take the same.
    let amount = Amount::of(work).unwrap_or_default();
    for k in kernels.iter().filter(|k| k.implements().takes(work)) {
        match k.schedules(work, target) {
            Ok(s) if s.is_empty() => refusals.push((k.name(), "offers no schedule".to_string())),
            Ok(s) => {
                let (before, mut lacks) = (found.len(), None);
                for schedule in s {
                    let scratch = k.scratch(work, &schedule);
                    let turns = if target.turns == usize::MAX { 0 } else { k.turns(work, &schedule) };
                    match lacking(work, scratch, turns, target) {
                        Some(why) => lacks = Some(why),
                        None => {
                            let seconds = cost::seconds(work, &amount, &schedule, scratch, target);
                            found.push(Offer { kernel: *k, schedule, scratch, seconds });
                        }
                    }
                }
                refusals.extend(lacks.filter(|_| found.len() == before).map(|why| (k.name(), why)));
            }
            Err(r) => refusals.push((k.name(), r.0)),
        }
    }
    (found, refusals)
}

/// What a target lacks for that many floats of scratch memory and for loops of that many turns.
fn lacking(work: &Work, scratch: usize, turns: usize, target: &Target) -> Option<String> {
    let (bytes, bound, name) = (scratch * 4, work.bindings() + 1, &target.name);
    if turns > target.turns {
        let may = if turns == usize::MAX { "any number of".into() } else { turns.to_string() };
        Some(format!("a unit's loops may take {may} turns, {name} ends them after {}", target.turns))
    } else if scratch == 0 {
        None
    } else if bytes > target.max_binding_bytes {
        Some(format!("needs {bytes} bytes of scratch memory, {name} binds {} at once", target.max_binding_bytes))
    } else if bound > target.max_bindings {
        Some(format!("binds {bound} buffers with its scratch memory, {name} takes {}", target.max_bindings))
    } else {
        None
    }
}

/// The place of the offer that the cost model prefers: the first, unless a later one is expected to take much less.
pub fn preferred(offers: &[Offer]) -> Option<usize> {
    let mut best = 0;
    for (i, o) in offers.iter().enumerate() {
        if o.seconds * MARGIN < offers[best].seconds {
            best = i;
        }
    }
    (!offers.is_empty()).then_some(best)
}

/// The kernel and the schedule for some work, and why not those that stand before it in the list.
///
/// Errors: it binds more buffers than the target allows; no kernel takes it.
pub(crate) fn select(work: Work, context: &Context) -> Result<Chosen, Error> {
    if let Work::Collective(c) = &work {
        let (kernel, schedule) = (c.name(), Schedule::new(&[("ranks", c.ranks as u32)]));
        return Ok(Chosen { kernel, schedule, scratch: 0, work, refusals: vec![], by: By::List });
    }
    let (need, target) = (work.bindings(), context.target);
    if need > target.max_bindings {
        return Err(Error::Limit {
            name: "buffers a kernel",
            what: describe(&work),
            need,
            have: target.max_bindings,
            target: target.name.clone(),
            mend: "take a device that binds more at once, or the CPU",
        });
    }
    let (offers, mut refusals) = offers(&work, context.target, context.kernels);
    let Some(expected) = preferred(&offers) else {
        let list: Vec<String> = refusals.iter().map(|(k, why)| format!("{k}: {why}")).collect();
        return Err(Error::NoKernel {
            work: describe(&work),
            target: context.target.name.clone(),
            refusals: if list.is_empty() { "none implements it".into() } else { list.join("; ") },
        });
    };
    let pick = context.tuned.and_then(|t| t.get(&work.class()));
    let measured = pick.and_then(|p| offers.iter().position(|o| p.is(o.kernel.name(), &o.schedule)));
    let (at, by) = match measured {
        Some(at) => (at, By::Tuned),
        None if expected > 0 => (expected, By::Cost),
        None => (0, By::List),
    };
    let place = |name: &str| context.kernels.iter().position(|k| k.name() == name);
    let chosen = &offers[at];
    let before = |name: &str| place(name) < place(chosen.kernel.name());
    refusals.extend(passed_over(&offers[..at], chosen, by));
    refusals.retain(|(name, _)| before(name));
    refusals.sort_by_key(|(name, _)| place(name));
    if let (Some(p), None) = (pick, measured) {
        refusals.push(("the tuned choice", format!("{} [{}] is not offered for this work", p.kernel, p.schedule)));
    }
    let (kernel, schedule) = (chosen.kernel.name(), chosen.schedule.clone());
    Ok(Chosen { kernel, schedule, scratch: chosen.scratch, work, refusals, by })
}

/// Kernels that offered a schedule and stand before the one that was taken, and why they were not.
fn passed_over(earlier: &[Offer], chosen: &Offer, by: By) -> Refusals {
    let mut out: Refusals = vec![];
    for o in earlier.iter().filter(|o| o.kernel.name() != chosen.kernel.name()) {
        if out.iter().any(|(name, _)| *name == o.kernel.name()) {
            continue;
        }
        let why = match by {
            By::Tuned => "measured as slower".to_string(),
            _ => format!("expected to take {:.1} us, not {:.1}", o.seconds * 1e6, chosen.seconds * 1e6),
        };
        out.push((o.kernel.name(), why));
    }
    out
}

pub(crate) fn describe(work: &Work) -> String {
    match work {
        Work::Nest(n) => format!("a nest over {:?} folding {:?}", n.kept, n.folded),
        Work::Function { name, .. } => format!("@{name}"),
        Work::KthLargest { rows, width, k } => format!("kth_largest {k} of {rows} rows of {width}"),
        Work::ScatterAdd { dtype, height, width, tokens, .. } => {
            format!("scatter_add of {tokens} rows onto {dtype}[{height}, {width}]")
        }
        Work::Prefetch { bytes, .. } => format!("a prefetch of {bytes} bytes"),
        Work::Collective(c) => format!("{} of {} {} over {} ranks", c.name(), c.elements, c.dtype, c.ranks),
    }
}
