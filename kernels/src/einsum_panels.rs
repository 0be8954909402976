//! Einsums of many rows on a CPU: columns packed into a panel that lies in a core's second cache, rows times scalars.
//!
//! Implements  a nest that sums the product of two float reads, with any epilogue
//! Schedule    `rows` x `cols` vectors of `lanes` columns a step; `panel` elements along k are packed at once; `units` cores
//! Needs       the CPU runtime (views of one array as scalars and as vectors; wide local arrays); rows that pay for the packing
//! Cost        2·m·n·k FLOP; `rows` scalar and `cols` vector loads for `rows · cols` products; columns are packed once a run of rows
//! Source      Goto & van de Geijn 2008, Anatomy of high-performance matrix multiplication

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Refusal, Schedule, Target, Work};

use crate::bind::{Buffers, Slot, Storage};
use crate::einsum::{Einsum, RUN, Roles, Tile, finish_here, inside, stride, tile};
use crate::einsum_rows::places;
use crate::grid::address;
use crate::key::Key;
use crate::map_plain::{fits, nest_of};
use crate::nest::{depth, item, seek};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::{Lane, read_float};
use crate::words::{fixed, turn};
use crate::{Launch, LaunchError};

/// Elements along k in a panel: of rows that lie along k, and of others, of which each element is on a page of its own.
const LONG: u32 = 1024;
const SHORT: u32 = 128;
/// Rows from which on packing pays: of columns that lie along k, which are turned on their side, and of others, which are copied.
const TURNED: usize = 96;
const COPIED: usize = 9;

/// Most panels of an item.
const GROUP: usize = 8;

/// Sums rows times scalars, panel by panel.
pub struct EinsumPanels;

impl Kernel for EinsumPanels {
    fn name(&self) -> &'static str {
        "einsum.panels"
    }

    fn implements(&self) -> Implements {
        Implements::Nest
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        if target.family != Family::Cpu {
            return Err(Refusal(format!("needs the CPU runtime's local arrays; {} is not one", target.name)));
        }
        let roles = Roles::by_columns(work)?;
        fits(nest_of(work)?, target)?;
        let ((m, _), lanes) = (roles.m(), target.lanes);
        let least = if roles.strides(roles.b).0 == 1 { COPIED } else { TURNED };
        if m < least {
            return Err(Refusal(format!("{m} rows do not pay for packing columns: {least} would")));
        }
        if roles.n() < lanes {
            return Err(Refusal(format!("columns must fill a vector of {lanes}, are {}", roles.n())));
        }
        // Sums, a step's columns and a scalar fill the registers: 32 of 16 lanes, else 16.
        let shapes: [(usize, usize); 2] = if lanes >= 16 { [(8, 3), (6, 4)] } else { [(6, 2), (4, 3)] };
        let panel = if roles.strides(roles.a).1 == 1 { LONG } else { SHORT };
        let mut all = shapes.map(|(rows, cols)| {
            let tile = [("rows", rows as u32), ("cols", cols as u32), ("panel", panel)];
            Schedule::new(&[&[("bits", 64), ("units", target.cores), ("lanes", lanes as u32)][..], &tile].concat())
        });
        all.sort_by_key(|s| busiest(&roles, s));
        Ok(all.to_vec())
    }
}

/// Vectors of sums of the core that has most to do.
fn busiest(roles: &Roles, schedule: &Schedule) -> usize {
    let get = |word: &str| schedule.get(word) as usize;
    let (rows, cols) = (get("rows"), group(roles, schedule) * get("cols"));
    let wide = cols * get("lanes");
    let run = roles.run(rows, wide, schedule);
    roles.items(rows, wide, run).div_ceil(get("units")) * run * rows * cols
}

/// Panels of an item, one after the other, if all cores have as many: CubeCL fills local arrays with zeros before each item,
/// which took 6 % of the time of a prompt's products.
fn group(roles: &Roles, schedule: &Schedule) -> usize {
    let wide = (schedule.get("cols") * schedule.get("lanes")) as usize;
    let panels = roles.n().div_ceil(wide);
    let even = |g: &usize| panels.is_multiple_of(*g) && (panels / g).is_multiple_of(schedule.get("units") as usize);
    (1..=GROUP).rev().find(even).unwrap_or(1)
}

impl Launch for EinsumPanels {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let roles = Roles::by_columns(work).map_err(unfit(self.name()))?;
        let (rows, cols) = (schedule.get("rows") as usize, schedule.get("cols") as usize);
        let (lanes, bits) = (schedule.get("lanes") as usize, address(schedule));
        let (e, words, ins, outs, (cubes, units)) =
            roles.plan(rows, cols, cols * lanes, group(&roles, schedule), schedule);
        let e = Key::new(e);
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| einsum_panels, bits, lanes, b.meta, b.operands, b.results, e.clone()),
        ))
    }
}

/// An item: panels of columns, one after the other, against a run of tiles of rows.
#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn einsum_panels<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] e: Key<Einsum>) {
    let item = item(true);
    if inside(meta, item, e.clone()) {
        let t = tile(meta, operands, item, e.clone());
        let lanes = N::value();
        let mut held = Held::<N> {
            panel: Array::new(comptime![e.panel * e.cols]),
            near: Array::new(comptime![if widens(&e) { e.rows * e.panel / lanes } else { 1 }]),
            sums: Array::new(comptime![RUN * e.rows * e.cols]),
        };
        for g in 0..e.group {
            let n = (t.n as usize * e.group + g) * comptime![e.cols * lanes];
            columns::<N>(meta, operands, &t, n, &mut held, e.clone());
            leave::<N>(meta, operands, results, &t, n, &held, e.clone());
        }
    }
}

/// What a core has near it.
#[derive(CubeType)]
struct Held<N: Size> {
    /// Columns: [k, columns].
    panel: Array<Vector<f32, N>>,
    /// A tile's rows, where they are widened: [rows, k].
    near: Array<Vector<f32, N>>,
    /// Sums of a run: [rows, columns]. They wait here while another panel is packed.
    sums: Array<Vector<f32, N>>,
}

/// Sums the columns from `n` on for all rows of a run.
#[cube]
fn columns<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    t: &Tile,
    n: usize,
    held: &mut Held<N>,
    #[comptime] e: Key<Einsum>,
) {
    let last = comptime![e.plan.rank - 1];
    let width = meta[last] as usize;
    let tile = comptime![e.rows * e.cols];
    for i in 0..(t.to - t.from) as usize * tile {
        held.sums[i] = Vector::new(0.0f32);
    }
    for k in 0..depth(meta, e.plan.clone()) {
        let outer = seek(meta, &t.cursor, k, e.plan.kept, last, e.plan.clone());
        let (a, b) = (fixed(*outer.reads.index(e.a), true), fixed(*outer.reads.index(e.b), true));
        let a_step = stride(meta, e.a, last, e.plan.clone());
        let mut from = 0usize.runtime();
        while from < width {
            let count = min(width - from, e.panel);
            pack::<N>(meta, operands, b, n, from, count, &mut held.panel, e.clone());
            for m in t.from..t.to {
                let rows = places(meta, m * comptime![e.rows as u32], e.clone());
                if comptime![widens(&e)] {
                    widen_rows::<N>(operands, a + from, count, &rows, &mut held.near, e.clone());
                }
                let at = (m - t.from) as usize * tile;
                multiply::<N>(operands, a + from * a_step, a_step, count, &rows, held, at, e.clone());
            }
            from += e.panel;
        }
    }
}

/// Finishes the sums of a run's rows and the columns from `n` on.
#[cube]
fn leave<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    t: &Tile,
    n: usize,
    held: &Held<N>,
    #[comptime] e: Key<Einsum>,
) {
    let lanes = N::value();
    let size = meta[comptime![e.plan.kept - 1]] as usize;
    let first = t.from * comptime![e.rows as u32];
    let one = held.sums.as_slice().as_vectorized().with_vector_size::<Const<1>>();
    for r in 0..min((t.to - t.from) * comptime![e.rows as u32], meta[e.m] - first) {
        let here = seek(meta, &t.cursor, first + r, e.m, comptime![e.m + 1], e.plan.clone());
        for j in 0..e.cols {
            let (column, at) = (n + j * lanes, r as usize * e.cols + j);
            if column + lanes <= size {
                finish_here::<N>(meta, operands, results, &here, column, held.sums[at], e.clone());
            } else if comptime![e.n_tail] {
                for c in column..size {
                    let sum = one[at * lanes + c - column];
                    finish_here::<Const<1>>(meta, operands, results, &here, c, sum, e.clone());
                }
            }
        }
    }
}

/// Whether rows are widened before they are multiplied: a scalar of 16 bits would be widened for each vector.
fn widens(e: &Einsum) -> bool {
    let view = &e.plan.reads[e.a].view;
    view.slot.storage != Storage::F32 && view.lanes[e.plan.rank - 1] == Lane::One
}

/// Lays `count` elements along k, from element `from` of it on, of a panel's columns side by side: [k, columns], widened.
/// Columns past the end repeat the last.
#[cube]
fn pack<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    b: usize,
    n: usize,
    from: usize,
    count: usize,
    panel: &mut Array<Vector<f32, N>>,
    #[comptime] e: Key<Einsum>,
) {
    let lanes = N::value();
    let (inner, last) = comptime![(e.plan.kept - 1, e.plan.rank - 1)];
    let wide = comptime![e.cols * lanes];
    let size = meta[inner] as usize;
    let view = comptime![e.plan.reads[e.b].view.clone()];
    let slot = view.slot;
    let n_step = fixed(stride(meta, e.b, inner, e.plan.clone()), true);
    let k_step = stride(meta, e.b, last, e.plan.clone());
    let start = b + from * k_step;
    if comptime![view.lanes[inner] == Lane::One] {
        for j in 0..e.cols {
            let column = n + j * lanes;
            if column + lanes <= size {
                for i in 0..count {
                    panel[i * e.cols + j] =
                        read_float::<N>(operands, start + column + i * k_step, 1usize, slot, Lane::One);
                }
            } else {
                single::<N>(
                    operands,
                    start,
                    n_step,
                    k_step,
                    column,
                    lanes,
                    size,
                    j * lanes,
                    0usize,
                    count,
                    panel,
                    slot,
                    wide,
                );
            }
        }
    } else if comptime![view.lanes[last] == Lane::One] {
        let vectors = count / lanes;
        for v in 0..vectors {
            for j in 0..e.cols {
                let mut square = Array::<Vector<f32, N>>::new(lanes);
                #[unroll]
                for i in 0..lanes {
                    let column = min(n + j * lanes + i, size - 1);
                    square[i] = read_float::<N>(operands, start + column * n_step + v * lanes, 1usize, slot, Lane::One);
                }
                turn::<N>(&mut square);
                #[unroll]
                for i in 0..lanes {
                    panel[(v * lanes + i) * e.cols + j] = square[i];
                }
            }
        }
        single::<N>(operands, start, n_step, k_step, n, wide, size, 0usize, vectors * lanes, count, panel, slot, wide);
    } else {
        single::<N>(operands, start, n_step, k_step, n, wide, size, 0usize, 0usize, count, panel, slot, wide);
    }
}

/// The same, element by element: of the `columns` from column `n` on, which lie from lane `at` of the panel on, elements
/// `first..count` along k.
#[cube]
fn single<N: Size>(
    operands: &Buffers,
    start: usize,
    n_step: usize,
    k_step: usize,
    n: usize,
    columns: usize,
    size: usize,
    at: usize,
    first: usize,
    count: usize,
    panel: &mut Array<Vector<f32, N>>,
    #[comptime] slot: Slot,
    #[comptime] wide: usize,
) {
    let one = panel.as_mut_slice().as_vectorized_mut().with_vector_size_mut::<Const<1>>();
    for i in first..count {
        for j in 0..columns {
            let from = start + min(n + j, size - 1) * n_step + i * k_step;
            one[i * wide + at + j] = read_float::<Const<1>>(operands, from, 0usize, slot, Lane::Zero);
        }
    }
}

/// `count` elements along k of a tile's rows, widened: [rows, panel].
#[cube]
fn widen_rows<N: Size>(
    operands: &Buffers,
    a: usize,
    count: usize,
    rows: &Sequence<usize>,
    near: &mut Array<Vector<f32, N>>,
    #[comptime] e: Key<Einsum>,
) {
    let lanes = N::value();
    let slot = comptime![e.plan.reads[e.a].view.slot];
    let vectors = count / lanes;
    #[unroll]
    for r in 0..e.rows {
        let row = a + *rows.index(r);
        for v in 0..vectors {
            near[comptime![r * e.panel / lanes] + v] =
                read_float::<N>(operands, row + v * lanes, 1usize, slot, Lane::One);
        }
    }
    let one = near.as_mut_slice().as_vectorized_mut().with_vector_size_mut::<Const<1>>();
    for i in vectors * lanes..count {
        #[unroll]
        for r in 0..e.rows {
            one[comptime![r * e.panel] + i] =
                read_float::<Const<1>>(operands, a + *rows.index(r) + i, 0usize, slot, Lane::Zero);
        }
    }
}

/// Adds the products of a tile's rows with `count` vectors of the panel to its sums, which lie from `at` on.
#[allow(unused_assignments)]
#[cube]
fn multiply<N: Size>(
    operands: &Buffers,
    a: usize,
    a_step: usize,
    count: usize,
    rows: &Sequence<usize>,
    held: &mut Held<N>,
    at: usize,
    #[comptime] e: Key<Einsum>,
) {
    let slot = comptime![e.plan.reads[e.a].view.slot];
    let one = held.near.as_slice().as_vectorized().with_vector_size::<Const<1>>();
    let mut acc = Array::<Vector<f32, N>>::new(comptime![e.rows * e.cols]);
    #[unroll]
    for i in 0..comptime![e.rows * e.cols] {
        acc[i] = held.sums[at + i];
    }
    for i in 0..count {
        let mut y = Sequence::<Vector<f32, N>>::new();
        #[unroll]
        for j in 0..e.cols {
            y.push(held.panel[i * e.cols + j]);
        }
        #[unroll]
        for r in 0..e.rows {
            let mut x = 0.0f32;
            if comptime![widens(&e)] {
                x = one[comptime![r * e.panel] + i].extract(0usize);
            } else {
                x = read_float::<Const<1>>(operands, a + *rows.index(r) + i * a_step, 0usize, slot, Lane::Zero)
                    .extract(0usize);
            }
            #[unroll]
            for j in 0..e.cols {
                acc[comptime![r * e.cols + j]] = fma(Vector::new(x), *y.index(j), acc[comptime![r * e.cols + j]]);
            }
        }
    }
    #[unroll]
    for i in 0..comptime![e.rows * e.cols] {
        held.sums[at + i] = acc[i];
    }
}
