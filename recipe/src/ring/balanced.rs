//! Positions laid out by work: whole documents on one rank, the longest over all.

use super::Run;
use std::ops::Range;

/// Documents stay off all ranks as long as the busiest has at most this many pairs over the mean: they then travel little.
const EVEN: f64 = 1.02;

/// A document: where it stands in the pack, and its positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Document {
    len: usize,
    start: usize,
}

/// What a rank has so far.
#[derive(Clone, Debug, Default)]
struct Rank {
    runs: Vec<Run>,
    tokens: usize,
    pairs: u64,
}

impl Rank {
    /// Takes positions of a document, of which the first stands at that place.
    fn take(&mut self, d: Document, of: Range<usize>, place: usize) {
        if of.is_empty() {
            return;
        }
        let run = Run { start: d.start + of.start, len: of.len(), place };
        self.tokens += run.len;
        self.pairs += pairs(of.end) - pairs(of.start);
        match self.runs.last_mut() {
            Some(last) if last.start + last.len == run.start && last.place + last.len == place => last.len += run.len,
            _ => self.runs.push(run),
        }
    }
}

/// Pairs that the first positions of a document see.
fn pairs(len: usize) -> u64 {
    let n = len as u64;
    n * (n + 1) / 2
}

/// Runs of each of `ring` ranks, `tokens` positions on each.
///
/// Positions that no document has see themselves only. The longest documents are spread over all ranks, as few as make
/// the ranks even; if none does, as many as come closest.
pub fn balanced(documents: &[usize], ring: usize, tokens: usize) -> Vec<Vec<Run>> {
    let end = ring * tokens;
    let mut start = 0;
    let mut all: Vec<Document> = vec![];
    for len in documents {
        let len = (*len).min(end - start);
        all.extend((len > 0).then_some(Document { len, start }));
        start += len;
    }
    all.sort_unstable();
    let mut best: Option<(f64, Vec<Rank>)> = None;
    let mut spread = 0;
    loop {
        let ranks = Filling::new(&all, start..end, ring, tokens).filled(spread);
        let off = uneven(&ranks);
        if best.as_ref().is_none_or(|(least, _)| off < *least) {
            best = Some((off, ranks));
        }
        if off <= EVEN || spread >= all.len() {
            return best.map_or(vec![], |(_, ranks)| ranks.into_iter().map(|r| r.runs).collect());
        }
        spread = (spread + (spread / 2).max(1)).min(all.len());
    }
}

/// The most pairs of a rank over their mean.
fn uneven(ranks: &[Rank]) -> f64 {
    let sum: u64 = ranks.iter().map(|r| r.pairs).sum();
    let most = ranks.iter().map(|r| r.pairs).max().unwrap_or(0);
    most as f64 * ranks.len() as f64 / sum.max(1) as f64
}

/// Ranks in the filling.
struct Filling {
    ranks: Vec<Rank>,
    tokens: usize,
    /// Documents that no rank has yet, the shortest first.
    left: Vec<Document>,
    /// Positions that see themselves only and no rank has yet.
    alone: Range<usize>,
    /// A document that one rank has the head of, and how much.
    cut: Option<(Document, usize)>,
    /// Positions that were dealt out one a rank.
    dealt: usize,
    /// The next place.
    place: usize,
}

impl Filling {
    fn new(all: &[Document], alone: Range<usize>, ring: usize, tokens: usize) -> Filling {
        Filling { ranks: vec![Rank::default(); ring], tokens, left: all.to_vec(), alone, cut: None, dealt: 0, place: 0 }
    }

    /// All ranks filled, the longest documents spread over all.
    fn filled(mut self, spread: usize) -> Vec<Rank> {
        let long = self.left.split_off(self.left.len() - spread);
        for d in long.into_iter().rev() {
            self.spread(d);
        }
        for r in 0..self.ranks.len() {
            self.fill(r);
        }
        self.ranks
    }

    /// A document in 2R parts, of which rank r has the r-th and the r-th from the end. Positions that do not divide are dealt
    /// out one a rank, to its early part in one round and to its late one in the next.
    fn spread(&mut self, d: Document) {
        let ring = self.ranks.len();
        let (size, more) = (d.len / (2 * ring), d.len % (2 * ring));
        let mut sizes = vec![size; 2 * ring];
        for deal in self.dealt..self.dealt + more {
            let (r, late) = (deal % ring, deal / ring % 2 == 1);
            sizes[if late { 2 * ring - 1 - r } else { r }] += 1;
        }
        self.dealt += more;
        let mut from = 0;
        for (part, size) in sizes.into_iter().enumerate() {
            self.ranks[part.min(2 * ring - 1 - part)].take(d, from..from + size, self.place + from);
            from += size;
        }
        self.place += d.len;
    }

    /// Fills a rank to an even share of the pairs that are left: the rest of the document that was cut, then the longest
    /// documents that leave the shortest room to fill it up. The last of those is cut, and its rest goes to the next rank.
    fn fill(&mut self, r: usize) {
        let share = self.share(r);
        if let Some((d, from)) = self.cut.take() {
            self.put(r, d, from);
        }
        let alone = self.alone.len().min(self.tokens - self.ranks[r].tokens);
        let short = Short::new(&self.left, self.alone.len());
        let mut room = self.tokens - self.ranks[r].tokens;
        let mut pairs_left = share.saturating_sub(self.ranks[r].pairs);
        let mut taken = vec![false; self.left.len()];
        for (i, d) in self.left.iter().enumerate().rev() {
            if !short.spares(i, room) {
                break;
            }
            if d.len <= room && pairs(d.len) + short.pairs(room - d.len) <= pairs_left {
                taken[i] = true;
                room -= d.len;
                pairs_left -= pairs(d.len);
            }
        }
        let alone = alone.min(room);
        room -= alone;
        let (mut chosen, mut left) = (vec![], vec![]);
        for (d, taken) in self.left.drain(..).zip(taken) {
            if taken { &mut chosen } else { &mut left }.push(d);
        }
        self.left = left;
        let count = self.left.iter().scan(0, |sum, d| (*sum < room).then(|| *sum += d.len)).count();
        chosen.extend(self.left.drain(..count));
        self.take_alone(r, alone);
        chosen.into_iter().for_each(|d| self.put(r, d, 0));
    }

    /// Pairs that rank `r` has when it has its even share of those that this rank and the ones after it may share.
    fn share(&self, r: usize) -> u64 {
        let rest: u64 = self.left.iter().map(|d| pairs(d.len)).sum::<u64>() + self.alone.len() as u64;
        let cut = self.cut.map_or(0, |(d, from)| pairs(d.len) - pairs(from));
        let spread: u64 = self.ranks[r..].iter().map(|r| r.pairs).sum();
        (rest + cut + spread) / (self.ranks.len() - r) as u64
    }

    /// As much of a document from there on as the rank has room for; the rest is for the next.
    fn put(&mut self, r: usize, d: Document, from: usize) {
        let until = d.len.min(from + self.tokens - self.ranks[r].tokens);
        self.ranks[r].take(d, from..until, self.place);
        self.place += until - from;
        self.cut = (until < d.len).then_some((d, until));
    }

    /// That many positions that see themselves only.
    fn take_alone(&mut self, r: usize, count: usize) {
        let rank = &mut self.ranks[r];
        let d = Document { start: self.alone.start, len: count };
        let before = rank.pairs;
        rank.take(d, 0..count, self.place);
        rank.pairs = before + count as u64;
        self.alone.start += count;
        self.place += count;
    }
}

/// What fills a rank up: positions that see themselves only, then documents from the shortest on.
struct Short {
    alone: usize,
    /// Positions of the first documents, by how many.
    tokens: Vec<usize>,
    /// Their pairs.
    pairs: Vec<u64>,
}

impl Short {
    fn new(left: &[Document], alone: usize) -> Short {
        let mut out = Short { alone, tokens: vec![0], pairs: vec![0] };
        let (mut tokens, mut sum) = (0, 0);
        for d in left {
            tokens += d.len;
            sum += pairs(d.len);
            out.tokens.push(tokens);
            out.pairs.push(sum);
        }
        out
    }

    /// Pairs that so many positions see.
    fn pairs(&self, tokens: usize) -> u64 {
        let Some(rest) = tokens.checked_sub(self.alone) else { return tokens as u64 };
        let whole = self.tokens.partition_point(|t| *t <= rest).saturating_sub(1);
        self.alone as u64 + self.pairs[whole] + pairs(rest - self.tokens[whole])
    }

    /// Whether those that fill so many positions do without the i-th document, but for a cut one.
    fn spares(&self, i: usize, tokens: usize) -> bool {
        self.tokens[i + 1] + self.alone >= tokens
    }
}
