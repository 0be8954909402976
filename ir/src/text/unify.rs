//! Unification: what a template's letters stand for at a call.

use super::ast::{Dim, DtypeText, Template};
use crate::Bind;
use crate::fault::{Code, Fault, count};
use crate::types::Type;
use std::collections::BTreeMap;

/// What the letters of a template stand for at a call.
pub(super) fn unify(
    t: &Template,
    given: &BTreeMap<String, Bind>,
    operands: &[Option<Type>],
) -> Result<BTreeMap<String, Bind>, Fault> {
    let mut binds: BTreeMap<String, Bind> = t.letters.iter().filter_map(|(n, b)| b.map(|b| (n.clone(), b))).collect();
    let mut told: BTreeMap<String, &str> = BTreeMap::new();
    for (n, b) in given {
        if !t.letters.iter().any(|(l, _)| l == n) {
            return Err(Fault::new(Code::Name, format!("@{} has no letter `{n}`", t.name)));
        }
        binds.insert(n.clone(), *b);
    }
    if t.params.len() != operands.len() {
        return Err(Fault::new(
            Code::Arity,
            format!("@{} takes {}, not {}", t.name, count(t.params.len(), "operand"), operands.len()),
        ));
    }
    let letter = |n: &str| t.letters.iter().any(|(l, _)| l == n);
    for ((_, name, want), have) in t.params.iter().zip(operands) {
        let Some(have) = have else { continue };
        let mut put = |l: &str, b: Bind| match binds.insert(l.to_string(), b) {
            Some(old) if old != b => {
                let code = if matches!(b, Bind::Dtype(_)) { Code::Dtype } else { Code::Dim };
                let first = told.get(l).map_or(" in the letters of the call".to_string(), |n| {
                    if n == name { String::new() } else { format!(" in %{n}") }
                });
                Err(Fault::new(
                    code,
                    format!("`{l}` of @{} is {}{first} and {} in %{name}", t.name, show(old), show(b)),
                ))
            }
            _ => {
                told.entry(l.to_string()).or_insert(name);
                Ok(())
            }
        };
        if let DtypeText::Letter(l) = &want.dtype
            && letter(l)
        {
            put(l, Bind::Dtype(have.dtype))?;
        }
        if want.dims.len() != have.rank() {
            return Err(Fault::new(
                Code::Dim,
                format!("%{name} of @{} has {} axes, the operand is {have}", t.name, want.dims.len()),
            ));
        }
        for (d, &n) in want.dims.iter().zip(&have.shape) {
            if let Dim::Letter(l) = d
                && letter(l)
            {
                put(l, Bind::Size(n))?;
            }
        }
    }
    if let Some((l, _)) = t.letters.iter().find(|(l, _)| !binds.contains_key(l)) {
        return Err(Fault::new(Code::Dim, format!("no operand tells the letter `{l}` of @{}", t.name))
            .help(format!("write `call @{}[{l}=…](…)`", t.name)));
    }
    Ok(binds)
}

fn show(b: Bind) -> String {
    match b {
        Bind::Size(n) => n.to_string(),
        Bind::Dtype(d) => d.to_string(),
    }
}
