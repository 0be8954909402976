//! Frames through a pipe from the `ffmpeg` program: raw RGB, each with the short header of a PPM picture.
//!
//! The header makes every frame say its own size, so a turned or resized stream is read rightly.

use crate::error::{Error, Result};
use crate::picture::{Picture, check_size};
use crate::video::{Sink, Told};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

const MEND: &str = "check that the file plays, or write it anew: ffmpeg -i IN OUT.mp4";

/// How many video packets a file holds; nothing is decoded.
pub(crate) fn count(path: &Path) -> Result<usize> {
    let mut run = start(path, &["-c", "copy", "-f", "null", "-progress", "pipe:1", "-"])?;
    let mut frames = 0;
    for line in run.lines()? {
        let line = line.map_err(|cause| Error::video(path, cause, MEND))?;
        frames = line.strip_prefix("frame=").and_then(|count| count.trim().parse().ok()).unwrap_or(frames);
    }
    let said = run.end(path)?;
    // Timestamps out of order are an error to a copy and none to a decoder: only an empty result counts here.
    match (frames, said.last) {
        (0, Some(last)) => Err(Error::video(path, format!("ffmpeg says: {last}"), MEND)),
        _ if !said.success => Err(Error::video(path, "ffmpeg stopped and said nothing", MEND)),
        _ => Ok(frames),
    }
}

/// How long a file's video lasts; nothing is decoded.
///
/// Units: seconds.
pub(crate) fn seconds(path: &Path) -> Result<f64> {
    let mut run = start(path, &["-c", "copy", "-f", "null", "-progress", "pipe:1", "-"])?;
    let mut micros = 0.0;
    for line in run.lines()? {
        let line = line.map_err(|cause| Error::video(path, cause, MEND))?;
        micros = line.strip_prefix("out_time_us=").and_then(|time| time.trim().parse().ok()).unwrap_or(micros);
    }
    run.end(path)?;
    if micros > 0.0 { Ok(micros / 1e6) } else { Err(Error::video(path, "ffmpeg says no length", MEND)) }
}

/// Decodes a whole file and hands over the chosen frames; the result is how many there were.
///
/// Errors: `Video` with ffmpeg's last line if it met any fault, for what it makes up in a fault's place is no frame.
pub(crate) fn decode(path: &Path, chosen: &[usize], total: usize, progress: Told<'_>, keep: Sink<'_>) -> Result<usize> {
    let options = ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"];
    let mut run = start(path, &options)?;
    let mut count = 0;
    let mut fault = None;
    let mut pipe = run.pipe()?;
    loop {
        match next_frame(&mut pipe, path, chosen.binary_search(&count).is_ok()) {
            Ok(Next::Frame(frame)) => keep(count, frame)?,
            Ok(Next::Skipped) => {}
            Ok(Next::End) => break,
            Err(error) => {
                fault = Some(error);
                break;
            }
        }
        count += 1;
        progress(count, total.max(count))?;
    }
    drop(pipe);
    let said = run.end(path)?;
    match (said.last, fault) {
        (Some(last), _) => Err(Error::video(path, format!("ffmpeg says: {last}"), MEND)),
        (None, Some(fault)) => Err(fault),
        (None, None) if !said.success => Err(Error::video(path, "ffmpeg stopped and said nothing", MEND)),
        (None, None) => Ok(count),
    }
}

enum Next {
    Frame(Picture),
    Skipped,
    End,
}

fn next_frame(pipe: &mut impl BufRead, path: &Path, wanted: bool) -> Result<Next> {
    let broken =
        |cause: &dyn std::fmt::Display| Error::video(path, format!("ffmpeg's stream breaks off: {cause}"), MEND);
    if pipe.fill_buf().map_err(|cause| broken(&cause))?.is_empty() {
        return Ok(Next::End);
    }
    let mut line = || {
        let mut text = String::new();
        pipe.by_ref().take(64).read_line(&mut text).map_err(|cause| broken(&cause)).map(|_| text.trim().to_owned())
    };
    let header = [line()?, line()?, line()?];
    let sides: Vec<usize> = header[1].split(' ').filter_map(|side| side.parse().ok()).collect();
    let (["P6", _, "255"], [width, height]) = (header.each_ref().map(String::as_str), sides.as_slice()) else {
        return Err(broken(&format!("no PPM header but {header:?}")));
    };
    check_size(&path.display().to_string(), *width as u64, *height as u64)?;
    let bytes = width * height * 3;
    if !wanted {
        let skipped =
            std::io::copy(&mut pipe.take(bytes as u64), &mut std::io::sink()).map_err(|cause| broken(&cause))?;
        return if skipped == bytes as u64 {
            Ok(Next::Skipped)
        } else {
            Err(broken(&format!("{skipped} bytes of {bytes}")))
        };
    }
    let mut rgb = vec![0; bytes];
    pipe.read_exact(&mut rgb).map_err(|cause| broken(&cause))?;
    Ok(Next::Frame(Picture { width: *width, height: *height, rgb }))
}

/// A running ffmpeg; it is ended when this is dropped.
struct Run {
    child: Child,
    words: Option<JoinHandle<Option<String>>>,
}

/// How a run ended.
struct Said {
    success: bool,
    last: Option<String>,
}

fn start(path: &Path, output: &[&str]) -> Result<Run> {
    let program = std::env::var_os("OMCHAT_FFMPEG").unwrap_or_else(|| "ffmpeg".into());
    // `file:` keeps a name with a colon from being read as a protocol.
    let mut file = OsString::from("file:");
    file.push(path);
    let child = Command::new(&program)
        .args(["-nostdin", "-hide_banner", "-v", "error", "-i"])
        .arg(file)
        .args(["-map", "0:v:0"])
        .args(output)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|cause| {
        let mend = "install it (apt-get install ffmpeg), or name it in OMCHAT_FFMPEG; \
                    folders of pictures and animated GIFs need none";
        Error::video(path, format!("cannot start `{}`: {cause}", program.display()), mend)
    })?;
    // Read beside the frames: a full pipe of messages would stop ffmpeg for ever.
    let words = child.stderr.take().map(|pipe| std::thread::spawn(move || last_line(pipe)));
    Ok(Run { child, words })
}

fn last_line(pipe: impl Read) -> Option<String> {
    let lines = BufReader::new(pipe).split(b'\n').map_while(std::result::Result::ok);
    let texts = lines.map(|line| String::from_utf8_lossy(&line).trim().to_owned());
    // A repeated message is followed by a count of its repetitions.
    texts.filter(|text| !text.is_empty() && !text.starts_with("Last message repeated")).last()
}

impl Run {
    fn pipe(&mut self) -> Result<BufReader<std::process::ChildStdout>> {
        let pipe = self.child.stdout.take();
        let pipe = pipe.ok_or_else(|| Error::input("ffmpeg's output was read twice", "read it once"))?;
        Ok(BufReader::with_capacity(1 << 18, pipe))
    }

    fn lines(&mut self) -> Result<std::io::Lines<BufReader<std::process::ChildStdout>>> {
        Ok(self.pipe()?.lines())
    }

    fn end(mut self, path: &Path) -> Result<Said> {
        let last = self.words.take().and_then(|words| words.join().ok()).flatten();
        let status = self.child.wait().map_err(|cause| Error::video(path, cause, MEND))?;
        Ok(Said { success: status.success(), last })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Both fail where the program has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
