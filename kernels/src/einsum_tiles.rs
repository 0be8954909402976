//! What the einsum kernels share whose cubes take a tile of the result each: which tile is whose, where the factors
//! stand along k, and how sums leave.
//!
//! Cubes that run at the same time take tiles from a few rows of tiles, so that both factors stay in the device's
//! cache (Triton's "grouped ordering").

use cubecl::prelude::*;
use omchat_codegen::{Family, Refusal, Target};

use crate::bind::{Buffers, Slots};
use crate::einsum::{Einsum, Roles, finish, stride};
use crate::einsum_split::hold;
use crate::grid::{Grid, one_each};
use crate::key::Key;
use crate::nest::{Cursor, origin, seek};

/// Rows of tiles that cubes walk together.
const GROUP: u32 = 8;

/// The comptime half of an einsum by tiles.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tiles {
    pub(crate) e: Key<Einsum>,
    /// Rows, columns and elements along k of a tile.
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Units of a cube.
    pub(crate) units: usize,
    /// Whether tiles leave a rest along m, n and k.
    pub(crate) m_tail: bool,
    pub(crate) n_tail: bool,
    pub(crate) k_tail: bool,
    /// Whether the rest along n is no whole vector of 4.
    pub(crate) n_odd: bool,
    /// Whether neighbours along k are neighbours in memory.
    pub(crate) a_along_k: bool,
    pub(crate) b_along_k: bool,
    /// Whether loops over registers are unrolled whose bodies are long: a GPU's registers have no index.
    pub(crate) unroll: bool,
    /// Parts of the folded axes, a cube each, whose sums are merged by another launch; 1 where a cube takes all.
    pub(crate) parts: usize,
    /// Whether 4 sums of a part are one store.
    pub(crate) whole: bool,
}

/// The comptime half of an einsum by tiles, its words, its buffers and its grid.
pub(crate) type Laid = (Key<Tiles>, Vec<u32>, Slots, Slots, Grid);

impl Roles {
    /// The comptime half, the words, the buffers and the grid for tiles of `m` x `n` x `k`, `parts` cubes each; `whole` as
    /// for [`Loops::plan_whole`](crate::loops::Loops::plan_whole).
    pub(crate) fn tiles(&self, [m, n, k]: [usize; 3], units: u32, parts: usize, whole: usize) -> Laid {
        let (plan, mut words, ins, outs) = self.loops.plan_whole(self.loops.inner(), 1, None, whole);
        let (rows, axis) = self.m();
        let (m_tiles, n_tiles) = (rows.div_ceil(m), self.n().div_ceil(n));
        let outer = self.loops.nest.points() / (rows * self.n()).max(1);
        let items = (outer * m_tiles * n_tiles) as u32;
        let tiles = words.len();
        words.extend([items * parts as u32, m_tiles as u32, n_tiles as u32]);
        let (k_tail, n_tail) = (!self.k().is_multiple_of(k), !self.n().is_multiple_of(n));
        let e = Einsum {
            plan,
            a: self.a,
            b: self.b,
            m: axis,
            rows: m,
            cols: n,
            group: 1,
            panel: 1,
            k_tail,
            n_tail,
            line: 0,
            ahead: false,
            cpu: false,
            tiles,
        };
        let t = Tiles {
            e: Key::new(e),
            m,
            n,
            k,
            units: units as usize,
            m_tail: !rows.is_multiple_of(m),
            n_tail,
            k_tail,
            n_odd: !self.n().is_multiple_of(4),
            a_along_k: self.strides(self.a).1 == 1,
            b_along_k: self.strides(self.b).1 == 1,
            unroll: true,
            parts,
            whole: whole > 1 && self.n().is_multiple_of(4),
        };
        (Key::new(t), words, ins, outs, one_each(items * parts as u32, units))
    }

    /// Tiles of that size that the result has.
    pub(crate) fn count(&self, m: usize, n: usize) -> usize {
        let rows = self.m().0;
        self.loops.nest.points() / (rows * self.n()).max(1) * rows.div_ceil(m) * self.n().div_ceil(n)
    }
}

/// Refuses devices whose cubes share no memory that is faster than the rest.
pub(crate) fn shares(target: &Target, bytes: usize, units: u32) -> Result<(), Refusal> {
    if target.family == Family::Cpu {
        return Err(Refusal("the CPU runtime's units are threads: they share no faster memory".into()));
    }
    if bytes > target.shared_bytes || units > target.max_units {
        return Err(Refusal(format!(
            "needs {bytes} bytes of shared memory and {units} units, {} has {} and {}",
            target.name, target.shared_bytes, target.max_units
        )));
    }
    Ok(())
}

/// Where a cube works: its views at row 0 and column 0 of its plane of the result, and its tile's first row and column.
#[derive(CubeType)]
pub(crate) struct Spot {
    pub(crate) cursor: Cursor,
    pub(crate) m: u32,
    pub(crate) n: usize,
    /// Its part of the folded axes, and where that part's sums of the plane lie in scratch memory; 0 where nothing is cut.
    pub(crate) part: u32,
    pub(crate) to: usize,
}

/// Whether the cube has a tile.
#[cube]
pub(crate) fn exists(meta: &[u32], #[comptime] t: Key<Tiles>) -> bool {
    (CUBE_POS as u32) < meta[t.e.tiles]
}

/// The tile of this cube.
#[cube]
pub(crate) fn spot(meta: &[u32], operands: &Buffers, #[comptime] t: Key<Tiles>) -> Spot {
    spot_of(meta, operands, CUBE_POS as u32, t)
}

/// Tile `item` of all parts.
#[cube]
pub(crate) fn spot_of(meta: &[u32], operands: &Buffers, item: u32, #[comptime] t: Key<Tiles>) -> Spot {
    let m_tiles = meta[comptime![t.e.tiles + 1]];
    let n_tiles = meta[comptime![t.e.tiles + 2]];
    let mut item = item;
    let mut part = 0u32.runtime();
    let mut to = 0usize.runtime();
    if comptime![t.parts > 1] {
        let each = meta[t.e.tiles] / comptime![t.parts as u32];
        part = item / each;
        // All parts of the planes before, then the planes of this part.
        let plane = item / (m_tiles * n_tiles);
        to = plane as usize * meta[t.e.m] as usize * meta[comptime![t.e.plan.kept - 1]] as usize;
        item %= each;
    }
    let outer = item / (m_tiles * n_tiles);
    let at = item % (m_tiles * n_tiles);
    let group = at / (GROUP * n_tiles);
    let within = at % (GROUP * n_tiles);
    let height = min(GROUP, m_tiles - group * GROUP);
    let cursor = plane(meta, operands, outer, t.clone());
    let m = (group * GROUP + within % height) * comptime![t.m as u32];
    Spot { cursor, m, n: (within / height) as usize * t.n, part, to }
}

/// The views at row 0 and column 0 of plane `outer` of the result.
#[cube]
pub(crate) fn plane(meta: &[u32], operands: &Buffers, outer: u32, #[comptime] t: Key<Tiles>) -> Cursor {
    let mut columns = 1u32.runtime();
    #[unroll]
    for a in comptime![t.e.m + 1]..comptime![t.e.plan.kept - 1] {
        columns *= meta[a];
    }
    let start = origin(meta, operands, t.e.plan.clone());
    let rows = seek(meta, &start, outer / columns, 0usize, t.e.m, t.e.plan.clone());
    let first = comptime![t.e.m + 1];
    let last = comptime![t.e.plan.kept - 1];
    seek(meta, &rows, outer % columns, first, last, t.e.plan.clone())
}

/// One factor of a tile: where its first row and first k stand, and its steps.
#[derive(CubeType)]
pub(crate) struct Factor {
    pub(crate) at: usize,
    /// Rows (or columns) from the tile's first one on.
    pub(crate) rows: usize,
    pub(crate) row_step: usize,
    pub(crate) k_step: usize,
}

/// The factor whose rows are the result's rows.
#[cube]
pub(crate) fn factor_a(meta: &[u32], s: &Spot, #[comptime] t: Key<Tiles>) -> Factor {
    let row_step = stride(meta, t.e.a, t.e.m, t.e.plan.clone());
    let k_step = stride(meta, t.e.a, comptime![t.e.plan.rank - 1], t.e.plan.clone());
    Factor {
        at: *s.cursor.reads.index(t.e.a) + s.m as usize * row_step,
        rows: (meta[t.e.m] - s.m) as usize,
        row_step,
        k_step,
    }
}

/// The factor whose rows are the result's columns.
#[cube]
pub(crate) fn factor_b(meta: &[u32], s: &Spot, #[comptime] t: Key<Tiles>) -> Factor {
    let inner = comptime![t.e.plan.kept - 1];
    let row_step = stride(meta, t.e.b, inner, t.e.plan.clone());
    let k_step = stride(meta, t.e.b, comptime![t.e.plan.rank - 1], t.e.plan.clone());
    Factor { at: *s.cursor.reads.index(t.e.b) + s.n * row_step, rows: meta[inner] as usize - s.n, row_step, k_step }
}

/// How far the outer folded axes move a factor at row `outer` of them.
#[cube]
pub(crate) fn fold_offset(meta: &[u32], outer: u32, #[comptime] read: usize, #[comptime] t: Key<Tiles>) -> usize {
    let mut at = 0usize.runtime();
    let mut rest = outer;
    let axes = comptime![t.e.plan.rank - 1 - t.e.plan.kept];
    #[unroll]
    for j in 0..axes {
        let axis = comptime![t.e.plan.rank - 2 - j];
        let size = meta[axis];
        at += (rest % size) as usize * stride(meta, read, axis, t.e.plan.clone());
        rest /= size;
    }
    at
}

/// Runs the epilogue on 4 sums of a row from column `column` on, and writes those inside; sums of a part are held as they are.
#[cube]
pub(crate) fn leave(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    s: &Spot,
    row: u32,
    column: usize,
    sums: Vector<f32, Const<4>>,
    #[comptime] t: Key<Tiles>,
) {
    if comptime![t.parts > 1] {
        hold(meta, results, s.to, row, column, sums, t.clone());
    } else {
        end(meta, operands, results, &s.cursor, row, column, sums, t.clone());
    }
}

/// Runs the epilogue on 4 sums of a row from column `column` on, and writes those inside.
#[cube]
pub(crate) fn end(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    c: &Cursor,
    row: u32,
    column: usize,
    sums: Vector<f32, Const<4>>,
    #[comptime] t: Key<Tiles>,
) {
    let size = meta[comptime![t.e.plan.kept - 1]] as usize;
    if comptime![!t.n_tail] {
        finish::<Const<4>>(meta, operands, results, c, row, column, sums, t.e.clone());
    } else if comptime![!t.n_odd] {
        if column < size {
            finish::<Const<4>>(meta, operands, results, c, row, column, sums, t.e.clone());
        }
    } else {
        let mut held = Array::<f32>::new(4usize);
        #[unroll]
        for l in 0..4usize {
            held[l] = sums.extract(l);
        }
        for l in 0..4usize {
            if column + l < size {
                finish::<Const<1>>(meta, operands, results, c, row, column + l, Vector::new(held[l]), t.e.clone());
            }
        }
    }
}
