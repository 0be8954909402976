//! Documents joined to packs.
//!
//! A few packs stay open. A document goes into the one that it fills best: the one with the least room left that still
//! takes it. A full pack is handed out at once. Where none takes the document and as many are open as may be, the fullest
//! is handed out, and each eighth time the oldest, so that none waits for ever. No chance is in it.

use crate::document::{Document, Room};
use crate::error::{Error, Result};
use crate::pack::{Origin, Pack, Part};
use omchat_model::config::IGNORE;
use omchat_model::splice::Slot;
use omchat_model::tiler::Tiles;

/// Packs that stay open at once.
pub const OPEN: usize = 16;

/// Every so many packs that are not full, the oldest goes.
const TURN: u64 = 8;

/// Joins documents.
#[derive(Debug, Clone)]
pub struct Packer {
    room: Room,
    per_tile: usize,
    pad: u32,
    open: Vec<Bin>,
    /// Packs handed out before they were full.
    early: u64,
}

#[derive(Debug, Clone, Default)]
struct Bin {
    documents: Vec<Document>,
    positions: usize,
    tiles: usize,
}

impl Packer {
    /// A packer with nothing in it; `pad` fills what stays empty.
    ///
    /// Errors: `Input` if a pack holds no position, or more than i32 can count.
    pub fn new(room: Room, per_tile: usize, pad: u32) -> Result<Packer> {
        if room.positions == 0 || i32::try_from(room.positions).is_err() {
            let what = format!("a pack of {} positions", room.positions);
            return Err(Error::input(what, format!("ask for 1 to {}", i32::MAX)));
        }
        Ok(Packer { room, per_tile, pad, open: Vec::new(), early: 0 })
    }

    /// Takes a document; the result is a pack that is full enough, if there is one.
    ///
    /// Errors: `Input` if the document is larger than a pack or empty.
    pub fn push(&mut self, document: Document) -> Result<Option<Pack>> {
        let (positions, tiles) = (document.slots.len(), document.tile_count());
        if positions == 0 || positions > self.room.positions || tiles > self.room.tiles {
            let what = format!("a document of {positions} positions and {tiles} tiles");
            let mend = format!("a pack takes 1 to {} and up to {}", self.room.positions, self.room.tiles);
            return Err(Error::input(what, mend));
        }
        let room = self.room;
        let fits = |bin: &Bin| bin.positions + positions <= room.positions && bin.tiles + tiles <= room.tiles;
        if positions == room.positions {
            let mut alone = Bin::default();
            alone.take(document);
            return Ok(Some(alone.pack(room.positions, self.per_tile, self.pad)));
        }
        // Of equals the one that was opened first.
        let open = self.open.iter_mut().enumerate().rev();
        let best = open.filter(|(_, bin)| fits(bin)).max_by_key(|(_, bin)| bin.positions);
        if let Some((place, bin)) = best {
            bin.take(document);
            let full = bin.positions == room.positions;
            return Ok(if full { self.hand_out(place) } else { None });
        }
        let out = if self.open.len() >= OPEN { self.early() } else { None };
        let mut bin = Bin::default();
        bin.take(document);
        self.open.push(bin);
        Ok(out)
    }

    /// Hands out what is open, the fullest first.
    pub fn finish(&mut self) -> Option<Pack> {
        self.fullest()
    }

    /// Where the documents of each open pack came from.
    pub fn origins(&self) -> Vec<Vec<Origin>> {
        self.open.iter().map(|bin| bin.documents.iter().map(|d| d.origin.clone()).collect()).collect()
    }

    /// How many packs were handed out before they were full: with [`Packer::origins`] all that a packer remembers.
    pub fn early_count(&self) -> u64 {
        self.early
    }

    /// Goes on from such a count.
    pub fn set_early_count(&mut self, count: u64) {
        self.early = count;
    }

    /// Opens a pack that holds these documents already.
    pub fn reopen(&mut self, documents: Vec<Document>) {
        let mut bin = Bin::default();
        documents.into_iter().for_each(|document| bin.take(document));
        self.open.push(bin);
    }

    fn early(&mut self) -> Option<Pack> {
        self.early += 1;
        if self.early.is_multiple_of(TURN) { self.hand_out(0) } else { self.fullest() }
    }

    fn fullest(&mut self) -> Option<Pack> {
        let places = self.open.iter().enumerate().rev();
        let (place, _) = places.max_by_key(|(_, bin)| bin.positions)?;
        self.hand_out(place)
    }

    fn hand_out(&mut self, place: usize) -> Option<Pack> {
        if place >= self.open.len() {
            return None;
        }
        Some(self.open.remove(place).pack(self.room.positions, self.per_tile, self.pad))
    }
}

impl Bin {
    fn take(&mut self, document: Document) {
        self.positions += document.slots.len();
        self.tiles += document.tile_count();
        self.documents.push(document);
    }

    fn pack(self, length: usize, per_tile: usize, pad: u32) -> Pack {
        let mut pack = Pack {
            slots: Vec::with_capacity(length),
            labels: Vec::with_capacity(length),
            positions: Vec::with_capacity(length),
            lo: Vec::with_capacity(length),
            hi: Vec::with_capacity(length),
            document: Vec::with_capacity(length),
            tiles: Vec::new(),
            parts: Vec::new(),
        };
        let mut row = 0;
        for (number, document) in self.documents.into_iter().enumerate() {
            let (start, len) = (pack.slots.len(), document.slots.len());
            pack.slots.extend(document.slots.iter().map(|slot| match slot {
                Slot::Image(own) => Slot::Image(row + own),
                text => *text,
            }));
            row += (document.tiles.iter().map(Tiles::count).sum::<usize>() * per_tile) as u32;
            pack.labels.extend(document.labels);
            pack.positions.extend(0..len as u32);
            pack.lo.extend(std::iter::repeat_n(start as i32, len));
            pack.hi.extend(start as i32..(start + len) as i32);
            pack.document.extend(std::iter::repeat_n(number as i32, len));
            pack.tiles.extend(document.tiles);
            pack.parts.push(Part { origin: document.origin, range: start..start + len });
        }
        let start = pack.slots.len();
        let rest = length - start;
        pack.slots.extend(std::iter::repeat_n(Slot::Text(pad), rest));
        pack.labels.extend(std::iter::repeat_n(IGNORE, rest));
        pack.positions.extend(std::iter::repeat_n(0, rest));
        pack.lo.extend(start as i32..length as i32);
        pack.hi.extend(start as i32..length as i32);
        pack.document.extend(std::iter::repeat_n(-1, rest));
        pack
    }
}
