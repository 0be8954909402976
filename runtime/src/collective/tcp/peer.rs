//! The socket to another rank: frames out and messages in, in steps that never wait.
//!
//! ```text
//! frame    kind (u8), length (u32), so many bytes
//! message  a head frame with its length (u64), then parts of at most 256 KiB
//! ```
//!
//! Beats stand between frames, so that a rank is heard in the middle of a long message.

use super::super::lives::{BYTES, Beat};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};

/// Bytes of a message that travel in one frame.
pub(super) const PART: usize = 256 << 10;
/// How often one step reads: others are to be heard too.
const READS: usize = 16;
const HEADER: usize = 5;
const HEAD: u8 = 1;
const BODY: u8 = 2;
const BEAT: u8 = 3;

pub(super) struct Peer {
    stream: TcpStream,
    /// Frames, or what stands before a part, on their way out.
    out: VecDeque<u8>,
    /// Bytes of the message's part that follow them.
    part: usize,
    /// Frames that wait for the end of the part.
    later: Vec<u8>,
    finished: bool,
    /// The frame that is coming in: its header, then how much of it is left.
    header: Vec<u8>,
    left: usize,
    /// The bytes of a frame that is no part.
    frame: Vec<u8>,
    /// The message that is coming in, and its length.
    coming: Option<(Vec<u8>, usize)>,
    /// Messages that are here.
    pub messages: VecDeque<Vec<u8>>,
    /// What it said of itself.
    pub beats: Vec<Beat>,
    /// Why nothing more comes.
    pub gone: Option<String>,
}

impl Peer {
    pub fn new(stream: TcpStream) -> Peer {
        Peer {
            stream,
            out: VecDeque::new(),
            part: 0,
            later: vec![],
            finished: false,
            header: vec![],
            left: 0,
            frame: vec![],
            coming: None,
            messages: VecDeque::new(),
            beats: vec![],
            gone: None,
        }
    }

    fn frame(kind: u8, body: &[u8]) -> impl Iterator<Item = u8> {
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
        [kind].into_iter().chain(length).chain(body.iter().copied())
    }

    /// Says something, after the part under way.
    pub fn say(&mut self, beat: &Beat) {
        let beat = beat.encode();
        let frame = Self::frame(BEAT, &beat);
        if self.part > 0 { self.later.extend(frame) } else { self.out.extend(frame) }
    }

    /// Begins a message of so many bytes, which `send` is then given until they have left.
    pub fn begin(&mut self, length: usize) {
        self.out.extend(Self::frame(HEAD, &(length as u64).to_le_bytes()));
    }

    /// Whether all that was said has left.
    pub fn sent(&self) -> bool {
        self.out.is_empty() && self.part == 0 && self.later.is_empty()
    }

    /// Sends what the system takes, and shortens `rest`, what is left of a message. Yields whether any left.
    pub fn send(&mut self, rest: &mut &[u8]) -> bool {
        let mut moved = false;
        while self.gone.is_none() {
            // What is out is whole frames: more may follow.
            if self.part == 0 {
                self.out.extend(self.later.drain(..));
                if !rest.is_empty() {
                    self.part = rest.len().min(PART);
                    self.out.push_back(BODY);
                    self.out.extend((self.part as u32).to_le_bytes());
                }
            }
            let now = rest.get(..self.part.min(rest.len())).unwrap_or_default();
            let (one, two) = self.out.as_slices();
            if one.is_empty() && two.is_empty() && now.is_empty() {
                break;
            }
            match self.stream.write_vectored(&[IoSlice::new(one), IoSlice::new(two), IoSlice::new(now)]) {
                Ok(0) => self.gone = Some("ended".into()),
                Ok(n) => {
                    let said = n.min(self.out.len());
                    self.out.drain(..said);
                    self.part -= n - said;
                    *rest = rest.get(n - said..).unwrap_or_default();
                    moved = true;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // What it said before it ended may still be unread.
                Err(_) => break,
            }
        }
        moved
    }

    /// Gives up the message under way. What its part lacks is filled up, so that more can be said: nobody will take it.
    pub fn abandon(&mut self) {
        self.out.extend(std::iter::repeat_n(0, self.part));
        self.part = 0;
    }

    /// Says no more, and lets the other end read all that was said.
    pub fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Takes what has come. Yields whether anything had.
    pub fn receive(&mut self, scratch: &mut [u8]) -> bool {
        let mut moved = false;
        for _ in 0..READS {
            if self.gone.is_some() {
                break;
            }
            match self.stream.read(scratch) {
                Ok(0) => self.gone = Some("ended".into()),
                Ok(n) => {
                    moved = true;
                    if let Err(why) = self.take(scratch.get(..n).unwrap_or_default()) {
                        self.gone = Some(why);
                    }
                    if n < scratch.len() {
                        break;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => self.gone = Some(why(&e)),
            }
        }
        moved
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.header.len() < HEADER {
                let (some, rest) = bytes.split_at(bytes.len().min(HEADER - self.header.len()));
                self.header.extend_from_slice(some);
                bytes = rest;
                if self.header.len() == HEADER {
                    self.open()?;
                }
            } else {
                let (some, rest) = bytes.split_at(bytes.len().min(self.left));
                match (self.header.first(), &mut self.coming) {
                    (Some(&BODY), Some((message, _))) => message.extend_from_slice(some),
                    _ => self.frame.extend_from_slice(some),
                }
                self.left -= some.len();
                bytes = rest;
            }
            if self.header.len() == HEADER && self.left == 0 {
                self.close()?;
                self.header.clear();
                self.frame.clear();
            }
        }
        Ok(())
    }

    /// A frame's header is here: what it announces must be what may come.
    fn open(&mut self) -> Result<(), String> {
        let length = self.header.get(1..).and_then(<[u8]>::first_chunk).map_or(0, |n| u32::from_le_bytes(*n) as usize);
        let fits = match (self.header.first().copied(), &self.coming) {
            (Some(HEAD), None) => length == 8,
            (Some(BODY), Some((message, whole))) => length > 0 && length <= PART.min(whole - message.len()),
            (Some(BEAT), _) => length == BYTES,
            _ => false,
        };
        self.left = length;
        if fits { Ok(()) } else { Err(format!("sent what is no message ({:?})", self.header)) }
    }

    /// A frame is whole.
    fn close(&mut self) -> Result<(), String> {
        match self.header.first().copied() {
            Some(HEAD) => {
                let length = self.frame.first_chunk().map_or(0, |n| u64::from_le_bytes(*n));
                let mut message = vec![];
                let room = usize::try_from(length).ok().filter(|n| message.try_reserve_exact(*n).is_ok());
                let room = room.ok_or_else(|| format!("sent {length} bytes, for which there is no memory"))?;
                self.coming = Some((message, room));
            }
            Some(BEAT) => {
                let beat = self.frame.first_chunk().map(Beat::decode);
                self.beats.extend(beat);
            }
            _ => {}
        }
        if let Some((message, whole)) = self.coming.take() {
            if message.len() == whole { self.messages.push_back(message) } else { self.coming = Some((message, whole)) }
        }
        Ok(())
    }
}

fn why(e: &io::Error) -> String {
    match e.kind() {
        // A process that ends with bytes unread resets its connections.
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => "ended".into(),
        _ => format!("cannot be reached: {e}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::super::super::Lost;
    use super::super::super::lives::Counts;
    use super::*;
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    fn pair() -> (Peer, Peer) {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let a = TcpStream::connect(door.local_addr().unwrap()).unwrap();
        let (b, _) = door.accept().unwrap();
        a.set_nonblocking(true).unwrap();
        b.set_nonblocking(true).unwrap();
        (Peer::new(a), Peer::new(b))
    }

    /// Moves bytes until `done`.
    fn until(a: &mut Peer, b: &mut Peer, rest: &mut &[u8], mut done: impl FnMut(&Peer, &Peer) -> bool) {
        let (start, mut scratch) = (Instant::now(), vec![0; 1000]);
        while !done(a, b) {
            a.send(rest);
            b.receive(&mut scratch);
            assert!(start.elapsed() < Duration::from_secs(20), "it does not end");
        }
    }

    #[test]
    fn messages_of_every_length_come_in_order_with_beats_between() {
        let (mut a, mut b) = pair();
        let lengths = [0, 1, 4, PART - 1, PART, PART + 1, 3 * PART, 9_000_001];
        for (i, length) in lengths.iter().enumerate() {
            let message: Vec<u8> = (0..*length).map(|j| (i * 31 + j * 7 + j / 251) as u8).collect();
            a.say(&Beat::Lives);
            a.begin(*length);
            let mut rest = &message[..];
            a.send(&mut rest);
            a.say(&Beat::Ended(Counts { sent: i as u64, received: 7 }));
            until(&mut a, &mut b, &mut rest, |a, b| a.sent() && b.beats.len() == 2 && !b.messages.is_empty());
            assert!(rest.is_empty() && b.messages.pop_front().unwrap() == message, "{length} bytes");
            assert_eq!(b.beats, [Beat::Lives, Beat::Ended(Counts { sent: i as u64, received: 7 })]);
            b.beats.clear();
        }
        drop(a);
        let mut scratch = [0; 10];
        while b.gone.is_none() {
            b.receive(&mut scratch);
        }
        assert_eq!(b.gone.unwrap(), "ended");
    }

    #[test]
    fn a_message_that_is_given_up_does_not_hide_what_is_said_next() {
        let (mut a, mut b) = pair();
        let long = vec![9; 50 << 20];
        let mut rest = &long[..];
        a.begin(long.len());
        a.send(&mut rest);
        assert!(!rest.is_empty(), "the system took it all");
        a.abandon();
        let failed = Beat::Failed(Lost { rank: 5, why: "ended".into() });
        a.say(&failed);
        until(&mut a, &mut b, &mut &[][..], |_, b| !b.beats.is_empty());
        assert_eq!((b.beats, b.messages.len()), (vec![failed], 0));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused_before_room_is_made() {
        let head = |length: u64| [&[HEAD, 8, 0, 0, 0][..], &length.to_le_bytes()].concat();
        let part = |length: u32| [&[BODY][..], &length.to_le_bytes()].concat();
        for (what, bytes) in [
            ("an unknown kind", vec![9, 0, 0, 0, 0]),
            ("a head of seven bytes", vec![HEAD, 7, 0, 0, 0]),
            ("a part of nothing", part(4)),
            ("a head within a message", [head(8), head(8)].concat()),
            ("a part too long", [head(8), part(9)].concat()),
            ("an empty part", [head(8), part(0)].concat()),
            ("a part beyond the most", [head(1 << 30), part(PART as u32 + 1)].concat()),
            ("a short beat", vec![BEAT, 1, 0, 0, 0]),
            ("more than memory", head(u64::MAX - 3)),
        ] {
            let (_a, mut b) = pair();
            assert!(b.take(&bytes).is_err(), "{what}");
        }
    }
}
