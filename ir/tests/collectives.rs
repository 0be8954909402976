//! Cotangents of what crosses ranks, against formulas written here: each op alone, and several in one function.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Rng, f32s, near};
use omchat_ir::{Differentiate, Mode, Module, Value, interpret, parse};

const N: usize = 3;
/// A row of numbers for each rank.
type Rows = Vec<Vec<f64>>;

/// `@f` differentiated by all its parameters, by the primitives' rules.
fn grad(text: &str) -> (Module, omchat_ir::Func) {
    let mut module = parse(text).unwrap_or_else(|e| panic!("{}", e.render("text", text)));
    let f = module.named("f").unwrap();
    let wrt: Vec<Value> = module.function(f).param_values().collect();
    let grad = Differentiate::default().run(&mut module, f, &[0], &wrt).unwrap();
    module.verify().unwrap();
    (module, grad)
}

/// The cotangents of the parameters: of each parameter, of each rank.
fn cotangents(text: &str, operands: &[Rows], dy: &Rows) -> Vec<Rows> {
    let (module, grad) = grad(text);
    let ranks = (0..dy.len()).map(|r| operands.iter().chain([dy]).map(|x| f32s(&[N], &x[r])).collect()).collect();
    let out = interpret(&module, grad, ranks, Mode::Exact).unwrap();
    (0..operands.len()).map(|p| out.iter().map(|of| of[1 + p].data.clone()).collect()).collect()
}

fn rows(rng: &mut Rng, ranks: usize) -> Rows {
    (0..ranks).map(|_| rng.vec(N, 1.0)).collect()
}

/// What rank r has after every rank sent to rank + shift.
fn sent(x: &Rows, shift: i64) -> Rows {
    let n = x.len() as i64;
    (0..n).map(|r| x[(r - shift).rem_euclid(n) as usize].clone()).collect()
}

fn total(x: &Rows) -> Rows {
    let sum: Vec<f64> = (0..N).map(|i| x.iter().map(|row| row[i]).sum()).collect();
    vec![sum; x.len()]
}

fn each(a: &Rows, b: &Rows, f: impl Fn(f64, f64) -> f64) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(x, y)| f(*x, *y)).collect()).collect()
}

fn mul(a: &Rows, b: &Rows) -> Rows {
    each(a, b, |x, y| x * y)
}

#[track_caller]
fn same(what: &str, have: &Rows, want: &Rows) {
    have.iter().zip(want).for_each(|(a, b)| near(what, a, b, 1e-14));
}

#[test]
fn a_permutation_is_undone() {
    let mut rng = Rng(1);
    for (ranks, shift) in [1, 2, 3, 5].into_iter().flat_map(|r| (-6..=6).map(move |s| (r, s))) {
        let text = format!("func @f(%x: f32[3]) -> f32[3] {{ %y = collective_permute %x shift={shift} return %y }}");
        let (x, dy) = (rows(&mut rng, ranks), rows(&mut rng, ranks));
        let have = cotangents(&text, &[x], &dy);
        same(&format!("{ranks} ranks, shift {shift}"), &have[0], &sent(&dy, -shift));
        let printed = grad(&text).0.to_string();
        let back = format!("shift={}\n", -shift);
        assert!(printed.replace(" :", "\n").contains(&back), "{back} must stand in\n{printed}");
    }
}

#[test]
fn a_sum_over_ranks_adds_cotangents() {
    let text = "func @f(%x: f32[3]) -> f32[3] { %y = all_reduce.sum %x return %y }";
    let mut rng = Rng(2);
    for ranks in [1, 2, 3, 5] {
        let (x, dy) = (rows(&mut rng, ranks), rows(&mut rng, ranks));
        same(&format!("{ranks} ranks"), &cotangents(text, &[x], &dy)[0], &total(&dy));
    }
}

#[test]
fn the_largest_over_ranks_takes_the_cotangent() {
    let text = "func @f(%x: f32[3]) -> f32[3] { %y = all_reduce.max %x return %y }";
    // Rank 1 alone; ranks 0 and 2 alike; all alike.
    let x = vec![vec![0.0, 4.0, 7.0], vec![3.0, 1.0, 7.0], vec![2.0, 4.0, 7.0]];
    let dy = vec![vec![1.0, 2.0, 3.0], vec![10.0, 20.0, 30.0], vec![100.0, 200.0, 300.0]];
    let want = vec![vec![0.0, 111.0, 111.0], vec![111.0, 0.0, 111.0], vec![0.0, 111.0, 111.0]];
    same("max", &cotangents(text, &[x], &dy)[0], &want);
}

/// y = S(P^s(x) w) · P^-2s(w) + x · P^s(P^1(w)), with S the sum over ranks and P^s a permutation.
fn composite(shift: i64) -> String {
    format!(
        "func @part(%x: f32[3], %w: f32[3]) -> f32[3] {{
    %a = collective_permute %x shift={shift} %b = mul %a, %w %c = all_reduce.sum %b return %c
}}
func @f(%x: f32[3], %w: f32[3]) -> f32[3] {{
    %c = call @part(%x, %w) remat
    %d = collective_permute %w shift={back}
    %e = mul %c, %d
    %g = collective_permute %w shift=1
    %h = collective_permute %g shift={shift}
    %i = mul %x, %h
    %y = add %e, %i
    return %y
}}",
        back = -2 * shift
    )
}

#[test]
fn several_collectives_in_one_function() {
    let mut rng = Rng(3);
    for (ranks, s) in [1, 2, 3, 5].into_iter().flat_map(|r| (-2..=3).map(move |s| (r, s))) {
        let [x, w, dy] = [(); 3].map(|()| rows(&mut rng, ranks));
        let have = cotangents(&composite(s), &[x.clone(), w.clone()], &dy);
        let c = total(&mul(&sent(&x, s), &w));
        let db = total(&mul(&dy, &sent(&w, -2 * s)));
        let add = |a: &Rows, b: &Rows| each(a, b, |x, y| x + y);
        let dx = add(&sent(&mul(&db, &w), -s), &mul(&dy, &sent(&w, 1 + s)));
        let dw = add(&add(&mul(&db, &sent(&x, s)), &sent(&mul(&dy, &c), 2 * s)), &sent(&mul(&dy, &x), -1 - s));
        same(&format!("dx of {ranks} ranks, shift {s}"), &have[0], &dx);
        same(&format!("dw of {ranks} ranks, shift {s}"), &have[1], &dw);
        // Sent on instead of back, it would be another number.
        let wrong = add(&sent(&mul(&db, &w), s), &mul(&dy, &sent(&w, 1 + s)));
        let apart = have[0].iter().zip(&wrong).map(|(a, b)| common::worst(a, b)).fold(0.0, f64::max);
        assert!((2 * s).rem_euclid(ranks as i64) == 0 || apart > 1e-3, "{ranks} ranks, shift {s}: only {apart:e}");
    }
}
