//! Tokens of the text.
// A fault carries its place and message; one text in a thousand has one.
#![allow(clippy::result_large_err)]

use super::ast::Comment;
use crate::fault::{Code, Diagnostic, Fault, Place};

/// A token's kind and text.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A word: a mnemonic, a letter, a keyword; may hold dots: `einsum.f32`.
    Word(String),
    /// `%name`
    Value(String),
    /// `@name`
    Function(String),
    /// A number as written.
    Number(String),
    /// `"…"`
    Text(String),
    /// Punctuation: one of `( ) [ ] { } , : = + - * /`, `->` or `..`.
    Mark(&'static str),
    /// A `;;` comment line.
    Doc(String),
    /// The end.
    End,
}

const MARKS: [&str; 15] = ["->", "..", "(", ")", "[", "]", "{", "}", ",", ":", "=", "+", "-", "*", "/"];

/// Tokens with their places, and comments.
pub type Lexed = (Vec<(Token, Place)>, Vec<Comment>);

/// The tokens of a text with their places, and its `;` comments; a `;;` comment is a token.
///
/// Errors: the first character that starts no token, or an open string.
pub fn lex(file: &'static str, text: &str) -> Result<Lexed, Diagnostic> {
    let (mut out, mut comments) = (vec![], vec![]);
    for (n, line) in text.lines().enumerate() {
        let mut rest = line;
        let (mut at, mut chars) = (0, 0);
        loop {
            let trimmed = rest.trim_start();
            let column = line.len() - trimmed.len();
            chars += line[at..column].chars().count();
            at = column;
            let mut place = Place { line: n + 1, column: chars + 1, width: 1, file, ..Place::default() };
            if trimmed.is_empty() {
                break;
            }
            if let Some(doc) = trimmed.strip_prefix(";;") {
                out.push((Token::Doc(doc.strip_prefix(' ').unwrap_or(doc).trim_end().to_string()), place));
                break;
            }
            if trimmed.starts_with(';') {
                comments.push(Comment { line: n + 1, text: trimmed.trim_end().to_string() });
                break;
            }
            let (token, used) = next(trimmed).map_err(|f| f.at(place.clone()))?;
            place.width = trimmed[..used].chars().count();
            out.push((token, place));
            rest = &trimmed[used..];
        }
    }
    // The end is meant to be read: it points behind the last line's last character.
    let line = text.lines().count().max(1);
    let column = text.lines().last().unwrap_or_default().trim_end().chars().count() + 1;
    out.push((Token::End, Place { line, column, width: 1, file, ..Place::default() }));
    Ok((out, comments))
}

fn next(s: &str) -> Result<(Token, usize), Fault> {
    let first = s.chars().next().unwrap_or(' ');
    if first == '"' {
        let end = s[1..].find('"').ok_or_else(|| {
            Fault::new(Code::Syntax, "a string is not closed").help("end it with `\"` on the same line")
        })?;
        return Ok((Token::Text(s[1..=end].to_string()), end + 2));
    }
    let negative = first == '-' && s[1..].starts_with(|c: char| c.is_ascii_digit());
    if first.is_ascii_digit() || negative {
        let n = number(s);
        return Ok((Token::Number(s[..n].to_string()), n));
    }
    if first == '%' || first == '@' {
        let n = 1 + s[1..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(s.len() - 1);
        let name = s[1..n].to_string();
        if name.is_empty() {
            return Err(Fault::new(Code::Syntax, format!("`{first}` without a name")));
        }
        return Ok((if first == '%' { Token::Value(name) } else { Token::Function(name) }, n));
    }
    if first.is_ascii_alphabetic() || first == '_' {
        let mut n = s.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(s.len());
        if let Some(dots) = s[..n].find("..") {
            n = dots;
        }
        return Ok((Token::Word(s[..n].to_string()), n));
    }
    MARKS
        .iter()
        .find(|m| s.starts_with(**m))
        .map(|m| (Token::Mark(m), m.len()))
        .ok_or_else(|| Fault::new(Code::Syntax, format!("`{first}` starts no token")))
}

/// The length of the number at the start of `s`: `-1e30`, `0.5`, `12`; `1..4` is `1`.
fn number(s: &str) -> usize {
    let b = s.as_bytes();
    let digits = |mut i: usize| {
        while b.get(i).is_some_and(u8::is_ascii_digit) {
            i += 1;
        }
        i
    };
    let mut i = digits(usize::from(b[0] == b'-'));
    if b.get(i) == Some(&b'.') && b.get(i + 1).is_some_and(u8::is_ascii_digit) {
        i = digits(i + 1);
    }
    if matches!(b.get(i), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(b.get(i + 1), Some(b'-' | b'+')));
        let end = digits(i + 1 + sign);
        if end > i + 1 + sign {
            i = end;
        }
    }
    i
}
