//! Waiting for another rank without a system call that waits.

use std::time::{Duration, Instant};

/// How long a wait spins before it sleeps: a small message of a rank that is there takes less.
const SPIN: Duration = Duration::from_micros(30);

/// Waits that leave the cores to who computes: a short spin, then ever longer sleeps.
pub(super) struct Wait {
    start: Instant,
    sleep: Duration,
}

impl Wait {
    pub fn new() -> Self {
        Wait { start: Instant::now(), sleep: Duration::from_micros(50) }
    }

    /// `flows`: bytes are under way and some move at each call only, so that sleep would slow them.
    pub fn pause(&mut self, flows: bool) {
        if self.start.elapsed() < SPIN {
            std::hint::spin_loop();
        } else if flows {
            std::thread::yield_now();
        } else {
            std::thread::sleep(self.sleep);
            self.sleep = (self.sleep * 9 / 8).min(Duration::from_micros(500));
        }
    }
}
