//! What a run tells of each step: a line of JSON, and scalars for TensorBoard.

use super::events::Events;
use crate::Error;
use omchat_recipe::reference::Scores;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One step of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Steps taken in the whole run, this one among them.
    pub step: u64,
    /// The stage.
    pub stage: String,
    /// Steps taken in the stage, this one among them.
    pub stage_step: u64,
    /// The mean loss of the tokens that trained, before the step.
    pub loss: f32,
    /// The norm of all gradients together, before clipping.
    pub norm: f32,
    /// Learning rates of the vision tower, the projector and the decoder.
    pub lr: [f32; 3],
    /// Positions of the step, padding among them.
    pub tokens: usize,
    /// Labelled positions.
    pub labelled: usize,
    /// Of them those that a selection kept.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kept: Option<usize>,
    /// Labelled positions and those kept, by data set, where a selection chose.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub kept_of: BTreeMap<String, [usize; 2]>,
    /// What the scores of a selection were.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scores: Option<Scores>,
    /// The share of positions that belong to a document.
    pub fill: f64,
    /// Seconds that the step took.
    pub seconds: f64,
    /// Positions a second.
    pub tokens_per_s: f64,
    /// FLOPs a second over those of the device's best einsum, where both are known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub share: Option<f64>,
    /// Bytes of the device that the step was planned to hold.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub planned: Option<u64>,
    /// Bytes that the device held more than before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held: Option<u64>,
}

impl Line {
    fn scalars(&self) -> Vec<(String, f32)> {
        let parts = ["vision", "projector", "decoder"].iter().zip(self.lr);
        let mut out: Vec<(String, f32)> = parts.map(|(p, lr)| (format!("lr/{p}"), lr)).collect();
        out.extend([
            ("loss".into(), self.loss),
            ("norm".into(), self.norm),
            ("fill".into(), self.fill as f32),
            ("tokens_per_s".into(), self.tokens_per_s as f32),
        ]);
        out.extend(self.share.map(|x| ("share_of_ceiling".into(), x as f32)));
        let kinds = |s: &Scores| [("tied", s.tied), ("loose", s.loose), ("odd", s.odd)];
        let kinds = self.scores.iter().flat_map(kinds);
        out.extend(kinds.map(|(k, x)| (format!("tokens/{k}"), x as f32)));
        out.extend(self.kept.map(|k| ("kept".into(), k as f32 / self.labelled.max(1) as f32)));
        out
    }
}

/// The log of a run's folder.
pub(super) struct Log {
    path: PathBuf,
    lines: File,
    events: Events,
}

impl Log {
    /// The log in a folder, going on after a step: lines of later ones, which a killed run wrote after its last
    /// checkpoint, and a torn last line are dropped.
    pub fn open(folder: &Path, after: u64) -> Result<Log, Error> {
        let path = folder.join("log.jsonl");
        let kept: String = lines(&path, after)?.iter().map(|l| format!("{l}\n")).collect();
        super::write_whole(&path, kept.as_bytes())?;
        let lines = OpenOptions::new().append(true).open(&path).map_err(|e| super::unwritable(&path, &e))?;
        let events = Events::create(folder).map_err(|e| super::unwritable(folder, &e))?;
        Ok(Log { path, lines, events })
    }

    /// A step's line; on disk when this returns.
    pub fn step(&mut self, line: &Line) -> Result<(), Error> {
        let fail = |e: std::io::Error| super::unwritable(&self.path, &e);
        let text = serde_json::to_string(line).map_err(|e| fail(e.into()))?;
        self.lines.write_all(format!("{text}\n").as_bytes()).map_err(fail)?;
        self.events.scalars(line.step, &line.scalars()).map_err(fail)
    }
}

/// The whole lines of a log up to a step; none if there is no log.
fn lines(path: &Path, after: u64) -> Result<Vec<String>, Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::Input(format!("cannot read {}: {e}", path.display()))),
    };
    let step = |line: &str| serde_json::from_str::<Line>(line).ok().filter(|l| l.step <= after).is_some();
    Ok(text.lines().filter(|l| step(l)).map(String::from).collect())
}
