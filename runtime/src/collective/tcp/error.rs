//! Why ranks do not meet.

/// Why ranks do not meet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TcpError {
    /// More ranks than sockets are opened for.
    #[error("{ranks} ranks, and over TCP there are at most {most}, each with a socket to every other; start fewer")]
    TooMany {
        /// How many ranks there are.
        ranks: usize,
        /// The most.
        most: usize,
    },
    /// A name without an address.
    #[error("MASTER_ADDR={host} has no address here: {why}; give a name or an address of rank 0's machine")]
    Resolve {
        /// The name.
        host: String,
        /// What was answered.
        why: String,
    },
    /// The port of the run is taken.
    #[error("rank 0 cannot listen at {at}, which is in use; choose another MASTER_PORT, or end what listens there")]
    InUse {
        /// Host and port.
        at: String,
    },
    /// An address that rank 0 cannot listen at.
    #[error("rank {rank} cannot listen at {at}: {why}; MASTER_ADDR must be an address of rank 0's own machine")]
    Listen {
        /// Who would listen.
        rank: usize,
        /// Host and port.
        at: String,
        /// What the system says.
        why: String,
    },
    /// Rank 0 does not answer.
    #[error(
        "rank 0 was not reached at {at} within {seconds} s: {why}; start it, or check MASTER_ADDR and MASTER_PORT, or wait longer with \
         OMCHAT_JOIN_TIMEOUT={more}", more = seconds * 5
    )]
    Unreachable {
        /// Host and port.
        at: String,
        /// How long it was tried.
        seconds: u64,
        /// What the last try said.
        why: String,
    },
    /// Ranks that were not heard of in time.
    #[error(
        "{who} of {ranks} did not come to {at} within {seconds} s{strangers}; start them with the same MASTER_ADDR and MASTER_PORT, or \
         wait longer with OMCHAT_JOIN_TIMEOUT={more}", who = names(missing), more = seconds * 5
    )]
    Missing {
        /// Who did not come.
        missing: Vec<usize>,
        /// How many ranks there are.
        ranks: usize,
        /// Where they were waited for.
        at: String,
        /// For how long.
        seconds: u64,
        /// What is to be said of others who came; may be empty.
        strangers: String,
    },
    /// Two processes that are the same rank.
    #[error("two processes say that they are rank {rank}, at {first} and at {second}; give each its own RANK")]
    Twice {
        /// The rank.
        rank: usize,
        /// Where the first called from.
        first: String,
        /// Where the second called from.
        second: String,
    },
    /// A rank of a run of another size.
    #[error(
        "rank {rank} at {at} says that there are {theirs} ranks, and rank 0 that there are {ours}; give all the same WORLD_SIZE"
    )]
    Size {
        /// The rank.
        rank: usize,
        /// Where it called from.
        at: String,
        /// Its number of ranks.
        theirs: usize,
        /// Rank 0's.
        ours: usize,
    },
    /// A rank of another release.
    #[error("a rank at {at} speaks protocol {theirs}, and rank 0 protocol {ours}; give all ranks the same build")]
    Protocol {
        /// Where it called from.
        at: String,
        /// Its protocol.
        theirs: u32,
        /// This one's.
        ours: u32,
    },
    /// Something else listens where rank 0 should.
    #[error("what answers at {at} is no rank of a run; check MASTER_ADDR and MASTER_PORT")]
    Stranger {
        /// Host and port.
        at: String,
    },
    /// A rank came and went.
    #[error("rank {rank} ended while the ranks were meeting; what it said tells why")]
    Left {
        /// The rank.
        rank: usize,
    },
    /// A rank does not go on.
    #[error("rank {rank} stood still for {seconds} s while the ranks were meeting; start all again")]
    Still {
        /// The rank.
        rank: usize,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A rank that the others cannot connect to.
    #[error("rank {here} cannot connect to rank {rank} at {at}: {why}; every rank's machine must reach every other's")]
    Apart {
        /// Who connects.
        here: usize,
        /// To whom.
        rank: usize,
        /// Host and port.
        at: String,
        /// What the system says.
        why: String,
    },
    /// What another rank found.
    #[error("rank {rank} says: {why}")]
    Told {
        /// Who says so.
        rank: usize,
        /// What it says.
        why: String,
    },
    /// The system refuses.
    #[error("a socket fails while the ranks meet: {0}")]
    Socket(String),
}

/// "rank 2", "ranks 1 and 3", "ranks 1, 2 and 9"; of many the first eight.
fn names(ranks: &[usize]) -> String {
    const MOST: usize = 8;
    let mut said: Vec<String> = ranks.iter().take(MOST).map(usize::to_string).collect();
    if ranks.len() > MOST {
        said.push(format!("{} more", ranks.len() - MOST));
    }
    match said.pop() {
        Some(last) if said.is_empty() => format!("rank {last}"),
        Some(last) => format!("ranks {} and {last}", said.join(", ")),
        None => "no rank".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_listed_by_number() {
        assert_eq!(names(&[2]), "rank 2");
        assert_eq!(names(&[1, 3]), "ranks 1 and 3");
        assert_eq!(names(&[1, 2, 9]), "ranks 1, 2 and 9");
        let many: Vec<usize> = (1..=30).collect();
        assert_eq!(names(&many), "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 22 more");
    }
}
