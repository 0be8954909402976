//! This process among the ranks of a training run: rings that share a pack, and rings beside them with packs of their own.

use crate::Error;
use crate::batch::Piece;
use omchat_recipe::Stage;
use omchat_recipe::ring::Layout;
use omchat_runtime::collective::World;

/// This process among the ranks of a run: of W ranks each `ring` consecutive ones share a pack, and there are W / ring
/// such rings.
#[derive(Clone)]
pub struct Ranks {
    world: World,
    /// The positions of each rank of a ring.
    places: Vec<Vec<usize>>,
    context: usize,
}

impl Ranks {
    /// The ranks of a stage.
    ///
    /// Errors: rings that do not fit the number of ranks; packs that the rings cannot share evenly.
    pub fn new(world: &World, stage: &Stage) -> Result<Ranks, Error> {
        let (ranks, ring) = (world.ranks(), stage.ring.max(1));
        let bad = |what: String| Err(Error::Input(format!("stage `{}`: {what}", stage.name)));
        if !ranks.is_multiple_of(ring) {
            return bad(format!(
                "{ranks} ranks are no rings of {ring}: start a multiple of {ring}, or give another `ring`"
            ));
        }
        let data = ranks / ring;
        if !stage.packs().is_multiple_of(data) {
            return bad(format!(
                "{data} rings share a step of {} packs: give `batch_tokens` of a multiple of {} positions",
                stage.packs(),
                data * stage.context
            ));
        }
        let places = stage.ring_layout.positions(stage.context, ring);
        Ok(Ranks { world: world.clone(), places, context: stage.context })
    }

    /// The run.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Ranks of a ring: R.
    pub fn ring(&self) -> usize {
        self.places.len()
    }

    /// Rings: D.
    pub fn data(&self) -> usize {
        self.world.ranks() / self.ring()
    }

    /// Positions of each rank: T.
    pub fn tokens(stage: &Stage) -> usize {
        Layout::tokens(stage.context, stage.ring)
    }

    /// Which of the packs that are read at once this rank has a piece of, and which piece.
    pub fn piece(&self) -> Piece<'_> {
        let (ring, rank) = (self.ring(), self.world.rank());
        Piece { positions: &self.places[rank % ring], number: rank / ring }
    }

    /// A number of each position, of each rank's, in the order of the packs that were read at once: [D, context].
    ///
    /// Errors: a rank is lost.
    pub fn gathered(&self, label: &str, own: &[f32]) -> Result<Vec<f32>, Error> {
        let bytes = own.iter().flat_map(|x| x.to_le_bytes()).collect();
        let all = self.world.gather(label, bytes, None).map_err(omchat_runtime::Error::from)?;
        let mut out = vec![0.0; self.data() * self.context];
        for (rank, bytes) in all.iter().enumerate() {
            let (ring, places) = (rank / self.ring(), &self.places[rank % self.ring()]);
            for (place, x) in places.iter().zip(bytes.as_chunks::<4>().0).filter(|(p, _)| **p < self.context) {
                out[ring * self.context + place] = f32::from_le_bytes(*x);
            }
        }
        Ok(out)
    }
}

/// A state of one rank: its part of a tensor that all ranks share, padded with zeros; all of it on one rank.
pub(crate) fn shard(whole: &[f32], rank: usize, ranks: usize) -> Vec<f32> {
    let part = whole.len().div_ceil(ranks.max(1));
    let mut own: Vec<f32> = whole.iter().skip(rank * part).take(part).copied().collect();
    own.resize(part, 0.0);
    own
}

/// A tensor of which each rank holds a part, whole, on all of them.
///
/// Errors: a rank is lost.
pub(crate) fn joined(world: &World, label: &str, part: &[f32], size: usize) -> Result<Vec<f32>, Error> {
    let bytes = part.iter().flat_map(|x| x.to_le_bytes()).collect();
    let all = world.gather(label, bytes, None).map_err(omchat_runtime::Error::from)?.concat();
    Ok(all.as_chunks::<4>().0.iter().take(size).map(|b| f32::from_le_bytes(*b)).collect())
}
