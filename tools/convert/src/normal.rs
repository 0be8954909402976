//! The normal numbers of numpy's `Generator(PCG64(0)).standard_normal`: whoever checks the model in Python can draw the same.

/// Where the outermost strip of the ziggurat begins.
const RIGHT: f64 = 3.654_152_885_361_009;
/// The area of each strip.
const AREA: f64 = 0.004_928_673_233_974_655;
/// 2^52: a draw keeps that many bits.
const BITS: f64 = 4_503_599_627_370_496.0;

/// PCG XSL-RR 128/64 (O'Neill 2014), in the state that numpy's `SeedSequence(0)` yields.
struct Pcg64 {
    state: u128,
    increment: u128,
}

impl Pcg64 {
    fn seed_0() -> Pcg64 {
        Pcg64 {
            state: 35_399_562_948_360_463_058_890_781_895_381_311_971,
            increment: 87_136_372_517_582_989_555_478_159_403_783_844_777,
        }
    }

    fn next(&mut self) -> u64 {
        const STEP: u128 = 0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645;
        self.state = self.state.wrapping_mul(STEP).wrapping_add(self.increment);
        ((self.state >> 64) as u64 ^ self.state as u64).rotate_right((self.state >> 122) as u32)
    }

    /// In [0, 1).
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (2.0 * BITS)
    }
}

/// Standard normal numbers by the ziggurat of Marsaglia and Tsang (2000), 256 strips.
pub struct Normal {
    bits: Pcg64,
    /// Draws below this lie inside the strip wholly.
    inside: [u64; 256],
    /// Width of a strip, a draw's bit.
    width: [f64; 256],
    /// The density at a strip's edge.
    height: [f64; 256],
}

impl Normal {
    /// From the start.
    pub fn seed_0() -> Normal {
        let mut n = Normal { bits: Pcg64::seed_0(), inside: [0; 256], width: [0.0; 256], height: [1.0; 256] };
        let mut edge = RIGHT;
        let last = (-0.5 * edge * edge).exp();
        (n.width[255], n.height[255]) = (edge / BITS, last);
        // Strip 0 is the tail and the box before it.
        (n.inside[0], n.width[0]) = ((edge * last / AREA * BITS) as u64, AREA / last / BITS);
        for i in (1..255).rev() {
            let next = (-2.0 * (AREA / edge + n.height[i + 1]).ln()).sqrt();
            n.inside[i + 1] = (next / edge * BITS) as u64;
            (n.width[i], n.height[i]) = (next / BITS, (-0.5 * next * next).exp());
            edge = next;
        }
        n
    }

    /// The next number.
    pub fn next(&mut self) -> f64 {
        loop {
            let r = self.bits.next();
            let (strip, draw) = ((r & 255) as usize, (r >> 9) & ((1 << 52) - 1));
            let x = draw as f64 * self.width[strip];
            let x = if r >> 8 & 1 == 1 { -x } else { x };
            if draw < self.inside[strip] {
                return x;
            }
            if strip == 0 {
                let tail = self.tail();
                return if draw >> 8 & 1 == 1 { -tail } else { tail };
            }
            let (low, high) = (self.height[strip], self.height[strip - 1]);
            if (high - low) * self.bits.uniform() + low < (-0.5 * x * x).exp() {
                return x;
            }
        }
    }

    /// Beyond the outermost strip.
    fn tail(&mut self) -> f64 {
        loop {
            let x = -(-self.bits.uniform()).ln_1p() / RIGHT;
            let y = -(-self.bits.uniform()).ln_1p();
            if y + y > x * x {
                return RIGHT + x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `numpy.random.Generator(numpy.random.PCG64(0)).standard_normal(1_000_000)` of numpy 2.4: 266 of them come from the tail.
    #[test]
    fn they_are_those_of_numpy() {
        let mut normal = Normal::seed_0();
        let x: Vec<f64> = (0..1_000_000).map(|_| normal.next()).collect();
        let near = |i: usize, want: f64| assert!((x[i] - want).abs() < 1e-14, "{i}: {} {want}", x[i]);
        near(0, 0.1257302210933933);
        near(1, -0.1321048632913019);
        near(2, 0.6404226504432821);
        near(36_758, x[36_758].signum() * 4.731957688635529);
        near(999_999, 0.22864219959011586);
        assert_eq!(x.iter().filter(|x| x.abs() > RIGHT).count(), 266);
    }
}
