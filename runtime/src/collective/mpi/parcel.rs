//! One message on its way between two ranks, in steps that never wait.
//!
//! ```text
//! sender    head: length, and all bytes if few ─►
//!                                              ◄─ ready: the receiver has room
//!           parts of at most 64 MiB ─►  …  whole: every part has left ─►  receiver
//! ```
//!
//! A sender that gave up never says "whole": bytes that MPI took from memory since reused are not taken for a message.

use super::raw::{self, Fault, Pending};

/// Bytes that travel with their length: with it they stay below the 4 KiB that Open MPI sends at once.
const INLINE: usize = 3840;
/// Far below the 2 GiB that a C int counts, and sent within a beat's time even at 1 GB/s.
const PART: usize = 64 << 20;
const HEAD: usize = 8 + INLINE;

const TAG_MESSAGE: i32 = 11;
const TAG_READY: i32 = 12;

/// A message that is being sent.
pub(super) struct Sending<'a> {
    to: usize,
    rest: &'a [u8],
    stage: Stage,
    pending: Option<Pending>,
    head: Box<[u8]>,
    note: Box<[u8; 1]>,
}

/// A message that is being received.
pub(super) struct Receiving {
    from: usize,
    stage: Stage,
    pending: Option<Pending>,
    head: Box<[u8]>,
    note: Box<[u8; 1]>,
    bytes: Vec<u8>,
    /// How many bytes of the message are posted or here.
    posted: usize,
    length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head,
    Ready,
    Parts,
    Whole,
    Done,
}

impl<'a> Sending<'a> {
    pub fn new(to: usize, bytes: &'a [u8]) -> Self {
        let few = if bytes.len() <= INLINE { bytes } else { &[] };
        let mut head = Vec::with_capacity(8 + few.len());
        head.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        head.extend_from_slice(few);
        let (head, note) = (head.into_boxed_slice(), Box::new([0]));
        Sending { to, rest: bytes, stage: Stage::Head, pending: None, head, note }
    }

    pub fn peer(&self) -> usize {
        self.to
    }

    pub fn done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Whether the other rank is at it too, so that bytes flow.
    pub fn flows(&self) -> bool {
        matches!(self.stage, Stage::Parts | Stage::Whole)
    }

    /// Goes on as far as it can. Yields whether it went on at all.
    pub fn step(&mut self) -> Result<bool, Fault> {
        let mut moved = false;
        while self.stage != Stage::Done {
            if let Some(pending) = &mut self.pending {
                if !pending.done()? {
                    break;
                }
                self.stage = self.next();
            }
            moved = true;
            // SAFETY: head, note and the borrowed bytes stay until the send is done; who gives up forgets `self`, and
            // calls MPI no more.
            self.pending = unsafe {
                match self.stage {
                    Stage::Head => Some(raw::send(&self.head, self.to, TAG_MESSAGE)?),
                    Stage::Ready => Some(raw::receive(self.note.as_mut_ptr(), 1, self.to, TAG_READY)?),
                    Stage::Parts => {
                        let (part, rest) = self.rest.split_at(self.rest.len().min(PART));
                        self.rest = rest;
                        Some(raw::send(part, self.to, TAG_MESSAGE)?)
                    }
                    Stage::Whole => Some(raw::send(&self.note[..], self.to, TAG_MESSAGE)?),
                    Stage::Done => None,
                }
            };
        }
        Ok(moved)
    }

    fn next(&self) -> Stage {
        match self.stage {
            Stage::Head if self.rest.len() > INLINE => Stage::Ready,
            Stage::Ready => Stage::Parts,
            Stage::Parts if !self.rest.is_empty() => Stage::Parts,
            Stage::Parts => Stage::Whole,
            Stage::Head | Stage::Whole | Stage::Done => Stage::Done,
        }
    }
}

impl Receiving {
    pub fn new(from: usize) -> Self {
        let (head, note) = (vec![0; HEAD].into_boxed_slice(), Box::new([0]));
        Receiving { from, stage: Stage::Head, pending: None, head, note, bytes: vec![], posted: 0, length: 0 }
    }

    pub fn peer(&self) -> usize {
        self.from
    }

    pub fn done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Whether the other rank is at it too, so that bytes flow.
    pub fn flows(&self) -> bool {
        matches!(self.stage, Stage::Ready | Stage::Parts | Stage::Whole)
    }

    /// What came.
    pub fn bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Goes on as far as it can. Yields whether it went on at all.
    pub fn step(&mut self) -> Result<bool, Fault> {
        let mut moved = false;
        while self.stage != Stage::Done {
            if let Some(pending) = &mut self.pending {
                if !pending.done()? {
                    break;
                }
                self.stage = self.next()?;
            }
            moved = true;
            // SAFETY: head, note and bytes stay until the receive is done; who gives up forgets `self`, and calls MPI
            // no more. A part's place lies within the capacity, which is the message's length.
            self.pending = unsafe {
                match self.stage {
                    Stage::Head => Some(raw::receive(self.head.as_mut_ptr(), HEAD, self.from, TAG_MESSAGE)?),
                    Stage::Ready => Some(raw::send(&self.note[..], self.from, TAG_READY)?),
                    Stage::Parts => {
                        let part = (self.length - self.posted).min(PART);
                        let place = self.bytes.as_mut_ptr().add(self.posted);
                        self.posted += part;
                        Some(raw::receive(place, part, self.from, TAG_MESSAGE)?)
                    }
                    Stage::Whole => Some(raw::receive(self.note.as_mut_ptr(), 1, self.from, TAG_MESSAGE)?),
                    Stage::Done => None,
                }
            };
        }
        Ok(moved)
    }

    fn next(&mut self) -> Result<Stage, Fault> {
        Ok(match self.stage {
            Stage::Head => {
                let (length, few) = self.head.split_at(8);
                let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
                self.length = usize::try_from(length).map_err(|_| Fault(format!("it sent {length} bytes")))?;
                let held = self.bytes.try_reserve_exact(self.length);
                held.map_err(|e| Fault(format!("it sent {length} bytes, for which there is no memory: {e}")))?;
                match few.get(..self.length) {
                    Some(few) => self.bytes.extend_from_slice(few),
                    None => return Ok(Stage::Ready),
                }
                Stage::Done
            }
            Stage::Ready => Stage::Parts,
            Stage::Parts if self.posted < self.length => Stage::Parts,
            Stage::Parts => Stage::Whole,
            Stage::Whole | Stage::Done => {
                // SAFETY: the capacity is `length`, and every part has been received.
                unsafe { self.bytes.set_len(self.length) };
                Stage::Done
            }
        })
    }
}
