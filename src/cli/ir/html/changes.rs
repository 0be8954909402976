//! What a pass changed, as HTML: functions to fold away, lines and words marked.

use super::escape;
use crate::cli::ir::compare::{Comparison, Pair, Side};
use similar::{Algorithm, DiffOp, capture_diff_slices};
use std::fmt::Write as _;

/// Unchanged lines shown on each side of a change; longer runs fold away.
const AROUND: usize = 3;

/// Lines of a run that came or went which are shown; the others fold away.
const LONG: usize = 40;

/// The changed, new and gone functions of a comparison, the entry first.
pub fn changes(found: &Comparison) -> String {
    if found.same() {
        return "<p class=\"calm\">Nothing changed.</p>\n".into();
    }
    let mut out = String::new();
    let changed: Vec<&Pair> = found.on(Side::Changed).collect();
    changed.iter().rev().for_each(|p| block(&mut out, p));
    found.on(Side::B).for_each(|p| block(&mut out, p));
    found.on(Side::A).for_each(|p| block(&mut out, p));
    let same: Vec<String> = found.on(Side::Same).map(|p| format!("<code>{}</code>", escape(&p.name))).collect();
    if !same.is_empty() {
        let _ = writeln!(
            out,
            "<details class=\"rest\"><summary>{} not changed</summary><p>{}</p></details>",
            same.len(),
            same.join(" ")
        );
    }
    out
}

/// A text, folded away.
pub fn whole(title: &str, text: &str) -> String {
    let lines: String = text.lines().map(|l| line("", l, &[])).collect();
    format!("<details class=\"whole\"><summary>{}</summary><pre>{lines}</pre></details>\n", escape(title))
}

fn block(out: &mut String, p: &Pair) {
    let (removed, added) = p.counts();
    let (class, says) = match p.side {
        Side::A => ("gone", format!("gone, {} lines", p.a.len())),
        Side::B => ("new", format!("new, {} lines", p.b.len())),
        _ => ("changed", format!("<ins>+{added}</ins> <del>−{removed}</del>")),
    };
    let open = if p.side == Side::Changed { " open" } else { "" };
    let there = p.there.as_ref().map_or(String::new(), |t| format!(" <small>now {}</small>", escape(t)));
    let name = escape(&p.name);
    let _ = writeln!(
        out,
        "<details class=\"fn {class}\"{open}><summary><code>{name}</code>{there} <span>{says}</span></summary><pre>{}</pre></details>",
        lines(p)
    );
}

fn lines(p: &Pair) -> String {
    let mut out = String::new();
    for (i, edit) in p.edits.iter().enumerate() {
        if let DiffOp::Equal { .. } = edit {
            same(&mut out, &p.a[edit.old_range()], i == 0, i + 1 == p.edits.len());
            continue;
        }
        let (old, new) = (&p.a[edit.old_range()], &p.b[edit.new_range()]);
        let twin = |l: &String, others: &[String]| others.iter().find(|o| name(o) == name(l)).cloned();
        let show = |class, l: &String, others: &[String]| line(class, l, &marks(l, twin(l, others).as_deref()));
        run(&mut out, old.iter().map(|l| show("del", l, new)).collect());
        run(&mut out, new.iter().map(|l| show("ins", l, old)).collect());
    }
    out
}

/// Lines that came or went; all but the first of a long run fold away.
fn run(out: &mut String, lines: Vec<String>) {
    let head = if lines.len() > LONG + AROUND { LONG } else { lines.len() };
    *out += &lines[..head].concat();
    if head < lines.len() {
        let (more, rest) = (lines.len() - head, lines[head..].concat());
        let _ = write!(out, "<details class=\"gap\"><summary>{more} more</summary>{rest}</details>");
    }
}

/// Lines that stayed, folded away but for those next to a change.
fn same(out: &mut String, lines: &[String], first: bool, last: bool) {
    let plain = |l: &[String]| l.iter().map(|l| line("", l, &[])).collect::<String>();
    // The signature stays in sight.
    let head = if first { 1 } else { AROUND };
    let tail = if last { 1 } else { AROUND };
    if lines.len() <= head + tail + 2 {
        *out += &plain(lines);
        return;
    }
    let (from, to) = (head, lines.len() - tail);
    *out += &plain(&lines[..from]);
    let _ = write!(
        out,
        "<details class=\"gap\"><summary>{} lines the same</summary>{}</details>",
        to - from,
        plain(&lines[from..to])
    );
    *out += &plain(&lines[to..]);
}

/// What tells which line of the other version a line was: the values that it binds, or how it begins.
fn name(line: &str) -> &str {
    line.split_once(" = ").map_or_else(|| line.split(['@', '%']).next().unwrap_or(line), |(values, _)| values)
}

/// The tokens of a line that its other version lacks.
fn marks(line: &str, other: Option<&str>) -> Vec<usize> {
    let Some(other) = other else { return vec![] };
    let (ours, theirs) = (tokens(line), tokens(other));
    let edits = capture_diff_slices(Algorithm::Myers, &theirs, &ours);
    edits.iter().filter(|e| !matches!(e, DiffOp::Equal { .. })).flat_map(DiffOp::new_range).collect()
}

/// A line with its tokens coloured and some marked.
fn line(class: &str, text: &str, marked: &[usize]) -> String {
    let mut out = format!("<div class=\"{class}\">");
    let mut typed = false;
    for (i, t) in tokens(text).into_iter().enumerate() {
        typed |= t == ":" && !text.starts_with("func");
        let kind = match t.as_bytes().first() {
            Some(b'%') => "v",
            Some(b'@') => "f",
            Some(b'"') => "s",
            _ if typed => "t",
            _ if matches!(t, "func" | "return" | "call" | "weight" | "state" | "remat") => "k",
            _ => "",
        };
        let mark = if marked.contains(&i) && !t.trim().is_empty() { " m" } else { "" };
        if kind.is_empty() && mark.is_empty() {
            out += &escape(t);
        } else {
            let _ = write!(out, "<i class=\"{kind}{mark}\">{}</i>", escape(t));
        }
    }
    out + "</div>"
}

/// Names, quoted axes, words, and what stands between, a character each.
fn tokens(line: &str) -> Vec<&str> {
    let word = |c: char| c.is_alphanumeric() || "_.'".contains(c);
    let mut out = vec![];
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let len = match c {
            '"' => after.find('"').map_or(rest.len(), |i| i + 2),
            '%' | '@' => 1 + after.find(|c| !word(c)).unwrap_or(after.len()),
            _ if word(c) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            ' ' => rest.find(|c| c != ' ').unwrap_or(rest.len()),
            _ => c.len_utf8(),
        };
        let (token, left) = rest.split_at(len);
        out.push(token);
        rest = left;
    }
    out
}
