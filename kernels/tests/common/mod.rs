//! What the tests of kernels share: drawn numbers, host buffers, devices, and the judges in f64.
#![allow(dead_code)]

pub mod attention;
pub mod device;
pub mod einsum;
pub mod emulator;
pub mod reference;
pub mod rewrite;

/// A small generator of numbers: the same seed draws the same case everywhere, and other cases where `OMCHAT_SEED` is set.
pub struct Draw(u64);

impl Draw {
    pub fn of(seed: u64) -> Draw {
        let other: u64 = match std::env::var("OMCHAT_SEED") {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("OMCHAT_SEED is `{text}`; give a whole number")),
            Err(_) => 0,
        };
        Draw(seed.wrapping_add(other.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let x = self.0 ^ (self.0 >> 29);
        x.wrapping_mul(0xbf58476d1ce4e5b9) >> 17
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
    pub fn real(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() % 1_000_003) as f64 / 1_000_003.0
    }
}
