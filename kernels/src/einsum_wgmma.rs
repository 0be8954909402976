//! Einsums of bf16 or f16 on Hopper's matrix units: warpgroups multiply 64 rows by up to 256 columns straight out of
//! shared memory, asynchronously, while the next tiles come in.
//!
//! Implements  a nest that sums the product of two reads of bf16 or of f16, with any epilogue
//! Schedule    a cube a tile of `m` x `n`, a warpgroup 64 rows of it; `stages` tiles of 64 elements of k under way; `split` cubes share k
//! Needs       CUDA of compute capability 9.0 (sm_90a); at least 9 rows and 8 columns; both factors in whole 16 bytes along k or along their rows
//! Cost        2·m·n·k FLOP in f32 sums of exact products; each factor read once a row (or column) of tiles; with `split` a second launch adds the parts
//! Source      PTX ISA, `wgmma.mma_async` and its matrix descriptors; the canonical layouts as CUTLASS 3 names them

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::Dtype;

use crate::bind::Buffers;
use crate::einsum::Roles;
use crate::einsum_copies::{CHUNK, Panel, bring_16, commit, shared_address, wait};
use crate::einsum_mma::suits;
use crate::einsum_split::{parts, prepared, scratch, steps_of, with_cuts};
use crate::einsum_tiles::{Factor, Laid, Spot, Tiles, exists, factor_a, factor_b, fold_offset, leave, shares, spot};
use crate::grid::address;
use crate::key::Key;
use crate::map_plain::{fits, nest_of};
use crate::nest::depth;
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::{Launch, LaunchError};

/// Units of a warpgroup, and the rows that it multiplies.
const GROUP: usize = 128;
const ROWS: usize = 64;
/// Units of a plane.
pub(crate) const PLANE: usize = 32;
/// Elements of a swizzled line, 128 bytes; tiles are that deep.
const LINE: usize = 64;
/// Bytes of a swizzled atom: 8 lines.
pub(crate) const ATOM: usize = 1024;
/// Most vectors of 4 sums that a unit takes through the epilogue at once.
const TURN: usize = 8;
/// Elements along k of one instruction.
const STEP: usize = 16;

/// Sums tiles by warpgroups.
pub struct EinsumWgmma;

/// What a cube's warpgroups do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Groups {
    pub(crate) t: Key<Tiles>,
    a: Panel,
    b: Panel,
    /// Tiles in the ring.
    stages: usize,
    /// `bf16` or `f16`.
    dtype: &'static str,
}

impl Groups {
    /// Words of one stage's tile of a factor: a line of 128 bytes for each of its rows (or 64 of them for each k).
    const fn words(rows: usize) -> usize {
        rows * LINE / 2
    }

    /// Words from stage to stage.
    fn stage(&self) -> usize {
        Groups::words(self.t.m) + Groups::words(self.t.n)
    }

    /// Those of a schedule, and the tiles that they are of.
    ///
    /// Errors: factors of other dtypes than halves.
    pub(crate) fn of(roles: &Roles, schedule: &Schedule) -> Result<(Groups, Laid), Refusal> {
        let get = |name: &str| schedule.get(name) as usize;
        let (m, n, k) = (get("m"), get("n"), get("k"));
        let dtype = if roles.narrow()? == Dtype::Bf16 { "bf16" } else { "f16" };
        let tiles = roles.tiles([m, n, k], schedule.get("units"), parts(schedule), 4);
        let t = tiles.0.clone();
        let panel = |read: usize, rows| roles.panel(read, t.e.plan.reads[read].view.slot, rows, k, get("units"));
        let (a, b) = (panel(roles.a, m), panel(roles.b, n));
        Ok((Groups { t, a, b, stages: get("stages"), dtype }, tiles))
    }

    /// Words of shared memory.
    pub(crate) fn memory(&self) -> usize {
        (self.stages * self.stage()).max(self.t.m * self.t.n)
    }

    /// Vectors of 4 sums that a unit takes through the epilogue at once: all turns are full.
    fn turn(&self) -> usize {
        if (self.t.n / 8).is_multiple_of(TURN) { TURN } else { TURN / 2 }
    }

    /// The accumulators' names in PTX.
    fn sums(&self) -> String {
        (0..self.t.n / 2).map(|i| format!("acc{i}")).collect::<Vec<_>>().join(", ")
    }

    /// Statements that set them to 0.
    fn zeros(&self) -> String {
        (0..self.t.n / 2).map(|i| format!("mov.f32 acc{i}, 0f00000000;")).collect::<Vec<_>>().join(" ")
    }
}

/// A tile's shape: m, n, stages.
type Shape = [usize; 3];
const SHAPES: [Shape; 4] = [[128, 256, 4], [128, 128, 4], [64, 128, 5], [64, 64, 6]];
/// A narrower first one, for results of which that leaves the last wave of cubes half empty: 2048 x 3584 has 256 such tiles
/// and not 224, for 132 processors. An eighth narrower still, tiles take 1.3 times as long for a product (H200).
const NARROW: Shape = [128, 224, 4];
/// How much longer it takes for a product than the first.
const NARROW_WAIT: f64 = 1.05;

fn bytes([m, n, stages]: Shape) -> usize {
    4 * (stages * (Groups::words(m) + Groups::words(n))).max(m * n)
}

impl Kernel for EinsumWgmma {
    fn name(&self) -> &'static str {
        "einsum.wgmma"
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
}

/// Schedules that take all of k, best first.
///
/// Errors: another device; too few rows or columns; factors that do not come in whole 16 bytes.
pub(crate) fn shapes(roles: &Roles, target: &Target) -> Result<Vec<Schedule>, Refusal> {
    roles.narrow()?;
    suits(roles, target, 90)?;
    if target.sm != 90 {
        return Err(Refusal(format!("the instruction is of sm_90a alone, not of {}", target.name)));
    }
    for read in [roles.a, roles.b] {
        if !roles.whole(read) {
            return Err(Refusal(format!(
                "read {read} must come in whole 16 bytes: contiguous along k or its rows, offset and other strides \
                     multiples of {CHUNK}"
            )));
        }
    }
    let mut shapes: Vec<Shape> = SHAPES.into_iter().filter(|&s| bytes(s) <= target.shared_bytes).collect();
    let waves = |[m, n, _]: Shape| (roles.count(m, n).div_ceil(target.cores.max(1) as usize) * n) as f64;
    if roles.strides(roles.b).1 == 1 && shapes.len() == SHAPES.len() {
        shapes.insert(usize::from(waves(NARROW) * NARROW_WAIT >= waves(SHAPES[0])), NARROW);
    }
    shares(target, bytes(SHAPES[3]), GROUP as u32)?;
    // The largest tile of which each core has one, and that is not half empty; then the others.
    let busy =
        |s: &Shape| roles.count(s[0], s[1]) >= target.cores as usize && 2 * roles.m().0 > s[0] && 2 * roles.n() > s[1];
    let best = shapes.iter().position(busy).unwrap_or(shapes.len() - 1);
    let (small, large) = (shapes[best..].iter(), shapes[..best].iter());
    Ok(small
        .chain(large)
        .map(|&[m, n, stages]| {
            Schedule::new(&[
                ("bits", 32),
                ("m", m as u32),
                ("n", n as u32),
                ("k", LINE as u32),
                ("rows", ROWS as u32),
                ("cols", n as u32),
                ("stages", stages as u32),
                ("units", (m / ROWS * GROUP) as u32),
            ])
        })
        .collect())
}

impl Launch for EinsumWgmma {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let roles = Roles::of(work).map_err(unfit(self.name()))?;
        let bits = address(schedule);
        let (groups, tiles) = Groups::of(&roles, schedule).map_err(unfit(self.name()))?;
        let g = Key::new(groups);
        let run: Run = runner!(|bound| einsum_wgmma, bits, bound.meta, bound.operands, bound.results, g.clone());
        Ok(prepared(tiles, work, schedule, run))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn einsum_wgmma(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] g: Key<Groups>) {
    let mut memory = Shared::<[f32]>::new_aligned_slice(comptime![g.memory()], ATOM);
    // Inline PTX can take no value that it also changes: the sums are registers of their own.
    let count = comptime![g.t.n / 2];
    gpu_asm!(".reg .f32 acc<{count}>;", options(nomem));
    if exists(meta, g.t.clone()) {
        let s = spot(meta, operands, g.t.clone());
        sums(meta, operands, &s, &mut memory, g.clone());
        write(meta, operands, results, &s, &mut memory, g.clone());
    }
}

/// Leaves in the accumulators a warpgroup's sums of its cube's tile; the stages are free then.
#[cube]
pub(crate) fn sums(meta: &[u32], operands: &Buffers, s: &Spot, memory: &mut Shared<[f32]>, #[comptime] g: Key<Groups>) {
    let zeros = comptime![g.zeros()];
    let x = factor_a(meta, s, g.t.clone());
    let y = factor_b(meta, s, g.t.clone());
    gpu_asm!("{zeros}", options(nomem));
    let base = shared_address(&*memory);
    let width = meta[comptime![g.t.e.plan.rank - 1]] as usize;
    let turns = (width.div_ceil(g.t.k)) as u32;
    let (from, steps) = steps_of(s, depth(meta, g.t.e.plan.clone()) * turns, g.t.clone());
    let ways = Ways { x: way(&x, comptime![g.a]), y: way(&y, comptime![g.b]), turns, steps, width };
    let ahead = comptime![g.stages as u32 - 2];
    let all = comptime![copies(&g.a) + copies(&g.b)];
    #[unroll]
    for i in 0..ahead {
        bring(meta, operands, memory, &x, &y, &ways, from + i, 0usize, all, g.clone());
        commit();
    }
    for step in from..steps {
        // This step's tiles are there for all units, and in the eyes of the matrix units too; and nobody multiplies
        // the tiles of the step before the last.
        wait(comptime![g.stages - 3]);
        gpu_asm!("fence.proxy.async.shared::cta;");
        sync_cube();
        multiply(meta, operands, memory, &x, &y, &ways, base, step, g.clone());
        gpu_asm!("wgmma.wait_group.sync.aligned 1;");
    }
    wait(0usize);
    gpu_asm!("wgmma.wait_group.sync.aligned 0;");
    sync_cube();
}

/// Where a unit's copies of a factor's tile start: the same in every tile.
#[derive(CubeType)]
struct Way {
    /// Elements from the tile's first one to each of its parts of 16 bytes.
    from: Array<usize>,
    /// The word of shared memory, from the tile's first on, where the first part goes; others follow at even distances.
    to: usize,
    /// Elements along k from the tile's first one to the first part.
    along: usize,
    /// Whether the part's rows are inside, where rows lie side by side.
    inside: bool,
}

/// A unit's ways over both factors, and how many steps there are.
#[derive(CubeType)]
struct Ways {
    x: Way,
    y: Way,
    /// Steps along k, for each row of outer folded axes; and all.
    turns: u32,
    steps: u32,
    width: usize,
}

/// Parts of 16 bytes in a line of a tile, a row along k or a k along rows; a unit has the same part of each of its lines.
const fn parts_of(p: &Panel) -> usize {
    (if p.along_k { LINE } else { p.rows }) / CHUNK
}

/// Copies of a tile that a unit makes.
const fn copies(p: &Panel) -> usize {
    p.rows * LINE / CHUNK / p.units
}

/// Lines from a unit's copy to its next: a multiple of 8, so that all are swizzled alike.
const fn apart(p: &Panel) -> usize {
    p.units / parts_of(p)
}

#[cube]
fn way(f: &Factor, #[comptime] p: Panel) -> Way {
    let parts = comptime![parts_of(&p)];
    let (outer, inner) = (UNIT_POS as usize / parts, UNIT_POS as usize % parts);
    let mut from = Array::<usize>::new(comptime![copies(&p)]);
    #[unroll]
    for i in 0..comptime![copies(&p)] {
        let mut row = inner * CHUNK;
        let mut along = outer + comptime![i * apart(&p)];
        if comptime![p.along_k] {
            row = outer + comptime![i * apart(&p)];
            along = inner * CHUNK;
            // A row past the end repeats the last.
            if comptime![p.m_tail] {
                row = min(row, f.rows - 1);
            }
        }
        from[i] = row * f.row_step + along * f.k_step;
    }
    let mut line = outer;
    let mut part = inner;
    let mut along = inner * CHUNK;
    if comptime![!p.along_k] {
        line = inner / comptime![LINE / CHUNK] * LINE + outer;
        part = inner % comptime![LINE / CHUNK];
        along = outer;
    }
    let to = line * comptime![LINE / 2] + (part ^ (line % 8)) * 4;
    Way { from, to, along, inside: inner * CHUNK < f.rows }
}

/// Starts copies `first..last` of a step's tiles, those of the first factor and then the second's. Behind the last step they
/// are zeros that nobody reads: a branch between products would part them.
#[cube]
fn bring(
    meta: &[u32],
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    x: &Factor,
    y: &Factor,
    ways: &Ways,
    step: u32,
    #[comptime] first: usize,
    #[comptime] last: usize,
    #[comptime] g: Key<Groups>,
) {
    let there = step < ways.steps;
    let number = min(step, ways.steps - 1);
    let mut outer = 0u32.runtime();
    let mut k = number as usize * LINE;
    if comptime![g.t.e.plan.rank - 1 > g.t.e.plan.kept] {
        outer = number / ways.turns;
        k = (number % ways.turns) as usize * LINE;
    }
    let at = (step % comptime![g.stages as u32]) as usize * comptime![g.stage()];
    let of_x = comptime![copies(&g.a)];
    #[unroll]
    for i in first..last {
        if comptime![i < of_x] {
            let offset = fold_offset(meta, outer, g.t.e.a, g.t.clone());
            copy(operands, memory, at, x, &ways.x, offset, k, ways.width, there, i, comptime![g.a]);
        } else {
            let offset = fold_offset(meta, outer, g.t.e.b, g.t.clone());
            let at = at + comptime![Groups::words(g.t.m)];
            copy(operands, memory, at, y, &ways.y, offset, k, ways.width, there, comptime![i - of_x], comptime![g.b]);
        }
    }
}

/// Starts a unit's copy number `i` of a factor's tile to shared memory from word `into` on, 16-byte parts of each line
/// exchanged as the matrix units want them. Lines are rows, along k; or, for each 64 rows, a line a k.
#[cube]
fn copy(
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    into: usize,
    f: &Factor,
    way: &Way,
    offset: usize,
    k: usize,
    width: usize,
    there: bool,
    #[comptime] i: usize,
    #[comptime] p: Panel,
) {
    // Past the end there are zeros.
    let mut inside = there;
    if comptime![p.k_tail && p.along_k] {
        inside = inside && k + way.along < width;
    } else if comptime![p.k_tail] {
        inside = inside && k + way.along + comptime![i * apart(&p)] < width;
    }
    if comptime![p.m_tail && !p.along_k] {
        inside = inside && way.inside;
    }
    let at = f.at + offset + k * f.k_step + way.from[i];
    let from = select(inside, at, f.at + offset);
    let length = select(inside, 4usize, 0usize);
    let to = into + way.to + comptime![i * apart(&p) * LINE / 2];
    bring_16::<f32>(operands, memory, to, from, length, 4usize, comptime![p.slot]);
}

/// Starts the products of a warpgroup's 64 rows with all columns of a step, and between them the copies of a later one's
/// tiles: an instruction waits until the matrix units take it.
#[cube]
fn multiply(
    meta: &[u32],
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    x: &Factor,
    y: &Factor,
    ways: &Ways,
    base: u64,
    step: u32,
    #[comptime] g: Key<Groups>,
) {
    let (n, dtype, sums) = comptime![(g.t.n, g.dtype, g.sums())];
    let (turn_a, turn_b) = comptime![(u32::from(!g.a.along_k), u32::from(!g.b.along_k))];
    let (all, ahead) = comptime![(copies(&g.a) + copies(&g.b), g.stages as u32 - 2)];
    let group = UNIT_POS / comptime![GROUP as u32];
    let slot = step % comptime![g.stages as u32];
    let a_at = slot * comptime![4 * g.stage() as u32] + group * comptime![(ROWS * LINE * 2) as u32];
    let b_at = slot * comptime![4 * g.stage() as u32] + comptime![4 * Groups::words(g.t.m) as u32];
    let a_from = descriptor(base + a_at as u64, comptime![g.a]);
    let b_from = descriptor(base + b_at as u64, comptime![g.b]);
    gpu_asm!("wgmma.fence.sync.aligned;");
    #[unroll]
    for i in 0..comptime![LINE / STEP] {
        let a = a_from + comptime![along(g.a.along_k, i)];
        let b = b_from + comptime![along(g.b.along_k, i)];
        gpu_asm!(
            "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{dtype}.{dtype} {{{sums}}}, {a}, {b}, 1, 1, 1, {turn_a}, {turn_b};",
            a = in(_) a, b = in(_) b,
        );
        let (first, last) = comptime![(i * all / (LINE / STEP), (i + 1) * all / (LINE / STEP))];
        bring(meta, operands, memory, x, y, ways, step + ahead, first, last, g.clone());
    }
    gpu_asm!("wgmma.commit_group.sync.aligned;");
    commit();
}

/// Sixteenths of bytes from a tile's first k to that of instruction `i`: within a line, or lines further on.
fn along(along_k: bool, i: usize) -> u64 {
    (if along_k { i * STEP * 2 } else { i * STEP * LINE * 2 } / 16) as u64
}

/// The descriptor of a tile with lines of 128 swizzled bytes: its address, and in sixteenths of bytes the way to the
/// next 64 rows (where lines run along rows) and to the next 8 lines.
#[cube]
fn descriptor(address: u64, #[comptime] p: Panel) -> u64 {
    let leading = comptime![if p.along_k { 1 } else { (LINE * LINE * 2 / 16) as u64 }];
    let fixed = comptime![1u64 << 62 | ((ATOM / 16) as u64) << 32 | leading << 16];
    ((address & 0x3_ffffu64) >> 4u64) | fixed.runtime()
}

/// Runs the epilogue on 4 neighbouring sums at a time.
///
/// Of each 8 columns a unit holds 2 neighbours, in 2 rows: with the unit beside it it exchanges 2 of one 8 for 2 of the next.
/// Registers have no index, so sums wait for their turn in shared memory, each unit's in a column of its own.
#[cube]
fn write(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    s: &Spot,
    memory: &mut Shared<[f32]>,
    #[comptime] g: Key<Groups>,
) {
    let units = comptime![g.t.units];
    let unit = UNIT_POS as usize;
    let lane = unit % PLANE;
    let left = lane % 2 == 0;
    #[unroll]
    for i in 0..comptime![g.t.n / 8] {
        // Eights 2·(i / 2) and the next, of the upper rows or the lower ones.
        let first = comptime![i / 2 * 8 + i % 2 * 2];
        let (a, b) = (read(first), read(comptime![first + 1]));
        let (c, d) = (read(comptime![first + 4]), read(comptime![first + 5]));
        let x = plane_shuffle_xor(select(left, c, a), 1u32);
        let y = plane_shuffle_xor(select(left, d, b), 1u32);
        let at = unit + comptime![i * 4 * units];
        memory[at] = select(left, a, x);
        memory[at + units] = select(left, b, y);
        memory[at + comptime![2 * units]] = select(left, x, c);
        memory[at + comptime![3 * units]] = select(left, y, d);
    }
    let row = s.m + (unit / PLANE * 16 + lane / 4) as u32;
    let column = s.n + lane % 2 * 8 + lane % 4 / 2 * 4;
    let turns = comptime![g.turn()];
    for turn in 0..comptime![g.t.n / 8 / g.turn()] {
        // Several at once: the epilogue may wait for memory.
        #[unroll]
        for u in 0..turns {
            let m = row + comptime![u % 2 * 8] as u32;
            if m < meta[g.t.e.m] {
                let at = unit + (turn * turns + u) * comptime![4 * units];
                let mut sums = Vector::<f32, Const<4>>::empty();
                #[unroll]
                for l in 0..4usize {
                    sums.insert(l, memory[at + comptime![l * units]]);
                }
                let n = column + (turn * comptime![turns / 2] + comptime![u / 2]) * 16;
                leave(meta, operands, results, s, m, n, sums, g.t.clone());
            }
        }
    }
}

/// A sum of this unit.
#[cube]
pub(crate) fn read(#[comptime] i: usize) -> f32 {
    let sum: f32;
    gpu_asm!("mov.f32 {sum}, acc{i};", sum = out(_) sum);
    sum
}
