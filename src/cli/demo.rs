//! `omchat demo`.

use super::progress::Bars;
use super::{Error, chat, device, note};
use omchat::{Chat, ChatOptions, Engine, EngineOptions, Model, home};
use omchat_model::tiler::TileMode;
use omchat_model::video::tile_video;
use omchat_recipe::write_whole;
use std::path::PathBuf;

/// What the demo takes.
#[derive(clap::Args)]
pub struct Args {
    /// The device to run on; the best that there is if not given.
    #[arg(long)]
    pub device: Option<String>,
}

macro_rules! carried {
    ($($name:literal),+ $(,)?) => { &[$(($name, include_bytes!(concat!("../../models/needle/", $name)))),+] };
}

/// The model and the video that the command carries.
const NEEDLE: &[(&str, &[u8])] = carried![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "demo.gif"
];
const QUESTIONS: [&str; 4] =
    ["Which shape moves?", "How many digits are there?", "Which digit comes first?", "Which digit comes last?"];
const FRAMES: usize = 12;

/// Shows the demo.
pub fn run(args: &Args) -> Result<(), Error> {
    let dir = unpack()?;
    let model = Model::open(&dir.to_string_lossy())?;
    let tiler = model.tiler()?;
    let video = tile_video(&dir.join("demo.gif"), FRAMES, &tiler, TileMode::Single, &mut |_, _| {})?;
    note(
        "the small model that the command carries, trained from nothing on rendered scenes; of other videos it knows nothing",
    );
    let device = device::open(args.device.as_deref())?;
    let mut bars = Bars::default();
    let engine = Engine::load(model, device, &EngineOptions::default(), &mut |p| bars.show(p))?;
    bars.end();
    let mut talk = Chat::new(engine, ChatOptions { max_new_tokens: 24, context: 2048, ..ChatOptions::default() })?;
    for (i, question) in QUESTIONS.iter().enumerate() {
        let (shown, of) = if i == 0 {
            (vec![video.clone()], format!("   ({FRAMES} frames of demo.gif)"))
        } else {
            (vec![], String::new())
        };
        note(format!("> {question}{of}"));
        chat::ask(&mut talk, question, shown)?;
    }
    Ok(())
}

/// Writes the carried files where models are kept, each whole or not at all.
fn unpack() -> Result<PathBuf, Error> {
    let dir = home().join(format!("needle-{}", env!("CARGO_PKG_VERSION")));
    std::fs::create_dir_all(&dir).map_err(|e| {
        Error::failed(format!("cannot make {}: {e}; set OMCHAT_HOME to a folder that can be written", dir.display()))
    })?;
    for (name, bytes) in NEEDLE {
        let path = dir.join(name);
        if std::fs::read(&path).is_ok_and(|b| b == *bytes) {
            continue;
        }
        write_whole(&path, bytes).map_err(|e| Error::failed(format!("cannot write {}: {e}", path.display())))?;
    }
    Ok(dir)
}
