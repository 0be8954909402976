//! A trial of each device, and the ceilings that it reaches.

use crate::cli::Error;
use omchat::Device;
use omchat_ir::{Func, Module};
use omchat_runtime::{Executable, HostTensor, Store};
use serde_json::{Map, Value, json};

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

/// The ceilings by name, or why there are none.
pub fn ceilings(device: &Device) -> Value {
    let mut out = Map::new();
    match device.ceilings() {
        Err(e) => drop(out.insert("error".into(), json!(e.to_string()))),
        Ok(None) => {}
        Ok(Some(c)) => {
            out.insert("copy".into(), json!(format!("{:.1} GB/s", c.copy_gb_s)));
            for b in c.einsum {
                let speed = format!("{:.4} TFLOP/s at {n} x {n} x {n}", b.tflop_s, n = b.size);
                out.insert(format!("einsum {}", b.dtype), json!(speed));
            }
        }
    }
    Value::Object(out)
}

fn load(device: &Device, text: &str) -> Result<(Executable, Store), Error> {
    let module: Module = omchat_ir::parse(text)?;
    let entry = Func(module.functions.len().saturating_sub(1) as u32);
    Ok((Executable::load(device, &module, entry)?, Store::default()))
}
