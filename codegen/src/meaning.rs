//! What a nest means, point by point: the judge of kernels, by the plainest loops.
//!
//! Numbers are computed twice: exactly, and rounded to 32 bits after each step. How far the two lie apart says how much a
//! right kernel may differ.

use crate::{Body, Fold, Kind, Nest, Step};
use omchat_ir::{Class, Dtype, Scalar};

/// A number computed exactly, and in 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Twice {
    /// In doubles, dtypes aside.
    pub exact: f64,
    /// Rounded after each step as a kernel may round it.
    pub typed: f64,
}

/// What a nest writes at one of its kept points.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// For each write its element in the result, and the number.
    pub writes: Vec<(usize, Twice)>,
    /// How large the numbers were that were folded for them; 0 for a map.
    pub size: f64,
}

/// An element of an operand, by the operand's index and the element's.
pub type Element<'a> = &'a dyn Fn(usize, usize) -> f64;

impl Twice {
    fn both(x: f64) -> Twice {
        Twice { exact: x, typed: x }
    }
}

impl Nest {
    /// What is written at a kept point.
    pub fn at(&self, kept: &[usize], element: Element) -> Point {
        let (mut values, mut size) = (vec![], 0.0f64);
        let last = match self.fold {
            Some(fold) => {
                let held = self.folded(fold, kept, &mut size, &mut values, element);
                self.run(&self.epilogue, kept, held, &mut values, element);
                &self.epilogue
            }
            None => {
                self.run(&self.body, kept, Twice::default(), &mut values, element);
                &self.body
            }
        };
        let write = |(w, r): (&crate::Write, &usize)| {
            let start = |s: &crate::Start| element(s.operand, 0).clamp(0.0, s.last as f64) as usize * s.stride;
            let x = values[*r];
            let x = Twice { exact: x.exact, typed: w.dtype.round(x.typed) };
            (place(w.offset, &w.strides, kept) + w.at.as_ref().map_or(0, start), x)
        };
        Point { writes: self.writes.iter().zip(&last.results).map(write).collect(), size }
    }

    /// The fold at a kept point.
    fn folded(&self, fold: Fold, kept: &[usize], size: &mut f64, values: &mut Vec<Twice>, element: Element) -> Twice {
        let result = self.body.results.first().copied();
        let int = result.is_some_and(|r| self.body.kind(r) == Kind::Int);
        let mut held = Twice::both(match fold {
            Fold::Max if int => f64::from(i32::MIN),
            Fold::Max => -1e30,
            _ => 0.0,
        });
        let (mut best, mut count) = (f64::NAN, 0);
        let mut at = [kept, &vec![0; self.folded.len()]].concat();
        each_from(&self.folded, &mut at, kept.len(), |at| {
            self.run(&self.body, at, Twice::default(), values, element);
            let x = result.map_or(Twice::default(), |r| values[r]);
            match fold {
                Fold::Sum => {
                    held.exact += x.exact;
                    held.typed = if int { held.typed + x.typed } else { Dtype::F32.round(held.typed + x.typed) };
                    *size += x.exact.abs();
                }
                Fold::Max => {
                    held = Twice { exact: held.exact.max(x.exact), typed: held.typed.max(x.typed) };
                    *size = size.max(x.exact.abs());
                }
                Fold::ArgMax => {
                    if count == 0 || x.exact > best {
                        (best, held) = (x.exact, Twice::both(f64::from(count)));
                    }
                    count += 1;
                }
            }
        });
        held
    }

    /// Runs a body at a point; `values` holds what each step yields.
    fn run(&self, body: &Body, at: &[usize], folded: Twice, values: &mut Vec<Twice>, element: Element) {
        values.clear();
        for step in &body.steps {
            let x = match step {
                Step::Read { read, .. } => Twice::both(self.element(*read, at, element)),
                Step::Folded { .. } => folded,
                Step::Index { axis } => Twice::both(at[*axis] as f64),
                Step::Float { bits } => Twice::both(f64::from(f32::from_bits(*bits))),
                Step::Int { value } => Twice::both(f64::from(*value)),
                Step::Apply { f, args, of } => apply(*f, args, *of, values),
                Step::Convert { arg, to } => {
                    let cut = |x: f64| if *to == Kind::Int { f64::from(x as i32) } else { x };
                    Twice { exact: cut(values[*arg].exact), typed: cut(values[*arg].typed) }
                }
                Step::Round { arg, to } => Twice { exact: values[*arg].exact, typed: to.round(values[*arg].typed) },
                Step::Truth { arg } => Twice::both(f64::from(u8::from(values[*arg].exact != 0.0))),
            };
            values.push(x);
        }
    }

    fn element(&self, read: usize, at: &[usize], element: Element) -> f64 {
        let r = &self.reads[read];
        let mut i = place(r.offset, &r.strides, at);
        if let Some(a) = &r.at {
            let id = element(a.operand, place(a.offset, &a.strides, at));
            if id < 0.0 || id >= a.size as f64 {
                return 0.0;
            }
            i += id as usize * a.stride;
        }
        element(r.operand, i)
    }

    /// Whether some number of it is rounded to a half.
    pub fn narrow(&self) -> bool {
        let halves = |b: &Body| b.steps.iter().any(|s| matches!(s, Step::Round { .. }));
        let narrow = |w: &crate::Write| matches!(w.dtype, Dtype::Bf16 | Dtype::F16);
        halves(&self.body) || halves(&self.epilogue) || self.writes.iter().any(narrow)
    }
}

/// Walks every index of those sizes, the last axis fastest.
pub fn each(sizes: &[usize], f: impl FnMut(&[usize])) {
    each_from(sizes, &mut vec![0; sizes.len()], 0, f);
}

/// The same in the axes from `first` on of a longer index.
fn each_from(sizes: &[usize], at: &mut [usize], first: usize, mut f: impl FnMut(&[usize])) {
    if sizes.contains(&0) {
        return;
    }
    loop {
        f(at);
        let Some(axis) = (0..sizes.len()).rev().find(|a| at[first + a] + 1 < sizes[*a]) else { return };
        at[first + axis] += 1;
        at[first + axis + 1..].fill(0);
    }
}

fn place(offset: usize, strides: &[usize], at: &[usize]) -> usize {
    offset + strides.iter().zip(at).map(|(s, i)| s * i).sum::<usize>()
}

fn apply(f: Scalar, args: &[usize], of: Kind, values: &[Twice]) -> Twice {
    let (mut exact, mut typed) = ([0.0; 3], [0.0; 3]);
    for (i, a) in args.iter().enumerate().take(3) {
        (exact[i], typed[i]) = (values[*a].exact, values[*a].typed);
    }
    let (exact, typed) = (&exact[..args.len().min(3)], &typed[..args.len().min(3)]);
    if of == Kind::Int && f.class() == Class::Number {
        return Twice::both(f.value_i32(exact));
    }
    Twice { exact: f.value(exact), typed: Dtype::F32.round(f.value(typed)) }
}
