//! `omchat encode`: what a chat turn feeds the model, as a file.

use super::case::{self, Data};
use super::{Error, place, visuals};
use omchat_model::chat::{Conversation, SYSTEM};
use omchat_model::format::Format;
use omchat_model::tiler::{Tiler, Tiles};
use omchat_model::tokenizer::Tokenizer;
use std::path::PathBuf;

/// What `omchat encode` takes.
#[derive(clap::Args)]
pub struct Args {
    /// A model's folder with config.json and tokenizer.json, or a preset that was fetched; no weights are read.
    #[arg(long, value_name = "DIR|PRESET")]
    model: String,
    #[command(flatten)]
    visuals: visuals::Args,
    /// How pictures stand among words: omchat-2.0, omchat-2.1 or F0 to F4; the model's released layout if not given.
    #[arg(long, value_name = "F")]
    format: Option<String>,
    /// What the system turn says.
    #[arg(long, value_name = "TEXT", default_value = SYSTEM)]
    system: String,
    /// The safetensors file to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// What the user says; `<image>` and `<video>` mark places of pictures.
    prompt: String,
}

/// Tiles whose numbers are made at once.
const AT_ONCE: usize = 16;

/// Writes the case.
pub fn run(args: &Args) -> Result<(), Error> {
    let (dir, config) = place::with_files(&args.model)?;
    let tokenizer = Tokenizer::from_dir(&dir, &config)?;
    let format = args
        .format
        .as_deref()
        .map(Format::named)
        .transpose()?
        .unwrap_or_else(|| Format::released(config.vision.as_ref()));
    let mut chat = Conversation::new(&tokenizer, format, &args.system)?;
    let mut tensors = vec![];
    if args.visuals.any() {
        let tiler = Tiler::from_dir(&dir, &config)?;
        chat.user(&args.prompt, args.visuals.tiles(&tiler)?)?;
        tensors.push(("pixel_values".into(), pixels(&chat, &tiler)));
        let grids: Vec<i32> = chat.tiles().iter().flat_map(|t| [t.grid.0 as i32, t.grid.1 as i32]).collect();
        tensors.push(("tile_grids".into(), Data::i32(vec![chat.tiles().len(), 2], &grids)));
    } else {
        chat.user(&args.prompt, vec![])?;
    }
    tensors.push(("input_ids".into(), Data::i32(vec![chat.ids().len()], chat.ids())));
    case::write(&args.output, &tensors)
}

fn pixels(chat: &Conversation, tiler: &Tiler) -> Data {
    let (count, size) = (chat.tiles().iter().map(Tiles::count).sum(), tiler.tile());
    let mut data = Data::f32(vec![count, 3, size, size], &[]);
    for first in (0..count).step_by(AT_ONCE) {
        data.extend(&chat.pixels(tiler, first..(first + AT_ONCE).min(count)));
    }
    data
}
