//! Random texts: a line that does not fit is dropped, so a writer need not know the rules.

use crate::common::Rng;
use omchat_ir::{Dtype, Function, Scalar, Type, Value, parse};

const PARAMS: [&str; 22] = [
    "f32[3, 4]",
    "f32[3, 4]",
    "f32[4, 3]",
    "f32[4, 4]",
    "f32[4]",
    "f32[3]",
    "f32",
    "f32[2, 3, 4]",
    "f32[12]",
    "f32[1, 4]",
    "f32[0, 4]",
    "bf16[3, 4]",
    "bf16[4]",
    "bf16[5, 4]",
    "f16[3, 4]",
    "i32[3]",
    "i32[5]",
    "i32[3, 4]",
    "i32",
    "bool[3, 4]",
    "bool[3]",
    "f32[5, 4]",
];
const LETTERS: [&str; 8] = ["a", "b", "c", "d", "e", "g", "h", "k"];

/// The text of a random function `@f`.
pub fn function(rng: &mut Rng) -> String {
    let mut head = vec![];
    for i in 0..2 + rng.below(6) {
        let role = ["", "", "", "weight ", "state "][rng.below(5)];
        head.push((role, format!("%p{i}"), PARAMS[rng.below(PARAMS.len())].to_string()));
    }
    head.push(("", "%s".into(), "i32".into()));
    let mut lines: Vec<String> = vec![];
    let mut f = attempt(&head, &lines, &["%s".into()]).unwrap();
    let want = 2 + rng.below(14);
    for _ in 0..60 {
        if lines.len() == want {
            break;
        }
        let Some(line) = line(rng, &f, lines.len()) else { continue };
        lines.push(line);
        match attempt(&head, &lines, &["%s".into()]) {
            Some(g) if g.values.iter().all(|v| v.ty.elements() <= 600) => f = g,
            _ => drop(lines.pop()),
        }
    }
    let name = |v: Value| format!("%{}", f.value(v).name);
    let all = written(&f);
    let mut out: Vec<Value> = (0..1 + rng.below(4)).map(|_| recent(rng, &all)).collect();
    // A state's next value: whatever has its type, often itself.
    for (v, _) in f.param_values().zip(&head).filter(|(_, h)| h.0 == "state ") {
        let fit: Vec<Value> = all.iter().copied().filter(|x| f.ty(*x) == f.ty(v)).collect();
        out.push(recent(rng, &fit));
    }
    text(
        &head,
        &lines,
        &out.iter().map(|v| name(*v)).collect::<Vec<_>>(),
        &out.iter().map(|v| f.ty(*v).to_string()).collect::<Vec<_>>(),
    )
}

/// Values that have a name in the text: a number among operands has none.
fn written(f: &Function) -> Vec<Value> {
    (0..f.values.len() as u32).map(Value).filter(|v| !f.value(*v).name.starts_with('c')).collect()
}

/// Any value, the last ones more often.
fn recent(rng: &mut Rng, all: &[Value]) -> Value {
    let n = all.len();
    if rng.below(2) == 0 { all[n - 1 - rng.below(n.min(4))] } else { all[rng.below(n)] }
}

fn text(head: &[(&str, String, String)], lines: &[String], results: &[String], types: &[String]) -> String {
    let params: Vec<String> = head.iter().map(|(r, n, t)| format!("{r}{n}: {t}")).collect();
    format!(
        "func @f({}) -> ({}) {{\n    {}\n    return {}\n}}\n",
        params.join(", "),
        types.join(", "),
        lines.join("\n    "),
        results.join(", ")
    )
}

fn attempt(head: &[(&str, String, String)], lines: &[String], results: &[String]) -> Option<Function> {
    let inputs: Vec<_> = head.iter().map(|(_, n, t)| ("", n.clone(), t.clone())).collect();
    let m = parse(&text(&inputs, lines, results, &["i32".into()])).ok()?;
    let f = m.named("f")?;
    Some(m.function(f).clone())
}

/// A value, of a dtype if one is asked for.
fn pick(rng: &mut Rng, f: &Function, fit: impl Fn(&Type) -> bool) -> Option<(String, Type)> {
    let all: Vec<Value> = written(f).into_iter().filter(|v| fit(f.ty(*v))).collect();
    if all.is_empty() {
        return None;
    }
    let v = recent(rng, &all);
    Some((format!("%{}", f.value(v).name), f.ty(v).clone()))
}

/// Words of operands: axes of one size share a word where they can; now and then none do.
fn words(rng: &mut Rng, types: &[&Type]) -> Vec<Vec<&'static str>> {
    let mut sizes: Vec<(usize, &'static str)> = vec![];
    types
        .iter()
        .map(|t| {
            let mut own: Vec<&'static str> = vec![];
            for n in &t.shape {
                let fit: Vec<&'static str> =
                    sizes.iter().filter(|(m, w)| m == n && !own.contains(w)).map(|(_, w)| *w).collect();
                let w = if fit.is_empty() || rng.below(12) == 0 {
                    LETTERS[sizes.len() % 8]
                } else {
                    fit[rng.below(fit.len())]
                };
                if !sizes.iter().any(|(_, x)| *x == w) {
                    sizes.push((*n, w));
                }
                own.push(w);
            }
            own
        })
        .collect()
}

fn union(words: &[Vec<&'static str>]) -> Vec<&'static str> {
    let mut out = vec![];
    for w in words.iter().flatten() {
        if !out.contains(w) {
            out.push(*w);
        }
    }
    out
}

/// In the same order mostly, else in another.
fn turned(rng: &mut Rng, words: Vec<&'static str>) -> Vec<&'static str> {
    if rng.below(4) > 0 { words } else { rng.order(words.len()).into_iter().map(|i| words[i]).collect() }
}

fn axes(inputs: &[Vec<&str>], output: &[&str]) -> String {
    format!("\"{} -> {}\"", inputs.iter().map(|w| w.join(" ")).collect::<Vec<_>>().join(", "), output.join(" "))
}

fn line(rng: &mut Rng, f: &Function, n: usize) -> Option<String> {
    let body = match rng.below(24) {
        0..8 => pointwise(rng, f)?,
        8 => {
            let (x, t) = pick(rng, f, |t| t.dtype != Dtype::Bool)?;
            let own = words(rng, &[&t]);
            let kept: Vec<&str> = own[0].iter().copied().filter(|_| rng.below(2) == 0).collect();
            let op = ["reduce.sum", "reduce.max", "arg_max"][rng.below(3)];
            if op == "arg_max" && t.elements() == 0 {
                return None;
            }
            format!("{op} {x} {}", axes(&own, &kept))
        }
        9 | 10 => {
            let (x, t) = pick(rng, f, |t| t.dtype.is_float() && t.rank() > 0)?;
            let (y, u) = pick(rng, f, |u| u.dtype == t.dtype && u.rank() > 0)?;
            let own = words(rng, &[&t, &u]);
            let kept: Vec<&str> = union(&own).into_iter().filter(|_| rng.below(3) > 0).collect();
            let kept = turned(rng, kept.iter().filter_map(|w| LETTERS.iter().find(|l| *l == w).copied()).collect());
            format!("einsum.{} {x}, {y} {}", ["f32", "f32", "bf16"][rng.below(3)], axes(&own, &kept))
        }
        11 | 12 => rearrange(rng, f)?,
        13 | 14 => {
            let (x, t) = pick(rng, f, |t| t.rank() > 0)?;
            let axis = rng.below(t.rank());
            let start = rng.below(t.shape[axis] + 1);
            let end = start + rng.below(t.shape[axis] - start + 1);
            format!("slice {x} axis={axis} start={start} end={end}")
        }
        15 => {
            let (x, t) = pick(rng, f, |t| t.rank() > 0)?;
            let axis = rng.below(t.rank());
            let fits = |u: &Type| {
                u.dtype == t.dtype
                    && u.rank() == t.rank()
                    && (0..t.rank()).all(|a| a == axis || u.shape[a] == t.shape[a])
            };
            let mut all = vec![x];
            for _ in 0..1 + rng.below(2) {
                all.push(pick(rng, f, fits)?.0);
            }
            format!("concat {} axis={axis}", all.join(", "))
        }
        16 => {
            let (x, t) = pick(rng, f, |t| t.rank() > 0)?;
            let (ids, u) = pick(rng, f, |u| u.dtype == Dtype::I32 && u.rank() > 0)?;
            let own = words(rng, &[&t, &u]);
            let row = rng.below(t.rank());
            let mut table = own[0].clone();
            if own[1].contains(&table[row]) {
                table[row] = "z";
            }
            let rest: Vec<&str> =
                table.iter().enumerate().filter(|(i, w)| *i != row && !own[1].contains(w)).map(|(_, w)| *w).collect();
            let out = [&own[1][..], &rest[..]].concat();
            format!("gather {x}, {ids} {}", axes(&[table, own[1].clone()], &turned(rng, out)))
        }
        17 => {
            let (x, t) = pick(rng, f, |t| t.rank() > 0 && t.dtype.is_float())?;
            let (ids, u) = pick(rng, f, |u| u.dtype == Dtype::I32 && u.rank() == 1)?;
            let (rows, _) = pick(rng, f, |r| {
                r.dtype == t.dtype && r.rank() == t.rank() && r.shape[0] == u.shape[0] && r.shape[1..] == t.shape[1..]
            })?;
            let rest = ["c", "d"][..t.rank().min(3) - 1].join(" ");
            format!("scatter_add {x}, {ids}, {rows} \"v {rest}, t, t {rest} -> v {rest}\"")
        }
        18 => {
            let (x, t) = pick(rng, f, |t| t.rank() > 0)?;
            let axis = rng.below(t.rank());
            let fits = |u: &Type| {
                u.dtype == t.dtype
                    && u.rank() == t.rank()
                    && (0..t.rank())
                        .all(|a| if a == axis { u.shape[a] <= t.shape[a] } else { u.shape[a] == t.shape[a] })
            };
            format!("update_slice {x}, {}, %s axis={axis}", pick(rng, f, fits)?.0)
        }
        19 => {
            let (x, t) = pick(rng, f, |t| t.dtype == Dtype::F32 && t.rank() > 0 && t.elements() > 0)?;
            let own = words(rng, &[&t]);
            let kept = own[0][..t.rank() - 1].to_vec();
            format!("kth_largest {x} {} k={}", axes(&own, &kept), 1 + rng.below(t.shape[t.rank() - 1]))
        }
        20 | 21 => format!("cast.{} {}", Dtype::ALL[rng.below(5)], pick(rng, f, |_| true)?.0),
        22 => match rng.below(4) {
            0 => format!("iota {}", [3, 4, 5, 1][rng.below(4)]),
            1 => format!("constant.{} {}", ["f32", "bf16", "i32"][rng.below(3)], 1 + rng.below(3)),
            2 => format!("copy {}", pick(rng, f, |_| true)?.0),
            _ => match rng.below(4) {
                0 => format!("all_gather {} parts=1", pick(rng, f, |t| t.rank() == 1)?.0),
                1 => format!("reduce_scatter.sum {} parts=1", pick(rng, f, |t| t.dtype.is_float() && t.rank() == 1)?.0),
                2 => format!("all_reduce.sum {}", pick(rng, f, |t| t.dtype.is_float())?.0),
                _ => format!("all_reduce.max {}", pick(rng, f, |t| t.dtype.is_float())?.0),
            },
        },
        _ => {
            let (x, t) = pick(rng, f, |t| t.dtype.is_float() && t.rank() == 2)?;
            let row = |rng: &mut Rng| {
                pick(rng, f, |u| u.dtype == t.dtype && u.rank() == 1 && u.shape[0] == t.shape[1]).map(|w| w.0)
            };
            match rng.below(4) {
                0 => format!("call @softmax({x})"),
                1 => format!("call @silu({x})"),
                2 => format!("call @rms_norm({x}, {}, 0.5)", row(rng)?),
                _ => format!("call @layer_norm({x}, {}, {}, 0.5)", row(rng)?, row(rng)?),
            }
        }
    };
    Some(format!("%v{n} = {body}"))
}

fn pointwise(rng: &mut Rng, f: &Function) -> Option<String> {
    let s = Scalar::ALL[rng.below(Scalar::ALL.len())];
    let (x, t) = match s.name() {
        "select" => pick(rng, f, |t| t.dtype == Dtype::Bool)?,
        _ => pick(rng, f, |t| s.infer(&vec![t.dtype; s.arity()]).is_ok())?,
    };
    if s.arity() == 1 {
        let own = words(rng, &[&t]);
        return Some(if rng.below(6) > 0 {
            format!("{} {x}", s.name())
        } else {
            let out = turned(rng, own[0].clone());
            format!("{} {x} {}", s.name(), axes(&own, &out))
        });
    }
    if rng.below(4) == 0 && s.arity() == 2 && s.name() != "and" {
        // A sum with 0 is left out: it tells -0 from 0, which no pass need keep; a file test shows the rule.
        let number = if s == Scalar::Add { 1 + rng.below(2) } else { rng.below(3) };
        return Some(if rng.below(4) > 0 {
            format!("{} {x}, {number}", s.name())
        } else {
            let own = words(rng, &[&t]);
            let out = turned(rng, own[0].clone());
            format!("{} {x}, {number} \"{}, -> {}\"", s.name(), own[0].join(" "), out.join(" "))
        });
    }
    let mut all = vec![x];
    let mut types = vec![t];
    for i in 1..s.arity() {
        let like = if s.name() == "select" && i == 1 { None } else { types.last().map(|t| t.dtype) };
        let (y, u) = pick(rng, f, |u| like.is_none_or(|d| u.dtype == d))?;
        all.push(y);
        types.push(u);
    }
    let alike = types.iter().all(|t| t.rank() == 0 || t.shape == types[0].shape);
    let list = all.join(", ");
    if alike && rng.below(4) > 0 {
        return Some(format!("{} {list}", s.name()));
    }
    let own = words(rng, &types.iter().collect::<Vec<_>>());
    let out = turned(rng, union(&own));
    Some(format!("{} {list} {}", s.name(), axes(&own, &out)))
}

fn rearrange(rng: &mut Rng, f: &Function) -> Option<String> {
    let (x, t) = pick(rng, f, |t| t.rank() < 4)?;
    let own = words(rng, &[&t]).remove(0);
    let left = own.join(" ");
    let (left, right, sizes) = match rng.below(5) {
        0 => (left, rng.order(own.len()).into_iter().map(|i| own[i]).collect::<Vec<_>>().join(" "), ""),
        1 => (left.clone(), format!("({left})"), ""),
        2 if t.rank() > 0 && t.shape[0] % 2 == 0 => (
            format!("(y z) {}", own[1..].join(" ")),
            format!("{} {}", own[1..].join(" "), ["y z", "z y", "(z y)"][rng.below(3)]),
            " y=2",
        ),
        2 | 3 => (left.clone(), format!("n {left}"), " n=2"),
        _ => (left.clone(), format!("{left} n"), " n=3"),
    };
    Some(format!("rearrange {x} \"{left} -> {right}\"{sizes}"))
}
