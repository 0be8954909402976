//! Whether this process is a rank of a run: what its launcher wrote into the environment, and how to join the others.

use super::{Rendezvous, Tcp, TcpError, World, threads};
use std::convert::Infallible;
use std::time::Duration;

/// What started this process as one of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// A launcher that speaks PMI: `mpiexec` of MPICH and of Intel MPI, `srun --mpi=pmi2`.
    Pmi,
    /// Slurm's `srun`.
    Slurm,
    /// `RANK` and `WORLD_SIZE`, as `torchrun` sets them.
    Environment,
}

/// A process's place in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// What started it.
    pub by: Launcher,
    /// Its rank, from 0.
    pub rank: usize,
    /// How many ranks there are.
    pub ranks: usize,
    /// Where rank 0 can be reached: `MASTER_ADDR` and `MASTER_PORT`, if both are set. Where `torchrun` has a store of its
    /// own at that port (`TORCHELASTIC_USE_AGENT_STORE=True`), the port after it.
    pub master: Option<(String, u16)>,
}

/// Why a process cannot join the other ranks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// A variable is no number, or too large.
    #[error("the environment has {name}={value}, which should be {want}")]
    Value {
        /// The variable.
        name: &'static str,
        /// What it says.
        value: String,
        /// What it should say.
        want: &'static str,
    },
    /// One of two variables is set.
    #[error("the environment has {have} and no {lacks}; a launcher sets both: set {lacks} too, or unset {have}")]
    Half {
        /// The variable that is set.
        have: &'static str,
        /// The variable that is not.
        lacks: &'static str,
    },
    /// A rank that the run does not have.
    #[error("{by} says rank {rank} of {ranks}: ranks are counted from 0 and fewer than the size")]
    Rank {
        /// What started it.
        by: Launcher,
        /// Its rank.
        rank: usize,
        /// How many ranks there are.
        ranks: usize,
    },
    /// This build has no MPI.
    #[error(
        "{by} started rank {rank} of {ranks}, but this build has no MPI; run `scripts/setup.sh mpi`, then build with \
         `cargo build --release --features mpi`; or go over TCP: give all ranks MASTER_ADDR, an address of rank 0's machine, and \
         MASTER_PORT, a free port there (`mpirun -x MASTER_ADDR -x MASTER_PORT`)"
    )]
    NoMpi {
        /// What started it.
        by: Launcher,
        /// Its rank.
        rank: usize,
        /// How many ranks there are.
        ranks: usize,
    },
    /// Nobody says where ranks meet.
    #[error(
        "{by} says rank {rank} of {ranks}, but not where the ranks meet: set MASTER_ADDR, an address of rank 0's machine, and \
         MASTER_PORT, a free port there, for all ranks; or start them with `mpirun -n {ranks}`"
    )]
    NoMaster {
        /// What started it.
        by: Launcher,
        /// Its rank.
        rank: usize,
        /// How many ranks there are.
        ranks: usize,
    },
    /// Ranks do not meet over TCP.
    #[error("rank {rank} of {ranks}: {why}")]
    Tcp {
        /// This rank.
        rank: usize,
        /// How many ranks there are.
        ranks: usize,
        /// Why they do not meet.
        why: TcpError,
    },
    /// MPI and the launcher do not belong together.
    #[error(
        "{by} started rank {rank} of {ranks}, but MPI sees rank {seen} of {of}; use the launcher of the MPI that this was built \
         with, {library}, or `srun --mpi=pmix` or `--mpi=pmi2`, whichever it speaks"
    )]
    Other {
        /// What started it.
        by: Launcher,
        /// Its rank.
        rank: usize,
        /// How many ranks there are.
        ranks: usize,
        /// Its rank as MPI has it.
        seen: usize,
        /// How many ranks MPI has.
        of: usize,
        /// The MPI that this was built with.
        library: String,
    },
    /// MPI does not start.
    #[error("{0}")]
    Mpi(String),
}

impl std::fmt::Display for Launcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Launcher::OpenMpi => "mpirun (Open MPI)",
            Launcher::Pmi => "mpiexec or srun (PMI)",
            Launcher::Slurm => "srun",
            Launcher::Environment => "the environment (RANK, WORLD_SIZE)",
        })
    }
}

/// Who sets which variables, and who is asked first: `mpirun` in a job of Slurm is `mpirun`.
///
/// Slurm sets `SLURM_PROCID` and `SLURM_NTASKS` in a batch script too, which is one process; `SLURM_STEP_NUM_TASKS` is
/// set only for what `srun` starts.
const LAUNCHERS: [(Launcher, &str, &str); 4] = [
    (Launcher::OpenMpi, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    (Launcher::Pmi, "PMI_RANK", "PMI_SIZE"),
    (Launcher::Slurm, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    (Launcher::Environment, "RANK", "WORLD_SIZE"),
];

impl Launched {
    /// This process's place, or none where it was started alone.
    ///
    /// Errors: variables that do not fit together.
    pub fn here() -> Result<Option<Launched>, LaunchError> {
        Launched::read(|name| std::env::var(name).ok())
    }

    /// The place that these variables say.
    ///
    /// Errors: as [`Launched::here`].
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Option<Launched>, LaunchError> {
        for (by, rank_name, size_name) in LAUNCHERS {
            let (rank, ranks) = match (get(rank_name), get(size_name)) {
                (Some(rank), Some(size)) => (number(rank_name, rank)?, number(size_name, size)?),
                (None, None) => continue,
                // A job's own variables, of which a step's is missing: nothing was started by `srun`.
                _ if by == Launcher::Slurm => continue,
                (Some(_), None) => return Err(LaunchError::Half { have: rank_name, lacks: size_name }),
                (None, Some(_)) => return Err(LaunchError::Half { have: size_name, lacks: rank_name }),
            };
            if rank >= ranks {
                return Err(LaunchError::Rank { by, rank, ranks });
            }
            let master = match (get("MASTER_ADDR"), get("MASTER_PORT")) {
                (Some(host), Some(port)) => Some((host, port_of(port, get("TORCHELASTIC_USE_AGENT_STORE"))?)),
                _ => None,
            };
            return Ok(Some(Launched { by, rank, ranks, master }));
        }
        Ok(None)
    }

    /// Joins the other ranks. All must; a run of one rank is joined at once.
    ///
    /// Errors: this build or this launcher has nothing that carries.
    pub fn join(&self) -> Result<World, LaunchError> {
        let Launched { by, rank, ranks, .. } = *self;
        if ranks == 1
            && let Some(alone) = threads(1).pop()
        {
            return match World::join(move || Ok::<_, Infallible>(alone)) {
                Ok(world) => Ok(world),
                Err(never) => match never {},
            };
        }
        match &self.master {
            // MPI carries what MPI's launchers start, where it is built in.
            Some((host, port)) if by == Launcher::Environment || cfg!(not(feature = "mpi")) => {
                let patience = patience(std::env::var(PATIENCE).ok())?;
                let meeting = Rendezvous { patience, ..Rendezvous::new(rank, ranks, host, *port) };
                World::join(move || Tcp::join(&meeting).map_err(|why| LaunchError::Tcp { rank, ranks, why }))
            }
            None if by == Launcher::Environment => Err(LaunchError::NoMaster { by, rank, ranks }),
            _ => carried(by, rank, ranks),
        }
    }
}

/// How long ranks wait for each other over TCP, in seconds.
const PATIENCE: &str = "OMCHAT_JOIN_TIMEOUT";

fn patience(said: Option<String>) -> Result<Duration, LaunchError> {
    let Some(value) = said else { return Ok(Rendezvous::PATIENCE) };
    match value.trim().parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err(LaunchError::Value { name: PATIENCE, value, want: "seconds, 1 to 86400" }),
    }
}

/// The port at which rank 0 listens.
fn port_of(value: String, store: Option<String>) -> Result<u16, LaunchError> {
    let port: u16 = parse("MASTER_PORT", value.clone(), "a port, 1 to 65535")?;
    let shift = u16::from(store.as_deref() == Some("True"));
    let want =
        if shift == 0 { "a port, 1 to 65535" } else { "a port, 1 to 65534: torchrun holds it, ranks take the next" };
    let port = port.checked_add(shift).filter(|p| *p > shift);
    port.ok_or(LaunchError::Value { name: "MASTER_PORT", value, want })
}

#[cfg(feature = "mpi")]
fn carried(by: Launcher, rank: usize, ranks: usize) -> Result<World, LaunchError> {
    use super::{Mpi, Transport};
    World::join(move || {
        let mpi = Mpi::start(Mpi::SILENCE).map_err(|e| LaunchError::Mpi(e.to_string()))?;
        let (seen, of) = (mpi.rank(), mpi.ranks());
        if (seen, of) == (rank, ranks) {
            return Ok(mpi);
        }
        Err(LaunchError::Other { by, rank, ranks, seen, of, library: Mpi::library() })
    })
}

#[cfg(not(feature = "mpi"))]
fn carried(by: Launcher, rank: usize, ranks: usize) -> Result<World, LaunchError> {
    Err(LaunchError::NoMpi { by, rank, ranks })
}

/// Ends this process with an exit code, after its error was printed. A rank among others tells them first, and leaves
/// out MPI's own end, which would wait for ranks that are gone. Any thread may call it.
pub fn exit(code: i32) -> ! {
    super::tcp::give_up();
    #[cfg(feature = "mpi")]
    super::mpi::abort(code);
    #[cfg(not(feature = "mpi"))]
    std::process::exit(code)
}

fn number(name: &'static str, value: String) -> Result<usize, LaunchError> {
    parse(name, value, "a number from 0")
}

fn parse<T: std::str::FromStr>(name: &'static str, value: String, want: &'static str) -> Result<T, LaunchError> {
    value.trim().parse().map_err(|_| LaunchError::Value { name, value, want })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn read(vars: &str) -> Result<Option<Launched>, LaunchError> {
        Launched::read(|name| {
            vars.split_whitespace().find_map(|v| v.split_once('=').filter(|(n, _)| *n == name)).map(|(_, v)| v.into())
        })
    }

    fn place(vars: &str) -> (Launcher, usize, usize) {
        let l = read(vars).unwrap().unwrap();
        (l.by, l.rank, l.ranks)
    }

    #[test]
    fn each_launcher_is_known_by_its_variables() {
        assert_eq!(read("HOME=/root").unwrap(), None);
        let mpirun = "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4";
        assert_eq!(place(mpirun), (Launcher::OpenMpi, 3, 4));
        assert_eq!(place("PMI_RANK=0 PMI_SIZE=1"), (Launcher::Pmi, 0, 1));
        assert_eq!(place("RANK=5 WORLD_SIZE=8"), (Launcher::Environment, 5, 8));
        let srun = "SLURM_PROCID=2 SLURM_NTASKS=9 SLURM_STEP_NUM_TASKS=9";
        assert_eq!(place(srun), (Launcher::Slurm, 2, 9));
        assert_eq!(place(&format!("{srun} {mpirun} RANK=0 WORLD_SIZE=2")), (Launcher::OpenMpi, 3, 4));
    }

    #[test]
    fn a_batch_script_of_slurm_is_one_process() {
        assert_eq!(read("SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_JOB_ID=7").unwrap(), None);
    }

    #[test]
    fn rank_zero_is_found_by_its_address() {
        let l = read("RANK=1 WORLD_SIZE=2 MASTER_ADDR=node7 MASTER_PORT=29500").unwrap().unwrap();
        assert_eq!(l.master, Some(("node7".to_string(), 29500)));
        assert_eq!(read("RANK=1 WORLD_SIZE=2 MASTER_ADDR=node7").unwrap().unwrap().master, None);
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        for (vars, want) in [
            ("RANK=1", "RANK and no WORLD_SIZE"),
            ("PMI_SIZE=4", "PMI_SIZE and no PMI_RANK"),
            ("RANK=-1 WORLD_SIZE=2", "RANK=-1, which should be a number from 0"),
            ("RANK=a WORLD_SIZE=2", "RANK=a"),
            ("RANK=2 WORLD_SIZE=2", "rank 2 of 2"),
            ("RANK=0 WORLD_SIZE=0", "rank 0 of 0"),
            ("RANK=0 WORLD_SIZE=1 MASTER_ADDR=x MASTER_PORT=70000", "MASTER_PORT=70000, which should be a port"),
        ] {
            let error = read(vars).unwrap_err().to_string();
            assert!(error.contains(want), "{vars}: {error}");
        }
    }

    #[test]
    fn one_rank_joins_itself_and_several_need_what_carries() {
        let world = read("RANK=0 WORLD_SIZE=1").unwrap().unwrap().join().unwrap();
        assert_eq!((world.rank(), world.ranks()), (0, 1));
        let error = read("RANK=0 WORLD_SIZE=3").unwrap().unwrap().join().err().unwrap().to_string();
        assert!(error.contains("set MASTER_ADDR") && error.contains("MASTER_PORT"), "{error}");
        assert!(error.contains("mpirun -n 3"), "{error}");
    }

    #[test]
    fn torchruns_own_port_is_left_to_it() {
        let base = "RANK=1 WORLD_SIZE=2 MASTER_ADDR=node7";
        let port = |more: &str| read(&format!("{base} {more}")).map(|l| l.unwrap().master.unwrap().1);
        assert_eq!(port("MASTER_PORT=29500 TORCHELASTIC_USE_AGENT_STORE=True").unwrap(), 29501);
        assert_eq!(port("MASTER_PORT=29500 TORCHELASTIC_USE_AGENT_STORE=False").unwrap(), 29500);
        assert_eq!(port("MASTER_PORT=65535").unwrap(), 65535);
        for bad in ["MASTER_PORT=0", "MASTER_PORT=65535 TORCHELASTIC_USE_AGENT_STORE=True", "MASTER_PORT=x"] {
            let error = port(bad).unwrap_err().to_string();
            assert!(error.contains("which should be a port, 1 to 6553"), "{bad}: {error}");
        }
    }

    #[test]
    fn patience_is_a_number_of_seconds() {
        assert_eq!(patience(None).unwrap(), Rendezvous::PATIENCE);
        assert_eq!(patience(Some(" 7".into())).unwrap(), Duration::from_secs(7));
        for bad in ["0", "-1", "soon", "86401", ""] {
            let error = patience(Some(bad.into())).unwrap_err().to_string();
            assert!(error.contains(&format!("OMCHAT_JOIN_TIMEOUT={bad}, which should be seconds")), "{error}");
        }
    }

    #[cfg(not(feature = "mpi"))]
    #[test]
    fn without_mpi_it_is_said_how_to_build_it() {
        let error = read("OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4").unwrap().unwrap().join().err().unwrap();
        assert_eq!(error, LaunchError::NoMpi { by: Launcher::OpenMpi, rank: 1, ranks: 4 });
        assert!(error.to_string().contains("--features mpi") && error.to_string().contains("MASTER_ADDR"), "{error}");
    }
}
