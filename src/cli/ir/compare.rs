//! What differs between two modules, function by function and line by line. Names of values do not count.

use super::rename;
use omchat_ir::text::{File, print, to_ast};
use omchat_ir::{Func, Function, Module};
use similar::{Algorithm, DiffOp, capture_diff_slices};

/// Two modules, function by function: those of B in their order, each of A's that B lacks before the next that it has.
pub struct Comparison {
    /// A function of A, of B, or of both.
    pub functions: Vec<Pair>,
}

/// A function in A and what it is in B.
pub struct Pair {
    /// How A spells it, or B where A lacks it: `@f[T=3]`.
    pub name: String,
    /// How B spells it, where it has another name there.
    pub there: Option<String>,
    /// Where it is.
    pub side: Side,
    /// Its lines in A; empty if A lacks it.
    pub a: Vec<String>,
    /// Its lines in B, with A's names for the values that A has too; empty if B lacks it.
    pub b: Vec<String>,
    /// What turns one into the other.
    pub edits: Vec<DiffOp>,
}

/// Where a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In A only.
    A,
    /// In B only.
    B,
    /// In both, the same but for the names of values.
    Same,
    /// In both, different.
    Changed,
}

impl Comparison {
    /// The functions on that side.
    pub fn on(&self, side: Side) -> impl Iterator<Item = &Pair> {
        self.functions.iter().filter(move |p| p.side == side)
    }

    /// Whether nothing differs.
    pub fn same(&self) -> bool {
        self.functions.iter().all(|p| p.side == Side::Same)
    }

    /// One line that counts: `1 function only in A, 2 only in B, 1 changed (3 lines removed, 4 added), 5 the same`.
    pub fn summary(&self) -> String {
        let count = |side| self.on(side).count();
        if self.same() {
            return match count(Side::Same) {
                1 => "the same: 1 function".into(),
                n => format!("the same: {n} functions"),
            };
        }
        let (removed, added) = self.on(Side::Changed).map(Pair::counts).fold((0, 0), |x, y| (x.0 + y.0, x.1 + y.1));
        let functions = if count(Side::A) == 1 { "function" } else { "functions" };
        format!(
            "{} {functions} only in A, {} only in B, {} changed ({removed} lines removed, {added} added), {} the same",
            count(Side::A),
            count(Side::B),
            count(Side::Changed),
            count(Side::Same)
        )
    }
}

impl Pair {
    /// Lines removed and lines added.
    pub fn counts(&self) -> (usize, usize) {
        let changed = self.edits.iter().filter(|e| !matches!(e, DiffOp::Equal { .. }));
        changed.fold((0, 0), |(r, a), e| (r + e.old_range().len(), a + e.new_range().len()))
    }

    fn new(name: String, there: Option<String>, a: Vec<String>, b: Vec<String>) -> Pair {
        let edits = capture_diff_slices(Algorithm::Myers, &a, &b);
        let equal = edits.iter().all(|e| matches!(e, DiffOp::Equal { .. }));
        let side = match (a.is_empty(), b.is_empty()) {
            (false, true) => Side::A,
            (true, false) => Side::B,
            _ if equal => Side::Same,
            _ => Side::Changed,
        };
        Pair { name, there, side, a, b, edits }
    }
}

/// Compares two modules.
///
/// Functions are the same function by name and letters, or by name where each module has one of that name. Functions
/// that a pass numbered are the same where they do the same. A value of B is the value of A that is computed alike,
/// whatever it is called; the parameters of a function that nobody calls are what their names say, for callers outside
/// bind them by name.
pub fn compare(a: &Module, b: &Module) -> Comparison {
    let spelled: Vec<String> = b.functions.iter().map(Function::signature).collect();
    let mut b = b.clone();
    rename::functions(a, &mut b);
    let twins = twins(a, &b);
    for (f, twin) in twins.iter().enumerate() {
        if let Some(g) = twin {
            rename::values(a, *g, &mut b, Func(f as u32));
        }
    }
    let (lines_a, lines_b) = (lines(a), lines(&b));
    let mut functions = vec![];
    let mut next = 0;
    for (f, twin) in twins.iter().enumerate() {
        let there = &spelled[f];
        let Some(g) = twin.map(|g| g.0 as usize) else {
            functions.push(Pair::new(there.clone(), None, vec![], lines_b[f].clone()));
            continue;
        };
        functions.extend(alone(a, next..g.max(next), &twins, &lines_a));
        next = next.max(g + 1);
        let name = a.functions[g].signature();
        let other = (name != *there).then(|| there.clone());
        functions.push(Pair::new(name, other, lines_a[g].clone(), lines_b[f].clone()));
    }
    functions.extend(alone(a, next..a.functions.len(), &twins, &lines_a));
    Comparison { functions }
}

/// The functions of a range of A that B lacks.
fn alone(a: &Module, range: std::ops::Range<usize>, twins: &[Option<Func>], lines: &[Vec<String>]) -> Vec<Pair> {
    let lacks = |g: &usize| !twins.contains(&Some(Func(*g as u32)));
    range.filter(lacks).map(|g| Pair::new(a.functions[g].signature(), None, lines[g].clone(), vec![])).collect()
}

/// For each function of B the function of A that it is.
fn twins(a: &Module, b: &Module) -> Vec<Option<Func>> {
    let mut twins: Vec<Option<Func>> = b.functions.iter().map(|f| a.find(&f.name, &f.binds)).collect();
    for (i, f) in b.functions.iter().enumerate().filter(|(i, _)| twins[*i].is_none()).collect::<Vec<_>>() {
        let one = |m: &Module| m.functions.iter().filter(|g| g.name == f.name).count() == 1;
        if one(a) && one(b) {
            twins[i] = a.named(&f.name);
        }
    }
    twins
}

/// The lines of each function.
fn lines(module: &Module) -> Vec<Vec<String>> {
    let templates = to_ast(module).functions;
    let text = |t| print(&File { functions: vec![t], comments: vec![] });
    templates.into_iter().map(|t| text(t).lines().map(str::to_string).collect()).collect()
}
