//! The memory that a device has left, and who says so.

use cubecl::ir::DeviceIdentity;
use omchat_codegen::Family;
use std::fmt;

/// Where a device's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// The machine's own: a CPU, or a driver that runs on one.
    Machine,
    /// A card's. One built into the machine's chip counts as a card: nothing tells the two apart.
    Card {
        /// All of it, in bytes, where the driver tells.
        total: Option<u64>,
        /// Bytes that this process has reserved.
        held: u64,
    },
}

/// The memory that a device has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Bytes that the machine has free.
    Free(u64),
    /// A card's bytes that this process does not hold; other processes may.
    AtMost(u64),
    /// Nothing tells.
    Unknown,
}

impl Room {
    /// The room at a home; `machine` is what the machine has free.
    pub fn of(home: Home, machine: Option<u64>) -> Room {
        match home {
            Home::Machine => machine.map_or(Room::Unknown, Room::Free),
            Home::Card { total, held } => total.map_or(Room::Unknown, |t| Room::AtMost(t.saturating_sub(held))),
        }
    }

    /// The bytes that a demand is held against; no bound where nothing is known.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Room::Free(b) | Room::AtMost(b) => Some(b),
            Room::Unknown => None,
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Room::Free(b) => write!(f, "{b} bytes"),
            Room::AtMost(b) => write!(f, "at most {b} bytes: the card's, less what this process holds"),
            Room::Unknown => f.write_str("not told by the driver"),
        }
    }
}

/// Whether a device has a card's memory: CubeCL names the card behind one; a CPU and a software adapter have none.
pub(crate) fn on_a_card(family: Family, identity: &DeviceIdentity) -> bool {
    match family {
        Family::Cpu => false,
        Family::Wgpu => identity.physical.is_some(),
        Family::Cuda => true,
    }
}

/// Free memory of the machine, from `/proc/meminfo`.
pub(crate) fn machine() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_software_adapter_is_no_card() {
        let software = DeviceIdentity { name: "llvmpipe".into(), ..DeviceIdentity::default() };
        let card = DeviceIdentity { name: "a card".into(), physical: Some(Default::default()), ..software.clone() };
        assert!(!on_a_card(Family::Wgpu, &software) && !on_a_card(Family::Cpu, &card));
        assert!(on_a_card(Family::Wgpu, &card) && on_a_card(Family::Cuda, &software));
    }

    /// A card is never given the machine's memory.
    #[test]
    fn a_card_has_its_own_memory() {
        let gib = 1u64 << 30;
        let machine = Some(64 * gib);
        assert_eq!(Room::of(Home::Machine, machine), Room::Free(64 * gib));
        assert_eq!(Room::of(Home::Machine, None), Room::Unknown);
        assert_eq!(Room::of(Home::Card { total: None, held: 0 }, machine), Room::Unknown);
        let card = |held| Room::of(Home::Card { total: Some(8 * gib), held }, machine);
        assert_eq!(card(3 * gib), Room::AtMost(5 * gib));
        assert_eq!(card(9 * gib), Room::AtMost(0));
        assert_eq!((card(0).bytes(), Room::Unknown.bytes()), (Some(8 * gib), None));
        assert_eq!(Room::Unknown.to_string(), "not told by the driver");
    }
}
