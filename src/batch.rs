//! What one training run reads: whole sequences as the inputs of `@forward`.

use crate::{Error, Model};
use omchat_ir::{Dtype, Type};
use omchat_model::config::IGNORE;
use omchat_model::rope::rope_table;
use omchat_model::splice::{Slot, Spliced};
use omchat_recipe::Pack;
use omchat_runtime::HostTensor;
use std::collections::BTreeMap;

/// The inputs of a forward pass over whole sequences.
#[derive(Clone, Debug)]
pub struct Batch {
    inputs: Vec<(&'static str, HostTensor)>,
    /// Where its rows stand in the pack.
    positions: Vec<usize>,
    tiles: usize,
}

/// More positions than padding adds to a pack: a ring of R ranks adds fewer than 2R.
const PADDED: usize = 1 << 12;

/// What a rank has of a step's packs.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The positions of the pack, in the rank's order; those beyond its end are padding.
    pub positions: Vec<usize>,
    /// Their places in the ring's order: those of a document follow one another.
    pub places: Vec<usize>,
    /// Which of the packs that are read at once, from 0.
    pub number: usize,
}

impl Piece {
    /// A whole pack of so many positions.
    pub fn whole(n: usize) -> Piece {
        Piece { positions: (0..n).collect(), places: (0..n).collect(), number: 0 }
    }

    /// What a pack says of these positions; `none` of padding.
    pub fn of<T: Clone>(&self, all: &[T], none: T) -> Vec<T> {
        self.positions.iter().map(|p| all.get(*p).unwrap_or(&none).clone()).collect()
    }
}

/// How tokens are selected (Rho-1, SVLM).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Select {
    /// The share of labelled tokens that is kept, to four decimals.
    pub ratio: f32,
    /// The other reading of the score: the reference's loss less the model's.
    pub reference_minus_train: bool,
    /// The z-loss of kept tokens.
    pub z: f32,
    /// Whether the sum is divided by all labelled tokens instead of the kept ones.
    pub whole: bool,
}

impl Default for Select {
    /// Rho-1's ratio for a model of a billion parameters; OmChat's is not published.
    fn default() -> Select {
        Select { ratio: 0.6, reference_minus_train: false, z: 0.0, whole: false }
    }
}

impl Batch {
    /// One sequence: spliced positions, one label a position (not shifted), and its tiles' pixels.
    ///
    /// Shapes: `labels` [T], −100 where none counts; `pixels` [N, 3, S, S].
    /// Errors: no position; labels or pixels that are not as many as they must be; an id that the model has not.
    pub fn sequence(model: &Model, spliced: &Spliced, labels: &[i32], pixels: &[f32]) -> Result<Batch, Error> {
        let (n, tiles, t) = (spliced.len(), spliced.tiles, &model.config.text);
        if n == 0 {
            return Err(Error::Input("no tokens to train on; give one or more".into()));
        }
        if labels.len() != n {
            return Err(Error::Input(format!("{} labels for {n} positions; give one each", labels.len())));
        }
        let (ids, rows) = filled(&spliced.slots);
        // Position t predicts the label of t + 1; the last predicts nothing.
        let shifted: Vec<i32> = labels[1..].iter().copied().chain([IGNORE]).collect();
        let index: Vec<i32> = (0..n as i32).collect();
        let positions: Vec<u32> = (0..n as u32).collect();
        let (cos, sin) = rope_table(&positions, t.head_dim, t.rope_theta);
        let mut inputs = vec![];
        if tiles > 0 {
            let side = model.config.vision.as_ref().map_or(0, |v| v.image_size);
            let need = tiles * 3 * side * side;
            if pixels.len() != need || need == 0 {
                return Err(Error::Input(format!(
                    "{} pixel values for {tiles} tiles of 3x{side}x{side}, which take {need}",
                    pixels.len()
                )));
            }
            omchat_model::tiler::check_pixels(pixels, side)?;
            inputs.push(("pixels", HostTensor::f32([tiles, 3, side, side], pixels)));
            inputs.push(("rows", HostTensor::i32([n], &rows)));
        }
        inputs.extend([
            ("ids", HostTensor::i32([n], &ids)),
            ("cos", HostTensor::f32([n, t.head_dim / 2], &cos)),
            ("sin", HostTensor::f32([n, t.head_dim / 2], &sin)),
            ("lo", HostTensor::i32([1, n], &vec![0; n])),
            ("hi", HostTensor::i32([1, n], &index)),
            ("at", HostTensor::i32([1, n], &index)),
            ("labels", HostTensor::i32([n], &shifted)),
        ]);
        Ok(Batch { inputs, positions: (0..n).collect(), tiles })
    }

    /// A packed stream, its angles by `theta`, the base of RoPE. A pack of fewer than `tiles` tiles gets tiles of 0,
    /// which nothing reads. With `examples` tokens can weigh by the example they belong to.
    ///
    /// Errors: no position; more tiles than `tiles`; a tile for a model without a tower.
    pub fn packed(model: &Model, pack: &Pack, theta: f64, tiles: usize, examples: bool) -> Result<Batch, Error> {
        Batch::placed(model, pack, &Piece::whole(pack.len()), theta, tiles, examples)
    }

    /// What a rank reads of a packed stream: some of its positions, and the tiles that fill them.
    ///
    /// Errors: as [`Batch::packed`].
    pub fn placed(
        model: &Model,
        pack: &Pack,
        piece: &Piece,
        theta: f64,
        tiles: usize,
        examples: bool,
    ) -> Result<Batch, Error> {
        let (n, half) = (piece.positions.len(), model.config.text.head_dim / 2);
        if n == 0 {
            return Err(Error::Input("a pack of no positions; give one or more".into()));
        }
        let slots: Vec<Slot> = piece.of(&pack.slots, Slot::Text(0));
        let (ids, mut rows) = filled(&slots);
        let per_tile = model.tokens_per_tile().max(1);
        let read = tiles_read(&rows, per_tile);
        if read.len() > tiles {
            return Err(Error::Input(format!("a pack of {} tiles where {tiles} fit: raise `tiles`", read.len())));
        }
        // Rows count through the tiles of this rank.
        for row in rows.iter_mut().filter(|r| **r >= 0) {
            let (tile, within) = (*row as usize / per_tile, *row as usize % per_tile);
            *row = (read.get(&tile).copied().unwrap_or(0) * per_tile + within) as i32;
        }
        let mut inputs = vec![];
        if tiles > 0 {
            let side = model.config.vision.as_ref().map_or(0, |v| v.image_size);
            let mut pixels = vec![];
            let mut tile = 0;
            for of in &pack.tiles {
                let tiler = model.tiler()?;
                let own = (0..of.count()).filter(|i| read.contains_key(&(tile + i)));
                own.for_each(|i| pixels.extend(tiler.pixels(of, i..i + 1)));
                tile += of.count();
            }
            pixels.resize(tiles * 3 * side * side, 0.0);
            inputs.push(("pixels", HostTensor::f32([tiles, 3, side, side], &pixels)));
            inputs.push(("rows", HostTensor::i32([n], &rows)));
        }
        let (cos, sin) = rope_table(&piece.of(&pack.positions, 0), 2 * half, theta);
        // A position sees as far before and behind its place as it does in the pack; padding sees itself. Packs that several
        // rings read at once differ in every place.
        let first = (piece.number * (pack.len() + PADDED)) as i32;
        let seen = |of: &[i32]| {
            let at = |(p, place): (&usize, &usize)| first + *place as i32 + of.get(*p).map_or(0, |to| to - *p as i32);
            HostTensor::i32([1, n], &piece.positions.iter().zip(&piece.places).map(at).collect::<Vec<i32>>())
        };
        inputs.extend([
            ("ids", HostTensor::i32([n], &ids)),
            ("cos", HostTensor::f32([n, half], &cos)),
            ("sin", HostTensor::f32([n, half], &sin)),
            ("lo", seen(&pack.lo)),
            ("hi", seen(&pack.hi)),
            ("at", seen(&[])),
            ("labels", HostTensor::i32([n], &piece.of(&pack.labels, IGNORE))),
        ]);
        if examples {
            let of = |d: i32| if d < 0 { d } else { d + (piece.number * pack.len()) as i32 };
            let document: Vec<i32> = piece.of(&pack.document, -1).into_iter().map(of).collect();
            inputs.push(("document", HostTensor::i32([n], &document)));
        }
        Ok(Batch { inputs, positions: piece.positions.clone(), tiles })
    }

    /// The same, of which only some tokens train: those whose loss exceeds the reference model's most.
    ///
    /// Shapes: `reference` [T], the reference model's loss of each position's next label.
    /// Errors: a reference of another length or with a number that is not finite; a ratio outside 0.0001 to 1: four decimals
    /// of it count.
    pub fn selected(mut self, reference: &[f32], how: &Select) -> Result<Batch, Error> {
        let n = self.tokens();
        if reference.len() != n {
            return Err(Error::Input(format!("{} reference losses for {n} positions; give one each", reference.len())));
        }
        crate::engine::finite("the reference losses", reference)?;
        if !(1e-4..=1.0).contains(&how.ratio) {
            return Err(Error::Input(format!(
                "the ratio of kept tokens is {}, it must be from 0.0001 to 1",
                how.ratio
            )));
        }
        let sign = if how.reference_minus_train { -1.0 } else { 1.0 };
        let scalar = |x: f32| HostTensor::f32([], &[x]);
        let whole = HostTensor { ty: Type::new(Dtype::Bool, []), bytes: i32::from(how.whole).to_le_bytes().to_vec() };
        self.inputs.extend([
            ("reference", HostTensor::f32([n], reference)),
            ("sign", scalar(sign)),
            ("ratio", scalar(how.ratio)),
            ("z", scalar(how.z)),
            ("whole", whole),
        ]);
        Ok(self)
    }

    /// A batch of these inputs, whose rows stand as they are.
    ///
    /// Errors: no `ids` among them.
    pub(crate) fn of(inputs: Vec<(&'static str, HostTensor)>) -> Result<Batch, Error> {
        let size = |name: &str| {
            let found = inputs.iter().find(|(n, _)| *n == name);
            found.and_then(|(_, t)| t.ty.shape.first().copied())
        };
        let tokens =
            size("ids").ok_or_else(|| Error::Input("a batch has `ids`, i32 [T], and there are none".into()))?;
        let tiles = size("pixels").unwrap_or(0);
        Ok(Batch { inputs, positions: (0..tokens).collect(), tiles })
    }

    /// An input by its name.
    pub(crate) fn input(&self, name: &str) -> Option<&HostTensor> {
        self.inputs.iter().find(|(n, _)| *n == name).map(|(_, t)| t)
    }

    /// Positions: T.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// Where its rows stand in the pack that they are of: [T].
    pub(crate) fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Tiles: N.
    pub fn tiles(&self) -> usize {
        self.tiles
    }

    pub(crate) fn into_inputs(self) -> Vec<(&'static str, HostTensor)> {
        self.inputs
    }

    pub(crate) fn inputs(&self) -> &[(&'static str, HostTensor)] {
        &self.inputs
    }
}

/// Tiles of a pack that fill some of these positions.
pub(crate) fn touched(pack: &Pack, positions: &[usize], per_tile: usize) -> usize {
    if pack.tiles.is_empty() {
        return 0;
    }
    let slots: Vec<Slot> = positions.iter().filter_map(|p| pack.slots.get(*p)).copied().collect();
    tiles_read(&filled(&slots).1, per_tile.max(1)).len()
}

/// The tiles that rows are of, and each one's place among them.
fn tiles_read(rows: &[i32], per_tile: usize) -> BTreeMap<usize, usize> {
    let mut read: BTreeMap<usize, usize> =
        rows.iter().filter(|r| **r >= 0).map(|r| (*r as usize / per_tile, 0)).collect();
    read.values_mut().enumerate().for_each(|(i, place)| *place = i);
    read
}

/// The id and the feature row of each position, −1 where the other stands.
fn filled(slots: &[Slot]) -> (Vec<i32>, Vec<i32>) {
    let one = |s: &Slot| match s {
        Slot::Text(id) => (*id as i32, -1),
        Slot::Image(row) => (-1, *row as i32),
    };
    slots.iter().map(one).unzip()
}
