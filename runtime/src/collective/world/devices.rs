//! Collectives of device memory: ranks compare where they are over the transport, the bytes go over a fabric.
//!
//! Nothing here waits inside of a call: while a fabric works, this rank goes on telling the others that it lives, and
//! hears of their end; then it gives the communicator up.

use super::{Meeting, World};
use crate::collective::fabric::{Fabric, Fault, Held, Span, lengths, queue};
use crate::collective::wait::Wait;
use crate::collective::{Failure, Lost, Transport};
use omchat_codegen::{Collective, Family, How};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a wait looks after the other ranks.
const LOOK: Duration = Duration::from_millis(5);
/// How long a fabric may take to join all ranks.
const JOIN: Duration = Duration::from_secs(120);
/// How long after a fabric's fault the transport is asked who was lost: silence is noticed after 5 s.
const BLAME: Duration = Duration::from_secs(6);

/// A question to a fabric.
type Ask = fn(&mut dyn Fabric) -> Result<bool, Fault>;

/// How ranks exchange what is on devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exchange {
    /// From device to device where every rank can, else through the host.
    #[default]
    Auto,
    /// Through the host.
    Host,
    /// From device to device, or not at all.
    Nccl,
}

impl std::str::FromStr for Exchange {
    type Err = String;

    fn from_str(text: &str) -> Result<Exchange, String> {
        match text {
            "auto" => Ok(Exchange::Auto),
            "host" => Ok(Exchange::Host),
            "nccl" => Ok(Exchange::Nccl),
            other => Err(format!("`{other}` is no way to exchange; there are auto, host and nccl")),
        }
    }
}

/// What carries between devices of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// Its name and version.
    pub name: String,
    /// The devices whose memory it reaches.
    pub family: Family,
}

/// A collective's operand and the place of its result, on a device.
pub struct Errand {
    /// The operand: as long as the collective says.
    pub operand: Held,
    /// Where the result goes: as long as the collective says.
    pub result: Held,
    /// Says once, when the operand is there and nobody needs what lies where the result goes, whether a permute sends; or
    /// why it never will.
    pub ready: Receiver<Result<bool, String>>,
}

impl World {
    /// Carries collectives of device memory over a fabric from now on, if every rank has one. All ranks call it, at the same
    /// point, once; a rank without a fabric says why. Yields why exchanges stay with the host, if they do.
    ///
    /// Errors: a rank is lost.
    pub fn over(&self, fabric: Result<Box<dyn Fabric>, String>) -> Result<Option<String>, Failure> {
        let carrier = fabric.as_ref().map_or(None, |f| Some(Carrier { name: f.name(), family: f.family() }));
        let kept = self.reach(fabric)?;
        let found = match (&kept, carrier) {
            (None, Some(carrier)) => Ok(carrier),
            (why, _) => Err(why.clone().unwrap_or_default()),
        };
        let _ = self.here.carrier.set(found);
        Ok(kept)
    }

    /// What carries between devices, or why nothing does; nothing where [`World::over`] was not called.
    pub fn carrier(&self) -> Option<Result<&Carrier, &str>> {
        self.here.carrier.get().map(|c| c.as_ref().map_err(String::as_str))
    }
}

impl<T: Transport> Meeting<'_, T> {
    /// Joins a fabric, if all ranks have one; says why not, else.
    pub(super) fn join(&mut self, own: Result<Box<dyn Fabric>, String>) -> Result<Option<String>, Failure> {
        let mut own = own;
        let known = match &mut own {
            Ok(fabric) => fabric.identity().map_err(|e| e.to_string()),
            Err(why) => Err(why.clone()),
        };
        let devices = match self.told(known)? {
            Ok(devices) => devices,
            Err(why) => return Ok(Some(why)),
        };
        for (rank, device) in devices.iter().enumerate() {
            if let Some(other) = devices.iter().take(rank).position(|d| d == device) {
                return Ok(Some(format!("ranks {other} and {rank} share a device")));
            }
        }
        let Ok(mut fabric) = own else { return Ok(Some("no fabric".into())) };
        let first = self.here.rank == 0;
        let named = if first { fabric.unique().map_err(|e| e.to_string()) } else { Ok(vec![]) };
        let unique = match self.told(named)? {
            Ok(mut all) if !all.is_empty() => all.swap_remove(0),
            Ok(_) => vec![],
            Err(why) => return Ok(Some(why)),
        };
        let (rank, ranks) = (self.here.rank, self.here.ranks);
        let joined = match fabric.join(&unique, rank, ranks) {
            Ok(()) => self.until(&mut *fabric, Some(JOIN), |f| f.taken()),
            Err(fault) => Ok(Err(fault)),
        };
        let joined = joined.map_err(|lost| {
            fabric.abort();
            self.lost(lost)
        })?;
        match self.told(joined.map(|()| vec![]).map_err(|e| e.to_string())) {
            Ok(Ok(_)) => {
                *self.fabric = Some(fabric);
                Ok(None)
            }
            Ok(Err(why)) => {
                fabric.abort();
                Ok(Some(why))
            }
            Err(failure) => {
                fabric.abort();
                Err(failure)
            }
        }
    }

    /// All ranks are past their last collective when all leave: only then a communicator is given up, which may still
    /// have been sending what others wait for.
    pub(super) fn leave(&mut self) -> Result<(), Lost> {
        self.transport.leave()?;
        if let Some(mut fabric) = self.fabric.take() {
            fabric.abort();
        }
        Ok(())
    }

    /// What every rank says, in order; or what the first that cannot says, with its rank.
    fn told(&mut self, own: Result<Vec<u8>, String>) -> Result<Result<Vec<Vec<u8>>, String>, Failure> {
        let (can, text) = match own {
            Ok(bytes) => (1, bytes),
            Err(why) => (0, why.into_bytes()),
        };
        let mut all = vec![];
        for (rank, said) in self.shared(&[&[can], &text[..]].concat())?.into_iter().enumerate() {
            match said.split_first() {
                Some((1, bytes)) => all.push(bytes.to_vec()),
                Some((_, why)) => return Ok(Err(format!("rank {rank}: {}", String::from_utf8_lossy(why)))),
                None => return Ok(Err(format!("rank {rank} says nothing"))),
            }
        }
        Ok(Ok(all))
    }

    /// One collective over the fabric.
    pub(super) fn carry(&mut self, of: &Collective, errand: &Errand) -> Result<(), Failure> {
        let sends = self.ready(errand)?;
        self.began = Instant::now();
        let spans = [errand.operand.span(), errand.result.span()];
        self.fits(of, spans)?;
        let (peers, theirs) = self.meet(of, sends)?;
        let Some(mut fabric) = self.fabric.take() else {
            return Err(self.broken("no fabric was joined".into()));
        };
        let queued = queue(&mut *fabric, of, spans, peers, [sends, theirs]);
        let went = match queued {
            Ok(()) => self.through(&mut *fabric),
            Err(fault) => Ok(Err(fault)),
        };
        match went {
            Ok(Ok(())) => {
                *self.fabric = Some(fabric);
                self.count(of, [sends, theirs]);
                Ok(())
            }
            Ok(Err(fault)) => {
                fabric.abort();
                Err(self.blame(&fault))
            }
            Err(lost) => {
                fabric.abort();
                Err(self.lost(lost))
            }
        }
    }

    /// Waits for the operand; beats meanwhile.
    fn ready(&mut self, errand: &Errand) -> Result<bool, Failure> {
        loop {
            match errand.ready.recv_timeout(10 * LOOK) {
                Ok(Ok(sends)) => return Ok(sends),
                Ok(Err(why)) => return Err(self.broken(why)),
                Err(RecvTimeoutError::Timeout) => self.transport.idle().map_err(|lost| self.lost(lost))?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.broken("its operand was given up".into())),
            }
        }
    }

    /// Compares with a neighbour where both are, and with whom a permute exchanges whether they send.
    ///
    /// All ranks are at the same where all neighbours are. Yields whom this rank sends to and receives from, itself, and
    /// whether the other sends.
    fn meet(&mut self, of: &Collective, sends: bool) -> Result<([usize; 3], bool), Failure> {
        let (rank, ranks) = (self.here.rank, self.here.ranks);
        let (to, from) = match of.how {
            How::Permute { shift, ring, .. } => self.ring(shift, ring),
            _ => ((rank + 1) % ranks, (rank + ranks - 1) % ranks),
        };
        if to == rank {
            return Ok(([to, from, rank], sends));
        }
        let said = self.exchange(Some(to), &[u8::from(sends)], Some(from))?;
        let said = self.long(from, said, 1)?;
        Ok(([to, from, rank], said == [1]))
    }

    fn fits(&self, of: &Collective, [operand, result]: [Span; 2]) -> Result<(), Failure> {
        let (have, ranks) = ([operand.bytes(), result.bytes()], self.here.ranks);
        let even = !matches!(of.how, How::ReduceScatter) || of.elements.is_multiple_of(ranks);
        if even && of.ranks == ranks && have == lengths(of) {
            return Ok(());
        }
        let what = format!("{} of {} {} on {} of {ranks} ranks", of.name(), of.elements, of.dtype, of.ranks);
        Err(self.broken(format!("{have:?} bytes for {what}")))
    }

    fn through(&mut self, fabric: &mut dyn Fabric) -> Result<Result<(), Fault>, Lost> {
        let steps: [Ask; 3] = [|f| f.taken(), |f| f.mark().map(|()| true), |f| f.done()];
        for step in steps {
            if let Err(fault) = self.until(fabric, None, step)? {
                return Ok(Err(fault));
            }
        }
        Ok(Ok(()))
    }

    /// Asks until the answer is yes, an error, or too late; beats meanwhile.
    fn until(&mut self, fabric: &mut dyn Fabric, most: Option<Duration>, ask: Ask) -> Result<Result<(), Fault>, Lost> {
        let start = Instant::now();
        let (mut looked, mut wait) = (start, Wait::new());
        loop {
            match ask(fabric) {
                Ok(true) => return Ok(Ok(())),
                Ok(false) => {}
                Err(fault) => return Ok(Err(fault)),
            }
            if looked.elapsed() >= LOOK {
                self.transport.idle()?;
                looked = Instant::now();
            }
            if most.is_some_and(|most| start.elapsed() > most) {
                let said = format!("not all ranks joined within {} s", JOIN.as_secs());
                return Ok(Err(Fault { call: "join", said, remote: true }));
            }
            wait.pause(false);
        }
    }

    /// A fabric often feels a loss before the transport does, and cannot say whose.
    fn blame(&mut self, fault: &Fault) -> Failure {
        let start = Instant::now();
        while fault.remote && start.elapsed() < BLAME {
            if let Err(lost) = self.transport.idle() {
                return self.lost(lost);
            }
            sleep(LOOK);
        }
        self.broken(fault.to_string())
    }

    fn broken(&self, what: String) -> Failure {
        let op = format!("{} {}", self.request.name(), self.request.label);
        Failure::Devices { what, op, step: self.request.step, here: self.here.rank }
    }

    /// Bytes as they are counted whatever carries.
    fn count(&mut self, of: &Collective, [sends, theirs]: [bool; 2]) {
        let bytes = of.wire_bytes();
        let gated = matches!(of.how, How::Permute { .. });
        self.sent = if gated && !sends { 0 } else { bytes };
        self.received = if gated && !theirs { 0 } else { bytes };
        self.skips = gated && !sends;
    }
}
