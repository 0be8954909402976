//! How often a model's greedy answer about rendered videos is right, by their length and by the kind of question.
//!
//! `cargo run --example needle_accuracy -- MODEL DEVICE [SAMPLES] [FRAMES,FRAMES,…] [FACES]`
//!
//! Needles are digits held out of training; each question is asked alone, of a conversation that is read anew.
#![allow(clippy::unwrap_used)]

use omchat::{Device, Engine, EngineOptions, Model, Rows, Session, Visual};
use omchat_model::chat::{Conversation, SYSTEM};
use omchat_model::format::Format;
use omchat_model::splice::{Slot, splice};
use omchat_model::tiler::TileMode;
use omchat_recipe::scenes::{Options, Sample, Scenes, Split, Task};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A seed that no recipe uses.
const SEED: u64 = 0x0005_eed0_fea1;
/// Longest answer, in ids.
const ANSWER: usize = 12;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let text = |i: usize, usual: &str| args.get(i).map_or(usual.to_string(), String::clone);
    let model = Model::open(&text(1, "models/needle"))?;
    let device = Device::open(&text(2, "cpu"))?;
    let samples: u64 = text(3, "50").parse()?;
    let lengths: Vec<usize> = text(4, "4,8,16,32,64").split(',').map(str::parse).collect::<Result<_, _>>()?;
    let engine = Arc::new(Engine::load(model, device, &EngineOptions::default(), &mut |_| {})?);
    let mut session = Session::new(engine.clone(), 8192)?;
    println!("frames  question      right of asked");
    for frames in lengths {
        let options = Options {
            seed: SEED,
            task: Task::Needles,
            frames: [frames; 2],
            needles: [1, frames.min(3)],
            split: Split::Test,
            faces: args.get(5).map(Into::into),
            turns: 1,
            ..Options::default()
        };
        let scenes = Scenes::new(&options)?;
        let mut table: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for index in 0..samples {
            let sample = scenes.sample(index);
            let right = answer(&engine, &mut session, &sample)? == sample.turns[0].answer;
            for name in [sample.turns[0].ask.name(), "all"] {
                let row = table.entry(name).or_default();
                *row = (row.0 + usize::from(right), row.1 + 1);
            }
        }
        for (name, (right, asked)) in table {
            println!(
                "{frames:>6}  {name:<12}  {right:>5} of {asked:<5} {:>5.1} %",
                100.0 * right as f64 / asked as f64
            );
        }
    }
    Ok(())
}

/// The model's answer to a sample's first question.
fn answer(engine: &Engine, session: &mut Session, sample: &Sample) -> Result<String, omchat::Error> {
    let model = engine.model();
    let (tokenizer, tiler) = (model.tokenizer()?, model.tiler()?);
    let mut talk = Conversation::new(&tokenizer, Format::released(model.config.vision.as_ref()), SYSTEM)?;
    let tiles = sample.frames.iter().map(|f| tiler.cut(f, TileMode::Single)).collect::<Result<Vec<_>, _>>()?;
    talk.user(&sample.turns[0].question, vec![Visual::Video(tiles)])?;
    let count = talk.tiles().len();
    let slots = splice(talk.ids(), count, model.tokens_per_tile(), model.config.text.vocab)?.slots;
    let features = engine.features(count, &mut |range| talk.pixels(&tiler, range), &mut |_| {})?;
    session.truncate(0)?;
    let mut logits = session.read(&slots, &features, Rows::Last, &mut |_| {})?;
    let mut ids = vec![];
    while ids.len() < ANSWER {
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
        if talk.stops().contains(&best) {
            break;
        }
        ids.push(best);
        logits = session.read(&[Slot::Text(best)], &[], Rows::Last, &mut |_| {})?;
    }
    Ok(tokenizer.decode(&ids)?)
}
