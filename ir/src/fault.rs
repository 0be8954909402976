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

/// `1 operand`, `2 operands`.
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

impl Code {
    /// Every code.
    pub const ALL: [Code; 9] = [
        Code::Syntax,
        Code::Name,
        Code::Arity,
        Code::Dtype,
        Code::Axes,
        Code::Dim,
        Code::Attribute,
        Code::Return,
        Code::Rank,
    ];

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
        Diagnostic { code: self.code, place, calls: vec![], message: self.message, help: self.help }
    }
}

/// Where a fault is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1; 0 when the fault is not in a text.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// How many characters of the line are meant.
    pub width: usize,
    /// The file of the library that it is in; empty for the text that was given.
    pub file: &'static str,
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
    /// The calls that led there, the innermost first; empty outside a callee.
    pub calls: Vec<Place>,
    /// What is wrong.
    pub message: String,
    /// The mend, where we know one.
    pub help: Option<String>,
}

/// All faults of a text or a module; never empty in an `Err`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// The faults with the offending lines of `source` and carets under what is meant; then the calls that
    /// led there. A fault in the library shows the library's line.
    pub fn render(&self, file: &str, source: &str) -> String {
        self.0.iter().map(|d| d.render(file, source)).collect::<Vec<_>>().join("\n")
    }
}

impl Diagnostic {
    /// Whether it is the same fault at the same place, whichever call led there.
    pub(crate) fn same(&self, other: &Diagnostic) -> bool {
        (self.code, &self.place, &self.message) == (other.code, &other.place, &other.message)
    }

    fn render(&self, file: &str, source: &str) -> String {
        let mut out = format!("error[{}]: {}\n", self.code.name(), self.message);
        out += &self.place.render(file, source);
        for call in &self.calls {
            let (name, source) = call.text(file, source);
            let line = source.lines().nth(call.line.saturating_sub(1)).unwrap_or_default().trim();
            out += &format!("   = called from {name}:{}:{}  in @{}: {line}\n", call.line, call.column, call.function);
        }
        if let Some(help) = &self.help {
            out += &format!("   = help: {help}\n");
        }
        out
    }
}

impl Place {
    fn text<'a>(&self, file: &'a str, source: &'a str) -> (&'a str, &'a str) {
        match crate::library::FILES.iter().find(|(n, _)| *n == self.file) {
            Some(own) => *own,
            None => (file, source),
        }
    }

    fn render(&self, file: &str, source: &str) -> String {
        if self.line == 0 {
            return if self.function.is_empty() { String::new() } else { format!("  --> @{}\n", self.function) };
        }
        let (file, source) = self.text(file, source);
        let inside = if self.function.is_empty() { String::new() } else { format!("  in @{}", self.function) };
        let mut out = format!("  --> {file}:{}:{}{inside}\n", self.line, self.column);
        if let Some(line) = source.lines().nth(self.line - 1) {
            // Tabs stay tabs, so that the carets stand under their characters.
            let pad: String =
                line.chars().take(self.column.saturating_sub(1)).map(|c| if c == '\t' { c } else { ' ' }).collect();
            let gutter = self.line.to_string();
            let blank = " ".repeat(gutter.len().max(2));
            out += &format!("{blank} |\n{gutter:>2} | {line}\n{blank} | {pad}{}\n", "^".repeat(self.width.max(1)));
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
                let file = if d.place.file.is_empty() { String::new() } else { format!(" of {}", d.place.file) };
                write!(f, " line {}:{}{file}", d.place.line, d.place.column)?;
            }
            if let Some(call) = d.calls.last() {
                write!(f, " called in @{} line {}:{}", call.function, call.line, call.column)?;
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
