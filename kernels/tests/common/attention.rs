//! What the tests of attention and of its backward share: sizes, intervals, and what rounding to halves may cost.

use std::collections::BTreeMap;

use omchat_ir::Dtype;

use super::Draw;
use super::reference::{self, Host};

/// B, H, G, T, S, D: odd ones, one query, one key, more than a tile, grouped queries.
pub const SIZES: [(usize, usize, usize, usize, usize, usize); 13] = [
    (1, 1, 1, 1, 1, 8),
    (2, 2, 3, 5, 70, 24),
    (1, 2, 1, 65, 130, 32),
    (1, 1, 3, 40, 200, 64),
    (2, 1, 1, 33, 64, 72),
    (1, 1, 2, 3, 257, 80),
    (1, 1, 1, 17, 129, 128),
    (1, 3, 3, 1, 300, 64),
    (1, 1, 3, 150, 150, 16),
    (1, 1, 1, 9, 9, 5),
    (2, 1, 1, 1, 40, 16),
    (1, 1, 3, 23, 131, 256),
    (1, 1, 7, 11, 140, 64),
];

/// Shapes of q, k, v, lo, hi, at.
pub fn shapes(n: reference::Sizes) -> [Vec<usize>; 6] {
    let keys = vec![n.b, n.h, n.s, n.d];
    [vec![n.b, n.h, n.g, n.t, n.d], keys.clone(), keys, vec![n.b, n.t], vec![n.b, n.t], vec![n.b, n.s]]
}

/// Intervals of the four uses: causal in packed documents, tiles of an image, a window, a cache with empty slots.
pub fn intervals(d: &mut Draw, n: reference::Sizes) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut lo, mut hi, mut at) = (vec![], vec![], vec![]);
    let empty = f64::from(i32::MAX);
    for _ in 0..n.b {
        let kind = d.below(5);
        let filled = if kind == 3 { n.s.div_ceil(4) } else { n.s };
        for s in 0..n.s {
            at.push(if s < filled { s as f64 } else { empty });
        }
        for t in 0..n.t {
            let now = (filled.saturating_sub(n.t) + t) as f64;
            let (l, h) = match kind {
                0 => ((now / 37.0).floor() * 37.0, now),
                1 => ((now / 24.0).floor() * 24.0, (now / 24.0).floor() * 24.0 + 23.0),
                2 => (now - 20.0, now),
                3 => (0.0, now),
                _ => {
                    if d.chance(30) {
                        (5.0, 4.0)
                    } else {
                        (0.0, empty)
                    }
                }
            };
            lo.push(l);
            hi.push(h);
        }
    }
    (lo, hi, at)
}

/// What rounding to halves before a product may cost, for each unit of what the product's terms sum to without signs:
/// matrix units multiply halves, and only they round.
pub fn rounds(kernel: &str, dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Bf16 if kernel.ends_with("mma") => 1.0 / 256.0,
        Dtype::F16 if kernel.ends_with("mma") => 1.0 / 2048.0,
        _ => 0.0,
    }
}

/// Sums of p |v| for every output.
pub fn sizes_of(n: reference::Sizes, [q, k, v]: [&Host; 3], [lo, hi, at]: [&[f64]; 3]) -> Vec<f64> {
    let sizes: Vec<f64> = v.data.iter().map(|x| x.abs()).collect();
    reference::attention(n, &q.data, &k.data, &sizes, lo, hi, at).0
}

/// Runs by kernel.
pub type Runs = BTreeMap<&'static str, usize>;
