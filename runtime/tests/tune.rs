//! The tuner on the CPU runtime: every kernel of the list is found right, and seeded wrong ones are kept out, whatever
//! their speed and their place in the list.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_codegen::{Implements, Kernel, Nest, Refusal, Schedule, Target, Work};
use omchat_ir::{Func, parse};
use omchat_kernels::{LIST, Launch, LaunchError, Prepared, by_name};
use omchat_runtime::tune::{Outcome, tasks, tune};
use omchat_runtime::{Device, program};
use std::time::Duration;

/// `einsum.rows` with something wrong in the nest that it is given.
struct Wrong(&'static str, fn(&mut Nest));

impl Kernel for Wrong {
    fn name(&self) -> &'static str {
        self.0
    }
    fn implements(&self) -> Implements {
        Implements::Nest
    }
    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        by_name("einsum.rows").unwrap().schedules(work, target)
    }
}

impl Launch for Wrong {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let Work::Nest(nest) = work else { panic!("{work:?}") };
        let mut nest = nest.clone();
        (self.1)(&mut nest);
        by_name("einsum.rows").unwrap().prepare(&Work::Nest(nest), schedule)
    }
}

/// Right where the columns are a multiple of 16, as they are in models; elsewhere it leaves a rest.
const RESTLESS: Wrong = Wrong("einsum.restless", |n| {
    let last = n.kept.last_mut().unwrap();
    *last = (*last / 16 * 16).max(16.min(*last));
});
/// Forgets the last product of each sum.
const SHORT: Wrong = Wrong("einsum.short", |n| *n.folded.last_mut().unwrap() -= 1);
/// Does nothing at all, fastest.
const IDLE: Wrong = Wrong("einsum.idle", |n| n.kept[0] = 0);
/// Writes one element past its results.
const WIDE: Wrong = Wrong("einsum.wide", |n| n.writes[0].offset += 1);

fn found(text: &str, kernels: &[&dyn Launch]) -> Option<Outcome> {
    let device = match Device::open("cpu") {
        Ok(d) => d,
        Err(e) => {
            println!("skipped: {e}");
            return None;
        }
    };
    let module = parse(text).unwrap();
    let entry = Func(module.functions.len() as u32 - 1);
    let p = program(&module, entry, &device.target()).unwrap();
    let tasks = tasks(&[("test".into(), p)], kernels);
    assert_eq!(tasks.len(), 1);
    let mut done = tune(&device, &tasks, kernels, Duration::from_secs(120), &mut |_, _| {}).unwrap();
    assert!(done.left.is_empty(), "{:?}", done.left);
    done.outcomes.pop()
}

#[test]
fn seeded_wrong_kernels_are_kept_out() {
    let text = "func @f(%x: f32[32, 64], %w: f32[64, 96]) -> f32[32, 96] { %y = einsum.f32 %x, %w \"m k, k n -> m n\" return %y }";
    let mut kernels: Vec<&dyn Launch> = vec![&IDLE, &RESTLESS, &SHORT, &WIDE];
    kernels.extend(LIST);
    let Some(o) = found(text, &kernels) else { return };
    let wrong = |name: &str| name != "einsum.rows" && name.starts_with("einsum.") && by_name(name).is_none();
    assert_eq!(o.before.0.kernel, "einsum.idle", "the list prefers a wrong one");
    assert!(o.before.1.is_infinite());
    let (best, seconds) = o.best.unwrap();
    assert!(!wrong(&best.kernel) && seconds.is_finite(), "{best:?}");
    assert!(o.timed.iter().all(|(p, _)| !wrong(&p.kernel)), "{:?}", o.timed);
    for name in ["einsum.idle", "einsum.restless", "einsum.short", "einsum.wide"] {
        let why: Vec<&String> = o.rejected.iter().filter(|(p, _)| p.kernel == name).map(|(_, why)| why).collect();
        println!("{name}: {why:?}");
        assert!(!why.is_empty(), "{name} was not rejected: {:?}", o.rejected);
    }
    assert!(o.rejected.iter().all(|(p, _)| wrong(&p.kernel)), "{:?}", o.rejected);
}

#[test]
fn every_kernel_of_the_list_is_found_right() {
    let mut ran = 0;
    for text in [
        // Factors along memory in k, in n, and with a body after the sum; halves; a long k.
        "func @f(%x: f32[60, 128], %w: f32[96, 128]) -> f32[60, 96] { %y = einsum.f32 %x, %w \"m k, n k -> m n\" return %y }",
        "func @f(%x: bf16[60, 128], %w: bf16[96, 128]) -> bf16[60, 96] { %y = einsum.bf16 %x, %w \"m k, n k -> m n\" return %y }",
        "func @f(%x: f32[1, 128], %w: f32[96, 128], %b: f32[96]) -> f32[1, 96] { %y = einsum.f32 %x, %w \"m k, n k -> m n\" %z = add %y, %b \"m n, n -> m n\" %u = logistic %z return %u }",
        "func @f(%x: f32[24, 5000], %w: f32[5000, 64]) -> f32[24, 64] { %y = einsum.f32 %x, %w \"m k, k n -> m n\" return %y }",
        "func @f(%q: f32[1, 2, 3, 40, 64], %k: f32[1, 2, 200, 64], %v: f32[1, 2, 200, 64], %lo: i32[1, 40], %hi: i32[1, 40], %at: i32[1, 200]) -> (f32[1, 2, 3, 40, 64], f32[1, 2, 3, 40]) { %o, %l = call @attention(%q, %k, %v, %lo, %hi, %at) return %o, %l }",
    ] {
        let Some(o) = found(text, LIST) else { return };
        assert!(o.rejected.is_empty(), "{text}\n{:?}", o.rejected);
        assert!(o.timed.len() > 1 && o.best.is_some(), "{text}\n{:?}", o.timed);
        ran += o.timed.len();
    }
    println!("{ran} schedules right");
}

#[test]
fn a_spent_budget_measures_nothing_and_says_so() {
    let Ok(device) = Device::open("cpu") else { return println!("skipped: no cpu") };
    let module = parse("func @f(%x: f32[8, 32], %w: f32[32, 32]) -> f32[8, 32] { %y = einsum.f32 %x, %w \"m k, k n -> m n\" return %y }").unwrap();
    let p = program(&module, Func(0), &device.target()).unwrap();
    let tasks = tasks(&[("test".into(), p)], LIST);
    let done = tune(&device, &tasks, LIST, Duration::ZERO, &mut |_, _| {}).unwrap();
    assert!(done.outcomes.is_empty());
    assert_eq!(done.left, [(tasks[0].class.clone(), "the budget was spent".to_string())]);
    let error = tune(&Device::Interp, &tasks, LIST, Duration::ZERO, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("no kernels to tune"), "{error}");
}
