//! Cotangents against central differences in double precision: every op sample, every function of the library; and
//! every `@f.vjp` text against the rule derived from the primitives.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::f32s;
use common::grad::{Case, check};
use omchat_ir::{Differentiate, Func, Mode, Module, Op, Scope, Tensor, Value, interpret, library, parse};

#[test]
fn every_op_sample_matches_central_differences() {
    let mut checked = 0;
    // The difference quotient of `stop_gradient` is 1, on purpose.
    let samples = Op::samples().into_iter().filter(|t| !t.contains("stop_gradient"));
    for (i, text) in samples.enumerate() {
        let text = &text;
        let module = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let f = module.named("f").unwrap();
        let crosses = (text.contains("collective") || text.contains("all_reduce")) && !text.contains("parts=");
        let ranks = if crosses { 3 } else { 1 };
        for seed in 0..3 {
            checked += check(&Case { text, module: &module, f, ranks, seed: i as u64 * 7 + seed, scope: None });
        }
    }
    println!("{checked} cotangent elements checked");
    assert!(checked > 1000);
}

/// A function of a text, differentiated by all its float parameters.
fn grad_of(text: &str, keep: &[&str]) -> (Module, Func) {
    let mut module = parse(text).unwrap_or_else(|e| panic!("{}", e.render("text", text)));
    let f = module.named("f").unwrap();
    let function = module.function(f).clone();
    let wrt: Vec<Value> = function.param_values().filter(|v| function.ty(*v).dtype.is_float()).collect();
    let file = omchat_ir::text::parse_file(text).unwrap();
    let scope = Scope::new(&[library::file().unwrap(), &file]);
    let grad = Differentiate { scope: Some(&scope), keep }.run(&mut module, f, &[0], &wrt).unwrap();
    module.verify().unwrap_or_else(|e| panic!("{module}\n{e}"));
    (module, grad)
}

fn run_grad(text: &str, keep: &[&str], operands: &[Tensor]) -> Vec<Tensor> {
    let (module, grad) = grad_of(text, keep);
    interpret(&module, grad, vec![operands.to_vec()], Mode::Exact).unwrap().remove(0)
}

#[test]
fn stop_gradient_passes_nothing() {
    let text = "func @f(%x: f32[2]) -> f32[2] { %s = stop_gradient %x %y = mul %s, %x return %y }";
    let out = run_grad(text, &[], &[f32s(&[2], &[3.0, 5.0]), f32s(&[2], &[1.0, 1.0])]);
    assert_eq!(out[1].data, [3.0, 5.0]);
}

const LAYERS: &str = "
func @act(%x: f32[3]) -> (f32[3], f32[3]) { %e = exp %x %y = sin %e return %y, %e }
func @inner(%x: f32[3], %w: f32[3]) -> f32[3] { %a, %b = call @act(%x) %t = mul %a, %w %u = mul %t, %b return %u }
func @layer(%x: f32[3], %w: f32[3]) -> f32[3] { %u = call @inner(%x, %w) %y = add %x, %u return %y }
func @f(%x: f32[3], %w: f32[3], %v: f32[3]) -> f32[3] { %y = call @layer(%x, %w) REMAT %z = call @layer(%y, %v) REMAT return %z }
";

#[test]
fn a_shared_function_is_differentiated_once_and_remat_changes_no_number() {
    let operands: Vec<Tensor> =
        [[0.3, -0.2, 0.5], [0.7, 0.1, -0.4], [0.2, 0.9, 0.6], [1.0, -2.0, 0.5]].map(|x| f32s(&[3], &x)).to_vec();
    let plain = LAYERS.replace("REMAT", "");
    let want = run_grad(&plain, &[], &operands);
    let (module, _) = grad_of(&plain, &[]);
    let count = |m: &Module, part: &str| m.functions.iter().filter(|f| f.name.starts_with(part)).count();
    assert_eq!(count(&module, "layer.bwd"), 1, "{module}");
    let text = LAYERS.replace("REMAT", "remat");
    for keep in [&[][..], &["act"], &["inner"], &["act", "inner"]] {
        let (module, _) = grad_of(&text, keep);
        assert_eq!(count(&module, "layer.remat"), 1, "{module}");
        assert_eq!(count(&module, "layer.save"), usize::from(!keep.is_empty()), "{module}");
        let have = run_grad(&text, keep, &operands);
        for (a, b) in want.iter().zip(&have) {
            assert_eq!(a.data, b.data, "keep {keep:?}");
        }
    }
}
