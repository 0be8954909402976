//! How far keys travel round a ring: `@ring_reach` against what each rank sees, and `@ring_attention_reach` bit for bit
//! against `@ring_attention`, forwards and backwards; keys are sent as often as formulas say, and one hop too few is
//! caught.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::stream::{B, D, G, H, Stream, layouts};
use common::{Rng, caller, run, tensor, worst};
use omchat_ir::text::parse_file;
use omchat_ir::{Differentiate, Dtype, Mode, Scope, Tensor, Type, Value, interpret, library, parse};

/// Of each rank, how far its keys must go: counted pair by pair.
fn wanted(operands: &[Vec<Tensor>]) -> Vec<usize> {
    let ranks = operands.len();
    let seen = |keys: &[Tensor], queries: &[Tensor]| {
        let (c, [lo, hi, at]) = (queries[3].ty.shape[1], [&queries[3], &queries[4], &keys[5]].map(|t| &t.data));
        (0..B * c).any(|t| (0..c).any(|s| (lo[t]..=hi[t]).contains(&at[t / c * c + s])))
    };
    let far = |q: usize| (1..ranks).rev().find(|s| seen(&operands[q], &operands[(q + s) % ranks])).unwrap_or(0);
    (0..ranks).map(far).collect()
}

/// What `@ring_reach` says on each rank.
fn reach(operands: &[Vec<Tensor>], chunks: usize) -> Vec<usize> {
    let ranks: Vec<Vec<Tensor>> = operands.iter().map(|x| x[3..].to_vec()).collect();
    let text = caller(&format!("@ring_reach[R={}, C={chunks}]", operands.len()), "i32", 1, &ranks[0]);
    run(&text, ranks, Mode::Typed).iter().map(|r| r[0].data[0] as usize).collect()
}

fn of_layout(s: &Stream, layout: &[Vec<usize>], dtype: Dtype) -> Vec<Vec<Tensor>> {
    layout.iter().map(|tokens| s.operands(tokens, dtype)).collect()
}

/// The operands with each rank's reach.
fn with(operands: &[Vec<Tensor>], reach: &[i64]) -> Vec<Vec<Tensor>> {
    let one = |r: &i64| Tensor::full(Type::new(Dtype::I32, []), *r as f64);
    operands.iter().zip(reach).map(|(x, r)| x.iter().cloned().chain([one(r)]).collect()).collect()
}

fn results(dtype: Dtype, c: usize) -> String {
    format!("{dtype}[{B}, {H}, {G}, {c}, {D}], f32[{B}, {H}, {G}, {c}]")
}

/// Output and log-sum-exp, then dq, dk, dv, on every rank.
fn both(function: &str, operands: Vec<Vec<Tensor>>, dtype: Dtype, mode: Mode) -> Vec<Vec<Tensor>> {
    let c = operands[0][0].ty.shape[3];
    let text = caller(&format!("{function}[R={}]", operands.len()), &results(dtype, c), 2, &operands[0]);
    let mut module = parse(&text).unwrap_or_else(|e| panic!("{}", e.render("text", &text)));
    let file = parse_file(&text).unwrap();
    let scope = Scope::new(&[library::file().unwrap(), &file]);
    let f = module.named("main").unwrap();
    let how = Differentiate { scope: Some(&scope), keep: &[] };
    let grad = how.run(&mut module, f, &[0, 1], &[Value(0), Value(1), Value(2)]).unwrap();
    let mut rng = Rng(7);
    let ranks = operands.into_iter().map(|mut x| {
        x.push(tensor(dtype, &[B, H, G, c, D], rng.vec(B * H * G * c * D, 1.0)).rounded());
        x.push(tensor(Dtype::F32, &[B, H, G, c], rng.vec(B * H * G * c, 1.0)));
        x
    });
    let ranks = ranks.collect();
    interpret(&module, grad, ranks, mode).unwrap_or_else(|e| panic!("{e}"))
}

/// Packed documents of 1 to 17 tokens over `ranks` ranks of eight.
fn packed(ranks: usize, seed: u64) -> Stream {
    let (mut rng, n, mut lengths) = (Rng(seed), ranks * 8, vec![]);
    while lengths.iter().sum::<usize>() < n {
        let left = n - lengths.iter().sum::<usize>();
        lengths.push((1 + rng.below(17)).min(left));
    }
    Stream::of(&lengths, seed, Dtype::F32)
}

#[test]
fn keys_reach_whoever_sees_them_and_no_number_changes() {
    let (mut spared, mut all) = (0, 0);
    for (ranks, seed) in [2, 3, 4, 7].into_iter().flat_map(|r| (0..3).map(move |s| (r, 100 * s + r as u64))) {
        // With padding and documents that differ over the batch, and without.
        for s in [Stream::new(ranks * 8, seed, Dtype::F32), packed(ranks, seed)] {
            for (layout, name) in layouts(s.n, ranks, seed).iter().zip(["contiguous", "zigzag", "random"]) {
                let operands = of_layout(&s, layout, Dtype::F32);
                let want = wanted(&operands);
                assert_eq!(reach(&operands, 8), want, "{ranks} ranks, {name}, a token a chunk");
                let mut before = vec![0; ranks];
                for chunks in [8, 4, 2, 1] {
                    let have = reach(&operands, chunks);
                    let enough = have.iter().zip(&want).all(|(h, w)| h >= w && *h < ranks);
                    assert!(enough, "{ranks} ranks, {name}, {chunks} chunks: {have:?}, {want:?} is wanted");
                    assert!(have.iter().zip(&before).all(|(h, b)| h >= b), "fewer chunks tell less");
                    before = have;
                }
                let far: Vec<i64> = reach(&operands, 4).iter().map(|r| *r as i64).collect();
                (spared, all) =
                    (spared + far.iter().map(|f| ranks as i64 - 1 - f).sum::<i64>(), all + ranks * (ranks - 1));
                for (dtype, mode) in [(Dtype::F32, Mode::Exact), (Dtype::Bf16, Mode::Typed)] {
                    let operands = of_layout(&s, layout, dtype);
                    let plain = both("@ring_attention", operands.clone(), dtype, mode);
                    let have = both("@ring_attention_reach", with(&operands, &far), dtype, mode);
                    assert!(have == plain, "{ranks} ranks, {name}, {dtype}: skipped hops change numbers");
                }
            }
        }
    }
    println!("{spared} of {all} hops were spared");
    assert!(spared > 0);
}

/// In place of attention: how many blocks of keys (or of values) that are not all 0 a rank was given.
const COUNT: &str = "
func @attention_partial[E, B, H, G, T, S, D](
    %q: E[B, H, G, T, D], %k: E[B, H, S, D], %v: E[B, H, S, D], %lo: i32[B, T], %hi: i32[B, T], %at: i32[B, S],
) -> (f32[B, H, G, T, D], f32[B, H, G, T]) {
    %wide = cast.f32 %WHAT %size = abs %wide %most = reduce.max %size \"b h s d ->\" %there = gt %most, 0
    %one = cast.f32 %there
    %o = rearrange %one \"-> b h g t d\" b=B h=H g=G t=T d=D
    %l = rearrange %one \"-> b h g t\" b=B h=H g=G t=T
    return %o, %l
}
func @attention_onto[E, B, H, G, T, S, D](
    %q: E[B, H, G, T, D], %k: E[B, H, S, D], %v: E[B, H, S, D], %lo: i32[B, T], %hi: i32[B, T], %at: i32[B, S],
    %o: f32[B, H, G, T, D], %l: f32[B, H, G, T],
) -> (f32[B, H, G, T, D], f32[B, H, G, T]) {
    %own, %m = call @attention_partial(%q, %k, %v, %lo, %hi, %at) %o = add %o, %own %l = add %l, %m return %o, %l
}
";

/// Blocks that came to all ranks together, as keys and as values.
fn received(operands: &[Vec<Tensor>], reach: &[i64]) -> usize {
    let ring = library::FILES.iter().find(|f| f.0 == "ring.oir").unwrap().1;
    let ranks = with(operands, reach);
    let c = operands[0][0].ty.shape[3];
    let counts = ["k", "v"].map(|what| {
        let function = format!("@ring_attention_reach[R={}]", ranks.len());
        let text = COUNT.replace("WHAT", what) + ring + &caller(&function, &results(Dtype::F32, c), 2, &ranks[0]);
        run(&text, ranks.clone(), Mode::Exact).iter().map(|r| r[0].data[0] as usize - 1).sum::<usize>()
    });
    assert_eq!(counts[0], counts[1], "values travel with their keys");
    counts[0]
}

#[test]
fn keys_are_sent_as_often_as_they_are_wanted() {
    for ranks in [2, 3, 4, 7] {
        let n = ranks * 8;
        let sent = |lengths: &[usize], which: usize| {
            let s = Stream::of(lengths, 3, Dtype::F32);
            let operands = of_layout(&s, &layouts(n, ranks, 9)[which], Dtype::F32);
            let far: Vec<i64> = reach(&operands, 8).iter().map(|r| *r as i64).collect();
            let sum = far.iter().sum::<i64>() as usize;
            let have = received(&operands, &far);
            assert_eq!(have, sum, "a block is sent once for each hop that it reaches");
            have
        };
        let whole = ranks * (ranks - 1);
        // One document, contiguous: rank q is seen by those after it, R - 1 - q of them. Half of all hops.
        assert_eq!(sent(&[n], 0), whole / 2, "{ranks} ranks, contiguous");
        // Zigzag: each rank has late tokens, which see the early ones of every other.
        assert_eq!(sent(&[n], 1), whole, "{ranks} ranks, zigzag");
        // A document a rank: nothing is sent at all.
        assert_eq!(sent(&vec![8; ranks], 0), 0, "{ranks} ranks, a document each");
        // Documents that straddle each border between ranks: each block but the last goes one hop.
        let straddling: Vec<usize> = [4].into_iter().chain(vec![8; ranks - 1]).chain([4]).collect();
        assert_eq!(sent(&straddling, 0), ranks - 1, "{ranks} ranks, documents over borders");
    }
}

#[test]
fn a_reach_one_too_small_is_caught() {
    let mut caught = 0;
    for ranks in [2, 3, 4, 7] {
        for s in [Stream::new(ranks * 8, 11, Dtype::F32), packed(ranks, 11)] {
            for layout in layouts(s.n, ranks, 5) {
                let operands = of_layout(&s, &layout, Dtype::F32);
                let want = wanted(&operands);
                let plain = both("@ring_attention", operands.clone(), Dtype::F32, Mode::Exact);
                for q in (0..ranks).filter(|q| want[*q] > 0) {
                    let short: Vec<i64> = (0..ranks).map(|r| want[r] as i64 - i64::from(r == q)).collect();
                    let have = both("@ring_attention_reach", with(&operands, &short), Dtype::F32, Mode::Exact);
                    let off = |i: usize| {
                        have.iter().zip(&plain).map(|(h, p)| worst(&h[i].data, &p[i].data)).fold(0.0, f64::max)
                    };
                    // Output and the gradient of the queries; keys' gradients are of zeros.
                    assert!(off(0) > 1e-6 && off(2) > 1e-6, "rank {q} of {ranks}: {:e} {:e}", off(0), off(2));
                    caught += 1;
                }
            }
        }
    }
    println!("{caught} reaches one too small were caught");
    assert!(caught > 40);
}
