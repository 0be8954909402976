//! How factors come into shared memory as they are, for matrix units: 16 bytes at a time and asynchronously where a view
//! allows, else element by element.

use cubecl::prelude::*;
use half::{bf16, f16};
use omchat_codegen::{Read, Refusal};
use omchat_ir::Dtype;

use crate::bind::{Buffers, Slot, Storage};
use crate::einsum::Roles;
use crate::einsum_tiles::Factor;

/// Halves in 16 bytes.
pub(crate) const CHUNK: usize = 8;

/// How one factor's tile lies in shared memory, and how it comes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Panel {
    pub(crate) slot: Slot,
    /// Rows (or columns) of the tile, and elements along k.
    pub(crate) rows: usize,
    pub(crate) k: usize,
    /// Whether k is innermost; else rows are.
    pub(crate) along_k: bool,
    /// Whether 16 bytes are copied at a time.
    pub(crate) whole: bool,
    /// Elements in 16 bytes.
    pub(crate) chunk: usize,
    /// Whether rows or k may end inside a tile.
    pub(crate) m_tail: bool,
    pub(crate) k_tail: bool,
    /// Units that share the work.
    pub(crate) units: usize,
}

impl Panel {
    /// Elements from one outer line to the next. 16 bytes of room, so that 8 lines meet different banks; of f32 on their
    /// side 32, so that 4 lines of 8 neighbours do.
    pub(crate) const fn pitch(&self) -> usize {
        if self.along_k { self.k + self.chunk } else { self.rows + CHUNK }
    }

    /// Elements of one tile.
    pub(crate) const fn size(&self) -> usize {
        self.pitch() * if self.along_k { self.rows } else { self.k }
    }
}

impl Roles {
    /// The one narrow dtype of both factors.
    ///
    /// Errors: they are f32, which matrix units would round, or differ.
    pub(crate) fn narrow(&self) -> Result<Dtype, Refusal> {
        let [a, b] = [self.a, self.b].map(|r| self.loops.nest.reads[r].dtype);
        match (a, b) {
            (Dtype::Bf16, Dtype::Bf16) | (Dtype::F16, Dtype::F16) => Ok(a),
            _ => Err(Refusal(format!(
                "matrix units multiply bf16 by bf16 or f16 by f16, not {a} by {b}: f32 would be rounded"
            ))),
        }
    }

    /// Whether every 8 elements of a read along its contiguous axis start at a multiple of 16 bytes and are all inside
    /// or all outside; buffers themselves start at one.
    pub(crate) fn whole(&self, read: usize) -> bool {
        self.whole_by(read, CHUNK)
    }

    /// The same for every `chunk` elements.
    fn whole_by(&self, read: usize, chunk: usize) -> bool {
        let nest = &self.loops.nest;
        let Read { offset, strides, .. } = &nest.reads[read];
        let sizes: Vec<usize> = nest.kept.iter().chain(&nest.folded).copied().collect();
        let Some(along) = strides.iter().rposition(|&s| s == 1) else { return false };
        let row = if read == self.a { self.m().1 } else { self.loops.inner() };
        let tiled = along == row || along + 1 == strides.len();
        let aligned = strides.iter().zip(&sizes).enumerate();
        tiled
            && offset.is_multiple_of(chunk)
            && sizes[along].is_multiple_of(chunk)
            && aligned.fold(true, |yes, (i, (s, &n))| yes && (i == along || n == 1 || s.is_multiple_of(chunk)))
    }

    /// The panel of a read for tiles of `rows` x `k`.
    pub(crate) fn panel(&self, read: usize, slot: Slot, rows: usize, k: usize, units: usize) -> Panel {
        let size = if read == self.a { self.m().0 } else { self.n() };
        let chunk = 16 / self.loops.nest.reads[read].dtype.bytes();
        Panel {
            slot,
            rows,
            k,
            along_k: self.strides(read).1 == 1,
            whole: self.whole_by(read, chunk),
            chunk,
            m_tail: !size.is_multiple_of(rows),
            k_tail: !self.k().is_multiple_of(k),
            units,
        }
    }
}

/// Starts to copy 16 bytes from global to shared memory, or zeros if `from` is empty. The two may name their bits
/// differently; lengths count what the copy is named by, elements of `to`.
#[allow(unused_variables)]
fn copy_16<S: CubePrimitive, D: CubePrimitive>(from: &[S], to: &mut [D]) {
    cubecl::unexpanded!()
}

mod copy_16 {
    use cubecl::prelude::*;

    pub fn expand<S: CubePrimitive, D: CubePrimitive>(scope: &Scope, from: &SliceExpand<S>, to: &mut SliceExpand<D>) {
        // SAFETY: only the Rust type changes, and the copy looks at no element.
        let from: &SliceExpand<D> = unsafe { from.as_type_ref_unchecked() };
        let elements = 16 / D::Scalar::__expand_size(scope);
        barrier::copy_async_checked::expand(scope, from, to, elements as u32);
    }
}

/// Where a slice of shared memory stands in the window that PTX calls shared.
#[cube]
pub(crate) fn shared_address(of: &[f32]) -> u64 {
    let pointer = of.as_ptr();
    let at: u64;
    gpu_asm!("cvta.to.shared.u64 {at}, {p};", at = out(_) at, p = in(_) pointer, options(nomem));
    at
}

/// Where a buffer of halves stands in global memory.
#[allow(unused_assignments)]
#[cube]
pub(crate) fn buffer_address(operands: &Buffers, #[comptime] slot: Slot) -> u64 {
    let mut at = 0u64.runtime();
    if comptime![slot.storage == Storage::Bf16] {
        at = global_address::<u16>(operands.bf16s.index(slot.index));
    } else {
        at = global_address::<f16>(operands.f16s.index(slot.index));
    }
    at
}

#[cube]
fn global_address<E: CubePrimitive>(of: &[E]) -> u64 {
    let pointer = of.as_ptr();
    let at: u64;
    gpu_asm!("cvta.to.global.u64 {at}, {p};", at = out(_) at, p = in(_) pointer, options(nomem));
    at
}

/// Closes a group of copies.
#[cube]
pub(crate) fn commit() {
    gpu_asm!("cp.async.commit_group;");
}

/// Waits until at most `left` groups of copies are under way.
#[cube]
pub(crate) fn wait(#[comptime] left: usize) {
    gpu_asm!("cp.async.wait_group {n};", n = const left);
}

/// An element of a buffer as it is.
#[allow(unused_assignments)]
#[cube]
fn element<F: Float>(operands: &Buffers, at: usize, #[comptime] slot: Slot) -> F {
    let mut out = F::new(0.0);
    if comptime![slot.storage == Storage::Bf16] {
        out = F::cast_from(bf16::reinterpret(operands.bf16s.index(slot.index)[at]));
    } else if comptime![slot.storage == Storage::F32] {
        out = F::cast_from(operands.f32s.index(slot.index)[at]);
    } else {
        out = F::cast_from(operands.f16s.index(slot.index)[at]);
    }
    out
}

/// Brings a tile into `to` from element `into` on: rows from the factor's first, `k` elements from column `k`. Zeros
/// behind the last k; rows past the end are anything finite or not: nobody reads their sums.
#[cube]
pub(crate) fn fill<F: Float>(
    operands: &Buffers,
    to: &mut Shared<[F]>,
    into: usize,
    f: &Factor,
    offset: usize,
    k: usize,
    width: usize,
    #[comptime] p: Panel,
) {
    if comptime![p.whole] {
        let line = comptime![(if p.along_k { p.k } else { p.rows }) / p.chunk];
        let chunks = comptime![p.rows * p.k / p.chunk];
        #[unroll]
        for i in 0..comptime![chunks.div_ceil(p.units)] {
            let v = UNIT_POS as usize + i * p.units;
            let (outer, inner) = (v / line, v % line * p.chunk);
            if comptime![chunks % p.units == 0] {
                chunk::<F>(
                    operands,
                    to,
                    into + outer * comptime![p.pitch()] + inner,
                    f,
                    offset,
                    k,
                    width,
                    outer,
                    inner,
                    p.chunk,
                    p,
                );
            } else if v < chunks {
                chunk::<F>(
                    operands,
                    to,
                    into + outer * comptime![p.pitch()] + inner,
                    f,
                    offset,
                    k,
                    width,
                    outer,
                    inner,
                    p.chunk,
                    p,
                );
            }
        }
    } else {
        let line = comptime![if p.along_k { p.k } else { p.rows }];
        let elements = comptime![p.rows * p.k];
        for i in 0..comptime![elements.div_ceil(p.units)] {
            let v = UNIT_POS as usize + i * p.units;
            if v < elements {
                let (outer, inner) = (v / line, v % line);
                let mut row = outer;
                let mut along = inner;
                if comptime![!p.along_k] {
                    row = inner;
                    along = outer;
                }
                let r = min(row, f.rows - 1);
                let at = f.at + offset + r * f.row_step + min(k + along, width - 1) * f.k_step;
                to[into + outer * comptime![p.pitch()] + inner] =
                    select(k + along < width, element::<F>(operands, at, comptime![p.slot]), F::new(0.0));
            }
        }
    }
}

/// Starts to copy one chunk of a tile, `unit` elements of `to` from element `into` on: the chunk of line `outer` that
/// starts at element `inner` of it.
#[cube]
pub(crate) fn chunk<F: Float>(
    operands: &Buffers,
    to: &mut Shared<[F]>,
    into: usize,
    f: &Factor,
    offset: usize,
    k: usize,
    width: usize,
    outer: usize,
    inner: usize,
    #[comptime] unit: usize,
    #[comptime] p: Panel,
) {
    let mut row = outer;
    let mut along = k + inner;
    if comptime![!p.along_k] {
        row = inner;
        along = k + outer;
    }
    // Along k a row past the end repeats the last; along rows a chunk past the end is zeros.
    let mut inside = true.runtime();
    if comptime![p.k_tail] {
        inside = along < width;
    }
    if comptime![p.m_tail && p.along_k] {
        row = min(row, f.rows - 1);
    } else if comptime![p.m_tail] {
        inside = inside && row < f.rows;
    }
    let at = f.at + offset + row * f.row_step + along * f.k_step;
    let from = select(inside, at, f.at + offset);
    let length = select(inside, unit, 0);
    bring_16::<F>(operands, to, into, from, length, unit, comptime![p.slot]);
}

/// Starts to copy 16 bytes of a buffer, from its element `from` on, to element `into` of shared memory, where they are `unit`
/// elements; zeros if `length` is 0 and not `unit`.
#[cube]
pub(crate) fn bring_16<F: Float>(
    operands: &Buffers,
    to: &mut Shared<[F]>,
    into: usize,
    from: usize,
    length: usize,
    #[comptime] unit: usize,
    #[comptime] slot: Slot,
) {
    if comptime![slot.storage == Storage::Bf16] {
        copy_16::<u16, F>(&operands.bf16s.index(slot.index)[from..from + length], &mut to[into..into + unit]);
    } else if comptime![slot.storage == Storage::F32] {
        copy_16::<f32, F>(&operands.f32s.index(slot.index)[from..from + length], &mut to[into..into + unit]);
    } else {
        copy_16::<f16, F>(&operands.f16s.index(slot.index)[from..from + length], &mut to[into..into + unit]);
    }
}
