//! Every function of the library against a formula written here, apart from the ring (see `ring.rs`).
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Rng, f32s, i32s, near, one, tensor, worst};
use omchat_ir::{Dtype, Mode, Tensor};

const EXACT: f64 = 1e-12;

/// The first result of a function in Exact mode.
fn exact(callee: &str, result: &str, operands: Vec<Tensor>) -> Vec<f64> {
    one(callee, result, 1, operands, Mode::Exact).remove(0)
}

/// Typed bf16 is near the maths: within `steps` roundings to 8 bits of the largest value.
fn bf16_near(callee: &str, result: &str, operands: &[Tensor], steps: f64) {
    let low: Vec<Tensor> = operands
        .iter()
        .map(|t| {
            let dtype = if t.ty.dtype == Dtype::F32 && t.ty.rank() > 0 { Dtype::Bf16 } else { t.ty.dtype };
            tensor(dtype, &t.ty.shape, t.data.clone()).rounded()
        })
        .collect();
    let typed = one(callee, result, 1, low.clone(), Mode::Typed).remove(0);
    let want = one(callee, result, 1, low, Mode::Exact).remove(0);
    let scale = want.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    near(&format!("{callee} in bf16"), &typed, &want, steps * scale / 256.0);
}

#[test]
fn rms_norm() {
    let mut rng = Rng(1);
    let (x, w) = (rng.vec(15, 2.0), rng.vec(5, 1.0));
    let want: Vec<f64> = x
        .chunks(5)
        .flat_map(|row| {
            let rms = (row.iter().map(|v| v * v).sum::<f64>() / 5.0 + 1e-6).sqrt();
            row.iter().zip(&w).map(|(v, w)| v / rms * w).collect::<Vec<_>>()
        })
        .collect();
    let operands = vec![f32s(&[3, 5], &x), f32s(&[5], &w), f32s(&[], &[1e-6])];
    near("rms_norm", &exact("@rms_norm", "f32[3, 5]", operands.clone()), &want, EXACT);
    bf16_near("@rms_norm", "bf16[3, 5]", &operands, 3.0);
    let zero = exact("@rms_norm", "f32[3, 5]", vec![f32s(&[3, 5], &[0.0; 15]), f32s(&[5], &w), f32s(&[], &[1e-6])]);
    assert!(zero.iter().all(|v| *v == 0.0), "a row of zeros stays zeros");
}

#[test]
fn layer_norm() {
    let mut rng = Rng(2);
    let (x, w, b) = (rng.vec(15, 2.0), rng.vec(5, 1.0), rng.vec(5, 1.0));
    let want: Vec<f64> = x
        .chunks(5)
        .flat_map(|row| {
            let mean = row.iter().sum::<f64>() / 5.0;
            // Variance by the other formula: mean of squares less the square of the mean.
            let var = row.iter().map(|v| v * v).sum::<f64>() / 5.0 - mean * mean;
            row.iter()
                .zip(w.iter().zip(&b))
                .map(|(v, (w, b))| (v - mean) / (var + 1e-5).sqrt() * w + b)
                .collect::<Vec<_>>()
        })
        .collect();
    let operands = vec![f32s(&[3, 5], &x), f32s(&[5], &w), f32s(&[5], &b), f32s(&[], &[1e-5])];
    near("layer_norm", &exact("@layer_norm", "f32[3, 5]", operands.clone()), &want, EXACT);
    bf16_near("@layer_norm", "bf16[3, 5]", &operands, 2.0);
}

#[test]
fn rope_turns_complex_numbers() {
    let (heads, tokens, pairs) = (2 * 3, 5, 4);
    let mut rng = Rng(3);
    let x = rng.vec(heads * tokens * 2 * pairs, 1.0);
    let angle = |t: usize, p: usize| (1000 * t + 7) as f64 * 1e6f64.powf(-(p as f64) / pairs as f64);
    let table = |f: fn(f64) -> f64| (0..tokens * pairs).map(|i| f(angle(i / pairs, i % pairs))).collect::<Vec<_>>();
    let mut want = vec![0.0; x.len()];
    for (i, token) in x.chunks(2 * pairs).enumerate() {
        for p in 0..pairs {
            // (a + ib) times e^(i angle), by polar coordinates.
            let (a, b) = (token[p], token[p + pairs]);
            let (r, phi) = (a.hypot(b), b.atan2(a) + angle(i % tokens, p));
            want[i * 2 * pairs + p] = r * phi.cos();
            want[i * 2 * pairs + p + pairs] = r * phi.sin();
        }
    }
    let operands = vec![
        f32s(&[1, 2, 3, tokens, 2 * pairs], &x),
        f32s(&[tokens, pairs], &table(f64::cos)),
        f32s(&[tokens, pairs], &table(f64::sin)),
    ];
    near("rope", &exact("@rope", "f32[1, 2, 3, 5, 8]", operands), &want, 1e-11);
}

/// The tail integral of the normal distribution by Simpson's rule: an erf of its own.
fn normal(x: f64) -> f64 {
    let (n, a) = (20_000, -12.0);
    let h = (x - a) / n as f64;
    let f = |v: f64| (-v * v / 2.0).exp();
    let inner: f64 = (1..n).map(|i| f(a + i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    (f(a) + inner + f(x)) * h / 3.0 / (2.0 * std::f64::consts::PI).sqrt()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn gelu_tanh(x: f64) -> f64 {
    x / (1.0 + (-2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).exp())
}

#[test]
fn activations() {
    let x = Rng(5).vec(24, 6.0);
    for (name, f) in [("@silu", silu as fn(f64) -> f64), ("@gelu", |x| x * normal(x)), ("@gelu_tanh", gelu_tanh)] {
        let want: Vec<f64> = x.iter().map(|v| f(*v)).collect();
        near(name, &exact(name, "f32[4, 6]", vec![f32s(&[4, 6], &x)]), &want, EXACT);
        bf16_near(name, "bf16[4, 6]", &[f32s(&[4, 6], &x)], 3.0);
    }
    let far = exact("@silu", "f32[1, 4]", vec![f32s(&[1, 4], &[-1e4, -800.0, 800.0, 1e4])]);
    near("silu far out", &far, &[0.0, 0.0, 800.0, 1e4], 1e-300);
}

/// x [r, c] times the transpose of w [f, c], plus b.
fn affine(x: &[f64], w: &[f64], b: &[f64], c: usize) -> Vec<f64> {
    x.chunks(c)
        .flat_map(|row| {
            w.chunks(c).zip(b).map(|(w, b)| row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + b).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn feed_forwards() {
    let (r, c, f, d) = (3, 4, 6, 5);
    let mut rng = Rng(6);
    let (x, w1, b1, w2, b2) =
        (rng.vec(r * c, 2.0), rng.vec(f * c, 1.0), rng.vec(f, 1.0), rng.vec(d * f, 1.0), rng.vec(d, 1.0));
    let first = affine(&x, &w1, &b1, c);
    near(
        "linear",
        &exact("@linear", "f32[3, 6]", vec![f32s(&[r, c], &x), f32s(&[f, c], &w1), f32s(&[f], &b1)]),
        &first,
        EXACT,
    );
    for (name, g) in [("@gelu_mlp", (|x| x * normal(x)) as fn(f64) -> f64), ("@gelu_tanh_mlp", gelu_tanh)] {
        let want = affine(&first.iter().map(|v| g(*v)).collect::<Vec<_>>(), &w2, &b2, f);
        let operands =
            vec![f32s(&[r, c], &x), f32s(&[f, c], &w1), f32s(&[f], &b1), f32s(&[d, f], &w2), f32s(&[d], &b2)];
        near(name, &exact(name, "f32[3, 5]", operands), &want, EXACT);
    }
    let (up, down, zero) = (rng.vec(f * c, 1.0), rng.vec(c * f, 1.0), vec![0.0; f]);
    let gate: Vec<f64> = affine(&x, &w1, &zero, c).iter().map(|v| silu(*v)).collect();
    let inner: Vec<f64> = affine(&x, &up, &zero, c).iter().zip(gate).map(|(u, g)| u * g).collect();
    let operands = vec![f32s(&[r, c], &x), f32s(&[f, c], &w1), f32s(&[f, c], &up), f32s(&[c, f], &down)];
    near(
        "swiglu_mlp",
        &exact("@swiglu_mlp", "f32[3, 4]", operands.clone()),
        &affine(&inner, &down, &[0.0; 4], f),
        EXACT,
    );
    bf16_near("@swiglu_mlp", "bf16[3, 4]", &operands, 4.0);
}

#[test]
fn softmax_rows_sum_to_one() {
    let x: Vec<f64> = Rng(7).vec(12, 3.0);
    let want: Vec<f64> = x
        .chunks(4)
        .flat_map(|row| row.iter().map(|v| 1.0 / row.iter().map(|w| (w - v).exp()).sum::<f64>()).collect::<Vec<_>>())
        .collect();
    near("softmax", &exact("@softmax", "f32[3, 4]", vec![f32s(&[3, 4], &x)]), &want, EXACT);
    let far = exact("@softmax", "f32[1, 3]", vec![f32s(&[1, 3], &[1e4, 0.0, -1e30])]);
    assert_eq!(far, [1.0, 0.0, 0.0]);
}

#[test]
fn linear_cross_entropy_ignores_labels_outside() {
    let (t, c, v) = (6, 4, 7);
    let mut rng = Rng(9);
    let (x, w) = (rng.vec(t * c, 2.0), rng.vec(v * c, 2.0));
    let labels = [3i64, -100, 6, 7, 0, -1];
    let logits = affine(&x, &w, &[0.0; 7], c);
    let mut want = (vec![], vec![]);
    for (row, label) in logits.chunks(v).zip(labels) {
        let total: f64 = row.iter().map(|z| z.exp()).sum();
        want.1.push(total.ln());
        want.0.push(if (0..v as i64).contains(&label) { -(row[label as usize].exp() / total).ln() } else { 0.0 });
    }
    let operands = vec![f32s(&[t, c], &x), f32s(&[v, c], &w), i32s(&[t], &labels)];
    let got = one("@linear_cross_entropy", "f32[6], f32[6]", 2, operands, Mode::Exact);
    near("loss", &got[0], &want.0, EXACT);
    near("lse", &got[1], &want.1, EXACT);
    let keep = exact("@labelled[V=7]", "bool[6]", vec![i32s(&[t], &labels)]);
    assert_eq!(keep, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
    let mean = exact("@masked_mean[V=7]", "f32", vec![f32s(&[t], &got[0]), i32s(&[t], &labels)]);
    near("masked_mean", &mean, &[(want.0[0] + want.0[2] + want.0[4]) / 3.0], EXACT);
    let none = exact("@masked_mean[V=7]", "f32", vec![f32s(&[t], &[1.0; 6]), i32s(&[t], &[-100; 6])]);
    assert_eq!(none, [0.0], "no label, no loss");
}

/// Top-K by sorting: larger excess first, then the earlier token.
fn selected(loss: &[f64], reference: &[f64], labels: &[i64], k: usize, v: i64) -> (f64, Vec<f64>) {
    let mut order: Vec<usize> = (0..loss.len()).filter(|&i| (0..v).contains(&labels[i])).collect();
    order.sort_by(|&a, &b| (loss[b] - reference[b]).total_cmp(&(loss[a] - reference[a])).then(a.cmp(&b)));
    order.truncate(k);
    let mut keep = vec![0.0; loss.len()];
    order.iter().for_each(|&i| keep[i] = 1.0);
    (order.iter().map(|&i| loss[i]).sum::<f64>() / order.len().max(1) as f64, keep)
}

#[test]
fn selective_loss_keeps_the_k_most_excessive() {
    let v = 10;
    for seed in 0..200 {
        let mut rng = Rng(seed);
        let t = 1 + rng.below(24);
        let k = 1 + rng.below(t);
        // Quarters make ties common and differences exact.
        let mut quarters =
            |n: usize, levels: usize| (0..n).map(|_| rng.below(levels) as f64 / 4.0).collect::<Vec<f64>>();
        let levels = 1 + (seed as usize % 9);
        let (loss, reference) = (quarters(t, levels), quarters(t, levels));
        let labels: Vec<i64> =
            (0..t).map(|_| if rng.below(4) == 0 { -100 } else { rng.below(v as usize) as i64 }).collect();
        let (want, keep) = selected(&loss, &reference, &labels, k, v);
        for mode in [Mode::Exact, Mode::Typed] {
            let operands = vec![f32s(&[t], &loss), f32s(&[t], &reference), i32s(&[t], &labels)];
            let got = one(&format!("@selective_loss[K={k}, V={v}]"), &format!("f32, bool[{t}]"), 2, operands, mode);
            assert_eq!(got[1], keep, "seed {seed}: T={t} K={k}\n{loss:?}\n{reference:?}\n{labels:?}");
            near("selective_loss", &got[0], &[want], 1e-6);
        }
    }
}

#[test]
fn selecting_all_is_the_plain_mean() {
    let mut rng = Rng(11);
    let (loss, reference) = (rng.vec(20, 4.0), rng.vec(20, 4.0));
    let labels: Vec<i64> = (0..20).map(|i| if i % 3 == 0 { -100 } else { i % 5 }).collect();
    let all = one(
        "@selective_loss[K=20, V=5]",
        "f32, bool[20]",
        2,
        vec![f32s(&[20], &loss), f32s(&[20], &reference), i32s(&[20], &labels)],
        Mode::Exact,
    );
    let plain = exact("@masked_mean[V=5]", "f32", vec![f32s(&[20], &loss), i32s(&[20], &labels)]);
    near("keep ratio 1", &all[0], &plain, 1e-14);
    let none = one(
        "@selective_loss[K=3, V=5]",
        "f32, bool[20]",
        2,
        vec![f32s(&[20], &loss), f32s(&[20], &reference), i32s(&[20], &[-100; 20])],
        Mode::Exact,
    );
    assert!(none[0] == [0.0] && none[1].iter().all(|k| *k == 0.0), "no label, nothing kept");
}

#[test]
fn attention_partial_is_attention_before_rounding() {
    let mut rng = Rng(12);
    let mut draw = |shape: &[usize]| tensor(Dtype::Bf16, shape, rng.vec(shape.iter().product(), 2.0)).rounded();
    let (q, k, v) = (draw(&[1, 2, 2, 3, 4]), draw(&[1, 2, 5, 4]), draw(&[1, 2, 5, 4]));
    let operands = vec![q, k, v, i32s(&[1, 3], &[0, 1, 9]), i32s(&[1, 3], &[2, 4, 1]), i32s(&[1, 5], &[0, 1, 2, 3, 4])];
    let whole = one("@attention", "bf16[1, 2, 2, 3, 4], f32[1, 2, 2, 3]", 2, operands.clone(), Mode::Typed);
    let part = one("@attention_partial", "f32[1, 2, 2, 3, 4], f32[1, 2, 2, 3]", 2, operands.clone(), Mode::Typed);
    let rounded: Vec<f64> = part[0].iter().map(|x| Dtype::Bf16.round(*x)).collect();
    assert_eq!(whole[0], rounded);
    assert_eq!(whole[1], part[1]);
    let exact = one("@attention", "bf16[1, 2, 2, 3, 4], f32[1, 2, 2, 3]", 2, operands, Mode::Exact);
    assert!(worst(&whole[0], &exact[0]) < 2.0 / 256.0);
}

#[test]
fn attention_onto_goes_on_from_what_was_seen() {
    let mut rng = Rng(13);
    let mut draw = |shape: &[usize]| f32s(shape, &rng.vec(shape.iter().product(), 2.0));
    let (q, k, v) = (draw(&[1, 2, 2, 5, 4]), draw(&[1, 2, 3, 4]), draw(&[1, 2, 3, 4]));
    let o = draw(&[1, 2, 2, 5, 4]);
    // The queries see: all; nothing; all, and nothing before; nothing at all; the middle.
    let (lo, hi) = (i32s(&[1, 5], &[0, 9, 0, 9, 1]), i32s(&[1, 5], &[2, 1, 2, 1, 1]));
    let empty = -1e30;
    let l: Vec<f64> = (0..20).map(|i| if matches!(i % 5, 2 | 3) { empty } else { f64::from(i) / 4.0 - 2.0 }).collect();
    let o: Vec<f64> = o.data.iter().enumerate().map(|(i, x)| if l[i / 4] == empty { 0.0 } else { *x }).collect();
    let block = vec![q.clone(), k.clone(), v.clone(), lo, hi, i32s(&[1, 3], &[0, 1, 2])];
    let types = "f32[1, 2, 2, 5, 4], f32[1, 2, 2, 5]";
    let onto = |o: &[f64], l: &[f64]| {
        let carry = vec![f32s(&[1, 2, 2, 5, 4], o), f32s(&[1, 2, 2, 5], l)];
        one("@attention_onto", types, 2, [block.clone(), carry].concat(), Mode::Exact)
    };
    let got = onto(&o, &l);
    for row in 0..20 {
        let sees = [0..3, 0..0, 0..3, 0..0, 1..2][row % 5].clone();
        let weights: Vec<f64> = sees
            .clone()
            .map(|s| {
                let key = &k.data[(row / 10 * 3 + s) * 4..][..4];
                (q.data[row * 4..][..4].iter().zip(key).map(|(x, y)| x * y).sum::<f64>() / 2.0).exp()
            })
            .collect();
        // What was seen before weighs as one key whose score is l and whose value is o.
        let before = if l[row] == empty { 0.0 } else { l[row].exp() };
        let total = before + weights.iter().sum::<f64>();
        let lse = if total > 0.0 { total.ln() } else { empty };
        assert!((got[1][row] - lse).abs() <= 1e-12 * lse.abs().max(1.0), "lse of row {row}: {} for {lse}", got[1][row]);
        for d in 0..4 {
            let own: f64 = sees.clone().zip(&weights).map(|(s, w)| w * v.data[(row / 10 * 3 + s) * 4 + d]).sum();
            let out = if total > 0.0 { (before * o[row * 4 + d] + own) / total } else { 0.0 };
            assert!((got[0][row * 4 + d] - out).abs() <= 1e-12, "row {row}: {} for {out}", got[0][row * 4 + d]);
        }
    }
    let unit = onto(&[0.0; 80], &[empty; 20]);
    assert_eq!(unit, one("@attention_partial", types, 2, block.clone(), Mode::Exact), "the unit carries nothing");
}

/// The sizes of the backward tests: B, H, G, T, S, D.
const SIZES: [usize; 6] = [1, 2, 2, 4, 5, 3];

/// q, k, v, lo, hi, at with a query that sees nothing, one that sees all and one that sees the middle.
fn attended(rng: &mut Rng) -> Vec<Tensor> {
    let [b, h, g, t, s, d] = SIZES;
    vec![
        f32s(&[b, h, g, t, d], &rng.vec(b * h * g * t * d, 2.0)),
        f32s(&[b, h, s, d], &rng.vec(b * h * s * d, 2.0)),
        f32s(&[b, h, s, d], &rng.vec(b * h * s * d, 2.0)),
        i32s(&[b, t], &[0, 0, 1, 9]),
        i32s(&[b, t], &[2, 4, 3, 1]),
        i32s(&[b, s], &[0, 1, 2, 3, 4]),
    ]
}

fn attention(operands: &[Tensor]) -> Vec<Vec<f64>> {
    one("@attention", "f32[1, 2, 2, 4, 3], f32[1, 2, 2, 4]", 2, operands.to_vec(), Mode::Exact)
}

/// The operands of the backward functions: those of the forward, lse, delta, do.
fn backward_operands(forward: &[Tensor], out: &[Vec<f64>], pull: &[f64], pull_lse: &[f64]) -> Vec<Tensor> {
    let [b, h, g, t, _, d] = SIZES;
    let delta: Vec<f64> = (0..b * h * g * t)
        .map(|r| (r * d..(r + 1) * d).map(|i| pull[i] * out[0][i]).sum::<f64>() - pull_lse[r])
        .collect();
    let more = [f32s(&[b, h, g, t], &out[1]), f32s(&[b, h, g, t], &delta), f32s(&[b, h, g, t, d], pull)];
    forward.iter().cloned().chain(more).collect()
}

#[test]
fn attention_backward_is_the_slope_of_attention() {
    let mut rng = Rng(13);
    let forward = attended(&mut rng);
    let out = attention(&forward);
    let (pull, mut pull_lse) = (rng.vec(out[0].len(), 1.0), rng.vec(out[1].len(), 1.0));
    // A constant: what a query that sees nothing has for lse cannot be pulled.
    pull_lse.iter_mut().zip(&out[1]).filter(|(_, l)| **l < -1e29).for_each(|(p, _)| *p = 0.0);
    let loss = |operands: &[Tensor]| -> f64 {
        let o = attention(operands);
        let seen = o[1].iter().map(|l| if *l < -1e29 { 0.0 } else { *l });
        o[0].iter().zip(&pull).map(|(a, b)| a * b).sum::<f64>() + seen.zip(&pull_lse).map(|(a, b)| a * b).sum::<f64>()
    };
    let operands = backward_operands(&forward, &out, &pull, &pull_lse);
    let dq = exact("@attention_dq", "f32[1, 2, 2, 4, 3]", operands.clone());
    let dkv = one("@attention_dkv", "f32[1, 2, 5, 3], f32[1, 2, 5, 3]", 2, operands, Mode::Exact);
    for (which, got) in [(0, &dq), (1, &dkv[0]), (2, &dkv[1])] {
        let slope: Vec<f64> = (0..forward[which].data.len())
            .map(|i| {
                let moved = |by: f64| {
                    let mut at = forward.clone();
                    at[which].data[i] += by;
                    loss(&at)
                };
                (moved(1e-5) - moved(-1e-5)) / 2e-5
            })
            .collect();
        near(&format!("cotangent of operand {which}"), got, &slope, 1e-8);
    }
}

#[test]
fn attention_backward_adds_over_blocks_of_keys() {
    let [_, h, _, _, s, d] = SIZES;
    let mut rng = Rng(14);
    let forward = attended(&mut rng);
    let out = attention(&forward);
    let pull = rng.vec(out[0].len(), 1.0);
    let operands = backward_operands(&forward, &out, &pull, &[0.0; 16]);
    let whole = exact("@attention_dq", "f32[1, 2, 2, 4, 3]", operands.clone());
    let mut sum = vec![0.0; whole.len()];
    for (from, to) in [(0, 2), (2, s)] {
        let rows = |x: &Tensor| -> Vec<f64> {
            (0..h).flat_map(|h| x.data[(h * s + from) * d..(h * s + to) * d].to_vec()).collect()
        };
        let mut part = operands.clone();
        part[1] = f32s(&[1, h, to - from, d], &rows(&operands[1]));
        part[2] = f32s(&[1, h, to - from, d], &rows(&operands[2]));
        part[5] = tensor(Dtype::I32, &[1, to - from], operands[5].data[from..to].to_vec());
        let dq = exact("@attention_dq", "f32[1, 2, 2, 4, 3]", part);
        sum.iter_mut().zip(dq).for_each(|(a, b)| *a += b);
    }
    near("dq of two halves", &sum, &whole, EXACT);
}

#[test]
fn attention_weights_sum_to_one_where_a_query_sees() {
    let mut rng = Rng(15);
    let forward = attended(&mut rng);
    let out = attention(&forward);
    let operands = backward_operands(&forward, &out, &rng.vec(out[0].len(), 1.0), &[0.0; 16]);
    let got = one("@attention_weights", "f32[1, 2, 2, 4, 5], f32[1, 2, 2, 4, 5]", 2, operands, Mode::Exact);
    for (row, (p, ds)) in got[0].chunks(5).zip(got[1].chunks(5)).enumerate() {
        let want = if row % 4 == 3 { 0.0 } else { 1.0 };
        near("sum of p", &[p.iter().sum()], &[want], EXACT);
        near("sum of ds", &[ds.iter().sum()], &[0.0], EXACT);
        assert!(row % 4 != 2 || p[0] == 0.0 && p[4] == 0.0, "query 2 sees keys 1 to 3");
    }
}
