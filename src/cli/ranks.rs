//! The ranks of a command: processes that a launcher started, or threads of this process.

use super::Error;
use omchat_runtime::collective::{Exchange, Launched, World, exit, threads};
use std::convert::Infallible;
use std::thread;

/// What a command of several ranks takes.
#[derive(clap::Args, Clone, Copy)]
pub struct Ranks {
    /// Ranks as threads of this process, each with a part of the device. Ranks as processes come of `mpirun`, `srun` or `torchrun`.
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// Ranks that share a pack, in every stage, in place of what the recipe says.
    #[arg(long, value_name = "R")]
    ring: Option<usize>,
    /// Rings beside each other, each with packs of its own; ranks are R times as many.
    #[arg(long, value_name = "D")]
    data: Option<usize>,
    /// How ranks on GPUs exchange: auto (from GPU to GPU by NCCL where every rank can, else through the host), host, nccl.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    exchange: Exchange,
}

impl Ranks {
    /// Ranks of a ring, if the command says so.
    pub fn ring(&self) -> Option<usize> {
        self.ring
    }

    /// Runs on each rank, and yields what the first came to.
    ///
    /// Errors: as [`each`]; ranks that are not as many as rings ask for.
    pub fn run<T: Send>(&self, run: impl Fn(Option<World>) -> Result<T, Error> + Sync) -> Result<T, Error> {
        let said = self.data.map(|d| d * self.ring.unwrap_or(1));
        let started = Launched::here().map_err(Error::input)?.map(|l| l.ranks).filter(|n| *n > 1);
        let have = started.or(self.ranks);
        if let (Some(need), Some(have)) = (said, have.filter(|n| said != Some(*n))) {
            return Err(Error::input(format!("--ring and --data ask for {need} ranks, and there are {have}")));
        }
        each(self.ranks.or(said).unwrap_or(1), self.exchange, run)
    }
}

/// Runs a command on each of its ranks: where this process is one of several that a launcher started, as that rank; else
/// on so many threads. Yields what the first of them came to.
///
/// Errors: what the first rank that failed says; a launcher with another number of ranks than was asked for.
pub fn each<T: Send>(
    ranks: usize,
    exchange: Exchange,
    run: impl Fn(Option<World>) -> Result<T, Error> + Sync,
) -> Result<T, Error> {
    let launched = Launched::here().map_err(Error::input)?.filter(|l| l.ranks > 1);
    match (launched, ranks) {
        (_, 0) => Err(Error::input("0 ranks; give 1 or more")),
        (Some(l), n) if n > 1 && n != l.ranks => {
            Err(Error::input(format!("--ranks {n}, but {} started {} ranks; leave --ranks out", l.by, l.ranks)))
        }
        (Some(l), _) => {
            let world = l.join().map_err(Error::input)?;
            watch(&world);
            world.exchange_by(exchange);
            let came = run(Some(world.clone()))?;
            world.leave().map_err(Error::failed)?;
            Ok(came)
        }
        (None, 1) => run(None),
        (None, n) => thread::scope(|s| {
            let run = &run;
            let one = |t| {
                s.spawn(move || match World::join(move || Ok::<_, Infallible>(t)) {
                    Ok(world) => {
                        world.exchange_by(exchange);
                        run(Some(world))
                    }
                    Err(never) => match never {},
                })
            };
            let running: Vec<_> = threads(n).into_iter().map(one).collect();
            let ended = running.into_iter().map(|r| r.join().unwrap_or_else(|_| Err(Error::failed("a rank panicked"))));
            let mut came = ended.collect::<Vec<_>>().into_iter().collect::<Result<Vec<T>, Error>>()?;
            Ok(came.swap_remove(0))
        }),
    }
}

/// What rank 0 knows, on all ranks.
///
/// Errors: a rank is lost.
pub fn from_first(world: Option<&World>, what: &str, own: Vec<u8>) -> Result<Vec<u8>, Error> {
    let Some(world) = world else { return Ok(own) };
    let mut all = world.gather(what, own, None).map_err(Error::failed)?;
    Ok(if all.is_empty() { vec![] } else { all.swap_remove(0) })
}

/// Ends this process as soon as another rank is lost, even in the middle of its own work; the error is told first.
fn watch(world: &World) {
    let rank = world.rank();
    world.on_failure(move |failure| {
        eprintln!("omchat: rank {rank}: {failure}");
        exit(1);
    });
}
