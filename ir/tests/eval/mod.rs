//! `; run: @f([1, 2], 0.5) == [3, 4]` lines: operands and results in brackets, one call a rank.
//!
//! `~=` allows one part in a million, `==` nothing. Ranks are parted by `|`, several results by commas.
//! A bare number fills a tensor.

use crate::filetest::{FileTest, Outcome, blessing};
use omchat_ir::{Dtype, Mode, Module, Tensor, Type, interpret};

/// Runs every `; run:` line in Typed mode.
pub fn eval(file: &mut FileTest) -> Outcome {
    let m = match crate::module(file) {
        Ok(m) => m,
        Err(o) => return o,
    };
    let mut faults = vec![];
    let mut runs = 0;
    for i in 0..file.lines.len() {
        let Some(line) = file.lines[i].strip_prefix("; run: ").map(String::from) else { continue };
        runs += 1;
        match check(&m, &line) {
            Ok(new) if new == line => {}
            Ok(new) if blessing() => file.lines[i] = format!("; run: {new}"),
            Ok(new) => faults.push(format!("line {}:\n  {line}\nshould be\n  {new}", i + 1)),
            Err(why) => faults.push(format!("line {}: {line}\n{why}", i + 1)),
        }
    }
    if runs == 0 {
        faults.push("`test eval` wants a line `; run: @f(…) == …`".into());
    }
    if faults.is_empty() { Outcome::Passed } else { Outcome::Failed(faults.join("\n")) }
}

/// The line itself if it holds, else the line with what came out.
fn check(m: &Module, line: &str) -> Result<String, String> {
    let cut = |sign: &'static str| line.split_once(sign).map(|(calls, want)| (calls, sign, want));
    let (calls, sign, want) = cut("==").or_else(|| cut("~=")).unwrap_or((line, "~=", ""));
    let (mut name, mut ranks) = ("", vec![]);
    for call in calls.split('|') {
        let (f, args) = call.trim().strip_prefix('@').and_then(|c| c.split_once('(')).ok_or("a call is `@f(…)`")?;
        name = f;
        let types = m.function(m.named(name).ok_or_else(|| format!("there is no @{name}"))?).param_types();
        let args = parts(args.strip_suffix(')').ok_or("a call ends with `)`")?);
        if args.len() != types.len() {
            return Err(format!("@{name} takes {} operands, {} are written", types.len(), args.len()));
        }
        ranks.push(args.iter().zip(&types).map(|(a, t)| read(a, t)).collect::<Result<Vec<_>, _>>()?);
    }
    let f = m.named(name).ok_or("no function")?;
    let results = interpret(m, f, ranks, Mode::Typed).map_err(|e| e.to_string())?;
    if holds(&results, want, sign == "==").unwrap_or(false) {
        return Ok(line.to_string());
    }
    let text: Vec<String> = results
        .iter()
        .map(|r| r.iter().map(|t| write(&t.ty, &t.ty.shape, &t.data, sign == "==")).collect::<Vec<_>>().join(", "))
        .collect();
    Ok(format!("{} {sign} {}", calls.trim_end(), text.join(" | ")))
}

fn holds(results: &[Vec<Tensor>], want: &str, exact: bool) -> Result<bool, String> {
    let ranks: Vec<&str> = want.split('|').collect();
    let mut ok = ranks.len() == results.len();
    for (result, want) in results.iter().zip(ranks) {
        let want = parts(want);
        ok &= want.len() == result.len();
        for (t, w) in result.iter().zip(want) {
            let w = read(&w, &t.ty)?;
            ok &= t
                .data
                .iter()
                .zip(&w.data)
                .all(|(a, b)| if exact { a == b } else { (a - b).abs() <= 1e-6 * b.abs().max(1e-3) });
        }
    }
    Ok(ok)
}

/// Cuts at commas outside brackets.
fn parts(text: &str) -> Vec<String> {
    let (mut out, mut depth) = (vec![String::new()], 0);
    for c in text.trim().chars() {
        depth += match c {
            '[' => 1,
            ']' => -1,
            _ => 0,
        };
        match (c, depth, out.last_mut()) {
            (',', 0, _) => out.push(String::new()),
            (_, _, Some(last)) => last.push(c),
            _ => {}
        }
    }
    let out: Vec<String> = out.into_iter().map(|s| s.trim().to_string()).collect();
    if out == [""] { vec![] } else { out }
}

/// A tensor from nested lists, whose shape must be the type's.
fn read(text: &str, ty: &Type) -> Result<Tensor, String> {
    let mut data = vec![];
    if !text.starts_with('[') && !ty.shape.is_empty() {
        collect(text, &[], &mut data)?;
        return Ok(Tensor::full(ty.clone(), data[0]));
    }
    collect(text, &ty.shape, &mut data).map_err(|e| format!("{e}, for {ty} in {text}"))?;
    Tensor::new(ty.clone(), data)
}

fn collect(text: &str, shape: &[usize], data: &mut Vec<f64>) -> Result<(), String> {
    let Some((n, rest)) = shape.split_first() else {
        data.push(match text {
            "true" => 1.0,
            "false" => 0.0,
            "empty" => f64::from(i32::MAX),
            number => number.parse().map_err(|_| format!("`{number}` is no number"))?,
        });
        return Ok(());
    };
    let inner =
        parts(text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).ok_or_else(|| format!("`{text}` is no list"))?);
    if inner.len() != *n {
        return Err(format!("{} elements where {n} are wanted", inner.len()));
    }
    inner.iter().try_for_each(|t| collect(t, rest, data))
}

fn write(ty: &Type, shape: &[usize], data: &[f64], exact: bool) -> String {
    let Some((n, rest)) = shape.split_first() else {
        return match ty.dtype {
            Dtype::Bool => (data[0] != 0.0).to_string(),
            _ => number(data[0], exact),
        };
    };
    let step = rest.iter().product::<usize>();
    let inner: Vec<String> = (0..*n).map(|i| write(ty, rest, &data[i * step..(i + 1) * step], exact)).collect();
    format!("[{}]", inner.join(", "))
}

/// Eight digits, or all of them.
fn number(x: f64, exact: bool) -> String {
    if x.fract() == 0.0 && x.abs() < 1e10 || exact && x.abs() < 1e10 && x.abs() > 1e-6 {
        return format!("{x}");
    }
    let short: f64 = format!("{x:.7e}").parse().unwrap_or(x);
    if (1e-4..1e9).contains(&short.abs()) { format!("{short}") } else { format!("{short:e}") }
}
