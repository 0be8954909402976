//! Weighted means over ranks and micro-batches against formulas written here.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Rng, caller, f32s, i32s, near, one, run};
use omchat_ir::{Mode, Tensor};

const V: i64 = 7;

/// Losses, labels and documents of a stream; some labels are ignored, some tokens are in no document.
fn stream(n: usize, rng: &mut Rng) -> (Vec<f64>, Vec<i64>, Vec<i64>) {
    let loss: Vec<f64> = rng.vec(n, 3.0).iter().map(|x| x.abs()).collect();
    let labels = (0..n).map(|_| if rng.below(3) == 0 { -100 } else { rng.below(V as usize) as i64 }).collect();
    let mut document = vec![0i64; n];
    for i in 1..n {
        document[i] = document[i - 1] + i64::from(rng.below(5) == 0);
    }
    document.iter_mut().filter(|_| rng.below(9) == 0).for_each(|d| *d = -1);
    (loss, labels, document)
}

/// The mean over examples of the mean over their labelled tokens.
fn by_example(loss: &[f64], labels: &[i64], document: &[i64]) -> (f64, usize) {
    let means: Vec<f64> = (0..=document.iter().copied().max().unwrap_or(0))
        .filter_map(|d| {
            let own: Vec<f64> =
                (0..loss.len()).filter(|&i| document[i] == d && labels[i] >= 0).map(|i| loss[i]).collect();
            (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64)
        })
        .collect();
    (means.iter().sum::<f64>() / means.len().max(1) as f64, means.len())
}

/// Weights and totals of each rank, then the sum of the ranks' parts of the mean.
fn parts(callee: &str, loss: &[Vec<f64>], rest: Vec<Vec<Tensor>>, total: Option<f64>) -> (f64, f64) {
    let t = loss[0].len();
    let found = run(&caller(callee, &format!("f32[{t}], f32"), 2, &rest[0]), rest, Mode::Exact);
    let own = found[0][1].data[0];
    assert!(found.iter().all(|r| r[1].data[0] == own), "every rank has the same total");
    let ranks: Vec<Vec<Tensor>> = found
        .iter()
        .zip(loss)
        .map(|(r, l)| vec![f32s(&[t], l), r[0].clone(), f32s(&[], &[total.unwrap_or(own)])])
        .collect();
    let text = caller("@weighted_loss", "f32", 1, &ranks[0]);
    (run(&text, ranks, Mode::Exact).iter().map(|r| r[0].data[0]).sum(), own)
}

#[test]
fn ranks_add_up_to_the_mean() {
    for ranks in [1, 2, 3, 4, 7] {
        for seed in 0..8 {
            let mut rng = Rng(seed + 50 * ranks as u64);
            let t = 1 + rng.below(9);
            let n = ranks * t;
            let (loss, mut labels, document) = stream(n, &mut rng);
            if seed % 3 == 0 {
                labels[..t].fill(-100); // A rank with nothing to learn.
            }
            let order = rng.order(n);
            let cut = |x: &[i64]| -> Vec<Tensor> {
                order.chunks(t).map(|c| i32s(&[t], &c.iter().map(|&i| x[i]).collect::<Vec<_>>())).collect()
            };
            let own: Vec<Vec<f64>> = order.chunks(t).map(|c| c.iter().map(|&i| loss[i]).collect()).collect();
            let count = labels.iter().filter(|l| **l >= 0).count();
            let sum: f64 = (0..n).filter(|&i| labels[i] >= 0).map(|i| loss[i]).sum();
            let rest = cut(&labels).into_iter().map(|l| vec![l]).collect();
            let (mean, total) = parts(&format!("@token_weights[J=1, V={V}]"), &own, rest, None);
            near("mean over tokens", &[mean, total], &[sum / count.max(1) as f64, count as f64], 1e-12);

            let rest: Vec<Vec<Tensor>> =
                cut(&labels).into_iter().zip(cut(&document)).map(|(l, d)| vec![l, d]).collect();
            let (mean, total) = parts(&format!("@example_weights[J=1, M={n}, V={V}]"), &own, rest, None);
            let (want, examples) = by_example(&loss, &labels, &document);
            near("mean over examples", &[mean, total], &[want, examples as f64], 1e-12);
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_mean() {
    let mut rng = Rng(4);
    let batches: Vec<_> = (0..3).map(|_| stream(10, &mut rng)).collect();
    let run = |total: Option<f64>| -> Vec<(f64, f64)> {
        let one = |b: &(Vec<f64>, Vec<i64>, Vec<i64>)| {
            parts(
                &format!("@token_weights[J=1, V={V}]"),
                std::slice::from_ref(&b.0),
                vec![vec![i32s(&[10], &b.1)]],
                total,
            )
        };
        batches.iter().map(one).collect()
    };
    // The totals come first, and are given back as their sum.
    let total: f64 = run(None).iter().map(|r| r.1).sum();
    let mean: f64 = run(Some(total)).iter().map(|r| r.0).sum();
    let kept: Vec<f64> = batches
        .iter()
        .flat_map(|(loss, labels, _)| loss.iter().zip(labels).filter(|(_, l)| **l >= 0).map(|(x, _)| *x))
        .collect();
    near("mean over micro-batches", &[mean], &[kept.iter().sum::<f64>() / kept.len() as f64], 1e-12);
}

#[test]
fn a_ratio_of_one_is_the_plain_mean_bit_for_bit() {
    let mut rng = Rng(6);
    for t in [1, 5, 64] {
        let (loss, labels, _) = stream(t, &mut rng);
        let at: Vec<i64> = (0..t as i64).collect();
        let operands = vec![f32s(&[t], &loss), f32s(&[t], &rng.vec(t, 2.0)), i32s(&[t], &labels), i32s(&[t], &at)];
        let body = |keep: &str| {
            format!(
                "func @main(%loss: f32[{t}], %ref: f32[{t}], %labels: i32[{t}], %at: i32[{t}]) -> f32 {{ {keep}
                %weight = cast.f32 %keep
                %total = call @selection_total[V={V}](%keep, %labels, 0)
                %part = call @weighted_loss(%loss, %weight, %total) return %part }}"
            )
        };
        let chosen = body(&format!("%keep = call @select_tokens[J=1, V={V}](%loss, %ref, %labels, %at, 1, 1)"));
        let plain = body(&format!("%keep = call @labelled[V={V}](%labels)"));
        let [a, b] = [chosen, plain].map(|t| run(&t, vec![operands.clone()], Mode::Typed)[0][0].data[0]);
        let mean =
            one(&format!("@masked_mean[V={V}]"), "f32", 1, vec![operands[0].clone(), operands[2].clone()], Mode::Typed)
                [0][0];
        assert!(a.to_bits() == b.to_bits() && a.to_bits() == mean.to_bits(), "{a} {b} {mean}");
    }
}

#[test]
fn z_loss() {
    let operands = vec![f32s(&[2], &[1.0, 0.5]), f32s(&[2], &[3.0, -2.0]), f32s(&[], &[0.1])];
    near("z_loss", &one("@z_loss", "f32[2]", 1, operands, Mode::Exact)[0], &[1.9, 0.9], 1e-14);
}
