//! Nests made short: axes of size 1 dropped, axes that walk memory together merged, the one that the results
//! are contiguous along put innermost. What is left is split into a comptime [`Plan`] and run-time words.

use omchat_codegen::{At, Body, Fold, Nest, Refusal, Step};

use crate::bind::{Slot, Slots};
use crate::key::Key;
use crate::vector::Lane;

/// The comptime half of a nest: everything but sizes, strides and offsets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    /// Axes that stay; they come first.
    pub(crate) kept: usize,
    /// All axes.
    pub(crate) rank: usize,
    pub(crate) fold: Option<Fold>,
    pub(crate) reads: Vec<ReadPlan>,
    pub(crate) writes: Vec<WritePlan>,
    pub(crate) body: Body,
    pub(crate) epilogue: Body,
    /// Axes whose index some step asks for.
    pub(crate) indexed: Vec<bool>,
    /// The axis that lanes run along.
    pub(crate) along: usize,
    /// One vector an item, so no loop (GPUs).
    pub(crate) single: bool,
    /// Whether the lanes leave a rest.
    pub(crate) tail: bool,
}

/// A view in the words: `[offset, stride of each axis…]` from `words` on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct View {
    pub(crate) slot: Slot,
    pub(crate) words: usize,
    /// Of each axis; only innermost axes are told `One` from `Any`.
    pub(crate) lanes: Vec<Lane>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ReadPlan {
    pub(crate) view: View,
    /// Ids, with `[rows, stride of a row]` after their view's words.
    pub(crate) at: Option<View>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct WritePlan {
    pub(crate) view: View,
    /// A start, with `[last, stride]` after the view's words.
    pub(crate) at: Option<Slot>,
}

/// Words after the sizes: how items cut the kept axes.
pub(crate) const ITEMS: usize = 0;
pub(crate) const PARTS: usize = 1;
pub(crate) const CHUNK: usize = 2;

/// A nest in short form.
#[derive(Clone, Debug)]
pub(crate) struct Loops {
    pub(crate) nest: Nest,
}

impl Loops {
    /// The short form. Yields the same numbers in the same places.
    pub(crate) fn of(nest: &Nest) -> Loops {
        let mut axes: Vec<Axis> = (0..nest.kept.len() + nest.folded.len()).map(|a| Axis::of(nest, a)).collect();
        let map_order = nest.fold != Some(Fold::ArgMax);
        axes.retain(|a| a.size != 1);
        // Innermost is where the first result (then the operands) is contiguous; the order of the folded axes
        // is free unless an index is asked of them.
        axes.sort_by_key(|a| (a.folded, std::cmp::Reverse(if a.folded && !map_order { 0 } else { a.reach() })));
        merge(&mut axes);
        for folded in [false, true] {
            let absent = !axes.iter().any(|a| a.folded == folded);
            if absent && (!folded || nest.fold.is_some()) {
                let at = if folded { axes.len() } else { 0 };
                axes.insert(at, Axis::one(nest, folded));
            }
        }
        Loops { nest: rebuild(nest, &axes) }
    }

    /// Kept axis that is innermost.
    pub(crate) fn inner(&self) -> usize {
        self.nest.kept.len() - 1
    }

    /// Size of an axis.
    pub(crate) fn size(&self, axis: usize) -> usize {
        let kept = self.nest.kept.len();
        if axis < kept { self.nest.kept[axis] } else { self.nest.folded[axis - kept] }
    }

    /// What a vector along that axis costs, in loads a lane: neighbours share one, strangers do not.
    pub(crate) fn cost_along(&self, axis: usize, lanes: usize) -> f64 {
        let used = self.size(axis).clamp(1, lanes) as f64;
        let load = |s: usize| if s <= 1 { 1.0 } else { used };
        let reads: f64 = self
            .nest
            .reads
            .iter()
            .map(|r| {
                load(r.strides[axis]) + r.at.as_ref().map_or(0.0, |a| if a.strides[axis] == 0 { 0.0 } else { used })
            })
            .sum();
        (reads + 1.0) / used
    }

    /// The comptime plan, the words, and the buffers to bind.
    pub(crate) fn plan(&self, along: usize, lanes: usize, chunk: Option<usize>) -> (Key<Plan>, Vec<u32>, Slots, Slots) {
        self.plan_whole(along, lanes, chunk, 1)
    }

    /// The same for a device that takes memory as vectors of `whole` elements, if all positions along `along` that vectors
    /// start at are multiples of it.
    pub(crate) fn plan_whole(
        &self,
        along: usize,
        lanes: usize,
        chunk: Option<usize>,
        whole: usize,
    ) -> (Key<Plan>, Vec<u32>, Slots, Slots) {
        let n = &self.nest;
        let (kept, rank) = (n.kept.len(), n.kept.len() + n.folded.len());
        let mut w = Words {
            words: n.kept.iter().chain(&n.folded).map(|&s| s as u32).collect(),
            inner: [self.inner(), rank - 1],
            rank,
            along,
            whole,
        };
        // Items are rows of the outer kept axes, cut into chunks along the innermost; or single points.
        let width = n.kept[kept - 1];
        let chunk = chunk.unwrap_or(width).max(1);
        let parts = width.div_ceil(chunk);
        let items = n.points() / width.max(1) * parts;
        w.words.extend([items as u32, parts as u32, chunk as u32]);
        let (mut ins, mut outs) = (Slots::default(), Slots::default());
        let reads = n
            .reads
            .iter()
            .map(|r| {
                let view =
                    w.view(ins.slot(r.operand, r.dtype), r.offset, &r.strides, r.at.as_ref().map_or(0, |at| at.stride));
                let at = r.at.as_ref().map(|at| {
                    let view = w.view(ins.slot(at.operand, omchat_ir::Dtype::I32), at.offset, &at.strides, 1);
                    w.words.extend([at.size as u32, at.stride as u32]);
                    view
                });
                ReadPlan { view, at }
            })
            .collect();
        let writes = n
            .writes
            .iter()
            .map(|o| {
                let view =
                    w.view(outs.slot(o.result, o.dtype), o.offset, &o.strides, o.at.as_ref().map_or(0, |at| at.stride));
                let at = o.at.as_ref().map(|at| {
                    w.words.extend([at.last as u32, at.stride as u32]);
                    ins.slot(at.operand, omchat_ir::Dtype::I32)
                });
                WritePlan { view, at }
            })
            .collect();
        let mut indexed = vec![false; rank];
        for step in n.body.steps.iter().chain(&n.epilogue.steps) {
            if let Step::Index { axis } = step {
                indexed[*axis] = true;
            }
        }
        let single = along < kept && chunk == lanes && (lanes == 1 || lanes == whole);
        let tail = lanes > 1 && !self.size(along).is_multiple_of(lanes);
        let (body, epilogue) = (n.body.clone(), n.epilogue.clone());
        let plan = Plan { kept, rank, fold: n.fold, reads, writes, body, epilogue, indexed, along, single, tail };
        (Key::new(plan), w.words, ins, outs)
    }
}

/// Whether all places of a view are multiples of `of` but for how far it goes along one axis: its offset, its other strides,
/// and what an id or a start moves it by.
pub(crate) fn whole(offset: usize, strides: &[usize], step: usize, along: usize, of: usize) -> bool {
    let others = strides.iter().enumerate().filter(|(axis, _)| *axis != along).map(|(_, stride)| *stride);
    others.chain([offset, step]).all(|n| n.is_multiple_of(of))
}

/// Refuses what 32-bit indices cannot reach.
pub(crate) fn addressable(nest: &Nest) -> Result<(), Refusal> {
    const MOST: usize = 1 << 31;
    let reads = nest.reads.iter().map(|r| span(nest, r.offset, &r.strides, rows(&r.at)));
    let start = |w: &omchat_codegen::Write| w.at.as_ref().map_or(0, |a| a.last.saturating_mul(a.stride));
    let writes = nest.writes.iter().map(|w| span(nest, w.offset, &w.strides, start(w)));
    let most = reads.chain(writes).chain([nest.points(), nest.depth()]).max().unwrap_or(0);
    if most >= MOST {
        return Err(Refusal(format!("indices are 32-bit: at most {MOST} elements, not {most}")));
    }
    Ok(())
}

/// The most bytes that one view of the nest spans.
pub(crate) fn widest(nest: &Nest) -> usize {
    let reads =
        nest.reads.iter().map(|r| span(nest, r.offset, &r.strides, rows(&r.at)).saturating_mul(r.dtype.bytes()));
    let writes = nest.writes.iter().map(|w| span(nest, w.offset, &w.strides, 0).saturating_mul(w.dtype.bytes()));
    reads.chain(writes).max().unwrap_or(0)
}

/// One more than the last element that a view reaches.
fn span(nest: &Nest, offset: usize, strides: &[usize], extra: usize) -> usize {
    let sizes = nest.kept.iter().chain(&nest.folded);
    sizes.zip(strides).fold(offset.saturating_add(extra).saturating_add(1), |n, (&s, &t)| {
        n.saturating_add(s.saturating_sub(1).saturating_mul(t))
    })
}

/// How far ids move a view.
fn rows(at: &Option<At>) -> usize {
    at.as_ref().map_or(0, |a| a.size.saturating_sub(1).saturating_mul(a.stride))
}

/// An axis with its strides in every view: reads, ids, writes.
#[derive(Clone)]
struct Axis {
    size: usize,
    folded: bool,
    reads: Vec<usize>,
    ids: Vec<usize>,
    writes: Vec<usize>,
    /// The axes of the nest it came from; one whose index is asked for stays alone.
    from: Vec<usize>,
    indexed: bool,
}

impl Axis {
    fn of(nest: &Nest, a: usize) -> Axis {
        let kept = nest.kept.len();
        let steps = nest.body.steps.iter().chain(&nest.epilogue.steps);
        Axis {
            size: if a < kept { nest.kept[a] } else { nest.folded[a - kept] },
            folded: a >= kept,
            reads: nest.reads.iter().map(|r| r.strides.get(a).copied().unwrap_or(0)).collect(),
            ids: nest
                .reads
                .iter()
                .map(|r| r.at.as_ref().and_then(|at| at.strides.get(a).copied()).unwrap_or(0))
                .collect(),
            writes: nest
                .writes
                .iter()
                .map(|w| if a < kept { w.strides.get(a).copied().unwrap_or(0) } else { 0 })
                .collect(),
            from: vec![a],
            indexed: steps.into_iter().any(|s| matches!(s, Step::Index { axis } if *axis == a)),
        }
    }

    fn one(nest: &Nest, folded: bool) -> Axis {
        let (r, w) = (nest.reads.len(), nest.writes.len());
        Axis { size: 1, folded, reads: vec![0; r], ids: vec![0; r], writes: vec![0; w], from: vec![], indexed: false }
    }

    /// How far a step goes: by the first result, else by the operands together.
    fn reach(&self) -> usize {
        match self.writes.first() {
            Some(&w) if !self.folded => w,
            _ => self.reads.iter().sum(),
        }
    }

    fn joins(&self, inner: &Axis) -> bool {
        let walk = |o: &[usize], i: &[usize]| o.iter().zip(i).all(|(&o, &i)| o == i * inner.size);
        self.folded == inner.folded
            && !self.indexed
            && !inner.indexed
            && walk(&self.reads, &inner.reads)
            && walk(&self.ids, &inner.ids)
            && walk(&self.writes, &inner.writes)
    }
}

fn merge(axes: &mut Vec<Axis>) {
    let mut i = axes.len();
    while i > 1 {
        i -= 1;
        if axes[i - 1].joins(&axes[i]) {
            let outer = axes.remove(i - 1);
            axes[i - 1].size *= outer.size;
        }
    }
}

fn rebuild(nest: &Nest, axes: &[Axis]) -> Nest {
    let sizes = |folded: bool| axes.iter().filter(|a| a.folded == folded).map(|a| a.size).collect();
    let renamed = |body: &Body| Body {
        steps: body
            .steps
            .iter()
            .map(|s| match s {
                Step::Index { axis } => match axes.iter().position(|a| a.from.contains(axis)) {
                    Some(axis) => Step::Index { axis },
                    None => Step::Int { value: 0 },
                },
                other => other.clone(),
            })
            .collect(),
        results: body.results.clone(),
    };
    let mut out = nest.clone();
    out.kept = sizes(false);
    out.folded = sizes(true);
    for (r, read) in out.reads.iter_mut().enumerate() {
        read.strides = axes.iter().map(|a| a.reads[r]).collect();
        if let Some(at) = &mut read.at {
            at.strides = axes.iter().map(|a| a.ids[r]).collect();
        }
    }
    for (w, write) in out.writes.iter_mut().enumerate() {
        write.strides = axes.iter().map(|a| a.writes[w]).collect();
    }
    out.body = renamed(&nest.body);
    out.epilogue = renamed(&nest.epilogue);
    out
}

struct Words {
    words: Vec<u32>,
    inner: [usize; 2],
    rank: usize,
    along: usize,
    whole: usize,
}

impl Words {
    /// `step`: by how many elements an id moves the view.
    fn view(&mut self, slot: Slot, offset: usize, strides: &[usize], step: usize) -> View {
        let whole = self.whole > 1 && whole(offset, strides, step, self.along, self.whole);
        let words = self.words.len();
        self.words.push(offset as u32);
        let mut lanes = Vec::with_capacity(self.rank);
        for axis in 0..self.rank {
            let stride = strides.get(axis).copied().unwrap_or(0);
            self.words.push(stride as u32);
            lanes.push(match Lane::of(stride) {
                Lane::One if !self.inner.contains(&axis) => Lane::Any,
                Lane::One if whole && axis == self.along => Lane::Whole,
                lane => lane,
            });
        }
        View { slot, words, lanes }
    }
}
