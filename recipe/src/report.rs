//! What was read and what was not: no record is left out in silence.

use crate::pack::Origin;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why a record is not trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// It is no JSON, or no UTF-8.
    Unreadable,
    /// A field is missing or of another kind than it should be.
    Fields,
    /// A turn of somebody unknown.
    Role,
    /// A picture that is missing or broken.
    Picture,
    /// A video that is missing or broken.
    Video,
    /// Not as many marks as pictures and videos.
    Marks,
    /// Nothing to train: no answer, no caption, no text.
    NoAnswer,
    /// More tiles than a pack holds.
    TooManyTiles,
    /// More positions than a pack holds.
    TooLong,
    /// Text that the tokenizer cannot spell.
    Spelling,
    /// Reading it broke a decoder.
    Panic,
}

/// A record that is not trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The kind.
    pub reason: Reason,
    /// What exactly, with values.
    pub why: String,
}

impl Fault {
    /// A fault of a kind.
    pub fn new(reason: Reason, why: impl Into<String>) -> Fault {
        Fault { reason, why: why.into() }
    }
}

/// One skipped record, shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// The file.
    pub file: String,
    /// Which record of it, from 0.
    pub record: u64,
    /// What is wrong with it.
    pub why: String,
}

/// The skipped records of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// How many readings; a bad record counts again in each epoch.
    pub count: u64,
    /// The first few.
    pub examples: Vec<Example>,
}

/// What came of one data set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Records that were packed.
    pub records: u64,
    /// Records that were not, by kind.
    pub skipped: BTreeMap<Reason, Skipped>,
}

/// What a feed has read so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// By data set.
    pub sets: BTreeMap<String, Tally>,
    /// Packs handed out.
    pub packs: u64,
    /// Their positions.
    pub positions: u64,
    /// Those that belong to a document.
    pub held: u64,
}

/// Examples kept of one kind.
const SHOWN: usize = 5;

impl Report {
    /// The share of positions that belong to a document.
    pub fn fill(&self) -> f64 {
        self.held as f64 / self.positions.max(1) as f64
    }

    /// All readings that were skipped.
    pub fn skipped(&self) -> u64 {
        self.sets.values().flat_map(|set| set.skipped.values()).map(|kind| kind.count).sum()
    }

    pub(crate) fn skip(&mut self, origin: &Origin, file: String, fault: Fault) {
        let tally = self.sets.entry(origin.dataset.clone()).or_default();
        let kind = tally.skipped.entry(fault.reason).or_default();
        kind.count += 1;
        let record = origin.record;
        if kind.examples.len() < SHOWN && !kind.examples.iter().any(|e| e.file == file && e.record == record) {
            kind.examples.push(Example { file, record, why: fault.why });
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} packs, {:.1} % of their positions filled", self.packs, 100.0 * self.fill())?;
        for (name, tally) in &self.sets {
            writeln!(f, "{name}: {} records", tally.records)?;
            for (reason, kind) in &tally.skipped {
                writeln!(f, "  skipped {} ({reason:?})", kind.count)?;
                for example in &kind.examples {
                    writeln!(f, "    {} record {}: {}", example.file, example.record, example.why)?;
                }
            }
        }
        Ok(())
    }
}
