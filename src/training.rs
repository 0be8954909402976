//! Training by a recipe: stages one after the other, each step logged, checkpoints from which a run goes on.

mod checkpoint;
mod compare;
mod events;
mod export;
mod failed;
mod feeds;
mod flops;
mod log;
mod losses;
mod mix;
mod programs;
mod replay;
mod run;
mod score;
mod stage;

pub use checkpoint::{Found, Place, newest};
pub use export::{Changed, export, exportable};
pub use failed::Whence;
pub use feeds::Feeds;
pub use log::Line;
pub use losses::Losses;
pub use mix::mix;
pub use programs::programs;
pub use replay::{Loss, Norm, Replay, replay};
pub use run::{Outcome, Packs, Supply, TrainOptions, Watched, train};
pub use score::{Scored, meta, score};

use crate::Error;
use std::path::Path;

fn unwritable(path: &Path, e: &std::io::Error) -> Error {
    Error::Input(format!("cannot write {}: {e}", path.display()))
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    omchat_recipe::write_whole(path, bytes).map_err(|e| unwritable(path, &e))
}
