//! `omchat encode`.

use super::Error;

/// What the command takes.
#[derive(clap::Args)]
pub struct Args {}

/// Runs it.
pub fn run(_: &Args) -> Result<(), Error> {
    Err(Error::failed("encode is not written yet"))
}
