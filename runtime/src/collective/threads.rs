//! Ranks as threads of one process.

use super::{Lost, Transport};
use std::sync::mpsc::{Receiver, Sender, channel};

/// One rank of a run within a process.
pub struct Threads {
    rank: usize,
    /// To each rank, and from each.
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

/// So many ranks of one process, rank 0 first. Each goes to a thread of its own; one that is dropped is lost to the others.
pub fn threads(ranks: usize) -> Vec<Threads> {
    let mut all: Vec<Threads> = (0..ranks).map(|rank| Threads { rank, to: vec![], from: vec![] }).collect();
    for to in 0..ranks {
        for from in 0..ranks {
            let (send, receive) = channel();
            all[from].to.push(send);
            all[to].from.push(receive);
        }
    }
    all
}

impl Transport for Threads {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.to.len()
    }

    fn shared(&self) -> bool {
        true
    }

    fn exchange(&mut self, to: Option<usize>, send: &[u8], from: Option<usize>) -> Result<Vec<u8>, Lost> {
        let ended = |rank| move |_: ()| Lost { rank, why: "ended".into() };
        if let Some(to) = to {
            self.to[to].send(send.to_vec()).map_err(|_| ()).map_err(ended(to))?;
        }
        match from {
            Some(from) => self.from[from].recv().map_err(|_| ()).map_err(ended(from)),
            None => Ok(vec![]),
        }
    }

    fn idle(&mut self) -> Result<(), Lost> {
        Ok(())
    }
}
