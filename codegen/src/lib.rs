//! Decisions: lowers a module of the IR to a program of launches over one arena. Names no GPU library,
//! reads no file and no clock: the same module and the same target yield the same program.

mod amount;
mod assign;
mod body;
mod chain;
mod class;
mod collapse;
mod collective;
mod compile;
mod cost;
mod error;
mod horizontal;
mod kernel;
mod lower;
mod meaning;
mod nest;
pub mod passes;
mod peak;
mod prefetch;
mod program;
mod select;
mod target;
mod tuned;

pub use amount::{Amount, Seen, flops_of};
pub use body::{Body, Kind, Step};
pub use collective::{Collective, How};
pub use compile::{compile, compile_with};
pub use error::Error;
pub use kernel::{Implements, Kernel, Refusal, Schedule, Work};
pub use lower::{Lowered, lower, ranks_of};
pub use meaning::{Element, Point, Twice, each};
pub use nest::{At, Fold, Nest, Read, Start, Write};
pub use passes::{Context, PIPELINE, Pass, Unit};
pub use peak::{Class, Peak};
pub use program::{BufferPlan, By, Chosen, LaunchPlan, Memory, Place, Port, Program};
pub use select::{Offer, Refusals, offers, preferred};
pub use target::{Family, Target};
pub use tuned::{Pick, Tuned};
