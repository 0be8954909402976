//! Every op sample and every library function prints, parses back, verifies and runs.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_ir::{Mode, Op, Tensor, interpret, parse};

#[test]
fn samples_round_trip_and_run() {
    for text in Op::samples() {
        let m = parse(&text).unwrap_or_else(|e| panic!("{text}\n{}", e.render("sample", &text)));
        let again = parse(&m.to_string()).unwrap_or_else(|e| panic!("{m}\n{}", e.render("printed", &m.to_string())));
        assert_eq!(again, m, "{text}");
        m.verify().unwrap();
        let f = m.named("f").unwrap();
        let x: Vec<Tensor> = m.function(f).param_types().into_iter().map(|t| Tensor::full(t, 1.0)).collect();
        let out = interpret(&m, f, vec![x], Mode::Typed).unwrap();
        assert_eq!(out[0][0].ty, m.function(f).result_types()[0]);
    }
}

#[test]
fn library_instances_round_trip() {
    let text = "
func @main(%q: bf16[1, 2, 3, 5, 4], %k: bf16[1, 2, 7, 4], %v: bf16[1, 2, 7, 4], %lo: i32[1, 5], %hi: i32[1, 5], %at: i32[1, 7],
           %x: f32[5, 6], %w: f32[6], %big: f32[9, 6], %labels: i32[5], %ref: f32[5], %cos: f32[5, 2], %sin: f32[5, 2]) -> (bf16[1, 2, 3, 5, 4], f32) {
    %r = call @rope(%q, %cos, %sin)
    %o, %l = call @ring_attention[R=3](%r, %k, %v, %lo, %hi, %at)
    %n = call @rms_norm(%x, %w, 1e-6)
    %ln = call @layer_norm(%n, %w, %w, 1e-5)
    %nll, %lse = call @linear_cross_entropy(%ln, %big, %labels)
    %sl, %keep = call @selective_loss[K=2, V=9](%nll, %ref, %labels)
    return %o, %sl
}";
    let m = parse(text).unwrap_or_else(|e| panic!("{}", e.render("main", text)));
    m.verify().unwrap();
    let printed = m.to_string();
    let again = parse(&printed).unwrap_or_else(|e| panic!("{printed}\n{}", e.render("printed", &printed)));
    assert_eq!(again, m);
}
