//! A socket while ranks meet: short notes, read byte by byte as they come and never past their end, so that what a rank
//! says after the meeting stays for who comes then.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a meeting looks at its sockets.
pub(super) const LOOK: Duration = Duration::from_millis(2);
/// How long a rank that ends the meeting waits for the others to read why.
const TELL: Duration = Duration::from_millis(300);
const HEADER: usize = 5;

pub(super) struct Mail {
    stream: TcpStream,
    have: Vec<u8>,
}

/// Why there will be no note.
#[derive(Debug)]
pub(super) enum Silence {
    /// The other end closed the socket.
    Ended,
    /// It said what no rank says.
    Strange,
}

impl Mail {
    /// Errors: the socket cannot be set up.
    pub fn new(stream: TcpStream) -> io::Result<Mail> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Mail { stream, have: vec![] })
    }

    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// The next note, if it is whole: its kind and its bytes. `most` is the longest that may come.
    pub fn note(&mut self, most: usize) -> Result<Option<(u8, Vec<u8>)>, Silence> {
        loop {
            let whole = match self.have.get(1..HEADER).and_then(<[u8]>::first_chunk) {
                Some(length) => HEADER + u32::from_le_bytes(*length) as usize,
                None => HEADER,
            };
            if whole > HEADER + most {
                return Err(Silence::Strange);
            }
            if self.have.len() == whole {
                let body = self.have.split_off(HEADER);
                let kind = self.have.first().copied().unwrap_or(0);
                self.have.clear();
                return Ok(Some((kind, body)));
            }
            if !self.read(whole - self.have.len())? {
                return Ok(None);
            }
        }
    }

    /// Reads at most so many bytes. Yields whether any came.
    fn read(&mut self, most: usize) -> Result<bool, Silence> {
        let mut some = [0; 1024];
        let room = most.min(some.len());
        match self.stream.read(&mut some[..room]) {
            Ok(0) => Err(Silence::Ended),
            Ok(n) => {
                self.have.extend_from_slice(&some[..n]);
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(true),
            Err(_) => Err(Silence::Ended),
        }
    }

    /// Writes a note.
    ///
    /// Errors: the other end is gone, or does not read until then.
    pub fn say(&mut self, kind: u8, body: &[u8], until: Instant) -> io::Result<()> {
        let mut note = vec![kind];
        note.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        note.extend_from_slice(body);
        self.write(&note, until)
    }

    /// Writes bytes.
    ///
    /// Errors: as [`Mail::say`].
    pub fn write(&mut self, mut bytes: &[u8], until: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < until => sleep(LOOK),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Begins to close, so that the other end reads all that was written: a socket with bytes unread would be cut off.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

/// Tells all why the meeting ends, and waits until they have read it, for a short while.
pub(super) fn tell_all(mails: &mut Vec<Mail>, kind: u8, text: &str) {
    let until = Instant::now() + TELL;
    mails.retain_mut(|m| m.say(kind, text.as_bytes(), until).is_ok());
    mails.iter_mut().for_each(Mail::finish);
    while !mails.is_empty() && Instant::now() < until {
        sleep(LOOK);
        mails.retain_mut(|m| m.read(1024).is_ok());
    }
}
