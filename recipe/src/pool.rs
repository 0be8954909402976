//! Threads that read records ahead. Each answer has its own way back, so that order is the asker's.

use crate::document::{Reader, Reading};
use crate::error::{Error, Result};
use crate::report::{Fault, Reason};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

struct Job {
    reader: Arc<Reader>,
    shard: u32,
    record: u64,
    reply: SyncSender<Result<Reading>>,
}

/// A few threads; dropping the pool ends them.
pub(crate) struct Pool {
    jobs: Option<Sender<Job>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(crate) fn new(threads: usize) -> Pool {
        let (jobs, queue) = channel::<Job>();
        let (queue, stop) = (Arc::new(Mutex::new(queue)), Arc::new(AtomicBool::new(false)));
        let start = || {
            let (queue, stop) = (queue.clone(), stop.clone());
            std::thread::spawn(move || work(&queue, &stop))
        };
        let threads = (0..threads.max(1)).map(|_| start()).collect();
        Pool { jobs: Some(jobs), stop, threads }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Asks for a record; what is asked and not yet fetched is the asker's to bound.
    pub(crate) fn ask(&self, reader: &Arc<Reader>, shard: u32, record: u64) -> Answer {
        let (reply, answer) = sync_channel(1);
        if let Some(jobs) = &self.jobs {
            // No thread left means no answer, which is what the asker then sees.
            let _ = jobs.send(Job { reader: reader.clone(), shard, record, reply });
        }
        Answer(answer)
    }
}

/// A record that was asked for.
pub(crate) struct Answer(Receiver<Result<Reading>>);

impl Answer {
    pub(crate) fn wait(self) -> Result<Reading> {
        let lost = || Error::input("a reading thread ended early", "report the record that it read last");
        self.0.recv().map_err(|_| lost())?
    }
}

fn work(queue: &Mutex<Receiver<Job>>, stop: &AtomicBool) {
    loop {
        // The lock ends with the statement: one thread waits for a job while the others read.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // A decoder that breaks on a hostile file costs its record, not the run.
        let read = catch_unwind(AssertUnwindSafe(|| {
            // A video may take minutes to decode, and nobody waits for it when the pool goes away.
            job.reader.read_until(job.shard, job.record, &|| stop.load(Ordering::Relaxed))
        }));
        let broken = |_| Ok(Err(Fault::new(Reason::Panic, "reading it broke a decoder")));
        // The asker may be gone.
        let _ = job.reply.send(read.unwrap_or_else(broken));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each thread holds the flag: where it is gone, they are.
    #[test]
    fn dropping_the_pool_ends_its_threads() {
        let pool = Pool::new(3);
        let flag = Arc::downgrade(&pool.stop);
        assert_eq!((pool.threads(), flag.strong_count()), (3, 4));
        drop(pool);
        assert_eq!(flag.strong_count(), 0);
    }
}
