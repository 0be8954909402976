//! Cross entropy behind its projection, every kernel × schedule × device, against plain loops in f64.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Draw;
use common::attention::Runs;
use common::device::{Present, devices};
use common::reference::Host;
use omchat_codegen::{Target, Work};
use omchat_ir::{Dtype, Type};
use omchat_kernels::LIST;

/// Tokens, channels, words: tiles that are whole and tiles that are not, runs of one token, words that fill no vector.
const SIZES: [[usize; 3]; 11] = [
    [1, 64, 97],
    [9, 32, 8],
    [37, 24, 131],
    [64, 64, 256],
    [131, 72, 515],
    [150, 16, 64],
    [300, 128, 384],
    [5, 700, 33],
    [70, 8, 1030],
    [3, 1, 2],
    [20, 1, 9],
];

/// Losses and log-sum-exps.
fn reference([t, c, v]: [usize; 3], x: &[f64], w: &[f64], labels: &[f64]) -> [Vec<f64>; 2] {
    let (mut loss, mut lse) = (vec![], vec![]);
    for i in 0..t {
        let dot = |j: usize| (0..c).map(|k| x[i * c + k] * w[j * c + k]).sum::<f64>();
        let logits: Vec<f64> = (0..v).map(dot).collect();
        let top = logits.iter().copied().fold(f64::MIN, f64::max);
        let all = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
        let known = labels[i] >= 0.0 && labels[i] < v as f64;
        loss.push(if known { all - logits[labels[i] as usize] } else { 0.0 });
        lse.push(all);
    }
    [loss, lse]
}

/// Runs every kernel at the schedules that the device tries on one drawn case, of activations and words in those dtypes;
/// counts the runs of each.
fn judged(p: &Present, d: &mut Draw, turn: usize, [dtype, words]: [Dtype; 2], n: [usize; 3], ran: &mut Runs) {
    let [t, c, v] = n;
    let scale = 6.0 / (c as f64).sqrt();
    let x = Host::new(dtype, (0..t * c).map(|_| d.real(-1.0, 1.0) * scale).collect());
    let w = Host::new(words, (0..v * c).map(|_| d.real(-1.0, 1.0)).collect());
    // Labels at both ends, in the middle and outside.
    let label = |d: &mut Draw| match d.below(8) {
        0 => -100.0,
        1 => v as f64,
        2 => 0.0,
        3 => v as f64 - 1.0,
        _ => d.below(v) as f64,
    };
    let labels = Host::new(Dtype::I32, (0..t).map(|_| label(d)).collect());
    let want = reference(n, &x.data, &w.data, &labels.data);
    let ty = |dtype: Dtype, shape: &[usize]| Type::new(dtype, shape.to_vec());
    let work = Work::Function {
        name: d.pick(&["linear_cross_entropy", "linear_cross_entropy_tiled"]).into(),
        binds: Default::default(),
        operands: vec![ty(dtype, &[t, c]), ty(words, &[v, c]), ty(Dtype::I32, &[t])],
        results: vec![ty(Dtype::F32, &[t]), ty(Dtype::F32, &[t])],
    };
    let operands = [x, w, labels];
    let blank = [(); 2].map(|()| Host { dtype: Dtype::F32, data: vec![f64::NAN; t] });
    for k in LIST.iter().filter(|k| k.name().starts_with("linear_cross_entropy")) {
        for schedule in p.tries(p.offered(*k, &work), turn) {
            let got = p.run(*k, &work, &schedule, &operands, &blank);
            for (r, (want, got)) in want.iter().zip(&got).enumerate() {
                for (i, (w, g)) in want.iter().zip(got).enumerate() {
                    let (name, target) = (k.name(), &p.target.name);
                    let near = (w - g).abs() <= 2e-5 * (2.0 + w.abs());
                    assert!(
                        near,
                        "{name} {schedule} on {target}: {dtype} by {words} {n:?} result {r} at {i} is {g}, not {w}"
                    );
                }
            }
            *ran.entry(k.name()).or_default() += 1;
        }
    }
}

#[test]
fn losses_of_every_size() {
    for p in devices() {
        // The same cases for each device: what is emulated for one is known for the next.
        let d = &mut Draw::of(991);
        let wide = p.target.reads(Dtype::Bf16);
        let mut ran = Runs::new();
        for (i, n) in SIZES.into_iter().enumerate().filter(|(i, _)| p.takes(*i, 0)) {
            judged(&p, d, i / 2, [Dtype::F32; 2], n, &mut ran);
            if wide {
                let narrow = d.pick(&[Dtype::Bf16, Dtype::F16]);
                judged(&p, d, i / 2, [narrow; 2], n, &mut ran);
                // Weights that stay packed.
                judged(&p, d, i / 2, [Dtype::F32, narrow], n, &mut ran);
            }
        }
        println!("{}: {ran:?}", p.target.name);
        assert!(!ran.is_empty(), "no kernel of {} runs it", p.target.name);
    }
}

#[test]
fn what_parts_leave_fits_a_binding() {
    let offers = |t: usize| {
        let ty = |dtype: Dtype, shape: &[usize]| Type::new(dtype, shape.to_vec());
        let row = || ty(Dtype::F32, &[t]);
        let work = Work::Function {
            name: "linear_cross_entropy".into(),
            binds: Default::default(),
            operands: vec![ty(Dtype::F32, &[t, 64]), ty(Dtype::F32, &[49_152, 64]), ty(Dtype::I32, &[t])],
            results: vec![row(), row()],
        };
        let kernel = omchat_kernels::by_name("linear_cross_entropy.tiled").unwrap();
        kernel.schedules(&work, &Target::wgpu()).map(|s| s.len()).map_err(|r| r.0)
    };
    assert!(offers(16_384).unwrap() > 0);
    let why = offers(32_768).unwrap_err();
    assert!(why.contains("a binding of 201457664 bytes, wgpu has 134217728"), "{why}");
}

#[test]
fn parts_that_leave_more_than_logits_are_refused() {
    let offers = |name: &str, n: usize, v: usize| {
        let (t, ty) = (4096, |dtype: Dtype, shape: &[usize]| Type::new(dtype, shape.to_vec()));
        let work = Work::Function {
            name: "linear_cross_entropy_tiled".into(),
            binds: [("N".to_string(), omchat_ir::Bind::Size(n))].into(),
            operands: vec![ty(Dtype::Bf16, &[t, 64]), ty(Dtype::Bf16, &[v, 64]), ty(Dtype::I32, &[t])],
            results: vec![ty(Dtype::F32, &[t]), ty(Dtype::F32, &[t])],
        };
        let kernel = omchat_kernels::by_name(name).unwrap();
        kernel.schedules(&work, &Target::cuda(90)).map(|s| s.len()).map_err(|r| r.0)
    };
    assert!(offers("linear_cross_entropy.mma", 8, 4096).unwrap() > 0);
    let why = offers("linear_cross_entropy.mma", 32, 4096).unwrap_err();
    assert!(why.contains("its parts leave 1052672 floats, and logits of 4096 tokens are 524288"), "{why}");
    assert!(offers("linear_cross_entropy.wgmma", 32, 4096).unwrap() > 0);
    assert!(offers("linear_cross_entropy.wgmma", 1, 1).is_err());
}

#[test]
fn a_logit_that_is_no_number_stays_one() {
    for p in devices().into_iter().filter(|p| p.takes(0, 0)) {
        let (t, c, v) = (12, 16, 64);
        let mut x = vec![0.5; t * c];
        x[3 * c] = f64::NAN;
        let ty = |dtype: Dtype, shape: &[usize]| Type::new(dtype, shape.to_vec());
        let work = Work::Function {
            name: "linear_cross_entropy".into(),
            binds: Default::default(),
            operands: vec![ty(Dtype::F32, &[t, c]), ty(Dtype::F32, &[v, c]), ty(Dtype::I32, &[t])],
            results: vec![ty(Dtype::F32, &[t]), ty(Dtype::F32, &[t])],
        };
        let operands =
            [Host::new(Dtype::F32, x), Host::new(Dtype::F32, vec![0.25; v * c]), Host::new(Dtype::I32, vec![1.0; t])];
        let blank = [(); 2].map(|()| Host { dtype: Dtype::F32, data: vec![7.0; t] });
        for k in LIST.iter().filter(|k| k.name().starts_with("linear_cross_entropy")) {
            for schedule in p.tries(p.offered(*k, &work), 0) {
                let got = p.run(*k, &work, &schedule, &operands, &blank);
                let lost: Vec<usize> = (0..t).filter(|i| got[1][*i].is_nan() != (*i == 3)).collect();
                assert!(lost.is_empty(), "{} {schedule} on {}: rows {lost:?}", k.name(), p.target.name);
            }
        }
    }
}
