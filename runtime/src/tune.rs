//! The tuner: for each class of work of some programs, which right kernel and schedule is the fastest here.
//!
//! A schedule is judged before it is timed: it runs on odd sizes of its class, between guards and over poison, and every
//! number is compared with the interpreter's. What is right is timed in interleaved rounds; the median counts. Whatever is
//! under way when the budget nears its end is finished and nothing more is begun.

mod clock;
mod drawn;
mod judge;
mod odd;

use crate::Error;
use crate::device::Device;
use clock::{Clock, Ready, Sets};
use drawn::Instance;
use judge::Case;
use omchat_codegen::{Kernel, Pick, Program, Schedule, Work, offers, preferred};
use omchat_kernels::Launch;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How much faster a schedule must be than the one taken without a table before it replaces that: clocks are noisy.
pub const CLEAR: f64 = 1.03;
/// Offers that the cost model expects to take so many times the preferred one's time are not tried.
const HOPELESS: f64 = 12.0;
/// Rounds that a class is timed for, if the budget allows.
const ROUNDS: usize = 9;
/// After that many rounds what is far behind is timed no more.
const TRIAL: usize = 3;

/// A class of work, and the work of it that takes most of the programs' time.
#[derive(Clone, Debug)]
pub struct Task {
    /// The class.
    pub class: String,
    /// The work.
    pub work: Work,
    /// The program that it is from.
    pub program: String,
    /// Seconds that the class is expected to take in one run of each program.
    pub expected: f64,
}

/// What was found for a class.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The class.
    pub class: String,
    /// The program that its work is from.
    pub program: String,
    /// What is taken without a table, and its seconds; infinite where it is not right.
    pub before: (Pick, f64),
    /// The fastest right schedule and its seconds; nothing where none was found right and timed.
    pub best: Option<(Pick, f64)>,
    /// Schedules that were kept out, and why.
    pub rejected: Vec<(Pick, String)>,
    /// Schedules that were found right and timed, fastest first, with their seconds.
    pub timed: Vec<(Pick, f64)>,
}

/// The outcomes of a run of the tuner.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// Classes that were measured.
    pub outcomes: Vec<Outcome>,
    /// Classes with a single offer: there is nothing to choose.
    pub settled: usize,
    /// Classes that were not measured, and why.
    pub left: Vec<(String, String)>,
}

/// The classes of some programs, those that take most time first.
pub fn tasks(programs: &[(String, Program)], kernels: &[&dyn Launch]) -> Vec<Task> {
    let list: Vec<&dyn Kernel> = kernels.iter().map(|k| *k as &dyn Kernel).collect();
    let mut all: BTreeMap<String, (Task, f64)> = BTreeMap::new();
    for (name, program) in programs {
        for (i, c) in program.chosen.iter().enumerate() {
            let times = program.launches.iter().filter(|l| l.chosen == i).count() as f64;
            let (found, _) = offers(&c.work, &program.target, &list);
            let Some(at) = preferred(&found) else { continue };
            let spent = times * found[at].seconds;
            let class = c.work.class();
            let fresh = || {
                let (class, work, program) = (class.clone(), c.work.clone(), name.clone());
                (Task { class, work, program, expected: 0.0 }, 0.0)
            };
            let (task, most) = all.entry(class.clone()).or_insert_with(fresh);
            task.expected += spent;
            if spent > *most {
                (task.work, task.program, *most) = (c.work.clone(), name.clone(), spent);
            }
        }
    }
    let mut out: Vec<Task> = all.into_values().map(|(t, _)| t).collect();
    out.sort_by(|a, b| b.expected.total_cmp(&a.expected).then_with(|| a.class.cmp(&b.class)));
    out
}

/// Measures tasks on a device, in their order, within a budget of time. `progress` is told how many are done.
///
/// Errors: `Device` for the interpreter, which has no kernels.
pub fn tune(
    device: &Device,
    tasks: &[Task],
    kernels: &[&dyn Launch],
    budget: Duration,
    progress: &mut dyn FnMut(usize, &Task),
) -> Result<Tuning, Error> {
    let Device::Cube { client, target } = device else {
        return Err(Error::Device {
            device: "interp".into(),
            message: "the interpreter has no kernels to tune".into(),
        });
    };
    let clock = Clock { client, target };
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    let mut out = Tuning::default();
    for (done, task) in tasks.iter().enumerate() {
        progress(done, task);
        let candidates = candidates(task, kernels, device);
        if candidates.len() < 2 {
            out.settled += 1;
            continue;
        }
        let left = budget.saturating_sub(start.elapsed());
        if left <= longest {
            out.left.push((task.class.clone(), "the budget was spent".into()));
            continue;
        }
        // A class may take a third of what is left: heavy classes come first, and the last ones get something too.
        let share = left.min((left / 3).max(longest));
        let mut turn = Turn { clock: &clock, end: Instant::now() + share, longest: &mut longest };
        match turn.measure(task, &candidates, device) {
            Ok(found) => out.outcomes.push(found),
            Err(why) => out.left.push((task.class.clone(), why)),
        }
    }
    Ok(out)
}

/// A kernel and a schedule to try; the preferred one first.
struct Candidate<'a> {
    kernel: &'a dyn Launch,
    schedule: Schedule,
}

impl Candidate<'_> {
    fn pick(&self) -> Pick {
        Pick { kernel: self.kernel.name().into(), schedule: self.schedule.to_string() }
    }
}

fn candidates<'a>(task: &Task, kernels: &[&'a dyn Launch], device: &Device) -> Vec<Candidate<'a>> {
    let list: Vec<&dyn Kernel> = kernels.iter().map(|k| *k as &dyn Kernel).collect();
    let (found, _) = offers(&task.work, &device.target(), &list);
    let Some(first) = preferred(&found) else { return vec![] };
    let worth = |i: &usize| found[*i].seconds <= HOPELESS * found[first].seconds;
    let mut order: Vec<usize> = (0..found.len()).filter(worth).collect();
    order.sort_by_key(|i| (*i != first, *i));
    let named = |i: usize| {
        let kernel = kernels.iter().copied().find(|k| k.name() == found[i].kernel.name())?;
        Some(Candidate { kernel, schedule: found[i].schedule.clone() })
    };
    order.into_iter().filter_map(named).collect()
}

/// A class's turn of the device.
struct Turn<'a> {
    clock: &'a Clock<'a>,
    end: Instant,
    /// The longest step so far: none is begun that may not end in time.
    longest: &'a mut Duration,
}

impl Turn<'_> {
    /// Runs a step and notes how long it took.
    fn step<T>(&mut self, f: impl FnOnce(&Clock) -> T) -> T {
        let start = Instant::now();
        let done = f(self.clock);
        *self.longest = start.elapsed().max(*self.longest);
        done
    }

    fn over(&self) -> bool {
        Instant::now() + *self.longest >= self.end
    }

    /// Judges and times the candidates of a class.
    ///
    /// Errors: why nothing could be measured.
    fn measure(&mut self, task: &Task, candidates: &[Candidate], device: &Device) -> Result<Outcome, String> {
        let instance = Instance::of(&task.work).ok_or("the library has no such function")?;
        let bytes = instance.bytes() as u64;
        if let Some(free) = device.free_bytes().filter(|free| bytes > free / 2) {
            return Err(format!("its buffers are {bytes} bytes, {free} are free"));
        }
        let mut cases = Cases { made: vec![], open: odd::instances(&task.work) };
        let (mut right, mut rejected): (Vec<(Pick, Ready)>, Vec<_>) = (vec![], vec![]);
        let sets = self.step(|clock| clock.sets(&instance));
        for c in candidates {
            if self.over() && !right.is_empty() {
                break;
            }
            let Some(judged) = self.step(|clock| cases.judge(clock, c)) else {
                let why = "it is offered for no size that can be checked".to_string();
                if rejected.is_empty() && right.is_empty() {
                    // The others may be right and slower: what is taken without a table stays.
                    return Err(format!("{} is taken: {why}", c.kernel.name()));
                }
                rejected.push((c.pick(), why));
                continue;
            };
            let ready = judged.and_then(|()| {
                let mut ready = self.clock.ready(c.kernel, &instance, &c.schedule)?;
                self.step(|clock| clock.warm(&mut ready, &sets))?;
                Ok(ready)
            });
            match ready {
                Ok(ready) => right.push((c.pick(), ready)),
                Err(why) => rejected.push((c.pick(), why)),
            }
        }
        rejected.extend(self.race(&mut right, &sets));
        right.retain(|(_, r)| !r.samples.is_empty());
        right.sort_by(|a, b| a.1.median().total_cmp(&b.1.median()));
        let timed: Vec<(Pick, f64)> = right.iter().map(|(p, r)| (p.clone(), r.median())).collect();
        let first = candidates.first().ok_or("no kernel offers a schedule")?.pick();
        let seconds = timed.iter().find(|(p, _)| *p == first).map_or(f64::INFINITY, |(_, s)| *s);
        let best = timed.first().cloned();
        // A tie stays with what is taken without a table.
        let best = best.map(|(p, s)| if s * CLEAR < seconds { (p, s) } else { (first.clone(), seconds) });
        let (class, program) = (task.class.clone(), task.program.clone());
        Ok(Outcome { class, program, before: (first, seconds), best, rejected, timed })
    }

    /// Samples all in turn, round by round; yields those that failed.
    fn race(&mut self, all: &mut Vec<(Pick, Ready)>, sets: &Sets) -> Vec<(Pick, String)> {
        let mut failed = vec![];
        for round in 0..ROUNDS {
            if round > 0 && self.over() {
                break;
            }
            let best = all.iter().map(|(_, r)| r.median()).fold(f64::INFINITY, f64::min);
            let mut next = vec![];
            for (pick, mut ready) in all.drain(..) {
                let behind = round >= TRIAL && ready.median() > 1.5 * best;
                match if behind { Ok(()) } else { self.step(|clock| clock.sample(&mut ready, sets)) } {
                    Ok(()) => next.push((pick, ready)),
                    Err(why) => failed.push((pick, why)),
                }
            }
            *all = next;
        }
        failed
    }
}

/// Odd cases of a class, made when a schedule first needs them.
struct Cases {
    made: Vec<Case>,
    open: Vec<Instance>,
}

impl Cases {
    /// Judges a candidate on the first case at which its kernel offers its schedule; nothing where there is none.
    ///
    /// Errors: what is wrong with it.
    fn judge(&mut self, clock: &Clock, c: &Candidate) -> Option<Result<(), String>> {
        let mut at = 0;
        loop {
            while at >= self.made.len() {
                if self.open.is_empty() {
                    return None;
                }
                self.made.extend(Case::of(&self.open.remove(0)));
            }
            let case = &self.made[at];
            let offered = c.kernel.schedules(&case.instance.work, clock.target).unwrap_or_default();
            if offered.iter().any(|s| alike(s, &c.schedule, clock.target)) {
                return Some(clock.judge(c.kernel, case, &c.schedule));
            }
            at += 1;
        }
    }
}

/// Whether two schedules are one, whatever the number of cubes that share a row (`parts`), which any size may be cut
/// into; on a CPU whatever the number of cores that they wake.
fn alike(a: &Schedule, b: &Schedule, target: &omchat_codegen::Target) -> bool {
    let free = |k: &str| k == "parts" || target.family == omchat_codegen::Family::Cpu && k == "units";
    let plain = |s: &Schedule| s.0.iter().filter(|(k, _)| !free(k)).map(|(k, v)| (*k, *v)).collect::<Vec<_>>();
    plain(a) == plain(b)
}
