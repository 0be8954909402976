//! Chains: which launches a CPU is given as one.
//!
//! There a launch of little work takes about as long to hand on as to run. A run of launches that repeats, as the layers of a
//! decode do, is one kernel of several stages, compiled once and launched once a repetition.

use crate::Amount;
use crate::cost;
use crate::passes::Context;
use crate::program::{Chosen, LaunchPlan};
use crate::target::Family;
use std::ops::Range;

/// Repetitions that are worth a kernel of their own.
const TIMES: usize = 8;
/// Launches of a repetition at most: what LLVM compiles within a second or two.
const LONGEST: usize = 32;
/// Seconds that a launch is expected to take on average, above which handing it on does not count.
const SMALL: f64 = 5e-4;
/// Operations for each byte, above which a program reads a prompt or trains: it runs a few times, or long enough.
const THIN: f64 = 4.0;

/// The launches that are made as one, as ranges in order; none but on a CPU.
pub(crate) fn chains(launches: &[LaunchPlan], chosen: &[Chosen], context: &Context) -> Vec<Range<usize>> {
    if context.target.family != Family::Cpu || context.ranks > 1 {
        return vec![];
    }
    let ids: Vec<usize> = launches.iter().map(|l| l.chosen).collect();
    // A chain has vectors of one length.
    let joins = |c: &Chosen| {
        let kernel = context.kernels.iter().find(|k| k.name() == c.kernel);
        kernel.is_some_and(|k| k.chains()) && c.schedule.get("lanes") as usize == context.target.lanes
    };
    let joins: Vec<bool> = chosen.iter().map(joins).collect();
    let amounts: Vec<Amount> = chosen.iter().map(|c| Amount::of(&c.work).unwrap_or_default()).collect();
    let small = |ids: &[usize]| {
        let seconds = |i: &usize| {
            let c = &chosen[*i];
            cost::seconds(&c.work, &amounts[*i], &c.schedule, c.scratch, context.target)
        };
        let flops = ids.iter().map(|i| amounts[*i].flops as f64).sum::<f64>();
        let bytes = ids.iter().map(|i| amounts[*i].bytes() as f64).sum::<f64>();
        ids.iter().map(seconds).sum::<f64>() < SMALL * ids.len() as f64 && flops < THIN * bytes
    };
    let mut out = vec![];
    let mut at = 0;
    while at < ids.len() {
        let Some((period, times)) = repeats(&ids[at..]) else {
            at += 1;
            continue;
        };
        let one = &ids[at..at + period];
        if small(one) {
            let parts = segments(one, &joins);
            out.extend((0..times).flat_map(|t| {
                let start = at + t * period;
                parts.iter().map(move |p| start + p.start..start + p.end)
            }));
        }
        at += period * times;
    }
    out
}

/// The shortest period with which these begin to repeat often enough, and how often they do.
fn repeats(ids: &[usize]) -> Option<(usize, usize)> {
    (2..=LONGEST.min(ids.len() / TIMES)).find_map(|period| {
        let same = ids.iter().zip(&ids[period..]).take_while(|(a, b)| a == b).count();
        let times = same / period + 1;
        (times >= TIMES).then_some((period, times))
    })
}

/// The longest runs of two launches or more that can be joined.
fn segments(ids: &[usize], joins: &[bool]) -> Vec<Range<usize>> {
    let mut out = vec![];
    let mut from = 0;
    for at in 0..=ids.len() {
        if at == ids.len() || !joins[ids[at]] {
            if at > from + 1 {
                out.push(from..at);
            }
            from = at + 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{repeats, segments};

    #[test]
    fn the_shortest_period_that_repeats_often_enough() {
        let layers: Vec<usize> = std::iter::repeat_n([1, 2, 1, 3], 9).flatten().chain([7, 1, 2]).collect();
        assert_eq!(repeats(&layers), Some((4, 9)));
        assert_eq!(repeats(&layers[8..]), None, "seven repetitions are too few");
        assert_eq!(repeats(&layers[2..]), Some((4, 8)), "wherever it begins");
        assert_eq!(repeats(&[]), None);
    }

    #[test]
    fn what_cannot_join_cuts_a_chain() {
        let joins = [true, true, false];
        assert_eq!(segments(&[0, 1, 0, 2, 1, 2, 0, 1], &joins), [0..3, 6..8]);
        assert_eq!(segments(&[0, 1, 2, 1, 0], &joins), [0..2, 3..5]);
        assert!(segments(&[2, 0, 2], &joins).is_empty());
    }
}
