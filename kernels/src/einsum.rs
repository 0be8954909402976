//! What the einsum kernels share: which axes play which role, and how tiles are dealt.
//!
//! A nest that sums the product of two reads is `y[batch, m, n] = Σ_k a[batch, m, k] · b[batch, n, k]`, where
//! each letter may stand for several axes with strides of their own. Tiles are cut along the last `m` and the
//! last `n` axis; an item is one tile of `n` against a run of tiles of `m`, so that rows of `b` stay in the
//! nearest cache while rows of `a` pass by.

use cubecl::prelude::*;
use omchat_codegen::{Body, Fold, Kind, Nest, Refusal, Schedule, Step, Work};
use omchat_ir::Scalar as Function;

use crate::bind::{Buffers, Slots};
use crate::body::evaluate;
use crate::grid::{Grid, cubes};
use crate::key::Key;
use crate::loops::{Loops, Plan};
use crate::map_plain::nest_of;
use crate::nest::{Cursor, deliver, look, origin, seek};

/// Bytes of `a` that a run of tiles may cover: about half a core's second cache.
const NEAR: usize = 512 << 10;
/// Columns that fill the narrowest vector.
pub(crate) const FEWEST: usize = 4;
/// Most tiles in a run whose sums wait beside a panel.
pub(crate) const RUN: usize = 64;

/// A nest with its kept axes in the order batch, m, n.
#[derive(Clone, Debug)]
pub(crate) struct Roles {
    pub(crate) loops: Loops,
    /// Reads that are multiplied.
    pub(crate) a: usize,
    pub(crate) b: usize,
    /// Axes of each role.
    batch: usize,
    ms: usize,
}

/// The comptime half of an einsum.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Einsum {
    pub(crate) plan: Key<Plan>,
    pub(crate) a: usize,
    pub(crate) b: usize,
    /// The axis along which rows are cut.
    pub(crate) m: usize,
    /// Rows and columns (or vectors of columns) of a tile.
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Tiles of columns that an item takes side by side.
    pub(crate) group: usize,
    /// Elements along k of which columns are packed at once; 1 where none are.
    pub(crate) panel: usize,
    /// Whether the lanes leave a rest along k.
    pub(crate) k_tail: bool,
    /// Whether the tiles leave a rest along n.
    pub(crate) n_tail: bool,
    /// Vectors of a group's columns, where its sums are finished by them; 0 where each tile's are.
    pub(crate) line: usize,
    /// Whether the next tile of columns is asked for while this one is summed.
    pub(crate) ahead: bool,
    /// Whether cores take runs of items.
    pub(crate) cpu: bool,
    /// Where the words of the tiles begin.
    pub(crate) tiles: usize,
}

impl Roles {
    /// The roles of a nest's axes.
    ///
    /// Errors: it is no sum of the product of two float reads, or nothing tells rows from columns.
    pub(crate) fn of(work: &Work) -> Result<Roles, Refusal> {
        Roles::with(work, false)
    }

    /// The same, or turned, so that rows are columns, where that makes columns contiguous in their factor and more than a few: then
    /// the result is written in steps.
    ///
    /// Errors: as [`Roles::of`].
    pub(crate) fn by_columns(work: &Work) -> Result<Roles, Refusal> {
        let fits = |r: &Roles| r.strides(r.b).0 == 1 && r.n() >= FEWEST;
        let roles = Roles::of(work)?;
        if fits(&roles) {
            return Ok(roles);
        }
        Ok(Roles::with(work, true).ok().filter(fits).unwrap_or(roles))
    }

    fn with(work: &Work, turned: bool) -> Result<Roles, Refusal> {
        let nest = nest_of(work)?;
        let (a, b) =
            factors(nest).ok_or_else(|| Refusal("the nest is not a sum of the product of two float reads".into()))?;
        if nest.reads[a].at.is_some() || nest.reads[b].at.is_some() {
            return Err(Refusal("a factor is gathered by ids".into()));
        }
        let short = Loops::of(nest).nest;
        let only = |x: usize, y: usize| -> Vec<usize> {
            (0..short.kept.len())
                .filter(|&i| short.reads[x].strides[i] != 0 && short.reads[y].strides[i] == 0)
                .collect()
        };
        let (in_a, in_b) = (only(a, b), only(b, a));
        // The columns are the side whose last axis is innermost in the result, unless they are turned.
        let swapped = (in_a.last() > in_b.last()) != turned;
        let (a, b, ms, ns) = if swapped { (b, a, in_b, in_a) } else { (a, b, in_a, in_b) };
        if ns.is_empty() {
            return Err(Refusal("no axis belongs to one factor alone: there are no columns".into()));
        }
        let batch: Vec<usize> = (0..short.kept.len()).filter(|i| !ms.contains(i) && !ns.contains(i)).collect();
        let mut order: Vec<Option<usize>> = batch.iter().chain(&ms).map(|&i| Some(i)).collect();
        if ms.is_empty() {
            order.push(None);
        }
        order.extend(ns.iter().map(|&i| Some(i)));
        let loops = Loops { nest: reorder(&short, &order) };
        Ok(Roles { loops, a, b, batch: batch.len(), ms: ms.len().max(1) })
    }

    /// The size of the last m axis, and its place.
    pub(crate) fn m(&self) -> (usize, usize) {
        let axis = self.batch + self.ms - 1;
        (self.loops.nest.kept[axis], axis)
    }

    /// The size of the last n axis.
    pub(crate) fn n(&self) -> usize {
        self.loops.size(self.loops.inner())
    }

    /// The size of the last k axis.
    pub(crate) fn k(&self) -> usize {
        self.loops.nest.folded.last().copied().unwrap_or(1)
    }

    /// Strides of a read along the last n and the last k axis.
    pub(crate) fn strides(&self, read: usize) -> (usize, usize) {
        let s = &self.loops.nest.reads[read].strides;
        (s[self.loops.inner()], s[s.len() - 1])
    }

    /// Tiles of rows that an item takes one after the other.
    pub(crate) fn run(&self, rows: usize, wide: usize, schedule: &Schedule) -> usize {
        let m_tiles = self.m().0.div_ceil(rows);
        let depth = self.loops.nest.depth().max(1);
        let run = match schedule.get("bits") {
            // Beside a panel a run's sums wait: as many tiles as there is room for, but items for all cores.
            64 if schedule.get("panel") > 1 => {
                RUN.min(m_tiles * self.n().div_ceil(wide) / schedule.get("units") as usize).max(1)
            }
            64 => (NEAR / 4 / depth / rows).clamp(1, m_tiles.max(1)),
            // On a GPU a unit takes one tile: there is no cache of its own to keep rows in.
            _ => 1,
        };
        // Runs of one length: cores share out whole runs, and a short last one would leave its core idle.
        m_tiles.div_ceil(m_tiles.div_ceil(run).max(1)).max(1)
    }

    /// Items of all tiles, in runs of that many.
    pub(crate) fn items(&self, rows: usize, wide: usize, run: usize) -> usize {
        let m = self.m().0;
        let outer = self.loops.nest.points() / (m * self.n()).max(1);
        outer * m.div_ceil(rows).div_ceil(run) * self.n().div_ceil(wide)
    }

    /// The plan, the words, the buffers and the grid for tiles of `rows` x `wide` (in `cols` columns or vectors), of
    /// which an item takes `group` side by side.
    pub(crate) fn plan(
        &self,
        rows: usize,
        cols: usize,
        wide: usize,
        group: usize,
        schedule: &Schedule,
    ) -> (Einsum, Vec<u32>, Slots, Slots, Grid) {
        let lanes = schedule.get("lanes") as usize;
        let (plan, mut words, ins, outs) = self.loops.plan(self.loops.inner(), 1, None);
        let (m, axis) = self.m();
        let n_tiles = self.n().div_ceil(wide * group);
        let run = self.run(rows, wide * group, schedule);
        let runs = m.div_ceil(rows).div_ceil(run);
        let items = self.items(rows, wide * group, run) as u32;
        let tiles = words.len();
        words.extend([items, runs as u32, run as u32, n_tiles as u32]);
        let (k_tail, n_tail) = (!self.k().is_multiple_of(lanes), !self.n().is_multiple_of(wide));
        let e = Einsum {
            plan,
            a: self.a,
            b: self.b,
            m: axis,
            rows,
            cols,
            group,
            panel: schedule.get("panel") as usize,
            k_tail,
            n_tail,
            line: 0,
            ahead: false,
            cpu: schedule.get("bits") == 64,
            tiles,
        };
        (e, words, ins, outs, cubes(items, schedule))
    }
}

fn factors(nest: &Nest) -> Option<(usize, usize)> {
    let body = &nest.body;
    let [result] = body.results[..] else { return None };
    let Step::Apply { f: Function::Mul, args, of: Kind::Float } = &body.steps[result] else { return None };
    let read = |s: usize| match body.steps[s] {
        Step::Read { read, kind: Kind::Float } => Some(read),
        _ => None,
    };
    let (a, b) = (read(args[0])?, read(args[1])?);
    (nest.fold == Some(Fold::Sum) && a != b && body.steps.len() == 3).then_some((a, b))
}

/// The nest with its kept axes in that order; `None` is a new axis of size 1.
fn reorder(nest: &Nest, order: &[Option<usize>]) -> Nest {
    let kept = nest.kept.len();
    let pick = |s: &[usize]| -> Vec<usize> {
        order.iter().map(|o| o.map_or(0, |i| s[i])).chain(s[kept.min(s.len())..].iter().copied()).collect()
    };
    let place = |axis: usize| {
        if axis < kept { order.iter().position(|o| *o == Some(axis)).unwrap_or(0) } else { axis - kept + order.len() }
    };
    let rename = |body: &Body| Body {
        steps: body
            .steps
            .iter()
            .map(|s| match s {
                Step::Index { axis } => Step::Index { axis: place(*axis) },
                other => other.clone(),
            })
            .collect(),
        results: body.results.clone(),
    };
    let mut out = nest.clone();
    out.kept = order.iter().map(|o| o.map_or(1, |i| nest.kept[i])).collect();
    for r in &mut out.reads {
        r.strides = pick(&r.strides);
        if let Some(at) = &mut r.at {
            at.strides = pick(&at.strides);
        }
    }
    for w in &mut out.writes {
        w.strides = pick(&w.strides[..kept.min(w.strides.len())]);
    }
    out.body = rename(&nest.body);
    out.epilogue = rename(&nest.epilogue);
    out
}

/// The tile of an item: where its views stand, and which rows and columns it covers.
#[derive(CubeType)]
pub(crate) struct Tile {
    pub(crate) cursor: Cursor,
    /// Tile of columns, or group of them.
    pub(crate) n: u32,
    /// Tiles of rows: from, to.
    pub(crate) from: u32,
    pub(crate) to: u32,
}

/// Whether the item exists.
#[cube]
pub(crate) fn inside(meta: &[u32], item: u32, #[comptime] e: Key<Einsum>) -> bool {
    item < meta[e.tiles]
}

/// The tile of an item.
#[cube]
pub(crate) fn tile(meta: &[u32], operands: &Buffers, item: u32, #[comptime] e: Key<Einsum>) -> Tile {
    let runs = meta[comptime![e.tiles + 1]];
    let run = meta[comptime![e.tiles + 2]];
    let n_tiles = meta[comptime![e.tiles + 3]];
    let n = item % n_tiles;
    let rest = item / n_tiles;
    let from = (rest % runs) * run;
    let m_tiles = (meta[e.m] + comptime![e.rows as u32 - 1]) / comptime![e.rows as u32];
    let mut columns = 1u32.runtime();
    #[unroll]
    for a in comptime![e.m + 1]..comptime![e.plan.kept - 1] {
        columns *= meta[a];
    }
    let outer = rest / runs;
    let start = origin(meta, operands, e.plan.clone());
    let rows = seek(meta, &start, outer / columns, 0usize, e.m, e.plan.clone());
    let cursor = seek(meta, &rows, outer % columns, comptime![e.m + 1], comptime![e.plan.kept - 1], e.plan.clone());
    Tile { cursor, n, from, to: min(from + run, m_tiles) }
}

/// Runs the epilogue on `N` sums of row `row` from column `column` on, and writes.
#[cube]
pub(crate) fn finish<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    c: &Cursor,
    row: u32,
    column: usize,
    sums: Vector<f32, N>,
    #[comptime] e: Key<Einsum>,
) {
    let here = seek(meta, c, row, e.m, comptime![e.m + 1], e.plan.clone());
    finish_here::<N>(meta, operands, results, &here, column, sums, e);
}

/// The same in the row that a cursor stands at.
#[cube]
pub(crate) fn finish_here<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    here: &Cursor,
    column: usize,
    sums: Vector<f32, N>,
    #[comptime] e: Key<Einsum>,
) {
    let inner = comptime![e.plan.kept - 1];
    let mut x = look::<N>(meta, operands, here, column, inner, comptime![e.plan.epilogue.clone()], e.plan.clone());
    x.folded_float = sums;
    let v = evaluate::<N>(&x, comptime![e.plan.epilogue.clone()]);
    deliver::<N>(meta, results, here, column, &v, inner, comptime![e.plan.epilogue.clone()], e.plan.clone());
}

/// A stride of read `read` along `axis`.
#[cube]
pub(crate) fn stride(
    meta: &[u32],
    #[comptime] read: usize,
    #[comptime] axis: usize,
    #[comptime] plan: Key<Plan>,
) -> usize {
    meta[comptime![plan.reads[read].view.words + 1 + axis]] as usize
}
