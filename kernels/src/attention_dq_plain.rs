//! Cotangents of attention's queries, of any shape on any target: a unit walks the keys for one query.
//!
//! Implements  `@attention_dq`
//! Schedule    `units` a cube, a query each; `unroll` where loops along D are unrolled
//! Needs       D <= 256: a query, its output's cotangent and the sum are kept in registers
//! Cost        keys and values are read once a query: right everywhere, fast nowhere
//! Source      Dao 2023, FlashAttention-2, arXiv:2307.08691, section 3.1

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{BackPlaces, Sizes, back_places, backward, plain, whole};
use crate::bind::{Buffers, Slot};
use crate::grid::{address, cubes, looped};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::{Lane, read_float};
use crate::{Launch, LaunchError};

/// Differentiates attention, a query a unit.
pub struct AttentionDqPlain;

impl Kernel for AttentionDqPlain {
    fn name(&self) -> &'static str {
        "attention_dq.plain"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["attention_dq"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, ..) = backward(work, "attention_dq", 1)?;
        narrow(n)?;
        Ok(vec![plain(target, n.d)])
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok((n, ..)) = backward(work, "attention_dq", 1) else { return usize::MAX };
        let along = if whole(schedule) { 0 } else { looped(n.d, 0) };
        looped(n.s, 2 * along) + 2 * along
    }
}

/// Whether a head fits a unit's registers.
pub(crate) fn narrow(n: Sizes) -> Result<(), Refusal> {
    if n.d > 256 { Err(Refusal(format!("a head may be 256 wide, is {}", n.d))) } else { Ok(()) }
}

impl Launch for AttentionDqPlain {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = backward(work, "attention_dq", 1).map_err(unfit(self.name()))?;
        let (places, ins, outs) = back_places(operands, results);
        let queries = n.b * n.h * n.g * n.t;
        let words = vec![queries as u32, n.t as u32, n.g as u32, n.h as u32, n.s as u32];
        let (cubes, units) = cubes(queries as u32, schedule);
        let (bits, whole) = (address(schedule), whole(schedule));
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| attention_dq_plain, bits, b.meta, b.operands, b.results, n.d, whole, places),
        ))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_dq_plain(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    #[comptime] width: usize,
    #[comptime] whole: bool,
    #[comptime] p: BackPlaces,
) {
    let query = ABSOLUTE_POS;
    if query < meta[0] as usize {
        let (queries, groups) = (meta[1] as usize, meta[2] as usize);
        let (heads, keys) = (meta[3] as usize, meta[4] as usize);
        let head = query / (queries * groups);
        let batch = head / heads;
        let row = batch * queries + query % queries;
        let lo = operands.i32s.index(p.lo.index)[row];
        let hi = operands.i32s.index(p.hi.index)[row];
        let lse = operands.f32s.index(p.lse.index)[query];
        let delta = operands.f32s.index(p.delta.index)[query];
        let scale = 1.0f32 / f32::cast_from(comptime![width as f32].runtime()).sqrt();

        let mut q = Array::<f32>::new(width);
        let mut dout = Array::<f32>::new(width);
        let mut sum = Array::<f32>::new(width);
        #[unroll(whole)]
        for d in 0..width {
            q[d] = one(operands, query * width + d, p.q) * scale;
            dout[d] = one(operands, query * width + d, p.dout);
            sum[d] = 0.0f32;
        }
        for s in 0..keys {
            let at = operands.i32s.index(p.at.index)[batch * keys + s];
            if at >= lo && at <= hi {
                let key = (head * keys + s) * width;
                let mut score = 0.0f32.runtime();
                let mut dp = 0.0f32.runtime();
                #[unroll(whole)]
                for d in 0..width {
                    score += q[d] * one(operands, key + d, p.k);
                    dp += dout[d] * one(operands, key + d, p.v);
                }
                let ds = (score - lse).exp() * (dp - delta);
                #[unroll(whole)]
                for d in 0..width {
                    sum[d] += ds * one(operands, key + d, p.k);
                }
            }
        }
        #[unroll(whole)]
        for d in 0..width {
            results.f32s.index_mut(p.first.index)[query * width + d] = sum[d] * scale;
        }
    }
}

#[cube]
pub(crate) fn one(operands: &Buffers, at: usize, #[comptime] slot: Slot) -> f32 {
    read_float::<Const<1>>(operands, at, 0usize, slot, Lane::Zero).extract(0usize)
}
