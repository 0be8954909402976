//! A checkpoint's tensors, memory-mapped, under their released names.

use crate::config::OmChatConfig;
use crate::error::{Error, Result, WeightFault};
use crate::weight_names::{is_siglip, may_be_extra, released_name};
use crate::weights::tensors;
use half::{bf16, f16};
use memmap2::Mmap;
use omchat_ir::Dtype as Element;
use safetensors::{Dtype, SafeTensors};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What maps tensors to shards.
const INDEX: &str = "model.safetensors.index.json";

/// The least number that f16 rounds to infinity.
const F16_END: f32 = 65520.0;

/// The first of some numbers that is not finite, or is not once it is rounded to `dtype`.
pub fn lost(numbers: &[f32], dtype: Element) -> Option<usize> {
    let end = if dtype == Element::F16 { F16_END } else { f32::INFINITY };
    numbers.iter().position(|x| !x.is_finite() || x.abs() >= end)
}

/// The tensors of a folder of safetensors files; only what is read comes into memory.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
    twice: Vec<String>,
}

/// A tensor, or a part of one, as a file holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// How its numbers are stored.
    pub dtype: Dtype,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
}

/// One tensor: its parts lie in order along the outermost axis.
#[derive(Debug)]
struct Entry {
    parts: BTreeMap<usize, Part>,
    fused: bool,
}

#[derive(Debug)]
struct Part {
    /// The name in the file.
    spelled: String,
    dtype: Dtype,
    shape: Vec<usize>,
    shard: usize,
    start: usize,
    end: usize,
}

impl Checkpoint {
    /// Maps a folder's weights: `model.safetensors`, or the shards that `model.safetensors.index.json` names, or
    /// every `*.safetensors` of the folder. A path to one file works as well.
    ///
    /// Errors: `File` naming the file that is missing, truncated or no safetensors, with its size.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let files = weight_files(dir)?;
        let mut checkpoint =
            Self { dir: dir.to_owned(), shards: Vec::new(), entries: BTreeMap::new(), twice: Vec::new() };
        let mut found = Vec::new();
        for path in files {
            found.extend(checkpoint.map_shard(path)?);
        }
        let siglip = is_siglip(found.iter().map(|(name, _)| name.as_str()));
        for (name, part) in found {
            checkpoint.insert(name, part, siglip);
        }
        Ok(checkpoint)
    }

    /// Maps a folder's weights and checks them against a configuration.
    ///
    /// Errors: as [`Checkpoint::open`] and [`Checkpoint::check`].
    pub fn load(dir: impl AsRef<Path>, config: &OmChatConfig) -> Result<Self> {
        let checkpoint = Self::open(dir)?;
        checkpoint.check(config)?;
        Ok(checkpoint)
    }

    /// Says whether the tensors are those of a configuration.
    ///
    /// Errors: `Weights` listing every missing, extra and misshapen tensor.
    pub fn check(&self, config: &OmChatConfig) -> Result<()> {
        let wanted = tensors(config);
        let mut faults: Vec<WeightFault> =
            self.twice.iter().map(|name| WeightFault::Twice { name: name.clone() }).collect();
        for tensor in &wanted {
            match self.entries.get(&tensor.name) {
                None => faults.push(WeightFault::Missing { name: tensor.name.clone(), shape: tensor.shape.clone() }),
                Some(entry) => faults.extend(entry.fault(&tensor.name, &tensor.shape)),
            }
        }
        let names: BTreeSet<&str> = wanted.iter().map(|tensor| tensor.name.as_str()).collect();
        for (name, entry) in &self.entries {
            if !names.contains(name.as_str()) && !may_be_extra(name, config.text.tied) {
                faults.push(WeightFault::Extra { name: entry.spelled(), shape: entry.shape() });
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(Error::Weights { path: self.dir.clone(), faults }) }
    }

    /// The released names of all tensors found, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether a tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// A tensor's sizes, outermost first.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.entry(name)?.shape())
    }

    /// How a tensor's numbers are stored.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        let entry = self.entry(name)?;
        entry.dtype().ok_or_else(|| self.mixed(name))
    }

    /// A tensor's numbers as stored, little-endian, row-major; copied only where parts are joined.
    pub fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let entry = self.entry(name)?;
        if entry.dtype().is_none() {
            return Err(self.mixed(name));
        }
        let mut parts = entry.parts.values().map(|part| self.part_bytes(part));
        match (parts.next(), entry.parts.len()) {
            (Some(only), 1) => Ok(Cow::Borrowed(only)),
            (first, _) => Ok(Cow::Owned(first.into_iter().chain(parts).flatten().copied().collect())),
        }
    }

    /// A tensor's numbers as singles, row-major.
    ///
    /// Errors: `Weights` if there is no such tensor, or it does not hold f32, f16, bf16 or f64.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>> {
        let mut numbers = Vec::new();
        for part in self.entry(name)?.parts.values() {
            let bytes = self.part_bytes(part);
            match part.dtype {
                Dtype::F32 => extend(&mut numbers, bytes, f32::from_le_bytes),
                Dtype::F16 => extend(&mut numbers, bytes, |b| f16::from_le_bytes(b).to_f32()),
                Dtype::BF16 => extend(&mut numbers, bytes, |b| bf16::from_le_bytes(b).to_f32()),
                Dtype::F64 => extend(&mut numbers, bytes, |b| f64::from_le_bytes(b) as f32),
                other => {
                    let fault = WeightFault::Dtype { name: name.to_owned(), have: format!("{other:?}") };
                    return Err(self.fault(fault));
                }
            }
        }
        Ok(numbers)
    }

    /// A tensor as its files hold it: name, sizes and dtype of each part, in the order of the tensor's rows.
    ///
    /// Errors: `Weights` if there is no such tensor.
    pub fn stored(&self, name: &str) -> Result<Vec<Stored<'_>>> {
        let parts = self.entry(name)?.parts.values();
        Ok(parts.map(|part| Stored { name: &part.spelled, shape: &part.shape, dtype: part.dtype }).collect())
    }

    /// Whether a folder, or a file, holds weights.
    pub fn is_in(dir: &Path) -> bool {
        let weights = |name: &Path| name.extension().is_some_and(|end| end == "safetensors");
        let listed = |item: std::io::Result<std::fs::DirEntry>| item.is_ok_and(|item| weights(&item.path()));
        dir.is_file() || dir.join(INDEX).is_file() || std::fs::read_dir(dir).is_ok_and(|mut list| list.any(listed))
    }

    /// Refuses a tensor with a number that is not finite, or that is none in `dtype`: f16 holds 65504 at most.
    ///
    /// Errors: the tensor, the number, its place, and what to do.
    pub fn check_finite(&self, name: &str, dtype: Element) -> Result<()> {
        let numbers = self.tensor_f32(name)?;
        let Some(index) = lost(&numbers, dtype) else { return Ok(()) };
        let (number, of) = (numbers[index], numbers.len());
        let (mut cause, mut mend) =
            (format!("{name} holds {number} at index {index} of {of}"), "take the file from its source again");
        if number.is_finite() {
            cause += ", f16 holds at most 65504";
            mend = "run in bf16 or f32: --dtype bf16";
        }
        let shard = self.entry(name)?.parts.values().next().and_then(|part| self.shards.get(part.shard));
        let path = shard.map_or(self.dir.as_path(), |shard| shard.path.as_path());
        Err(Error::file(path, cause, mend))
    }

    /// The size of all mapped files, bytes.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.map.len() as u64).sum()
    }

    fn map_shard(&mut self, path: PathBuf) -> Result<Vec<(String, Part)>> {
        let map = map_file(&path)?;
        let index = self.shards.len();
        let base = map.as_ptr() as usize;
        let file = SafeTensors::deserialize(&map).map_err(|cause| not_safetensors(&path, &map, &cause))?;
        let parts = file.iter().map(|(name, view)| {
            // A view borrows from the map; its place in the map outlives the borrow.
            let start = view.data().as_ptr() as usize - base;
            let end = start + view.data().len();
            let (dtype, shape) = (view.dtype(), view.shape().to_vec());
            (name.to_owned(), Part { spelled: name.to_owned(), dtype, shape, shard: index, start, end })
        });
        let parts = parts.collect();
        self.shards.push(Shard { path, map });
        Ok(parts)
    }

    fn insert(&mut self, spelled: String, part: Part, siglip: bool) {
        let released = released_name(&spelled, siglip);
        let entry = self
            .entries
            .entry(released.name.clone())
            .or_insert_with(|| Entry { parts: BTreeMap::new(), fused: released.part.is_some() });
        let whole_and_parts = entry.fused != released.part.is_some();
        if entry.parts.insert(released.part.unwrap_or(0), part).is_some() || whole_and_parts {
            self.twice.push(released.name);
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let missing = || self.fault(WeightFault::Missing { name: name.to_owned(), shape: Vec::new() });
        self.entries.get(name).ok_or_else(missing)
    }

    fn part_bytes(&self, part: &Part) -> &[u8] {
        self.shards.get(part.shard).and_then(|shard| shard.map.get(part.start..part.end)).unwrap_or(&[])
    }

    fn fault(&self, fault: WeightFault) -> Error {
        Error::Weights { path: self.dir.clone(), faults: vec![fault] }
    }

    fn mixed(&self, name: &str) -> Error {
        self.fault(WeightFault::Dtype { name: name.to_owned(), have: "mixed".to_owned() })
    }
}

impl Entry {
    fn spelled(&self) -> String {
        self.parts.values().next().map_or(String::new(), |part| part.spelled.clone())
    }

    fn shape(&self) -> Vec<usize> {
        let mut shapes = self.parts.values().map(|part| part.shape.clone());
        let mut shape = shapes.next().unwrap_or_default();
        for part in shapes {
            if let (Some(rows), Some(more)) = (shape.first_mut(), part.first()) {
                *rows += more;
            }
        }
        shape
    }

    fn dtype(&self) -> Option<Dtype> {
        let mut dtypes = self.parts.values().map(|part| part.dtype);
        let first = dtypes.next()?;
        dtypes.all(|dtype| dtype == first).then_some(first)
    }

    fn fault(&self, name: &str, want: &[usize]) -> Option<WeightFault> {
        let name = name.to_owned();
        let inner = |part: &Part| part.shape.get(1..).map(<[usize]>::to_vec);
        let even = self.parts.values().all(|part| inner(part) == want.get(1..).map(<[usize]>::to_vec));
        if self.shape() != want || !even || (self.fused && self.parts.len() != 3) {
            return Some(WeightFault::Shape { name, want: want.to_vec(), have: self.shape() });
        }
        match self.dtype() {
            Some(Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) => None,
            have => Some(WeightFault::Dtype { name, have: have.map_or("mixed".into(), |have| format!("{have:?}")) }),
        }
    }
}

fn extend<const N: usize>(numbers: &mut Vec<f32>, bytes: &[u8], read: impl Fn([u8; N]) -> f32) {
    numbers.extend(bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)));
}

fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    if dir.is_file() {
        return Ok(vec![dir.to_owned()]);
    }
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = dir.join(INDEX);
    if index.is_file() {
        return indexed_files(dir, &index);
    }
    let mend = "name a folder that holds model.safetensors, or shards with model.safetensors.index.json";
    let listing = std::fs::read_dir(dir).map_err(|cause| Error::file(dir, cause, mend))?;
    let paths = listing.filter_map(|item| item.ok().map(|item| item.path()));
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "safetensors")).collect();
    files.sort();
    if files.is_empty() { Err(Error::file(dir, "no *.safetensors in it", mend)) } else { Ok(files) }
}

fn indexed_files(dir: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let mend = "the index maps each tensor's name to a shard beside it, under `weight_map`";
    let text = std::fs::read_to_string(index).map_err(|cause| Error::file(index, cause, mend))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|cause| Error::file(index, cause, mend))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| Error::file(index, "no `weight_map` in it", mend))?;
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        // A shard lies beside its index; a path that leads elsewhere is no shard of this checkpoint.
        let name = file.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        let name = name.ok_or_else(|| Error::file(index, format!("{tensor} lies in {file}"), mend))?;
        files.insert(dir.join(name));
    }
    Ok(files.into_iter().collect())
}

fn map_file(path: &Path) -> Result<Mmap> {
    let mend = "put the file there, or name another folder";
    let file = std::fs::File::open(path).map_err(|cause| Error::file(path, cause, mend))?;
    let bytes = file.metadata().map_err(|cause| Error::file(path, cause, mend))?.len();
    if bytes == 0 {
        return Err(Error::file(path, "the file is empty (0 bytes)", "take the file from its source again"));
    }
    // SAFETY: the map is only read. Another process that cuts the file while it is mapped can end this one,
    // as with every reader that maps its weights.
    unsafe { Mmap::map(&file) }.map_err(|cause| Error::file(path, cause, mend))
}

fn not_safetensors(path: &Path, map: &[u8], cause: &safetensors::SafeTensorError) -> Error {
    let have = map.len();
    let header = map.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    let need = SafeTensors::read_metadata(map).ok().map(|(header, meta)| 8 + header + meta.data_len());
    let sizes = match (need, header) {
        (Some(need), _) => format!("it has {have} bytes and its header describes {need}"),
        (None, Some(header)) => format!("it has {have} bytes and names a header of {header}"),
        (None, None) => format!("it has {have} bytes, fewer than a header's 8"),
    };
    Error::file(path, format!("not a whole safetensors file ({cause}): {sizes}"), "take the file from its source again")
}
