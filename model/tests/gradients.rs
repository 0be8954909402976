//! Every block of the model against central differences in doubles, with the written rules and with the derived ones.
//! A block without a row in the table fails the test.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "blocks/mod.rs"]
mod block_rows;
#[path = "../../ir/tests/common/mod.rs"]
mod common;

use block_rows::BLOCKS as ROWS;
use common::Rng;
use common::grad::{Case, check_at, draw};
use common::rows::letters;
use omchat_ir::text::instantiate_call;
use omchat_ir::{Bind, Dtype, Function, Module, Tensor, Value};
use omchat_model::graph::{blocks, scope};

/// An operand by its name: each query sees what stands up to it, the last one nothing.
fn operand(f: &Function, v: Value, rank: usize, rng: &mut Rng) -> Tensor {
    let ty = f.ty(v).clone();
    let (n, last) = (ty.elements(), ty.shape.last().copied().unwrap_or(1));
    let place = |i: usize| (rank * last + i % last) as f64;
    let data: Vec<f64> = match f.value(v).name.as_str() {
        "lo" => vec![0.0; n],
        "hi" => (0..n).map(|i| if i % last + 1 == last && last > 1 { -1.0 } else { place(i) }).collect(),
        "at" => (0..n).map(place).collect(),
        "start" => vec![1.0; n],
        // Every rank's keys are seen by those after it, of which there are two at most.
        "reach" => vec![2.0; n],
        "eps" => vec![0.3; n],
        _ => return draw(rng, &ty, (-1.0, 1.0)),
    };
    Tensor::new(ty, data).unwrap()
}

#[test]
fn every_block_matches_central_differences() {
    let scope = scope().unwrap();
    for t in &blocks().unwrap().functions {
        assert!(ROWS.iter().any(|r| r.0[1..] == t.name), "@{} has no row of letters in ROWS", t.name);
    }
    let mut checked = 0;
    for (i, (name, text, ranks)) in ROWS.iter().enumerate() {
        let mut rng = Rng(i as u64 + 5);
        let mut module = Module::default();
        let given = letters(&blocks().unwrap().functions, name, text, Dtype::F32);
        let given: Vec<(&str, Bind)> = given.iter().map(|(l, b)| (l.as_str(), *b)).collect();
        let f = instantiate_call(&scope, &mut module, &name[1..], &given).unwrap_or_else(|e| panic!("{name}: {e}"));
        let function = module.function(f).clone();
        let float = |v: &Value| function.ty(*v).dtype.is_float();
        let of: Vec<usize> = (0..function.results.len()).filter(|i| float(&function.results[*i])).collect();
        let wrt: Vec<Value> = function.param_values().filter(float).collect();
        if of.is_empty() || wrt.is_empty() {
            println!("{name} has no float result: nothing to differentiate");
            continue;
        }
        let one =
            |rank: usize, rng: &mut Rng| function.param_values().map(|v| operand(&function, v, rank, rng)).collect();
        let operands: Vec<Vec<Tensor>> = (0..*ranks).map(|r| one(r, &mut rng)).collect();
        for scope in [None, Some(&scope)] {
            let case = Case { text: name, module: &module, f, ranks: *ranks, seed: 0, scope };
            checked += check_at(&case, &of, &wrt, operands.clone(), &mut rng);
        }
    }
    println!("{} blocks, {checked} cotangent elements checked", ROWS.len());
    assert!(checked > 1000);
}
