//! What carries bytes between the ranks of a run.

/// Why a rank cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank} {why}")]
pub struct Lost {
    /// The rank that is gone.
    pub rank: usize,
    /// What was seen of it: "ended", "has not answered for 5.0 s".
    pub why: String,
}

/// Carries bytes between ranks. All else is made of it: folds in rank order, gathers, rings.
///
/// One thread of a rank owns it, makes it and calls it. Calls of one pair of ranks meet in the order in which each makes
/// them. Every call ends: with what was sent, or within seconds with the rank that is lost.
pub trait Transport {
    /// What carries, for messages: `threads`, `mpi`.
    fn name(&self) -> &'static str;

    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn ranks(&self) -> usize;

    /// Whether the ranks are threads of one process, which share its devices.
    fn shared(&self) -> bool {
        false
    }

    /// Sends `send` to a rank while it receives from a rank, which may be the same or this one. Yields what came, of
    /// whatever length was sent: nothing is sent to a rank of `None`, and nothing comes from one.
    ///
    /// Waits as long as the other rank lives, however long it computes.
    /// Errors: the other rank is gone.
    fn exchange(&mut self, to: Option<usize>, send: &[u8], from: Option<usize>) -> Result<Vec<u8>, Lost>;

    /// Called several times a second while nothing is exchanged: tells the others that this rank lives, and looks after
    /// them.
    ///
    /// Errors: a rank is gone.
    fn idle(&mut self) -> Result<(), Lost>;

    /// Called last, when all went well: waits until every rank came to its end, where a rank that just ends would look
    /// like one that died.
    ///
    /// Errors: a rank is gone.
    fn leave(&mut self) -> Result<(), Lost> {
        Ok(())
    }
}
