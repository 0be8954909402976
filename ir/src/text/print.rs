//! The one layout of the text.

use super::ast::{Bare, Dim, DtypeText, Expr, File, Given, Operand, Stmt, Template, TypeText};
use crate::Bind;
use crate::fault::Place;
use crate::module::{Action, Function, Module, Node, Role, Value};
use crate::types::Type;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A name and its letters, as a call spells them: `@f[B=1, E=f32]`.
pub fn spell(name: &str, binds: &BTreeMap<String, Bind>) -> String {
    let list: Vec<String> = binds.iter().map(|(n, b)| match b {
        Bind::Size(s) => format!("{n}={s}"),
        Bind::Dtype(d) => format!("{n}={d}"),
    }).collect();
    if list.is_empty() { format!("@{name}") } else { format!("@{name}[{}]", list.join(", ")) }
}

/// A text in the one layout.
pub fn print(file: &File) -> String {
    file.functions.iter().map(function).collect::<Vec<_>>().join("\n")
}

/// What a module says.
pub fn to_ast(module: &Module) -> File {
    File { functions: module.functions.iter().map(|f| template(module, f)).collect() }
}

fn template(module: &Module, f: &Function) -> Template {
    let name = |v: &Value| f.value(*v).name.clone();
    let params = f.param_values().zip(&f.params).map(|(v, r)| (*r, name(&v), type_text(f.ty(v)))).collect();
    let mut body: Vec<Stmt> = f.nodes.iter().map(|n| statement(module, f, n)).collect();
    body.push(Stmt::Return { values: f.results.iter().map(|v| Operand::Name(name(v))).collect(), place: Place::default() });
    let letters = f.binds.iter().map(|(n, b)| (n.clone(), Some(*b))).collect();
    Template { doc: vec![], name: f.name.clone(), letters, params, results: f.results.iter().map(|v| type_text(f.ty(*v))).collect(), body, place: Place::default() }
}

fn statement(module: &Module, f: &Function, n: &Node) -> Stmt {
    let operands = n.operands.iter().map(|v| Operand::Name(f.value(*v).name.clone())).collect();
    let expr = match &n.action {
        Action::Op(op) => {
            let (mnemonic, a) = op.write();
            let bare = a.number.map(|x| if mnemonic == "iota" { Bare::Dim(Dim::Number(x as i64)) } else { Bare::Number(x) });
            Expr::Op { mnemonic: mnemonic.into(), suffix: a.suffix, operands, bare, axes: a.axes, ints: a.ints.into_iter().map(|(n, v)| (n, Dim::Number(v))).collect() }
        }
        Action::Call { callee, remat } => {
            let c = module.function(*callee);
            let letters = c.binds.iter().map(|(n, b)| (n.clone(), match b {
                Bind::Size(s) => Given::Dim(Dim::Number(*s as i64)),
                Bind::Dtype(d) => Given::Dtype(*d),
            })).collect();
            Expr::Call { name: c.name.clone(), letters, operands, remat: *remat }
        }
    };
    Stmt::Let {
        names: n.results.iter().map(|v| f.value(*v).name.clone()).collect(),
        expr,
        types: n.results.iter().map(|v| type_text(f.ty(*v))).collect(),
        place: Place::default(),
    }
}

fn type_text(t: &Type) -> TypeText {
    TypeText { dtype: DtypeText::Known(t.dtype), dims: t.shape.iter().map(|n| Dim::Number(*n as i64)).collect(), place: Place::default() }
}

fn function(t: &Template) -> String {
    let mut out = String::new();
    for line in &t.doc {
        let _ = writeln!(out, "{}", format!(";; {line}").trim_end());
    }
    let letters: Vec<String> = t.letters.iter().map(|(n, b)| match b {
        None => n.clone(),
        Some(Bind::Size(s)) => format!("{n}={s}"),
        Some(Bind::Dtype(d)) => format!("{n}={d}"),
    }).collect();
    let letters = if letters.is_empty() { String::new() } else { format!("[{}]", letters.join(", ")) };
    let params: Vec<String> = t.params.iter().map(|(r, n, ty)| format!("{}%{n}: {}", role(*r), ty_string(ty))).collect();
    let results: Vec<String> = t.results.iter().map(ty_string).collect();
    let results = match results.as_slice() {
        [] => String::new(),
        [one] => format!(" -> {one}"),
        many => format!(" -> ({})", many.join(", ")),
    };
    let one = format!("func @{}{letters}({}){results} {{", t.name, params.join(", "));
    if one.len() <= 110 {
        let _ = writeln!(out, "{one}");
    } else {
        let _ = writeln!(out, "func @{}{letters}(", t.name);
        for p in &params {
            let _ = writeln!(out, "    {p},");
        }
        let _ = writeln!(out, "){results} {{");
    }
    block(&mut out, &t.body, 1);
    out.push_str("}\n");
    out
}

fn role(r: Role) -> &'static str {
    match r {
        Role::Input => "",
        Role::Weight => "weight ",
        Role::State => "state ",
    }
}

fn block(out: &mut String, body: &[Stmt], depth: usize) {
    let pad = "    ".repeat(depth);
    for s in body {
        match s {
            Stmt::Let { names, expr, types, .. } => {
                let names: Vec<String> = names.iter().map(|n| format!("%{n}")).collect();
                let types: Vec<String> = types.iter().map(ty_string).collect();
                let types = if types.is_empty() { String::new() } else { format!(" : {}", types.join(", ")) };
                let _ = writeln!(out, "{pad}{} = {}{types}", names.join(", "), expr_string(expr));
            }
            Stmt::For { variable, from, to, body, .. } => {
                let _ = writeln!(out, "{pad}for {variable} in {}..{} {{", dim(from, 0), dim(to, 0));
                block(out, body, depth + 1);
                let _ = writeln!(out, "{pad}}}");
            }
            Stmt::Return { values, .. } => {
                let _ = writeln!(out, "{}", format!("{pad}return {}", operands(values)).trim_end());
            }
        }
    }
}

fn expr_string(e: &Expr) -> String {
    match e {
        Expr::Op { mnemonic, suffix, operands: list, bare, axes, ints } => {
            let mut out = mnemonic.clone();
            if let Some(s) = suffix {
                let _ = write!(out, ".{s}");
            }
            match bare {
                Some(Bare::Dim(d)) => { let _ = write!(out, " {}", dim(d, 0)); }
                Some(Bare::Number(x)) => { let _ = write!(out, " {}", number(*x)); }
                None => { let _ = write!(out, " {}", operands(list)); }
            }
            if let Some(a) = axes {
                let _ = write!(out, " \"{a}\"");
            }
            for (n, d) in ints {
                let _ = write!(out, " {n}={}", dim(d, 0));
            }
            out
        }
        Expr::Call { name, letters, operands: list, remat } => {
            let given: Vec<String> = letters.iter().map(|(n, g)| match g {
                Given::Dtype(d) => format!("{n}={d}"),
                Given::Dim(d) => format!("{n}={}", dim(d, 0)),
            }).collect();
            let given = if given.is_empty() { String::new() } else { format!("[{}]", given.join(", ")) };
            format!("call @{name}{given}({}){}", operands(list), if *remat { " remat" } else { "" })
        }
    }
}

fn operands(list: &[Operand]) -> String {
    list.iter().map(|o| match o {
        Operand::Name(n) => format!("%{n}"),
        Operand::Number(x) => number(*x),
    }).collect::<Vec<_>>().join(", ")
}

/// A number that reads back as the same double.
pub fn number(x: f64) -> String {
    let plain = x == 0.0 || (1e-4..1e15).contains(&x.abs());
    if plain { format!("{x}") } else { format!("{x:e}") }
}

fn ty_string(t: &TypeText) -> String {
    let dtype = match &t.dtype {
        DtypeText::Known(d) => d.to_string(),
        DtypeText::Letter(l) => l.clone(),
    };
    if t.dims.is_empty() {
        return dtype;
    }
    format!("{dtype}[{}]", t.dims.iter().map(|d| dim(d, 0)).collect::<Vec<_>>().join(", "))
}

/// Size arithmetic; `level` is how tightly the place binds (1 after `-`, 2 in a product, 3 after `/`).
fn dim(d: &Dim, level: u8) -> String {
    match d {
        Dim::Number(n) if *n < 0 && level > 0 => format!("({n})"),
        Dim::Number(n) => n.to_string(),
        Dim::Letter(l) => l.clone(),
        Dim::Join(op, a, b) => {
            let (own, left, right) = if matches!(op, '*' | '/') { (2, 2, 3) } else { (0, 0, 1) };
            let text = format!("{} {op} {}", dim(a, left), dim(b, right));
            let loose = own < level.min(2) || (own == 2 && level == 3);
            if loose { format!("({text})") } else { text }
        }
    }
}
