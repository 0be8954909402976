//! Which ranks live: what each was last heard to say, and when. Knows nothing of what carries.

use super::Lost;
use std::time::{Duration, Instant};

/// How often a rank says that it lives.
pub(super) const BEAT: Duration = Duration::from_millis(200);
/// How long a rank that was told to end listens for the others before it says who is silent: two beats.
const ASKED: Duration = Duration::from_millis(400);
/// The same after SIGCONT: more than two beats and the pauses between, and still within the second that `mpirun` lets
/// pass before it ends all.
const WOKEN: Duration = Duration::from_millis(700);
/// For how long after the signal a beat may be one that was said before, and was under way. Who lives speaks again well
/// before `ASKED` is over.
const LATE: Duration = Duration::from_millis(100);
/// How long a rank goes on listening so after SIGCONT, which may have come for another reason.
const WARY: Duration = Duration::from_secs(10);
const SIGNALLED: &str = "is silent since the launcher sent its signal";
/// The longest reason that a beat carries.
const WHY: usize = 160;
/// Bytes of a beat on the wire: what it says, the rank it blames, two counts, and why.
pub(super) const BYTES: usize = 21 + WHY;

/// How many messages a rank sent to another, and has of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub sent: u64,
    pub received: u64,
}

/// What a rank says of itself several times a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// It works or waits.
    Lives,
    /// It needs no other rank any more, and came to its end without an error.
    Ended(Counts),
    /// It gives up: this rank is gone, which may be itself.
    Failed(Lost),
}

impl Beat {
    pub fn encode(&self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        let (kind, rank, counts, why) = match self {
            Beat::Lives => (0, 0, Counts::default(), ""),
            Beat::Ended(counts) => (1, 0, *counts, ""),
            Beat::Failed(lost) => (2, lost.rank, Counts::default(), lost.why.as_str()),
        };
        out[0] = kind;
        out[1..5].copy_from_slice(&u32::try_from(rank).unwrap_or(u32::MAX).to_le_bytes());
        out[5..13].copy_from_slice(&counts.sent.to_le_bytes());
        out[13..21].copy_from_slice(&counts.received.to_le_bytes());
        let end = (0..=why.len().min(WHY)).rev().find(|n| why.is_char_boundary(*n)).unwrap_or(0);
        out[21..21 + end].copy_from_slice(&why.as_bytes()[..end]);
        out
    }

    pub fn decode(bytes: &[u8; BYTES]) -> Beat {
        let count = |at: usize| bytes[at..].first_chunk().map_or(0, |n| u64::from_le_bytes(*n));
        match bytes[0] {
            0 => Beat::Lives,
            1 => Beat::Ended(Counts { sent: count(5), received: count(13) }),
            _ => {
                let rank = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
                let why = String::from_utf8_lossy(&bytes[21..]);
                Beat::Failed(Lost { rank, why: why.trim_end_matches('\0').to_string() })
            }
        }
    }
}

/// What this rank knows of all.
#[derive(Debug)]
pub(super) struct Lives {
    rank: usize,
    silence: Duration,
    heard: Vec<Instant>,
    /// The counts with which each came to its end.
    ended: Vec<Option<Counts>>,
    failed: Option<Lost>,
    /// Since when it is asked who is silent.
    asked: Option<Instant>,
    /// Whether this process was told to end.
    told: bool,
    looked: Instant,
    /// Whether this process itself stood still for long: then others may have given it up.
    stood: bool,
}

impl Lives {
    /// All live, from now on. `silence` is how long nothing may be heard of a rank.
    pub fn new(rank: usize, ranks: usize, silence: Duration, now: Instant) -> Self {
        let (heard, ended) = (vec![now; ranks], vec![None; ranks]);
        Lives { rank, silence, heard, ended, failed: None, asked: None, told: false, looked: now, stood: false }
    }

    /// Takes down what a rank said.
    pub fn hear(&mut self, rank: usize, beat: Beat, now: Instant) {
        if let Some(heard) = self.heard.get_mut(rank) {
            *heard = now;
        }
        match beat {
            Beat::Lives => {}
            Beat::Ended(counts) => {
                if let Some(ended) = self.ended.get_mut(rank) {
                    *ended = Some(counts);
                }
            }
            // The first that gave up saw the cause; the others see its end.
            Beat::Failed(lost) => {
                self.failed.get_or_insert(lost);
            }
        }
    }

    /// What a rank had sent to this one and had of it when it came to its end, if it did.
    pub fn ended(&self, rank: usize) -> Option<Counts> {
        self.ended.get(rank).copied().flatten()
    }

    /// Whether all others came to their end.
    pub fn all_ended(&self) -> bool {
        self.ended.iter().enumerate().all(|(r, ended)| ended.is_some() || r == self.rank)
    }

    /// Whether a rank is gone, by all that was heard until now. Call it after all that came was heard.
    pub fn verdict(&mut self, now: Instant) -> Option<Lost> {
        if self.failed.is_some() {
            return self.failed.clone();
        }
        // Who did not look cannot say who was silent: this process itself was stopped, or its machine was.
        if now.duration_since(self.looked) > self.silence / 2 {
            self.heard.fill(now);
            self.stood = true;
        }
        self.looked = now;
        self.asked = self.asked.filter(|at| self.told || now.duration_since(*at) < WARY);
        let others = self.heard.iter().enumerate().filter(|(r, _)| *r != self.rank && self.ended(*r).is_none());
        let (rank, heard) = others.min_by_key(|(_, heard)| **heard)?;
        let told = self.asked.filter(|at| self.told && now.duration_since(*at) >= ASKED);
        let silent = now.duration_since(*heard);
        match told {
            Some(_) if self.stood => Some((self.rank, "stood still, and was told to end (SIGTERM)".into())),
            Some(at) if *heard < at + LATE => Some((rank, SIGNALLED.into())),
            Some(_) => Some((self.rank, "was told to end (SIGTERM)".into())),
            // Not told yet: but then there is little time.
            None if !self.stood
                && self.asked.is_some_and(|at| *heard < at + LATE && now.duration_since(at) >= WOKEN) =>
            {
                Some((rank, SIGNALLED.into()))
            }
            None => {
                (silent > self.silence).then(|| (rank, format!("has not answered for {:.1} s", silent.as_secs_f64())))
            }
        }
        .map(|(rank, why)| Lost { rank, why })
    }
}

/// What a launcher's signals say of lives; only MPI's are listened to.
#[cfg_attr(not(feature = "mpi"), allow(dead_code))]
impl Lives {
    /// The launcher sent a signal, as it does when some rank died: who stays silent from now on?
    pub fn ask(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
    }

    /// This process was told to end: it says who was silent as soon as it has listened for long enough.
    pub fn tell(&mut self, now: Instant) {
        self.ask(now);
        self.told = true;
    }

    /// Whether it is asked who is silent.
    pub fn asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether this process was told to end.
    pub fn told(&self) -> bool {
        self.told
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(5);

    /// Three ranks as rank 1 sees them, looked at every 100 ms until `until`, while `beats` says who speaks when.
    fn watch(until: u64, mut beats: impl FnMut(&mut Lives, u64, Instant)) -> (Lives, Option<(u64, Lost)>) {
        let start = Instant::now();
        let mut lives = Lives::new(1, 3, SILENCE, start);
        for ms in (0..until).step_by(100) {
            let now = start + Duration::from_millis(ms);
            beats(&mut lives, ms, now);
            if let Some(lost) = lives.verdict(now) {
                return (lives, Some((ms, lost)));
            }
        }
        (lives, None)
    }

    #[test]
    fn who_speaks_lives_and_who_is_silent_does_not() {
        let (_, none) = watch(60_000, |l, _, now| {
            l.hear(0, Beat::Lives, now);
            l.hear(2, Beat::Lives, now);
        });
        assert_eq!(none, None);
        let (_, lost) = watch(60_000, |l, ms, now| {
            l.hear(0, Beat::Lives, now);
            if ms <= 20_000 {
                l.hear(2, Beat::Lives, now);
            }
        });
        assert_eq!(lost, Some((25_100, Lost { rank: 2, why: "has not answered for 5.1 s".into() })));
    }

    #[test]
    fn who_ended_may_be_silent() {
        let (lives, lost) = watch(60_000, |l, _, now| {
            l.hear(0, Beat::Ended(Counts::default()), now);
            l.hear(2, Beat::Lives, now);
        });
        assert_eq!(lost, None);
        assert!(lives.ended(0).is_some() && lives.ended(2).is_none() && !lives.all_ended());
    }

    #[test]
    fn the_first_blame_counts() {
        let gone = Lost { rank: 2, why: "has not answered for 5.1 s".into() };
        let (_, lost) = watch(10_000, |l, ms, now| {
            if ms == 300 {
                l.hear(0, Beat::Failed(gone.clone()), now);
                l.hear(2, Beat::Failed(Lost { rank: 0, why: "failed".into() }), now);
            }
        });
        assert_eq!(lost, Some((300, gone)));
    }

    #[test]
    fn told_to_end_it_names_the_silent_rank_or_itself() {
        for (speaks, rank) in [(false, 0), (true, 1)] {
            let (_, lost) = watch(10_000, |l, ms, now| {
                if ms < 1000 || speaks {
                    l.hear(0, Beat::Lives, now);
                }
                l.hear(2, Beat::Lives, now);
                if ms >= 1000 {
                    l.tell(now);
                }
            });
            let (ms, lost) = lost.unwrap();
            assert_eq!((ms, lost.rank), (1400, rank), "{lost}");
        }
    }

    /// SIGCONT alone: it may mean a death, or that all go on.
    #[test]
    fn woken_it_names_who_is_silent_and_nobody_else() {
        for speaks in [false, true] {
            let (_, lost) = watch(60_000, |l, ms, now| {
                l.hear(2, Beat::Lives, now);
                if ms < 1000 || speaks {
                    l.hear(0, Beat::Lives, now);
                }
                if ms == 1000 {
                    l.ask(now);
                }
            });
            assert_eq!(lost.map(|(ms, lost)| (ms, lost.rank)), (!speaks).then_some((1700, 0)));
        }
    }

    /// The last beat of the dead may be taken after the launcher's signal.
    #[test]
    fn what_was_under_way_when_a_rank_died_does_not_hide_it() {
        for told in [false, true] {
            let (_, lost) = watch(10_000, |l, ms, now| {
                l.hear(2, Beat::Lives, now);
                if ms == 1000 {
                    l.ask(now);
                    l.hear(0, Beat::Lives, now + Duration::from_millis(1));
                } else if ms < 900 {
                    l.hear(0, Beat::Lives, now);
                }
                if told && ms == 1000 {
                    l.tell(now);
                }
            });
            let lost = lost.map(|(ms, lost)| (ms, lost.rank));
            assert_eq!(lost, Some((if told { 1400 } else { 1700 }, 0)));
        }
    }

    #[test]
    fn a_process_that_was_stopped_blames_nobody() {
        let start = Instant::now();
        let mut lives = Lives::new(0, 2, SILENCE, start);
        assert_eq!(lives.verdict(start + Duration::from_secs(100)), None);
        assert_eq!(lives.verdict(start + Duration::from_secs(102)), None);
        assert_eq!(lives.verdict(start + Duration::from_secs(104)), None);
        assert_eq!(lives.verdict(start + Duration::from_secs(106)).map(|l| l.rank), Some(1));
    }

    #[test]
    fn beats_come_back_as_they_were_said() {
        let long = "ä".repeat(200);
        let counts = Counts { sent: u64::MAX - 1, received: 3 };
        for beat in [Beat::Lives, Beat::Ended(counts), Beat::Failed(Lost { rank: 7, why: "ended".into() })] {
            assert_eq!(Beat::decode(&beat.encode()), beat);
        }
        let cut = Beat::Failed(Lost { rank: 70_000, why: long.chars().take(80).collect() });
        assert_eq!(Beat::decode(&Beat::Failed(Lost { rank: 70_000, why: long }).encode()), cut);
    }
}
