//! The file tests that need a compiler or a device: `pass`, `plan`, `run`. The language's own are `ir`'s.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../ir/tests/common/filetest.rs"]
mod filetest;

use filetest::{Command, FileTest, Outcome};
use omchat_codegen::{Context, Error, Kernel, PIPELINE, Target, Unit, compile, passes, ranks_of};
use omchat_ir::{Dtype, Func, Mode, Module, Named, Role, Tensor, Type, interpret, parse};
use omchat_kernels::LIST;
use omchat_runtime::{Device, Executable, HostTensor, Store};

fn main() {
    filetest::main(|file, command| match command.name.as_str() {
        "pass" => pass(file, command),
        "plan" => plan(file, command),
        "run" => run(file, command),
        // The walker of `ir` runs these, or fails a file that asks for what nothing runs.
        _ => Outcome::Elsewhere,
    });
}

/// The module of a file, and its entry: the function named, else the last.
fn module(file: &FileTest, command: &Command) -> Result<(Module, Func), Outcome> {
    let text = file.source();
    let m = parse(&text).map_err(|e| Outcome::Failed(e.render(&file.name, &text)))?;
    let entry = match command.functions()[..] {
        [] => m.functions.len().checked_sub(1).map(|i| Func(i as u32)),
        [name, ..] => m.named(name),
    };
    entry.map(|e| (m, e)).ok_or_else(|| Outcome::Failed("the file has no such function".into()))
}

/// A target that is the same on every machine.
fn target(name: &str) -> Result<Target, Outcome> {
    match name {
        "cpu" => Ok(Target::cpu(2)),
        "wgpu" => Ok(Target::wgpu()),
        "browser" => Ok(Target::browser()),
        "cuda" => Ok(Target::cuda(90)),
        "cuda-tf32" => Ok(Target::cuda(90).with_tf32()),
        other => {
            Err(Outcome::Failed(format!("there is no target `{other}`: write cpu, wgpu, browser, cuda or cuda-tf32")))
        }
    }
}

fn list() -> Vec<&'static dyn Kernel> {
    LIST.iter().map(|k| *k as &dyn Kernel).collect()
}

/// `; test pass NAME [@f] [target=wgpu]`: the module after the pipeline up to that pass.
fn pass(file: &mut FileTest, command: &Command) -> Outcome {
    let inner = |file: &FileTest| -> Result<String, Outcome> {
        let (module, entry) = module(file, command)?;
        let name = command.words.first().map_or("", String::as_str);
        if !PIPELINE.iter().any(|p| p.name == name) {
            return Err(Outcome::Failed(format!("there is no pass `{name}`")));
        }
        let target = target(command.option("target").unwrap_or("cpu"))?;
        let ranks = ranks_of(&module);
        let unit = passes::run(
            Unit { module, entry },
            &Context { target: &target, kernels: &list(), tuned: None, ranks },
            Some(name),
        );
        Ok(answer(unit.map(|u| u.module.to_string())))
    };
    match inner(file) {
        Ok(text) => file.expect("pass", &text),
        Err(o) => o,
    }
}

/// `; test plan cpu|wgpu|browser|cuda|cuda-tf32 [@f]`: the program, with why each kernel that might have run a launch refused.
fn plan(file: &mut FileTest, command: &Command) -> Outcome {
    let inner = |file: &FileTest| -> Result<String, Outcome> {
        let (module, entry) = module(file, command)?;
        let target = target(command.words.first().map_or("", String::as_str))?;
        Ok(answer(
            compile(
                &module,
                entry,
                &Context { target: &target, kernels: &list(), tuned: None, ranks: ranks_of(&module) },
            )
            .map(|p| p.to_string()),
        ))
    };
    match inner(file) {
        Ok(text) => file.expect("plan", &text),
        Err(o) => o,
    }
}

/// What came out, or the error that is expected.
fn answer(out: Result<String, Error>) -> String {
    out.unwrap_or_else(|e| format!("error: {e}"))
}

/// `; test run [@f] [ints=0..9]`: on every device present, against the interpreter, with seeded numbers.
fn run(file: &mut FileTest, command: &Command) -> Outcome {
    let (module, entry) = match module(file, command) {
        Ok(m) => m,
        Err(o) => return o,
    };
    let ints = command
        .option("ints")
        .and_then(|v| v.split_once(".."))
        .map_or(Some((0, 9)), |(a, b)| a.parse().ok().zip(b.parse().ok()));
    let Some(ints) = ints else { return Outcome::Failed("`ints=` wants two whole numbers, `0..9`".into()) };
    let (mut faults, mut absent) = (vec![], vec![]);
    for name in ["cpu", "wgpu", "cuda"] {
        match Device::open(name) {
            Ok(device) => faults.extend((0..3).find_map(|seed| {
                on(&device, &module, entry, ints, seed).err().map(|e| format!("on {name}, seed {seed}: {e}"))
            })),
            Err(e) => absent.push(format!("{name}: {e}")),
        }
    }
    match (faults.is_empty(), absent.is_empty()) {
        (false, _) => Outcome::Failed(faults.join("\n")),
        (true, false) => Outcome::Skipped(absent.join("; ")),
        (true, true) => Outcome::Passed,
    }
}

/// The error against the exact reading must be at most twice that of the typed one, plus what f32 itself loses.
fn on(device: &Device, module: &Module, entry: Func, ints: (i32, i32), seed: u64) -> Result<(), String> {
    let f = module.function(entry);
    let mut state = seed;
    let inputs: Vec<Tensor> = f.param_types().iter().map(|t| random(t, ints, &mut state)).collect();
    let read =
        |mode| interpret(module, entry, vec![inputs.clone()], mode).map(|mut r| r.remove(0)).map_err(|e| e.to_string());
    let (exact, typed) = (read(Mode::Exact)?, read(Mode::Typed)?);
    let exe = Executable::load(device, module, entry).map_err(|e| e.to_string())?;
    let mut store = Store::default();
    let mut feed = vec![];
    for ((v, role), t) in f.param_values().zip(&f.params).zip(&inputs) {
        let (name, host) = (f.value(v).name.as_str(), HostTensor::from_tensor(t));
        match role {
            Role::Input => feed.push((name, host)),
            Role::Weight | Role::State => store.upload(device, name, &host),
        }
    }
    let mut have = exe.run(&feed, &mut store).map_err(|e| e.to_string())?;
    for (v, _) in f.param_values().zip(&f.params).filter(|(_, r)| **r == Role::State) {
        have.push(state_of(device, &mut store, f.value(v))?);
    }
    for (i, ((h, e), t)) in have.iter().map(HostTensor::to_tensor).zip(&exact).zip(&typed).enumerate() {
        let top = e.data.iter().fold(1e-6f64, |a, b| if b.abs() < 1e29 { a.max(b.abs()) } else { a });
        let off = |x: &Tensor| {
            x.data
                .iter()
                .zip(&e.data)
                .map(|(x, y)| (x - y).abs())
                .fold(0.0, |a, d| if d.is_nan() { f64::INFINITY } else { f64::max(a, d) })
        };
        if h.ty.shape != e.ty.shape || off(&h) > 2.0 * off(t) + 2e-6 * top {
            return Err(format!(
                "result {i} is {} off of {top}, the typed reading {}\n{}",
                off(&h),
                off(t),
                exe.program().map(ToString::to_string).unwrap_or_default()
            ));
        }
    }
    Ok(())
}

/// What a state holds after a run: a program of its own reads it.
fn state_of(device: &Device, store: &mut Store, state: &Named) -> Result<HostTensor, String> {
    let Named { name, ty } = state;
    let m = parse(&format!(
        "func @read(state %{name}: {ty}) -> ({ty}, {ty}) {{ %copy = copy %{name} return %copy, %{name} }}"
    ))
    .map_err(|e| e.to_string())?;
    let exe = Executable::load(device, &m, Func(0)).map_err(|e| e.to_string())?;
    exe.run(&[], store).map(|mut r| r.remove(0)).map_err(|e| e.to_string())
}

fn random(ty: &Type, ints: (i32, i32), state: &mut u64) -> Tensor {
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as f64 / f64::from(1u32 << 31)
    };
    let data = (0..ty.elements())
        .map(|_| match ty.dtype {
            Dtype::I32 => (f64::from(ints.0) + next() * f64::from(ints.1 - ints.0)).floor(),
            Dtype::Bool => f64::from(u8::from(next() > 0.5)),
            _ => next() * 2.0 - 0.9,
        })
        .collect();
    Tensor::new(ty.clone(), data).unwrap().rounded()
}
