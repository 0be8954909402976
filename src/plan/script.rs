//! A program as the acts of a rank: work on the device, and meetings with other ranks, with what waits for what.

use super::hardware::{Fact, Machine};
use crate::Error;
use omchat_codegen::{Amount, Collective, How, Program, Work};
use std::collections::HashMap;

/// What sets the pace of a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pace {
    /// Attention's forward: products of what is seen.
    Attention,
    /// Attention's backward.
    Backward,
    /// Products by matrix units.
    Product,
    /// Bytes from and to memory, and launches.
    Memory,
}

impl Pace {
    /// Every pace.
    pub const ALL: [Pace; 4] = [Pace::Attention, Pace::Backward, Pace::Product, Pace::Memory];

    /// The name that is printed.
    pub fn name(self) -> &'static str {
        match self {
            Pace::Attention => "attention, forward",
            Pace::Backward => "attention, backward",
            Pace::Product => "products",
            Pace::Memory => "memory traffic and launches",
        }
    }
}

/// What a rank does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Work on the device.
    Work {
        /// An index into [`Script::kinds`].
        kind: usize,
        /// For attention: hops that the keys at hand have come.
        hop: usize,
        /// Meetings whose results it touches first.
        after: Vec<usize>,
    },
    /// A meeting begins: all ranks' have the same number.
    Meet {
        /// What ranks do.
        what: Collective,
        /// Hops that the operand has come, where it is sent on.
        hop: usize,
        /// Meetings whose results are sent on, or say whether to send.
        after: Vec<usize>,
    },
}

/// A kind of work of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// The kernel.
    pub kernel: &'static str,
    /// What sets its pace.
    pub pace: Pace,
    /// FLOPs; of an attention as if all were seen.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
    /// Pairs of a query and a key, for attention; else 0.
    pub pairs: f64,
}

/// What each rank of a program does, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// Ranks of the run.
    pub ranks: usize,
    /// Kinds of work.
    pub kinds: Vec<Kind>,
    /// Acts in order; the n-th meeting has the number n.
    pub acts: Vec<Act>,
}

impl Script {
    /// The acts of a program. Keys are told apart by how often they were sent on: that is who had them first.
    ///
    /// Errors: work whose amount cannot be told.
    pub fn of(program: &Program) -> Result<Script, Error> {
        let mut kinds = vec![];
        for c in &program.chosen {
            kinds.push(kind(c.kernel, &c.work)?);
        }
        let mut hops: HashMap<usize, usize> = HashMap::new();
        let mut flying: HashMap<usize, usize> = HashMap::new();
        let (mut acts, mut meetings) = (vec![], 0);
        for l in &program.launches {
            let hop = |b: Option<&usize>| b.and_then(|b| hops.get(b)).copied().unwrap_or(0);
            if let Some(Work::Collective(what)) = program.chosen.get(l.chosen).map(|c| &c.work) {
                let after = l.operands.iter().filter_map(|b| flying.get(b).copied()).collect();
                let from = hop(l.operands.first());
                acts.push(Act::Meet { what: *what, hop: from, after });
                for b in &l.results {
                    hops.insert(*b, if matches!(what.how, How::Permute { .. }) { from + 1 } else { 0 });
                    flying.insert(*b, meetings);
                }
                meetings += 1;
                continue;
            }
            // Operands of every attention: queries, keys, values, lo, hi, at.
            let at = hop(l.operands.get(5));
            let mut after: Vec<usize> = l.operands.iter().chain(&l.results).filter_map(|b| flying.remove(b)).collect();
            after.sort_unstable();
            after.dedup();
            acts.push(Act::Work { kind: l.chosen, hop: at, after });
            for b in &l.results {
                hops.remove(b);
            }
        }
        Ok(Script { ranks: program.ranks.max(1), kinds, acts })
    }

    /// Each collective with how many hops its operand has come, in order.
    pub fn meetings(&self) -> impl Iterator<Item = (&Collective, usize)> {
        self.acts.iter().filter_map(|a| match a {
            Act::Meet { what, hop, .. } => Some((what, *hop)),
            Act::Work { .. } => None,
        })
    }

    /// The share of the FLOPs of attention and products in kernels that name matrix units.
    pub fn on_matrix_units(&self) -> f64 {
        let (mut all, mut there) = (0.0, 0.0);
        for a in &self.acts {
            let Act::Work { kind, .. } = a else { continue };
            let k = &self.kinds[*kind];
            if k.pace != Pace::Memory {
                all += k.flops;
                there += if k.kernel.contains("mma") { k.flops } else { 0.0 };
            }
        }
        if all > 0.0 { there / all } else { 1.0 }
    }
}

fn kind(kernel: &'static str, work: &Work) -> Result<Kind, Error> {
    let amount = Amount::of(work).map_err(omchat_runtime::Error::from)?;
    let (flops, bytes) = (amount.flops as f64, amount.bytes() as f64);
    let attention = match work {
        Work::Function { name, .. } if name.starts_with("attention_d") && name != "attention_delta" => {
            Some(Pace::Backward)
        }
        Work::Function { name, .. } if name.starts_with("attention") && name != "attention_delta" => {
            Some(Pace::Attention)
        }
        _ => None,
    };
    let pairs = match (work, attention) {
        (Work::Function { operands, .. }, Some(_)) => {
            let axis = |o: usize, a: usize| operands.get(o).and_then(|t| t.shape.get(a)).copied().unwrap_or(0) as f64;
            axis(0, 0) * axis(0, 3) * axis(1, 2)
        }
        _ => 0.0,
    };
    let pace = match attention {
        Some(pace) if pairs > 0.0 => pace,
        // Matrix units pay from some tens of FLOPs a byte on; below, memory sets the pace anyway.
        _ if folds(work) && flops > 8.0 * bytes => Pace::Product,
        _ => Pace::Memory,
    };
    Ok(Kind { kernel, pace, flops, bytes, pairs })
}

/// Whether work is a fold, or holds products as losses do.
fn folds(work: &Work) -> bool {
    match work {
        Work::Nest(n) => n.fold.is_some(),
        Work::Function { name, .. } => name.starts_with("linear_cross_entropy"),
        _ => false,
    }
}

impl Kind {
    /// Seconds on a machine, where attention sees that many pairs.
    pub fn seconds(&self, machine: &Machine, pairs: f64) -> f64 {
        let share = match self.pace {
            Pace::Attention => machine.get(Fact::Attention),
            Pace::Backward => machine.get(Fact::Backward),
            Pace::Product | Pace::Memory => machine.get(Fact::Product),
        };
        let seen = if self.pairs > 0.0 { (pairs / self.pairs).min(1.0) } else { 1.0 };
        let computes = self.flops * seen / (machine.get(Fact::Peak) * share).max(1.0);
        let moves = self.bytes / (machine.get(Fact::Bandwidth) * machine.get(Fact::Stream)).max(1.0);
        machine.get(Fact::Launch) + computes.max(moves)
    }
}
