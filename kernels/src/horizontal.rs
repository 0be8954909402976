//! Horizontal fusion: launches that do not wait for each other, made as one on a GPU.
//!
//! A decode's product of few columns, as those of keys and values, ends before it has reached memory's speed, and each launch
//! waits for the last one's slowest cube. Side by side, the cubes of all share the device: cubes are dealt to the launches in
//! order, each as many as its words ask for, so that other sizes compile nothing.
//! Source: Li et al. 2020, arXiv:2007.01277; XLA's horizontal loop fusion.

use cubecl::prelude::*;

use crate::bind::{Args, Buffers, Slot};
use crate::einsum_vector::{self, Share, sum_item};
use crate::grid::one_each;
use crate::key::Key;
use crate::loops::Plan;
use crate::map_plain::{self, chunk};
use crate::norm_shared::{self, Normed, norm_row};
use crate::prefetch_lines::{self, ask};
use crate::prepared::{LaunchError, Prepared, Site, Step};
use crate::source::{Dialect, Offline};
use crate::stages::{Counts, Stages, StagesArg};
use crate::tally::Tally;

/// What a launch's cubes run: the comptime half of a kernel's instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Map(Key<Plan>),
    Vector(Key<Share>),
    Norm(Normed),
    Prefetch(Slot),
}

/// A launch beside others.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) part: Part,
    pub(crate) lanes: usize,
}

/// Launches made as one; none sees what another writes.
pub struct Horizontal {
    parts: Key<Vec<Part>>,
    counts: Key<Vec<Counts>>,
    lanes: usize,
    units: u32,
    cubes: u32,
    tally: Tally,
}

impl Horizontal {
    /// Those launches side by side; `None` where one of them cannot be, or they are not alike in vectors or units.
    pub fn of(launches: &[&Prepared]) -> Option<Horizontal> {
        let steps: Vec<&Step> = launches.iter().flat_map(|p| p.steps()).collect();
        let sides: Vec<&Side> = steps.iter().map(|s| s.side()).collect::<Option<_>>()?;
        let (first, units) = (sides.first()?, steps.first()?.grid().1);
        let alike = sides.iter().all(|s| s.lanes == first.lanes) && steps.iter().all(|s| s.grid().1 == units);
        let cubes = steps.iter().map(|s| s.grid().0.iter().product::<u32>()).sum();
        alike.then(|| Horizontal {
            parts: Key::new(sides.iter().map(|s| s.part.clone()).collect()),
            counts: Key::new(steps.iter().map(|s| s.counts()).collect()),
            lanes: first.lanes,
            units,
            cubes,
            tally: Tally::new(),
        })
    }

    /// Times that a device compiled it.
    pub fn compilations(&self) -> usize {
        self.tally.count()
    }

    /// Cubes along x, y and z, and units a cube.
    pub fn grid(&self) -> ([u32; 3], u32) {
        one_each(self.cubes, self.units)
    }

    /// Enqueues `launches`, which it was made of, each with its arguments.
    ///
    /// Errors: fewer buffers than a launch's work names.
    pub fn launch(&self, client: &Client, launches: &[&Prepared], args: &[Args<'_>]) -> Result<(), LaunchError> {
        let site = Site::Device(client);
        let mut stages = StagesArg::new(self.counts.clone(), site.packs(), self.tally.clone());
        for (launch, args) in launches.iter().zip(args) {
            launch.steps().iter().try_for_each(|step| stages.push(step, args))?;
        }
        self.go(site, stages);
        Ok(())
    }

    /// The text for a device that need not be there. Its buffers are, launch by launch, those of [`Step::parameters`].
    ///
    /// Errors: the build lacks the dialect's compiler; the compiler's own message.
    pub fn source(&self, launches: &[&Prepared], dialect: Dialect) -> Result<String, String> {
        let offline = Offline::new(dialect);
        let mut stages = StagesArg::new(self.counts.clone(), offline.packs(), Tally::default());
        for step in launches.iter().flat_map(|p| p.steps()) {
            step.with_ghosts(&offline, |args| stages.push(step, args)).map_err(|e| e.to_string())?;
        }
        offline.text(self.go(Site::Text(&offline), stages).ok_or("the kernel has no text")?)
    }

    fn go(&self, site: Site<'_>, stages: StagesArg) -> Option<Box<dyn CubeKernel>> {
        let ([x, y, z], units) = self.grid();
        let (count, dim, bits) = (CubeCount::Static(x, y, z), CubeDim::new_1d(units), AddressType::U32);
        match site {
            Site::Device(client) => {
                // SAFETY: kernels index by their plan, which stays inside the buffers it was made for.
                unsafe {
                    horizontal::launch_unchecked(client, count, dim, bits, self.lanes, stages, self.parts.clone());
                }
                None
            }
            Site::Text(offline) => {
                let (device, target) = offline.properties();
                let parts = self.parts.clone();
                Some(Box::new(horizontal::create_dummy_kernel(
                    device, target, count, dim, bits, self.lanes, stages, parts,
                )))
            }
        }
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn horizontal<N: Size>(stages: &mut Stages, #[comptime] parts: Key<Vec<Part>>) {
    // Once its cubes are passed, a launch leaves a number larger than any.
    let mut cube = CUBE_POS as u32;
    #[unroll]
    for s in 0..parts.len() {
        let cubes = cubes_of(stages.metas.index(s), comptime![parts[s].clone()]);
        if cube < cubes {
            run::<N>(
                stages.metas.index(s),
                stages.operands.index(s),
                stages.results.index_mut(s),
                cube,
                comptime![parts[s].clone()],
            );
        }
        cube -= cubes;
    }
}

/// Cubes that a launch takes.
#[cube]
fn cubes_of(meta: &[u32], #[comptime] part: Part) -> u32 {
    match comptime!(part) {
        Part::Map(plan) => map_plain::items(meta, plan).div_ceil(CUBE_DIM),
        Part::Vector(share) => einsum_vector::items(meta, share),
        Part::Norm(_) => norm_shared::items(meta),
        Part::Prefetch(_) => prefetch_lines::items(meta),
    }
}

/// What cube `cube` of a launch does.
#[cube]
fn run<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, cube: u32, #[comptime] part: Part) {
    match comptime!(part) {
        Part::Map(plan) => chunk::<N>(meta, operands, results, cube * CUBE_DIM + UNIT_POS, plan),
        Part::Vector(share) => sum_item::<N>(meta, operands, results, cube, share),
        Part::Norm(norm) => norm_row::<N>(meta, operands, results, cube, norm),
        Part::Prefetch(slot) => ask(meta, operands, cube, slot),
    }
}
