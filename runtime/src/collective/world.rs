//! A rank among ranks: collectives made of exchanges, on a thread of their own, so that they run beside the device.

mod devices;

use super::fabric::Fabric;
use super::fold::fold;
use super::{Failure, Lost, Traffic, Transport};
pub use devices::{Carrier, Errand, Exchange};
use omchat_codegen::{Collective, How};
use omchat_ir::ops::FoldKind;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a rank that exchanges nothing looks after the others.
const BEAT: Duration = Duration::from_millis(100);

/// What is called once when ranks can go on no longer, on the thread that exchanges.
type Alarm = Box<dyn Fn(&Failure) + Send>;

/// This rank of a run. A clone is the same rank.
#[derive(Clone)]
pub struct World {
    here: Arc<Here>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {} over {}", self.rank(), self.ranks(), self.engine())
    }
}

struct Here {
    rank: usize,
    ranks: usize,
    engine: &'static str,
    /// Whether the ranks are threads of one process.
    shared: bool,
    exchange: OnceLock<Exchange>,
    carrier: OnceLock<Result<Carrier, String>>,
    requests: Sender<Request>,
    step: AtomicU64,
    traffic: Mutex<Traffic>,
    alarm: Mutex<Option<Alarm>>,
}

/// What the exchanging thread is asked for.
struct Request {
    what: What,
    label: String,
    step: u64,
    data: Vec<u8>,
    reply: Sender<Result<Vec<Vec<u8>>, Failure>>,
}

enum What {
    Collective {
        of: Collective,
        sends: bool,
    },
    /// Of device memory.
    Carry {
        of: Collective,
        errand: Errand,
    },
    /// A fabric is joined, if all have one.
    Join(Cell<Option<Result<Box<dyn Fabric>, String>>>),
    /// Bytes of any length, of every rank to one rank, or to all.
    Gather {
        to: Option<usize>,
    },
    /// The end of this rank, when all others are at theirs.
    Leave,
}

/// A collective on its way.
pub struct Pending {
    name: &'static str,
    reply: Receiver<Result<Vec<Vec<u8>>, Failure>>,
    here: Arc<Here>,
}

impl World {
    /// Joins a run. `make` makes the transport on the thread that will exchange.
    ///
    /// Errors: what `make` answers.
    pub fn join<T: Transport, E: Send + 'static>(
        make: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<World, E> {
        let (requests, asked) = channel();
        let (tell, told) = channel();
        thread::spawn(move || {
            let transport = match make() {
                Ok(t) => t,
                Err(e) => {
                    let _ = tell.send(Err(e));
                    return;
                }
            };
            let here = Arc::new(Here {
                rank: transport.rank(),
                ranks: transport.ranks(),
                engine: transport.name(),
                shared: transport.shared(),
                exchange: OnceLock::new(),
                carrier: OnceLock::new(),
                requests,
                step: AtomicU64::new(0),
                traffic: Mutex::default(),
                alarm: Mutex::default(),
            });
            let held = Arc::downgrade(&here);
            let _ = tell.send(Ok(World { here }));
            drop(tell);
            Server { transport, fabric: None, made: 0, failed: None }.serve(&asked, &held);
        });
        match told.recv() {
            Ok(joined) => joined,
            // The thread answers before it ends, unless `make` panicked, which ends this thread too.
            Err(_) => std::process::abort(),
        }
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.here.rank
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.here.ranks
    }

    /// What carries: `threads`, `mpi`, `mpi+nccl 2.30.7`.
    pub fn engine(&self) -> String {
        match self.carrier() {
            Some(Ok(carrier)) => format!("{}+{}", self.here.engine, carrier.name),
            _ => self.here.engine.into(),
        }
    }

    /// Whether the ranks are threads of one process, which share devices.
    pub fn shared(&self) -> bool {
        self.here.shared
    }

    /// Says how ranks exchange what is on devices; before the first program is loaded, and the same on all ranks.
    pub fn exchange_by(&self, how: Exchange) {
        let _ = self.here.exchange.set(how);
    }

    /// How ranks are to exchange what is on devices.
    pub fn exchange(&self) -> Exchange {
        self.here.exchange.get().copied().unwrap_or_default()
    }

    /// Names the step that is being taken, for errors.
    pub fn at_step(&self, step: u64) {
        self.here.step.store(step, Ordering::Relaxed);
    }

    /// Calls `alarm` as soon as a rank is lost, even while this one computes and asks for nothing.
    pub fn on_failure(&self, alarm: impl Fn(&Failure) + Send + 'static) {
        *lock(&self.here.alarm) = Some(Box::new(alarm));
    }

    /// What was exchanged so far.
    pub fn traffic(&self) -> Traffic {
        lock(&self.here.traffic).clone()
    }

    /// Begins a collective on this rank's operand. `sends`: whether a permute sends, or lets its receiver have zeros.
    pub fn start(&self, of: &Collective, label: &str, data: Vec<u8>, sends: bool) -> Pending {
        self.ask(of.name(), What::Collective { of: *of, sends }, label, data)
    }

    /// Begins a collective on an operand of this rank's device, by a fabric that all joined. The errand is kept until it ended.
    pub fn carry(&self, of: &Collective, label: &str, errand: Errand) -> Pending {
        self.ask(of.name(), What::Carry { of: *of, errand }, label, vec![])
    }

    /// The bytes of every rank, in order, on one rank or on all; nothing on the others.
    ///
    /// Errors: a rank is lost, or asks for something else.
    pub fn gather(&self, label: &str, data: Vec<u8>, to: Option<usize>) -> Result<Vec<Vec<u8>>, Failure> {
        self.ask("gather", What::Gather { to }, label, data).parts()
    }

    /// Waits until every rank is here, at its end; the last that is asked of a world. A process that ends without it looks
    /// to the others like one that died.
    ///
    /// Errors: a rank is lost, or asks for something else.
    pub fn leave(&self) -> Result<(), Failure> {
        self.ask("leave", What::Leave, "the run", vec![]).parts().map(|_| ())
    }

    fn reach(&self, fabric: Result<Box<dyn Fabric>, String>) -> Result<Option<String>, Failure> {
        let asked = What::Join(Cell::new(Some(fabric)));
        let mut why = self.ask("join", asked, "devices", vec![]).parts()?;
        Ok(why.pop().map(|w| String::from_utf8_lossy(&w).into_owned()))
    }

    fn ask(&self, name: &'static str, what: What, label: &str, data: Vec<u8>) -> Pending {
        let (reply, answer) = channel();
        let step = self.here.step.load(Ordering::Relaxed);
        let request = Request { what, label: label.to_string(), step, data, reply };
        // A thread that is gone drops the request, and waiting says so.
        let _ = self.here.requests.send(request);
        Pending { name, reply: answer, here: self.here.clone() }
    }
}

impl Pending {
    /// What the collective yields on this rank.
    ///
    /// Errors: a rank is lost, or asks for something else.
    pub fn wait(self) -> Result<Vec<u8>, Failure> {
        Ok(self.parts()?.pop().unwrap_or_default())
    }

    fn parts(self) -> Result<Vec<Vec<u8>>, Failure> {
        let start = Instant::now();
        let answer = self.reply.recv();
        lock(&self.here.traffic).flow(self.name).waited += start.elapsed();
        let (rank, step) = (self.here.rank, self.here.step.load(Ordering::Relaxed));
        answer.unwrap_or_else(|_| {
            let lost = Lost { rank, why: "has ended its exchanges".into() };
            Err(Failure::Lost { lost, op: self.name.into(), step, here: rank })
        })
    }
}

/// The exchanging thread.
struct Server<T> {
    transport: T,
    fabric: Option<Box<dyn Fabric>>,
    /// Collectives so far.
    made: u64,
    failed: Option<Failure>,
}

impl<T: Transport> Server<T> {
    fn serve(mut self, asked: &Receiver<Request>, held: &std::sync::Weak<Here>) {
        loop {
            match asked.recv_timeout(BEAT) {
                Ok(request) => {
                    let Some(here) = held.upgrade() else { return };
                    let before = self.failed.is_some();
                    let answer = self.answer(&request, &here);
                    if let (Err(failure), false) = (&answer, before) {
                        self.fail(failure.clone(), &here);
                    }
                    // Who asked may have given up.
                    let _ = request.reply.send(answer);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let Some(here) = held.upgrade() else { return };
                    // After a failure too: what this rank says of itself then, the others must hear.
                    let looked = self.transport.idle();
                    if let (Err(lost), None) = (looked, &self.failed) {
                        let step = here.step.load(Ordering::Relaxed);
                        let op = "what lies between collectives".into();
                        self.fail(Failure::Lost { lost, op, step, here: here.rank }, &here);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn fail(&mut self, failure: Failure, here: &Here) {
        if let Some(mut fabric) = self.fabric.take() {
            fabric.abort();
        }
        if let Some(alarm) = &*lock(&here.alarm) {
            alarm(&failure);
        }
        self.failed = Some(failure);
    }

    fn answer(&mut self, request: &Request, here: &Here) -> Result<Vec<Vec<u8>>, Failure> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        self.made += 1;
        let mut meeting = Meeting {
            transport: &mut self.transport,
            fabric: &mut self.fabric,
            title: request.title(self.made),
            request,
            here,
            began: Instant::now(),
            sent: 0,
            received: 0,
            skips: matches!(request.what, What::Collective { sends: false, .. }),
        };
        let out = meeting.hold();
        let (sent, received, skips) = (meeting.sent, meeting.received, meeting.skips);
        let busy = meeting.began.elapsed();
        let mut traffic = lock(&here.traffic);
        let flow = traffic.flow(request.name());
        flow.busy += busy;
        flow.count += 1;
        flow.sent += sent;
        flow.received += received;
        flow.skipped += u64::from(skips);
        out
    }
}

impl Request {
    fn name(&self) -> &'static str {
        match &self.what {
            What::Collective { of, .. } | What::Carry { of, .. } => of.name(),
            What::Join(_) => "join",
            What::Gather { .. } => "gather",
            What::Leave => "leave",
        }
    }

    /// What ranks compare: those that meet must be at the same.
    fn title(&self, made: u64) -> String {
        let (name, label, step) = (self.name(), &self.label, self.step);
        match &self.what {
            What::Collective { of, .. } => {
                format!("{name} {label} of {} {}, number {made}, in step {step}", of.elements, of.dtype)
            }
            What::Carry { of, .. } => {
                format!("{name} {label} of {} {} on devices, number {made}, in step {step}", of.elements, of.dtype)
            }
            What::Join(_) | What::Gather { .. } | What::Leave => {
                format!("{name} {label}, number {made}, in step {step}")
            }
        }
    }
}

/// One collective being held.
struct Meeting<'a, T> {
    transport: &'a mut T,
    fabric: &'a mut Option<Box<dyn Fabric>>,
    title: String,
    request: &'a Request,
    here: &'a Here,
    /// When it could begin.
    began: Instant,
    sent: u64,
    received: u64,
    /// Whether it is a permute that this rank does not send.
    skips: bool,
}

impl<T: Transport> Meeting<'_, T> {
    fn hold(&mut self) -> Result<Vec<Vec<u8>>, Failure> {
        match &self.request.what {
            What::Gather { to } => self.gather(*to),
            What::Collective { of, sends } => Ok(vec![self.collective(of, *sends)?]),
            What::Carry { of, errand } => self.carry(of, errand).map(|()| vec![]),
            What::Join(fabric) => {
                let own = fabric.take().unwrap_or_else(|| Err("no fabric".into()));
                Ok(self.join(own)?.map(String::into_bytes).into_iter().collect())
            }
            What::Leave => self.leave().map(|()| vec![]).map_err(|lost| self.lost(lost)),
        }
    }

    fn collective(&mut self, of: &Collective, sends: bool) -> Result<Vec<u8>, Failure> {
        let data = &self.request.data;
        match of.how {
            How::Permute { shift, ring, .. } => self.permute(shift, ring, sends),
            How::AllGather => Ok(self.shared(data)?.concat()),
            How::ReduceScatter => self.scatter(of, data, FoldKind::Sum),
            How::AllReduce { fold } => {
                let size = of.dtype.bytes();
                let mut padded = data.clone();
                padded.resize(of.part() * self.here.ranks * size, 0);
                let own = self.scatter(of, &padded, fold)?;
                let mut whole = self.shared(&own)?.concat();
                whole.truncate(of.elements * size);
                Ok(whole)
            }
        }
    }

    fn permute(&mut self, shift: i64, ring: usize, sends: bool) -> Result<Vec<u8>, Failure> {
        let (rank, data) = (self.here.rank, &self.request.data);
        let (to, from) = self.ring(shift, ring);
        let payload: &[u8] = if sends { data } else { &[] };
        let mut got = if to == rank { payload.to_vec() } else { self.exchange(Some(to), payload, Some(from))? };
        // What is not sent is zeros; nothing else may be of another length.
        if got.is_empty() {
            got.resize(data.len(), 0);
        }
        self.long(from, got, data.len())
    }

    /// Whom this rank sends to in its ring, and from whom it receives.
    fn ring(&self, shift: i64, ring: usize) -> (usize, usize) {
        let (rank, ring) = (self.here.rank, ring.max(1));
        let first = rank / ring * ring;
        let at = |by: i64| first + ((rank - first) as i64 + by).rem_euclid(ring as i64) as usize;
        (at(shift), at(-shift))
    }

    /// Each rank's bytes, in order.
    fn shared(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
        let (rank, ranks) = (self.here.rank, self.here.ranks);
        let mut parts = vec![vec![]; ranks];
        parts[rank] = own.to_vec();
        for d in 1..ranks {
            let from = (rank + ranks - d) % ranks;
            parts[from] = self.exchange(Some((rank + d) % ranks), own, Some(from))?;
        }
        Ok(parts)
    }

    /// The fold of this rank's part of every rank's operand.
    fn scatter(&mut self, of: &Collective, data: &[u8], kind: FoldKind) -> Result<Vec<u8>, Failure> {
        let (rank, ranks, bytes) = (self.here.rank, self.here.ranks, of.part() * of.dtype.bytes());
        let part = |r: usize| data.get(r * bytes..(r + 1) * bytes).unwrap_or_default();
        let mut parts = vec![vec![]; ranks];
        parts[rank] = part(rank).to_vec();
        for d in 1..ranks {
            let (to, from) = ((rank + d) % ranks, (rank + ranks - d) % ranks);
            let got = self.exchange(Some(to), part(to), Some(from))?;
            parts[from] = self.long(from, got, bytes)?;
        }
        Ok(fold(kind, of.dtype, &parts))
    }

    fn gather(&mut self, to: Option<usize>) -> Result<Vec<Vec<u8>>, Failure> {
        let (rank, own) = (self.here.rank, &self.request.data);
        match to {
            None => self.shared(own),
            Some(to) if to != rank => self.exchange(Some(to), own, None).map(|_| vec![]),
            Some(_) => {
                let mut parts = vec![];
                for from in 0..self.here.ranks {
                    parts.push(if from == rank { own.clone() } else { self.exchange(None, &[], Some(from))? });
                }
                Ok(parts)
            }
        }
    }

    /// An exchange under this meeting's title: what comes must bear the same.
    fn exchange(&mut self, to: Option<usize>, send: &[u8], from: Option<usize>) -> Result<Vec<u8>, Failure> {
        let title = self.title.as_bytes();
        let mut message = Vec::with_capacity(4 + title.len() + send.len());
        message.extend((title.len() as u32).to_le_bytes());
        message.extend(title);
        message.extend(send);
        let mut got = self.transport.exchange(to, &message, from).map_err(|lost| self.lost(lost))?;
        if to.is_some() {
            self.sent += send.len() as u64;
        }
        let Some(from) = from else { return Ok(vec![]) };
        let length = got.first_chunk().map_or(0, |n| u32::from_le_bytes(*n) as usize);
        let theirs = got.get(4..4 + length).unwrap_or_default();
        if theirs != title {
            return Err(Failure::Apart {
                rank: from,
                theirs: String::from_utf8_lossy(theirs).into_owned(),
                here: self.here.rank,
                ours: self.title.clone(),
            });
        }
        got.drain(..4 + length);
        self.received += got.len() as u64;
        Ok(got)
    }

    fn long(&self, rank: usize, got: Vec<u8>, want: usize) -> Result<Vec<u8>, Failure> {
        if got.len() == want {
            return Ok(got);
        }
        let theirs = format!("{} with {} bytes", self.title, got.len());
        let ours = format!("{} with {want} bytes", self.title);
        Err(Failure::Apart { rank, theirs, here: self.here.rank, ours })
    }

    fn lost(&self, lost: Lost) -> Failure {
        let op = format!("{} {}", self.request.name(), self.request.label);
        Failure::Lost { lost, op, step: self.request.step, here: self.here.rank }
    }
}

fn lock<T>(x: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    x.lock().unwrap_or_else(PoisonError::into_inner)
}
