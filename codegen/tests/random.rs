//! Random functions through the whole pipeline: after each pass the module means the same, and the program that
//! comes out of it, run here launch by launch over poisoned memory, yields what the interpreter yields.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../ir/tests/common/mod.rs"]
mod common;
#[path = "fuzz/gradients.rs"]
mod gradients;
#[path = "fuzz/machine.rs"]
mod machine;
#[path = "fuzz/sampled.rs"]
mod sampled;
#[path = "fuzz/write.rs"]
mod write;

use common::Rng;
use omchat_codegen::{
    Context, Implements, Kernel, PIPELINE, Place, Program, Refusal, Schedule, Target, Unit, Work, compile,
};
use omchat_ir::{Dtype, Func, Mode, Module, Role, Tensor, Type, Value, interpret, parse};
use proptest::prelude::*;

/// A kernel that is only a name.
struct Fake(&'static str, Implements);

impl Kernel for Fake {
    fn name(&self) -> &'static str {
        self.0
    }

    fn implements(&self) -> Implements {
        self.1
    }

    fn schedules(&self, work: &Work, _: &Target) -> Result<Vec<Schedule>, Refusal> {
        match work {
            Work::Function { operands, .. } if operands[0].shape.last() == Some(&3) => Err(Refusal("rows of 3".into())),
            _ => Ok(vec![Schedule::default()]),
        }
    }
}

const PLAIN: [&dyn Kernel; 3] = [
    &Fake("any.nest", Implements::Nest),
    &Fake("any.kth", Implements::KthLargest),
    &Fake("any.scatter", Implements::ScatterAdd),
];
const KEPT: [&dyn Kernel; 5] = [
    &Fake("kept.softmax", Implements::Functions(&["softmax"])),
    &Fake("kept.rms_norm", Implements::Functions(&["rms_norm"])),
    PLAIN[0],
    PLAIN[1],
    PLAIN[2],
];

fn operands(types: &[Type], seed: u64) -> Vec<Tensor> {
    let mut rng = Rng(seed);
    types
        .iter()
        .map(|t| {
            let data = (0..t.elements())
                .map(|_| match t.dtype {
                    Dtype::I32 => rng.below(7) as f64 - 1.0,
                    Dtype::Bool => rng.below(2) as f64,
                    _ => 1.5 * rng.unit(),
                })
                .collect();
            Tensor::new(t.clone(), data).unwrap().rounded()
        })
        .collect()
}

/// The first difference.
fn differs(have: &[Tensor], want: &[Tensor], within: f64) -> Option<String> {
    let same = |a: f64, b: f64, top: f64| (a - b).abs() <= within * top;
    have.iter().zip(want).enumerate().find_map(|(r, (h, w))| {
        let top = w.data.iter().fold(1.0f64, |a, b| a.max(b.abs()));
        let at = h.data.iter().zip(&w.data).position(|(a, b)| !same(*a, *b, top))?;
        Some(format!("result {r} at {at}: {} for {}", h.data[at], w.data[at]))
    })
}

fn run(m: &Module, f: Func, inputs: &[Tensor], mode: Mode) -> Vec<Tensor> {
    // A widened parameter takes the same numbers.
    let inputs = m
        .function(f)
        .param_types()
        .into_iter()
        .zip(inputs)
        .map(|(ty, t)| Tensor { ty, data: t.data.clone() })
        .collect();
    interpret(m, f, vec![inputs], mode).unwrap().remove(0)
}

/// Every pass keeps both readings of the module: what devices come near, and what the maths says. Two steps may
/// change the typed one: `legalize` widens, and a folded constant is rounded once where its parts were rounded too.
fn passes(text: &str, module: &Module, entry: Func, context: &Context, seed: u64) -> Unit {
    let inputs = operands(&module.function(entry).param_types(), seed);
    let mut unit = Unit { module: module.clone(), entry };
    let mut before = [Mode::Exact, Mode::Typed].map(|mode| run(module, entry, &inputs, mode));
    let mut folded = None;
    for pass in PIPELINE {
        let old = unit.module.to_string();
        unit = (pass.run)(unit, context).unwrap();
        let whole = |why: String| {
            format!(
                "{why}\nafter {} for {}\n{text}\n\nbefore it\n{old}\nafter it\n{}",
                pass.name, context.target.name, unit.module
            )
        };
        unit.module.verify().unwrap_or_else(|e| panic!("{}", whole(e.to_string())));
        let printed = unit.module.to_string();
        match parse(&printed) {
            Ok(again) => assert!(again == unit.module, "{}", whole("it prints another module".into())),
            Err(e) => panic!("{}", whole(e.render("printed", &printed))),
        }
        let after = [Mode::Exact, Mode::Typed].map(|mode| run(&unit.module, unit.entry, &inputs, mode));
        let skip = match pass.name {
            "legalize" | "canonicalize" => 1,
            _ => 2,
        };
        for i in (0..2).filter(|i| *i != skip) {
            if let Some(why) = differs(&after[i], &before[i], 1e-12) {
                panic!("{}", whole(why));
            }
        }
        before = after;
        if ["canonicalize", "cse"].contains(&pass.name) {
            let twice = (pass.run)(unit.clone(), context).unwrap();
            assert!(twice == unit, "{}", whole(format!("twice is not once:\n{}", twice.module)));
        }
        if pass.name == "dce" {
            folded = Some(unit.clone());
        }
    }
    folded.unwrap()
}

/// No two arena buffers whose lives meet share a byte.
fn apart(p: &Program) -> Option<String> {
    let lives: Vec<Option<(usize, usize)>> = (0..p.buffers.len())
        .map(|b| {
            let touch: Vec<usize> = p
                .launches
                .iter()
                .enumerate()
                .filter(|(_, l)| l.operands.contains(&b) || l.results.contains(&b))
                .map(|(i, _)| i)
                .collect();
            let end = if p.results.iter().any(|r| r.buffer == b) { usize::MAX } else { *touch.last()? };
            Some((touch.first().copied().unwrap_or(0), end))
        })
        .collect();
    let span = |b: usize| match p.buffers[b].place {
        Place::Arena { slab, offset } => Some((slab, offset, offset + p.buffers[b].ty.bytes())),
        Place::Own => None,
    };
    for a in 0..p.buffers.len() {
        for b in 0..a {
            if let (Some((s, e)), Some((t, u)), Some(x), Some(y)) = (lives[a], lives[b], span(a), span(b))
                && s <= u
                && t <= e
                && x.0 == y.0
                && x.1 < y.2
                && y.1 < x.2
            {
                return Some(format!("buffers {a} and {b} live at once and share bytes"));
            }
        }
        if let Some((slab, _, end)) = span(a).filter(|_| lives[a].is_some())
            && end > p.slabs[slab]
        {
            return Some(format!("buffer {a} ends at {end} of slab {slab}, which has {}", p.slabs[slab]));
        }
    }
    None
}

/// `within` is what the numbers of a text may lose as f32, a share of the largest result.
fn whole(text: &str, seed: u64, within: f64) {
    whole_of(text, "f", seed, within);
}

/// The same from another function than `@f`.
fn whole_of(text: &str, entry: &str, seed: u64, within: f64) {
    let m = parse(text).unwrap_or_else(|e| panic!("{}", e.render("random", text)));
    let entry = m.named(entry).unwrap();
    for target in [Target::cpu(2), Target::wgpu(), Target::browser(), Target::cuda(90)] {
        for kernels in [&PLAIN[..], &KEPT[..]] {
            let context = Context { target: &target, kernels, tuned: None, ranks: 1 };
            let mut unit = passes(text, &m, entry, &context, seed);
            // A folded constant keeps its double in the text; a kernel holds it in its dtype.
            unit.module = sampled::rounded(unit.module);
            let program = compile(&m, entry, &context).unwrap_or_else(|e| panic!("{e}\n{text}"));
            let fault = |why: String| -> ! {
                panic!(
                    "{why}\n{text}\n{program}\n{}",
                    omchat_codegen::passes::run(Unit { module: m.clone(), entry }, &context, None).unwrap().module
                )
            };
            if let Some(why) = apart(&program) {
                fault(why);
            }
            let inputs = operands(&unit.module.function(unit.entry).param_types(), seed);
            let want = run(&unit.module, unit.entry, &inputs, Mode::Exact);
            match machine::run(&program, &unit.module, &inputs) {
                Ok(have) => {
                    if let Some(why) = differs(&have, &want, within) {
                        fault(why);
                    }
                }
                Err(why) => fault(why),
            }
        }
    }
}

/// Whether every value is a finite number. No model makes another, and devices need not agree on them.
fn finite(text: &str, seed: u64) -> bool {
    finite_of(text, "f", seed)
}

fn finite_of(text: &str, entry: &str, seed: u64) -> bool {
    let mut m = parse(text).unwrap_or_else(|e| panic!("{}", e.render("random", text)));
    let entry = m.named(entry).unwrap();
    let f = &mut m.functions[entry.0 as usize];
    f.params.fill(Role::Input);
    f.results = (0..f.values.len() as u32).map(Value).collect();
    let inputs = operands(&f.param_types(), seed);
    [Mode::Exact, Mode::Typed]
        .into_iter()
        .all(|mode| run(&m, entry, &inputs, mode).iter().all(|t| t.data.iter().all(|x| x.is_finite())))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400), failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn random_functions_keep_their_meaning(seed: u64) {
        let text = write::function(&mut Rng(seed));
        if finite(&text, seed) {
            whole(&text, seed, 1e-9);
        }
    }
}

/// The file tests of runs and of gradients hold what random functions once broke, and whole layers.
#[test]
fn file_tests_keep_their_meaning() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests");
    let mut ran = 0;
    let paths = ["run", "vjp", "fuzz"].iter().filter_map(|folder| std::fs::read_dir(root.join(folder)).ok()).flatten();
    for path in paths.map(|e| e.unwrap().path()) {
        let text = std::fs::read_to_string(&path).unwrap();
        let module = parse(&text).unwrap_or_else(|e| panic!("{}", e.render(&path.display().to_string(), &text)));
        if module.named("f").is_some() {
            whole(&text, 1, 1e-6);
            ran += 1;
        }
        if text.contains("; test vjp") {
            let (grads, _) = gradients::gradient(&module, omchat_ir::Differentiate::default()).unwrap();
            whole_of(&grads.to_string(), "f.grad", 1, 1e-6);
        }
    }
    assert!(ran > 10, "only {ran} files were found");
}
