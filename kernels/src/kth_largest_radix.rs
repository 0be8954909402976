//! The k-th largest of each row by histograms of the ordered bits: 11, 11 and 10 of them, each pass over what the
//! last one left in question.
//!
//! Implements  `kth_largest` over the last axis
//! Schedule    CPU: a unit a row, vectors of `lanes` skipped where none is in question; GPUs: a cube of `units` a row
//! Needs       1 <= k <= width; f32; rows long enough to pay for the bins
//! Cost        reads each row 3 times; a count an element in question
//! Source      radix select (Knuth, TAOCP 3, 5.2.5) on order-preserving images of floats (Herf 2001)

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::Dtype;

use crate::bind::{Buffers, Slots};
use crate::grid::{address, cubes, looped, units};
use crate::kth_largest_plain::{image, number, sizes};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::load;
use crate::{Launch, LaunchError};

/// Bins of the widest pass.
pub(crate) const BINS: usize = 2048;
/// Where the bits of each pass begin.
pub(crate) const SHIFTS: [u32; 3] = [21, 10, 0];
/// The shortest row that pays for clearing and reading the bins: of a unit (measured on the CPU: equal at 4096), and of
/// the units of a cube, which share that work.
const SHORT: [usize; 2] = [4096, 1024];

/// Finds the k-th largest of each row by digits.
pub struct KthLargestRadix;

impl Kernel for KthLargestRadix {
    fn name(&self) -> &'static str {
        "kth_largest.radix"
    }

    fn implements(&self) -> Implements {
        Implements::KthLargest
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (rows, width, _) = sizes(work)?;
        let short = SHORT[usize::from(target.family != Family::Cpu)];
        if width < short {
            return Err(Refusal(format!("{BINS} bins pay for rows of {short} or more, they are {width} wide")));
        }
        Ok(vec![match target.family {
            Family::Cpu => units(target, rows * width * 8),
            _ => Schedule::new(&[("bits", 32), ("units", target.units)]),
        }])
    }

    fn turns(&self, work: &Work, schedule: &Schedule) -> usize {
        let Ok((_, width, _)) = sizes(work) else { return usize::MAX };
        let (units, each) = (schedule.get("units") as usize, BINS / schedule.get("units") as usize);
        3 * (looped(width.div_ceil(units), 0) + 3 * looped(each, 0) + looped(units, 0))
    }
}

impl Launch for KthLargestRadix {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (rows, width, k) = sizes(work).map_err(unfit(self.name()))?;
        let (mut ins, mut outs) = (Slots::default(), Slots::default());
        ins.slot(0, Dtype::F32);
        outs.slot(0, Dtype::F32);
        let (bits, lanes, own) = (address(schedule), schedule.get("lanes") as usize, schedule.get("units"));
        let words = vec![rows as u32, width as u32, k as u32];
        if schedule.get("bits") == 64 {
            let (grid, own) = cubes(rows as u32, schedule);
            return Ok(Prepared::new(
                words,
                ins,
                outs,
                grid,
                own,
                runner!(|b| by_unit, bits, lanes, b.meta, b.operands, b.results),
            ));
        }
        let (grid, _) = cubes(rows as u32, &Schedule::new(&[("units", 1), ("bits", 32)]));
        Ok(Prepared::new(
            words,
            ins,
            outs,
            grid,
            own,
            runner!(|b| by_cube, bits, b.meta, b.operands, b.results, own as usize),
        ))
    }
}

pub(crate) fn bins_of(pass: usize) -> usize {
    if pass == 2 { BINS / 2 } else { BINS }
}

/// Whether the bits above a pass's own are those found so far.
#[cube]
pub(crate) fn open<N: Size>(image: Vector<u32, N>, found: u32, #[comptime] pass: usize) -> Vector<bool, N> {
    let above = comptime![SHIFTS[pass - 1]];
    (image >> Vector::new(above)).equal(&Vector::new(found >> above))
}

/// The bin of an image.
#[cube]
pub(crate) fn digit(image: u32, #[comptime] pass: usize) -> usize {
    ((image >> comptime![SHIFTS[pass]]) & comptime![bins_of(pass) as u32 - 1]) as usize
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn by_unit<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers) {
    let row = ABSOLUTE_POS;
    if row < meta[0] as usize {
        let width = meta[1] as usize;
        let start = row * width;
        let x = operands.f32s.index(0usize);
        let mut bins = Array::<u32>::new(BINS);
        let mut found = 0u32.runtime();
        let mut want = meta[2];
        #[unroll]
        for pass in 0..3usize {
            let size = comptime![bins_of(pass)];
            for b in 0..size {
                bins[b] = 0u32;
            }
            if comptime![pass == 0] {
                for i in start..start + width {
                    let at = digit(image::<Const<1>>(Vector::new(x[i])).extract(0usize), pass);
                    bins[at] += 1u32;
                }
            } else {
                left::<N>(x, &mut bins, start, width, found, pass);
            }
            let mut b = comptime![size - 1].runtime();
            while bins[b] < want {
                want -= bins[b];
                b -= 1;
            }
            found |= (b as u32) << comptime![SHIFTS[pass]];
        }
        results.f32s.index_mut(0usize)[row] = number(found);
    }
}

/// Counts what is still in question; vectors in which nothing is are passed over.
#[cube]
fn left<N: Size>(x: &[f32], bins: &mut Array<u32>, start: usize, width: usize, found: u32, #[comptime] pass: usize) {
    let vectors = width / N::value();
    for j in 0..vectors {
        let images = image::<N>(load::<f32, N>(x, start + j * N::value()));
        let hits = select_many(open::<N>(images, found, pass), Vector::new(1u32), Vector::new(0u32));
        if any::<N>(hits) {
            #[unroll]
            for l in 0..N::value() {
                bins[digit(images.extract(l), pass)] += hits.extract(l);
            }
        }
    }
    for i in start + vectors * N::value()..start + width {
        let one = image::<Const<1>>(Vector::new(x[i]));
        if open::<Const<1>>(one, found, pass).extract(0usize) {
            bins[digit(one.extract(0usize), pass)] += 1u32;
        }
    }
}

/// Whether a lane is not 0.
#[cube]
fn any<N: Size>(hits: Vector<u32, N>) -> bool {
    let mut sum = hits.extract(0usize);
    #[unroll]
    for l in 1..N::value() {
        sum |= hits.extract(l);
    }
    sum != 0u32
}

/// Finds the bin that holds the `want`-th largest, and how manieth it is there: behind the bins, for all units, and the sums of
/// each unit's `each` bins before them.
#[cube]
pub(crate) fn pick(bins: &Shared<[Atomic<u32>]>, want: u32, #[comptime] each: usize, #[comptime] units: usize) {
    let at = UNIT_POS as usize;
    let mut sum = 0u32.runtime();
    for b in 0..each {
        sum += bins[at * each + b].load();
    }
    bins[BINS + at].store(sum);
    sync_cube();
    if at == 0 {
        let mut c = comptime![units - 1].runtime();
        let mut rest = want;
        while bins[BINS + c].load() < rest {
            rest -= bins[BINS + c].load();
            c -= 1;
        }
        let mut b = c * each + comptime![each - 1];
        while bins[b].load() < rest {
            rest -= bins[b].load();
            b -= 1;
        }
        bins[comptime![BINS + units]].store(b as u32);
        bins[comptime![BINS + units + 1]].store(rest);
    }
    sync_cube();
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn by_cube(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] units: usize) {
    // A cube past the end takes the last row again and writes nothing: all units of a cube meet.
    let row = min(CUBE_POS as u32, meta[0] - 1) as usize;
    let width = meta[1] as usize;
    let start = row * width;
    let at = UNIT_POS as usize;
    let x = operands.f32s.index(0usize);
    // One piece: the bins, a sum a unit, and what unit 0 tells. CubeCL names several in any order.
    let bins = Shared::<[Atomic<u32>]>::new_slice(comptime![BINS + units + 2]);
    let mut found = 0u32.runtime();
    let mut want = meta[2];
    #[unroll]
    for pass in 0..3usize {
        let each = comptime![bins_of(pass) / units];
        for b in 0..each {
            bins[at * each + b].store(0u32);
        }
        sync_cube();
        let mut i = start + at;
        while i < start + width {
            let one = image::<Const<1>>(Vector::new(x[i]));
            let mut counts = true.runtime();
            if comptime![pass > 0] {
                counts = open::<Const<1>>(one, found, pass).extract(0usize);
            }
            if counts {
                bins[digit(one.extract(0usize), pass)].fetch_add(1u32);
            }
            i += units;
        }
        sync_cube();
        pick(&bins, want, each, units);
        found |= bins[comptime![BINS + units]].load() << comptime![SHIFTS[pass]];
        want = bins[comptime![BINS + units + 1]].load();
        sync_cube();
    }
    if at == 0 && (CUBE_POS as u32) < meta[0] {
        results.f32s.index_mut(0usize)[row] = number(found);
    }
}
