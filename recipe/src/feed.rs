//! A feed: packs without end from data sets by percentages, and a position that goes on where it was.

use crate::document::{Document, Reader, Room, Senses};
use crate::error::{Error, Result};
use crate::labels::Writer;
use crate::mix::{Draw, Mix};
use crate::pack::{Origin, Pack};
use crate::packer::Packer;
use crate::pool::{Answer, Pool};
use crate::report::Report;
use crate::shards;
use crate::spec::Dataset;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// How a feed runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What a pack holds.
    pub room: Room,
    /// What the order is drawn from.
    pub seed: u64,
    /// Threads that read; 0: as many as the machine has. The packs do not depend on it.
    pub threads: usize,
}

/// Where a data set is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The data set.
    pub dataset: String,
    /// Entries of one epoch, which tells whether it is still the same.
    pub entries: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The next entry of the epoch.
    pub index: u64,
    /// Records drawn that yielded documents.
    pub drawn: u64,
    /// Records since the last one that did.
    pub barren: u64,
}

/// Where a feed is, after the last pack that it handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The seed.
    pub seed: u64,
    /// What a pack holds.
    pub room: Room,
    /// The data sets.
    pub cursors: Vec<Cursor>,
    /// What the open packs hold.
    pub open: Vec<Vec<Origin>>,
    /// Packs handed out before they were full.
    pub early: u64,
    /// Documents read and not yet in a pack.
    pub waiting: Vec<Origin>,
    /// What was read so far.
    pub report: Report,
    /// A sum of each file, or of all of many, by data set; nothing in positions of an earlier version.
    #[serde(default)]
    pub sums: BTreeMap<String, Vec<u32>>,
}

/// Packs without end. Dropping it ends its threads.
pub struct Feed {
    // Before the pool, so that what was asked for is gone when the threads end.
    streams: Vec<Stream>,
    pool: Pool,
    draw: Draw,
    packer: Packer,
    waiting: VecDeque<Document>,
    report: Report,
    options: Options,
    failed: bool,
}

struct Stream {
    reader: Arc<Reader>,
    /// Of each file, or of all of many.
    sums: Vec<u32>,
    cursor: Cursor,
    /// The next place to ask for.
    ahead: (u64, u64),
    asked: VecDeque<(Origin, Answer)>,
}

/// A document that a position names.
#[derive(Default)]
struct Wanted {
    /// How often the position still names it: a record that comes again may be in two open packs.
    times: usize,
    /// The document, from when its record is read until the last that wants it takes it.
    document: Option<Document>,
}

impl Feed {
    /// A feed at its beginning.
    ///
    /// Errors: `File`, `Format` for files that are missing or wrong as a whole; `Input` for options, names and
    /// percentages that cannot be used.
    pub fn open(sets: &[Dataset], mix: &Mix, senses: &Senses, options: Options) -> Result<Feed> {
        if let Some(twice) = sets.iter().enumerate().find(|(i, s)| sets.iter().take(*i).any(|t| t.name == s.name)) {
            return Err(Error::input(format!("two data sets are called `{}`", twice.1.name), "rename one"));
        }
        let mut streams = Vec::new();
        for set in sets {
            let reader = Reader::open(set, senses, options.room)?;
            let (dataset, entries) = (set.name.clone(), shards::entries(reader.shards()));
            let cursor = Cursor { dataset, entries, ..Cursor::default() };
            let sums = shards::sums(set, reader.shards())?;
            streams.push(Stream { reader: Arc::new(reader), sums, cursor, ahead: (0, 0), asked: VecDeque::new() });
        }
        let sizes: Vec<(String, u64)> = streams.iter().map(|s| (s.cursor.dataset.clone(), s.cursor.entries)).collect();
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            some => some,
        };
        Ok(Feed {
            draw: Draw::new(&sizes, mix)?,
            packer: Packer::new(options.room, senses.per_tile, Writer::end_of_text(&senses.tokenizer)?)?,
            streams,
            pool: Pool::new(threads),
            waiting: VecDeque::new(),
            report: Report::default(),
            options,
            failed: false,
        })
    }

    /// A feed that goes on from a position.
    ///
    /// Errors: as [`Feed::open`]; `Input` if the position is of other data sets, sizes or seed; `Format` for a file that is no
    /// longer the same.
    pub fn resume(sets: &[Dataset], mix: &Mix, senses: &Senses, options: Options, state: &State) -> Result<Feed> {
        let mut feed = Feed::open(sets, mix, senses, options)?;
        feed.same(state)?;
        for (stream, cursor) in feed.streams.iter_mut().zip(&state.cursors) {
            stream.cursor = cursor.clone();
            stream.ahead = (cursor.epoch, cursor.index);
        }
        let mut wanted: HashMap<&Origin, Wanted> = HashMap::new();
        for origin in state.open.iter().flatten().chain(&state.waiting) {
            wanted.entry(origin).or_default().times += 1;
        }
        for origins in &state.open {
            let documents = origins.iter().map(|origin| feed.again(origin, &mut wanted)).collect::<Result<Vec<_>>>()?;
            feed.packer.reopen(documents);
        }
        feed.packer.set_early_count(state.early);
        feed.waiting = state.waiting.iter().map(|origin| feed.again(origin, &mut wanted)).collect::<Result<_>>()?;
        feed.report = state.report.clone();
        Ok(feed)
    }

    /// Where the feed is, after the last pack that it handed out.
    pub fn state(&self) -> State {
        State {
            seed: self.options.seed,
            room: self.options.room,
            cursors: self.streams.iter().map(|stream| stream.cursor.clone()).collect(),
            open: self.packer.origins(),
            early: self.packer.early_count(),
            waiting: self.waiting.iter().map(|document| document.origin.clone()).collect(),
            report: self.report.clone(),
            sums: self.streams.iter().map(|s| (s.cursor.dataset.clone(), s.sums.clone())).collect(),
        }
    }

    /// What was read so far, and what was skipped.
    pub fn report(&self) -> &Report {
        &self.report
    }

    fn same(&self, state: &State) -> Result<()> {
        let mend = "go on with the recipe and the files that the position was saved with";
        if (state.seed, state.room) != (self.options.seed, self.options.room) {
            let what = format!(
                "the position is of seed {} and packs of {:?}, the recipe of seed {} and {:?}",
                state.seed, state.room, self.options.seed, self.options.room
            );
            return Err(Error::input(what, mend));
        }
        let of = |cursors: &mut dyn Iterator<Item = &Cursor>| -> Vec<String> {
            cursors.map(|cursor| format!("{} ({} records)", cursor.dataset, cursor.entries)).collect()
        };
        let (saved, here) = (of(&mut state.cursors.iter()), of(&mut self.streams.iter().map(|s| &s.cursor)));
        if saved != here {
            let what = format!("the position is of {}, the recipe of {}", saved.join(", "), here.join(", "));
            return Err(Error::input(what, mend));
        }
        for stream in &self.streams {
            let Some(was) = state.sums.get(&stream.cursor.dataset).filter(|was| **was != stream.sums) else { continue };
            let shards = stream.reader.shards();
            let apart = was.len() == shards.len() && stream.sums.len() == shards.len();
            let changed = stream.sums.iter().zip(was).zip(shards).find(|((is, was), _)| apart && is != was);
            let name = &stream.cursor.dataset;
            return Err(match changed {
                Some((_, shard)) => {
                    let what = format!("it is no longer what `{name}` was read from when the position was saved");
                    Error::format(&shard.path, what, "restore it, or begin anew")
                }
                None => Error::input(format!("the files of `{name}` are no longer those of the position"), mend),
            });
        }
        Ok(())
    }

    /// A document that was read before.
    ///
    /// A long text may have thousands of documents that wait, so reading a record finds all of its documents that are
    /// wanted. The others are dropped at once: no more is held than the feed will hold.
    fn again(&self, origin: &Origin, wanted: &mut HashMap<&Origin, Wanted>) -> Result<Document> {
        let lost = |why: String| {
            let (set, record) = (&origin.dataset, origin.record);
            Error::input(format!("record {record} of `{set}` was read before and is not now: {why}"), "restore it")
        };
        // Where it is not there, its record was not read yet or has it no longer.
        if wanted.get(origin).is_none_or(|entry| entry.document.is_none()) {
            let stream = self.streams.iter().find(|stream| stream.cursor.dataset == origin.dataset);
            let stream = stream.ok_or_else(|| lost("there is no such data set".to_owned()))?;
            let documents = stream.reader.read(origin.shard, origin.record)?.map_err(|fault| lost(fault.why))?;
            for document in documents {
                if let Some(entry) = wanted.get_mut(&document.origin) {
                    entry.document = Some(document);
                }
            }
        }
        let found = match wanted.get_mut(origin) {
            Some(entry) if entry.times > 1 => {
                entry.times -= 1;
                entry.document.clone()
            }
            _ => wanted.remove(origin).and_then(|entry| entry.document),
        };
        found.ok_or_else(|| lost(format!("it has no position {}", origin.offset)))
    }

    fn pack(&mut self) -> Result<Pack> {
        loop {
            while let Some(document) = self.waiting.pop_front() {
                if let Some(pack) = self.packer.push(document)? {
                    self.report.packs += 1;
                    self.report.positions += pack.len() as u64;
                    self.report.held += pack.document.iter().filter(|d| **d >= 0).count() as u64;
                    return Ok(pack);
                }
            }
            let drawn: Vec<u64> = self.streams.iter().map(|stream| stream.cursor.drawn).collect();
            let next = self.draw.next(&drawn);
            let ahead = (2 * self.pool.threads()).div_ceil(self.streams.len().max(1)).max(2);
            let none = || Error::input("there is no data set", "name one");
            let stream = self.streams.get_mut(next).ok_or_else(none)?;
            let documents = stream.next(&self.pool, self.options.seed, ahead, &mut self.report)?;
            self.waiting.extend(documents);
        }
    }
}

impl Stream {
    /// The documents of the next record that has any.
    fn next(&mut self, pool: &Pool, seed: u64, ahead: usize, report: &mut Report) -> Result<Vec<Document>> {
        loop {
            while self.asked.len() < ahead {
                let (epoch, index) = self.ahead;
                let (name, shards) = (&self.cursor.dataset, self.reader.shards());
                let Some((shard, record)) = shards::place(shards, seed, name, epoch, index) else { break };
                let origin = Origin { dataset: name.clone(), shard, record, offset: 0 };
                self.asked.push_back((origin, pool.ask(&self.reader, shard, record)));
                self.ahead = step(self.ahead, self.cursor.entries);
            }
            let empty = || Error::input(format!("data set `{}` has no record", self.cursor.dataset), "leave it out");
            let (origin, answer) = self.asked.pop_front().ok_or_else(empty)?;
            let reading = answer.wait()?;
            let cursor = &mut self.cursor;
            (cursor.epoch, cursor.index) = step((cursor.epoch, cursor.index), cursor.entries);
            match reading {
                Ok(documents) => {
                    (cursor.drawn, cursor.barren) = (cursor.drawn + 1, 0);
                    report.sets.entry(origin.dataset).or_default().records += 1;
                    return Ok(documents);
                }
                Err(fault) => {
                    let last = fault.why.clone();
                    report.skip(&origin, self.reader.file(origin.shard), fault);
                    cursor.barren += 1;
                    // A lone good record may stand first in one epoch and last in the next.
                    if cursor.barren >= 2 * cursor.entries {
                        let what = format!(
                            "data set `{}` has no usable record among {} read; the last: {last}",
                            cursor.dataset, cursor.barren
                        );
                        return Err(Error::input(
                            what,
                            "see what the report says of each kind, or leave the data set out",
                        ));
                    }
                }
            }
        }
    }
}

fn step((epoch, index): (u64, u64), entries: u64) -> (u64, u64) {
    if index + 1 >= entries { (epoch + 1, 0) } else { (epoch, index + 1) }
}

impl Iterator for Feed {
    type Item = Result<Pack>;

    /// The next pack; nothing after an error.
    fn next(&mut self) -> Option<Result<Pack>> {
        if self.failed {
            return None;
        }
        let pack = self.pack();
        self.failed = pack.is_err();
        Some(pack)
    }
}
