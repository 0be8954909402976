//! RMS norm of rows in one launch: a unit reads a row to sum its squares, and again, from its cache, to scale it.
//!
//! Implements  `@rms_norm`
//! Schedule    `units` rows at a time, `lanes` elements of a row
//! Needs       rows as dense as `@rms_norm` has them; any width
//! Cost        reads R·C + C, writes R·C elements: bandwidth-bound
//! Source      Zhang & Sennrich 2019, arXiv:1910.07467

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::{Dtype, Type};

use crate::bind::{Buffers, Slot, Slots, Storage};
use crate::chain::Stage;
use crate::grid::{address, cubes, looped, units};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::{Lane, across, read_float, round_bf16, round_f16, write_float};
use crate::{Launch, LaunchError};

/// Norms rows.
pub struct RmsNormRows;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    x: Slot,
    w: Slot,
    eps: Slot,
    y: Slot,
    /// Whether the lanes leave a rest.
    tail: bool,
}

impl Kernel for RmsNormRows {
    fn name(&self) -> &'static str {
        "rms_norm.rows"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["rms_norm"])
    }

    fn chains(&self) -> bool {
        true
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (x, ..) = instance(work)?;
        if x.elements() >= 1 << 31 {
            return Err(Refusal(format!("indices are 32-bit: at most {} elements, not {}", 1u32 << 31, x.elements())));
        }
        Ok(vec![units(target, x.elements())])
    }

    fn turns(&self, work: &Work, _schedule: &Schedule) -> usize {
        instance(work).map_or(usize::MAX, |(x, ..)| 2 * looped(x.shape[1], 0))
    }
}

impl Launch for RmsNormRows {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (x, w, y) = instance(work).map_err(unfit(self.name()))?;
        let (rows, width) = (x.shape[0], x.shape[1]);
        let (mut ins, mut outs) = (Slots::default(), Slots::default());
        let (lanes, bits) = (schedule.get("lanes") as usize, address(schedule));
        let plan = Plan {
            x: ins.slot(0, x.dtype),
            w: ins.slot(1, w.dtype),
            eps: ins.slot(2, Dtype::F32),
            y: outs.slot(0, y.dtype),
            tail: !width.is_multiple_of(lanes),
        };
        let (cubes, units) = cubes(rows as u32, schedule);
        Ok(Prepared::new(
            vec![rows as u32, width as u32],
            ins,
            outs,
            cubes,
            units,
            runner!(|b| rms_norm, bits, lanes, b.meta, b.operands, b.results, plan),
        )
        .staged(Stage::RmsNorm(plan), lanes))
    }
}

/// x, w and the result of an instance.
fn instance(work: &Work) -> Result<(&Type, &Type, &Type), Refusal> {
    match work {
        Work::Function { name, operands, results, .. } if name == "rms_norm" => match (&operands[..], &results[..]) {
            ([x, w, eps], [y]) if x.rank() == 2 && w.rank() == 1 && eps.elements() == 1 && x.dtype.is_float() => {
                Ok((x, w, y))
            }
            _ => Err(Refusal("operands must be x[R, C], w[C] and a scalar".into())),
        },
        _ => Err(Refusal("this kernel runs @rms_norm".into())),
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn rms_norm<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] p: Plan) {
    scale_row::<N>(meta, operands, results, ABSOLUTE_POS, p);
}

/// An item: a row.
#[cube]
pub(crate) fn scale_row<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    row: usize,
    #[comptime] p: Plan,
) {
    if row < meta[0] as usize {
        let width = meta[1] as usize;
        let from = row * width;
        let vectors = width / N::value();
        let mut squares = Vector::<f32, N>::new(0.0f32);
        for j in 0..vectors {
            let x = read_float::<N>(operands, from + j * N::value(), 1usize, p.x, Lane::One);
            squares = fma(x, x, squares);
        }
        let mut sum = across::<N>(squares, false);
        if comptime![p.tail] {
            for i in vectors * N::value()..width {
                let x = read_float::<Const<1>>(operands, from + i, 1usize, p.x, Lane::One).extract(0usize);
                sum += x * x;
            }
        }
        let eps = operands.f32s.index(p.eps.index)[0];
        let scale = 1.0f32 / (sum / f32::cast_from(meta[1]) + eps).sqrt();
        for j in 0..vectors {
            scaled::<N>(operands, results, from, j * N::value(), scale, p.x, p.w, p.y, Lane::One);
        }
        if comptime![p.tail] {
            for i in vectors * N::value()..width {
                scaled::<Const<1>>(operands, results, from, i, scale, p.x, p.w, p.y, Lane::One);
            }
        }
    }
}

/// Scales from element `i` of a row on. The unit row rounds to the row's dtype before the weights, as in the text.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn scaled<N: Size>(
    operands: &Buffers,
    results: &mut Buffers,
    from: usize,
    i: usize,
    scale: f32,
    #[comptime] x: Slot,
    #[comptime] w: Slot,
    #[comptime] y: Slot,
    #[comptime] lane: Lane,
) {
    let mut unit = read_float::<N>(operands, from + i, 1usize, x, lane) * Vector::new(scale);
    if comptime![x.storage == Storage::Bf16] {
        unit = round_bf16::<N>(unit);
    } else if comptime![x.storage == Storage::F16] {
        unit = round_f16::<N>(unit);
    }
    let w = read_float::<N>(operands, i, 1usize, w, lane);
    write_float::<N>(results, from + i, 1usize, unit * w, y, lane);
}
