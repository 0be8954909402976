//! Collectives: the pieces of work in which ranks meet.

use omchat_ir::Dtype;
use omchat_ir::ops::FoldKind;

/// What ranks do together. Every rank of a run meets in the same ones, in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Each rank sends to the one `shift` further in its ring of `ring` consecutive ranks.
    Permute {
        /// How far.
        shift: i64,
        /// Ranks of a ring; it divides the number of ranks.
        ring: usize,
        /// Whether a second operand, a bool, says if a rank sends; else its receiver gets zeros.
        gated: bool,
    },
    /// The fold of all ranks' operands, on every rank.
    AllReduce {
        /// How to combine.
        fold: FoldKind,
    },
    /// All ranks' operands one after another, on every rank.
    AllGather,
    /// Of the sum of all ranks' operands, this rank's part.
    ReduceScatter,
}

/// A collective over so many ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collective {
    /// What they do.
    pub how: How,
    /// Ranks of the run.
    pub ranks: usize,
    /// Of the operand and the result.
    pub dtype: Dtype,
    /// Elements of the operand on each rank.
    pub elements: usize,
}

impl Collective {
    /// The op's mnemonic, with its fold.
    pub fn name(&self) -> &'static str {
        match self.how {
            How::Permute { .. } => "collective_permute",
            How::AllReduce { fold: FoldKind::Sum } => "all_reduce.sum",
            How::AllReduce { fold: FoldKind::Max } => "all_reduce.max",
            How::AllGather => "all_gather",
            How::ReduceScatter => "reduce_scatter.sum",
        }
    }

    /// Elements of a rank's part, where an operand is cut into one for each rank: the last ones may be padding.
    pub fn part(&self) -> usize {
        match self.how {
            How::AllGather => self.elements,
            _ => self.elements.div_ceil(self.ranks.max(1)),
        }
    }

    /// Bytes that a rank sends to others, and receives: headers apart, and of a permute if it sends.
    ///
    /// A sum sends each part to its owner, a gather sends the own part to all others; an `all_reduce` is both.
    pub fn wire_bytes(&self) -> u64 {
        let others = self.ranks.saturating_sub(1);
        let elements = match self.how {
            How::Permute { shift, ring, .. } if shift.rem_euclid(ring.max(1) as i64) == 0 => 0,
            How::Permute { .. } => self.elements,
            How::AllReduce { .. } => 2 * self.part() * others,
            How::AllGather | How::ReduceScatter => self.part() * others,
        };
        elements as u64 * self.dtype.bytes() as u64
    }
}
