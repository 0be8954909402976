//! Where the records of a file are: one pass over it that keeps places, not text.

use crate::error::{Error, Result};
use crate::spec::Split;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of a file that hold one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub start: u64,
    /// How many.
    pub len: u64,
}

/// What parts documents of a text where [`Split::Endoftext`] is asked for.
const END: &[u8] = b"<|endoftext|>";

/// The records of a JSON array, or of a file with a record a line: which it is, the first byte says.
///
/// A record that is no JSON has a span too: reading it says so.
///
/// Errors: `File` if the system refuses.
pub fn json(path: &Path) -> Result<Vec<Span>> {
    let mut file = open(path)?;
    let first = loop {
        let bytes = file.fill_buf().map_err(|why| Error::file(path, why))?;
        let Some(byte) = bytes.first().copied() else { return Ok(Vec::new()) };
        // The mark of UTF-8 that some editors put first.
        if byte.is_ascii_whitespace() || [0xef, 0xbb, 0xbf].contains(&byte) {
            file.consume(1);
        } else {
            break byte;
        }
    };
    let at = file.stream_position().map_err(|why| Error::file(path, why))?;
    if first != b'[' {
        return lines(path, file, at, |_| false);
    }
    file.consume(1);
    let mut scan = Array { at: at + 1, ..Array::default() };
    loop {
        let bytes = file.fill_buf().map_err(|why| Error::file(path, why))?;
        if bytes.is_empty() {
            break;
        }
        bytes.iter().for_each(|byte| scan.take(*byte));
        let read = bytes.len();
        file.consume(read);
    }
    scan.close(scan.at);
    Ok(scan.spans)
}

/// The documents of a text file.
///
/// Errors: `File` if the system refuses.
pub fn text(path: &Path, split: Split) -> Result<Vec<Span>> {
    let mut file = open(path)?;
    match split {
        Split::File => {
            let len = file.get_ref().metadata().map_err(|why| Error::file(path, why))?.len();
            Ok((len > 0).then_some(Span { start: 0, len }).into_iter().collect())
        }
        Split::BlankLines => lines(path, file, 0, |line| !line.trim_ascii().is_empty()),
        Split::Endoftext => {
            let (mut spans, mut start, mut at, mut piece) = (Vec::new(), 0, 0, Vec::new());
            let mut blank = true;
            loop {
                piece.clear();
                // An end needs its last byte: text is read up to each of those.
                let read = file.read_until(b'>', &mut piece).map_err(|why| Error::file(path, why))? as u64;
                at += read;
                let ends = piece.ends_with(END);
                let words = if ends { piece.len() - END.len() } else { piece.len() };
                blank &= piece.iter().take(words).all(u8::is_ascii_whitespace);
                if ends || read == 0 {
                    let end = if ends { at - END.len() as u64 } else { at };
                    if !blank {
                        spans.push(Span { start, len: end - start });
                    }
                    (start, blank) = (at, true);
                }
                if read == 0 {
                    return Ok(spans);
                }
            }
        }
    }
}

/// The text of one record.
///
/// Errors: `File` if the system refuses or the file became shorter.
pub fn read(path: &Path, span: Span) -> Result<Vec<u8>> {
    let mut file = File::open(path).map_err(|why| Error::file(path, why))?;
    file.seek(SeekFrom::Start(span.start)).map_err(|why| Error::file(path, why))?;
    let mut bytes = Vec::new();
    file.take(span.len).read_to_end(&mut bytes).map_err(|why| Error::file(path, why))?;
    if bytes.len() as u64 != span.len {
        let what = format!("{} bytes are left of a record of {} at byte {}", bytes.len(), span.len, span.start);
        return Err(Error::format(path, what, "leave the file as it is while it is read"));
    }
    Ok(bytes)
}

fn open(path: &Path) -> Result<BufReader<File>> {
    File::open(path).map(|file| BufReader::with_capacity(1 << 16, file)).map_err(|why| Error::file(path, why))
}

/// One span for each line that holds something, or for each run of lines that `joins`.
fn lines(path: &Path, mut file: impl BufRead, mut at: u64, joins: impl Fn(&[u8]) -> bool) -> Result<Vec<Span>> {
    let (mut spans, mut line): (Vec<Span>, Vec<u8>) = (Vec::new(), Vec::new());
    let mut open = false;
    loop {
        line.clear();
        let len = file.read_until(b'\n', &mut line).map_err(|why| Error::file(path, why))? as u64;
        if len == 0 {
            return Ok(spans);
        }
        match spans.last_mut() {
            Some(last) if open && joins(&line) => last.len += len,
            _ if !line.trim_ascii().is_empty() => spans.push(Span { start: at, len }),
            _ => {}
        }
        open = joins(&line);
        at += len;
    }
}

/// Finds the elements of an array: commas outside strings and brackets part them.
#[derive(Default)]
struct Array {
    spans: Vec<Span>,
    at: u64,
    start: Option<u64>,
    depth: u64,
    string: bool,
    escaped: bool,
    closed: bool,
}

impl Array {
    fn take(&mut self, byte: u8) {
        let here = self.at;
        self.at += 1;
        if self.closed {
            return;
        }
        if self.string {
            (self.escaped, self.string) = (byte == b'\\' && !self.escaped, byte != b'"' || self.escaped);
            return;
        }
        if self.depth == 0 && (byte == b',' || byte == b']') {
            self.close(here);
            self.closed = byte == b']';
            return;
        }
        if !byte.is_ascii_whitespace() && self.start.is_none() {
            self.start = Some(here);
        }
        match byte {
            b'"' => self.string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }

    fn close(&mut self, end: u64) {
        if let Some(start) = self.start.take() {
            self.spans.push(Span { start, len: end - start });
        }
    }
}
