//! `omchat chat`.

use super::Error;
use std::path::PathBuf;

/// What a chat takes.
#[derive(clap::Args)]
pub struct Args {
    /// A model's folder, or the name of a preset.
    #[arg(long, value_name = "DIR|PRESET")]
    pub model: String,
    /// A picture to look at; repeat it for several.
    #[arg(long, value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// A video, an animated GIF or a folder of frames to look at.
    #[arg(long, value_name = "FILE")]
    pub video: Option<PathBuf>,
    /// How many frames of the video are looked at.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub frames: usize,
    /// How pictures are announced in the prompt: F0 to F4.
    #[arg(long, value_name = "F")]
    pub format: Option<String>,
    /// The device to run on; the best that there is if not given.
    #[arg(long)]
    pub device: Option<String>,
    /// The element type of weights and activations; the device's usual one if not given.
    #[arg(long)]
    pub dtype: Option<String>,
    /// Room for that many tokens.
    #[arg(long, default_value_t = 4096, value_name = "N")]
    pub context: usize,
    /// The answer ends after that many tokens.
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub max_new_tokens: usize,
    /// The temperature that tokens are drawn at; 0 always takes the likeliest.
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Draws among that many of the likeliest tokens.
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Draws among the likeliest tokens that have that probability together.
    #[arg(long)]
    pub top_p: Option<f32>,
    /// Draws among tokens with at least that share of the likeliest one's probability.
    #[arg(long)]
    pub min_p: Option<f32>,
    /// Makes tokens that occurred less likely by that factor.
    #[arg(long)]
    pub repetition_penalty: Option<f32>,
    /// Draws the same tokens again for the same number.
    #[arg(long)]
    pub seed: Option<u64>,
    /// What the system turn says.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// The question; without one the command holds a conversation.
    pub prompt: Option<String>,
}

/// Chats.
pub fn run(args: &Args) -> Result<(), Error> {
    let _ = args;
    Err(Error::failed("chat is not written yet"))
}
