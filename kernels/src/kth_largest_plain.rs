//! The k-th largest of each row, exact, ties counted: a binary search over the bits of the answer.
//!
//! Implements  `kth_largest` over the last axis
//! Schedule    a unit a row, `lanes` elements at a time
//! Needs       1 <= k <= width; f32
//! Cost        reads each row 32 times; nothing is moved
//! Source      radix select (Knuth, TAOCP 3, 5.2.5) on order-preserving images of floats (Herf 2001)

use cubecl::prelude::*;
use omchat_codegen::{Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::Dtype;

use crate::bind::{Buffers, Slots};
use crate::grid::{address, cubes, looped, units};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::load;
use crate::{Launch, LaunchError};

/// Passes over a row: one a bit.
const PASSES: usize = 32;

/// Finds the k-th largest of each row.
pub struct KthLargestPlain;

impl Kernel for KthLargestPlain {
    fn name(&self) -> &'static str {
        "kth_largest.plain"
    }

    fn implements(&self) -> Implements {
        Implements::KthLargest
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (rows, width, _) = sizes(work)?;
        Ok(vec![units(target, rows * width * PASSES)])
    }

    fn turns(&self, work: &Work, _schedule: &Schedule) -> usize {
        sizes(work).map_or(usize::MAX, |(_, width, _)| looped(PASSES, looped(width, 0)))
    }
}

impl Launch for KthLargestPlain {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (rows, width, k) = sizes(work).map_err(unfit(self.name()))?;
        let (mut ins, mut outs) = (Slots::default(), Slots::default());
        ins.slot(0, Dtype::F32);
        outs.slot(0, Dtype::F32);
        let (cubes, units) = cubes(rows as u32, schedule);
        let (bits, lanes) = (address(schedule), schedule.get("lanes") as usize);
        let words = vec![rows as u32, width as u32, k as u32];
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| kth_largest, bits, lanes, b.meta, b.operands, b.results),
        ))
    }
}

/// Rows, their width, and k.
pub(crate) fn sizes(work: &Work) -> Result<(usize, usize, usize), Refusal> {
    let Work::KthLargest { rows, width, k } = *work else {
        return Err(Refusal("this kernel runs kth_largest".into()));
    };
    if k == 0 || k > width {
        return Err(Refusal(format!("k must be from 1 to the width {width}, is {k}")));
    }
    if rows.saturating_mul(width) >= 1 << 31 {
        return Err(Refusal(format!("indices are 32-bit: at most {} elements, not {rows} x {width}", 1u32 << 31)));
    }
    Ok((rows, width, k))
}

/// The bits of floats turned so that they order as unsigned integers do.
#[cube]
pub(crate) fn image<N: Size>(x: Vector<f32, N>) -> Vector<u32, N> {
    let bits = Vector::<u32, N>::reinterpret(x);
    let top = Vector::<u32, N>::new(0x8000_0000u32);
    select_many(bits.less_than(&top), bits ^ top, bits ^ Vector::new(0xffff_ffffu32))
}

/// The float of an image.
#[cube]
pub(crate) fn number(image: u32) -> f32 {
    let bits = select(image >= 0x8000_0000u32, image ^ 0x8000_0000u32, image ^ 0xffff_ffffu32);
    f32::reinterpret(bits)
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn kth_largest<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers) {
    let row = ABSOLUTE_POS;
    if row < meta[0] as usize {
        let width = meta[1] as usize;
        let k = meta[2];
        let x = operands.f32s.index(0usize);
        let start = row * width;
        let vectors = width / N::value();
        let mut answer = 0u32.runtime();
        for b in 0u32..32u32 {
            // The largest image that k elements reach, bit by bit from the top.
            let candidate = answer | (1u32 << (31u32 - b));
            let mut counts = Vector::<u32, N>::new(0u32);
            for j in 0..vectors {
                let reach =
                    image::<N>(load::<f32, N>(x, start + j * N::value())).greater_equal(&Vector::new(candidate));
                counts += select_many(reach, Vector::new(1u32), Vector::new(0u32));
            }
            let mut count = 0u32.runtime();
            #[unroll]
            for l in 0..N::value() {
                count += counts.extract(l);
            }
            for i in start + vectors * N::value()..start + width {
                count += select(image::<Const<1>>(Vector::new(x[i])).extract(0usize) >= candidate, 1u32, 0u32);
            }
            answer = select(count >= k, candidate, answer);
        }
        results.f32s.index_mut(0usize)[row] = number(answer);
    }
}
