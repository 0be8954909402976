//! The `gemm` crate: rows of one matrix against rows of another, f32.

use crate::Fault;
use crate::case::Case;
use crate::sample::{Work, copies};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::time::Instant;

/// `a b -> a bᵀ`, `a` of m × k, `b` of n × k, both by rows.
pub struct Gemm {
    m: usize,
    n: usize,
    k: usize,
    operands: Vec<(Vec<f32>, Vec<f32>, Vec<f32>)>,
    next: usize,
}

/// Numbers between −1 and 1.
pub fn random(count: usize, rng: &mut StdRng) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

impl Gemm {
    /// Operands of the case, in copies.
    ///
    /// Errors: a dtype that the crate does not multiply here.
    pub fn new(case: &Case, cache_bytes: usize) -> Result<Gemm, Fault> {
        if case.dtype != "f32" {
            return Err(format!("the gemm crate is asked for f32 alone, not {}", case.dtype).into());
        }
        let (m, n, k) = (case.m, case.n, case.k);
        let mut rng = StdRng::seed_from_u64(1);
        let copies = copies((m * k + n * k + m * n) * 4, cache_bytes);
        let operands =
            (0..copies).map(|_| (random(m * k, &mut rng), random(n * k, &mut rng), vec![0.0; m * n])).collect();
        Ok(Gemm { m, n, k, operands, next: 0 })
    }
}

impl Work for Gemm {
    fn seconds(&mut self, runs: usize) -> Result<f64, Fault> {
        let (m, n, k) = (self.m, self.n, self.k);
        let start = Instant::now();
        for _ in 0..runs {
            self.next = (self.next + 1) % self.operands.len();
            let (a, b, out) = &mut self.operands[self.next];
            // SAFETY: the strides below stay inside the three vectors, which `new` made of m k, n k and m n elements.
            unsafe {
                gemm::gemm(
                    m,
                    n,
                    k,
                    out.as_mut_ptr(),
                    1,
                    n as isize,
                    false,
                    a.as_ptr(),
                    1,
                    k as isize,
                    b.as_ptr(),
                    k as isize,
                    1,
                    0.0f32,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::Rayon(0),
                );
            }
        }
        Ok(start.elapsed().as_secs_f64() / runs as f64)
    }
}
