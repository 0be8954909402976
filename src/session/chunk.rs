//! What one run of a decoder is fed: a chunk of tokens, padded, as one rank of several reads it.

use crate::{Error, Sampling};
use omchat_codegen::{Family, Target};
use omchat_model::config::TextConfig;
use omchat_model::graph::{Draw, Output, Spread};
use omchat_model::rope::rope_table;
use omchat_model::splice::Slot;
use omchat_runtime::HostTensor;

/// How many tokens a run of a device reads: a large chunk, a small one, or one token, a decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Tokens of a large chunk.
    pub large: usize,
    /// Tokens of a small one.
    pub small: usize,
    /// Tokens left for which a large chunk is taken, padded if need be.
    pub worth: usize,
}

impl Chunks {
    /// A device's. A run reads all weights once: a card needs thousands of tokens to be busy in that time, and a padded
    /// large chunk takes it less than several small ones; a CPU is busy with few.
    pub fn of(target: &Target) -> Chunks {
        match target.family {
            Family::Cuda => Chunks { large: 2048, small: 128, worth: 1024 },
            Family::Cpu | Family::Wgpu => Chunks { large: 256, small: 32, worth: 256 },
        }
    }

    /// The three, largest first.
    pub fn sizes(&self) -> [usize; 3] {
        [self.large, self.small, 1]
    }

    /// Slots of a cache with room for that many tokens and a padded chunk behind them.
    pub fn slots(&self, tokens: usize) -> usize {
        tokens.next_multiple_of(self.small) + self.large
    }

    /// The next run, of what is left to read.
    ///
    /// One rank takes a large chunk where that is worth it, else the small one that is full, and pads what is left over.
    /// Of several ranks each takes such a chunk of its own, padded where that saves a run; what one small chunk holds they
    /// read all together.
    pub(super) fn next(self, left: usize, ranks: usize) -> Plan {
        let spread = |parts| match (ranks, parts) {
            (1, _) => Spread::Alone,
            (n, true) => Spread::Parts(n),
            (n, false) => Spread::Same(n),
        };
        let (size, parts) = match left {
            n if n >= self.worth * ranks => (self.large, true),
            n if n > self.small && (ranks > 1 || n >= self.small) => (self.small, true),
            n if n > 1 => (self.small, false),
            _ => (1, false),
        };
        let room = if parts { size * ranks } else { size };
        Plan { size, take: left.min(room), spread: spread(parts) }
    }
}

/// How many tokens a run reads, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Tokens that a rank reads, padding included.
    pub size: usize,
    /// Tokens that are read, by all ranks together.
    pub take: usize,
    pub spread: Spread,
}

/// What is asked of a run.
#[derive(Clone, Copy)]
pub(super) enum Ask<'a> {
    /// Logits of the last token.
    Last,
    /// The likeliest id after the last token.
    Likeliest,
    /// An id drawn after the last token, by that chance in [0, 1).
    Drawn(&'a Sampling, f32),
    /// Logits of all.
    All,
    /// Losses against the label of each token.
    Losses(&'a [i32]),
}

impl Ask<'_> {
    /// What the program yields.
    pub fn output(self) -> Output {
        match self {
            Ask::Last => Output::Last,
            Ask::Likeliest => Output::Likeliest,
            Ask::Drawn(how, _) => Output::Drawn(Draw { top_k: how.top_k, top_p: how.top_p < 1.0 }),
            Ask::All => Output::All,
            Ask::Losses(_) => Output::Loss,
        }
    }
}

/// A chunk as this rank reads it.
pub(super) struct Chunk<'a> {
    pub part: &'a [Slot],
    /// The stream index of the first token.
    pub first: usize,
    pub plan: Plan,
    /// Who keeps each token.
    pub owners: Vec<u32>,
    pub rank: usize,
    /// The first slot that this rank writes.
    pub start: usize,
}

impl Chunk<'_> {
    /// Which tokens of the chunk a rank reads.
    pub fn read_by(&self, rank: usize) -> Vec<usize> {
        let own = |i: &usize| !matches!(self.plan.spread, Spread::Parts(_)) || self.owners[*i] as usize == rank;
        (0..self.part.len()).filter(own).collect()
    }

    /// A number of each of those tokens, and of the padding behind them.
    fn padded(&self, of: &[usize], number: &dyn Fn(usize) -> i32, rest: i32) -> Vec<i32> {
        of.iter().map(|i| number(*i)).chain(std::iter::repeat(rest)).take(self.plan.size).collect()
    }

    /// The inputs of a run.
    ///
    /// Errors: a feature row that is not there.
    pub fn feed(
        &self,
        t: &TextConfig,
        features: Option<&[f32]>,
        ask: Ask,
    ) -> Result<Vec<(&'static str, HostTensor)>, Error> {
        let size = self.plan.size;
        let mine = self.read_by(self.rank);
        let index = |i: usize| (self.first + i) as i32;
        let ids = self.padded(
            &mine,
            &|i| match self.part[i] {
                Slot::Text(id) => id as i32,
                Slot::Image(_) => -1,
            },
            -1,
        );
        let positions: Vec<u32> = self.padded(&mine, &index, 0).iter().map(|p| *p as u32).collect();
        let (cos, sin) = rope_table(&positions, t.head_dim, t.rope_theta);
        let kept = |i: usize| if self.owners[i] as usize == self.rank { index(i) } else { i32::MAX };
        let (lo, hi) = self.intervals(&index);
        let pairs = t.head_dim / 2;
        let mut feed = vec![
            ("ids", HostTensor::i32([size], &ids)),
            ("cos", HostTensor::f32([size, pairs], &cos)),
            ("sin", HostTensor::f32([size, pairs], &sin)),
            ("lo", lo),
            ("hi", hi),
            ("slots", HostTensor::i32([1, size], &self.padded(&mine, &kept, i32::MAX))),
            ("start", HostTensor::i32([], &[self.start as i32])),
        ];
        if let Some(features) = features {
            let rows = rows_of(mine.iter().map(|i| self.part[*i]), size, t.hidden, features)?;
            feed.push(("features", HostTensor::f32([size, t.hidden], &rows)));
        }
        match ask {
            // The row of the last token, on the rank that reads it.
            Ask::Last | Ask::Likeliest | Ask::Drawn(..) => {
                let row = mine.iter().position(|i| *i + 1 == self.part.len()).map_or(-1, |row| row as i32);
                feed.push(("last", HostTensor::i32([1], &[row])));
            }
            Ask::Losses(labels) => {
                let label = |i: usize| labels.get(i).copied().unwrap_or(-100);
                feed.push(("labels", HostTensor::i32([size], &self.padded(&mine, &label, -100))));
            }
            Ask::All => {}
        }
        if let Ask::Drawn(how, chance) = ask {
            feed.push(("u", HostTensor::f32([1], &[chance])));
            let numbers = [("temperature", how.temperature), ("min_p", how.min_p), ("top_p", how.top_p)];
            feed.extend(numbers.map(|(name, x)| (name, HostTensor::f32([], &[x]))));
        }
        Ok(feed)
    }

    /// What the tokens of this rank see, and behind them those of the ranks to the left, where each reads its own.
    /// Padding sees nothing: its interval is empty.
    fn intervals(&self, index: &dyn Fn(usize) -> i32) -> (HostTensor, HostTensor) {
        let ranks = if let Spread::Parts(n) = self.plan.spread { n } else { 1 };
        let (mut lo, mut hi) = (vec![], vec![]);
        for hop in 0..ranks {
            let tokens = self.read_by((self.rank + ranks - hop) % ranks);
            lo.extend(self.padded(&tokens, &|_| 0, 1));
            hi.extend(self.padded(&tokens, index, 0));
        }
        let shape = match self.plan.spread {
            Spread::Parts(n) => vec![n, 1, self.plan.size],
            _ => vec![1, self.plan.size],
        };
        (HostTensor::i32(shape.clone(), &lo), HostTensor::i32(shape, &hi))
    }
}

/// The feature row of each position; zeros where text or padding stands.
fn rows_of(slots: impl Iterator<Item = Slot>, size: usize, width: usize, features: &[f32]) -> Result<Vec<f32>, Error> {
    let mut out = vec![0.0; size * width];
    for (i, slot) in slots.enumerate() {
        if let Slot::Image(row) = slot {
            let from = row as usize * width;
            let have = features
                .get(from..from + width)
                .ok_or_else(|| Error::Input(format!("feature row {row} of {}", features.len() / width.max(1))))?;
            out[i * width..(i + 1) * width].copy_from_slice(have);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Chunks = Chunks { large: 256, small: 32, worth: 256 };

    #[test]
    fn one_rank_reads_the_largest_chunk_that_is_full() {
        for (left, size, take) in [
            (1, 1, 1),
            (2, 32, 2),
            (31, 32, 31),
            (32, 32, 32),
            (33, 32, 32),
            (255, 32, 32),
            (256, 256, 256),
            (999, 256, 256),
        ] {
            assert_eq!(CPU.next(left, 1), Plan { size, take, spread: Spread::Alone }, "{left} left");
        }
    }

    #[test]
    fn a_card_pads_what_would_take_many_runs() {
        let card = Chunks::of(&Target::cuda(90));
        for (left, size, take) in
            [(2, 128, 2), (129, 128, 128), (1023, 128, 128), (1024, 2048, 1024), (2047, 2048, 2047), (9000, 2048, 2048)]
        {
            assert_eq!(card.next(left, 1), Plan { size, take, spread: Spread::Alone }, "{left} left");
        }
        assert_eq!(card.next(3000, 2), Plan { size: 2048, take: 3000, spread: Spread::Parts(2) });
        assert_eq!((card.slots(5), Chunks::of(&Target::cpu(2))), (2176, CPU));
    }

    #[test]
    fn several_ranks_read_what_is_long_in_parts() {
        let (same, parts) = (Spread::Same(3), Spread::Parts(3));
        for (left, size, take, spread) in [
            (1, 1, 1, same),
            (2, 32, 2, same),
            (32, 32, 32, same),
            (33, 32, 33, parts),
            (96, 32, 96, parts),
            (97, 32, 96, parts),
            (767, 32, 96, parts),
            (768, 256, 768, parts),
            (5000, 256, 768, parts),
        ] {
            assert_eq!(CPU.next(left, 3), Plan { size, take, spread }, "{left} left");
        }
    }
}
