//! `omchat plan`: what a run of many ranks holds, sends and takes, before it is started.

mod show;
mod sweep;
mod told;

use super::{Error, note, place, say};
use clap::ValueEnum;
use omchat::plan::hardware::{MACHINES, Machine, machine};
use omchat::plan::{self, Ask, documents, enough};
use omchat::{Part, Recompute};
use omchat_ir::Dtype;
use omchat_recipe::ring::Layout;

/// Most ranks of a ring whose whole program is lowered: it grows with layers times ranks.
const LONGEST: usize = 128;

/// What `plan` takes.
#[derive(clap::Args)]
pub struct Args {
    /// The model, by its folder or preset; no weight is read.
    #[arg(long, value_name = "DIR|PRESET", default_value = "omchat-8b")]
    model: String,
    /// Positions of a sequence, which a ring of ranks shares; K is 1024, M is 1024 K.
    #[arg(long, value_name = "SIZE", default_value = "128K", value_parser = size)]
    context: usize,
    /// Ranks in all: `--ring` times `--data`, which follow from one another.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    ranks: Option<u32>,
    /// Ranks that share a sequence; all if not given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    ring: Option<u32>,
    /// Rings, each with a sequence of its own.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    data: Option<u32>,
    /// The GPUs, their nodes and links.
    #[arg(long, default_value = "h200", value_parser = clap::builder::PossibleValuesParser::new(MACHINES))]
    device: String,
    /// Another figure of the machine, as `inside=200e9`; the plan prints all of them. May be given several times.
    #[arg(long, value_name = "FIGURE=NUMBER", value_delimiter = ',')]
    assume: Vec<String>,
    /// A step that trains the decoder; without it the losses alone are computed.
    #[arg(long)]
    train: bool,
    /// What the backward computes again; the fastest that fits if not given.
    #[arg(long, value_enum, requires = "train")]
    recompute: Option<Again>,
    /// Parts that the losses are computed in.
    #[arg(long, value_parser = size)]
    loss_tiles: Option<usize>,
    /// Parts that the MLPs are computed in.
    #[arg(long, value_parser = size)]
    mlp_tiles: Option<usize>,
    /// How positions lie on the ranks of a ring.
    #[arg(long, value_enum, default_value = "balanced")]
    layout: Way,
    /// Documents that the context is packed with, cut at places drawn from `--seed`; one if not given.
    #[arg(long, value_parser = size, conflicts_with = "document_tokens")]
    documents: Option<usize>,
    /// Their mean length instead of their number.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    document_tokens: Option<usize>,
    /// Ranks are slower by a share drawn from 0 to this one.
    #[arg(long, default_value_t = 0.0)]
    stragglers: f64,
    /// What documents and stragglers are drawn from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The element type.
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// Writes the plan as JSON.
    #[arg(long)]
    json: bool,
    /// Instead of a plan: the attention of one layer, forward and backward, on rings of 8 to 512 ranks and 128K to 4M
    /// positions, as a table.
    #[arg(long, conflicts_with_all = ["train", "ranks", "ring", "data", "context", "documents", "document_tokens"])]
    table: bool,
}

/// How positions lie.
#[derive(Clone, Copy, ValueEnum)]
enum Way {
    /// Rank r has the r-th part.
    Contiguous,
    /// Rank r has the r-th of 2R parts, and the r-th from the end.
    Zigzag,
    /// Documents whole on a rank, the longest zigzagged, so that all have as much work.
    Balanced,
}

/// What is computed again.
#[derive(Clone, Copy, ValueEnum)]
enum Again {
    /// Nothing.
    Nothing,
    /// Layers, but not their attention.
    AllButAttention,
    /// Layers.
    Layers,
}

/// A size, as `512K`.
fn size(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(d) => (d, 1 << 10),
        None => text.strip_suffix(['M', 'm']).map_or((text, 1), |d| (d, 1 << 20)),
    };
    match digits.trim().parse::<usize>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(n) if (1..=1 << 30).contains(&n) => Ok(n),
        _ => Err(format!("`{text}` is no size from 1 to 1024M; write 4096, 512K or 1M")),
    }
}

/// Plans and prints.
///
/// Errors: sizes that do not go together; a plan that does not fit, after it is printed, with what would.
pub fn run(args: &Args) -> Result<(), Error> {
    let machine = args.machine()?;
    let (_, config) = place::find(&args.model)?;
    let dtype = match Dtype::from_name(&args.dtype) {
        Some(d) if d.is_float() => d,
        _ => return Err(Error::input(format!("`{}` is no element type; give f32, bf16 or f16", args.dtype))),
    };
    if !(0.0..=10.0).contains(&args.stragglers) {
        return Err(Error::input(format!("--stragglers is {}; give a share from 0 to 10", args.stragglers)));
    }
    if args.table {
        return say(sweep::table(&args.model, &config.text, &machine, dtype)?);
    }
    let (ring, data) = args.ranks()?;
    let count = match args.document_tokens {
        Some(mean) => args.context.div_ceil(mean),
        None => args.documents.unwrap_or(1),
    };
    if count > args.context {
        return Err(Error::input(format!("{count} documents do not fit {} positions; give fewer", args.context)));
    }
    let ask = Ask {
        config,
        context: args.context,
        ring,
        data,
        train: args.train.then(|| vec![Part::Decoder]),
        recompute: args.recompute.map(|a| match a {
            Again::Nothing => Recompute::Nothing,
            Again::AllButAttention => Recompute::AllButAttention,
            Again::Layers => Recompute::Layers,
        }),
        loss_tiles: args.loss_tiles,
        mlp_tiles: args.mlp_tiles,
        layout: match args.layout {
            Way::Contiguous => Layout::Contiguous,
            Way::Zigzag => Layout::Zigzag,
            Way::Balanced => Layout::Balanced,
        },
        documents: documents(args.context, count, args.seed),
        dtype,
        machine,
        stragglers: args.stragglers,
        seed: args.seed,
    };
    if ring > LONGEST {
        return Err(Error::input(format!(
            "the program of a ring of {ring} ranks is too long to be planned; give a --ring of at most {LONGEST} and more --data, or see --table"
        )));
    }
    if ring > ask.context {
        return Err(Error::input(format!("a ring of {ring} ranks has no token for each in {}", ask.context)));
    }
    let plan = plan::plan(&ask)?;
    let sm = ask.machine.sm;
    let turn = plan::turn(&ask.config.text, plan.sight.tokens, ring, dtype, sm)?;
    let report =
        told::Report { model: &args.model, ask: &ask, hops: turn.hops(&plan.sight, &ask.machine), plan: &plan };
    say(if args.json { format!("{:#}\n", report.json()) } else { show::text(&report) })?;
    if plan.fits { Ok(()) } else { Err(refusal(&ask, &plan)) }
}

/// What does not fit, and what would.
fn refusal(ask: &Ask, plan: &plan::Plan) -> Error {
    let (need, have) = (plan.program.peak_bytes() as u64, ask.machine.budget());
    let gib = show::gib;
    let mut would = vec![];
    if ask.recompute.is_some() || ask.loss_tiles.is_some() || ask.mlp_tiles.is_some() {
        let free = Ask { recompute: None, loss_tiles: None, mlp_tiles: None, ..ask.clone() };
        match plan::plan(&free) {
            Ok(p) if p.fits => {
                would.push(format!("{} ({} GiB)", show::way(&p.spec, ask), gib(p.program.peak_bytes() as u64)))
            }
            Ok(_) => {}
            Err(e) => note(format!("other ways could not be tried: {e}")),
        }
    }
    match enough(ask, need, LONGEST) {
        Ok(Some((ring, bytes))) => {
            let data = if ask.data > 1 { format!(" --data {}", ask.data) } else { String::new() };
            would.push(format!("--ranks {} --ring {ring}{data} ({} GiB)", ring * ask.data, gib(bytes)));
        }
        Ok(None) => would.push(format!("no ring of up to {LONGEST} ranks: a shorter --context")),
        Err(e) => note(format!("more ranks could not be tried: {e}")),
    }
    Error::failed(format!(
        "it does not fit: a rank holds {} GiB at the least and may hold {} GiB; what would: {}",
        gib(need),
        gib(have),
        would.join("; or ")
    ))
}

impl Args {
    fn machine(&self) -> Result<Machine, Error> {
        let known = || Error::input(format!("`{}` is no machine; there are {}", self.device, MACHINES.join(", ")));
        let mut out = machine(&self.device).ok_or_else(known)?;
        for a in &self.assume {
            let bad = || Error::input(format!("`--assume {a}`: write a figure and its number, as inside=200e9"));
            let (name, value) = a.split_once('=').ok_or_else(bad)?;
            out.set(name.trim(), value.trim().parse().map_err(|_| bad())?).map_err(Error::input)?;
        }
        Ok(out)
    }

    /// Ranks of a ring, and rings.
    fn ranks(&self) -> Result<(usize, usize), Error> {
        let [ranks, ring, data] = [self.ranks, self.ring, self.data].map(|n| n.map(|n| n as usize));
        let (ring, data) = match (ranks, ring, data) {
            (None, ring, data) => (ring.unwrap_or(1), data.unwrap_or(1)),
            (Some(w), Some(r), None) => (r, w / r),
            (Some(w), None, d) => (w / d.unwrap_or(1), d.unwrap_or(1)),
            (Some(_), Some(r), Some(d)) => (r, d),
        };
        match ranks {
            Some(w) if w != ring * data => Err(Error::input(format!(
                "{w} ranks are no {data} rings of {ring}: --ring times --data must be --ranks"
            ))),
            _ => Ok((ring, data)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, n) in [("1", 1), ("512K", 524_288), ("4m", 4_194_304), ("8k", 8192)] {
            assert_eq!(size(text), Ok(n));
        }
        for text in ["", "0", "K", "1.5K", "-1", "99999999M", "4G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
