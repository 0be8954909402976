//! The numbers of AdamW.

use crate::Error;

/// The numbers of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of the vision tower, the projector and the decoder.
    pub lr: [f32; 3],
    /// Decay of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub decay: f32,
    /// The largest norm of all gradients together; larger ones are scaled to it.
    pub clip: f32,
}

impl Default for AdamW {
    fn default() -> AdamW {
        AdamW { lr: [2e-5; 3], betas: (0.9, 0.999), eps: 1e-8, decay: 0.0, clip: f32::MAX }
    }
}

impl AdamW {
    /// Whether every number makes sense.
    ///
    /// Errors: the first that does not, with its range.
    pub fn check(&self) -> Result<(), Error> {
        let bad =
            |what: &str, value: f64, range: &str| Err(Error::Input(format!("{what} is {value}, it must be {range}")));
        for lr in self.lr {
            if !(lr.is_finite() && lr >= 0.0) {
                return bad("a learning rate", f64::from(lr), "0 or more");
            }
        }
        for beta in [self.betas.0, self.betas.1] {
            if !(0.0..1.0).contains(&beta) {
                return bad("a beta", beta, "at least 0 and below 1");
            }
        }
        if !(self.eps.is_finite() && self.eps > 0.0) {
            return bad("eps", f64::from(self.eps), "above 0");
        }
        if !(self.decay.is_finite() && self.decay >= 0.0) {
            return bad("the decay", f64::from(self.decay), "0 or more");
        }
        if !(self.clip.is_finite() && self.clip > 0.0) {
            return bad("the clipping norm", f64::from(self.clip), "above 0");
        }
        Ok(())
    }
}
