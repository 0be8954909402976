//! Einsums of any layout on GPUs: tiles in shared memory, a block of sums in the registers of each unit.
//!
//! Implements  a nest that sums the product of two float reads, with any epilogue
//! Schedule    a cube a tile of `m` x `n`, `k` elements of both factors at a time; a unit `rows` x `cols` sums; `split` cubes share k
//! Needs       a GPU; at least 9 rows and 8 columns
//! Cost        2·m·n·k FLOP in f32; each factor read once a row (or column) of tiles; with `split` a second launch adds the parts
//! Source      Volkov & Demmel 2008, Benchmarking GPUs to tune dense linear algebra; CUTLASS, efficient GEMM

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::bind::{Buffers, Slot};
use crate::einsum::Roles;
use crate::einsum_split::{parts, prepared, scratch, steps_of, with_cuts};
use crate::einsum_tiles::{Factor, Laid, Spot, Tiles, exists, factor_a, factor_b, fold_offset, leave, shares, spot};
use crate::grid::{address, looped};
use crate::key::Key;
use crate::map_plain::{fits, nest_of};
use crate::nest::depth;
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::vector::{Lane, read_float};
use crate::{Launch, LaunchError};

/// Elements in a vector of shared memory.
pub(crate) const LANES: usize = 4;
/// Least rows and columns that a tile is worth; fewer rows are a vector kernel's.
const LEAST: [usize; 2] = [9, 8];

/// Sums tiles out of shared memory.
pub struct EinsumTiled;

/// What a unit does, beside its cube's tile.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Block {
    pub(crate) t: Key<Tiles>,
    /// Rows and columns of a unit, in vectors.
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Units along m and n.
    pub(crate) down: usize,
    pub(crate) across: usize,
}

impl Block {
    /// The block of a schedule, and the tiles that it is of.
    pub(crate) fn of(roles: &Roles, schedule: &Schedule) -> (Block, Laid) {
        let get = |name: &str| schedule.get(name) as usize;
        let mut tiles = roles.tiles([get("m"), get("n"), get("k")], schedule.get("units"), parts(schedule), 1);
        let t = Key::new(Tiles { unroll: schedule.get("unroll") == 1, ..(*tiles.0).clone() });
        tiles.0 = t.clone();
        let (rows, cols) = (get("rows"), get("cols"));
        (Block { t, rows: rows / LANES, cols: cols / LANES, down: get("m") / rows, across: get("n") / cols }, tiles)
    }
}

/// Bytes of shared memory for tiles of that size.
pub(crate) fn bytes(m: usize, n: usize, k: usize) -> usize {
    (m + n + 2 * LANES) * k * 4
}

impl Kernel for EinsumTiled {
    fn name(&self) -> &'static str {
        "einsum.tiled"
    }

    fn implements(&self) -> Implements {
        Implements::Nest
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let roles = Roles::of(work)?;
        fits(nest_of(work)?, target)?;
        Ok(with_cuts(&roles, shapes(&roles, target)?, target))
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        scratch(work, schedule)
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        Roles::of(work).map_or(usize::MAX, |roles| turns(&roles, schedule))
    }
}

/// Schedules that take all of k, best first.
///
/// Errors: a device whose units share no memory; too few rows or columns.
pub(crate) fn shapes(roles: &Roles, target: &Target) -> Result<Vec<Schedule>, Refusal> {
    shares(target, bytes(32, 32, 16), 64)?;
    let (m, _) = roles.m();
    if m < LEAST[0] || roles.n() < LEAST[1] {
        let [rows, columns] = LEAST;
        let has = roles.n();
        return Err(Refusal(format!("a tile takes at least {rows} rows and {columns} columns, not {m} x {has}")));
    }
    let shapes = [(128, 128, 16, 8, 8), (64, 64, 16, 8, 8), (64, 64, 16, 4, 4), (32, 32, 16, 4, 4)];
    let fit = |&(m, n, k, rows, cols): &(usize, usize, usize, usize, usize)| {
        let units = (m / rows * n / cols) as u32;
        let unit_work = target.family == Family::Cuda || units <= 64;
        bytes(m, n, k) <= target.shared_bytes && units <= target.max_units && unit_work
    };
    let mut fitting: Vec<_> = shapes.iter().copied().filter(fit).collect();
    // The largest tiles of which each core has one; where none are that many, the smallest. Tiles half empty are
    // no larger than the next.
    let busy = |&(tm, tn, ..): &(usize, usize, usize, usize, usize)| {
        roles.count(tm, tn) >= target.cores as usize && 2 * m > tm && 2 * roles.n() > tn
    };
    let best = fitting.iter().position(busy).unwrap_or(fitting.len() - 1);
    fitting.rotate_left(best);
    Ok(fitting
        .into_iter()
        .map(|(m, n, k, rows, cols)| {
            Schedule::new(&[
                ("bits", 32),
                ("m", m as u32),
                ("n", n as u32),
                ("k", k as u32),
                ("rows", rows as u32),
                ("cols", cols as u32),
                ("units", (m / rows * n / cols) as u32),
                ("unroll", u32::from(target.family == Family::Cuda)),
            ])
        })
        .collect())
}

/// Turns of a unit's loops.
pub(crate) fn turns(roles: &Roles, schedule: &Schedule) -> usize {
    let get = |name: &str| schedule.get(name) as usize;
    let (width, k) = (roles.k().max(1), get("k"));
    looped(roles.loops.nest.depth() / width, looped(width.div_ceil(k), looped(k, 0)))
        + looped(get("rows"), looped(get("cols"), 0))
}

impl Launch for EinsumTiled {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let roles = Roles::of(work).map_err(unfit(self.name()))?;
        let bits = address(schedule);
        let (block, tiles) = Block::of(&roles, schedule);
        let b = Key::new(block);
        let run: Run = runner!(|bound| einsum_tiled, bits, bound.meta, bound.operands, bound.results, b.clone());
        Ok(prepared(tiles, work, schedule, run))
    }
}

/// Sums of a unit: `rows` vectors of rows by `cols` vectors of columns.
pub(crate) type Sums = Array<Vector<f32, Const<LANES>>>;
/// A tile of a factor: for each k its rows in vectors, and one vector of room so that columns meet different banks.
pub(crate) type Panel = Shared<[Vector<f32, Const<LANES>>]>;

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn einsum_tiled(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] b: Key<Block>) {
    let mut a_tile = Panel::new_slice(comptime![b.t.k * (b.t.m / LANES + 1)]);
    let mut b_tile = Panel::new_slice(comptime![b.t.k * (b.t.n / LANES + 1)]);
    if exists(meta, b.t.clone()) {
        let s = spot(meta, operands, b.t.clone());
        let acc = sums(meta, operands, &s, &mut a_tile, &mut b_tile, b.clone());
        write(meta, operands, results, &s, &acc, b.clone());
    }
}

/// A unit's sums of its cube's tile.
#[cube]
pub(crate) fn sums(
    meta: &[u32],
    operands: &Buffers,
    s: &Spot,
    a_tile: &mut Panel,
    b_tile: &mut Panel,
    #[comptime] b: Key<Block>,
) -> Sums {
    let x = factor_a(meta, s, b.t.clone());
    let y = factor_b(meta, s, b.t.clone());
    let mut acc = Sums::new(comptime![b.rows * b.cols * LANES]);
    #[unroll]
    for i in 0..comptime![b.rows * b.cols * LANES] {
        acc[i] = Vector::new(0.0f32);
    }
    let width = meta[comptime![b.t.e.plan.rank - 1]] as usize;
    let turns = width.div_ceil(b.t.k) as u32;
    let (from, to) = steps_of(s, depth(meta, b.t.e.plan.clone()) * turns, b.t.clone());
    for outer in 0..depth(meta, b.t.e.plan.clone()) {
        let x_at = fold_offset(meta, outer, b.t.e.a, b.t.clone());
        let y_at = fold_offset(meta, outer, b.t.e.b, b.t.clone());
        let mut k = 0usize.runtime();
        let mut last = width;
        if comptime![b.t.parts > 1] {
            let before = outer * turns;
            k = (max(from, before) - before) as usize * b.t.k;
            last = min(width, (max(to, before) - before) as usize * b.t.k);
        }
        while k < last {
            let rows = comptime![(b.t.e.a, b.t.m, b.t.m_tail, b.t.a_along_k)];
            fill(operands, a_tile, &x, x_at, k, width, rows, b.t.clone());
            let columns = comptime![(b.t.e.b, b.t.n, b.t.n_tail, b.t.b_along_k)];
            fill(operands, b_tile, &y, y_at, k, width, columns, b.t.clone());
            sync_cube();
            products(&*a_tile, &*b_tile, &mut acc, b.clone());
            sync_cube();
            k += b.t.k;
        }
    }
    acc
}

/// Which read a tile is of, its rows, whether rows may be missing, and whether neighbours lie along k.
type Side = (usize, usize, bool, bool);

/// Brings `k` columns of a factor from column `k` on into shared memory; zeros behind the last.
#[cube]
fn fill(
    operands: &Buffers,
    to: &mut Panel,
    f: &Factor,
    offset: usize,
    k: usize,
    width: usize,
    #[comptime] side: Side,
    #[comptime] t: Key<Tiles>,
) {
    let slot = comptime![t.e.plan.reads[side.0].view.slot];
    let high = comptime![side.1 / LANES];
    let vectors = comptime![t.k * high];
    #[unroll]
    for i in 0..comptime![vectors.div_ceil(t.units)] {
        let v = UNIT_POS as usize + i * t.units;
        // Units that are neighbours read neighbours.
        let mut kk = v / high;
        let mut q = v % high;
        if comptime![side.3] {
            kk = v % t.k;
            q = v / t.k;
        }
        if comptime![vectors % t.units == 0] {
            to[kk * comptime![high + 1] + q] =
                piece(operands, f, offset, k + kk, width, q * LANES, slot, side.2, t.k_tail);
        } else if v < vectors {
            to[kk * comptime![high + 1] + q] =
                piece(operands, f, offset, k + kk, width, q * LANES, slot, side.2, t.k_tail);
        }
    }
}

/// Elements of `LANES` rows from row `row` on, at column `k`. Rows past the end repeat the last: nobody reads their sums.
#[cube]
fn piece(
    operands: &Buffers,
    f: &Factor,
    offset: usize,
    k: usize,
    width: usize,
    row: usize,
    #[comptime] slot: Slot,
    #[comptime] m_tail: bool,
    #[comptime] k_tail: bool,
) -> Vector<f32, Const<LANES>> {
    let mut inner = k;
    if comptime![k_tail] {
        inner = min(k, width - 1);
    }
    let at = f.at + offset + inner * f.k_step;
    let mut out = Vector::<f32, Const<LANES>>::new(0.0f32);
    #[unroll]
    for l in 0..LANES {
        let mut r = row + l;
        if comptime![m_tail] {
            r = min(r, f.rows - 1);
        }
        out.insert(l, read_float::<Const<1>>(operands, at + r * f.row_step, 1usize, slot, Lane::Zero).extract(0usize));
    }
    if comptime![k_tail] {
        out = select_many(Vector::new(k < width), out, Vector::new(0.0f32));
    }
    out
}

/// Adds what a pair of tiles gives to the sums.
#[cube]
fn products(a: &Panel, b_: &Panel, acc: &mut Sums, #[comptime] b: Key<Block>) {
    let row = UNIT_POS as usize / b.across;
    let column = UNIT_POS as usize % b.across;
    for k in 0..b.t.k {
        let mut y = Sequence::<Vector<f32, Const<LANES>>>::new();
        #[unroll]
        for j in 0..b.cols {
            y.push(b_[k * comptime![b.t.n / LANES + 1] + column + comptime![j * b.across]]);
        }
        #[unroll]
        for i in 0..b.rows {
            let x = a[k * comptime![b.t.m / LANES + 1] + row + comptime![i * b.down]];
            #[unroll]
            for l in 0..LANES {
                #[unroll]
                for j in 0..b.cols {
                    let at = comptime![(i * LANES + l) * b.cols + j];
                    acc[at] = fma(Vector::new(x.extract(l)), *y.index(j), acc[at]);
                }
            }
        }
    }
}

/// The epilogue of a unit's sums.
#[cube]
fn write(meta: &[u32], operands: &Buffers, results: &mut Buffers, s: &Spot, acc: &Sums, #[comptime] b: Key<Block>) {
    let row = UNIT_POS as usize / b.across;
    let column = UNIT_POS as usize % b.across;
    #[unroll(b.t.unroll)]
    for r in 0..comptime![b.rows * LANES] {
        let m = s.m
            + (r as u32 / LANES as u32 * comptime![b.down as u32] + row as u32) * LANES as u32
            + r as u32 % LANES as u32;
        if m < meta[b.t.e.m] {
            #[unroll(b.t.unroll)]
            for j in 0..b.cols {
                let n = s.n + (j * b.across + column) * LANES;
                leave(meta, operands, results, s, m, n, acc[r * b.cols + j], b.t.clone());
            }
        }
    }
}
