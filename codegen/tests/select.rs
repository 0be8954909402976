//! Which kernel and schedule is taken: classes of work, what was measured, what the cost model expects, and the list.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_codegen::{
    By, Chosen, Context, Implements, Kernel, Pick, Refusal, Schedule, Target, Tuned, Work, compile, offers, preferred,
};
use omchat_ir::{Dtype, Func, Type, parse};

/// A kernel of nests that offers what it is told to, or refuses.
struct Fake(&'static str, Vec<Schedule>);

impl Kernel for Fake {
    fn name(&self) -> &'static str {
        self.0
    }
    fn implements(&self) -> Implements {
        Implements::Nest
    }
    fn schedules(&self, _: &Work, _: &Target) -> Result<Vec<Schedule>, Refusal> {
        if self.1.is_empty() { Err(Refusal("it never does".into())) } else { Ok(self.1.clone()) }
    }
}

fn schedule(rows: u32, cols: u32, lanes: u32) -> Schedule {
    Schedule::new(&[("units", 2), ("rows", rows), ("cols", cols), ("lanes", lanes)])
}

fn product(m: usize, n: usize, k: usize, w: &str) -> String {
    let shape = if w == "n k" { format!("{n}, {k}") } else { format!("{k}, {n}") };
    format!(
        "func @f(%x: f32[{m}, {k}], %w: f32[{shape}]) -> f32[{m}, {n}] {{ %y = einsum.f32 %x, %w \"m k, {w} -> m n\" return %y }}"
    )
}

fn chosen(text: &str, kernels: &[&dyn Kernel], tuned: Option<&Tuned>) -> Chosen {
    let (module, target) = (parse(text).unwrap(), Target::cpu(2));
    let mut p = compile(&module, Func(0), &Context { target: &target, kernels, tuned, ranks: 1 }).unwrap();
    assert_eq!(p.chosen.len(), 1, "{p}");
    p.chosen.pop().unwrap()
}

fn class(text: &str) -> String {
    chosen(text, &[&Fake("any", vec![schedule(1, 1, 1)])], None).work.class()
}

#[test]
fn a_class_is_a_readable_token_that_forgets_the_exact_size() {
    assert_eq!(class(&product(200, 1000, 512, "n k")), "einsum:256x1024/512:f32[n01],f32[0n1]->f32[n1]:1+0");
    assert_eq!(class(&product(256, 1024, 300, "n k")), class(&product(200, 1000, 512, "n k")));
    assert_ne!(class(&product(256, 1024, 512, "k n")), class(&product(256, 1024, 512, "n k")));
    assert_ne!(class(&product(257, 1024, 512, "n k")), class(&product(256, 1024, 512, "n k")));
    // Axes that every view walks as one are one.
    let add =
        |shape: &str| class(&format!("func @f(%x: bf16[{shape}]) -> bf16[{shape}] {{ %y = add %x, %x return %y }}"));
    assert_eq!(add("4, 6, 5"), "map:128:bf16[1]->bf16[1]:1+0");
    assert_eq!(add("4, 6, 5"), add("120"));
    let t = |shape: &[usize]| Type::new(Dtype::F32, shape);
    let function = Work::Function {
        name: "g".into(),
        binds: Default::default(),
        operands: vec![t(&[3, 5])],
        results: vec![t(&[])],
    };
    assert_eq!(function.class(), "g:f32[4x8]->f32[1]");
    assert_eq!(Work::KthLargest { rows: 3, width: 1000, k: 5 }.class(), "kth_largest:4x1024:8");
    for class in [add("3"), function.class(), class(&product(1, 3, 5, "k n"))] {
        assert!(!class.contains(char::is_whitespace), "{class}");
    }
}

#[test]
fn the_list_decides_where_nothing_else_does() {
    let (never, first, second) =
        (Fake("never", vec![]), Fake("first", vec![schedule(4, 4, 16)]), Fake("second", vec![schedule(4, 4, 16)]));
    let c = chosen(&product(256, 1024, 512, "n k"), &[&never, &first, &second], None);
    assert_eq!((c.kernel, c.by), ("first", By::List));
    assert_eq!(c.refusals, [("never", "it never does".to_string())]);
}

#[test]
fn a_clearly_better_tile_is_preferred_and_a_little_better_one_is_not() {
    let text = product(256, 1024, 512, "n k");
    let (one, wide) =
        (Fake("one", vec![schedule(1, 1, 1)]), Fake("wide", vec![schedule(4, 4, 16), schedule(2, 4, 16)]));
    let c = chosen(&text, &[&one, &wide], None);
    assert_eq!((c.kernel, c.by, c.schedule), ("wide", By::Cost, schedule(4, 4, 16)));
    assert!(c.refusals[0].0 == "one" && c.refusals[0].1.starts_with("expected to take "), "{:?}", c.refusals);
    // Neither tile leaves anything idle, and both share their loads enough.
    let c = chosen(&text, &[&Fake("list", vec![schedule(2, 4, 16)]), &wide], None);
    assert_eq!((c.kernel, c.by), ("list", By::List));
}

#[test]
fn idle_rows_columns_lanes_and_cores_cost() {
    let target = Target::cpu(2);
    let seconds = |text: &str, s: Schedule| {
        let fake = Fake("any", vec![s]);
        let c = chosen(text, &[&fake], None);
        let (found, _) = offers(&c.work, &target, &[&fake]);
        assert_eq!(preferred(&found), Some(0));
        found[0].seconds
    };
    let many = product(1024, 1024, 1024, "n k");
    let few = product(33, 1024, 1024, "n k");
    assert!(seconds(&many, schedule(4, 4, 16)) * 2.0 < seconds(&many, schedule(4, 4, 4)));
    assert!(seconds(&few, schedule(4, 4, 16)) < seconds(&few, schedule(8, 4, 16)), "7 of 40 rows are idle");
    let alone = Schedule::new(&[("units", 1), ("rows", 4), ("cols", 4), ("lanes", 16)]);
    assert!(seconds(&many, schedule(4, 4, 16)) * 1.5 < seconds(&many, alone));
    assert!(seconds(&many, schedule(4, 4, 16)) < seconds(&many, schedule(1, 1, 16)), "each load serves one product");
}

#[test]
fn a_cube_without_enough_tiles_leaves_processors_idle() {
    let target = Target::cuda(90);
    let nest = chosen(&product(128, 128, 8192, "n k"), &[&Fake("any", vec![schedule(1, 1, 1)])], None).work;
    let tile = |m: u32, split: u32| {
        Schedule::new(&[("m", m), ("n", m), ("rows", 8), ("cols", 8), ("units", m * m / 64), ("split", split)])
    };
    let fake = Fake("tiled", vec![tile(128, 1), tile(64, 1), tile(64, 16)]);
    let (found, _) = offers(&nest, &target, &[&fake]);
    assert!(found[2].seconds * 4.0 < found[0].seconds, "{:?}", found.iter().map(|o| o.seconds).collect::<Vec<_>>());
    assert_eq!(preferred(&found), Some(2));
}

#[test]
fn what_was_measured_is_taken_where_it_is_still_offered() {
    let (a, b) = (Fake("a", vec![schedule(4, 4, 16)]), Fake("b", vec![schedule(4, 2, 16), schedule(4, 1, 16)]));
    let text = product(200, 1000, 512, "n k");
    let record = |kernel: &str, s: &Schedule| {
        let mut t = Tuned::default();
        t.put(class(&text), Pick { kernel: kernel.into(), schedule: s.to_string() });
        t
    };
    let c = chosen(&text, &[&a, &b], Some(&record("b", &schedule(4, 1, 16))));
    assert_eq!((c.kernel, c.by, c.schedule), ("b", By::Tuned, schedule(4, 1, 16)));
    assert_eq!(c.refusals, [("a", "measured as slower".to_string())]);
    // Another size of the class, and another class.
    let near = chosen(&product(256, 1024, 400, "n k"), &[&a, &b], Some(&record("b", &schedule(4, 1, 16))));
    assert_eq!((near.kernel, near.by), ("b", By::Tuned));
    let far = chosen(&product(256, 1024, 1400, "n k"), &[&a, &b], Some(&record("b", &schedule(4, 1, 16))));
    assert_eq!((far.kernel, far.by), ("a", By::List));
    // A schedule that the kernel offers no more.
    let c = chosen(&text, &[&a, &b], Some(&record("b", &schedule(9, 9, 16))));
    assert_eq!((c.kernel, c.by), ("a", By::List));
    assert!(c.refusals.iter().any(|(k, why)| *k == "the tuned choice" && why.contains("rows=9")), "{:?}", c.refusals);
}

/// A kernel of nests whose launches work in memory of their own: as many floats as the schedule's `parts`.
struct Works(Vec<u32>);

impl Kernel for Works {
    fn name(&self) -> &'static str {
        "works"
    }
    fn implements(&self) -> Implements {
        Implements::Nest
    }
    fn schedules(&self, _: &Work, _: &Target) -> Result<Vec<Schedule>, Refusal> {
        Ok(self.0.iter().map(|n| Schedule::new(&[("parts", *n)])).collect())
    }
    fn scratch(&self, _: &Work, schedule: &Schedule) -> usize {
        schedule.get("parts") as usize
    }
    fn turns(&self, _: &Work, schedule: &Schedule) -> usize {
        schedule.get("parts") as usize * 100
    }
}

#[test]
fn scratch_memory_lives_during_its_launch_alone() {
    let text = "func @f(%x: f32[640], %w: f32[640]) -> (f32[640], f32) {
        %a = reduce.sum %x \"c ->\" %b = mul %x, %a \"c, -> c\" %s = reduce.sum %b \"c ->\" %y = mul %b, %s \"c, -> c\" return %y, %s }";
    let module = parse(text).unwrap_or_else(|e| panic!("{}", e.render("text", text)));
    let (works, target) = (Works(vec![5000, 3]), Target::cpu(2));
    let context = Context { target: &target, kernels: &[&works], tuned: None, ranks: 1 };
    let p = compile(&module, Func(0), &context).unwrap();
    let apart = |p: &omchat_codegen::Program, floats: usize| {
        let span = |b: usize| match p.buffers[b].place {
            omchat_codegen::Place::Own => None,
            omchat_codegen::Place::Arena { slab, offset } => {
                assert!(offset + p.buffers[b].ty.bytes() <= p.slabs[slab], "{p}");
                Some((slab, offset, offset + p.buffers[b].ty.bytes()))
            }
        };
        assert!(p.launches.len() >= 4);
        for (at, l) in p.launches.iter().enumerate() {
            let mine = l.scratch.unwrap();
            assert_eq!((p.buffers[mine].ty.elements(), p.chosen[l.chosen].scratch), (floats, floats));
            // What is read or yielded here, or is made before and read later.
            let later =
                p.launches[at..].iter().flat_map(|m| m.operands.clone()).chain(p.results.iter().map(|r| r.buffer));
            let made: Vec<usize> = p.launches[..=at].iter().flat_map(|m| m.results.clone()).collect();
            for b in later.filter(|b| made.contains(b)).chain(l.buffers().filter(|b| *b != mine)) {
                if let (Some((s, a, e)), Some((t, c, f))) = (span(mine), span(b)) {
                    assert!(s != t || e <= c || f <= a, "launch {at}: scratch memory lies over buffer {b}\n{p}");
                }
            }
        }
    };
    apart(&p, 5000);
    assert!(p.to_string().contains("(20000 bytes)"), "{p}");
    assert!(p.slabs.iter().sum::<usize>() < 2 * 20000 + 4 * 4096, "launches share it: {:?}", p.slabs);
    assert!(p.peak_bytes() > 20000 && p.peak().live > 20000);
    // Another schedule for each piece of work, one after the other.
    let mut q = p.clone();
    for i in 0..p.chosen.len() {
        q = q.with(i, &works, Schedule::new(&[("parts", 9000)])).unwrap();
    }
    apart(&q, 9000);
    assert!(q.slabs.iter().sum::<usize>() >= 36000);
    let none = p.with(0, &Fake("none", vec![schedule(1, 1, 1)]), schedule(1, 1, 1)).unwrap();
    assert!(none.launches.iter().all(|l| l.scratch.is_none() == (l.chosen == 0)), "{none}");
}

#[test]
fn scratch_memory_beyond_a_limit_is_refused_by_name() {
    let work = || chosen(&product(8, 8, 8, "n k"), &[&Fake("any", vec![schedule(1, 1, 1)])], None).work;
    let works = Works(vec![1 << 20, 4]);
    let small = Target { max_binding_bytes: 1 << 20, ..Target::cpu(2) };
    let (found, refusals) = offers(&work(), &small, &[&works]);
    assert_eq!(found.iter().map(|o| o.scratch).collect::<Vec<_>>(), [4]);
    assert!(refusals.is_empty());
    let (found, refusals) = offers(&work(), &Target { max_bindings: 5, ..small.clone() }, &[&works]);
    assert!(found.is_empty());
    assert_eq!(refusals, [("works", "binds 6 buffers with its scratch memory, cpu takes 5".to_string())]);
    let (_, refusals) = offers(&work(), &small, &[&Works(vec![1 << 20])]);
    assert_eq!(refusals[0].1, "needs 4194304 bytes of scratch memory, cpu binds 1048576 at once");
}

#[test]
fn loops_of_more_turns_than_a_target_takes_are_refused() {
    let work = chosen(&product(8, 8, 8, "n k"), &[&Fake("any", vec![schedule(1, 1, 1)])], None).work;
    let counts = Target { turns: 1000, ..Target::cpu(2) };
    let silent = Fake("silent", vec![schedule(1, 1, 1)]);
    let (works, long) = (Works(vec![11, 10, 1]), Works(vec![11]));
    let (found, refusals) = offers(&work, &counts, &[&works, &silent]);
    assert_eq!(found.iter().map(|o| o.scratch).collect::<Vec<_>>(), [10, 1]);
    let why = "a unit's loops may take any number of turns, cpu ends them after 1000";
    assert_eq!(refusals, [("silent", why.to_string())]);
    let (found, refusals) = offers(&work, &counts, &[&long]);
    assert!(found.is_empty());
    assert_eq!(refusals[0].1, "a unit's loops may take 1100 turns, cpu ends them after 1000");
    assert_eq!(offers(&work, &Target::cpu(2), &[&long, &silent]).0.len(), 2);
}
