//! Launches side by side give what each gives alone, on every GPU that is present.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Draw;
use common::device::devices;
use common::einsum::{Case, Shape, case};
use common::reference::Host;
use omchat_codegen::{Body, Family, Kind, Nest, Read, Schedule, Step, Work, Write};
use omchat_ir::{Dtype, Type};
use omchat_kernels::{Horizontal, Prepared, by_name};

/// Columns of products that share a row of so many elements: more than a cube has and fewer, in any order.
const PRODUCTS: [([usize; 3], usize, usize); 4] =
    [([96, 20, 20], 1, 256), ([4, 130, 8], 1, 65), ([33, 7, 64], 3, 128), ([8, 8, 300], 1, 40)];

fn widths(schedules: &[Schedule]) -> Vec<u32> {
    schedules.iter().map(|s| s.get("units")).collect()
}

#[test]
fn products_side_by_side() {
    let kernel = by_name("einsum.vector").unwrap();
    for device in devices().iter().filter(|d| d.target.family != Family::Cpu) {
        let narrow = if device.target.holds(Dtype::Bf16) { Dtype::Bf16 } else { Dtype::F32 };
        for (seed, (columns, rows, k)) in PRODUCTS.into_iter().enumerate() {
            let mut d = Draw::of(900 + seed as u64);
            for dtype in [Dtype::F32, narrow] {
                // The last of them is written behind a row that a number names.
                let shape = |(i, n)| Shape { slack: if i == 2 { 3 } else { 0 }, ..Shape::of(rows, n, k, dtype) };
                let cases: Vec<Case> = columns.into_iter().enumerate().map(|c| case(&mut d, shape(c))).collect();
                let works: Vec<Work> = cases.iter().map(Case::work).collect();
                // The widest cube that all offer.
                let offered: Vec<Vec<Schedule>> = works.iter().map(|w| device.offered(kernel, w)).collect();
                let all = |units: &u32| offered.iter().all(|s| widths(s).contains(units));
                let units = widths(&offered[0]).into_iter().filter(all).max().expect("a width that all offer");
                let prepared: Vec<Prepared> = works
                    .iter()
                    .zip(&offered)
                    .map(|(w, s)| kernel.prepare(w, s.iter().find(|s| s.get("units") == units).unwrap()).unwrap())
                    .collect();
                let launches: Vec<&Prepared> = prepared.iter().collect();
                let operands: Vec<_> = cases.iter().map(|c| &c.operands[..]).collect();
                let results: Vec<_> = cases.iter().map(|c| &c.results[..]).collect();
                let got = device.run_beside(&launches, &operands, &results);
                for (c, got) in cases.iter().zip(got) {
                    let wrong = c.wrong(&got[0], 0.0);
                    assert!(wrong.is_none(), "{}: {columns:?} columns: {}", device.target.name, wrong.unwrap());
                }
            }
        }
    }
}

/// A map that moves so many numbers in the opposite order.
fn turned(elements: usize) -> Work {
    let mut body = Body::default();
    let step = body.push(Step::Read { read: 0, kind: Kind::Float });
    body.results = vec![step];
    let view = |strides| Read { operand: 0, dtype: Dtype::F32, offset: 0, strides, at: None };
    Work::Nest(Nest {
        kept: vec![2, elements / 2],
        folded: vec![],
        fold: None,
        reads: vec![view(vec![1, 2])],
        body,
        epilogue: Body::default(),
        writes: vec![Write { result: 0, dtype: Dtype::F32, offset: 0, strides: vec![elements / 2, 1], at: None }],
    })
}

#[test]
fn maps_side_by_side() {
    let kernel = by_name("map.plain").unwrap();
    for device in devices().iter().filter(|d| d.target.family != Family::Cpu) {
        let sizes = [600, 2, 1026];
        let works = sizes.map(turned);
        let one = |w: &Work| kernel.prepare(w, &device.offered(kernel, w)[0]).unwrap();
        let prepared: Vec<Prepared> = works.iter().map(one).collect();
        let launches: Vec<&Prepared> = prepared.iter().collect();
        let operands = sizes.map(|n| [Host::new(Dtype::F32, (0..n).map(|i| i as f64).collect())]);
        let results = sizes.map(|n| [Host { dtype: Dtype::F32, data: vec![f64::NAN; n] }]);
        let (ins, outs): (Vec<_>, Vec<_>) = operands.iter().zip(&results).map(|(o, r)| (&o[..], &r[..])).unzip();
        for (n, got) in sizes.into_iter().zip(device.run_beside(&launches, &ins, &outs)) {
            let want: Vec<f64> = (0..n).map(|i| (i % (n / 2) * 2 + i / (n / 2)) as f64).collect();
            assert_eq!(got[0], want, "{}: {n} elements", device.target.name);
        }
    }
}

/// Rows of a norm: of one and of several, of whole vectors and not.
const NORMS: [(usize, usize, Dtype); 4] =
    [(1, 512, Dtype::Bf16), (3, 256, Dtype::F32), (2, 515, Dtype::F32), (1, 72, Dtype::Bf16)];

fn norm(rows: usize, width: usize, dtype: Dtype) -> Work {
    let row = Type::new(dtype, [rows, width]);
    let operands = vec![row.clone(), Type::new(dtype, [width]), Type::new(Dtype::F32, [])];
    Work::Function { name: "rms_norm".into(), binds: Default::default(), operands, results: vec![row] }
}

fn drawn(d: &mut Draw, dtype: Dtype, n: usize) -> Host {
    Host::new(dtype, (0..n).map(|_| d.real(-1.0, 1.0)).collect())
}

#[test]
fn norms_side_by_side_and_beside_a_prefetch() {
    let (kernel, asks) = (by_name("norm.shared").unwrap(), by_name("prefetch.lines").unwrap());
    for device in devices().iter().filter(|d| d.target.family != Family::Cpu) {
        for (seed, (rows, width, dtype)) in NORMS.into_iter().enumerate() {
            let dtype = if device.target.holds(dtype) { dtype } else { Dtype::F32 };
            let mut d = Draw::of(70 + seed as u64);
            let work = norm(rows, width, dtype);
            let schedule = device.offered(kernel, &work)[0].clone();
            let prepared = kernel.prepare(&work, &schedule).unwrap();
            let eps = Host::new(Dtype::F32, vec![1e-5]);
            let norms: Vec<[Host; 3]> = (0..2)
                .map(|_| [drawn(&mut d, dtype, rows * width), drawn(&mut d, dtype, width), eps.clone()])
                .collect();
            let result = [Host { dtype, data: vec![f64::NAN; rows * width] }];
            // What is asked for ends within a line; it stands between the norms, and is nobody's.
            let asked = [drawn(&mut d, Dtype::Bf16, 4100)];
            let mut launches = vec![&prepared, &prepared];
            let mut operands = vec![&norms[0][..], &norms[1][..]];
            let mut results = vec![&result[..], &result[..]];
            let ask = Work::Prefetch { dtype: Dtype::Bf16, bytes: 8200 };
            let words = ["units", "lanes", "bits"].map(|w| (w, schedule.get(w)));
            let asking = asks.prepare(&ask, &Schedule::new(&words)).unwrap();
            let cuda = device.target.family == Family::Cuda;
            if cuda {
                launches.insert(1, &asking);
                operands.insert(1, &asked[..]);
                results.insert(1, &[]);
            }
            let mut got = device.run_beside(&launches, &operands, &results);
            if cuda {
                assert!(got.remove(1).is_empty());
            }
            for ([x, w, _], got) in norms.iter().zip(got) {
                for (r, row) in x.data.chunks(width).enumerate() {
                    let scale = (row.iter().map(|x| x * x).sum::<f64>() / width as f64 + 1e-5).sqrt().recip();
                    for (c, x) in row.iter().enumerate() {
                        let (want, got) = (x * scale * w.data[c], got[0][r * width + c]);
                        let slack = if dtype == Dtype::F32 { 1e-5 } else { 2e-2 };
                        let near = (want - got).abs() <= slack * (1.0 + want.abs());
                        assert!(near, "{}: {rows} x {width}: [{r}, {c}] is {got}, not {want}", device.target.name);
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_alike_is_not_joined() {
    let target = omchat_codegen::Target::cuda(90);
    let (vector, map) = (by_name("einsum.vector").unwrap(), by_name("map.plain").unwrap());
    let c = case(&mut Draw::of(7), Shape::of(1, 64, 256, Dtype::Bf16));
    let product = vector.prepare(&c.work(), &vector.schedules(&c.work(), &target).unwrap()[0]).unwrap();
    let moved = map.prepare(&turned(64), &map.schedules(&turned(64), &target).unwrap()[0]).unwrap();
    assert!(Horizontal::of(&[&product, &product]).is_some());
    assert!(Horizontal::of(&[&product, &moved]).is_none(), "other units");
    let other = by_name("einsum.mma").unwrap();
    let c = case(&mut Draw::of(7), Shape::of(64, 64, 64, Dtype::Bf16));
    let tiles = other.prepare(&c.work(), &other.schedules(&c.work(), &target).unwrap()[0]).unwrap();
    assert!(Horizontal::of(&[&tiles, &tiles]).is_none(), "a kernel that does not say so");
    assert!(Horizontal::of(&[]).is_none());
}
