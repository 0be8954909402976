//! What work should yield: nests by the plainest loops, functions by the interpreter of the IR.
//!
//! Numbers are computed twice: exactly, and rounded to 32 bits after each step. How far the two lie apart says how much a
//! right kernel may differ.

use super::drawn::{Draw, Instance};
use omchat_codegen::{Body, Fold, Kind, Nest, Step, Work};
use omchat_ir::{Class, Dtype, Mode, Scalar, Tensor, interpret};

/// Operands, and what each element of each result should be; elements that nothing writes are left out.
pub(super) struct Case {
    pub(super) instance: Instance,
    pub(super) operands: Vec<Tensor>,
    /// What results hold before: poison, or what is added to.
    pub(super) before: Vec<Tensor>,
    want: Vec<Vec<Want>>,
}

/// An element's place, its value, and how far from that it may be.
struct Want {
    place: usize,
    value: f64,
    slack: f64,
}

/// A number computed exactly and in 32 bits, and the size of what went into it.
#[derive(Clone, Copy, Debug, Default)]
struct Twice {
    exact: f64,
    typed: f64,
}

impl Twice {
    fn both(x: f64) -> Twice {
        Twice { exact: x, typed: x }
    }
}

/// What poison is: no number, and an integer that nothing yields.
fn poison(dtype: Dtype) -> f64 {
    if dtype.is_float() { f64::NAN } else { f64::from(i32::MIN + 7) }
}

impl Case {
    /// The case of an instance; nothing where hardly a number can be told from poison.
    pub(super) fn of(instance: &Instance) -> Option<Case> {
        let signed = Case::drawn(instance.clone());
        signed.filter(Case::tells).or_else(|| Case::drawn(instance.clone().positive()).filter(Case::tells))
    }

    /// Whether more than half of the wanted numbers are finite.
    fn tells(&self) -> bool {
        let all = || self.want.iter().flatten();
        all().filter(|w| w.value.is_finite()).count() * 2 > all().count()
    }

    fn drawn(instance: Instance) -> Option<Case> {
        let mut draw = Draw(instance.operands.len() as u64 + 11);
        let operands: Vec<Tensor> = instance.operands.iter().map(|(t, r)| draw.tensor(t, *r, false)).collect();
        let mut before: Vec<Tensor> =
            instance.results.iter().map(|t| Tensor::full(t.clone(), poison(t.dtype))).collect();
        if let Work::ScatterAdd { .. } = instance.work {
            before = instance.results.iter().map(|t| draw.tensor(t, super::drawn::Role::Signed, false)).collect();
        }
        let want = match &instance.work {
            Work::Nest(n) => nest(n, &operands, instance.results.len()),
            Work::Function { .. } => function(&instance, &operands)?,
            Work::KthLargest { width, k, .. } => {
                let row = |(place, row): (usize, &[f64])| {
                    let mut row = row.to_vec();
                    row.sort_by(|a, b| b.total_cmp(a));
                    Want { place, value: row[k - 1], slack: 0.0 }
                };
                vec![operands[0].data.chunks(*width).enumerate().map(row).collect()]
            }
            Work::ScatterAdd { dtype, width, ids, rows, .. } => {
                vec![scatter(&before[0].data, &operands[*ids].data, &operands[*rows].data, *width, *dtype)]
            }
        };
        Some(Case { instance, operands, before, want })
    }

    /// Whether those are the wanted numbers.
    ///
    /// Errors: the first that is not, in words.
    pub(super) fn check(&self, have: &[Tensor]) -> Result<(), String> {
        for (r, (want, have)) in self.want.iter().zip(have).enumerate() {
            for w in want {
                let x = have.data.get(w.place).copied().unwrap_or(f64::NAN);
                let near = (x - w.value).abs() <= w.slack || x == w.value || x.is_nan() && w.value.is_nan();
                if !near {
                    return Err(format!("result {r}[{}] is {x}, not {}", w.place, w.value));
                }
            }
        }
        Ok(())
    }
}

fn scatter(table: &[f64], ids: &[f64], rows: &[f64], width: usize, dtype: Dtype) -> Vec<Want> {
    let (mut sums, mut sizes) = (table.to_vec(), table.iter().map(|x| x.abs()).collect::<Vec<_>>());
    for (t, id) in ids.iter().enumerate() {
        for c in (0..width).filter(|_| *id >= 0.0 && *id < (table.len() / width) as f64) {
            let at = *id as usize * width + c;
            sums[at] += rows[t * width + c];
            sizes[at] += rows[t * width + c].abs();
        }
    }
    let slack = share(dtype);
    sums.iter().zip(sizes).enumerate().map(|(place, (x, s))| Want { place, value: *x, slack: slack * s }).collect()
}

/// The share of the size of its terms by which a right sum may be off.
fn share(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Bf16 | Dtype::F16 => 1.0 / 120.0,
        _ => 4e-6,
    }
}

/// The interpreter's results; a kernel may be off by twice what rounding to dtypes costs, and a little.
fn function(instance: &Instance, operands: &[Tensor]) -> Option<Vec<Vec<Want>>> {
    let (module, f) = instance.function.as_ref()?;
    let run = |mode| interpret(module, *f, vec![operands.to_vec()], mode).ok().and_then(|mut r| r.pop());
    let (exact, typed) = (run(Mode::Exact)?, run(Mode::Typed)?);
    let one = |(e, t): (&Tensor, &Tensor)| {
        let finite = |x: f64| if x.abs() < 1e29 { x.abs() } else { 0.0 };
        let top = e.data.iter().fold(1e-6f64, |a, x| a.max(finite(*x)));
        let off = e.data.iter().zip(&t.data).fold(0f64, |a, (x, y)| a.max(finite(x - y)));
        let slack = 2.0 * off + 4e-6 * top;
        e.data.iter().enumerate().map(|(place, value)| Want { place, value: *value, slack }).collect()
    };
    Some(exact.iter().zip(&typed).map(one).collect())
}

fn place(offset: usize, strides: &[usize], at: &[usize]) -> usize {
    offset + strides.iter().zip(at).map(|(s, i)| s * i).sum::<usize>()
}

/// Walks every index of those sizes, the last axis fastest.
fn each(sizes: &[usize], at: &mut [usize], mut f: impl FnMut(&[usize])) {
    at.fill(0);
    if sizes.contains(&0) {
        return;
    }
    loop {
        f(at);
        let Some(axis) = (0..sizes.len()).rev().find(|a| at[*a] + 1 < sizes[*a]) else { return };
        at[axis] += 1;
        at[axis + 1..].fill(0);
    }
}

fn nest(n: &Nest, operands: &[Tensor], results: usize) -> Vec<Vec<Want>> {
    let mut out: Vec<Vec<(usize, Twice, f64)>> = (0..results).map(|_| vec![]).collect();
    let halves = |b: &Body| b.steps.iter().any(|s| matches!(s, Step::Round { .. }));
    let narrow = halves(&n.body) || halves(&n.epilogue);
    let (mut at_kept, mut at_folded) = (vec![0; n.kept.len()], vec![0; n.folded.len()]);
    let mut values: Vec<Twice> = vec![];
    let mut at = vec![0; n.kept.len() + n.folded.len()];
    each(&n.kept, &mut at_kept, |kept| {
        at[..kept.len()].copy_from_slice(kept);
        let mut size = 0.0f64;
        let last = if let Some(fold) = n.fold {
            let int = n.body.results.first().is_some_and(|r| n.body.kind(*r) == Kind::Int);
            let mut held = Twice::both(match fold {
                Fold::Max if int => f64::from(i32::MIN),
                Fold::Max => -1e30,
                _ => 0.0,
            });
            let (mut best, mut count) = (f64::NAN, 0);
            each(&n.folded, &mut at_folded, |folded| {
                at[kept.len()..].copy_from_slice(folded);
                run(n, &n.body, &at, Twice::default(), operands, &mut values);
                let x = n.body.results.first().map_or(Twice::default(), |r| values[*r]);
                match fold {
                    Fold::Sum => {
                        held.exact += x.exact;
                        held.typed = round(held.typed + x.typed, int);
                        size += x.exact.abs();
                    }
                    Fold::Max => {
                        held = Twice { exact: held.exact.max(x.exact), typed: held.typed.max(x.typed) };
                        size = size.max(x.exact.abs());
                    }
                    Fold::ArgMax => {
                        if count == 0 || x.exact > best {
                            (best, held) = (x.exact, Twice::both(f64::from(count)));
                        }
                        count += 1;
                    }
                }
            });
            run(n, &n.epilogue, &at, held, operands, &mut values);
            &n.epilogue
        } else {
            run(n, &n.body, &at, Twice::default(), operands, &mut values);
            &n.body
        };
        for (w, r) in n.writes.iter().zip(&last.results) {
            let start =
                w.at.as_ref().map_or(0, |s| operands[s.operand].data[0].clamp(0.0, s.last as f64) as usize * s.stride);
            let x = values[*r];
            let x = Twice { exact: x.exact, typed: w.dtype.round(x.typed) };
            out[w.result].push((place(w.offset, &w.strides, kept) + start, x, size.max(x.exact.abs())));
        }
    });
    let dtype = |r: usize| n.writes.iter().find(|w| w.result == r).map_or(Dtype::F32, |w| w.dtype);
    out.into_iter().enumerate().map(|(r, list)| wants(list, if narrow { Dtype::Bf16 } else { dtype(r) })).collect()
}

/// The share of its size that the worst element lost to 32 bits is allowed to all, twice.
fn wants(list: Vec<(usize, Twice, f64)>, dtype: Dtype) -> Vec<Want> {
    let lost = |(_, x, size): &(usize, Twice, f64)| (x.exact - x.typed).abs() / (size + 1e-3);
    let worst = list.iter().map(lost).filter(|x| x.is_finite()).fold(0.0, f64::max);
    let share = share(dtype) + 2.0 * worst.min(0.02);
    list.iter().map(|(place, x, size)| Want { place: *place, value: x.exact, slack: share * size + 2e-6 }).collect()
}

fn round(x: f64, int: bool) -> f64 {
    if int { x } else { Dtype::F32.round(x) }
}

/// Runs a body at a point; `values` holds what each step yields.
fn run(n: &Nest, body: &Body, at: &[usize], folded: Twice, operands: &[Tensor], values: &mut Vec<Twice>) {
    values.clear();
    for step in &body.steps {
        let x = match step {
            Step::Read { read, .. } => Twice::both(element(n, *read, at, operands)),
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

fn element(n: &Nest, read: usize, at: &[usize], operands: &[Tensor]) -> f64 {
    let r = &n.reads[read];
    let mut i = place(r.offset, &r.strides, at);
    if let Some(a) = &r.at {
        let id = operands[a.operand].data[place(a.offset, &a.strides, at)];
        if id < 0.0 || id >= a.size as f64 {
            return 0.0;
        }
        i += id as usize * a.stride;
    }
    operands[r.operand].data[i]
}
