//! Grids: how items are dealt to cubes and units.

use cubecl::prelude::AddressType;
use omchat_codegen::{Family, Schedule, Target};

/// Cubes along x before a grid turns to y: within what every target allows.
const WIDE: u32 = 32_768;

/// Elements that a core of the CPU computes in about the time it takes to wake another.
const SMALL: usize = 32 << 10;

/// The plain schedule of a target for work on that many elements: its units, its lanes, its width of an index.
///
/// On the CPU runtime a unit is a thread that runs every cube of the launch, so `units` is the cores; indices
/// are 64-bit there, because LLVM joins neighbouring loads only if `at + 1` cannot wrap.
pub(crate) fn units(target: &Target, elements: usize) -> Schedule {
    match target.family {
        Family::Cpu => {
            Schedule::new(&[("units", cores(target, elements)), ("lanes", target.lanes as u32), ("bits", 64)])
        }
        _ => Schedule::new(&[("units", target.units), ("lanes", 1), ("bits", 32)]),
    }
}

/// Cores that pay for work on that many elements: units of a cube wait for each other, on a busy machine for long.
pub(crate) fn cores(target: &Target, elements: usize) -> u32 {
    if elements < SMALL { 1 } else { target.cores }
}

/// How wide the kernel's indices are.
pub(crate) fn address(schedule: &Schedule) -> AddressType {
    if schedule.get("bits") == 64 { AddressType::U64 } else { AddressType::U32 }
}

/// Turns of a loop that runs `n` times over loops that take `inner`; whoever counts them counts the ends of loops too.
pub(crate) const fn looped(n: usize, inner: usize) -> usize {
    n.saturating_mul(inner.saturating_add(1)).saturating_add(2)
}

/// Cubes along x, y and z, and units a cube.
pub(crate) type Grid = ([u32; 3], u32);

/// Cubes and units for that many items, one a unit.
pub(crate) fn cubes(items: u32, schedule: &Schedule) -> Grid {
    let mut units = schedule.get("units");
    if schedule.get("bits") == 64 {
        units = units.min(items.max(1));
    }
    let cubes = items.div_ceil(units);
    if schedule.get("bits") == 64 || cubes <= WIDE {
        return ([cubes, 1, 1], units);
    }
    ([WIDE, cubes.div_ceil(WIDE), 1], units)
}

/// Cubes and units for that many items, a cube each.
pub(crate) fn one_each(items: u32, units: u32) -> Grid {
    if items <= WIDE { ([items, 1, 1], units) } else { ([WIDE, items.div_ceil(WIDE), 1], units) }
}
