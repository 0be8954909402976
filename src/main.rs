//! The command `omchat`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    quiet_drivers();
    match cli::run(cli::parsed()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => e.report(),
    }
}

/// Vulkan drivers complain on stderr, at each device that is looked for, where no session set this folder.
fn quiet_drivers() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
}
