//! Decisions: lowers a module of the IR to a program of launches over one arena. Names no GPU library,
//! reads no file and no clock: the same module and the same target yield the same program.

mod body;
mod kernel;
mod nest;
mod target;

pub use body::{Body, Kind, Step};
pub use kernel::{Implements, Kernel, Refusal, Schedule, Work};
pub use nest::{At, Fold, Nest, Read, Start, Write};
pub use target::{Family, Target};
