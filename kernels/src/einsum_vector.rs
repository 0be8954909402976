//! Einsums of few rows, as a decode's: every unit of a group walks a part of k of the same 4 columns.
//!
//! Implements  a nest that sums the product of two float reads, with any epilogue
//! Schedule    `rows` sums of 4 columns a group; `split` units share a group's k, `lanes` elements a load; `units` a cube
//! Needs       a GPU; at most 8 rows; the factor with the columns is contiguous along k or along the columns
//! Cost        that factor read once, in whole lines: bandwidth-bound
//! Source      split-k matrix-vector products as in cuBLAS; partial sums meet in planes, then in shared memory

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::bind::{Buffers, Slot};
use crate::einsum::Roles;
use crate::einsum_tiles::{Factor, Tiles, factor_a, factor_b, fold_offset, leave, shares, spot_of};
use crate::grid::{address, looped};
use crate::horizontal::{Part, Side};
use crate::key::Key;
use crate::map_plain::{fits, nest_of};
use crate::nest::depth;
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::{Lane, read_float, read_whole};
use crate::{Launch, LaunchError};

/// Columns of a group.
const COLUMNS: usize = 4;
/// Most rows; more are worth a tile.
const MOST: usize = 8;
/// Planes a core that keep its memory busy.
const PLANES: usize = 16;

/// Sums few rows.
pub struct EinsumVector;

/// How units share the work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Share {
    t: Key<Tiles>,
    rows: usize,
    /// Units of a group.
    split: usize,
    /// Units whose sums one instruction adds; 1 where there is none.
    plane: usize,
    groups: usize,
    /// Whether a load of the columns' factor takes its lanes at once.
    whole: bool,
    /// Whether so does a load of the rows' factor.
    a_whole: bool,
    a_lane: Lane,
    /// Whether loads run along k; else along the columns.
    along_k: bool,
}

impl Share {
    /// Partial sums of a group that meet in shared memory.
    const fn parts(&self) -> usize {
        self.split / self.plane
    }
}

/// Units of a group: so many that the device is busy, so few that each has a few loads to make.
fn split(steps: usize, groups: usize, target: &Target, plane: usize) -> usize {
    let mut split = plane;
    if target.family == Family::Cuda {
        let planes = |split: usize| groups * split / 32;
        while split < 256 && planes(split) < PLANES * target.cores as usize && steps >= 4 * split {
            split *= 2;
        }
    } else {
        while split < 64 && steps >= 16 * split {
            split *= 2;
        }
    }
    split
}

impl Kernel for EinsumVector {
    fn name(&self) -> &'static str {
        "einsum.vector"
    }

    fn implements(&self) -> Implements {
        Implements::Nest
    }

    fn horizontal(&self) -> bool {
        true
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let roles = Roles::of(work)?;
        let nest = nest_of(work)?;
        fits(nest, target)?;
        let (m, _) = roles.m();
        shares(target, 64 * MOST * COLUMNS * 4, 64)?;
        if m > MOST || roles.n() < COLUMNS {
            let n = roles.n();
            return Err(Refusal(format!("takes at most {MOST} rows and at least {COLUMNS} columns, not {m} x {n}")));
        }
        let (n_step, k_step) = roles.strides(roles.b);
        if k_step != 1 && n_step != 1 {
            return Err(Refusal(format!(
                "the columns' factor must be contiguous along k or the columns; it steps by {k_step} and {n_step}"
            )));
        }
        let along_k = k_step == 1 && roles.k() > 1;
        let cuda = target.family == Family::Cuda;
        let narrow = roles.loops.nest.reads[roles.b].dtype.bytes() == 2;
        let lanes = if !along_k {
            1
        } else if cuda && narrow {
            8
        } else {
            4
        };
        let plane = if cuda && along_k { target.plane as usize } else { 1 };
        let groups = nest.points() / m / COLUMNS;
        let best = split(roles.k() / lanes, groups.max(1), target, plane);
        let with = |split: usize| {
            // A group's partial sums are within 16 KiB: 128 units of 8 rows of 4.
            let units = split.max(if cuda { 128 } else { 64 });
            let parts = units / plane * m * COLUMNS * 4;
            (units <= target.max_units as usize && parts <= target.shared_bytes.min(16 << 10)).then(|| {
                Schedule::new(&[
                    ("bits", 32),
                    ("rows", m as u32),
                    ("cols", COLUMNS as u32),
                    ("lanes", lanes as u32),
                    ("split", split as u32),
                    ("plane", plane as u32),
                    ("units", units as u32),
                ])
            })
        };
        Ok([best, best * 2, (best / 2).max(plane)].into_iter().filter_map(with).fold(vec![], |mut all, s| {
            if !all.contains(&s) {
                all.push(s);
            }
            all
        }))
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok(roles) = Roles::of(work) else { return usize::MAX };
        let get = |name: &str| schedule.get(name) as usize;
        let (width, lanes, split) = (roles.k().max(1), get("lanes"), get("split"));
        let along = looped(width.div_ceil(lanes * split), 0) + looped(lanes.div_ceil(split), 0);
        looped(roles.loops.nest.depth() / width, along) + looped(get("rows"), looped(split / get("plane"), 0))
    }
}

impl Launch for EinsumVector {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let roles = Roles::of(work).map_err(unfit(self.name()))?;
        let get = |name: &str| schedule.get(name) as usize;
        let (rows, lanes, bits) = (get("rows"), get("lanes"), address(schedule));
        let groups = get("units") / get("split");
        let (t, words, ins, outs, (cubes, units)) =
            roles.tiles([rows, groups * COLUMNS, lanes], schedule.get("units"), 1, 1);
        let a_lane = Lane::of(roles.strides(roles.a).1);
        // One load of all lanes is for addresses that are multiples of it; only CUDA can take memory so.
        let cuda = get("plane") > 1;
        let whole = cuda && roles.whole(roles.b);
        let a_whole = cuda && roles.strides(roles.a).1 == 1 && roles.whole(roles.a);
        let (split, plane, along_k) = (get("split"), get("plane"), lanes > 1);
        let s = Key::new(Share { t, rows, split, plane, groups, whole, a_whole, a_lane, along_k });
        let part = Part::Vector(s.clone());
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| einsum_vector, bits, lanes, b.meta, b.operands, b.results, s.clone()),
        )
        .beside(Side { part, lanes }))
    }
}

type Sums = Array<Vector<f32, Const<COLUMNS>>>;

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn einsum_vector<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] h: Key<Share>) {
    sum_item::<N>(meta, operands, results, CUBE_POS as u32, h);
}

/// Cubes that have work.
#[cube]
pub(crate) fn items(meta: &[u32], #[comptime] h: Key<Share>) -> u32 {
    meta[h.t.e.tiles]
}

/// What cube `item` sums, if there is such a one.
#[cube]
pub(crate) fn sum_item<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    item: u32,
    #[comptime] h: Key<Share>,
) {
    let mut parts = Shared::<[Vector<f32, Const<COLUMNS>>]>::new_slice(comptime![h.groups * h.parts() * h.rows]);
    if item < items(meta, h.clone()) {
        let s = spot_of(meta, operands, item, h.t.clone());
        let x = factor_a(meta, &s, h.t.clone());
        let y = factor_b(meta, &s, h.t.clone());
        let unit = UNIT_POS as usize;
        // Neighbours read neighbours: along k they share a group, along the columns they are groups side by side.
        let mut group = unit % h.groups;
        let mut place = unit / h.groups;
        if comptime![h.along_k] {
            group = unit / h.split;
            place = unit % h.split;
        }
        let column = group * COLUMNS;
        let mut acc = Sums::new(h.rows);
        #[unroll]
        for r in 0..h.rows {
            acc[r] = Vector::new(0.0f32);
        }
        let width = meta[comptime![h.t.e.plan.rank - 1]] as usize;
        for outer in 0..depth(meta, h.t.e.plan.clone()) {
            let x_at = fold_offset(meta, outer, h.t.e.a, h.t.clone());
            let y_at = fold_offset(meta, outer, h.t.e.b, h.t.clone());
            if comptime![h.along_k] {
                columns::<N>(operands, &x, x.at + x_at, &y, y.at + y_at, column, place, width, &mut acc, h.clone());
            } else {
                rows(operands, &x, x.at + x_at, &y, y.at + y_at, column, place, width, &mut acc, h.clone());
            }
        }
        gather(&acc, &mut parts, group, place, h.clone());
        sync_cube();
        let n = s.n + column;
        for r in 0..h.rows {
            if r % h.split == place {
                let mut sums = parts[group * comptime![h.parts() * h.rows] + r];
                for i in 1..comptime![h.parts()] {
                    sums += parts[(group * h.parts() + i) * h.rows + r];
                }
                if n < meta[comptime![h.t.e.plan.kept - 1]] as usize {
                    leave(meta, operands, results, &s, s.m + r as u32, n, sums, h.t.clone());
                }
            }
        }
    }
}

/// Lays the sums of a unit, or of a plane of units, in shared memory.
#[cube]
fn gather(
    acc: &Sums,
    parts: &mut Shared<[Vector<f32, Const<COLUMNS>>]>,
    group: usize,
    place: usize,
    #[comptime] h: Key<Share>,
) {
    #[unroll]
    for r in 0..h.rows {
        let mut sums = acc[r];
        if comptime![h.plane > 1] {
            #[unroll]
            for j in 0..COLUMNS {
                sums.insert(j, plane_sum(acc[r].extract(j)));
            }
        }
        let lane = place % h.plane;
        if lane == 0 {
            parts[(group * h.parts() + place / h.plane) * h.rows + r] = sums;
        }
    }
}

/// Adds the products of every `split`th vector along k.
#[allow(unused_assignments)]
#[cube]
fn columns<N: Size>(
    operands: &Buffers,
    x: &Factor,
    x_at: usize,
    y: &Factor,
    y_at: usize,
    column: usize,
    place: usize,
    width: usize,
    acc: &mut Sums,
    #[comptime] h: Key<Share>,
) {
    let (a_slot, b_slot) = comptime![(slot(&h.t, h.t.e.a), slot(&h.t, h.t.e.b))];
    let vectors = width / N::value();
    let mut starts = Sequence::<usize>::new();
    #[unroll]
    for j in 0..COLUMNS {
        starts.push(y_at + min(column + j, y.rows - 1) * y.row_step);
    }
    let mut v = place;
    while v < vectors {
        let k = v * N::value();
        let mut right = Sequence::<Vector<f32, N>>::new();
        #[unroll]
        for j in 0..COLUMNS {
            if comptime![h.whole] {
                right.push(read_whole::<N>(operands, *starts.index(j) + k, b_slot));
            } else {
                right.push(read_float::<N>(operands, *starts.index(j) + k, 1usize, b_slot, Lane::One));
            }
        }
        #[unroll]
        for r in 0..h.rows {
            let at = x_at + r * x.row_step + k * x.k_step;
            let mut left = Vector::<f32, N>::empty();
            if comptime![h.a_whole] {
                left = read_whole::<N>(operands, at, a_slot);
            } else {
                left = read_float::<N>(operands, at, x.k_step, a_slot, comptime![h.a_lane]);
            }
            let mut sums = acc[r];
            #[unroll]
            for j in 0..COLUMNS {
                let mut sum = sums.extract(j);
                #[unroll]
                for l in 0..N::value() {
                    sum = fma(left.extract(l), right.index(j).extract(l), sum);
                }
                sums.insert(j, sum);
            }
            acc[r] = sums;
        }
        v += h.split;
    }
    if comptime![h.t.k_tail] {
        let mut k = vectors * N::value() + place;
        while k < width {
            element(operands, x, x_at, &starts, k, acc, h.clone());
            k += h.split;
        }
    }
}

/// Adds the products of one element along k.
#[cube]
fn element(
    operands: &Buffers,
    x: &Factor,
    x_at: usize,
    starts: &Sequence<usize>,
    k: usize,
    acc: &mut Sums,
    #[comptime] h: Key<Share>,
) {
    let (a_slot, b_slot) = comptime![(slot(&h.t, h.t.e.a), slot(&h.t, h.t.e.b))];
    let mut right = Vector::<f32, Const<COLUMNS>>::empty();
    #[unroll]
    for j in 0..COLUMNS {
        let at = *starts.index(j) + k;
        right.insert(j, read_float::<Const<1>>(operands, at, 1usize, b_slot, Lane::Zero).extract(0usize));
    }
    #[unroll]
    for r in 0..h.rows {
        let at = x_at + r * x.row_step + k * x.k_step;
        let left = read_float::<Const<1>>(operands, at, 1usize, a_slot, Lane::Zero).extract(0usize);
        acc[r] = fma(Vector::new(left), right, acc[r]);
    }
}

/// Adds the products of every `split`th element along k, of columns that are neighbours in memory.
#[cube]
fn rows(
    operands: &Buffers,
    x: &Factor,
    x_at: usize,
    y: &Factor,
    y_at: usize,
    column: usize,
    place: usize,
    width: usize,
    acc: &mut Sums,
    #[comptime] h: Key<Share>,
) {
    let (a_slot, b_slot) = comptime![(slot(&h.t, h.t.e.a), slot(&h.t, h.t.e.b))];
    let mut k = place;
    while k < width {
        let mut right = Vector::<f32, Const<COLUMNS>>::empty();
        if comptime![!h.t.n_tail] {
            let at = y_at + column * y.row_step + k * y.k_step;
            right = read_float::<Const<COLUMNS>>(operands, at, y.row_step, b_slot, Lane::Any);
        } else {
            #[unroll]
            for j in 0..COLUMNS {
                let at = y_at + min(column + j, y.rows - 1) * y.row_step + k * y.k_step;
                right.insert(j, read_float::<Const<1>>(operands, at, 1usize, b_slot, Lane::Zero).extract(0usize));
            }
        }
        #[unroll]
        for r in 0..h.rows {
            let at = x_at + r * x.row_step + k * x.k_step;
            let left = read_float::<Const<1>>(operands, at, 1usize, a_slot, Lane::Zero).extract(0usize);
            acc[r] = fma(Vector::new(left), right, acc[r]);
        }
        k += h.split;
    }
}

/// The buffer of a read.
fn slot(t: &Key<Tiles>, read: usize) -> Slot {
    t.e.plan.reads[read].view.slot
}
