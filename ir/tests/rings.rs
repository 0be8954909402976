//! Ranks in rings, ranks that send nothing, parts gathered and scattered: what each yields, and its cotangents,
//! against formulas written here and central differences.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::grad::{Case, check};
use common::{Rng, f32s, near, tensor};
use omchat_ir::{Code, Differentiate, Dtype, Mode, Tensor, Type, Value, interpret, parse};

type Rows = Vec<Vec<f64>>;

/// The result of `@f` on every rank, and the cotangents of its first operand, from operands and cotangents.
fn run(text: &str, operands: &[Vec<Tensor>], dy: &Rows) -> (Rows, Rows) {
    let mut module = parse(text).unwrap_or_else(|e| panic!("{}", e.render("text", text)));
    let f = module.named("f").unwrap();
    let grad = Differentiate::default().run(&mut module, f, &[0], &[Value(0)]).unwrap();
    module.verify().unwrap();
    let printed = module.to_string();
    assert!(parse(&printed).unwrap() == module, "{printed}");
    let cot = |d: &Vec<f64>| f32s(&[d.len()], d);
    let ranks = operands.iter().zip(dy).map(|(x, d)| x.iter().cloned().chain([cot(d)]).collect()).collect();
    let out = interpret(&module, grad, ranks, Mode::Exact).unwrap();
    let column = |i: usize| out.iter().map(|of| of[i].data.clone()).collect();
    (column(0), column(1))
}

fn rows(rng: &mut Rng, ranks: usize, n: usize) -> Rows {
    (0..ranks).map(|_| rng.vec(n, 1.0)).collect()
}

fn flag(yes: bool) -> Tensor {
    Tensor::full(Type::new(Dtype::Bool, []), f64::from(u8::from(yes)))
}

#[track_caller]
fn same(what: &str, have: &Rows, want: &Rows) {
    assert_eq!(have.len(), want.len());
    have.iter().zip(want).for_each(|(a, b)| near(what, a, b, 1e-14));
}

/// Whom rank r of rings of `ring` hears: rank by rank, counted by hand.
fn heard(r: i64, shift: i64, ring: i64) -> usize {
    let mut at = r;
    for _ in 0..shift.abs() {
        at = match (shift > 0, at % ring) {
            (true, 0) => at + ring - 1,
            (true, _) => at - 1,
            (false, last) if last == ring - 1 => at - ring + 1,
            (false, _) => at + 1,
        };
    }
    at as usize
}

#[test]
fn each_ring_turns_by_itself() {
    let mut rng = Rng(1);
    for (ranks, ring) in [(1, 1), (2, 1), (2, 2), (3, 3), (4, 2), (6, 2), (6, 3), (8, 4), (5, 5)] {
        for shift in -5..=5 {
            let what = format!("{ranks} ranks in rings of {ring}, shift {shift}");
            let text = format!(
                "func @f(%x: f32[3]) -> f32[3] {{ %y = collective_permute %x shift={shift} ring={ring} return %y }}"
            );
            let (x, dy) = (rows(&mut rng, ranks, 3), rows(&mut rng, ranks, 3));
            let operands: Vec<Vec<Tensor>> = x.iter().map(|x| vec![f32s(&[3], x)]).collect();
            let (y, dx) = run(&text, &operands, &dy);
            let from = |r: usize, shift| heard(r as i64, shift, ring as i64);
            same(&what, &y, &(0..ranks).map(|r| x[from(r, shift)].clone()).collect());
            same(&what, &dx, &(0..ranks).map(|r| dy[from(r, -shift)].clone()).collect());
        }
    }
}

#[test]
fn who_sends_nothing_leaves_zeros_and_gets_no_cotangent() {
    let mut rng = Rng(2);
    for (ranks, ring, shift) in [(1, 1, 1), (2, 2, 1), (3, 3, -1), (4, 2, 1), (6, 3, 2), (7, 7, 3)] {
        for _ in 0..8 {
            let text = format!(
                "func @f(%x: f32[3], %s: bool) -> f32[3] {{ %y = collective_permute %x, %s shift={shift} ring={ring} return %y }}"
            );
            let (x, dy) = (rows(&mut rng, ranks, 3), rows(&mut rng, ranks, 3));
            let sends: Vec<bool> = (0..ranks).map(|_| rng.below(2) == 0).collect();
            let operands: Vec<Vec<Tensor>> = x.iter().zip(&sends).map(|(x, s)| vec![f32s(&[3], x), flag(*s)]).collect();
            let (y, dx) = run(&text, &operands, &dy);
            let from = |r: usize, shift| heard(r as i64, shift, ring as i64);
            let zeros = vec![0.0; 3];
            let received = |r| if sends[from(r, shift)] { x[from(r, shift)].clone() } else { zeros.clone() };
            let returned = |r: usize| if sends[r] { dy[from(r, -shift)].clone() } else { zeros.clone() };
            same("received", &y, &(0..ranks).map(received).collect());
            same("returned", &dx, &(0..ranks).map(returned).collect());
        }
    }
}

#[test]
fn parts_are_gathered_and_scattered() {
    let mut rng = Rng(3);
    for (ranks, n) in [(1, 3), (2, 1), (3, 2), (5, 4), (7, 3)] {
        let (small, whole) = (rows(&mut rng, ranks, n), rows(&mut rng, ranks, ranks * n));
        let joined: Rows = vec![small.concat(); ranks];
        let sum = |i: usize| whole.iter().map(|x| x[i]).sum::<f64>();
        let parts: Rows = (0..ranks).map(|r| (r * n..(r + 1) * n).map(sum).collect()).collect();
        let ops = |x: &Rows| -> Vec<Vec<Tensor>> { x.iter().map(|x| vec![f32s(&[x.len()], x)]).collect() };
        let w = ranks * n;
        let gather = format!("func @f(%x: f32[{n}]) -> f32[{w}] {{ %y = all_gather %x parts={ranks} return %y }}");
        let (y, dx) = run(&gather, &ops(&small), &whole);
        same("gathered", &y, &joined);
        same("cotangents of what was gathered", &dx, &parts);
        let scatter =
            format!("func @f(%x: f32[{w}]) -> f32[{n}] {{ %y = reduce_scatter.sum %x parts={ranks} return %y }}");
        let (y, dx) = run(&scatter, &ops(&whole), &small);
        same("scattered", &y, &parts);
        same("cotangents of what was scattered", &dx, &joined);
    }
}

/// In one function, with what is between them; `RANKS` and `RING` stand for numbers.
const ALL: &str = "func @f(%x: f32[2], %w: f32[RANKS], %k: i32) -> (f32[RANKS], f32[2]) {
    %s = ge %k, 2
    %a = sin %x
    %b = all_gather %a parts=RANKS
    %p = collective_permute %b, %s shift=1 ring=RING
    %h = slice %p axis=0 start=0 end=RANKS
    %q = mul %h, %w
    %y = collective_permute %q shift=-1 ring=RING
    %m = mul %p, %b
    %t = reduce_scatter.sum %m parts=RANKS
    return %y, %t
}";

#[test]
fn together_they_agree_with_central_differences() {
    let mut checked = 0;
    for (ranks, ring) in [(2, 1), (2, 2), (3, 3), (4, 2), (6, 3)] {
        let text = ALL.replace("RANKS", &ranks.to_string()).replace("RING", &ring.to_string());
        let module = parse(&text).unwrap_or_else(|e| panic!("{}", e.render("text", &text)));
        let f = module.named("f").unwrap();
        for seed in 0..4 {
            checked += check(&Case { text: &text, module: &module, f, ranks, seed, scope: None });
        }
    }
    println!("{checked} cotangent elements checked");
    assert!(checked > 200);
}

#[test]
fn another_number_of_ranks_is_a_fault() {
    let inside = "func @g(%x: f32[4]) -> f32[4] { %y = collective_permute %x shift=1 ring=4 return %y }
func @f(%x: f32[4]) -> f32[4] { %y = call @g(%x) return %y }";
    let gather = "func @f(%x: f32[4]) -> f32[12] { %y = all_gather %x parts=3 return %y }";
    let scatter = "func @f(%x: f32[4]) -> f32[2] { %y = reduce_scatter.sum %x parts=2 return %y }";
    for (text, fits, says) in
        [(inside, vec![4, 8], "ring=4"), (gather, vec![3], "parts=3"), (scatter, vec![2], "parts=2")]
    {
        let m = parse(text).unwrap();
        let f = m.named("f").unwrap();
        for ranks in 1..=9 {
            let x = vec![vec![tensor(Dtype::F32, &[4], vec![1.0; 4])]; ranks];
            match interpret(&m, f, x, Mode::Exact) {
                Ok(_) => assert!(fits.contains(&ranks), "{text} ran on {ranks} ranks"),
                Err(e) => {
                    assert!(!fits.contains(&ranks), "{e}");
                    assert_eq!(e.0[0].code, Code::Rank);
                    assert!(e.to_string().contains(says) && e.to_string().contains("help"), "{e}");
                }
            }
        }
    }
}
