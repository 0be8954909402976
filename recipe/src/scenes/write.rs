//! Samples as files: ms-swift JSONL with PNG pictures, and GIFs or folders of frames.

use super::{Sample, Scenes};
use crate::error::{Error, Result};
use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, Frame, RgbImage, RgbaImage};
use omchat_model::picture::Picture;
use serde_json::{Value, json};
use std::io::BufWriter;
use std::path::Path;

/// Milliseconds that a frame of a GIF is shown.
const FRAME_MS: u32 = 250;

/// Writes the samples `first` to below `first + count` into a folder: `data.jsonl`, a record a line, and beside it
/// `media/`. Videos are folders of PNG frames, without loss; with `gif` one animated GIF of 256 colours each. Yields how
/// many were written: a sample that none of the wanted questions fits is passed over.
///
/// Errors: samples of which none has a question; what cannot be written.
pub fn write(scenes: &Scenes, first: u64, count: u64, dir: &Path, gif: bool) -> Result<u64> {
    let end = first.checked_add(count).ok_or_else(|| {
        Error::input(format!("{count} samples from number {first} on"), format!("the last number is {}", u64::MAX - 1))
    })?;
    let media = dir.join("media");
    std::fs::create_dir_all(&media).map_err(|why| Error::file(&media, why))?;
    let (mut lines, mut written) = (String::new(), 0);
    for index in first..end {
        let sample = scenes.sample(index);
        if sample.turns.is_empty() {
            continue;
        }
        written += 1;
        let names = files(&sample, index, dir, gif)?;
        lines.push_str(&record(&sample, &names).to_string());
        lines.push('\n');
    }
    if written == 0 && count > 0 {
        let what = format!("none of {count} samples has a question of those that are asked for");
        return Err(Error::input(what, "ask what the samples show, see docs/scenes.md, or ask everything"));
    }
    let path = dir.join("data.jsonl");
    std::fs::write(&path, lines).map_err(|why| Error::file(&path, why))?;
    Ok(written)
}

/// Writes a sample's frames; the names of its pictures, or of its video, below the folder.
fn files(sample: &Sample, index: u64, dir: &Path, gif: bool) -> Result<Vec<String>> {
    if sample.video {
        let name = format!("media/{index:06}{}", if gif { ".gif" } else { "" });
        let path = dir.join(&name);
        if gif {
            animation(&sample.frames, &path)?
        } else {
            folder(&sample.frames, &path)?
        }
        return Ok(vec![name]);
    }
    // A picture that no turn shows is none of the record's.
    let shown = sample.turns.iter().flat_map(|turn| turn.shows.clone());
    let pictures: Vec<(String, &Picture)> =
        shown.filter_map(|i| Some((format!("media/{index:06}-{i}.png"), sample.frames.get(i)?))).collect();
    for (name, picture) in &pictures {
        png(picture, &dir.join(name))?;
    }
    Ok(pictures.into_iter().map(|(name, _)| name).collect())
}

/// A record of ms-swift: `messages`, and `images` or `videos`.
fn record(sample: &Sample, media: &[String]) -> Value {
    let mut messages = vec![];
    for turn in &sample.turns {
        // A video is one mark, whatever its frames.
        let marks =
            if sample.video { "<video>".repeat(turn.shows.len().min(1)) } else { "<image>".repeat(turn.shows.len()) };
        messages.push(json!({"role": "user", "content": format!("{marks}{}", turn.question)}));
        messages.push(json!({"role": "assistant", "content": turn.answer}));
    }
    let key = if sample.video { "videos" } else { "images" };
    json!({"messages": messages, key: media})
}

fn png(picture: &Picture, path: &Path) -> Result<()> {
    rgb(picture, path)?.save(path).map_err(|why| failed(path, why))
}

/// A folder of frames, in place of one that is there: frames of two videos would be one video.
fn folder(frames: &[Picture], path: &Path) -> Result<()> {
    if path.is_dir() {
        std::fs::remove_dir_all(path).map_err(|why| Error::file(path, why))?;
    }
    std::fs::create_dir_all(path).map_err(|why| Error::file(path, why))?;
    frames.iter().enumerate().try_for_each(|(i, frame)| png(frame, &path.join(format!("{i:05}.png"))))
}

fn animation(frames: &[Picture], path: &Path) -> Result<()> {
    let file = std::fs::File::create(path).map_err(|why| Error::file(path, why))?;
    let mut encoder = GifEncoder::new(BufWriter::new(file));
    encoder.set_repeat(Repeat::Infinite).map_err(|why| failed(path, why))?;
    for frame in frames {
        let opaque: RgbaImage = image::DynamicImage::ImageRgb8(rgb(frame, path)?).into_rgba8();
        let delay = Delay::from_numer_denom_ms(FRAME_MS, 1);
        encoder.encode_frame(Frame::from_parts(opaque, 0, 0, delay)).map_err(|why| failed(path, why))?;
    }
    Ok(())
}

fn rgb(picture: &Picture, path: &Path) -> Result<RgbImage> {
    let (width, height) = (picture.width as u32, picture.height as u32);
    RgbImage::from_raw(width, height, picture.rgb.clone())
        .ok_or_else(|| Error::format(path, format!("{width}x{height} pixels without samples"), "draw it again"))
}

fn failed(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::format(path, why.to_string(), "give a folder that can be written")
}
