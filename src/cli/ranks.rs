//! Ranks of a command: threads of this process, or the processes that a launcher started.

use super::Error;
use omchat_runtime::collective::{Launched, World, exit, threads};
use std::convert::Infallible;

/// What a command of several ranks takes.
#[derive(clap::Args, Clone, Copy)]
pub struct Ranks {
    /// Ranks as threads of this process, each with a part of the device. Ranks as processes come of `mpirun` or `srun`.
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// Ranks that share a pack, in every stage, in place of what the recipe says.
    #[arg(long, value_name = "R")]
    ring: Option<usize>,
    /// Rings beside each other, each with packs of its own; ranks are R times as many.
    #[arg(long, value_name = "D")]
    data: Option<usize>,
}

impl Ranks {
    /// So many threads, or whatever a launcher started if nothing is said.
    pub fn of(ranks: Option<usize>) -> Ranks {
        Ranks { ranks, ring: None, data: None }
    }

    /// Ranks of a ring, if the command says so.
    pub fn ring(&self) -> Option<usize> {
        self.ring
    }

    /// Runs a command on each rank, and yields what rank 0, or this process's rank, came to.
    ///
    /// Errors: ranks that are not as many as was said; what the first rank that fails answers.
    pub fn run<T: Send>(&self, f: impl Fn(Option<World>) -> Result<T, Error> + Sync) -> Result<T, Error> {
        let launched = Launched::here().map_err(|e| Error::input(e.to_string()))?;
        let said = self.data.map(|d| d * self.ring.unwrap_or(1));
        let fits = |have: usize| match said.filter(|n| *n != have) {
            Some(need) => Err(Error::input(format!("--ring and --data ask for {need} ranks, and there are {have}"))),
            None => Ok(()),
        };
        if let Some(launched) = launched {
            if self.ranks.is_some() {
                return Err(Error::input("--ranks is for threads of one process; the launcher made ranks already"));
            }
            fits(launched.ranks)?;
            let world = launched.join().map_err(|e| Error::input(e.to_string()))?;
            let came = f(Some(world.clone()))?;
            world.leave().map_err(Error::failed)?;
            return Ok(came);
        }
        let ranks = self.ranks.or(said).unwrap_or(1).max(1);
        fits(ranks)?;
        if ranks == 1 {
            return f(None);
        }
        std::thread::scope(|s| {
            let f = &f;
            let all: Vec<_> = threads(ranks)
                .into_iter()
                .map(|t| s.spawn(move || f(World::join(move || Ok::<_, Infallible>(t)).ok())))
                .collect();
            let mut first = None;
            for rank in all {
                let came = rank.join().map_err(|_| Error::failed("a rank's thread panicked"))?;
                first.get_or_insert(came?);
            }
            first.ok_or_else(|| Error::failed("no rank ran"))
        })
    }
}

/// What rank 0 knows, on all ranks.
///
/// Errors: a rank is lost.
pub fn from_first(world: Option<&World>, what: &str, own: Vec<u8>) -> Result<Vec<u8>, Error> {
    let Some(world) = world else { return Ok(own) };
    let all = world.gather(what, own, None).map_err(Error::failed)?;
    Ok(all.into_iter().next().unwrap_or_default())
}

/// Ends this process as soon as another rank is lost, even in the middle of its own work; the error is told first.
pub fn watch(world: &World) {
    let rank = world.rank();
    world.on_failure(move |failure| {
        eprintln!("omchat: rank {rank}: {failure}");
        exit(1);
    });
}
