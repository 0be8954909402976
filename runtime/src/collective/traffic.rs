//! What ranks exchanged: bytes, and how much of the time was hidden behind the device's work.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What one kind of collective moved and took on this rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// How many there were.
    pub count: u64,
    /// Of those, permutes that this rank did not send.
    pub skipped: u64,
    /// Bytes sent to other ranks, titles apart.
    pub sent: u64,
    /// Bytes received from other ranks.
    pub received: u64,
    /// From when the exchanging thread took each up to when it was done.
    pub busy: Duration,
    /// How long the program waited for them.
    pub waited: Duration,
}

/// What a rank exchanged so far, by the mnemonic of the collective.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    by: BTreeMap<&'static str, Flow>,
}

impl Traffic {
    pub(super) fn flow(&mut self, name: &'static str) -> &mut Flow {
        self.by.entry(name).or_default()
    }

    /// What one kind of collective moved and took.
    pub fn of(&self, name: &str) -> Flow {
        self.by.get(name).copied().unwrap_or_default()
    }

    /// All of them together.
    pub fn total(&self) -> Flow {
        self.by.values().fold(Flow::default(), |a, b| Flow {
            count: a.count + b.count,
            skipped: a.skipped + b.skipped,
            sent: a.sent + b.sent,
            received: a.received + b.received,
            busy: a.busy + b.busy,
            waited: a.waited + b.waited,
        })
    }
}

impl Flow {
    /// The share of the exchanges' time in which the program did not wait for them.
    pub fn hidden(&self) -> f64 {
        let busy = self.busy.as_secs_f64();
        if busy > 0.0 { (1.0 - self.waited.as_secs_f64() / busy).clamp(0.0, 1.0) } else { 0.0 }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, flow) in &self.by {
            let hidden = flow.hidden() * 100.0;
            write!(f, "{name}: {} times, {} bytes sent, {hidden:.0} % of the time hidden", flow.count, flow.sent)?;
            writeln!(f, "{}", if flow.skipped > 0 { format!(", {} not sent", flow.skipped) } else { String::new() })?;
        }
        Ok(())
    }
}
