//! Training data drawn from seeds, packed by rules written here.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use omchat::training::{Packs, Supply};
use omchat::{Error, Model};
use omchat_model::picture::Picture;
use omchat_model::splice::Slot;
use omchat_model::tiler::TileMode;
use omchat_recipe::pack::{Origin, Part};
use omchat_recipe::reference::Reference;
use omchat_recipe::{Pack, Stage};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A label that does not count.
pub const IGNORE: i32 = -100;

/// The small model of the repository.
pub fn tiny() -> Model {
    Model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny")).unwrap()
}

/// A folder of a test, empty.
pub fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("training").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

/// A document: positions with their labels, some of them rows of tiles.
pub struct Document {
    slots: Vec<Slot>,
    labels: Vec<i32>,
    pictures: Vec<Picture>,
}

/// Words and pictures drawn at random.
pub fn document(rng: &mut StdRng, words: usize, pictures: usize, per_tile: usize, tiles_each: usize) -> Document {
    let mut d = Document { slots: vec![], labels: vec![], pictures: vec![] };
    let mut row = 0;
    for _ in 0..pictures {
        let rgb = (0..40 * 60 * 3).map(|_| rng.random()).collect();
        d.pictures.push(Picture::new("drawn", 40, 60, rgb).unwrap());
        for _ in 0..per_tile * tiles_each {
            d.slots.push(Slot::Image(row));
            d.labels.push(IGNORE);
            row += 1;
        }
    }
    let ids: Vec<u32> = (0..words).map(|_| rng.random_range(3..400)).collect();
    for (i, id) in ids.iter().enumerate() {
        d.slots.push(Slot::Text(*id));
        // Some words train nothing.
        d.labels.push(if rng.random_bool(0.7) { ids.get(i + 1).map_or(IGNORE, |n| *n as i32) } else { IGNORE });
    }
    d
}

/// Documents one after the other, with padding up to `t`.
pub fn packed(model: &Model, documents: &[&Document], t: usize, first: u64) -> Pack {
    let mut p = Pack::default();
    let tiler = model.tiler().unwrap();
    let mut rows = 0;
    for (i, d) in documents.iter().enumerate() {
        let start = p.slots.len();
        let moved = |s: &Slot| match s {
            Slot::Image(r) => Slot::Image(r + rows),
            text => *text,
        };
        p.slots.extend(d.slots.iter().map(moved));
        rows += d.slots.iter().filter(|s| matches!(s, Slot::Image(_))).count() as u32;
        p.labels.extend(&d.labels);
        for k in 0..d.slots.len() {
            p.positions.push(k as u32);
            p.lo.push(start as i32);
            p.hi.push((start + k) as i32);
            p.document.push(i as i32);
        }
        p.tiles.extend(d.pictures.iter().map(|x| tiler.cut(x, TileMode::Single).unwrap()));
        let origin = Origin { dataset: "drawn".into(), shard: 0, record: first + i as u64, offset: 0 };
        p.parts.push(Part { origin, range: start..p.slots.len() });
    }
    for k in p.slots.len()..t {
        p.slots.push(Slot::Text(0));
        p.labels.push(IGNORE);
        p.positions.push(0);
        p.lo.push(k as i32);
        p.hi.push(k as i32);
        p.document.push(-1);
    }
    p
}

/// Packs drawn from a seed; the state is how many were drawn.
pub struct Drawn {
    seed: u64,
    drawn: u64,
    stage: Stage,
    left: Option<u64>,
}

impl Packs for Drawn {
    fn pack(&mut self) -> Result<Pack, Error> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or_else(|| Error::Input("cut off".into()))?;
        }
        let model = tiny();
        let mut rng = StdRng::seed_from_u64(self.seed * 1000 + self.drawn);
        let per = model.tokens_per_tile();
        let pictures = usize::from(self.stage.tiles > 0);
        let documents = [document(&mut rng, 9, pictures, per, 1), document(&mut rng, 6, 0, per, 1)];
        self.drawn += 1;
        Ok(packed(&model, &documents.each_ref(), self.stage.context, 2 * (self.drawn - 1)))
    }

    fn state(&self) -> Result<Value, Error> {
        Ok(json!(self.drawn))
    }

    fn report(&self) -> String {
        format!("{} packs drawn", self.drawn)
    }
}

/// Data drawn from a seed, and cut off after as many packs as are `left`.
pub struct Source {
    pub seed: u64,
    pub left: Option<u64>,
    pub reference: Option<Reference>,
}

impl Default for Source {
    fn default() -> Source {
        Source { seed: 5, left: None, reference: None }
    }
}

impl Supply for Source {
    fn open(&mut self, stage: &Stage, state: Option<&Value>) -> Result<Box<dyn Packs>, Error> {
        let drawn = state.and_then(Value::as_u64).unwrap_or(0);
        Ok(Box::new(Drawn { seed: self.seed, drawn, stage: stage.clone(), left: self.left }))
    }

    fn once(&mut self, stage: &Stage, data: &[&str]) -> Result<Box<dyn Iterator<Item = Result<Pack, Error>>>, Error> {
        let (seed, packs) = if data == ["drawn"] { (self.seed, 9) } else { (70 + data[0].len() as u64, 3) };
        let mut drawn = Drawn { seed, drawn: 0, stage: stage.clone(), left: None };
        Ok(Box::new((0..packs).map(move |_| drawn.pack())))
    }

    fn reference(&mut self, stage: &Stage, pack: &Pack) -> Result<Vec<f32>, Error> {
        let dir = &stage.select.as_ref().unwrap().reference;
        if self.reference.is_none() {
            let meta = serde_json::from_slice(&std::fs::read(dir.join("meta.json")).unwrap()).unwrap();
            self.reference = Some(Reference::open(dir, &meta)?);
        }
        Ok(self.reference.as_ref().unwrap().of(pack)?)
    }
}
