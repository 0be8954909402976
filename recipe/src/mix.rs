//! How often each data set is drawn.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Percentages by the names of data sets. They need not sum to 100: shares are taken of their sum. Empty: as many
/// as each data set has records.
pub type Mix = BTreeMap<String, f64>;

/// Draws the data set that lacks most: with shares p and n draws so far, the largest p·(n + 1) − drawn.
///
/// No chance is in it. After any n draws each data set is within its number of data sets of p·n.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    shares: Vec<f64>,
}

impl Draw {
    /// The shares of data sets, by name and number of records.
    ///
    /// Errors: `Input` for a name without percentage or without data set, or percentages that cannot be used.
    pub fn new(sets: &[(String, u64)], mix: &Mix) -> Result<Draw> {
        if let Some(name) = mix.keys().find(|name| !sets.iter().any(|(set, _)| set == *name)) {
            let known: Vec<&str> = sets.iter().map(|(set, _)| set.as_str()).collect();
            let mend = format!("name one of {}", known.join(", "));
            return Err(Error::input(format!("the mix names `{name}`, which is no data set"), mend));
        }
        let mut shares = Vec::new();
        for (name, records) in sets {
            let share = if mix.is_empty() { Some(*records as f64) } else { mix.get(name).copied() };
            let lacks =
                || Error::input(format!("data set `{name}` has no percentage"), "give it one, 0 to leave it out");
            let share = share.ok_or_else(lacks)?;
            if !(share.is_finite() && share >= 0.0) {
                return Err(Error::input(format!("the percentage of `{name}` is {share}"), "write 0 or more"));
            }
            if share > 0.0 && *records == 0 {
                return Err(Error::input(format!("data set `{name}` has no record"), "leave it out"));
            }
            shares.push(share);
        }
        let sum: f64 = shares.iter().sum();
        if !(sum > 0.0 && sum.is_finite()) {
            return Err(Error::input(format!("the percentages sum to {sum}"), "give one data set more than 0"));
        }
        shares.iter_mut().for_each(|share| *share /= sum);
        Ok(Draw { shares })
    }

    /// The next data set, by what was drawn of each.
    pub fn next(&self, drawn: &[u64]) -> usize {
        let n = drawn.iter().sum::<u64>() as f64 + 1.0;
        let mut best = (0, f64::NEG_INFINITY);
        for (set, (share, drawn)) in self.shares.iter().zip(drawn).enumerate() {
            let lack = share * n - *drawn as f64;
            if *share > 0.0 && lack > best.1 {
                best = (set, lack);
            }
        }
        best.0
    }

    /// The shares, which sum to 1.
    pub fn shares(&self) -> &[f64] {
        &self.shares
    }
}
