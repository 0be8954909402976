//! Cotangents of a function against central differences.

use super::Rng;
use omchat_ir::{Differentiate, Dtype, Func, Mode, Module, Role, Scalar, Scope, Tensor, Type, Value, interpret};

/// What to check: a function of a module on some ranks.
pub struct Case<'a> {
    pub text: &'a str,
    pub module: &'a Module,
    pub f: Func,
    pub ranks: usize,
    pub seed: u64,
    pub scope: Option<&'a Scope<'a>>,
}

/// A random tensor; floats from a range.
pub fn draw(r: &mut Rng, ty: &Type, range: (f64, f64)) -> Tensor {
    let mut one = || match ty.dtype {
        Dtype::I32 => r.below(8) as f64 - 1.0,
        Dtype::Bool => r.below(2) as f64,
        _ => range.0 + (range.1 - range.0) * (r.unit() + 1.0) / 2.0,
    };
    let data = (0..ty.elements()).map(|_| one()).collect();
    Tensor::new(ty.clone(), data).unwrap()
}

/// Where the scalar functions of a text are smooth.
fn range(text: &str) -> (f64, f64) {
    let word = |w: &str| text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).any(|t| t == w);
    let ranges = Scalar::ALL.iter().filter(|s| word(s.name())).map(|s| s.sample_range());
    ranges.fold((-2.0, 2.0), |a, b| (f64::max(a.0, b.0), b.1))
}

/// Checks every cotangent element; yields how many there were.
pub fn check(case: &Case) -> usize {
    let f = case.module.function(case.f).clone();
    let float = |v: &Value| f.ty(*v).dtype.is_float();
    let of: Vec<usize> = (0..f.results.len()).filter(|i| float(&f.results[*i])).collect();
    let wrt: Vec<Value> = f.param_values().filter(float).collect();
    if of.is_empty() || wrt.is_empty() {
        return 0;
    }
    let mut random = Rng(case.seed + 1);
    let range = range(case.text);
    let operands: Vec<Vec<Tensor>> =
        (0..case.ranks).map(|_| f.param_types().iter().map(|t| draw(&mut random, t, range)).collect()).collect();
    check_at(case, &of, &wrt, operands, &mut random)
}

/// The same at given operands.
pub fn check_at(case: &Case, of: &[usize], wrt: &[Value], operands: Vec<Vec<Tensor>>, random: &mut Rng) -> usize {
    let f = case.module.function(case.f).clone();
    let mut module = case.module.clone();
    let grad = Differentiate { scope: case.scope, keep: &[] }
        .run(&mut module, case.f, of, wrt)
        .unwrap_or_else(|e| panic!("{}: {e}", case.text));
    module.verify().unwrap_or_else(|e| panic!("{}\n{module}\n{e}", case.text));
    let printed = module.to_string();
    let again = omchat_ir::parse(&printed).unwrap_or_else(|e| panic!("{}", e.render(case.text, &printed)));
    assert!(again == module, "{}: printed and parsed, it is another module\n{printed}", case.text);
    let cots: Vec<Vec<Tensor>> =
        (0..case.ranks).map(|_| of.iter().map(|i| draw(random, f.ty(f.results[*i]), (-1.0, 1.0))).collect()).collect();
    let full = |x: &[Vec<Tensor>]| -> Vec<Vec<Tensor>> {
        x.iter().zip(&cots).map(|(a, c)| a.iter().chain(c).cloned().collect()).collect()
    };
    let found = interpret(&module, grad, full(&operands), Mode::Exact).unwrap_or_else(|e| panic!("{}: {e}", case.text));
    // How much the sum over ranks of results times cotangents changes; differences first: a mask is -1e30.
    let change = |a: Vec<Vec<Tensor>>, b: Vec<Vec<Tensor>>| -> f64 {
        let [a, b] = [a, b].map(|x| interpret(case.module, case.f, x, Mode::Exact).unwrap());
        let one = |r: usize, i: usize, c: &Tensor| -> f64 {
            let pairs = a[r][i].data.iter().zip(&b[r][i].data);
            pairs.zip(&c.data).map(|((x, y), c)| (x - y) * c).sum()
        };
        (0..case.ranks).map(|r| of.iter().zip(&cots[r]).map(|(i, c)| one(r, *i, c)).sum::<f64>()).sum()
    };
    let mut count = 0;
    for rank in 0..case.ranks {
        for (k, v) in wrt.iter().enumerate() {
            let scale = found[rank][f.results.len() + k].data.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
            for i in 0..f.ty(*v).elements() {
                let at = |h: f64| {
                    let mut x = operands.clone();
                    x[rank][v.0 as usize].data[i] += h;
                    x
                };
                let h = 1e-4;
                let want = (8.0 * change(at(h), at(-h)) - change(at(2.0 * h), at(-2.0 * h))) / (12.0 * h);
                let have = found[rank][f.results.len() + k].data[i];
                assert!(
                    (want - have).abs() <= 1e-7 * scale,
                    "{}\nd.{}[{i}] on rank {rank} is {have}, central differences say {want}\n{module}",
                    case.text,
                    f.value(*v).name,
                );
                count += 1;
            }
        }
    }
    count
}

/// What a check along random directions came to.
#[derive(Debug, PartialEq)]
pub enum Slopes {
    /// That many directions agree.
    Agree(usize),
    /// No float leads to a float.
    Nothing,
    /// No smooth point of moderate numbers was found.
    Skipped,
}

const DRAWS: u64 = 4;

/// Checks the cotangents along random directions at a point where the function is smooth.
///
/// Errors: what does not agree.
pub fn slopes(case: &Case) -> Result<Slopes, String> {
    let f = case.module.function(case.f).clone();
    let float = |v: &Value| f.ty(*v).dtype.is_float();
    let of: Vec<usize> = (0..f.results.len()).filter(|i| float(&f.results[*i])).collect();
    let wrt: Vec<Value> = f.param_values().filter(float).collect();
    if of.is_empty() || wrt.is_empty() {
        return Ok(Slopes::Nothing);
    }
    let mut module = case.module.clone();
    let differentiate = Differentiate { scope: case.scope, keep: &[] };
    let grad = differentiate.run(&mut module, case.f, &of, &wrt).map_err(|e| e.to_string())?;
    module.verify().map_err(|e| format!("{e}\n{module}"))?;
    for draw in 0..DRAWS {
        let mut random = Rng(case.seed.wrapping_mul(DRAWS).wrapping_add(draw));
        if let Some(n) = slopes_at(case, &module, grad, &of, &wrt, &mut random)? {
            return Ok(Slopes::Agree(n));
        }
    }
    Ok(Slopes::Skipped)
}

/// How many directions agree at a random point; `None` where it is not smooth.
fn slopes_at(
    case: &Case,
    module: &Module,
    grad: Func,
    of: &[usize],
    wrt: &[Value],
    random: &mut Rng,
) -> Result<Option<usize>, String> {
    let f = case.module.function(case.f);
    let all = |types: &[&Type], random: &mut Rng| -> Vec<Vec<Tensor>> {
        (0..case.ranks).map(|_| types.iter().map(|t| draw(random, t, (-1.5, 1.5))).collect()).collect()
    };
    let types: Vec<&Type> = f.param_values().map(|v| f.ty(v)).collect();
    let x = all(&types, random);
    let cots = all(&of.iter().map(|i| f.ty(f.results[*i])).collect::<Vec<_>>(), random);
    let full = x.iter().zip(&cots).map(|(a, c)| a.iter().chain(c).cloned().collect()).collect();
    let found = interpret(module, grad, full, Mode::Exact).map_err(|e| e.to_string())?;
    // All values, not results alone: a fold may hide that one is no number.
    let mut probe = case.module.clone();
    let inner = &mut probe.functions[case.f.0 as usize];
    inner.params.fill(Role::Input);
    inner.results = (0..inner.values.len() as u32).map(Value).filter(|v| f.ty(*v).dtype.is_float()).collect();
    let values = interpret(&probe, case.f, x.clone(), Mode::Exact).map_err(|e| e.to_string())?;
    let small = |t: &Tensor| t.data.iter().all(|x| x.abs() < 1e4);
    if !values.iter().flatten().all(small) {
        return Ok(None);
    }
    // The weighted sum of results at a distance along a direction.
    let value = |to: &[Vec<Tensor>], h: f64| -> f64 {
        let mut at = x.clone();
        for (a, d) in at.iter_mut().flatten().zip(to.iter().flatten()) {
            a.data.iter_mut().zip(&d.data).for_each(|(a, d)| *a += h * d);
        }
        let Ok(y) = interpret(case.module, case.f, at, Mode::Exact) else { return f64::NAN };
        let one =
            |i: usize, y: &Tensor, c: &Vec<Tensor>| y.data.iter().zip(&c[i].data).map(|(y, c)| y * c).sum::<f64>();
        y.iter().zip(&cots).map(|(y, c)| of.iter().enumerate().map(|(n, i)| one(n, &y[*i], c)).sum::<f64>()).sum()
    };
    let mut count = 0;
    // All parameters at once, then one after another.
    for only in std::iter::once(None).chain(wrt.iter().map(Some)) {
        let mut to = all(&types, random);
        for d in &mut to {
            for (k, t) in d.iter_mut().enumerate() {
                let v = Value(k as u32);
                if !wrt.contains(&v) || only.is_some_and(|o| *o != v) {
                    t.data.fill(0.0);
                }
            }
        }
        let mut have = 0.0;
        let mut scale = 1.0;
        for (rank, d) in to.iter().enumerate() {
            for (k, v) in wrt.iter().enumerate() {
                for (g, d) in found[rank][f.results.len() + k].data.iter().zip(&d[v.0 as usize].data) {
                    have += g * d;
                    scale += (g * d).abs();
                }
            }
        }
        let Some((want, doubt)) = slope(|h| value(&to, h)) else { return Ok(None) };
        if doubt > 1e-8 * scale.max(want.abs()) {
            return Ok(None);
        }
        if (want - have).abs() > 1e-7 * scale.max(want.abs()) || have.is_nan() {
            let along = only.map_or("all parameters".to_string(), |v| format!("%{}", f.value(*v).name));
            return Err(format!("along {along} the cotangents say {have}, central differences {want}"));
        }
        count += 1;
    }
    Ok(Some(count))
}

/// The slope at 0 and how much two step sizes differ; `None` at a kink or a jump.
fn slope(y: impl Fn(f64) -> f64) -> Option<(f64, f64)> {
    let central = |h: f64| (8.0 * (y(h) - y(-h)) - (y(2.0 * h) - y(-2.0 * h))) / (12.0 * h);
    // How far the slopes to both sides differ: halves with the step, but at a kink.
    let here = y(0.0);
    let bend = |h: f64| ((y(h) - 2.0 * here + y(-h)) / h).abs();
    let h = 4e-4;
    let (wide, narrow) = (central(h), central(h / 2.0));
    let kink = bend(h / 2.0) > 0.75 * bend(h) && bend(h) > 1e-6 * (1.0 + wide.abs());
    if kink || !wide.is_finite() { None } else { Some((narrow, (wide - narrow).abs())) }
}
