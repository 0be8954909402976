//! What attention on matrix units is made of: rows of halves in shared memory, and products of 16 x 8 x 16 whose factors
//! and sums lie in registers by the layouts that PTX names.
//!
//! A plane multiplies its own rows by a tile's, along D: scores. What the softmax makes of them is, packed two to a word,
//! the left factor of the next product as it lies: nothing passes through shared memory between the two.
//!
//! Of a block of 16 x 8 sums a unit holds row `lane / 4`, columns `lane % 4 * 2` and the next, and the same 8 rows below.

use cubecl::prelude::*;
use omchat_codegen::{Family, Refusal, Schedule, Target};
use omchat_ir::{Dtype, Type};

use crate::attention::Sizes;
use crate::attention_sight::{Mask, at};
pub(crate) use crate::attention_sight::{reach, seek, view};
use crate::bind::{Buffers, Slot};
use crate::einsum_copies::{CHUNK, bring_16, commit};
use crate::vector::{Lane, write_float};

/// Rows (and depth) of a fragment.
pub(crate) const FRAGMENT: usize = 16;
/// Units of a plane.
pub(crate) const PLANE: usize = 32;
/// What an unseen key scores.
pub(crate) const MASKED: f32 = -1e30;

/// A unit's part of a block of sums.
pub(crate) type Four = Vector<f32, Const<4>>;
/// A unit's blocks of sums.
pub(crate) type Sums = Array<Vector<f32, Const<4>>>;
/// A unit's part of four matrices of 8 x 8 halves.
type Halves = Vector<u32, Const<4>>;

/// How a cube's planes share a tile: all comptime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Frame {
    /// Width of a head.
    pub(crate) d: usize,
    /// Rows of a cube's block, and of what it walks over in tiles.
    pub(crate) m: usize,
    pub(crate) n: usize,
    /// Rows of a plane.
    pub(crate) rows: usize,
    /// Planes that share the same rows: each sums its part of D.
    pub(crate) share: usize,
    /// Tiles of a kind that shared memory holds.
    pub(crate) depth: usize,
    /// Whether a key head has more than one query head.
    pub(crate) grouped: bool,
    /// `bf16` or `f16`.
    pub(crate) dtype: &'static str,
}

impl Frame {
    pub(crate) fn units(&self) -> usize {
        self.m / self.rows * self.share * PLANE
    }

    /// Words from row to row in shared memory: 16 bytes of room, so that 8 rows meet different banks.
    pub(crate) fn pitch(&self) -> usize {
        self.d / 2 + 4
    }

    /// Fragments along a plane's rows.
    pub(crate) fn tall(&self) -> usize {
        self.rows / FRAGMENT
    }

    /// Columns of D that a plane sums.
    pub(crate) fn wide(&self) -> usize {
        self.d / self.share
    }

    /// Blocks of scores that a unit has a part of.
    pub(crate) fn scores(&self) -> usize {
        self.tall() * self.n / 8
    }

    /// Blocks of a plane's sums along D.
    pub(crate) fn sums(&self) -> usize {
        self.tall() * self.wide() / 8
    }

    /// Copies of a tile that a unit starts at once, each with an address.
    fn copies(&self) -> usize {
        (self.n * self.d / CHUNK).div_ceil(self.units())
    }

    /// The scale of scores times log2 e.
    pub(crate) fn scale(&self) -> f32 {
        (1.0 / (self.d as f64).sqrt() * std::f64::consts::LOG2_E) as f32
    }
}

/// A shape of a cube: m, n, rows of a plane, planes that share rows, tiles of a kind.
pub(crate) type Shape = [usize; 5];

/// Schedules of those shapes that the target has room for, where a cube keeps `words` of shared memory and a unit `held`
/// sums; the first is the largest of which each core has one, of `heads` heads of `rows` rows.
pub(crate) fn schedules(
    target: &Target,
    d: usize,
    (heads, rows): (usize, usize),
    shapes: &[Shape],
    words: impl Fn(&Frame) -> usize,
    held: impl Fn(&Frame) -> usize,
) -> Result<Vec<Schedule>, Refusal> {
    // The dtype and the groups change no size.
    let frames = shapes.iter().map(|&s| frame(d, s, false, "bf16"));
    let fits = |f: &Frame| {
        4 * words(f) <= target.shared_bytes
            && held(f) + f.copies() <= HELD
            && f.wide().is_multiple_of(FRAGMENT)
            && f.d >= f.share * 16
    };
    let mut all: Vec<Frame> = frames.filter(fits).collect();
    if all.is_empty() {
        return Err(Refusal(format!(
            "no tile of heads {d} wide fits {} bytes of shared memory and {HELD} registers a unit",
            target.shared_bytes
        )));
    }
    let busy = |f: &Frame| heads * rows.div_ceil(f.m) >= target.cores as usize && rows * 2 > f.m;
    let best = all.iter().position(busy).unwrap_or(all.len() - 1);
    all.rotate_left(best);
    let of = |f: &Frame| {
        let words = [
            ("bits", 32),
            ("units", f.units()),
            ("m", f.m),
            ("n", f.n),
            ("rows", f.rows),
            ("share", f.share),
            ("stages", 2 * f.depth),
        ];
        Schedule::new(&words.map(|(name, n)| (name, n as u32)))
    };
    Ok(all.iter().map(of).collect())
}

/// Sums and copies that a unit may have: with factors and what else it knows none goes to the stack.
const HELD: usize = 200;

fn frame(d: usize, [m, n, rows, share, depth]: Shape, grouped: bool, dtype: &'static str) -> Frame {
    Frame { d, m, n, rows, share, depth, grouped, dtype }
}

/// The frame that a schedule says.
pub(crate) fn framed(n: &Sizes, q: &Type, schedule: &Schedule) -> Frame {
    let get = |name: &str| schedule.get(name) as usize;
    let shape = [get("m"), get("n"), get("rows"), get("share"), get("stages") / 2];
    frame(n.d, shape, n.g > 1, if q.dtype == Dtype::Bf16 { "bf16" } else { "f16" })
}

/// Refuses devices without matrix units that multiply halves in registers, and what those do not multiply.
pub(crate) fn multiplies(target: &Target, n: &Sizes, q: &Type) -> Result<(), Refusal> {
    multiplies_by(target, n, q, FRAGMENT)
}

/// The same where heads may be any multiple of `by` wide.
pub(crate) fn multiplies_by(target: &Target, n: &Sizes, q: &Type, by: usize) -> Result<(), Refusal> {
    if target.family != Family::Cuda || target.sm < 80 {
        return Err(Refusal(format!("needs CUDA of compute capability 8.0, not {}", target.name)));
    }
    if !matches!(q.dtype, Dtype::Bf16 | Dtype::F16) {
        return Err(Refusal(format!("matrix units multiply bf16 or f16, not {}: f32 would be rounded", q.dtype)));
    }
    if n.d > 256 || !n.d.is_multiple_of(by) || n.d == 0 {
        return Err(Refusal(format!("heads must be a multiple of {by} wide and at most 256, not {}", n.d)));
    }
    Ok(())
}

/// The same for the backward: what a query's weight costs has no bound that f16 could hold, and bf16 reaches as far as f32.
pub(crate) fn differentiates(target: &Target, n: &Sizes, q: &Type) -> Result<(), Refusal> {
    if q.dtype == Dtype::F16 {
        return Err(Refusal("cotangents of scores may be too large for f16".into()));
    }
    multiplies(target, n, q)
}

/// Rows of a head as they are counted: query heads of a group by turns, then times; keys are a group of one.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Lines {
    pub(crate) head: usize,
    pub(crate) groups: usize,
    pub(crate) times: usize,
}

/// Which row of the buffer is row `row` of a head.
#[cube]
pub(crate) fn line(l: &Lines, row: usize, #[comptime] grouped: bool) -> usize {
    let mut at = l.head * l.times + row;
    if comptime![grouped] {
        at = (l.head * l.groups + row % l.groups) * l.times + row / l.groups;
    }
    at
}

/// Starts to copy `size` rows from row `first` on to word `into` of shared memory. Those past the end repeat the last.
#[cube]
pub(crate) fn bring(
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    into: usize,
    l: &Lines,
    first: usize,
    #[comptime] size: usize,
    #[comptime] slot: Slot,
    #[comptime] grouped: bool,
    #[comptime] f: Frame,
) {
    let parts = comptime![f.d / CHUNK];
    let chunks = comptime![size * parts];
    #[unroll]
    for i in 0..comptime![chunks.div_ceil(f.units())] {
        let v = UNIT_POS as usize + comptime![i * f.units()];
        if comptime![chunks % f.units() == 0] {
            part(operands, memory, into, l, first, v, slot, grouped, f);
        } else if v < chunks {
            part(operands, memory, into, l, first, v, slot, grouped, f);
        }
    }
}

/// Starts to copy the 16 bytes number `v` of rows.
#[cube]
fn part(
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    into: usize,
    l: &Lines,
    first: usize,
    v: usize,
    #[comptime] slot: Slot,
    #[comptime] grouped: bool,
    #[comptime] f: Frame,
) {
    let parts = comptime![f.d / CHUNK];
    let row = min(first + v / parts, l.times * l.groups - 1);
    let from = line(l, row, grouped) * f.d + v % parts * CHUNK;
    let to = into + v / parts * comptime![f.pitch()] + v % parts * 4;
    bring_16::<f32>(operands, memory, to, from, 4usize, 4usize, slot);
}

/// Starts to bring tile number `tile` of a head's rows, if there is one; closes the group of copies in any case.
#[cube]
pub(crate) fn fetch(
    operands: &Buffers,
    memory: &mut Shared<[f32]>,
    into: usize,
    l: &Lines,
    tile: usize,
    #[comptime] slot: Slot,
    #[comptime] f: Frame,
) {
    if tile * f.n < l.times {
        bring(operands, memory, into, l, tile * f.n, comptime![f.n], slot, false, f);
    }
    commit();
}

/// Four matrices of 8 x 8 halves; a lane names 16 bytes of one.
#[cube]
fn matrices(at: u32) -> Halves {
    let out: Halves;
    gpu_asm!("ldmatrix.sync.aligned.m8n8.x4.shared::cta.b16 {out}, [{at}];", out = out(_) out, at = in(_) at);
    out
}

/// The same on their side.
#[cube]
fn turned(at: u32) -> Halves {
    let out: Halves;
    gpu_asm!("ldmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 {out}, [{at}];", out = out(_) out, at = in(_) at);
    out
}

/// `c` and the product of 16 x 16 by 16 x 8.
#[cube]
fn product(a: Halves, b: u32, below: u32, c: Four, #[comptime] f: Frame) -> Four {
    let dtype = comptime![f.dtype];
    let out: Four;
    gpu_asm!(
        "mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32 {d}, {a}, {{{b}, {e}}}, {c};",
        a = in(_) a, b = in(_) b, e = in(_) below, c = in(_) c, d = out(_) out,
        options(nomem),
    );
    out
}

/// Two floats rounded to halves, the first in the lower bits.
#[cube]
fn pair(low: f32, high: f32, #[comptime] f: Frame) -> u32 {
    let dtype = comptime![f.dtype];
    let out: u32;
    gpu_asm!(
        "cvt.rn.{dtype}x2.f32 {out}, {high}, {low};",
        high = in(_) high, low = in(_) low, out = out(_) out,
        options(nomem),
    );
    out
}

/// 2 to that power.
#[cube]
pub(crate) fn power(x: f32) -> f32 {
    let out: f32;
    gpu_asm!("ex2.approx.ftz.f32 {out}, {x};", x = in(_) x, out = out(_) out, options(nomem));
    out
}

/// The same, which keeps its place among statements that wait.
#[cube]
pub(crate) fn power_here(x: f32) -> f32 {
    let out: f32;
    gpu_asm!("ex2.approx.ftz.f32 {out}, {x};", x = in(_) x, out = out(_) out);
    out
}

/// Where a lane's 16 bytes of a left factor, or of a right one on its side, start behind word `word` of row `row`.
#[cube]
pub(crate) fn tall(base: u32, row: usize, column: usize, #[comptime] f: Frame) -> u32 {
    let lane = UNIT_POS as usize % PLANE;
    base + ((row + lane % 16) * comptime![4 * f.pitch()] + column * 2 + lane / 16 * 16) as u32
}

/// Where a lane's 16 bytes of a right factor start behind row 0 of a tile.
#[cube]
pub(crate) fn flat(base: u32, #[comptime] f: Frame) -> u32 {
    let lane = UNIT_POS as usize % PLANE;
    base + ((lane / 16 * 8 + lane % 8) * comptime![4 * f.pitch()] + lane / 8 % 2 * 16) as u32
}

/// The plane's rows, from address `a` on, times a tile's, from `b` on, along D.
#[cube]
pub(crate) fn scores(acc: &mut Sums, a: u32, b: u32, #[comptime] f: Frame) {
    zero(acc, comptime![f.scores()]);
    let mut left = Array::<Halves>::new(comptime![f.tall()]);
    for k in 0..comptime![(f.d / FRAGMENT) as u32] {
        #[unroll]
        for i in 0..comptime![f.tall()] {
            left[i] = matrices(a + k * 32 + comptime![(i * 64 * f.pitch()) as u32]);
        }
        #[unroll]
        for j in 0..comptime![f.n / FRAGMENT] {
            let right = matrices(b + k * 32 + comptime![(j * 64 * f.pitch()) as u32]);
            #[unroll]
            for i in 0..comptime![f.tall()] {
                let at = comptime![i * f.n / 8 + 2 * j];
                acc[at] = product(left[i], right.extract(0usize), right.extract(1usize), acc[at], f);
                acc[at + 1] = product(left[i], right.extract(2usize), right.extract(3usize), acc[at + 1], f);
            }
        }
    }
}

/// Adds a tile's rows, from address `b` on, weighed by what became of the scores.
#[cube]
pub(crate) fn add_weighed(out: &mut Sums, p: &Sums, b: u32, #[comptime] f: Frame) {
    let mut left = Array::<Halves>::new(comptime![f.tall()]);
    #[unroll]
    for k in 0..comptime![f.n / FRAGMENT] {
        #[unroll]
        for i in 0..comptime![f.tall()] {
            let (x, y) = (p[comptime![i * f.n / 8 + 2 * k]], p[comptime![i * f.n / 8 + 2 * k + 1]]);
            let mut four = Halves::empty();
            four.insert(0usize, pair(x.extract(0usize), x.extract(1usize), f));
            four.insert(1usize, pair(x.extract(2usize), x.extract(3usize), f));
            four.insert(2usize, pair(y.extract(0usize), y.extract(1usize), f));
            four.insert(3usize, pair(y.extract(2usize), y.extract(3usize), f));
            left[i] = four;
        }
        #[unroll]
        for j in 0..comptime![f.wide() / FRAGMENT] {
            let right = turned(b + comptime![(k * 64 * f.pitch() + j * 32) as u32]);
            #[unroll]
            for i in 0..comptime![f.tall()] {
                let at = comptime![i * f.wide() / 8 + 2 * j];
                out[at] = product(left[i], right.extract(0usize), right.extract(1usize), out[at], f);
                out[at + 1] = product(left[i], right.extract(2usize), right.extract(3usize), out[at + 1], f);
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

/// First row of the plane in the cube's block, and first column of D that it sums.
#[cube]
pub(crate) fn corner(#[comptime] f: Frame) -> (usize, usize) {
    let plane = UNIT_POS as usize / PLANE;
    (plane / f.share * f.rows, plane % f.share * comptime![f.wide()])
}

/// The row of the cube's block that is the unit's number `r`: two a fragment.
#[cube]
pub(crate) fn own_row(#[comptime] r: usize, #[comptime] f: Frame) -> usize {
    let (row, _) = corner(f);
    row + UNIT_POS as usize % PLANE / 4 + comptime![r / 2 * FRAGMENT + r % 2 * 8]
}

/// The first of the unit's two columns of block `j` of a tile.
#[cube]
pub(crate) fn own_column(#[comptime] j: usize) -> usize {
    UNIT_POS as usize % 4 * 2 + comptime![j * 8]
}

/// Scores of what a query does not see become `MASKED`; rows are queries, columns keys.
#[cube]
pub(crate) fn hide_keys(
    operands: &Buffers,
    acc: &mut Sums,
    lo: &Array<i32>,
    hi: &Array<i32>,
    first: usize,
    count: usize,
    #[comptime] mask: Mask,
    #[comptime] f: Frame,
) {
    #[unroll]
    for j in 0..comptime![f.n / 8] {
        #[unroll]
        for e in 0..2usize {
            let column = own_column(j) + e;
            let place = at(operands, first + min(column, count - 1), mask);
            #[unroll]
            for r in 0..comptime![f.tall() * 2] {
                let at = comptime![r / 2 * f.n / 8 + j];
                let l = comptime![r % 2 * 2 + e];
                let sees = column < count && place >= lo[r] && place <= hi[r];
                let mut four = acc[at];
                four.insert(l, select(sees, four.extract(l), MASKED));
                acc[at] = four;
            }
        }
    }
}

/// The unit's part of its row number `r`, scaled, to row `at` of a result.
#[cube]
pub(crate) fn write_row(
    results: &mut Buffers,
    out: &Sums,
    at: usize,
    scale: f32,
    #[comptime] r: usize,
    #[comptime] slot: Slot,
    #[comptime] f: Frame,
) {
    let (_, column) = corner(f);
    #[unroll]
    for j in 0..comptime![f.wide() / 8] {
        let four = out[comptime![r / 2 * f.wide() / 8 + j]];
        let mut two = Vector::<f32, Const<2>>::empty();
        two.insert(0usize, four.extract(comptime![r % 2 * 2]) * scale);
        two.insert(1usize, four.extract(comptime![r % 2 * 2 + 1]) * scale);
        write_float::<Const<2>>(results, at * f.d + column + own_column(j), 1usize, two, slot, Lane::Whole);
    }
}

/// The logarithm to base 2 of a row's sum; of one that sees nothing 0, so that its masked scores weigh 2^-huge = 0.
#[cube]
pub(crate) fn level(lse: f32) -> f32 {
    select(lse > -1e29f32, lse * std::f32::consts::LOG2_E, 0.0f32)
}
