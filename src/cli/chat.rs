//! `omchat chat`.

use super::progress::Bars;
use super::{Error, device, note, ranks, say};
use omchat::{Answer, Chat, ChatOptions, Engine, Model, Sampling, Visual};
use omchat_model::chat::SYSTEM;
use omchat_model::format::Format;
use omchat_model::picture::Picture;
use omchat_model::tiler::TileMode;
use omchat_model::video::tile_video;
use omchat_runtime::collective::{Exchange, World};
use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// What a chat takes.
#[derive(clap::Args)]
pub struct Args {
    /// A model's folder, or the name of a preset.
    #[arg(long, value_name = "DIR|PRESET")]
    pub model: String,
    /// A picture to look at; repeat it for several. An `<image>` of the question is the place of the next picture, a
    /// `<video>` that of the video; without marks they stand before the words.
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
    /// Draws among that many of the likeliest tokens; 0, as without it, among all.
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
    /// Another number draws other tokens, the same number the same again; 0 if not given.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Shares the cache of a long prompt among that many ranks, threads of this process. Started by `mpirun` or `torchrun`,
    /// its processes are the ranks.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub ranks: usize,
    /// How ranks on GPUs exchange: auto (from GPU to GPU by NCCL where every rank can, else through the host), host, nccl.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub exchange: Exchange,
    /// What the system turn says.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Reads the question from a file, for questions longer than a command line takes.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// The question; without one the command holds a conversation, a line of the standard input each. A line that cannot
    /// be answered is told and the others are; the exit code is then 2.
    pub prompt: Option<String>,
}

/// Chats.
pub fn run(args: &Args) -> Result<(), Error> {
    let question = match &args.prompt_file {
        Some(path) => Some(
            std::fs::read_to_string(path).map_err(|e| Error::input(format!("cannot read {}: {e}", path.display())))?,
        ),
        None => args.prompt.clone(),
    };
    let options = options(args)?;
    match ranks::each(args.ranks, args.exchange, |world| rank(args, &options, question.as_deref(), world))? {
        0 => Ok(()),
        _ => Err(Error::Told),
    }
}

/// Chats as one rank; the first speaks for all. Yields how many lines of a conversation could not be answered.
fn rank(args: &Args, options: &ChatOptions, question: Option<&str>, world: Option<World>) -> Result<usize, Error> {
    let speaks = world.as_ref().is_none_or(|w| w.rank() == 0);
    let how = device::options(args.dtype.as_deref())?;
    let model = Model::open(&args.model)?;
    let untrained = model.dir.join("manifest.json");
    let visuals = look(&model, args)?;
    if speaks {
        unheard(args, &options.sampling);
    }
    if speaks && !visuals.is_empty() && says_untrained(&untrained) {
        note("note: the projector of this model is random until it is trained: answers about pictures are noise");
    }
    let device = match speaks {
        true => device::open(args.device.as_deref())?,
        false => device::quietly(args.device.as_deref())?,
    };
    let mut bars = Bars::default();
    let engine = Engine::load_among(world.clone(), model, device, &how, &mut |p| {
        if speaks {
            bars.show(p);
        }
    })?;
    bars.end();
    let mut chat = Chat::new(engine, options.clone())?;
    match question {
        Some(prompt) => ask(&mut chat, prompt, visuals).map(|()| 0),
        None => converse(&mut chat, visuals, world.as_ref()),
    }
}

/// What is asked of the chat, every number in its range.
fn options(args: &Args) -> Result<ChatOptions, Error> {
    let usual = Sampling::default();
    let sampling = Sampling {
        temperature: args.temperature.unwrap_or(usual.temperature),
        top_k: args.top_k.unwrap_or(usual.top_k),
        top_p: args.top_p.unwrap_or(usual.top_p),
        min_p: args.min_p.unwrap_or(usual.min_p),
        repetition_penalty: args.repetition_penalty.unwrap_or(usual.repetition_penalty),
        seed: args.seed.unwrap_or(usual.seed),
    };
    sampling.check().map_err(Error::input)?;
    let format = args.format.as_deref().map(Format::named).transpose()?;
    let system = args.system.clone().unwrap_or_else(|| SYSTEM.into());
    Ok(ChatOptions { context: args.context, max_new_tokens: args.max_new_tokens, sampling, system, format })
}

/// Says which options have no effect.
fn unheard(args: &Args, sampling: &Sampling) {
    let given = [
        ("--top-k", args.top_k.is_some()),
        ("--top-p", args.top_p.is_some()),
        ("--min-p", args.min_p.is_some()),
        ("--seed", args.seed.is_some()),
    ];
    let idle: Vec<&str> = given.iter().filter(|g| g.1).map(|g| g.0).collect();
    if sampling.temperature == 0.0 && !idle.is_empty() {
        note(format!(
            "without a temperature the likeliest token is taken and {} says nothing: add --temperature 1",
            idle.join(", ")
        ));
    }
}

/// The pictures and the video as tiles.
pub fn look(model: &Model, args: &Args) -> Result<Vec<Visual>, Error> {
    if args.image.is_empty() && args.video.is_none() {
        return Ok(vec![]);
    }
    let tiler = model.tiler()?;
    let mut out = vec![];
    for path in &args.image {
        out.push(Visual::Picture(tiler.cut(&Picture::open(path)?, TileMode::AnyRes)?));
    }
    if let Some(path) = &args.video {
        let mut bars = Bars::default();
        out.push(tile_video(path, args.frames, &tiler, TileMode::Single, &mut |done, total| {
            bars.step("decoding", done, total)
        })?);
        bars.end();
    }
    Ok(out)
}

fn says_untrained(manifest: &std::path::Path) -> bool {
    let text = std::fs::read_to_string(manifest).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    json.get("untrained").is_some_and(|u| !u.is_null() && u.as_array().is_none_or(|a| !a.is_empty()))
}

/// One question, its answer as it comes, and what it cost.
pub fn ask(chat: &mut Chat, prompt: &str, visuals: Vec<Visual>) -> Result<(), Error> {
    if chat.engine().rank() > 0 {
        let asked = chat.ask(prompt, visuals, &mut |_| {}, &mut |_| ControlFlow::Continue(()));
        return asked.map(|_| ()).map_err(|e| roomy(e, chat.options()));
    }
    let mut bars = Bars::default();
    let mut closed = None;
    let asked = chat.ask(prompt, visuals, &mut |p| bars.show(p), &mut |text| {
        closed = say(text).err();
        if closed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bars.end();
    let answer = asked.map_err(|e| roomy(e, chat.options()))?;
    if let Some(e) = closed {
        return Err(e);
    }
    say("\n")?;
    report(chat, &answer);
    Ok(())
}

/// A failure in the words of a chat: a context must hold the answer too, whose last id is not read.
fn roomy(error: omchat::Error, options: &ChatOptions) -> Error {
    let omchat::Error::Context { need, have } = error else { return error.into() };
    let answer = options.max_new_tokens;
    let enough = need.saturating_add(answer.saturating_sub(1));
    Error::input(format!(
        "{need} tokens do not fit a context of {have}: give --context {enough} or more, which holds an answer of {answer} too"
    ))
}

fn report(chat: &Chat, a: &Answer) {
    let first = match a.first.as_secs_f64() {
        s if s < 0.1 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    };
    let first = if a.ids.is_empty() { format!("read in {first}") } else { format!("first token after {first}") };
    // An answer of one token takes no step.
    let steps = match a.stepping.as_secs_f64() {
        s if a.steps > 0 && s > 0.0 => format!(", then {:.1} tokens/s", a.steps as f64 / s),
        _ => String::new(),
    };
    let e = chat.engine();
    let replayed = match e.replays() {
        0 => String::new(),
        n => format!(", {n} runs replayed"),
    };
    note(format!(
        "{} tokens read ({} tiles), {} answered | {first}{steps} | {} of {} slots | {} programs, {} kernels, {} compiled ({} for this answer){replayed} | {} {}",
        a.prompt,
        a.tiles,
        a.ids.len(),
        chat.session().len(),
        chat.session().context(),
        e.programs(),
        e.kernels(),
        e.compilations(),
        a.compiled,
        e.device().name(),
        e.dtype(),
    ));
}

/// A line that cannot be answered is told, and the conversation goes on as if it had not been said; what was to be seen
/// with it is seen with the next. Yields how many there were.
fn converse(chat: &mut Chat, mut visuals: Vec<Visual>, world: Option<&World>) -> Result<usize, Error> {
    let mut failed = 0;
    loop {
        let read = if chat.engine().rank() == 0 { listen()? } else { vec![] };
        let heard = ranks::from_first(world, "a question", read)?;
        if heard.is_empty() {
            return Ok(failed);
        }
        let answered = match std::str::from_utf8(&heard) {
            Ok(line) if line.trim().is_empty() => continue,
            Ok(line) => ask(chat, line.trim(), visuals.clone()),
            Err(e) => Err(Error::input(format!("a question from stdin is no text: {e}; write lines of UTF-8"))),
        };
        match answered {
            Ok(()) => visuals.clear(),
            // Every rank says the same of a question that cannot be asked.
            Err(e @ Error::Input(_)) => {
                failed += 1;
                if chat.engine().rank() == 0 {
                    e.report();
                }
            }
            Err(e) => return Err(e),
        }
    }
}

/// The next line of stdin; nothing at its end.
fn listen() -> Result<Vec<u8>, Error> {
    let input = std::io::stdin();
    if input.is_terminal() {
        say("> ")?;
        std::io::stdout().flush()?;
    }
    let mut line = vec![];
    let read = input.lock().read_until(b'\n', &mut line);
    read.map_err(|e| Error::input(format!("cannot read a question from stdin: {e}")))?;
    Ok(line)
}
