//! Pictures and videos as tiles and tokens.

use super::{Args, Report, grouped};
use crate::cli::Error;
use omchat_model::OmChatConfig;
use omchat_model::picture::Picture;
use omchat_model::tiler::{TileMode, Tiler};
use omchat_model::video::{count_frames, sample_indices};
use serde_json::json;
use std::path::Path;

/// Adds pictures and the video to the report.
///
/// Errors: what cannot be read; a model without a tower.
pub fn show(
    report: &mut Report,
    args: &Args,
    name: &str,
    dir: Option<&Path>,
    config: &OmChatConfig,
) -> Result<(), Error> {
    let tiler = match dir {
        Some(dir) => Tiler::from_dir(dir, config)?,
        None => Tiler::new(config)?,
    };
    let per_tile = config.tokens_per_tile();
    report.line(format!("as {name} sees it: tiles of {} pixels, {per_tile} tokens each", tiler.tile()));
    let (mut pictures, mut tiles) = (vec![], 0);
    for path in &args.image {
        let p = Picture::open(path)?;
        let (columns, rows) = tiler.grid(p.width, p.height);
        let n = tiler.count(p.width, p.height, TileMode::AnyRes);
        tiles += n;
        report.line(format!(
            "  picture {}: {}x{} pixels, canvas of {columns}x{rows} tiles and an overview, {n} tiles, {} tokens",
            path.display(),
            p.width,
            p.height,
            grouped((n * per_tile) as u64)
        ));
        pictures.push(json!({ "file": path.display().to_string(), "width": p.width, "height": p.height, "grid": [columns, rows], "tiles": n, "tokens": n * per_tile }));
    }
    report.put("images", json!(pictures));
    if let Some(path) = &args.video {
        let total = count_frames(path)?;
        let chosen = sample_indices(total, args.frames as usize);
        let n = chosen.len();
        tiles += n;
        report.line(format!(
            "  video {}: {total} frames, of which {n} are looked at, one tile each, {} tokens",
            path.display(),
            grouped((n * per_tile) as u64)
        ));
        report.put("video", json!({ "file": path.display().to_string(), "frames": total, "chosen": chosen, "tiles": n, "tokens": n * per_tile }));
    }
    report.line(format!(
        "  {tiles} tiles, {} tokens of the context, the words not counted",
        grouped((tiles * per_tile) as u64)
    ));
    report.put("tiles", json!(tiles));
    report.put("tokens", json!(tiles * per_tile));
    Ok(())
}
