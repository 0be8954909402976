//! A model that answers questions of [`omchat_recipe::judge`], each with no memory of the others.
//!
//! What a question shares with the beginning of the one before stays in the cache: only the rest is read.

use crate::{Engine, Error, Progress, Rows, Sampler, Sampling, Session};
use omchat_model::chat::{Conversation, Visual};
use omchat_model::config::IMAGE_TOKEN;
use omchat_model::format::{Format, OMCHAT_2_0};
use omchat_model::picture::Picture;
use omchat_model::splice::{Slot, splice};
use omchat_model::tiler::{TileMode, Tiler, Tiles};
use omchat_model::tokenizer::Tokenizer;
use omchat_model::video::sample_between;
use omchat_recipe::judge::{Answer, Expected, Prompt, Question, Refusal, Sight};
use std::ops::Range;
use std::sync::Arc;

/// How questions are put.
#[derive(Clone, Debug, PartialEq)]
pub struct AskOptions {
    /// Room for that many tokens.
    pub context: usize,
    /// What the system turn says.
    pub system: String,
    /// How pictures stand among words.
    pub format: Format,
    /// Without turns: the words are all of the prompt, for models that were not trained on chats.
    pub raw: bool,
    /// Of options the letter with the largest logit is the answer; nothing is generated.
    pub letters: bool,
}

/// A model that answers questions.
pub struct Asker<'a> {
    engine: Arc<Engine>,
    session: Session,
    tokenizer: Tokenizer,
    tiler: Option<Tiler>,
    options: AskOptions,
    /// What the cache holds.
    seen: Shown,
    /// Positions that questions did not need to read because the cache held them.
    pub spared: usize,
    /// Positions read for questions.
    pub read: usize,
    progress: &'a mut dyn FnMut(Progress),
}

/// A prompt as a model takes it.
#[derive(Default)]
struct Shown {
    ids: Vec<i32>,
    tiles: Vec<Tiles>,
}

impl<'a> Asker<'a> {
    /// A model with an empty cache.
    ///
    /// Errors: a model without a tokenizer; a context that does not fit the device.
    pub fn new(
        engine: Arc<Engine>,
        options: AskOptions,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Result<Asker<'a>, Error> {
        let tokenizer = engine.model().tokenizer()?;
        let tiler = engine.model().config.vision.as_ref().map(|_| engine.model().tiler()).transpose()?;
        let session = Session::new(engine.clone(), options.context)?;
        let seen = Shown::default();
        Ok(Asker { engine, session, tokenizer, tiler, options, seen, spared: 0, read: 0, progress })
    }

    fn shown(&mut self, question: &Question) -> Result<Shown, Refusal> {
        match &question.prompt {
            Prompt::Ids(ids) => Ok(Shown { ids: ids.iter().map(|id| *id as i32).collect(), tiles: vec![] }),
            Prompt::Turn { text, sights } => {
                let visuals = sights.iter().map(|sight| self.look(sight)).collect::<Result<Vec<_>, _>>()?;
                self.turn(text, visuals).map_err(|fault| Refusal::Skip(fault.to_string()))
            }
        }
    }

    fn look(&self, sight: &Sight) -> Result<Visual, Refusal> {
        let skip = |fault: omchat_model::Error| Refusal::Skip(fault.to_string());
        let Some(tiler) = &self.tiler else {
            return Err(Refusal::Skip("the model has no vision tower and the question has pictures".into()));
        };
        match sight {
            Sight::File(path) => {
                let picture = Picture::open(path).map_err(skip)?;
                Ok(Visual::Picture(tiler.cut(&picture, TileMode::AnyRes).map_err(skip)?))
            }
            Sight::Picture(picture) => Ok(Visual::Picture(tiler.cut(picture, TileMode::AnyRes).map_err(skip)?)),
            Sight::Frames(frames) => {
                let tiles = frames.iter().map(|frame| tiler.cut(frame, TileMode::Single));
                Ok(Visual::Video(tiles.collect::<Result<_, _>>().map_err(skip)?))
            }
            Sight::Video { path, frames, span } => {
                let take = |frame: Picture| tiler.cut(&frame, TileMode::Single);
                let tiles = sample_between(path, *frames, *span, &mut |_, _| {}, take).map_err(skip)?;
                Ok(Visual::Video(tiles))
            }
        }
    }

    fn turn(&self, text: &str, visuals: Vec<Visual>) -> Result<Shown, Error> {
        let empty = |format| {
            let mut turn = Conversation::new(&self.tokenizer, format, &self.options.system)?;
            turn.user("", vec![])?;
            Ok::<_, omchat_model::Error>(turn)
        };
        let mut turn = Conversation::new(&self.tokenizer, self.options.format, &self.options.system)?;
        turn.user(text, visuals)?;
        let mut ids = turn.ids().to_vec();
        if self.options.raw {
            // What an empty turn holds is the template; the rest is the words and pictures.
            let around = empty(OMCHAT_2_0)?;
            let end = self.tokenizer.required("<|im_end|>")? as i32;
            let before = around.ids().iter().rposition(|id| *id == end).unwrap_or(0);
            let after = around.ids().len() - before;
            ids.truncate(ids.len() - after);
            ids.drain(..before);
        }
        Ok(Shown { ids, tiles: turn.tiles().to_vec() })
    }

    /// Reads what the cache does not hold yet, if an answer of `room` ids then has room too; the logits after the prompt.
    fn read(&mut self, shown: Shown, room: usize) -> Result<Vec<f32>, Error> {
        let config = &self.engine.model().config;
        let (each, vocab) = (config.tokens_per_tile(), config.text.vocab);
        let kept = shared(&self.seen, &shown);
        let before = marks(&shown.ids[..kept]);
        let held = kept - before + before * each;
        let tiles = marks(&shown.ids[kept..]);
        let slots = splice(&shown.ids[kept..], tiles, each, vocab)?.slots;
        // The last id of an answer is not read.
        let need = held + slots.len() + room.saturating_sub(1);
        if need > self.session.context() {
            return Err(Error::Context { need, have: self.session.context() });
        }
        let features = match (&self.tiler, tiles) {
            (_, 0) => vec![],
            (None, _) => return Err(Error::Input("the model has no vision tower".into())),
            (Some(tiler), _) => {
                let mut pixels = |r: Range<usize>| pixels(tiler, &shown.tiles, before + r.start..before + r.end);
                self.engine.features(tiles, &mut pixels, self.progress)?
            }
        };
        self.session.truncate(held)?;
        // If reading fails half way, the cache holds nothing that may be taken for this prompt.
        self.seen = Shown::default();
        let logits = self.session.read(&slots, &features, Rows::Last, self.progress)?;
        (self.spared, self.read) = (self.spared + held, self.read + slots.len());
        self.seen = shown;
        Ok(logits)
    }

    fn words(&mut self, logits: &[f32], room: usize) -> Result<String, Error> {
        let end = self.tokenizer.required("<|im_end|>").ok();
        let stops: Vec<u32> = self.tokenizer.stops().iter().copied().chain(end).collect();
        let mut id = Sampler::new(Sampling::default()).pick(logits, &[]);
        let mut ids = Vec::new();
        while ids.len() < room {
            if stops.contains(&id) {
                break;
            }
            ids.push(id);
            if ids.len() == room {
                break;
            }
            id = self.session.likeliest(&[Slot::Text(id)], &[], &mut |_| {})?;
        }
        Ok(self.tokenizer.decode(&ids)?)
    }

    /// The option whose letter has the largest logit.
    fn letter(&self, logits: &[f32], options: usize) -> Result<String, Error> {
        let mut best: Option<(f32, char)> = None;
        for letter in ('A'..='Z').take(options) {
            for text in [letter.to_string(), format!(" {letter}")] {
                let ids = self.tokenizer.encode(&text)?;
                let [id] = ids[..] else { continue };
                let logit = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
                if best.is_none_or(|(most, _)| logit > most) {
                    best = Some((logit, letter));
                }
            }
        }
        Ok(best.map(|(_, letter)| letter.to_string()).unwrap_or_default())
    }
}

impl Answer for Asker<'_> {
    fn answer(&mut self, question: &Question) -> Result<String, Refusal> {
        let shown = self.shown(question)?;
        let stop = |fault: Error| match fault {
            Error::Context { .. } => Refusal::Skip(fault.to_string()),
            fault => Refusal::Stop(Box::new(fault)),
        };
        match &question.expected {
            Expected::Choice { options, .. } if self.options.letters => {
                let logits = self.read(shown, 0).map_err(stop)?;
                self.letter(&logits, options.len()).map_err(stop)
            }
            _ => {
                let logits = self.read(shown, question.room).map_err(stop)?;
                self.words(&logits, question.room).map_err(stop)
            }
        }
    }
}

fn marks(ids: &[i32]) -> usize {
    ids.iter().filter(|id| **id == IMAGE_TOKEN).count()
}

/// How many ids at the beginning of a prompt the cache holds, pictures compared pixel by pixel. One at least is left
/// to read: its logits are wanted.
fn shared(old: &Shown, new: &Shown) -> usize {
    let ids = old.ids.iter().zip(&new.ids).take_while(|(a, b)| a == b).count();
    let pictures = old.tiles.iter().zip(&new.tiles).take_while(|(a, b)| a == b);
    let tiles: usize = pictures.map(|(tiles, _)| tiles.count()).sum();
    let places = new.ids.iter().enumerate().filter(|(_, id)| **id == IMAGE_TOKEN).map(|(at, _)| at);
    let other = places.skip(tiles).map(|at| at.min(ids)).next().unwrap_or(ids);
    other.min(new.ids.len().saturating_sub(1))
}

/// The numbers of a range of tiles, counted through all pictures.
fn pixels(tiler: &Tiler, pictures: &[Tiles], range: Range<usize>) -> Vec<f32> {
    let mut first = 0;
    let mut out = Vec::new();
    for tiles in pictures {
        let end = first + tiles.count();
        if range.start < end && first < range.end {
            out.extend(tiler.pixels(tiles, range.start.max(first) - first..range.end.min(end) - first));
        }
        first = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ids: &[i32], pictures: &[(u8, usize)]) -> Shown {
        let tiles = |(value, count): &(u8, usize)| Tiles { size: 1, grid: (1, 1), rgb: vec![*value; 3 * count] };
        Shown { ids: ids.to_vec(), tiles: pictures.iter().map(tiles).collect() }
    }

    #[test]
    fn what_the_cache_holds() {
        let i = IMAGE_TOKEN;
        let old = shown(&[1, 2, i, i, 3, i, 4], &[(7, 2), (8, 1)]);
        let held = |ids: &[i32], pictures: &[(u8, usize)]| shared(&old, &shown(ids, pictures));
        assert_eq!(held(&[1, 2, i, i, 3, i, 5, 6], &[(7, 2), (8, 1)]), 6);
        assert_eq!(held(&[1, 2, i, i, 3, i, 4], &[(7, 2), (8, 1)]), 6, "one is left to read");
        assert_eq!(held(&[1, 2, i, i, 3, i, 4, 9], &[(7, 2), (9, 1)]), 5, "another second picture");
        assert_eq!(held(&[1, 2, i, i, 3, i, 4, 9], &[(6, 2), (8, 1)]), 2, "another first picture");
        assert_eq!(held(&[1, 9], &[]), 1);
        assert_eq!(held(&[9], &[]), 0);
        assert_eq!(shared(&Shown::default(), &old), 0);
    }
}
