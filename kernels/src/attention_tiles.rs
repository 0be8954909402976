//! What the CPU's attention kernels are made of: tiles packed by rows or on their side, and the two products of a
//! block's rows with a tile. Every sum stays in the lanes; `STEP` rows share each load.

use cubecl::prelude::*;
use omchat_codegen::{Family, Refusal, Schedule, Target};

use crate::bind::{Buffers, Slot};
use crate::vector::{Lane, across, read_float, write_float};
use crate::words::{prefetch, turn};

/// Rows that one step of the micro-kernels works on.
pub(crate) const STEP: usize = 4;
/// Columns of a tile.
pub(crate) const TILE: usize = 64;

/// The sizes of a head and of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Width of a head.
    pub(crate) d: usize,
    /// Vectors that hold it.
    pub(crate) dv: usize,
    /// Columns of a tile.
    pub(crate) tile: usize,
    /// Vectors that hold them.
    pub(crate) tv: usize,
    pub(crate) lanes: usize,
    /// Whether keys and values are read where they lie: queries are so few that packing costs more than it gains.
    pub(crate) in_place: bool,
}

impl Shape {
    pub(crate) fn new(d: usize, tile: usize, lanes: usize) -> Shape {
        Shape { d, dv: d.div_ceil(lanes), tile, tv: tile / lanes, lanes, in_place: false }
    }
}

/// A row of D elements, widened and scaled, as whole vectors with zeros behind.
#[cube]
pub(crate) fn pack_row<N: Size>(
    operands: &Buffers,
    from: usize,
    to: &mut Array<Vector<f32, N>>,
    row: usize,
    scale: f32,
    #[comptime] slot: Slot,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for j in 0..shape.dv {
        to[row * shape.dv + j] = part_of_row::<N>(operands, from, j, slot, shape) * Vector::new(scale);
    }
}

/// Vector `j` of a row of D elements, widened, with zeros behind.
#[cube]
fn part_of_row<N: Size>(
    operands: &Buffers,
    from: usize,
    #[comptime] j: usize,
    #[comptime] slot: Slot,
    #[comptime] shape: Shape,
) -> Vector<f32, N> {
    let at = from + comptime![j * shape.lanes];
    let mut value = Vector::<f32, N>::new(0.0f32);
    if comptime![(j + 1) * shape.lanes <= shape.d] {
        value = read_float::<N>(operands, at, 1usize, slot, Lane::One);
    } else {
        #[unroll]
        for l in 0..comptime![shape.d - j * shape.lanes] {
            value.insert(l, read_float::<Const<1>>(operands, at + l, 0usize, slot, Lane::Zero).extract(0usize));
        }
    }
    value
}

/// Asks for a row of D elements, which need not exist.
#[cube]
fn ask_row(operands: &Buffers, from: usize, #[comptime] slot: Slot, #[comptime] shape: Shape) {
    #[unroll]
    for j in 0..shape.dv {
        prefetch(operands, from + comptime![j * shape.lanes], slot);
    }
}

/// `count` rows of a tile, and zeros where they end.
#[cube]
pub(crate) fn pack_rows<N: Size>(
    operands: &Buffers,
    from: usize,
    count: usize,
    to: &mut Array<Vector<f32, N>>,
    #[comptime] slot: Slot,
    #[comptime] shape: Shape,
) {
    for s in 0..shape.tile {
        if s < count {
            pack_row::<N>(operands, from + s * shape.d, to, s, f32::cast_from(1.0f32), slot, shape);
        } else {
            #[unroll]
            for j in 0..shape.dv {
                to[s * shape.dv + j] = Vector::new(0.0f32);
            }
        }
    }
}

/// The same rows on their side, [D, tile]: products with `tile` rows are then vectors.
#[cube]
pub(crate) fn pack_side<N: Size>(
    operands: &Buffers,
    from: usize,
    count: usize,
    to: &mut Array<Vector<f32, N>>,
    #[comptime] slot: Slot,
    #[comptime] shape: Shape,
) {
    // Columns that fill vectors are turned in registers, as many rows at a time as a vector holds.
    let whole = comptime![shape.d / shape.lanes];
    for v in 0..shape.tv {
        let row = v * shape.lanes;
        let mut done = 0usize.runtime();
        if row + shape.lanes <= count {
            for j in 0..whole {
                let mut square = Array::<Vector<f32, N>>::new(shape.lanes);
                #[unroll]
                for i in 0..shape.lanes {
                    let at = from + (row + i) * shape.d + j * shape.lanes;
                    square[i] = read_float::<N>(operands, at, 1usize, slot, Lane::One);
                }
                turn::<N>(&mut square);
                #[unroll]
                for i in 0..shape.lanes {
                    to[(j * shape.lanes + i) * shape.tv + v] = square[i];
                }
            }
            done = comptime![whole * shape.lanes].runtime();
        }
        let one = to.as_mut_slice().as_vectorized_mut().with_vector_size_mut::<Const<1>>();
        for s in row..row + shape.lanes {
            for d in done..shape.d {
                if s < count {
                    one[d * shape.tile + s] =
                        read_float::<Const<1>>(operands, from + s * shape.d + d, 0usize, slot, Lane::Zero);
                } else {
                    one[d * shape.tile + s] = Vector::new(0.0f32);
                }
            }
        }
    }
}

/// Rows `row..row + STEP` of a block times every column of a tile on its side: [STEP, tile].
#[cube]
pub(crate) fn product<N: Size>(
    rows: &Array<Vector<f32, N>>,
    side: &Array<Vector<f32, N>>,
    row: usize,
    out: &mut Array<Vector<f32, N>>,
    #[comptime] shape: Shape,
) {
    let x = rows.as_slice().as_vectorized().with_vector_size::<Const<1>>();
    let mut acc = Array::<Vector<f32, N>>::new(comptime![STEP * shape.tv]);
    #[unroll]
    for i in 0..comptime![STEP * shape.tv] {
        acc[i] = Vector::new(0.0f32);
    }
    let from = row * comptime![shape.dv * shape.lanes];
    for d in 0..shape.d {
        #[unroll]
        for c in 0..shape.tv {
            let k = side[d * shape.tv + c];
            #[unroll]
            for r in 0..STEP {
                let x = x[from + comptime![r * shape.dv * shape.lanes] + d].extract(0usize);
                acc[comptime![r * shape.tv + c]] = fma(Vector::new(x), k, acc[comptime![r * shape.tv + c]]);
            }
        }
    }
    #[unroll]
    for i in 0..comptime![STEP * shape.tv] {
        out[i] = acc[i];
    }
}

/// Rows `row..row + STEP` of a block times `count` rows of a tile that are read where they lie, and zeros where they end:
/// [STEP, tile]. Sums across lanes cost few rows less than turning the tile on its side. Rows from `next` on are asked for
/// meanwhile.
#[cube]
pub(crate) fn product_in_place<N: Size>(
    operands: &Buffers,
    from: usize,
    next: usize,
    count: usize,
    rows: &Array<Vector<f32, N>>,
    row: usize,
    out: &mut Array<Vector<f32, N>>,
    #[comptime] slot: Slot,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for i in 0..comptime![STEP * shape.tv] {
        out[i] = Vector::new(0.0f32);
    }
    let one = out.as_mut_slice().as_vectorized_mut().with_vector_size_mut::<Const<1>>();
    for s in 0..count {
        ask_row(operands, next + s * shape.d, slot, shape);
        let mut acc = Array::<Vector<f32, N>>::new(STEP);
        #[unroll]
        for r in 0..STEP {
            acc[r] = Vector::new(0.0f32);
        }
        #[unroll]
        for j in 0..shape.dv {
            let x = part_of_row::<N>(operands, from + s * shape.d, j, slot, shape);
            #[unroll]
            for r in 0..STEP {
                acc[r] = fma(rows[(row + r) * shape.dv + j], x, acc[r]);
            }
        }
        #[unroll]
        for r in 0..STEP {
            one[comptime![r * shape.tile] + s] = Vector::new(across::<N>(acc[r], false));
        }
    }
}

/// Adds a tile's rows, each weighed, to rows `row..row + STEP` of a block.
#[cube]
pub(crate) fn add_weighed<N: Size>(
    sum: &mut Array<Vector<f32, N>>,
    weights: &Array<Vector<f32, N>>,
    rows: &Array<Vector<f32, N>>,
    row: usize,
    #[comptime] shape: Shape,
) {
    let w = weights.as_slice().as_vectorized().with_vector_size::<Const<1>>();
    #[unroll]
    for part in 0..comptime![shape.dv.div_ceil(columns(shape.dv))] {
        let from = comptime![part * columns(shape.dv)];
        let width = comptime![columns(shape.dv).min(shape.dv - from)];
        let mut acc = Array::<Vector<f32, N>>::new(comptime![STEP * width]);
        #[unroll]
        for r in 0..STEP {
            #[unroll]
            for j in 0..width {
                acc[comptime![r * width + j]] = sum[(row + r) * shape.dv + comptime![from + j]];
            }
        }
        for s in 0..shape.tile {
            #[unroll]
            for j in 0..width {
                let v = rows[s * shape.dv + comptime![from + j]];
                #[unroll]
                for r in 0..STEP {
                    let x = w[comptime![r * shape.tile] + s].extract(0usize);
                    acc[comptime![r * width + j]] = fma(Vector::new(x), v, acc[comptime![r * width + j]]);
                }
            }
        }
        #[unroll]
        for r in 0..STEP {
            #[unroll]
            for j in 0..width {
                sum[(row + r) * shape.dv + comptime![from + j]] = acc[comptime![r * width + j]];
            }
        }
    }
}

/// The same of `count` rows that are read where they lie; rows from `next` on are asked for meanwhile. The sums stay in the
/// nearest cache: they are stored again long before the next row has come.
#[cube]
pub(crate) fn add_weighed_in_place<N: Size>(
    operands: &Buffers,
    at: usize,
    next: usize,
    count: usize,
    sum: &mut Array<Vector<f32, N>>,
    weights: &Array<Vector<f32, N>>,
    row: usize,
    #[comptime] slot: Slot,
    #[comptime] shape: Shape,
) {
    let w = weights.as_slice().as_vectorized().with_vector_size::<Const<1>>();
    for s in 0..count {
        ask_row(operands, next + s * shape.d, slot, shape);
        #[unroll]
        for j in 0..shape.dv {
            let v = part_of_row::<N>(operands, at + s * shape.d, j, slot, shape);
            #[unroll]
            for r in 0..STEP {
                let x = w[comptime![r * shape.tile] + s].extract(0usize);
                let to = (row + r) * shape.dv + j;
                sum[to] = fma(Vector::new(x), v, sum[to]);
            }
        }
    }
}

/// A block's row, scaled, to a result of D elements from `to` on.
#[cube]
pub(crate) fn write_row<N: Size>(
    results: &mut Buffers,
    to: usize,
    rows: &Array<Vector<f32, N>>,
    row: usize,
    scale: f32,
    #[comptime] slot: Slot,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for j in 0..shape.dv {
        let value = rows[row * shape.dv + j] * Vector::new(scale);
        let at = to + comptime![j * shape.lanes];
        if comptime![(j + 1) * shape.lanes <= shape.d] {
            write_float::<N>(results, at, 1usize, value, slot, Lane::One);
        } else {
            #[unroll]
            for l in 0..comptime![shape.d - j * shape.lanes] {
                write_float::<Const<1>>(results, at + l, 1usize, Vector::new(value.extract(l)), slot, Lane::One);
            }
        }
    }
}

/// Vectors of a head that are summed at once: with `STEP` rows they must fit the registers.
pub(crate) fn columns(dv: usize) -> usize {
    if dv <= 5 { dv } else { 4 }
}

/// The schedule of a backward kernel on the CPU for that many rows of that many heads.
pub(crate) fn tiled(target: &Target, d: usize, heads: usize, rows: usize) -> Result<Schedule, Refusal> {
    if target.family != Family::Cpu {
        return Err(Refusal(format!("needs the CPU runtime's local arrays; {} is not one", target.name)));
    }
    if d > 512 {
        return Err(Refusal(format!("a head may be 512 wide, is {d}")));
    }
    let rows = block(heads, rows, target.cores as usize, 128);
    let lanes = target.lanes as u32;
    Ok(Schedule::new(&[
        ("bits", 64),
        ("units", target.cores),
        ("lanes", lanes),
        ("tile", TILE as u32),
        ("rows", rows as u32),
    ]))
}

/// Rows a block: about `most` or an even share, so that a tile is packed for many; but enough blocks to keep every core busy.
pub(crate) fn block(heads: usize, rows: usize, cores: usize, most: usize) -> usize {
    // As many blocks as come closest to that size, so that none is left nearly empty.
    let even = |size: usize| rows.div_ceil(((rows + size / 2) / size).max(1)).next_multiple_of(STEP);
    let busy = |block: usize| heads * rows.div_ceil(block) >= 4 * cores;
    let sizes = [256, 128, 64, 16].into_iter().filter(|size| *size <= most && *size <= rows);
    let fits = sizes.map(even).find(|block| busy(*block));
    fits.unwrap_or(if rows > STEP { 16 } else { STEP })
}
