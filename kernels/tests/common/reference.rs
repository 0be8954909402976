//! Judges: nests, attention and kth_largest in f64 by the plainest loops.

use omchat_codegen::{At, Body, Fold, Kind, Nest, Step};
use omchat_ir::{Class, Dtype, Scalar};

/// A tensor on the host: numbers that its dtype can hold.
#[derive(Clone, Debug)]
pub struct Host {
    pub dtype: Dtype,
    pub data: Vec<f64>,
}

impl Host {
    pub fn new(dtype: Dtype, data: Vec<f64>) -> Host {
        Host { dtype, data: data.into_iter().map(|x| dtype.round(x)).collect() }
    }
}

fn each(sizes: &[usize], mut f: impl FnMut(&[usize])) {
    let n: usize = sizes.iter().product();
    let mut at = vec![0; sizes.len()];
    for _ in 0..n {
        f(&at);
        for a in (0..sizes.len()).rev() {
            at[a] += 1;
            if at[a] < sizes[a] {
                break;
            }
            at[a] = 0;
        }
    }
}

fn place(offset: usize, strides: &[usize], at: &[usize]) -> usize {
    offset + strides.iter().zip(at).map(|(s, i)| s * i).sum::<usize>()
}

fn read(nest: &Nest, r: usize, at: &[usize], operands: &[Host]) -> f64 {
    let read = &nest.reads[r];
    let mut p = place(read.offset, &read.strides, at);
    if let Some(At { operand, offset, strides, size, stride }) = &read.at {
        let id = operands[*operand].data[place(*offset, strides, at)];
        if id < 0.0 || id >= *size as f64 {
            return 0.0;
        }
        p += id as usize * stride;
    }
    operands[read.operand].data[p]
}

fn run(nest: &Nest, body: &Body, at: &[usize], folded: f64, operands: &[Host]) -> Vec<f64> {
    let mut v: Vec<f64> = Vec::new();
    for step in &body.steps {
        let x = match step {
            Step::Read { read: r, .. } => read(nest, *r, at, operands),
            Step::Folded { .. } => folded,
            Step::Index { axis } => at[*axis] as f64,
            Step::Float { bits } => f64::from(f32::from_bits(*bits)),
            Step::Int { value } => f64::from(*value),
            Step::Apply { f, args, of } => {
                let x: Vec<f64> = args.iter().map(|&a| v[a]).collect();
                if *of == Kind::Int && f.class() == Class::Number { f.value_i32(&x) } else { f.value(&x) }
            }
            Step::Convert { arg, to } => {
                if *to == Kind::Int {
                    f64::from(v[*arg] as i32)
                } else {
                    v[*arg]
                }
            }
            Step::Round { arg, to } => to.round(v[*arg]),
            Step::Truth { arg } => f64::from(u8::from(v[*arg] != 0.0)),
        };
        v.push(x);
    }
    body.results.iter().map(|&r| v[r]).collect()
}

/// Runs a nest over results that hold what was there before. Yields also, for each element, how large the
/// numbers were that went into it: what rounding is measured against.
pub fn nest(nest: &Nest, operands: &[Host], results: &mut [Host]) -> Vec<Vec<f64>> {
    let mut weight: Vec<Vec<f64>> = results.iter().map(|r| vec![0.0; r.data.len()]).collect();
    each(&nest.kept, |kept| {
        let (values, size) = match nest.fold {
            None => (run(nest, &nest.body, kept, 0.0, operands), 0.0),
            Some(fold) => {
                let (mut held, mut size, mut count, mut place) = (
                    match fold {
                        Fold::Sum => 0.0,
                        Fold::Max => -1e30,
                        Fold::ArgMax => f64::NEG_INFINITY,
                    },
                    0.0f64,
                    0,
                    0,
                );
                each(&nest.folded, |folded| {
                    let at = [kept, folded].concat();
                    let x = run(nest, &nest.body, &at, 0.0, operands)[0];
                    match fold {
                        Fold::Sum => {
                            held += x;
                            size += x.abs();
                        }
                        Fold::Max => {
                            held = held.max(x);
                            size = size.max(x.abs());
                        }
                        Fold::ArgMax => {
                            if x > held {
                                held = x;
                                place = count;
                            }
                        }
                    }
                    count += 1;
                });
                let folded = if fold == Fold::ArgMax { f64::from(place) } else { held };
                (run(nest, &nest.epilogue, kept, folded, operands), size)
            }
        };
        for (w, x) in nest.writes.iter().zip(values) {
            let mut p = place(w.offset, &w.strides, kept);
            if let Some(at) = &w.at {
                p += operands[at.operand].data[0].clamp(0.0, at.last as f64) as usize * at.stride;
            }
            results[w.result].data[p] = w.dtype.round(x);
            weight[w.result][p] = size.max(x.abs());
        }
    });
    weight
}

/// Sizes of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub b: usize,
    pub h: usize,
    pub g: usize,
    pub t: usize,
    pub s: usize,
    pub d: usize,
}

/// `@attention`: (out, lse).
pub fn attention(
    n: Sizes,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    lo: &[f64],
    hi: &[f64],
    at: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let Sizes { b: nb, h: nh, g: ng, t: nt, s: ns, d: nd } = n;
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    let scale = 1.0 / (nd as f64).sqrt();
    for b in 0..nb {
        for h in 0..nh {
            for g in 0..ng {
                for t in 0..nt {
                    let row = &q[(((b * nh + h) * ng + g) * nt + t) * nd..][..nd];
                    let key = |s: usize| ((b * nh + h) * ns + s) * nd;
                    let sees: Vec<(usize, f64)> = (0..ns)
                        .filter(|&s| lo[b * nt + t] <= at[b * ns + s] && at[b * ns + s] <= hi[b * nt + t])
                        .map(|s| (s, scale * row.iter().zip(&k[key(s)..]).map(|(x, y)| x * y).sum::<f64>()))
                        .collect();
                    let top = sees.iter().map(|x| x.1).fold(-1e30, f64::max);
                    let sum: f64 = sees.iter().map(|x| (x.1 - top).exp()).sum();
                    for d in 0..nd {
                        out.push(if sees.is_empty() {
                            0.0
                        } else {
                            sees.iter().map(|x| (x.1 - top).exp() * v[key(x.0) + d]).sum::<f64>() / sum
                        });
                    }
                    lse.push(if sees.is_empty() { -1e30 } else { top + sum.ln() });
                }
            }
        }
    }
    (out, lse)
}

/// `@attention_dq` and `@attention_dkv`: dq, dk, dv.
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    n: Sizes,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    lo: &[f64],
    hi: &[f64],
    at: &[f64],
    lse: &[f64],
    delta: &[f64],
    dout: &[f64],
) -> [Vec<f64>; 3] {
    let Sizes { b: nb, h: nh, g: ng, t: nt, s: ns, d: nd } = n;
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let scale = 1.0 / (nd as f64).sqrt();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| a * b).sum::<f64>();
    for row in 0..nb * nh * ng * nt {
        let (head, t) = (row / (ng * nt), row % nt);
        let b = head / nh;
        let query = row * nd..(row + 1) * nd;
        for s in 0..ns {
            if !(lo[b * nt + t] <= at[b * ns + s] && at[b * ns + s] <= hi[b * nt + t]) {
                continue;
            }
            let key = (head * ns + s) * nd..(head * ns + s + 1) * nd;
            let p = (scale * dot(&q[query.clone()], &k[key.clone()]) - lse[row]).exp();
            let ds = p * (dot(&dout[query.clone()], &v[key.clone()]) - delta[row]);
            for d in 0..nd {
                dq[query.start + d] += scale * ds * k[key.start + d];
                dk[key.start + d] += scale * ds * q[query.start + d];
                dv[key.start + d] += p * dout[query.start + d];
            }
        }
    }
    [dq, dk, dv]
}

/// Whether a step's value must be exact for the result to be continuous: comparisons ask for it.
pub fn is_comparison(f: Scalar) -> bool {
    f.class() == Class::Compare
}
