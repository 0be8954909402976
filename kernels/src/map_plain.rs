//! Maps of any shape: every pointwise group, copy, slice, gather, update and transpose.
//!
//! Implements  any nest without a fold
//! Schedule    CPU: `units` cores take turns at chunks of rows, `lanes` elements at a time; GPUs: `units` a cube, one element each,
//!             on CUDA 16 bytes each where all that is contiguous allows
//! Needs       fewer than 2^31 elements a buffer; as many bindings as the target has
//! Cost        each element read and written once: bandwidth-bound, or bound by `exp` and its like
//! Source      own

use cubecl::prelude::*;
use omchat_codegen::{Family, Implements, Kernel, Nest, Refusal, Schedule, Target, Work};
use omchat_ir::Dtype;

use crate::bind::Buffers;
use crate::body::evaluate;
use crate::chain::Stage;
use crate::grid::{address, cubes, looped, units};
use crate::horizontal::{Part, Side};
use crate::key::Key;
use crate::loops::{CHUNK, ITEMS, Loops, PARTS, Plan, addressable, whole, widest};
use crate::nest::{Cursor, deliver, item, look, origin, seek};
use crate::prepared::{Prepared, runner, unfit};
use crate::{Launch, LaunchError};

/// Elements that a core takes at a time: enough to hide what an item costs to start.
const BLOCK: usize = 8192;

/// Runs any map.
pub struct MapPlain;

impl Kernel for MapPlain {
    fn name(&self) -> &'static str {
        "map.plain"
    }

    fn implements(&self) -> Implements {
        Implements::Nest
    }

    fn chains(&self) -> bool {
        true
    }

    fn horizontal(&self) -> bool {
        true
    }

    fn schedules(&self, work: &Work, target: &Target) -> Result<Vec<Schedule>, Refusal> {
        let nest = nest_of(work)?;
        if nest.fold.is_some() {
            return Err(Refusal("the nest folds; this kernel only maps".into()));
        }
        fits(nest, target)?;
        let one = units(target, nest.points());
        let Some(lanes) = wide(nest, target) else { return Ok(vec![one]) };
        let wide = Schedule::new(&[("units", target.units), ("lanes", lanes), ("bits", 32)]);
        // Wide where there is work for every unit at once.
        let busy = nest.points() / lanes as usize >= target.cores as usize * target.units as usize;
        Ok(if busy { vec![wide, one] } else { vec![one, wide] })
    }

    fn turns(&self, work: &Work, _schedule: &Schedule) -> usize {
        // On a card a unit has one vector.
        nest_of(work).map_or(usize::MAX, |_| looped(1, 0))
    }
}

impl Launch for MapPlain {
    fn prepare(&self, work: &Work, schedule: &Schedule) -> Result<Prepared, LaunchError> {
        let nest = nest_of(work).map_err(unfit(self.name()))?;
        let loops = Loops::of(nest);
        let lanes = schedule.get("lanes") as usize;
        let gpu = schedule.get("bits") == 32;
        let chunk = if gpu { lanes } else { loops.size(loops.inner()).min(BLOCK) };
        let (plan, words, ins, outs) = loops.plan_whole(loops.inner(), lanes, Some(chunk), if gpu { lanes } else { 1 });
        let items = words[plan.rank + ITEMS];
        let (cubes, units) = cubes(items, schedule);
        let (bits, stage) = (address(schedule), plan.clone());
        let prepared = Prepared::new(
            words,
            ins,
            outs,
            cubes,
            units,
            runner!(|b| map_plain, bits, lanes, b.meta, b.operands, b.results, plan.clone()),
        );
        Ok(if gpu {
            prepared.beside(Side { part: Part::Map(stage), lanes })
        } else {
            prepared.staged(Stage::Map(stage), lanes)
        })
    }
}

/// Elements that a unit may take on CUDA: 16 bytes of the widest element, if rows hold whole vectors and each view is
/// contiguous or the same along them.
fn wide(nest: &Nest, target: &Target) -> Option<u32> {
    let bytes =
        nest.reads.iter().map(|r| r.dtype).chain(nest.writes.iter().map(|w| w.dtype)).map(Dtype::bytes).max()?;
    let lanes = 16 / bytes;
    let loops = Loops::of(nest);
    let (n, inner) = (&loops.nest, loops.inner());
    let reads = n.reads.iter().all(|r| {
        let (ids, step) = r.at.as_ref().map_or((0, 0), |at| (at.strides[inner], at.stride));
        let near = r.strides[inner] == 1 && ids == 0 && whole(r.offset, &r.strides, step, inner, lanes);
        r.strides[inner] == 0 || near
    });
    let writes = n.writes.iter().all(|w| {
        let step = w.at.as_ref().map_or(0, |at| at.stride);
        w.strides[inner] == 1 && whole(w.offset, &w.strides, step, inner, lanes)
    });
    let fits = target.family == Family::Cuda && loops.size(inner).is_multiple_of(lanes);
    (fits && reads && writes).then_some(lanes as u32)
}

/// The nest of a work.
pub(crate) fn nest_of(work: &Work) -> Result<&Nest, Refusal> {
    match work {
        Work::Nest(nest) => Ok(nest),
        _ => Err(Refusal("this kernel runs loop nests".into())),
    }
}

/// Refuses what no kernel can address there.
pub(crate) fn fits(nest: &Nest, target: &Target) -> Result<(), Refusal> {
    addressable(nest)?;
    let lacking = |d: &Dtype| !target.holds(*d);
    if let Some(d) = nest.reads.iter().map(|r| r.dtype).find(|d| !target.reads(*d)) {
        return Err(Refusal(format!("{} reads no {d}", target.name)));
    }
    if let Some(d) = nest.writes.iter().map(|w| w.dtype).find(lacking) {
        return Err(Refusal(format!("{} writes no {d}", target.name)));
    }
    let bytes = widest(nest);
    if bytes > target.max_binding_bytes {
        return Err(Refusal(format!(
            "needs a binding of {bytes} bytes, {} has {}",
            target.name, target.max_binding_bytes
        )));
    }
    Ok(())
}

#[cube(launch_unchecked, create_dummy_kernel, address_type = "dynamic")]
fn map_plain<N: Size>(meta: &[u32], operands: &Buffers, results: &mut Buffers, #[comptime] plan: Key<Plan>) {
    let item = item(comptime![!plan.single]);
    chunk::<N>(meta, operands, results, item, plan);
}

/// Items that there are.
#[cube]
pub(crate) fn items(meta: &[u32], #[comptime] plan: Key<Plan>) -> u32 {
    meta[comptime![plan.rank + ITEMS]]
}

/// An item: a vector, or a chunk of a row.
#[cube]
pub(crate) fn chunk<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    item: u32,
    #[comptime] plan: Key<Plan>,
) {
    let rank = comptime![plan.rank];
    if item < items(meta, plan.clone()) {
        let inner = comptime![plan.kept - 1];
        let parts = meta[comptime![rank + PARTS]];
        let start = origin(meta, operands, plan.clone());
        let c = seek(meta, &start, item / parts, 0usize, inner, plan.clone());
        let begin = ((item % parts) * meta[comptime![rank + CHUNK]]) as usize;
        if comptime![plan.single] {
            point::<N>(meta, operands, results, &c, begin, plan.clone());
        } else {
            let end = min(begin + meta[comptime![rank + CHUNK]] as usize, meta[inner] as usize);
            let vectors = (end - begin) / N::value();
            for j in 0..vectors {
                point::<N>(meta, operands, results, &c, begin + j * N::value(), plan.clone());
            }
            if comptime![plan.tail] {
                for i in begin + vectors * N::value()..end {
                    point::<Const<1>>(meta, operands, results, &c, i, plan.clone());
                }
            }
        }
    }
}

#[cube]
fn point<N: Size>(
    meta: &[u32],
    operands: &Buffers,
    results: &mut Buffers,
    c: &Cursor,
    i: usize,
    #[comptime] plan: Key<Plan>,
) {
    let along = comptime![plan.kept - 1];
    let x = look::<N>(meta, operands, c, i, along, comptime![plan.body.clone()], plan.clone());
    let v = evaluate::<N>(&x, comptime![plan.body.clone()]);
    deliver::<N>(meta, results, c, i, &v, along, comptime![plan.body.clone()], plan.clone());
}
