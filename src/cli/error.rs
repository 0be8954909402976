//! Why a command failed, and the exit code that says so.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// A command's failure.
#[derive(Debug)]
pub enum Error {
    /// What was asked for or given cannot be used; exit code 2.
    Input(String),
    /// It could be used and failed; exit code 1.
    Failed(String),
    /// Faults that are already laid out for the reader; exit code 1.
    Rendered(String),
    /// Faults that are laid out, of a command whose exit code 1 says that it found a difference; exit code 2.
    Trouble(String),
    /// Some of what was asked could not be used, as stderr said when it came; exit code 2.
    Told,
    /// What was compared differs, as stdout says; exit code 1.
    Different,
    /// Whoever read the output went away: no failure of ours.
    Closed,
}

impl Error {
    /// Bad usage or input.
    pub fn input(message: impl fmt::Display) -> Error {
        Error::Input(message.to_string())
    }

    /// A failure while running.
    pub fn failed(message: impl fmt::Display) -> Error {
        Error::Failed(message.to_string())
    }

    /// The same with exit code 2, for a command whose exit code 1 means a difference.
    pub fn trouble(self) -> Error {
        match self {
            Error::Failed(m) => Error::Input(m),
            Error::Rendered(m) => Error::Trouble(m),
            other => other,
        }
    }

    /// Writes the message to stderr and yields the exit code.
    pub fn report(&self) -> ExitCode {
        let (message, code) = match self {
            Error::Input(m) => (format!("error: {m}\n"), 2),
            Error::Failed(m) => (format!("error: {m}\n"), 1),
            Error::Rendered(m) => (m.clone(), 1),
            Error::Trouble(m) => (m.clone(), 2),
            Error::Told => (String::new(), 2),
            Error::Different => (String::new(), 1),
            Error::Closed => (String::new(), 0),
        };
        // Nobody is left to tell when stderr is closed too.
        let _ = io::stderr().write_all(message.as_bytes());
        ExitCode::from(code)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Input(m) | Error::Failed(m) | Error::Rendered(m) | Error::Trouble(m) => f.write_str(m),
            Error::Told => f.write_str("some of it could not be used"),
            Error::Different => f.write_str("the two differ"),
            Error::Closed => f.write_str("the reader of the output went away"),
        }
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Error {
        if e.kind() == io::ErrorKind::BrokenPipe { Error::Closed } else { Error::failed(e) }
    }
}

impl From<omchat_model::Error> for Error {
    fn from(e: omchat_model::Error) -> Error {
        Error::input(e)
    }
}

impl From<omchat_ir::Diagnostics> for Error {
    fn from(e: omchat_ir::Diagnostics) -> Error {
        Error::failed(e)
    }
}

impl From<omchat_codegen::Error> for Error {
    fn from(e: omchat_codegen::Error) -> Error {
        Error::failed(e)
    }
}

impl From<omchat_runtime::Error> for Error {
    fn from(e: omchat_runtime::Error) -> Error {
        match e {
            omchat_runtime::Error::NoDevice { .. } => Error::input(e),
            _ => Error::failed(e),
        }
    }
}

impl From<omchat::Error> for Error {
    fn from(e: omchat::Error) -> Error {
        match e {
            omchat::Error::Runtime(e) => e.into(),
            omchat::Error::Module(_) | omchat::Error::Numeric { .. } => Error::failed(e),
            _ => Error::input(e),
        }
    }
}

impl From<omchat_recipe::Error> for Error {
    fn from(e: omchat_recipe::Error) -> Error {
        match e {
            omchat_recipe::Error::Stopped(why) => match why.downcast::<omchat::Error>() {
                Ok(known) => (*known).into(),
                Err(other) => Error::failed(other),
            },
            _ => Error::input(e),
        }
    }
}
