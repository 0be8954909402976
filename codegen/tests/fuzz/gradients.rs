//! Random functions of the ops' samples: they print and parse back, every pass and the plan keep their meaning, and
//! so for their gradients, which central differences confirm. What fails is shrunk and written as a file test.

use crate::common::Rng;
use crate::common::grad::{Case, Slopes, slopes};
use crate::sampled::{build, mnemonics, plain, recipes, rounded};
use omchat_ir::{Differentiate, Func, Mode, Module, Op, Scope, Tensor, Value, interpret, library, parse};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestError, TestRunner};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// How many functions a test draws; `OMCHAT_FUZZ_CASES` sets another number.
fn cases(otherwise: u32) -> u32 {
    std::env::var("OMCHAT_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// The ops that must occur in a run, and those that did.
#[derive(Default)]
struct Coverage(RefCell<BTreeSet<&'static str>>);

impl Coverage {
    fn add(&self, module: &Module) {
        self.0.borrow_mut().extend(mnemonics(module));
    }

    fn check(&self, cases: u32, but: &[&str]) {
        let (seen, all) = (self.0.borrow(), Op::mnemonics());
        let missing: Vec<&&str> = all.iter().filter(|m| !seen.contains(*m) && !but.contains(m)).collect();
        println!("{} of {} ops occurred", all.len() - missing.len() - but.len(), all.len());
        // Fewer functions than this may miss one by chance.
        assert!(cases < 100 || missing.is_empty(), "these ops never occurred: {missing:?}");
    }
}

/// Runs a property on random functions. What fails is shrunk, written below `tests/filetests/fuzz`, and told.
fn fuzz(header: &str, cases: u32, smooth: bool, property: impl Fn(&str, &Module, u64)) {
    let config =
        ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let test = |(recipe, seed): (Vec<_>, u64)| {
        let module = build(&recipe, smooth);
        let run = || property(&module.to_string(), &module, seed);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).map_err(|why| {
            let why = why.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".into());
            TestCaseError::fail(why)
        })
    };
    match runner.run(&(recipes(), any::<u64>()), test) {
        Ok(()) => {}
        Err(TestError::Fail(why, (recipe, seed))) => {
            let path = keep(&build(&recipe, smooth).to_string(), header, seed);
            panic!("kept as {}, seed {seed}:\n{why}", path.display());
        }
        Err(e) => panic!("{e}"),
    }
}

/// Writes a file test; its name is of its text.
fn keep(text: &str, header: &str, seed: u64) -> PathBuf {
    let sum = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests/fuzz");
    let path = folder.join(format!("found_{sum:016x}.oir"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(&path, format!("; Found by a random function, seed {seed}.\n; test {header}\n\n{text}")).unwrap();
    path
}

fn round_trip(text: &str, module: &Module) {
    module.verify().unwrap_or_else(|e| panic!("{module}\n{e}"));
    let again = parse(text).unwrap_or_else(|e| panic!("{}", e.render("printed", text)));
    assert!(again == *module, "printed and parsed, it is another module\n{text}");
}

#[test]
fn random_functions_of_samples_keep_their_meaning() {
    let (coverage, ran, cases) = (Coverage::default(), Cell::new(0), cases(250));
    fuzz("run", cases, false, |text, module, seed| {
        round_trip(text, module);
        if crate::finite(text, seed) {
            crate::whole(text, seed, 1e-9);
            coverage.add(module);
            ran.set(ran.get() + 1);
        }
    });
    println!("{} functions ran through all passes and over poisoned memory", ran.get());
    coverage.check(cases, &[]);
}

/// That many ranks; one where parts are for one rank.
fn ranks(text: &str, ranks: usize) -> usize {
    if text.contains("parts=") { 1 } else { ranks }
}

#[test]
fn random_gradients_match_central_differences() {
    let (coverage, counts, cases) = (Coverage::default(), Cell::new((0, 0, 0, 0)), cases(400));
    fuzz("vjp", cases, true, |text, module, seed| {
        let f = module.named("f").unwrap();
        let ranks = ranks(text, 1 + (seed % 3) as usize);
        let (mut agree, mut directions, mut skipped, mut nothing) = counts.get();
        match slopes(&Case { text, module, f, ranks, seed, scope: None }) {
            Ok(Slopes::Agree(n)) => {
                coverage.add(module);
                (agree, directions) = (agree + 1, directions + n);
            }
            Ok(Slopes::Skipped) => skipped += 1,
            Ok(Slopes::Nothing) => nothing += 1,
            Err(why) => panic!("{why}\n{text}"),
        }
        counts.set((agree, directions, skipped, nothing));
    });
    let (agree, directions, skipped, nothing) = counts.get();
    println!("{agree} functions agree along {directions} directions, {nothing} have no float result");
    println!("skipped: {skipped} functions had no smooth point");
    coverage.check(cases, &["stop_gradient"]);
    assert!(5 * skipped <= agree + skipped, "{skipped} of {} functions were skipped", agree + skipped);
}

/// Functions of the other writer: broadcasts, words in any order, composites with rules of their own.
#[test]
fn gradients_of_random_texts_match_central_differences() {
    let scope = Scope::new(&[library::file().unwrap()]);
    let (mut agree, mut skipped, mut nothing, mut whole) = (0, 0, 0, 0);
    for seed in 0..u64::from(cases(300)) {
        let text = crate::write::function(&mut Rng(seed));
        if text.contains("stop_gradient") || !crate::finite(&text, seed) {
            continue;
        }
        let module = parse(&text).unwrap();
        let f = module.named("f").unwrap();
        for scope in [None, Some(&scope)] {
            let ranks = ranks(&text, 1 + (seed % 2) as usize);
            match slopes(&Case { text: &text, module: &module, f, ranks, seed, scope }) {
                Ok(Slopes::Agree(_)) => agree += 1,
                Ok(Slopes::Skipped) => skipped += 1,
                Ok(Slopes::Nothing) => nothing += 1,
                Err(why) => panic!("seed {seed}: {why}\n{text}\nkept as {}", keep(&text, "vjp", seed).display()),
            }
        }
        // Every fourth goes the long way, by turns with the written rules.
        let how = Differentiate { scope: Some(&scope).filter(|_| seed % 8 == 0), keep: &[] };
        let Some((grads, _)) = (if seed % 4 == 0 { gradient(&module, how) } else { None }) else { continue };
        let grads = grads.to_string();
        if crate::finite_of(&grads, "f.grad", seed) {
            crate::whole_of(&grads, "f.grad", seed, 1e-9);
            whole += 1;
        }
    }
    println!("{whole} gradients ran through all passes and over poisoned memory");
    println!("{agree} agree, {nothing} have no float result; skipped: {skipped} had no smooth point");
    assert!(5 * skipped <= agree + skipped, "{skipped} of {} were skipped", agree + skipped);
}

/// The gradient of all float results by all float parameters; a `remat` call keeps the results of those functions.
pub fn gradient(module: &Module, how: Differentiate) -> Option<(Module, Func)> {
    let mut module = module.clone();
    let f = module.named("f").unwrap();
    let function = module.function(f).clone();
    let float = |v: &Value| function.ty(*v).dtype.is_float();
    let of: Vec<usize> = (0..function.results.len()).filter(|i| float(&function.results[*i])).collect();
    let wrt: Vec<Value> = function.param_values().filter(float).collect();
    if of.is_empty() || wrt.is_empty() {
        return None;
    }
    let grad = how.run(&mut module, f, &of, &wrt).unwrap_or_else(|e| panic!("{module}\n{e}"));
    Some((rounded(module), grad))
}

fn numbers(module: &Module, f: Func, seed: u64) -> Vec<Tensor> {
    let mut rng = Rng(seed);
    let types = module.function(f).param_types();
    let inputs = types.iter().map(|t| crate::common::grad::draw(&mut rng, t, (-1.5, 1.5)).rounded()).collect();
    interpret(module, f, vec![inputs], Mode::Exact).unwrap().remove(0)
}

/// Bit for bit, no numbers included.
fn same(a: &[Tensor], b: &[Tensor]) -> bool {
    let pairs = a.iter().zip(b).flat_map(|(a, b)| a.data.iter().zip(&b.data));
    a.len() == b.len() && pairs.into_iter().all(|(x, y)| x == y || (x.is_nan() && y.is_nan()))
}

#[test]
fn random_gradients_keep_their_meaning() {
    let (coverage, ran, calls, cases) = (Coverage::default(), Cell::new(0), Cell::new(0), cases(150));
    fuzz("vjp", cases, false, |_, module, seed| {
        let Some((grads, _)) = gradient(module, Differentiate::default()) else { return };
        let text = grads.to_string();
        round_trip(&text, &grads);
        let stored = plain(module);
        if stored != *module {
            let (other, g) = gradient(&stored, Differentiate::default()).unwrap();
            let want = numbers(&other, g, seed);
            for keep in [&[][..], &["g0"], &["g1"], &["g0", "g1"]] {
                let (kept, g) = gradient(module, Differentiate { scope: None, keep }).unwrap();
                round_trip(&kept.to_string(), &kept);
                assert!(same(&numbers(&kept, g, seed), &want), "remat, keep {keep:?}, changes a number\n{module}");
            }
            calls.set(calls.get() + 1);
        }
        if crate::finite_of(&text, "f.grad", seed) {
            crate::whole_of(&text, "f.grad", seed, 1e-9);
            coverage.add(&grads);
            ran.set(ran.get() + 1);
        }
    });
    println!("{} gradients ran through all passes and over poisoned memory, {} with remat", ran.get(), calls.get());
    coverage.check(cases, &[]);
}
