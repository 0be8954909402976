//! Folds of what ranks sent, in the order of the ranks: a run repeats bit for bit.

use half::{bf16, f16};
use omchat_ir::Dtype;
use omchat_ir::ops::FoldKind;

/// The fold of equal buffers, element by element: floats in f32, rounded once; whole numbers wrap, as kernels do.
pub(super) fn fold(kind: FoldKind, dtype: Dtype, parts: &[Vec<u8>]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => floats(kind, parts, f32::from_le_bytes, f32::to_le_bytes),
        Dtype::Bf16 => floats(kind, parts, |b| bf16::from_le_bytes(b).to_f32(), |x| bf16::from_f32(x).to_le_bytes()),
        Dtype::F16 => floats(kind, parts, |b| f16::from_le_bytes(b).to_f32(), |x| f16::from_f32(x).to_le_bytes()),
        Dtype::I32 | Dtype::Bool => {
            let join = |a: i32, b: i32| if kind == FoldKind::Sum { a.wrapping_add(b) } else { a.max(b) };
            each::<i32, 4>(parts, join, i32::from_le_bytes, i32::to_le_bytes)
        }
    }
}

fn floats<const N: usize>(
    kind: FoldKind,
    parts: &[Vec<u8>],
    read: impl Fn([u8; N]) -> f32,
    write: impl Fn(f32) -> [u8; N],
) -> Vec<u8> {
    each::<f32, N>(parts, |a, b| if kind == FoldKind::Sum { a + b } else { a.max(b) }, read, write)
}

fn each<T: Copy, const N: usize>(
    parts: &[Vec<u8>],
    join: impl Fn(T, T) -> T,
    read: impl Fn([u8; N]) -> T,
    write: impl Fn(T) -> [u8; N],
) -> Vec<u8> {
    let Some((first, rest)) = parts.split_first() else { return vec![] };
    let numbers = |bytes: &[u8]| bytes.as_chunks::<N>().0.iter().map(|b| read(*b)).collect::<Vec<T>>();
    let mut sum = numbers(first);
    for part in rest {
        sum.iter_mut().zip(part.as_chunks::<N>().0).for_each(|(a, b)| *a = join(*a, read(*b)));
    }
    sum.into_iter().flat_map(write).collect()
}
