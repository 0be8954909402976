//! After each pass a module means what it meant: every function of the library and every block of the model, in f32 and
//! bf16, for every target, with the kernels that there are and with none. Passes that claim it change nothing twice.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../model/tests/blocks/mod.rs"]
mod block_rows;
#[path = "../ir/tests/common/mod.rs"]
mod common;

use block_rows::BLOCKS;
use common::Rng;
use common::rows::{LIBRARY, letters, operand};
use omchat_codegen::passes::{PIPELINE, run_with};
use omchat_codegen::{Context, Kernel, Target, Unit};
use omchat_ir::text::{Template, instantiate_call};
use omchat_ir::{Bind, Dtype, Func, Mode, Module, Tensor, interpret, library};
use omchat_model::graph::{blocks, scope};

/// Passes that find nothing to do in what they made.
const IDEMPOTENT: &[&str] = &["legalize", "inline", "canonicalize", "cse", "dce"];

struct Instance {
    name: String,
    module: Module,
    f: Func,
    operands: Vec<Vec<Tensor>>,
}

fn instance(of: &[Template], row: &(&str, &str, usize), element: Dtype, seed: u64) -> Instance {
    let (name, text, ranks) = row;
    let given = letters(of, name, text, element);
    let given: Vec<(&str, Bind)> = given.iter().map(|(l, b)| (l.as_str(), *b)).collect();
    let mut module = Module::default();
    let f = instantiate_call(&scope().unwrap(), &mut module, &name[1..], &given).unwrap();
    let (function, mut rng) = (module.function(f).clone(), Rng(seed));
    let mut one = |rank: usize| -> Vec<Tensor> {
        let params = function.param_values();
        params.map(|v| operand(&function.value(v).name, name, &function, v, rank, &mut rng).rounded()).collect()
    };
    let operands = (0..*ranks).map(&mut one).collect();
    Instance { name: format!("{name} in {element}"), module, f, operands }
}

/// The results on every rank; operands take the types that a pass left.
fn meaning(unit: &Unit, operands: &[Vec<Tensor>], mode: Mode) -> Vec<Vec<Tensor>> {
    let types = unit.module.function(unit.entry).param_types();
    let typed = |x: &Vec<Tensor>| -> Vec<Tensor> {
        x.iter().zip(&types).map(|(t, ty)| Tensor { ty: ty.clone(), data: t.data.clone() }).collect()
    };
    interpret(&unit.module, unit.entry, operands.iter().map(typed).collect(), mode).unwrap()
}

/// The largest difference, as a share of each result's largest number.
fn apart(a: &[Vec<Tensor>], b: &[Vec<Tensor>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs
        .map(|(x, y)| {
            let top = y.data.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            assert_eq!(x.data.len(), y.data.len());
            x.data.iter().zip(&y.data).map(|(p, q)| (p - q).abs() / top).fold(0.0, f64::max)
        })
        .fold(0.0, f64::max)
}

fn check(x: &Instance, target: &Target, kernels: &[&dyn Kernel]) -> usize {
    let context = Context { target, kernels, tuned: None, ranks: 1 };
    let unit = Unit { module: x.module.clone(), entry: x.f };
    let exact = meaning(&unit, &x.operands, Mode::Exact);
    let typed = meaning(&unit, &x.operands, Mode::Typed);
    let single =
        unit.module.function(unit.entry).values.iter().all(|v| !matches!(v.ty.dtype, Dtype::Bf16 | Dtype::F16));
    let mut checks = 0;
    run_with(unit, &context, None, &mut |pass, unit| {
        let fault = |what: String| -> ! {
            panic!("{} for {} after {}: {what}\n{}", x.name, target.name, pass.name, unit.module)
        };
        let printed = unit.module.to_string();
        if omchat_ir::parse(&printed).as_ref() != Ok(&unit.module) {
            fault("it prints another module".into());
        }
        let off = apart(&meaning(unit, &x.operands, Mode::Exact), &exact);
        if off > 1e-12 {
            fault(format!("{off:e} off in doubles"));
        }
        // Narrow types are rounded elsewhere once they are widened; in f32 the two readings stay near.
        let off = if single { apart(&meaning(unit, &x.operands, Mode::Typed), &typed) } else { 0.0 };
        if off > 1e-5 {
            fault(format!("{off:e} off in f32"));
        }
        if IDEMPOTENT.contains(&pass.name) && (pass.run)(unit.clone(), &context).unwrap() != *unit {
            fault("a second run changes it".into());
        }
        checks += 1;
    })
    .unwrap_or_else(|e| panic!("{} for {}: {e}", x.name, target.name));
    checks
}

#[test]
fn every_pass_keeps_every_function() {
    let real: Vec<&dyn Kernel> = omchat_kernels::LIST.iter().map(|k| *k as &dyn Kernel).collect();
    let library = &library::file().unwrap().functions;
    let blocks = &blocks().unwrap().functions;
    for (all, rows) in [(library, LIBRARY), (blocks, BLOCKS)] {
        let missing = all.iter().find(|t| !rows.iter().any(|r| r.0[1..] == t.name));
        assert!(missing.is_none(), "@{} has no row", missing.map_or("", |t| t.name.as_str()));
    }
    let (mut functions, mut checks) = (0, 0);
    for (all, rows) in [(library, LIBRARY), (blocks, BLOCKS)] {
        for (i, row) in rows.iter().enumerate() {
            for element in [Dtype::F32, Dtype::Bf16] {
                let x = instance(all, row, element, i as u64 * 13 + 1);
                functions += 1;
                for target in [Target::cpu(2), Target::wgpu(), Target::cuda(90)] {
                    for kernels in [&[][..], &real] {
                        checks += check(&x, &target, kernels);
                    }
                }
            }
        }
    }
    println!("{functions} instances, {checks} passes of {} keep them", PIPELINE.len());
}
