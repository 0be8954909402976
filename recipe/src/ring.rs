//! How the positions of a pack lie on the ranks of a ring.

use serde::{Deserialize, Serialize};

/// How the positions of a pack lie on the ranks of a ring. Any order is right: a key says where it stands, and positions,
/// labels and intervals lie as the tokens do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Rank r has the r-th part: the last ranks see the most keys.
    Contiguous,
    /// Of 2R parts rank r has the r-th and the r-th from the end: under a causal mask all ranks see as many pairs.
    ///
    /// Source: zhuzilin/ring-flash-attention.
    #[default]
    Zigzag,
}

impl Layout {
    /// The positions of each of `ring` ranks, as many on each: [R, T]. Those from `n` on are padding, up to 2R − 1.
    pub fn positions(self, n: usize, ring: usize) -> Vec<Vec<usize>> {
        let ring = ring.max(1);
        if ring == 1 {
            return vec![(0..n).collect()];
        }
        let half = n.div_ceil(2 * ring);
        let part = |i: usize| i * half..(i + 1) * half;
        let ranks = 0..ring;
        match self {
            Layout::Contiguous => ranks.map(|r| part(2 * r).chain(part(2 * r + 1)).collect()).collect(),
            Layout::Zigzag => ranks.map(|r| part(r).chain(part(2 * ring - 1 - r)).collect()).collect(),
        }
    }

    /// Positions of each rank: T.
    pub fn tokens(n: usize, ring: usize) -> usize {
        if ring <= 1 { n } else { 2 * n.div_ceil(2 * ring) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_lies_on_one_rank() {
        for layout in [Layout::Contiguous, Layout::Zigzag] {
            for (n, ring) in [(24, 4), (25, 4), (1, 3), (7, 1), (100, 7), (16, 2)] {
                let ranks = layout.positions(n, ring);
                assert!(ranks.len() == ring && ranks.iter().all(|r| r.len() == Layout::tokens(n, ring)));
                let mut all = ranks.concat();
                all.sort_unstable();
                assert_eq!(all, (0..all.len()).collect::<Vec<_>>(), "{layout:?} {n} {ring}");
                assert!(all.len() >= n && all.len() < n + 2 * ring);
            }
        }
    }

    #[test]
    fn zigzag_sees_as_many_pairs_on_every_rank() {
        let pairs =
            |ranks: Vec<Vec<usize>>| ranks.iter().map(|r| r.iter().map(|i| i + 1).sum()).collect::<Vec<usize>>();
        let even = pairs(Layout::Zigzag.positions(64, 4));
        assert!(even.iter().all(|p| *p == even[0]), "{even:?}");
        let uneven = pairs(Layout::Contiguous.positions(64, 4));
        assert!(uneven[3] > 6 * uneven[0], "{uneven:?}");
    }
}
