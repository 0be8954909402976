//! How often a device compiled a kernel, counted where it happens.
//!
//! CubeCL looks a launch's kernel up in the device's cache. Only where it is not there are the launch's arguments
//! expanded, as the first step of compiling it. An argument of our own sees that: on every device, once a
//! compilation, and never for a launch that finds its kernel.

use cubecl::prelude::*;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A count of compilations that travels with a launch. It binds nothing and tells no kernels apart.
#[derive(Clone, Default)]
pub struct Tally(Option<Arc<AtomicUsize>>);

impl Tally {
    /// A count from 0; the default counts nothing.
    pub(crate) fn new() -> Tally {
        Tally(Some(Arc::default()))
    }

    /// Compilations so far.
    pub(crate) fn count(&self) -> usize {
        self.0.as_ref().map_or(0, |n| n.load(Ordering::Relaxed))
    }
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tally")
    }
}

// The device's cache compares and hashes arguments: all tallies are the same one.
impl PartialEq for Tally {
    fn eq(&self, _: &Tally) -> bool {
        true
    }
}

impl Eq for Tally {}

impl Hash for Tally {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl CubeType for Tally {
    type ExpandType = ();
}

impl LaunchArg for Tally {
    type RuntimeArg = Tally;
    type CompilationArg = Tally;

    fn register(tally: Tally, _: &mut KernelLauncher) -> Tally {
        tally
    }

    fn expand(tally: &Tally, _: &mut KernelBuilder) {
        if let Some(n) = &tally.0 {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }
}
