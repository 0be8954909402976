//! `@ring_attention` on ranks in lockstep is `@attention`, which is softmax over what a token sees.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Rng, i32s, near, run, tensor, worst};
use omchat_ir::{Dtype, Mode, Tensor, library};

const B: usize = 2;
const H: usize = 2;
const G: usize = 3;
const D: usize = 4;
const EMPTY: f64 = -1e30;

/// A packed stream: queries, keys and values of N tokens, the document and whether it is padding.
struct Stream {
    n: usize,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    document: Vec<Vec<usize>>,
    padding: Vec<Vec<bool>>,
}

impl Stream {
    fn new(n: usize, seed: u64, dtype: Dtype) -> Stream {
        let mut rng = Rng(seed);
        let mut draw =
            |len: usize, scale| rng.vec(len, scale).into_iter().map(|x| dtype.round(x)).collect::<Vec<f64>>();
        let (q, k, v) = (draw(B * H * G * n * D, 3.0), draw(B * H * n * D, 3.0), draw(B * H * n * D, 1.0));
        let (mut document, mut padding) = (vec![], vec![]);
        for _ in 0..B {
            let mut own = vec![0; n];
            for i in 1..n {
                own[i] = own[i - 1] + usize::from(rng.below(7) == 0);
            }
            document.push(own);
            padding.push((0..n).map(|_| rng.below(9) == 0).collect());
        }
        Stream { n, q, k, v, document, padding }
    }

    /// Softmax over what each token sees: its document up to itself. Output, then log-sum-exp.
    fn oracle(&self) -> (Vec<f64>, Vec<f64>) {
        let n = self.n;
        let (mut out, mut lse) = (vec![0.0; B * H * G * n * D], vec![EMPTY; B * H * G * n]);
        for (b, h, g, t) in
            (0..B).flat_map(|b| (0..H).flat_map(move |h| (0..G).flat_map(move |g| (0..n).map(move |t| (b, h, g, t)))))
        {
            let row = ((b * H + h) * G + g) * n + t;
            if self.padding[b][t] {
                continue;
            }
            let (mut weights, mut total) = (vec![], 0.0);
            for s in (0..=t).filter(|&s| self.document[b][s] == self.document[b][t]) {
                let key = ((b * H + h) * n + s) * D;
                let dot: f64 = (0..D).map(|d| self.q[row * D + d] * self.k[key + d]).sum();
                let w = (dot / (D as f64).sqrt()).exp();
                total += w;
                weights.push((key, w));
            }
            lse[row] = total.ln();
            for (key, w) in weights {
                for d in 0..D {
                    out[row * D + d] += w / total * self.v[key + d];
                }
            }
        }
        (out, lse)
    }

    /// The operands of a rank that holds those tokens.
    fn operands(&self, tokens: &[usize], dtype: Dtype) -> Vec<Tensor> {
        let (n, c) = (self.n, tokens.len());
        let pick = |x: &[f64], rows: usize| {
            (0..rows)
                .flat_map(|r| tokens.iter().flat_map(move |t| x[(r * n + t) * D..(r * n + t + 1) * D].to_vec()))
                .collect::<Vec<f64>>()
        };
        let (mut lo, mut hi, mut at) = (vec![], vec![], vec![]);
        for b in 0..B {
            for &t in tokens {
                let start = (0..=t).find(|&s| self.document[b][s] == self.document[b][t]).unwrap();
                at.push(t as i64);
                // A padding token sees the empty interval; others still see it as a key.
                lo.push(if self.padding[b][t] { 1 } else { start as i64 });
                hi.push(if self.padding[b][t] { 0 } else { t as i64 });
            }
        }
        vec![
            tensor(dtype, &[B, H, G, c, D], pick(&self.q, B * H * G)),
            tensor(dtype, &[B, H, c, D], pick(&self.k, B * H)),
            tensor(dtype, &[B, H, c, D], pick(&self.v, B * H)),
            i32s(&[B, c], &lo),
            i32s(&[B, c], &hi),
            i32s(&[B, c], &at),
        ]
    }

    /// Runs `@ring_attention` over that layout, and puts the tokens back in order.
    fn ring(&self, layout: &[Vec<usize>], dtype: Dtype, mode: Mode, library: &str) -> (Vec<f64>, Vec<f64>) {
        let (r, c) = (layout.len(), layout[0].len());
        let ranks: Vec<Vec<Tensor>> = layout.iter().map(|tokens| self.operands(tokens, dtype)).collect();
        let results = format!("{dtype}[{B}, {H}, {G}, {c}, {D}], f32[{B}, {H}, {G}, {c}]");
        let text = library.to_string() + &common::caller(&format!("@ring_attention[R={r}]"), &results, 2, &ranks[0]);
        let (mut out, mut lse) = (vec![0.0; B * H * G * self.n * D], vec![0.0; B * H * G * self.n]);
        for (tokens, result) in layout.iter().zip(run(&text, ranks, mode)) {
            for row in 0..B * H * G {
                for (i, &t) in tokens.iter().enumerate() {
                    lse[row * self.n + t] = result[1].data[row * c + i];
                    let to = (row * self.n + t) * D;
                    out[to..to + D].copy_from_slice(&result[0].data[(row * c + i) * D..(row * c + i + 1) * D]);
                }
            }
        }
        (out, lse)
    }
}

/// Contiguous, zigzag and random order of n tokens over r ranks.
fn layouts(n: usize, r: usize, seed: u64) -> [Vec<Vec<usize>>; 3] {
    let c = n / r;
    let cut = |order: Vec<usize>| order.chunks(c).map(<[usize]>::to_vec).collect::<Vec<_>>();
    let half = c / 2;
    let zigzag =
        (0..r).flat_map(|i| (i * half..(i + 1) * half).chain((2 * r - 1 - i) * half..(2 * r - i) * half)).collect();
    [cut((0..n).collect()), cut(zigzag), cut(Rng(seed).order(n))]
}

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

/// Root mean square error of a bf16 ring against the same numbers in doubles, over seeds.
fn bf16_error(r: usize, library: &str) -> f64 {
    let n = 64;
    let (mut sum, mut count) = (0.0, 0.0);
    for seed in 0..6 {
        let s = Stream::new(n, 1000 + seed, Dtype::Bf16);
        let (out, _) = s.oracle();
        let (o, l) = s.ring(&layouts(n, r, seed)[2], Dtype::Bf16, Mode::Typed, library);
        assert!(o.iter().chain(&l).all(|x| x.is_finite()));
        sum += o.iter().zip(&out).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        count += out.len() as f64;
    }
    (sum / count).sqrt()
}

#[test]
fn error_does_not_grow_with_ranks() {
    let (two, sixteen) = (bf16_error(2, ""), bf16_error(16, ""));
    println!("bf16 error: R=2 {two:.3e}, R=16 {sixteen:.3e}, ratio {:.4}", sixteen / two);
    assert!(two > 0.0 && sixteen / two <= 1.1, "R=2 {two:e}, R=16 {sixteen:e}");
    let attention = library::FILES.iter().find(|f| f.0 == "attention.oir").unwrap().1;
    let rounding = mutant(
        attention,
        "%o, %l   = call @attention_merge(%o, %l, %o2, %l2)",
        "%o, %l = call @attention_merge(%o, %l, %o2, %l2) %ob = cast.bf16 %o %o = cast.f32 %ob",
    );
    let (two, sixteen) = (bf16_error(2, &rounding), bf16_error(16, &rounding));
    println!("with bf16 partials: ratio {:.4}", sixteen / two);
    assert!(sixteen / two > 1.1, "partials in bf16 must be caught");
}

fn mutant(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "`{from}` must stand once in the library");
    text.replace(from, to)
}

#[test]
fn seeded_faults_are_caught() {
    let attention = library::FILES.iter().find(|f| f.0 == "attention.oir").unwrap().1;
    let faults = [
        ("the last hop is missing", "for step in 1..R {", "for step in 1..R - 1 {"),
        ("positions stay behind", "%at      = collective_permute %at shift=1", "%at = copy %at"),
        ("values stay behind", "%v       = collective_permute %v shift=1", "%v = copy %v"),
        ("lse of the last hop", "    %y = cast.E %o\n    return %y, %l\n", "    %y = cast.E %o\n    return %y, %l2\n"),
        ("merge weights swapped", "%sa    = mul %a, %wa", "%sa = mul %a, %wb"),
        ("merge without rescaling", "%lse   = add %top, %log", "%lse = add %la, %log"),
        (
            "partials added up",
            "%o, %l   = call @attention_merge(%o, %l, %o2, %l2)",
            "%o = add %o, %o2 %l = max %l, %l2",
        ),
        ("unscaled scores", "%score = mul %dot, %scale", "%score = copy %dot"),
        (
            "one key too far",
            "%until = ge %hi, %at \"b t, b s -> b t s\"",
            "%h1 = add %hi, 1 %until = ge %h1, %at \"b t, b s -> b t s\"",
        ),
    ];
    let s = Stream::new(16, 5, Dtype::F32);
    let (out, lse) = s.oracle();
    let layout = &layouts(16, 4, 3)[2];
    for (what, from, to) in faults {
        let (o, l) = s.ring(layout, Dtype::F32, Mode::Exact, &mutant(attention, from, to));
        let off = worst(&o, &out).max(worst(&l, &lse));
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
