//! Numbers drawn from a seed, the same on every machine and in every version.

/// A stream of drawn numbers.
///
/// Source: Steele, Lea and Flood 2014, SplitMix64.
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    /// The stream of a seed and of what it is for.
    pub fn new(seed: u64, purpose: &str) -> Draw {
        Draw(seed ^ digest(purpose.as_bytes()))
    }

    /// The next number.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, each as likely; 0 if `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.bits()) * end as u128) >> 64) as usize
    }

    /// The same things in a drawn order.
    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            let other = self.below(last + 1);
            things.swap(last, other);
        }
    }
}

/// A number that tells contents apart.
///
/// Source: FNV-1a, 64 bits.
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // The published test values of both.
        assert_eq!(Draw(1_234_567).bits(), 6_457_827_717_110_365_317);
        assert_eq!(digest(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(digest(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn every_number_below_is_as_likely() {
        for end in [1, 2, 7, 10] {
            let mut draw = Draw::new(3, "test");
            let mut counts = vec![0; end];
            for _ in 0..7000 * end {
                counts[draw.below(end)] += 1;
            }
            assert!(counts.iter().all(|n| (6500..7500).contains(n)), "{counts:?}");
        }
        let mut order: Vec<usize> = (0..20).collect();
        Draw::new(1, "order").shuffle(&mut order);
        assert!(!order.is_sorted());
        order.sort_unstable();
        assert_eq!(order, (0..20).collect::<Vec<_>>());
    }
}
