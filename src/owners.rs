//! Which rank keeps which token of a sequence. Every rank has the same list, made from the same lengths.

/// The rank of each token, in order.
#[derive(Clone, Debug)]
pub(crate) struct Owners {
    of: Vec<u32>,
    filled: Vec<usize>,
}

impl Owners {
    /// No tokens on so many ranks.
    pub fn new(ranks: usize) -> Owners {
        Owners { of: vec![], filled: vec![0; ranks.max(1)] }
    }

    /// Slots that each rank needs for so many tokens, however they were read and truncated: shares differ by `whole` at
    /// most, the most tokens that one rank keeps of a chunk that all read.
    pub fn most(tokens: usize, ranks: usize, whole: usize) -> usize {
        if ranks == 1 { tokens } else { tokens.div_ceil(ranks) + whole }
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// How many of them a rank keeps.
    pub fn filled(&self, rank: usize) -> usize {
        self.filled.get(rank).copied().unwrap_or(0)
    }

    /// Ranks by how many tokens they keep, fewest first.
    fn order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.filled.len() as u32).collect();
        order.sort_by_key(|r| self.filled(*r as usize));
        order
    }

    /// Who keeps the next `n` tokens if one rank keeps them all: the one that keeps fewest.
    pub fn whole(&self, n: usize) -> Vec<u32> {
        vec![self.order().first().copied().unwrap_or(0); n]
    }

    /// Who keeps the next `n` tokens if all ranks keep some: in turn, who keeps fewest first, so that any beginning of
    /// them is spread as evenly.
    pub fn in_turn(&self, n: usize) -> Vec<u32> {
        self.order().into_iter().cycle().take(n).collect()
    }

    /// Adds the next tokens.
    pub fn add(&mut self, owners: &[u32]) {
        self.of.extend(owners);
        for owner in owners {
            if let Some(n) = self.filled.get_mut(*owner as usize) {
                *n += 1;
            }
        }
    }

    /// Forgets all but the first `tokens`.
    pub fn truncate(&mut self, tokens: usize) {
        let mut kept = Owners::new(self.filled.len());
        self.of.truncate(tokens);
        kept.add(&self.of);
        *self = kept;
    }

    /// The tokens that a rank keeps, in the order of its slots.
    pub fn tokens(&self, rank: usize) -> impl Iterator<Item = usize> {
        self.of.iter().enumerate().filter(move |(_, owner)| **owner as usize == rank).map(|(token, _)| token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However chunks come and go, no rank keeps more than it has slots for.
    #[test]
    fn shares_stay_within_the_bound() {
        let mut seed = 9u64;
        let mut draw = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % n
        };
        for ranks in 1..9 {
            let (whole, mut owners) = (32, Owners::new(ranks));
            for _ in 0..2000 {
                match draw(5) {
                    0 => owners.add(&owners.whole(1)),
                    1 => owners.add(&owners.whole(1 + draw(whole))),
                    2 | 3 => owners.add(&owners.in_turn(1 + draw(64 * ranks))),
                    _ => owners.truncate(owners.len() - draw(owners.len() / 2 + 1)),
                }
                for rank in 0..ranks {
                    assert_eq!(owners.tokens(rank).count(), owners.filled(rank));
                    assert!(
                        owners.filled(rank) <= Owners::most(owners.len(), ranks, whole),
                        "{ranks} ranks: {:?}",
                        owners.filled
                    );
                }
            }
        }
    }
}
