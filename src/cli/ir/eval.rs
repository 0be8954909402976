//! `ir eval`: the reference interpreter at the command line.

use super::pick::{Pick, Picked};
use crate::cli::{Error, case, say};
use omchat_ir::{Dtype, Mode, Tensor, Type, interpret};
use std::fmt::Write as _;
use std::path::PathBuf;

/// What `ir eval` takes.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pick: Pick,
    /// How many ranks run in lockstep.
    #[arg(long, default_value_t = 1)]
    ranks: usize,
    /// Draws the inputs that are not given; the same number draws the same inputs. Floats are drawn from -1 to 1,
    /// integers from 0 to 7.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Holds floats as doubles between steps instead of rounding each result to its dtype.
    #[arg(long)]
    exact: bool,
    /// Reads inputs from a safetensors file by the names of the parameters; `NAME.R` is for rank R alone.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Writes the results to a safetensors file instead of printing them; `NAME.R` of each rank if there are several. A
    /// value that is returned again is `NAME.1`, then `NAME.2`.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Most elements of a result that are printed.
const SHOWN: usize = 16;

/// Runs a function.
pub fn run(args: &Args) -> Result<(), Error> {
    let Picked { module, entry } = args.pick.one()?;
    omchat_ir::check(&module, entry, args.ranks)?;
    let f = module.function(entry);
    let given = args.input.as_deref().map(case::read).transpose()?.unwrap_or_default();
    let params: Vec<&str> = f.param_values().map(|v| f.value(v).name.as_str()).collect();
    if let Some((other, _)) = given.iter().find(|(n, _)| {
        let own = n.rsplit_once('.').filter(|(_, rank)| rank.parse::<usize>().is_ok_and(|r| r < args.ranks));
        !params.contains(&n.as_str()) && !own.is_some_and(|(name, _)| params.contains(&name))
    }) {
        return Err(Error::input(format!(
            "the input holds `{other}`, which is no operand of the function; it takes {}",
            params.join(", ")
        )));
    }
    let mut random = Random(args.seed);
    let mut ranks = vec![];
    for rank in 0..args.ranks {
        let mut operands = vec![];
        for v in f.param_values() {
            let (name, ty) = (&f.value(v).name, f.ty(v));
            let found = given
                .iter()
                .find(|(n, _)| *n == format!("{name}.{rank}"))
                .or_else(|| given.iter().find(|(n, _)| n == name));
            operands.push(match found {
                Some((_, t)) => fitted(name, t, ty)?,
                None => random.tensor(ty),
            });
        }
        ranks.push(operands);
    }
    let mode = if args.exact { Mode::Exact } else { Mode::Typed };
    let results = interpret(&module, entry, ranks, mode)?;
    let names = distinct(f.results.iter().map(|v| f.value(*v).name.as_str()).collect());
    let mut named = vec![];
    for (rank, results) in results.into_iter().enumerate() {
        for (name, t) in names.iter().zip(results) {
            named.push((if args.ranks > 1 { format!("{name}.{rank}") } else { name.clone() }, t));
        }
    }
    match &args.output {
        Some(path) => {
            case::write(path, &named.into_iter().map(|(n, t)| (n, case::Data::of(&t, args.exact))).collect::<Vec<_>>())
        }
        None => named.iter().try_for_each(|(name, t)| say(shown(name, t))),
    }
}

/// The same names, each once: what is there already gets the next number that makes a name of its own.
fn distinct(names: Vec<&str>) -> Vec<String> {
    let mut out: Vec<String> = vec![];
    for (i, name) in names.iter().enumerate() {
        let free = |new: &String| !out.contains(new) && !names[i + 1..].contains(&new.as_str());
        let numbered = (1..).map(|n| format!("{name}.{n}")).find(free);
        let again = out.iter().any(|o| o == name);
        out.push(numbered.filter(|_| again).unwrap_or_else(|| (*name).to_string()));
    }
    out
}

/// A tensor of the file in the parameter's dtype. Its shape must be right, and floats stay floats.
fn fitted(name: &str, t: &Tensor, want: &Type) -> Result<Tensor, Error> {
    if t.ty.shape != want.shape || t.ty.dtype.is_float() != want.dtype.is_float() {
        return Err(Error::input(format!("`{name}` of the input is {}, the function takes {want}", t.ty)));
    }
    Ok(Tensor { ty: want.clone(), data: t.data.clone() })
}

/// A result on a few lines: its type, its extremes, its first elements.
fn shown(name: &str, t: &Tensor) -> String {
    let mut out = format!("%{name}: {}", t.ty);
    if t.ty.elements() > SHOWN {
        let fold = |f: fn(f64, f64) -> f64, x: f64| t.data.iter().copied().fold(x, f);
        let _ = write!(
            out,
            "  min {} max {} sum {}",
            fold(f64::min, f64::INFINITY),
            fold(f64::max, f64::NEG_INFINITY),
            t.data.iter().sum::<f64>()
        );
    }
    out.push_str("\n ");
    for x in t.data.iter().take(SHOWN) {
        let _ = if t.ty.dtype == Dtype::F32 { write!(out, " {}", *x as f32) } else { write!(out, " {x}") };
    }
    if t.ty.elements() > SHOWN {
        let _ = write!(out, " … {} more", t.ty.elements() - SHOWN);
    }
    out.push('\n');
    out
}

/// SplitMix64: every seed is a good one.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn tensor(&mut self, ty: &Type) -> Tensor {
        // A lone float is an eps or a scale: positive, so that roots and logarithms of it are numbers.
        let lone = ty.rank() == 0 && ty.dtype.is_float();
        let data = (0..ty.elements()).map(|_| self.element(ty.dtype)).map(|x| if lone { x.abs() } else { x }).collect();
        Tensor { ty: ty.clone(), data }
    }

    fn element(&mut self, dtype: Dtype) -> f64 {
        match dtype {
            Dtype::Bool => (self.next() & 1) as f64,
            Dtype::I32 => (self.next() & 7) as f64,
            _ => dtype.round((self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0),
        }
    }
}
