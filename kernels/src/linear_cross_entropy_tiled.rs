//! Cross entropy behind its projection on GPUs: tiles of logits by `einsum.tiled`, whose units meet in
//! shared memory over each token's largest logit and sum.
//!
//! Implements  `@linear_cross_entropy`, `@linear_cross_entropy_tiled`
//! Schedule    as `einsum.tiled`, k whole
//! Needs       a GPU; at least 9 tokens and 8 words
//! Cost        2·T·V·C FLOP in f32; logits stay in registers, 8 bytes a token and tile leave; a second launch merges tiles
//! Source      Wijmans et al. 2024, Cut your losses, arXiv:2411.09009

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::Dtype;

use crate::bind::Buffers;
use crate::cross_entropy::{
    Ends, FUNCTIONS, LEAST, ends, floats, instance, join, label_from, leave_hit, leave_part, left, merge_turns, merged,
    worth,
};
use crate::einsum_tiled::{Block, LANES, Panel, bytes, shapes, sums, turns};
use crate::einsum_tiles::{exists, spot};
use crate::grid::{address, looped};
use crate::key::Key;
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::{Launch, LaunchError};

/// Folds tiles of logits.
pub struct LinearCrossEntropyTiled;

/// What a unit does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Fold {
    b: Key<Block>,
    ends: Ends,
}

/// Units side by side in a tile.
fn across(schedule: &Schedule) -> usize {
    (schedule.get("n") / schedule.get("cols")) as usize
}

impl Kernel for LinearCrossEntropyTiled {
    fn name(&self) -> &'static str {
        "linear_cross_entropy.tiled"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(FUNCTIONS)
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, roles) = instance(work, Some(target))?;
        let whole = shapes(&roles, target)?;
        if target.tf32 && roles.loops.nest.reads[0].dtype == Dtype::F32 {
            return Err(Refusal("tf32 is allowed: matrix units take the logits sooner".into()));
        }
        let room = |s: &Schedule| {
            let [m, n, k] = ["m", "n", "k"].map(|word| s.get(word) as usize);
            bytes(m, n, k) + 8 * m * across(s) <= target.shared_bytes
        };
        let fitting: Vec<Schedule> = whole.into_iter().filter(room).collect();
        if fitting.is_empty() {
            return Err(Refusal(format!("{} has {} bytes of shared memory", target.name, target.shared_bytes)));
        }
        worth(work, &n, fitting, |s| n.v.div_ceil(s.get("n") as usize), target)
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        instance(work, None).map_or(0, |(n, _)| floats(&n, n.v.div_ceil(schedule.get("n") as usize)))
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok((n, roles)) = instance(work, None) else { return usize::MAX };
        let meet = looped(across(schedule), 0);
        (turns(&roles, schedule) + meet).max(merge_turns(n.v.div_ceil(schedule.get("n") as usize)))
    }
}

impl Launch for LinearCrossEntropyTiled {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, roles) = instance(work, None).map_err(unfit(self.name()))?;
        let (b, (_, mut words, mut ins, _, (grid, units))) = Block::of(&roles, schedule);
        let parts = n.v.div_ceil(schedule.get("n") as usize);
        let ends = ends(&n, parts, &mut words, &mut ins);
        let (bits, f) = (address(schedule), Key::new(Fold { b: Key::new(b), ends }));
        let run: Run = runner!(|b| linear_cross_entropy_tiled, bits, b.meta, b.operands, b.results, f.clone());
        Ok(merged(Prepared::new(words, ins, left(), grid, units, run), &n, parts, ends, schedule))
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn linear_cross_entropy_tiled(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] f: Key<Fold>) {
    let b = comptime![f.b.clone()];
    let mut a_tile = Panel::new_slice(comptime![b.t.k * (b.t.m / LANES + 1)]);
    let mut b_tile = Panel::new_slice(comptime![b.t.k * (b.t.n / LANES + 1)]);
    // The largest of each row and unit, and behind them the sums.
    let mut meeting = Shared::<[f32]>::new_slice(comptime![2 * b.t.m * b.across]);
    if exists(meta, b.t.clone()) {
        let s = spot(meta, operands, b.t.clone());
        let acc = sums(meta, operands, &s, &mut a_tile, &mut b_tile, b.clone());
        let (rows, size) = (meta[comptime![f.ends.words + 1]] as usize, meta[comptime![f.ends.words + 2]] as usize);
        let behind = comptime![b.t.m * b.across];
        let (down, across) = (UNIT_POS as usize / b.across, UNIT_POS as usize % b.across);
        #[unroll(b.t.unroll)]
        for r in 0..comptime![b.rows * LANES] {
            let place = (r / LANES * b.down + down) * LANES + r % LANES;
            let row = s.m as usize + place;
            let label = label_from(operands, min(row, rows - 1), s.n, f.ends);
            let mut top = LEAST.runtime();
            let mut hit = 0.0f32.runtime();
            let mut mine = false.runtime();
            #[unroll(b.t.unroll)]
            for j in 0..b.cols {
                let column = (j * b.across + across) * LANES;
                #[unroll]
                for l in 0..LANES {
                    let logit = acc[r * b.cols + j].extract(l);
                    let inside = s.n + column + l < size;
                    top = select(inside, max(top, logit), top);
                    let here = label == (column + l) as i32;
                    hit = select(here, logit, hit);
                    mine = mine || here;
                }
            }
            let mut sum = 0.0f32.runtime();
            #[unroll(b.t.unroll)]
            for j in 0..b.cols {
                let column = (j * b.across + across) * LANES;
                #[unroll]
                for l in 0..LANES {
                    let weight = (acc[r * b.cols + j].extract(l) - top).exp();
                    sum += select(s.n + column + l < size, weight, 0.0f32);
                }
            }
            meeting[place * b.across + across] = top;
            meeting[behind + place * b.across + across] = sum;
            if mine && row < rows {
                leave_hit(meta, results, row, hit, f.ends);
            }
        }
        sync_cube();
        let place = UNIT_POS as usize;
        let row = s.m as usize + place;
        if place < b.t.m && row < rows {
            let mut top = LEAST.runtime();
            let mut sum = 0.0f32.runtime();
            for u in 0..b.across {
                let (t, w) = (meeting[place * b.across + u], meeting[behind + place * b.across + u]);
                (top, sum) = join(top, sum, t, w);
            }
            leave_part(meta, results, row, s.n / b.t.n, top, sum, f.ends);
        }
    }
}
