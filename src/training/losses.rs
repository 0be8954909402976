//! Losses of packed sequences, with no gradient: of a reference model, and of what a run made.

use super::run::dtype;
use crate::snapshot::{Origin, Snapshot};
use crate::trainer::{load, taken};
use crate::{Batch, Device, Error, Model, Progress};
use omchat_ir::Dtype;
use omchat_model::config::IGNORE;
use omchat_model::graph::{ForwardSpec, forward_module};
use omchat_recipe::{Pack, Stage};
use omchat_runtime::{Executable, Store};

/// Tokens whose logits exist at once.
const LOGITS: usize = 256;

/// A model that tells the loss of each token of a pack.
pub struct Losses<'a> {
    model: &'a Model,
    exe: Executable,
    store: Store,
    theta: f64,
    tiles: usize,
}

impl<'a> Losses<'a> {
    /// The model, with what a run made of it, for packs of a stage.
    ///
    /// Errors: what cannot be lowered; a device too small; a weight that is not finite.
    pub fn new(
        model: &'a Model,
        from: &Snapshot,
        device: &Device,
        element: &str,
        stage: &Stage,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Losses<'a>, Error> {
        let dtype: Dtype = dtype(element)?;
        let n = stage.context;
        let loss_tiles = (n / LOGITS.min(n)..=n).find(|p| n.is_multiple_of(*p)).unwrap_or(1);
        let spec = ForwardSpec { tiles: stage.tiles, loss_tiles, ..ForwardSpec::text(n) };
        let module = forward_module(&model.config, spec, dtype)?;
        let mut store = Store::default();
        let exe = load(
            &Origin { model, from, dtype, trained: &[], rank: (0, 1) },
            device,
            &module,
            &mut store,
            None,
            progress,
        )?;
        let theta = stage.theta.unwrap_or(model.config.text.rope_theta);
        Ok(Losses { model, exe, store, theta, tiles: stage.tiles })
    }

    /// The loss of each position's label, 0 where none counts: [T].
    ///
    /// Errors: a pack of other sizes; a loss that is not finite.
    pub fn of(&mut self, pack: &Pack) -> Result<Vec<f32>, Error> {
        let batch = Batch::packed(self.model, pack, self.theta, self.tiles, false)?;
        let losses = self.raw(&batch)?;
        crate::engine::finite("the losses", &losses)?;
        Ok(losses)
    }

    /// The same of a batch, finite or not.
    ///
    /// Errors: a batch of other sizes.
    pub(super) fn raw(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        let out = self.exe.run(&taken(&self.exe, batch), &mut self.store)?;
        Ok(out.first().map_or(vec![], omchat_runtime::HostTensor::to_f32))
    }

    /// The mean loss of the labelled tokens of some packs.
    ///
    /// Errors: as [`Losses::of`]; no labelled token at all.
    pub fn mean(&mut self, packs: &mut dyn Iterator<Item = Result<Pack, Error>>) -> Result<f64, Error> {
        let (mut sum, mut count) = (0.0, 0usize);
        for pack in packs {
            let pack = pack?;
            let losses = self.of(&pack)?;
            for (x, _) in losses.iter().zip(&pack.labels).filter(|(_, l)| **l != IGNORE) {
                sum += f64::from(*x);
                count += 1;
            }
        }
        if count == 0 {
            return Err(Error::Input("no labelled token to take the loss of: give data with answers".into()));
        }
        Ok(sum / count as f64)
    }
}
