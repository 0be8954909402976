//! The one layout of the text.

use super::ast::{Bare, Comment, Dim, DtypeText, Expr, File, Given, Operand, Stmt, Template, TypeText};
use crate::Bind;
use crate::fault::Place;
use crate::module::{Action, Function, Module, Node, Role, Value};
use crate::types::Type;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A name and its letters, as a call spells them: `@f[B=1, E=f32]`.
pub fn spell(name: &str, binds: &BTreeMap<String, Bind>) -> String {
    let list: Vec<String> = binds
        .iter()
        .map(|(n, b)| match b {
            Bind::Size(s) => format!("{n}={s}"),
            Bind::Dtype(d) => format!("{n}={d}"),
        })
        .collect();
    if list.is_empty() { format!("@{name}") } else { format!("@{name}[{}]", list.join(", ")) }
}

/// A text in the one layout.
pub fn print(file: &File) -> String {
    let mut out = Out { text: String::new(), comments: &file.comments };
    for (i, t) in file.functions.iter().enumerate() {
        if i > 0 {
            out.text.push('\n');
        }
        let last = out.comments_before(t.place.line, "");
        // What stands apart from the function, as a header does, stays apart.
        if last.is_some_and(|l| l + t.doc.len() + 1 < t.place.line) {
            out.text.push('\n');
        }
        function(&mut out, t);
    }
    if !out.comments.is_empty() && !file.functions.is_empty() {
        out.text.push('\n');
    }
    out.comments_before(usize::MAX, "");
    out.text
}

/// What is written so far, and the comments still to come.
struct Out<'a> {
    text: String,
    comments: &'a [Comment],
}

impl Out<'_> {
    /// Writes the comments above a line, each on its own; the line of the last.
    fn comments_before(&mut self, line: usize, pad: &str) -> Option<usize> {
        let mut last = None;
        while let Some((c, rest)) = self.comments.split_first().filter(|(c, _)| c.line < line) {
            if last.is_some_and(|l| l + 1 < c.line) {
                self.text.push('\n');
            }
            let _ = writeln!(self.text, "{pad}{}", c.text);
            last = Some(c.line);
            self.comments = rest;
        }
        last
    }

    /// Ends a line, with the comment that stood beside it.
    fn line(&mut self, text: &str, line: usize) {
        self.text.push_str(text.trim_end());
        while let Some((c, rest)) = self.comments.split_first().filter(|(c, _)| c.line == line) {
            let _ = write!(self.text, " {}", c.text);
            self.comments = rest;
        }
        self.text.push('\n');
    }
}

/// What a module says.
pub fn to_ast(module: &Module) -> File {
    File { functions: module.functions.iter().map(|f| template(module, f)).collect(), comments: vec![] }
}

fn template(module: &Module, f: &Function) -> Template {
    let name = |v: &Value| f.value(*v).name.clone();
    let params = f.param_values().zip(&f.params).map(|(v, r)| (*r, name(&v), type_text(f.ty(v)))).collect();
    let mut body: Vec<Stmt> = f.nodes.iter().map(|n| statement(module, f, n)).collect();
    body.push(Stmt::Return {
        values: f.results.iter().map(|v| Operand::Name(name(v))).collect(),
        place: Place::default(),
    });
    let letters = f.binds.iter().map(|(n, b)| (n.clone(), Some(*b))).collect();
    Template {
        doc: vec![],
        name: f.name.clone(),
        letters,
        params,
        results: f.results.iter().map(|v| type_text(f.ty(*v))).collect(),
        body,
        place: Place::default(),
        end: 0,
    }
}

fn statement(module: &Module, f: &Function, n: &Node) -> Stmt {
    let operands = n.operands.iter().map(|v| Operand::Name(f.value(*v).name.clone())).collect();
    let expr = match &n.action {
        Action::Op(op) => {
            let (mnemonic, a) = op.write();
            let bare =
                a.number.map(|x| if mnemonic == "iota" { Bare::Dim(Dim::Number(x as i64)) } else { Bare::Number(x) });
            Expr::Op {
                mnemonic: mnemonic.into(),
                suffix: a.suffix,
                operands,
                bare,
                axes: a.axes,
                ints: a.ints.into_iter().map(|(n, v)| (n, Dim::Number(v))).collect(),
            }
        }
        Action::Call { callee, remat } => {
            let c = module.function(*callee);
            let letters = c
                .binds
                .iter()
                .map(|(n, b)| {
                    (
                        n.clone(),
                        match b {
                            Bind::Size(s) => Given::Dim(Dim::Number(*s as i64)),
                            Bind::Dtype(d) => Given::Dtype(*d),
                        },
                    )
                })
                .collect();
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
    TypeText {
        dtype: DtypeText::Known(t.dtype),
        dims: t.shape.iter().map(|n| Dim::Number(*n as i64)).collect(),
        place: Place::default(),
    }
}

fn function(out: &mut Out, t: &Template) {
    for line in &t.doc {
        let _ = writeln!(out.text, "{}", format!(";; {line}").trim_end());
    }
    let letters: Vec<String> = t
        .letters
        .iter()
        .map(|(n, b)| match b {
            None => n.clone(),
            Some(Bind::Size(s)) => format!("{n}={s}"),
            Some(Bind::Dtype(d)) => format!("{n}={d}"),
        })
        .collect();
    let letters = if letters.is_empty() { String::new() } else { format!("[{}]", letters.join(", ")) };
    let params: Vec<String> =
        t.params.iter().map(|(r, n, ty)| format!("{}%{n}: {}", role(*r), ty_string(ty))).collect();
    let results: Vec<String> = t.results.iter().map(ty_string).collect();
    let results = match results.as_slice() {
        [] => String::new(),
        [one] => format!(" -> {one}"),
        many => format!(" -> ({})", many.join(", ")),
    };
    let one = format!("func @{}{letters}({}){results} {{", t.name, params.join(", "));
    if one.len() <= 110 {
        out.line(&one, t.place.line);
    } else {
        let _ = writeln!(out.text, "func @{}{letters}(", t.name);
        for p in &params {
            let _ = writeln!(out.text, "    {p},");
        }
        let _ = writeln!(out.text, "){results} {{");
    }
    block(out, &t.body, 1);
    out.comments_before(t.end, "    ");
    out.line("}", t.end);
}

fn role(r: Role) -> &'static str {
    match r {
        Role::Input => "",
        Role::Weight => "weight ",
        Role::State => "state ",
    }
}

fn block(out: &mut Out, body: &[Stmt], depth: usize) {
    let pad = "    ".repeat(depth);
    for s in body {
        let (Stmt::Let { place, .. } | Stmt::For { place, .. } | Stmt::Return { place, .. }) = s;
        out.comments_before(place.line, &pad);
        match s {
            Stmt::Let { names, expr, types, .. } => {
                let names: Vec<String> = names.iter().map(|n| format!("%{n}")).collect();
                let types: Vec<String> = types.iter().map(ty_string).collect();
                let types = if types.is_empty() { String::new() } else { format!(" : {}", types.join(", ")) };
                out.line(&format!("{pad}{} = {}{types}", names.join(", "), expr_string(expr)), place.line);
            }
            Stmt::For { variable, from, to, body, end, .. } => {
                out.line(&format!("{pad}for {variable} in {}..{} {{", dim(from, 0), dim(to, 0)), place.line);
                block(out, body, depth + 1);
                out.comments_before(*end, &"    ".repeat(depth + 1));
                out.line(&format!("{pad}}}"), *end);
            }
            Stmt::Return { values, .. } => {
                out.line(&format!("{pad}return {}", operands(values)), place.line);
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
                Some(Bare::Dim(d)) => {
                    let _ = write!(out, " {}", dim(d, 0));
                }
                Some(Bare::Number(x)) => {
                    let _ = write!(out, " {}", number(*x));
                }
                None => {
                    let _ = write!(out, " {}", operands(list));
                }
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
            let given: Vec<String> = letters
                .iter()
                .map(|(n, g)| match g {
                    Given::Dtype(d) => format!("{n}={d}"),
                    Given::Dim(d) => format!("{n}={}", dim(d, 0)),
                })
                .collect();
            let given = if given.is_empty() { String::new() } else { format!("[{}]", given.join(", ")) };
            format!("call @{name}{given}({}){}", operands(list), if *remat { " remat" } else { "" })
        }
    }
}

fn operands(list: &[Operand]) -> String {
    list.iter()
        .map(|o| match o {
            Operand::Name(n) => format!("%{n}"),
            Operand::Number(x) => number(*x),
        })
        .collect::<Vec<_>>()
        .join(", ")
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
