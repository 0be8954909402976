//! Which of its machine's devices a rank takes.

use super::{Launched, Launcher};

/// This process's number among the ranks of its machine, from 0, where a launcher started several; 0 where none did.
///
/// A launcher that does not say it is taken to fill machines one after the other, so that ranks count on: whoever has D
/// devices takes the one of that number modulo D.
///
/// Errors: a variable that is no number.
pub(crate) fn local_rank(get: impl Fn(&str) -> Option<String>) -> Result<usize, String> {
    let Some(started) = Launched::read(&get).map_err(|e| e.to_string())?.filter(|l| l.ranks > 1) else { return Ok(0) };
    let names: &[&str] = match started.by {
        Launcher::OpenMpi => &["OMPI_COMM_WORLD_LOCAL_RANK"],
        // `srun --mpi=pmi2` speaks PMI too.
        Launcher::Pmi => &["MPI_LOCALRANKID", "SLURM_LOCALID"],
        Launcher::Slurm => &["SLURM_LOCALID"],
        Launcher::Environment => &["LOCAL_RANK"],
    };
    match names.iter().find_map(|name| Some((name, get(name)?))) {
        None => Ok(started.rank),
        Some((name, value)) => value
            .trim()
            .parse()
            .map_err(|_| format!("the environment has {name}={value}, which should be a number from 0")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn local(vars: &str) -> Result<usize, String> {
        local_rank(|name| {
            vars.split_whitespace().find_map(|v| v.split_once('=').filter(|(n, _)| *n == name)).map(|(_, v)| v.into())
        })
    }

    #[test]
    fn each_launcher_says_it_in_its_way() {
        for (vars, want) in [
            ("HOME=/root", 0),
            ("OMPI_COMM_WORLD_RANK=9 OMPI_COMM_WORLD_SIZE=16 OMPI_COMM_WORLD_LOCAL_RANK=1 LOCAL_RANK=5", 1),
            ("PMI_RANK=3 PMI_SIZE=4 MPI_LOCALRANKID=2", 2),
            ("PMI_RANK=3 PMI_SIZE=4 SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1", 1),
            ("SLURM_PROCID=6 SLURM_STEP_NUM_TASKS=8 SLURM_LOCALID=2", 2),
            ("RANK=5 WORLD_SIZE=8 LOCAL_RANK=1", 1),
            ("RANK=5 WORLD_SIZE=8", 5),
            // One rank takes the first device, as a command without a launcher does.
            ("RANK=0 WORLD_SIZE=1 LOCAL_RANK=3", 0),
            // A batch script of Slurm is one process.
            ("SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_LOCALID=3", 0),
        ] {
            assert_eq!(local(vars).unwrap(), want, "{vars}");
        }
        assert!(local("RANK=1 WORLD_SIZE=2 LOCAL_RANK=x").unwrap_err().contains("LOCAL_RANK=x"));
    }
}
