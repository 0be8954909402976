//! Conversations as ids: ChatML turns with a placeholder for each tile.
//!
//! ```text
//! <|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{query}<|im_end|>\n<|im_start|>assistant\n
//! ```
//!
//! Pieces of text between placeholders are tokenised on their own, as the released code does. A conversation only
//! ever grows at its end, so a session that has read n ids needs [`Conversation::since`]`(n)` and nothing else.
//! Source: OmChat `make_context` and its processors.

use crate::config::IMAGE_TOKEN;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::tiler::{Tiler, Tiles};
use crate::tokenizer::Tokenizer;
use std::ops::Range;

/// What the system turn says unless told otherwise.
pub const SYSTEM: &str = "You are a helpful assistant.";
/// The released size, in ids, that a conversation with its history stays below.
pub const HISTORY_WINDOW: usize = 6144;
/// The words that mark a picture's place in a text.
const MARKS: [&str; 2] = ["<image>", "<video>"];

/// Something to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visual {
    /// One picture's tiles.
    Picture(Tiles),
    /// The tiles of a video's frames, in order.
    Video(Vec<Tiles>),
}

/// Turns so far: their ids and the tiles that the placeholders among them stand for.
#[derive(Debug, Clone)]
pub struct Conversation {
    tokenizer: Tokenizer,
    format: Format,
    start: i32,
    end: i32,
    ids: Vec<i32>,
    tiles: Vec<Tiles>,
    pictures: usize,
    answering: bool,
}

/// A place in a conversation, between two turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    ids: usize,
    tiles: usize,
    pictures: usize,
    answering: bool,
}

/// What a session has not read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed<'a> {
    /// The new ids, with -200 for each new tile.
    pub ids: &'a [i32],
    /// The new tiles, counted from the conversation's first.
    pub tiles: Range<usize>,
}

impl Conversation {
    /// A conversation that holds its system turn.
    ///
    /// Errors: `Tokenizer` if there are no ChatML tokens.
    pub fn new(tokenizer: &Tokenizer, format: Format, system: &str) -> Result<Self> {
        let id = |token| tokenizer.required(token).map(|id| id as i32);
        let mut new = Self::bare(tokenizer, format);
        (new.start, new.end) = (id("<|im_start|>")?, id("<|im_end|>")?);
        new.ids = new.turn("system", system)?;
        Ok(new)
    }

    /// A conversation that goes on from older questions and answers: the newest that fit below `window` ids.
    ///
    /// Errors: as [`Conversation::new`].
    pub fn with_history(
        tokenizer: &Tokenizer,
        format: Format,
        system: &str,
        turns: &[(String, String)],
        window: usize,
    ) -> Result<Self> {
        let mut new = Self::new(tokenizer, format, system)?;
        let newline = new.words("\n")?;
        let mut kept = Vec::new();
        for (query, answer) in turns.iter().rev() {
            let (query, answer) = (new.turn("user", query)?, new.turn("assistant", answer)?);
            let pair = [newline.as_slice(), &query, &newline, &answer].concat();
            if new.ids.len() + pair.len() + kept.len() >= window {
                break;
            }
            kept.splice(..0, pair);
        }
        new.ids.extend(kept);
        Ok(new)
    }

    /// Adds a user's turn and opens the answer.
    ///
    /// Pictures and videos go where [`taken`] says, or before the words if no place is marked. Without any the text is
    /// taken as it is.
    ///
    /// Errors: `Input` if the marks are not as many as the pictures and videos, or of another kind; `Tokenizer` if the
    /// text cannot be spelled.
    pub fn user(&mut self, text: &str, visuals: Vec<Visual>) -> Result<()> {
        let visuals = arranged(text, visuals)?;
        let mut body = Body::default();
        let pictures = self.write(&mut body, text, &visuals)?;
        let mut ids = self.words("\n")?;
        ids.extend([self.start].iter().chain(&self.words("user")?).chain(&self.words("\n")?));
        ids.extend(self.spell(body)?);
        ids.push(self.end);
        ids.extend(self.words("\n")?);
        ids.extend([self.start].iter().chain(&self.words("assistant")?).chain(&self.words("\n")?));
        self.close();
        self.ids.extend(ids);
        self.pictures = pictures;
        self.answering = true;
        self.tiles.extend(visuals.into_iter().flat_map(|visual| match visual {
            Visual::Picture(tiles) => vec![tiles],
            Visual::Video(frames) => frames,
        }));
        Ok(())
    }

    /// Adds what the model answered. A stop id at its end is taken for the end of the turn.
    pub fn answer(&mut self, ids: &[u32]) {
        let stops = self.stops();
        let words = ids.iter().take_while(|id| !stops.contains(id));
        self.ids.extend(words.map(|id| *id as i32));
        self.close();
    }

    /// The ids that end an answer: the model's, and the end of a turn.
    pub fn stops(&self) -> Vec<u32> {
        let mut stops = self.tokenizer.stops().to_vec();
        if !stops.contains(&(self.end as u32)) {
            stops.push(self.end as u32);
        }
        stops
    }

    /// Where the conversation is now, for [`Conversation::back`].
    pub fn place(&self) -> Place {
        Place { ids: self.ids.len(), tiles: self.tiles.len(), pictures: self.pictures, answering: self.answering }
    }

    /// Forgets what came after a place.
    pub fn back(&mut self, place: Place) {
        self.ids.truncate(place.ids);
        self.tiles.truncate(place.tiles);
        (self.pictures, self.answering) = (place.pictures, place.answering);
    }

    /// All ids so far, -200 for each tile.
    pub fn ids(&self) -> &[i32] {
        &self.ids
    }

    /// Each picture's or frame's tiles, in the order of their placeholders.
    pub fn tiles(&self) -> &[Tiles] {
        &self.tiles
    }

    /// What came after the first `read` ids.
    pub fn since(&self, read: usize) -> Feed<'_> {
        let read = read.min(self.ids.len());
        let count = |ids: &[i32]| ids.iter().filter(|id| **id == IMAGE_TOKEN).count();
        let first = count(&self.ids[..read]);
        let ids = &self.ids[read..];
        Feed { ids, tiles: first..first + count(ids) }
    }

    /// The numbers of some tiles, counted through all pictures. Asking for a few at a time keeps memory bounded.
    ///
    /// Shapes: [range, 3, size, size].
    pub fn pixels(&self, tiler: &Tiler, range: Range<usize>) -> Vec<f32> {
        let mut first = 0;
        let mut out = Vec::new();
        for tiles in &self.tiles {
            let end = first + tiles.count();
            if range.start < end && first < range.end {
                out.extend(tiler.pixels(tiles, range.start.max(first) - first..range.end.min(end) - first));
            }
            first = end;
        }
        out
    }

    fn bare(tokenizer: &Tokenizer, format: Format) -> Self {
        let (tokenizer, ids, tiles) = (tokenizer.clone(), Vec::new(), Vec::new());
        Self { tokenizer, format, start: 0, end: 0, ids, tiles, pictures: 0, answering: false }
    }

    fn close(&mut self) {
        if self.answering {
            self.ids.push(self.end);
            self.answering = false;
        }
    }

    fn turn(&self, role: &str, text: &str) -> Result<Vec<i32>> {
        let (role, newline, text) = (self.words(role)?, self.words("\n")?, self.words(text)?);
        Ok([&[self.start], role.as_slice(), &newline, &text, &[self.end]].concat())
    }

    fn words(&self, text: &str) -> Result<Vec<i32>> {
        Ok(self.tokenizer.encode(text)?.into_iter().map(|id| id as i32).collect())
    }

    /// Lays out text and pictures; the result is how many pictures the conversation then holds.
    fn write(&self, body: &mut Body, text: &str, visuals: &[Visual]) -> Result<usize> {
        let format = &self.format;
        let mut number = self.pictures;
        let marks = if visuals.is_empty() { 0 } else { pieces(text).count() - 1 };
        if format.lone_first && visuals.len() == 1 && marks <= 1 {
            self.visual(body, &visuals[0], format.before, &mut number);
            body.words(pieces(text).collect::<String>().trim());
        } else if marks == 0 {
            for visual in visuals {
                self.visual(body, visual, format.before, &mut number);
            }
            body.words(text);
        } else if marks == visuals.len() {
            let places = std::iter::once(None).chain(visuals.iter().map(Some));
            for (words, visual) in pieces(text).zip(places) {
                if let Some(visual) = visual {
                    self.visual(body, visual, format.inside, &mut number);
                }
                body.words(words);
            }
        } else {
            let what = format!("the text marks {marks} places and there are {} pictures or videos", visuals.len());
            return Err(Error::input(what, "write one <image> or <video> for each, or none to put them first"));
        }
        Ok(number)
    }

    fn visual(&self, body: &mut Body, visual: &Visual, template: &str, number: &mut usize) {
        match visual {
            Visual::Picture(tiles) => {
                *number += 1;
                body.template(template, *number, tiles.count(), self.format.between);
            }
            Visual::Video(frames) => {
                for (frame, tiles) in frames.iter().enumerate() {
                    body.template(self.format.frame, frame + 1, tiles.count(), self.format.between);
                }
            }
        }
    }

    fn spell(&self, body: Body) -> Result<Vec<i32>> {
        let mut ids = Vec::new();
        let mut words = String::new();
        for part in body.parts {
            let token = match part {
                Part::Words(text) => {
                    words.push_str(&text);
                    continue;
                }
                Part::Tile => Some(IMAGE_TOKEN),
                Part::Token(token) => self.tokenizer.id(token).map(|id| id as i32).or_else(|| {
                    words.push_str(token);
                    None
                }),
            };
            if let Some(token) = token {
                ids.extend(self.words(&std::mem::take(&mut words))?);
                ids.push(token);
            }
        }
        ids.extend(self.words(&words)?);
        Ok(ids)
    }
}

/// The ids of a text and its pictures alone, without a turn around them, and how many pictures then were numbered.
///
/// Laid out as [`Conversation::user`] does; `numbered` pictures came before.
///
/// Errors: as [`Conversation::user`].
pub fn body(
    tokenizer: &Tokenizer,
    format: Format,
    text: &str,
    visuals: &[Visual],
    numbered: usize,
) -> Result<(Vec<i32>, usize)> {
    let mut bare = Conversation::bare(tokenizer, format);
    bare.pictures = numbered;
    let mut body = Body::default();
    let pictures = bare.write(&mut body, text, visuals)?;
    Ok((bare.spell(body)?, pictures))
}

/// The marks of a text in order: true for `<image>`, false for `<video>`.
pub fn marks(text: &str) -> Vec<bool> {
    let mut found: Vec<(usize, bool)> = text.match_indices(MARKS[0]).map(|(at, _)| (at, true)).collect();
    found.extend(text.match_indices(MARKS[1]).map(|(at, _)| (at, false)));
    found.sort_unstable();
    found.into_iter().map(|(_, picture)| picture).collect()
}

/// What each of some marks takes: whether it is a picture, and its number among the pictures or among the videos.
///
/// An `<image>` takes the next picture, a `<video>` the next video. Where there are videos and no pictures, an `<image>`
/// takes a video, as LLaVA writes them. Nothing if a mark finds none, or one of them is left over.
pub fn taken(marks: &[bool], pictures: usize, videos: usize) -> Option<Vec<(bool, usize)>> {
    let (mut seen, mut watched) = (0..pictures, 0..videos);
    let mut next = |picture: bool| match picture && pictures > 0 {
        true => seen.next().map(|number| (true, number)),
        false => watched.next().map(|number| (false, number)),
    };
    let all: Option<Vec<(bool, usize)>> = marks.iter().map(|picture| next(*picture)).collect();
    all.filter(|all| all.len() == pictures + videos)
}

/// Pictures and videos in the order of their marks. Where nothing is marked, or another number of places, they stay as
/// they are.
fn arranged(text: &str, visuals: Vec<Visual>) -> Result<Vec<Visual>> {
    let marks = marks(text);
    if marks.is_empty() || marks.len() != visuals.len() {
        return Ok(visuals);
    }
    let (pictures, videos): (Vec<Visual>, Vec<Visual>) =
        visuals.into_iter().partition(|visual| matches!(visual, Visual::Picture(_)));
    let order = taken(&marks, pictures.len(), videos.len()).ok_or_else(|| {
        let images = marks.iter().filter(|picture| **picture).count();
        let what = format!(
            "the text marks {images} places by <image> and {} by <video>, and there are {} pictures and {} videos",
            marks.len() - images,
            pictures.len(),
            videos.len()
        );
        Error::input(
            what,
            "write one <image> for each picture and one <video> for each video, or none to put them first",
        )
    })?;
    let (mut pictures, mut videos) = (pictures.into_iter(), videos.into_iter());
    Ok(order.into_iter().filter_map(|(picture, _)| if picture { pictures.next() } else { videos.next() }).collect())
}

/// The text around each mark.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split(MARKS[0]).flat_map(|part| part.split(MARKS[1]))
}

/// A turn before its words are ids.
#[derive(Default)]
struct Body {
    parts: Vec<Part>,
}

enum Part {
    Words(String),
    Token(&'static str),
    Tile,
}

impl Body {
    fn words(&mut self, text: &str) {
        self.parts.push(Part::Words(text.to_owned()));
    }

    fn template(&mut self, template: &str, number: usize, tiles: usize, between: &str) {
        let mut rest = template;
        while let Some((at, key)) = next_key(rest) {
            self.words(&rest[..at]);
            match key {
                "{i}" => self.words(&number.to_string()),
                "{img}" => self.picture(tiles, between),
                token => self.parts.push(Part::Token(token)),
            }
            rest = &rest[at + key.len()..];
        }
        self.words(rest);
    }

    fn picture(&mut self, tiles: usize, between: &str) {
        for tile in 0..tiles {
            if tile > 0 {
                self.words(between);
            }
            self.parts.push(Part::Tile);
        }
    }
}

fn next_key(template: &str) -> Option<(usize, &'static str)> {
    let keys = ["{i}", "{img}", "<im_start>", "<im_end>"];
    keys.into_iter().filter_map(|key| template.find(key).map(|at| (at, key))).min()
}
