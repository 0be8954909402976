//! After each pass a module prints, parses, verifies and means the same: over every op sample and every
//! function of the library, on random inputs.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_codegen::{Context, Error, Implements, Kernel, PIPELINE, Refusal, Schedule, Target, Unit, Work, compile};
use omchat_ir::{Dtype, Mode, Module, Op, Tensor, Type, interpret, parse};

fn random(ty: &Type, seed: &mut u64) -> Tensor {
    let mut next = || {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) as f64 / f64::from(1u32 << 31)
    };
    let data = (0..ty.elements())
        .map(|_| match ty.dtype {
            Dtype::I32 => (next() * 9.0).floor() - 2.0,
            Dtype::Bool => f64::from(u8::from(next() > 0.5)),
            _ => next() * 2.0 + 0.1,
        })
        .collect();
    Tensor::new(ty.clone(), data).unwrap().rounded()
}

const LIBRARY: &str = r#"
func @norms(%x: bf16[5, 6], %w: bf16[6]) -> (bf16[5, 6], bf16[5, 6]) {
    %n = call @rms_norm(%x, %w, 1e-6)
    %l = call @layer_norm(%n, %w, %w, 1e-5)
    return %n, %l
}
func @block(%x: f32[5, 6], %w: f32[6], %gate: f32[7, 6], %down: f32[6, 7], %b: f32[7]) -> (f32[5, 6], f32[5, 7], f32[5, 6]) {
    %n = call @rms_norm(%x, %w, 1e-6)
    %m = call @swiglu_mlp(%n, %gate, %gate, %down)
    %y = add %x, %m
    %l = call @linear(%y, %gate, %b)
    return %y, %l, %y
}
func @attend(%q: f32[1, 2, 3, 5, 4], %k: f32[1, 2, 7, 4], %lo: i32[1, 5], %hi: i32[1, 5], %at: i32[1, 7], %cos: f32[5, 2], %sin: f32[5, 2]) -> (f32[1, 2, 3, 5, 4], f32[1, 2, 3, 5]) {
    %r = call @rope(%q, %cos, %sin)
    %o, %l = call @attention(%r, %k, %k, %lo, %hi, %at)
    return %o, %l
}
func @losses(%x: f32[5, 6], %big: f32[9, 6], %labels: i32[5], %ref: f32[5]) -> (f32[5], f32, f32) {
    %nll, %lse = call @linear_cross_entropy(%x, %big, %labels)
    %sl, %keep = call @selective_loss[K=2, V=9](%nll, %ref, %labels)
    %mean = call @masked_mean[V=9](%nll, %labels)
    return %nll, %sl, %mean
}
func @selected(%x: f32[6, 4], %w: f32[9, 4], %labels: i32[6], %ref: f32[6], %sign: f32, %ratio: f32, %z: f32, %whole: bool) -> (f32, bool[6], i32, f32) {
    %at = iota 6
    %part, %keep, %missed, %lse, %total, %nll = call @two_pass_loss[J=1, N=3, K=4](%x, %w, %labels, %ref, %at, %sign, %ratio, %z, %whole)
    return %part, %keep, %missed, %total
}
func @places(%holds: bool[12]) -> (i32[6], i32[12]) {
    %ids, %slot = call @compact[N=3, K=6](%holds)
    return %ids, %slot
}
func @cache(%part: f32[2, 3], %start: i32, %other: f32[8, 3], state %c: f32[8, 3]) -> (f32[8, 3], f32[8, 3]) {
    %n = update_slice %c, %part, %start axis=0
    %y = mul %n, %other
    return %y, %n
}
func @views(%x: f32[4, 6], %y: f32[6, 4]) -> (f32[6, 4], f32[24], f32[4, 3]) {
    %t = rearrange %x "a b -> b a"
    %s = add %t, %y
    %f = rearrange %s "a b -> (a b)"
    %h = slice %x axis=1 start=1 end=4
    return %s, %f, %h
}
func @leaves(%x: f32[4, 6]) -> (f32[2, 4, 6], f32[3, 6], i32[3, 4], f32[12], f32[4, 12]) {
    %c = constant.f32 2
    %s = rearrange %c "-> n r c" n=2 r=4 c=6
    %y = mul %s, %x "n r c, r c -> n r c"
    %i = iota 4
    %p = slice %i axis=0 start=1 end=4
    %g = gather %x, %p "r c, t -> t c"
    %m = rearrange %i "t -> n t" n=3
    %q = slice %x axis=1 start=2 end=5
    %r = rearrange %q "a b -> (b a)"
    %j = concat %q, %x, %q axis=1
    return %y, %g, %m, %r, %j
}"#;

fn check(module: &Module, entry: omchat_ir::Func, label: &str, target: &Target, seed: &mut u64) {
    let f = module.function(entry);
    let inputs: Vec<Tensor> = f.param_types().iter().map(|t| random(t, seed)).collect();
    let want = interpret(module, entry, vec![inputs.clone()], Mode::Exact).unwrap();
    let context = Context { target, kernels: &[], tuned: None, ranks: 1 };
    let mut unit = Unit { module: module.clone(), entry };
    for pass in PIPELINE {
        unit = (pass.run)(unit, &context).unwrap();
        unit.module.verify().unwrap_or_else(|e| panic!("{label} after {}: {e}\n{}", pass.name, unit.module));
        let printed = unit.module.to_string();
        let again = parse(&printed)
            .unwrap_or_else(|e| panic!("{label} after {}:\n{}\n{printed}", pass.name, e.render("dump", &printed)));
        assert!(again == unit.module, "{label} after {} does not print itself:\n{printed}", pass.name);
        let have = interpret(&unit.module, unit.entry, vec![inputs.clone()], Mode::Exact).unwrap();
        for (h, w) in have[0].iter().zip(&want[0]) {
            let top = w.data.iter().fold(1e-30f64, |a, b| a.max(b.abs()));
            let off = h.data.iter().zip(&w.data).fold(0f64, |a, (x, y)| a.max((x - y).abs()));
            assert!(off <= 1e-12 * top, "{label} after {}: off by {off} of {top}\n{}", pass.name, unit.module);
        }
    }
    let entry = unit.module.function(unit.entry);
    assert!(
        entry.nodes.iter().all(|n| matches!(n.action, omchat_ir::Action::Call { .. })),
        "{label}: the entry is not calls only"
    );
}

#[test]
fn passes_keep_the_meaning() {
    let mut seed = 7;
    for target in [Target::cpu(2), Target::cuda(90)] {
        for text in Op::samples() {
            let m = parse(&text).unwrap();
            check(&m, m.named("f").unwrap(), &text, &target, &mut seed);
        }
        let m = parse(LIBRARY).unwrap_or_else(|e| panic!("{}", e.render("library", LIBRARY)));
        for name in ["norms", "block", "attend", "losses", "selected", "places", "cache", "views", "leaves"] {
            check(&m, m.named(name).unwrap(), name, &target, &mut seed);
        }
    }
}

#[test]
fn pointwise_work_is_one_launch() {
    let text = "func @f(%x: f32[5, 6], %b: f32[6]) -> f32[5, 6] {
        %a = add %x, %b \"r c, c -> r c\"
        %g = logistic %a
        %m = mul %a, %g
        %y = sub %m, %x
        return %y
    }";
    let m = parse(text).unwrap();
    let target = Target::cpu(2);
    let unit = omchat_codegen::passes::run(
        Unit { entry: m.named("f").unwrap(), module: m },
        &Context { target: &target, kernels: &[], tuned: None, ranks: 1 },
        None,
    )
    .unwrap();
    assert_eq!(unit.module.function(unit.entry).nodes.len(), 1, "{}", unit.module);
}

#[test]
fn selection_holds_no_table() {
    // 97 tokens: whatever lies in memory is a token's, an edge's or a scalar, never 256 x 97.
    let text = "func @f(%loss: f32[97], %ref: f32[97], %labels: i32[97], %at: i32[97]) -> bool[97] {
        %keep = call @select_tokens[J=1, V=9](%loss, %ref, %labels, %at, 1, 0.6)
        return %keep
    }
    func @g(%holds: bool[96]) -> (i32[40], i32[96]) {
        %ids, %slot = call @compact[N=8, K=40](%holds)
        return %ids, %slot
    }";
    let m = parse(text).unwrap();
    for target in [Target::cpu(2), Target::cuda(90)] {
        for (name, most) in [("f", 256), ("g", 96)] {
            let unit = omchat_codegen::passes::run(
                Unit { entry: m.named(name).unwrap(), module: m.clone() },
                &Context { target: &target, kernels: &[], tuned: None, ranks: 1 },
                None,
            )
            .unwrap();
            let entry = unit.module.function(unit.entry);
            let held = entry.values.iter().map(|v| v.ty.elements()).max().unwrap();
            assert!(held <= most, "{held} elements in one value:\n{}", unit.module);
        }
    }
}

#[test]
fn rope_is_one_launch_and_rms_norm_two() {
    let m = parse(LIBRARY).unwrap();
    let target = Target::cpu(2);
    let launches = |name: &str| {
        let unit = omchat_codegen::passes::run(
            Unit { entry: m.named(name).unwrap(), module: m.clone() },
            &Context { target: &target, kernels: &[], tuned: None, ranks: 1 },
            None,
        )
        .unwrap();
        (unit.module.function(unit.entry).nodes.len(), unit.module.to_string())
    };
    let (n, text) = launches("norms");
    assert!(n <= 6, "{text}");
    let rope = parse("func @r(%q: f32[1, 2, 3, 5, 4], %cos: f32[5, 2], %sin: f32[5, 2]) -> f32[1, 2, 3, 5, 4] { %r = call @rope(%q, %cos, %sin) return %r }").unwrap();
    let unit = omchat_codegen::passes::run(
        Unit { entry: rope.named("r").unwrap(), module: rope },
        &Context { target: &target, kernels: &[], tuned: None, ranks: 1 },
        None,
    )
    .unwrap();
    assert_eq!(unit.module.function(unit.entry).nodes.len(), 1, "{}", unit.module);
}

#[test]
fn the_hook_sees_each_pass_once() {
    let m = parse(LIBRARY).unwrap();
    let target = Target::cpu(2);
    let context = Context { target: &target, kernels: &[], tuned: None, ranks: 1 };
    let unit = Unit { entry: m.named("norms").unwrap(), module: m };
    for to in [None, Some("cse")] {
        let mut seen = vec![];
        let out =
            omchat_codegen::passes::run_with(unit.clone(), &context, to, &mut |p, u| seen.push((p.name, u.clone())))
                .unwrap();
        let end = to.map_or(PIPELINE.len(), |t| PIPELINE.iter().position(|p| p.name == t).unwrap() + 1);
        let names: Vec<&str> = PIPELINE[..end].iter().map(|p| p.name).collect();
        assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), names);
        assert!(seen.last().unwrap().1 == out, "the last unit seen is not the one that is returned");
        assert!(seen.windows(2).any(|w| w[0].1 != w[1].1), "no pass changed anything");
    }
}

/// Each rule of `canonicalize` is shown by a file test of its name, and the file needs the rule.
#[test]
fn each_rule_has_a_file_that_needs_it() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests/pass/canonicalize");
    let mut idle = vec![];
    for rule in omchat_codegen::passes::RULES {
        let path = dir.join(format!("{}.oir", rule.name));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{} ({}): {e}", path.display(), rule.doc));
        let module = parse(&text).unwrap();
        let entry = module.named("f").unwrap();
        let run = |rules: &[omchat_codegen::passes::Rule]| {
            omchat_codegen::passes::canonicalize(Unit { module: module.clone(), entry }, rules).module
        };
        let without: Vec<_> = omchat_codegen::passes::RULES.iter().copied().filter(|r| r.name != rule.name).collect();
        if run(omchat_codegen::passes::RULES) == run(&without) {
            idle.push(rule.name);
        }
    }
    assert!(idle.is_empty(), "files that need no rule of their name: {idle:?}");
}

/// A kernel that takes whatever it says it implements.
struct Takes(Implements);

impl Kernel for Takes {
    fn name(&self) -> &'static str {
        "test.takes"
    }

    fn implements(&self) -> Implements {
        self.0
    }

    fn schedules(&self, _: &Work, _: &Target) -> Result<Vec<Schedule>, Refusal> {
        Ok(vec![Schedule::default()])
    }
}

#[test]
fn a_launch_that_binds_too_many_buffers_is_a_limit() {
    let m = parse(LIBRARY).unwrap();
    let attend = m.named("attend").unwrap();
    let compiled = |max_bindings: usize| {
        let target = Target { max_bindings, ..Target::wgpu() };
        let kernels: [&dyn Kernel; 2] = [&Takes(Implements::Functions(&["attention"])), &Takes(Implements::Nest)];
        compile(&m, attend, &Context { target: &target, kernels: &kernels, tuned: None, ranks: 1 })
    };
    let error = compiled(8).unwrap_err();
    assert!(matches!(error, Error::Limit { name: "buffers a kernel", need: 10, have: 8, .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "@attention needs 10 buffers a kernel, wgpu allows 8: take a device that binds more at once, or the CPU"
    );
    compiled(10).unwrap();
    // A map of one operand binds four.
    let error = compiled(3).unwrap_err();
    assert!(matches!(error, Error::Limit { name: "buffers a kernel", have: 3, .. }), "{error:?}");
}
