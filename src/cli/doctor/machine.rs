//! What surrounds the command: versions, programs it calls, models that were fetched.

use serde_json::{Value, json};
use std::process::Command;

/// Versions of what this command is made of, and of the compiler if one is here.
pub fn versions() -> Value {
    json!({
        "omchat": env!("CARGO_PKG_VERSION"),
        "cubecl": omchat_runtime::CUBECL,
        "rustc": first_line("rustc", "--version").unwrap_or_else(|| "not here; not needed to run".into()),
    })
}

/// Whether video files can be read.
pub fn ffmpeg() -> Value {
    let program = std::env::var("OMCHAT_FFMPEG").unwrap_or_else(|_| "ffmpeg".into());
    match first_line(&program, "-version") {
        Some(found) => json!({ "present": true, "found": found }),
        None => {
            json!({ "present": false, "mend": "apt-get install ffmpeg, or name a program in OMCHAT_FFMPEG; folders of frames and animated GIF need none" })
        }
    }
}

/// Whether ranks on GPUs can exchange from GPU to GPU.
pub fn nccl() -> Value {
    match omchat_runtime::collective::nccl() {
        Ok(version) => json!({ "present": true, "found": version }),
        Err(why) => {
            json!({ "present": false, "reason": why, "mend": "apt-get install libnccl2, or name a libnccl.so.2 in OMCHAT_NCCL_LIB; without it ranks exchange through the host" })
        }
    }
}

/// Whether the small model of real weights was fetched.
pub fn mini() -> Value {
    let dir = omchat::home().join("mini");
    if dir.join("config.json").is_file() {
        return json!({ "present": true, "found": dir.display().to_string() });
    }
    json!({ "present": false, "mend": format!("scripts/mini.sh, which makes {}", dir.display()) })
}

/// How to get a device that is absent.
pub fn mend(device: &str) -> &'static str {
    match device {
        "cuda" => "an NVIDIA GPU of compute capability 8.0 or more and its driver",
        "wgpu" => "apt-get install libvulkan1 mesa-vulkan-drivers, or scripts/setup.sh test",
        "cpu" => "cargo build --features cpu",
        _ => "",
    }
}

fn first_line(program: &str, argument: &str) -> Option<String> {
    let out = Command::new(program).arg(argument).output().ok().filter(|o| o.status.success())?;
    String::from_utf8_lossy(&out.stdout).lines().next().map(str::to_owned)
}
