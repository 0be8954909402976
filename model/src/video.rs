//! Frames of a video, sampled evenly, one in memory at a time.
//!
//! A folder of pictures and an animated GIF are read here; every other file by the `ffmpeg` program, in
//! [`crate::ffmpeg`].

use crate::chat::Visual;
use crate::error::{Error, Result};
use crate::ffmpeg;
use crate::picture::Picture;
use crate::tiler::{TileMode, Tiler};
use image::AnimationDecoder;
use image::codecs::gif::GifDecoder;
use std::cmp::Ordering;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// Told how many frames are decoded, and how many there are.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// Asked between frames: where it says so, reading ends with an error.
pub type Stop<'a> = &'a dyn Fn() -> bool;

/// Receives a frame's index and the frame; [`sample`] calls it in the order of the video.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(usize, Picture) -> Result<()>;

/// Told of each decoded frame, as [`Progress`]; its error ends the decoding.
pub(crate) type Told<'a> = &'a mut dyn FnMut(usize, usize) -> Result<()>;

/// The frames that stand for a video: one in the middle of each of `wanted` equal stretches; all, if there are not
/// more than `wanted`.
///
/// Units: frames, from 0. With s = (total − 1) / wanted the i-th is ⌊s/2⌋ + round(s·i), halves to even.
/// Source: OmChat's `extract_video_frames.py`.
pub fn sample_indices(total: usize, wanted: usize) -> Vec<usize> {
    if total <= wanted {
        return (0..total).collect();
    }
    let stretch = (total - 1) as f64 / wanted as f64;
    let first = (stretch / 2.0) as usize;
    (0..wanted).map(|i| first + (stretch * i as f64).round_ties_even() as usize).collect()
}

/// What `take` makes of each sampled frame of a video file, an animated GIF or a folder of pictures.
///
/// Only what `take` returns is kept, so a long video costs one decoded frame and its results.
///
/// Errors: `Video` if the source is missing, holds no frame or is corrupt, with the decoder's last words, or if
/// there is no `ffmpeg`, with the way to get it; `Image` for a broken picture of a folder; whatever `take` answers.
pub fn sample<T>(
    path: &Path,
    wanted: usize,
    progress: Progress<'_>,
    take: impl FnMut(Picture) -> Result<T>,
) -> Result<Vec<T>> {
    sample_between(path, wanted, None, progress, take)
}

/// A stretch of a video.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// Where it begins, in seconds.
    pub from: f64,
    /// Where it ends, in seconds.
    pub to: f64,
    /// Frames a second; the times of the file's own frames if `None`, which a folder of pictures and a GIF do not have.
    pub rate: Option<f64>,
}

/// The same for a stretch of a video.
///
/// Errors: as [`sample`]; `Input` for a stretch without a rate that could place it, or that holds no frame.
pub fn sample_between<T>(
    path: &Path,
    wanted: usize,
    span: Option<Span>,
    progress: Progress<'_>,
    take: impl FnMut(Picture) -> Result<T>,
) -> Result<Vec<T>> {
    sample_until(path, wanted, span, &|| false, progress, take)
}

/// The same for a reader that may lose interest.
///
/// Errors: as [`sample_between`]; `Video` where it was stopped.
pub fn sample_until<T>(
    path: &Path,
    wanted: usize,
    span: Option<Span>,
    stop: Stop<'_>,
    progress: Progress<'_>,
    mut take: impl FnMut(Picture) -> Result<T>,
) -> Result<Vec<T>> {
    if wanted == 0 {
        return Err(Error::input("0 frames are asked for", "ask for one at least"));
    }
    let mut total = count_frames(path)?;
    // A container may count frames that its edit list hides. The second count is the decoder's own.
    for _ in 0..3 {
        let chosen = match span {
            None => sample_indices(total, wanted),
            Some(span) => {
                let (first, end) = stretch(path, &mut total, span)?;
                sample_indices(end - first, wanted).into_iter().map(|index| first + index).collect()
            }
        };
        let mut kept = Vec::with_capacity(chosen.len());
        let mut keep = |index: usize, frame: Picture| {
            if chosen.binary_search(&index).is_ok() {
                kept.push(take(frame)?);
            }
            Ok(())
        };
        let mut told = |done: usize, of: usize| {
            progress(done, of);
            if stop() { Err(Error::video(path, "reading it was stopped", "read it again")) } else { Ok(()) }
        };
        let decoded = decode(path, &chosen, total, &mut told, &mut keep)?;
        if decoded == total {
            return Ok(kept);
        }
        if decoded == 0 {
            return Err(Error::video(path, "no frame could be decoded", "name a file that holds a video"));
        }
        total = decoded;
    }
    Err(Error::video(path, "each reading of it finds another number of frames", "write it anew: ffmpeg -i IN OUT.mp4"))
}

/// Some files keep whole milliseconds, so a frame may have begun half of one before or after its time; in seconds.
const SLACK: f64 = 0.0005;

/// The first frame of a stretch, and the first after it; `total` becomes what the file's times tell.
///
/// A stretch has every frame that is on the screen for a moment of it.
fn stretch(path: &Path, total: &mut usize, span: Span) -> Result<(usize, usize)> {
    let (first, end, told) = match (span.rate, source(path)?) {
        (Some(rate), _) => {
            let frame = |count: f64| (count.max(0.0) as usize).min(*total);
            let told = format!("{total} frames at {rate:.3} a second");
            let first = if rate > 0.0 { frame((span.from + SLACK) * rate) } else { *total };
            (first, frame((span.to * rate - SLACK * rate).ceil()), told)
        }
        (None, Source::Other) => {
            let times = ffmpeg::times(path, *total)?;
            *total = times.len() - 1;
            let told = format!("{total} frames in {:.3} s", times[*total]);
            let first = times.partition_point(|begun| *begun <= span.from + SLACK).saturating_sub(1);
            (first, times[..*total].partition_point(|begun| *begun < span.to - SLACK), told)
        }
        (None, _) => return Err(Error::input("a stretch in seconds of frames that have no rate", "give their rate")),
    };
    let end = end.max(first + 1);
    if !(span.from >= 0.0 && span.to >= span.from && end <= *total) {
        let what = format!("{} has no frame from {} s to {} s: {told}", path.display(), span.from, span.to);
        return Err(Error::input(what, "give a stretch inside the video"));
    }
    Ok((first, end))
}

/// A video's sampled frames as tiles, one tile a frame unless `mode` says otherwise.
///
/// Errors: as [`sample`].
pub fn tile_video(path: &Path, wanted: usize, tiler: &Tiler, mode: TileMode, progress: Progress<'_>) -> Result<Visual> {
    sample(path, wanted, progress, |frame| tiler.cut(&frame, mode)).map(Visual::Video)
}

/// How many frames a source has, by its container where that is cheap.
///
/// Errors: as [`sample`].
pub fn count_frames(path: &Path) -> Result<usize> {
    let found = match source(path)? {
        Source::Folder(files) => files.len(),
        Source::Gif => gif_frames(path, &[], 0, &mut |_, _| Ok(()), &mut |_, _| Ok(()))?,
        Source::Other => ffmpeg::count(path)?,
    };
    if found == 0 {
        return Err(Error::video(path, "it holds no frame", "name a video, an animated GIF or a folder of pictures"));
    }
    Ok(found)
}

enum Source {
    Folder(Vec<PathBuf>),
    Gif,
    Other,
}

fn source(path: &Path) -> Result<Source> {
    let mend = "name a video, an animated GIF or a folder of pictures";
    let kind = std::fs::metadata(path).map_err(|cause| Error::video(path, cause, mend))?;
    if kind.is_dir() {
        return folder(path).map(Source::Folder);
    }
    if kind.len() == 0 {
        return Err(Error::video(path, "the file is empty (0 bytes)", mend));
    }
    if animated_webp(path) {
        let mend = "make a GIF or a folder of pictures of it; --image shows its first frame";
        return Err(Error::video(path, "an animated WebP is not read as a video", mend));
    }
    Ok(if ends_in(path, &["gif"]) { Source::Gif } else { Source::Other })
}

/// Whether a file's first bytes are of a WebP whose flags say that it moves.
fn animated_webp(path: &Path) -> bool {
    let mut head = [0; 21];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head.starts_with(b"RIFF") && &head[8..16] == b"WEBPVP8X" && head[20] & 2 != 0
}

fn decode(path: &Path, chosen: &[usize], total: usize, progress: Told<'_>, keep: Sink<'_>) -> Result<usize> {
    match source(path)? {
        Source::Gif => gif_frames(path, chosen, total, progress, keep),
        Source::Other => ffmpeg::decode(path, chosen, total, progress, keep),
        Source::Folder(files) => {
            for (done, index) in chosen.iter().enumerate() {
                keep(*index, Picture::open(&files[*index])?)?;
                progress(done + 1, chosen.len())?;
            }
            Ok(files.len())
        }
    }
}

fn gif_frames(path: &Path, chosen: &[usize], total: usize, progress: Told<'_>, keep: Sink<'_>) -> Result<usize> {
    let corrupt = |cause: &dyn std::fmt::Display| Error::video(path, cause, "take the file from its source again");
    let file = File::open(path).map_err(|cause| corrupt(&cause))?;
    let decoder = GifDecoder::new(BufReader::new(file)).map_err(|cause| corrupt(&cause))?;
    let mut count = 0;
    for frame in decoder.into_frames() {
        let frame = frame.map_err(|cause| corrupt(&cause))?;
        if chosen.contains(&count) {
            let (width, height) = frame.buffer().dimensions();
            let rgb = frame.buffer().pixels().flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]]).collect();
            keep(count, Picture::new(&path.display().to_string(), width as usize, height as usize, rgb)?)?;
        }
        count += 1;
        progress(count, total)?;
    }
    Ok(count)
}

fn ends_in(path: &Path, endings: &[&str]) -> bool {
    let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
    endings.iter().any(|known| end.eq_ignore_ascii_case(known))
}

/// A folder's pictures, `frame2` before `frame10`.
fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    let listing = std::fs::read_dir(path).map_err(|cause| Error::video(path, cause, "name a readable folder"))?;
    let files = listing.filter_map(|item| item.ok().map(|item| item.path()));
    let mut files: Vec<PathBuf> =
        files.filter(|file| ends_in(file, &["png", "jpg", "jpeg", "webp", "bmp", "gif"])).collect();
    files.sort_by(|a, b| natural(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(files)
}

/// Compares runs of digits by their value, all else by its characters.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (x, y) = (run(&mut a), run(&mut b));
        let digits = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        let order = if digits(x) && digits(y) {
            let (p, q) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
            p.len().cmp(&q.len()).then(p.cmp(q)).then(x.len().cmp(&y.len()))
        } else {
            x.cmp(y)
        };
        if order != Ordering::Equal || x.is_empty() {
            return order;
        }
    }
}

/// Takes the digits, or the characters up to the next digit, from the front of a text.
fn run<'a>(text: &mut &'a str) -> &'a str {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    let (head, rest) = text.split_at(end);
    *text = rest;
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures by the released Python.
    #[test]
    fn frames_are_spread_evenly() {
        assert_eq!(sample_indices(100, 4), [12, 37, 62, 86]);
        assert_eq!(sample_indices(10, 1), [4]);
        assert_eq!(sample_indices(3, 8), [0, 1, 2]);
        assert_eq!(sample_indices(0, 8), [] as [usize; 0]);
        for total in 1..200 {
            for wanted in 1..=total {
                let chosen = sample_indices(total, wanted);
                assert!(chosen.len() == wanted && chosen.is_sorted_by(|a, b| a < b), "{total} {wanted}: {chosen:?}");
                assert!(chosen[wanted - 1] < total, "{total} {wanted}: {chosen:?}");
            }
        }
    }

    #[test]
    fn two_comes_before_ten() {
        let mut names = ["f10.png", "f2.png", "f02.png", "f1.png", "e9.png", "f.png"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["e9.png", "f1.png", "f2.png", "f02.png", "f10.png", "f.png"]);
    }
}
