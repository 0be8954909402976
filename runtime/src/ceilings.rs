//! Ceilings: how fast a device copies and how fast it multiplies, by the kernels that it would choose. Other figures are
//! read as shares of these.

use crate::device::Device;
use crate::executable::program;
use crate::trial::{Budget, Trial};
use crate::{Error, HostTensor};
use omchat_codegen::{Amount, Family, Program};
use omchat_ir::{Dtype, Func, Type};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What a device reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// 10⁹ bytes a second, read and written, by a pass over memory beyond the caches.
    pub copy_gb_s: f64,
    /// The best einsum of square matrices by element type, of those that the device holds.
    pub einsum: Vec<Best>,
}

/// The best einsum of an element type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// Of operands and result.
    pub dtype: Dtype,
    /// 10¹² FLOPs a second.
    pub tflop_s: f64,
    /// Rows and columns of the matrices.
    pub size: usize,
}

impl Ceilings {
    /// The best einsum for work in that dtype; f32's where it has none.
    pub fn einsum_of(&self, dtype: Dtype) -> Option<f64> {
        let of = |d: Dtype| self.einsum.iter().find(|b| b.dtype == d).map(|b| b.tflop_s);
        of(dtype).or_else(|| of(Dtype::F32))
    }
}

static MEASURED: Mutex<BTreeMap<String, Ceilings>> = Mutex::new(BTreeMap::new());

impl Device {
    /// Measures the ceilings, once a process; it takes about a second, most of it compiling. The interpreter has none.
    ///
    /// Errors: what the device answers.
    pub fn ceilings(&self) -> Result<Option<Ceilings>, Error> {
        if matches!(self, Device::Interp) {
            return Ok(None);
        }
        let mut kept = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(c) = kept.get(self.name()) {
            return Ok(Some(c.clone()));
        }
        let c = measure(self)?;
        kept.insert(self.name().to_string(), c.clone());
        Ok(Some(c))
    }
}

fn measure(device: &Device) -> Result<Ceilings, Error> {
    let target = device.target();
    let (mebibytes, sizes): (usize, &[usize]) = match target.family {
        Family::Cuda => (1024, &[2048, 4096, 8192]),
        Family::Wgpu if target.software => (8, &[256]),
        Family::Wgpu => (64, &[1024, 2048]),
        Family::Cpu => (64, &[512, 1024]),
    };
    let n = mebibytes << 18;
    let copy = format!("func @copy(%x: f32[{n}]) -> f32[{n}] {{ %y = neg %x return %y }}");
    let copy_gb_s = speed(device, &copy, |a| a.bytes())? / 1e9;
    let mut einsum = vec![];
    for dtype in [Dtype::F32, Dtype::Bf16].into_iter().filter(|d| target.holds(*d)) {
        let mut best = Best { dtype, tflop_s: 0.0, size: 0 };
        for n in sizes {
            let text = format!(
                "func @product(%a: {dtype}[{n}, {n}], %b: {dtype}[{n}, {n}]) -> {dtype}[{n}, {n}] {{ %y = einsum.{dtype} %a, %b \"m k, n k -> m n\" return %y }}"
            );
            let tflop_s = speed(device, &text, |a| a.flops)? / 1e12;
            if tflop_s > best.tflop_s {
                best = Best { tflop_s, size: *n, ..best };
            }
        }
        einsum.push(best);
    }
    Ok(Ceilings { copy_gb_s, einsum })
}

/// What a function moves or computes in a second of its best run.
fn speed(device: &Device, text: &str, of: impl Fn(&Amount) -> u64) -> Result<f64, Error> {
    let module = omchat_ir::parse(text)?;
    let entry = Func(module.functions.len().saturating_sub(1) as u32);
    let program = program(&module, entry, &device.target())?;
    let amount: u64 = amounts(&program)?.iter().map(&of).sum();
    let operands: Vec<HostTensor> = program.params.iter().map(|p| ramp(&p.ty)).collect();
    let mut trial = Trial::new(device, program, &operands, false)?;
    let budget = Budget { least: 2, most: 21, time: Duration::from_millis(80), sample: Duration::from_millis(1) };
    Ok(amount as f64 / trial.time(&budget)?.best().max(1e-9))
}

/// The amount of each launch of a program.
///
/// Errors: a function that is not the library's.
pub fn amounts(program: &Program) -> Result<Vec<Amount>, Error> {
    let each: Vec<Amount> = program.chosen.iter().map(|c| Amount::of(&c.work)).collect::<Result<_, _>>()?;
    Ok(program.launches.iter().map(|l| each[l.chosen]).collect())
}

/// Numbers between -1 and 1 of which none is zero: a device may be faster on zeros.
fn ramp(ty: &Type) -> HostTensor {
    let x: Vec<f32> = (0..ty.elements()).map(|i| ((i * 7919 % 1021) as f32 - 510.5) / 511.0).collect();
    HostTensor::floats(ty.dtype, ty.shape.clone(), &x)
}
