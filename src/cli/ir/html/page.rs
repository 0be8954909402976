//! The page as a whole: the list of passes on the left, a section each, the program at the end.

use super::{Journey, changes, escape, grouped, plan};
use crate::cli::ir::compare::{Comparison, Side, compare};
use omchat_ir::{Function, Module};
use std::fmt::Write as _;

/// How it looks.
const STYLE: &str = include_str!("page.css");

/// The page of a journey.
pub fn page(j: &Journey) -> String {
    let mut before = &j.input;
    let mut found = vec![];
    for s in &j.stages {
        found.push(compare(before, &s.module));
        before = &s.module;
    }
    let title = format!("@{} for {}", escape(&j.name), escape(&j.target.name));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title>\n<style>\n{STYLE}</style></head>\n<body>\n"
    );
    nav(&mut out, j, &found);
    let _ = writeln!(out, "<main>\n<header><h1>{title}</h1>\n{}</header>", intro(j));
    let _ = writeln!(out, "<section id=\"input\"><h2>input</h2>\n<p>Before any pass.</p>\n{}", counted(&[&j.input]));
    out += &changes::whole("The module", &j.input.to_string());
    out += "</section>\n";
    let mut before = &j.input;
    for (s, c) in j.stages.iter().zip(&found) {
        let _ = writeln!(out, "<section id=\"{0}\"><h2>{0}</h2>", s.pass);
        let _ =
            writeln!(out, "<dl><dt>why</dt><dd>{}</dd><dt>after</dt><dd>{}</dd></dl>", escape(s.why), holds(s.pass));
        out += &counted(&[before, &s.module]);
        out += &changes::changes(c);
        out += &changes::whole(&format!("The module after {}", s.pass), &s.module.to_string());
        out += "</section>\n";
        before = &s.module;
    }
    out += &plan::sections(j);
    out + "</main>\n</body></html>\n"
}

/// What holds after a pass.
fn holds(pass: &str) -> &'static str {
    match pass {
        "legalize" => "every value's dtype is one that the target holds",
        "inline" => "the entry holds primitives, and calls that a kernel offers a schedule for",
        "canonicalize" => "no cast to the same dtype, no x + 0, no x * 1; scalars of constants are constants",
        "cse" => "no two nodes do the same to the same operands",
        "dce" => "every node is needed, every function is called; collectives stay: other ranks wait for them",
        "fuse" => "each group is a function; the entry holds calls, and nodes that stand alone",
        "outline" => "the entry holds calls only; equal groups are one function",
        _ => "the module prints, parses, verifies and means the same",
    }
}

fn nav(out: &mut String, j: &Journey, found: &[Comparison]) {
    *out += "<nav><p>omchat ir</p>\n<ol>\n<li><a href=\"#input\">input</a></li>\n";
    for (s, c) in j.stages.iter().zip(found) {
        let says = if c.same() { "<em>no change</em>".into() } else { sum(c) };
        let _ = writeln!(out, "<li><a href=\"#{0}\">{0} {says}</a></li>", s.pass);
    }
    *out += "<li><a href=\"#program\">program</a></li>\n<li><a href=\"#memory\">memory</a></li>\n</ol></nav>\n";
}

/// Lines added and removed over all functions.
fn sum(c: &Comparison) -> String {
    let (mut removed, mut added) = (0, 0);
    for p in c.functions.iter().filter(|p| p.side != Side::Same) {
        let (r, a) = p.counts();
        (removed, added) = (removed + r, added + a);
    }
    format!("<ins>+{added}</ins> <del>−{removed}</del>")
}

fn intro(j: &Journey) -> String {
    match &j.program {
        Ok(p) => format!(
            "<p>{} passes; {} launches of {} kernels; {} bytes of arena.</p>",
            j.stages.len(),
            p.launches.len(),
            p.chosen.len(),
            grouped(p.slabs.iter().sum())
        ),
        Err(e) => format!("<p class=\"bad\">There is no program: {}</p>", escape(e)),
    }
}

/// Functions, nodes and values of a module, or of two with what changed.
fn counted(modules: &[&Module]) -> String {
    let count = |m: &Module| {
        let sum = |each: fn(&Function) -> usize| m.functions.iter().map(each).sum();
        [m.functions.len(), sum(|f| f.nodes.len()), sum(|f| f.values.len())]
    };
    let counts: Vec<[usize; 3]> = modules.iter().map(|m| count(m)).collect();
    let mut out = "<ul class=\"counts\">".to_string();
    for (i, what) in ["functions", "nodes", "values"].into_iter().enumerate() {
        let numbers: Vec<usize> = counts.iter().map(|c| c[i]).collect();
        let shown = match numbers[..] {
            [a, b] if a != b => format!("{} → <b>{}</b>", grouped(a), grouped(b)),
            [a, ..] => format!("<b>{}</b>", grouped(a)),
            [] => String::new(),
        };
        let _ = write!(out, "<li>{what} {shown}</li>");
    }
    out + "</ul>\n"
}
