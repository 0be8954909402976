//! This process among the ranks of a training run: rings that share a pack, and rings beside them with packs of their own.

use crate::Error;
use crate::batch::Piece;
use omchat_recipe::ring::Layout;
use omchat_recipe::{Pack, Stage};
use omchat_runtime::collective::World;

/// This process among the ranks of a run: of W ranks each `ring` consecutive ones share a pack, and there are W / ring
/// such rings.
#[derive(Clone)]
pub struct Ranks {
    world: World,
    ring: usize,
    layout: Layout,
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
        Ok(Ranks { world: world.clone(), ring, layout: stage.ring_layout, context: stage.context })
    }

    /// The run.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Ranks of a ring: R.
    pub fn ring(&self) -> usize {
        self.ring
    }

    /// Rings: D.
    pub fn data(&self) -> usize {
        self.world.ranks() / self.ring()
    }

    /// Positions of each rank: T.
    pub fn tokens(stage: &Stage) -> usize {
        Layout::tokens(stage.context, stage.ring)
    }

    /// Which of the packs that are read at once this rank has a piece of, from 0.
    pub fn number(&self) -> usize {
        self.world.rank() / self.ring
    }

    /// This rank's piece of its ring's pack. All ranks of a ring place a pack alike, by its documents' lengths.
    ///
    /// A pack whose pictures a layout by documents scatters, so that a rank touches more than `tiles` of them, is zigzagged.
    pub fn piece(&self, pack: &Pack, per_tile: usize, tiles: usize) -> Piece {
        let documents: Vec<usize> = pack.parts.iter().map(|p| p.range.len()).collect();
        let place = |layout: Layout| layout.place(&documents, pack.len(), self.ring);
        let mut placement = place(self.layout);
        let touched = |rank: usize| crate::batch::touched(pack, &placement.positions(rank), per_tile);
        if self.layout == Layout::Balanced && (0..self.ring).any(|r| touched(r) > tiles) {
            placement = place(Layout::Zigzag);
        }
        let rank = self.world.rank() % self.ring;
        Piece { positions: placement.positions(rank), places: placement.places(rank), number: self.number() }
    }

    /// A number of each position, of each rank's, in the order of the packs that were read at once: [D, context].
    ///
    /// Errors: a rank is lost.
    pub fn gathered(&self, label: &str, positions: &[usize], own: &[f32]) -> Result<Vec<f32>, Error> {
        // What stands where, padding in no pack.
        let told = positions.iter().zip(own).flat_map(|(p, x)| [(*p as u32).to_le_bytes(), x.to_le_bytes()].concat());
        let all = self.world.gather(label, told.collect(), None).map_err(omchat_runtime::Error::from)?;
        let mut out = vec![0.0; self.data() * self.context];
        for (rank, bytes) in all.iter().enumerate() {
            let first = rank / self.ring * self.context;
            for [p, x] in bytes.as_chunks::<4>().0.as_chunks::<2>().0 {
                let place = u32::from_le_bytes(*p) as usize;
                if place < self.context {
                    out[first + place] = f32::from_le_bytes(*x);
                }
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
