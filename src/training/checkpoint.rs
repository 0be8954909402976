//! Checkpoints of a run: all that resuming needs, written whole or not at all.
//!
//! `checkpoints/00000120/` holds `state.safetensors` (weights `w.NAME`, moments `m.NAME` and `v.NAME`, f32) and
//! `run.json` (where the run is, the length and CRC-32 of the state, and the CRC-32 of its own text). A folder is written
//! under another name and renamed when all is on disk, so a folder of this name is whole; one whose bytes changed since is
//! refused. A folder that holds a file `keep` is never removed.

use crate::{Error, Part, Snapshot};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Checkpoints that are kept; the older serves where the newer is damaged.
const KEPT: usize = 2;

/// What stands in place of the sum of `run.json` while it is taken.
const NO_SUM: &str = "\"run_crc32\": \"00000000\"";

/// Where a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Which stage, from 0.
    pub stage: usize,
    /// Steps taken in it.
    pub stage_step: u64,
    /// Steps taken in the whole run.
    pub step: u64,
    /// Where the stage's data goes on.
    pub feed: Value,
    /// The recipe, to be compared with the one that resumes.
    pub recipe: Value,
    /// A sum of the files of the recipe's model; nothing in checkpoints of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    place: Place,
    /// Steps that moments have seen: of the part that has most.
    adam_steps: u64,
    /// The same of each part; checkpoints that were written without it mean `adam_steps` of every part that has moments.
    #[serde(default)]
    part_steps: Option<BTreeMap<String, u64>>,
    state_bytes: u64,
    state_crc32: u32,
    /// CRC-32 of the text of this file with [`NO_SUM`] in its place; not in checkpoints of an earlier version.
    #[serde(default)]
    run_crc32: Option<String>,
}

/// A checkpoint that was read, and those newer ones that were not usable.
pub struct Found {
    /// Which folder.
    pub path: PathBuf,
    /// Where the run was.
    pub place: Place,
    /// What it had made.
    pub snapshot: Snapshot,
    /// Why newer checkpoints were refused.
    pub refused: Vec<String>,
}

/// Where a checkpoint of a run's step is.
pub fn at(run: &Path, step: u64) -> PathBuf {
    run.join("checkpoints").join(format!("{step:08}"))
}

/// Takes a run's folder for this process; the system gives it back when the process ends, however it does.
pub fn locked(out: &Path) -> Result<File, Error> {
    let path = out.join(".lock");
    let file = File::create(&path).map_err(|e| super::unwritable(&path, &e))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::Input(format!(
            "another process trains into {}; wait for it, stop it, or name another folder",
            out.display()
        ))),
        // Where files cannot be locked, nobody is told.
        _ => Ok(file),
    }
}

/// Writes a checkpoint and removes all but the newest few and those that are to be kept.
///
/// Errors: what the system says, with the path.
pub fn save(run: &Path, place: &Place, snapshot: &Snapshot, keep: bool) -> Result<PathBuf, Error> {
    let all = run.join("checkpoints");
    let to = at(run, place.step);
    let part = all.join(format!(".part-{}", std::process::id()));
    let fail = |path: &Path, e: std::io::Error| super::unwritable(path, &e);
    // What a killed run left half written: nobody else writes here.
    for left in entries(run)?.into_iter().filter(|path| name_of(path).starts_with(".part-")) {
        fs::remove_dir_all(&left).map_err(|e| fail(&left, e))?;
    }
    fs::create_dir_all(&part).map_err(|e| fail(&part, e))?;
    let state = part.join("state.safetensors");
    let bytes = pack(snapshot)?;
    let head = Head {
        place: place.clone(),
        adam_steps: snapshot.steps.values().copied().max().unwrap_or(0),
        part_steps: Some(snapshot.steps.iter().map(|(p, n)| (p.name().into(), *n)).collect()),
        state_bytes: bytes.len() as u64,
        state_crc32: crc32fast::hash(&bytes),
        run_crc32: Some("00000000".into()),
    };
    let head = serde_json::to_string_pretty(&head).map_err(|e| Error::Input(format!("a checkpoint's place: {e}")))?;
    let head = head.replacen(NO_SUM, &summed(crc32fast::hash(head.as_bytes())), 1).into_bytes();
    for (path, bytes) in [(&state, &bytes), (&part.join("run.json"), &head)] {
        let mut file = File::create(path).map_err(|e| fail(path, e))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| fail(path, e))?;
    }
    if keep {
        let path = part.join("keep");
        fs::write(&path, b"").map_err(|e| fail(&path, e))?;
    }
    if to.exists() {
        fs::remove_dir_all(&to).map_err(|e| fail(&to, e))?;
    }
    fs::rename(&part, &to).map_err(|e| fail(&to, e))?;
    // The rename itself is on disk when the folder is.
    File::open(&all).and_then(|d| d.sync_all()).map_err(|e| fail(&all, e))?;
    for old in list(run)?.into_iter().rev().skip(KEPT).filter(|p| !p.join("keep").exists()) {
        fs::remove_dir_all(&old).map_err(|e| fail(&old, e))?;
    }
    Ok(to)
}

/// The newest checkpoint that is whole; nothing if there is none at all.
///
/// Errors: there are some, and none is usable; why each is not.
pub fn newest(run: &Path) -> Result<Option<Found>, Error> {
    let mut refused = vec![];
    for path in list(run)?.into_iter().rev() {
        match read(&path) {
            Ok((place, snapshot)) => return Ok(Some(Found { path, place, snapshot, refused })),
            Err(why) => refused.push(format!("{}: {why}", path.display())),
        }
    }
    if refused.is_empty() {
        return Ok(None);
    }
    Err(Error::Input(format!("no checkpoint is usable; start over in another folder:\n{}", refused.join("\n"))))
}

/// The newest whole checkpoint before a step; nothing if there is none at all.
///
/// Errors: there are some, and none is before the step and usable; why each is not.
pub(super) fn before(run: &Path, step: u64) -> Result<Option<Found>, Error> {
    let mut refused = vec![];
    for path in list(run)?.into_iter().rev() {
        let of = path.file_name().and_then(|n| n.to_string_lossy().parse::<u64>().ok());
        if of.is_none_or(|of| of >= step) {
            refused.push(format!("{} is not before it", path.display()));
            continue;
        }
        match read(&path) {
            Ok((place, snapshot)) => return Ok(Some(Found { path, place, snapshot, refused })),
            Err(why) => refused.push(format!("{}: {why}", path.display())),
        }
    }
    if refused.is_empty() {
        return Ok(None);
    }
    Err(Error::Input(format!("no checkpoint before step {step} is usable:\n{}", refused.join("\n"))))
}

/// The checkpoints of a run, oldest first; none where there is no folder of them.
fn list(run: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut out = entries(run)?;
    out.retain(|path| name_of(path).len() == 8 && name_of(path).chars().all(|c| c.is_ascii_digit()));
    out.sort();
    Ok(out)
}

fn entries(run: &Path) -> Result<Vec<PathBuf>, Error> {
    let all = run.join("checkpoints");
    let unreadable = |e: std::io::Error| Error::Input(format!("cannot read {}: {e}", all.display()));
    match fs::read_dir(&all) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path()).map_err(unreadable)).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(e) => Err(unreadable(e)),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A checkpoint in a folder.
///
/// Errors: as text, what is wrong with it.
pub fn read(path: &Path) -> Result<(Place, Snapshot), String> {
    let bytes = |name: &str| {
        let mut out = vec![];
        File::open(path.join(name)).and_then(|mut f| f.read_to_end(&mut out)).map_err(|e| format!("{name}: {e}"))?;
        Ok::<_, String>(out)
    };
    let text = String::from_utf8(bytes("run.json")?).map_err(|e| format!("run.json: {e}"))?;
    let head: Head = serde_json::from_str(&text).map_err(|e| format!("run.json: {e}"))?;
    if let Some(sum) = &head.run_crc32 {
        let own = format!("\"run_crc32\": \"{sum}\"");
        let crc = crc32fast::hash(text.replacen(&own, NO_SUM, 1).as_bytes());
        if !text.contains(&summed(crc)) {
            return Err(format!("run.json is damaged: CRC-32 {crc:08x}, {sum} was written"));
        }
    }
    let state = bytes("state.safetensors")?;
    if state.len() as u64 != head.state_bytes {
        return Err(format!("state.safetensors has {} bytes, {} were written", state.len(), head.state_bytes));
    }
    let crc = crc32fast::hash(&state);
    if crc != head.state_crc32 {
        return Err(format!("state.safetensors is damaged: CRC-32 {crc:08x}, {:08x} was written", head.state_crc32));
    }
    let mut snapshot = unpack(&state)?;
    snapshot.steps = match head.part_steps {
        Some(steps) => {
            let of = |(name, n): (String, u64)| Part::from_name(&name).map(|p| (p, n)).ok_or(name);
            let all = steps.into_iter().map(of).collect::<Result<_, _>>();
            all.map_err(|name| format!("run.json counts steps of `{name}`, which is no part of a model"))?
        }
        None => snapshot.moments.keys().map(|name| (Part::of(name), head.adam_steps)).collect(),
    };
    Ok((head.place, snapshot))
}

fn summed(crc: u32) -> String {
    format!("\"run_crc32\": \"{crc:08x}\"")
}

fn pack(s: &Snapshot) -> Result<Vec<u8>, Error> {
    let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut held: BTreeMap<String, Vec<u8>> = s.weights.iter().map(|(n, x)| (format!("w.{n}"), bytes(x))).collect();
    for (name, [m, v]) in &s.moments {
        held.insert(format!("m.{name}"), bytes(m));
        held.insert(format!("v.{name}"), bytes(v));
    }
    let fail = |e: safetensors::SafeTensorError| Error::Input(format!("a checkpoint cannot be written: {e}"));
    let mut views = vec![];
    for (name, bytes) in &held {
        views.push((name.as_str(), TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).map_err(fail)?));
    }
    safetensors::serialize(views, None).map_err(fail)
}

fn unpack(bytes: &[u8]) -> Result<Snapshot, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| format!("state.safetensors: {e}"))?;
    let mut s = Snapshot::default();
    for (name, t) in file.iter() {
        let (chunks, _) = t.data().as_chunks::<4>();
        let x: Vec<f32> = chunks.iter().map(|b| f32::from_le_bytes(*b)).collect();
        match name.split_once('.') {
            Some(("w", n)) => {
                s.weights.insert(n.into(), x);
            }
            Some(("m", n)) => s.moments.entry(n.into()).or_default()[0] = x,
            Some(("v", n)) => s.moments.entry(n.into()).or_default()[1] = x,
            _ => return Err(format!("state.safetensors holds `{name}`, which is neither weight nor moment")),
        }
    }
    Ok(s)
}
