//! What stands in for NCCL where there is no GPU: the same calls over host memory, ranks as threads that meet by the name of
//! the communicator.
//!
//! It is as hard to please as NCCL. A stream is a thread: it reads operands and writes results late, and until a result is
//! there its place holds NaN. Sends meet receives in groups only; ranks that queue different collectives fail.

use half::{bf16, f16};
use omchat_codegen::Family;
use omchat_ir::Dtype;
use omchat_ir::ops::FoldKind;
use omchat_runtime::collective::fabric::{Fabric, Fault, Span};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

/// What is wrong with a rank's stand-in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wrong {
    #[default]
    Nothing,
    /// Sends go to the rank after the right one, receives come from the one before.
    Neighbour,
    /// Receives leave what was there.
    Stale,
    /// It has no name for its device.
    Identity,
    /// It cannot join.
    Join,
    /// From this piece of work on, a call fails.
    Call(u64),
    /// From this piece of work on, the device fails: `remote` is what the fault says.
    Device(u64, bool),
}

/// Ranks of one communicator.
#[derive(Default)]
struct Hub {
    meets: Mutex<Meets>,
    changed: Condvar,
}

#[derive(Default)]
struct Meets {
    /// What ranks brought to a collective, by its number: kind, and bytes.
    brought: HashMap<(u64, usize), (String, Vec<u8>)>,
    /// From one rank to another.
    sent: HashMap<(usize, usize), VecDeque<Vec<u8>>>,
}

static HUBS: OnceLock<Mutex<HashMap<Vec<u8>, Arc<Hub>>>> = OnceLock::new();
static NEXT: AtomicU64 = AtomicU64::new(1);

enum Work {
    Send { from: Span, to: usize },
    Receive { into: Span, from: usize },
    Together { kind: String, own: Span, result: Span, how: Together },
    Copy { from: Span, to: Span },
    Zero { to: Span },
    Mark,
}

enum Together {
    Gather,
    Scatter(Dtype),
    Reduce(Dtype, FoldKind),
}

/// Seen from outside: what a rank's stand-in did.
#[derive(Default)]
pub struct Seen {
    /// Communicators given up.
    pub aborts: AtomicUsize,
    /// Pieces of work on its stream.
    pub works: AtomicU64,
}

pub struct StandIn {
    device: Vec<u8>,
    delay: Duration,
    wrong: Wrong,
    seen: Arc<Seen>,
    rank: usize,
    ranks: usize,
    group: Option<Vec<Work>>,
    stream: Option<Sender<Vec<Work>>>,
    hub: Arc<Hub>,
    /// It was given up, by this rank.
    aborted: Arc<AtomicBool>,
    failed: Arc<Mutex<Option<Fault>>>,
    made: u64,
    marks: u64,
    passed: Arc<AtomicU64>,
    /// Times that it was asked: like NCCL's nonblocking calls, the first answer is "not yet".
    asked: u64,
}

impl StandIn {
    /// For a rank on a device of that name, each piece of work so late.
    pub fn new(device: &str, delay: Duration, wrong: Wrong, seen: Arc<Seen>) -> StandIn {
        StandIn {
            device: device.as_bytes().to_vec(),
            delay,
            wrong,
            seen,
            rank: 0,
            ranks: 0,
            group: None,
            stream: None,
            hub: Arc::default(),
            aborted: Arc::default(),
            failed: Arc::default(),
            made: 0,
            marks: 0,
            passed: Arc::default(),
            asked: 0,
        }
    }

    fn fault<T>(&self, call: &'static str, said: &str, remote: bool) -> Result<T, Fault> {
        Err(Fault { call, said: said.into(), remote })
    }

    fn queue(&mut self, call: &'static str, mut work: Vec<Work>) -> Result<(), Fault> {
        self.seen.works.fetch_add(1, Ordering::SeqCst);
        self.made += 1;
        if matches!(self.wrong, Wrong::Call(n) if self.made >= n) {
            return self.fault(call, "invalid usage", false);
        }
        for w in &mut work {
            match (self.wrong, w) {
                (Wrong::Neighbour, Work::Send { to, .. }) => *to = (*to + 1) % self.ranks,
                (Wrong::Neighbour, Work::Receive { from, .. }) => *from = (*from + self.ranks - 1) % self.ranks,
                _ => {}
            }
        }
        if let (Wrong::Device(n, remote), true) = (self.wrong, !matches!(work.first(), Some(Work::Mark)))
            && self.made >= n
        {
            let said = if remote { "remote process exited" } else { "unhandled device error" };
            *self.failed.lock().unwrap() = Some(Fault { call: "the device", said: said.into(), remote });
            return Ok(());
        }
        self.asked = 0;
        match &self.stream {
            Some(stream) => stream.send(work).map_err(|_| Fault { call, said: "gone".into(), remote: false }),
            None => self.fault(call, "no communicator", false),
        }
    }

    fn state(&self) -> Result<(), Fault> {
        self.failed.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

fn read(span: Span) -> Vec<u8> {
    // SAFETY: a span's memory is kept until the exchange ended; that nobody writes meanwhile is what is tested.
    unsafe { std::slice::from_raw_parts(span.address() as *const u8, span.bytes()) }.to_vec()
}

fn write(span: Span, bytes: &[u8]) {
    assert_eq!(span.bytes(), bytes.len(), "a result of another length");
    // SAFETY: as in `read`.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), span.address() as *mut u8, bytes.len()) }
}

/// NaN in every float, -1 in integers.
fn poison(span: Span) {
    write(span, &vec![0xff; span.bytes()]);
}

/// A rank's stream.
struct Stream {
    hub: Arc<Hub>,
    aborted: Arc<AtomicBool>,
    rank: usize,
    ranks: usize,
    delay: Duration,
    wrong: Wrong,
    made: u64,
    passed: Arc<AtomicU64>,
}

impl Stream {
    /// Waits for what others bring. Nothing where the communicator is given up.
    fn wait<T>(&self, mut take: impl FnMut(&mut Meets) -> Option<T>) -> Option<T> {
        let mut meets = self.hub.meets.lock().unwrap();
        loop {
            if self.aborted.load(Ordering::SeqCst) {
                return None;
            }
            if let Some(found) = take(&mut meets) {
                return Some(found);
            }
            meets = self.hub.changed.wait_timeout(meets, Duration::from_millis(20)).unwrap().0;
        }
    }

    fn run(&mut self, group: Vec<Work>) -> Option<Result<(), String>> {
        for w in &group {
            match w {
                Work::Receive { into, .. } if self.wrong != Wrong::Stale => poison(*into),
                Work::Together { result, .. } => poison(*result),
                Work::Zero { to } | Work::Copy { to, .. } => poison(*to),
                _ => {}
            }
        }
        if !matches!(group.first(), Some(Work::Mark)) {
            thread::sleep(self.delay);
        }
        let sends = group.iter().filter_map(|w| if let Work::Send { from, to } = w { Some((from, to)) } else { None });
        for (from, to) in sends {
            self.hub.meets.lock().unwrap().sent.entry((self.rank, *to)).or_default().push_back(read(*from));
            self.hub.changed.notify_all();
        }
        for w in &group {
            match w {
                Work::Send { .. } => {}
                Work::Receive { into, from } => {
                    let got = self.wait(|m| m.sent.get_mut(&(*from, self.rank))?.pop_front())?;
                    if self.wrong != Wrong::Stale {
                        write(*into, &got);
                    }
                }
                Work::Copy { from, to } => write(*to, &read(*from)),
                Work::Zero { to } => write(*to, &vec![0; to.bytes()]),
                Work::Mark => drop(self.passed.fetch_add(1, Ordering::SeqCst)),
                Work::Together { kind, own, result, how } => {
                    if let Err(said) = self.together(kind, *own, *result, how)? {
                        return Some(Err(said));
                    }
                }
            }
        }
        Some(Ok(()))
    }

    fn together(&mut self, kind: &str, own: Span, result: Span, how: &Together) -> Option<Result<(), String>> {
        self.made += 1;
        let (number, rank) = (self.made, self.rank);
        self.hub.meets.lock().unwrap().brought.insert((number, rank), (kind.into(), read(own)));
        self.hub.changed.notify_all();
        let mut parts = vec![];
        for r in 0..self.ranks {
            let (theirs, bytes) = self.wait(|m| m.brought.get(&(number, r)).cloned())?;
            if theirs != kind {
                return Some(Err(format!("rank {rank} is at {kind}, rank {r} at {theirs}")));
            }
            parts.push(bytes);
        }
        let bytes = match how {
            Together::Gather => parts.concat(),
            Together::Reduce(dtype, fold) => folded(*dtype, *fold, &parts),
            Together::Scatter(dtype) => {
                let n = result.bytes();
                folded(*dtype, FoldKind::Sum, &parts)[rank * n..(rank + 1) * n].to_vec()
            }
        };
        write(result, &bytes);
        Some(Ok(()))
    }
}

/// Folds in the order of ranks; halves are rounded at each step, as NCCL does.
fn folded(dtype: Dtype, fold: FoldKind, parts: &[Vec<u8>]) -> Vec<u8> {
    let float = |a: f32, b: f32| if fold == FoldKind::Sum { a + b } else { a.max(b) };
    let whole = |a: i32, b: i32| if fold == FoldKind::Sum { a.wrapping_add(b) } else { a.max(b) };
    let mut out = parts[0].clone();
    let size = dtype.bytes();
    for part in &parts[1..] {
        for (a, b) in out.chunks_exact_mut(size).zip(part.chunks_exact(size)) {
            match dtype {
                Dtype::F32 => {
                    let y = float(f32::from_le_bytes(a.try_into().unwrap()), f32::from_le_bytes(b.try_into().unwrap()));
                    a.copy_from_slice(&y.to_le_bytes());
                }
                Dtype::Bf16 => {
                    let x = |c: &[u8]| bf16::from_le_bytes(c.try_into().unwrap()).to_f32();
                    a.copy_from_slice(&bf16::from_f32(float(x(a), x(b))).to_le_bytes());
                }
                Dtype::F16 => {
                    let x = |c: &[u8]| f16::from_le_bytes(c.try_into().unwrap()).to_f32();
                    a.copy_from_slice(&f16::from_f32(float(x(a), x(b))).to_le_bytes());
                }
                Dtype::I32 | Dtype::Bool => {
                    let y = whole(i32::from_le_bytes(a.try_into().unwrap()), i32::from_le_bytes(b.try_into().unwrap()));
                    a.copy_from_slice(&y.to_le_bytes());
                }
            }
        }
    }
    out
}

impl Fabric for StandIn {
    fn name(&self) -> String {
        "a stand-in".into()
    }

    fn family(&self) -> Family {
        Family::Cpu
    }

    fn identity(&mut self) -> Result<Vec<u8>, Fault> {
        match self.wrong {
            Wrong::Identity => self.fault("identity", "no such device", false),
            _ => Ok(self.device.clone()),
        }
    }

    fn unique(&mut self) -> Result<Vec<u8>, Fault> {
        Ok(NEXT.fetch_add(1, Ordering::SeqCst).to_le_bytes().to_vec())
    }

    fn join(&mut self, unique: &[u8], rank: usize, ranks: usize) -> Result<(), Fault> {
        if self.wrong == Wrong::Join {
            return self.fault("join", "no way to the others", false);
        }
        let hubs = HUBS.get_or_init(Default::default);
        self.hub = hubs.lock().unwrap().entry(unique.to_vec()).or_default().clone();
        (self.rank, self.ranks) = (rank, ranks);
        let (send, list) = channel::<Vec<Work>>();
        let (delay, wrong, passed, aborted) = (self.delay, self.wrong, self.passed.clone(), self.aborted.clone());
        let mut stream = Stream { hub: self.hub.clone(), aborted, rank, ranks, delay, wrong, made: 0, passed };
        let failed = self.failed.clone();
        thread::spawn(move || {
            for group in list {
                match stream.run(group) {
                    Some(Ok(())) => {}
                    Some(Err(said)) => *failed.lock().unwrap() = Some(Fault { call: "stream", said, remote: false }),
                    None => return,
                }
            }
        });
        self.stream = Some(send);
        Ok(())
    }

    fn group(&mut self, open: bool) -> Result<(), Fault> {
        match (open, self.group.take()) {
            (true, None) => {
                self.group = Some(vec![]);
                Ok(())
            }
            (false, Some(work)) => self.queue("group", work),
            _ => self.fault("group", "opened twice, or closed and not open", false),
        }
    }

    fn send(&mut self, from: Span, to: usize) -> Result<(), Fault> {
        match &mut self.group {
            Some(group) => group.push(Work::Send { from, to }),
            None => return self.fault("send", "outside of a group", false),
        }
        Ok(())
    }

    fn receive(&mut self, into: Span, from: usize) -> Result<(), Fault> {
        match &mut self.group {
            Some(group) => group.push(Work::Receive { into, from }),
            None => return self.fault("receive", "outside of a group", false),
        }
        Ok(())
    }

    fn all_gather(&mut self, own: Span, all: Span) -> Result<(), Fault> {
        let kind = format!("all_gather of {}", own.bytes());
        self.queue("all_gather", vec![Work::Together { kind, own, result: all, how: Together::Gather }])
    }

    fn reduce_scatter(&mut self, all: Span, own: Span, dtype: Dtype) -> Result<(), Fault> {
        let kind = format!("reduce_scatter of {} {dtype}", all.bytes());
        let how = Together::Scatter(dtype);
        self.queue("reduce_scatter", vec![Work::Together { kind, own: all, result: own, how }])
    }

    fn all_reduce(&mut self, own: Span, result: Span, dtype: Dtype, fold: FoldKind) -> Result<(), Fault> {
        let kind = format!("all_reduce {fold:?} of {} {dtype}", own.bytes());
        let how = Together::Reduce(dtype, fold);
        self.queue("all_reduce", vec![Work::Together { kind, own, result, how }])
    }

    fn copy(&mut self, from: Span, to: Span) -> Result<(), Fault> {
        self.queue("copy", vec![Work::Copy { from, to }])
    }

    fn zero(&mut self, to: Span) -> Result<(), Fault> {
        self.queue("zero", vec![Work::Zero { to }])
    }

    fn taken(&mut self) -> Result<bool, Fault> {
        self.state()?;
        self.asked += 1;
        Ok(self.asked > 2)
    }

    fn mark(&mut self) -> Result<(), Fault> {
        // NCCL's kernels are on the stream only when its calls were taken.
        if self.asked <= 2 && self.made > 0 {
            return self.fault("mark", "what was called is not on the stream yet", false);
        }
        self.marks += 1;
        let made = self.made;
        self.queue("mark", vec![Work::Mark])?;
        self.made = made;
        Ok(())
    }

    fn done(&mut self) -> Result<bool, Fault> {
        self.state()?;
        Ok(self.passed.load(Ordering::SeqCst) >= self.marks)
    }

    fn abort(&mut self) {
        self.seen.aborts.fetch_add(1, Ordering::SeqCst);
        self.aborted.store(true, Ordering::SeqCst);
        self.hub.changed.notify_all();
        self.stream = None;
    }
}
