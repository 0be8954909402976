//! The words and buffers of several launches as one argument of the launch that they are made as.
//!
//! CubeCL's lists hold arguments in place, some kilobytes a stage that every launch would move from hand to hand, and it
//! looks a kernel up by all of them. Here they are one list, and what tells kernels apart is hashed once.

use cubecl::ir::attributes::BufferIOAttr;
use cubecl::prelude::*;

use crate::bind::{Args, Buffers, BuffersExpand, in_words, raw};
use crate::key::Key;
use crate::prepared::{LaunchError, Step};
use crate::tally::Tally;

/// What each stage reads its words from, reads, and writes.
#[derive(CubeType)]
pub(crate) struct Stages {
    pub(crate) metas: Sequence<Box<[u32]>>,
    pub(crate) operands: Sequence<Buffers>,
    pub(crate) results: Sequence<Buffers>,
}

/// Buffers that a stage reads, and that it writes, by storage.
pub(crate) type Counts = [[usize; 4]; 2];

/// The same as a launch is given it.
pub(crate) struct StagesArg {
    key: StagesKey,
    /// By stage its words, its operands, its results, each list in its order.
    buffers: Vec<BufferArg>,
}

/// What of it is compiled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StagesKey {
    counts: Key<Vec<Counts>>,
    /// Whether halves are bound two to a word.
    packed: bool,
    tally: Tally,
}

impl StagesArg {
    pub(crate) fn new(counts: Key<Vec<Counts>>, packed: bool, tally: Tally) -> StagesArg {
        let count = counts.iter().map(|c| 1 + c.as_flattened().iter().sum::<usize>()).sum();
        StagesArg { key: StagesKey { counts, packed, tally }, buffers: Vec::with_capacity(count) }
    }

    /// Adds the buffers of the next stage.
    ///
    /// Errors: fewer buffers than the work names.
    pub(crate) fn push(&mut self, step: &Step, args: &Args<'_>) -> Result<(), LaunchError> {
        let [operands, results] = step.slots();
        self.buffers.push(raw(args.meta));
        for (slots, what, buffers) in [(operands, "operands", args.operands), (results, "results", args.results)] {
            let [f32s, i32s, ..] = slots.counts();
            let all = slots.pick(what, buffers, args.scratch)?.enumerate();
            let words = |i: usize| self.key.packed && i >= f32s + i32s;
            self.buffers.extend(all.map(|(i, b)| if words(i) { in_words(b) } else { raw(b) }));
        }
        Ok(())
    }
}

/// Bytes of an element of each list.
const SIZES: [usize; 4] = [4, 4, 2, 2];

impl LaunchArg for Stages {
    type RuntimeArg = StagesArg;
    type CompilationArg = StagesKey;

    fn register(arg: StagesArg, launcher: &mut KernelLauncher) -> StagesKey {
        let mut buffers = arg.buffers.into_iter();
        let mut some = |count: usize, size: usize, io: BufferIOAttr| {
            launcher.declare_io(io);
            buffers.by_ref().take(count).for_each(|b| launcher.register_buffer(b, size));
        };
        let sizes = if arg.key.packed { [4; 4] } else { SIZES };
        for [operands, results] in arg.key.counts.iter() {
            some(1, 4, BufferIOAttr::ReadOnly);
            operands.iter().zip(sizes).for_each(|(n, size)| some(*n, size, BufferIOAttr::ReadOnly));
            results.iter().zip(sizes).for_each(|(n, size)| some(*n, size, BufferIOAttr::ReadWrite));
        }
        arg.key
    }

    fn expand(key: &StagesKey, builder: &mut KernelBuilder) -> StagesExpand {
        Tally::expand(&key.tally, builder);
        let (mut metas, mut operands, mut results) = (vec![], vec![], vec![]);
        for [read, written] in key.counts.iter() {
            metas.push(buffer::<u32>(builder));
            operands.push(lists(builder, *read, key.packed));
            results.push(lists(builder, *written, key.packed));
        }
        let scope = &builder.scope;
        StagesExpand {
            metas: sequence(scope, metas),
            operands: sequence(scope, operands),
            results: sequence(scope, results),
        }
    }
}

fn buffer<E: CubePrimitive>(builder: &mut KernelBuilder) -> NativeExpand<Box<[E]>> {
    <Box<[E]> as LaunchArg>::expand(&BufferCompilationArg { inplace: None }, builder)
}

fn sequence<T: CubeType>(scope: &Scope, values: Vec<T::ExpandType>) -> SequenceExpand<T> {
    let mut out = Sequence::<T>::__expand_new(scope);
    values.into_iter().for_each(|v| out.__expand_push_method(scope, v));
    out
}

/// Buffers by storage.
fn lists(builder: &mut KernelBuilder, [f32s, i32s, bf16s, f16s]: [usize; 4], packed: bool) -> BuffersExpand {
    let (halves, words) = if packed { ([0, 0], [bf16s, f16s]) } else { ([bf16s, f16s], [0, 0]) };
    let f32s = (0..f32s).map(|_| buffer::<f32>(builder)).collect();
    let i32s = (0..i32s).map(|_| buffer::<i32>(builder)).collect();
    let bf16s = (0..halves[0]).map(|_| buffer::<u16>(builder)).collect();
    let f16s = (0..halves[1]).map(|_| buffer::<half::f16>(builder)).collect();
    let bf16_words = (0..words[0]).map(|_| buffer::<u32>(builder)).collect();
    let f16_words = (0..words[1]).map(|_| buffer::<u32>(builder)).collect();
    let scope = &builder.scope;
    BuffersExpand {
        f32s: sequence(scope, f32s),
        i32s: sequence(scope, i32s),
        bf16s: sequence(scope, bf16s),
        f16s: sequence(scope, f16s),
        bf16_words: sequence(scope, bf16_words),
        f16_words: sequence(scope, f16_words),
        tally: (),
    }
}
