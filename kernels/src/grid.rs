//! Grids: how items are dealt to cubes and units.

use cubecl::prelude::AddressType;
use omchat_codegen::{Family, Schedule, Target};

/// Cubes along x before a grid turns to y: within what every target allows.
const WIDE: u32 = 32_768;

/// The plain schedule of a target: its units, its lanes, its width of an index.
///
/// On the CPU runtime a unit is a thread that runs every cube of the launch, so `units` is the cores; indices
/// are 64-bit there, because LLVM joins neighbouring loads only if `at + 1` cannot wrap.
pub(crate) fn units(target: &Target) -> Schedule {
    match target.family {
        Family::Cpu => Schedule::new(&[("units", target.cores), ("lanes", target.lanes as u32), ("bits", 64)]),
        _ => Schedule::new(&[("units", target.units), ("lanes", 1), ("bits", 32)]),
    }
}

/// How wide the kernel's indices are.
pub(crate) fn address(schedule: &Schedule) -> AddressType {
    if schedule.get("bits") == 64 { AddressType::U64 } else { AddressType::U32 }
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
