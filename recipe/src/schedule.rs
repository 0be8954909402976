//! Learning rates as a pure function of the step: nothing of a run's history is needed to resume or to branch.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a stage's learning rates rise and fall. The rate of a part is its own, times [`Schedule::factor`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The curve after the warm-up.
    pub kind: Kind,
    /// The share of the steps over which the rate rises from 0 to its own, linearly.
    #[serde(default)]
    pub warmup: f64,
    /// The factor at the end of a curve that falls.
    #[serde(default)]
    pub end: f64,
    /// Of `wsd`: the share of the steps, at the end, over which the rate falls.
    #[serde(default = "tenth")]
    pub decay: f64,
}

/// A curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The rate stays.
    Constant,
    /// Half a cosine, from 1 to `end`.
    Cosine,
    /// A straight line, from 1 to `end`.
    Linear,
    /// Constant, then a straight line to `end` over the last `decay` of the steps (MiniCPM's warm-up, stable, decay).
    Wsd,
}

fn tenth() -> f64 {
    0.1
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule { kind: Kind::Constant, warmup: 0.0, end: 0.0, decay: tenth() }
    }
}

impl Schedule {
    /// What rates are multiplied by at a step, counted from 0, of `steps`.
    ///
    /// Source: Hu et al. 2024, MiniCPM, arXiv:2404.06395, section 4.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let n = steps.max(1) as f64;
        let rise = (self.warmup * n).ceil();
        let t = step as f64;
        if t < rise {
            return (t + 1.0) / rise;
        }
        let (from, length) = match self.kind {
            Kind::Constant => return 1.0,
            Kind::Cosine | Kind::Linear => (rise, n - rise),
            Kind::Wsd => {
                let fall = (self.decay * n).ceil();
                ((n - fall).max(rise), fall.min(n - rise))
            }
        };
        if t < from || length <= 0.0 {
            return 1.0;
        }
        let x = ((t - from) / length).min(1.0);
        let left = if self.kind == Kind::Cosine { (1.0 + (std::f64::consts::PI * x).cos()) / 2.0 } else { 1.0 - x };
        self.end + (1.0 - self.end) * left
    }

    /// Whether every share is one.
    ///
    /// Errors: the first that is not, with its value.
    pub fn check(&self) -> Result<()> {
        for (name, x) in [("warmup", self.warmup), ("end", self.end), ("decay", self.decay)] {
            if !(0.0..=1.0).contains(&x) {
                return Err(Error::input(
                    format!("the schedule's {name} is {x}"),
                    "give a share from 0 to 1, such as 0.03",
                ));
            }
        }
        if self.kind == Kind::Wsd && self.decay == 0.0 {
            return Err(Error::input(
                "the schedule's decay is 0, and wsd falls over it",
                "give a share above 0, such as 0.1, or kind = \"constant\"",
            ));
        }
        if self.kind == Kind::Wsd && self.warmup + self.decay > 1.0 {
            return Err(Error::input(
                format!("warmup {} and decay {} are more than the whole stage", self.warmup, self.decay),
                "let them add up to 1 at most",
            ));
        }
        Ok(())
    }
}
