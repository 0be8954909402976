//! Einsums of f32 on matrix units: only where tf32 is allowed, and then off by what 10 bits of fraction lose and no more.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Each test file brings its own `common`.
#![allow(clippy::duplicate_mod)]

mod common;

use common::Draw;
use common::device::devices;
use common::einsum::{Case, Shape, case};
use omchat_codegen::{Family, Kernel, Target, offers, preferred};
use omchat_ir::Dtype;
use omchat_kernels::{LIST, by_name};

/// The nearest number with 10 bits of fraction; ties go away from 0.
fn rounded(x: f64) -> f64 {
    if x == 0.0 {
        return x;
    }
    let step = 2f64.powi(x.abs().log2().floor() as i32 - 10);
    (x.abs() / step + 0.5).floor() * step * x.signum()
}

/// The case with its factors rounded.
fn with_rounded(c: &Case) -> Case {
    let mut operands = c.operands.clone();
    for x in operands[..2].iter_mut().flat_map(|o| &mut o.data) {
        *x = rounded(*x);
    }
    Case { shape: c.shape, nest: c.nest.clone(), operands, results: c.results.clone() }
}

#[test]
fn rounding_is_to_the_nearest_of_10_bits() {
    assert_eq!(rounded(1.0 + 1.0 / 4096.0), 1.0);
    assert_eq!(rounded(-1.0 - 1.0 / 2048.0), -1.0 - 1.0 / 1024.0);
    assert_eq!(rounded(2.0 - 1.0 / 65536.0), 2.0);
    assert_eq!(rounded(0.75), 0.75);
}

#[test]
fn factors_are_rounded_and_nothing_else() {
    let kernel = by_name("einsum.tf32").unwrap();
    // The bound comes from the format: each factor is off by 2^-11 of itself.
    assert_eq!(kernel.rounding(), (1.0 + 1.0 / 2048.0f64).powi(2) - 1.0);
    let shape = |m, n, k, along, offset| Shape { along, offset, ..Shape::of(m, n, k, Dtype::F32) };
    let shapes = [
        shape(64, 64, 64, [true, true], [0, 0]),
        shape(9, 8, 24, [true, false], [4, 0]),
        shape(131, 72, 33, [false, true], [0, 1]),
        Shape { batch: 2, k: [3, 40], ..shape(70, 130, 40, [true, true], [0, 8]) },
        shape(64, 136, 100, [false, false], [0, 0]),
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        for p in devices().into_iter().filter(|p| p.target.sm >= 80) {
            let c = case(&mut Draw::of(40 + i as u64), shape);
            let all = kernel.schedules(&c.work(), &p.target.clone().with_tf32()).unwrap();
            assert!(!all.is_empty());
            // Another tile for each shape: of emulated ones each is compiled.
            for s in all.iter().skip(i % all.len()).take(if p.client.is_some() { 9 } else { 1 }) {
                let got = p.run(kernel, &c.work(), s, &c.operands, &c.results);
                let wrong = with_rounded(&c).wrong(&got[0], 0.0).or_else(|| c.wrong(&got[0], kernel.rounding()));
                assert_eq!(wrong, None, "[{s}] on {}", p.target.name);
                // That nothing was rounded would be seen.
                assert!(c.wrong(&got[0], 0.0).is_some(), "[{s}] on {}: exact", p.target.name);
            }
        }
    }
}

#[test]
fn f32_is_rounded_where_it_is_allowed_and_nowhere_else() {
    let kernel = by_name("einsum.tf32").unwrap();
    let list: Vec<&dyn Kernel> = LIST.iter().map(|k| *k as &dyn Kernel).collect();
    let work = |dtype| case(&mut Draw::of(1), Shape::of(160, 160, 64, dtype)).work();
    let chosen = |target: &Target| {
        let (all, _) = offers(&work(Dtype::F32), target, &list);
        all[preferred(&all).unwrap()].kernel.name()
    };
    for target in [Target::cpu(2), Target::wgpu(), Target::cuda(80), Target::cuda(90)] {
        assert!(!target.tf32 && kernel.schedules(&work(Dtype::F32), &target).is_err(), "{}", target.name);
        assert!(list.iter().all(|k| k.rounding() == 0.0 || k.schedules(&work(Dtype::F32), &target).is_err()));
        let allowed = target.clone().with_tf32();
        let cuda = target.family == Family::Cuda;
        assert_eq!(allowed.tf32, cuda);
        assert_eq!(allowed.name, if cuda { format!("{} tf32", target.name) } else { target.name.clone() });
        assert_eq!(chosen(&allowed) == "einsum.tf32", cuda, "{}: {}", target.name, chosen(&allowed));
        assert!(kernel.schedules(&work(Dtype::Bf16), &allowed).is_err(), "halves have their own");
    }
    let said = kernel.schedules(&work(Dtype::F32), &Target::cuda(90)).unwrap_err().0;
    assert_eq!(said, "factors would be rounded to 10 bits of fraction, which nobody allowed");
}
