//! Rows added to a table at ids, in token order: each unit owns columns and walks the ids, so no two write to one place.
//!
//! Implements  `scatter_add` over matrices: ids that share no axis with the table, whose row axis is its first
//! Schedule    CPU: `units` cores, a range of columns each, `lanes` at a time; GPUs: a unit a column and a class of ids (by their low bits)
//! Needs       fewer than 2^31 elements a buffer
//! Cost        T·C adds, no atomics; each unit reads the ids once. Halves, summed in f32 and rounded once, compare ids pair by pair
//! Source      own

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};
use omchat_ir::Dtype;

use crate::bind::{Buffers, Slot, Slots};
use crate::grid::{address, cubes, looped, units};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::{Lane, read_float, write_float};
use crate::{Launch, LaunchError};

/// Units that a GPU wants before a unit may take all ids of its column.
const BUSY: usize = 32_768;
/// Most classes of ids: each reads all ids.
const CLASSES: usize = 64;

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
    /// Whether the result is narrower than its sums: then all rows of an id are added at its first token.
    narrow: bool,
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
        let Schedule(mut fixed) = units(target, n.tokens * n.width);
        if target.family != Family::Cpu {
            let classes = (BUSY / n.width.max(1)).clamp(1, CLASSES).min(n.height).max(1);
            fixed.insert("classes", 1 << classes.ilog2());
        }
        Ok(vec![Schedule(fixed)])
    }

    fn turns(&self, work: &Work, _schedule: &Schedule) -> usize {
        let Ok(n) = sizes(work) else { return usize::MAX };
        // Rounded rows look for the first and for all others of their id.
        let others = if n.dtype == Dtype::F32 { 0 } else { looped(n.tokens, 0) };
        looped(n.tokens, others + looped(1, others))
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
            narrow: n.dtype != Dtype::F32,
        };
        let cpu = schedule.get("bits") == 64;
        let chunk = if cpu { n.width.div_ceil(schedule.get("units") as usize).next_multiple_of(lanes) } else { 1 };
        let chunks = n.width.div_ceil(chunk.max(1));
        let classes = schedule.get("classes");
        let items = chunks as u32 * classes;
        let words = [items, chunks as u32, chunk as u32, classes, n.height as u32, n.width as u32, n.tokens as u32];
        let (cubes, units) = cubes(items, schedule);
        Ok(Prepared::new(
            words.to_vec(),
            ins,
            outs,
            cubes,
            units,
            runner!(|b| scatter_add, bits, lanes, b.meta, b.operands, b.results, plan),
        ))
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
            if id >= 0i32 && id < height && (id as u32 & other) == class {
                let to = id as usize * width;
                if comptime![p.narrow] {
                    let mut first = 0usize.runtime();
                    while ids[first] != id {
                        first += 1;
                    }
                    if first == t {
                        columns::<N>(operands, results, to, t, tokens, width, from, end, vectors, p);
                    }
                } else {
                    columns::<N>(operands, results, to, t, t + 1, width, from, end, vectors, p);
                }
            }
        }
    }
}

/// Adds rows of tokens `t..last` that have the id of `t` to the columns `from..end` of the row at `to`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn columns<N: Size>(
    operands: &Buffers,
    results: &mut Buffers,
    to: usize,
    t: usize,
    last: usize,
    width: usize,
    from: usize,
    end: usize,
    vectors: usize,
    #[comptime] p: Plan,
) {
    for j in 0..vectors {
        add::<N>(operands, results, to, t, last, width, from + j * N::value(), p);
    }
    if comptime![p.tail] {
        for c in from + vectors * N::value()..end {
            add::<Const<1>>(operands, results, to, t, last, width, c, p);
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
    last: usize,
    width: usize,
    column: usize,
    #[comptime] p: Plan,
) {
    let mut sum = read_float::<N>(&*results, to + column, 1usize, p.out, Lane::One);
    sum += read_float::<N>(operands, t * width + column, 1usize, p.rows, Lane::One);
    if comptime![p.narrow] {
        let ids = operands.i32s.index(p.ids.index);
        let id = ids[t];
        for s in t + 1..last {
            if ids[s] == id {
                sum += read_float::<N>(operands, s * width + column, 1usize, p.rows, Lane::One);
            }
        }
    }
    write_float::<N>(results, to + column, 1usize, sum, p.out, Lane::One);
}
