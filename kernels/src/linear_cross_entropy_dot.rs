//! Cross entropy behind its projection on a CPU: a core takes a run of tokens and a part of the words, and folds the logits of
//! a few words into each token's log-sum-exp while they are in registers.
//!
//! Implements  `@linear_cross_entropy`, `@linear_cross_entropy_tiled`
//! Schedule    `rows` x `cols` logits a step, `lanes` along C; `units` cores; `parts` of the words
//! Needs       the CPU runtime (views of one array as scalars and as vectors; local arrays with an index)
//! Cost        2·T·V·C FLOP; words are read once a run of tokens, logits never; a second launch merges the parts
//! Source      Wijmans et al. 2024, Cut your losses, arXiv:2411.09009; the log-sum-exp of Milakov & Gimelshein 2018, arXiv:1805.02867

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::bind::Buffers;
use crate::cross_entropy::{
    Ends, FUNCTIONS, LEAST, Sizes, ends, floats, instance, label_from, leave_hit, leave_part, left, merged, worth,
};
use crate::einsum::Einsum;
use crate::einsum_dot::{GROUP, NEAR, sums};
use crate::grid::{address, cores, cubes};
use crate::key::Key;
use crate::nest::{Cursor, item, origin};
use crate::prepared::{Prepared, Run, runner, unfit};
use crate::vector::across;
use crate::{Launch, LaunchError};

/// Rows and columns of a step.
const ROWS: usize = 4;
const COLS: usize = 4;
/// Bytes of rows that stay in a core's second cache while words pass by; and the most rows.
const RUN: usize = 512 << 10;
const MOST: usize = 256;

/// Folds logits as they come.
pub struct LinearCrossEntropyDot;

/// What a core does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Fold {
    e: Key<Einsum>,
    ends: Ends,
    /// Rows of a run, at most.
    run: usize,
    /// Steps side by side whose logits are folded together.
    group: usize,
    /// Whether the vocabulary is no multiple of a group.
    tail: bool,
    /// Where the words `[items, rows a run]` begin.
    words: usize,
}

/// Rows of a run, at most: whole steps.
fn run(n: &Sizes) -> usize {
    (RUN / 4 / n.c).clamp(ROWS, MOST) / ROWS * ROWS
}

/// Runs of the rows, all as long as can be, and parts of the words, so that every core has as many items.
fn cut(n: &Sizes, cores: usize) -> (usize, usize) {
    let runs = n.t.div_ceil(run(n));
    let parts = (1..=cores).find(|parts| (runs * parts).is_multiple_of(cores)).unwrap_or(1);
    (runs, parts.min(n.v.div_ceil(COLS * GROUP)))
}

impl Kernel for LinearCrossEntropyDot {
    fn name(&self) -> &'static str {
        "linear_cross_entropy.dot"
    }

    fn implements(&self) -> Implements {
        Implements::Functions(FUNCTIONS)
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let (n, _) = instance(work, Some(target))?;
        if target.family != Family::Cpu {
            return Err(Refusal(format!("needs the CPU runtime's local arrays; {} is not one", target.name)));
        }
        let lanes = [target.lanes, 8, 4, 2, 1].into_iter().find(|l| *l <= target.lanes && *l <= n.c).unwrap_or(1);
        let units = cores(target, n.t.saturating_mul(n.v).saturating_mul(n.c));
        let parts = cut(&n, units as usize).1;
        let only = Schedule::new(&[
            ("bits", 64),
            ("units", units),
            ("lanes", lanes as u32),
            ("rows", ROWS as u32),
            ("cols", COLS as u32),
            ("parts", parts as u32),
        ]);
        worth(work, &n, vec![only], |_| parts, target)
    }

    fn scratch(&self, work: &Work, schedule: &Schedule) -> usize {
        instance(work, None).map_or(0, |(n, _)| floats(&n, schedule.get("parts") as usize))
    }
}

impl Launch for LinearCrossEntropyDot {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let (n, roles) = instance(work, None).map_err(unfit(self.name()))?;
        let (lanes, bits) = (schedule.get("lanes") as usize, address(schedule));
        let parts = schedule.get("parts") as usize;
        let group = if n.c * COLS * GROUP * 4 <= NEAR { GROUP } else { 1 };
        let (e, mut words, mut ins, ..) = roles.plan(ROWS, COLS, COLS, group, schedule);
        let ends = ends(&n, parts, &mut words, &mut ins);
        let at = words.len();
        let runs = cut(&n, schedule.get("units") as usize).0;
        let items = (runs * parts) as u32;
        words.extend([items, n.t.div_ceil(runs).next_multiple_of(ROWS) as u32]);
        let (cols, wide) = (COLS, COLS * group);
        let tail = !n.v.is_multiple_of(wide);
        let f = Key::new(Fold { e: Key::new(e), ends, run: run(&n), group, tail, words: at });
        let launch: Run =
            runner!(|b| linear_cross_entropy_dot, bits, lanes, cols, wide, b.meta, b.operands, b.results, f.clone());
        let (grid, units) = cubes(items, schedule);
        let first = Prepared::new(words, ins, left(), grid, units, launch);
        Ok(merged(first, &n, parts, ends, schedule))
    }
}

/// What a run keeps of its rows.
#[derive(CubeType)]
struct Held<W: Size> {
    /// The largest logit so far.
    top: Array<f32>,
    /// Sums of exp(logit - largest), by lane.
    sum: Array<Vector<f32, W>>,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn linear_cross_entropy_dot<N: Size, C: Size, W: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    #[comptime] f: Key<Fold>,
) {
    let place = item(true);
    if place < meta[f.words] {
        let parts = meta[f.ends.words];
        let (rows, size) = (meta[comptime![f.ends.words + 1]], meta[comptime![f.ends.words + 2]]);
        let each = meta[comptime![f.words + 1]];
        let (part, from) = (place % parts, place / parts * each);
        let last = min(from + each, rows);
        let groups = size.div_ceil(comptime![(f.group * COLS) as u32]);
        let c = origin(meta, operands, f.e.plan.clone());
        let mut held = Held::<W> { top: Array::new(f.run), sum: Array::new(f.run) };
        for r in 0..f.run {
            held.top[r] = LEAST.runtime();
            held.sum[r] = Vector::new(0.0f32);
        }
        for g in groups * part / parts..groups * (part + 1) / parts {
            let n = g as usize * comptime![f.group * COLS];
            for step in 0..each / ROWS as u32 {
                let row = from + step * ROWS as u32;
                if row < last {
                    fold::<N, C, W>(
                        meta,
                        operands,
                        results,
                        &c,
                        row,
                        last,
                        step as usize * ROWS,
                        n,
                        &mut held,
                        f.clone(),
                    );
                }
            }
        }
        for r in 0..(last - from) as usize {
            leave_part(
                meta,
                results,
                from as usize + r,
                part as usize,
                held.top[r],
                across::<W>(held.sum[r], false),
                f.ends,
            );
        }
    }
}

/// Folds the logits of a group of words from `n` on into the rows from `row` on, which are the run's from place `at` on.
#[cube]
fn fold<N: Size, C: Size, W: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    c: &Cursor,
    row: u32,
    last: u32,
    at: usize,
    n: usize,
    held: &mut Held<W>,
    #[comptime] f: Key<Fold>,
) {
    let size = meta[comptime![f.ends.words + 2]] as usize;
    let mut line = Array::<Vector<f32, W>>::new(ROWS);
    let one = line.as_mut_slice().as_vectorized_mut().with_vector_size_mut::<Const<1>>();
    for j in 0..f.group {
        let first = n + j * COLS;
        let mut parts = Array::<Vector<f32, N>>::new(comptime![ROWS * COLS]);
        let mut rest = Array::<Vector<f32, C>>::new(ROWS);
        sums::<N, C>(meta, operands, c, row, first, &mut parts, &mut rest, f.e.clone());
        for r in 0..ROWS {
            #[unroll]
            for i in 0..COLS {
                let mut logit = rest[r].extract(i) + across::<N>(parts[r * COLS + i], false);
                if comptime![f.tail] {
                    logit = select(first + i < size, logit, LEAST);
                }
                one[r * comptime![f.group * COLS] + j * COLS + i] = Vector::new(logit);
            }
        }
    }
    // Rows past the end are the last again, and nobody asks what they came to.
    #[unroll]
    for r in 0..ROWS {
        let logits = line[r];
        let most = across::<W>(logits, true);
        if most > held.top[at + r] {
            held.sum[at + r] *= Vector::new((held.top[at + r] - most).exp());
            held.top[at + r] = most;
        }
        held.sum[at + r] += (logits - Vector::new(held.top[at + r])).exp();
        let label = label_from(operands, min(row as usize + r, last as usize - 1), n, f.ends);
        if label >= 0 && label < comptime![(f.group * COLS) as i32] && row + (r as u32) < last {
            let hit = line.as_slice().as_vectorized().with_vector_size::<Const<1>>();
            let logit = hit[r * comptime![f.group * COLS] + label as usize].extract(0usize);
            leave_hit(meta, results, row as usize + r, logit, f.ends);
        }
    }
}
