//! How the positions of a pack lie on the ranks of a ring.

mod balanced;

use serde::{Deserialize, Serialize};

/// How the positions of a pack lie on the ranks of a ring. Any order is right: a key says where it stands, and positions,
/// labels and intervals lie as the tokens do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Rank r has the r-th part: the last ranks see the most keys.
    Contiguous,
    /// Of 2R parts rank r has the r-th and the r-th from the end: under a causal mask over one document all ranks see as
    /// many pairs.
    ///
    /// Source: zhuzilin/ring-flash-attention.
    Zigzag,
    /// Documents whole on one rank, so that all ranks see as many pairs and few keys travel; where that is not enough the
    /// longest are zigzagged, each by itself. One document lies as in zigzag.
    ///
    /// Source: zigzag within each document as Megatron's and Transformer Engine's context parallelism; whole ones are ours.
    #[default]
    Balanced,
}

/// Positions of a rank that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first one, in the pack.
    pub start: usize,
    /// How many.
    pub len: usize,
    /// Where the first one stands in the ring's order.
    pub place: usize,
}

/// Where the positions of a pack lie on a ring, as many on each rank.
///
/// The ring has an order of its own, in which documents that a rank has are neighbours. A document's positions follow one
/// another in it as in the pack, so places say who sees whom as positions do, and say it of a rank's tiles in few numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    ranks: Vec<Vec<Run>>,
}

impl Placement {
    /// The runs of each rank, by their places. Positions from the pack's end on are padding.
    pub fn ranks(&self) -> &[Vec<Run>] {
        &self.ranks
    }

    /// The positions of a rank, in the order that it has them: [T].
    pub fn positions(&self, rank: usize) -> Vec<usize> {
        self.ranks.get(rank).into_iter().flatten().flat_map(|r| r.start..r.start + r.len).collect()
    }

    /// The places of a rank's positions: [T].
    pub fn places(&self, rank: usize) -> Vec<usize> {
        self.ranks.get(rank).into_iter().flatten().flat_map(|r| r.place..r.place + r.len).collect()
    }
}

impl Layout {
    /// All of them.
    pub const ALL: [Layout; 3] = [Layout::Balanced, Layout::Zigzag, Layout::Contiguous];

    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Contiguous => "contiguous",
            Layout::Zigzag => "zigzag",
            Layout::Balanced => "balanced",
        }
    }

    /// Where `n` positions of documents one after another lie on `ring` ranks. What is behind the last document, and up to
    /// 2R − 1 positions of padding from `n` on, sees itself only.
    pub fn place(self, documents: &[usize], n: usize, ring: usize) -> Placement {
        let ring = ring.max(1);
        let tokens = Layout::tokens(n, ring);
        let half = tokens / 2;
        let run = |start: usize, len: usize| Run { start, len, place: start };
        let part = |i: usize| run(i * half, half);
        let ranks = 0..ring;
        let ranks = match self {
            _ if ring == 1 => vec![vec![run(0, tokens)]],
            Layout::Contiguous => ranks.map(|r| vec![run(r * tokens, tokens)]).collect(),
            Layout::Balanced if documents != [n] => balanced::balanced(documents, ring, tokens),
            _ => ranks.map(|r| vec![part(r), part(2 * ring - 1 - r)]).collect(),
        };
        Placement { ranks }
    }

    /// Positions of each rank: T.
    pub fn tokens(n: usize, ring: usize) -> usize {
        if ring <= 1 { n } else { 2 * n.div_ceil(2 * ring) }
    }
}

#[cfg(test)]
mod tests;
