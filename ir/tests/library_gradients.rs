//! Every function of the library against central differences in doubles; each `@f.vjp` text also against the rule
//! derived from the primitives. A function without a row in the table fails the test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::Rng;
use common::grad::{Case, check_at, draw};
use common::rows::{LIBRARY as ROWS, letters, operand};
use omchat_ir::text::instantiate_call;
use omchat_ir::{Bind, Differentiate, Dtype, Func, Mode, Module, Scope, Tensor, Value, interpret, library};

/// Results behind a `stop_gradient`: they have a slope, and pass no cotangent on purpose.
const HELD: &[(&str, usize)] = &[("@two_pass_loss", 3), ("@two_pass_loss", 5)];

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
    let given = letters(&library::file().unwrap().functions, name, text, element);
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
