//! Folds of any shape: every reduction and every einsum, with what comes before and after fused in.
//!
//! Implements  any nest with a fold
//! Schedule    CPU: `units` cores, `lanes` along the folded or the kept axis, whichever loads neighbours; GPUs: a unit a result
//! Needs       fewer than 2^31 elements a buffer; as many bindings as the target has
//! Cost        each operand is read once a point: right for reductions, slow for large einsums
//! Source      own

use cubecl::prelude::*;
use omchat_codegen::{Fold, Implements, Kernel, Kind, Refusal, Schedule, Target, Work};

use crate::bind::Buffers;
use crate::body::evaluate;
use crate::grid::{address, cubes, looped, units};
use crate::key::Key;
use crate::loops::{CHUNK, ITEMS, Loops, PARTS, Plan};
use crate::map_plain::{fits, nest_of};
use crate::nest::{Cursor, deliver, depth, item, lanes, look, origin, seek};
use crate::prepared::{Prepared, runner, unfit};
use crate::vector::across;
use crate::{Launch, LaunchError};

/// The largest of nothing.
const LOWEST: f32 = -1e30;

/// Vectors of neighbouring results that an item folds in one walk: what a row has of them lies in a few lines side by side.
const BESIDE: usize = 4;

/// Runs any fold.
pub struct FoldPlain;

impl Kernel for FoldPlain {
    fn name(&self) -> &'static str {
        "fold.plain"
    }

    fn implements(&self) -> Implements {
        Implements::Nest
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let nest = nest_of(work)?;
        if nest.fold.is_none() {
            return Err(Refusal("the nest does not fold".into()));
        }
        fits(nest, target)?;
        Ok(vec![units(target, nest.points().saturating_mul(nest.depth()))])
    }

    fn turns(&self, work: &Work, _schedule: &Schedule) -> usize {
        nest_of(work).map_or(usize::MAX, |nest| {
            let width = nest.folded.last().map_or(1, |&n| n.max(1));
            looped(1, looped(nest.depth() / width, looped(width, 0)))
        })
    }
}

impl Launch for FoldPlain {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let nest = nest_of(work).map_err(unfit(self.name()))?;
        let loops = Loops::of(nest);
        let (kept, folded) = (loops.inner(), loops.nest.kept.len() + loops.nest.folded.len() - 1);
        let most = schedule.get("lanes") as usize;
        let across = most > 1 && loops.cost_along(folded, most) <= loops.cost_along(kept, most);
        let (along, lanes) = if across { (folded, most) } else { (kept, most) };
        // Lanes along the folded axis: an item is one result. Along a kept axis: a few vectors of results.
        let chunk = if across || most == 1 { 1 } else { most * BESIDE };
        let (plan, words, ins, outs) = loops.plan(along, lanes, Some(chunk));
        let (cubes, units) = cubes(words[plan.rank + ITEMS], schedule);
        let bits = address(schedule);
        Ok(Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| fold_plain, bits, lanes, b.meta, b.operands, b.results, plan.clone()),
        ))
    }
}

/// What a fold holds, in both kinds; the unused ones vanish.
#[derive(CubeType)]
pub(crate) struct Held<N: Size> {
    pub(crate) float: Vector<f32, N>,
    pub(crate) int: Vector<i32, N>,
    /// Where the largest was found.
    pub(crate) place: Vector<i32, N>,
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn fold_plain<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Key<Plan>) {
    let item = item(comptime![!plan.single]);
    let rank = comptime![plan.rank];
    if item < meta[comptime![rank + ITEMS]] {
        let inner = comptime![plan.kept - 1];
        let parts = meta[comptime![rank + PARTS]];
        let start = origin(meta, operands, plan.clone());
        let c = seek(meta, &start, item / parts, 0usize, inner, plan.clone());
        let begin = ((item % parts) * meta[comptime![rank + CHUNK]]) as usize;
        if comptime![plan.single] {
            beside::<Const<1>>(meta, operands, results, &c, begin, 1usize, plan.clone());
        } else if comptime![plan.along >= plan.kept] {
            along::<N>(meta, operands, results, &c, begin, plan.clone());
        } else {
            let end = min(begin + meta[comptime![rank + CHUNK]] as usize, meta[inner] as usize);
            let vectors = (end - begin) / N::value();
            if vectors == BESIDE {
                beside::<N>(meta, operands, results, &c, begin, BESIDE, plan.clone());
            } else {
                for j in 0..vectors {
                    beside::<N>(meta, operands, results, &c, begin + j * N::value(), 1usize, plan.clone());
                }
            }
            if comptime![plan.tail] {
                for i in begin + vectors * N::value()..end {
                    beside::<Const<1>>(meta, operands, results, &c, i, 1usize, plan.clone());
                }
            }
        }
    }
}

/// Lanes are neighbouring results; each folds by itself. So many vectors of them go down the rows in one walk.
#[cube]
// What is not bound by `mut` stays the constants that it starts as.
#[allow(unused_mut)]
fn beside<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    c: &Cursor,
    i: usize,
    #[comptime] many: usize,
    #[comptime] plan: Key<Plan>,
) {
    let mut held = Sequence::<Held<N>>::new();
    #[unroll]
    for _ in 0..many {
        let mut one = nothing::<N>(plan.clone());
        held.push(one);
    }
    let last = comptime![plan.rank - 1];
    let width = meta[last];
    for row in 0..depth(meta, plan.clone()) {
        let outer = seek(meta, c, row, comptime![plan.kept], last, plan.clone());
        for f in 0..width {
            let here = seek(meta, &outer, f, last, comptime![plan.rank], plan.clone());
            #[unroll]
            for j in 0..many {
                let at = i + j * N::value();
                point::<N>(meta, operands, &here, held.index_mut(j), at, row * width + f, plan.clone());
            }
        }
    }
    #[unroll]
    for j in 0..many {
        finish::<N>(meta, operands, results, c, i + j * N::value(), held.index(j), plan.clone());
    }
}

/// Folds in what neighbouring results have at a place of the folded axes.
#[cube]
fn point<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    here: &Cursor,
    held: &mut Held<N>,
    i: usize,
    place: u32,
    #[comptime] plan: Key<Plan>,
) {
    let inner = comptime![plan.kept - 1];
    let x = look::<N>(meta, operands, here, i, inner, comptime![plan.body.clone()], plan.clone());
    let v = evaluate::<N>(&x, comptime![plan.body.clone()]);
    let result = comptime![plan.body.results[0]];
    let place = Vector::new(place as i32);
    take::<N>(held, *v.float.index(result), *v.int.index(result), place, plan.clone());
}

/// What neighbouring results hold of a part of each row.
#[cube]
pub(crate) fn column<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    c: &Cursor,
    i: usize,
    part: u32,
    #[comptime] parts: usize,
    #[comptime] plan: Key<Plan>,
) -> Held<N> {
    let mut held = nothing::<N>(plan.clone());
    let last = comptime![plan.rank - 1];
    let width = meta[last];
    let mut from = 0u32.runtime();
    let mut to = width;
    if comptime![parts > 1] {
        let each = width.div_ceil(comptime![parts as u32]);
        from = min(part * each, width);
        to = min(from + each, width);
    }
    for row in 0..depth(meta, plan.clone()) {
        let outer = seek(meta, c, row, comptime![plan.kept], last, plan.clone());
        for f in from..to {
            let here = seek(meta, &outer, f, last, comptime![plan.rank], plan.clone());
            point::<N>(meta, operands, &here, &mut held, i, row * width + f, plan.clone());
        }
    }
    held
}

/// Lanes are neighbours along the innermost folded axis; they meet at the end.
#[cube]
fn along<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    c: &Cursor,
    i: usize,
    #[comptime] plan: Key<Plan>,
) {
    let mut held = nothing::<N>(plan.clone());
    let mut rest = nothing::<Const<1>>(plan.clone());
    let last = comptime![plan.rank - 1];
    let width = meta[last];
    let vectors = width / comptime_lanes::<N>();
    // The kept axis that items run along is the last not yet placed.
    let point = seek(meta, c, i as u32, comptime![plan.kept - 1], comptime![plan.kept], plan.clone());
    for row in 0..depth(meta, plan.clone()) {
        let outer = seek(meta, &point, row, comptime![plan.kept], last, plan.clone());
        for j in 0..vectors {
            let f = j * comptime_lanes::<N>();
            let x = look::<N>(meta, operands, &outer, f as usize, last, comptime![plan.body.clone()], plan.clone());
            let v = evaluate::<N>(&x, comptime![plan.body.clone()]);
            let result = comptime![plan.body.results[0]];
            let place = Vector::new((row * width + f) as i32) + lanes::<N>();
            take::<N>(&mut held, *v.float.index(result), *v.int.index(result), place, plan.clone());
        }
        if comptime![plan.tail] {
            for f in vectors * comptime_lanes::<N>()..width {
                let x = look::<Const<1>>(
                    meta,
                    operands,
                    &outer,
                    f as usize,
                    last,
                    comptime![plan.body.clone()],
                    plan.clone(),
                );
                let v = evaluate::<Const<1>>(&x, comptime![plan.body.clone()]);
                let result = comptime![plan.body.results[0]];
                take::<Const<1>>(
                    &mut rest,
                    *v.float.index(result),
                    *v.int.index(result),
                    Vector::new((row * width + f) as i32),
                    plan.clone(),
                );
            }
        }
    }
    meet::<N>(&held, &mut rest, plan.clone());
    finish::<Const<1>>(meta, operands, results, c, i, &rest, plan.clone());
}

#[cube]
pub(crate) fn comptime_lanes<N: Size>() -> u32 {
    let n = N::value();
    comptime![n as u32].runtime()
}

#[cube]
pub(crate) fn nothing<N: Size>(#[comptime] plan: Key<Plan>) -> Held<N> {
    let mut float = Vector::<f32, N>::new(0.0f32);
    let mut int = Vector::<i32, N>::new(0i32);
    if comptime![plan.fold == Some(Fold::Max)] {
        float = Vector::new(LOWEST);
        int = Vector::new(comptime![i32::MIN].runtime());
    } else if comptime![plan.fold == Some(Fold::ArgMax)] {
        float = Vector::new(comptime![f32::MIN].runtime());
        int = Vector::new(comptime![i32::MIN].runtime());
    }
    Held::<N> { float, int, place: Vector::new(comptime![i32::MAX].runtime()) }
}

/// Folds one more value in.
#[cube]
pub(crate) fn take<N: Size>(
    held: &mut Held<N>,
    float: Vector<f32, N>,
    int: Vector<i32, N>,
    place: Vector<i32, N>,
    #[comptime] plan: Key<Plan>,
) {
    let is_float = comptime![body_kind(&plan) == Kind::Float];
    if comptime![plan.fold == Some(Fold::Sum)] {
        if is_float {
            held.float += float;
        } else {
            held.int += int;
        }
    } else if comptime![plan.fold == Some(Fold::Max)] {
        if is_float {
            held.float = max(held.float, float);
        } else {
            held.int = max(held.int, int);
        }
    } else {
        // The first of equals: a lane meets its places in order, lanes do not.
        let earlier = place.less_than(&held.place);
        if is_float {
            let better = float.greater_than(&held.float).or(float.equal(&held.float).vec_and(earlier));
            held.float = select_many(better, float, held.float);
            held.place = select_many(better, place, held.place);
        } else {
            let better = int.greater_than(&held.int).or(int.equal(&held.int).vec_and(earlier));
            held.int = select_many(better, int, held.int);
            held.place = select_many(better, place, held.place);
        }
    }
}

/// Folds the lanes into one.
#[cube]
pub(crate) fn meet<N: Size>(held: &Held<N>, into: &mut Held<Const<1>>, #[comptime] plan: Key<Plan>) {
    let is_float = comptime![body_kind(&plan) == Kind::Float];
    if comptime![is_float && plan.fold != Some(Fold::ArgMax)] {
        let all = across::<N>(held.float, comptime![plan.fold == Some(Fold::Max)]);
        take::<Const<1>>(into, Vector::new(all), Vector::new(0i32), Vector::new(0i32), plan.clone());
    } else {
        #[unroll]
        for l in 0..N::value() {
            take::<Const<1>>(
                into,
                Vector::new(held.float.extract(l)),
                Vector::new(held.int.extract(l)),
                Vector::new(held.place.extract(l)),
                plan.clone(),
            );
        }
    }
}

/// Runs the epilogue on what was folded, and writes.
#[cube]
pub(crate) fn finish<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    c: &Cursor,
    i: usize,
    held: &Held<N>,
    #[comptime] plan: Key<Plan>,
) {
    let inner = comptime![plan.kept - 1];
    let mut x = look::<N>(meta, operands, c, i, inner, comptime![plan.epilogue.clone()], plan.clone());
    x.folded_float = held.float;
    x.folded_int = held.int;
    if comptime![plan.fold == Some(Fold::ArgMax)] {
        // Nothing but NaN, or nothing at all: the first place.
        x.folded_int =
            select_many(held.place.equal(&Vector::new(comptime![i32::MAX].runtime())), Vector::new(0i32), held.place);
    }
    let v = evaluate::<N>(&x, comptime![plan.epilogue.clone()]);
    deliver::<N>(meta, results, c, i, &v, inner, comptime![plan.epilogue.clone()], plan.clone());
}

pub(crate) fn body_kind(plan: &Plan) -> Kind {
    plan.body.results.first().map_or(Kind::Float, |&r| plan.body.kind(r))
}
