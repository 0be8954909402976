//! What a step computes: words see those of their document, and only pairs that see each other count.

use crate::Error;
use omchat_codegen::{Amount, Program, Work};
use omchat_recipe::pack::Pack;

/// FLOPs of a pass of a stage's program on one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Flops {
    /// Attention among the words of a pack, if each saw all.
    words: f64,
    /// All else.
    rest: f64,
}

impl Flops {
    /// Of a program that reads `tokens` words a rank.
    ///
    /// Errors: a program that codegen did not make.
    pub(super) fn of(program: &Program, tokens: usize) -> Result<Flops, Error> {
        let mut all = Flops::default();
        for launch in &program.launches {
            let work = &program.chosen[launch.chosen].work;
            let flops = Amount::of(work).map_err(omchat_runtime::Error::from)?.flops as f64;
            *if among_words(work, tokens) { &mut all.words } else { &mut all.rest } += flops;
        }
        Ok(all)
    }

    /// Of the passes over some packs, if all ranks do an equal part.
    pub(super) fn over(&self, packs: &[Pack]) -> f64 {
        packs.iter().map(|p| self.rest + self.words * seen(p)).sum()
    }
}

/// Whether it is an attention whose queries are a rank's words.
fn among_words(work: &Work, tokens: usize) -> bool {
    let Work::Function { name, operands, .. } = work else { return false };
    name.starts_with("attention")
        && name != "attention_delta"
        && operands.first().is_some_and(|q| q.shape.get(3) == Some(&tokens))
}

/// The share of all pairs of positions that see each other.
fn seen(pack: &Pack) -> f64 {
    let pairs: f64 = pack.lo.iter().zip(&pack.hi).map(|(lo, hi)| f64::from((hi - lo + 1).max(0))).sum();
    pairs / (pack.len().max(1) as f64).powi(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use omchat_model::splice::Slot;

    fn pack(lengths: &[usize]) -> Pack {
        let mut p = Pack::default();
        for n in lengths {
            let start = p.lo.len() as i32;
            for i in 0..*n as i32 {
                p.slots.push(Slot::Text(0));
                p.lo.push(start);
                p.hi.push(start + i);
            }
        }
        p
    }

    #[test]
    fn pairs_are_those_within_documents() {
        let flops = Flops { words: 900.0, rest: 1.0 };
        // 30 positions: one document has 465 pairs of 900, five of six have 5 · 21.
        assert!((flops.over(&[pack(&[30])]) - 466.0).abs() < 1e-9);
        assert!((flops.over(&[pack(&[6; 5]), pack(&[30])]) - 106.0 - 466.0).abs() < 1e-9);
        assert_eq!(flops.over(&[]), 0.0);
    }
}
