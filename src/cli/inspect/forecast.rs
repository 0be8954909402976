//! The memory that a model takes on a device, by class, from its programs alone.

use super::{Args, Report, grouped};
use crate::cli::{Error, device};
use omchat::{Device, Dump, EngineOptions, Memory, Program, watched};
use omchat_codegen::{Family, Target};
use omchat_ir::{Dtype, Func, Module};
use omchat_model::OmChatConfig;
use omchat_model::graph::{DecoderSpec, Output, Spread, decoder_module, vision_module};
use serde_json::{Map, Value, json};

/// Adds the forecast to the report. A program that the device cannot hold is said, not an error: nothing was to run.
///
/// Errors: no device of that name; a dtype that is no float.
pub fn show(report: &mut Report, args: &Args, config: &OmChatConfig) -> Result<(), Error> {
    let (target, here, note) = aim(args.device.as_deref())?;
    let usual = if target.family == Family::Cuda { Dtype::Bf16 } else { Dtype::F32 };
    let dtype = device::options(args.dtype.as_deref())?.dtype.unwrap_or(usual);
    let context = args.context as usize;
    report.line(format!(
        "memory on {}{note} in {dtype}, room for {} tokens, bytes:",
        target.name,
        grouped(context as u64)
    ));
    report.line(format!(
        "  {:<30} {:>16} {:>16} {:>14} {:>14} {:>16}",
        "program", "weights", "state", "inputs", "outputs", "workspace"
    ));
    let mut programs = Map::new();
    let mut total = [0u64; 5];
    let (mut decoder_held, mut refused) = (false, 0);
    let dump = Dump::of_env()?;
    for (name, module) in modules(config, context, dtype, &target)? {
        let entry = Func(module.functions.len().saturating_sub(1) as u32);
        let called = &module.function(entry).name;
        match watched(dump.as_ref(), called, |after| omchat_runtime::program_with(&module, entry, &target, after)) {
            Ok(p) => {
                let bytes = Memory::ALL.map(|m| p.bytes(m) as u64);
                let decoder = p.bytes(Memory::State) > 0;
                add(&mut total, bytes, decoder && decoder_held);
                decoder_held |= decoder;
                programs.insert(name.clone(), counted(&p, bytes));
                row(report, &name, bytes);
            }
            Err(e) => {
                refused += 1;
                report.line(format!("  {name:<30} cannot run: {e}"));
                programs.insert(name, json!({ "error": e.to_string() }));
            }
        }
    }
    row(report, "all together", total);
    let sum: u64 = total.iter().sum();
    let free = here.as_ref().and_then(Device::free_bytes);
    let fits = match free {
        _ if refused > 0 => format!(" for the others; {refused} of {} programs cannot run", programs.len()),
        Some(f) => format!("; {} are free here: {}", grouped(f), if sum <= f { "it fits" } else { "it does not fit" }),
        None if here.is_some() => "; the driver does not tell how many are free here, so none is refused".into(),
        None => String::new(),
    };
    report.line(format!("  {} bytes in all{fits}", grouped(sum)));
    report.put(
        "memory",
        json!({
            "device": target.name, "dtype": dtype.name(), "context": context, "programs": programs,
            "classes": classes(total), "total": sum, "free": free,
        }),
    );
    Ok(())
}

/// The facts that the forecast is made from: the device's own where it is here, else those of a usual one.
fn aim(name: Option<&str>) -> Result<(Target, Option<Device>, &'static str), Error> {
    let Some(name) = name else {
        let device = crate::cli::device::quietly(None)?;
        return Ok((device.target(), Some(device), ""));
    };
    match (crate::cli::device::quietly(Some(name)), name) {
        (Ok(device), _) => Ok((device.target(), Some(device), "")),
        (Err(_), "cuda") => Ok((Target::cuda(90), None, " (not here: the facts of a usual one)")),
        (Err(_), "wgpu") => Ok((Target::wgpu(), None, " (not here: the facts of a usual one)")),
        (Err(_), "cpu") => Ok((Target::cpu(1), None, " (not here: the facts of a usual one)")),
        (Err(e), _) => Err(e),
    }
}

/// The programs that a chat runs.
fn modules(
    config: &OmChatConfig,
    context: usize,
    dtype: Dtype,
    target: &Target,
) -> Result<Vec<(String, Module)>, Error> {
    let mut out = vec![];
    if config.vision.is_some() {
        let tiles = EngineOptions::default().tiles;
        out.push((format!("vision, {tiles} tiles a run"), vision_module(config, tiles, dtype)?));
    }
    let spec = |tokens, features| DecoderSpec {
        tokens,
        capacity: context,
        features,
        output: Output::Last,
        spread: Spread::Alone,
    };
    let chunk = omchat::Chunks::of(target).large.min(context);
    out.push((
        format!("prompt, {chunk} tokens a run"),
        decoder_module(config, spec(chunk, config.vision.is_some()), dtype)?,
    ));
    out.push(("decode, 1 token a run".into(), decoder_module(config, spec(1, false), dtype)?));
    Ok(out)
}

/// Adds a program's bytes; weights and state of the decoder are shared by its programs and count once.
fn add(total: &mut [u64; 5], bytes: [u64; 5], shared: bool) {
    for (i, (t, b)) in total.iter_mut().zip(bytes).enumerate() {
        let held = shared && matches!(Memory::ALL[i], Memory::Weight | Memory::State);
        *t += if held { 0 } else { b };
    }
}

fn row(report: &mut Report, name: &str, b: [u64; 5]) {
    let b = b.map(grouped);
    report.line(format!("  {name:<30} {:>16} {:>16} {:>14} {:>14} {:>16}", b[0], b[1], b[2], b[3], b[4]));
}

fn counted(p: &Program, bytes: [u64; 5]) -> Value {
    let Value::Object(mut map) = classes(bytes) else { return Value::Null };
    map.insert("launches".into(), json!(p.launches.len()));
    map.insert("kernels".into(), json!(p.chosen.len()));
    Value::Object(map)
}

fn classes(bytes: [u64; 5]) -> Value {
    Value::Object(Memory::ALL.iter().zip(bytes).map(|(m, b)| (m.name().to_string(), json!(b))).collect())
}
