//! TensorBoard's event files: scalars by step.
//!
//! A file is a row of records: length u64, its masked CRC-32C, an `Event` of protocol buffers, and its masked CRC-32C.
//! Of `Event` only wall time (1), step (2), file version (3) and summary (5) are written; of `Summary.Value` tag (1) and
//! simple value (2).
//! Source: TensorFlow `tensorflow/core/util/event.proto`, `core/lib/io/record_writer.cc`.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A file of scalars.
pub(super) struct Events {
    file: File,
}

impl Events {
    /// A new file in a folder, named so that TensorBoard finds it and reads it after older ones.
    pub fn create(folder: &Path) -> io::Result<Events> {
        let (seconds, process) = (now() as u64, std::process::id());
        let file = File::create(folder.join(format!("events.out.tfevents.{seconds:010}.omchat.{process}")))?;
        let mut events = Events { file };
        events.write(&[double(1, now()), text(3, b"brain.Event:2")].concat())?;
        Ok(events)
    }

    /// Scalars of a step.
    pub fn scalars(&mut self, step: u64, values: &[(String, f32)]) -> io::Result<()> {
        let value = |(tag, x): &(String, f32)| text(1, &[text(1, tag.as_bytes()), single(2, *x)].concat());
        let summary: Vec<u8> = values.iter().flat_map(value).collect();
        self.write(&[double(1, now()), whole(2, step), text(5, &summary)].concat())
    }

    fn write(&mut self, event: &[u8]) -> io::Result<()> {
        self.file.write_all(&record(event))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), event, &masked(event).to_le_bytes()].concat()
}

/// A CRC that may itself be part of what a CRC is taken of.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(mut x: u64) -> Vec<u8> {
    let mut out = vec![];
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
    out
}

fn key(field: u64, wire: u64) -> Vec<u8> {
    varint(field << 3 | wire)
}

fn whole(field: u64, x: u64) -> Vec<u8> {
    [key(field, 0), varint(x)].concat()
}

fn double(field: u64, x: f64) -> Vec<u8> {
    [key(field, 1), x.to_le_bytes().to_vec()].concat()
}

fn text(field: u64, bytes: &[u8]) -> Vec<u8> {
    [key(field, 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn single(field: u64, x: f32) -> Vec<u8> {
    [key(field, 5), x.to_le_bytes().to_vec()].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The check value of CRC-32C, masked as TensorFlow's `crc32c.h` does.
    #[test]
    fn masks_as_tensorflow() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        // Its low 15 bits come to the front: 2507c60d.
        assert_eq!(masked(b"123456789"), 0x2507_c60d_u32.wrapping_add(0xa282_ead8));
    }

    #[test]
    fn a_record_reads_back() {
        let event = [whole(2, 300), text(5, &text(1, &[text(1, b"loss"), single(2, 0.5)].concat()))].concat();
        // Written out by the encoding's rules: 300 is AC 02; 0.5 is 00 00 00 3F.
        let want = [0x10, 0xac, 0x02, 0x2a, 0x0d, 0x0a, 0x0b, 0x0a, 4, b'l', b'o', b's', b's', 0x15, 0, 0, 0, 0x3f];
        assert_eq!(event, want);
        let r = record(&event);
        assert_eq!(u64::from_le_bytes(r[..8].try_into().unwrap()), event.len() as u64);
        assert_eq!(r.len(), event.len() + 16);
    }
}
