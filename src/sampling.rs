//! From logits to the next id.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// How ids are drawn. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 always takes the likeliest.
    pub temperature: f32,
    /// Draws among that many of the likeliest, and those as likely as the last of them; 0 for all.
    pub top_k: usize,
    /// Draws among the likeliest that hold that probability together, and those as likely as the last of them; 1 for all.
    pub top_p: f32,
    /// Draws among those with at least that share of the likeliest one's probability.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of ids that occurred; 1 for none.
    /// Source: Keskar et al. 2019, arXiv:1909.05858.
    pub repetition_penalty: f32,
    /// The same seed draws the same ids.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Checks that every number makes sense.
    ///
    /// Errors: a message that names the number, its value and its range.
    pub fn check(&self) -> Result<(), String> {
        let bad = |name: &str, value: f32, range: &str| Err(format!("{name} is {value}; it must be {range}"));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return bad("temperature", self.temperature, "0 or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", self.top_p, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return bad("min_p", self.min_p, "from 0 to 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return bad("repetition_penalty", self.repetition_penalty, "above 0");
        }
        Ok(())
    }
}

/// Draws ids, one after another.
pub struct Sampler {
    how: Sampling,
    rng: StdRng,
}

impl Sampler {
    /// A sampler at the start of its sequence.
    pub fn new(how: Sampling) -> Sampler {
        Sampler { rng: StdRng::seed_from_u64(how.seed), how }
    }

    /// Whether the next id is always the one with the largest logit, the first of equals.
    pub fn greedy(&self) -> bool {
        self.how.temperature == 0.0 && self.how.repetition_penalty == 1.0
    }

    /// How ids are drawn.
    pub fn how(&self) -> &Sampling {
        &self.how
    }

    /// The chance of the next draw, in [0, 1): 24 bits, which an f32 holds.
    pub fn chance(&mut self) -> f32 {
        self.rng.random()
    }

    /// The next id.
    ///
    /// Shapes: `logits` [V]; `seen` are ids that occurred, in any order.
    pub fn pick(&mut self, logits: &[f32], seen: &[u32]) -> u32 {
        let mut logits = logits.to_vec();
        self.penalise(&mut logits, seen);
        if self.how.temperature == 0.0 {
            return largest(&logits);
        }
        let kept = self.kept(&logits);
        let total: f64 = kept.iter().map(|(_, p)| p).sum();
        let mut left = f64::from(self.chance()) * total;
        for (id, p) in &kept {
            left -= p;
            if left < 0.0 {
                return *id;
            }
        }
        kept.last().map_or(0, |(id, _)| *id)
    }

    fn penalise(&self, logits: &mut [f32], seen: &[u32]) {
        let by = self.how.repetition_penalty;
        if by == 1.0 {
            return;
        }
        let mut ids = seen.to_vec();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            if let Some(l) = logits.get_mut(id as usize) {
                *l = if *l > 0.0 { *l / by } else { *l * by };
            }
        }
    }

    /// Ids that may be drawn, with their weights, in the order of ids: top-k, then min-p, then top-p; with the last that a
    /// filter keeps, all that are as likely. It is what `@draw` of the library keeps.
    ///
    /// Only ids that top-p may keep are sorted: those that each hold less than an even share of what it leaves out hold less
    /// than that together.
    fn kept(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let top = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
        let (heat, min_p, top_p) = (self.how.temperature, self.how.min_p, self.how.top_p);
        let [heat, min_p, top_p] = [heat, min_p, top_p].map(f64::from);
        let mut all: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(i, l)| (i as u32, ((f64::from(*l) - top) / heat).exp())).collect();
        if (1..all.len()).contains(&self.how.top_k) {
            let mut order: Vec<f64> = all.iter().map(|(_, p)| *p).collect();
            let bar = *order.select_nth_unstable_by(self.how.top_k - 1, |a, b| b.total_cmp(a)).1;
            all.retain(|(_, p)| *p >= bar);
        }
        all.retain(|(_, p)| *p >= min_p);
        if top_p < 1.0 {
            let total: f64 = all.iter().map(|(_, p)| p).sum();
            let share = (1.0 - top_p) * total / all.len() as f64;
            let mut likely: Vec<f64> = all.iter().map(|(_, p)| *p).filter(|p| *p >= share).collect();
            likely.sort_unstable_by(|a, b| b.total_cmp(a));
            let mut sum = 0.0;
            let enough = likely.iter().position(|p| {
                sum += p;
                sum >= top_p * total
            });
            let bar = enough.map_or(share, |last| likely[last]);
            all.retain(|(_, p)| *p >= bar);
        }
        all
    }
}

/// The first largest.
fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, l) in logits.iter().enumerate() {
        if *l > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 3.0, 1.0, 2.0, -1.0];

    fn counts(how: Sampling) -> [usize; 5] {
        let mut s = Sampler::new(how);
        let mut n = [0; 5];
        for _ in 0..20_000 {
            n[s.pick(&LOGITS, &[]) as usize] += 1;
        }
        n
    }

    #[test]
    fn greedy_takes_the_first_largest() {
        assert_eq!(Sampler::new(Sampling::default()).pick(&[1.0, 5.0, 5.0], &[]), 1);
    }

    #[test]
    fn a_penalty_moves_the_choice() {
        let how = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(Sampler::new(how).pick(&LOGITS, &[1, 1]), 3);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let n = counts(Sampling { temperature: 1.0, ..Sampling::default() });
        let total: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        for (count, l) in n.iter().zip(LOGITS) {
            let p = f64::from(l).exp() / total;
            assert!((*count as f64 / 20_000.0 - p).abs() < 0.012, "{count} for {p}");
        }
    }

    #[test]
    fn filters_leave_out_the_tail() {
        let warm = Sampling { temperature: 1.0, ..Sampling::default() };
        let k = counts(Sampling { top_k: 2, ..warm.clone() });
        assert!(k[1] > 0 && k[3] > 0 && k[0] + k[2] + k[4] == 0);
        let p = counts(Sampling { top_p: 0.6, ..warm.clone() });
        assert_eq!(p[1], 20_000);
        let m = counts(Sampling { min_p: 0.2, ..warm });
        assert!(m[3] > 0 && m[0] + m[2] + m[4] == 0);
    }

    /// Against the plain way, which sorts everything; ties, and tails of every length.
    #[test]
    fn what_is_kept_is_what_sorting_keeps() {
        let mut rng = StdRng::seed_from_u64(5);
        for case in 0..300 {
            let (n, spread) = (1 + rng.random_range(0..2000), 10f32.powf(rng.random_range(-1.0..1.0)));
            let logits: Vec<f32> = (0..n).map(|_| (rng.random::<f32>() * 40.0).round() / 8.0 * spread).collect();
            let how = Sampling {
                temperature: 0.7,
                top_k: [0, 1, 50, 3000][case % 4],
                top_p: [0.05, 0.8, 0.999, 1.0][case / 4 % 4],
                min_p: [0.0, 0.01][case % 2],
                ..Sampling::default()
            };
            let kept: Vec<u32> = Sampler::new(how.clone()).kept(&logits).iter().map(|(id, _)| *id).collect();
            let top = logits.iter().copied().fold(f32::MIN, f32::max);
            let weigh = |l: &f32| ((f64::from(*l) - f64::from(top)) / f64::from(how.temperature)).exp();
            let mut all: Vec<(u32, f64)> = (0..).zip(logits.iter().map(weigh)).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let of = |all: &[(u32, f64)], kept: usize| all.get(kept.max(1) - 1).or(all.last()).map_or(0.0, |(_, p)| *p);
            let bar = of(&all, if how.top_k == 0 { n } else { how.top_k });
            all.retain(|(_, p)| *p >= bar && *p >= f64::from(how.min_p));
            let total: f64 = all.iter().map(|(_, p)| p).sum();
            let enough = if how.top_p == 1.0 { f64::INFINITY } else { f64::from(how.top_p) * total };
            let mut sum = 0.0;
            let within = all.iter().take_while(|(_, p)| {
                let below = sum < enough;
                sum += p;
                below
            });
            let bar = of(&all, within.count());
            let mut want: Vec<u32> = all.iter().filter(|(_, p)| *p >= bar).map(|(id, _)| *id).collect();
            want.sort_unstable();
            assert_eq!(kept, want, "{how:?}, {n} ids");
        }
    }

    #[test]
    fn a_seed_repeats() {
        let draw = |seed| {
            let mut s = Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::default() });
            (0..32).map(|_| s.pick(&LOGITS, &[])).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }
}
