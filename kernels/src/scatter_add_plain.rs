//! Rows added to a table at ids, in token order: each unit owns columns and walks the ids, so no two write to one place.
//!
//! Implements  `scatter_add` over matrices: ids that share no axis with the table, whose row axis is its first
//! Schedule    CPU: `units` cores, a range of columns each, `lanes` at a time; GPUs: a unit a column and a class of ids (by their low bits)
//! Needs       fewer than 2^31 elements a buffer
//! Cost        T·C adds, no atomics; each unit reads the ids once. Halves are summed in f32 and rounded once: a launch before links each
//!             token to the next of its id, on a CPU by one walk, on GPUs by T compares a unit
//! Source      own

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::Dtype;

use crate::bind::{Buffers, Slot, Slots};
use crate::grid::{address, cubes, looped, units};
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::vector::{Lane, read_float, write_float};
use crate::{Launch, LaunchError};

/// Units that a GPU wants before a unit may take all ids of its column.
const BUSY: usize = 32_768;
/// Most classes of ids: each reads all ids.
const CLASSES: usize = 64;

/// Tokens that f32 counts.
const EXACT: usize = 1 << 24;

/// Adds rows at ids.
pub struct ScatterAddPlain;

/// The comptime half of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    ids: Slot,
    rows: Slot,
    out: Slot,
    /// Whether the lanes leave a rest.
    tail: bool,
    /// Where tokens are linked, if the result is narrower than its sums: then all rows of an id are added at its first token.
    links: Option<Slot>,
}

/// The comptime half of the launch that links tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Link {
    ids: Slot,
    /// For each token the next one of its id, or as many as there are; then 1 for each that is its id's first, else 0. Behind them, where
    /// one unit links all, the first token of each row of the table.
    to: Slot,
    /// Whether one unit links all.
    alone: bool,
}

/// Sizes of an instance.
struct Sizes {
    dtype: Dtype,
    height: usize,
    width: usize,
    tokens: usize,
    /// Operands that hold ids and rows.
    ids: usize,
    rows: usize,
}

impl Kernel for ScatterAddPlain {
    fn name(&self) -> &'static str {
        "scatter_add.plain"
    }

    fn implements(&self) -> Implements {
        Implements::ScatterAdd
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let n = sizes(work)?;
        let most = n.height.max(n.tokens).saturating_mul(n.width);
        if most >= 1 << 31 {
            return Err(Refusal(format!("indices are 32-bit: at most {} elements, not {most}", 1u32 << 31)));
        }
        if n.dtype != Dtype::F32 && n.tokens > EXACT {
            return Err(Refusal(format!("links at most {EXACT} tokens, not {}", n.tokens)));
        }
        let Schedule(mut fixed) = units(target, n.tokens * n.width);
        if target.family != Family::Cpu {
            let classes = (BUSY / n.width.max(1)).clamp(1, CLASSES).min(n.height).max(1);
            fixed.insert("classes", 1 << classes.ilog2());
        }
        Ok(vec![Schedule(fixed)])
    }

    fn turns(&self, work: &Work, _schedule: &Schedule) -> usize {
        let Ok(n) = sizes(work) else { return usize::MAX };
        // Each row is added once, at its own token or at the first of its id.
        let others = if n.dtype == Dtype::F32 { 0 } else { looped(n.tokens, 0) };
        looped(n.tokens, looped(1, 0)) + others
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        let linked = |n: Sizes| (2 * n.tokens + if schedule.get("bits") == 64 { n.height } else { 0 }).max(1);
        sizes(work).ok().filter(|n| n.dtype != Dtype::F32).map_or(0, linked)
    }
}

impl Launch for ScatterAddPlain {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let n = sizes(work).map_err(unfit(self.name()))?;
        let (mut ins, mut outs) = (Slots::default(), Slots::default());
        let (lanes, bits) = (schedule.get("lanes") as usize, address(schedule));
        let plan = Plan {
            ids: ins.slot(n.ids, Dtype::I32),
            rows: ins.slot(n.rows, n.dtype),
            out: outs.slot(0, n.dtype),
            tail: !n.width.is_multiple_of(lanes),
            links: (n.dtype != Dtype::F32).then(|| ins.scratch()),
        };
        let cpu = schedule.get("bits") == 64;
        let chunk = if cpu { n.width.div_ceil(schedule.get("units") as usize).next_multiple_of(lanes) } else { 1 };
        let chunks = n.width.div_ceil(chunk.max(1));
        let classes = schedule.get("classes");
        let items = chunks as u32 * classes;
        let words = [items, chunks as u32, chunk as u32, classes, n.height as u32, n.width as u32, n.tokens as u32];
        let grid = cubes(items, schedule);
        let add: Run = runner!(|b| scatter_add, bits, lanes, b.meta, b.operands, b.results, plan);
        if plan.links.is_none() {
            return Ok(Prepared::new(words.to_vec(), ins, outs, grid.0, grid.1, add));
        }
        let (mut read, mut left) = (Slots::default(), Slots::default());
        let link = Link { ids: read.slot(n.ids, Dtype::I32), to: left.scratch(), alone: cpu };
        let (first, units) = cubes(if cpu { 1 } else { n.tokens.max(1) as u32 }, schedule);
        let run: Run = runner!(|b| link_tokens, bits, b.meta, b.operands, b.results, link);
        let scratch = self.scratch(work, schedule);
        Ok(Prepared::new(words.to_vec(), read, left, first, units, run).then(scratch, ins, outs, grid, add))
    }
}

fn sizes(work: &Work) -> Result<Sizes, Refusal> {
    match *work {
        Work::ScatterAdd { dtype, height, width, tokens, ids, rows } => {
            Ok(Sizes { dtype, height, width, tokens, ids, rows })
        }
        _ => Err(Refusal("this kernel runs scatter_add".into())),
    }
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn scatter_add<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] p: Plan) {
    let item = ABSOLUTE_POS as u32;
    if item < meta[0] {
        let from = (item % meta[1]) * meta[2];
        let class = item / meta[1];
        let other = meta[3] - 1;
        let height = meta[4] as i32;
        let width = meta[5] as usize;
        let tokens = meta[6] as usize;
        let end = min(from + meta[2], meta[5]) as usize;
        let from = from as usize;
        let vectors = (end - from) / N::value();
        let ids = operands.i32s.index(p.ids.index);
        for t in 0..tokens {
            let id = ids[t];
            if id >= 0i32 && id < height && (id as u32 & other) == class && begins(operands, t, tokens, p) {
                columns::<N>(operands, results, id as usize * width, t, tokens, width, from, end, vectors, p);
            }
        }
    }
}

/// Whether what has a token's id is added at that token.
#[cube]
fn begins(operands: &Buffers, t: usize, tokens: usize, #[comptime] p: Plan) -> bool {
    match comptime!(p.links) {
        Some(links) => operands.f32s.index(links.index)[tokens + t] > 0.0f32,
        None => true.runtime(),
    }
}

/// Links the tokens of an id.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn link_tokens(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] l: Link) {
    let ids = operands.i32s.index(l.ids.index);
    let to = results.f32s.index_mut(l.to.index);
    let (height, tokens) = (meta[4] as usize, meta[6] as usize);
    let item = ABSOLUTE_POS;
    if comptime![l.alone] {
        if item == 0 {
            let none = f32::cast_from(tokens as u32);
            for row in 0..height {
                to[2 * tokens + row] = none;
            }
            for back in 0..tokens {
                let t = tokens - 1 - back;
                let id = ids[t];
                if id >= 0i32 && id < height as i32 {
                    to[t] = to[2 * tokens + id as usize];
                    to[2 * tokens + id as usize] = f32::cast_from(t as u32);
                }
            }
            for t in 0..tokens {
                let id = ids[t];
                if id >= 0i32 && id < height as i32 {
                    let first = to[2 * tokens + id as usize] == f32::cast_from(t as u32);
                    to[tokens + t] = select(first, 1.0f32, 0.0f32);
                }
            }
        }
    } else if item < tokens {
        let id = ids[item];
        let mut next = item + 1;
        while next < tokens && ids[min(next, tokens - 1)] != id {
            next += 1;
        }
        let mut first = 0usize.runtime();
        while ids[first] != id {
            first += 1;
        }
        to[item] = f32::cast_from(next as u32);
        to[tokens + item] = select(first == item, 1.0f32, 0.0f32);
    }
}

/// Adds the row of token `t`, and of those that it is linked to, to the columns `from..end` of the row at `to`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn columns<N: Size>(
    operands: &Buffers,
    results: &mut Buffers,
    to: usize,
    t: usize,
    tokens: usize,
    width: usize,
    from: usize,
    end: usize,
    vectors: usize,
    #[comptime] p: Plan,
) {
    for j in 0..vectors {
        add::<N>(operands, results, to, t, tokens, width, from + j * N::value(), p);
    }
    if comptime![p.tail] {
        for c in from + vectors * N::value()..end {
            add::<Const<1>>(operands, results, to, t, tokens, width, c, p);
        }
    }
}

#[cube]
#[allow(clippy::too_many_arguments)]
fn add<N: Size>(
    operands: &Buffers,
    results: &mut Buffers,
    to: usize,
    t: usize,
    tokens: usize,
    width: usize,
    column: usize,
    #[comptime] p: Plan,
) {
    let mut sum = read_float::<N>(&*results, to + column, 1usize, p.out, Lane::One);
    sum += read_float::<N>(operands, t * width + column, 1usize, p.rows, Lane::One);
    if comptime![p.links.is_some()] {
        let links = operands.f32s.index(comptime![p.links.map_or(0, |l| l.index)]);
        let mut s = u32::cast_from(links[t]) as usize;
        while s < tokens {
            sum += read_float::<N>(operands, s * width + column, 1usize, p.rows, Lane::One);
            s = u32::cast_from(links[s]) as usize;
        }
    }
    write_float::<N>(results, to + column, 1usize, sum, p.out, Lane::One);
}
