//! The angles of rotary position embedding.

/// Cosines and sines of every position's angles.
///
/// Angles are computed in f64: a product of a large position and a frequency in f32 is off by 2e-2 at half a
/// million positions, which breaks the invariance under shifts.
///
/// Shapes: both tables are [positions, head_dim / 2], row-major; column j turns the pair (j, j + head_dim / 2).
/// Units: positions count tokens from 0 inside their document; angles are radians.
/// Source: Su et al. 2021, RoFormer; frequency j is theta^(-2j / head_dim).
pub fn rope_table(positions: &[u32], head_dim: usize, theta: f64) -> (Vec<f32>, Vec<f32>) {
    let half = head_dim / 2;
    let frequency = |j: usize| theta.powf(-2.0 * j as f64 / head_dim as f64);
    let frequencies: Vec<f64> = (0..half).map(frequency).collect();
    let angles = positions.iter().flat_map(|p| frequencies.iter().map(move |f| f64::from(*p) * f));
    angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_the_first_rows() {
        let (cos, sin) = rope_table(&[0, 1, 2], 4, 100.0);
        assert_eq!((cos.len(), sin.len()), (6, 6));
        assert_eq!((&cos[..2], &sin[..2]), (&[1.0, 1.0][..], &[0.0, 0.0][..]));
        assert_eq!(cos[2], 1f64.cos() as f32);
        assert_eq!(sin[5], 0.2f64.sin() as f32);
    }

    /// Figures by 60-digit arithmetic for theta 5e7, head size 128, position 524287.
    #[test]
    fn half_a_million_positions_lose_nothing() {
        let (cos, sin) = rope_table(&[524_287], 128, 5e7);
        for (j, want_cos, want_sin) in FAR {
            assert!((f64::from(cos[j]) - want_cos).abs() < 1e-7, "cos {j}: {} {want_cos}", cos[j]);
            assert!((f64::from(sin[j]) - want_sin).abs() < 1e-7, "sin {j}: {} {want_sin}", sin[j]);
        }
    }

    const FAR: [(usize, f64, f64); 4] = [
        (0, 0.673703823789294, -0.739001459952336),
        (1, -0.296584810207015, -0.955006518487947),
        (33, 0.942078950359048, -0.335391191432324),
        (63, 0.999904334782722, 0.01383189367808),
    ];
}
