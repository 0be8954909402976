//! A chat: questions with pictures and videos in, answers out, the history kept.

use crate::{Engine, Error, Progress, Sampler, Sampling, Session};
use omchat_model::chat::{Conversation, SYSTEM, Visual};
use omchat_model::format::Format;
use omchat_model::splice::{Slot, splice};
use omchat_model::tokenizer::Tokenizer;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a chat goes.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatOptions {
    /// Room for that many tokens.
    pub context: usize,
    /// An answer ends after that many ids.
    pub max_new_tokens: usize,
    /// How ids are drawn.
    pub sampling: Sampling,
    /// What the system turn says.
    pub system: String,
    /// How pictures stand among words; the released layout if `None`.
    pub format: Option<Format>,
}

impl Default for ChatOptions {
    fn default() -> ChatOptions {
        ChatOptions {
            context: 4096,
            max_new_tokens: 256,
            sampling: Sampling::default(),
            system: SYSTEM.into(),
            format: None,
        }
    }
}

/// What was answered, and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The words.
    pub text: String,
    /// The ids, a stop id included.
    pub ids: Vec<u32>,
    /// Whether a stop id ended it.
    pub stopped: bool,
    /// Positions read for the question: words and feature rows.
    pub prompt: usize,
    /// Tiles encoded.
    pub tiles: usize,
    /// From the question to the first id.
    pub first: Duration,
    /// Ids that were read one by one after the first of them, which waits for its kernels to be compiled.
    pub steps: usize,
    /// Time that those took.
    pub stepping: Duration,
    /// Kernels that the device compiled meanwhile; none once a turn of each size was taken.
    pub compiled: usize,
}

/// A conversation with a model on a device.
pub struct Chat {
    engine: Arc<Engine>,
    session: Session,
    conversation: Conversation,
    tokenizer: Tokenizer,
    options: ChatOptions,
    sampler: Sampler,
    /// Ids of the conversation that the session has read.
    read: usize,
}

impl Chat {
    /// A conversation that holds its system turn.
    ///
    /// Errors: a model without a tokenizer; a context that does not fit the device; sampling out of range.
    pub fn new(engine: Engine, options: ChatOptions) -> Result<Chat, Error> {
        options.sampling.check().map_err(Error::Input)?;
        let engine = Arc::new(engine);
        let tokenizer = engine.model().tokenizer()?;
        let format = options.format.unwrap_or_else(|| Format::released(engine.model().config.vision.as_ref()));
        let conversation = Conversation::new(&tokenizer, format, &options.system)?;
        let session = Session::new(engine.clone(), options.context)?;
        Ok(Chat {
            sampler: Sampler::new(options.sampling.clone()),
            engine,
            session,
            conversation,
            tokenizer,
            options,
            read: 0,
        })
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How it goes.
    pub fn options(&self) -> &ChatOptions {
        &self.options
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Asks, and hands the answer on as it comes, until `say` breaks off. The question and the answer join the history.
    ///
    /// Errors: pictures that do not fit the words; a conversation that outgrows the context; what the device answers.
    /// After an error the history is as if the question had not been asked.
    pub fn ask(
        &mut self,
        text: &str,
        visuals: Vec<Visual>,
        progress: &mut dyn FnMut(Progress),
        say: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, Error> {
        let (place, used, read) = (self.conversation.place(), self.session.len(), self.read);
        let answer = self.turn(text, visuals, progress, say);
        if answer.is_err() {
            self.conversation.back(place);
            self.session.truncate(used)?;
            self.read = read;
        }
        answer
    }

    fn turn(
        &mut self,
        text: &str,
        visuals: Vec<Visual>,
        progress: &mut dyn FnMut(Progress),
        say: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, Error> {
        let (start, compiled) = (Instant::now(), self.engine.compilations());
        self.conversation.user(text, visuals)?;
        let (slots, features, tiles) = self.unread(progress)?;
        let mut seen: Vec<u32> = self.conversation.ids().iter().filter_map(|id| u32::try_from(*id).ok()).collect();
        let first = self.session.sample(&slots, &features, &mut self.sampler, &seen, progress)?;
        self.read = self.conversation.ids().len();
        let mut answer = Answer {
            text: String::new(),
            ids: vec![],
            stopped: false,
            prompt: slots.len(),
            tiles,
            first: start.elapsed(),
            steps: 0,
            stepping: Duration::ZERO,
            compiled: 0,
        };
        self.answer(first, &mut seen, &mut answer, say)?;
        answer.compiled = self.engine.compilations() - compiled;
        self.conversation.answer(&answer.ids);
        Ok(answer)
    }

    /// Reads nothing more than what the session has not seen: positions, their feature rows, and tiles encoded.
    fn unread(&self, progress: &mut dyn FnMut(Progress)) -> Result<(Vec<Slot>, Vec<f32>, usize), Error> {
        let feed = self.conversation.since(self.read);
        let tiles = feed.tiles.len();
        let config = &self.engine.model().config;
        let slots = splice(feed.ids, tiles, config.tokens_per_tile(), config.text.vocab)?.slots;
        let need = self.session.len() + slots.len();
        if need > self.session.context() {
            return Err(Error::Context { need, have: self.session.context() });
        }
        if tiles == 0 {
            return Ok((slots, vec![], 0));
        }
        let tiler = self.engine.model().tiler()?;
        let first = feed.tiles.start;
        let mut pixels = |r: std::ops::Range<usize>| self.conversation.pixels(&tiler, first + r.start..first + r.end);
        let features = self.engine.features(tiles, &mut pixels, progress)?;
        Ok((slots, features, tiles))
    }

    /// Takes ids until one stops the answer, and reads each but the last.
    fn answer(
        &mut self,
        mut id: u32,
        seen: &mut Vec<u32>,
        answer: &mut Answer,
        say: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let stops = self.conversation.stops();
        let mut stream = self.tokenizer.stream();
        while answer.ids.len() < self.options.max_new_tokens {
            answer.ids.push(id);
            seen.push(id);
            if stops.contains(&id) {
                answer.stopped = true;
                break;
            }
            let words = stream.push(id)?;
            answer.text += &words;
            if say(&words).is_break()
                || answer.ids.len() == self.options.max_new_tokens
                || self.session.len() == self.session.context()
            {
                break;
            }
            let step = Instant::now();
            id = self.session.sample(&[Slot::Text(id)], &[], &mut self.sampler, seen, &mut |_| {})?;
            self.read += 1;
            if answer.ids.len() > 1 {
                answer.steps += 1;
                answer.stepping += step.elapsed();
            }
        }
        let words = stream.finish()?;
        answer.text += &words;
        // The answer has ended either way.
        let _ = say(&words);
        Ok(())
    }
}
