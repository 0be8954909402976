//! What a norm's rows get of their cotangent, in one launch: a unit sums over its row, and comes again, to its cache, to
//! write.
//!
//! Implements  `@rms_norm_dx`, `@layer_norm_dx`
//! Schedule    `units` rows at a time, `lanes` elements of a row
//! Needs       rows as dense as the functions have them; any width
//! Cost        reads 2·R·C + C, writes R·C elements: bandwidth-bound
//! Source      own; the formula is in the text of `@layer_norm_dx`

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::{Dtype, Type};

use crate::bind::{Buffers, Slot, Slots};
use crate::grid::{address, cubes, looped, units};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::{Lane, across, read_float, write_float};
use crate::{Launch, LaunchError};

/// Backward of norms, rows.
pub struct NormDxRows;

/// Where the operands and results lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NormDx {
    pub(crate) x: Slot,
    pub(crate) w: Slot,
    pub(crate) eps: Slot,
    pub(crate) dy: Slot,
    pub(crate) dx: Slot,
    /// A layer norm's mean; an RMS norm takes none.
    pub(crate) mean: Option<Slot>,
    pub(crate) scale: Slot,
    pub(crate) slope: Slot,
}

impl NormDx {
    /// The places of `@rms_norm_dx` or `@layer_norm_dx`, and the type of its rows.
    pub(crate) fn of<'w>(work: &'w Work, ins: &mut Slots, outs: &mut Slots) -> Result<(NormDx, &'w Type), Refusal> {
        let Work::Function { name, operands, results, .. } = work else {
            return Err(Refusal("this kernel runs the backward of norms".into()));
        };
        let centred = name == "layer_norm_dx";
        if !centred && name != "rms_norm_dx" {
            return Err(Refusal("this kernel runs @rms_norm_dx and @layer_norm_dx".into()));
        }
        let ([x, w, eps, dy], [dx, stats @ ..]) = (&operands[..], &results[..]) else {
            return Err(Refusal("operands must be x[R, C], gains [C], a scalar and dy[R, C]".into()));
        };
        let rows = |t: &Type| t.rank() == 2 && t.dtype.is_float() && t.shape == x.shape;
        let fits = rows(x) && rows(dy) && rows(dx) && w.rank() == 1 && w.dtype.is_float() && eps.elements() == 1;
        if !fits || stats.len() != 2 + usize::from(centred) {
            return Err(Refusal("operands must be x[R, C], gains [C], a scalar and dy[R, C]".into()));
        }
        if x.elements() >= 1 << 31 {
            return Err(Refusal(format!("indices are 32-bit: at most {} elements, not {}", 1u32 << 31, x.elements())));
        }
        let first = 1 + usize::from(centred);
        let places = NormDx {
            x: ins.slot(0, x.dtype),
            w: ins.slot(1, w.dtype),
            eps: ins.slot(2, Dtype::F32),
            dy: ins.slot(3, dy.dtype),
            dx: outs.slot(0, dx.dtype),
            mean: centred.then(|| outs.slot(1, Dtype::F32)),
            scale: outs.slot(first, Dtype::F32),
            slope: outs.slot(first + 1, Dtype::F32),
        };
        Ok((places, dx))
    }
}

impl Kernel for NormDxRows {
    fn name(&self) -> &'static str {
        "norm_dx.rows"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["rms_norm_dx", "layer_norm_dx"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (_, dx) = NormDx::of(work, &mut Slots::default(), &mut Slots::default())?;
        if !target.holds(dx.dtype) {
            return Err(Refusal(format!("{} writes no {}", target.name, dx.dtype)));
        }
        Ok(vec![units(target, dx.elements())])
    }

    fn turns(&self, work: &Work, _schedule: &Schedule) -> usize {
        let norm = NormDx::of(work, &mut Slots::default(), &mut Slots::default());
        norm.map_or(usize::MAX, |(_, dx)| 3 * looped(dx.shape[1], 0))
    }
}

impl Launch for NormDxRows {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (mut ins, mut outs) = (Slots::default(), Slots::default());
        let (norm, dx) = NormDx::of(work, &mut ins, &mut outs).map_err(unfit(self.name()))?;
        let (rows, width) = (dx.shape[0] as u32, dx.shape[1] as u32);
        let (lanes, bits) = (schedule.get("lanes") as usize, address(schedule));
        let tail = !(width as usize).is_multiple_of(lanes);
        let (cubes, units) = cubes(rows, schedule);
        Ok(Prepared::new(
            vec![rows, width],
            ins,
            outs,
            cubes,
            units,
            runner!(|b| norm_dx_by_rows, bits, lanes, b.meta, b.operands, b.results, norm, tail),
        ))
    }
}

/// What a row sums: its squares, the cotangent g of its unit row, and g along the row.
#[derive(CubeType)]
pub(crate) struct Sums<N: Size> {
    pub(crate) squares: Vector<f32, N>,
    pub(crate) level: Vector<f32, N>,
    pub(crate) along: Vector<f32, N>,
}

/// Numbers of a row from which its elements follow.
#[derive(CubeType)]
pub(crate) struct Numbers {
    pub(crate) mean: f32,
    pub(crate) scale: f32,
    pub(crate) level: f32,
    /// What an element less the mean is multiplied by.
    pub(crate) share: f32,
    pub(crate) slope: f32,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn norm_dx_by_rows<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    #[comptime] n: NormDx,
    #[comptime] tail: bool,
) {
    let row = ABSOLUTE_POS;
    if row < meta[0] as usize {
        let width = meta[1] as usize;
        let from = row * width;
        let size = f32::cast_from(meta[1]);
        let vectors = width / N::value();
        let mut mean = 0.0f32.runtime();
        if comptime![n.mean.is_some()] {
            let mut held = Vector::<f32, N>::new(0.0f32);
            for j in 0..vectors {
                held += read_float::<N>(operands, from + j * N::value(), 1usize, n.x, Lane::One);
            }
            mean = across::<N>(held, false);
            if tail {
                for i in vectors * N::value()..width {
                    mean += read_float::<Const<1>>(operands, from + i, 1usize, n.x, Lane::One).extract(0usize);
                }
            }
            mean /= size;
        }
        let mut sums = no_sums::<N>();
        for j in 0..vectors {
            add::<N>(operands, &mut sums, from, j * N::value(), mean, n);
        }
        let mut rest = no_sums::<Const<1>>();
        if tail {
            for i in vectors * N::value()..width {
                add::<Const<1>>(operands, &mut rest, from, i, mean, n);
            }
        }
        let squares = across::<N>(sums.squares, false) + rest.squares.extract(0usize);
        let level = across::<N>(sums.level, false) + rest.level.extract(0usize);
        let along = across::<N>(sums.along, false) + rest.along.extract(0usize);
        let r = finish(operands, mean, squares, level, along, size, n);
        for j in 0..vectors {
            turned::<N>(operands, results, from, j * N::value(), &r, n);
        }
        if tail {
            for i in vectors * N::value()..width {
                turned::<Const<1>>(operands, results, from, i, &r, n);
            }
        }
        noted(results, row, &r, n);
    }
}

#[cube]
pub(crate) fn no_sums<N: Size>() -> Sums<N> {
    Sums::<N> { squares: Vector::new(0.0f32), level: Vector::new(0.0f32), along: Vector::new(0.0f32) }
}

/// Adds elements from `i` of a row on.
#[cube]
pub(crate) fn add<N: Size>(
    operands: &Buffers,
    sums: &mut Sums<N>,
    from: usize,
    i: usize,
    mean: f32,
    #[comptime] n: NormDx,
) {
    let off = read_float::<N>(operands, from + i, 1usize, n.x, Lane::One) - Vector::new(mean);
    let dy = read_float::<N>(operands, from + i, 1usize, n.dy, Lane::One);
    let g = dy * read_float::<N>(operands, i, 1usize, n.w, Lane::One);
    sums.squares = fma(off, off, sums.squares);
    sums.along = fma(g, off, sums.along);
    if comptime![n.mean.is_some()] {
        sums.level += g;
    }
}

/// A row's numbers from its sums.
#[cube]
pub(crate) fn finish(
    operands: &Buffers,
    mean: f32,
    squares: f32,
    level: f32,
    along: f32,
    size: f32,
    #[comptime] n: NormDx,
) -> Numbers {
    let eps = operands.f32s.index(n.eps.index)[0];
    let scale = 1.0f32 / (squares / size + eps).sqrt();
    let slope = along * (scale * scale * scale) * -0.5f32;
    Numbers { mean, scale, level: level / size, share: slope * 2.0f32 / size, slope }
}

/// Writes dx from element `i` of a row on.
#[cube]
pub(crate) fn turned<N: Size>(
    operands: &Buffers,
    results: &mut Buffers,
    from: usize,
    i: usize,
    r: &Numbers,
    #[comptime] n: NormDx,
) {
    let off = read_float::<N>(operands, from + i, 1usize, n.x, Lane::One) - Vector::new(r.mean);
    let dy = read_float::<N>(operands, from + i, 1usize, n.dy, Lane::One);
    let g = dy * read_float::<N>(operands, i, 1usize, n.w, Lane::One);
    let dx = (g - Vector::new(r.level)) * Vector::new(r.scale) + off * Vector::new(r.share);
    write_float::<N>(results, from + i, 1usize, dx, n.dx, Lane::One);
}

/// Writes what the weight's cotangent needs of a row.
#[cube]
pub(crate) fn noted(results: &mut Buffers, row: usize, r: &Numbers, #[comptime] n: NormDx) {
    write_float::<Const<1>>(results, row, 1usize, Vector::new(r.scale), n.scale, Lane::One);
    write_float::<Const<1>>(results, row, 1usize, Vector::new(r.slope), n.slope, Lane::One);
    if comptime![n.mean.is_some()] {
        write_float::<Const<1>>(
            results,
            row,
            1usize,
            Vector::new(r.mean),
            comptime![n.mean.unwrap_or(n.scale)],
            Lane::One,
        );
    }
}
