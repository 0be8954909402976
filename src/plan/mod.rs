//! The plan before the run: what a run of many ranks holds, sends and takes, from its own program and from figures of
//! a machine. No device is needed and nothing is allocated.
//!
//! Memory and bytes on the wire are counted on the lowered program, so they are what the runtime does. Times are
//! FLOPs and bytes over the machine's figures, each of which says where it is from.

pub mod hardware;
mod script;
mod sight;
mod simulate;
mod turn;

pub use script::{Act, Kind, Pace, Script};
pub use sight::{Sight, documents};
pub use simulate::{Moved, Outcome, Scene, simulate};
pub use turn::{Hop, Turn, turn};

use crate::Error;
use crate::train_plan::candidates;
use hardware::Machine;
use omchat_codegen::{Program, Target};
use omchat_ir::{Dtype, Func, Module};
use omchat_model::OmChatConfig;
use omchat_model::graph::{ForwardSpec, Part, Recompute, TrainSpec, forward_module, ring_chunks, step_module};
use omchat_recipe::ring::Layout;

/// Most parts of losses that are tried: a program grows with them.
const MOST_LOSSES: usize = 1024;
/// Most parts of an MLP that are tried: a program grows with them in each layer.
const MOST_MLPS: usize = 64;
/// Most parts of all layers together: a program of more takes more memory than it spares.
const MOST_PARTS: usize = 1 << 13;

/// What is to be run, and on what.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The model.
    pub config: OmChatConfig,
    /// Positions of a ring.
    pub context: usize,
    /// Ranks of a ring.
    pub ring: usize,
    /// Rings.
    pub data: usize,
    /// What is trained; without, only losses are computed.
    pub train: Option<Vec<Part>>,
    /// What is computed again; the fastest that fits if not given.
    pub recompute: Option<Recompute>,
    /// Parts of the losses.
    pub loss_tiles: Option<usize>,
    /// Parts of the MLPs.
    pub mlp_tiles: Option<usize>,
    /// How positions lie on the ranks.
    pub layout: Layout,
    /// Lengths of the documents that the context is packed with.
    pub documents: Vec<usize>,
    /// The element type.
    pub dtype: Dtype,
    /// GPUs and links.
    pub machine: Machine,
    /// Ranks slower by up to this share.
    pub stragglers: f64,
    /// What stragglers are drawn from.
    pub seed: u64,
}

/// A way to run it, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Its recomputation and parts.
    pub spec: TrainSpec,
    /// Bytes a rank; none where a buffer is larger than the target binds.
    pub bytes: Option<u64>,
}

/// What a run takes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The way that was taken, or the leanest one.
    pub spec: TrainSpec,
    /// Its program, of one rank.
    pub program: Program,
    /// Its acts.
    pub script: Script,
    /// Who sees whom in a ring.
    pub sight: Sight,
    /// The same in the other layouts.
    pub others: Vec<(Layout, Sight)>,
    /// How it goes in simulated time.
    pub outcome: Outcome,
    /// Ways that do not fit.
    pub tried: Vec<Tried>,
    /// Whether it fits.
    pub fits: bool,
}

impl Ask {
    /// Ranks in all.
    pub fn ranks(&self) -> usize {
        self.data.saturating_mul(self.ring)
    }

    /// What it trains or computes, before recomputation and parts are chosen.
    fn base(&self) -> TrainSpec {
        let forward = ForwardSpec { ring: self.ring, ..ForwardSpec::text(Layout::tokens(self.context, self.ring)) };
        let parts = self.train.clone().unwrap_or_default();
        TrainSpec { data: self.data, parts, ..TrainSpec::whole(forward) }
    }

    /// Ways to run it, from the fastest to the leanest, as far as they are left open.
    fn ways(&self) -> Vec<TrainSpec> {
        let mut out: Vec<TrainSpec> = vec![];
        let base = self.base();
        let tokens = base.forward.tokens;
        let parts = |n: usize, most: usize| (1..=n.min(most)).rev().find(|n| tokens.is_multiple_of(*n)).unwrap_or(1);
        for way in candidates(&base) {
            let forward = ForwardSpec {
                loss_tiles: self.loss_tiles.unwrap_or_else(|| parts(way.forward.loss_tiles, MOST_LOSSES)),
                mlp_tiles: self.mlp_tiles.unwrap_or_else(|| parts(way.forward.mlp_tiles, MOST_MLPS)),
                ..way.forward
            };
            let recompute = match self.train {
                Some(_) => self.recompute.unwrap_or(way.recompute),
                None => Recompute::Nothing,
            };
            let way = TrainSpec { forward, recompute, ..way };
            if !out.contains(&way) {
                out.push(way);
            }
        }
        out
    }

    /// The program of one rank.
    ///
    /// Errors: sizes that make no sense; what the target cannot bind.
    pub fn program(&self, way: &TrainSpec) -> Result<Program, Error> {
        let (f, layers) = (&way.forward, self.config.text.layers);
        if f.mlp_tiles.saturating_mul(layers).saturating_add(f.loss_tiles) > MOST_PARTS {
            return Err(Error::Input(format!(
                "{} parts of the MLPs of {layers} layers and {} of the losses are more than {MOST_PARTS} in all: give fewer",
                f.mlp_tiles, f.loss_tiles
            )));
        }
        let module = match self.train {
            Some(_) => step_module(&self.config, way, self.dtype)?,
            None => forward_module(&self.config, way.forward, self.dtype)?,
        };
        let entry = Func(module.functions.len().saturating_sub(1) as u32);
        lowered(&module, entry, self.machine.sm, self.ranks())
    }

    /// Who sees whom.
    fn sight(&self, layout: Layout) -> Sight {
        let chunks = ring_chunks(Layout::tokens(self.context, self.ring));
        Sight::of(&self.documents, self.context, self.ring, layout, chunks)
    }
}

/// A module's entry as the program of one of so many ranks, on CUDA of a compute capability.
fn lowered(module: &Module, entry: Func, sm: u32, ranks: usize) -> Result<Program, Error> {
    Ok(omchat_runtime::program_tuned(module, entry, &Target::cuda(sm), None, ranks, &mut |_, _| {})?)
}

/// The first way that fits, with how it goes; the leanest one if none fits.
///
/// Errors: sizes that make no sense; no program of any way.
pub fn plan(ask: &Ask) -> Result<Plan, Error> {
    let budget = ask.machine.budget();
    let (mut tried, mut taken): (Vec<Tried>, Option<(TrainSpec, Program)>) = (vec![], None);
    let mut fits = false;
    let mut refused = None;
    for spec in ask.ways() {
        let program = match ask.program(&spec) {
            Ok(program) => program,
            Err(Error::Runtime(e)) if too_large(&e) => {
                tried.push(Tried { spec, bytes: None });
                refused = Some(Error::Runtime(e));
                continue;
            }
            Err(e) => return Err(e),
        };
        let bytes = program.peak_bytes() as u64;
        fits = bytes <= budget;
        if !fits {
            tried.push(Tried { spec: spec.clone(), bytes: Some(bytes) });
        }
        let leaner = taken.as_ref().is_none_or(|(_, p)| program.peak_bytes() < p.peak_bytes());
        if fits || leaner {
            taken = Some((spec, program));
        }
        if fits {
            break;
        }
    }
    let Some((spec, program)) = taken else {
        return Err(refused.unwrap_or_else(|| Error::Input("there is no way to run it".into())));
    };
    let script = Script::of(&program)?;
    let sight = ask.sight(ask.layout);
    let others = Layout::ALL.into_iter().filter(|l| *l != ask.layout).map(|l| (l, ask.sight(l))).collect();
    let scene = Scene { machine: &ask.machine, sight: &sight, stragglers: ask.stragglers, seed: ask.seed };
    let outcome = simulate(&script, &scene);
    Ok(Plan { spec, program, script, sight, others, outcome, tried, fits })
}

/// Whether a smaller part may mend it: a buffer that the target does not bind, sizes that no kernel takes.
fn too_large(e: &omchat_runtime::Error) -> bool {
    use omchat_codegen::Error::{Limit, NoKernel};
    matches!(e, omchat_runtime::Error::Codegen(Limit { .. } | NoKernel { .. }))
}

/// The ranks of a ring on which that context fits, and what each holds: the fewest by doubling, at most `most`.
///
/// `need` bytes are held on as many ranks as were asked for; R times as many hold no less than an R-th each.
///
/// Errors: as [`plan`].
pub fn enough(ask: &Ask, need: u64, most: usize) -> Result<Option<(usize, u64)>, Error> {
    let mut more = ask.clone();
    loop {
        more.ring *= 2;
        if more.ring > most || more.ring > more.context {
            return Ok(None);
        }
        if need / (more.ring / ask.ring.max(1)).max(1) as u64 > more.machine.budget() {
            continue;
        }
        // The leanest way alone: whether anything fits.
        let Some(way) = more.ways().pop() else { return Ok(None) };
        let bytes = match more.program(&way) {
            Ok(program) => program.peak_bytes() as u64,
            Err(Error::Runtime(e)) if too_large(&e) => continue,
            Err(e) => return Err(e),
        };
        if bytes <= more.machine.budget() {
            return Ok(Some((more.ring, bytes)));
        }
    }
}
