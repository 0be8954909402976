//! From a record to documents that fit a pack.

use crate::error::{Error, Result};
use crate::index;
use crate::labels::Writer;
use crate::pack::Origin;
use crate::record::{Record, Role, Sight, Turn};
use crate::report::{Fault, Reason};
use crate::scenes::{Sample, Scenes};
use crate::shards::{self, Shard};
use crate::spec::{Dataset, Labelling, Layout};
use omchat_model::chat::Visual;
use omchat_model::config::{IGNORE, OmChatConfig};
use omchat_model::format::Format;
use omchat_model::picture::Picture;
use omchat_model::splice::{Slot, splice};
use omchat_model::tiler::{TileMode, Tiler, Tiles};
use omchat_model::tokenizer::Tokenizer;
use omchat_model::video::{self, Stop};
use std::path::Path;

/// What a model says of words and pictures.
#[derive(Debug, Clone)]
pub struct Senses {
    /// Spells.
    pub tokenizer: Tokenizer,
    /// Lays out pictures where a data set names no format.
    pub format: Format,
    /// Cuts pictures; absent for a model without a tower.
    pub tiler: Option<Tiler>,
    /// Positions of one tile.
    pub per_tile: usize,
    /// Ids that the model has.
    pub vocab: usize,
}

impl Senses {
    /// Those of a model's folder, with its released format.
    ///
    /// Errors: `Model` if the tokenizer or the processor's configuration is missing or broken.
    pub fn from_dir(dir: &Path, config: &OmChatConfig) -> Result<Senses> {
        let tiler = config.vision.as_ref().map(|_| Tiler::from_dir(dir, config)).transpose()?;
        Ok(Senses {
            tokenizer: Tokenizer::from_dir(dir, config)?,
            format: Format::released(config.vision.as_ref()),
            per_tile: config.tokens_per_tile(),
            vocab: config.text.vocab,
            tiler,
        })
    }
}

/// What one pack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Room {
    /// Positions: T.
    pub positions: usize,
    /// Tiles at most: N.
    pub tiles: usize,
}

/// One document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Where it came from.
    pub origin: Origin,
    /// What fills its positions; image rows count from its own first tile.
    pub slots: Vec<Slot>,
    /// What each position must predict, −100 where none counts; the last predicts nothing.
    pub labels: Vec<i32>,
    /// Its pictures and frames.
    pub tiles: Vec<Tiles>,
}

impl Document {
    /// Tiles of all its pictures.
    pub fn tile_count(&self) -> usize {
        self.tiles.iter().map(Tiles::count).sum()
    }
}

/// A data set that can be read.
#[derive(Debug, Clone)]
pub struct Reader {
    set: Dataset,
    scenes: Option<Scenes>,
    shards: Vec<Shard>,
    writer: Writer,
    senses: Senses,
    room: Room,
}

/// What a record yields: documents, or why there are none.
pub type Reading = std::result::Result<Vec<Document>, Fault>;

impl Reader {
    /// Finds the records of a data set.
    ///
    /// Errors: as [`shards::open`].
    pub fn open(set: &Dataset, senses: &Senses, room: Room) -> Result<Reader> {
        let shards = shards::open(set)?;
        let mut senses = senses.clone();
        if let Some(name) = &set.format {
            senses.format = Format::named(name)?;
        }
        if let Some(most) = set.max_tiles {
            senses.tiler = senses.tiler.map(|tiler| tiler.at_most(most));
        }
        let mut writer = Writer::new(&senses.tokenizer, senses.format, set.labels);
        if let Some(system) = &set.system {
            writer.system.clone_from(system);
        }
        let scenes = set.scenes.as_ref().map(Scenes::new).transpose()?;
        Ok(Reader { set: set.clone(), scenes, shards, writer, senses, room })
    }

    /// What the recipe calls it.
    pub fn name(&self) -> &str {
        &self.set.name
    }

    /// Its files.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The name of a file, for reports.
    pub fn file(&self, shard: u32) -> String {
        self.shards.get(shard as usize).map(|shard| shard.path.display().to_string()).unwrap_or_default()
    }

    /// The documents of a record.
    ///
    /// Errors: `File` or `Format` if the file of records cannot be read any more; what is wrong with the record
    /// alone is in the result.
    pub fn read(&self, shard: u32, record: u64) -> Result<Reading> {
        self.read_until(shard, record, &|| false)
    }

    /// The same, given up between two frames of a video where `stop` says so.
    ///
    /// Errors: as [`Reader::read`].
    pub fn read_until(&self, shard: u32, record: u64, stop: Stop<'_>) -> Result<Reading> {
        let number = shard;
        let lost = || {
            let what = format!("data set `{}` has no record {record} in file {number}", self.set.name);
            Error::input(what, "go on with the files that the position was saved with")
        };
        let shard = self.shards.get(shard as usize).ok_or_else(lost)?;
        let origin = Origin { dataset: self.set.name.clone(), shard: number, record, offset: 0 };
        if let Some(scenes) = self.scenes.as_ref().filter(|_| record < shard.drawn) {
            return Ok(self.draw(&scenes.sample(record), origin));
        }
        let span = usize::try_from(record).ok().and_then(|record| shard.spans.get(record)).ok_or_else(lost)?;
        let bytes = index::read(&shard.path, *span)?;
        Ok(self.parse(bytes).and_then(|record| self.documents(&record, &shard.root, origin, stop)))
    }

    fn parse(&self, bytes: Vec<u8>) -> std::result::Result<Record, Fault> {
        match self.set.layout {
            Layout::Text => Record::text(bytes),
            _ => Record::json(&bytes),
        }
    }

    /// The documents of a rendered sample.
    fn draw(&self, sample: &Sample, origin: Origin) -> Reading {
        let fault = |why: &dyn std::fmt::Display| Fault::new(Reason::Picture, why.to_string());
        let tiler = self.senses.tiler.as_ref().ok_or_else(|| fault(&"the model has no tower and takes no pictures"))?;
        if sample.turns.is_empty() {
            return Err(Fault::new(Reason::NoAnswer, "none of the questions fits the scene"));
        }
        let (mut record, mut visuals) = (Record::default(), Vec::new());
        for turn in &sample.turns {
            let frames = sample.frames.get(turn.shows.clone()).unwrap_or_default();
            // Rendered pictures are of the size of a tile: one tile says all.
            let cut = frames.iter().map(|f| tiler.cut(f, TileMode::Single)).collect::<omchat_model::Result<Vec<_>>>();
            let cut = cut.map_err(|why| fault(&why))?;
            visuals.push(match (cut.is_empty(), sample.video) {
                (true, _) => vec![],
                (false, true) => vec![Visual::Video(cut)],
                (false, false) => cut.into_iter().map(Visual::Picture).collect(),
            });
            visuals.push(vec![]);
            record.turns.push(Turn { role: Role::User, text: turn.question.clone() });
            record.turns.push(Turn { role: Role::Assistant, text: turn.answer.clone() });
        }
        self.laid_out(&record, visuals, origin)
    }

    fn documents(&self, record: &Record, root: &Path, origin: Origin, stop: Stop<'_>) -> Reading {
        let pretrain = self.set.labels == Labelling::Pretrain;
        let said = |role: Role| record.turns.iter().any(|turn| turn.role == role && !turn.text.trim().is_empty());
        let any = pretrain && record.turns.iter().any(|turn| !turn.text.trim().is_empty());
        let text = self.set.labels == Labelling::Align && said(Role::Text);
        if !(any || text || said(Role::Assistant)) {
            return Err(Fault::new(Reason::NoAnswer, "no turn holds an answer"));
        }
        let mut visuals = Vec::new();
        for turn in record.sights(pretrain)? {
            let seen = turn.into_iter().map(|sight| self.look(record, sight, root, stop));
            visuals.push(seen.collect::<std::result::Result<Vec<Visual>, Fault>>()?);
        }
        self.laid_out(record, visuals, origin)
    }

    /// The documents of a record whose pictures are tiles.
    fn laid_out(&self, record: &Record, visuals: Vec<Vec<Visual>>, origin: Origin) -> Reading {
        let pretrain = self.set.labels == Labelling::Pretrain;
        let tape = self.writer.write(record, &visuals).map_err(|why| Fault::new(Reason::Spelling, why.to_string()))?;
        let tiles: Vec<Tiles> = visuals.into_iter().flatten().flat_map(flat).collect();
        let count: usize = tiles.iter().map(Tiles::count).sum();
        let (room, senses) = (self.room, &self.senses);
        if count > room.tiles {
            let why = format!("{count} tiles and a pack holds {}", room.tiles);
            return Err(Fault::new(Reason::TooManyTiles, why));
        }
        let spliced = splice(&tape.ids, count, senses.per_tile, senses.vocab)
            .map_err(|why| Fault::new(Reason::Marks, why.to_string()))?;
        let mut trained = tape.trained.iter();
        let mut own = Vec::with_capacity(spliced.len());
        for slot in &spliced.slots {
            own.push(match slot {
                Slot::Text(id) if trained.next() == Some(&true) => *id as i32,
                Slot::Text(_) => IGNORE,
                Slot::Image(row) => {
                    // One mark for a tile's first row; the others have none.
                    if (*row as usize).is_multiple_of(senses.per_tile) {
                        trained.next();
                    }
                    IGNORE
                }
            });
        }
        if spliced.len() > room.positions && !(pretrain && count == 0) {
            let why = format!("{} positions and a pack holds {}", spliced.len(), room.positions);
            return Err(Fault::new(Reason::TooLong, why));
        }
        Ok(cut(&spliced.slots, &own, tiles, &origin, room.positions))
    }

    fn look(&self, record: &Record, sight: Sight, root: &Path, stop: Stop<'_>) -> std::result::Result<Visual, Fault> {
        let (reason, name) = match sight {
            Sight::Image(number) => (Reason::Picture, record.images.get(number)),
            Sight::Video(number) => (Reason::Video, record.videos.get(number)),
        };
        let fault = |why: &dyn std::fmt::Display| Fault::new(reason, why.to_string());
        let name = name.ok_or_else(|| fault(&"the record names it not"))?;
        let tiler = self.senses.tiler.as_ref().ok_or_else(|| fault(&"the model has no tower and takes no pictures"))?;
        let path = root.join(name);
        if reason == Reason::Video {
            let take = |frame: Picture| tiler.cut(&frame, TileMode::Single);
            let seen = video::sample_until(&path, self.set.frames, None, stop, &mut |_, _| {}, take);
            return seen.map(Visual::Video).map_err(|why| fault(&why));
        }
        let mode = if self.set.max_tiles == Some(1) { TileMode::Single } else { self.set.tiling.mode() };
        let picture = Picture::open(&path).map_err(|why| fault(&why))?;
        tiler.cut(&picture, mode).map(Visual::Picture).map_err(|why| fault(&why))
    }
}

fn flat(visual: Visual) -> Vec<Tiles> {
    match visual {
        Visual::Picture(tiles) => vec![tiles],
        Visual::Video(frames) => frames,
    }
}

/// Documents of `most` positions each, the last of what is left. Labels move one to the left within each.
fn cut(slots: &[Slot], own: &[i32], mut tiles: Vec<Tiles>, origin: &Origin, most: usize) -> Vec<Document> {
    let most = most.max(1);
    let parts = slots.chunks(most).zip(own.chunks(most)).enumerate();
    parts
        .map(|(number, (slots, own))| {
            let labels = own.iter().skip(1).copied().chain([IGNORE]).collect();
            let origin = Origin { offset: (number * most) as u64, ..origin.clone() };
            Document { origin, slots: slots.to_vec(), labels, tiles: std::mem::take(&mut tiles) }
        })
        .collect()
}
