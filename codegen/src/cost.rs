//! What a schedule is expected to take: a roofline over bytes and FLOPs, lowered by idle lanes, units and tiles.
//!
//! The model knows no kernel. It reads what every schedule says in the words that all kernels share:
//!
//! | word | what it is |
//! |---|---|
//! | `units` | CPU: cores; GPUs: units of a cube |
//! | `lanes` | elements of a vector |
//! | `rows`, `cols` | sums that a unit holds at once, in rows and columns (in vectors, where lanes lie along columns) |
//! | `m`, `n` | rows and columns of a cube's tile, where a cube works on one together |
//! | `panel` | elements along k of which columns are packed at once: lanes lie along columns then |
//! | `stages` | tiles on their way at once: matrix units are fed by them |
//! | `tile` | keys that a block of attention takes at once, whether there are so many or not |
//! | `split` | parts into which the folded axes are cut |
//!
//! Other words change nothing here. Products that need scratch memory write their parts' sums there, and another launch reads
//! them. The figures of a family are rough: what counts is the ratio of two offers for the same
//! work, and `select` asks for a clear one.

use crate::Amount;
use crate::class::is_product;
use crate::kernel::{Schedule, Work};
use crate::nest::{Fold, Nest};
use crate::target::{Family, Target};

/// Multiply-adds of halves of a processor's matrix units in the time of one of each lane; of tf32 they do half as many.
const MATRIX: f64 = 8.0;

/// Rows that a block of attention takes at once on a CPU.
const STEP: usize = 4;
/// Rows whose products take about as long as turning a tile on its side (measured: stores of single elements).
const TURN: f64 = 32.0;

/// Tiles whose sums wait beside a panel, and multiply-adds in the time of a vector of zeros (by count: 32 bytes are stored at once).
const SUMS: usize = 64;
const ZERO: f64 = 2.0;

/// How much longer a core takes for an attention that goes query by query than its lanes and sums tell (measured at 8192 keys and at
/// 4096 queries).
const SINGLE: f64 = 6.0;

/// What a device of a family does in a second, and what a launch costs.
struct Rates {
    /// Fused multiply-adds of one lane in a core.
    lane: f64,
    /// Lanes that a core runs at once.
    lanes: f64,
    /// Cores there are.
    cores: f64,
    /// Bytes from and to memory.
    bytes: f64,
    /// Seconds before the first unit starts.
    launch: f64,
    /// Sums that a unit must hold to hide the latency of an addition.
    sums: f64,
    /// Multiply-adds in the time of a load from the nearest memory.
    load: f64,
}

impl Rates {
    fn of(target: &Target) -> Rates {
        let cores = f64::from(target.cores.max(1));
        match target.family {
            Family::Cpu => Rates {
                lane: 2.8e9,
                lanes: target.lanes as f64,
                cores,
                bytes: 8e9 * cores.min(16.0),
                launch: 8e-6,
                sums: 8.0,
                load: 1.0,
            },
            // A card of no known size; WebGPU does not tell.
            Family::Wgpu => Rates {
                lane: 1.5e9,
                lanes: 64.0,
                cores: cores.max(16.0),
                bytes: 2e11,
                launch: 3e-5,
                sums: 2.0,
                load: 4.0,
            },
            Family::Cuda => Rates {
                lane: 1.6e9,
                lanes: 128.0,
                cores,
                bytes: if target.sm >= 90 { 3e12 } else { 1.5e12 },
                launch: 4e-6,
                sums: 2.0,
                load: 4.0,
            },
        }
    }
}

/// Seconds that work of that amount is expected to take with a schedule that works in that many floats of scratch memory.
pub(crate) fn seconds(work: &Work, amount: &Amount, schedule: &Schedule, scratch: usize, target: &Target) -> f64 {
    let rates = Rates::of(target);
    let (bytes, flops) = (amount.bytes() as f64, amount.flops as f64);
    let product = match work {
        Work::Nest(n) if n.fold == Some(Fold::Sum) && is_product(&n.body) => Product::of(n, target),
        _ => None,
    };
    let busy = match &product {
        Some(p) => p.seconds(schedule, target, &rates),
        None => plain(flops * padding(work, schedule, target), schedule, target, &rates),
    };
    // A memory controller serves one core about half as fast as all of them.
    let share = if target.family == Family::Cpu { (workers(schedule, &rates) / rates.cores).max(0.5) } else { 1.0 };
    let wake = if target.family == Family::Cpu && schedule.get("units") > 1 { 4e-6 } else { 0.0 };
    let merge = match &product {
        Some(_) if scratch > 0 => rates.launch + 2.0 * 4.0 * scratch as f64 / rates.bytes,
        _ => 0.0,
    };
    rates.launch + wake + f64::max(busy, bytes / (rates.bytes * share)) + merge
}

/// Cores that a schedule keeps on a CPU.
fn workers(schedule: &Schedule, rates: &Rates) -> f64 {
    f64::from(schedule.get("units")).min(rates.cores)
}

/// How many times its operations attention takes: by whole blocks of `rows` queries and whole tiles of `tile` keys; the
/// cotangents of keys by blocks of keys and tiles of queries. On a CPU a block takes `STEP` rows at a time, and where it has
/// more, each of its tiles is turned on its side first.
fn padding(work: &Work, schedule: &Schedule, target: &Target) -> f64 {
    let Work::Function { name, .. } = work else { return 1.0 };
    if !name.starts_with("attention") {
        return 1.0;
    }
    if !schedule.0.contains_key("tile") {
        return if target.family == Family::Cpu { SINGLE } else { 1.0 };
    }
    let (queries, keys) = (work.dim("G") * work.dim("T"), work.dim("S"));
    let (down, across) = if name == "attention_dkv" { (keys, queries) } else { (queries, keys) };
    let filled = |n: usize, by: usize| n.max(1).next_multiple_of(by.max(1)) as f64 / n.max(1) as f64;
    let (rows, tile) = (schedule.get("rows") as usize, schedule.get("tile") as usize);
    let by_rows = match target.family {
        Family::Cpu if rows > STEP => filled(down, STEP) + TURN * down.div_ceil(rows) as f64 / down.max(1) as f64,
        _ => filled(down, rows),
    };
    by_rows * filled(across, tile)
}

/// Work of which only the number of operations is known: even, with one sum a lane.
fn plain(flops: f64, schedule: &Schedule, target: &Target, rates: &Rates) -> f64 {
    let lanes = f64::from(schedule.get("lanes")).min(rates.lanes);
    let sums = f64::from(schedule.get("rows").max(1));
    let hidden = (sums / rates.sums).clamp(0.25, 1.0);
    let rate = match target.family {
        Family::Cpu => workers(schedule, rates) * lanes,
        _ if schedule.0.contains_key("stages") => rates.cores * MATRIX * rates.lanes,
        _ => rates.cores * rates.lanes,
    };
    flops / 2.0 / (rate * rates.lane * hidden)
}

/// A sum of products: `outer` times `m` rows and `n` columns, each of `k` products.
struct Product {
    outer: usize,
    m: usize,
    n: usize,
    k: usize,
    /// Whether vectors lie along the columns; else along k.
    along_n: bool,
    /// Multiply-adds of matrix units in the time of one of each lane.
    matrix: f64,
}

impl Product {
    /// The sizes that tiles are cut along, as the einsum kernels see them; nothing where no axis makes columns.
    fn of(nest: &Nest, target: &Target) -> Option<Product> {
        let nest = nest.clone().collapsed();
        let steps = |r: usize, axis: usize| nest.reads[r].strides.get(axis).copied().unwrap_or(0);
        let only = |x: usize, y: usize| (0..nest.kept.len()).rfind(|a| steps(x, *a) != 0 && steps(y, *a) == 0);
        let (m, n, columns) = match (only(0, 1), only(1, 0)) {
            (a, b) if a > b => (b, a?, 0),
            (a, b) => (a, b?, 1),
        };
        // A CPU turns rows to columns where those alone are contiguous.
        let along_k = (0..2).all(|r| nest.reads[r].strides.last() == Some(&1));
        let (m, n, columns) = match m {
            Some(a)
                if target.family == Family::Cpu && !along_k && steps(columns, n) != 1 && steps(1 - columns, a) == 1 =>
            {
                (Some(n), a, 1 - columns)
            }
            _ => (m, n, columns),
        };
        let rows = m.map_or(1, |a| nest.kept[a]);
        Some(Product {
            outer: nest.points() / (rows * nest.kept[n]).max(1),
            m: rows,
            n: nest.kept[n],
            k: nest.depth(),
            along_n: steps(columns, n) == 1,
            matrix: MATRIX * 2.0 / nest.reads.iter().take(2).map(|r| r.dtype.bytes()).fold(2, usize::max) as f64,
        })
    }

    fn seconds(&self, schedule: &Schedule, target: &Target, rates: &Rates) -> f64 {
        let get = |word: &str| schedule.get(word).max(1) as usize;
        let has = |word: &str| schedule.0.contains_key(word);
        let lanes = get("lanes");
        let (rows, cols) = (get("rows"), get("cols"));
        let cube = has("m") && has("n");
        let along_n = self.along_n || has("panel");
        let (tm, tn) = if cube { (get("m"), get("n")) } else { (rows, if along_n { cols * lanes } else { cols }) };
        let split = get("split");
        let items = (self.outer * self.m.div_ceil(tm) * self.n.div_ceil(tn) * split) as f64;
        // Vectors along k leave a rest that is taken one by one.
        let k = if along_n || lanes == 1 { self.k } else { self.k.next_multiple_of(lanes) }.div_ceil(split);
        let products = (tm * tn * k) as f64;
        let (workers, rate) = match target.family {
            Family::Cpu => (workers(schedule, rates), (lanes as f64).min(rates.lanes)),
            _ if cube && has("stages") => (rates.cores, self.matrix * rates.lanes),
            _ if cube => (rates.cores, (get("units") as f64).min(rates.lanes)),
            // A unit an item: a core runs as many at once as it has lanes.
            _ => (rates.cores * rates.lanes, 1.0),
        };
        let waves = (items / workers).ceil();
        // A tile's rows and columns come from the cache for its products: matrix units wait for those of small tiles.
        let fed = if cube && has("stages") { matrix_wait(tm, tn) } else { 1.0 };
        let (rows, cols) = (rows as f64, cols as f64);
        // Each step loads a tile's rows and columns for its products; few sums wait for their own additions.
        let loads = (rates.load * (rows + cols) / (rows * cols)).max(1.0);
        let waits = (rates.sums / (rows * cols)).clamp(1.0, 4.0);
        // A core's panel and the sums beside it are filled with zeros, vector by vector, before columns are packed.
        let zeros = if has("panel") { ((get("panel") + SUMS * get("rows")) * get("cols")) as f64 * ZERO } else { 0.0 };
        let packed = (self.outer * self.n.div_ceil(tn)) as f64 / workers * zeros / rates.lane;
        waves * products / (rate * rates.lane) * loads.max(waits) * fed + packed
    }
}

/// How much longer matrix units take for products of tiles of `m` x `n` than for those of 128 x 256.
///
/// Source: einsums of 4096 cubed in bf16 on an H200 by `einsum.wgmma`, 128 x 256 to 64 x 64: 1.00, 1.43, 1.75, 1.94.
fn matrix_wait(m: usize, n: usize) -> f64 {
    let products_a_load = (m * n) as f64 / (m + n) as f64;
    1.0 + 0.95 * ((85.3 - products_a_load) / 53.3).clamp(0.0, 1.5)
}
