//! Kernels become CUDA C++ and WGSL with no device present.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use omchat_codegen::{Body, Fold, Kind, Nest, Read, Step, Target, Work, Write};
use omchat_ir::{Dtype, Scalar, Type};
use omchat_kernels::{Dialect, LIST};

fn product(dtype: Dtype) -> Work {
    let read = |operand, strides: [usize; 3]| Read { operand, dtype, offset: 0, strides: strides.to_vec(), at: None };
    Work::Nest(Nest {
        kept: vec![8, 16],
        folded: vec![32],
        fold: Some(Fold::Sum),
        reads: vec![read(0, [32, 0, 1]), read(1, [0, 32, 1])],
        body: Body {
            steps: vec![
                Step::Read { read: 0, kind: Kind::Float },
                Step::Read { read: 1, kind: Kind::Float },
                Step::Apply { f: Scalar::Mul, args: vec![0, 1], of: Kind::Float },
            ],
            results: vec![2],
        },
        epilogue: Body {
            steps: vec![
                Step::Folded { kind: Kind::Float },
                Step::Apply { f: Scalar::Erf, args: vec![0], of: Kind::Float },
            ],
            results: vec![1],
        },
        writes: vec![Write { result: 0, dtype, offset: 0, strides: vec![16, 1], at: None }],
    })
}

/// A larger product, so that kernels of tiles take it; 100 elements along k are no whole vectors.
fn tall(dtype: Dtype, k: usize) -> Work {
    let Work::Nest(mut nest) = product(dtype) else { unreachable!() };
    (nest.kept, nest.folded) = (vec![130, 72], vec![k]);
    nest.reads[0].strides = vec![k, 0, 1];
    nest.reads[1].strides = vec![0, k, 1];
    nest.writes[0].strides = vec![72, 1];
    Work::Nest(nest)
}

/// A decode's product.
fn row(dtype: Dtype, k: usize) -> Work {
    let Work::Nest(mut nest) = tall(dtype, k) else { unreachable!() };
    nest.kept = vec![2, 72];
    Work::Nest(nest)
}

fn gelu(dtype: Dtype) -> Work {
    let Work::Nest(mut nest) = product(dtype) else { unreachable!() };
    nest.fold = None;
    nest.folded = vec![];
    nest.reads.iter_mut().for_each(|r| r.strides.truncate(2));
    nest.epilogue = Body::default();
    Work::Nest(nest)
}

/// Sums of long rows.
fn sums(dtype: Dtype) -> Work {
    let Work::Nest(mut nest) = product(dtype) else { unreachable!() };
    (nest.kept, nest.folded) = (vec![6], vec![3000]);
    nest.reads.truncate(1);
    nest.reads[0].strides = vec![3000, 1];
    nest.body = Body { steps: vec![Step::Read { read: 0, kind: Kind::Float }], results: vec![0] };
    nest.writes[0].strides = vec![1];
    Work::Nest(nest)
}

fn norm(name: &str, dtype: Dtype) -> Work {
    let row = || Type::new(dtype, [600]);
    let mut operands = vec![Type::new(dtype, [9, 600]), row()];
    operands.extend((name == "layer_norm").then(row));
    operands.push(Type::new(Dtype::F32, []));
    let results = vec![operands[0].clone()];
    Work::Function { name: name.into(), binds: Default::default(), operands, results }
}

fn norm_back(name: &str, dtype: Dtype) -> Work {
    let (rows, stat) = (Type::new(dtype, [9, 600]), Type::new(Dtype::F32, [9]));
    let operands = vec![rows.clone(), Type::new(dtype, [600]), Type::new(Dtype::F32, []), rows.clone()];
    let mut results = vec![rows, stat.clone(), stat.clone()];
    results.extend((name == "layer_norm_dx").then_some(stat));
    Work::Function { name: name.into(), binds: Default::default(), operands, results }
}

fn attention(dtype: Dtype) -> Work {
    let f = |shape: &[usize]| Type::new(dtype, shape);
    let i = |shape: &[usize]| Type::new(Dtype::I32, shape);
    Work::Function {
        name: "attention".into(),
        binds: Default::default(),
        operands: vec![f(&[1, 2, 3, 4, 64]), f(&[1, 2, 9, 64]), f(&[1, 2, 9, 64]), i(&[1, 4]), i(&[1, 4]), i(&[1, 9])],
        results: vec![f(&[1, 2, 3, 4, 64]), Type::new(Dtype::F32, [1, 2, 3, 4])],
    }
}

fn attention_back(name: &str, dtype: Dtype) -> Work {
    let Work::Function { mut operands, .. } = attention(dtype) else { unreachable!() };
    let f32s = |shape: &[usize]| Type::new(Dtype::F32, shape);
    let (q, k) = (operands[0].clone(), operands[1].clone());
    operands.extend([f32s(&q.shape[..4]), f32s(&q.shape[..4]), q.clone()]);
    let results = if name == "attention_dq" { vec![f32s(&q.shape)] } else { vec![f32s(&k.shape), f32s(&k.shape)] };
    Work::Function { name: name.into(), binds: Default::default(), operands, results }
}

fn losses(dtype: Dtype) -> Work {
    let row = || Type::new(Dtype::F32, [70]);
    let operands = vec![Type::new(dtype, [70, 64]), Type::new(dtype, [300, 64]), Type::new(Dtype::I32, [70])];
    Work::Function {
        name: "linear_cross_entropy".into(),
        binds: Default::default(),
        operands,
        results: vec![row(), row()],
    }
}

/// The lines without the numbers of values, sorted: CubeCL declares shared arrays in the order of a hash map.
fn unnamed(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|l| l.split('v').map(|p| p.trim_start_matches(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join("v"))
        .collect();
    lines.sort();
    lines
}

fn texts(dialect: Dialect, target: &Target, dtypes: &[Dtype], mark: &str) {
    let mut seen = std::collections::BTreeSet::new();
    let mut count = 0;
    for &dtype in dtypes {
        let back = |name| attention_back(name, dtype);
        let kth = |width| Work::KthLargest { rows: 2, width, k: 3 };
        let scatter = Work::ScatterAdd { dtype, height: 9, width: 24, tokens: 7, ids: 1, rows: 2 };
        for work in [
            product(dtype),
            tall(dtype, 100),
            tall(dtype, 96),
            row(dtype, 4096),
            gelu(dtype),
            attention(dtype),
            back("attention_dq"),
            back("attention_dkv"),
            scatter,
            sums(dtype),
            norm("rms_norm", dtype),
            norm("layer_norm", dtype),
            norm_back("rms_norm_dx", dtype),
            norm_back("layer_norm_dx", dtype),
            losses(dtype),
            Work::Prefetch { dtype, bytes: 9000 },
            kth(9),
            kth(5000),
        ] {
            for k in LIST {
                for s in k.schedules(&work, target).unwrap_or_default() {
                    let sources = || k.prepare(&work, &s).unwrap().sources(dialect);
                    let all = sources().unwrap_or_else(|e| panic!("{} {s}: {e}", k.name()));
                    for (step, (text, again)) in all.iter().zip(sources().unwrap()).enumerate() {
                        assert!(text.contains(mark), "{} {s}: no {mark} in\n{text}", k.name());
                        let bound = text.matches("@binding(").count();
                        assert!(bound <= work.bindings(), "{} {s} binds {bound}, not {}", k.name(), work.bindings());
                        assert!(unnamed(text) == unnamed(&again), "{} {s}: two texts of one kernel", k.name());
                        if let Ok(dir) = std::env::var("OMCHAT_SOURCES") {
                            let end = if mark == "@compute" { "wgsl" } else { "cu" };
                            let file = format!("{dir}/{}.{dtype}.{count}.{step}.{end}", k.name());
                            std::fs::write(file, text).unwrap();
                        }
                    }
                    seen.insert(k.name());
                    count += 1;
                }
            }
        }
    }
    for name in ["fold.shared", "norm.shared", "layer_norm.rows", "norm_dx.shared", "norm_dx.rows", "kth_largest.radix"]
    {
        assert!(seen.contains(name), "{name} gave no text: {seen:?}");
    }
    let plain = ["map.plain", "fold.plain", "kth_largest.plain", "scatter_add.plain", "attention.plain"];
    for name in plain.into_iter().chain(["einsum.dot", "linear_cross_entropy.tiled"]) {
        assert!(seen.contains(name), "{name} gave no text: {seen:?}");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_text() {
    texts(Dialect::CudaCpp { sm: 90 }, &Target::cuda(90), &[Dtype::F32, Dtype::Bf16, Dtype::F16], "__global__");
}

#[cfg(feature = "wgpu")]
#[test]
fn wgsl_text() {
    texts(Dialect::Wgsl, &Target::wgpu(), &[Dtype::F32], "@compute");
}

#[cfg(feature = "wgpu")]
#[test]
fn wgsl_reads_halves_by_words() {
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let Work::Nest(mut nest) = product(dtype) else { unreachable!() };
        let refused = |n: &Nest, name: &str| {
            let k = omchat_kernels::by_name(name).unwrap();
            k.schedules(&Work::Nest(n.clone()), &Target::wgpu()).err().map(|r| r.0)
        };
        assert_eq!(refused(&nest, "einsum.dot"), Some(format!("wgpu writes no {dtype}")));
        nest.writes[0].dtype = Dtype::F32;
        let work = Work::Nest(nest);
        for k in LIST {
            for s in k.schedules(&work, &Target::wgpu()).unwrap_or_default() {
                let text = k.prepare(&work, &s).unwrap().sources(Dialect::Wgsl).unwrap().concat();
                let words = text.matches("array<u32>").count();
                assert!(words >= 3 && !text.contains("f16"), "{} {s} in {dtype}:\n{text}", k.name());
            }
        }
    }
}

#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
#[test]
fn without_compilers_there_is_a_reason() {
    let k = omchat_kernels::by_name("map.plain").unwrap();
    let s = k.schedules(&gelu(Dtype::F32), &Target::cuda(90)).unwrap();
    let error = k.prepare(&gelu(Dtype::F32), &s[0]).unwrap().sources(Dialect::CudaCpp { sm: 90 }).unwrap_err();
    assert!(error.contains("feature `cuda`"), "{error}");
}
