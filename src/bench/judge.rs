//! The judge of a launch: what it wrote against what its work means, at the size, kernel and schedule that are timed.
//!
//! A nest is computed again in doubles at some points, its corners among them. A function is run from its own text,
//! lowered without the kernels of functions. `kth_largest` is a sort, `scatter_add` a loop.

use crate::{Device, Error};
use omchat_codegen::{Context, Implements, Kernel, Nest, Program, Work, compile};
use omchat_ir::{Action, Bind, Builder, Diagnostics, Dtype, Module, Role, Scope, Type, Value};
use omchat_kernels::LIST;
use omchat_runtime::{Examined, HostTensor, Trial};
use std::collections::BTreeMap;

/// Points of a nest that are computed again.
const POINTS: usize = 48;
/// Bytes beyond which a function is not run from its text, if it has a plain kernel.
const ROOM: usize = 1 << 30;

/// Judges launches on a device.
pub(super) struct Judge<'d> {
    device: &'d Device,
    /// The last function that was run from its text: its work, operands and results. The kernels and schedules of a case
    /// come one after the other, on the same operands.
    last: Option<(Work, Vec<HostTensor>, Vec<HostTensor>)>,
}

impl<'d> Judge<'d> {
    pub(super) fn new(device: &'d Device) -> Judge<'d> {
        Judge { device, last: None }
    }

    /// What is wrong with a launch, if anything.
    ///
    /// Errors: the judge's own program cannot be run.
    pub(super) fn judge(&mut self, program: &Program, e: &Examined) -> Result<Option<String>, Error> {
        match &program.chosen[e.chosen].work {
            Work::Nest(n) => Ok(nest(n, rounding(program.chosen[e.chosen].kernel), e)),
            Work::KthLargest { rows, width, k } => Ok(kth_largest(*rows, *width, *k, e)),
            Work::ScatterAdd { height, width, ids, rows, .. } => Ok(scatter_add(*height, *width, *ids, *rows, e)),
            work => self.function(work, e),
        }
    }

    /// A function against its own text.
    fn function(&mut self, work: &Work, e: &Examined) -> Result<Option<String>, Error> {
        let Work::Function { name, operands, results, .. } = work else { return Ok(None) };
        let narrow = operands.iter().chain(results).any(|t| matches!(t.dtype, Dtype::Bf16 | Dtype::F16));
        let (relative, absolute) = if narrow { (2e-2, 1e-2) } else { (1e-3, 1e-4) };
        for (r, (want, got)) in self.wanted(work, operands, e)?.iter().zip(&e.results).enumerate() {
            let (want, got) = (want.to_f32(), got.to_f32());
            // The mark of a query that sees nothing does not count among the sizes.
            let top = want.iter().filter(|x| x.abs() < 1e29).fold(0.0f32, |m, x| m.max(x.abs()));
            let near = |w: f32, g: f32| (w - g).abs() <= relative * w.abs() + absolute * top;
            if let Some(i) = (0..want.len()).find(|i| !near(want[*i], got.get(*i).copied().unwrap_or(f32::NAN))) {
                let got = got.get(i).copied().unwrap_or(f32::NAN);
                return Ok(Some(format!("@{name}: result {r} at {i} is {got}, not {}", want[i])));
            }
        }
        Ok(None)
    }

    /// What the function's own text makes of the operands.
    fn wanted(&mut self, work: &Work, types: &[Type], e: &Examined) -> Result<&[HostTensor], Error> {
        let same = self.last.as_ref().is_some_and(|(w, given, _)| w == work && *given == e.operands);
        if !same {
            let typed =
                e.operands.iter().zip(types).map(|(t, ty)| HostTensor { ty: ty.clone(), bytes: t.bytes.clone() });
            let typed: Vec<HostTensor> = typed.collect();
            let want = Trial::new(self.device, reference(self.device, work)?, &typed, false)?.outcome()?;
            self.last = Some((work.clone(), e.operands.clone(), want));
        }
        Ok(self.last.as_ref().map_or(&[], |(_, _, want)| want))
    }
}

fn number(t: &HostTensor, at: usize) -> f64 {
    let size = t.ty.dtype.bytes();
    let b = t.bytes.get(at * size..(at + 1) * size).unwrap_or(&[0xff; 4]);
    match t.ty.dtype {
        Dtype::F32 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Dtype::I32 | Dtype::Bool => f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Dtype::Bf16 | Dtype::F16 => {
            let one = HostTensor { ty: omchat_ir::Type::new(t.ty.dtype, [1]), bytes: b[..2].to_vec() };
            one.to_f32().first().map_or(f64::NAN, |x| f64::from(*x))
        }
    }
}

/// The share of each product by which the kernel of that name may be off.
fn rounding(kernel: &str) -> f64 {
    omchat_kernels::by_name(kernel).map_or(0.0, |k| k.rounding())
}

/// A nest at some of its points; and every element that it should have written. Products may be off by that share.
fn nest(n: &Nest, rounding: f64, e: &Examined) -> Option<String> {
    let exact = if n.narrow() { 1.0 / 120.0 } else { f64::max(4e-6, 1.2e-7 * (n.depth() as f64).sqrt()) };
    let slack = exact + rounding;
    let element = |operand: usize, at: usize| number(&e.operands[operand], at);
    for at in points(&n.kept) {
        let point = n.at(&at, &element);
        for (w, (place, want)) in n.writes.iter().zip(point.writes) {
            let (got, want) = (number(&e.results[w.result], place), w.dtype.round(want.exact));
            let near = (want - got).abs() <= slack * point.size.max(want.abs()) + 2e-6;
            if !near {
                return Some(format!("result {} at {at:?} is {got}, not {want}", w.result));
            }
        }
    }
    // Nothing is NaN by design: what is was not written.
    n.writes.iter().filter(|w| w.dtype.is_float() && n.points() == e.results[w.result].ty.elements()).find_map(|w| {
        let at = e.results[w.result].to_f32().iter().position(|x| x.is_nan())?;
        Some(format!("result {} was not written at element {at}", w.result))
    })
}

/// The corners of those axes, where tiles have their odd ends, and as many points between.
fn points(kept: &[usize]) -> Vec<Vec<usize>> {
    let all: usize = kept.iter().product();
    let spread =
        |i: usize| if all <= POINTS { i } else { (i as u128 * (all as u128 - 1) / (POINTS as u128 - 1)) as usize };
    let mut out: Vec<Vec<usize>> = (0..POINTS.min(all))
        .map(|i| {
            let mut flat = spread(i);
            let mut at = vec![0; kept.len()];
            for (a, size) in at.iter_mut().zip(kept).rev() {
                (*a, flat) = (flat % size, flat / size);
            }
            at
        })
        .collect();
    if all > POINTS {
        let corner =
            |bits: usize| kept.iter().enumerate().map(move |(a, n)| if bits >> a & 1 == 1 { n - 1 } else { 0 });
        out.extend((0..1 << kept.len().min(5)).map(|bits| corner(bits).collect()));
    }
    out
}

fn kth_largest(rows: usize, width: usize, k: usize, e: &Examined) -> Option<String> {
    let (x, got) = (e.operands.first()?.to_f32(), e.results.first()?.to_f32());
    (0..rows).find_map(|r| {
        let mut row = x.get(r * width..(r + 1) * width)?.to_vec();
        row.sort_by(|a, b| b.total_cmp(a));
        let (want, got) = (row.get(k.saturating_sub(1))?, got.get(r)?);
        (want != got).then(|| format!("row {r} has {got}, not {want}"))
    })
}

fn scatter_add(height: usize, width: usize, ids: usize, rows: usize, e: &Examined) -> Option<String> {
    let (ids, rows) = (e.operands.get(ids)?.to_i32(), e.operands.get(rows)?.to_f32());
    let mut want: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let before = |row: usize| (0..width).map(|c| number(&e.before[0], row * width + c)).collect::<Vec<f64>>();
    for (t, id) in ids.iter().enumerate().filter(|(_, id)| **id >= 0 && (**id as usize) < height) {
        let sum = want.entry(*id as usize).or_insert_with(|| before(*id as usize));
        sum.iter_mut().zip(&rows[t * width..]).for_each(|(s, x)| *s += f64::from(*x));
    }
    // One row that nothing was added to.
    if let Some(free) = (0..height).find(|h| !want.contains_key(h)) {
        want.insert(free, before(free));
    }
    let narrow = e.results[0].ty.dtype != Dtype::F32;
    let slack = if narrow { 1.0 / 120.0 } else { 4e-6 };
    want.iter().find_map(|(row, sums)| {
        sums.iter().enumerate().find_map(|(c, want)| {
            let got = number(&e.results[0], row * width + c);
            let near = (want - got).abs() <= slack * (1.0 + want.abs());
            (!near).then(|| format!("row {row} at {c} is {got}, not {want}"))
        })
    })
}

/// The function's program without kernels of functions; by its plain kernel where that would take too much memory.
fn reference(device: &Device, work: &Work) -> Result<Program, Error> {
    let Work::Function { name, binds, operands, .. } = work else {
        return Err(Error::Input("only functions have a text of their own".into()));
    };
    let scope = Scope::new(&[omchat_ir::library::file()?]);
    let mut module = Module::default();
    // Weights that stay packed beside wide activations are read as wide: the text has one type for both.
    let wide = binds.values().any(|b| *b == Bind::Dtype(Dtype::F32));
    let read = |t: &Type| if wide && t.dtype.is_float() { Type::new(Dtype::F32, t.shape.clone()) } else { t.clone() };
    let types: Vec<_> = operands.iter().map(|t| Some(read(t))).collect();
    let callee = scope.instantiate(&mut module, name, binds, &types, 0)?;
    let f = module.function(callee).clone();
    let mut b = Builder::new(&mut module, "reference", BTreeMap::new());
    let params: Vec<Value> =
        f.param_values().map(|v| b.param(Role::Input, &f.value(v).name, f.ty(v).clone())).collect();
    let names: Vec<String> = f.results.iter().map(|v| f.value(*v).name.clone()).collect();
    let results = b.node(&names, Action::Call { callee, remat: false }, &params).map_err(Diagnostics::from)?;
    let entry = b.finish(results);
    let target = device.target();
    let with = |plain: bool| {
        let all = LIST.iter().map(|k| *k as &dyn Kernel);
        let kernels: Vec<&dyn Kernel> = all
            .filter(|k| !matches!(k.implements(), Implements::Functions(_)) || (plain && k.name().ends_with(".plain")))
            .collect();
        compile(&module, entry, &Context { target: &target, kernels: &kernels, tuned: None, ranks: 1 })
    };
    let plain = LIST.iter().any(|k| k.implements().function(name) && k.name().ends_with(".plain"));
    match with(false) {
        Ok(p) if p.peak_bytes() <= ROOM || !plain => Ok(p),
        Err(e) if !plain => Err(omchat_runtime::Error::from(e).into()),
        _ => Ok(with(true).map_err(omchat_runtime::Error::from)?),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::bench::{Scale, cases, lower, small, trial};

    /// Where halves are read and not written, weights stay as they are beside wide activations.
    #[test]
    fn weights_that_stay_packed_have_a_judge() {
        let ty = |dtype: Dtype, shape: &[usize]| Type::new(dtype, shape.to_vec());
        let sizes = [("T", 9), ("C", 4), ("V", 7)].map(|(l, n)| (l.to_string(), Bind::Size(n)));
        let work = Work::Function {
            name: "linear_cross_entropy".into(),
            binds: sizes.into_iter().chain([("E".to_string(), Bind::Dtype(Dtype::F32))]).collect(),
            operands: vec![ty(Dtype::F32, &[9, 4]), ty(Dtype::Bf16, &[7, 4]), ty(Dtype::I32, &[9])],
            results: vec![ty(Dtype::F32, &[9]), ty(Dtype::F32, &[9])],
        };
        let program = reference(&Device::open("cpu").unwrap(), &work).unwrap();
        assert_eq!(program.params[1].ty.dtype, Dtype::F32);
    }

    /// What each case of a family launches on the CPU, read back.
    fn launched(family: &str, see: impl Fn(&Device, &Program, Examined)) {
        let device = Device::open("cpu").unwrap();
        let mut seen = 0;
        for case in cases(&small(), &Scale::tiny()).iter().filter(|c| c.name.starts_with(family)) {
            let lowered = lower(case, &device).unwrap();
            let (mut t, _) = trial(case, &lowered, &device, false).unwrap();
            let program = t.program().cloned().unwrap();
            t.examine(&mut |e| {
                see(&device, &program, e);
                seen += 1;
                Ok::<(), Error>(())
            })
            .unwrap();
        }
        assert!(seen > 0, "no case of {family}");
    }

    fn changed(mut e: Examined, at: usize, to: f32) -> Examined {
        let i = at * 4;
        e.results[0].bytes[i..i + 4].copy_from_slice(&to.to_le_bytes());
        e
    }

    /// One element off by a thousandth of what is there, or not written at all.
    fn is_caught(family: &str) {
        launched(family, |device, program, e| {
            let mut judge = Judge::new(device);
            assert_eq!(judge.judge(program, &e).unwrap(), None, "{family}");
            let x = e.results[0].to_f32();
            let last = x.len() - 1;
            let off = x[last] + 0.01 * x.iter().fold(1.0f32, |m, x| m.max(x.abs()));
            for wrong in [changed(e.clone(), last, off), changed(e.clone(), last / 2, f32::NAN)] {
                assert!(judge.judge(program, &wrong).unwrap().is_some(), "{family}: nothing was found");
            }
        });
    }

    #[test]
    fn a_wrong_nest_is_caught() {
        is_caught("einsum/");
        is_caught("add/");
        is_caught("reduce/");
    }

    #[test]
    fn a_wrong_function_is_caught() {
        is_caught("attention/");
        is_caught("attention_dkv/");
        is_caught("rms_norm/");
    }

    #[test]
    fn wrong_rows_are_caught() {
        launched("kth_largest/", |device, program, e| {
            let mut judge = Judge::new(device);
            assert_eq!(judge.judge(program, &e).unwrap(), None);
            assert!(judge.judge(program, &changed(e, 0, 0.25)).unwrap().is_some());
        });
        launched("scatter_add/", |device, program, e| {
            let mut judge = Judge::new(device);
            assert_eq!(judge.judge(program, &e).unwrap(), None);
            let row = e.operands[0].to_i32()[0] as usize;
            let (x, width) = (e.results[0].to_f32(), e.results[0].ty.shape[1]);
            let at = row * width;
            assert!(judge.judge(program, &changed(e, at, x[at] + 0.01)).unwrap().is_some());
        });
    }
}
