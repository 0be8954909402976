//! The file tests that need only the language: `verify`, `render`, `print`, `format`, `eval`, `equal`, `vjp`.
//! The others need a compiler or a device: `tests/filetests.rs` of the root package runs them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod eval;
#[path = "common/filetest.rs"]
mod filetest;

use common::Rng;
use common::grad::{Case, Slopes, slopes};
use filetest::{Command, FileTest, Outcome, blessing};
use omchat_ir::{Diagnostic, Dtype, Func, Mode, Module, Tensor, Type, format, interpret, parse};

fn main() {
    filetest::main(|file, command| match command.name.as_str() {
        "verify" => verify(file),
        "render" => render(file),
        "print" => print(file),
        "format" => reformat(file),
        "eval" => eval::eval(file),
        "equal" => equal(file, command),
        // scripts/cuda_compile.sh compiles the text of every kernel of the file.
        "source" => Outcome::Elsewhere,
        "pass" | "plan" | "run" => Outcome::Elsewhere,
        "vjp" => vjp(file),
        other => Outcome::Failed(format!("there is no command `test {other}`")),
    });
}

/// The module of a file that must have no fault.
fn module(file: &FileTest) -> Result<Module, Outcome> {
    let text = file.source();
    parse(&text).map_err(|e| Outcome::Failed(e.render(&file.name, &text)))
}

/// Each fault stands on its line as `; error[code]: message`; a fault of the library on the line of the call.
fn verify(file: &mut FileTest) -> Outcome {
    let text = file.source();
    let found = match parse(&text) {
        Ok(m) => match m.verify() {
            Ok(()) => vec![],
            Err(e) => return Outcome::Failed(format!("the verifier finds what instantiation did not: {e}")),
        },
        Err(e) => e.0,
    };
    let mut faults: Vec<String> =
        found.iter().filter(|d| line_of(d) == 0).map(|d| format!("a fault without a line: {}", d.message)).collect();
    for i in 0..file.lines.len() {
        let here: Vec<String> = found
            .iter()
            .filter(|d| line_of(d) == i + 1)
            .map(|d| format!("; error[{}]: {}", d.code.name(), d.message))
            .collect();
        let line = &file.lines[i];
        let code = line.split("; error[").next().unwrap_or_default().trim_end();
        let want = if here.is_empty() { code.to_string() } else { format!("{code} {}", here.join(" ")) };
        if line.trim_end() != want {
            faults.push(format!("line {}:\n  {line}\nshould be\n  {want}", i + 1));
            file.lines[i] = want;
        }
    }
    if faults.is_empty() || blessing() { Outcome::Passed } else { Outcome::Failed(faults.join("\n")) }
}

/// The line of the file that a fault is on: its own, or that of the call that led into the library.
fn line_of(d: &Diagnostic) -> usize {
    std::iter::once(&d.place).chain(&d.calls).find(|p| p.file.is_empty()).map_or(0, |p| p.line)
}

fn render(file: &mut FileTest) -> Outcome {
    // The expected text itself must not move the lines that it shows.
    let text = file.source();
    let body = text.split("\n; render:").next().unwrap_or_default();
    match parse(body) {
        Ok(_) => Outcome::Failed("`test render` wants a text with faults".into()),
        Err(e) => file.expect("render", &e.render(&file.name, body)),
    }
}

fn print(file: &mut FileTest) -> Outcome {
    match module(file) {
        Err(o) => o,
        Ok(m) => {
            let text = m.to_string();
            match parse(&text) {
                Ok(again) if again == m => file.expect("print", &text),
                Ok(_) => Outcome::Failed(format!("the printed text is another module:\n{text}")),
                Err(e) => Outcome::Failed(e.render("printed", &text)),
            }
        }
    }
}

/// The cotangents of `@f` agree with central differences, on one to three ranks.
fn vjp(file: &FileTest) -> Outcome {
    let module = match module(file) {
        Ok(m) => m,
        Err(o) => return o,
    };
    let Some(f) = module.named("f") else { return Outcome::Failed("`test vjp` wants a function @f".into()) };
    for seed in 0..6 {
        let case = Case { text: &file.name, module: &module, f, ranks: 1 + (seed % 3) as usize, seed, scope: None };
        match slopes(&case) {
            Ok(Slopes::Agree(_)) => {}
            Ok(why) => return Outcome::Failed(format!("nothing was checked: {why:?}")),
            Err(why) => return Outcome::Failed(why),
        }
    }
    Outcome::Passed
}

fn reformat(file: &mut FileTest) -> Outcome {
    // The expected text itself is no part of what is laid out.
    let whole = file.source();
    let text = whole.split("\n; format:").next().unwrap_or_default();
    match format(text) {
        Ok(once) if format(&once).as_ref() == Ok(&once) => file.expect("format", &once),
        Ok(once) => Outcome::Failed(format!("formatting twice differs from once:\n{once}")),
        Err(e) => Outcome::Failed(e.render(&file.name, text)),
    }
}

/// `; test equal @f, @g R=4 ints=0..8 within=1e-9`: same operands, same results, on R ranks, ten times.
fn equal(file: &mut FileTest, command: &Command) -> Outcome {
    let m = match module(file) {
        Ok(m) => m,
        Err(o) => return o,
    };
    let names = command.functions();
    let functions: Vec<Func> = names.iter().filter_map(|n| m.named(n)).collect();
    let [f, g] = functions[..] else {
        return Outcome::Failed(format!("`test equal` names two functions of the file, not {names:?}"));
    };
    let (types, results) = (m.function(f).param_types(), m.function(f).result_types());
    if types != m.function(g).param_types() || results != m.function(g).result_types() {
        return Outcome::Failed(format!("@{} and @{} have different parameters or results", names[0], names[1]));
    }
    let number = |name: &str, otherwise: f64| {
        command.option(name).map_or(otherwise, |v| v.parse().unwrap_or_else(|_| panic!("`{name}={v}` is no number")))
    };
    let ranks = number("R", 1.0) as usize;
    let (low, high) = command
        .option("ints")
        .and_then(|v| v.split_once(".."))
        .map_or((0, 4), |(a, b)| (a.parse().unwrap(), b.parse().unwrap()));
    for seed in 0..10 {
        let mut rng = Rng(seed);
        let operands: Vec<Vec<Tensor>> =
            (0..ranks).map(|_| types.iter().map(|t| random(t, &mut rng, (low, high))).collect()).collect();
        let run = |f: Func| interpret(&m, f, operands.clone(), Mode::Exact);
        match (run(f), run(g)) {
            (Ok(a), Ok(b)) => {
                let off = a
                    .iter()
                    .flatten()
                    .zip(b.iter().flatten())
                    .map(|(a, b)| common::worst(&a.data, &b.data))
                    .fold(0.0, f64::max);
                if off > number("within", 1e-9) {
                    return Outcome::Failed(format!("@{} and @{} differ by {off:e}, seed {seed}", names[0], names[1]));
                }
            }
            (Err(e), _) | (_, Err(e)) => return Outcome::Failed(e.to_string()),
        }
    }
    Outcome::Passed
}

fn random(t: &Type, rng: &mut Rng, ints: (i64, i64)) -> Tensor {
    let data = (0..t.elements())
        .map(|_| match t.dtype {
            Dtype::I32 => (ints.0 + rng.below((ints.1 - ints.0) as usize) as i64) as f64,
            Dtype::Bool => rng.below(2) as f64,
            _ => t.dtype.round(2.0 * rng.unit()),
        })
        .collect();
    common::tensor(t.dtype, &t.shape, data)
}
