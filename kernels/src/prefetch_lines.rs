//! Brings what will be read soon near, on CUDA: each unit asks for a few sectors and does not wait for them.
//!
//! Implements  no meaning: nothing is read, nothing is written
//! Schedule    `units` a cube, 4 sectors of 32 bytes each; units, `lanes` and `bits` are those of the launch that it stands beside
//! Needs       CUDA, whose processors share a cache; the PTX instruction `prefetch`
//! Cost        an instruction a sector, those of neighbours are one request a line; the memory's time is its reader's, who finds it there
//! Source      PTX ISA, `prefetch.global.L2`

use cubecl::prelude::*;
use half::f16;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::Dtype;

use crate::bind::{Buffers, Slot, Slots, Storage};
use crate::grid::{address, cubes};
use crate::horizontal::{Part, Side};
use crate::prepared::{Prepared, runner, unfit};
use crate::{Launch, LaunchError};

/// Bytes that memory gives at a time.
pub(crate) const SECTOR: usize = 32;
/// Sectors that a unit asks for, a cube's width apart: so neighbours ask for neighbours.
const EACH: u32 = 4;

/// Asks for memory.
pub struct PrefetchLines;

impl Kernel for PrefetchLines {
    fn name(&self) -> &'static str {
        "prefetch.lines"
    }

    fn implements(&self) -> Implements {
        Implements::Prefetch
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        asked(work)?;
        if target.family != Family::Cuda {
            return Err(Refusal(format!("{} has no instruction for it", target.name)));
        }
        Ok(vec![Schedule::new(&[("bits", 32), ("lanes", 1), ("units", target.units)])])
    }

    fn horizontal(&self) -> bool {
        true
    }

    fn turns(&self, _: &Work, _: &Schedule) -> usize {
        0
    }
}

impl Launch for PrefetchLines {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (dtype, bytes) = asked(work).map_err(unfit(self.name()))?;
        let mut ins = Slots::default();
        let slot = ins.slot(0, dtype);
        let sectors = bytes.div_ceil(SECTOR) as u32;
        let (grid, units) = cubes(sectors.div_ceil(EACH), schedule);
        let (bits, lanes) = (address(schedule), schedule.get("lanes") as usize);
        Ok(Prepared::new(
            vec![sectors],
            ins,
            Slots::default(),
            grid,
            units,
            runner!(|b| prefetch_lines, bits, b.meta, b.operands, b.results, slot),
        )
        .beside(Side { part: Part::Prefetch(slot), lanes }))
    }
}

/// The dtype and the bytes of a prefetch.
fn asked(work: &Work) -> Result<(Dtype, usize), Refusal> {
    match *work {
        Work::Prefetch { dtype, bytes } => Ok((dtype, bytes)),
        _ => Err(Refusal("this kernel asks for memory and computes nothing".into())),
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn prefetch_lines(meta: &[u32], operands: &Buffers, _results: &mut Buffers, #[comptime] slot: Slot) {
    ask(meta, operands, CUBE_POS as u32, slot);
}

/// Cubes that have something to ask for.
#[cube]
pub(crate) fn items(meta: &[u32]) -> u32 {
    meta[0].div_ceil(CUBE_DIM * EACH)
}

/// Asks for what is cube `cube`'s of a buffer.
#[cube]
pub(crate) fn ask(meta: &[u32], operands: &Buffers, cube: u32, #[comptime] slot: Slot) {
    let elements = comptime![SECTOR / if matches!(slot.storage, Storage::F32 | Storage::I32) { 4 } else { 2 }];
    #[unroll]
    for i in 0..EACH {
        let sector = (cube * EACH + i) * CUBE_DIM + UNIT_POS;
        if sector < meta[0] {
            bring(operands, sector as usize * elements, slot);
        }
    }
}

/// Has the line of an element brought to the cache that all processors share. Only CUDA can.
#[cube]
pub(crate) fn bring(operands: &Buffers, at: usize, #[comptime] slot: Slot) {
    if comptime![slot.storage == Storage::F32] {
        line_of::<f32>(operands.f32s.index(slot.index), at);
    } else if comptime![slot.storage == Storage::I32] {
        line_of::<i32>(operands.i32s.index(slot.index), at);
    } else if comptime![slot.storage == Storage::Bf16] {
        line_of::<u16>(operands.bf16s.index(slot.index), at);
    } else {
        line_of::<f16>(operands.f16s.index(slot.index), at);
    }
}

#[cube]
fn line_of<E: Scalar>(of: &[E], at: usize) {
    let pointer = of[at..at + 1].as_ptr();
    gpu_asm!("prefetch.global.L2 [{p}];", p = in(_) pointer);
}
