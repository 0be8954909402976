//! Kernels as codegen sees them: a name, what it implements, and the schedules it offers or refuses.
//!
//! The list itself lives in the `kernels` crate, which implements [`Kernel`] and adds the launch. Codegen
//! is handed the list, so that decisions build and are tested without any GPU library.

use crate::collective::Collective;
use crate::nest::Nest;
use crate::target::Target;
use omchat_ir::{Bind, Dtype, Type};
use std::collections::BTreeMap;
use std::fmt;

/// What a kernel can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Implements {
    /// Any loop nest (it may still refuse one).
    Nest,
    /// Functions of the library, by name.
    Functions(&'static [&'static str]),
    /// The primitive `kth_largest` over the last axis.
    KthLargest,
    /// The primitive `scatter_add` over matrices.
    ScatterAdd,
    /// No meaning: memory that will be read is brought near.
    Prefetch,
}

impl Implements {
    /// Whether it stands for the library function of that name.
    pub fn function(self, name: &str) -> bool {
        matches!(self, Implements::Functions(names) if names.contains(&name))
    }

    /// Whether it is of that work's kind.
    pub fn takes(self, work: &Work) -> bool {
        match work {
            Work::Nest(_) => self == Implements::Nest,
            Work::Function { name, .. } => self.function(name),
            Work::KthLargest { .. } => self == Implements::KthLargest,
            Work::ScatterAdd { .. } => self == Implements::ScatterAdd,
            Work::Prefetch { .. } => self == Implements::Prefetch,
            Work::Collective(_) => false,
        }
    }
}

/// What is to be run.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A loop nest.
    Nest(Nest),
    /// An instance of a library function: its name, its letters, and its operands' and results' types.
    Function {
        /// The name without `@`.
        name: String,
        /// Sizes and dtypes bound to the template's letters.
        binds: BTreeMap<String, Bind>,
        /// Types of operands, in order.
        operands: Vec<Type>,
        /// Types of results, in order.
        results: Vec<Type>,
    },
    /// `kth_largest` over rows: operand [rows, width], result [rows], both f32.
    KthLargest {
        /// Rows.
        rows: usize,
        /// Elements a row.
        width: usize,
        /// Which largest; 1 is the largest.
        k: usize,
    },
    /// `scatter_add` over a result [height, width] that starts as the table: rows [tokens, width] are added at
    /// ids [tokens] in order. Sums are f32, rounded once to the dtype; ids outside `0..height` add nothing.
    ScatterAdd {
        /// Of the result and the rows.
        dtype: Dtype,
        /// Rows of the table.
        height: usize,
        /// Elements a row.
        width: usize,
        /// Ids.
        tokens: usize,
        /// Index of the ids among the launch's operands; i32.
        ids: usize,
        /// Index of the rows among the launch's operands.
        rows: usize,
    },
    /// The start of the first operand is brought near: nothing is read and nothing is written.
    Prefetch {
        /// Of the operand.
        dtype: Dtype,
        /// Bytes from its start on; not more than it has.
        bytes: usize,
    },
    /// Ranks meet: no kernel's work, the runtime's.
    Collective(Collective),
}

impl Work {
    /// The size bound to a letter of a function; 0 when there is none.
    pub fn dim(&self, letter: &str) -> usize {
        match self {
            Work::Function { binds, .. } => match binds.get(letter) {
                Some(Bind::Size(n)) => *n,
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Buffers that a launch binds: its operands and results, its words, and CubeCL's own lengths.
    pub fn bindings(&self) -> usize {
        let own = match self {
            Work::Nest(nest) => nest.buffers(),
            Work::Function { operands, results, .. } => operands.len() + results.len(),
            Work::KthLargest { .. } => 2,
            Work::ScatterAdd { .. } => 3,
            Work::Prefetch { .. } => 1,
            Work::Collective(_) => return 0,
        };
        own + Work::OVERHEAD
    }

    /// Bindings of any launch beside its operands and results: its words, and CubeCL's own lengths.
    pub const OVERHEAD: usize = 2;
}

/// Named numbers that fix how a kernel runs: tile sizes, lanes, units.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Schedule(pub BTreeMap<&'static str, u32>);

impl Schedule {
    /// A schedule of those numbers.
    pub fn new(pairs: &[(&'static str, u32)]) -> Schedule {
        Schedule(pairs.iter().copied().collect())
    }

    /// The number of that name, or 1.
    pub fn get(&self, name: &str) -> u32 {
        self.0.get(name).copied().unwrap_or(1)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (k, v)) in self.0.iter().enumerate() {
            write!(f, "{}{k}={v}", if i > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

/// Why a kernel will not run something: an answer, not an error; kept in the program and printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

/// A way to run a piece of work.
pub trait Kernel: Sync {
    /// The name in plans and benches, `family.variant`.
    fn name(&self) -> &'static str;
    /// What it can stand for.
    fn implements(&self) -> Implements;
    /// Its schedules for that work on that target, best first.
    ///
    /// Errors: a reason that a user can read.
    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal>;
    /// Floats (f32) of memory that a launch with that schedule works in, beside its operands and results. They hold
    /// anything when it begins, and nobody reads them when it is done. Most kernels need none.
    fn scratch(&self, _work: &Work, _schedule: &Schedule) -> usize {
        0
    }
    /// Turns that the loops of one unit take together, at most. Asked where a target counts them ([`Target::turns`]); a
    /// kernel that does not say runs on no such target.
    fn turns(&self, _work: &Work, _schedule: &Schedule) -> usize {
        usize::MAX
    }
    /// Whether a launch of it can be a stage of a chain: one of several launches that a CPU is given as one. Its items may
    /// be dealt to the cores in any order, and nothing but memory is shared among them.
    fn chains(&self) -> bool {
        false
    }
    /// Whether a launch of it can run beside others in one launch of a GPU: a cube's work follows from its number and the
    /// launch's words.
    fn horizontal(&self) -> bool {
        false
    }
    /// The share of itself by which each product may be off, because the kernel rounds factors that its dtypes hold exactly.
    /// Most kernels round none.
    fn rounding(&self) -> f64 {
        0.0
    }
}
