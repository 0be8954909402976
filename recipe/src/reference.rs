//! Losses of a reference model, kept on disk: what token selection (Rho-1, OmChat's SVLM) compares with.
//!
//! A folder holds `meta.json`, what the losses were computed with; `index.bin`, a row a document: data set u32, file u32,
//! record u64, offset u64, first loss u64, losses u32, checksum u32 of its ids, little-endian; and `losses.f16`, one number
//! a labelled position. f16 has steps of 2⁻⁶ at a loss of 16 and finer below; bf16 would have 2⁻³.

use crate::error::{Error, Result};
use crate::pack::{Origin, Pack};
use half::f16;
use omchat_model::config::IGNORE;
use omchat_model::splice::Slot;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of a row of the index.
const ROW: usize = 40;

/// What losses were computed with. A loss depends on all of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// CRC-32 of the tokenizer's file: ids must mean the same.
    pub tokenizer: String,
    /// CRC-32 of the reference model's weights and configuration; told, and not compared.
    pub model: String,
    /// Positions that the reference model saw at once.
    pub context: usize,
    /// How pictures stood among words.
    pub format: String,
    /// The data sets and how they were read, by name.
    pub data: std::collections::BTreeMap<String, serde_json::Value>,
}

impl Meta {
    /// Whether losses of `self` serve where `want` is asked for.
    ///
    /// Errors: the first thing that differs, with both values.
    fn serves(&self, want: &Meta, dir: &Path) -> Result<()> {
        let differs = |what: &str, have: String, want: String| {
            Err(Error::format(
                dir,
                format!("the reference losses are of {what} {have}, and {want} is asked for"),
                "score again with `omchat score`, or train with what was scored",
            ))
        };
        if self.tokenizer != want.tokenizer {
            return differs("a tokenizer with checksum", self.tokenizer.clone(), want.tokenizer.clone());
        }
        if self.context != want.context {
            return differs("a context of", self.context.to_string(), want.context.to_string());
        }
        if self.format != want.format {
            return differs("the format", self.format.clone(), want.format.clone());
        }
        for (name, spec) in &want.data {
            match self.data.get(name) {
                Some(have) if same(&unplaced(have), &unplaced(spec)) => {}
                Some(have) => return differs(&format!("data set `{name}` as"), have.to_string(), spec.to_string()),
                None => return differs("other data sets than", format!("`{name}`"), "its losses".into()),
            }
        }
        Ok(())
    }
}

/// Losses on their way to disk. The folder appears when all are there.
pub struct Writer {
    dir: PathBuf,
    part: PathBuf,
    meta: Meta,
    names: Vec<String>,
    index: BufWriter<File>,
    losses: BufWriter<File>,
    written: u64,
    documents: u64,
}

impl Writer {
    /// A new cache.
    ///
    /// Errors: a folder that is already there; what the system says.
    pub fn create(dir: &Path, meta: Meta) -> Result<Writer> {
        if dir.exists() {
            return Err(Error::format(dir, "something is there already", "name a folder that does not exist"));
        }
        let part = dir.with_extension(format!("part-{}", std::process::id()));
        let open = |name: &str| {
            let path = part.join(name);
            File::create(&path).map(BufWriter::new).map_err(|e| Error::file(&path, e))
        };
        fs::create_dir_all(&part).map_err(|e| Error::file(&part, e))?;
        let (index, losses) = (open("index.bin")?, open("losses.f16")?);
        let names = meta.data.keys().cloned().collect();
        Ok(Writer { dir: dir.into(), part, meta, names, index, losses, written: 0, documents: 0 })
    }

    /// The losses of a document's labelled positions, in order; `ids` is the [`checksum`] of the document.
    ///
    /// Errors: a data set that the meta does not name; a loss that is not finite or below 0; what the system says.
    pub fn push(&mut self, origin: &Origin, ids: u32, losses: &[f32]) -> Result<()> {
        let Some(dataset) = self.names.iter().position(|n| *n == origin.dataset) else {
            return Err(Error::input(
                format!("data set `{}` is not in the cache's meta", origin.dataset),
                "name it there",
            ));
        };
        if let Some(x) = losses.iter().find(|x| !(x.is_finite() && **x >= 0.0)) {
            return Err(Error::input(
                format!("a reference loss of {x} in record {} of `{}`", origin.record, origin.dataset),
                "look at the reference model's weights",
            ));
        }
        let fail = |e| Error::file(&self.part, e);
        let mut row = Vec::with_capacity(ROW);
        row.extend((dataset as u32).to_le_bytes());
        row.extend(origin.shard.to_le_bytes());
        row.extend(origin.record.to_le_bytes());
        row.extend(origin.offset.to_le_bytes());
        row.extend(self.written.to_le_bytes());
        row.extend((losses.len() as u32).to_le_bytes());
        row.extend(ids.to_le_bytes());
        self.index.write_all(&row).map_err(fail)?;
        for x in losses {
            self.losses.write_all(&f16::from_f32(*x).to_le_bytes()).map_err(fail)?;
        }
        self.written += losses.len() as u64;
        self.documents += 1;
        Ok(())
    }

    /// The folder, whole; and how many documents and losses it holds.
    ///
    /// Errors: what the system says.
    pub fn finish(mut self) -> Result<(u64, u64)> {
        let fail = |e| Error::file(&self.part, e);
        self.index.flush().and_then(|()| self.losses.flush()).map_err(fail)?;
        let meta = serde_json::to_vec_pretty(&self.meta).map_err(|e| fail(e.into()))?;
        fs::write(self.part.join("meta.json"), meta).map_err(fail)?;
        fs::rename(&self.part, &self.dir).map_err(|e| Error::file(&self.dir, e))?;
        Ok((self.documents, self.written))
    }
}

/// Where a document is from: data set, file, record and offset.
type Place = (u32, u32, u64, u64);

/// What there is of a document: its first loss, how many, and the checksum of its ids.
struct Row {
    first: usize,
    count: usize,
    ids: u32,
}

/// Losses of a reference model, looked up by document.
pub struct Reference {
    dir: PathBuf,
    meta: Meta,
    index: HashMap<Place, Row>,
    names: Vec<String>,
    losses: Vec<u8>,
}

impl Reference {
    /// Whether a cache is there and is of what `want` says; losses are not read.
    ///
    /// Errors: no cache; one of another tokenizer, context, format or data.
    pub fn check(dir: &Path, want: &Meta) -> Result<()> {
        if !dir.join("meta.json").is_file() {
            let mend = "write them with `omchat score`, or end before the stage that selects by them";
            return Err(Error::format(dir, "there are no reference losses", mend));
        }
        for name in ["meta.json", "index.bin", "losses.f16"] {
            let path = dir.join(name);
            File::open(&path).map_err(|e| Error::file(&path, e))?;
        }
        Reference::told(dir)?.serves(want, dir)
    }

    /// What a cache says of itself.
    fn told(dir: &Path) -> Result<Meta> {
        let path = dir.join("meta.json");
        let text = fs::read(&path).map_err(|e| Error::file(&path, e))?;
        serde_json::from_slice(&text).map_err(|e| Error::format(&path, e.to_string(), "score again"))
    }

    /// A cache, for use with what `want` says.
    ///
    /// Errors: no cache; one that was cut short; one of another tokenizer, context, format or data.
    pub fn open(dir: &Path, want: &Meta) -> Result<Reference> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read(&path).map_err(|e| Error::file(&path, e))
        };
        let meta = Reference::told(dir)?;
        meta.serves(want, dir)?;
        let (rows, losses) = (read("index.bin")?, read("losses.f16")?);
        let torn = |what: String| Err(Error::format(dir, what, "score again: the cache was cut short"));
        if !rows.len().is_multiple_of(ROW) {
            return torn(format!("index.bin has {} bytes, no whole rows of {ROW}", rows.len()));
        }
        let mut index = HashMap::with_capacity(rows.len() / ROW);
        for row in rows.chunks_exact(ROW) {
            let u32_at = |i: usize| row[i..i + 4].iter().rev().fold(0u32, |a, b| a << 8 | u32::from(*b));
            let u64_at = |i: usize| row[i..i + 8].iter().rev().fold(0u64, |a, b| a << 8 | u64::from(*b));
            let (first, count) = (u64_at(24) as usize, u32_at(32) as usize);
            if first.checked_add(count).is_none_or(|end| end > losses.len() / 2) {
                return torn(format!(
                    "losses.f16 has {} losses, the index asks for {first} + {count}",
                    losses.len() / 2
                ));
            }
            index.insert((u32_at(0), u32_at(4), u64_at(8), u64_at(16)), Row { first, count, ids: u32_at(36) });
        }
        let names = meta.data.keys().cloned().collect();
        Ok(Reference { dir: dir.into(), meta, index, names, losses })
    }

    /// What the losses were computed with.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Documents that were scored.
    pub fn documents(&self) -> usize {
        self.index.len()
    }

    /// The reference loss of each position of a pack, 0 where no label is.
    ///
    /// Shapes: [T].
    /// Errors: a document that was not scored, or has another number of labels.
    pub fn of(&self, pack: &Pack) -> Result<Vec<f32>> {
        let mut out = vec![0.0; pack.len()];
        for part in &pack.parts {
            let o = &part.origin;
            let told =
                || format!("record {} of file {} of `{}`, from position {}", o.record, o.shard, o.dataset, o.offset);
            let dataset = self.names.iter().position(|n| *n == o.dataset);
            let found = dataset.and_then(|d| self.index.get(&(d as u32, o.shard, o.record, o.offset)));
            let Some(Row { first, count, ids }) = found else {
                return Err(Error::format(
                    &self.dir,
                    format!("{} was not scored", told()),
                    "score the data that is trained on",
                ));
            };
            let places: Vec<usize> = part.range.clone().filter(|i| pack.labels[*i] != IGNORE).collect();
            if places.len() != *count {
                return Err(Error::format(
                    &self.dir,
                    format!("{} has {} labels, {count} were scored", told(), places.len()),
                    "score again: the data changed",
                ));
            }
            if checksum(pack, &part.range) != *ids {
                return Err(Error::format(
                    &self.dir,
                    format!("{} has other words than those that were scored", told()),
                    "score again: the data changed",
                ));
            }
            let held = self.losses[2 * first..2 * (first + count)].chunks_exact(2);
            for (i, b) in places.into_iter().zip(held) {
                out[i] = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        Ok(out)
    }
}

/// A data set wherever it lies: each document's checksum is compared when its losses are read.
fn unplaced(set: &Value) -> Value {
    let mut set = set.clone();
    crate::spec::unplace(&mut set);
    set
}

/// Whether two values are the same, but for [`same_number`].
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => same_number(a, b),
    }
}

/// Whether two values that are no lists are the same. A number that went through JSON's text may be a rounding off.
pub fn same_number(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) if a.is_f64() && b.is_f64() => (x - y).abs() <= 4.0 * f64::EPSILON * x.abs(),
        _ => a == b,
    }
}

/// CRC-32 of what stands at positions of a pack, and of their labels.
pub fn checksum(pack: &Pack, range: &Range<usize>) -> u32 {
    let mut bytes = vec![];
    for (slot, label) in pack.slots[range.clone()].iter().zip(&pack.labels[range.clone()]) {
        let id = match slot {
            Slot::Text(id) => i64::from(*id),
            Slot::Image(_) => -1,
        };
        bytes.extend(id.to_le_bytes());
        bytes.extend(label.to_le_bytes());
    }
    crc32fast::hash(&bytes)
}

/// What scores say of the labelled positions of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Positions by score, in bins of [`Scores::STEP`] from −[`Scores::EDGE`] to [`Scores::EDGE`]; the first and the last
    /// hold what lies beyond.
    pub histogram: Vec<u32>,
    /// The share of scores above τ: tied to the picture, as the reference has learnt and this model has not (type 1).
    pub tied: f64,
    /// The share within τ of 0: said as well by the words alone (type 2).
    pub loose: f64,
    /// The share below −τ: at odds with the picture, or known here and not there (type 3).
    pub odd: f64,
}

impl Scores {
    /// Width of a bin.
    pub const STEP: f32 = 0.5;
    /// The score where the last bin begins.
    pub const EDGE: f32 = 8.0;
    /// What is near 0: ours, the paper names no number.
    pub const TAU: f32 = 0.5;

    /// Counts of `sign` times loss less reference, over labelled positions.
    pub fn of(losses: &[f32], reference: &[f32], labels: &[i32]) -> Scores {
        let bins = (2.0 * Scores::EDGE / Scores::STEP) as usize + 2;
        let mut s = Scores { histogram: vec![0; bins], tied: 0.0, loose: 0.0, odd: 0.0 };
        let mut n = 0.0;
        for ((x, r), label) in losses.iter().zip(reference).zip(labels) {
            if *label == IGNORE {
                continue;
            }
            let score = x - r;
            let bin = ((score + Scores::EDGE) / Scores::STEP).floor() + 1.0;
            s.histogram[(bin.max(0.0) as usize).min(bins - 1)] += 1;
            let kind = if score > Scores::TAU {
                &mut s.tied
            } else if score < -Scores::TAU {
                &mut s.odd
            } else {
                &mut s.loose
            };
            *kind += 1.0;
            n += 1.0;
        }
        for x in [&mut s.tied, &mut s.loose, &mut s.odd] {
            *x /= f64::max(n, 1.0);
        }
        s
    }

    /// This and another batch's, as one.
    pub fn add(&mut self, other: &Scores) {
        let count = |s: &Scores| s.histogram.iter().map(|n| f64::from(*n)).sum::<f64>();
        let (a, b) = (count(self), count(other));
        let all = f64::max(a + b, 1.0);
        for (x, y) in [(&mut self.tied, other.tied), (&mut self.loose, other.loose), (&mut self.odd, other.odd)] {
            *x = (*x * a + y * b) / all;
        }
        for (x, y) in self.histogram.iter_mut().zip(&other.histogram) {
            *x += y;
        }
    }
}
