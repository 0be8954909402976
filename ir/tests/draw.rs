//! `@draw` against filters and a running sum written here.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Rng, f32s, one};
use omchat_ir::Mode;

/// What is drawn by, and how near a choice may come to a border before rounding may decide it.
struct Case {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    min_p: f64,
}

const NEAR: f64 = 1e-4;

impl Case {
    /// The id, or none if a border is near.
    fn pick(&self, logits: &[f64], u: f64) -> Option<usize> {
        let top = logits.iter().copied().fold(f64::MIN, f64::max);
        let weight: Vec<f64> = logits.iter().map(|l| ((l - top) / self.temperature).exp()).collect();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| weight[*b].total_cmp(&weight[*a]));
        let bar = |n: usize| logits[order[n - 1]];
        let mut kept: Vec<usize> = order.clone();
        if self.top_k > 0 {
            kept.retain(|i| logits[*i] >= bar(self.top_k));
        }
        if kept.iter().any(|i| (weight[*i] - self.min_p).abs() < NEAR * self.min_p) {
            return None;
        }
        kept.retain(|i| weight[*i] >= self.min_p);
        if self.top_p < 1.0 {
            let need = self.top_p * kept.iter().map(|i| weight[*i]).sum::<f64>();
            let (mut sum, mut last) = (0.0, 0);
            for (n, i) in kept.iter().enumerate() {
                let next = kept.get(n + 1).map_or(f64::MIN, |i| logits[*i]);
                sum += weight[*i];
                // Of equals all are kept, so a border is only where the next one is less likely.
                if next < logits[*i] {
                    if (sum - need).abs() < NEAR * need {
                        return None;
                    }
                    last = n;
                    if sum >= need {
                        break;
                    }
                }
            }
            kept.truncate(last + 1);
        }
        kept.sort_unstable();
        let goal = u * kept.iter().map(|i| weight[*i]).sum::<f64>();
        let mut sum = 0.0;
        for i in &kept {
            sum += weight[*i];
            if (sum - goal).abs() < NEAR {
                return None;
            }
            if sum > goal {
                return Some(*i);
            }
        }
        None
    }

    /// What `@draw` yields of each row.
    fn drawn(&self, rows: usize, logits: &[f64], u: &[f64], mode: Mode) -> Vec<f64> {
        let v = logits.len() / rows;
        let (j, k) = if self.top_k > 0 { (1, self.top_k) } else { (0, 1) };
        let callee = format!("@draw[J={j}, K={k}, N={}, B={}]", u8::from(self.top_p < 1.0), v.div_ceil(256));
        let mut operands = vec![f32s(&[rows, v], logits), f32s(&[rows], u)];
        operands.extend([self.temperature, self.min_p, self.top_p].map(|x| f32s(&[], &[f64::from(x as f32)])));
        one(&callee, &format!("i32[{rows}], f32[{rows}]"), 2, operands, mode).remove(0)
    }
}

#[test]
fn draws_are_those_of_a_running_sum() {
    let mut rng = Rng(12);
    let (mut sure, mut near) = (0, 0);
    for case in 0..220 {
        let v = [1, 2, 5, 31, 255, 256, 257, 600][rng.below(8)];
        let rows = 1 + rng.below(3);
        let spread = [0.5, 2.0, 8.0][rng.below(3)];
        // Eighths: ties are common.
        let logits: Vec<f64> = (0..rows * v).map(|_| (rng.unit() * spread * 8.0).round() / 8.0).collect();
        let u: Vec<f64> = (0..rows).map(|_| f64::from((rng.unit().abs() * 0.999) as f32)).collect();
        let how = Case {
            temperature: [0.25, 1.0, 1.5][case % 3],
            top_k: [0, 1, 3, v][rng.below(4)].min(v),
            top_p: [1.0, 0.05, 0.5, 0.9, 0.999][rng.below(5)],
            min_p: [0.0, 0.01, 0.3][rng.below(3)],
        };
        for mode in [Mode::Exact, Mode::Typed] {
            let got = how.drawn(rows, &logits, &u, mode);
            for (row, id) in got.iter().enumerate() {
                match how.pick(&logits[row * v..(row + 1) * v], u[row]) {
                    Some(want) => {
                        let told = (how.temperature, how.top_k, how.top_p, how.min_p, u[row]);
                        assert_eq!(*id, want as f64, "case {case}, row {row} of {v}: {told:?}");
                        sure += 1;
                    }
                    None => near += 1,
                }
            }
        }
    }
    assert!(sure > 500 && near < sure / 4, "{sure} compared, {near} too near a border");
}

/// Chances at both ends, one likely id among many that weigh nothing, and temperatures near 0.
#[test]
fn an_id_without_weight_is_never_drawn() {
    for v in [3, 256, 700] {
        for likely in [0, v / 2, v - 1] {
            let mut logits = vec![-200.0; v];
            logits[likely] = 5.0;
            for u in [0.0, 0.5, f64::from(1.0 - f32::EPSILON / 2.0)] {
                for (temperature, top_p) in [(1.0, 1.0), (1.0, 0.999), (1e-30, 0.5), (1e-45, 1.0)] {
                    let how = Case { temperature, top_k: 0, top_p, min_p: 0.0 };
                    let id = how.drawn(1, &logits, &[u], Mode::Typed)[0];
                    assert_eq!(id, likely as f64, "{v} ids, chance {u}, temperature {temperature}, top-p {top_p}");
                }
            }
        }
    }
}
