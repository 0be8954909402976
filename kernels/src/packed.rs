//! Halves where there is no u16: two to a word, picked and widened in registers.

use cubecl::prelude::*;

use crate::vector::Lane;

/// The float of f16 bits, by integers: WGSL may flush what is below 2^-126, which a shifted 2^-24 would be.
#[cube]
pub(crate) fn widen_f16<N: Size>(bits: Vector<u32, N>) -> Vector<f32, N> {
    let sign = (bits & Vector::new(0x8000u32)) << Vector::new(16u32);
    let size = bits & Vector::new(0x7fffu32);
    let plain = (size << Vector::new(13u32)) + Vector::new(0x3800_0000u32);
    let huge = plain + Vector::new(0x3800_0000u32);
    let small = Vector::<f32, N>::cast_from(size) * Vector::new(5.960_464_5e-8f32);
    let large = select_many(size.less_than(&Vector::new(0x7c00u32)), plain, huge);
    let out = select_many(size.less_than(&Vector::new(0x400u32)), Vector::<u32, N>::reinterpret(small), large);
    Vector::<f32, N>::reinterpret(out | sign)
}

/// The bits of half `at` of words.
#[cube]
fn half_at(words: &[u32], at: usize) -> u32 {
    (words[at / 2] >> ((at as u32 & 1u32) * 16u32)) & 0xffffu32
}

/// Bits of halves that lie two to a word. Of neighbours each word is loaded once.
#[cube]
pub(crate) fn fetch_halves<N: Size>(words: &[u32], at: usize, stride: usize, #[comptime] lane: Lane) -> Vector<u32, N> {
    let lanes = N::value();
    let mut out = Vector::<u32, N>::empty();
    if comptime![lane == Lane::Zero || lanes == 1] {
        out = Vector::new(half_at(words, at));
    } else if comptime![lane == Lane::One && lanes % 2 == 0] {
        let first = at / 2;
        let last = (at + comptime![lanes - 1]) / 2;
        let odd = (at as u32 & 1u32) == 1u32;
        let mut word = words[first];
        #[unroll]
        for j in 0..comptime![lanes / 2] {
            let next = words[min(first + comptime![j + 1], last)];
            let (low, high) = (word & 0xffffu32, word >> 16u32);
            out.insert(comptime![2 * j], select(odd, high, low));
            out.insert(comptime![2 * j + 1], select(odd, next & 0xffffu32, high));
            word = next;
        }
    } else {
        #[unroll]
        for i in 0..lanes {
            out.insert(i, half_at(words, at + i * stride));
        }
    }
    out
}
