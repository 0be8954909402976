//! `omchat init`: a model from nothing.

use super::case::{self, Data};
use super::{Error, note};
use omchat_model::OmChatConfig;
use std::path::{Path, PathBuf};

/// What `omchat init` takes.
#[derive(clap::Args)]
pub struct Args {
    /// A folder with config.json, and the tokenizer and the processor's files that are copied beside the weights.
    #[arg(long, value_name = "DIR")]
    config: PathBuf,
    /// What the numbers are drawn from: the same seed, the same model.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The folder to write; it must hold no weights yet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Most parameters: what a host holds several times in f32.
const MOST: usize = 1 << 32;

/// Writes the model.
pub fn run(args: &Args) -> Result<(), Error> {
    let config = OmChatConfig::from_dir(&args.config)?;
    let out = &args.out;
    if let Some(there) = weights(out) {
        return Err(Error::input(format!("{} is there already; give --out another folder", there.display())));
    }
    let count = parameters(&config);
    if count > MOST {
        return Err(Error::input(format!("{count} parameters; `omchat init` makes {MOST} at most")));
    }
    let tensors: Vec<(String, Data)> =
        omchat::initial(&config, args.seed).into_iter().map(|(s, x)| (s.name, Data::f32(s.shape, &x))).collect();
    let fail = |at: &Path, e: std::io::Error| Error::input(format!("cannot write {}: {e}", at.display()));
    std::fs::create_dir_all(out).map_err(|e| fail(out, e))?;
    for entry in std::fs::read_dir(&args.config).map_err(|e| fail(&args.config, e))?.flatten() {
        let (from, to) = (entry.path(), out.join(entry.file_name()));
        let same = from.canonicalize().ok() == to.canonicalize().ok() && to.exists();
        if from.is_file() && ends_in(&from, "json") && !same {
            std::fs::copy(&from, &to).map_err(|e| fail(&to, e))?;
        }
    }
    case::write(&out.join("model.safetensors"), &tensors)?;
    note(format!("{}: {count} parameters from seed {}", out.display(), args.seed));
    Ok(())
}

fn parameters(config: &OmChatConfig) -> usize {
    let sizes = omchat_model::weights::tensors(config).into_iter();
    sizes.fold(0, |sum, t| sum.saturating_add(t.shape.iter().fold(1, |n: usize, side| n.saturating_mul(*side))))
}

/// The first file of weights in a folder.
fn weights(dir: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(dir).ok()?.flatten().map(|e| e.path());
    files.filter(|p| ends_in(p, "safetensors")).min()
}

fn ends_in(path: &Path, end: &str) -> bool {
    path.extension().is_some_and(|e| e == end)
}
