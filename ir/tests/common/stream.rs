//! Packed streams of tokens, laid over the ranks of a ring.

use super::{Rng, caller, i32s, run, tensor};
use omchat_ir::{Dtype, Mode, Tensor};

pub const B: usize = 2;
pub const H: usize = 2;
pub const G: usize = 3;
pub const D: usize = 4;
pub const EMPTY: f64 = -1e30;

/// A packed stream: queries, keys and values of N tokens, the document and whether it is padding.
pub struct Stream {
    pub n: usize,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    document: Vec<Vec<usize>>,
    padding: Vec<Vec<bool>>,
}

impl Stream {
    pub fn new(n: usize, seed: u64, dtype: Dtype) -> Stream {
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

    /// A stream of documents of those lengths, without padding, the same in all of the batch.
    pub fn of(lengths: &[usize], seed: u64, dtype: Dtype) -> Stream {
        let n = lengths.iter().sum();
        let document: Vec<usize> = lengths.iter().enumerate().flat_map(|(d, n)| vec![d; *n]).collect();
        Stream { document: vec![document; B], padding: vec![vec![false; n]; B], ..Stream::new(n, seed, dtype) }
    }

    /// Softmax over what each token sees: its document up to itself. Output, then log-sum-exp.
    pub fn oracle(&self) -> (Vec<f64>, Vec<f64>) {
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
    pub fn operands(&self, tokens: &[usize], dtype: Dtype) -> Vec<Tensor> {
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
    pub fn ring(&self, layout: &[Vec<usize>], dtype: Dtype, mode: Mode, library: &str) -> (Vec<f64>, Vec<f64>) {
        Stream::rings(&[self], layout, dtype, mode, library).remove(0)
    }

    /// The same for a ring of each stream, side by side.
    pub fn rings(
        streams: &[&Stream],
        layout: &[Vec<usize>],
        dtype: Dtype,
        mode: Mode,
        library: &str,
    ) -> Vec<(Vec<f64>, Vec<f64>)> {
        let (r, c) = (layout.len(), layout[0].len());
        let of = |s: &&Stream| layout.iter().map(|tokens| s.operands(tokens, dtype)).collect::<Vec<_>>();
        let ranks: Vec<Vec<Tensor>> = streams.iter().flat_map(of).collect();
        let results = format!("{dtype}[{B}, {H}, {G}, {c}, {D}], f32[{B}, {H}, {G}, {c}]");
        let text = library.to_string() + &caller(&format!("@ring_attention[R={r}]"), &results, 2, &ranks[0]);
        let found = run(&text, ranks, mode);
        streams.iter().zip(found.chunks(r)).map(|(s, found)| s.in_order(layout, found)).collect()
    }

    /// Output and log-sum-exp of a ring's ranks, the tokens in order.
    pub fn in_order(&self, layout: &[Vec<usize>], found: &[Vec<Tensor>]) -> (Vec<f64>, Vec<f64>) {
        let c = layout[0].len();
        let (mut out, mut lse) = (vec![0.0; B * H * G * self.n * D], vec![0.0; B * H * G * self.n]);
        for (tokens, result) in layout.iter().zip(found) {
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
pub fn layouts(n: usize, r: usize, seed: u64) -> [Vec<Vec<usize>>; 3] {
    let c = n / r;
    let cut = |order: Vec<usize>| order.chunks(c).map(<[usize]>::to_vec).collect::<Vec<_>>();
    let half = c / 2;
    let zigzag =
        (0..r).flat_map(|i| (i * half..(i + 1) * half).chain((2 * r - 1 - i) * half..(2 * r - i) * half)).collect();
    [cut((0..n).collect()), cut(zigzag), cut(Rng(seed).order(n))]
}

/// A text with one place of it changed.
pub fn mutant(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "`{from}` must stand once in the library");
    text.replace(from, to)
}
