//! Einsums of f32 on matrix units, where that was allowed: factors rounded to tf32, which has 10 bits of fraction, out of a
//! ring of tiles in shared memory.
//!
//! Implements  a nest that sums the product of two reads of f32, with any epilogue
//! Schedule    a cube a tile of `m` x `n`, a plane `rows` x `cols` of it; `stages` tiles of `k` elements under way; `split` cubes share k
//! Needs       CUDA of compute capability 8.0 or more, and tf32 allowed (`OMCHAT_TF32=on`); at least 9 rows and 8 columns
//! Cost        2·m·n·k FLOP in f32 sums; each product off by 2^-10 of itself at most; with `split` a second launch adds the parts
//! Source      PTX ISA, `mma.sync.m16n8k8` and `cvt.rna.tf32`; multistage `cp.async` as in CUTLASS 2

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::Dtype;

use crate::bind::Buffers;
use crate::einsum::Roles;
use crate::einsum_copies::wait;
use crate::einsum_mma::{FRAGMENT, PLANE, Planes, Shape, bring, fragments, offered, place, suits, units};
use crate::einsum_split::{parts, prepared, scratch, steps_of};
use crate::einsum_tiles::{Spot, exists, factor_a, factor_b, shares, spot};
use crate::grid::address;
use crate::key::Key;
use crate::map_plain::{fits, nest_of};
use crate::nest::depth;
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::{Launch, LaunchError};

/// Columns, and elements along k, of one product.
const EIGHT: usize = 8;
/// The most by which a product of two rounded factors is off, of itself: each is off by 2^-11.
const ROUNDING: f64 = 1.0 / 1024.0 + 1.0 / 4_194_304.0;

/// Sums tiles of rounded factors on matrix units.
pub struct EinsumTf32;

const SHAPES: [Shape; 3] = [[128, 128, 16, 64, 32, 4], [64, 128, 32, 32, 32, 3], [64, 64, 32, 32, 32, 4]];

fn bytes(shape: Shape) -> usize {
    let [m, n, k, _, cols, stages] = shape;
    let line = |rows: usize| (rows * (k + 4)).max(k * (rows + 8)) * 4;
    stages * (line(m) + line(n)) + units(shape) as usize / PLANE * FRAGMENT * (cols + 4) * 4
}

/// Refuses where nobody allowed f32 to be rounded, and factors that are not f32.
fn allowed(roles: &Roles, target: &Target) -> Result<(), Refusal> {
    let [a, b] = [roles.a, roles.b].map(|r| roles.loops.nest.reads[r].dtype);
    if (a, b) != (Dtype::F32, Dtype::F32) {
        return Err(Refusal(format!("multiplies f32 by f32, not {a} by {b}")));
    }
    if !target.tf32 {
        return Err(Refusal("factors would be rounded to 10 bits of fraction, which nobody allowed".into()));
    }
    Ok(())
}

impl Kernel for EinsumTf32 {
    fn name(&self) -> &'static str {
        "einsum.tf32"
    }

    fn implements(&self) -> Implements {
        Implements::Nest
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let roles = Roles::of(work)?;
        fits(nest_of(work)?, target)?;
        suits(&roles, target, 80)?;
        allowed(&roles, target)?;
        shares(target, bytes(SHAPES[2]), units(SHAPES[2]))?;
        let fitting = SHAPES.into_iter().filter(|&s| bytes(s) <= target.shared_bytes).collect();
        Ok(offered(&roles, fitting, target))
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        scratch(work, schedule)
    }

    fn rounding(&self) -> f64 {
        ROUNDING
    }
}

impl Launch for EinsumTf32 {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let roles = Roles::of(work).map_err(unfit(self.name()))?;
        let (tile, bits) = (["m", "n", "k"].map(|name| schedule.get(name) as usize), address(schedule));
        let tiles = roles.tiles(tile, schedule.get("units"), parts(schedule), 4);
        let p = Key::new(Planes::of(&roles, tiles.0.clone(), schedule));
        let run: Run = runner!(|bound| einsum_tf32, bits, bound.meta, bound.operands, bound.results, p.clone());
        Ok(prepared(tiles, work, schedule, run))
    }
}

/// Sums of 16 x 8: a unit has row `lane / 4`, columns `lane % 4 * 2` and the next, and the same 8 rows below.
type Four = Vector<f32, Const<4>>;

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn einsum_tf32(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] p: Key<Planes>) {
    let mut a = Shared::<[f32]>::new_aligned_slice(comptime![p.stages * p.a.size()], 128usize);
    let mut b = Shared::<[f32]>::new_aligned_slice(comptime![p.stages * p.b.size()], 128usize);
    let mut out = Shared::<[f32]>::new_aligned_slice(comptime![p.t.units / PLANE * FRAGMENT * p.pitch()], 128usize);
    if exists(meta, p.t.clone()) {
        let s = spot(meta, operands, p.t.clone());
        let x = factor_a(meta, &s, p.t.clone());
        let y = factor_b(meta, &s, p.t.clone());
        let mut acc = Array::<Four>::new(comptime![p.rows * p.cols * 2]);
        #[unroll]
        for i in 0..comptime![p.rows * p.cols * 2] {
            acc[i] = Vector::new(0.0f32);
        }
        let width = meta[comptime![p.t.e.plan.rank - 1]] as usize;
        let turns = (width.div_ceil(p.t.k)) as u32;
        let (from, steps) = steps_of(&s, depth(meta, p.t.e.plan.clone()) * turns, p.t.clone());
        #[unroll]
        for i in 0..comptime![p.stages as u32 - 1] {
            bring::<f32>(meta, operands, &mut a, &mut b, &x, &y, from + i, steps, turns, width, p.clone());
        }
        for step in from..steps {
            // All but the newest copies are there, for all units; and nobody reads the tile that is filled next.
            wait(comptime![p.stages - 2]);
            sync_cube();
            let next = step + comptime![p.stages as u32 - 1];
            bring::<f32>(meta, operands, &mut a, &mut b, &x, &y, next, steps, turns, width, p.clone());
            products(&a, &b, &mut acc, (step % comptime![p.stages as u32]) as usize, p.clone());
        }
        wait(0usize);
        write(meta, operands, results, &s, &acc, &mut out, p.clone());
    }
}

/// A float rounded to tf32: to the nearest, ties away from 0.
#[cube]
fn round(x: f32) -> u32 {
    let out: u32;
    gpu_asm!("cvt.rna.tf32.f32 {out}, {x};", x = in(_) x, out = out(_) out, options(nomem));
    out
}

/// `c` and the product of 16 x 8 by 8 x 8. Of the left factor a unit has row `lane / 4` and 8 below at k `lane % 4`, then
/// the same at k 4 further; of the right one column `lane / 4` at the same two k.
#[cube]
fn product(a: &Sequence<u32>, b: u32, further: u32, c: Four) -> Four {
    let (a0, a1, a2, a3) = (*a.index(0usize), *a.index(1usize), *a.index(2usize), *a.index(3usize));
    let out: Four;
    gpu_asm!(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {d}, {{{a0}, {a1}, {a2}, {a3}}}, {{{b}, {e}}}, {c};",
        a0 = in(_) a0, a1 = in(_) a1, a2 = in(_) a2, a3 = in(_) a3, b = in(_) b, e = in(_) further, c = in(_) c,
        d = out(_) out,
        options(nomem),
    );
    out
}

/// Adds the products of one pair of tiles.
#[cube]
fn products(a: &Shared<[f32]>, b: &Shared<[f32]>, acc: &mut Array<Four>, slot: usize, #[comptime] p: Key<Planes>) {
    let plane = UNIT_POS as usize / PLANE;
    let (near, along) = (UNIT_POS as usize % PLANE / 4, UNIT_POS as usize % 4);
    let row = plane / p.across * comptime![p.rows * FRAGMENT] + near;
    let column = plane % p.across * comptime![p.cols * FRAGMENT] + near;
    let (a_from, b_from) = (slot * comptime![p.a.size()], slot * comptime![p.b.size()]);
    #[unroll]
    for k in 0..comptime![p.t.k / EIGHT] {
        let mut right = Sequence::<u32>::new();
        #[unroll]
        for j in 0..comptime![p.cols * 2] {
            #[unroll]
            for h in 0..2usize {
                let at = place(column + j * EIGHT, along + comptime![k * EIGHT + 4 * h], comptime![p.b]);
                right.push(round(b[b_from + at]));
            }
        }
        #[unroll]
        for i in 0..p.rows {
            let mut left = Sequence::<u32>::new();
            #[unroll]
            for h in 0..4usize {
                let (below, further) = comptime![(i * FRAGMENT + h % 2 * 8, k * EIGHT + h / 2 * 4)];
                left.push(round(a[a_from + place(row + below, along + further, comptime![p.a])]));
            }
            #[unroll]
            for j in 0..comptime![p.cols * 2] {
                let at = comptime![i * p.cols * 2 + j];
                acc[at] = product(&left, *right.index(comptime![2 * j]), *right.index(comptime![2 * j + 1]), acc[at]);
            }
        }
    }
}

/// Lays a plane's sums in shared memory, 16 rows at a time, and runs the epilogue on 4 at a time.
#[cube]
fn write(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    s: &Spot,
    acc: &Array<Four>,
    out: &mut Shared<[f32]>,
    #[comptime] p: Key<Planes>,
) {
    let (plane, lane) = (UNIT_POS as usize / PLANE, UNIT_POS as usize % PLANE);
    let from = plane * comptime![FRAGMENT * p.pitch()] + lane / 4 * comptime![p.pitch()] + lane % 4 * 2;
    #[unroll]
    for i in 0..p.rows {
        #[unroll]
        for j in 0..comptime![p.cols * 2] {
            let sums = acc[comptime![i * p.cols * 2 + j]];
            #[unroll]
            for h in 0..4usize {
                out[from + comptime![j * EIGHT + h / 2 * 8 * p.pitch() + h % 2]] = sums.extract(h);
            }
        }
        sync_plane();
        fragments(meta, operands, results, s, out, i, p.clone());
        sync_plane();
    }
}
