//! Vectors from scalar buffers: loads and stores that widen and round on the way.
//!
//! Buffers are bound as scalars, so that any offset will do. On the CPU, where addresses are 64-bit, LLVM
//! merges the lane-by-lane loads below into one vector load (measured: as fast as an aligned one); bf16 is
//! widened by a shift and rounded with integers, because no target is sure to have its conversions. Where there is
//! no u16, halves come two to a word and are widened from there.

use cubecl::prelude::*;
use half::f16;

use crate::bind::{Buffers, Slot, Storage};
use crate::packed::{fetch_halves, widen_f16};

/// How a view steps from lane to lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Every lane is the same element.
    Zero,
    /// Lanes are neighbours.
    One,
    /// Lanes are neighbours, and each vector is one of those that the memory can be taken as (CUDA).
    Whole,
    /// Lanes are a run-time stride apart.
    Any,
}

impl Lane {
    pub(crate) fn of(stride: usize) -> Lane {
        match stride {
            0 => Lane::Zero,
            1 => Lane::One,
            _ => Lane::Any,
        }
    }
}

/// `N` neighbours from `at` on.
#[cube]
pub(crate) fn load<E: Scalar, N: Size>(from: &[E], at: usize) -> Vector<E, N> {
    let mut out = Vector::<E, N>::empty();
    #[unroll]
    for i in 0..N::value() {
        out.insert(i, from[at + i]);
    }
    out
}

/// Writes `N` neighbours from `at` on.
#[cube]
pub(crate) fn store<E: Scalar, N: Size>(to: &mut [E], at: usize, value: Vector<E, N>) {
    #[unroll]
    for i in 0..N::value() {
        to[at + i] = value.extract(i);
    }
}

#[cube]
fn fetch<E: Scalar, N: Size>(from: &[E], at: usize, stride: usize, #[comptime] lane: Lane) -> Vector<E, N> {
    let mut out = Vector::<E, N>::empty();
    if comptime![lane == Lane::Zero] {
        out = Vector::new(from[at]);
    } else if comptime![lane == Lane::One || lane == Lane::Whole] {
        out = load::<E, N>(from, at);
    } else {
        #[unroll]
        for i in 0..N::value() {
            out.insert(i, from[at + i * stride]);
        }
    }
    out
}

#[cube]
fn put<E: Scalar, N: Size>(to: &mut [E], at: usize, stride: usize, value: Vector<E, N>, #[comptime] lane: Lane) {
    let lanes = N::value();
    if comptime![lane == Lane::Whole && lanes > 1] {
        to.as_vectorized_mut().with_vector_size_mut::<N>()[at / lanes] = value;
    } else if comptime![lane == Lane::One || lane == Lane::Whole] {
        store::<E, N>(to, at, value);
    } else {
        #[unroll]
        for i in 0..N::value() {
            to[at + i * stride] = value.extract(i);
        }
    }
}

/// The float of bf16 bits.
#[cube]
pub(crate) fn widen<N: Size>(bits: Vector<u16, N>) -> Vector<f32, N> {
    Vector::<f32, N>::reinterpret(Vector::<u32, N>::cast_from(bits) << Vector::new(16u32))
}

/// A float rounded to bf16, to nearest even, as the upper half of its bits; a NaN stays one.
#[cube]
fn bf16_bits<N: Size>(x: Vector<f32, N>) -> Vector<u32, N> {
    let bits = Vector::<u32, N>::reinterpret(x);
    let odd = (bits >> Vector::new(16u32)) & Vector::new(1u32);
    let near = bits + Vector::new(0x7fffu32) + odd;
    select_many(x.equal(&x), near, bits | Vector::new(0x40_0000u32)) >> Vector::new(16u32)
}

/// A float rounded to bf16 and widened again.
#[cube]
pub(crate) fn round_bf16<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::<f32, N>::reinterpret(bf16_bits::<N>(x) << Vector::new(16u32))
}

/// A float rounded to f16 and widened again, without an f16 type: 10 bits of fraction, steps of 2^-24 below
/// 2^-14, infinity from 65520 on.
#[cube]
pub(crate) fn round_f16<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let bits = Vector::<u32, N>::reinterpret(x);
    let sign = bits & Vector::new(0x8000_0000u32);
    let size = Vector::<f32, N>::reinterpret(bits ^ sign);
    let half = Vector::<f32, N>::new(0.5f32);
    let small = Vector::<u32, N>::reinterpret((size + half) - half);
    let odd = ((bits ^ sign) >> Vector::new(13u32)) & Vector::new(1u32);
    let near = ((bits ^ sign) + Vector::new(0x0fffu32) + odd) & Vector::new(0xffff_e000u32);
    let huge = select_many(size.greater_equal(&Vector::new(65520.0f32)), Vector::new(0x7f80_0000u32), near);
    let out = select_many(size.less_than(&Vector::new(6.103_515_6e-5f32)), small, huge);
    select_many(x.equal(&x), Vector::<f32, N>::reinterpret(out | sign), x)
}

/// Lanes of a float buffer, widened to f32.
#[allow(unused_assignments)]
#[cube]
pub(crate) fn read_float<N: Size>(
    b: &Buffers,
    at: usize,
    stride: usize,
    #[comptime] slot: Slot,
    #[comptime] lane: Lane,
) -> Vector<f32, N> {
    let mut out = Vector::<f32, N>::empty();
    let lanes = N::value();
    if comptime![lane == Lane::Whole && lanes > 1] {
        out = read_whole::<N>(b, at, slot);
    } else if comptime![slot.storage == Storage::F32] {
        out = fetch::<f32, N>(b.f32s.index(slot.index), at, stride, lane);
    } else if comptime![slot.storage == Storage::Bf16 && slot.index < b.bf16_words.len()] {
        let bits = fetch_halves::<N>(b.bf16_words.index(slot.index), at, stride, lane);
        out = Vector::<f32, N>::reinterpret(bits << Vector::new(16u32));
    } else if comptime![slot.storage == Storage::F16 && slot.index < b.f16_words.len()] {
        out = widen_f16::<N>(fetch_halves::<N>(b.f16_words.index(slot.index), at, stride, lane));
    } else if comptime![slot.storage == Storage::Bf16] {
        out = widen::<N>(fetch::<u16, N>(b.bf16s.index(slot.index), at, stride, lane));
    } else {
        out = Vector::cast_from(fetch::<f16, N>(b.f16s.index(slot.index), at, stride, lane));
    }
    out
}

/// Neighbours of a float buffer from `at` on, a multiple of `N`, by one load, widened to f32. Only where memory can be
/// taken as vectors (CUDA).
#[allow(unused_assignments)]
#[cube]
pub(crate) fn read_whole<N: Size>(b: &Buffers, at: usize, #[comptime] slot: Slot) -> Vector<f32, N> {
    let mut out = Vector::<f32, N>::empty();
    let from = at / N::value();
    if comptime![slot.storage == Storage::F32] {
        out = b.f32s.index(slot.index).as_vectorized().with_vector_size::<N>()[from];
    } else if comptime![slot.storage == Storage::Bf16] {
        out = widen::<N>(b.bf16s.index(slot.index).as_vectorized().with_vector_size::<N>()[from]);
    } else {
        out = Vector::cast_from(b.f16s.index(slot.index).as_vectorized().with_vector_size::<N>()[from]);
    }
    out
}

/// Lanes of an integer buffer.
#[cube]
pub(crate) fn read_int<N: Size>(
    b: &Buffers,
    at: usize,
    stride: usize,
    #[comptime] slot: Slot,
    #[comptime] lane: Lane,
) -> Vector<i32, N> {
    fetch::<i32, N>(b.i32s.index(slot.index), at, stride, lane)
}

/// Lanes of any buffer as `T`, which is f32 for floats and i32 for integers.
#[allow(unused_assignments)]
#[cube]
pub(crate) fn read<T: Numeric, N: Size>(
    b: &Buffers,
    at: usize,
    stride: usize,
    #[comptime] slot: Slot,
    #[comptime] lane: Lane,
) -> Vector<T, N> {
    let mut out = Vector::<T, N>::empty();
    if comptime![slot.storage == Storage::I32] {
        out = Vector::cast_from(read_int::<N>(b, at, stride, slot, lane));
    } else {
        out = Vector::cast_from(read_float::<N>(b, at, stride, slot, lane));
    }
    out
}

/// Writes lanes to a float buffer, rounded to what it stores.
#[cube]
pub(crate) fn write_float<N: Size>(
    b: &mut Buffers,
    at: usize,
    stride: usize,
    value: Vector<f32, N>,
    #[comptime] slot: Slot,
    #[comptime] lane: Lane,
) {
    if comptime![slot.storage == Storage::F32] {
        put::<f32, N>(b.f32s.index_mut(slot.index), at, stride, value, lane);
    } else if comptime![slot.storage == Storage::Bf16] {
        put::<u16, N>(b.bf16s.index_mut(slot.index), at, stride, Vector::cast_from(bf16_bits::<N>(value)), lane);
    } else if comptime![slot.storage == Storage::F16] {
        put::<f16, N>(b.f16s.index_mut(slot.index), at, stride, Vector::cast_from(value), lane);
    }
}

/// Writes lanes to an integer buffer.
#[cube]
pub(crate) fn write_int<N: Size>(
    b: &mut Buffers,
    at: usize,
    stride: usize,
    value: Vector<i32, N>,
    #[comptime] slot: Slot,
    #[comptime] lane: Lane,
) {
    put::<i32, N>(b.i32s.index_mut(slot.index), at, stride, value, lane);
}

#[cube]
fn halve<A: Size, B: Size>(v: Vector<f32, A>, #[comptime] largest: bool) -> Vector<f32, B> {
    let half = B::value();
    let mut low = Vector::<f32, B>::empty();
    let mut high = Vector::<f32, B>::empty();
    #[unroll]
    for i in 0..half {
        low.insert(i, v.extract(i));
        high.insert(i, v.extract(comptime![i + half]));
    }
    if largest { max(low, high) } else { low + high }
}

/// The sum (or the largest) of the lanes, as a tree: LLVM's own is a chain, three times as slow.
#[cube]
pub(crate) fn across<N: Size>(v: Vector<f32, N>, #[comptime] largest: bool) -> f32 {
    let lanes = N::value();
    let mut out = v.extract(0usize);
    if comptime![lanes == 16] {
        let a = halve::<N, Const<8>>(v, largest);
        let b = halve::<Const<8>, Const<4>>(a, largest);
        let c = halve::<Const<4>, Const<2>>(b, largest);
        out = halve::<Const<2>, Const<1>>(c, largest).extract(0usize);
    } else if comptime![lanes == 8] {
        let b = halve::<N, Const<4>>(v, largest);
        let c = halve::<Const<4>, Const<2>>(b, largest);
        out = halve::<Const<2>, Const<1>>(c, largest).extract(0usize);
    } else if comptime![lanes == 4] {
        let c = halve::<N, Const<2>>(v, largest);
        out = halve::<Const<2>, Const<1>>(c, largest).extract(0usize);
    } else {
        #[unroll]
        for i in 1..lanes {
            if largest {
                out = max(out, v.extract(i));
            } else {
                out += v.extract(i);
            }
        }
    }
    out
}
