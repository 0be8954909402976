//! What one training run reads: whole sequences as the inputs of `@forward`.

use crate::{Error, Model};
use omchat_ir::{Dtype, Type};
use omchat_model::config::IGNORE;
use omchat_model::rope::rope_table;
use omchat_model::splice::{Slot, Spliced};
use omchat_recipe::Pack;
use omchat_runtime::HostTensor;

/// The inputs of a forward pass over whole sequences.
#[derive(Clone, Debug)]
pub struct Batch {
    inputs: Vec<(&'static str, HostTensor)>,
    tokens: usize,
    tiles: usize,
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
        Ok(Batch { inputs, tokens: n, tiles })
    }

    /// A packed stream, its angles by `theta`, the base of RoPE. A pack of fewer than `tiles` tiles gets tiles of 0,
    /// which nothing reads. With `examples` tokens can weigh by the example they belong to.
    ///
    /// Errors: no position; more tiles than `tiles`; a tile for a model without a tower.
    pub fn packed(model: &Model, pack: &Pack, theta: f64, tiles: usize, examples: bool) -> Result<Batch, Error> {
        let (n, half) = (pack.len(), model.config.text.head_dim / 2);
        if n == 0 {
            return Err(Error::Input("a pack of no positions; give one or more".into()));
        }
        if pack.tile_count() > tiles {
            return Err(Error::Input(format!(
                "a pack of {} tiles where {tiles} fit: raise `tiles`",
                pack.tile_count()
            )));
        }
        let (ids, rows) = filled(&pack.slots);
        let mut inputs = vec![];
        if tiles > 0 {
            let side = model.config.vision.as_ref().map_or(0, |v| v.image_size);
            let mut pixels = vec![];
            if !pack.tiles.is_empty() {
                let tiler = model.tiler()?;
                pack.tiles.iter().for_each(|t| pixels.extend(tiler.pixels(t, 0..t.count())));
            }
            pixels.resize(tiles * 3 * side * side, 0.0);
            inputs.push(("pixels", HostTensor::f32([tiles, 3, side, side], &pixels)));
            inputs.push(("rows", HostTensor::i32([n], &rows)));
        }
        let (cos, sin) = rope_table(&pack.positions, 2 * half, theta);
        let index: Vec<i32> = (0..n as i32).collect();
        inputs.extend([
            ("ids", HostTensor::i32([n], &ids)),
            ("cos", HostTensor::f32([n, half], &cos)),
            ("sin", HostTensor::f32([n, half], &sin)),
            ("lo", HostTensor::i32([1, n], &pack.lo)),
            ("hi", HostTensor::i32([1, n], &pack.hi)),
            ("at", HostTensor::i32([1, n], &index)),
            ("labels", HostTensor::i32([n], &pack.labels)),
        ]);
        if examples {
            inputs.push(("document", HostTensor::i32([n], &pack.document)));
        }
        Ok(Batch { inputs, tokens: n, tiles })
    }

    /// The same, of which only some tokens train: those whose loss exceeds the reference model's most.
    ///
    /// Shapes: `reference` [T], the reference model's loss of each position's next label.
    /// Errors: a reference of another length or with a number that is not finite; a ratio outside 0 to 1.
    pub fn selected(mut self, reference: &[f32], how: &Select) -> Result<Batch, Error> {
        let n = self.tokens;
        if reference.len() != n {
            return Err(Error::Input(format!("{} reference losses for {n} positions; give one each", reference.len())));
        }
        crate::engine::finite("the reference losses", reference)?;
        if !(0.0..=1.0).contains(&how.ratio) {
            return Err(Error::Input(format!("the ratio of kept tokens is {}, it must be from 0 to 1", how.ratio)));
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

    /// Positions: T.
    pub fn tokens(&self) -> usize {
        self.tokens
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

/// The id and the feature row of each position, −1 where the other stands.
fn filled(slots: &[Slot]) -> (Vec<i32>, Vec<i32>) {
    let one = |s: &Slot| match s {
        Slot::Text(id) => (*id as i32, -1),
        Slot::Image(row) => (-1, *row as i32),
    };
    slots.iter().map(one).unzip()
}
