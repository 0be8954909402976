//! Few queries on the CPU: the keys cut into parts, so that every core has some, and what the parts came to merged.
//!
//! A part leaves its values, normalised, and its lse in scratch memory: [part, query, D], then [part, query]. A second launch
//! weighs parts by exp(lse).

use cubecl::prelude::*;

use crate::attention::Sizes;
use crate::attention_panels::MASKED;
use crate::attention_tiles::{STEP, Shape, TILE, pack_row, write_row};
use crate::bind::{Buffers, Slot};

/// The comptime half of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Merge {
    pub(crate) from: Slot,
    pub(crate) out: Slot,
    pub(crate) lse: Slot,
    pub(crate) shape: Shape,
}

/// Parts of the keys: as few as keep all but a tenth of the cores' time, else as many as there may be; 1 where there are many
/// queries, or few keys.
pub(crate) fn parts(n: &Sizes, cores: usize) -> usize {
    let (heads, tiles) = (n.b * n.h, n.s.div_ceil(TILE));
    if n.g * n.t > STEP {
        return 1;
    }
    let busy = |parts: usize| {
        let items = heads * parts;
        10 * items >= 9 * items.next_multiple_of(cores)
    };
    let most = (tiles / 4).min(cores).max(1);
    (1..most).find(|parts| busy(*parts)).unwrap_or(most)
}

/// Queries of an instance.
pub(crate) fn queries(n: &Sizes) -> usize {
    n.b * n.h * n.g * n.t
}

/// Floats that the parts leave.
pub(crate) fn floats(n: &Sizes, parts: usize) -> usize {
    if parts > 1 { parts * queries(n) * (n.d + 1) } else { 0 }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
pub(crate) fn merge_rows<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Merge) {
    merge_row::<N>(meta, operands, results, ABSOLUTE_POS, plan);
}

/// An item: a query.
#[cube]
pub(crate) fn merge_row<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    query: usize,
    #[comptime] plan: Merge,
) {
    let (parts, queries) = (meta[6] as usize, meta[7] as usize);
    if query < queries {
        let scratch = operands.f32s.index(plan.from.index);
        let lses = parts * queries * plan.shape.d + query;
        let mut top = MASKED.runtime();
        for p in 0..parts {
            top = max(top, scratch[lses + p * queries]);
        }
        let mut weight = 0.0f32.runtime();
        let mut row = Array::<Vector<f32, N>>::new(plan.shape.dv);
        let mut sum = Array::<Vector<f32, N>>::new(plan.shape.dv);
        #[unroll]
        for j in 0..plan.shape.dv {
            sum[j] = Vector::new(0.0f32);
        }
        for p in 0..parts {
            let lse = scratch[lses + p * queries];
            let share = select(lse < -1e29f32, 0.0f32, (lse - top).exp());
            weight += share;
            pack_row::<N>(
                operands,
                (p * queries + query) * plan.shape.d,
                &mut row,
                0usize,
                share,
                plan.from,
                plan.shape,
            );
            #[unroll]
            for j in 0..plan.shape.dv {
                sum[j] += row[j];
            }
        }
        let seen = weight != 0.0f32;
        let safe = select(seen, weight, 1.0f32);
        write_row::<N>(results, query * plan.shape.d, &sum, 0usize, 1.0f32 / safe, plan.out, plan.shape);
        results.f32s.index_mut(plan.lse.index)[query] = select(seen, top + safe.ln(), MASKED);
    }
}

#[cfg(test)]
mod tests {
    use super::{Sizes, parts};

    #[test]
    fn every_core_has_keys() {
        let of = |h, s, cores| parts(&Sizes { b: 1, h, g: 3, t: 1, s, d: 64 }, cores);
        assert_eq!([of(3, 1024, 2), of(2, 1024, 2), of(3, 1024, 4)], [2, 1, 4]);
        assert_eq!(of(3, 4096, 64), 16, "too few keys for all cores: as many parts as are worth it");
        assert_eq!(of(3, 100, 8), 1);
    }
}
