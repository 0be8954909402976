//! A program whose exchanges run beside its launches, for every way that carries them.

/// What is sent on before it was used, written over, and used late.
pub const BESIDE: &str = "func @f(%x: f32[33], %w: f32[33]) -> (f32[33], f32[33], f32[33]) {
    %a = collective_permute %x shift=1
    %u = mul %x, %w
    %s = reduce.sum %u \"n ->\"
    %b = collective_permute %a shift=1
    %v = mul %a, %s \"n, -> n\"
    %c = collective_permute %v shift=-1
    %t = all_reduce.sum %v
    %d = collective_permute %b shift=1
    %e = add %d, %t
    %r = add %c, %u
    return %e, %r, %b
}";
