//! What is wrong, where, and — where we know — the mend.

use std::fmt;

/// The class of a fault. Each has a file in `tests/filetests/verify/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The text does not follow the grammar.
    Syntax,
    /// A name is unknown, or bound twice.
    Name,
    /// The number of operands or results is off.
    Arity,
    /// An element type does not fit.
    Dtype,
    /// An axes string is malformed or does not fit its operands.
    Axes,
    /// A size does not fit.
    Dim,
    /// An attribute is missing, unknown or out of range.
    Attribute,
    /// What a function returns is not what it declares.
    Return,
    /// Ranks disagree, or their number does not fit.
    Rank,
}

impl Code {
    /// Every code.
    pub const ALL: [Code; 9] = [Code::Syntax, Code::Name, Code::Arity, Code::Dtype, Code::Axes, Code::Dim, Code::Attribute, Code::Return, Code::Rank];

    /// The name that is printed: `syntax`, `dim`, …
    pub fn name(self) -> &'static str {
        match self {
            Code::Syntax => "syntax",
            Code::Name => "name",
            Code::Arity => "arity",
            Code::Dtype => "dtype",
            Code::Axes => "axes",
            Code::Dim => "dim",
            Code::Attribute => "attribute",
            Code::Return => "return",
            Code::Rank => "rank",
        }
    }
}

/// A fault that does not know its place yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its class.
    pub code: Code,
    /// What is wrong, with both numbers.
    pub message: String,
    /// The mend, where we know one.
    pub help: Option<String>,
}

impl Fault {
    /// A fault of that class.
    pub fn new(code: Code, message: impl Into<String>) -> Fault {
        Fault { code, message: message.into(), help: None }
    }

    /// The same, with a mend.
    pub fn help(mut self, help: impl Into<String>) -> Fault {
        self.help = Some(help.into());
        self
    }

    /// The same, at a place.
    pub fn at(self, place: Place) -> Diagnostic {
        Diagnostic { code: self.code, place, message: self.message, help: self.help }
    }
}

/// Where a fault is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1; 0 when the fault is not in a text.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// The function, without `@`; empty outside one.
    pub function: String,
}

/// A fault at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Its class.
    pub code: Code,
    /// Where.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// The mend, where we know one.
    pub help: Option<String>,
}

/// All faults of a text or a module; never empty in an `Err`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// The faults with the offending lines of `source` and a caret under each.
    pub fn render(&self, file: &str, source: &str) -> String {
        let lines: Vec<&str> = source.lines().collect();
        self.0.iter().map(|d| d.render(file, &lines)).collect::<Vec<_>>().join("\n")
    }
}

impl Diagnostic {
    fn render(&self, file: &str, lines: &[&str]) -> String {
        let mut out = format!("error[{}]: {}\n", self.code.name(), self.message);
        if self.place.line > 0 {
            out += &format!("  --> {file}:{}:{}", self.place.line, self.place.column);
            if !self.place.function.is_empty() {
                out += &format!("  in @{}", self.place.function);
            }
            out += "\n";
            if let Some(line) = lines.get(self.place.line - 1) {
                out += &format!("   |\n{:>2} | {line}\n   | {}^\n", self.place.line, " ".repeat(self.place.column.saturating_sub(1)));
            }
        } else if !self.place.function.is_empty() {
            out += &format!("  --> @{}\n", self.place.function);
        }
        if let Some(help) = &self.help {
            out += &format!("   = help: {help}\n");
        }
        out
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.0.iter().enumerate() {
            let sep = if i > 0 { "; " } else { "" };
            write!(f, "{sep}error[{}]", d.code.name())?;
            if !d.place.function.is_empty() {
                write!(f, " in @{}", d.place.function)?;
            }
            if d.place.line > 0 {
                write!(f, " line {}:{}", d.place.line, d.place.column)?;
            }
            write!(f, ": {}", d.message)?;
            if let Some(help) = &d.help {
                write!(f, " (help: {help})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

impl From<Diagnostic> for Diagnostics {
    fn from(d: Diagnostic) -> Diagnostics {
        Diagnostics(vec![d])
    }
}

impl From<Fault> for Diagnostics {
    fn from(f: Fault) -> Diagnostics {
        Diagnostics(vec![f.at(Place::default())])
    }
}
