//! The text: what is read, what is printed, and how templates become concrete functions.

mod ast;
mod env;
mod instantiate;
mod lex;
mod parse;
mod print;
mod unify;

pub use ast::{Comment, File, Template};
pub use instantiate::{Scope, instantiate_call};
pub use parse::{parse_file, parse_named};
pub use print::{number, print, spell, to_ast};

use crate::Module;
use crate::fault::Diagnostics;

/// The module that a text spells: its functions without free letters, and what they call.
///
/// Functions of the library may be called by name.
///
/// Errors: all faults, each at its place.
pub fn parse(text: &str) -> Result<Module, Diagnostics> {
    let file = parse_file(text)?;
    Scope::new(&[crate::library::file()?, &file]).module(&file)
}

/// The text in the one layout that `print` writes; templates, loops and comments stay.
///
/// Errors: faults of the grammar.
pub fn format(text: &str) -> Result<String, Diagnostics> {
    Ok(print(&parse_file(text)?))
}
