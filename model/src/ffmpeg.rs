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

/// What ffmpeg says of a file without pictures, before a line about its own options.
const NO_STREAM: &str = "matches no streams";

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
        (0, Some(last)) => Err(told(path, &last)),
        _ if !said.success => Err(Error::video(path, "ffmpeg stopped and said nothing", MEND)),
        _ => Ok(frames),
    }
}

/// When each frame of a file's video is shown, in order, and at the end when the last one goes, from 0 for the first.
///
/// `total` frames are looked for. If the packets are as many and each says its time, nothing is decoded; else the
/// decoder's frames say it, and the result may tell of another number of them.
///
/// Units: seconds. Errors: `Video` with ffmpeg's last line where no frame has a time.
pub(crate) fn times(path: &Path, total: usize) -> Result<Vec<f64>> {
    let packets = timed(path, &["-c", "copy"])?.0;
    if packets.len() == total + 1 {
        return Ok(packets);
    }
    // The encoder's clock would be the rounded rate; -1 keeps the file's own.
    let (frames, last) = timed(path, &["-c:v", "rawvideo", "-fps_mode", "passthrough", "-enc_time_base", "-1"])?;
    match (frames.is_empty(), last) {
        (false, _) => Ok(frames),
        (true, Some(last)) => Err(told(path, &last)),
        (true, None) => Err(Error::video(path, "ffmpeg says no times of its frames", MEND)),
    }
}

/// The times that a copy or a decoder says, as [`times`] gives them, and ffmpeg's last words; no times if one is missing.
fn timed(path: &Path, codec: &[&str]) -> Result<(Vec<f64>, Option<String>)> {
    let mut run = start(path, &[codec, &["-f", "framecrc", "-"]].concat())?;
    let (mut clock, mut all_known) = (None, true);
    // Starts and lengths, in ticks of the clock.
    let mut ticks: Vec<(i64, i64)> = Vec::new();
    for line in run.lines()? {
        let line = line.map_err(|cause| Error::video(path, cause, MEND))?;
        if let Some(told) = line.strip_prefix("#tb 0:") {
            clock = told.split_once('/').and_then(|(up, down)| Some((number(up)? as f64, number(down)? as f64)));
        }
        if line.starts_with('#') {
            continue;
        }
        // stream, dts, pts, duration, size, checksum, flags
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        if fields.iter().any(|field| hidden(field)) {
            continue;
        }
        match (fields.get(2).and_then(|at| number(at)), fields.get(3).and_then(|length| number(length))) {
            (Some(at), Some(length)) if at != i64::MIN => ticks.push((at, length)),
            _ => all_known = false,
        }
    }
    let said = run.end(path)?;
    ticks.sort_unstable();
    let (Some(&(first, _)), Some(&(last, length)), Some((up, down)), true) =
        (ticks.first(), ticks.last(), clock, all_known)
    else {
        return Ok((Vec::new(), said.last));
    };
    let seconds = |ticks: f64| ticks * up / down;
    let mut times: Vec<f64> = ticks.iter().map(|(at, _)| seconds(at.saturating_sub(first) as f64)).collect();
    // Where no length is said the last frame stays as long as the others do; a lone one for a second.
    let length = match (length, ticks.len()) {
        (1.., _) => seconds(length as f64),
        (_, 1) => 1.0,
        (_, n) => seconds(last.saturating_sub(first) as f64) / (n - 1) as f64,
    };
    times.push(times[times.len() - 1] + length);
    Ok((times, said.last))
}

/// Whether a field is the flags of a packet that is decoded and not shown, as before the start of an edit list.
fn hidden(field: &str) -> bool {
    const DISCARD: i64 = 4;
    field.strip_prefix("F=0x").and_then(|flags| i64::from_str_radix(flags, 16).ok()).is_some_and(|f| f & DISCARD != 0)
}

fn number(text: &str) -> Option<i64> {
    text.trim().parse().ok()
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
        (Some(last), _) => Err(told(path, &last)),
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

/// What ffmpeg's words mean for a file.
fn told(path: &Path, last: &str) -> Error {
    if last.contains(NO_STREAM) {
        return Error::video(path, "it has no video stream", "name a file that holds a video");
    }
    Error::video(path, format!("ffmpeg says: {last}"), MEND)
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
        .args(["-map", "0:V:0"])
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
    let mut texts = texts.filter(|text| !text.is_empty() && !text.starts_with("Last message repeated"));
    let mut last = None;
    for text in texts.by_ref() {
        let found = text.contains(NO_STREAM);
        last = Some(text);
        if found {
            break;
        }
    }
    // The rest is read all the same, that ffmpeg need not wait.
    texts.for_each(drop);
    last
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
