//! Ranks as processes, carried by TCP: a socket between every two, no library, no launcher of its own.
//!
//! Nothing here waits inside of a call: sockets are written and read as far as they go. Each rank says several times a
//! second that it lives, at its end that it ended, and where it gives up whom it blames. A socket that closes without
//! that tells of a process that died, at once; one that is silent tells of one that stands still.
//!
//! There is no encryption, and nobody is asked who they are: for networks that are trusted.

mod door;
mod error;
mod hello;
mod join;
mod mail;
mod peer;

use super::lives::{BEAT, Beat, Counts, Lives};
use super::wait::Wait;
use super::{Lost, Transport};
pub use error::TcpError;
use peer::{PART, Peer};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How often a wait looks after all sockets.
const LOOK: Duration = Duration::from_millis(5);
/// How long a rank that ends stays to have its last words read.
const TELL: Duration = Duration::from_millis(500);
/// How long a rank that exchanges nothing takes in what comes, at a time.
const TAKE: Duration = Duration::from_millis(50);

/// How many ranks of this process are among others, and whether they are to give up: for `give_up`, which any thread
/// may call.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
static GIVE_UP: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread is one that exchanges: nobody else looks for it.
    static EXCHANGES: Cell<bool> = const { Cell::new(false) };
}

/// Where the ranks of a run meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendezvous {
    /// This rank, from 0.
    pub rank: usize,
    /// How many ranks there are.
    pub ranks: usize,
    /// A name or an address of rank 0's machine, at which rank 0 listens: `MASTER_ADDR`.
    pub host: String,
    /// Its port there: `MASTER_PORT`.
    pub port: u16,
    /// How long ranks wait for each other.
    pub patience: Duration,
    /// How long nothing may be heard of a rank afterwards.
    pub silence: Duration,
}

impl Rendezvous {
    /// How long ranks wait for each other, unless told otherwise: the last of a large run may start a while after the first.
    pub const PATIENCE: Duration = Duration::from_secs(60);

    /// A meeting with the patience and the silence that are usual.
    pub fn new(rank: usize, ranks: usize, host: &str, port: u16) -> Rendezvous {
        Rendezvous { rank, ranks, host: host.into(), port, patience: Self::PATIENCE, silence: Tcp::SILENCE }
    }
}

/// A rank among processes on any machines that reach each other. One thread calls it.
///
/// `leave` (or dropping it) waits for the others to leave. After a [`Lost`], or in a panic, it tells the others and
/// closes its sockets.
pub struct Tcp {
    rank: usize,
    /// The socket to each other rank.
    peers: Vec<Option<Peer>>,
    lives: Lives,
    /// The messages exchanged with each rank.
    counts: Vec<Counts>,
    scratch: Vec<u8>,
    beaten: Option<Instant>,
    looked: Instant,
    own: VecDeque<Vec<u8>>,
    lost: Option<Lost>,
}

impl Tcp {
    /// How long nothing may be heard of a rank. A rank that lives speaks five times a second, whatever it computes; what
    /// delays it are full memory and busy cores, by a second or two.
    pub const SILENCE: Duration = Duration::from_secs(5);

    /// Meets the other ranks: every rank of the run must.
    ///
    /// Errors: who did not come, or does not fit.
    pub fn join(meeting: &Rendezvous) -> Result<Tcp, TcpError> {
        let streams = join::meet(meeting)?;
        let (rank, ranks, now) = (meeting.rank, meeting.ranks, Instant::now());
        RUNNING.fetch_add(1, Ordering::SeqCst);
        EXCHANGES.set(true);
        Ok(Tcp {
            rank,
            peers: streams.into_iter().map(|s| s.map(Peer::new)).collect(),
            lives: Lives::new(rank, ranks, meeting.silence, now),
            counts: vec![Counts::default(); ranks],
            scratch: vec![0; PART],
            beaten: None,
            looked: now,
            own: VecDeque::new(),
            lost: None,
        })
    }

    fn others(&mut self) -> impl Iterator<Item = (usize, &mut Peer)> {
        self.peers.iter_mut().enumerate().filter_map(|(rank, peer)| Some((rank, peer.as_mut()?)))
    }

    /// The rank that was lost before, if any.
    fn alive(&self) -> Result<(), Lost> {
        self.lost.clone().map_or(Ok(()), Err)
    }

    fn known(&self, rank: Option<usize>) -> Result<(), Lost> {
        match rank.filter(|r| *r >= self.peers.len()) {
            Some(rank) => Err(Lost { rank, why: format!("is none of the {} ranks", self.peers.len()) }),
            None => Ok(()),
        }
    }

    /// Takes what the others said, and says that this rank lives when it is time. Yields whether anything came.
    ///
    /// Errors: a rank is gone.
    fn look(&mut self) -> Result<bool, Lost> {
        let now = Instant::now();
        self.looked = now;
        if GIVE_UP.load(Ordering::SeqCst) {
            return Err(Lost { rank: self.rank, why: "ended with an error".into() });
        }
        let due = self.beaten.is_none_or(|at| now.duration_since(at) >= BEAT);
        if due {
            self.beaten = Some(now);
        }
        for (_, peer) in self.others() {
            // A rank that takes no beats gets no more of them, and bytes of a message say as much.
            if due && peer.sent() {
                peer.say(&Beat::Lives);
            }
            peer.send(&mut &[][..]);
        }
        let mut moved = false;
        for rank in 0..self.peers.len() {
            moved |= self.hear(rank, now);
        }
        if let Some(lost) = self.lives.verdict(Instant::now()) {
            return Err(lost);
        }
        let gone = self.peers.iter().enumerate().find_map(|(rank, peer)| {
            let why = peer.as_ref()?.gone.clone()?;
            self.lives.ended(rank).is_none().then_some(Lost { rank, why })
        });
        gone.map_or(Ok(moved), Err)
    }

    /// Takes what a rank said. Yields whether it said anything.
    fn hear(&mut self, rank: usize, now: Instant) -> bool {
        let Some(Some(peer)) = self.peers.get_mut(rank) else { return false };
        let moved = peer.receive(&mut self.scratch);
        if moved {
            self.lives.hear(rank, Beat::Lives, now);
        }
        for beat in peer.beats.drain(..) {
            self.lives.hear(rank, beat, now);
        }
        moved
    }

    /// Carries two messages to their ends.
    fn carry(&mut self, to: Option<usize>, mut rest: &[u8], from: Option<usize>) -> Result<Option<Vec<u8>>, Lost> {
        let ended = |rank| Lost { rank, why: "ended".into() };
        if let Some(Some(peer)) = to.and_then(|r| self.peers.get_mut(r)) {
            peer.begin(rest.len());
        }
        let (mut to, mut got, mut wait) = (to, None, Wait::new());
        loop {
            if self.looked.elapsed() >= LOOK {
                self.look()?;
            }
            let mut moved = false;
            if let (Some(rank), Some(Some(peer))) = (to, to.and_then(|r| self.peers.get_mut(r))) {
                moved |= peer.send(&mut rest);
                if rest.is_empty() && peer.sent() {
                    to = None;
                } else if self.lives.ended(rank).is_some() {
                    return Err(ended(rank));
                }
            }
            if let Some(rank) = from.filter(|_| got.is_none()) {
                got = self.taken(rank);
                if got.is_none() {
                    moved |= self.hear(rank, Instant::now());
                    got = self.taken(rank);
                }
                if got.is_none() && self.lives.ended(rank).is_some() {
                    return Err(ended(rank));
                }
            }
            if to.is_none() && (from.is_none() || got.is_some()) {
                return Ok(got);
            }
            if moved {
                wait = Wait::new();
            }
            wait.pause(false);
        }
    }

    /// The next message of a rank that is here.
    fn taken(&mut self, rank: usize) -> Option<Vec<u8>> {
        self.peers.get_mut(rank)?.as_mut()?.messages.pop_front()
    }

    /// Tells the others of a loss, and closes.
    fn settle<T>(&mut self, result: Result<T, Lost>) -> Result<T, Lost> {
        if let Err(lost) = &result {
            for (_, peer) in self.others() {
                peer.abandon();
                peer.say(&Beat::Failed(lost.clone()));
            }
            self.close(lost.clone());
        }
        result
    }

    /// Waits until the others have read all that was said and closed too, for a while; a rank that is lost is not waited
    /// for.
    fn close(&mut self, lost: Lost) {
        let start = Instant::now();
        let mut wait = Wait::new();
        let gone = lost.rank;
        self.lost = Some(lost);
        let mut scratch = std::mem::take(&mut self.scratch);
        loop {
            let mut left = false;
            for (rank, peer) in self.others() {
                peer.send(&mut &[][..]);
                if peer.sent() {
                    peer.finish();
                }
                peer.receive(&mut scratch);
                peer.messages.clear();
                left |= peer.gone.is_none() && rank != gone;
            }
            if !left || start.elapsed() > TELL {
                break;
            }
            wait.pause(false);
        }
        self.peers.iter_mut().for_each(|peer| *peer = None);
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    }

    fn end(&mut self) -> Result<(), Lost> {
        self.alive()?;
        let done = self.farewell();
        self.settle(done)?;
        self.close(Lost { rank: self.rank, why: "ended".into() });
        Ok(())
    }

    /// Says that this rank came to its end, and waits until all have.
    fn farewell(&mut self) -> Result<(), Lost> {
        let counts = self.counts.clone();
        for (rank, peer) in self.others() {
            peer.say(&Beat::Ended(counts.get(rank).copied().unwrap_or_default()));
        }
        let mut wait = Wait::new();
        self.look()?;
        while !self.lives.all_ended() || !self.others().all(|(_, peer)| peer.sent() || peer.gone.is_some()) {
            wait.pause(false);
            if self.looked.elapsed() >= LOOK {
                self.look()?;
            }
        }
        // Sockets take a message whether or not its receiver ever asks for it.
        let left = counts.iter().enumerate().find(|(rank, ours)| {
            self.lives.ended(*rank).is_some_and(|theirs| theirs.received < ours.sent && *rank != self.rank)
        });
        match left {
            Some((rank, _)) => Err(Lost { rank, why: "ended before it took all that was sent to it".into() }),
            None => Ok(()),
        }
    }
}

impl Transport for Tcp {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.peers.len()
    }

    fn exchange(&mut self, to: Option<usize>, send: &[u8], from: Option<usize>) -> Result<Vec<u8>, Lost> {
        self.alive()?;
        self.known(to)?;
        self.known(from)?;
        if to == Some(self.rank) {
            self.own.push_back(send.to_vec());
        }
        let other = |rank: &usize| *rank != self.rank;
        let (out, into) = (to.filter(other), from.filter(other));
        let carried = self.carry(out, send, into);
        let got = self.settle(carried)?;
        if let Some(counts) = out.and_then(|r| self.counts.get_mut(r)) {
            counts.sent += 1;
        }
        if let Some(counts) = into.and_then(|r| self.counts.get_mut(r)) {
            counts.received += 1;
        }
        match (got, from) {
            (Some(got), _) => Ok(got),
            (None, Some(rank)) => {
                let why = "waits for what it did not send to itself";
                self.own.pop_front().ok_or(Lost { rank, why: why.into() })
            }
            (None, None) => Ok(vec![]),
        }
    }

    fn idle(&mut self) -> Result<(), Lost> {
        self.alive()?;
        let start = Instant::now();
        loop {
            let looked = self.look();
            if !self.settle(looked)? || start.elapsed() > TAKE {
                return Ok(());
            }
        }
    }

    /// Closes too; after it nothing can be exchanged.
    fn leave(&mut self) -> Result<(), Lost> {
        self.end()
    }
}

impl Drop for Tcp {
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

/// Has the ranks of this process tell the others that it ends with an error, and waits for that, for a moment. Any
/// thread may call it; on the one that exchanges it does nothing, and the others see the sockets close.
pub(super) fn give_up() {
    let start = Instant::now();
    GIVE_UP.store(true, Ordering::SeqCst);
    while !EXCHANGES.get() && RUNNING.load(Ordering::SeqCst) > 0 && start.elapsed() < 2 * BEAT + TELL {
        std::thread::sleep(LOOK);
    }
}
