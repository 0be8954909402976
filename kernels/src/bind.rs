//! Buffers as kernels take them: lists by storage, because one kernel may read f32, ids and halves.
//!
//! Halves are bound as u16 where the device has it, else as words of two: which of the two lists is filled is decided
//! where the launch goes, and kernels that read by `vector.rs` need not know.

use cubecl::prelude::*;
use cubecl::server::Handle;
use omchat_ir::Dtype;

use crate::LaunchError;
use crate::tally::Tally;

/// A tensor's memory on a device: element 0 of the tensor is the first of the handle, offset and all.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// The memory; it may be a part of an arena. Offsets should be multiples of `Target::align`.
    pub handle: Handle,
    /// Elements there are, of the tensor's dtype.
    pub elements: usize,
}

/// What one launch reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    /// Operands, as the work counts them.
    pub operands: &'a [Buffer],
    /// Results, as the work counts them. A result may share memory with an operand where codegen found it safe.
    pub results: &'a [Buffer],
    /// Memory to work in, of [`Prepared::scratch`](crate::Prepared::scratch) floats; nothing where that is 0.
    pub scratch: Option<&'a Buffer>,
    /// The words of [`Prepared::meta`](crate::Prepared::meta), uploaded once as u32.
    pub meta: &'a Buffer,
}

/// How a kernel sees a buffer. A bf16 is bound as its bits: no target needs a bf16 type, and the widening
/// is a shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Storage {
    F32,
    I32,
    Bf16,
    F16,
}

impl Storage {
    pub(crate) fn of(dtype: Dtype) -> Storage {
        match dtype {
            Dtype::F32 => Storage::F32,
            Dtype::I32 | Dtype::Bool => Storage::I32,
            Dtype::Bf16 => Storage::Bf16,
            Dtype::F16 => Storage::F16,
        }
    }
}

/// Where a kernel finds a buffer: which list, which place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    pub(crate) storage: Storage,
    pub(crate) index: usize,
}

/// Stands in a list for the launch's scratch memory.
pub(crate) const SCRATCH: usize = usize::MAX;

/// Which operands (or results) a kernel binds, in the order of its lists.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    f32s: Vec<usize>,
    i32s: Vec<usize>,
    bf16s: Vec<usize>,
    f16s: Vec<usize>,
}

impl Slots {
    /// The slot of argument `arg`, bound once however often it is named.
    pub(crate) fn slot(&mut self, arg: usize, dtype: Dtype) -> Slot {
        let storage = Storage::of(dtype);
        let list = match storage {
            Storage::F32 => &mut self.f32s,
            Storage::I32 => &mut self.i32s,
            Storage::Bf16 => &mut self.bf16s,
            Storage::F16 => &mut self.f16s,
        };
        let index = list.iter().position(|&a| a == arg).unwrap_or_else(|| {
            list.push(arg);
            list.len() - 1
        });
        Slot { storage, index }
    }

    /// The slot of the launch's scratch memory: floats.
    pub(crate) fn scratch(&mut self) -> Slot {
        self.slot(SCRATCH, Dtype::F32)
    }

    /// The arguments in the order of the bindings.
    pub(crate) fn order(&self) -> impl Iterator<Item = usize> + '_ {
        [&self.f32s, &self.i32s, &self.bf16s, &self.f16s].into_iter().flatten().copied()
    }

    /// Bindings of each list.
    pub(crate) fn counts(&self) -> [usize; 4] {
        [&self.f32s, &self.i32s, &self.bf16s, &self.f16s].map(Vec::len)
    }

    /// Bindings that a launch takes.
    pub(crate) fn len(&self) -> usize {
        self.counts().iter().sum()
    }

    /// The buffers in the order of the bindings.
    ///
    /// Errors: fewer buffers than are named; no scratch memory where some is.
    pub(crate) fn pick<'a>(
        &'a self,
        what: &'static str,
        buffers: &'a [Buffer],
        scratch: Option<&'a Buffer>,
    ) -> Result<impl Iterator<Item = &'a Buffer> + 'a, LaunchError> {
        if self.args() > buffers.len() {
            return Err(LaunchError::Missing { what, need: self.args(), have: buffers.len() });
        }
        if scratch.is_none() && self.f32s.contains(&SCRATCH) {
            return Err(LaunchError::Missing { what: "scratch buffers", need: 1, have: 0 });
        }
        Ok(self.order().filter_map(move |a| if a == SCRATCH { scratch } else { buffers.get(a) }))
    }

    /// One more than the largest argument named.
    pub(crate) fn args(&self) -> usize {
        self.order().filter(|a| *a != SCRATCH).max().map_or(0, |m| m + 1)
    }

    /// The kernel's argument for those buffers.
    pub(crate) fn bind(
        &self,
        what: &'static str,
        buffers: &[Buffer],
        scratch: Option<&Buffer>,
        packed: bool,
        tally: Tally,
    ) -> Result<BuffersLaunch, LaunchError> {
        let mut next = self.pick(what, buffers, scratch)?;
        let [f32s, i32s, bf16s, f16s] = self.counts();
        let (halves, words) = if packed { ([0, 0], [bf16s, f16s]) } else { ([bf16s, f16s], [0, 0]) };
        Ok(BuffersLaunch::new(
            next.by_ref().take(f32s).map(raw).collect(),
            next.by_ref().take(i32s).map(raw).collect(),
            next.by_ref().take(halves[0]).map(raw).collect(),
            next.by_ref().take(halves[1]).map(raw).collect(),
            next.by_ref().take(words[0]).map(in_words).collect(),
            next.by_ref().take(words[1]).map(in_words).collect(),
            tally,
        ))
    }
}

/// A buffer as a launch argument.
pub(crate) fn raw(buffer: &Buffer) -> BufferArg {
    // SAFETY: the length is only used for bounds; kernels index by the plan, which `prepare` made from the
    // same types that codegen sized the buffers from.
    unsafe { BufferArg::from_raw_parts(buffer.handle.clone(), buffer.elements) }
}

/// A buffer of halves as words of two.
pub(crate) fn in_words(buffer: &Buffer) -> BufferArg {
    raw(&Buffer { handle: buffer.handle.clone(), elements: buffer.elements.div_ceil(2) })
}

/// The buffers of a kernel by storage.
#[derive(CubeType, CubeLaunch)]
#[allow(missing_docs)]
pub struct Buffers {
    pub f32s: Sequence<Box<[f32]>>,
    pub i32s: Sequence<Box<[i32]>>,
    pub bf16s: Sequence<Box<[u16]>>,
    pub f16s: Sequence<Box<[half::f16]>>,
    pub bf16_words: Sequence<Box<[u32]>>,
    pub f16_words: Sequence<Box<[u32]>>,
    // Read by no kernel: that it is expanded is the point.
    #[allow(dead_code)]
    pub tally: Tally,
}
