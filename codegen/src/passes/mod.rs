//! Passes: each `Module -> Module`, each with a name and a reason; after each the module still prints, parses,
//! verifies and means the same.

mod canonicalize;
mod cse;
mod emit;
mod facts;
mod fuse;
mod inline;
mod legalize;
mod outline;

pub use canonicalize::{RULES, Rule, canonicalize};
pub(crate) use inline::call_work;

use crate::{Error, Kernel, Target, Tuned};
use omchat_ir::{Func, Module};

/// What a pass may read besides the module.
pub struct Context<'a> {
    /// Where the program will run.
    pub target: &'a Target,
    /// The kernels there are, in order of preference.
    pub kernels: &'a [&'a dyn Kernel],
    /// What was measured, if it was.
    pub tuned: Option<&'a Tuned>,
    /// Ranks that run the program together; with 1 a collective is its operand.
    pub ranks: usize,
}

/// A module and its entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// The functions.
    pub module: Module,
    /// The function to run.
    pub entry: Func,
}

/// What a pass does to a unit.
pub type Transform = fn(Unit, &Context) -> Result<Unit, Error>;

/// A step of the pipeline.
pub struct Pass {
    /// The name on the command line.
    pub name: &'static str,
    /// Why it exists, in a line.
    pub why: &'static str,
    /// What it does.
    pub run: Transform,
}

/// The pipeline, in order. What follows `outline` (`select`, `assign`) leaves the IR.
pub const PIPELINE: &[Pass] = &[
    Pass { name: "legalize", why: "the target may lack a dtype: WGSL has no bf16", run: legalize::run },
    Pass { name: "inline", why: "a call that no kernel offers to take becomes its body", run: inline::run },
    Pass {
        name: "canonicalize",
        why: "one form for what is the same: folded constants, no idle casts",
        run: canonicalize::run,
    },
    Pass { name: "cse", why: "layers repeat themselves: masks and tables are computed once", run: cse::cse },
    Pass { name: "dce", why: "what no result needs is not run", run: cse::dce },
    Pass {
        name: "fuse",
        why: "pointwise work joins the fold it feeds or follows: fewer launches, less memory",
        run: fuse::run,
    },
    Pass {
        name: "outline",
        why: "what is left alone is one launch too: the entry is a list of calls",
        run: outline::run,
    },
];

/// Runs the pipeline up to and including the pass of that name, or all of it.
///
/// Errors: what a pass cannot lower; in debug builds also a module that a pass broke.
pub fn run(unit: Unit, context: &Context, to: Option<&str>) -> Result<Unit, Error> {
    run_with(unit, context, to, &mut |_, _| {})
}

/// As [`run`]; `after` sees the unit after each pass: for dumps and for pages that show what changed.
///
/// Errors: as for [`run`]; `after` has then seen what came before the pass that failed.
pub fn run_with(
    mut unit: Unit,
    context: &Context,
    to: Option<&str>,
    after: &mut dyn FnMut(&Pass, &Unit),
) -> Result<Unit, Error> {
    unit.module.verify()?;
    for pass in PIPELINE {
        unit = (pass.run)(unit, context)?;
        if cfg!(debug_assertions) {
            unit.module.verify()?;
        }
        after(pass, &unit);
        if to == Some(pass.name) {
            break;
        }
    }
    Ok(unit)
}
