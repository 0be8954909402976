//! Cotangents of attention's keys and values, of any shape on any target: a unit walks the queries for one key.
//!
//! Implements  `@attention_dkv`
//! Schedule    `units` a cube, a key each; `unroll` where loops along D are unrolled
//! Needs       D <= 256: a key, its value and their sums are kept in registers
//! Cost        queries and their outputs' cotangents are read once a key; no atomics, one order of summing
//! Source      Dao 2023, FlashAttention-2, arXiv:2307.08691, section 3.1

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::attention::{BackPlaces, back_places, backward, plain, whole};
use crate::attention_dq_plain::{narrow, one};
use crate::bind::Buffers;
use crate::grid::{address, cubes, looped};
use crate::prepared::{Prepared, runner, unfit};
use crate::{Launch, LaunchError};

/// Differentiates attention, a key a unit.
pub struct AttentionDkvPlain;

impl Kernel for AttentionDkvPlain {
    fn name(&self) -> &'static str {
        "attention_dkv.plain"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(&["attention_dkv"])
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, ..) = backward(work, "attention_dkv", 2)?;
        narrow(n)?;
        Ok(vec![plain(target, n.d)])
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok((n, ..)) = backward(work, "attention_dkv", 2) else { return usize::MAX };
        let along = if whole(schedule) { 0 } else { looped(n.d, 0) };
        looped(n.g * n.t, 2 * along) + 2 * along
    }
}

impl Launch for AttentionDkvPlain {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, operands, results) = backward(work, "attention_dkv", 2).map_err(unfit(self.name()))?;
        let (places, ins, outs) = back_places(operands, results);
        let keys = n.b * n.h * n.s;
        let words = vec![keys as u32, n.t as u32, n.g as u32, n.h as u32, n.s as u32];
        let (cubes, units) = cubes(keys as u32, schedule);
        let (bits, whole) = (address(schedule), whole(schedule));
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| attention_dkv_plain, bits, b.meta, b.operands, b.results, n.d, whole, places),
        ))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn attention_dkv_plain(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    #[comptime] width: usize,
    #[comptime] whole: bool,
    #[comptime] p: BackPlaces,
) {
    let key = ABSOLUTE_POS;
    if key < meta[0] as usize {
        let (queries, groups) = (meta[1] as usize, meta[2] as usize);
        let (heads, keys) = (meta[3] as usize, meta[4] as usize);
        let head = key / keys;
        let batch = head / heads;
        let at = operands.i32s.index(p.at.index)[batch * keys + key % keys];
        let scale = 1.0f32 / f32::cast_from(comptime![width as f32].runtime()).sqrt();

        let mut k = Array::<f32>::new(width);
        let mut v = Array::<f32>::new(width);
        let mut dk = Array::<f32>::new(width);
        let mut dv = Array::<f32>::new(width);
        #[unroll(whole)]
        for d in 0..width {
            k[d] = one(operands, key * width + d, p.k) * scale;
            v[d] = one(operands, key * width + d, p.v);
            dk[d] = 0.0f32;
            dv[d] = 0.0f32;
        }
        for row in 0..groups * queries {
            let t = batch * queries + row % queries;
            if at >= operands.i32s.index(p.lo.index)[t] && at <= operands.i32s.index(p.hi.index)[t] {
                let query = head * groups * queries + row;
                let from = query * width;
                let mut score = 0.0f32.runtime();
                let mut dp = 0.0f32.runtime();
                #[unroll(whole)]
                for d in 0..width {
                    score += k[d] * one(operands, from + d, p.q);
                    dp += v[d] * one(operands, from + d, p.dout);
                }
                let weight = (score - operands.f32s.index(p.lse.index)[query]).exp();
                let ds = weight * (dp - operands.f32s.index(p.delta.index)[query]);
                #[unroll(whole)]
                for d in 0..width {
                    dk[d] += ds * one(operands, from + d, p.q);
                    dv[d] += weight * one(operands, from + d, p.dout);
                }
            }
        }
        #[unroll(whole)]
        for d in 0..width {
            results.f32s.index_mut(p.first.index)[key * width + d] = dk[d] * scale;
            results.f32s.index_mut(p.second.index)[key * width + d] = dv[d];
        }
    }
}
