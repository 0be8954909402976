//! A kernel fixed to its work: what a program holds from load to the last launch.

use cubecl::ir::{ElemType, UIntKind};
use cubecl::prelude::*;

use crate::bind::{Args, Buffer, BuffersLaunch, Slots, raw};
use crate::source::{Dialect, Offline};
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
    fn packs(&self) -> bool {
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

/// A kernel fixed to its work and schedule.
pub struct Prepared {
    meta: Vec<u32>,
    operands: Slots,
    results: Slots,
    cubes: [u32; 3],
    units: u32,
    run: Run,
    tally: Tally,
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
        Prepared { meta, operands, results, cubes, units, run, tally: Tally::new() }
    }

    /// Sizes, strides and offsets that the kernel reads at run time; upload them once as u32. Never empty.
    pub fn meta(&self) -> &[u32] {
        &self.meta
    }

    /// Buffers that a launch binds, the metadata included.
    pub fn bindings(&self) -> usize {
        1 + self.operands.len() + self.results.len()
    }

    /// The buffers in the order in which the text of [`Prepared::source`] takes them.
    pub fn parameters(&self) -> Vec<Parameter> {
        let operands = self.operands.order().map(Parameter::Operand);
        let results = self.results.order().map(Parameter::Result);
        std::iter::once(Parameter::Meta).chain(operands).chain(results).collect()
    }

    /// Cubes along x, y and z, and units a cube.
    pub fn grid(&self) -> ([u32; 3], u32) {
        (self.cubes, self.units)
    }

    /// Times that its launches made a device compile: 0 where the device had compiled the same kernel for another.
    ///
    /// A launch is compiled on the device's thread; the count is right once a result was read.
    pub fn compilations(&self) -> usize {
        self.tally.count()
    }

    /// Enqueues one run. The launch itself cannot fail here: a device's fault surfaces when a result is read.
    ///
    /// Errors: fewer buffers than the work names.
    pub fn launch(&self, client: &Client, args: &Args<'_>) -> Result<(), LaunchError> {
        if self.cubes.contains(&0) {
            return Ok(());
        }
        self.go(Site::Device(client), args.meta, args.operands, args.results).map(|_| ())
    }

    /// The kernel's text for a device that need not be there.
    ///
    /// Errors: the build lacks the dialect's compiler; the compiler's own message.
    pub fn source(&self, dialect: Dialect) -> Result<String, String> {
        let offline = Offline::new(dialect);
        let ghosts = |n: usize| (0..n).map(|_| offline.buffer()).collect::<Vec<_>>();
        let (operands, results) = (ghosts(self.operands.args()), ghosts(self.results.args()));
        let kernel =
            self.go(Site::Text(&offline), &offline.buffer(), &operands, &results).map_err(|e| e.to_string())?;
        offline.text(kernel.ok_or("the kernel has no text")?)
    }

    fn go(
        &self,
        site: Site<'_>,
        meta: &Buffer,
        operands: &[Buffer],
        results: &[Buffer],
    ) -> Result<Option<Box<dyn CubeKernel>>, LaunchError> {
        let packed = site.packs();
        let bound = Bound {
            meta: raw(meta),
            operands: self.operands.bind("operands", operands, packed, self.tally.clone())?,
            results: self.results.bind("results", results, packed, Tally::default())?,
        };
        let [x, y, z] = self.cubes;
        Ok((self.run)(site, CubeCount::Static(x, y, z), CubeDim::new_1d(self.units), bound))
    }
}
