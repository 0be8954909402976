//! Einsums of bf16 or f16 on matrix units: fragments of 16 x 16 x 16 out of a ring of tiles in shared memory.
//!
//! Implements  a nest that sums the product of two reads of bf16 or of f16, with any epilogue
//! Schedule    a cube a tile of `m` x `n`, a plane `rows` x `cols` of it; `stages` tiles of `k` elements under way; `split` cubes share k
//! Needs       CUDA of compute capability 8.0 or more; at least 9 rows and 8 columns
//! Cost        2·m·n·k FLOP in f32 sums of exact products; each factor read once a row (or column) of tiles; with `split` a second launch adds the parts
//! Source      the CUDA C++ `wmma` interface; multistage `cp.async` as in CUTLASS 2

use cubecl::ir::ElemType;
use cubecl::prelude::*;
use half::{bf16, f16};
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::Dtype;

use crate::bind::Buffers;
use crate::einsum::Roles;
use crate::einsum_copies::{Panel, commit, fill, wait};
use crate::einsum_split::{parts, prepared, scratch, steps_of, with_cuts};
use crate::einsum_tiles::{Factor, Spot, Tiles, exists, factor_a, factor_b, fold_offset, leave, shares, spot};
use crate::grid::address;
use crate::key::Key;
use crate::map_plain::{fits, nest_of};
use crate::nest::depth;
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::{Launch, LaunchError};

/// Rows, columns and k of a fragment.
pub(crate) const FRAGMENT: usize = 16;
/// Units of a plane.
pub(crate) const PLANE: usize = 32;
/// Least rows that a fragment is worth; fewer are a vector kernel's.
const LEAST: usize = 9;

/// Sums tiles on matrix units.
pub struct EinsumMma;

/// What a cube's planes do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Planes {
    pub(crate) t: Key<Tiles>,
    pub(crate) a: Panel,
    pub(crate) b: Panel,
    /// Tiles in the ring.
    pub(crate) stages: usize,
    /// Fragments of a plane along m and n.
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Planes along n.
    pub(crate) across: usize,
}

impl Planes {
    /// Elements from row to row of a plane's sums on their way out.
    pub(crate) const fn pitch(&self) -> usize {
        self.cols * FRAGMENT + 4
    }

    /// Those of a schedule.
    pub(crate) fn of(roles: &Roles, t: Key<Tiles>, schedule: &Schedule) -> Planes {
        let get = |name: &str| schedule.get(name) as usize;
        let panel =
            |read: usize, rows: usize| roles.panel(read, t.e.plan.reads[read].view.slot, rows, get("k"), get("units"));
        let (a, b) = (panel(roles.a, get("m")), panel(roles.b, get("n")));
        let (rows, cols) = (get("rows") / FRAGMENT, get("cols") / FRAGMENT);
        Planes { t, a, b, stages: get("stages"), rows, cols, across: get("n") / get("cols") }
    }
}

/// A tile's shape: m, n, k, rows and columns of a plane, stages.
pub(crate) type Shape = [usize; 6];
pub(crate) const SHAPES: [Shape; 3] = [[128, 128, 32, 64, 32, 3], [64, 128, 32, 32, 32, 3], [64, 64, 32, 32, 32, 4]];

/// Units of a cube for that shape.
pub(crate) fn units([m, n, _, rows, cols, _]: Shape) -> u32 {
    (m / rows * n / cols * PLANE) as u32
}

pub(crate) fn bytes(shape: Shape) -> usize {
    let [m, n, k, _, cols, stages] = shape;
    let line = |rows: usize| (rows * (k + 8)).max(k * (rows + 8)) * 2;
    stages * (line(m) + line(n)) + units(shape) as usize / PLANE * FRAGMENT * (cols + 4) * 4
}

/// Refuses devices that lack the matrix units, or work that is too small for them.
pub(crate) fn suits(roles: &Roles, target: &Target, sm: u32) -> Result<(), Refusal> {
    if target.family != Family::Cuda || target.sm < sm {
        return Err(Refusal(format!("needs CUDA of compute capability {}.{}, not {}", sm / 10, sm % 10, target.name)));
    }
    let (m, _) = roles.m();
    if m < LEAST || roles.n() < 8 {
        return Err(Refusal(format!("a tile takes at least {LEAST} rows and 8 columns, not {m} x {}", roles.n())));
    }
    Ok(())
}

/// The schedules of some shapes, and after them those with k cut.
pub(crate) fn offered(roles: &Roles, shapes: Vec<Shape>, target: &Target) -> Vec<Schedule> {
    with_cuts(roles, uncut(roles, shapes, target), target)
}

/// The schedules of some shapes that take all of k, largest first: before all others the largest tile of which each core has
/// one, and that is not half empty.
pub(crate) fn uncut(roles: &Roles, mut shapes: Vec<Shape>, target: &Target) -> Vec<Schedule> {
    let busy = |s: &Shape| roles.count(s[0], s[1]) >= target.cores as usize && 2 * roles.m().0 > s[0];
    let best = shapes.iter().position(busy).unwrap_or(shapes.len().saturating_sub(1));
    shapes.rotate_left(best);
    let schedule = |s: Shape| {
        let [m, n, k, rows, cols, stages] = s.map(|x| x as u32);
        Schedule::new(&[
            ("bits", 32),
            ("m", m),
            ("n", n),
            ("k", k),
            ("rows", rows),
            ("cols", cols),
            ("stages", stages),
            ("units", units(s)),
        ])
    };
    shapes.into_iter().map(schedule).collect()
}

impl Kernel for EinsumMma {
    fn name(&self) -> &'static str {
        "einsum.mma"
    }

    fn implements(&self) -> Implements {
        Implements::Nest
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let roles = Roles::of(work)?;
        fits(nest_of(work)?, target)?;
        roles.narrow()?;
        suits(&roles, target, 80)?;
        shares(target, bytes(SHAPES[2]), units(SHAPES[2]))?;
        let fitting = SHAPES.into_iter().filter(|&s| bytes(s) <= target.shared_bytes).collect();
        Ok(offered(&roles, fitting, target))
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        scratch(work, schedule)
    }
}

/// The element type of a narrow dtype.
pub(crate) fn elem(dtype: Dtype) -> ElemType {
    if dtype == Dtype::Bf16 { bf16::elem_type_native() } else { f16::elem_type_native() }
}

impl Launch for EinsumMma {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let roles = Roles::of(work).map_err(unfit(self.name()))?;
        let dtype = elem(roles.narrow().map_err(unfit(self.name()))?);
        let get = |name: &str| schedule.get(name) as usize;
        let (m, n, k, bits) = (get("m"), get("n"), get("k"), address(schedule));
        let tiles = roles.tiles([m, n, k], schedule.get("units"), parts(schedule), 4);
        let p = Key::new(Planes::of(&roles, tiles.0.clone(), schedule));
        let run: Run = runner!(|bound| einsum_mma, bits, bound.meta, bound.operands, bound.results, p.clone(), dtype);
        Ok(prepared(tiles, work, schedule, run))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn einsum_mma<F: Float>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    #[comptime] p: Key<Planes>,
    #[define(F)] _dtype: ElemType,
) {
    let mut a = Shared::<[F]>::new_aligned_slice(comptime![p.stages * p.a.size()], 128usize);
    let mut b = Shared::<[F]>::new_aligned_slice(comptime![p.stages * p.b.size()], 128usize);
    let mut out = Shared::<[f32]>::new_aligned_slice(comptime![p.t.units / PLANE * FRAGMENT * p.pitch()], 128usize);
    if exists(meta, p.t.clone()) {
        let s = spot(meta, operands, p.t.clone());
        let acc = sums::<F>(meta, operands, &s, &mut a, &mut b, p.clone());
        write(meta, operands, results, &s, &acc, &mut out, p.clone());
    }
}

/// A plane's sums of its cube's tile, by fragments.
#[cube]
pub(crate) fn sums<F: Float>(
    meta: &[u32],
    operands: &Buffers,
    s: &Spot,
    a: &mut Shared<[F]>,
    b: &mut Shared<[F]>,
    #[comptime] p: Key<Planes>,
) -> Sequence<cmma::Matrix<f32>> {
    let x = factor_a(meta, s, p.t.clone());
    let y = factor_b(meta, s, p.t.clone());
    let mut acc = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime![p.rows * p.cols] {
        acc.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            FRAGMENT,
            FRAGMENT,
            FRAGMENT,
            cmma::MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    let width = meta[comptime![p.t.e.plan.rank - 1]] as usize;
    let turns = (width.div_ceil(p.t.k)) as u32;
    let (from, steps) = steps_of(s, depth(meta, p.t.e.plan.clone()) * turns, p.t.clone());
    #[unroll]
    for i in 0..comptime![p.stages as u32 - 1] {
        bring::<F>(meta, operands, a, b, &x, &y, from + i, steps, turns, width, p.clone());
    }
    for step in from..steps {
        // All but the newest copies are there, for all units; and nobody reads the tile that is filled next.
        wait(comptime![p.stages - 2]);
        sync_cube();
        let next = step + comptime![p.stages as u32 - 1];
        bring::<F>(meta, operands, a, b, &x, &y, next, steps, turns, width, p.clone());
        let slot = (step % comptime![p.stages as u32]) as usize;
        products::<F>(&*a, &*b, &acc, slot, p.clone());
    }
    wait(0usize);
    acc
}

/// Starts to bring the tiles of a step, if there is such a step; closes the group in any case, so that groups are steps.
#[cube]
pub(crate) fn bring<F: Float>(
    meta: &[u32],
    operands: &Buffers,
    a: &mut Shared<[F]>,
    b: &mut Shared<[F]>,
    x: &Factor,
    y: &Factor,
    step: u32,
    steps: u32,
    turns: u32,
    width: usize,
    #[comptime] p: Key<Planes>,
) {
    if step < steps {
        let outer = step / turns;
        let k = (step % turns) as usize * p.t.k;
        let slot = (step % comptime![p.stages as u32]) as usize;
        let x_at = fold_offset(meta, outer, p.t.e.a, p.t.clone());
        let y_at = fold_offset(meta, outer, p.t.e.b, p.t.clone());
        fill::<F>(operands, a, slot * comptime![p.a.size()], x, x_at, k, width, comptime![p.a]);
        fill::<F>(operands, b, slot * comptime![p.b.size()], y, y_at, k, width, comptime![p.b]);
    }
    commit();
}

/// Adds the products of one pair of tiles.
#[cube]
fn products<F: Float>(
    a: &Shared<[F]>,
    b: &Shared<[F]>,
    acc: &Sequence<cmma::Matrix<f32>>,
    slot: usize,
    #[comptime] p: Key<Planes>,
) {
    let plane = UNIT_POS as usize / PLANE;
    let row = plane / p.across * comptime![p.rows * FRAGMENT];
    let column = plane % p.across * comptime![p.cols * FRAGMENT];
    let (a_from, b_from) = (slot * comptime![p.a.size()], slot * comptime![p.b.size()]);
    #[unroll]
    for k in 0..comptime![p.t.k / FRAGMENT] {
        let mut right = Sequence::<cmma::Matrix<F>>::new();
        #[unroll]
        for j in 0..p.cols {
            let at = b_from + place(column + j * FRAGMENT, k * FRAGMENT, comptime![p.b]);
            right.push(cmma::Matrix::<F>::from_slice(
                cmma::MatrixIdent::B,
                FRAGMENT,
                FRAGMENT,
                FRAGMENT,
                comptime![if p.b.along_k { cmma::MatrixLayout::ColMajor } else { cmma::MatrixLayout::RowMajor }],
                &b[at..at + 1],
                comptime![p.b.pitch() as u32],
            ));
        }
        #[unroll]
        for i in 0..p.rows {
            let at = a_from + place(row + i * FRAGMENT, k * FRAGMENT, comptime![p.a]);
            let left = cmma::Matrix::<F>::from_slice(
                cmma::MatrixIdent::A,
                FRAGMENT,
                FRAGMENT,
                FRAGMENT,
                comptime![if p.a.along_k { cmma::MatrixLayout::RowMajor } else { cmma::MatrixLayout::ColMajor }],
                &a[at..at + 1],
                comptime![p.a.pitch() as u32],
            );
            #[unroll]
            for j in 0..p.cols {
                let sum = acc.index(comptime![i * p.cols + j]);
                cmma::execute(&left, right.index(j), sum, sum);
            }
        }
    }
}

/// Where row `row` and element `k` stand in a tile.
#[cube]
pub(crate) fn place(row: usize, k: usize, #[comptime] p: Panel) -> usize {
    if comptime![p.along_k] { row * comptime![p.pitch()] + k } else { k * comptime![p.pitch()] + row }
}

/// Lays a plane's sums in shared memory, a row of fragments at a time, and runs the epilogue on 4 at a time.
#[cube]
fn write(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    s: &Spot,
    acc: &Sequence<cmma::Matrix<f32>>,
    out: &mut Shared<[f32]>,
    #[comptime] p: Key<Planes>,
) {
    #[unroll]
    for i in 0..p.rows {
        lay(acc, out, i, p.clone());
        sync_plane();
        fragments(meta, operands, results, s, out, i, p.clone());
        sync_plane();
    }
}

/// Lays row `i` of a plane's fragments in its part of shared memory.
#[cube]
pub(crate) fn lay(
    acc: &Sequence<cmma::Matrix<f32>>,
    out: &mut Shared<[f32]>,
    #[comptime] i: usize,
    #[comptime] p: Key<Planes>,
) {
    let from = UNIT_POS as usize / PLANE * comptime![FRAGMENT * p.pitch()];
    #[unroll]
    for j in 0..p.cols {
        let at = from + j * FRAGMENT;
        cmma::store(
            &mut out[at..at + 1],
            acc.index(comptime![i * p.cols + j]),
            comptime![p.pitch() as u32],
            cmma::MatrixLayout::RowMajor,
        );
    }
}

/// Runs the epilogue on row `i` of a plane's fragments, which lie in shared memory, 4 sums at a time.
#[cube]
pub(crate) fn fragments(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    s: &Spot,
    out: &mut Shared<[f32]>,
    #[comptime] i: usize,
    #[comptime] p: Key<Planes>,
) {
    let plane = UNIT_POS as usize / PLANE;
    let lane = UNIT_POS as usize % PLANE;
    let from = plane * comptime![FRAGMENT * p.pitch()];
    let wide = comptime![p.cols * FRAGMENT / 4];
    for v in 0..comptime![FRAGMENT * wide / PLANE] {
        let (r, c) = ((v * PLANE + lane) / wide, (v * PLANE + lane) % wide * 4);
        let m = s.m + (plane / p.across * comptime![p.rows * FRAGMENT] + i * FRAGMENT + r) as u32;
        let n = s.n + plane % p.across * comptime![p.cols * FRAGMENT] + c;
        if m < meta[p.t.e.m] {
            let mut sums = Vector::<f32, Const<4>>::empty();
            #[unroll]
            for l in 0..4usize {
                sums.insert(l, out[from + r * comptime![p.pitch()] + c + l]);
            }
            leave(meta, operands, results, s, m, n, sums, p.t.clone());
        }
    }
}
