//! Who sees whom in a ring: pairs of queries and keys that see each other, by rank of each; how far keys travel.

use omchat_recipe::ring::{Layout, Placement};
use rand::SeedableRng;
use rand::rngs::StdRng;

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
        let placement = layout.place(documents, n, ring);
        let starts: Vec<usize> = std::iter::once(0)
            .chain(documents.iter().filter(|d| **d > 0).scan(0, |s, d| {
                *s += d;
                Some(*s)
            }))
            .collect();
        let ends: Vec<Vec<Ends>> = (0..placement.ranks().len()).map(|r| ends(&starts, &placement, r, chunks)).collect();
        let reach = (0..ends.len()).map(|r| told(&ends, r)).collect();
        Sight { tokens: placement.positions(0).len(), pairs: pairs(&starts, &placement), reach }
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

    /// The same if each hop waited for its busiest rank: the sum over hops of the most pairs of a rank, over the mean. Ranks
    /// do not wait for one another while the keys at hand came by the hop before, so a turn takes between the two.
    pub fn hop_imbalance(&self) -> f64 {
        let ring = self.ring();
        let hop = |h: usize| (0..ring).map(move |q| self.pairs[q][(q + ring - h) % ring]).max().unwrap_or(0);
        let most: u64 = (0..ring).map(hop).sum();
        let sum: u64 = self.work().iter().sum();
        if sum > 0 { most as f64 * ring as f64 / sum as f64 } else { 1.0 }
    }

    /// Blocks of keys that are sent on in a turn, of how many if all went all the way.
    pub fn sends(&self) -> (usize, usize) {
        (self.reach.iter().sum(), self.ring() * self.ring().saturating_sub(1))
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

/// Pairs of queries and keys in one document, the key not after the query, by rank of each; the rest sees itself.
fn pairs(starts: &[usize], placement: &Placement) -> Vec<Vec<u64>> {
    let ring = placement.ranks().len();
    let mut out = vec![vec![0; ring]; ring];
    // What lies together of a document on a rank.
    let mut pieces: Vec<(usize, usize, usize)> = vec![];
    let filled = starts.last().copied().unwrap_or(0);
    for (rank, runs) in placement.ranks().iter().enumerate() {
        for run in runs {
            let (mut from, end) = (run.start, run.start + run.len);
            while from < end.min(filled) {
                let until = starts.get(document(starts, from) + 1).map_or(end, |next| end.min(*next));
                pieces.push((from, until, rank));
                from = until;
            }
            out[rank][rank] += (end - from) as u64;
        }
    }
    pieces.sort_unstable();
    let mut first = 0;
    for (i, (from, until, q)) in pieces.iter().copied().enumerate() {
        let len = (until - from) as u64;
        out[q][q] += len * (len + 1) / 2;
        let start = starts.get(document(starts, from)).copied().unwrap_or(0);
        while pieces[first].0 < start {
            first += 1;
        }
        pieces[first..i].iter().for_each(|(a, b, k)| out[q][*k] += len * (b - a) as u64);
    }
    out
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

fn ends(starts: &[usize], placement: &Placement, rank: usize, chunks: usize) -> Vec<Ends> {
    let filled = starts.last().copied().unwrap_or(0);
    // A query's place, and the first that it sees.
    let seen = |(position, place): (usize, usize)| match starts.get(document(starts, position)) {
        Some(start) if position < filled => (place, place - (position - start)),
        _ => (place, place),
    };
    let all: Vec<(usize, usize)> =
        placement.positions(rank).into_iter().zip(placement.places(rank)).map(seen).collect();
    let size = (all.len() / chunks.max(1)).max(1);
    let one = |c: &[(usize, usize)]| {
        let places = || c.iter().map(|(place, _)| *place);
        let (first, last) = (places().min().unwrap_or(0), places().max().unwrap_or(0));
        Ends { first, last, low: c.iter().map(|(_, lo)| *lo).min().unwrap_or(0), high: last }
    };
    all.chunks(size).map(one).collect()
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
    #![allow(clippy::unwrap_used)]
    use super::*;
    use omchat_model::graph::ring_chunks;
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
        let placement = layout.place(documents, n, ring);
        let places: Vec<Vec<usize>> = (0..ring).map(|r| placement.positions(r)).collect();
        let sees = |q: usize, k: usize| lo[q] <= k && k <= q;
        let count =
            |q: &Vec<usize>, k: &Vec<usize>| q.iter().map(|q| k.iter().filter(|k| sees(*q, **k)).count() as u64).sum();
        places.iter().map(|q| places.iter().map(|k| count(q, k)).collect()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pairs_are_those_counted_one_by_one(n in 1usize..120, ring in 1usize..9, count in 1usize..20, seed: u64, which in 0..3usize) {
            let layout = Layout::ALL[which];
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
            let work: Vec<u64> = pairs.iter().map(|row| row.iter().sum()).collect();
            let mean = work.iter().sum::<u64>() as f64 / ring as f64;
            prop_assert!((fine.imbalance() - *work.iter().max().unwrap() as f64 / mean).abs() < 1e-12);
            let hop = |h: usize| (0..ring).map(|q| pairs[q][(q + ring - h) % ring]).max().unwrap() as f64 / mean;
            prop_assert!((fine.hop_imbalance() - (0..ring).map(hop).sum::<f64>()).abs() < 1e-12);
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

        /// Documents of drawn lengths, far shorter than a rank's part or longer than it: even in all, nearly so hop by hop.
        /// Short ones do not travel, but for the one that two neighbours share.
        #[test]
        fn balanced_is_even(ring in 2usize..17, seed: u64, mean in 6u32..15) {
            let n = (1 << 17) - seed as usize % 97;
            let drawn = documents(n, n >> mean, seed);
            let tokens = Layout::tokens(n, ring);
            let sight = Sight::of(&drawn, n, ring, Layout::Balanced, ring_chunks(tokens));
            prop_assert!(sight.imbalance() <= 1.05, "{}", sight.imbalance());
            prop_assert!(sight.hop_imbalance() <= 1.25, "{}", sight.hop_imbalance());
            if mean == 6 {
                prop_assert!(sight.sends().0 < ring && sight.skipped().0 >= (ring - 1) * (ring - 1));
                prop_assert!(sight.reach.iter().all(|r| *r <= 1), "{:?}", sight.reach);
            }
        }
    }

    /// The table of docs/ring.md: of ten packs the worst of each layout, in all and hop by hop, then means of the shares of
    /// other ranks' blocks that nobody sees, and that are sent.
    #[test]
    fn layouts_side_by_side() {
        println!(
            "| ranks | mean length | layout | most pairs | hop by hop | unseen | sent |\n|---:|---:|---|---:|---:|---:|---:|"
        );
        for (ring, mean) in [2, 8, 16].into_iter().flat_map(|r| [256, 2048, 16_384].map(|m| (r, m))) {
            for layout in Layout::ALL {
                let n = 1 << 17;
                let packs = (0..10).map(|seed| documents(n, n / mean, seed));
                let all: Vec<Sight> = packs.map(|d| Sight::of(&d, n, ring, layout, 64)).collect();
                let worst = |f: fn(&Sight) -> f64| all.iter().map(f).fold(0.0, f64::max);
                let share = |f: fn(&Sight) -> (usize, usize)| {
                    let (some, of) = all.iter().map(f).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
                    100.0 * some as f64 / of as f64
                };
                println!(
                    "| {ring} | {mean} | {} | {:.3} | {:.3} | {:.0} % | {:.0} % |",
                    layout.name(),
                    worst(Sight::imbalance),
                    worst(Sight::hop_imbalance),
                    share(Sight::skipped),
                    share(Sight::sends)
                );
                assert!(layout != Layout::Balanced || worst(Sight::imbalance) <= 1.05);
            }
        }
    }
}
