//! The order of an epoch: a permutation that needs no memory.

/// A permutation of 0..n, drawn by a key.
///
/// A Feistel network of four rounds permutes the next power of four; what falls outside goes round again. Any place
/// is computed alone, so a position in an epoch is one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permutation {
    n: u64,
    half: u32,
    key: u64,
}

impl Permutation {
    /// The permutation of 0..n that a key names.
    pub fn new(n: u64, key: u64) -> Permutation {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Permutation { n, half: bits.div_ceil(2).max(1), key }
    }

    /// What stands at a place; the place itself beyond the last.
    pub fn at(&self, place: u64) -> u64 {
        if place >= self.n {
            return place;
        }
        let mut x = place;
        loop {
            x = self.rounds(x);
            if x < self.n {
                return x;
            }
        }
    }

    fn rounds(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (x >> self.half, x & mask);
        for round in 0..4u64 {
            let noise = mix(right ^ mix(self.key.wrapping_add(round)));
            (left, right) = (right, left ^ (noise & mask));
        }
        (left << self.half) | right
    }
}

/// A key for a name, an epoch and a seed.
pub fn key(seed: u64, name: &str, epoch: u64) -> u64 {
    let named = name.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)));
    mix(named ^ mix(epoch))
}

/// SplitMix64's finish.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
