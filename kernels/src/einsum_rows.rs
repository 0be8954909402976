//! Einsums with contiguous columns: y = p·v, gradients of weights, any product whose n runs along memory.
//!
//! Implements  a nest that sums the product of two float reads, with any epilogue
//! Schedule    `rows` x `cols` vectors of `lanes` columns a step; CPU: `units` cores
//! Needs       an axis of the result that has stride 1 in one factor, is absent from the other, and fills a vector: the innermost, or the other
//!             factor's, and then the result is written in steps
//! Cost        2·m·n·k FLOP; `rows` scalar and `cols` vector loads for `rows · cols` products
//! Source      outer-product form: Goto & van de Geijn 2008

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::bind::Buffers;
use crate::einsum::{Einsum, FEWEST, Roles, Tile, finish, inside, stride, tile};
use crate::grid::{address, looped};
use crate::key::Key;
use crate::map_plain::{fits, nest_of};
use crate::nest::{Cursor, depth, item, seek};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::{Lane, read_float};
use crate::words::fixed;
use crate::{Launch, LaunchError};

/// Sums rows times scalars, tile by tile.
pub struct EinsumRows;

impl Kernel for EinsumRows {
    fn name(&self) -> &'static str {
        "einsum.rows"
    }

    fn implements(&self) -> Implements {
        Implements::Nest
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let roles = Roles::by_columns(work)?;
        fits(nest_of(work)?, target)?;
        let (n, _) = roles.strides(roles.b);
        if n != 1 {
            return Err(Refusal(format!("columns must be contiguous in their factor; they step by {n}")));
        }
        if roles.n() < FEWEST {
            return Err(Refusal(format!("columns must fill a vector of {FEWEST}, are {}", roles.n())));
        }
        let (m, _) = roles.m();
        if target.family == Family::Cpu {
            return Ok(on_cpu(m, roles.n(), target));
        }
        let with = |rows: u32| {
            Schedule::new(&[("bits", 32), ("units", target.units), ("lanes", 4), ("rows", rows), ("cols", 1)])
        };
        let most = m.min(4) as u32;
        Ok([most, most / 2].into_iter().filter(|r| *r > 0).map(with).collect())
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok(roles) = Roles::by_columns(work) else { return usize::MAX };
        let get = |name: &str| schedule.get(name) as usize;
        let (width, wide) = (roles.k().max(1), get("cols") * get("lanes"));
        let sums = looped(roles.loops.nest.depth() / width, looped(width, 0));
        let tile = sums + looped(get("rows"), looped(get("cols"), 0));
        // On a card an item is one tile; of its columns those behind the last whole tile are summed one by one.
        looped(1, if roles.n().is_multiple_of(wide) { tile } else { looped(wide, tile) })
    }
}

/// The widest tile that the columns fill without a rest; sums and loads fit 32 registers. Then other shapes of about
/// as many sums.
fn on_cpu(m: usize, n: usize, target: &Target) -> Vec<Schedule> {
    let rows = [8, 4, 2, 1].into_iter().find(|&r| r <= m).unwrap_or(1);
    let widths = if rows >= 4 { [2, 3, 1] } else { [4, 3, 1] };
    let shapes = [target.lanes, 8, 4].into_iter().filter(|&l| l <= target.lanes).flat_map(|l| widths.map(|c| (l, c)));
    let whole = |&(l, c): &(usize, usize)| n.is_multiple_of(l * c);
    let (lanes, cols) =
        shapes.clone().find(whole).or_else(|| shapes.clone().find(|(l, c)| l * c <= n)).unwrap_or((4, 1));
    let rows = if cols == 3 && rows == 8 { 6 } else { rows };
    let with = |rows: usize, cols: usize| {
        let fixed = [("bits", 64), ("units", target.cores), ("lanes", lanes as u32)];
        Schedule::new(&[&fixed[..], &[("rows", rows as u32), ("cols", cols as u32)]].concat())
    };
    let mut all = vec![with(rows, cols)];
    let others = [(8, 2), (6, 3), (4, 4), (2, 4), (1, 4)].into_iter().filter(|(r, c)| *r <= m && c * lanes <= n);
    all.extend(others.map(|(r, c)| with(r, c)).filter(|s| *s != all[0]).take(2).collect::<Vec<_>>());
    all
}

impl Launch for EinsumRows {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let roles = Roles::by_columns(work).map_err(unfit(self.name()))?;
        let (rows, cols) = (schedule.get("rows") as usize, schedule.get("cols") as usize);
        let (lanes, bits) = (schedule.get("lanes") as usize, address(schedule));
        let (e, words, ins, outs, (cubes, units)) = roles.plan(rows, cols, cols * lanes, 1, schedule);
        let e = Key::new(e);
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| einsum_rows, bits, lanes, b.meta, b.operands, b.results, e.clone()),
        ))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn einsum_rows<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] e: Key<Einsum>) {
    let item = item(e.cpu);
    if inside(meta, item, e.clone()) {
        let t = tile(meta, operands, item, e.clone());
        let lanes = N::value();
        let n = t.n as usize * comptime![e.cols * lanes];
        let size = meta[comptime![e.plan.kept - 1]] as usize;
        if comptime![!e.n_tail] {
            vectors::<N>(meta, operands, results, &t, n, e.clone());
        } else if n + comptime![e.cols * lanes] <= size {
            vectors::<N>(meta, operands, results, &t, n, e.clone());
        } else {
            for m in t.from..t.to {
                let row = m * comptime![e.rows as u32];
                for column in n..size {
                    products::<Const<1>>(meta, operands, results, &t.cursor, row, column, 1usize, e.clone());
                }
            }
        }
    }
}

/// All tiles of rows of an item, in whole vectors of columns from `n` on.
#[cube]
fn vectors<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    t: &Tile,
    n: usize,
    #[comptime] e: Key<Einsum>,
) {
    for m in t.from..t.to {
        let row = m * comptime![e.rows as u32];
        products::<N>(meta, operands, results, &t.cursor, row, n, e.cols, e.clone());
    }
}

/// `rows` x `cols` vectors of sums from row `m` and column `n` on.
#[cube]
fn products<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    c: &Cursor,
    m: u32,
    n: usize,
    #[comptime] cols: usize,
    #[comptime] e: Key<Einsum>,
) {
    let last = comptime![e.plan.rank - 1];
    let lanes = N::value();
    let rows = places(meta, m, e.clone());
    let mut acc = Array::<Vector<f32, N>>::new(comptime![e.rows * cols]);
    #[unroll]
    for i in 0..comptime![e.rows * cols] {
        acc[i] = Vector::new(0.0f32);
    }
    for k in 0..depth(meta, e.plan.clone()) {
        let outer = seek(meta, c, k, e.plan.kept, last, e.plan.clone());
        let (a, b) = starts(&outer, n, e.clone());
        sweep::<N>(meta, operands, a, b, &rows, &mut acc, cols, e.clone());
    }
    // Sums leave the registers, so that what follows is compiled once and not once a row.
    let mut held = Array::<Vector<f32, N>>::new(comptime![e.rows * cols]);
    #[unroll]
    for i in 0..comptime![e.rows * cols] {
        held[i] = acc[i];
    }
    for r in 0..min(e.rows as u32, meta[e.m] - m) {
        for j in 0..cols {
            finish::<N>(meta, operands, results, c, m + r, n + j * lanes, held[r as usize * cols + j], e.clone());
        }
    }
}

/// Where the factors stand, the columns' at column `n`.
#[cube]
fn starts(outer: &Cursor, n: usize, #[comptime] e: Key<Einsum>) -> (usize, usize) {
    (fixed(*outer.reads.index(e.a), e.cpu), fixed(*outer.reads.index(e.b) + n, e.cpu))
}

/// Where the rows from `m` on begin in their factor. Rows past the end repeat the last; they are not written.
#[cube]
pub(crate) fn places(meta: &[u32], m: u32, #[comptime] e: Key<Einsum>) -> Sequence<usize> {
    let mut rows = Sequence::<usize>::new();
    #[unroll]
    for r in 0..e.rows {
        let row = min(m + comptime![r as u32], meta[e.m] - 1);
        rows.push(fixed(row as usize * stride(meta, e.a, e.m, e.plan.clone()), e.cpu));
    }
    rows
}

/// Adds the products of the elements along k.
#[cube]
#[allow(clippy::too_many_arguments)]
fn sweep<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    a: usize,
    b: usize,
    rows: &Sequence<usize>,
    acc: &mut Array<Vector<f32, N>>,
    #[comptime] cols: usize,
    #[comptime] e: Key<Einsum>,
) {
    let last = comptime![e.plan.rank - 1];
    let lanes = N::value();
    let a_slot = comptime![e.plan.reads[e.a].view.slot];
    let b_slot = comptime![e.plan.reads[e.b].view.slot];
    let a_step = stride(meta, e.a, last, e.plan.clone());
    let b_step = stride(meta, e.b, last, e.plan.clone());
    for i in 0..meta[last] as usize {
        let mut y = Sequence::<Vector<f32, N>>::new();
        #[unroll]
        for j in 0..cols {
            y.push(read_float::<N>(operands, b + i * b_step + comptime![j * lanes], 1usize, b_slot, Lane::One));
        }
        #[unroll]
        for r in 0..e.rows {
            let x = read_float::<Const<1>>(operands, a + *rows.index(r) + i * a_step, 1usize, a_slot, Lane::Zero)
                .extract(0usize);
            #[unroll]
            for j in 0..cols {
                acc[comptime![r * cols + j]] = fma(Vector::new(x), *y.index(j), acc[comptime![r * cols + j]]);
            }
        }
    }
}
