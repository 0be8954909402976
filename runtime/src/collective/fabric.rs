//! What carries between devices past the host, beside a transport: the calls of NCCL and CUDA that exchanges of device
//! memory are made of.

use omchat_codegen::{Collective, Family, How};
use omchat_ir::Dtype;
use omchat_ir::ops::FoldKind;
use std::any::Any;

/// A piece of device memory, as [`Held`] names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    address: u64,
    bytes: usize,
}

impl Span {
    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How long it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A piece of device memory, and what keeps it.
pub struct Held {
    span: Span,
    _keep: Box<dyn Any + Send>,
}

impl Held {
    /// So many bytes at an address.
    ///
    /// # Safety
    ///
    /// They are a device's memory that the fabric reaches, and stay so while `keep` is not dropped.
    pub unsafe fn new(address: u64, bytes: usize, keep: Box<dyn Any + Send>) -> Held {
        Held { span: Span { address, bytes }, _keep: keep }
    }

    /// The piece.
    pub fn span(&self) -> Span {
        self.span
    }
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {said}")]
pub struct Fault {
    /// The call.
    pub call: &'static str,
    /// What it answered.
    pub said: String,
    /// Whether another rank may be the reason: then its loss is what is told, if it is noticed.
    pub remote: bool,
}

/// A communicator of all ranks of a run over one kind of device, and the stream that it works on.
///
/// One thread calls it. Calls queue work and come back at once; [`Fabric::taken`] and [`Fabric::done`] are asked until they
/// say so. All ranks queue the same collectives in the same order; whoever calls sees to that.
pub trait Fabric: Send {
    /// What it is, with its version, for messages: `nccl 2.30.7`.
    fn name(&self) -> String;

    /// The devices whose memory it reaches.
    fn family(&self) -> Family;

    /// Tells this rank's device from every other: two ranks may not share one.
    fn identity(&mut self) -> Result<Vec<u8>, Fault>;

    /// A name for the communicator, made by one rank and given to all.
    fn unique(&mut self) -> Result<Vec<u8>, Fault>;

    /// Begins to join the others under that name.
    fn join(&mut self, unique: &[u8], rank: usize, ranks: usize) -> Result<(), Fault>;

    /// Opens a group, or closes it: what a group holds is one piece of work, in which sends and receives meet.
    fn group(&mut self, open: bool) -> Result<(), Fault>;

    /// Sends to a rank. Within a group.
    fn send(&mut self, from: Span, to: usize) -> Result<(), Fault>;

    /// Receives from a rank. Within a group.
    fn receive(&mut self, into: Span, from: usize) -> Result<(), Fault>;

    /// All ranks' `own`, one after another.
    fn all_gather(&mut self, own: Span, all: Span) -> Result<(), Fault>;

    /// This rank's part of the sum of all ranks' `all`.
    fn reduce_scatter(&mut self, all: Span, own: Span, dtype: Dtype) -> Result<(), Fault>;

    /// The fold of all ranks' `own`.
    fn all_reduce(&mut self, own: Span, result: Span, dtype: Dtype, fold: FoldKind) -> Result<(), Fault>;

    /// Copies on this device.
    fn copy(&mut self, from: Span, to: Span) -> Result<(), Fault>;

    /// Fills with zeros on this device.
    fn zero(&mut self, to: Span) -> Result<(), Fault>;

    /// Whether what was called so far is on the device's stream, or this rank has joined.
    ///
    /// Errors: what went wrong since.
    fn taken(&mut self) -> Result<bool, Fault>;

    /// Marks the end of what is on the stream.
    fn mark(&mut self) -> Result<(), Fault>;

    /// Whether the device is past the mark.
    ///
    /// Errors: what went wrong since.
    fn done(&mut self) -> Result<bool, Fault>;

    /// Gives the communicator up, within seconds, whatever the other ranks do; nothing is called after it.
    fn abort(&mut self);
}

/// Whether a fabric carries such a collective. Sums of halves are added in f32 and rounded once, which NCCL does not: they
/// go through the host.
pub(crate) fn carries(of: &Collective) -> bool {
    let sums = matches!(of.how, How::ReduceScatter | How::AllReduce { fold: FoldKind::Sum });
    !(sums && matches!(of.dtype, Dtype::Bf16 | Dtype::F16))
}

/// Bytes of a collective's operand and of its result.
pub fn lengths(of: &Collective) -> [usize; 2] {
    let (own, size, ranks) = (of.elements, of.dtype.bytes(), of.ranks.max(1));
    let result = match of.how {
        How::AllGather => own * ranks,
        How::ReduceScatter => own / ranks,
        _ => own,
    };
    [own * size, result * size]
}

/// Queues a collective. `theirs`: whether the rank that a permute receives from sends. `peers` are whom it sends to and
/// receives from, by rank.
///
/// Errors: what a call answers; the group is closed then too.
pub(crate) fn queue(
    f: &mut dyn Fabric,
    of: &Collective,
    [operand, result]: [Span; 2],
    [to, from, here]: [usize; 3],
    [sends, theirs]: [bool; 2],
) -> Result<(), Fault> {
    if of.elements == 0 {
        return Ok(());
    }
    match of.how {
        How::Permute { .. } if to == here && sends => f.copy(operand, result),
        How::Permute { .. } if to == here => f.zero(result),
        How::Permute { .. } => {
            if !theirs {
                f.zero(result)?;
            }
            if !sends && !theirs {
                return Ok(());
            }
            f.group(true)?;
            let sent = if sends { f.send(operand, to) } else { Ok(()) };
            let received = sent.and_then(|()| if theirs { f.receive(result, from) } else { Ok(()) });
            let closed = f.group(false);
            received.and(closed)
        }
        How::AllGather => f.all_gather(operand, result),
        How::ReduceScatter => f.reduce_scatter(operand, result, of.dtype),
        How::AllReduce { fold } => f.all_reduce(operand, result, of.dtype, fold),
    }
}
