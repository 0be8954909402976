//! What a text says, before sizes are known.

use crate::Bind;
use crate::fault::Place;
use crate::module::Role;
use crate::types::Dtype;

/// A text: functions and templates.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    /// In order.
    pub functions: Vec<Template>,
    /// Comments that document no function, by line.
    pub comments: Vec<Comment>,
}

/// A comment, from its `;` to the end of the line.
#[derive(Clone, Debug, PartialEq)]
pub struct Comment {
    /// Line, from 1.
    pub line: usize,
    /// The whole of it.
    pub text: String,
}

/// A function, maybe with letters.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// The lines of its `;;` comment.
    pub doc: Vec<String>,
    /// The name, without `@`.
    pub name: String,
    /// The letters, and what they stand for in an instance.
    pub letters: Vec<(String, Option<Bind>)>,
    /// Role, name and type of each parameter.
    pub params: Vec<(Role, String, TypeText)>,
    /// Types of results.
    pub results: Vec<TypeText>,
    /// The body.
    pub body: Vec<Stmt>,
    /// Where it stands.
    pub place: Place,
    /// The line of its `}`.
    pub end: usize,
}

/// A type with letters.
#[derive(Clone, Debug, PartialEq)]
pub struct TypeText {
    /// The dtype, or a letter for one.
    pub dtype: DtypeText,
    /// Sizes.
    pub dims: Vec<Dim>,
    /// Where it stands.
    pub place: Place,
}

/// A dtype or a letter for one.
#[derive(Clone, Debug, PartialEq)]
pub enum DtypeText {
    /// Known.
    Known(Dtype),
    /// A letter.
    Letter(String),
}

/// Arithmetic over sizes.
#[derive(Clone, Debug, PartialEq)]
pub enum Dim {
    /// A number.
    Number(i64),
    /// A letter or a loop's variable.
    Letter(String),
    /// `+`, `-`, `*` or `/` of two.
    Join(char, Box<Dim>, Box<Dim>),
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Stmt {
    /// `%a, %b = …`
    Let {
        /// Names bound.
        names: Vec<String>,
        /// What they are bound to.
        expr: Expr,
        /// Types as written; empty when left out.
        types: Vec<TypeText>,
        /// Where it stands.
        place: Place,
    },
    /// `for step in 1..R { … }`
    For {
        /// The variable.
        variable: String,
        /// First value.
        from: Dim,
        /// First value after.
        to: Dim,
        /// The body.
        body: Vec<Stmt>,
        /// Where it stands.
        place: Place,
        /// The line of its `}`.
        end: usize,
    },
    /// `return %a, %b`
    Return {
        /// What is returned.
        values: Vec<Operand>,
        /// Where it stands.
        place: Place,
    },
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// `%name`
    Name(String),
    /// A number: a scalar constant of the dtype that fits.
    Number(f64),
}

/// What follows a dot after a mnemonic.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// A primitive.
    Op {
        /// Its mnemonic.
        mnemonic: String,
        /// After the dot; a letter stands for a dtype.
        suffix: Option<String>,
        /// Operands.
        operands: Vec<Operand>,
        /// Bare size of `iota` and `dim`, or number of `constant` (with its sign and fraction).
        bare: Option<Bare>,
        /// The axes string.
        axes: Option<String>,
        /// `name=size`
        ints: Vec<(String, Dim)>,
    },
    /// A call.
    Call {
        /// The callee, without `@`.
        name: String,
        /// Letters given at the call.
        letters: Vec<(String, Given)>,
        /// Operands.
        operands: Vec<Operand>,
        /// Recompute in the backward pass.
        remat: bool,
    },
}

/// A bare operand of an op without tensors.
#[derive(Clone, Debug, PartialEq)]
pub enum Bare {
    /// A size.
    Dim(Dim),
    /// A number.
    Number(f64),
}

/// A letter's value at a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    /// A dtype.
    Dtype(Dtype),
    /// A size, or a letter that may stand for a dtype.
    Dim(Dim),
}
