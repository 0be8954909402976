//! The words and buffers of a chain's stages as one argument of its launch.
//!
//! CubeCL's lists hold arguments in place, some kilobytes a stage that every launch would move from hand to hand, and it
//! looks a kernel up by all of them. Here they are one list, and what tells kernels apart is hashed once.

use cubecl::ir::attributes::BufferIOAttr;
use cubecl::prelude::*;

use crate::bind::{Args, Buffers, BuffersExpand, raw};
use crate::chain::Link;
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

/// The same as a launch is given it.
pub(crate) struct StagesArg {
    links: Key<Vec<Link>>,
    /// By stage its words, its operands, its results, each list in its order.
    buffers: Vec<BufferArg>,
    tally: Tally,
}

/// What of it is compiled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StagesKey(Key<Vec<Link>>, Tally);

impl StagesArg {
    pub(crate) fn new(links: Key<Vec<Link>>, tally: Tally) -> StagesArg {
        let count = links.iter().map(|l| 1 + l.operands.iter().chain(&l.results).sum::<usize>()).sum();
        StagesArg { links, buffers: Vec::with_capacity(count), tally }
    }

    /// Adds the buffers of the next stage.
    ///
    /// Errors: fewer buffers than the work names.
    pub(crate) fn push(&mut self, step: &Step, args: &Args<'_>) -> Result<(), LaunchError> {
        let [operands, results] = step.slots();
        self.buffers.push(raw(args.meta));
        self.buffers.extend(operands.pick("operands", args.operands, args.scratch)?.map(raw));
        self.buffers.extend(results.pick("results", args.results, args.scratch)?.map(raw));
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
        for link in arg.links.iter() {
            some(1, 4, BufferIOAttr::ReadOnly);
            link.operands.iter().zip(SIZES).for_each(|(n, size)| some(*n, size, BufferIOAttr::ReadOnly));
            link.results.iter().zip(SIZES).for_each(|(n, size)| some(*n, size, BufferIOAttr::ReadWrite));
        }
        StagesKey(arg.links, arg.tally)
    }

    fn expand(StagesKey(links, tally): &StagesKey, builder: &mut KernelBuilder) -> StagesExpand {
        Tally::expand(tally, builder);
        let (mut metas, mut operands, mut results) = (vec![], vec![], vec![]);
        for link in links.iter() {
            metas.push(buffer::<u32>(builder));
            operands.push(lists(builder, link.operands));
            results.push(lists(builder, link.results));
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

/// Buffers by storage; halves as they are, since the CPU has them.
fn lists(builder: &mut KernelBuilder, [f32s, i32s, bf16s, f16s]: [usize; 4]) -> BuffersExpand {
    let f32s = (0..f32s).map(|_| buffer::<f32>(builder)).collect();
    let i32s = (0..i32s).map(|_| buffer::<i32>(builder)).collect();
    let bf16s = (0..bf16s).map(|_| buffer::<u16>(builder)).collect();
    let f16s = (0..f16s).map(|_| buffer::<half::f16>(builder)).collect();
    let scope = &builder.scope;
    BuffersExpand {
        f32s: sequence(scope, f32s),
        i32s: sequence(scope, i32s),
        bf16s: sequence(scope, bf16s),
        f16s: sequence(scope, f16s),
        bf16_words: sequence(scope, vec![]),
        f16_words: sequence(scope, vec![]),
        tally: (),
    }
}
