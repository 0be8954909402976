//! What was measured: for a class of work, the kernel and the schedule that were the fastest right ones.
//!
//! Plain data: whoever measures fills it and whoever reads a table from a file hands it over. A schedule is kept as the
//! text that it prints as, because a table may name what this build does not have.

use crate::kernel::Schedule;
use std::collections::BTreeMap;

/// A kernel and a schedule of it, by what they print as.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pick {
    /// The kernel's name.
    pub kernel: String,
    /// The schedule's text: `bits=64 lanes=16`.
    pub schedule: String,
}

impl Pick {
    /// Whether that kernel with that schedule is meant.
    pub fn is(&self, kernel: &str, schedule: &Schedule) -> bool {
        self.kernel == kernel && self.schedule == schedule.to_string()
    }
}

/// Picks by the class of the work ([`Work::class`](crate::Work::class)).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tuned {
    picks: BTreeMap<String, Pick>,
}

impl Tuned {
    /// The pick of a class, if it was measured.
    pub fn get(&self, class: &str) -> Option<&Pick> {
        self.picks.get(class)
    }

    /// Puts a pick; the one that was there is dropped.
    pub fn put(&mut self, class: impl Into<String>, pick: Pick) {
        self.picks.insert(class.into(), pick);
    }

    /// Classes that have a pick.
    pub fn len(&self) -> usize {
        self.picks.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.picks.is_empty()
    }
}
