//! What work should yield: nests by their meaning, functions by the interpreter of the IR.

use super::drawn::{Draw, Instance};
use omchat_codegen::{Nest, Twice, Work, each};
use omchat_ir::{Dtype, Mode, Tensor, interpret};

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
    /// How large its products are together; 0 for what is no sum of some.
    size: f64,
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
                    Want { place, value: row[k - 1], slack: 0.0, size: 0.0 }
                };
                vec![operands[0].data.chunks(*width).enumerate().map(row).collect()]
            }
            Work::ScatterAdd { dtype, width, ids, rows, .. } => {
                vec![scatter(&before[0].data, &operands[*ids].data, &operands[*rows].data, *width, *dtype)]
            }
            Work::Prefetch { .. } | Work::Collective(_) => return None,
        };
        Some(Case { instance, operands, before, want })
    }

    /// Whether those are the wanted numbers, by a kernel that may be off by that share of each product.
    ///
    /// Errors: the first that is not, in words.
    pub(super) fn check(&self, have: &[Tensor], rounding: f64) -> Result<(), String> {
        for (r, (want, have)) in self.want.iter().zip(have).enumerate() {
            for w in want {
                let x = have.data.get(w.place).copied().unwrap_or(f64::NAN);
                let near = (x - w.value).abs() <= w.slack + rounding * w.size
                    || x == w.value
                    || x.is_nan() && w.value.is_nan();
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
    let want = |(place, (x, s)): (usize, (&f64, f64))| Want { place, value: *x, slack: slack * s, size: 0.0 };
    sums.iter().zip(sizes).enumerate().map(want).collect()
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
        e.data.iter().enumerate().map(|(place, value)| Want { place, value: *value, slack, size: 0.0 }).collect()
    };
    Some(exact.iter().zip(&typed).map(one).collect())
}

fn nest(n: &Nest, operands: &[Tensor], results: usize) -> Vec<Vec<Want>> {
    let mut out: Vec<Vec<(usize, Twice, f64)>> = (0..results).map(|_| vec![]).collect();
    let element = |operand: usize, at: usize| operands[operand].data[at];
    each(&n.kept, |kept| {
        let p = n.at(kept, &element);
        for (w, (place, x)) in n.writes.iter().zip(p.writes) {
            out[w.result].push((place, x, p.size.max(x.exact.abs())));
        }
    });
    let dtype = |r: usize| n.writes.iter().find(|w| w.result == r).map_or(Dtype::F32, |w| w.dtype);
    out.into_iter().enumerate().map(|(r, list)| wants(list, if n.narrow() { Dtype::Bf16 } else { dtype(r) })).collect()
}

/// The share of its size that the worst element lost to 32 bits is allowed to all, twice.
fn wants(list: Vec<(usize, Twice, f64)>, dtype: Dtype) -> Vec<Want> {
    let lost = |(_, x, size): &(usize, Twice, f64)| (x.exact - x.typed).abs() / (size + 1e-3);
    let worst = list.iter().map(lost).filter(|x| x.is_finite()).fold(0.0, f64::max);
    let share = share(dtype) + 2.0 * worst.min(0.02);
    let want = |(place, x, size): &(usize, Twice, f64)| Want {
        place: *place,
        value: x.exact,
        slack: share * size + 2e-6,
        size: *size,
    };
    list.iter().map(want).collect()
}
