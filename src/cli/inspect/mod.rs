//! `omchat inspect`: a model, pictures and a video in numbers, before anything is allocated.

mod forecast;
mod model;
mod pictures;

use super::{Error, place, say};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// What `omchat inspect` takes.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("subject").args(["model", "image", "video"]).required(true).multiple(true)))]
pub struct Args {
    /// A model's folder, or a preset, whose weights need not be here: omchat-13b, omchat-8b or mini.
    #[arg(long, value_name = "DIR|PRESET")]
    model: Option<String>,
    /// A picture whose tiles and tokens are shown; repeat it for several. Without --model they are those of
    /// omchat-13b.
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// A video, an animated GIF or a folder of frames whose tokens are shown.
    #[arg(long, value_name = "FILE")]
    video: Option<PathBuf>,
    /// How many frames of the video would be looked at.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    frames: u32,
    /// Room for that many tokens in the forecast.
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: u32,
    /// The device that the forecast is for, present or not: cuda, wgpu or cpu; the best that there is if not given.
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// The element type of weights and activations: f32, bf16 or f16; the device's usual one if not given.
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<String>,
    /// Prints one JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

/// What was found: as text for readers and as JSON for programs.
#[derive(Default)]
struct Report {
    text: String,
    json: Map<String, Value>,
}

impl Report {
    fn line(&mut self, line: impl AsRef<str>) {
        self.text += line.as_ref().trim_end();
        self.text.push('\n');
    }

    fn put(&mut self, name: &str, value: Value) {
        self.json.insert(name.into(), value);
    }
}

/// Shows what was asked for.
pub fn run(args: &Args) -> Result<(), Error> {
    let mut report = Report::default();
    let name = args.model.as_deref().unwrap_or("omchat-13b");
    let (dir, config) = place::find(name)?;
    if args.model.is_some() {
        model::show(&mut report, name, dir.as_deref(), &config)?;
    }
    if !args.image.is_empty() || args.video.is_some() {
        pictures::show(&mut report, args, name, dir.as_deref(), &config)?;
    }
    if args.model.is_some() {
        forecast::show(&mut report, args, &config)?;
    }
    if args.json {
        return say(format!("{:#}\n", Value::Object(report.json)));
    }
    say(report.text)
}

/// A number with a comma between thousands.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}
