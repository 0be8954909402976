//! Rules of rearranges: one notation for where each element goes.

use super::{Rewrite, Site};
use omchat_ir::ops::Rearrange;
use omchat_ir::{Axes, Op, Type, strides};
use std::collections::BTreeMap;

/// The n-th word of axes made here: a, b, … z, a1, b1, …
pub(super) fn word(n: usize) -> String {
    let letter = char::from(b'a' + (n % 26) as u8);
    if n < 26 { letter.to_string() } else { format!("{letter}{}", n / 26) }
}

fn rearrange<'a>(s: &Site<'a>) -> Option<&'a Rearrange> {
    match s.op {
        Op::Rearrange(r) => Some(r),
        _ => None,
    }
}

/// Whether a node is the one form of a splat with axes.
pub(super) fn repeats_a_constant(s: &Site) -> bool {
    let Some(r) = rearrange(s) else { return false };
    let made = matches!(s.maker(s.x[0]), Some((Op::Constant(_), _)));
    made && s.to().rank() > 0 && r.axes.output.iter().all(|g| g.len() == 1)
}

/// Whether it moves no element: the same memory under another shape.
fn still(r: &Rearrange, x: &Type) -> bool {
    r.moves(x).is_ok_and(|m| m.sizes.iter().product::<usize>() == x.elements() && m.strides == strides(&m.sizes))
        || r.moves(x).is_ok_and(|m| in_order(&m.sizes, &m.strides) && m.sizes.iter().product::<usize>() == x.elements())
}

/// Whether strides are row-major, axes of size 1 aside.
fn in_order(sizes: &[usize], have: &[usize]) -> bool {
    strides(sizes).iter().zip(have).zip(sizes).all(|((a, b), n)| *n == 1 || a == b)
}

pub(super) fn identity(s: &Site) -> Option<Rewrite> {
    let r = rearrange(s)?;
    (s.ty(s.x[0]) == s.to() && still(r, s.to())).then_some(Rewrite::Same(s.x[0]))
}

pub(super) fn splat(s: &Site) -> Option<Rewrite> {
    rearrange(s)?;
    s.splat(s.x[0]).map(Rewrite::Splat)
}

/// Not worse: the one becomes strides, or the same memory, or was a copy before.
pub(super) fn compose(s: &Site) -> Option<Rewrite> {
    let outer = rearrange(s)?;
    let (Op::Rearrange(inner), from) = s.maker(s.x[0])? else { return None };
    let (x, mid) = (s.ty(from[0]), s.ty(s.x[0]));
    let one = composed(inner, outer, x, mid)?;
    let view = |r: &Rearrange| r.axes.output.iter().all(|g| g.len() == 1);
    let better = view(&one) || still(&one, x) || (!view(outer) && !still(outer, mid));
    let fits = one.moves(x).is_ok_and(|m| m.shape == s.to().shape);
    (better && fits).then(|| Rewrite::Op(one.into(), from.to_vec()))
}

/// Factors that both rearranges move whole, and which of them each word is made of.
#[derive(Default)]
struct Atoms {
    sizes: Vec<usize>,
    inner: BTreeMap<String, Vec<usize>>,
    outer: BTreeMap<String, Vec<usize>>,
}

impl Atoms {
    fn new_atom(&mut self, size: usize) -> usize {
        self.sizes.push(size);
        self.sizes.len() - 1
    }

    /// Splits one axis of the middle value into the factors that both sides tell apart.
    fn split(&mut self, left: &[(String, usize)], right: &[(String, usize)]) -> Option<()> {
        let (mut l, mut r) = (left.iter(), right.iter());
        let (mut a, mut b) = (l.next().cloned(), r.next().cloned());
        while let (Some((u, m)), Some((v, n))) = (&mut a, &mut b) {
            let size = (*m).min(*n);
            if size == 0 || !(*m).is_multiple_of(size) || !(*n).is_multiple_of(size) {
                return None;
            }
            let atom = self.new_atom(size);
            self.inner.entry(u.clone()).or_default().push(atom);
            self.outer.entry(v.clone()).or_default().push(atom);
            (*m, *n) = (*m / size, *n / size);
            let (done, over) = (*m == 1, *n == 1);
            if done {
                a = l.next().cloned();
            }
            if over {
                b = r.next().cloned();
            }
        }
        (a.is_none() && b.is_none()).then_some(())
    }
}

/// Sizes of a rearrange's words.
fn sizes(r: &Rearrange, x: &Type) -> Option<BTreeMap<String, usize>> {
    let out = r.axes.output.iter().flatten().cloned().zip(r.moves(x).ok()?.sizes).collect();
    Some(out)
}

fn composed(inner: &Rearrange, outer: &Rearrange, x: &Type, mid: &Type) -> Option<Rearrange> {
    let (own, then) = (sizes(inner, x)?, sizes(outer, mid)?);
    // Words of size 1 hold nothing apart.
    let wide = |g: &[String], n: &BTreeMap<String, usize>| -> Vec<(String, usize)> {
        g.iter().filter_map(|w| n.get(w).filter(|n| **n != 1).map(|n| (w.clone(), *n))).collect()
    };
    let mut atoms = Atoms::default();
    for (left, right) in inner.axes.output.iter().zip(&outer.axes.inputs[0]) {
        atoms.split(&wide(left, &own), &wide(right, &then))?;
    }
    for (w, n) in wide(&outer.axes.output.concat(), &then) {
        if !atoms.outer.contains_key(&w) {
            let atom = atoms.new_atom(n);
            atoms.outer.insert(w, vec![atom]);
        }
    }
    let list = |groups: &[Vec<String>], of: &BTreeMap<String, Vec<usize>>| -> Vec<Vec<usize>> {
        groups.iter().map(|g| g.iter().filter_map(|w| of.get(w)).flatten().copied().collect()).collect()
    };
    let input = list(&inner.axes.inputs[0], &atoms.inner);
    let mut output = list(&outer.axes.output, &atoms.outer);
    for g in output.iter_mut().filter(|g| g.is_empty()) {
        g.push(atoms.new_atom(1));
    }
    Some(spelled(input, output, atoms.sizes))
}

/// A rearrange of factors; neighbours that stay neighbours are one word.
fn spelled(mut input: Vec<Vec<usize>>, mut output: Vec<Vec<usize>>, mut sizes: Vec<usize>) -> Rearrange {
    let next = |groups: &[Vec<usize>], a: usize| -> Option<usize> {
        let g = groups.iter().find(|g| g.contains(&a))?;
        g.get(g.iter().position(|x| *x == a)? + 1).copied()
    };
    for a in 0..sizes.len() {
        while let Some(b) = next(&output, a) {
            let known = |v: usize| input.iter().any(|g| g.contains(&v));
            if next(&input, a) != Some(b) && (known(a) || known(b)) {
                break;
            }
            sizes[a] *= sizes[b];
            input.iter_mut().chain(&mut output).for_each(|g| g.retain(|x| *x != b));
        }
    }
    let order: Vec<usize> = input.iter().chain(&output).flatten().copied().collect();
    let mut names: BTreeMap<usize, String> = BTreeMap::new();
    for a in order {
        let n = names.len();
        names.entry(a).or_insert_with(|| word(n));
    }
    // The first word of a group follows from its axis.
    let told: Vec<usize> = input.iter().filter_map(|g| g.first().copied()).collect();
    let given = names.iter().filter(|(a, _)| !told.contains(a)).map(|(a, w)| (w.clone(), sizes[*a])).collect();
    let groups = |all: Vec<Vec<usize>>| all.iter().map(|g| g.iter().map(|a| names[a].clone()).collect()).collect();
    Rearrange { sizes: given, axes: Axes { inputs: vec![groups(input)], output: groups(output) } }
}
