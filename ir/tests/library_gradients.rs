//! Every function of the library against central differences in doubles; each `@f.vjp` text also against the rule
//! derived from the primitives. A function without a row in the table fails the test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::Rng;
use common::grad::{Case, check_at, draw};
use omchat_ir::text::instantiate_call;
use omchat_ir::{Bind, Differentiate, Dtype, Func, Function, Mode, Module, Scope, Tensor, Value, interpret, library};

/// Function, letters, ranks. Operands are drawn by their names, below.
const ROWS: &[(&str, &str, usize)] = &[
    ("@silu", "R=2 C=3", 1),
    ("@gelu", "R=2 C=3", 1),
    ("@gelu_tanh", "R=2 C=3", 1),
    ("@swiglu", "R=2 F=3", 1),
    ("@swiglu.vjp", "R=2 F=3", 1),
    ("@swiglu_mlp", "R=3 C=4 F=5", 1),
    ("@swiglu_mlp_tiled", "N=3 R=6 C=4 F=5", 1),
    ("@swiglu_mlp_tiled.vjp", "N=2 R=4 C=2 F=3", 1),
    ("@swiglu_mlp_backward", "R=2 C=2 F=3", 1),
    ("@gelu_mlp", "R=2 C=3 F=4 D=2", 1),
    ("@gelu_tanh_mlp", "R=2 C=3 F=4 D=2", 1),
    ("@linear", "R=2 C=3 F=4", 1),
    ("@softmax", "R=2 C=5", 1),
    ("@attention", "B=1 H=2 G=2 T=3 S=4 D=4", 1),
    ("@attention.vjp", "B=1 H=1 G=2 T=3 S=4 D=2", 1),
    ("@attention_delta", "B=1 H=2 G=2 T=3 D=4", 1),
    ("@attention_partial", "B=1 H=2 G=2 T=3 S=4 D=4", 1),
    ("@attention_partial.vjp", "B=1 H=1 G=2 T=3 S=4 D=2", 1),
    ("@attention_weights", "B=1 H=1 G=2 T=3 S=4 D=2", 1),
    ("@attention_dq", "B=1 H=1 G=2 T=3 S=4 D=2", 1),
    ("@attention_dkv", "B=1 H=1 G=2 T=3 S=4 D=2", 1),
    ("@attention_merge", "B=1 H=2 G=1 T=3 D=2", 1),
    ("@ring_attention", "R=3 B=1 H=1 G=2 T=2 S=2 D=2", 3),
    ("@ring_attention.vjp", "R=2 B=1 H=1 G=2 T=2 S=2 D=2", 2),
    ("@linear_cross_entropy", "T=4 C=3 V=7", 1),
    ("@linear_cross_entropy.vjp", "T=4 C=3 V=7", 1),
    ("@linear_cross_entropy_backward", "T=4 C=3 V=7", 1),
    ("@linear_cross_entropy_tiled", "N=3 T=6 C=3 V=7", 1),
    ("@linear_cross_entropy_tiled.vjp", "N=2 T=4 C=3 V=7", 1),
    ("@labelled", "T=4 V=7", 1),
    ("@masked_mean", "T=4 V=7", 1),
    ("@selective_loss", "T=6 K=3 V=7", 1),
    ("@rms_norm", "R=3 C=4", 1),
    ("@rms_norm.vjp", "R=3 C=4", 1),
    ("@layer_norm", "R=3 C=4", 1),
    ("@layer_norm.vjp", "R=3 C=4", 1),
    ("@rope", "B=1 H=2 G=2 T=3 P=2", 1),
    ("@rope.vjp", "B=1 H=2 G=1 T=3 P=2", 1),
    ("@adamw", "N=4", 1),
    ("@sum_squares", "N=4", 1),
    ("@clip_scale", "", 1),
    ("@accumulate", "N=4", 1),
    ("@weighted_loss", "T=4", 2),
    ("@count", "J=1 T=4", 2),
    ("@token_weights", "J=1 T=4 V=7", 2),
    ("@example_weights", "J=1 M=3 T=4 V=7", 2),
    ("@z_loss", "T=4", 1),
    ("@select_tokens", "J=1 T=4 V=7", 2),
    ("@selection_total", "T=4 V=7", 2),
    ("@keep_count", "", 1),
    ("@top_tokens", "J=1 T=4", 2),
    ("@kth_key", "J=1 T=4", 2),
    ("@kth_key_round", "J=1 T=4", 2),
    ("@order_key", "T=4", 1),
    ("@order_key_step", "T=4", 1),
    ("@two_pass_loss", "J=1 N=2 K=6 T=6 C=3 V=7", 2),
    ("@two_pass_loss.vjp", "J=1 N=2 K=3 T=6 C=2 V=7", 1),
    ("@compact", "N=2 K=3 T=4", 1),
];

/// Results behind a `stop_gradient`: they have a slope, and pass no cotangent on purpose.
const HELD: &[(&str, usize)] = &[("@two_pass_loss", 3)];

/// The letters of a row.
fn letters(name: &str, text: &str, element: Dtype) -> Vec<(String, Bind)> {
    let mut out: Vec<(String, Bind)> = text
        .split_whitespace()
        .map(|p| p.split_once('=').unwrap())
        .map(|(l, n)| (l.to_string(), Bind::Size(n.parse().unwrap())))
        .collect();
    let template = library::file().unwrap().functions.iter().find(|t| format!("@{}", t.name) == name);
    let template = template.unwrap_or_else(|| panic!("there is no {name}"));
    if template.letters.iter().any(|(l, _)| l == "E") {
        out.push(("E".into(), Bind::Dtype(element)));
    }
    out
}

/// An operand by its name: labels with some ignored, intervals with a query that sees nothing, positive scales.
fn operand(name: &str, of: &str, f: &Function, v: Value, rank: usize, rng: &mut Rng) -> Tensor {
    let ty = f.ty(v).clone();
    let n = ty.elements();
    let last = ty.shape.last().copied().unwrap_or(1);
    let place = |i: usize| (rank * last + i % last) as f64;
    let data: Vec<f64> = match name {
        "labels" => (0..n).map(|i| if i == 1 { -100.0 } else { rng.below(7) as f64 }).collect(),
        "lo" => (0..n).map(|i| if i % last + 1 == last { 1.0 } else { 0.0 }).collect(),
        "hi" => (0..n).map(|i| if i % last + 1 == last { 0.0 } else { place(i) + 1.0 }).collect(),
        "at" => (0..n).map(place).collect(),
        "eps" => vec![0.3; n],
        // Away from where the number kept steps.
        "ratio" => vec![0.57; n],
        "sign" => vec![1.0; n],
        _ if of == "@adamw" || of == "@clip_scale" => return draw(rng, &ty, (0.2, 0.9)),
        _ => return draw(rng, &ty, (-1.0, 1.0)),
    };
    Tensor::new(ty, data).unwrap()
}

struct Instance {
    module: Module,
    f: Func,
    of: Vec<usize>,
    wrt: Vec<Value>,
    operands: Vec<Vec<Tensor>>,
}

fn instance(name: &str, text: &str, ranks: usize, rng: &mut Rng) -> Instance {
    instance_of(Dtype::F32, name, text, ranks, rng)
}

fn instance_of(element: Dtype, name: &str, text: &str, ranks: usize, rng: &mut Rng) -> Instance {
    let scope = Scope::new(&[library::file().unwrap()]);
    let mut module = Module::default();
    let given = letters(name, text, element);
    let given: Vec<(&str, Bind)> = given.iter().map(|(l, b)| (l.as_str(), *b)).collect();
    let f = instantiate_call(&scope, &mut module, &name[1..], &given).unwrap_or_else(|e| panic!("{name}: {e}"));
    let function = module.function(f).clone();
    let float = |v: &Value| function.ty(*v).dtype.is_float();
    let one = |rank: usize, rng: &mut Rng| {
        function
            .param_values()
            .map(|v| operand(&function.value(v).name, name, &function, v, rank, rng))
            .collect::<Vec<_>>()
    };
    let operands = (0..ranks).map(|r| one(r, rng)).collect();
    let held = |i: usize| HELD.contains(&(name, i));
    let of = (0..function.results.len()).filter(|i| float(&function.results[*i]) && !held(*i)).collect();
    Instance { wrt: function.param_values().filter(float).collect(), module, f, of, operands }
}

#[test]
fn every_library_function_matches_central_differences() {
    let scope = Scope::new(&[library::file().unwrap()]);
    let names: Vec<String> = library::file().unwrap().functions.iter().map(|t| format!("@{}", t.name)).collect();
    for name in &names {
        assert!(ROWS.iter().any(|r| r.0 == name), "{name} has no row of letters in ROWS");
    }
    let mut checked = 0;
    for (i, (name, text, ranks)) in ROWS.iter().enumerate() {
        let mut rng = Rng(i as u64 + 5);
        let x = instance(name, text, *ranks, &mut rng);
        if x.of.is_empty() || x.wrt.is_empty() {
            println!("{name} has no float result: nothing to differentiate");
            continue;
        }
        let written = names.contains(&format!("{name}.vjp"));
        for scope in [None, Some(&scope)].into_iter().take(1 + usize::from(written)) {
            let case = Case { text: name, module: &x.module, f: x.f, ranks: *ranks, seed: 0, scope };
            checked += check_at(&case, &x.of, &x.wrt, x.operands.clone(), &mut rng);
        }
    }
    println!("{} functions, {checked} cotangent elements checked", ROWS.len());
    assert!(checked > 500);
}

#[test]
fn every_written_rule_equals_the_derived_one() {
    let scope = Scope::new(&[library::file().unwrap()]);
    let rules = ROWS.iter().filter(|r| ROWS.iter().any(|o| o.0 == format!("{}.vjp", r.0)));
    let mut count = 0;
    for (name, text, ranks) in rules {
        for seed in 0..4 {
            let mut rng = Rng(seed * 31 + 1);
            let x = instance(name, text, *ranks, &mut rng);
            let function = x.module.function(x.f);
            let cots: Vec<Vec<Tensor>> = (0..*ranks)
                .map(|_| x.of.iter().map(|i| draw(&mut rng, function.ty(function.results[*i]), (-1.0, 1.0))).collect())
                .collect();
            let run = |scope| {
                let mut module = x.module.clone();
                let grad = Differentiate { scope, keep: &[] }.run(&mut module, x.f, &x.of, &x.wrt).unwrap();
                let operands = x.operands.iter().zip(&cots).map(|(a, c)| a.iter().chain(c).cloned().collect());
                interpret(&module, grad, operands.collect(), Mode::Exact).unwrap()
            };
            let (derived, written) = (run(None), run(Some(&scope)));
            for (a, b) in derived.iter().flatten().zip(written.iter().flatten()) {
                let top = a.data.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
                common::near(name, &a.data, &b.data, 1e-10 * top);
            }
        }
        count += 1;
    }
    println!("{count} written rules");
    assert_eq!(count, library::file().unwrap().functions.iter().filter(|t| t.name.ends_with(".vjp")).count());
}

/// The length of a difference.
fn off(a: &[Vec<Tensor>], b: &[Vec<Tensor>], result: usize) -> f64 {
    let pairs = a.iter().zip(b).flat_map(|(a, b)| a[result].data.iter().zip(&b[result].data));
    pairs.map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt()
}

#[test]
fn a_written_rule_in_bf16_errs_at_most_twice_as_much_as_the_derived_one() {
    let scope = Scope::new(&[library::file().unwrap()]);
    let rules = ROWS.iter().filter(|r| ROWS.iter().any(|o| o.0 == format!("{}.vjp", r.0)));
    for (name, text, ranks) in rules {
        // Summed over seeds: one rounding more or less is luck.
        let mut errors: Vec<[f64; 3]> = vec![];
        for seed in 0..24 {
            let mut rng = Rng(seed * 17 + 3);
            let x = instance_of(Dtype::Bf16, name, text, *ranks, &mut rng);
            let function = x.module.function(x.f);
            let operands: Vec<Vec<Tensor>> = x
                .operands
                .iter()
                .map(|a| {
                    let cots = x.of.iter().map(|i| draw(&mut rng, function.ty(function.results[*i]), (-1.0, 1.0)));
                    a.iter().cloned().chain(cots).map(Tensor::rounded).collect()
                })
                .collect();
            let run = |scope, mode| {
                let mut module = x.module.clone();
                let grad = Differentiate { scope, keep: &[] }.run(&mut module, x.f, &x.of, &x.wrt).unwrap();
                interpret(&module, grad, operands.clone(), mode).unwrap()
            };
            let exact = run(None, Mode::Exact);
            let (derived, written) = (run(None, Mode::Typed), run(Some(&scope), Mode::Typed));
            errors.resize(x.wrt.len(), [0.0; 3]);
            for (k, e) in errors.iter_mut().enumerate() {
                let result = function.results.len() + k;
                e[0] += off(&derived, &exact, result);
                e[1] += off(&written, &exact, result);
                let size = exact.iter().flat_map(|r| &r[result].data).map(|x| x * x).sum::<f64>();
                e[2] += size.sqrt();
            }
        }
        for (k, [derived, written, size]) in errors.iter().enumerate() {
            println!("{name} cotangent {k}: written {:.2e}, derived {:.2e}", written / size, derived / size);
            // Rounding the result alone errs by about 2^-9 of it.
            let most = f64::max(2.0 * derived, size / 512.0);
            assert!(written <= &most, "{name} cotangent {k}: written rule errs by {written:e}, derived by {derived:e}");
        }
    }
}
