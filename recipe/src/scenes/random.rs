//! A small stream of random numbers that is the same on every machine and in every version.

/// SplitMix64: a state that counts, and a mix of its bits.
///
/// Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
#[derive(Debug, Clone)]
pub struct Random(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// The stream of one sample of a seed; streams of different samples have nothing to do with each other.
    pub fn of(seed: u64, index: u64) -> Random {
        Random(mix(mix(seed.wrapping_add(STEP)) ^ index.wrapping_mul(STEP).wrapping_add(STEP)))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number from 0 to below 1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// A number from `low` to `high`.
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// A whole number below `n`; 0 where `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        // 64 bits times n, the upper half: the bias is below n / 2^64.
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Whether something of that probability happens.
    pub fn chance(&mut self, p: f32) -> bool {
        self.unit() < p
    }

    /// One of some things; `None` of nothing.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }

    /// Puts things in a random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            things.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference's first outputs for the state 1234567, as its authors' C code gives them.
    #[test]
    fn the_published_stream() {
        let mut r = Random(1_234_567);
        let first = [(); 3].map(|()| r.bits());
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn numbers_stay_in_their_range_and_spread() {
        let mut r = Random::of(3, 5);
        let mut seen = [0usize; 7];
        for _ in 0..7000 {
            seen[r.below(7)] += 1;
            assert!((0.0..1.0).contains(&r.unit()));
        }
        assert!(seen.iter().all(|n| (850..1150).contains(n)), "{seen:?}");
        assert_eq!(r.below(0), 0);
    }
}
