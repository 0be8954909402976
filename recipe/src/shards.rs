//! A data set opened: its files, where their records are, and how often each is read in an epoch.

use crate::error::{Error, Result};
use crate::index::{self, Span};
use crate::order::{Permutation, key};
use crate::spec::{Dataset, Layout, Split};
use crate::sums;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One file of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Shard {
    /// The file.
    pub path: PathBuf,
    /// Its records; none where they are drawn.
    pub spans: Vec<Span>,
    /// Records that are drawn, not read.
    pub drawn: u64,
    /// What pictures and videos are named from.
    pub root: PathBuf,
    /// How often it is read in an epoch; a fraction reads that share of its records once more, others each time.
    pub repeat: f64,
}

impl Shard {
    /// Its records, read or drawn.
    pub fn records(&self) -> u64 {
        self.spans.len() as u64 + self.drawn
    }

    /// Records read in one epoch.
    pub fn entries(&self) -> u64 {
        (self.records() as f64 * self.repeat).round() as u64
    }
}

/// What InternVL writes of one annotation. Fields for its own loader are let be.
#[derive(Debug, Deserialize)]
struct Meta {
    #[serde(default)]
    root: PathBuf,
    annotation: PathBuf,
    #[serde(default = "once")]
    repeat_time: f64,
    length: Option<u64>,
}

fn once() -> f64 {
    1.0
}

/// Opens the files of a data set and finds their records.
///
/// Errors: `File` for one that is missing; `Format` for a folder without a file of the layout, or a `meta.json` that
/// is none, whose repeat is no number of 0 or more, or whose length is not the file's.
pub fn open(set: &Dataset) -> Result<Vec<Shard>> {
    set.check()?;
    if let Some(scenes) = &set.scenes {
        let path = PathBuf::from("rendered scenes");
        return Ok(vec![Shard { path, spans: vec![], drawn: scenes.records, root: PathBuf::new(), repeat: 1.0 }]);
    }
    if set.layout == Layout::Internvl {
        return mixture(set);
    }
    let mut shards = Vec::new();
    for path in files(&set.path, endings(set))? {
        let spans = match set.layout {
            Layout::Text => index::text(&path, set.split)?,
            _ => index::json(&path)?,
        };
        let root = set.images.clone().unwrap_or_else(|| folder(&path));
        shards.push(Shard { path, spans, drawn: 0, root, repeat: 1.0 });
    }
    Ok(shards)
}

/// Whether the files of a data set are there and may be read; no record is looked for.
///
/// Errors: as [`open`].
pub fn there(set: &Dataset) -> Result<()> {
    set.check()?;
    let paths = match (&set.scenes, set.layout) {
        (Some(scenes), _) => scenes.faces.iter().cloned().collect(),
        (None, Layout::Internvl) => {
            let base = folder(&set.path);
            metas(set)?.into_values().map(|meta| base.join(meta.annotation)).collect()
        }
        (None, _) => files(&set.path, endings(set))?,
    };
    for path in paths {
        std::fs::File::open(&path).map_err(|why| Error::file(&path, why))?;
    }
    Ok(())
}

/// Files of a data set that have a sum each; those of a larger one have one together.
const APART: usize = 64;

/// A sum of each file of a data set, or of all of them where there are many.
///
/// Errors: `File` if the system refuses.
pub fn sums(set: &Dataset, shards: &[Shard]) -> Result<Vec<u32>> {
    let each = shards.iter().map(|shard| sum(set, shard)).collect::<Result<Vec<u32>>>()?;
    if each.len() <= APART {
        return Ok(each);
    }
    let mut all = crc32fast::Hasher::new();
    each.iter().for_each(|sum| all.update(&sum.to_le_bytes()));
    Ok(vec![all.finalize()])
}

/// A sum of a file of records and of where its records are: 0 for what is drawn. A text that is one record is not opened for
/// it: there may be very many.
fn sum(set: &Dataset, shard: &Shard) -> Result<u32> {
    if shard.drawn > 0 {
        return Ok(0);
    }
    let mut sum = crc32fast::Hasher::new();
    if set.layout != Layout::Text || set.split != Split::File {
        sum.update(&sums::of_file(&shard.path)?.to_le_bytes());
    }
    for span in &shard.spans {
        sum.update(&span.start.to_le_bytes());
        sum.update(&span.len.to_le_bytes());
    }
    Ok(sum.finalize())
}

fn mixture(set: &Dataset) -> Result<Vec<Shard>> {
    let base = folder(&set.path);
    let mut shards = Vec::new();
    for (name, meta) in metas(set)? {
        if !(meta.repeat_time.is_finite() && meta.repeat_time >= 0.0) {
            let what = format!("repeat_time of `{name}` is {}", meta.repeat_time);
            return Err(Error::format(&set.path, what, "write 0 or more"));
        }
        let path = base.join(&meta.annotation);
        let spans = index::json(&path)?;
        if let Some(length) = meta.length.filter(|length| *length != spans.len() as u64) {
            let what = format!("`{name}` should have {length} records and has {}", spans.len());
            return Err(Error::format(&path, what, "mend or remove `length`, or take the whole file"));
        }
        let root = set.images.clone().unwrap_or_else(|| base.clone()).join(&meta.root);
        shards.push(Shard { path, spans, drawn: 0, root, repeat: meta.repeat_time });
    }
    Ok(shards)
}

/// What a `meta.json` names, sorted by name, so that shards are counted alike however the file is written.
fn metas(set: &Dataset) -> Result<BTreeMap<String, Meta>> {
    let text = std::fs::read(&set.path).map_err(|why| Error::file(&set.path, why))?;
    let mend = "write {\"name\": {\"root\": …, \"annotation\": …, \"repeat_time\": 1}}";
    serde_json::from_slice(&text).map_err(|why| Error::format(&set.path, why.to_string(), mend))
}

fn endings(set: &Dataset) -> &'static [&'static str] {
    if set.layout == Layout::Text { &["txt", "md", "text"] } else { &["json", "jsonl"] }
}

fn folder(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_path_buf()
}

fn files(path: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let kind = std::fs::metadata(path).map_err(|why| Error::file(path, why))?;
    if !kind.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|why| Error::file(path, why))? {
        let file = entry.map_err(|why| Error::file(path, why))?.path();
        let end = file.extension().and_then(|end| end.to_str()).unwrap_or_default();
        if endings.iter().any(|known| end.eq_ignore_ascii_case(known)) && file.is_file() {
            found.push(file);
        }
    }
    if found.is_empty() {
        let what = format!("the folder holds no {} file", endings.join(" or "));
        return Err(Error::format(path, what, "name a file, or a folder of such files"));
    }
    found.sort();
    Ok(found)
}

/// Entries of one epoch.
pub fn entries(shards: &[Shard]) -> u64 {
    shards.iter().map(Shard::entries).sum()
}

/// Which shard and record stand at a place of an epoch.
pub fn place(shards: &[Shard], seed: u64, name: &str, epoch: u64, index: u64) -> Option<(u32, u64)> {
    let key = key(seed, name, epoch);
    let mut entry = Permutation::new(entries(shards), key).at(index);
    for (number, shard) in shards.iter().enumerate() {
        let (held, records) = (shard.entries(), shard.records());
        if entry >= held {
            entry -= held;
            continue;
        }
        let (copy, record) = (entry / records, entry % records);
        // The copy that a fraction leaves unfinished takes other records each epoch.
        let whole = (copy + 1) * records <= held;
        let record = if whole { record } else { Permutation::new(records, key ^ number as u64).at(record) };
        return Some((number as u32, record));
    }
    None
}
