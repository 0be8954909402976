//! What the attention kernels with shared memory are made of: panels of rows, on their side or as they lie, and the
//! two products of a cube's tile. A unit holds a block of the product in registers; both factors come from panels.
//!
//! The first product (scores) sums along D, a chunk of columns at a time: both factors lie on their side there, so
//! that a unit reads 4 rows as one vector. The second sums along a tile's keys: weights on their side, rows as they lie.

use cubecl::prelude::*;
use omchat_codegen::{Family, Refusal, Schedule, Target};

use crate::bind::{Buffers, Slot};
use crate::grid::looped;
use crate::vector::{Lane, read_float, write_float};

/// Elements in a vector of shared memory.
pub(crate) const LANES: usize = 4;
/// Steps of a product's loop that stand in its text one behind the other.
const STEP: usize = 4;
/// What an unseen key scores.
pub(crate) const MASKED: f32 = -1e30;

/// A vector of a panel.
pub(crate) type Four = Vector<f32, Const<LANES>>;
/// Shared memory of a cube, in vectors.
pub(crate) type Panel = Shared<[Vector<f32, Const<LANES>>]>;
/// A unit's block of a product, in vectors along its columns.
pub(crate) type Sums = Array<Vector<f32, Const<LANES>>>;

/// How a cube shares its tile: all comptime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tiling {
    /// Width of a head.
    pub(crate) d: usize,
    /// Units along the rows of a tile, and along its columns.
    pub(crate) down: usize,
    pub(crate) across: usize,
    /// Vectors of rows and of columns that a unit has of the scores.
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Columns of D that the first product takes at a time.
    pub(crate) chunk: usize,
    /// Rows that the second product takes at a time.
    pub(crate) deep: usize,
    /// Whether units keep to their rows when they fill panels on their side. Else neighbours read neighbours.
    pub(crate) apart: bool,
}

impl Tiling {
    /// Rows of a tile.
    pub(crate) fn m(&self) -> usize {
        self.down * self.rows * LANES
    }

    /// Columns of a tile.
    pub(crate) fn n(&self) -> usize {
        self.across * self.cols * LANES
    }

    pub(crate) fn units(&self) -> usize {
        self.down * self.across
    }

    /// Whether a panel of so many rows is filled by units that keep to theirs.
    fn by_rows(&self, size: usize) -> bool {
        let (fours, units) = (size / LANES, self.units());
        let even = units % fours == 0 && self.chunk % (units / fours) == 0;
        self.apart && (even || fours % units == 0)
    }

    /// Vectors of D that a unit has of the second product.
    pub(crate) fn wide(&self) -> usize {
        self.d.div_ceil(LANES * self.across)
    }

    /// Vectors from a row of a panel on its side to the next: one of room, so that columns meet different banks.
    pub(crate) fn m_pitch(&self) -> usize {
        self.m() / LANES + 1
    }

    pub(crate) fn n_pitch(&self) -> usize {
        self.n() / LANES + 1
    }

    /// Vectors of the panels that the products read by turns.
    pub(crate) fn work(&self) -> usize {
        (self.chunk * (self.m_pitch() + self.n_pitch())).max(self.deep * self.wide() * self.across)
    }

    /// Vectors of a tile of weights.
    pub(crate) fn weights(&self) -> usize {
        self.n() * self.m_pitch()
    }

    /// Turns of the loops of [`scores`].
    pub(crate) fn score_turns(&self) -> usize {
        looped(self.d.div_ceil(self.chunk), looped(self.chunk / STEP, 0))
    }

    /// Turns of the loops of [`add_weighed`].
    pub(crate) fn sum_turns(&self) -> usize {
        looped(self.n() / self.deep, looped(self.deep / STEP, 0))
    }

    /// Bytes of shared memory, with that many words a row and a column beside the panels.
    pub(crate) fn bytes(&self, a_row: usize, a_column: usize) -> usize {
        16 * (self.work() + self.weights()) + 4 * (a_row * self.m() + a_column * self.n())
    }

    /// The deepest chunks that leave room: fewer turns, fewer waits.
    pub(crate) fn fitted(self, bytes: usize, a_row: usize, a_column: usize) -> Option<Tiling> {
        let depths = [32, 16, 8, 4].into_iter().filter(|c| *c <= self.d.next_multiple_of(LANES));
        let all = depths.flat_map(|chunk| [32, 16, 8, 4].map(|deep| Tiling { chunk, deep, ..self }));
        let fits = all.filter(|t| t.bytes(a_row, a_column) <= bytes && t.n() % t.deep == 0);
        fits.max_by_key(|t| (t.chunk.min(16) * t.deep.min(16), t.chunk + t.deep))
    }
}

/// The tiling as the numbers of a schedule.
pub(crate) fn schedule(t: &Tiling) -> Schedule {
    let words = [
        ("bits", 32),
        ("units", t.units()),
        ("across", t.across),
        ("rows", t.rows * LANES),
        ("cols", t.cols * LANES),
        ("chunk", t.chunk),
        ("deep", t.deep),
    ];
    let apart = t.apart.then_some(("apart", 2));
    Schedule(words.map(|(name, n)| (name, n as u32)).into_iter().chain(apart).collect())
}

/// The tiling that a schedule says.
pub(crate) fn tiling(d: usize, schedule: &Schedule) -> Tiling {
    let get = |name: &str| schedule.get(name) as usize;
    Tiling {
        d,
        down: get("units") / get("across"),
        across: get("across"),
        rows: get("rows") / LANES,
        cols: get("cols") / LANES,
        chunk: get("chunk"),
        deep: get("deep"),
        apart: get("apart") == 2,
    }
}

/// Schedules of those shapes (down, across, vectors of rows and of columns a unit) that the target has room for; the
/// first is the largest of which each core has one, of `heads` heads of `rows` rows.
pub(crate) fn schedules(
    target: &Target,
    d: usize,
    (heads, rows): (usize, usize),
    shapes: &[(usize, usize, usize, usize)],
    (a_row, a_column): (usize, usize),
) -> Vec<Schedule> {
    let fitted = shapes.iter().filter_map(|&(down, across, rows, cols)| {
        let t = Tiling { d, down, across, rows, cols, chunk: LANES, deep: LANES, apart: target.software };
        t.fitted(target.shared_bytes, a_row, a_column).filter(|t| t.units() as u32 <= target.max_units)
    });
    let mut all: Vec<Tiling> = fitted.collect();
    let busy = |t: &Tiling| heads * rows.div_ceil(t.m()) >= target.cores as usize && rows * 2 > t.m();
    let best = all.iter().position(busy).unwrap_or(all.len().saturating_sub(1));
    if !all.is_empty() {
        all.rotate_left(best);
    }
    all.iter().map(schedule).collect()
}

/// Refuses devices whose cubes share no memory that is faster than the rest, and heads that are too wide.
pub(crate) fn shares(target: &Target, d: usize) -> Result<(), Refusal> {
    if target.family == Family::Cpu {
        return Err(Refusal("the CPU runtime's units are threads: they share no faster memory".into()));
    }
    if d > 256 {
        return Err(Refusal(format!("a head may be 256 wide, is {d}")));
    }
    Ok(())
}

/// `size` rows' columns `from..from + chunk`, on their side; zeros behind D. Row `r` starts at element `starts[r]`.
#[cube]
pub(crate) fn fill_side(
    operands: &Buffers,
    to: &mut Panel,
    base: usize,
    starts: &Shared<[u32]>,
    from: usize,
    #[comptime] slot: Slot,
    #[comptime] size: usize,
    #[comptime] t: Tiling,
) {
    let pitch = comptime![size / LANES + 1];
    let vectors = comptime![t.chunk * size / LANES];
    if comptime![t.by_rows(size)] {
        fill_by_rows(operands, to, base, starts, from, slot, size, t);
    } else {
        #[unroll]
        for i in 0..comptime![vectors.div_ceil(t.units())] {
            // Units that are neighbours read neighbours.
            let v = UNIT_POS as usize + i * comptime![t.units()];
            let column = v % t.chunk;
            let four = v / t.chunk;
            if comptime![vectors % t.units() == 0] {
                to[base + column * pitch + four] = piece(operands, starts, four, from + column, slot, t);
            } else if v < vectors {
                to[base + column * pitch + four] = piece(operands, starts, four, from + column, slot, t);
            }
        }
    }
}

/// The same by units that keep to their rows, and ask once where those start.
#[cube]
fn fill_by_rows(
    operands: &Buffers,
    to: &mut Panel,
    base: usize,
    starts: &Shared<[u32]>,
    from: usize,
    #[comptime] slot: Slot,
    #[comptime] size: usize,
    #[comptime] t: Tiling,
) {
    let fours = comptime![size / LANES];
    let pitch = comptime![fours + 1];
    let beside = comptime![(t.units() / fours).max(1)];
    #[unroll]
    for f in 0..comptime![fours.div_ceil(t.units())] {
        let four = UNIT_POS as usize % fours + comptime![f * t.units()];
        let begins = begins(starts, four);
        #[unroll]
        for i in 0..comptime![t.chunk / beside] {
            let column = UNIT_POS as usize / fours + comptime![i * beside];
            to[base + column * pitch + four] = quarter(operands, &begins, from + column, slot, t);
        }
    }
}

/// Column `column` of 4 rows.
#[cube]
fn piece(
    operands: &Buffers,
    starts: &Shared<[u32]>,
    four: usize,
    column: usize,
    #[comptime] slot: Slot,
    #[comptime] t: Tiling,
) -> Four {
    quarter(operands, &begins(starts, four), column, slot, t)
}

/// Where 4 rows begin.
#[cube]
fn begins(starts: &Shared<[u32]>, four: usize) -> Sequence<usize> {
    let mut out = Sequence::<usize>::new();
    #[unroll]
    for l in 0..LANES {
        out.push(starts[four * LANES + l] as usize);
    }
    out
}

/// Column `column` of 4 rows that begin there.
#[cube]
fn quarter(
    operands: &Buffers,
    begins: &Sequence<usize>,
    column: usize,
    #[comptime] slot: Slot,
    #[comptime] t: Tiling,
) -> Four {
    let mut inner = column;
    if comptime![!t.d.is_multiple_of(t.chunk)] {
        inner = min(column, comptime![t.d - 1].runtime());
    }
    let mut out = Four::new(0.0f32);
    #[unroll]
    for l in 0..LANES {
        let at = *begins.index(l) + inner;
        out.insert(l, read_float::<Const<1>>(operands, at, 0usize, slot, Lane::Zero).extract(0usize));
    }
    if comptime![!t.d.is_multiple_of(t.chunk)] {
        out = select_many(Vector::new(column < t.d), out, Vector::new(0.0f32));
    }
    out
}

/// Adds what 4 rows, the `i`th of the unit, and its vectors of columns give at one step.
#[cube]
fn add_products(x: Four, y: &Sequence<Four>, acc: &mut Sums, #[comptime] i: usize, #[comptime] cols: usize) {
    #[unroll]
    for l in 0..LANES {
        #[unroll]
        for j in 0..cols {
            let at = comptime![(i * LANES + l) * cols + j];
            acc[at] = fma(Vector::new(x.extract(l)), *y.index(j), acc[at]);
        }
    }
}

/// Adds to the unit's block what a chunk gives: rows from `0` of the panel on, columns from `other` on.
#[cube]
pub(crate) fn products(panel: &mut Panel, other: usize, acc: &mut Sums, #[comptime] t: Tiling) {
    let row = UNIT_POS as usize / t.across;
    let column = UNIT_POS as usize % t.across;
    for turn in 0..comptime![t.chunk / STEP] {
        #[unroll]
        for s in 0..STEP {
            let k = turn * STEP + s;
            let mut y = Sequence::<Four>::new();
            #[unroll]
            for j in 0..t.cols {
                y.push(panel[other + k * comptime![t.n_pitch()] + column + comptime![j * t.across]]);
            }
            #[unroll]
            for i in 0..t.rows {
                let x = panel[k * comptime![t.m_pitch()] + row + comptime![i * t.down]];
                add_products(x, &y, acc, i, t.cols);
            }
        }
    }
}

/// The unit's block of `rows` times `columns`, summed along D. Waits before it writes the panel.
#[cube]
pub(crate) fn scores(
    operands: &Buffers,
    panel: &mut Panel,
    rows: &Shared<[u32]>,
    columns: &Shared<[u32]>,
    acc: &mut Sums,
    #[comptime] slots: (Slot, Slot),
    #[comptime] t: Tiling,
) {
    zero(acc, comptime![t.rows * LANES * t.cols]);
    let other = comptime![t.chunk * t.m_pitch()];
    for c in 0..comptime![t.d.div_ceil(t.chunk)] {
        sync_cube();
        fill_side(operands, panel, 0usize, rows, c * t.chunk, slots.0, comptime![t.m()], t);
        fill_side(operands, panel, other.runtime(), columns, c * t.chunk, slots.1, comptime![t.n()], t);
        sync_cube();
        products(panel, other.runtime(), acc, t);
    }
}

/// `deep` rows from row `from` of a tile on, as they lie; zeros behind D.
#[cube]
fn fill_rows(
    operands: &Buffers,
    to: &mut Panel,
    starts: &Shared<[u32]>,
    from: usize,
    #[comptime] slot: Slot,
    #[comptime] t: Tiling,
) {
    let pitch = comptime![t.wide() * t.across];
    let vectors = comptime![t.deep * pitch];
    #[unroll]
    for i in 0..comptime![vectors.div_ceil(t.units())] {
        let v = UNIT_POS as usize + i * comptime![t.units()];
        let four = v % pitch;
        if comptime![vectors % t.units() == 0] {
            to[v] = span(operands, starts[from + v / pitch] as usize, four * LANES, slot, t);
        } else if v < vectors {
            to[v] = span(operands, starts[from + v / pitch] as usize, four * LANES, slot, t);
        }
    }
}

/// 4 columns of a row.
#[cube]
pub(crate) fn span(
    operands: &Buffers,
    start: usize,
    column: usize,
    #[comptime] slot: Slot,
    #[comptime] t: Tiling,
) -> Four {
    let mut out = Four::new(0.0f32);
    if comptime![t.d.is_multiple_of(LANES * t.across)] {
        out = read_float::<Const<LANES>>(operands, start + column, 1usize, slot, Lane::One);
    } else if comptime![t.d.is_multiple_of(LANES)] {
        if column < t.d {
            out = read_float::<Const<LANES>>(operands, start + column, 1usize, slot, Lane::One);
        }
    } else {
        #[unroll]
        for l in 0..LANES {
            let inner = min(column + l, comptime![t.d - 1].runtime());
            let one = read_float::<Const<1>>(operands, start + inner, 0usize, slot, Lane::Zero).extract(0usize);
            out.insert(l, select(column + l < t.d, one, 0.0f32));
        }
    }
    out
}

/// Adds a tile's rows, weighed, to the unit's block of [rows, D]. Waits before it writes the panel.
#[cube]
pub(crate) fn add_weighed(
    operands: &Buffers,
    panel: &mut Panel,
    weights: &Panel,
    starts: &Shared<[u32]>,
    acc: &mut Sums,
    #[comptime] slot: Slot,
    #[comptime] t: Tiling,
) {
    let row = UNIT_POS as usize / t.across;
    let column = UNIT_POS as usize % t.across;
    for c in 0..comptime![t.n() / t.deep] {
        sync_cube();
        fill_rows(operands, panel, starts, c * t.deep, slot, t);
        sync_cube();
        for turn in 0..comptime![t.deep / STEP] {
            #[unroll]
            for s in 0..STEP {
                let k = turn * STEP + s;
                let mut y = Sequence::<Four>::new();
                #[unroll]
                for j in 0..comptime![t.wide()] {
                    y.push(panel[k * comptime![t.wide() * t.across] + column + comptime![j * t.across]]);
                }
                #[unroll]
                for i in 0..t.rows {
                    let x = weights[(c * t.deep + k) * comptime![t.m_pitch()] + row + comptime![i * t.down]];
                    add_products(x, &y, acc, i, comptime![t.wide()]);
                }
            }
        }
    }
}

/// The unit's block of weights, on its side, where every unit reads it. Waits for nobody.
#[cube]
pub(crate) fn lay_weights(weights: &mut Panel, block: &Sums, #[comptime] t: Tiling) {
    let row = UNIT_POS as usize / t.across;
    let column = UNIT_POS as usize % t.across;
    #[unroll]
    for i in 0..t.rows {
        #[unroll]
        for j in 0..t.cols {
            #[unroll]
            for e in 0..LANES {
                let mut four = Four::new(0.0f32);
                #[unroll]
                for l in 0..LANES {
                    four.insert(l, block[comptime![(i * LANES + l) * t.cols + j]].extract(e));
                }
                let at = (comptime![j * t.across] + column) * LANES + e;
                weights[at * comptime![t.m_pitch()] + row + comptime![i * t.down]] = four;
            }
        }
    }
}

#[cube]
pub(crate) fn zero(acc: &mut Sums, #[comptime] count: usize) {
    #[unroll]
    for i in 0..count {
        acc[i] = Four::new(0.0f32);
    }
}

/// A unit's part of a row of D elements that starts at element `start`, scaled.
#[cube]
pub(crate) fn write_block(
    results: &mut Buffers,
    start: usize,
    acc: &Sums,
    scale: f32,
    #[comptime] row: usize,
    #[comptime] slot: Slot,
    #[comptime] t: Tiling,
) {
    let column = UNIT_POS as usize % t.across;
    #[unroll]
    for j in 0..comptime![t.wide()] {
        let value = acc[comptime![row * t.wide() + j]] * Vector::new(scale);
        let at = (comptime![j * t.across] + column) * LANES;
        if comptime![t.d.is_multiple_of(LANES)] {
            if at < t.d {
                write_float::<Const<LANES>>(results, start + at, 1usize, value, slot, Lane::One);
            }
        } else {
            #[unroll]
            for l in 0..LANES {
                if at + l < t.d {
                    let one = Vector::new(value.extract(l));
                    write_float::<Const<1>>(results, start + at + l, 1usize, one, slot, Lane::One);
                }
            }
        }
    }
}

/// The row of a tile that is the unit's `i * LANES + l`th.
#[cube]
pub(crate) fn row_of(#[comptime] i: usize, #[comptime] l: usize, #[comptime] t: Tiling) -> usize {
    (UNIT_POS as usize / t.across + comptime![i * t.down]) * LANES + l
}
