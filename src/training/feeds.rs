//! A recipe's data sets as what a run asks for.

use super::run::{Packs, Supply};
use super::score::wanted;
use crate::{Error, Model};
use omchat_recipe::document::{Reader, Room, Senses};
use omchat_recipe::feed::{Feed, Options, State};
use omchat_recipe::labels::Writer;
use omchat_recipe::pack::Origin;
use omchat_recipe::packer::Packer;
use omchat_recipe::reference::Reference;
use omchat_recipe::spec::Dataset;
use omchat_recipe::{Pack, Recipe, Stage, shards};
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;

/// The data sets of a recipe, read by the tokenizer and the tiler of its model.
pub struct Feeds {
    recipe: Recipe,
    model: Model,
    senses: Senses,
    references: HashMap<PathBuf, Reference>,
    /// Names of the files of a data set.
    files: HashMap<String, Vec<String>>,
}

impl Feeds {
    /// The data of a recipe. Files are opened when a stage asks for them.
    ///
    /// Errors: no model, or one without tokenizer; a format that is not known.
    pub fn new(recipe: &Recipe) -> Result<Feeds, Error> {
        let model = Model::open(&recipe.model)?;
        let senses = Senses::from_dir(&model.dir, &model.config)?;
        Ok(Feeds { recipe: recipe.clone(), model, senses, references: HashMap::new(), files: HashMap::new() })
    }

    /// A data set by its name, held-out ones among them, in the recipe's format unless it has its own.
    fn set(&self, name: &str) -> Result<Dataset, Error> {
        let held = self.recipe.mixture.as_ref().and_then(|m| m.held_out.get(name));
        let Some(set) = self.recipe.data.get(name).or(held) else {
            return Err(Error::Input(format!("the recipe has no data set `{name}`; write it under [data]")));
        };
        let format = set.format.clone().or(self.recipe.format.clone());
        Ok(Dataset { name: name.into(), format, ..set.clone() })
    }

    fn room(stage: &Stage) -> Room {
        Room { positions: stage.context, tiles: stage.tiles }
    }
}

impl Supply for Feeds {
    fn check(&mut self, stage: &Stage, data: &[&str]) -> Result<(), Error> {
        for name in data {
            shards::there(&self.set(name)?)?;
        }
        match &stage.select {
            Some(s) => Ok(Reference::check(&s.reference, &wanted(&self.recipe, stage, &self.model)?)?),
            None => Ok(()),
        }
    }

    fn open(&mut self, stage: &Stage, state: Option<&Value>) -> Result<Box<dyn Packs>, Error> {
        let sets = stage.mix.keys().map(|n| self.set(n)).collect::<Result<Vec<_>, _>>()?;
        let options = Options { room: Feeds::room(stage), seed: self.recipe.seed, threads: 0 };
        let feed = match state {
            None => Feed::open(&sets, &stage.mix, &self.senses, options)?,
            Some(state) => {
                let state: State = serde_json::from_value(state.clone())
                    .map_err(|e| Error::Input(format!("the checkpoint's place in the data: {e}")))?;
                Feed::resume(&sets, &stage.mix, &self.senses, options, &state)?
            }
        };
        Ok(Box::new(Fed(feed)))
    }

    fn once(&mut self, stage: &Stage, data: &[&str]) -> Result<Box<dyn Iterator<Item = Result<Pack, Error>>>, Error> {
        let room = Feeds::room(stage);
        let mut readers = VecDeque::new();
        for name in data {
            readers.push_back(Reader::open(&self.set(name)?, &self.senses, room)?);
        }
        let pad = Writer::end_of_text(&self.senses.tokenizer)?;
        let packer = Packer::new(room, self.senses.per_tile, pad)?;
        Ok(Box::new(Once { readers, packer, shard: 0, record: 0, ready: VecDeque::new() }))
    }

    fn reference(&mut self, stage: &Stage, pack: &Pack) -> Result<Vec<f32>, Error> {
        let Some(select) = &stage.select else {
            return Err(Error::Input(format!("stage `{}` selects nothing", stage.name)));
        };
        if !self.references.contains_key(&select.reference) {
            let held = Reference::open(&select.reference, &wanted(&self.recipe, stage, &self.model)?)?;
            self.references.insert(select.reference.clone(), held);
        }
        let held = self.references.get(&select.reference);
        Ok(held.map_or(Ok(vec![]), |r| r.of(pack))?)
    }

    fn file(&mut self, origin: &Origin) -> Option<String> {
        let set = &origin.dataset;
        if !self.files.contains_key(set) {
            let shards = self.set(set).ok().and_then(|s| shards::open(&s).ok()).unwrap_or_default();
            self.files.insert(set.clone(), shards.iter().map(|s| s.path.display().to_string()).collect());
        }
        self.files.get(set)?.get(origin.shard as usize).cloned()
    }
}

struct Fed(Feed);

impl Packs for Fed {
    fn pack(&mut self) -> Result<Pack, Error> {
        match self.0.next() {
            Some(pack) => Ok(pack?),
            None => Err(Error::Input("the data ended after an error".into())),
        }
    }

    fn state(&self) -> Result<Value, Error> {
        serde_json::to_value(self.0.state()).map_err(|e| Error::Input(format!("the place in the data: {e}")))
    }

    fn report(&self) -> String {
        self.0.report().to_string().trim_end().to_string()
    }
}

/// Each document once, in the order of the files. What cannot be used is left out, as training leaves it out.
struct Once {
    readers: VecDeque<Reader>,
    packer: Packer,
    shard: usize,
    record: u64,
    ready: VecDeque<Pack>,
}

impl Once {
    fn pack(&mut self) -> Result<Option<Pack>, Error> {
        if let Some(pack) = self.ready.pop_front() {
            return Ok(Some(pack));
        }
        while let Some(reader) = self.readers.front() {
            let Some(shard) = reader.shards().get(self.shard) else {
                self.readers.pop_front();
                self.shard = 0;
                continue;
            };
            if self.record >= shard.records() {
                (self.shard, self.record) = (self.shard + 1, 0);
                continue;
            }
            let read = reader.read(self.shard as u32, self.record)?;
            self.record += 1;
            for document in read.unwrap_or_default() {
                self.ready.extend(self.packer.push(document)?);
            }
            if let Some(pack) = self.ready.pop_front() {
                return Ok(Some(pack));
            }
        }
        Ok(self.packer.finish())
    }
}

impl Iterator for Once {
    type Item = Result<Pack, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.pack().transpose()
    }
}
