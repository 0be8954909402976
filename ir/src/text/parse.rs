//! Tokens to what a text says, by recursive descent.
// A fault carries its place and message; one text in a thousand has one.
#![allow(clippy::result_large_err)]

use super::ast::{Bare, Comment, Dim, DtypeText, Expr, File, Given, Operand, Stmt, Template, TypeText};
use super::lex::{Token, lex};
use crate::Bind;
use crate::fault::{Code, Diagnostic, Diagnostics, Fault, Place};
use crate::module::Role;
use crate::types::Dtype;

/// Deepest nesting of loops and of size arithmetic.
const DEPTH: usize = 16;
/// Most terms or factors of one size.
const TERMS: usize = 64;
/// Most faults that are reported.
const FAULTS: usize = 64;

/// The functions of a text.
///
/// Errors: the first fault of the grammar in each function, of 64 functions at most.
pub fn parse_file(text: &str) -> Result<File, Diagnostics> {
    parse_named("", text)
}

/// The functions of a file of the library, or of a text for the empty name.
///
/// Errors: as for [`parse_file`].
pub fn parse_named(name: &'static str, text: &str) -> Result<File, Diagnostics> {
    let (tokens, comments) = lex(name, text)?;
    let mut p = Parser { tokens, comments, at: 0, function: String::new(), depth: 0 };
    let (mut file, mut faults) = (File::default(), vec![]);
    loop {
        let start = p.at;
        let doc = p.doc();
        if p.peek() == &Token::End {
            p.at = start;
            p.loose_doc();
            break;
        }
        match p.template(doc) {
            Ok(t) => file.functions.push(t),
            Err(fault) => {
                faults.push(fault);
                if faults.len() == FAULTS {
                    break;
                }
                p.skip_to_function();
            }
        }
        p.function.clear();
        p.depth = 0;
    }
    file.comments = p.comments;
    file.comments.sort_by_key(|c| c.line);
    if faults.is_empty() { Ok(file) } else { Err(Diagnostics(faults)) }
}

struct Parser {
    tokens: Vec<(Token, Place)>,
    comments: Vec<Comment>,
    at: usize,
    function: String,
    depth: usize,
}

type Parsed<T> = Result<T, Diagnostic>;

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    fn place(&self) -> Place {
        let mut p = self.tokens[self.at.min(self.tokens.len() - 1)].1.clone();
        p.function.clone_from(&self.function);
        p
    }

    fn fail<T>(&self, want: &str) -> Parsed<T> {
        let have = match self.peek() {
            Token::Word(w) | Token::Number(w) => format!("`{w}`"),
            Token::Value(v) => format!("`%{v}`"),
            Token::Function(v) => format!("`@{v}`"),
            Token::Text(t) => format!("\"{t}\""),
            Token::Mark(m) => format!("`{m}`"),
            Token::Doc(_) => "a `;;` comment".to_string(),
            Token::End => "the end of the text".to_string(),
        };
        Err(Fault::new(Code::Syntax, format!("expected {want}, found {have}")).at(self.place()))
    }

    fn is(&self, mark: &str) -> bool {
        matches!(self.peek(), Token::Mark(m) if *m == mark)
    }

    fn eat(&mut self, mark: &str) -> bool {
        let yes = self.is(mark);
        self.at += usize::from(yes);
        yes
    }

    fn must(&mut self, mark: &str) -> Parsed<()> {
        if self.eat(mark) { Ok(()) } else { self.fail(&format!("`{mark}`")) }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(w) if w == word)
    }

    fn doc(&mut self) -> Vec<String> {
        let mut doc = vec![];
        while let Token::Doc(line) = self.peek() {
            doc.push(line.clone());
            self.at += 1;
        }
        doc
    }

    /// From a place to the token before this one, as far as they share a line.
    fn span(&self, from: Place) -> Place {
        let last = self.tokens[..self.at].iter().rev().find(|(_, p)| p.line <= from.line);
        let width = last
            .filter(|(_, p)| p.line == from.line)
            .map_or(1, |(_, p)| (p.column + p.width).saturating_sub(from.column));
        Place { width, ..from }
    }

    /// `;;` lines that document no function are comments.
    fn loose_doc(&mut self) {
        while let Token::Doc(line) = self.peek() {
            let text = format!(";; {line}").trim_end().to_string();
            let line = self.place().line;
            self.comments.push(Comment { line, text });
            self.at += 1;
        }
    }

    /// The line of the token before this one.
    fn line_before(&self) -> usize {
        self.tokens[..self.at].last().map_or(0, |(_, p)| p.line)
    }

    fn skip_to_function(&mut self) {
        while self.peek() != &Token::End {
            self.at += 1;
            if self.is_word("func") || (matches!(self.peek(), Token::Doc(_)) && self.place().column == 1) {
                break;
            }
        }
    }

    fn word(&mut self, want: &str) -> Parsed<String> {
        match self.peek().clone() {
            Token::Word(w) => {
                self.at += 1;
                Ok(w)
            }
            _ => self.fail(want),
        }
    }

    fn value(&mut self) -> Parsed<String> {
        match self.peek().clone() {
            Token::Value(v) => {
                self.at += 1;
                Ok(v)
            }
            _ => self.fail("a value `%name`"),
        }
    }

    fn list<T>(&mut self, close: &'static str, mut item: impl FnMut(&mut Parser) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut out = vec![];
        while !self.eat(close) {
            out.push(item(self)?);
            if !self.eat(",") && !self.is(close) {
                return self.fail(&format!("`,` or `{close}`"));
            }
        }
        Ok(out)
    }

    fn template(&mut self, doc: Vec<String>) -> Parsed<Template> {
        let place = self.place();
        if !self.is_word("func") {
            return self.fail("`func`");
        }
        self.at += 1;
        let Token::Function(name) = self.peek().clone() else { return self.fail("a name `@name`") };
        self.at += 1;
        self.function.clone_from(&name);
        let letters = if self.eat("[") { self.list("]", Parser::letter)? } else { vec![] };
        self.must("(")?;
        let params = self.list(")", Parser::param)?;
        let results = if self.eat("->") { self.results()? } else { vec![] };
        self.must("{")?;
        let place = Place { function: name.clone(), ..self.span(place) };
        let body = self.block()?;
        Ok(Template { doc, name, letters, params, results, body, place, end: self.line_before() })
    }

    fn letter(&mut self) -> Parsed<(String, Option<Bind>)> {
        let name = self.word("a letter")?;
        if !self.eat("=") {
            return Ok((name, None));
        }
        let bind = match self.peek().clone() {
            Token::Word(w) => Dtype::from_name(&w).map(Bind::Dtype),
            Token::Number(n) => n.parse::<i64>().ok().and_then(|n| usize::try_from(n).ok()).map(Bind::Size),
            _ => None,
        };
        match bind {
            Some(b) => {
                self.at += 1;
                Ok((name, Some(b)))
            }
            None => self.fail("a size or a dtype"),
        }
    }

    fn param(&mut self) -> Parsed<(Role, String, TypeText)> {
        let role = match self.peek() {
            Token::Word(w) if w == "weight" => Role::Weight,
            Token::Word(w) if w == "state" => Role::State,
            _ => Role::Input,
        };
        self.at += usize::from(role != Role::Input);
        let name = self.value()?;
        self.must(":")?;
        Ok((role, name, self.ty()?))
    }

    fn results(&mut self) -> Parsed<Vec<TypeText>> {
        if self.eat("(") { self.list(")", Parser::ty) } else { Ok(vec![self.ty()?]) }
    }

    fn ty(&mut self) -> Parsed<TypeText> {
        let place = self.place();
        let word = self.word("a dtype")?;
        let dtype = match Dtype::from_name(&word) {
            Some(d) => DtypeText::Known(d),
            None if word.starts_with(|c: char| c.is_ascii_uppercase()) => DtypeText::Letter(word),
            None => {
                return Err(Fault::new(Code::Dtype, format!("`{word}` is no dtype"))
                    .help("f32, bf16, f16, i32, bool, or a capital letter")
                    .at(place));
            }
        };
        let dims = if self.eat("[") { self.list("]", Parser::dim)? } else { vec![] };
        Ok(TypeText { dtype, dims, place: self.span(place) })
    }

    fn dim(&mut self) -> Parsed<Dim> {
        let mut left = self.product()?;
        for _ in 0..TERMS {
            // `C -1` lexes as a word and a negative number; it is a difference.
            let at = self.at.min(self.tokens.len() - 1);
            let negative = match &mut self.tokens[at].0 {
                Token::Number(n) if n.starts_with('-') => {
                    n.remove(0);
                    true
                }
                _ => false,
            };
            let op = if negative || self.eat("-") {
                '-'
            } else if self.eat("+") {
                '+'
            } else {
                return Ok(left);
            };
            left = Dim::Join(op, Box::new(left), Box::new(self.product()?));
        }
        self.too_long()
    }

    fn product(&mut self) -> Parsed<Dim> {
        let mut left = self.atom()?;
        for _ in 0..TERMS {
            let op = if self.eat("*") {
                '*'
            } else if self.eat("/") {
                '/'
            } else {
                return Ok(left);
            };
            left = Dim::Join(op, Box::new(left), Box::new(self.atom()?));
        }
        self.too_long()
    }

    fn too_long<T>(&self) -> Parsed<T> {
        Err(Fault::new(Code::Syntax, format!("a size of more than {TERMS} terms")).at(self.place()))
    }

    fn atom(&mut self) -> Parsed<Dim> {
        match self.peek().clone() {
            Token::Number(n) => match n.parse() {
                Ok(n) => {
                    self.at += 1;
                    Ok(Dim::Number(n))
                }
                Err(_) => self.fail("a whole number"),
            },
            Token::Word(w) => {
                self.at += 1;
                Ok(Dim::Letter(w))
            }
            Token::Mark("(") => {
                self.at += 1;
                let d = self.nested(Parser::dim)?;
                self.must(")")?;
                Ok(d)
            }
            Token::Mark("-") => {
                self.at += 1;
                let d = self.nested(Parser::atom)?;
                Ok(Dim::Join('-', Box::new(Dim::Number(0)), Box::new(d)))
            }
            _ => self.fail("a size"),
        }
    }

    fn nested<T>(&mut self, f: impl FnOnce(&mut Parser) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Fault::new(Code::Syntax, format!("nested deeper than {DEPTH}")).at(self.place()));
        }
        let out = f(self);
        self.depth -= 1;
        out
    }

    fn block(&mut self) -> Parsed<Vec<Stmt>> {
        let mut out = vec![];
        while !self.eat("}") {
            self.loose_doc();
            if self.is("}") {
                continue;
            }
            if let Some(Stmt::Return { .. }) = out.last() {
                return self.fail("`}` after `return`");
            }
            out.push(self.stmt()?);
        }
        Ok(out)
    }

    fn stmt(&mut self) -> Parsed<Stmt> {
        let place = self.place();
        if self.is_word("return") {
            self.at += 1;
            let mut values = vec![];
            if matches!(self.peek(), Token::Value(_) | Token::Number(_)) {
                values = self.operands()?;
            }
            return Ok(Stmt::Return { values, place: self.span(place) });
        }
        if self.is_word("for") {
            return self.nested(|p| p.for_loop(place));
        }
        let mut names = vec![self.value()?];
        while self.eat(",") {
            names.push(self.value()?);
        }
        self.must("=")?;
        let expr = if self.is_word("call") { self.call()? } else { self.op()? };
        let place = self.span(place);
        let mut types = vec![];
        if self.eat(":") {
            types.push(self.ty()?);
            while self.eat(",") {
                types.push(self.ty()?);
            }
        }
        Ok(Stmt::Let { names, expr, types, place })
    }

    fn for_loop(&mut self, place: Place) -> Parsed<Stmt> {
        self.at += 1;
        let variable = self.word("a loop variable")?;
        if !self.is_word("in") {
            return self.fail("`in`");
        }
        self.at += 1;
        let from = self.dim()?;
        self.must("..")?;
        let to = self.dim()?;
        self.must("{")?;
        let place = self.span(place);
        let body = self.block()?;
        if let Some(Stmt::Return { place, .. }) = body.last() {
            return Err(Fault::new(Code::Return, "`return` stands in a loop")
                .help("put it after the loop")
                .at(Place { function: self.function.clone(), ..place.clone() }));
        }
        Ok(Stmt::For { variable, from, to, body, place, end: self.line_before() })
    }

    fn operands(&mut self) -> Parsed<Vec<Operand>> {
        let mut out = vec![self.operand()?];
        while self.eat(",") {
            out.push(self.operand()?);
        }
        Ok(out)
    }

    fn operand(&mut self) -> Parsed<Operand> {
        match self.peek().clone() {
            Token::Value(v) => {
                self.at += 1;
                Ok(Operand::Name(v))
            }
            Token::Number(_) => Ok(Operand::Number(self.number()?)),
            _ => self.fail("a value or a number"),
        }
    }

    fn number(&mut self) -> Parsed<f64> {
        let Token::Number(n) = self.peek().clone() else { return self.fail("a number") };
        match n.parse::<f64>() {
            Ok(x) if x.is_finite() => {
                self.at += 1;
                Ok(x)
            }
            _ => self.fail("a finite number"),
        }
    }

    fn call(&mut self) -> Parsed<Expr> {
        self.at += 1;
        let Token::Function(name) = self.peek().clone() else { return self.fail("a name `@name`") };
        self.at += 1;
        let letters = if self.eat("[") { self.list("]", Parser::given)? } else { vec![] };
        self.must("(")?;
        let operands = self.list(")", Parser::operand)?;
        let remat = self.is_word("remat");
        self.at += usize::from(remat);
        Ok(Expr::Call { name, letters, operands, remat })
    }

    fn given(&mut self) -> Parsed<(String, Given)> {
        let name = self.word("a letter")?;
        self.must("=")?;
        if let Token::Word(w) = self.peek()
            && let Some(d) = Dtype::from_name(w)
        {
            self.at += 1;
            return Ok((name, Given::Dtype(d)));
        }
        Ok((name, Given::Dim(self.dim()?)))
    }

    fn op(&mut self) -> Parsed<Expr> {
        let word = self.word("a mnemonic or `call`")?;
        let (mnemonic, suffix) = match word.split_once('.') {
            Some((m, s)) => (m.to_string(), Some(s.to_string())),
            None => (word, None),
        };
        let (mut operands, mut bare) = (vec![], None);
        match mnemonic.as_str() {
            "constant" => bare = Some(Bare::Number(self.number()?)),
            "iota" | "dim" => bare = Some(Bare::Dim(self.dim()?)),
            _ => operands = self.operands()?,
        }
        let mut axes = None;
        if let Token::Text(t) = self.peek().clone() {
            self.at += 1;
            axes = Some(t);
        }
        let mut ints = vec![];
        while let (Token::Word(name), Some((Token::Mark("="), _))) = (self.peek().clone(), self.tokens.get(self.at + 1))
        {
            self.at += 2;
            ints.push((name, self.dim()?));
        }
        Ok(Expr::Op { mnemonic, suffix, operands, bare, axes, ints })
    }
}
