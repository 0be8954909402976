//! A program bound to a store: each launch's buffers looked up once; and the launches recorded, where a device can.

use crate::Error;
use crate::compiled::Compiled;
use crate::launches::Launches;
use crate::window;
use cubecl::client::Graph;
use cubecl::server::Handle;
use omchat_codegen::Family;
use omchat_ir::Type;
use std::thread::{self, ThreadId};

/// Runs by launches before one is recorded: the first compiles, and what runs twice only is not worth a recording.
const WARM: usize = 2;

/// A program's launches over one store's weights and states.
pub(crate) struct Bound {
    pub(crate) launches: Launches,
    /// The results that are no state.
    pub(crate) results: Vec<(Type, Handle)>,
    runs: usize,
    recording: Recording,
}

enum Recording {
    None,
    /// A replay runs on the stream that it was recorded on, which is a thread's own.
    Made(Graph, ThreadId),
    /// It could not be recorded once; that is not tried again.
    Refused,
}

impl Bound {
    pub(crate) fn new(launches: Launches, results: Vec<(Type, Handle)>) -> Bound {
        Bound { launches, results, runs: 0, recording: Recording::None }
    }

    /// Replays the launches, if they are recorded for this thread; the run that records them runs them too.
    ///
    /// Yields whether they ran. Errors: what the device answers to a replay.
    pub(crate) fn replay(&mut self, c: &Compiled) -> Result<bool, Error> {
        self.runs += 1;
        let here = thread::current().id();
        if let Recording::Made(graph, there) = &self.recording {
            if *there != here {
                return Ok(false);
            }
            let _open = window::open();
            // SAFETY: this binding holds every handle of the launches, and `Compiled` the arena and the inputs; the
            // caller holds the program's turn, and writes and reads on this thread's stream, which is the graph's.
            unsafe { graph.replay() }.map_err(|e| c.failed(format!("{e:?}")))?;
            return Ok(true);
        }
        // What crosses ranks goes through the host, which a recording does not.
        let asked = c.program.ranks == 1 && matches!(self.recording, Recording::None) && self.runs > WARM;
        if !asked {
            return Ok(false);
        }
        if !self.can_record(c) {
            self.recording = Recording::Refused;
            return Ok(false);
        }
        self.record(c, here)
    }

    /// Whether this thread can record the launches on that device.
    ///
    /// A recording on CUDA may not wait for another stream. A thread has a stream of its own, and so has the memory that it
    /// made: all of it must be this thread's.
    fn can_record(&self, c: &Compiled) -> bool {
        match c.program.target.family {
            Family::Cpu => false,
            Family::Wgpu => true,
            Family::Cuda => {
                let here = c.client.empty(4).stream;
                let all = self.launches.iter().flat_map(|l| l.operands.iter().chain(&l.results).chain(&l.scratch));
                all.map(|b| b.handle.stream).all(|stream| stream == here)
            }
        }
    }

    /// Runs the launches as the warm-up that a capture asks for, then records them.
    fn record(&mut self, c: &Compiled, here: ThreadId) -> Result<bool, Error> {
        let _alone = window::alone();
        if c.client.graph_prepare().is_err() {
            self.recording = Recording::Refused;
            return Ok(false);
        }
        let ran = c.launch(self);
        let recorded = ran.is_ok() && c.client.start_capture().is_ok() && c.launch(self).is_ok();
        // Also ends a capture that was prepared and never opened.
        let graph = c.client.stop_capture();
        ran?;
        self.recording = match graph {
            Ok(graph) if recorded => Recording::Made(graph, here),
            _ => Recording::Refused,
        };
        Ok(true)
    }
}
