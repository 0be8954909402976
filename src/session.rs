//! A session: the cache of one sequence, and the reading of tokens into it.
//!
//! Tokens are read in chunks of a few fixed sizes, so that programs and kernels are made once however long the
//! sequence grows. A chunk that is not full is padded: padding sees nothing, its slots are seen by nothing, and
//! the next chunk writes over them.
//!
//! Among ranks each has a part of the cache. A long prompt is read in chunks of which each rank has a part: its keys go
//! to that rank's slots, its queries to all ranks. Few tokens are read by all ranks alike, and one keeps their keys.

mod chunk;

use crate::engine::{finite, reset};
use crate::owners::Owners;
use crate::{Engine, Error, Progress, Sampler, Sampling};
pub use chunk::Chunks;
use chunk::{Ask, Chunk, Plan};
use omchat_codegen::Family;
use omchat_model::graph::{DecoderSpec, Output, Spread};
use omchat_model::splice::Slot;
use omchat_runtime::{HostTensor, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// One sequence's cache. Of an engine among ranks it is this rank's part: all ranks make the same calls, each on its
/// own session, and all get the same answers, bit for bit where all run on devices of one kind.
pub struct Session {
    engine: Arc<Engine>,
    store: Store,
    /// Tokens that the caller may read.
    context: usize,
    /// Slots of this rank's cache: its share of the context and room for a padded chunk.
    capacity: usize,
    owners: Owners,
    chunks: Chunks,
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
        let chunks = Chunks::of(&engine.device().target());
        let most = i32::MAX as usize - 2 * chunks.large;
        if context > most {
            return Err(Error::Input(format!("a context of {context} tokens; the most is {most}")));
        }
        let ranks = engine.ranks();
        let capacity = chunks.slots(Owners::most(context, ranks, chunks.small));
        let (store, owners) = (engine.store(), Owners::new(ranks));
        let mut s = Session { store, engine, context, capacity, owners, chunks, stats: Stats::default() };
        s.check_memory()?;
        let exe = s.engine.decoder(s.spec(s.chunks.next(1, ranks), Output::Likeliest))?;
        reset(&exe, s.engine.device(), &mut s.store);
        Ok(s)
    }

    /// Bytes of keys and values that this rank's cache holds.
    pub fn cache_bytes(&self) -> u64 {
        let t = &self.engine.model().config.text;
        let slot = 2 * t.layers * t.kv_heads * t.head_dim * self.engine.dtype().bytes();
        self.capacity as u64 * slot as u64
    }

    fn check_memory(&self) -> Result<(), Error> {
        let need = self.cache_bytes();
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
        self.owners.len()
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
        if tokens < self.len() {
            self.owners.truncate(tokens);
            // The slots' indices say what is seen; rewriting them empties the rest.
            let kept = self.owners.tokens(self.engine.rank()).map(|token| token as i32);
            let at: Vec<i32> = kept.chain(std::iter::repeat(i32::MAX)).take(self.capacity).collect();
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
            let part = self.next(&slots[done..]);
            let logits = self.rows(part, features, if rows == Rows::All { Ask::All } else { Ask::Last })?;
            finite("logits", &logits)?;
            done += part.len();
            match rows {
                Rows::All => out.extend(logits),
                Rows::Last => out = logits,
            }
            progress(Progress { stage: "reading", done, total: slots.len() });
        }
        self.count(slots.len(), start.elapsed());
        Ok(out)
    }

    /// Reads positions and yields the id with the largest logit after the last, the first of equals: what greedy
    /// sampling takes. Logits stay on the device.
    ///
    /// Shapes and errors: as [`Session::read`].
    pub fn likeliest(
        &mut self,
        slots: &[Slot],
        features: &[f32],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u32, Error> {
        self.id(slots, features, Ask::Likeliest, progress)
    }

    /// Reads positions and yields an id drawn after the last by that chance, in [0, 1): what [`Sampler::pick`] draws by
    /// it, but for the rounding of sums. Logits stay on the device. Penalties do not count here, and a temperature of 0 is refused.
    ///
    /// Shapes and errors: as [`Session::read`]; numbers out of their range.
    pub fn drawn(
        &mut self,
        slots: &[Slot],
        features: &[f32],
        how: &Sampling,
        chance: f32,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u32, Error> {
        how.check().map_err(Error::Input)?;
        if how.temperature == 0.0 || !(0.0..1.0).contains(&chance) {
            let temperature = how.temperature;
            return Err(Error::Input(format!(
                "a draw by chance {chance} at temperature {temperature}; give a chance from 0 up to 1 and a temperature above 0"
            )));
        }
        self.id(slots, features, Ask::Drawn(how, chance), progress)
    }

    /// Reads positions and yields the id that a sampler takes next, found where that costs least: on the device, but for
    /// draws where the device is the CPU, which has the logits at hand, and for penalties.
    ///
    /// Shapes: `seen` are ids that occurred, in any order; the others and errors as [`Session::read`].
    pub fn sample(
        &mut self,
        slots: &[Slot],
        features: &[f32],
        sampler: &mut Sampler,
        seen: &[u32],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u32, Error> {
        if sampler.greedy() {
            return self.likeliest(slots, features, progress);
        }
        let far = self.engine.device().target().family != Family::Cpu;
        if far && sampler.how().temperature > 0.0 && sampler.how().repetition_penalty == 1.0 {
            let (how, chance) = (sampler.how().clone(), sampler.chance());
            return self.drawn(slots, features, &how, chance, progress);
        }
        let logits = self.read(slots, features, Rows::Last, progress)?;
        Ok(sampler.pick(&logits, seen))
    }

    fn id(
        &mut self,
        slots: &[Slot],
        features: &[f32],
        ask: Ask,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u32, Error> {
        self.room(slots)?;
        let start = Instant::now();
        let (mut id, mut done) = (0, 0);
        while done < slots.len() {
            let part = self.next(&slots[done..]);
            let chunk = self.chunk(part);
            let results = self.run(&chunk, features, ask)?;
            self.owners.add(&chunk.owners);
            finite("logits", &results.get(1).map(HostTensor::to_f32).unwrap_or_default())?;
            id = results.first().and_then(|r| r.to_i32().first().copied()).map_or(0, i32::unsigned_abs);
            done += part.len();
            progress(Progress { stage: "reading", done, total: slots.len() });
        }
        self.count(slots.len(), start.elapsed());
        Ok(id)
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
            let part = self.next(&slots[done..]);
            out.extend(self.rows(part, features, Ask::Losses(&labels[done..done + part.len()]))?);
        }
        finite("losses", &out)?;
        Ok(out)
    }

    fn room(&self, slots: &[Slot]) -> Result<(), Error> {
        let need = self.len() + slots.len();
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

    /// The positions that the next run reads.
    fn next<'s>(&self, left: &'s [Slot]) -> &'s [Slot] {
        &left[..self.chunks.next(left.len(), self.engine.ranks()).take]
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

    fn spec(&self, plan: Plan, output: Output) -> DecoderSpec {
        let features = plan.size > 1 && self.engine.model().config.vision.is_some();
        DecoderSpec { tokens: plan.size, capacity: self.capacity, features, output, spread: plan.spread }
    }

    /// Positions as this rank reads them next.
    fn chunk<'p>(&self, part: &'p [Slot]) -> Chunk<'p> {
        let (rank, ranks) = (self.engine.rank(), self.engine.ranks());
        let mut plan = self.chunks.next(part.len(), ranks);
        if part.iter().any(|s| matches!(s, Slot::Image(_))) {
            plan.size = plan.size.max(self.chunks.small);
        }
        let owners = match plan.spread {
            Spread::Parts(_) => self.owners.in_turn(part.len()),
            _ => self.owners.whole(part.len()),
        };
        Chunk { part, first: self.len(), plan, owners, rank, start: self.owners.filled(rank) }
    }

    /// Runs one chunk, padded: what `@decode` yields.
    fn run(&mut self, chunk: &Chunk, features: &[f32], ask: Ask) -> Result<Vec<HostTensor>, Error> {
        let spec = self.spec(chunk.plan, ask.output());
        let exe = self.engine.decoder(spec)?;
        let features = spec.features.then_some(features);
        let feed = chunk.feed(&self.engine.model().config.text, features, ask)?;
        Ok(exe.run(&feed, &mut self.store)?)
    }

    /// The logits of a chunk's last token, or what there is of each token, in order.
    fn rows(&mut self, part: &[Slot], features: &[f32], ask: Ask) -> Result<Vec<f32>, Error> {
        let chunk = self.chunk(part);
        let rows = self.run(&chunk, features, ask)?.swap_remove(0).to_f32();
        let rows = if matches!(ask, Ask::Last) { rows } else { self.in_order(&chunk, rows)? };
        self.owners.add(&chunk.owners);
        Ok(rows)
    }

    /// The rows of a chunk's tokens, from the rows of each rank.
    fn in_order(&self, chunk: &Chunk, mut rows: Vec<f32>) -> Result<Vec<f32>, Error> {
        let width = rows.len() / chunk.plan.size;
        rows.truncate(chunk.read_by(chunk.rank).len() * width);
        let Spread::Parts(ranks) = chunk.plan.spread else { return Ok(rows) };
        let parts = self.engine.gathered("rows of a chunk", rows)?;
        let mut out = vec![0.0; chunk.part.len() * width];
        for (rank, part) in (0..ranks).zip(parts) {
            for (token, row) in chunk.read_by(rank).into_iter().zip(part.chunks(width)) {
                out[token * width..(token + 1) * width].copy_from_slice(row);
            }
        }
        Ok(out)
    }
}
