//! Prints GFLOP/s of the matrix products and of attention, and GB/s of maps, on the CPU runtime or through WGSL.
//!
//! `cargo run --release -p omchat-kernels --features cpu,wgpu --example gflops [part of a kernel's name] [wgpu]`

use std::time::Instant;

use cubecl::Device;
use cubecl::prelude::*;
use omchat_codegen::{Body, Fold, Kind, Nest, Read, Step, Target, Work, Write};
use omchat_ir::{Dtype, Scalar, Type};
use omchat_kernels::{Args, Buffer, LIST};

struct Bench {
    client: Client,
    target: Target,
    only: String,
}

impl Bench {
    fn buffer(&self, dtype: Dtype, n: usize, value: impl Fn(usize) -> f32) -> Buffer {
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => (0..n).flat_map(|i| value(i).to_le_bytes()).collect(),
            Dtype::Bf16 => (0..n).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect(),
            Dtype::F16 => (0..n).flat_map(|i| half::f16::from_f32(value(i)).to_le_bytes()).collect(),
            _ => (0..n).flat_map(|i| (value(i) as i32).to_le_bytes()).collect(),
        };
        Buffer { handle: self.client.create_from_slice(&bytes), elements: n }
    }

    /// Best of some runs of every kernel that takes the work; `amount` is what one run does, in units of 1e9.
    fn run(&self, what: &str, work: &Work, operands: &[Buffer], results: &[Buffer], amount: f64, unit: &str) {
        for kernel in LIST {
            if !kernel.name().contains(&self.only) || kernel.name() == "attention.plain" {
                continue;
            }
            for schedule in kernel.schedules(work, &self.target).unwrap_or_default() {
                let Ok(prepared) = kernel.prepare(work, &schedule) else { continue };
                let words: Vec<u8> = prepared.meta().iter().flat_map(|w| w.to_le_bytes()).collect();
                let meta = Buffer { handle: self.client.create_from_slice(&words), elements: prepared.meta().len() };
                let args = Args { operands, results, meta: &meta };
                let mut best = f64::MAX;
                let started = Instant::now();
                let mut first = 0.0;
                for run in 0..40 {
                    let t = Instant::now();
                    if prepared.launch(&self.client, &args).is_err() {
                        return;
                    }
                    let _ = self.client.read_one(meta.handle.clone());
                    let took = t.elapsed().as_secs_f64();
                    if run == 0 {
                        first = took
                    } else {
                        best = best.min(took)
                    }
                    if started.elapsed().as_secs() > 4 && run > 1 {
                        break;
                    }
                }
                println!(
                    "{what:<44} {:<18} {:8.1} {unit}  {:9.3} ms  (first {:.0} ms)  {schedule}",
                    kernel.name(),
                    amount / best / 1e9,
                    best * 1e3,
                    first * 1e3
                );
            }
        }
    }

    /// What a launch costs when many follow each other: on the host, and in all.
    fn launches(&self, c: usize) {
        let read = |operand| Read { operand, dtype: Dtype::F32, offset: 0, strides: vec![1], at: None };
        let body = Body {
            steps: vec![
                Step::Read { read: 0, kind: Kind::Float },
                Step::Read { read: 1, kind: Kind::Float },
                Step::Apply { f: Scalar::Add, args: vec![0, 1], of: Kind::Float },
            ],
            results: vec![2],
        };
        let writes = vec![Write { result: 0, dtype: Dtype::F32, offset: 0, strides: vec![1], at: None }];
        let work = Work::Nest(Nest {
            kept: vec![c],
            folded: vec![],
            fold: None,
            reads: vec![read(0), read(1)],
            body,
            epilogue: Body::default(),
            writes,
        });
        let (x, y, z) = (
            self.buffer(Dtype::F32, c, |_| 1.0),
            self.buffer(Dtype::F32, c, |_| 2.0),
            self.buffer(Dtype::F32, c, |_| 0.0),
        );
        let kernel = omchat_kernels::by_name("map.plain").filter(|_| self.only.is_empty() || self.only == "launches");
        let Some(kernel) = kernel else { return };
        let Some(prepared) = kernel.schedules(&work, &self.target).ok().and_then(|s| kernel.prepare(&work, &s[0]).ok())
        else {
            return;
        };
        let words: Vec<u8> = prepared.meta().iter().flat_map(|w| w.to_le_bytes()).collect();
        let meta = Buffer { handle: self.client.create_from_slice(&words), elements: prepared.meta().len() };
        let (operands, results) = ([x, y], [z]);
        let args = Args { operands: &operands, results: &results, meta: &meta };
        let count = 6400;
        let (mut host, mut all) = (f64::MAX, f64::MAX);
        for _ in 0..5 {
            let t = Instant::now();
            for i in 0..count {
                let _ = prepared.launch(&self.client, &args);
                if i % 16 == 15 {
                    let _ = self.client.flush();
                }
            }
            host = host.min(t.elapsed().as_secs_f64());
            let _ = self.client.read_one(meta.handle.clone());
            all = all.min(t.elapsed().as_secs_f64());
        }
        println!(
            "launches of add [{c}]: host {:.2} us, in all {:.2} us",
            host * 1e6 / count as f64,
            all * 1e6 / count as f64
        );
    }

    /// y[m, n] = x[m, k] · w[n, k] (+ bias), or w[k, n] when `rows`.
    fn product(&self, m: usize, n: usize, k: usize, w: Dtype, rows: bool) {
        let read = |operand, dtype, strides: [usize; 3]| Read {
            operand,
            dtype,
            offset: 0,
            strides: strides.to_vec(),
            at: None,
        };
        let body = Body {
            steps: vec![
                Step::Read { read: 0, kind: Kind::Float },
                Step::Read { read: 1, kind: Kind::Float },
                Step::Apply { f: Scalar::Mul, args: vec![0, 1], of: Kind::Float },
            ],
            results: vec![2],
        };
        let epilogue = Body {
            steps: vec![
                Step::Folded { kind: Kind::Float },
                Step::Read { read: 2, kind: Kind::Float },
                Step::Apply { f: Scalar::Add, args: vec![0, 1], of: Kind::Float },
            ],
            results: vec![2],
        };
        let nest = Nest {
            kept: vec![m, n],
            folded: vec![k],
            fold: Some(Fold::Sum),
            reads: vec![
                read(0, Dtype::F32, [k, 0, 1]),
                read(1, w, if rows { [0, 1, n] } else { [0, k, 1] }),
                read(2, Dtype::F32, [0, 1, 0]),
            ],
            body,
            epilogue,
            writes: vec![Write { result: 0, dtype: Dtype::F32, offset: 0, strides: vec![n, 1], at: None }],
        };
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 100.0;
        let operands =
            [self.buffer(Dtype::F32, m * k, value), self.buffer(w, n * k, value), self.buffer(Dtype::F32, n, value)];
        let results = [self.buffer(Dtype::F32, m * n, |_| f32::NAN)];
        let what = format!("{m} x {n} x {k} w {} {}", w, if rows { "[k, n]" } else { "[n, k]" });
        self.run(&what, &Work::Nest(nest), &operands, &results, 2.0 * (m * n * k) as f64, "GFLOP/s");
    }

    /// Rows added to a table at ids, each id once and again.
    fn scatter(&self, height: usize, width: usize, tokens: usize, dtype: Dtype) {
        let work = Work::ScatterAdd { dtype, height, width, tokens, ids: 0, rows: 1 };
        let operands = [
            self.buffer(Dtype::I32, tokens, |i| (i / 2 * 7919 % height) as f32),
            self.buffer(dtype, tokens * width, |i| (i % 7) as f32),
        ];
        let results = [self.buffer(dtype, height * width, |_| 0.0)];
        let what = format!("scatter_add {tokens} x {width} onto {dtype}[{height}, {width}]");
        self.run(&what, &work, &operands, &results, (tokens * width) as f64, "G elem/s");
    }

    fn attention(&self, [b, h, g, t, s, d]: [usize; 6], filled: usize, dtype: Dtype) {
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
        let shapes = [vec![b, h, g, t, d], vec![b, h, s, d], vec![b, h, s, d], vec![b, t], vec![b, t], vec![b, s]];
        let count = |i: usize| shapes[i].iter().product::<usize>();
        let operands = [
            self.buffer(dtype, count(0), value),
            self.buffer(dtype, count(1), value),
            self.buffer(dtype, count(2), value),
            self.buffer(Dtype::I32, count(3), |_| 0.0),
            self.buffer(Dtype::I32, count(4), |i| (filled - t + i % t) as f32),
            self.buffer(Dtype::I32, count(5), |i| if i % s < filled { (i % s) as f32 } else { 2147483647.0 }),
        ];
        let results =
            [self.buffer(dtype, count(0), |_| f32::NAN), self.buffer(Dtype::F32, b * h * g * t, |_| f32::NAN)];
        let float = |i: usize| Type::new(dtype, shapes[i].clone());
        let int = |i: usize| Type::new(Dtype::I32, shapes[i].clone());
        let work = Work::Function {
            name: "attention".into(),
            binds: Default::default(),
            operands: vec![float(0), float(1), float(2), int(3), int(4), int(5)],
            results: vec![float(0), Type::new(Dtype::F32, [b, h, g, t])],
        };
        let pairs = (b * h * g * t) as f64 * (filled as f64 - t as f64 / 2.0);
        self.run(
            &format!("attention {b} {h} {g} {t} {s}/{filled} {d} {dtype}"),
            &work,
            &operands,
            &results,
            4.0 * d as f64 * pairs,
            "GFLOP/s",
        );
    }

    /// z = x * sigmoid(x) * y over rows, and the sum of squares of each row.
    fn maps(&self, t: usize, c: usize) {
        let read = |operand, strides: [usize; 2]| Read {
            operand,
            dtype: Dtype::F32,
            offset: 0,
            strides: strides.to_vec(),
            at: None,
        };
        let apply = |f, args: &[usize]| Step::Apply { f, args: args.to_vec(), of: Kind::Float };
        let one = |r| Step::Read { read: r, kind: Kind::Float };
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
        let operands = [
            self.buffer(Dtype::F32, t * c, value),
            self.buffer(Dtype::F32, t * c, value),
            self.buffer(Dtype::F32, c, value),
        ];
        let results = [self.buffer(Dtype::F32, t * c, |_| f32::NAN)];
        let write = |strides: Vec<usize>| vec![Write { result: 0, dtype: Dtype::F32, offset: 0, strides, at: None }];
        let map = |reads, body| {
            Work::Nest(Nest {
                kept: vec![t, c],
                folded: vec![],
                fold: None,
                reads,
                body,
                epilogue: Body::default(),
                writes: write(vec![c, 1]),
            })
        };
        let elements = (t * c) as f64;
        let add = map(
            vec![read(0, [c, 1]), read(1, [c, 1])],
            Body { steps: vec![one(0), one(1), apply(Scalar::Add, &[0, 1])], results: vec![2] },
        );
        self.run(&format!("add [{t}, {c}]"), &add, &operands, &results, elements, "G elem/s");
        let bias = map(
            vec![read(0, [c, 1]), read(2, [0, 1])],
            Body { steps: vec![one(0), one(1), apply(Scalar::Add, &[0, 1])], results: vec![2] },
        );
        self.run(&format!("bias [{t}, {c}]"), &bias, &operands, &results, elements, "G elem/s");
        let silu = map(
            vec![read(0, [c, 1]), read(1, [c, 1])],
            Body {
                steps: vec![
                    one(0),
                    apply(Scalar::Logistic, &[0]),
                    apply(Scalar::Mul, &[0, 1]),
                    one(1),
                    apply(Scalar::Mul, &[2, 3]),
                ],
                results: vec![4],
            },
        );
        self.run(&format!("silu mul [{t}, {c}]"), &silu, &operands, &results, elements, "G elem/s");
        let turn = map(vec![read(0, [1, t])], Body { steps: vec![one(0)], results: vec![0] });
        self.run(&format!("transpose [{t}, {c}]"), &turn, &operands, &results, elements, "G elem/s");
        let square = Body { steps: vec![one(0), apply(Scalar::Mul, &[0, 0])], results: vec![1] };
        let folded = Body { steps: vec![Step::Folded { kind: Kind::Float }], results: vec![0] };
        let fold = |kept: usize, folded_size: usize, strides: [usize; 2]| {
            Work::Nest(Nest {
                kept: vec![kept],
                folded: vec![folded_size],
                fold: Some(Fold::Sum),
                reads: vec![read(0, strides)],
                body: square.clone(),
                epilogue: folded.clone(),
                writes: write(vec![1]),
            })
        };
        self.run(
            &format!("squares of rows [{t}, {c}]"),
            &fold(t, c, [c, 1]),
            &operands,
            &results,
            elements,
            "G elem/s",
        );
        self.run(
            &format!("squares of columns [{t}, {c}]"),
            &fold(c, t, [1, c]),
            &operands,
            &results,
            elements,
            "G elem/s",
        );
    }
}

/// Products through WGSL.
#[cfg(feature = "wgpu")]
fn shaders(only: String) {
    let Ok(device) = Device::wgpu(cubecl::device::WgpuDeviceKind::default()) else {
        println!("skipped: no Vulkan or WebGPU device");
        return;
    };
    let b = Bench { client: device.client(), target: Target { max_bindings: 31, ..Target::wgpu() }, only };
    for (m, n, k) in
        [(256, 1536, 576), (256, 576, 1536), (512, 512, 512), (1, 1536, 576), (1, 49152, 576), (8, 1536, 576)]
    {
        b.product(m, n, k, Dtype::F32, false);
    }
    b.product(256, 1536, 576, Dtype::F32, true);
    b.product(1, 1536, 576, Dtype::F32, true);
}

#[cfg(not(feature = "wgpu"))]
fn shaders(_: String) {
    println!("skipped: built without the feature `wgpu`");
}

fn main() {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let only = std::env::args().nth(1).unwrap_or_default();
    if std::env::args().nth(2).as_deref() == Some("wgpu") {
        return shaders(only);
    }
    let Ok(device) = Device::cpu() else {
        println!("skipped: no CPU runtime in this build");
        return;
    };
    let b = Bench { client: device.client(), target: Target::cpu(cores), only };
    b.launches(576);
    b.maps(256, 576);
    b.maps(1, 576);
    b.maps(256, 1536);
    for (m, n, k) in
        [(256, 1536, 576), (256, 576, 1536), (1, 1536, 576), (1, 49152, 576), (256, 2304, 768), (64, 64, 64)]
    {
        b.product(m, n, k, Dtype::F32, false);
    }
    b.product(256, 1536, 576, Dtype::Bf16, false);
    b.product(1, 49152, 576, Dtype::Bf16, false);
    b.product(256, 1536, 576, Dtype::F32, true);
    // A training step: the MLP of a long sequence, then a tile of logits and its cotangents' way back.
    b.product(2048, 1536, 576, Dtype::F32, false);
    b.product(2048, 576, 1536, Dtype::F32, false);
    b.product(2048, 576, 1536, Dtype::F32, true);
    b.product(256, 49152, 576, Dtype::F32, false);
    b.product(256, 576, 49152, Dtype::F32, true);
    for n in [512, 1024, 2048] {
        b.product(n, n, n, Dtype::F32, false);
        b.product(n, n, n, Dtype::F32, true);
    }
    b.scatter(49152, 576, 2048, Dtype::F32);
    b.scatter(49152, 576, 2048, Dtype::Bf16);
    b.attention([1, 3, 3, 256, 8192, 64], 8192, Dtype::F32);
    b.attention([1, 3, 3, 256, 8192, 64], 8192, Dtype::Bf16);
    b.attention([1, 12, 1, 256, 256, 64], 256, Dtype::F32);
    b.attention([1, 16, 1, 1024, 1024, 72], 1024, Dtype::F32);
    b.attention([1, 3, 3, 2048, 2048, 64], 2048, Dtype::F32);
    b.attention([1, 3, 3, 1, 8192, 64], 8192, Dtype::F32);
    b.attention([1, 3, 3, 1, 8192, 64], 64, Dtype::F32);
}
