//! A session: the cache of one sequence, and the reading of tokens into it.
//!
//! Tokens are read in chunks of a few fixed sizes, so that programs and kernels are made once however long the
//! sequence grows. A chunk that is not full is padded: padding sees nothing, its slots are seen by nothing, and
//! the next chunk writes over them.

use crate::engine::{finite, reset};
use crate::{Engine, Error, Progress};
use omchat_model::graph::{DecoderSpec, Output};
use omchat_model::rope::rope_table;
use omchat_model::splice::Slot;
use omchat_runtime::{HostTensor, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens that one run reads, largest first. The last reads one token: a decode step.
pub const CHUNKS: [usize; 3] = [256, 32, 1];

/// What of each token is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Logits of the last token: [1, V].
    Last,
    /// Logits of every token: [T, V].
    All,
}

/// Counts and times of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Tokens read in chunks.
    pub read: usize,
    /// Time that took.
    pub reading: Duration,
    /// Tokens read one by one.
    pub steps: usize,
    /// Time that took.
    pub stepping: Duration,
    /// Kernels that the device compiled for the engine's programs, whichever session ran them first.
    pub compilations: usize,
    /// Runs of the engine's programs that replayed recorded launches in place of making them.
    pub replays: usize,
}

/// One sequence's cache.
pub struct Session {
    engine: Arc<Engine>,
    store: Store,
    /// Tokens that the caller may read.
    context: usize,
    /// Slots of the cache: the context and room for a padded chunk.
    capacity: usize,
    used: usize,
    stats: Stats,
}

impl Session {
    /// An empty session with room for `context` tokens.
    ///
    /// Errors: no room at all; a device too small for the cache.
    pub fn new(engine: Arc<Engine>, context: usize) -> Result<Session, Error> {
        if context == 0 {
            return Err(Error::Input("a context of 0 tokens; give 1 or more".into()));
        }
        let most = i32::MAX as usize - 2 * CHUNKS[0];
        if context > most {
            return Err(Error::Input(format!("a context of {context} tokens; the most is {most}")));
        }
        let capacity = context.next_multiple_of(CHUNKS[1]) + CHUNKS[0];
        let mut s = Session { store: engine.store(), engine, context, capacity, used: 0, stats: Stats::default() };
        s.check_memory()?;
        let exe = s.engine.decoder(s.spec(1, Output::Last))?;
        reset(&exe, s.engine.device(), &mut s.store);
        Ok(s)
    }

    fn check_memory(&self) -> Result<(), Error> {
        let t = &self.engine.model().config.text;
        let slot = 2 * t.layers * t.kv_heads * t.head_dim * self.engine.dtype().bytes();
        let need = self.capacity as u64 * slot as u64;
        match self.engine.device().free_bytes() {
            Some(have) if need > have => {
                let device = self.engine.device().name().to_string();
                Err(omchat_runtime::Error::OutOfMemory {
                    what: format!("a KV cache of {} slots", self.capacity),
                    need,
                    have,
                    device,
                }
                .into())
            }
            _ => Ok(()),
        }
    }

    /// Tokens read so far.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Room for that many tokens.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        Stats { compilations: self.engine.compilations(), replays: self.engine.replays(), ..self.stats }
    }

    /// Forgets everything after the first `tokens`: what follows is written over.
    pub fn truncate(&mut self, tokens: usize) -> Result<(), Error> {
        if tokens < self.used {
            self.used = tokens;
            // The slots' indices say what is seen; rewriting them empties the rest.
            let at: Vec<i32> = (0..self.capacity).map(|i| if i < tokens { i as i32 } else { i32::MAX }).collect();
            self.store.upload(self.engine.device(), "cache.at", &HostTensor::i32([1, self.capacity], &at));
        }
        Ok(())
    }

    /// Reads positions and yields their logits.
    ///
    /// Shapes: `features` [rows, C], of which `Slot::Image(r)` is row r; the result as [`Rows`] says.
    /// Errors: `Context` if they do not fit; what the device answers; logits that are not finite.
    pub fn read(
        &mut self,
        slots: &[Slot],
        features: &[f32],
        rows: Rows,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<f32>, Error> {
        self.room(slots)?;
        let start = Instant::now();
        let mut out = vec![];
        let mut done = 0;
        while done < slots.len() {
            let size = self.chunk(slots.len() - done);
            let part = &slots[done..(done + size).min(slots.len())];
            let output = if rows == Rows::All { Output::All } else { Output::Last };
            let mut y = self.run(part, size, features, output, None)?;
            let logits = y.swap_remove(0).to_f32();
            finite("logits", &logits)?;
            done += part.len();
            match rows {
                Rows::All => {
                    let width = logits.len() / size;
                    out.extend_from_slice(&logits[..part.len() * width]);
                }
                Rows::Last => out = logits,
            }
            progress(Progress { stage: "reading", done, total: slots.len() });
        }
        self.count(slots.len(), start.elapsed());
        Ok(out)
    }

    /// Reads positions and yields the loss of each against the label of the next.
    ///
    /// Shapes: `labels` [T], already shifted, −100 where none counts; the result is [T].
    /// Errors: as [`Session::read`].
    pub fn losses(&mut self, slots: &[Slot], features: &[f32], labels: &[i32]) -> Result<Vec<f32>, Error> {
        self.room(slots)?;
        if labels.len() != slots.len() {
            return Err(Error::Input(format!("{} labels for {} positions; give one each", labels.len(), slots.len())));
        }
        let mut out = vec![];
        while out.len() < slots.len() {
            let done = out.len();
            let size = self.chunk(slots.len() - done);
            let part = &slots[done..(done + size).min(slots.len())];
            let y = self.run(part, size, features, Output::Loss, Some(&labels[done..done + part.len()]))?;
            out.extend_from_slice(&y[0].to_f32()[..part.len()]);
        }
        finite("losses", &out)?;
        Ok(out)
    }

    fn room(&self, slots: &[Slot]) -> Result<(), Error> {
        let need = self.used + slots.len();
        if need > self.context {
            return Err(Error::Context { need, have: self.context });
        }
        if slots.is_empty() {
            return Err(Error::Input("no tokens to read; give one or more".into()));
        }
        let vocab = self.engine.model().config.text.vocab;
        let unknown = slots.iter().find_map(|s| match s {
            Slot::Text(id) if *id as usize >= vocab => Some(*id),
            _ => None,
        });
        match unknown {
            Some(id) => {
                Err(Error::Input(format!("id {id} is beyond the model's {vocab} ids; use the tokenizer of this model")))
            }
            None => Ok(()),
        }
    }

    fn chunk(&self, left: usize) -> usize {
        CHUNKS.into_iter().find(|c| left >= *c).map_or(1, |c| if c == 1 && left > 1 { CHUNKS[1] } else { c })
    }

    fn count(&mut self, tokens: usize, took: Duration) {
        if tokens == 1 {
            self.stats.steps += 1;
            self.stats.stepping += took;
        } else {
            self.stats.read += tokens;
            self.stats.reading += took;
        }
    }

    fn spec(&self, tokens: usize, output: Output) -> DecoderSpec {
        let features = tokens > 1 && self.engine.model().config.vision.is_some();
        DecoderSpec { tokens, capacity: self.capacity, features, output }
    }

    /// Runs one chunk, padded to `size`.
    fn run(
        &mut self,
        part: &[Slot],
        size: usize,
        features: &[f32],
        output: Output,
        labels: Option<&[i32]>,
    ) -> Result<Vec<HostTensor>, Error> {
        let image = part.iter().any(|s| matches!(s, Slot::Image(_)));
        let size = if image { size.max(CHUNKS[1]) } else { size };
        let spec = self.spec(size, output);
        let exe = self.engine.decoder(spec)?;
        let t = &self.engine.model().config.text;
        let n = part.len();
        let at = |i: usize| (self.used + i) as i32;
        let pad = |f: &dyn Fn(usize) -> i32, rest: i32| -> Vec<i32> {
            (0..size).map(|i| if i < n { f(i) } else { rest }).collect()
        };
        let ids = pad(
            &|i| match part[i] {
                Slot::Text(id) => id as i32,
                Slot::Image(_) => -1,
            },
            -1,
        );
        let positions: Vec<u32> = (0..size).map(|i| (self.used + i) as u32).collect();
        let (cos, sin) = rope_table(&positions, t.head_dim, t.rope_theta);
        let pairs = t.head_dim / 2;
        let mut feed = vec![
            ("ids", HostTensor::i32([size], &ids)),
            ("cos", HostTensor::f32([size, pairs], &cos)),
            ("sin", HostTensor::f32([size, pairs], &sin)),
            // Padding sees nothing: its interval is empty.
            ("lo", HostTensor::i32([1, size], &pad(&|_| 0, 1))),
            ("hi", HostTensor::i32([1, size], &pad(&at, 0))),
            ("slots", HostTensor::i32([1, size], &pad(&at, i32::MAX))),
            ("start", HostTensor::i32([], &[self.used as i32])),
        ];
        if spec.features {
            feed.push(("features", HostTensor::f32([size, t.hidden], &rows_of(part, size, t.hidden, features)?)));
        }
        match output {
            Output::Last => feed.push(("last", HostTensor::i32([1], &[n as i32 - 1]))),
            Output::Loss => {
                feed.push(("labels", HostTensor::i32([size], &pad(&|i| labels.map_or(-100, |l| l[i]), -100))))
            }
            Output::All => {}
        }
        let out = exe.run(&feed, &mut self.store)?;
        self.used += n;
        Ok(out)
    }
}

/// The feature row of each position; zeros where text or padding stands.
fn rows_of(part: &[Slot], size: usize, width: usize, features: &[f32]) -> Result<Vec<f32>, Error> {
    let mut out = vec![0.0; size * width];
    for (i, slot) in part.iter().enumerate() {
        if let Slot::Image(row) = slot {
            let from = *row as usize * width;
            let have = features
                .get(from..from + width)
                .ok_or_else(|| Error::Input(format!("feature row {row} of {}", features.len() / width.max(1))))?;
            out[i * width..(i + 1) * width].copy_from_slice(have);
        }
    }
    Ok(out)
}
