//! Einsums along a contiguous k: y = x·Wᵀ, weights as [out, in], in a register tile of dot products.
//!
//! Implements  a nest that sums the product of two float reads, with any epilogue
//! Schedule    `rows` x `cols` sums a step, `lanes` along k, fewer for a short one; CPU: `units` cores
//! Needs       the innermost folded axis has stride 1 in both factors
//! Cost        2·m·n·k FLOP; `rows + cols` loads for `rows · cols` products
//! Source      register blocking: Goto & van de Geijn 2008, Anatomy of high-performance matrix multiplication

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::bind::{Buffers, Storage};
use crate::chain::Stage;
use crate::einsum::{Einsum, Roles, finish, inside, stride, tile};
use crate::grid::{address, cores, looped};
use crate::key::Key;
use crate::map_plain::{fits, nest_of};
use crate::nest::{Cursor, depth, item, seek};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::{Lane, across, read_float};
use crate::words::{fixed, prefetch};
use crate::{Launch, LaunchError};

/// Tiles of columns side by side whose sums fill a line of the cache: with long rows of results, lines that are
/// written a quarter at a time would be fetched and evicted four times (for 49,152 columns 316 instead of 385 GFLOP/s).
pub(crate) const GROUP: usize = 4;
/// Bytes of a group's factor that stay in a core's first cache beside a tile of rows.
pub(crate) const NEAR: usize = 40 << 10;

/// Rows that are too few to hide how long a tile of columns takes to come: it is asked for while the one before it is summed.
const FEW: usize = 2;
/// Bytes of a tile of columns that wait in a core's first cache for their turn.
const AHEAD: usize = 24 << 10;
/// Bytes of columns that are asked for before the rows are there.
const BEFORE: usize = 32 << 10;
/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Sums dot products, tile by tile.
pub struct EinsumDot;

impl Kernel for EinsumDot {
    fn name(&self) -> &'static str {
        "einsum.dot"
    }

    fn implements(&self) -> Implements {
        Implements::Nest
    }

    fn chains(&self) -> bool {
        true
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let roles = Roles::of(work)?;
        let nest = nest_of(work)?;
        fits(nest, target)?;
        for read in [roles.a, roles.b] {
            let (_, k) = roles.strides(read);
            if k != 1 && roles.k() > 1 {
                return Err(Refusal(format!("k must be contiguous in both factors; read {read} steps by {k}")));
            }
        }
        // A short k fills a shorter vector.
        let lanes = [target.lanes, 8, 4, 2, 1].into_iter().find(|l| *l <= target.lanes && *l <= roles.k());
        let Some(lanes) = lanes else { return Err(Refusal("there is no k".into())) };
        let (bits, units) = match target.family {
            Family::Cpu => (64, cores(target, nest.points().saturating_mul(nest.depth()))),
            _ => (32, target.units),
        };
        let with = |rows: u32, cols: u32| {
            Schedule::new(&[("bits", bits), ("units", units), ("lanes", lanes as u32), ("rows", rows), ("cols", cols)])
        };
        let (m, _) = roles.m();
        let shapes: &[(u32, u32)] = match m {
            1 => &[(1, 4), (1, 8), (1, 2)],
            2 => &[(2, 4), (2, 2)],
            // Taller tiles were slower: their loads are no longer joined into vectors.
            3 => &[(4, 4)],
            _ => &[(4, 4), (2, 4), (4, 2)],
        };
        Ok(shapes.iter().map(|(rows, cols)| with(*rows, *cols)).collect())
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok(roles) = Roles::of(work) else { return usize::MAX };
        let (width, lanes) = (roles.k().max(1), schedule.get("lanes") as usize);
        let sums = looped(roles.loops.nest.depth() / width, looped(width / lanes, 0) + looped(lanes, 0));
        // On a card an item is one tile.
        looped(1, looped(1, sums + looped(schedule.get("rows") as usize, 0)))
    }
}

impl Launch for EinsumDot {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let roles = Roles::of(work).map_err(unfit(self.name()))?;
        let (rows, cols) = (schedule.get("rows") as usize, schedule.get("cols") as usize);
        let (lanes, bits) = (schedule.get("lanes") as usize, address(schedule));
        let near = roles.loops.nest.depth() * cols * GROUP * 4 <= NEAR;
        let group = if schedule.get("bits") == 64 && roles.m().0 > rows && near { GROUP } else { 1 };
        let bytes = roles.loops.nest.reads[roles.b].dtype.bytes();
        let ahead = roles.m().0 <= FEW && roles.k() * cols * bytes <= AHEAD;
        let (mut e, words, ins, outs, (cubes, units)) = roles.plan(rows, cols, cols, group, schedule);
        e.ahead = ahead && schedule.get("bits") == 64;
        let across = group * cols;
        if group > 1 && across.is_multiple_of(lanes) && roles.n().is_multiple_of(across) {
            e.line = across / lanes;
        }
        let e = Key::new(e);
        let stage = Stage::Dot(e.clone());
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| einsum_dot, bits, lanes, cols, b.meta, b.operands, b.results, e.clone()),
        )
        .staged(stage, lanes))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn einsum_dot<N: Size, C: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] e: Key<Einsum>) {
    dots::<N, C>(meta, operands, results, item(e.cpu), e);
}

/// An item: a tile of columns, or a group of them, against a run of tiles of rows.
#[cube]
pub(crate) fn dots<N: Size, C: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    item: u32,
    #[comptime] e: Key<Einsum>,
) {
    if inside(meta, item, e.clone()) {
        let t = tile(meta, operands, item, e.clone());
        let size = meta[comptime![e.plan.kept - 1]] as usize;
        let first = t.n as usize * comptime![e.group * e.cols];
        let mut line = Array::<Vector<f32, N>>::new(comptime![(e.rows * e.line).max(1)]);
        for m in t.from..t.to {
            let row = m * comptime![e.rows as u32];
            for j in 0..e.group {
                let n = first + j * e.cols;
                if n < size {
                    products::<N, C>(meta, operands, results, &t.cursor, row, n, j, &mut line, e.clone());
                }
            }
            if comptime![e.line > 0] {
                for r in 0..min(e.rows as u32, meta[e.m] - row) {
                    for v in 0..e.line {
                        let sums = line[r as usize * e.line + v];
                        let n = first + v * N::value();
                        finish::<N>(meta, operands, results, &t.cursor, row + r, n, sums, e.clone());
                    }
                }
            }
        }
    }
}

/// Asks for the first `BEFORE` bytes of the columns that an item takes, where rows are few: who waits for those knows already
/// where the columns lie.
#[cube]
pub(crate) fn ask_columns(meta: &[u32], operands: &Buffers, item: u32, #[comptime] e: Key<Einsum>) {
    if comptime![e.ahead] {
        let b_slot = comptime![e.plan.reads[e.b].view.slot];
        let step = stride(meta, e.b, comptime![e.plan.kept - 1], e.plan.clone());
        let t = tile(meta, operands, item, e.clone());
        let from = *t.cursor.reads.index(e.b) + t.n as usize * comptime![e.group * e.cols] * step;
        let bytes = comptime![if b_slot.storage == Storage::F32 { 4 } else { 2 }];
        for i in 0..comptime![BEFORE / LINE] {
            prefetch(operands, from + i * comptime![LINE / bytes], b_slot);
        }
    }
}

/// `rows` x `cols` sums of products from row `m` and column `n` on, which are finished, or laid in `line` as tile `tile` of a
/// group of which whole vectors are finished at once.
#[cube]
fn products<N: Size, C: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    c: &Cursor,
    m: u32,
    n: usize,
    tile: usize,
    line: &mut Array<Vector<f32, N>>,
    #[comptime] e: Key<Einsum>,
) {
    // Sums leave the registers, so that what follows is compiled once and not once a row.
    let mut held = Array::<Vector<f32, N>>::new(comptime![e.rows * e.cols]);
    let mut rest = Array::<Vector<f32, C>>::new(e.rows);
    let size = meta[comptime![e.plan.kept - 1]] as usize;
    sums::<N, C>(meta, operands, c, m, n, &mut held, &mut rest, e.clone());
    let one = line.as_mut_slice().as_vectorized_mut().with_vector_size_mut::<Const<1>>();
    for r in 0..min(e.rows as u32, meta[e.m] - m) {
        let mut sums = rest[r as usize];
        #[unroll]
        for j in 0..e.cols {
            sums.insert(j, sums.extract(j) + across::<N>(held[r as usize * e.cols + j], false));
        }
        if comptime![e.line > 0] {
            #[unroll]
            for j in 0..e.cols {
                let at = r as usize * comptime![e.group * e.cols] + tile * e.cols + j;
                one[at] = Vector::new(sums.extract(j));
            }
        } else if comptime![!e.n_tail] {
            finish::<C>(meta, operands, results, c, m + r, n, sums, e.clone());
        } else if n + e.cols <= size {
            finish::<C>(meta, operands, results, c, m + r, n, sums, e.clone());
        } else {
            #[unroll]
            for j in 0..e.cols {
                if n + j < size {
                    finish::<Const<1>>(
                        meta,
                        operands,
                        results,
                        c,
                        m + r,
                        n + j,
                        Vector::new(sums.extract(j)),
                        e.clone(),
                    );
                }
            }
        }
    }
}

/// The sums, and beside them those of elements behind the last vector. Rows and columns past the end repeat the last; they are
/// not written. Where they stand is hidden: LLVM would find it again at each step, on ports that multiply, or by a division
/// (110 instead of 140 GFLOP/s on two cores of an Emerald Rapids; a tower's MLP a third as fast).
#[cube]
pub(crate) fn sums<N: Size, C: Size>(
    meta: &[u32],
    operands: &Buffers,
    c: &Cursor,
    m: u32,
    n: usize,
    held: &mut Array<Vector<f32, N>>,
    rest: &mut Array<Vector<f32, C>>,
    #[comptime] e: Key<Einsum>,
) {
    let last = comptime![e.plan.rank - 1];
    let width = meta[last] as usize;
    let vectors = width / N::value();
    let row_step = stride(meta, e.a, e.m, e.plan.clone());
    let column_step = stride(meta, e.b, comptime![e.plan.kept - 1], e.plan.clone());
    let mut rows = Sequence::<usize>::new();
    #[unroll]
    for r in 0..e.rows {
        let row = min(m + comptime![r as u32], meta[e.m] - 1);
        rows.push(fixed(row as usize * row_step, e.cpu));
    }
    let mut columns = Sequence::<usize>::new();
    #[unroll]
    for j in 0..e.cols {
        let column = min(n + j, meta[comptime![e.plan.kept - 1]] as usize - 1);
        columns.push(fixed(column * column_step, e.cpu));
    }
    let mut acc = Array::<Vector<f32, N>>::new(comptime![e.rows * e.cols]);
    #[unroll]
    for i in 0..comptime![e.rows * e.cols] {
        acc[i] = Vector::new(0.0f32);
    }
    #[unroll]
    for r in 0..e.rows {
        rest[r] = Vector::new(0.0f32);
    }
    let b_slot = comptime![e.plan.reads[e.b].view.slot];
    let next = fixed(e.cols * column_step, e.cpu);
    for k in 0..depth(meta, e.plan.clone()) {
        let outer = seek(meta, c, k, e.plan.kept, last, e.plan.clone());
        let (a, b) = (fixed(*outer.reads.index(e.a), e.cpu), fixed(*outer.reads.index(e.b), e.cpu));
        for j in 0..vectors {
            if comptime![e.ahead] {
                #[unroll]
                for i in 0..e.cols {
                    prefetch(operands, b + *columns.index(i) + next + j * N::value(), b_slot);
                }
            }
            step::<N>(operands, a + j * N::value(), b + j * N::value(), &rows, &columns, &mut acc, e.clone());
        }
        if comptime![e.k_tail] {
            for i in vectors * N::value()..width {
                trail::<C>(operands, a + i, b + i, &rows, &columns, rest, e.clone());
            }
        }
    }
    #[unroll]
    for i in 0..comptime![e.rows * e.cols] {
        held[i] = acc[i];
    }
}

/// One vector along k of every row and column.
#[cube]
fn step<N: Size>(
    operands: &Buffers,
    a: usize,
    b: usize,
    rows: &Sequence<usize>,
    columns: &Sequence<usize>,
    acc: &mut Array<Vector<f32, N>>,
    #[comptime] e: Key<Einsum>,
) {
    let a_slot = comptime![e.plan.reads[e.a].view.slot];
    let b_slot = comptime![e.plan.reads[e.b].view.slot];
    let mut x = Sequence::<Vector<f32, N>>::new();
    #[unroll]
    for r in 0..e.rows {
        x.push(read_float::<N>(operands, a + *rows.index(r), 1usize, a_slot, Lane::One));
    }
    #[unroll]
    for j in 0..e.cols {
        let y = read_float::<N>(operands, b + *columns.index(j), 1usize, b_slot, Lane::One);
        #[unroll]
        for r in 0..e.rows {
            acc[comptime![r * e.cols + j]] = fma(*x.index(r), y, acc[comptime![r * e.cols + j]]);
        }
    }
}

/// One element along k of every row and column.
#[cube]
fn trail<C: Size>(
    operands: &Buffers,
    a: usize,
    b: usize,
    rows: &Sequence<usize>,
    columns: &Sequence<usize>,
    rest: &mut Array<Vector<f32, C>>,
    #[comptime] e: Key<Einsum>,
) {
    let a_slot = comptime![e.plan.reads[e.a].view.slot];
    let b_slot = comptime![e.plan.reads[e.b].view.slot];
    let mut y = Vector::<f32, C>::new(0.0f32);
    #[unroll]
    for j in 0..e.cols {
        y.insert(
            j,
            read_float::<Const<1>>(operands, b + *columns.index(j), 1usize, b_slot, Lane::Zero).extract(0usize),
        );
    }
    #[unroll]
    for r in 0..e.rows {
        let x = read_float::<Const<1>>(operands, a + *rows.index(r), 1usize, a_slot, Lane::Zero).extract(0usize);
        rest[r] = fma(Vector::new(x), y, rest[r]);
    }
}
