//! Every block of the model against central differences in doubles, with the written rules and with the derived ones.
//! A block without a row in the table fails the test.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../ir/tests/common/mod.rs"]
mod common;

use common::Rng;
use common::grad::{Case, check_at, draw};
use omchat_ir::text::instantiate_call;
use omchat_ir::{Bind, Dtype, Function, Module, Tensor, Value};
use omchat_model::graph::{blocks, scope};

/// Block, letters, ranks. Operands are drawn by their names, below.
const ROWS: &[(&str, &str, usize)] = &[
    ("@add_features", "T=3 C=4", 1),
    ("@logits", "T=3 C=4 V=5", 1),
    ("@qkv", "B=1 T=2 C=3 H=2 G=2 D=2", 1),
    ("@qkv_biased", "B=1 T=2 C=3 H=2 G=2 D=2", 1),
    ("@cached_attention", "B=1 H=1 G=2 T=2 S=4 D=4 P=2", 1),
    ("@turned_ring_attention", "R=2 B=1 H=1 G=2 T=2 D=2 P=1", 2),
    ("@decoder_tail", "B=1 T=2 C=3 H=1 G=2 D=2 F=4", 1),
    ("@decoder_tail_tiled", "N=2 B=1 T=4 C=3 H=1 G=2 D=2 F=4", 1),
    ("@qwen2_cached_layer", "B=1 T=2 C=3 H=1 G=2 D=2 P=1 S=3 F=4", 1),
    ("@llama_cached_layer", "B=1 T=2 C=3 H=1 G=2 D=2 P=1 S=3 F=4", 1),
    ("@qwen2_ring_layer", "R=2 B=1 T=2 C=2 H=1 G=2 D=2 P=1 F=3", 2),
    ("@qwen2_ring_layer_tiled", "R=2 N=2 B=1 T=2 C=2 H=1 G=2 D=2 P=1 F=3", 2),
    ("@llama_ring_layer", "R=3 B=1 T=1 C=2 H=1 G=2 D=2 P=1 F=3", 3),
    ("@llama_ring_layer_tiled", "R=2 N=2 B=1 T=2 C=2 H=1 G=2 D=2 P=1 F=3", 2),
    ("@patch_embed", "B=2 Y=2 P=1 C=3", 1),
    ("@class_and_position", "B=2 T=3 C=2", 1),
    ("@position", "B=2 T=3 C=2", 1),
    ("@whole_tile", "B=2 T=3", 1),
    ("@split_heads", "B=1 H=2 T=3 D=2", 1),
    ("@fused_qkv", "B=2 T=2 C=3 H=2 D=2", 1),
    ("@fused_qkv_biased", "B=2 T=2 C=3 H=2 D=2", 1),
    ("@part", "N=1 A=3 C=2", 1),
    ("@normed_heads", "B=2 T=2 C=4 H=2 D=2", 1),
    ("@fused_qkv_normed", "B=2 T=2 C=4 H=2 D=2", 1),
    ("@fused_qkv_biased_normed", "B=2 T=2 C=4 H=2 D=2", 1),
    ("@split_qkv", "B=2 T=2 C=3 H=2 D=2", 1),
    ("@tile_attention", "B=2 T=3 C=2 H=2 D=2", 1),
    ("@scaled_residual", "A=3 C=4", 1),
    ("@residual", "A=3 C=4", 1),
    ("@drop_first", "B=2 T=3 C=2", 1),
    ("@projector", "A=3 C=2 F=4", 1),
];

fn letters(name: &str, text: &str) -> Vec<(String, Bind)> {
    let pairs = text.split_whitespace().map(|p| p.split_once('=').unwrap());
    let mut out: Vec<(String, Bind)> = pairs.map(|(l, n)| (l.to_string(), Bind::Size(n.parse().unwrap()))).collect();
    let template = blocks().unwrap().functions.iter().find(|t| t.name == name[1..]);
    let template = template.unwrap_or_else(|| panic!("there is no {name}"));
    if template.letters.iter().any(|(l, _)| l == "E") {
        out.push(("E".into(), Bind::Dtype(Dtype::F32)));
    }
    out
}

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
        let given = letters(name, text);
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
