//! Attention of any shape on any target: a unit walks the keys for one query.
//!
//! Implements  `@attention`, `@attention_partial`, `@attention_onto`
//! Schedule    `units` a cube, a query each; `unroll` where loops along D are unrolled
//! Needs       D <= 256: a query and its sum are kept in registers; D <= 128 in WGSL
//! Cost        keys and values are read once a query: right everywhere, fast nowhere
//! Source      online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{FORWARD, Places, instance, places, plain, whole};
use crate::attention_carry::{Carry, carried_top, carried_value, carried_weight};
use crate::bind::Buffers;
use crate::grid::{address, cubes, looped};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::{Lane, read_float, write_float};
use crate::{Launch, LaunchError};

/// Attends, a query a unit.
pub struct AttentionPlain;

impl Kernel for AttentionPlain {
    fn name(&self) -> &'static str {
        "attention.plain"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(FORWARD)
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, ..) = instance(work)?;
        if n.d > 256 {
            return Err(Refusal(format!("a head may be 256 wide, is {}", n.d)));
        }
        // Seen with lavapipe: the first number of a row of 256, and the row's sum, are wrong; rows of 128 are right.
        if n.d > 128 && target.family == Family::Wgpu {
            return Err(Refusal(format!("WGSL may not keep a row of {} right in a unit", n.d)));
        }
        Ok(vec![plain(target, n.d)])
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok((n, ..)) = instance(work) else { return usize::MAX };
        let along = if whole(schedule) { 0 } else { looped(n.d, 0) };
        looped(n.s, 2 * along) + 2 * along
    }
}

impl Launch for AttentionPlain {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = instance(work).map_err(unfit(self.name()))?;
        let (places, carry, ins, outs) = places(operands, results);
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
            runner!(|b| attention_plain, bits, b.meta, b.operands, b.results, n.d, whole, places, carry),
        ))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_plain(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    #[comptime] width: usize,
    #[comptime] whole: bool,
    #[comptime] p: Places,
    #[comptime] carry: Option<Carry>,
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
        let scale = 1.0f32 / f32::cast_from(comptime![width as f32].runtime()).sqrt();

        let mut q = Array::<f32>::new(width);
        let mut sum = Array::<f32>::new(width);
        let mut top = carried_top(operands, query, carry);
        let mut weight = carried_weight(top, carry);
        #[unroll(whole)]
        for d in 0..width {
            q[d] = one(operands, query * width + d, p.q) * scale;
            sum[d] = carried_value(operands, query * width + d, weight, carry);
        }
        for s in 0..keys {
            let at = operands.i32s.index(p.at.index)[batch * keys + s];
            if at >= lo && at <= hi {
                let key = (head * keys + s) * width;
                let mut score = 0.0f32.runtime();
                #[unroll(whole)]
                for d in 0..width {
                    score += q[d] * one(operands, key + d, p.k);
                }
                let higher = max(top, score);
                let old = (top - higher).exp();
                let new = (score - higher).exp();
                #[unroll(whole)]
                for d in 0..width {
                    sum[d] = sum[d] * old + new * one(operands, key + d, p.v);
                }
                weight = weight * old + new;
                top = higher;
            }
        }
        let seen = weight != 0.0f32;
        let share = select(seen, 1.0f32 / select(seen, weight, 1.0f32), 0.0f32);
        #[unroll(whole)]
        for d in 0..width {
            write_float::<Const<1>>(results, query * width + d, 1usize, Vector::new(sum[d] * share), p.out, Lane::One);
        }
        let lse = select(seen, top + select(seen, weight, 1.0f32).ln(), -1e30f32);
        results.f32s.index_mut(p.lse.index)[query] = lse;
    }
}

#[cube]
fn one(operands: &Buffers, at: usize, #[comptime] slot: crate::bind::Slot) -> f32 {
    read_float::<Const<1>>(operands, at, 0usize, slot, Lane::Zero).extract(0usize)
}
