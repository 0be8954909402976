//! Drawn operands: random numbers of which none is zero, the same from run to run.

use omchat_ir::{Dtype, Type};
use omchat_model::rope::rope_table;
use omchat_runtime::HostTensor;

/// Numbers that are drawn; a tensor repeats them. A prime, so that no row of a usual width meets the same numbers.
const DRAWN: usize = 65_521;

/// How an operand is drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Draw {
    /// Floats from the first to the second; integers from the first up to the second.
    Range(f64, f64),
    /// One number, everywhere.
    Is(f64),
    /// These integers, row-major.
    Ints(Vec<i32>),
    /// Cosines of RoPE for tokens from 0 on.
    Cos,
    /// Sines of RoPE.
    Sin,
}

/// A tensor of a type drawn that way; `seed` tells operands apart.
pub fn drawn(ty: &Type, draw: &Draw, seed: u64) -> HostTensor {
    match draw {
        Draw::Ints(x) => HostTensor::i32(ty.shape.clone(), x),
        Draw::Cos | Draw::Sin => {
            let (tokens, pairs) = (ty.shape.first().copied().unwrap_or(1), ty.shape.last().copied().unwrap_or(1));
            let positions: Vec<u32> = (0..tokens as u32).collect();
            let (cos, sin) = rope_table(&positions, 2 * pairs, 1e5);
            HostTensor::f32(ty.shape.clone(), if *draw == Draw::Cos { &cos } else { &sin })
        }
        Draw::Is(x) => repeated(ty, &[*x]),
        Draw::Range(low, high) => {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let count = DRAWN.min(ty.elements().max(1));
            let x: Vec<f64> = (0..count).map(|_| low + (high - low) * unit(&mut state)).collect();
            repeated(ty, &x)
        }
    }
}

/// A number between 0 and 1, neither of them.
fn unit(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (((z ^ (z >> 31)) >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

/// Those numbers again and again.
fn repeated(ty: &Type, x: &[f64]) -> HostTensor {
    let floats: Vec<f32> = x.iter().map(|x| if ty.dtype.is_float() { *x as f32 } else { x.floor() as f32 }).collect();
    let once = if ty.dtype == Dtype::I32 || ty.dtype == Dtype::Bool {
        HostTensor::i32([floats.len()], &floats.iter().map(|x| *x as i32).collect::<Vec<_>>())
    } else {
        HostTensor::floats(ty.dtype, [floats.len()], &floats)
    };
    let mut bytes = Vec::with_capacity(ty.bytes());
    while bytes.len() < ty.bytes() {
        let left = (ty.bytes() - bytes.len()).min(once.bytes.len());
        bytes.extend_from_slice(&once.bytes[..left]);
    }
    HostTensor { ty: ty.clone(), bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_drawn_is_zero_and_seeds_differ() {
        let ty = Type::new(Dtype::F32, [3, 40_000]);
        let (a, b) = (drawn(&ty, &Draw::Range(-1.0, 1.0), 1), drawn(&ty, &Draw::Range(-1.0, 1.0), 2));
        assert!(a.to_f32().iter().all(|x| *x != 0.0 && x.abs() <= 1.0) && a.bytes.len() == ty.bytes() && a != b);
        let mean = a.to_f32().iter().sum::<f32>() / 120_000.0;
        assert!(mean.abs() < 0.02, "{mean}");
        let ids = drawn(&Type::new(Dtype::I32, [1000]), &Draw::Range(0.0, 7.0), 3).to_i32();
        assert!(ids.iter().all(|x| (0..7).contains(x)) && (0..7).all(|x| ids.contains(&x)));
    }
}
