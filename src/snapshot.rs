//! What training holds between steps, on the host; and what a device starts from.

use crate::ranks::shard;
use crate::{Error, Model};
use omchat_ir::{Dtype, Role};
use omchat_model::checkpoint::lost;
use omchat_model::graph::Part;
use omchat_runtime::{HostTensor, Param};
use std::collections::BTreeMap;

/// What training holds between steps, on the host, by released names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Each tensor that was trained so far, in f32, row-major as it is stored. Others are the model's own.
    pub weights: BTreeMap<String, Vec<f32>>,
    /// The first and second moment of each tensor in training.
    pub moments: BTreeMap<String, [Vec<f32>; 2]>,
    /// Steps that the moments of each part in training have seen; a part that is not there begins.
    pub steps: BTreeMap<Part, u64>,
}

/// Where the numbers of a training program come from.
pub(crate) struct Origin<'a> {
    pub model: &'a Model,
    /// In place of the model's own, where it holds them.
    pub from: &'a Snapshot,
    /// The element type of what is frozen.
    pub dtype: Dtype,
    /// What is trained, and kept in f32.
    pub trained: &'a [Part],
    /// This rank, of how many: each holds its part of the states.
    pub rank: (usize, usize),
}

impl Origin<'_> {
    /// What a weight or a state is before the first step.
    ///
    /// Errors: a number that is not finite; a snapshot of another model.
    pub fn of(&self, p: &Param) -> Result<HostTensor, Error> {
        let zeros = || Ok(HostTensor::zeros(p.ty.clone()));
        let moments = [p.name.strip_prefix("adam.m."), p.name.strip_prefix("adam.v.")];
        for (i, name) in moments.into_iter().enumerate() {
            let Some(name) = name else { continue };
            return self.from.moments.get(name).map_or_else(zeros, |pair| self.own(p, p.ty.dtype, &pair[i]));
        }
        if p.name.starts_with("grad.") {
            return zeros();
        }
        let dtype = if self.keeps(p) { p.ty.dtype } else { self.dtype };
        if let Some(given) = self.from.weights.get(&p.name) {
            return self.own(p, dtype, given);
        }
        let data = self.model.checkpoint.tensor_f32(&p.name)?;
        if lost(&data, dtype).is_some() {
            self.model.checkpoint.check_finite(&p.name, dtype)?;
        }
        self.own(p, dtype, &data)
    }

    /// Whether it is trained: in f32, and of several ranks each has its part.
    fn keeps(&self, p: &Param) -> bool {
        p.role == Role::State || self.trained.contains(&Part::of(&p.name))
    }

    /// Elements of a whole tensor.
    ///
    /// Errors: a tensor that the model has not.
    pub fn size(&self, name: &str) -> Result<usize, Error> {
        match self.from.weights.get(name) {
            Some(x) => Ok(x.len()),
            None => Ok(self.model.checkpoint.stored(name)?.iter().map(|p| p.shape.iter().product::<usize>()).sum()),
        }
    }

    /// What this rank holds of a tensor.
    fn own(&self, p: &Param, dtype: Dtype, data: &[f32]) -> Result<HostTensor, Error> {
        let (rank, ranks) = self.rank;
        match self.keeps(p) && ranks > 1 {
            true => whole(p, dtype, &shard(data, rank, ranks)),
            false => whole(p, dtype, data),
        }
    }
}

fn whole(p: &Param, dtype: Dtype, data: &[f32]) -> Result<HostTensor, Error> {
    if data.len() == p.ty.elements() {
        return Ok(HostTensor::floats(dtype, p.ty.shape.clone(), data));
    }
    let (name, have, want) = (&p.name, data.len(), p.ty.elements());
    Err(Error::Input(format!(
        "{have} numbers for `{name}`, of which the model has {want}: resume the model it was taken of"
    )))
}
