//! Frames from folders, GIFs and, where ffmpeg is installed, from video files.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may end at the first surprise

use image::codecs::gif::GifEncoder;
use image::{Frame, Rgba, RgbaImage};
use omchat_model::Error;
use omchat_model::chat::Visual;
use omchat_model::picture::Picture;
use omchat_model::presets;
use omchat_model::tiler::{TileMode, Tiler};
use omchat_model::video::{Span, count_frames, sample, sample_between, tile_video};
use std::path::{Path, PathBuf};
use std::process::Command;

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("omchat-video-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// The first sample of each frame that is sampled.
fn reds(path: &Path, wanted: usize) -> omchat_model::Result<Vec<u8>> {
    sample(path, wanted, &mut |_, _| {}, |frame: Picture| Ok(frame.rgb[0]))
}

/// A small video made by ffmpeg, or nothing, said aloud, where there is none.
fn video(dir: &Path, options: &[&str]) -> Option<PathBuf> {
    let path = dir.join("made.mp4");
    let source = ["-v", "error", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=3"];
    let run = Command::new("ffmpeg").args(source).args(options).arg(&path).status();
    match run {
        Ok(status) if status.success() => Some(path),
        _ => {
            println!("skipped: no ffmpeg that can write mp4");
            None
        }
    }
}

#[test]
fn a_folder_in_natural_order() {
    let dir = folder("frames");
    for index in [10u8, 2, 1, 30] {
        RgbaImage::from_pixel(3, 2, Rgba([index, 0, 0, 255])).save(dir.join(format!("frame{index}.png"))).unwrap();
    }
    std::fs::write(dir.join("notes.txt"), "no picture").unwrap();
    assert_eq!(reds(&dir, 8).unwrap(), [1, 2, 10, 30]);
    assert_eq!(reds(&dir, 2).unwrap(), [1, 10]);
    std::fs::write(dir.join("frame3.png"), "broken").unwrap();
    assert!(matches!(reds(&dir, 8), Err(Error::Image { .. })));
    assert!(reds(&folder("empty"), 8).unwrap_err().to_string().contains("no frame"));
}

#[test]
fn an_animated_gif() {
    let path = folder("gif").join("made.gif");
    let mut encoder = GifEncoder::new(std::fs::File::create(&path).unwrap());
    let frame = |red| Frame::new(RgbaImage::from_pixel(4, 4, Rgba([red, 0, 0, 255])));
    encoder.encode_frames([0u8, 51, 102, 153, 204].map(frame)).unwrap();
    drop(encoder);
    assert_eq!(reds(&path, 9).unwrap(), [0, 51, 102, 153, 204]);
    assert_eq!(reds(&path, 2).unwrap(), [51, 153]);
    let tiler = Tiler::new(&presets::mini()).unwrap();
    let mut calls = Vec::new();
    let visual = tile_video(&path, 2, &tiler, TileMode::Single, &mut |done, of| calls.push((done, of))).unwrap();
    let Visual::Video(frames) = visual else { panic!("a video") };
    assert_eq!((frames.len(), frames[0].count(), calls.last()), (2, 1, Some(&(5, 5))));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..10]).unwrap();
    assert!(matches!(reds(&path, 2), Err(Error::Video { .. })));
}

#[test]
fn a_file_through_ffmpeg() {
    let dir = folder("file");
    let Some(path) = video(&dir, &[]) else { return };
    assert_eq!(count_frames(&path).unwrap(), 30);
    let mut last = (0, 0);
    let sizes = sample(&path, 4, &mut |done, of| last = (done, of), |frame| Ok((frame.width, frame.height))).unwrap();
    assert_eq!((sizes, last), (vec![(64, 48); 4], (30, 30)));
    assert_eq!(sample(&path, 100, &mut |_, _| {}, |_| Ok(())).unwrap().len(), 30);
    let odd = dir.join("-odd: name.mp4");
    std::fs::copy(&path, &odd).unwrap();
    assert_eq!(count_frames(&odd).unwrap(), 30);
}

/// The frames of a stretch in seconds of a file of [`grays`]: what each shows says which it is.
fn shown(path: &Path, from: f64, to: f64) -> omchat_model::Result<Vec<usize>> {
    let span = Span { from, to, rate: None };
    sample_between(path, 100, Some(span), &mut |_, _| {}, |frame: Picture| {
        Ok((f64::from(frame.rgb[0]) / 10.0).round() as usize)
    })
}

/// A file whose n-th frame is gray of 10 n, made of `filters` and `options`.
fn grays(dir: &Path, name: &str, filters: &str, options: &[&str]) -> Option<PathBuf> {
    let path = dir.join(name);
    let source = format!("color=black:size=64x48:rate=1:duration=10,format=rgb24,geq=r=10*N:g=10*N:b=10*N{filters}");
    let mut run = Command::new("ffmpeg");
    run.args(["-v", "error", "-f", "lavfi", "-i", &source]).args(options).arg(&path);
    let made = run.status().is_ok_and(|status| status.success());
    if !made {
        println!("skipped: no ffmpeg that can write {name}");
    }
    made.then_some(path)
}

#[test]
fn a_stretch_has_the_frames_that_are_on_the_screen() {
    let dir = folder("stretches");
    let yuv = ["-pix_fmt", "yuv420p"];
    for (name, options) in [
        ("plain.mp4", vec!["-bf", "0"]),
        ("late.mp4", vec!["-bf", "2"]),
        ("late.ts", vec!["-bf", "2"]),
        ("made.webm", vec!["-c:v", "libvpx", "-b:v", "1M"]),
        ("late.avi", vec!["-c:v", "mpeg4", "-q:v", "1", "-bf", "2"]),
    ] {
        let Some(path) = grays(&dir, name, "", &[&yuv[..], &options].concat()) else { continue };
        assert_eq!(shown(&path, 0.0, 10.0).unwrap(), (0..10).collect::<Vec<_>>(), "{name}");
        assert_eq!(shown(&path, 8.5, 9.0).unwrap(), [8], "{name}");
        assert_eq!(shown(&path, 2.0, 5.0).unwrap(), [2, 3, 4], "{name}");
        assert_eq!(shown(&path, 2.5, 4.5).unwrap(), [2, 3, 4], "{name}");
        assert_eq!(shown(&path, 9.9, 60.0).unwrap(), [9], "{name}");
        let text = shown(&path, 10.0, 11.0).unwrap_err().to_string();
        assert!(text.contains("10 frames in 10.000 s"), "{name}: {text}");
    }
    // Frames 0 to 3 last a second, then 5 and 9 stand for what is left out.
    let filters = ",select='lt(n,4)+eq(n,5)+eq(n,9)'";
    if let Some(path) = grays(&dir, "varied.mp4", filters, &["-pix_fmt", "yuv420p", "-fps_mode", "vfr"]) {
        assert_eq!(shown(&path, 3.0, 6.0).unwrap(), [3, 5]);
        assert_eq!(shown(&path, 7.0, 7.5).unwrap(), [5]);
        assert_eq!(shown(&path, 8.9, 9.5).unwrap(), [5, 9]);
        assert_eq!(shown(&path, 9.2, 10.0).unwrap(), [9]);
    }
    // An edit list hides the first frames, which the decoder needs.
    let whole = dir.join("plain.mp4");
    let cut = dir.join("cut.mp4");
    let mut run = Command::new("ffmpeg");
    run.args(["-v", "error", "-ss", "4", "-i"]).arg(&whole).args(["-c", "copy"]).arg(&cut);
    if whole.exists() && run.status().is_ok_and(|status| status.success()) {
        assert_eq!(shown(&cut, 0.0, 2.0).unwrap(), [4, 5]);
        assert_eq!(shown(&cut, 5.5, 9.0).unwrap(), [9]);
        assert!(shown(&cut, 6.0, 7.0).is_err());
    }
}

#[test]
fn what_is_no_video_is_told_by_name() {
    let dir = folder("none-of-it");
    let words = |path: &Path| reds(path, 4).unwrap_err().to_string();
    let sound = dir.join("sound.mp3");
    let run =
        Command::new("ffmpeg").args(["-v", "error", "-f", "lavfi", "-i", "sine=duration=0.2"]).arg(&sound).status();
    if run.is_ok_and(|status| status.success()) {
        assert!(words(&sound).contains("it has no video stream"), "{}", words(&sound));
    }
    let webp = dir.join("moves.webp");
    std::fs::write(&webp, b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\0\0\0\0\0\0").unwrap();
    assert!(words(&webp).contains("animated WebP") && words(&webp).contains("--image"), "{}", words(&webp));
}

#[test]
fn broken_files_end_in_the_decoders_words() {
    let dir = folder("broken");
    let words = |path: &Path| match reds(path, 4) {
        Err(Error::Video { cause, .. }) => cause,
        other => panic!("want a video error, have {other:?}"),
    };
    let path = dir.join("noise.mp4");
    std::fs::write(&path, [7; 4096]).unwrap();
    if video(&dir, &["-movflags", "faststart"]).is_some() {
        assert!(words(&path).contains("ffmpeg says: "), "{}", words(&path));
        let bytes = std::fs::read(dir.join("made.mp4")).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() * 2 / 3]).unwrap();
        assert!(words(&path).contains("ffmpeg says: "), "{}", words(&path));
    }
    std::fs::write(&path, []).unwrap();
    assert!(words(&path).contains("0 bytes"));
    assert!(matches!(reds(Path::new("/nowhere.mp4"), 4), Err(Error::Video { .. })));
    assert!(reds(&path, 0).unwrap_err().to_string().contains("0 frames"));
}

/// The environment belongs to a whole process, so another one is started for this.
#[test]
fn without_ffmpeg_the_error_says_how_to_get_it() {
    if std::env::var_os("OMCHAT_FFMPEG").is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "without_ffmpeg_the_error_says_how_to_get_it"]).env("OMCHAT_FFMPEG", "/nowhere/ffmpeg");
        assert!(again.status().unwrap().success());
    } else {
        let path = folder("none").join("some.mp4");
        std::fs::write(&path, [7; 4096]).unwrap();
        let text = reds(&path, 4).unwrap_err().to_string();
        assert!(text.contains("/nowhere/ffmpeg") && text.contains("apt-get install ffmpeg"), "{text}");
    }
}
