//! `omchat doctor`: what this machine can run, what is missing, and how to get it.

mod machine;
mod measure;

use super::{Error, say};
use omchat::Device;
use omchat::tuned::Tables;
use serde_json::{Map, Value, json};
use std::time::Instant;

/// What `omchat doctor` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Prints one JSON object instead of lines.
    #[arg(long)]
    json: bool,
    /// Does not measure how fast each device copies memory and multiplies matrices, which takes some seconds in all.
    #[arg(long)]
    quick: bool,
}

/// Looks at the machine and says what it found.
pub fn run(args: &Args) -> Result<(), Error> {
    let devices: Vec<Value> = omchat_runtime::NAMES.iter().map(|name| device(name, !args.quick)).collect();
    let chosen = match Device::best() {
        Ok((device, why)) => json!({ "device": device.name(), "why": why }),
        Err(e) => json!({ "device": null, "why": e.to_string() }),
    };
    let report = json!({
        "versions": machine::versions(),
        "devices": devices,
        "chosen": chosen,
        "nccl": machine::nccl(),
        "ffmpeg": machine::ffmpeg(),
        "mini": machine::mini(),
        "free_memory": Device::Interp.free_bytes(),
    });
    if args.json { say(format!("{report:#}\n")) } else { say(lines(&report)) }
}

/// A device: whether it is there, what it says of itself, whether a kernel runs on it.
fn device(name: &str, measured: bool) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), json!(name));
    match super::device::quietly(Some(name)) {
        Err(e) => {
            out.insert("present".into(), json!(false));
            out.insert("reason".into(), json!(e.to_string()));
            out.insert("mend".into(), json!(machine::mend(name)));
        }
        Ok(device) => {
            out.insert("present".into(), json!(true));
            let mut facts: Map<String, Value> =
                device.facts().into_iter().map(|(n, v)| (n.to_string(), json!(v))).collect();
            if name != "interp" {
                let told = Tables::of(&device).map_or_else(|e| e.to_string(), |t| t.told());
                facts.insert("tuned schedules".into(), json!(told));
            }
            out.insert("facts".into(), Value::Object(facts));
            let start = Instant::now();
            let works = measure::trial(&device);
            let seconds = start.elapsed().as_secs_f64();
            out.insert(
                "works".into(),
                works.map_or_else(
                    |e| json!({ "error": e.to_string() }),
                    |n| json!({ "seconds": seconds, "compiled": n }),
                ),
            );
            if measured && name != "interp" {
                out.insert("measured".into(), measure::ceilings(&device));
            }
        }
    }
    Value::Object(out)
}

/// The report for a reader.
fn lines(report: &Value) -> String {
    let mut out = String::new();
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    for (name, version) in report["versions"].as_object().into_iter().flatten() {
        out += &format!("{name:<12} {}\n", text(version));
    }
    for d in report["devices"].as_array().into_iter().flatten() {
        let name = text(&d["name"]);
        if d["present"] == json!(false) {
            out += &format!("{name:<12} absent: {}\n{:<12} to get it: {}\n", text(&d["reason"]), "", text(&d["mend"]));
            continue;
        }
        let works = match d["works"]["error"].as_str() {
            Some(e) => format!("present, but a trial program failed: {e}"),
            None => format!(
                "present; a trial program ran in {:.3} s, {} kernels compiled",
                d["works"]["seconds"].as_f64().unwrap_or_default(),
                d["works"]["compiled"]
            ),
        };
        out += &format!("{name:<12} {works}\n");
        for part in ["facts", "measured"] {
            for (fact, value) in d[part].as_object().into_iter().flatten() {
                out += &format!("{:<12} {fact:<26} {}\n", "", text(value));
            }
        }
    }
    out += &format!("{:<12} {}\n", "chosen", text(&report["chosen"]["why"]));
    for part in ["nccl", "ffmpeg", "mini"] {
        let p = &report[part];
        let line = if p["present"] == json!(true) {
            text(&p["found"])
        } else {
            format!("absent; to get it: {}", text(&p["mend"]))
        };
        out += &format!("{part:<12} {line}\n");
    }
    out += &format!("{:<12} {} bytes free\n", "memory", report["free_memory"]);
    out
}
