//! `@ring_attention` on ranks in lockstep is `@attention`, which is softmax over what a token sees.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::stream::{D, EMPTY, Stream, layouts, mutant};
use common::{Rng, i32s, near, tensor, worst};
use omchat_ir::{Dtype, Mode, Tensor, library};

#[test]
fn ring_is_attention_for_every_layout() {
    for r in [1, 2, 3, 4, 5, 6, 7, 16] {
        let n = r * 4;
        let s = Stream::new(n, r as u64, Dtype::F32);
        let (out, lse) = s.oracle();
        for (layout, name) in layouts(n, r, 99).iter().zip(["contiguous", "zigzag", "random"]) {
            let (o, l) = s.ring(layout, Dtype::F32, Mode::Exact, "");
            near(&format!("out of {r} ranks, {name}"), &o, &out, 1e-12);
            near(&format!("lse of {r} ranks, {name}"), &l, &lse, 1e-12);
        }
        let empty = lse.iter().filter(|l| **l == EMPTY).count();
        assert!(r < 3 || empty > 0, "the streams must have rows that see nothing");
    }
}

/// What a hop of `@ring_attention` computes; the last stands apart, with nothing to exchange.
const HOP: &str = "%o, %l = call @attention_onto(%q, %k, %v, %lo, %hi, %at, %o, %l)";
const LAST: &str = "%o, %l = call @attention_onto(%q, %nk, %nv, %lo, %hi, %na, %o, %l)";

/// Attention and the ring, as the library has them.
fn text() -> String {
    let file = |name: &str| library::FILES.iter().find(|f| f.0 == name).unwrap().1;
    file("attention.oir").to_string() + file("ring.oir")
}

/// The same with every hop changed.
fn each_hop(change: impl Fn(&str) -> String) -> String {
    [HOP, LAST].iter().fold(text(), |text, hop| mutant(&text, hop, &change(hop)))
}

/// Tokens of a stream whose error is measured.
const TOKENS: usize = 64;

/// Root mean square error of a ring against the same numbers in doubles, over seeds: of streams drawn from a seed, in
/// that dtype, in one of the layouts.
fn error(stream: impl Fn(u64, Dtype) -> Stream, dtype: Dtype, r: usize, layout: usize, library: &str) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for seed in 0..6 {
        let s = stream(1000 + seed, dtype);
        let (out, _) = s.oracle();
        let (o, l) = s.ring(&layouts(TOKENS, r, seed)[layout], dtype, Mode::Typed, library);
        assert!(o.iter().chain(&l).all(|x| x.is_finite()));
        sum += o.iter().zip(&out).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        count += out.len() as f64;
    }
    (sum / count).sqrt()
}

/// Short documents, one after the other.
fn packed(seed: u64, dtype: Dtype) -> Stream {
    Stream::new(TOKENS, seed, dtype)
}

/// One document, all of whose ranks see something of the ranks before.
fn single(seed: u64, dtype: Dtype) -> Stream {
    Stream::of(&[TOKENS], seed, dtype)
}

/// The same of a bf16 ring whose tokens lie at random.
fn bf16_error(r: usize, library: &str) -> f64 {
    error(packed, Dtype::Bf16, r, 2, library)
}

/// The library with a partial result that is rounded to bf16 after each hop.
fn rounding() -> String {
    each_hop(|hop| format!("{hop} %ob = cast.bf16 %o %o = cast.f32 %ob"))
}

#[test]
fn error_does_not_grow_with_ranks() {
    let (two, sixteen) = (bf16_error(2, ""), bf16_error(16, ""));
    println!("bf16 error: R=2 {two:.3e}, R=16 {sixteen:.3e}, ratio {:.4}", sixteen / two);
    assert!(two > 0.0 && sixteen / two <= 1.1, "R=2 {two:e}, R=16 {sixteen:e}");
    let (two, sixteen) = (bf16_error(2, &rounding()), bf16_error(16, &rounding()));
    println!("with a bf16 carry: ratio {:.4}", sixteen / two);
    assert!(sixteen / two > 1.1, "a carry in bf16 must be caught");
}

/// The rows that `scripts/experiments/ring_error.py` draws.
#[test]
fn error_against_ranks() {
    for (dtype, partial) in [("f32", "f32"), ("f32", "bf16"), ("bf16", "f32"), ("bf16", "bf16")] {
        let library = if partial == "bf16" { rounding() } else { String::new() };
        let rounds = if dtype == "bf16" { Dtype::Bf16 } else { Dtype::F32 };
        for (documents, stream) in [("packed", packed as fn(u64, Dtype) -> Stream), ("single", single)] {
            for (layout, name) in ["contiguous", "zigzag"].into_iter().enumerate() {
                let found = [1, 2, 4, 8, 16].map(|r| error(stream, rounds, r, layout, &library));
                let row: Vec<String> = found.iter().map(|e| format!("{e:.3e}")).collect();
                println!("ring_error out {dtype} {partial} {documents} {name} {}", row.join(" "));
                let worst = found.iter().fold(0.0, |m: f64, e| m.max(e / found[0]));
                match (dtype, partial) {
                    // Each hop rounds once more, to f32.
                    ("f32", "f32") => assert!(worst < 4.0, "{documents}, {name}: {found:?}"),
                    (_, "f32") => assert!(worst < 1.1, "{documents}, {name}: {found:?}"),
                    _ => assert!(worst > 1.1, "{documents}, {name}: bf16 must be caught: {found:?}"),
                }
            }
        }
    }
}

#[test]
fn seeded_faults_are_caught() {
    let own = "%o2, %l2 = call @attention_partial(%q, %k, %v, %lo, %hi, %at)";
    // The same of the keys that a hop has, which bear other names in the last.
    let of = |hop: &str, text: &str| match hop == LAST {
        true => text.replace("%k", "%nk").replace("%v", "%nv").replace("%at", "%na"),
        false => text.to_string(),
    };
    let one = |from: &str, to: &str| mutant(&text(), from, to);
    let faults = [
        ("the last hop is missing", one("for step in 2..R {", "for step in 2..R - 1 {")),
        ("positions stay behind", one("%na = collective_permute %at shift=1 ring=R", "%na = copy %at")),
        ("values stay behind", one("        %nv = collective_permute %v shift=1 ring=R\n", "%nv = copy %v\n")),
        ("stale keys", one("return %o, %l, %nk, %nv, %na, %next", "return %o, %l, %k, %nv, %na, %next")),
        ("a stale buffer", one("return %o, %l, %nk, %nv, %na, %next", "return %o, %l, %k, %v, %at, %next")),
        ("the last hop has the buffer before", one(LAST, HOP)),
        ("a hop has the buffer of the next", one(HOP, LAST)),
        (
            "another ring",
            one(
                "        %nk = collective_permute %k shift=1 ring=R\n",
                "%nk = collective_permute %k shift=1 ring=R / 2\n",
            ),
        ),
        ("lse of the last hop", one(LAST, &format!("{LAST} {} %l = copy %l2", of(LAST, own)))),
        ("the carry is dropped", each_hop(|hop| of(hop, &own.replace('2', "")))),
        ("a carry that saw nothing", each_hop(|hop| format!("%l = sub %l, 1e30 {hop}"))),
        ("merge weights swapped", one("%sa    = mul %a, %wa", "%sa = mul %a, %wb")),
        ("merge without rescaling", one("%lse   = add %top, %log", "%lse = add %la, %log")),
        ("partials added up", each_hop(|hop| format!("{} %o = add %o, %o2 %l = max %l, %l2", of(hop, own)))),
        ("unscaled scores", one("%score = mul %dot, %scale", "%score = copy %dot")),
        (
            "one key too far",
            one(
                "%until = ge %hi, %at \"b t, b s -> b t s\"",
                "%h1 = add %hi, 1 %until = ge %h1, %at \"b t, b s -> b t s\"",
            ),
        ),
    ];
    let s = Stream::new(16, 5, Dtype::F32);
    let (out, lse) = s.oracle();
    let layout = &layouts(16, 4, 3)[2];
    for (what, text) in faults {
        let (o, l) = s.ring(layout, Dtype::F32, Mode::Exact, &text);
        let off = worst(&o, &out).max(worst(&l, &lse));
        assert!(off > 1e-3, "{what}: only {off:e} off");
    }
}

#[test]
fn rings_beside_one_another_do_not_mix() {
    let [a, b] = [5, 6].map(|seed| Stream::new(12, seed, Dtype::F32));
    let layout = &layouts(12, 3, 3)[2];
    let found = Stream::rings(&[&a, &b], layout, Dtype::F32, Mode::Exact, "");
    for (s, (o, l)) in [&a, &b].into_iter().zip(&found) {
        let (out, lse) = s.oracle();
        near("out", o, &out, 1e-12);
        near("lse", l, &lse, 1e-12);
    }
    // All ranks as one ring, and rings of two.
    for (what, to) in [("one ring", "shift=1\n"), ("rings of two", "shift=1 ring=2\n")] {
        let wrong = text().replace("shift=1 ring=R\n", to);
        assert!(wrong != text());
        let found = Stream::rings(&[&a, &b], layout, Dtype::F32, Mode::Exact, &wrong);
        let off = [&a, &b].into_iter().zip(&found).map(|(s, (o, _))| worst(o, &s.oracle().0)).fold(0.0, f64::max);
        assert!(off > 1e-3, "{what}: only {off:e} off");
    }
}

#[test]
fn merge_has_a_unit_and_any_order() {
    let mut rng = Rng(8);
    let shape = [1, 1, 1, 5, 3];
    let part = |rng: &mut Rng| {
        (tensor(Dtype::F32, &shape, rng.vec(15, 1.0)), tensor(Dtype::F32, &shape[..4], rng.vec(5, 40.0)))
    };
    let merge = |a: &(Tensor, Tensor), b: &(Tensor, Tensor)| {
        let operands = vec![a.0.clone(), a.1.clone(), b.0.clone(), b.1.clone()];
        let r = common::one("@attention_merge", "f32[1, 1, 1, 5, 3], f32[1, 1, 1, 5]", 2, operands, Mode::Exact);
        (tensor(Dtype::F32, &shape, r[0].clone()), tensor(Dtype::F32, &shape[..4], r[1].clone()))
    };
    let unit = (tensor(Dtype::F32, &shape, vec![0.0; 15]), tensor(Dtype::F32, &shape[..4], vec![EMPTY; 5]));
    let (a, b, c) = (part(&mut rng), part(&mut rng), part(&mut rng));
    for (left, right) in [
        (merge(&a, &unit), a.clone()),
        (merge(&unit, &a), a.clone()),
        (merge(&unit, &unit), unit.clone()),
        (merge(&a, &b), merge(&b, &a)),
        (merge(&merge(&a, &b), &c), merge(&a, &merge(&b, &c))),
    ] {
        near("merged output", &left.0.data, &right.0.data, 1e-14);
        near("merged lse", &left.1.data, &right.1.data, 1e-13);
    }
}

/// One head of attention under a mask, by the definition.
fn masked(q: &[f64], k: &[f64], v: &[f64], sees: impl Fn(usize, usize) -> bool) -> Vec<f64> {
    let (t, s) = (q.len() / D, k.len() / D);
    (0..t)
        .flat_map(|i| {
            let w: Vec<f64> = (0..s)
                .map(|j| {
                    if sees(i, j) {
                        ((0..D).map(|d| q[i * D + d] * k[j * D + d]).sum::<f64>() / 2.0).exp()
                    } else {
                        0.0
                    }
                })
                .collect();
            let total: f64 = w.iter().sum();
            (0..D)
                .map(|d| if total > 0.0 { (0..s).map(|j| w[j] * v[j * D + d]).sum::<f64>() / total } else { 0.0 })
                .collect::<Vec<f64>>()
        })
        .collect()
}

#[test]
fn an_interval_says_every_mask() {
    let n = 12i64;
    let mut rng = Rng(4);
    let (q, k, v) = (rng.vec(n as usize * D, 3.0), rng.vec(n as usize * D, 3.0), rng.vec(n as usize * D, 1.0));
    let tile = |i: i64| (i / 4 * 4, i / 4 * 4 + 3);
    let max = i64::from(i32::MAX);
    type Mask = Box<dyn Fn(i64) -> (i64, i64)>;
    type Sees = Box<dyn Fn(usize, usize) -> bool>;
    let cases: Vec<(&str, Mask, Vec<i64>, Sees)> = vec![
        ("causal", Box::new(|i| (0, i)), (0..n).collect(), Box::new(|t, s| s <= t)),
        ("sliding window of 3", Box::new(|i| (i - 2, i)), (0..n).collect(), Box::new(|t, s| s <= t && s + 3 > t)),
        ("vision tiles of 4", Box::new(tile), (0..n).collect(), Box::new(|t, s| s / 4 == t / 4)),
        ("everything", Box::new(|_| (0, 99)), (0..n).collect(), Box::new(|_, _| true)),
        ("nothing", Box::new(|_| (1, 0)), (0..n).collect(), Box::new(|_, _| false)),
        (
            "a cache of 12 slots, 7 filled",
            Box::new(|i| (0, i.min(6))),
            (0..n).map(|s| if s < 7 { s } else { max }).collect(),
            Box::new(|t, s| s < 7 && s <= t),
        ),
        (
            "empty slots under the widest interval",
            Box::new(move |_| (-max, max - 1)),
            (0..n).map(|s| if s % 2 == 0 { s } else { max }).collect(),
            Box::new(|_, s| s % 2 == 0),
        ),
    ];
    for (name, mask, at, sees) in cases {
        let (lo, hi): (Vec<i64>, Vec<i64>) = (0..n).map(&mask).unzip();
        let m = n as usize;
        let operands = vec![
            tensor(Dtype::F32, &[1, 1, 1, m, D], q.clone()),
            tensor(Dtype::F32, &[1, 1, m, D], k.clone()),
            tensor(Dtype::F32, &[1, 1, m, D], v.clone()),
            i32s(&[1, m], &lo),
            i32s(&[1, m], &hi),
            i32s(&[1, m], &at),
        ];
        let got = common::one("@attention", "f32[1, 1, 1, 12, 4], f32[1, 1, 1, 12]", 2, operands, Mode::Exact);
        // Operands stay doubles in Exact mode, so the oracle sees the same numbers.
        near(name, &got[0], &masked(&q, &k, &v, sees), 1e-13);
        assert!(got[1].iter().all(|l| l.is_finite()));
    }
}
