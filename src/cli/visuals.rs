//! Pictures and videos named on the command line.

use super::Error;
use super::progress::Bars;
use omchat_model::chat::Visual;
use omchat_model::picture::Picture;
use omchat_model::tiler::{TileMode, Tiler};
use omchat_model::video;
use std::path::PathBuf;

/// What to look at.
#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// A picture to look at; repeat it for several.
    #[arg(long, value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// A video, an animated GIF or a folder of frames to look at, after the pictures.
    #[arg(long, value_name = "FILE")]
    pub video: Option<PathBuf>,
    /// How many frames of the video are looked at, evenly spread.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub frames: usize,
}

impl Args {
    /// Whether there is anything to look at.
    pub fn any(&self) -> bool {
        !self.image.is_empty() || self.video.is_some()
    }

    /// The tiles of all pictures, then those of the video: a frame is one tile.
    ///
    /// Errors: a picture or a video that cannot be read.
    pub fn tiles(&self, tiler: &Tiler) -> Result<Vec<Visual>, Error> {
        let mut out = vec![];
        for path in &self.image {
            out.push(Visual::Picture(tiler.cut(&Picture::open(path)?, TileMode::AnyRes)?));
        }
        if let Some(path) = &self.video {
            let mut bars = Bars::default();
            let mut progress = |done: usize, total: usize| bars.step("frames", done, total);
            out.push(video::tile_video(path, self.frames, tiler, TileMode::Single, &mut progress)?);
        }
        Ok(out)
    }
}
