//! A long text to hide things in, read from whatever files there are.

use super::draw::digest;
use crate::error::{Error, Result};
use omchat_model::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};

/// A text as ids, and where its sentences end.
#[derive(Debug, Clone)]
pub struct Haystack {
    /// The ids.
    pub ids: Vec<u32>,
    /// For each id, whether a sentence ends with it.
    pub ends: Vec<bool>,
    /// Tells this text from others.
    pub digest: u64,
}

const MEND: &str = "name text files in UTF-8, or folders that hold some (.txt, .md)";

impl Haystack {
    /// The text of files and folders, `wanted` ids of it at the most; with `repeat` it starts over at its end.
    ///
    /// A folder yields its `.txt` and `.md` files and those of its folders, by name.
    ///
    /// Errors: `File` for what cannot be read; `Format` for what is no UTF-8; `Input` if there is no text.
    pub fn read(paths: &[PathBuf], tokenizer: &Tokenizer, wanted: usize, repeat: bool) -> Result<Haystack> {
        let mut files = Vec::new();
        for path in paths {
            list(path, &mut files)?;
        }
        let (mut ids, mut sum) = (Vec::new(), 0u64);
        for file in &files {
            // Of all files, also those that are not wanted yet: longer prompts later are of the same text.
            let text = text(file)?;
            sum = sum.rotate_left(1) ^ digest(text.as_bytes());
            if ids.len() >= wanted {
                continue;
            }
            ids.extend(tokenizer.encode(text.trim())?);
            ids.extend(tokenizer.encode("\n\n")?);
        }
        if files.is_empty() || sum == 0 {
            let named: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
            return Err(Error::input(format!("there is no text to hide a needle in: {}", named.join(", ")), MEND));
        }
        while repeat && ids.len() < wanted {
            let again = ids.len().min(wanted - ids.len());
            ids.extend_from_within(..again);
        }
        ids.truncate(wanted);
        let ends = sentence_ends(&ids, tokenizer)?;
        Ok(Haystack { ids, ends, digest: sum })
    }

    /// The place at or before `target` where a sentence has just ended; the start if none has.
    pub fn back_to_end(&self, target: usize) -> usize {
        let ends = self.ends.get(..target.min(self.ends.len())).unwrap_or_default();
        ends.iter().rposition(|ends| *ends).map_or(0, |last| last + 1)
    }
}

fn list(path: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    let kind = std::fs::metadata(path).map_err(|why| Error::file(path, why))?;
    if !kind.is_dir() {
        out.push(path.to_path_buf());
        return Ok(());
    }
    let listing = std::fs::read_dir(path).map_err(|why| Error::file(path, why))?;
    let mut inside: Vec<PathBuf> = listing.filter_map(|item| item.ok().map(|item| item.path())).collect();
    inside.sort();
    for item in inside {
        let ending = item.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        if item.is_dir() || ["txt", "md"].contains(&ending.as_str()) {
            list(&item, out)?;
        }
    }
    Ok(())
}

fn text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|why| Error::file(path, why))?;
    String::from_utf8(bytes).map_err(|fault| {
        let at = fault.utf8_error().valid_up_to();
        Error::format(path, format!("no UTF-8 text from byte {at} on"), MEND)
    })
}

/// An id ends a sentence if its text does, but for quotes and blanks after it.
fn sentence_ends(ids: &[u32], tokenizer: &Tokenizer) -> Result<Vec<bool>> {
    let mut known = std::collections::HashMap::new();
    let mut out = Vec::with_capacity(ids.len());
    for id in ids {
        let ends = match known.get(id) {
            Some(ends) => *ends,
            None => {
                let piece = tokenizer.decode(&[*id])?;
                let bare = piece.trim_end_matches(|c: char| c.is_whitespace() || "\"')]”’".contains(c));
                let ends = bare.ends_with(['.', '!', '?', '。']);
                known.insert(*id, ends);
                ends
            }
        };
        out.push(ends);
    }
    Ok(out)
}
