//! Horizontal fusion: which launches a GPU is given side by side.
//!
//! The products that make a token's queries, keys and values read the same row, and wait for each other for no reason but
//! their order; each alone leaves most of the device's memory idle at its begin and its end. What is little, of one kernel and
//! independent is moved together, and is one launch where that repeats, as the layers of a decode do.

use crate::program::{Chosen, LaunchPlan};
use crate::target::Family;
use crate::{Amount, Context, Work};
use std::collections::HashMap;
use std::ops::Range;

/// Repetitions that are worth a kernel of their own.
pub(crate) const TIMES: usize = 8;
/// Most bytes that a launch writes: what writes more fills a device by itself, and is not kept in memory longer for this.
const LITTLE: u64 = 1 << 20;
/// Launches ahead among which others are looked for.
const FAR: usize = 16;
/// Most launches side by side.
const MOST: usize = 8;

/// Moves launches that can be made side by side together, and yields their ranges in order; none but on a GPU.
pub(crate) fn horizontals(launches: &mut [LaunchPlan], chosen: &[Chosen], context: &Context) -> Vec<Range<usize>> {
    if context.target.family == Family::Cpu || context.ranks > 1 {
        return vec![];
    }
    let little = |c: &Chosen| Amount::of(&c.work).is_ok_and(|a| a.written <= LITTLE);
    let fits: Vec<bool> = chosen.iter().map(|c| joins(c, context) && little(c)).collect();
    let binds = |l: &LaunchPlan| chosen[l.chosen].work.bindings() + 1 - Work::OVERHEAD;
    let mut out = vec![];
    let mut at = 0;
    while at < launches.len() {
        let mut end = at + 1;
        let mut bound = binds(&launches[at]) + 1;
        let far = if fits[launches[at].chosen] { launches.len().min(at + FAR) } else { end };
        for next in at + 1..far {
            let (l, more) = (&launches[next], bound + binds(&launches[next]));
            let free = || launches[at..next].iter().all(|before| apart(before, l));
            let alike = alike(&chosen[launches[at].chosen], &chosen[l.chosen]);
            if end - at < MOST && more <= context.target.max_bindings && alike && fits[l.chosen] && free() {
                launches[end..=next].rotate_right(1);
                (end, bound) = (end + 1, more);
            }
        }
        if end > at + 1 {
            out.push(at..end);
        }
        at = end;
    }
    let of = |r: &Range<usize>| launches[r.clone()].iter().map(|l| l.chosen).collect::<Vec<_>>();
    let mut times: HashMap<Vec<usize>, usize> = HashMap::new();
    out.iter().for_each(|r| *times.entry(of(r)).or_default() += 1);
    out.retain(|r| times[&of(r)] >= TIMES);
    out
}

/// Whether a launch of it can stand beside others.
pub(crate) fn joins(c: &Chosen, context: &Context) -> bool {
    c.scratch == 0 && context.kernels.iter().any(|k| k.name() == c.kernel && k.horizontal())
}

/// Whether cubes of both can be cubes of one launch.
fn alike(a: &Chosen, b: &Chosen) -> bool {
    a.kernel == b.kernel && ["units", "lanes", "bits"].iter().all(|word| a.schedule.get(word) == b.schedule.get(word))
}

/// Whether neither touches what the other writes.
fn apart(a: &LaunchPlan, b: &LaunchPlan) -> bool {
    let meets =
        |a: &LaunchPlan, b: &LaunchPlan| a.results.iter().chain(&a.scratch).any(|w| b.buffers().any(|x| x == *w));
    !meets(a, b) && !meets(b, a)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{apart, horizontals};
    use crate::program::{By, Chosen, LaunchPlan};
    use crate::{Body, Context, Implements, Kernel, Kind, Nest, Read, Refusal, Schedule, Step, Target, Work, Write};
    use omchat_ir::Dtype;

    /// Maps, which may stand side by side.
    struct Maps;

    impl Kernel for Maps {
        fn name(&self) -> &'static str {
            "maps"
        }

        fn implements(&self) -> Implements {
            Implements::Nest
        }

        fn schedules(&self, _: &Work, _: &Target) -> Result<Vec<Schedule>, Refusal> {
            Ok(vec![])
        }

        fn horizontal(&self) -> bool {
            true
        }
    }

    /// A copy of so many floats, by so many units a cube.
    fn copy(elements: usize, units: u32) -> Chosen {
        let mut body = Body::default();
        let step = body.push(Step::Read { read: 0, kind: Kind::Float });
        body.results = vec![step];
        let work = Work::Nest(Nest {
            kept: vec![elements],
            folded: vec![],
            fold: None,
            reads: vec![Read { operand: 0, dtype: Dtype::F32, offset: 0, strides: vec![1], at: None }],
            body,
            epilogue: Body::default(),
            writes: vec![Write { result: 0, dtype: Dtype::F32, offset: 0, strides: vec![1], at: None }],
        });
        let schedule = Schedule::new(&[("units", units)]);
        Chosen { kernel: "maps", work, schedule, scratch: 0, refusals: vec![], by: By::List }
    }

    fn launch((chosen, from, to): (usize, usize, usize)) -> LaunchPlan {
        LaunchPlan { chosen, operands: vec![from], results: vec![to], scratch: None, label: String::new() }
    }

    /// Choices: a small copy, one by other units, one that writes 2 MiB.
    fn planned(launches: &mut [LaunchPlan], target: &Target) -> Vec<std::ops::Range<usize>> {
        let context = Context { target, kernels: &[&Maps], tuned: None, ranks: 1 };
        horizontals(launches, &[copy(64, 256), copy(64, 128), copy(1 << 19, 256)], &context)
    }

    #[test]
    fn what_is_independent_alike_and_little_is_moved_together() {
        // A layer reads buffer 0: two copies with what follows from the first between them, another that follows from the
        // second, one by other units, one that is not little; then the next layer's buffer.
        let layer = [(0, 0, 1), (0, 1, 2), (0, 0, 3), (0, 3, 4), (1, 0, 5), (2, 0, 6), (2, 6, 0)];
        let all = || -> Vec<LaunchPlan> { (0..9).flat_map(|_| layer.map(launch)).collect() };
        let mut launches = all();
        let ranges = planned(&mut launches, &Target::cuda(90));
        assert_eq!(ranges.len(), 18);
        assert_eq!(ranges[..3], [0..2, 2..4, 7..9]);
        let to: Vec<usize> = launches[..7].iter().map(|l| l.results[0]).collect();
        assert_eq!(to, [1, 3, 2, 4, 5, 6, 0]);
        let mut same = all();
        assert!(planned(&mut same, &Target::cpu(2)).is_empty() && same == all(), "a CPU has chains");
        assert!(planned(&mut all()[..14], &Target::cuda(90)).is_empty(), "twice is too rare");
        let few = Target { max_bindings: 6, ..Target::wgpu() };
        assert!(planned(&mut all(), &few).is_empty(), "two launches bind 6 buffers, and their lengths");
    }

    #[test]
    fn whatever_depends_keeps_its_order() {
        let mut seed = 7u64;
        let mut draw = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % n
        };
        for buffers in [3, 6, 12, 40] {
            let one = |_| launch((draw(2), draw(buffers), draw(buffers)));
            let mut launches: Vec<LaunchPlan> = (0..400).map(one).collect();
            for (i, l) in launches.iter_mut().enumerate() {
                l.label = i.to_string();
            }
            let before = launches.clone();
            let ranges = planned(&mut launches, &Target::cuda(90));
            assert!(buffers < 40 || !ranges.is_empty());
            let place: Vec<usize> = launches.iter().map(|l| l.label.parse().unwrap()).collect();
            for (i, a) in launches.iter().enumerate() {
                for (j, b) in launches.iter().enumerate().skip(i + 1) {
                    assert!(place[i] < place[j] || apart(a, b), "{} and {} of {before:?}", place[i], place[j]);
                }
            }
            for r in ranges {
                let side = &launches[r];
                assert!(side.iter().enumerate().all(|(i, a)| side[i + 1..].iter().all(|b| apart(a, b))));
            }
        }
    }
}
