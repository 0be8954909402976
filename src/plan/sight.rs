//! Who sees whom in a ring: pairs of queries and keys that see each other, by rank of each; how far keys travel.

use omchat_recipe::ring::Layout;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::ops::Range;

/// Lengths of documents that fill `n` positions: cut at places drawn from a seed, so that short ones are many.
///
/// Errors: none; there is at least one document, and at most one a position.
pub fn documents(n: usize, count: usize, seed: u64) -> Vec<usize> {
    let cuts = count.clamp(1, n.max(1)) - 1;
    let mut at = rand::seq::index::sample(&mut StdRng::seed_from_u64(seed), n.saturating_sub(1), cuts).into_vec();
    at.sort_unstable();
    let ends = at.iter().map(|c| c + 1).chain([n]);
    let starts = std::iter::once(0).chain(at.iter().map(|c| c + 1));
    starts.zip(ends).map(|(s, e)| e - s).collect()
}

/// What the ranks of a ring see of each other under causal masks within documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Positions of a rank: T.
    pub tokens: usize,
    /// Pairs by rank of the query and rank of the key: [R][R].
    pub pairs: Vec<Vec<u64>>,
    /// How many hops the keys of each rank must travel, as `@ring_reach` tells it from the ends of chunks.
    pub reach: Vec<usize>,
}

impl Sight {
    /// Of documents one after another, on a ring of ranks; what no document fills is padding, which sees itself.
    ///
    /// `chunks` are those of `@ring_reach`; they divide a rank's tokens.
    pub fn of(documents: &[usize], n: usize, ring: usize, layout: Layout, chunks: usize) -> Sight {
        let ring = ring.max(1);
        let places = layout.positions(n, ring);
        let mut starts = vec![0];
        for d in documents.iter().filter(|d| **d > 0) {
            starts.push(starts.last().copied().unwrap_or(0) + d);
        }
        let filled = starts.last().copied().unwrap_or(0);
        let end = ring * places.first().map_or(0, Vec::len);
        starts.extend(filled + 1..=end);
        let runs: Vec<Vec<Range<usize>>> = places.iter().map(|p| runs(p)).collect();
        let seen = |q: &[Range<usize>], k: &[Range<usize>]| {
            q.iter().flat_map(|q| k.iter().map(move |k| (q, k))).map(|(q, k)| between(&starts, q, k)).sum()
        };
        let pairs = runs.iter().map(|q| runs.iter().map(|k| seen(q, k)).collect()).collect();
        let ends: Vec<Vec<Ends>> = places.iter().map(|p| ends(&starts, p, chunks)).collect();
        let reach = (0..ring).map(|r| told(&ends, r)).collect();
        Sight { tokens: places.first().map_or(0, Vec::len), pairs, reach }
    }

    /// Ranks of the ring.
    pub fn ring(&self) -> usize {
        self.pairs.len()
    }

    /// Pairs that each rank's queries see.
    pub fn work(&self) -> Vec<u64> {
        self.pairs.iter().map(|row| row.iter().sum()).collect()
    }

    /// The most pairs of a rank over their mean: 1 is even.
    pub fn imbalance(&self) -> f64 {
        let work = self.work();
        let sum: u64 = work.iter().sum();
        let most = work.iter().copied().max().unwrap_or(0);
        if sum > 0 { most as f64 * work.len() as f64 / sum as f64 } else { 1.0 }
    }

    /// Blocks of keys of other ranks that a rank's queries see nothing of, of how many.
    pub fn skipped(&self) -> (usize, usize) {
        let others = self
            .pairs
            .iter()
            .enumerate()
            .flat_map(|(q, row)| row.iter().enumerate().filter(move |(k, _)| *k != q).map(|(_, pairs)| *pairs));
        let (all, none) = others.fold((0, 0), |(a, n), p| (a + 1, n + usize::from(p == 0)));
        (none, all)
    }

    /// The mean share of a block of other ranks' keys, T x T pairs, that is seen.
    pub fn share(&self) -> f64 {
        let ring = self.ring();
        let others: u64 = (0..ring)
            .flat_map(|q| (0..ring).filter(move |k| *k != q).map(move |k| (q, k)))
            .map(|(q, k)| self.pairs[q][k])
            .sum();
        let blocks = (ring * ring.saturating_sub(1)).max(1) as f64;
        others as f64 / blocks / (self.tokens.max(1) as f64).powi(2)
    }
}

/// Positions as runs of successive ones.
fn runs(places: &[usize]) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = vec![];
    for p in places {
        match out.last_mut() {
            Some(r) if r.end == *p => r.end += 1,
            _ => out.push(*p..*p + 1),
        }
    }
    out
}

/// Pairs of a query of one run and a key of another, or of the same, in one document and not after the query.
fn between(starts: &[usize], q: &Range<usize>, k: &Range<usize>) -> u64 {
    if q == k {
        let first = document(starts, q.start);
        let parts = starts.windows(2).skip(first).take_while(|d| d[0] < q.end);
        return parts.map(|d| (d[1].min(q.end) - d[0].max(q.start)) as u64).map(|n| n * (n + 1) / 2).sum();
    }
    if k.start >= q.end {
        return 0;
    }
    // The only document that may reach from keys that stand before to the queries is that of the last key.
    let d = document(starts, k.end - 1);
    let (Some(start), Some(end)) = (starts.get(d), starts.get(d + 1)) else { return 0 };
    (end.min(&q.end).saturating_sub(q.start) as u64) * (k.end - start.max(&k.start)) as u64
}

/// The document of a position.
fn document(starts: &[usize], place: usize) -> usize {
    starts.partition_point(|s| *s <= place).saturating_sub(1)
}

/// What a chunk tells: the first and the last key, and of its queries the first `lo` and the last `hi`.
#[derive(Clone, Copy)]
struct Ends {
    first: usize,
    last: usize,
    low: usize,
    high: usize,
}

fn ends(starts: &[usize], places: &[usize], chunks: usize) -> Vec<Ends> {
    let size = (places.len() / chunks.max(1)).max(1);
    let lo = |p: &usize| starts.get(document(starts, *p)).copied().unwrap_or(0);
    places
        .chunks(size)
        .map(|c| {
            let (first, last) = (c.iter().copied().min().unwrap_or(0), c.iter().copied().max().unwrap_or(0));
            Ends { first, last, low: c.iter().map(lo).min().unwrap_or(0), high: last }
        })
        .collect()
}

/// The farthest rank of the ring of which a chunk of queries may see a chunk of this rank's keys.
fn told(ends: &[Vec<Ends>], rank: usize) -> usize {
    let ring = ends.len();
    let meets = |step: &usize| {
        let theirs = &ends[(rank + step) % ring];
        ends[rank].iter().any(|k| theirs.iter().any(|q| k.last >= q.low && q.high >= k.first))
    };
    (1..ring).rev().find(meets).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pairs one by one.
    fn brute(documents: &[usize], n: usize, ring: usize, layout: Layout) -> Vec<Vec<u64>> {
        let mut lo: Vec<usize> = documents
            .iter()
            .scan(0, |s, d| {
                *s += d;
                Some(vec![*s - d; *d])
            })
            .flatten()
            .collect();
        lo.extend(lo.len()..n + 2 * ring);
        let places = layout.positions(n, ring);
        let sees = |q: usize, k: usize| lo[q] <= k && k <= q;
        let count =
            |q: &Vec<usize>, k: &Vec<usize>| q.iter().map(|q| k.iter().filter(|k| sees(*q, **k)).count() as u64).sum();
        places.iter().map(|q| places.iter().map(|k| count(q, k)).collect()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pairs_are_those_counted_one_by_one(n in 1usize..120, ring in 1usize..9, count in 1usize..20, seed: u64, zigzag: bool) {
            let layout = if zigzag { Layout::Zigzag } else { Layout::Contiguous };
            let lengths = documents(n, count, seed);
            prop_assert_eq!(lengths.iter().sum::<usize>(), n);
            prop_assert_eq!(lengths.len(), count.min(n));
            prop_assert!(lengths.iter().all(|d| *d > 0));
            let tokens = Layout::tokens(n, ring);
            let fine = Sight::of(&lengths, n, ring, layout, tokens);
            let pairs = brute(&lengths, n, ring, layout);
            prop_assert_eq!(&fine.pairs, &pairs);
            // With a token a chunk what is told is exact; with fewer chunks never too little.
            let coarse = Sight::of(&lengths, n, ring, layout, 1);
            for r in 0..ring {
                let exact = (0..ring).rev().find(|s| *s > 0 && pairs[(r + s) % ring][r] > 0).unwrap_or(0);
                prop_assert_eq!(fine.reach[r], exact);
                prop_assert!(coarse.reach[r] >= exact);
            }
            let skipped = (0..ring).flat_map(|q| (0..ring).map(move |k| (q, k))).filter(|(q, k)| q != k && pairs[*q][*k] == 0);
            prop_assert_eq!(fine.skipped(), (skipped.count(), ring * (ring - 1)));
        }

        /// Zigzag is even over one document, over equal ones, and within 5 % over many short ones of drawn lengths.
        #[test]
        fn zigzag_is_even(ring in 2usize..9, seed: u64) {
            let n = 4096 * ring;
            let whole = Sight::of(&[n], n, ring, Layout::Zigzag, 64);
            prop_assert!(whole.imbalance() < 1.0 + 1e-9);
            prop_assert!(Sight::of(&[n], n, ring, Layout::Contiguous, 64).imbalance() > 1.4);
            for length in [16, 64, 1024, n / 2] {
                let equal = vec![length; n / length];
                prop_assert!(Sight::of(&equal, n, ring, Layout::Zigzag, 64).imbalance() < 1.05, "{}", length);
            }
            let (n, count) = (1 << 20, 1 << 18);
            let drawn = documents(n, count, seed);
            prop_assert!(Sight::of(&drawn, n, ring, Layout::Zigzag, 64).imbalance() < 1.05);
        }
    }
}
