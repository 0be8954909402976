//! Axes: the one notation for axes, `"b h t d, b h s d -> b h t s"`, as in einsum and einops.
//!
//! An axis is a lower-case word. A group `(h d)` is one axis of the tensor made of several, the last
//! running fastest.

use crate::fault::{Code, Fault, count};
use std::collections::BTreeMap;
use std::fmt;

/// One axis of a tensor: one word, or several for a group. Empty for `()`, an axis of size 1.
pub type Group = Vec<String>;

/// Axes of each operand and of the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Axes {
    /// One list an operand.
    pub inputs: Vec<Vec<Group>>,
    /// The result's.
    pub output: Vec<Group>,
}

/// The size of each word.
pub type Sizes = BTreeMap<String, usize>;

impl Axes {
    /// The axes that a string spells.
    ///
    /// Errors: `Axes` for a missing arrow, an unclosed group, a word that is not lower case, or a word
    /// that a list names twice.
    pub fn parse(text: &str) -> Result<Axes, Fault> {
        let Some((left, right)) = text.split_once("->") else {
            return Err(Fault::new(Code::Axes, format!("axes \"{text}\" have no `->`"))
                .help("write operands' axes, `->`, the result's axes"));
        };
        let inputs = left.split(',').map(|l| list(l, text)).collect::<Result<_, _>>()?;
        Ok(Axes { inputs, output: list(right, text)? })
    }

    /// The words of an operand, if it has no group.
    ///
    /// Errors: `Axes` if there is a group.
    pub fn flat(groups: &[Group]) -> Result<Vec<&str>, Fault> {
        groups
            .iter()
            .map(|g| match g.as_slice() {
                [one] => Ok(one.as_str()),
                _ => Err(Fault::new(Code::Axes, format!("a group ({}) may stand only in `rearrange`", g.join(" ")))),
            })
            .collect()
    }

    /// Checks the number of operands.
    ///
    /// Errors: `Axes`.
    pub fn operands(&self, n: usize) -> Result<(), Fault> {
        if self.inputs.len() == n {
            return Ok(());
        }
        Err(Fault::new(
            Code::Axes,
            format!("axes \"{self}\" are for {}, there are {n}", count(self.inputs.len(), "operand")),
        ))
    }
}

/// Binds flat words to a shape, and checks words bound before.
///
/// Errors: `Axes` for another rank, `Dim` for two sizes of one word.
pub fn bind(sizes: &mut Sizes, words: &[&str], shape: &[usize]) -> Result<(), Fault> {
    if words.len() != shape.len() {
        return Err(Fault::new(
            Code::Axes,
            format!(
                "\"{}\" names {}, the operand has {}",
                words.join(" "),
                if words.len() == 1 { "1 axis".into() } else { format!("{} axes", words.len()) },
                shape.len()
            ),
        ));
    }
    for (w, &n) in words.iter().zip(shape) {
        match sizes.insert((*w).to_string(), n) {
            Some(m) if m != n => {
                return Err(Fault::new(Code::Dim, format!("axis `{w}` is {m} in one operand and {n} in another")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The sizes of flat words.
///
/// Errors: `Axes` for a word that no operand has.
pub fn shape(sizes: &Sizes, words: &[&str]) -> Result<Vec<usize>, Fault> {
    words
        .iter()
        .map(|w| {
            sizes
                .get(*w)
                .copied()
                .ok_or_else(|| Fault::new(Code::Axes, format!("axis `{w}` of the result is in no operand")))
        })
        .collect()
}

fn list(text: &str, whole: &str) -> Result<Vec<Group>, Fault> {
    let bad = |why: String| Fault::new(Code::Axes, format!("axes \"{whole}\": {why}"));
    let (mut out, mut group): (Vec<Group>, Option<Group>) = (vec![], None);
    let mut seen: Vec<String> = vec![];
    for word in text.replace('(', " ( ").replace(')', " ) ").split_whitespace() {
        match word {
            "(" if group.is_none() => group = Some(vec![]),
            ")" => out.push(group.take().ok_or_else(|| bad("`)` without `(`".into()))?),
            "(" => return Err(bad("a group inside a group".into())),
            w => {
                let lower = w.starts_with(|c: char| c.is_ascii_lowercase())
                    && w.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                if !lower {
                    return Err(bad(format!("`{w}` is not a lower-case word")));
                }
                if seen.iter().any(|s| s == w) {
                    return Err(bad(format!("`{w}` stands twice in one list")));
                }
                seen.push(w.to_string());
                match &mut group {
                    Some(g) => g.push(w.to_string()),
                    None => out.push(vec![w.to_string()]),
                }
            }
        }
    }
    if group.is_some() {
        return Err(bad("`(` is not closed".into()));
    }
    Ok(out)
}

impl fmt::Display for Axes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |l: &[Group]| {
            l.iter()
                .map(|g| if g.len() == 1 { g[0].clone() } else { format!("({})", g.join(" ")) })
                .collect::<Vec<_>>()
                .join(" ")
        };
        let left: Vec<String> = self.inputs.iter().map(|l| list(l)).collect();
        let text = format!("{} -> {}", left.join(", "), list(&self.output));
        f.write_str(text.trim())
    }
}
