//! A kernel fixed to its work: what a program holds from load to the last launch.

use cubecl::ir::{ElemType, UIntKind};
use cubecl::prelude::*;

use crate::bind::{Args, BuffersLaunch, SCRATCH, Slots, raw};
use crate::chain::{Link, Stage};
use crate::grid::Grid;
use crate::horizontal::Side;
use crate::source::{Dialect, Offline};
use crate::stages::Counts;
use crate::tally::Tally;
use omchat_codegen::Refusal;

/// Why a kernel could not be prepared or launched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The work is of a kind that the kernel does not implement; a fault of whoever chose it.
    #[error("{kernel} does not run this work: {reason}")]
    Unfit {
        /// The kernel's name.
        kernel: &'static str,
        /// What it lacks.
        reason: String,
    },
    /// Fewer buffers than the work names.
    #[error("a launch needs {need} {what}, not {have}")]
    Missing {
        /// `operands` or `results`.
        what: &'static str,
        /// How many the work names.
        need: usize,
        /// How many there are.
        have: usize,
    },
}

/// What a parameter of a kernel's text stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// [`Prepared::meta`].
    Meta,
    /// That operand of the work.
    Operand(usize),
    /// That result of the work.
    Result(usize),
    /// The memory that the launches work in: for this one to read, or to write too.
    Scratch {
        /// Whether it is written.
        written: bool,
    },
}

/// A kernel's error for work that it refused.
pub(crate) fn unfit(kernel: &'static str) -> impl Fn(Refusal) -> LaunchError {
    move |r| LaunchError::Unfit { kernel, reason: r.0 }
}

/// Arguments of one launch as the generated launch functions take them.
pub(crate) struct Bound {
    pub(crate) meta: BufferArg,
    pub(crate) operands: BuffersLaunch,
    pub(crate) results: BuffersLaunch,
}

/// Where a launch goes: to a device, or only to a kernel that can be compiled to text.
pub(crate) enum Site<'a> {
    Device(&'a Client),
    Text(&'a Offline),
}

impl Site<'_> {
    /// Whether halves are bound two to a word: there is no u16.
    pub(crate) fn packs(&self) -> bool {
        match self {
            Site::Device(client) => !client.properties().supports_type(ElemType::UInt(UIntKind::U16)),
            Site::Text(offline) => offline.packs(),
        }
    }
}

/// Launches on a device and yields nothing, or yields the kernel that would be compiled.
pub(crate) type Run = Box<dyn Fn(Site<'_>, CubeCount, CubeDim, Bound) -> Option<Box<dyn CubeKernel>> + Send + Sync>;

/// A [`Run`] of a `#[cube(launch_unchecked, create_dummy_kernel)]` function with those arguments.
macro_rules! runner {
    (|$bound:ident| $module:ident, $($arg:expr),* $(,)?) => {
        Box::new(move |site, count, dim, $bound: $crate::prepared::Bound| match site {
            $crate::prepared::Site::Device(client) => {
                // SAFETY: kernels index by their plan, which stays inside the buffers it was made for.
                unsafe { $module::launch_unchecked(client, count, dim, $($arg),*) };
                None
            }
            $crate::prepared::Site::Text(offline) => {
                let (device, target) = offline.properties();
                Some(Box::new($module::create_dummy_kernel(device, target, count, dim, $($arg),*)))
            }
        })
    };
}
pub(crate) use runner;

/// A kernel fixed to its work and schedule: one launch, or several in order that share their words and what they work
/// in.
pub struct Prepared {
    meta: Vec<u32>,
    steps: Vec<Step>,
    scratch: usize,
    tally: Tally,
}

/// One launch of a [`Prepared`].
pub struct Step {
    operands: Slots,
    results: Slots,
    cubes: [u32; 3],
    units: u32,
    run: Run,
    /// What it is as a stage of a chain, where it can be one.
    link: Option<Link>,
    /// What it is beside others, where it can be.
    side: Option<Side>,
}

impl Prepared {
    pub(crate) fn new(
        meta: Vec<u32>,
        operands: Slots,
        results: Slots,
        cubes: [u32; 3],
        units: u32,
        run: Run,
    ) -> Prepared {
        let steps = vec![Step { operands, results, cubes, units, run, link: None, side: None }];
        Prepared { meta, steps, scratch: 0, tally: Tally::new() }
    }

    /// That a [`Chain`](crate::Chain) can run its last launch as that stage, in vectors of so many lanes.
    pub(crate) fn staged(mut self, stage: Stage, lanes: usize) -> Prepared {
        if let Some(step) = self.steps.last_mut() {
            let [x, y, z] = step.cubes;
            step.link = Some(Link { stage, lanes, cubes: x * y * z, units: step.units });
        }
        self
    }

    /// That a [`Horizontal`](crate::Horizontal) can run its launch beside others.
    pub(crate) fn beside(mut self, side: Side) -> Prepared {
        if let [step] = &mut self.steps[..] {
            step.side = Some(side);
        }
        self
    }

    /// Followed by another launch; what one leaves for the next lies in that many floats of scratch memory.
    pub(crate) fn then(
        mut self,
        scratch: usize,
        operands: Slots,
        results: Slots,
        (cubes, units): Grid,
        run: Run,
    ) -> Prepared {
        self.steps.push(Step { operands, results, cubes, units, run, link: None, side: None });
        self.scratch = scratch;
        self
    }

    /// Sizes, strides and offsets that the kernel reads at run time; upload them once as u32. Never empty.
    pub fn meta(&self) -> &[u32] {
        &self.meta
    }

    /// Floats of the memory that its launches work in.
    pub fn scratch(&self) -> usize {
        self.scratch
    }

    /// Its launches, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Buffers that a launch binds at most, the metadata included.
    pub fn bindings(&self) -> usize {
        self.steps.iter().map(|s| 1 + s.operands.len() + s.results.len()).max().unwrap_or(0)
    }

    /// Times that its launches made a device compile: 0 where the device had compiled the same kernels for another.
    ///
    /// A launch is compiled on the device's thread; the count is right once a result was read.
    pub fn compilations(&self) -> usize {
        self.tally.count()
    }

    /// Enqueues one run. The launches themselves cannot fail here: a device's fault surfaces when a result is read.
    ///
    /// Errors: fewer buffers than the work names; less scratch memory than it takes.
    pub fn launch(&self, client: &Client, args: &Args<'_>) -> Result<(), LaunchError> {
        let have = args.scratch.map_or(0, |b| b.elements);
        if have < self.scratch {
            return Err(LaunchError::Missing { what: "floats of scratch memory", need: self.scratch, have });
        }
        for step in self.steps.iter().filter(|s| !s.cubes.contains(&0)) {
            step.go(Site::Device(client), args, &self.tally)?;
        }
        Ok(())
    }

    /// The texts of its launches, in order, for a device that need not be there.
    ///
    /// Errors: the build lacks the dialect's compiler; the compiler's own message.
    pub fn sources(&self, dialect: Dialect) -> Result<Vec<String>, String> {
        self.steps.iter().map(|s| s.source(dialect)).collect()
    }
}

impl Step {
    /// The buffers in the order in which the text of [`Step::source`] takes them.
    pub fn parameters(&self) -> Vec<Parameter> {
        let operand = |a| if a == SCRATCH { Parameter::Scratch { written: false } } else { Parameter::Operand(a) };
        let result = |a| if a == SCRATCH { Parameter::Scratch { written: true } } else { Parameter::Result(a) };
        let (operands, results) = (self.operands.order().map(operand), self.results.order().map(result));
        std::iter::once(Parameter::Meta).chain(operands).chain(results).collect()
    }

    /// Cubes along x, y and z, and units a cube.
    pub fn grid(&self) -> ([u32; 3], u32) {
        (self.cubes, self.units)
    }

    /// The launch's text for a device that need not be there.
    ///
    /// Errors: the build lacks the dialect's compiler; the compiler's own message.
    pub fn source(&self, dialect: Dialect) -> Result<String, String> {
        let offline = Offline::new(dialect);
        let go = |args: &Args<'_>| self.go(Site::Text(&offline), args, &Tally::default());
        let kernel = self.with_ghosts(&offline, go).map_err(|e| e.to_string())?;
        offline.text(kernel.ok_or("the kernel has no text")?)
    }

    /// What `f` yields for buffers of nothing, as many as the launch names.
    pub(crate) fn with_ghosts<T>(&self, offline: &Offline, f: impl FnOnce(&Args<'_>) -> T) -> T {
        let ghosts = |n: usize| (0..n).map(|_| offline.buffer()).collect::<Vec<_>>();
        let (operands, results) = (ghosts(self.operands.args()), ghosts(self.results.args()));
        let ghost = offline.buffer();
        f(&Args { operands: &operands, results: &results, scratch: Some(&ghost), meta: &ghost })
    }

    /// What it is as a stage of a chain, where it can be one.
    pub(crate) fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// What it is beside others, where it can be.
    pub(crate) fn side(&self) -> Option<&Side> {
        self.side.as_ref()
    }

    /// Buffers that it reads, and that it writes, by storage.
    pub(crate) fn counts(&self) -> Counts {
        self.slots().map(Slots::counts)
    }

    /// What it reads and what it writes.
    pub(crate) fn slots(&self) -> [&Slots; 2] {
        [&self.operands, &self.results]
    }

    fn bind(&self, packed: bool, args: &Args<'_>, tally: &Tally) -> Result<Bound, LaunchError> {
        Ok(Bound {
            meta: raw(args.meta),
            operands: self.operands.bind("operands", args.operands, args.scratch, packed, tally.clone())?,
            results: self.results.bind("results", args.results, args.scratch, packed, Tally::default())?,
        })
    }

    fn go(&self, site: Site<'_>, args: &Args<'_>, tally: &Tally) -> Result<Option<Box<dyn CubeKernel>>, LaunchError> {
        let bound = self.bind(site.packs(), args, tally)?;
        let [x, y, z] = self.cubes;
        Ok((self.run)(site, CubeCount::Static(x, y, z), CubeDim::new_1d(self.units), bound))
    }
}
