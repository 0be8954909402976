//! Programs: launches over buffers whose places are known before anything runs.

use crate::Error;
use crate::assign::assign;
use crate::kernel::{Kernel, Schedule, Work};
use crate::target::Target;
use omchat_ir::{Dtype, Role, Type};
use std::fmt;
use std::ops::Range;

/// What memory is for; the forecast counts by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Memory {
    /// Parameters uploaded once.
    Weight,
    /// Kept from run to run: the KV cache.
    State,
    /// Given at each run.
    Input,
    /// Yielded by each run.
    Output,
    /// Between launches.
    Workspace,
}

impl Memory {
    /// Every class, in the order of the documents.
    pub const ALL: [Memory; 5] = [Memory::Weight, Memory::State, Memory::Input, Memory::Output, Memory::Workspace];

    /// The name that is printed.
    pub fn name(self) -> &'static str {
        match self {
            Memory::Weight => "weights",
            Memory::State => "state",
            Memory::Input => "inputs",
            Memory::Output => "outputs",
            Memory::Workspace => "workspace",
        }
    }
}

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory of its own, which the caller holds (weights, states, inputs).
    Own,
    /// In a slab of the arena, at a byte offset.
    Arena {
        /// Which slab.
        slab: usize,
        /// Bytes from its start.
        offset: usize,
    },
}

/// A piece of memory.
#[derive(Clone, Debug, PartialEq)]
pub struct BufferPlan {
    /// Dtype and shape of what it holds first.
    pub ty: Type,
    /// What it is for.
    pub memory: Memory,
    /// Where it lies.
    pub place: Place,
}

/// A parameter or a result of the entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// The name in the text, without `%`.
    pub name: String,
    /// Dtype and shape.
    pub ty: Type,
    /// Its role; a result that is a state's next value has `State`.
    pub role: Role,
    /// Its buffer.
    pub buffer: usize,
}

/// One launch.
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchPlan {
    /// Index into `Program::chosen`.
    pub chosen: usize,
    /// Buffers read, as the work counts its operands.
    pub operands: Vec<usize>,
    /// Buffers written, as the work counts its results.
    pub results: Vec<usize>,
    /// The buffer that it works in, where its kernel asks for one; it lives during this launch alone.
    pub scratch: Option<usize>,
    /// The values that it yields.
    pub label: String,
}

impl LaunchPlan {
    /// Every buffer that it touches.
    pub fn buffers(&self) -> impl Iterator<Item = usize> + '_ {
        self.operands.iter().chain(&self.results).chain(&self.scratch).copied()
    }
}

/// What a choice rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// The first schedule of the first kernel of the list that offers one.
    List,
    /// The cost model expects it to take much less time than those before it.
    Cost,
    /// It was measured as the fastest of its class.
    Tuned,
}

/// A kernel fixed to work and schedule; launches that ask for the same share it.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The kernel's name in the list.
    pub kernel: &'static str,
    /// What it runs.
    pub work: Work,
    /// How.
    pub schedule: Schedule,
    /// Floats (f32) of scratch memory that each launch takes.
    pub scratch: usize,
    /// Kernels that stand before it in the list, and why it was none of them.
    pub refusals: Vec<(&'static str, String)>,
    /// Why it was taken.
    pub by: By,
}

/// What a runtime executes.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// The entry's name.
    pub name: String,
    /// Where it runs.
    pub target: Target,
    /// Ranks that run it together.
    pub ranks: usize,
    /// All memory.
    pub buffers: Vec<BufferPlan>,
    /// Bytes of each slab of the arena.
    pub slabs: Vec<usize>,
    /// The entry's parameters, in order.
    pub params: Vec<Port>,
    /// The entry's results, in order.
    pub results: Vec<Port>,
    /// Distinct kernels.
    pub chosen: Vec<Chosen>,
    /// Launches, in order.
    pub launches: Vec<LaunchPlan>,
    /// Ranges of them, in order, that a CPU is given as one launch each.
    pub chains: Vec<Range<usize>>,
    /// Ranges of them, in order, that a GPU is given side by side: none of a range reads or writes what another writes.
    pub horizontals: Vec<Range<usize>>,
}

/// A new buffer of that many floats for a launch to work in; none for none.
pub(crate) fn scratch(buffers: &mut Vec<BufferPlan>, floats: usize) -> Option<usize> {
    let (ty, place) = (Type::new(Dtype::F32, [floats]), Place::Arena { slab: 0, offset: 0 });
    (floats > 0).then(|| {
        buffers.push(BufferPlan { ty, memory: Memory::Workspace, place });
        buffers.len() - 1
    })
}

impl Program {
    /// Bytes of a class of memory; the workspace is the arena's size less the outputs in it.
    pub fn bytes(&self, memory: Memory) -> usize {
        let sum: usize = self.buffers.iter().filter(|b| b.memory == memory).map(|b| b.ty.bytes()).sum();
        match memory {
            Memory::Workspace => self.slabs.iter().sum::<usize>().saturating_sub(self.bytes(Memory::Output)),
            _ => sum,
        }
    }
}

impl Program {
    /// Halves that the target lacks and that weights lie packed in.
    fn packed(&self) -> impl Iterator<Item = Dtype> {
        let here = |d: &Dtype| self.buffers.iter().any(|b| b.ty.dtype == *d);
        self.target.packed.iter().copied().filter(here)
    }

    /// Bytes of weights that lie packed.
    pub fn packed_bytes(&self) -> usize {
        let packed = |b: &&BufferPlan| b.memory == Memory::Weight && self.target.packs(b.ty.dtype);
        self.buffers.iter().filter(packed).map(|b| b.ty.bytes()).sum()
    }

    /// The same program with another kernel or schedule for one of its [`Program::chosen`]; the arena is laid anew, for
    /// the scratch memory that this takes. Nothing runs beside it.
    ///
    /// Errors: `Limit` where scratch memory is more than the target may bind.
    pub fn with(&self, chosen: usize, kernel: &dyn Kernel, schedule: Schedule) -> Result<Program, Error> {
        let mut p = self.clone();
        let c = &mut p.chosen[chosen];
        c.scratch = kernel.scratch(&c.work, &schedule);
        (c.kernel, c.schedule) = (kernel.name(), schedule);
        let floats = c.scratch;
        p.chains.retain(|chain| kernel.chains() || p.launches[chain.clone()].iter().all(|l| l.chosen != chosen));
        p.horizontals.retain(|side| p.launches[side.clone()].iter().all(|l| l.chosen != chosen));
        for l in p.launches.iter_mut().filter(|l| l.chosen == chosen) {
            l.scratch = scratch(&mut p.buffers, floats);
        }
        p.slabs = assign(&mut p.buffers, &p.launches, &p.horizontals, &p.results, &p.target)?;
        Ok(p)
    }

    /// Bytes that a run holds at once: what the caller holds, and the whole arena.
    pub fn peak_bytes(&self) -> usize {
        let own = self.buffers.iter().filter(|b| b.place == Place::Own).map(|b| b.ty.bytes()).sum::<usize>();
        own + self.slabs.iter().sum::<usize>()
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = if self.ranks > 1 { format!(", one of {} ranks", self.ranks) } else { String::new() };
        writeln!(f, "program @{} for {}{of}", self.name, self.target.name)?;
        for m in Memory::ALL {
            writeln!(f, "  {:<10} {:>14} bytes", m.name(), self.bytes(m))?;
            if m == Memory::Weight && self.packed_bytes() > 0 {
                let names: Vec<&str> = self.packed().map(|d| d.name()).collect();
                let (names, bytes) = (names.join(" and "), self.packed_bytes());
                writeln!(f, "    {bytes} of them {names}, two to a word, widened in registers")?;
            }
        }
        let many = |n: usize, ending: &'static str| if n == 1 { "" } else { ending };
        let (l, k) = (self.launches.len(), self.chosen.len());
        writeln!(f, "  {l} launch{} of {k} kernel{}", many(l, "es"), many(k, "s"))?;
        let (chained, chains) = (self.chains.iter().map(Range::len).sum::<usize>(), self.chains.len());
        if chains > 0 {
            writeln!(f, "    {chained} of them made as {chains} chain{}", many(chains, "s"))?;
        }
        let (beside, times) = (self.horizontals.iter().map(Range::len).sum::<usize>(), self.horizontals.len());
        if times > 0 {
            writeln!(f, "    {beside} of them side by side, made as {times}: `|` stands beside the one before")?;
        }
        if self.trains() {
            write!(f, "{}", self.peak())?;
        }
        // Refusals are told once a kernel that was chosen.
        let mut told = vec![false; self.chosen.len()];
        for (at, l) in self.launches.iter().enumerate() {
            let c = &self.chosen[l.chosen];
            let name = |b: &usize| match self.buffers[*b].place {
                Place::Own => self
                    .params
                    .iter()
                    .find(|p| p.buffer == *b)
                    .map_or_else(|| format!("b{b}"), |p| format!("%{}", p.name)),
                Place::Arena { slab, offset } => format!("{slab}+{offset}"),
            };
            let list = |x: &[usize]| x.iter().map(name).collect::<Vec<_>>().join(", ");
            let moved = match &c.work {
                Work::Prefetch { bytes, .. } => format!("(the first {bytes} bytes of {})", list(&l.operands)),
                _ => format!("({}) -> {}", list(&l.operands), list(&l.results)),
            };
            writeln!(
                f,
                "  {}{} = {} [{}] {moved}{}{}",
                if self.horizontals.iter().any(|r| r.start < at && at < r.end) { "| " } else { "" },
                l.label,
                c.kernel,
                c.schedule,
                l.scratch.map_or(String::new(), |b| format!(" in {} ({} bytes)", name(&b), c.scratch * 4)),
                if c.by == By::Tuned { " tuned" } else { "" }
            )?;
            let first = !std::mem::replace(&mut told[l.chosen], true);
            for (k, why) in c.refusals.iter().filter(|_| first) {
                writeln!(f, "      not {k}: {why}")?;
            }
        }
        Ok(())
    }
}
