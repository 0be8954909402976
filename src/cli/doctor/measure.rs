//! A trial of each device, and the speeds that it reaches: the ceilings against which others are read.

use crate::cli::Error;
use omchat::Device;
use omchat_ir::{Dtype, Func, Module};
use omchat_runtime::{Executable, HostTensor, Store};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// Runs a small program, checks its numbers, and yields how many kernels the device compiled for it.
///
/// Errors: the device fails, or computes something else.
pub fn trial(device: &Device) -> Result<usize, Error> {
    let text = "func @trial(%x: f32[5, 3]) -> f32[5] { %y = mul %x, %x %s = reduce.sum %y \"r c -> r\" return %s }";
    let x: Vec<f32> = (0..15).map(|n| n as f32).collect();
    let (exe, mut store) = load(device, text)?;
    let results = exe.run(&[("x", HostTensor::f32([5, 3], &x))], &mut store)?;
    let have = results.first().map(HostTensor::to_f32).unwrap_or_default();
    let want: Vec<f32> = x.chunks(3).map(|row| row.iter().map(|v| v * v).sum()).collect();
    if have == want {
        Ok(exe.compilations())
    } else {
        Err(Error::failed(format!("the sums of squares are {want:?}, it computed {have:?}")))
    }
}

/// Bytes copied and products summed in a second, by name.
pub fn ceilings(device: &Device) -> Value {
    let mut out = Map::new();
    let slow = device.name().contains("software");
    let cuda = device.name() == "cuda";
    let mebibytes: usize = if cuda {
        1024
    } else if slow {
        8
    } else {
        64
    };
    let said = |r: Result<f64, Error>, unit: &str| {
        r.map_or_else(|e| json!(e.to_string()), |x| json!(format!("{x:.1} {unit}")))
    };
    out.insert("memory traffic".into(), said(copies(device, mebibytes << 18), "GB/s"));
    for dtype in [Dtype::F32, Dtype::Bf16] {
        if !device.target().holds(dtype) {
            continue;
        }
        let sizes: &[usize] = if cuda {
            &[1024, 4096]
        } else if slow {
            &[128]
        } else {
            &[256, 512]
        };
        let best = sizes.iter().map(|n| (products(device, *n, dtype), n)).max_by(|a, b| {
            let speed = |r: &Result<f64, Error>| r.as_ref().ok().copied().unwrap_or_default();
            speed(&a.0).total_cmp(&speed(&b.0))
        });
        if let Some((speed, n)) = best {
            out.insert(format!("einsum {dtype}"), said(speed, &format!("GFLOP/s at {n}x{n}x{n}")));
        }
    }
    Value::Object(out)
}

/// Gigabytes read and written in a second by a pass over `n` floats.
fn copies(device: &Device, n: usize) -> Result<f64, Error> {
    let text = format!(
        "func @pass(%one: f32[1], state %x: f32[{n}]) -> (f32[1], f32[{n}]) {{ %z = add %one, 1 %y = add %x, 1 return %z, %y }}"
    );
    let (exe, mut store) = load(device, &text)?;
    store.upload(device, "x", &HostTensor::zeros(omchat_ir::Type::new(Dtype::F32, [n])));
    let seconds = best(|| exe.run(&[("one", HostTensor::f32([1], &[0.0]))], &mut store).map(|_| ()))?;
    let moved: usize = exe.program().map_or(0, |p| {
        let bytes = |list: &[usize]| list.iter().map(|b| p.buffers[*b].ty.bytes()).sum::<usize>();
        p.launches.iter().map(|l| bytes(&l.operands) + bytes(&l.results)).sum()
    });
    Ok(moved as f64 / seconds / 1e9)
}

/// Billions of additions and multiplications in a second by a chain of products of square matrices.
fn products(device: &Device, n: usize, dtype: Dtype) -> Result<f64, Error> {
    const CHAIN: usize = 4;
    let mut text =
        format!("func @chain(weight %c0: {dtype}[{n}, {n}], weight %b: {dtype}[{n}, {n}]) -> {dtype}[1, {n}] {{\n");
    for i in 0..CHAIN {
        text += &format!("%c{} = einsum.{dtype} %c{i}, %b \"m k, n k -> m n\"\n", i + 1);
    }
    text += &format!("%row = slice %c{CHAIN} axis=0 start=0 end=1\n%out = copy %row\nreturn %out }}");
    let (exe, mut store) = load(device, &text)?;
    // Each product keeps the size of its numbers: the rows of b have length 1.
    let b: Vec<f32> = (0..n * n).map(|i| if (i * 7919) % 17 < 8 { 1.0 } else { -1.0 } / (n as f32).sqrt()).collect();
    for name in ["c0", "b"] {
        store.upload(device, name, &HostTensor::floats(dtype, [n, n], &b));
    }
    let seconds = best(|| exe.run(&[], &mut store).map(|_| ()))?;
    Ok((2 * n * n * n * CHAIN) as f64 / seconds / 1e9)
}

fn load(device: &Device, text: &str) -> Result<(Executable, Store), Error> {
    let module: Module = omchat_ir::parse(text)?;
    let entry = Func(module.functions.len().saturating_sub(1) as u32);
    Ok((Executable::load(device, &module, entry)?, Store::default()))
}

/// The shortest run in seconds, of runs for half a second after one that compiles.
fn best(mut run: impl FnMut() -> Result<(), omchat_runtime::Error>) -> Result<f64, Error> {
    run()?;
    let (begun, mut best) = (Instant::now(), Duration::MAX);
    while best == Duration::MAX || begun.elapsed() < Duration::from_millis(500) {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed());
    }
    Ok(best.as_secs_f64().max(1e-9))
}
