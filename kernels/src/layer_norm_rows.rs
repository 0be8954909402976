//! Layer norm of rows in one launch: a unit reads a row for its mean, for its variance, and to move and scale it;
//! twice of three times from its cache.
//!
//! Implements  `@layer_norm`
//! Schedule    `units` rows at a time, `lanes` elements of a row
//! Needs       rows as dense as `@layer_norm` has them; any width
//! Cost        reads R·C + 2·C, writes R·C elements: bandwidth-bound
//! Source      Ba et al. 2016, arXiv:1607.06450

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::{Dtype, Type};

use crate::bind::{Buffers, Slot, Slots};
use crate::grid::{address, cubes, looped, units};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::{Lane, across, read_float, write_float};
use crate::{Launch, LaunchError};

/// Norms rows about their mean.
pub struct LayerNormRows;

/// Where a norm's operands lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Norm {
    pub(crate) x: Slot,
    pub(crate) w: Slot,
    /// What a layer norm adds; an RMS norm has none.
    pub(crate) b: Option<Slot>,
    pub(crate) eps: Slot,
    pub(crate) y: Slot,
}

impl Norm {
    /// The places of `@rms_norm` or `@layer_norm`, and the types of its rows and its result.
    pub(crate) fn of<'w>(
        work: &'w Work,
        ins: &mut Slots,
        outs: &mut Slots,
    ) -> Result<(Norm, &'w Type, &'w Type), Refusal> {
        let Work::Function { name, operands, results, .. } = work else {
            return Err(Refusal("this kernel runs norms of rows".into()));
        };
        let (x, w, b, eps, y) = match (name.as_str(), &operands[..], &results[..]) {
            ("rms_norm", [x, w, eps], [y]) => (x, w, None, eps, y),
            ("layer_norm", [x, w, b, eps], [y]) => (x, w, Some(b), eps, y),
            _ => return Err(Refusal("this kernel runs @rms_norm and @layer_norm".into())),
        };
        let row = |t: &Type| t.rank() == 1 && t.dtype.is_float();
        if x.rank() != 2 || !x.dtype.is_float() || !row(w) || !b.is_none_or(row) || eps.elements() != 1 {
            return Err(Refusal("operands must be x[R, C], gains and shifts [C], and a scalar".into()));
        }
        if x.elements() >= 1 << 31 {
            return Err(Refusal(format!("indices are 32-bit: at most {} elements, not {}", 1u32 << 31, x.elements())));
        }
        let norm = Norm {
            x: ins.slot(0, x.dtype),
            w: ins.slot(1, w.dtype),
            b: b.map(|b| ins.slot(2, b.dtype)),
            eps: ins.slot(2 + usize::from(b.is_some()), Dtype::F32),
            y: outs.slot(0, y.dtype),
        };
        Ok((norm, x, y))
    }
}

impl Kernel for LayerNormRows {
    fn name(&self) -> &'static str {
        "layer_norm.rows"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["layer_norm"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (norm, x, y) = Norm::of(work, &mut Slots::default(), &mut Slots::default())?;
        if norm.b.is_none() {
            return Err(Refusal("this kernel runs @layer_norm".into()));
        }
        if !target.holds(y.dtype) {
            return Err(Refusal(format!("{} writes no {}", target.name, y.dtype)));
        }
        Ok(vec![units(target, x.elements())])
    }

    fn turns(&self, work: &Work, _schedule: &Schedule) -> usize {
        let norm = Norm::of(work, &mut Slots::default(), &mut Slots::default());
        norm.map_or(usize::MAX, |(_, x, _)| 3 * looped(x.shape[1], 0))
    }
}

impl Launch for LayerNormRows {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (mut ins, mut outs) = (Slots::default(), Slots::default());
        let (norm, x, _) = Norm::of(work, &mut ins, &mut outs).map_err(unfit(self.name()))?;
        let (rows, width) = (x.shape[0] as u32, x.shape[1] as u32);
        let (lanes, bits) = (schedule.get("lanes") as usize, address(schedule));
        let tail = !(width as usize).is_multiple_of(lanes);
        let (cubes, units) = cubes(rows, schedule);
        Ok(Prepared::new(
            vec![rows, width],
            ins,
            outs,
            cubes,
            units,
            runner!(|b| layer_norm, bits, lanes, b.meta, b.operands, b.results, norm, tail),
        ))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn layer_norm<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    #[comptime] n: Norm,
    #[comptime] tail: bool,
) {
    let row = ABSOLUTE_POS;
    if row < meta[0] as usize {
        let width = meta[1] as usize;
        let from = row * width;
        let size = f32::cast_from(meta[1]);
        let mean = row_sum::<N>(operands, from, width, 0.0f32, n, tail, false) / size;
        let squares = row_sum::<N>(operands, from, width, mean, n, tail, true);
        let eps = operands.f32s.index(n.eps.index)[0];
        let scale = 1.0f32 / (squares / size + eps).sqrt();
        let vectors = width / N::value();
        for j in 0..vectors {
            moved::<N>(operands, results, from, j * N::value(), mean, scale, n, Lane::One);
        }
        if tail {
            for i in vectors * N::value()..width {
                moved::<Const<1>>(operands, results, from, i, mean, scale, n, Lane::One);
            }
        }
    }
}

/// The sum over a row of its elements less `mean`, or of their squares.
#[cube]
fn row_sum<N: Size>(
    operands: &Buffers,
    from: usize,
    width: usize,
    mean: f32,
    #[comptime] n: Norm,
    #[comptime] tail: bool,
    #[comptime] squared: bool,
) -> f32 {
    let vectors = width / N::value();
    let mut held = Vector::<f32, N>::new(0.0f32);
    for j in 0..vectors {
        let x = read_float::<N>(operands, from + j * N::value(), 1usize, n.x, Lane::One) - Vector::new(mean);
        if squared {
            held = fma(x, x, held);
        } else {
            held += x;
        }
    }
    let mut sum = across::<N>(held, false);
    if tail {
        for i in vectors * N::value()..width {
            let x = read_float::<Const<1>>(operands, from + i, 1usize, n.x, Lane::One).extract(0usize) - mean;
            if squared {
                sum += x * x;
            } else {
                sum += x;
            }
        }
    }
    sum
}

/// Moves and scales from element `i` of a row on; rounded once, as in the text.
#[cube]
pub(crate) fn moved<N: Size>(
    operands: &Buffers,
    results: &mut Buffers,
    from: usize,
    i: usize,
    mean: f32,
    scale: f32,
    #[comptime] n: Norm,
    #[comptime] lane: Lane,
) {
    let x = read_float::<N>(operands, from + i, 1usize, n.x, lane);
    let unit = (x - Vector::new(mean)) * Vector::new(scale);
    let w = read_float::<N>(operands, i, 1usize, n.w, lane);
    let b = read_float::<N>(operands, i, 1usize, comptime![n.b.unwrap_or(n.w)], lane);
    write_float::<N>(results, from + i, 1usize, unit * w + b, n.y, lane);
}
