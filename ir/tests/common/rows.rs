//! Small instances of every function of the library: letters, ranks, and operands by their names.

use super::Rng;
use super::grad::draw;
use omchat_ir::text::Template;
use omchat_ir::{Bind, Dtype, Function, Tensor, Value};

/// Function, letters, ranks. Operands are drawn by their names, below.
pub const LIBRARY: &[(&str, &str, usize)] = &[
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
    ("@attention_onto", "B=1 H=2 G=2 T=3 S=4 D=4", 1),
    ("@attention_weights", "B=1 H=1 G=2 T=3 S=4 D=2", 1),
    ("@attention_dq", "B=1 H=1 G=2 T=3 S=4 D=2", 1),
    ("@attention_dkv", "B=1 H=1 G=2 T=3 S=4 D=2", 1),
    ("@attention_merge", "B=1 H=2 G=1 T=3 D=2", 1),
    ("@ring_attention", "R=3 B=1 H=1 G=2 T=2 S=2 D=2", 3),
    ("@ring_attention.vjp", "R=2 B=1 H=1 G=2 T=2 S=2 D=2", 2),
    ("@ring_attention_reach", "R=3 B=1 H=1 G=2 T=2 S=2 D=2", 3),
    ("@ring_attention_reach.vjp", "R=2 B=1 H=1 G=2 T=2 S=2 D=2", 2),
    ("@ring_turn", "J=1 R=3 B=1 H=1 G=1 T=2 S=2 D=2", 3),
    ("@ring_hop", "J=1 R=3 B=1 H=1 G=1 T=2 S=2 D=2", 3),
    ("@ring_pass", "J=1 R=3 B=1 H=1 S=2 D=2", 6),
    ("@ring_reach", "R=3 C=2 B=1 T=4", 3),
    ("@chunk_max", "C=2 B=1 T=4", 1),
    ("@chunk_min", "C=2 B=1 T=4", 1),
    ("@ring_turn_backward", "J=1 R=2 B=1 H=1 G=1 T=2 S=2 D=2", 2),
    ("@ring_hop_backward", "J=1 R=2 B=1 H=1 G=1 T=2 S=2 D=2", 2),
    ("@ring_onto_backward", "R=2 B=1 H=1 G=1 T=2 S=2 D=2", 2),
    ("@spread_attention", "R=3 B=1 H=1 G=2 T=2 S=2 D=2", 3),
    ("@attention_join", "R=3 B=1 H=2 G=1 T=3 D=2", 1),
    ("@query_ring_attention", "R=3 B=1 H=1 G=2 T=2 S=2 D=2", 3),
    ("@visit", "N=1 R=3 B=1 T=2", 1),
    ("@partial_row", "B=1 H=1 G=2 T=2 D=3", 1),
    ("@attention_home", "B=1 H=1 G=2 T=2 D=3 X=4", 1),
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
    ("@rms_norm_dx", "R=3 C=4", 1),
    ("@layer_norm", "R=3 C=4", 1),
    ("@layer_norm.vjp", "R=3 C=4", 1),
    ("@layer_norm_dx", "R=3 C=4", 1),
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
    ("@draw", "J=1 K=3 N=1 B=1 T=2 V=7", 1),
    ("@top_p_bar", "T=2 V=7", 1),
    ("@top_p_round", "T=2 V=7", 1),
    ("@first_over", "B=1 T=2 V=7", 1),
    ("@sums_before", "T=2 B=5", 1),
    ("@two_pass_loss", "J=1 N=2 K=6 T=6 C=3 V=7", 2),
    ("@two_pass_loss.vjp", "J=1 N=2 K=3 T=6 C=2 V=7", 1),
    ("@compact", "N=2 K=3 T=4", 1),
];

/// The letters of a row.
pub fn letters(of: &[Template], name: &str, text: &str, element: Dtype) -> Vec<(String, Bind)> {
    let mut out: Vec<(String, Bind)> = text
        .split_whitespace()
        .map(|p| p.split_once('=').unwrap())
        .map(|(l, n)| (l.to_string(), Bind::Size(n.parse().unwrap())))
        .collect();
    let template = of.iter().find(|t| format!("@{}", t.name) == name);
    let template = template.unwrap_or_else(|| panic!("there is no {name}"));
    if template.letters.iter().any(|(l, _)| l == "E") {
        out.push(("E".into(), Bind::Dtype(element)));
    }
    out
}

/// An operand by its name: labels with some ignored, intervals with a query that sees nothing, positive scales.
pub fn operand(name: &str, of: &str, f: &Function, v: Value, rank: usize, rng: &mut Rng) -> Tensor {
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
        // At least as far as keys are seen; the first two ranks' of a ring of three, where it is no whole ring's.
        "reach" if of == "@ring_pass" => vec![(rank % 3) as f64 - 1.0; n],
        "reach" => vec![2.0; n],
        "hop" => vec![1.0; n],
        "start" => vec![1.0; n],
        // Away from where the number kept steps.
        "ratio" => vec![0.57; n],
        "sign" => vec![1.0; n],
        _ if of == "@adamw" || of == "@clip_scale" => return draw(rng, &ty, (0.2, 0.9)),
        _ => return draw(rng, &ty, (-1.0, 1.0)),
    };
    Tensor::new(ty, data).unwrap()
}
