//! A packed stream: short documents one after the other, up to the length of a stage.

use omchat_model::splice::Slot;
use omchat_model::tiler::Tiles;

/// What one forward pass reads: T positions, of which each belongs to one document or to the padding at the end.
///
/// A document sees itself only: position t sees s when `lo[t] <= s <= hi[t]`. Padding sees itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pack {
    /// What fills each position: [T]. Image rows count through the pack's tiles.
    pub slots: Vec<Slot>,
    /// The id that each position must predict, −100 where none counts: [T]. Already shifted within documents: the last
    /// position of a document predicts nothing.
    pub labels: Vec<i32>,
    /// The position inside the document, from 0: [T].
    pub positions: Vec<u32>,
    /// The first index that a position sees: [T].
    pub lo: Vec<i32>,
    /// The last index that a position sees: its own: [T].
    pub hi: Vec<i32>,
    /// Which document of the pack a position belongs to, −1 for padding: [T].
    pub document: Vec<i32>,
    /// The pictures and frames, in the order of their rows.
    pub tiles: Vec<Tiles>,
    /// Where each document came from and how many positions it has.
    pub parts: Vec<Part>,
}

/// One document of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where it came from.
    pub origin: Origin,
    /// Its positions in the pack.
    pub range: std::ops::Range<usize>,
}

/// Where a document came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// The data set, by its name in the recipe.
    pub dataset: String,
    /// Which of its files, counted from 0.
    pub shard: u32,
    /// Which record of the file, counted from 0.
    pub record: u64,
    /// The first position of the record that this document has: more than 0 where a long record was cut.
    pub offset: u64,
}

impl Pack {
    /// Positions: T.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no position at all.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Tiles of all pictures.
    pub fn tile_count(&self) -> usize {
        self.tiles.iter().map(Tiles::count).sum()
    }

    /// The share of positions that belong to a document.
    pub fn fill(&self) -> f64 {
        let held = self.document.iter().filter(|d| **d >= 0).count();
        held as f64 / self.len().max(1) as f64
    }
}
