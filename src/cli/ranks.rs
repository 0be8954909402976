//! The ranks of a command: processes that a launcher started, or threads of this process.

use super::Error;
use omchat_runtime::collective::{Launched, World, threads};
use std::convert::Infallible;
use std::thread;

/// Runs a command on each of its ranks: where this process is one of several that `mpirun` started, as that rank; else on
/// so many threads.
///
/// Errors: what the first rank that failed says; a launcher with another number of ranks than was asked for.
pub fn each(ranks: usize, run: impl Fn(Option<World>) -> Result<(), Error> + Sync) -> Result<(), Error> {
    let launched = Launched::here().map_err(Error::input)?.filter(|l| l.ranks > 1);
    match (launched, ranks) {
        (_, 0) => Err(Error::input("0 ranks; give 1 or more")),
        (Some(l), n) if n > 1 && n != l.ranks => {
            Err(Error::input(format!("--ranks {n}, but {} started {} ranks; leave --ranks out", l.by, l.ranks)))
        }
        (Some(l), _) => run(Some(l.join().map_err(Error::input)?)),
        (None, 1) => run(None),
        (None, n) => thread::scope(|s| {
            let run = &run;
            let joined = threads(n).into_iter().map(|t| {
                s.spawn(move || match World::join(move || Ok::<_, Infallible>(t)) {
                    Ok(world) => run(Some(world)),
                    Err(never) => match never {},
                })
            });
            let running: Vec<_> = joined.collect();
            let ended = running.into_iter().map(|r| r.join().unwrap_or_else(|_| Err(Error::failed("a rank panicked"))));
            ended.collect::<Vec<_>>().into_iter().collect()
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
