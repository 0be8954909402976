//! Ranks as processes, carried by MPI.
//!
//! Nothing here waits inside of MPI: sends and receives are started and asked after, so that a rank that dies is seen by
//! its silence. Each rank says several times a second that it lives, at its end that it ended, and where it gives up
//! whom it blames. MPI itself is left only when all ranks came to their end; else it would wait for the dead.

mod help;
mod parcel;
mod raw;
mod signal;

use super::lives::{BEAT, BYTES, Beat, Counts, Lives};
use super::wait::Wait;
use super::{Lost, Transport};
use mpi::Threading;
use mpi::environment::Universe;
use mpi::traits::Communicator;
use parcel::{Receiving, Sending};
use raw::{Fault, Pending};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

const TAG_BEAT: i32 = 13;
/// How often a wait looks after beats: a look costs about a microsecond.
const LOOK: Duration = Duration::from_millis(5);
/// How long a rank that gives up tries to tell the others.
const TELL: Duration = Duration::from_millis(100);

/// What the process's one `Mpi` does, for `abort`, which any thread may call.
static STATE: AtomicU8 = AtomicU8::new(NONE);
const NONE: u8 = 0;
const RUNS: u8 = 1;
const GIVE_UP: u8 = 2;
const SILENT: u8 = 3;

/// Why MPI does not start.
#[derive(Debug, thiserror::Error)]
pub enum MpiError {
    /// A process starts MPI once.
    #[error("MPI was started before in this process: one transport a process")]
    Again,
    /// The library allows calls from the main thread only.
    #[error("this MPI library allows calls from the main thread only ({0:?}): build it with thread support")]
    Threads(Threading),
    /// A call failed.
    #[error("MPI does not start: {0}")]
    Call(String),
}

/// A rank of an MPI run. Made, used and dropped on one thread.
///
/// Where all is well, `leave` (or dropping it) waits for the others to leave, and finalizes MPI. After a [`Lost`], or in
/// a panic, it tells the others and never calls MPI again: the process must then end by [`exit`](super::exit), since
/// MPI's own end would wait for the rank that is gone.
pub struct Mpi {
    universe: ManuallyDrop<Universe>,
    rank: usize,
    ranks: usize,
    lives: Lives,
    beats: Vec<Option<Pending>>,
    /// What the beat under way to each rank reads. Written only when none is, and never longer or shorter.
    said: Vec<[u8; BYTES]>,
    /// The messages exchanged with each rank.
    counts: Vec<Counts>,
    leaves: bool,
    beaten: Option<Instant>,
    looked: Instant,
    own: VecDeque<Vec<u8>>,
    lost: Option<Lost>,
    /// One thread owns it.
    thread: PhantomData<*const ()>,
}

impl Mpi {
    /// How long nothing may be heard of a rank. A rank that lives speaks five times a second, whatever it computes; what
    /// delays it are full memory and busy cores, by a second or two.
    pub const SILENCE: Duration = Duration::from_secs(5);

    /// The library that this is linked with, by its own words: `Open MPI v4.1.4`, `MPICH Version: 4.0.2`. It may be asked
    /// before MPI starts.
    pub fn library() -> String {
        let said = mpi::environment::library_version().unwrap_or_default();
        let first = said.split(['\n', ',']).next().unwrap_or_default();
        first.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Starts MPI: every rank of the run must. Ranks that are silent for longer than `silence` count as lost
    /// ([`Mpi::SILENCE`], less in tests).
    pub fn start(silence: Duration) -> Result<Mpi, MpiError> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized).ok_or(MpiError::Again)?;
        if threading < Threading::Serialized {
            return Err(MpiError::Threads(threading));
        }
        raw::report_errors().map_err(|Fault(text)| MpiError::Call(text))?;
        help::name_only();
        signal::catch();
        let world = universe.world();
        let number = |n: i32| usize::try_from(n).map_err(|_| MpiError::Call(format!("its rank or size is {n}")));
        let (rank, ranks) = (number(world.rank())?, number(world.size())?);
        let now = Instant::now();
        let mut mpi = Mpi {
            universe: ManuallyDrop::new(universe),
            rank,
            ranks,
            lives: Lives::new(rank, ranks, silence, now),
            beats: (0..ranks).map(|_| None).collect(),
            said: vec![Beat::Lives.encode(); ranks],
            counts: vec![Counts::default(); ranks],
            leaves: false,
            beaten: None,
            looked: now,
            own: VecDeque::new(),
            lost: None,
            thread: PhantomData,
        };
        STATE.store(RUNS, Ordering::SeqCst);
        mpi.beat(now).map_err(|lost| MpiError::Call(lost.to_string()))?;
        Ok(mpi)
    }

    fn end(&mut self) -> Result<(), Lost> {
        self.alive()?;
        let done = self.farewell();
        self.settle(done)?;
        STATE.store(SILENT, Ordering::SeqCst);
        self.lost = Some(Lost { rank: self.rank, why: "ended".into() });
        // SAFETY: dropped once: `lost` is set, after which nothing touches it.
        unsafe { ManuallyDrop::drop(&mut self.universe) };
        Ok(())
    }

    fn farewell(&mut self) -> Result<(), Lost> {
        self.quiet(None)?;
        self.leaves = true;
        self.beaten = None;
        let mut wait = Wait::new();
        // This rank says so even where it knows of all others' end already: they wait for it.
        self.look()?;
        while !self.lives.all_ended() {
            wait.pause(false);
            self.look()?;
        }
        // All have ended, and know it of this rank once these have left.
        self.quiet(None)
    }

    /// Waits until no beat is under way, or for as long as given.
    fn quiet(&mut self, most: Option<Duration>) -> Result<(), Lost> {
        let start = Instant::now();
        let mut wait = Wait::new();
        loop {
            let mut left = false;
            for (rank, slot) in self.beats.iter_mut().enumerate() {
                if let Some(pending) = slot {
                    match pending.done() {
                        Ok(false) => left = true,
                        Ok(true) => *slot = None,
                        Err(fault) => return Err(unreachable(rank, &fault)),
                    }
                }
            }
            if !left || most.is_some_and(|m| start.elapsed() > m) {
                return Ok(());
            }
            if most.is_none() {
                self.hear()?;
                if let Some(lost) = self.lives.verdict(Instant::now()) {
                    return Err(lost);
                }
            }
            wait.pause(false);
        }
    }

    /// The rank that was lost before, if any.
    fn alive(&self) -> Result<(), Lost> {
        self.lost.clone().map_or(Ok(()), Err)
    }

    /// Tells the others of a loss, and falls silent: from here on MPI is not called.
    fn settle<T>(&mut self, result: Result<T, Lost>) -> Result<T, Lost> {
        if let Err(lost) = &result {
            // A beat under way reads what was said, which stays, and the news has bytes of its own, which stay for good.
            let news: &'static [u8; BYTES] = Box::leak(Box::new(Beat::Failed(lost.clone()).encode()));
            self.beats.iter_mut().for_each(|slot| *slot = None);
            std::mem::forget(std::mem::take(&mut self.said));
            for rank in (0..self.ranks).filter(|r| *r != self.rank && *r != lost.rank && self.lives.ended(*r).is_none())
            {
                // SAFETY: the bytes stay for good.
                self.beats[rank] = unsafe { raw::send(news, rank, TAG_BEAT) }.ok();
            }
            let _ = self.quiet(Some(TELL));
            self.lost = Some(lost.clone());
            STATE.store(SILENT, Ordering::SeqCst);
        }
        result
    }

    /// Takes what the others said and says that this rank lives, when it is time. Yields a rank that is gone.
    fn look(&mut self) -> Result<(), Lost> {
        let now = Instant::now();
        if now.duration_since(self.looked) < LOOK && self.beaten.is_some() {
            return Ok(());
        }
        self.looked = now;
        if STATE.load(Ordering::SeqCst) == GIVE_UP {
            return Err(Lost { rank: self.rank, why: "ended with an error".into() });
        }
        let (woken, told) = (signal::woken(), signal::told() && !self.lives.told());
        if woken || told {
            // What was said before counts as before.
            self.hear()?;
            self.beaten = None;
        }
        match told {
            true => self.lives.tell(Instant::now()),
            false if woken => self.lives.ask(Instant::now()),
            false => {}
        }
        // All were sent the signal, and all speak more often: the time is short.
        let due = if self.lives.asked() { BEAT / 4 } else { BEAT };
        if self.beaten.is_none_or(|at| now.duration_since(at) >= due) {
            self.beat(now)?;
        }
        self.hear()?;
        self.lives.verdict(now).map_or(Ok(()), Err)
    }

    fn hear(&mut self) -> Result<(), Lost> {
        let mut beat = [0; BYTES];
        // A look at what is there comes before Open MPI fetches what came since: only the second that finds nothing says
        // that nothing came.
        let mut empty = 0;
        while empty < 2 {
            match raw::take(&mut beat, TAG_BEAT).map_err(|fault| unreachable(self.rank, &fault))? {
                Some(rank) => {
                    self.lives.hear(rank, Beat::decode(&beat), Instant::now());
                    empty = 0;
                }
                None => empty += 1,
            }
        }
        Ok(())
    }

    fn beat(&mut self, now: Instant) -> Result<(), Lost> {
        self.beaten = Some(now);
        for (rank, slot) in self.beats.iter_mut().enumerate().filter(|(r, _)| *r != self.rank) {
            let busy = match slot {
                Some(pending) => !pending.done().map_err(|fault| unreachable(rank, &fault))?,
                None => false,
            };
            // A rank that takes no beats gets no more of them.
            if !busy {
                let (Some(said), Some(counts)) = (self.said.get_mut(rank), self.counts.get(rank)) else { continue };
                *said = if self.leaves { Beat::Ended(*counts) } else { Beat::Lives }.encode();
                // SAFETY: it is written only when no beat to this rank is under way, and stays as long as one is.
                *slot = Some(unsafe { raw::send(&said[..], rank, TAG_BEAT) }.map_err(|f| unreachable(rank, &f))?);
            }
        }
        Ok(())
    }

    /// Carries two messages to their ends.
    fn carry(&mut self, out: &mut Option<Sending>, into: &mut Option<Receiving>) -> Result<(), Lost> {
        let mut wait = Wait::new();
        loop {
            self.look()?;
            let mut moved = false;
            if let Some(sending) = out {
                moved |= sending.step().map_err(|fault| unreachable(sending.peer(), &fault))?;
            }
            if let Some(receiving) = into {
                moved |= receiving.step().map_err(|fault| unreachable(receiving.peer(), &fault))?;
            }
            if out.as_ref().is_none_or(Sending::done) && into.as_ref().is_none_or(Receiving::done) {
                return Ok(());
            }
            if moved {
                wait = Wait::new();
            }
            let unmet = |sending: &Sending| self.unmet(sending.peer(), |theirs, ours| theirs.received <= ours.sent);
            if let Some(lost) = out.as_ref().filter(|s| !s.done()).and_then(unmet) {
                return Err(lost);
            }
            let unmet =
                |receiving: &Receiving| self.unmet(receiving.peer(), |theirs, ours| theirs.sent <= ours.received);
            if let Some(lost) = into.as_ref().filter(|r| !r.done()).and_then(unmet) {
                return Err(lost);
            }
            let flows = out.as_ref().is_some_and(Sending::flows) || into.as_ref().is_some_and(Receiving::flows);
            wait.pause(flows);
        }
    }

    /// A rank that came to its end without the message at hand. News of the end may overtake a message's last bytes, so
    /// messages are counted.
    fn unmet(&self, rank: usize, lacks: impl Fn(Counts, Counts) -> bool) -> Option<Lost> {
        let (theirs, ours) = (self.lives.ended(rank)?, *self.counts.get(rank)?);
        lacks(theirs, ours).then(|| Lost { rank, why: "ended".into() })
    }

    fn known(&self, rank: Option<usize>) -> Result<(), Lost> {
        match rank.filter(|r| *r >= self.ranks) {
            Some(rank) => Err(Lost { rank, why: format!("is none of the {} ranks", self.ranks) }),
            None => Ok(()),
        }
    }
}

impl Transport for Mpi {
    fn name(&self) -> &'static str {
        "mpi"
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn exchange(&mut self, to: Option<usize>, send: &[u8], from: Option<usize>) -> Result<Vec<u8>, Lost> {
        self.alive()?;
        self.known(to)?;
        self.known(from)?;
        if to == Some(self.rank) {
            self.own.push_back(send.to_vec());
        }
        let mut out = to.filter(|r| *r != self.rank).map(|r| Sending::new(r, send));
        let mut into = from.filter(|r| *r != self.rank).map(Receiving::new);
        let carried = self.carry(&mut out, &mut into);
        if let Err(lost) = self.settle(carried) {
            // MPI may still hold their addresses.
            std::mem::forget((out, into));
            return Err(lost);
        }
        if let Some(counts) = out.and_then(|s| self.counts.get_mut(s.peer())) {
            counts.sent += 1;
        }
        if let Some(counts) = into.as_ref().and_then(|r| self.counts.get_mut(r.peer())) {
            counts.received += 1;
        }
        match (into, from) {
            (Some(receiving), _) => Ok(receiving.bytes()),
            (None, Some(rank)) => {
                let why = "waits for what it did not send to itself";
                self.own.pop_front().ok_or(Lost { rank, why: why.into() })
            }
            (None, None) => Ok(vec![]),
        }
    }

    fn idle(&mut self) -> Result<(), Lost> {
        self.alive()?;
        let looked = self.look();
        self.settle(looked)
    }

    /// Finalizes MPI too; after it nothing can be exchanged.
    fn leave(&mut self) -> Result<(), Lost> {
        self.end()
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        if self.lost.is_some() {
            return;
        }
        let rank = self.rank;
        let done =
            if std::thread::panicking() { self.settle(Err(Lost { rank, why: "panicked".into() })) } else { self.end() };
        // Nobody is left to be given it.
        if let Err(lost) = done {
            eprintln!("rank {rank}: at its end: {lost}");
        }
    }
}

/// Ends the process with an exit code, after an error was printed: tells the other ranks, then exits at once, without
/// MPI's own end, which would wait for ranks that are gone. Any thread may call it.
pub(super) fn abort(code: i32) -> ! {
    use std::io::Write;
    let start = Instant::now();
    if STATE.compare_exchange(RUNS, GIVE_UP, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
        while STATE.load(Ordering::SeqCst) == GIVE_UP && start.elapsed() < 2 * BEAT + TELL {
            std::thread::sleep(LOOK);
        }
    }
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process; what the system must do at its end it does.
    unsafe { libc::_exit(code) }
}

fn unreachable(rank: usize, fault: &Fault) -> Lost {
    Lost { rank, why: format!("cannot be reached: {}", fault.0) }
}
