//! `omchat demo`.

use super::Error;

/// What the demo takes.
#[derive(clap::Args)]
pub struct Args {
    /// The device to run on; the best that there is if not given.
    #[arg(long)]
    pub device: Option<String>,
}

/// Shows the demo.
pub fn run(args: &Args) -> Result<(), Error> {
    let _ = args;
    Err(Error::failed("the demo is not written yet"))
}
