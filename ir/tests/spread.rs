//! Attention over keys that lie on ranks, each with as many as it happens to have: `@spread_attention` of queries that all
//! ranks hold, `@query_ring_attention` of queries of each rank. In lockstep both are softmax over what a token sees.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::stream::{B, D, EMPTY, G, H, Stream, mutant};
use common::{Rng, caller, near, run, tensor, worst};
use omchat_ir::{Dtype, Mode, Tensor, library};

const SEEDS: [u64; 3] = [1, 77, 4021];

/// The keys, values and places of ranks that hold the tokens of a stream in drawn shares, some of them none.
fn drawn_caches(s: &Stream, r: usize, dtype: Dtype, rng: &mut Rng) -> Vec<[Tensor; 3]> {
    let mut shares = vec![vec![]; r];
    for token in rng.order(s.n) {
        // Two of three to the first ranks, so that shares differ.
        let rank = rng.below(r).min(rng.below(2 * r));
        shares[rank].push(token);
    }
    let slots = shares.iter().map(Vec::len).max().unwrap() + 1;
    let cache = |share: &Vec<usize>| {
        let filled: Vec<usize> = (0..slots).map(|i| share.get(i).copied().unwrap_or(0)).collect();
        let [_, k, v, _, _, mut at] = <[Tensor; 6]>::try_from(s.operands(&filled, dtype)).unwrap();
        for (i, at) in at.data.iter_mut().enumerate() {
            if i % slots >= share.len() {
                *at = f64::from(i32::MAX);
            }
        }
        [k, v, at]
    };
    shares.iter().map(cache).collect()
}

/// `@spread_attention` of all tokens: output and log-sum-exp of each rank.
fn spread(s: &Stream, r: usize, seed: u64, dtype: Dtype, mode: Mode, library: &str) -> Vec<[Vec<f64>; 2]> {
    let all: Vec<usize> = (0..s.n).collect();
    let [q, _, _, lo, hi, _] = <[Tensor; 6]>::try_from(s.operands(&all, dtype)).unwrap();
    let ranks: Vec<Vec<Tensor>> = drawn_caches(s, r, dtype, &mut Rng(seed))
        .into_iter()
        .map(|[k, v, at]| vec![q.clone(), k, v, lo.clone(), hi.clone(), at])
        .collect();
    let results = format!("{}, f32[{B}, {H}, {G}, {}]", q.ty, s.n);
    let text = library.to_string() + &caller(&format!("@spread_attention[R={r}]"), &results, 2, &ranks[0]);
    run(&text, ranks, mode).into_iter().map(|x| [x[0].data.clone(), x[1].data.clone()]).collect()
}

/// `@query_ring_attention`, each rank with every R-th token: output and log-sum-exp, the tokens in order.
fn query_ring(s: &Stream, r: usize, seed: u64, dtype: Dtype, mode: Mode, library: &str) -> (Vec<f64>, Vec<f64>) {
    let layout: Vec<Vec<usize>> = (0..r).map(|rank| (rank..s.n).step_by(r).collect()).collect();
    let own: Vec<Vec<Tensor>> = layout.iter().map(|tokens| s.operands(tokens, dtype)).collect();
    let rows = |rank: usize, which: usize| {
        let data = (0..r).flat_map(|hop| own[(rank + r - hop) % r][which].data.clone()).collect();
        tensor(Dtype::I32, &[r, B, s.n / r], data)
    };
    let caches = drawn_caches(s, r, dtype, &mut Rng(seed));
    let ranks: Vec<Vec<Tensor>> = caches
        .into_iter()
        .enumerate()
        .map(|(rank, [k, v, at])| vec![own[rank][0].clone(), k, v, rows(rank, 3), rows(rank, 4), at])
        .collect();
    let results = format!("{}, f32[{B}, {H}, {G}, {}]", own[0][0].ty, s.n / r);
    let text = library.to_string() + &caller("@query_ring_attention", &results, 2, &ranks[0]);
    let (mut out, mut lse) = (vec![0.0; B * H * G * s.n * D], vec![0.0; B * H * G * s.n]);
    for (tokens, found) in layout.iter().zip(run(&text, ranks, mode)) {
        for row in 0..B * H * G {
            for (i, token) in tokens.iter().enumerate() {
                let (from, to) = (row * tokens.len() + i, row * s.n + token);
                lse[to] = found[1].data[from];
                out[to * D..(to + 1) * D].copy_from_slice(&found[0].data[from * D..(from + 1) * D]);
            }
        }
    }
    (out, lse)
}

#[test]
fn both_are_attention_however_the_keys_lie() {
    let mut blind = 0;
    for seed in SEEDS {
        for r in 1..=7 {
            let s = Stream::new(r * 3, seed + r as u64, Dtype::F32);
            let (out, lse) = s.oracle();
            blind += lse.iter().filter(|l| **l == EMPTY).count();
            for (rank, [o, l]) in spread(&s, r, seed, Dtype::F32, Mode::Exact, "").iter().enumerate() {
                near(&format!("spread, out of rank {rank} of {r}"), o, &out, 1e-12);
                near(&format!("spread, lse of rank {rank} of {r}"), l, &lse, 1e-12);
            }
            let (o, l) = query_ring(&s, r, seed, Dtype::F32, Mode::Exact, "");
            near(&format!("query ring, out of {r} ranks"), &o, &out, 1e-12);
            near(&format!("query ring, lse of {r} ranks"), &l, &lse, 1e-12);
        }
    }
    assert!(blind > 0, "the streams must have rows that see nothing");
}

#[test]
fn all_ranks_hold_the_same_bits() {
    for (r, dtype) in [(2, Dtype::F32), (5, Dtype::Bf16), (7, Dtype::F32)] {
        let s = Stream::new(r * 5, 9, dtype);
        let found = spread(&s, r, 31, dtype, Mode::Typed, "");
        assert!(found.iter().all(|x| x == &found[0]), "{r} ranks in {dtype}");
    }
}

#[test]
fn seeded_faults_are_caught() {
    let file = |name: &str| library::FILES.iter().find(|f| f.0 == name).unwrap().1;
    let text = file("attention.oir").to_string() + file("spread_attention.oir");
    let s = Stream::new(16, 5, Dtype::F32);
    let (out, lse) = s.oracle();
    let home = "several..2 {\n            %o, %l = call @attention_home(%o, %l, %back)";
    for (what, from, to) in [
        (
            "one rank's lse for all",
            "%ls    = rearrange %ends \"r b h g t n -> r b h g t\"",
            "%ls = rearrange %l \"b h g t -> r b h g t\" r=R",
        ),
        ("outputs not weighed", "%part = mul %o, %w \"r b h g t d, r b h g t -> r b h g t d\"", "%part = copy %o"),
        ("the highest lse for the sum", "%lse  = add %top, %log", "%lse = copy %top"),
        (
            "the first rank for all",
            "%os    = slice %parts axis=5 start=0 end=D",
            "%os = rearrange %o \"b h g t d -> r b h g t d\" r=R",
        ),
    ] {
        let [o, l] = spread(&s, 4, 3, Dtype::F32, Mode::Exact, &mutant(&text, from, to)).remove(1);
        let off = worst(&o, &out).max(worst(&l, &lse));
        assert!(off > 1e-3, "{what}: only {off:e} off");
    }
    for (what, from, to) in [
        ("the last hop is missing", "for step in 1..R {", "for step in 1..R - 1 {"),
        ("home is the wrong rank", "shift=0 - step ring=R", "shift=0 - 1 ring=R"),
        ("answers go on, not home", "shift=0 - step ring=R", "shift=step ring=R"),
        ("the queries stay", "%guest = copy %next", "%guest = copy %q"),
        ("the same guests twice", "collective_permute %guest shift=1", "collective_permute %q shift=1"),
        ("intervals of this rank's queries", "call @visit[N=step]", "call @visit[N=0]"),
        ("a stale lse", "%row  = call @partial_row(%po, %pl)", "%row = call @partial_row(%po, %l)"),
        ("the last answer is left out", home, "several..2 { %l = copy %l"),
    ] {
        let (o, l) = query_ring(&s, 4, 3, Dtype::F32, Mode::Exact, &mutant(&text, from, to));
        let off = worst(&o, &out).max(worst(&l, &lse));
        assert!(off > 1e-3, "{what}: only {off:e} off");
    }
}
