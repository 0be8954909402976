//! Chains: launches that follow each other on the CPU, made as one.
//!
//! There a launch costs some 25 microseconds: two threads hand it on, and the cores wait for each other through both. A
//! layer of a decode is a dozen launches of little work. As stages of one launch they cost a barrier each: every core
//! takes its run of a stage's items, as it would of the launch's, and waits for the others. While it waits, the first of the
//! weights that it reads next are on their way.

use cubecl::prelude::*;

use crate::attention_parts::{self, merge_row};
use crate::attention_rows::{self, attend_block};
use crate::bind::{Args, Buffers};
use crate::einsum::Einsum;
use crate::einsum_dot::{ask_columns, dots};
use crate::key::Key;
use crate::loops;
use crate::map_plain::chunk;
use crate::prepared::{LaunchError, Prepared, Step};
use crate::rms_norm_rows::{self, scale_row};
use crate::stages::{Counts, Stages, StagesArg};
use crate::tally::Tally;

/// What a stage runs: the comptime half of a kernel's instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Map(Key<loops::Plan>),
    RmsNorm(rms_norm_rows::Plan),
    Dot(Key<Einsum>),
    Attention(attention_rows::Plan),
    AttentionMerge(attention_parts::Merge),
}

/// A launch as a stage.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Link {
    pub(crate) stage: Stage,
    pub(crate) lanes: usize,
    /// Items of each core.
    pub(crate) cubes: u32,
    pub(crate) units: u32,
}

/// Launches made as one, in order; each sees what those before it wrote.
pub struct Chain {
    links: Key<Vec<Link>>,
    counts: Key<Vec<Counts>>,
    lanes: usize,
    units: u32,
    tally: Tally,
}

impl Chain {
    /// The chain of those launches; `None` where one of them can be no stage.
    pub fn of(parts: &[&Prepared]) -> Option<Chain> {
        let steps = || parts.iter().flat_map(|p| p.steps());
        let links: Vec<Link> = steps().map(|s| s.link().cloned()).collect::<Option<_>>()?;
        let counts = Key::new(steps().map(Step::counts).collect());
        let lanes = links.first()?.lanes;
        let units = links.iter().map(|l| l.units).max()?;
        let alike = links.iter().all(|l| l.lanes == lanes);
        alike.then(|| Chain { links: Key::new(links), counts, lanes, units, tally: Tally::new() })
    }

    /// Times that a device compiled it.
    pub fn compilations(&self) -> usize {
        self.tally.count()
    }

    /// Enqueues the launches of `parts`, which it was made of, each with its arguments.
    ///
    /// Errors: fewer buffers than a part's work names.
    pub fn launch(&self, client: &Client, parts: &[&Prepared], args: &[Args<'_>]) -> Result<(), LaunchError> {
        let mut stages = StagesArg::new(self.counts.clone(), false, self.tally.clone());
        for (part, args) in parts.iter().zip(args) {
            part.steps().iter().try_for_each(|step| stages.push(step, args))?;
        }
        let (count, dim) = (CubeCount::Static(1, 1, 1), CubeDim::new_1d(self.units));
        // SAFETY: kernels index by their plan, which stays inside the buffers it was made for.
        unsafe {
            chain::launch_unchecked(client, count, dim, AddressType::U64, self.lanes, stages, self.links.clone());
        }
        Ok(())
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn chain<N: Size>(stages: &mut Stages, #[comptime] links: Key<Vec<Link>>) {
    #[unroll]
    for s in 0..links.len() {
        #[unroll]
        for next in s..comptime![asked_until(&links, s)] {
            ask_ahead(stages.metas.index(next), stages.operands.index(next), comptime![links[next].clone()]);
        }
        if comptime![s > 0] {
            sync_cube();
        }
        let cubes = comptime![links[s].cubes];
        if UNIT_POS < comptime![links[s].units] {
            for i in 0..cubes {
                let item = UNIT_POS * cubes + i;
                run::<N>(
                    stages.metas.index(s),
                    stages.operands.index(s),
                    stages.results.index_mut(s),
                    item,
                    comptime![links[s].stage.clone()],
                );
            }
        }
    }
}

/// The end of the stages, from `s` on, whose columns are asked for before stage `s` begins: up to the first that several cores
/// take, since the others wait meanwhile. Behind a stage of one core they were asked for before it.
fn asked_until(links: &[Link], s: usize) -> usize {
    if s > 0 && links[s - 1].units == 1 {
        return s;
    }
    (s..links.len()).find(|n| links[*n].units > 1).map_or(links.len(), |n| n + 1)
}

/// Asks for what a core reads first in a stage, where no stage writes it.
#[cube]
#[allow(clippy::single_match)]
fn ask_ahead(meta: &[u32], operands: &Buffers, #[comptime] link: Link) {
    if UNIT_POS < link.units {
        match comptime!(link.stage) {
            Stage::Dot(e) => ask_columns(meta, operands, UNIT_POS * link.cubes, e),
            _ => {}
        }
    }
}

/// An item of a stage.
#[cube]
fn run<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, item: u32, #[comptime] stage: Stage) {
    match comptime!(stage) {
        Stage::Map(plan) => chunk::<N>(meta, operands, results, item, plan),
        Stage::RmsNorm(plan) => scale_row::<N>(meta, operands, results, item as usize, plan),
        Stage::Dot(e) => {
            if comptime![e.cols == 2] {
                dots::<N, Const<2>>(meta, operands, results, item, e);
            } else if comptime![e.cols == 4] {
                dots::<N, Const<4>>(meta, operands, results, item, e);
            } else {
                dots::<N, Const<8>>(meta, operands, results, item, e);
            }
        }
        Stage::Attention(plan) => attend_block::<N>(meta, operands, results, item as usize, plan),
        Stage::AttentionMerge(plan) => merge_row::<N>(meta, operands, results, item as usize, plan),
    }
}
