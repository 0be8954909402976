//! Token selection on ranks in lockstep against a sort written here, and the two-pass loss against one pass.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Rng, caller, f32s, i32s, near, one, run, tensor};
use omchat_ir::{Dtype, Mode, Tensor, Value, differentiate, interpret, library, parse};

const V: usize = 7;
const MODES: [Mode; 2] = [Mode::Exact, Mode::Typed];

/// A packed stream of tokens: loss, reference and label of each.
struct Stream {
    loss: Vec<f64>,
    reference: Vec<f64>,
    labels: Vec<i64>,
}

impl Stream {
    /// Quarters on few levels: ties are common, differences exact, half of the scores negative.
    fn new(n: usize, levels: usize, ignored: usize, rng: &mut Rng) -> Stream {
        let mut quarters = || (0..n).map(|_| rng.below(levels) as f64 / 4.0).collect::<Vec<f64>>();
        let (loss, reference) = (quarters(), quarters());
        let labels = (0..n).map(|_| if rng.below(8) < ignored { -100 } else { rng.below(V) as i64 }).collect();
        Stream { loss, reference, labels }
    }

    fn labelled(&self) -> usize {
        self.labels.iter().filter(|l| **l >= 0).count()
    }

    /// Top-k by sorting tokens: larger score first, then the earlier token.
    fn top(&self, tokens: &[usize], sign: f64, k: usize) -> Vec<usize> {
        let score = |i: usize| sign * (self.loss[i] - self.reference[i]);
        let mut order: Vec<usize> = tokens.iter().copied().filter(|&i| self.labels[i] >= 0).collect();
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
        order.truncate(k);
        order.sort_unstable();
        order
    }

    fn operands(&self, tokens: &[usize], sign: f64, ratio: f64) -> Vec<Tensor> {
        let pick = |x: &[f64]| tokens.iter().map(|&t| x[t]).collect::<Vec<f64>>();
        let labels: Vec<i64> = tokens.iter().map(|&t| self.labels[t]).collect();
        let at: Vec<i64> = tokens.iter().map(|&t| t as i64).collect();
        let n = tokens.len();
        vec![
            f32s(&[n], &pick(&self.loss)),
            f32s(&[n], &pick(&self.reference)),
            i32s(&[n], &labels),
            i32s(&[n], &at),
            f32s(&[], &[sign]),
            f32s(&[], &[ratio]),
        ]
    }

    /// What `@select_tokens` keeps, by index in the stream.
    fn selected(&self, layout: &[Vec<usize>], joined: usize, sign: f64, ratio: f64, mode: Mode) -> Vec<usize> {
        let ranks: Vec<Vec<Tensor>> = layout.iter().map(|t| self.operands(t, sign, ratio)).collect();
        let callee = format!("@select_tokens[J={joined}, V={V}]");
        let text = caller(&callee, &format!("bool[{}]", layout[0].len()), 1, &ranks[0]);
        kept(layout, &run(&text, ranks, mode), 0)
    }
}

/// The tokens of all ranks for which that result holds, sorted.
fn kept(layout: &[Vec<usize>], results: &[Vec<Tensor>], which: usize) -> Vec<usize> {
    let mut out: Vec<usize> = layout
        .iter()
        .zip(results)
        .flat_map(|(tokens, r)| tokens.iter().zip(&r[which].data).filter(|(_, k)| **k != 0.0).map(|(t, _)| *t))
        .collect();
    out.sort_unstable();
    out
}

/// Tokens in order or shuffled, cut into equal ranks.
fn layouts(n: usize, ranks: usize, rng: &mut Rng) -> [Vec<Vec<usize>>; 2] {
    let cut = |order: Vec<usize>| order.chunks(n / ranks).map(<[usize]>::to_vec).collect();
    [cut((0..n).collect()), cut(rng.order(n))]
}

#[test]
fn any_layout_over_any_ranks_keeps_what_a_sort_keeps() {
    for ranks in [1, 2, 3, 4, 7] {
        for seed in 0..12 {
            let mut rng = Rng(seed * 100 + ranks as u64);
            let n = ranks * (1 + rng.below(9));
            let (levels, ignored) = (1 + rng.below(9), rng.below(8));
            let s = Stream::new(n, levels, ignored, &mut rng);
            let sign = if seed % 2 == 0 { 1.0 } else { -1.0 };
            let parts = [0, 1, 3333, 6000, 7000, 10_000][rng.below(6)];
            let k = (parts * s.labelled()).div_ceil(10_000);
            for layout in layouts(n, ranks, &mut rng) {
                let all: Vec<usize> = (0..n).collect();
                let ratio = f64::from(parts as f32 / 10_000.0);
                for mode in MODES {
                    let got = s.selected(&layout, 1, sign, ratio, mode);
                    assert_eq!(got, s.top(&all, sign, k), "R={ranks} seed {seed} n={n} k={k} sign {sign}");
                    // Each rank for itself: the same text with no collective.
                    let mut own: Vec<usize> = vec![];
                    for tokens in &layout {
                        let valid = tokens.iter().filter(|t| s.labels[**t] >= 0).count();
                        own.extend(s.top(tokens, sign, (parts * valid).div_ceil(10_000)));
                    }
                    own.sort_unstable();
                    assert_eq!(s.selected(&layout, 0, sign, ratio, mode), own, "R={ranks} seed {seed}, own ranks");
                }
            }
        }
    }
}

/// `@top_tokens` with k as given, over two ranks.
fn top_of(score: &[f64], valid: &[bool], k: i64) -> Vec<usize> {
    let half = score.len() / 2;
    let layout = [(0..half).collect::<Vec<_>>(), (half..score.len()).collect()];
    let ranks: Vec<Vec<Tensor>> = layout
        .iter()
        .map(|tokens: &Vec<usize>| {
            let at: Vec<i64> = tokens.iter().map(|&t| t as i64).collect();
            let holds = tokens.iter().map(|&t| f64::from(u8::from(valid[t]))).collect();
            let own: Vec<f64> = tokens.iter().map(|&t| score[t]).collect();
            vec![f32s(&[half], &own), i32s(&[half], &at), tensor(Dtype::Bool, &[half], holds), i32s(&[], &[k])]
        })
        .collect();
    let text = caller("@top_tokens[J=1]", &format!("bool[{half}]"), 1, &ranks[0]);
    kept(&layout, &run(&text, ranks, Mode::Typed), 0)
}

#[test]
fn none_one_and_all_of_numbers_of_every_size() {
    let big = f64::from(f32::MAX);
    let score = [-0.0, 1e-30, -1e30, big, -big, 3.0, 3.0, 0.0, -7.5, -7.500_000_5];
    let every = [true; 10];
    assert_eq!(top_of(&score, &every, 0), [0usize; 0]);
    assert_eq!(top_of(&score, &every, 1), [3]);
    assert_eq!(top_of(&score, &every, 2), [3, 5]);
    assert_eq!(top_of(&score, &every, 3), [3, 5, 6]);
    assert_eq!(top_of(&score, &every, 4), [1, 3, 5, 6]);
    assert_eq!(top_of(&score, &every, 5), [0, 1, 3, 5, 6], "-0 and 0 tie; the earlier one goes first");
    assert_eq!(top_of(&score, &every, 7), [0, 1, 3, 5, 6, 7, 8]);
    assert_eq!(top_of(&score, &every, 9), [0, 1, 2, 3, 5, 6, 7, 8, 9]);
    for k in [10, 11, 1000] {
        assert_eq!(top_of(&score, &every, k).len(), 10);
    }
    let mut few = [false; 10];
    assert_eq!(top_of(&score, &few, 4), [0usize; 0], "nothing is valid");
    (few[4], few[8]) = (true, true);
    assert_eq!(top_of(&score, &few, 1), [8], "the second rank alone has what is larger");
    assert_eq!(top_of(&score, &few, 5), [4, 8]);
}

#[test]
fn a_key_is_the_pattern_of_the_number() {
    let mut rng = Rng(3);
    let mut x: Vec<f32> = (0..4000).map(|_| f32::from_bits(rng.bits() as u32)).filter(|x| x.is_finite()).collect();
    let edges = (-126..128).flat_map(|e| {
        let p = 2f32.powi(e);
        [p, -p, f32::from_bits(p.to_bits() + 1), f32::from_bits(p.to_bits() - 1)]
    });
    x.extend(edges.chain([0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE]));
    let data: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    for mode in MODES {
        let got = one("@order_key", &format!("i32[{}]", x.len()), 1, vec![f32s(&[x.len()], &data)], mode).remove(0);
        for (x, key) in x.iter().zip(got) {
            let size = if x.is_normal() { f64::from(x.abs().to_bits()) } else { 0.0 };
            assert_eq!(key, if *x < 0.0 { -size } else { size }, "{x:e}");
        }
    }
    let odd = vec![f32s(&[3], &[f64::INFINITY, f64::NEG_INFINITY, f64::NAN])];
    let top = f64::from(f32::MAX.to_bits());
    assert_eq!(one("@order_key", "i32[3]", 1, odd, Mode::Typed)[0], [top, -top, 0.0], "no key is out of range");
}

#[test]
fn ratios_count_in_ten_thousandths() {
    let count = |ratio: f64, n: i64| {
        one("@keep_count", "i32", 1, vec![f32s(&[], &[ratio]), i32s(&[], &[n])], Mode::Typed)[0][0] as i64
    };
    for (parts, n) in [(6000, 5), (7000, 10), (1, 1), (1, 20_000), (9999, 10_000), (3000, 10), (10_000, 1 << 30)] {
        let want = (parts * n + 9999) / 10_000;
        assert_eq!(count(f64::from((parts as f64 / 1e4) as f32), n), want, "{parts} / 10000 of {n}");
    }
    let mut rng = Rng(8);
    for _ in 0..300 {
        let (parts, n) = (rng.below(10_001) as i64, rng.below(1 << 24) as i64);
        assert_eq!(count(f64::from(parts as f32 / 1e4), n), (parts * n + 9999) / 10_000, "{parts} / 10000 of {n}");
    }
    assert_eq!((count(1.5, 7), count(-0.5, 7), count(0.6, 0)), (7, 0, 0), "ratios are held in 0..1");
}

#[test]
fn places_of_what_holds() {
    let mut rng = Rng(21);
    for (t, n, k) in [(12, 3, 5), (12, 1, 12), (12, 12, 4), (30, 5, 30), (1, 1, 1)] {
        for _ in 0..6 {
            let odds = 1 + rng.below(4);
            let holds: Vec<f64> = (0..t).map(|_| f64::from(u8::from(rng.below(4) < odds))).collect();
            let results = format!("i32[{k}], i32[{t}]");
            let callee = format!("@compact[N={n}, K={k}]");
            let got = one(&callee, &results, 2, vec![tensor(Dtype::Bool, &[t], holds.clone())], Mode::Typed);
            let order: Vec<usize> = (0..t).filter(|i| holds[*i] != 0.0).collect();
            for (place, id) in got[0].iter().enumerate() {
                match order.get(place) {
                    Some(want) => assert_eq!(*id, *want as f64),
                    None => assert!(*id >= t as f64, "an empty place reads as 0"),
                }
            }
            for (i, slot) in got[1].iter().enumerate() {
                let want = order.iter().position(|o| *o == i).map_or(-1.0, |p| p as f64);
                assert_eq!(*slot, want);
            }
        }
    }
}

/// Rows, projection and what each rank holds of them, for the two-pass loss.
fn rows(s: &Stream, tokens: &[usize], x: &[f64], w: &[f64], tail: (f64, f64, bool)) -> Vec<Tensor> {
    let c = x.len() / s.labels.len();
    let own: Vec<f64> = tokens.iter().flat_map(|t| x[t * c..(t + 1) * c].to_vec()).collect();
    let mut out = vec![f32s(&[tokens.len(), c], &own), f32s(&[V, c], w)];
    let mut rest = s.operands(tokens, 1.0, tail.0);
    rest.remove(0);
    let (reference, labels) = (rest.remove(0), rest.remove(0));
    out.extend([labels, reference]);
    out.extend(rest);
    out.extend([f32s(&[], &[tail.1]), tensor(Dtype::Bool, &[], vec![f64::from(u8::from(tail.2))])]);
    out
}

/// The text of the two-pass loss over one rank's tokens.
fn two_pass(t: usize, n: usize, k: usize, operands: &[Tensor]) -> String {
    let results = format!("f32, bool[{t}], i32, f32[{t}], f32, f32[{t}]");
    caller(&format!("@two_pass_loss[J=1, N={n}, K={k}]"), &results, 6, operands)
}

#[test]
fn two_passes_are_one() {
    let c = 3;
    for (ranks, n, k) in [(1, 1, 12), (1, 3, 8), (2, 2, 6), (3, 4, 12), (7, 2, 6)] {
        let mut rng = Rng(ranks as u64 * 17 + n as u64);
        let total = 12 * ranks;
        let s = Stream::new(total, 9, 3, &mut rng);
        let (x, w) = (rng.vec(total * c, 2.0), rng.vec(V * c, 1.5));
        for (whole, z) in [(false, 0.0), (true, 1e-2)] {
            let [_, layout] = layouts(total, ranks, &mut rng);
            let operands: Vec<Vec<Tensor>> = layout.iter().map(|t| rows(&s, t, &x, &w, (0.5, z, whole))).collect();
            let got = run(&two_pass(12, n, k, &operands[0]), operands, Mode::Exact);
            // By hand: every token's loss, a sort, a mean.
            let logits = |t: usize, v: usize| (0..c).map(|j| x[t * c + j] * w[v * c + j]).sum::<f64>();
            let lse: Vec<f64> = (0..total).map(|t| (0..V).map(|v| logits(t, v).exp()).sum::<f64>().ln()).collect();
            let nll: Vec<f64> = (0..total)
                .map(|t| if s.labels[t] < 0 { 0.0 } else { lse[t] - logits(t, s.labels[t] as usize) })
                .collect();
            let all: Vec<usize> = (0..total).collect();
            let scored = Stream { loss: nll.clone(), reference: s.reference.clone(), labels: s.labels.clone() };
            let top = scored.top(&all, 1.0, s.labelled().div_ceil(2));
            assert_eq!(kept(&layout, &got, 1), top);
            let by = if whole { s.labelled() } else { top.len() } as f64;
            let want: f64 = top.iter().map(|&t| nll[t] + z * lse[t] * lse[t]).sum::<f64>() / by;
            near("sum of the parts", &[got.iter().map(|r| r[0].data[0]).sum()], &[want], 1e-12);
            let missed: usize =
                layout.iter().map(|l| l.iter().filter(|t| top.contains(t)).count().saturating_sub(k)).sum();
            for r in &got {
                assert_eq!((r[2].data[0], r[4].data[0]), (missed as f64, by), "what finds no room, and the total");
            }
        }
    }
}

#[test]
fn the_backward_pays_for_kept_rows_only() {
    let (t, n, k) = (12, 4, 6);
    let mut rng = Rng(2);
    let s = Stream::new(t, 9, 0, &mut rng);
    let tokens: Vec<usize> = (0..t).collect();
    let operands = rows(&s, &tokens, &rng.vec(t * 3, 1.0), &rng.vec(V * 3, 1.0), (0.5, 0.0, false));
    let mut module = parse(&two_pass(t, n, k, &operands)).unwrap();
    let f = module.named("main").unwrap();
    let scope = omchat_ir::Scope::new(&[library::file().unwrap()]);
    let grad = differentiate(&mut module, &scope, f, &[0], &[Value(0), Value(1)]).unwrap();
    let text = module.to_string();
    assert!(!text.contains(&format!("f32[{t}, {V}]")), "no logits of all tokens:\n{text}");
    let part = format!("@linear_cross_entropy_backward[C=3, E=f32, T={}, V={V}](", t / n);
    assert_eq!(text.matches(&format!("call {part}")).count(), k * n / t, "two tiles of three rows, not four:\n{text}");
    let mut all = operands.clone();
    all.push(f32s(&[], &[1.0]));
    let results = interpret(&module, grad, vec![all], Mode::Exact).unwrap().remove(0);
    let (keep, dx) = (&results[1].data, &results[results.len() - 2].data);
    for (row, held) in dx.chunks(3).zip(keep) {
        assert_eq!(row.iter().any(|d| *d != 0.0), *held != 0.0, "a token trains if it was kept");
    }
}
