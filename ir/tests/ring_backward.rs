//! The backward of `@ring_attention`: on any ranks and any layout it is that of one rank, its error does not grow with
//! the ranks, and the faults that others have shipped are caught.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::stream::{B, D, EMPTY, G, H, Stream, layouts, mutant};
use common::{Rng, tensor, worst};
use omchat_ir::text::parse_file;
use omchat_ir::{Differentiate, Dtype, Mode, Scope, Tensor, Value, interpret, library, parse};

/// dq, dk, dv of a stream, tokens in order, from cotangents of the output and of the log-sum-exp.
fn backward(s: &Stream, layout: &[Vec<usize>], dtype: Dtype, mode: Mode, text: &str, written: bool) -> [Vec<f64>; 3] {
    let (n, r, c) = (s.n, layout.len(), layout[0].len());
    let mut rng = Rng(77);
    let dy: Vec<f64> = rng.vec(B * H * G * n * D, 1.0).into_iter().map(|x| dtype.round(x)).collect();
    let dl = rng.vec(B * H * G * n, 1.0);
    let operands: Vec<Vec<Tensor>> = layout.iter().map(|t| s.operands(t, dtype)).collect();
    let results = format!("{dtype}[{B}, {H}, {G}, {c}, {D}], f32[{B}, {H}, {G}, {c}]");
    let main = common::caller(&format!("@ring_attention[R={r}]"), &results, 2, &operands[0]);
    let whole = text.to_string() + &main;
    let mut module = parse(&whole).unwrap_or_else(|e| panic!("{}", e.render("text", &whole)));
    let file = parse_file(&whole).unwrap();
    let scope = Scope::new(&[library::file().unwrap(), &file]);
    let f = module.named("main").unwrap();
    let wrt = [Value(0), Value(1), Value(2)];
    let how = Differentiate { scope: written.then_some(&scope), keep: &[] };
    let grad = how.run(&mut module, f, &[0, 1], &wrt).unwrap_or_else(|e| panic!("{e}"));
    let ranks = layout.iter().zip(operands).map(|(tokens, mut x)| {
        let rows = |x: &[f64], width: usize| -> Vec<f64> {
            let one = |row: usize, t: &usize| x[(row * n + t) * width..(row * n + t + 1) * width].to_vec();
            (0..B * H * G).flat_map(|row| tokens.iter().flat_map(move |t| one(row, t))).collect()
        };
        x.push(tensor(dtype, &[B, H, G, c, D], rows(&dy, D)));
        x.push(tensor(Dtype::F32, &[B, H, G, c], rows(&dl, 1)));
        x
    });
    let out = interpret(&module, grad, ranks.collect(), mode).unwrap_or_else(|e| panic!("{e}"));
    let mut found = [vec![0.0; B * H * G * n * D], vec![0.0; B * H * n * D], vec![0.0; B * H * n * D]];
    for (tokens, result) in layout.iter().zip(&out) {
        for (i, d) in found.iter_mut().enumerate() {
            for row in 0..d.len() / (n * D) {
                for (at, t) in tokens.iter().enumerate() {
                    let from = &result[2 + i].data[(row * c + at) * D..(row * c + at + 1) * D];
                    d[(row * n + t) * D..(row * n + t + 1) * D].copy_from_slice(from);
                }
            }
        }
    }
    found
}

fn apart(a: &[Vec<f64>; 3], b: &[Vec<f64>; 3]) -> f64 {
    a.iter().zip(b).map(|(x, y)| worst(x, y)).fold(0.0, f64::max)
}

fn one_rank(s: &Stream, dtype: Dtype) -> [Vec<f64>; 3] {
    // By the primitives' own rules, on one rank: nothing of what is tested.
    backward(s, &[(0..s.n).collect()], dtype, Mode::Exact, "", false)
}

#[test]
fn every_ring_is_one_rank() {
    for r in [1, 2, 3, 4, 7, 16] {
        let s = Stream::new(r * 4, r as u64, Dtype::F32);
        let unseen = s.oracle().1.iter().filter(|l| **l == EMPTY).count();
        assert!(r < 3 || unseen > 0, "{r} ranks: a stream must have rows that see nothing");
        let want = one_rank(&s, Dtype::F32);
        let mut off: f64 = 0.0;
        for (layout, name) in layouts(s.n, r, 99).iter().zip(["contiguous", "zigzag", "random"]) {
            for written in [true, false] {
                let have = backward(&s, layout, Dtype::F32, Mode::Exact, "", written);
                let one = apart(&have, &want);
                assert!(one <= 1e-11, "{r} ranks, {name}, written rule {written}: {one:e}");
                off = off.max(one);
            }
        }
        println!("{r} ranks: dq, dk, dv are those of one rank within {off:.1e}");
    }
}

/// Root mean square errors of dq, dk, dv, against the same numbers in doubles, over seeds: of streams drawn from a seed,
/// in that dtype, in one of the layouts.
fn errors(stream: impl Fn(u64, Dtype) -> Stream, dtype: Dtype, r: usize, layout: usize, text: &str) -> [f64; 3] {
    let mut sums = [(0.0, 0.0); 3];
    for seed in 0..6 {
        let s = stream(1000 + seed, dtype);
        let want = one_rank(&s, dtype);
        let have = backward(&s, &layouts(64, r, seed)[layout], dtype, Mode::Typed, text, true);
        for ((sum, w), h) in sums.iter_mut().zip(&want).zip(&have) {
            assert!(h.iter().all(|x| x.is_finite()));
            sum.0 += h.iter().zip(w).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            sum.1 += w.len() as f64;
        }
    }
    sums.map(|(sum, n)| (sum / n).sqrt())
}

/// The same of packed documents in bf16 that lie at random.
fn bf16_errors(r: usize, text: &str) -> [f64; 3] {
    errors(|seed, dtype| Stream::new(64, seed, dtype), Dtype::Bf16, r, 2, text)
}

fn text() -> String {
    let file = |name: &str| library::FILES.iter().find(|f| f.0 == name).unwrap().1;
    ["attention.oir", "attention_vjp.oir", "ring.oir", "ring_vjp.oir"].map(file).concat()
}

/// The line of a hop that adds its part of dq, dk or dv, and the name of what it is added to.
fn added(name: &str) -> (String, String) {
    let held = if name == "dq" { name.to_string() } else { name.replace('d', "h") };
    (format!("%{name}        = add %{held}, %{name}2"), held)
}

/// The text with an accumulator that is rounded to bf16 after each hop.
fn narrow(text: &str, name: &str) -> String {
    let (from, held) = added(name);
    let to = format!("%{name}3 = add %{held}, %{name}2 %{name}b = cast.bf16 %{name}3 %{name} = cast.f32 %{name}b");
    mutant(text, &from, &to)
}

/// The text with one line of the exchange changed in the backward alone.
fn passed_otherwise(from: &str, to: &str) -> String {
    let (text, pass) = (text(), "func @ring_pass[");
    let own = text.split(";;").find(|part| part.contains(pass)).unwrap();
    let own = mutant(&own[own.find(pass).unwrap()..], from, to).replace("@ring_pass[", "@pass_back[");
    let (head, tail) = text.split_once("func @ring_attention.vjp").unwrap();
    format!("{own}{head}func @ring_attention.vjp{}", tail.replace("@ring_pass[", "@pass_back["))
}

#[test]
fn error_does_not_grow_with_ranks() {
    let [one, two, sixteen] = [1, 2, 16].map(|r| bf16_errors(r, ""));
    for (i, name) in ["dq", "dk", "dv"].iter().enumerate() {
        let (o, a, b) = (one[i], two[i], sixteen[i]);
        println!("{name} in bf16: R=1 {o:.3e}, R=2 {a:.3e}, R=16 {b:.3e}, ratios {:.4} {:.4}", b / o, b / a);
        assert!(o > 0.0 && b / a <= 1.1 && b / o <= 1.1, "{name}: R=1 {o:e}, R=2 {a:e}, R=16 {b:e}");
    }
    // A hop's part in bf16 under an f32 sum already errs at R=2, so that only one rank, which adds nothing, tells it.
    for (i, name) in ["dq", "dk", "dv"].iter().enumerate() {
        let (from, held) = added(name);
        let to = format!("%{name}b = cast.bf16 %{name}2 %{name}3 = cast.f32 %{name}b %{name} = add %{held}, %{name}3");
        let ratio = bf16_errors(16, &mutant(&text(), &from, &to))[i] / one[i];
        println!("{name} with parts in bf16: ratio to R=1 {ratio:.4}");
        assert!(ratio > 1.1, "{name}: parts in bf16 must be caught, their ratio is {ratio}");
    }
    // Accumulators in bf16 must be caught by the same ratio.
    for (i, name) in ["dq", "dk", "dv"].iter().enumerate() {
        let faulty = narrow(&text(), name);
        let ratio = bf16_errors(16, &faulty)[i] / bf16_errors(2, &faulty)[i];
        println!("{name} with a bf16 accumulator: ratio {ratio:.4}");
        assert!(ratio > 1.1, "{name}: a bf16 accumulator must be caught, its ratio is {ratio}");
    }
}

/// The rows that `scripts/experiments/ring_error.py` draws: one document, of which every rank sees the ranks before.
#[test]
fn error_against_ranks() {
    let names = ["dq", "dk", "dv"];
    let rounding = names.iter().fold(text(), |text, name| narrow(&text, name));
    for (dtype, partial) in [(Dtype::F32, "f32"), (Dtype::Bf16, "f32"), (Dtype::Bf16, "bf16")] {
        let library = if partial == "bf16" { &rounding } else { "" };
        for (layout, place) in ["contiguous", "zigzag"].into_iter().enumerate() {
            let all = [1, 2, 4, 8, 16]
                .map(|r| errors(|seed, dtype| Stream::of(&[64], seed, dtype), dtype, r, layout, library));
            for (i, name) in names.iter().enumerate() {
                let found = all.map(|e| e[i]);
                let row: Vec<String> = found.iter().map(|e| format!("{e:.3e}")).collect();
                println!("ring_error {name} {dtype} {partial} single {place} {}", row.join(" "));
                let worst = found.iter().fold(0.0, |m: f64, e| m.max(e / found[0]));
                match (dtype, partial) {
                    // Each hop rounds once more, to f32.
                    (Dtype::F32, _) => assert!(worst < 4.0, "{name}, {place}: {found:?}"),
                    (_, "f32") => assert!(worst < 1.1, "{name}, {place}: {found:?}"),
                    _ => assert!(worst > 1.1, "{name}, {place}: bf16 must be caught: {found:?}"),
                }
            }
        }
    }
}

#[test]
fn a_ring_that_turns_the_other_way_is_no_fault() {
    let text = text();
    let turned = text.replace("shift=1 ring=R\n", "shift=-1 ring=R\n");
    assert_eq!(turned.matches("shift=-1").count(), 10);
    let s = Stream::new(16, 5, Dtype::F32);
    let have = backward(&s, &layouts(16, 4, 3)[2], Dtype::F32, Mode::Exact, &turned, true);
    assert!(apart(&have, &one_rank(&s, Dtype::F32)) <= 1e-11);
}

/// What brings cotangents of keys and values to the next rank.
const HOME_K: &str = "collective_permute %dk shift=1 ring=R\n";
const HOME_V: &str = "collective_permute %dv shift=1 ring=R\n";
/// The head of the backward's loop.
const LOOP: &str = "    for step in 2..R {\n        %hop = dim.i32 step\n        %dq";

#[test]
fn seeded_faults_are_caught() {
    let dq = "    %dq2       = call @attention_dq(%q, %k, %v, %lo, %hi, %at, %lse, %delta, %dy)\n    %dk2, %dv2 = call @attention_dkv(%q, %k, %v, %lo, %hi, %at, %lse, %delta, %dy)";
    let wrong = |text: &str| text.replace("shift=1", "shift=-1");
    let hop = "        %oh, %lh   = call @attention_partial(%q, %k, %v, %lo, %hi, %at)\n";
    let per_hop_lse = hop.to_string() + &dq.replace("%lse", "%lh");
    let per_hop_delta = hop.to_string()
        + "        %none = sub %lh, %lh\n        %eh = cast.E %oh\n        %dh = call @attention_delta(%eh, %dy, %none)\n"
        + &dq.replace("%delta", "%dh");
    let [last_k, last_v, on_k, on_v] = [("hk", HOME_K), ("hv", HOME_V), ("hk       ", HOME_K), ("hv       ", HOME_V)]
        .map(|(name, from)| format!("    %{name} = {from}"));
    let faults: Vec<(&str, &str, String)> = vec![
        ("log-sum-exp of each hop", dq, per_hop_lse),
        ("delta of each hop", dq, per_hop_delta),
        ("dk one hop short", &last_k, "    %hk = copy %dk\n".into()),
        ("dv one hop short", &last_v, "    %hv = copy %dv\n".into()),
        ("dk does not travel", &on_k, "    %hk = copy %dk\n".into()),
        ("dv does not travel", &on_v, "    %hv = copy %dv\n".into()),
        ("dk goes home the wrong way", &last_k, format!("    %hk = {}", wrong(HOME_K))),
        ("dv goes home the wrong way", &last_v, format!("    %hv = {}", wrong(HOME_V))),
        ("dk travels against its keys", &on_k, format!("    %hk = {}", wrong(HOME_K))),
        (
            "a stale buffer",
            "return %dq, %dk, %dv, %nk, %nv, %na, %next",
            "return %dq, %dk, %dv, %k, %v, %at, %next".into(),
        ),
        (
            "the last hop is missing",
            LOOP,
            "    for step in 2..R - 1 {\n        %hop = dim.i32 step\n        %dq".into(),
        ),
        (
            "an empty row has a large log-sum-exp",
            "    %lse   = select %some, %total, -1e30\n",
            "    %lse   = select %some, %total, 1e30\n".into(),
        ),
        (
            // As FlashAttention-2 has it. No literal is infinite: it is -log of the empty sum.
            "an empty row has an infinite log-sum-exp",
            "    %lse   = select %some, %total, -1e30\n",
            "    %bare = log %sum %inf = neg %bare %lse = select %some, %total, %inf\n".into(),
        ),
        ("lse's cotangent is forgotten", "    %delta = sub %rows, %dlse\n", "    %delta = copy %rows\n".into()),
    ];
    let s = Stream::new(16, 5, Dtype::F32);
    let want = one_rank(&s, Dtype::F32);
    let layout = &layouts(16, 4, 3)[2];
    assert!(apart(&backward(&s, layout, Dtype::F32, Mode::Exact, &text(), true), &want) <= 1e-11);
    let mut texts: Vec<(&str, String)> =
        faults.into_iter().map(|(what, from, to)| (what, mutant(&text(), from, &to))).collect();
    let k = "        %nk = collective_permute %k shift=1 ring=R\n";
    texts.extend([
        ("keys stay behind", passed_otherwise(k, "        %nk = copy %k\n")),
        (
            "values stay behind",
            passed_otherwise(&k.replace("%nk", "%nv").replace("%k", "%v"), "        %nv = copy %v\n"),
        ),
        (
            "places stay behind",
            passed_otherwise("    %na = collective_permute %at shift=1 ring=R\n", "    %na = copy %at\n"),
        ),
        ("the wrong neighbour", passed_otherwise(k, &wrong(k))),
        ("another ring", passed_otherwise(k, &k.replace("ring=R", "ring=R / 2"))),
    ]);
    for (what, faulty) in texts {
        let have = backward(&s, layout, Dtype::F32, Mode::Exact, &faulty, true);
        let off = have.iter().zip(&want).map(|(x, y)| {
            x.iter()
                .zip(y)
                .map(|(a, b)| if (a - b).is_finite() { (a - b).abs() } else { f64::INFINITY })
                .fold(0.0, f64::max)
        });
        let off = off.fold(0.0, f64::max);
        assert!(off > 1e-3, "{what}: only {off:e} off");
        println!("{what}: caught, {off:.1e} off");
    }
}
