//! Prefetch: weights that a GPU is asked to bring near while the launches before their reader leave its memory idle.
//!
//! A decode reads each weight once and is bound by that, but a norm, a rotation or the attention of one token read next to
//! nothing: for the microseconds that they take the memory waits. What is asked for beside them by cubes that wait for no answer lies
//! in the cache that all processors share when its reader begins. Requests are taken no faster than memory answers, so a launch is
//! given no more of them than it would have time for.
//! Source: own.

use crate::horizontal::{TIMES, joins};
use crate::program::{BufferPlan, Chosen, LaunchPlan, Memory};
use crate::select::select;
use crate::{Amount, Context, Error, Work};
use std::collections::HashMap;
use std::ops::Range;

/// Bytes that memory brings in the time of a launch that leaves it idle, some 3 us.
const IDLE: usize = 12 << 20;
/// A weight worth being asked for.
const WORTH: usize = 1 << 20;
/// Most bytes that a launch moves and leaves memory idle.
const LITTLE: u64 = 16 << 20;

/// Bindings that what is asked for beside a launch may take: a buffer and its words each, of no more weights than fit.
const ROOM: usize = 2 * IDLE / WORTH;

/// Launches that are made at once: side by side, or one alone.
struct Slot {
    launches: Range<usize>,
    /// Whether it leaves memory idle: it moves little, and no weight worth asking for.
    idle: bool,
    /// Whether others may stand beside it.
    joins: bool,
    /// What is asked for beside it: buffers, and bytes from their start.
    asked: Vec<(usize, usize)>,
}

/// Adds launches that ask for weights beside those that leave memory idle, and extends the ranges of what is side by side; none but
/// where the target allows it.
///
/// Errors: no kernel asks for memory, though one is in the list.
pub(crate) fn prefetch(
    launches: &mut Vec<LaunchPlan>,
    chosen: &mut Vec<Chosen>,
    beside: &mut Vec<Range<usize>>,
    buffers: &[BufferPlan],
    context: &Context,
) -> Result<(), Error> {
    let target = context.target;
    let asks = context.kernels.iter().any(|k| k.implements() == crate::Implements::Prefetch);
    let worth = buffers.iter().any(|b| b.memory == Memory::Weight && b.ty.bytes() >= WORTH);
    if !target.prefetch || !asks || !worth || context.ranks > 1 {
        return Ok(());
    }
    let mut slots = slots(launches, chosen, beside, buffers, context);
    for reader in 0..slots.len() {
        let first = (0..reader).rev().take_while(|s| slots[*s].idle).last();
        let Some(host) = first.and_then(|f| (f..reader).find(|s| slots[*s].joins)) else { continue };
        let mut left = IDLE;
        for (b, bytes) in weights(&launches[slots[reader].launches.clone()], chosen, buffers) {
            let bytes = bytes.min(left);
            left -= bytes;
            if bytes >= WORTH {
                slots[host].asked.push((b, bytes));
            }
        }
    }
    keep_repeated(&mut slots, launches, buffers);
    let mut out = vec![];
    beside.clear();
    for slot in slots {
        let start = out.len();
        out.extend(launches[slot.launches.clone()].iter().cloned());
        let Some(host) = out.last().map(|l: &LaunchPlan| l.chosen) else { continue };
        for (b, bytes) in slot.asked {
            let work = Work::Prefetch { dtype: buffers[b].ty.dtype, bytes };
            let words = ["units", "lanes", "bits"].map(|w| (w, chosen[host].schedule.get(w)));
            let mut ask = select(work, context)?;
            ask.schedule.0.extend(words);
            let known = chosen.iter().position(|c| c.work == ask.work && c.schedule == ask.schedule);
            let choice = known.unwrap_or_else(|| {
                chosen.push(ask);
                chosen.len() - 1
            });
            out.push(LaunchPlan {
                chosen: choice,
                operands: vec![b],
                results: vec![],
                scratch: None,
                label: "ahead".into(),
            });
        }
        if out.len() > start + 1 {
            beside.push(start..out.len());
        }
    }
    *launches = out;
    Ok(())
}

fn slots(
    launches: &[LaunchPlan],
    chosen: &[Chosen],
    beside: &[Range<usize>],
    buffers: &[BufferPlan],
    context: &Context,
) -> Vec<Slot> {
    let joins: Vec<bool> = chosen.iter().map(|c| joins(c, context)).collect();
    let moved: Vec<u64> = chosen.iter().map(|c| Amount::of(&c.work).map_or(u64::MAX, |a| a.bytes())).collect();
    let mut ranges = beside.iter().peekable();
    let (mut out, mut at) = (vec![], 0);
    while at < launches.len() {
        let range = ranges.next_if(|r| r.start == at).cloned().unwrap_or(at..at + 1);
        let slot = &launches[range.clone()];
        let little = slot.iter().map(|l| moved[l.chosen]).fold(0, u64::saturating_add) <= LITTLE;
        let idle = little && weights(slot, chosen, buffers).is_empty();
        let bound: usize = slot.iter().map(|l| chosen[l.chosen].work.bindings()).sum();
        let joins = slot.iter().all(|l| joins[l.chosen]) && bound + ROOM <= context.target.max_bindings;
        at = range.end;
        out.push(Slot { joins, idle, asked: vec![], launches: range });
    }
    out
}

/// The weights that those launches read whole, in order, and their bytes.
fn weights(launches: &[LaunchPlan], chosen: &[Chosen], buffers: &[BufferPlan]) -> Vec<(usize, usize)> {
    let mut out = vec![];
    for l in launches {
        let Work::Nest(n) = &chosen[l.chosen].work else { continue };
        for r in n.reads.iter().filter(|r| n.fold.is_some() && r.at.is_none()) {
            let (b, bytes) = (l.operands[r.operand], buffers[l.operands[r.operand]].ty.bytes());
            let whole = extent(&n.kept, &n.folded, &r.strides) == buffers[b].ty.elements();
            if buffers[b].memory == Memory::Weight && whole && bytes >= WORTH && !out.contains(&(b, bytes)) {
                out.push((b, bytes));
            }
        }
    }
    out
}

/// Elements that a view has without those that repeat.
fn extent(kept: &[usize], folded: &[usize], strides: &[usize]) -> usize {
    kept.iter().chain(folded).zip(strides).filter(|(_, s)| **s > 0).map(|(n, _)| n).product()
}

/// Drops what is asked for too seldom to be worth a kernel of its own.
fn keep_repeated(slots: &mut [Slot], launches: &[LaunchPlan], buffers: &[BufferPlan]) {
    let of = |s: &Slot| {
        let hosts: Vec<usize> = launches[s.launches.clone()].iter().map(|l| l.chosen).collect();
        let asked: Vec<_> = s.asked.iter().map(|(b, bytes)| (buffers[*b].ty.dtype, *bytes)).collect();
        (hosts, asked)
    };
    let mut times: HashMap<_, usize> = HashMap::new();
    slots.iter().for_each(|s| *times.entry(of(s)).or_default() += 1);
    let seldom: Vec<bool> = slots.iter().map(|s| times[&of(s)] < TIMES).collect();
    slots.iter_mut().zip(seldom).filter(|(_, seldom)| *seldom).for_each(|(s, _)| s.asked.clear());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{IDLE, prefetch};
    use crate::program::{BufferPlan, By, Chosen, LaunchPlan, Memory, Place};
    use crate::{
        Body, Context, Fold, Implements, Kernel, Kind, Nest, Read, Refusal, Schedule, Step, Target, Work, Write,
    };
    use omchat_ir::{Dtype, Type};

    /// A kernel in name.
    struct Named(&'static str, Implements);

    impl Kernel for Named {
        fn name(&self) -> &'static str {
            self.0
        }

        fn implements(&self) -> Implements {
            self.1
        }

        fn schedules(&self, _: &Work, _: &Target) -> Result<Vec<Schedule>, Refusal> {
            Ok(vec![Schedule::new(&[("units", 1)])])
        }

        fn horizontal(&self) -> bool {
            self.0 != "alone"
        }
    }

    /// A sum of the products of `k` elements of operand 0 with each of `n` rows of operand 1; without rows a copy.
    fn choice(kernel: &'static str, n: usize, k: usize) -> Chosen {
        let view = |operand, strides| Read { operand, dtype: Dtype::F32, offset: 0, strides, at: None };
        let mut body = Body::default();
        let first = body.push(Step::Read { read: 0, kind: Kind::Float });
        body.results = vec![first];
        let write = |strides| vec![Write { result: 0, dtype: Dtype::F32, offset: 0, strides, at: None }];
        let nest = if n == 0 {
            let (kept, folded, reads, writes) = (vec![k], vec![], vec![view(0, vec![1])], write(vec![1]));
            Nest { kept, folded, fold: None, reads, body, epilogue: Body::default(), writes }
        } else {
            let reads = vec![view(0, vec![0, 1]), view(1, vec![k, 1])];
            let (kept, folded, fold, epilogue) = (vec![n], vec![k], Some(Fold::Sum), Body::default());
            Nest { kept, folded, fold, reads, body, epilogue, writes: write(vec![1]) }
        };
        let schedule = Schedule::new(&[("units", 64), ("lanes", 2), ("bits", 32)]);
        Chosen { kernel, work: Work::Nest(nest), schedule, scratch: 0, refusals: vec![], by: By::List }
    }

    const LAYERS: usize = 9;

    /// What is asked for beside each launch of some layers, and how many of them there are after it: a copy, a launch that nothing
    /// stands beside, a product of `rows` rows of 1024, and one of as many again.
    fn asked(target: &Target, memory: Memory, rows: usize, layers: usize) -> Vec<Vec<usize>> {
        let mut chosen = vec![choice("copies", 0, 64), choice("alone", 0, 64), choice("sums", rows, 1024)];
        let plan = |memory, shape: &[usize]| BufferPlan { ty: Type::new(Dtype::F32, shape), memory, place: Place::Own };
        let mut buffers = vec![plan(Memory::Workspace, &[1024])];
        let mut launches = vec![];
        for _ in 0..layers {
            for c in [1, 0, 1, 2, 2] {
                let mut operands = vec![0];
                if c == 2 {
                    buffers.push(plan(memory, &[rows, 1024]));
                    operands.push(buffers.len() - 1);
                }
                launches.push(LaunchPlan {
                    chosen: c,
                    operands,
                    results: vec![0],
                    scratch: None,
                    label: c.to_string(),
                });
            }
        }
        let kernels: [&dyn Kernel; 4] = [
            &Named("copies", Implements::Nest),
            &Named("alone", Implements::Nest),
            &Named("sums", Implements::Nest),
            &Named("asks", Implements::Prefetch),
        ];
        let context = Context { target, kernels: &kernels, tuned: None, ranks: 1 };
        let (before, mut beside) = (launches.clone(), vec![]);
        prefetch(&mut launches, &mut chosen, &mut beside, &buffers, &context).unwrap();
        let mut out = vec![];
        for l in &launches {
            match &chosen[l.chosen].work {
                Work::Prefetch { bytes, .. } => {
                    let c = &chosen[l.chosen];
                    assert_eq!((c.kernel, c.schedule.get("units"), c.schedule.get("lanes")), ("asks", 64, 2));
                    out.last_mut().map(|o: &mut Vec<usize>| o.extend([l.operands[0], *bytes])).unwrap();
                }
                _ => out.push(vec![]),
            }
        }
        launches.retain(|l| l.label != "ahead");
        assert_eq!(launches, before, "nothing else moves");
        let joint = out.iter().filter(|o| !o.is_empty()).count();
        assert_eq!(beside.len(), joint);
        out
    }

    #[test]
    fn what_is_read_next_is_asked_for_where_memory_is_idle() {
        let card = Target::cuda(90);
        // 8 MiB a product. Launches leave memory idle before the first product; the second follows a busy one.
        let found = asked(&card, Memory::Weight, 2 << 10, LAYERS);
        let layer = |i: usize| vec![vec![], vec![1 + 2 * i, 8 << 20], vec![], vec![], vec![]];
        assert_eq!(found, (0..LAYERS).flat_map(layer).collect::<Vec<_>>());
        // A launch has time for so much.
        assert_eq!(asked(&card, Memory::Weight, 64 << 10, LAYERS)[1], [1, IDLE]);
        assert!(asked(&card, Memory::Weight, 255, LAYERS)[1].is_empty(), "255 rows are less than a mebibyte");
    }

    #[test]
    fn nothing_is_asked_for_elsewhere() {
        let none = |found: Vec<Vec<usize>>| found.iter().all(Vec::is_empty);
        let card = Target::cuda(90);
        assert!(none(asked(&card, Memory::Workspace, 3 << 10, LAYERS)), "somebody writes it");
        assert!(none(asked(&card, Memory::Weight, 3 << 10, 7)), "seven times are too rare");
        assert!(none(asked(&card.with_cores(82), Memory::Weight, 3 << 10, LAYERS)), "a card with a small cache");
        assert!(none(asked(&Target::wgpu(), Memory::Weight, 3 << 10, LAYERS)));
        assert!(none(asked(&Target::cpu(2), Memory::Weight, 3 << 10, LAYERS)));
    }
}
