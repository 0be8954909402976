//! The verifier: every rule of the language, checked on a concrete module.
//!
//! What comes from a text was checked while it was built; a module built or rewritten in Rust is checked here.

use crate::fault::{Code, Diagnostics, Fault, Place, count};
use crate::module::{Action, Function, Module, Node, Role, Value};
use crate::types::Type;

impl Module {
    /// Checks every rule of the language.
    ///
    /// Errors: all faults: a value used before it is defined or defined twice, a name that the text cannot
    /// spell or that is bound twice, an op or a call whose types do not fit, a callee after its caller, states
    /// that the last results do not match. Where a node is at fault, the message ends with its text.
    pub fn verify(&self) -> Result<(), Diagnostics> {
        let mut faults = vec![];
        for (i, f) in self.functions.iter().enumerate() {
            let mut found = vec![];
            if self.functions[..i].iter().any(|o| o.name == f.name && o.binds == f.binds) {
                found.push(
                    Fault::new(Code::Name, format!("{} is defined twice", f.signature()))
                        .help("a second form of a function needs another name"),
                );
            }
            self.verify_function(i, f, &mut found);
            let place = Place { function: f.name.clone(), ..Place::default() };
            faults.extend(found.into_iter().map(|fault| fault.at(place.clone())));
        }
        if faults.is_empty() { Ok(()) } else { Err(Diagnostics(faults)) }
    }

    fn verify_function(&self, index: usize, f: &Function, faults: &mut Vec<Fault>) {
        if f.params.len() > f.values.len() {
            let count = format!("{} parameters and {} values", f.params.len(), f.values.len());
            faults.push(
                Fault::new(Code::Arity, format!("@{} has {count}", f.name)).help("the parameters are the first values"),
            );
            return;
        }
        faults.extend(name_faults(f));
        let mut defined = vec![false; f.values.len()];
        defined.iter_mut().take(f.params.len()).for_each(|d| *d = true);
        for node in &f.nodes {
            let known = faults.len();
            self.verify_node(index, f, node, &mut defined, faults);
            for fault in &mut faults[known..] {
                fault.message += &format!(", in `{}`", self.sketch(f, node));
            }
        }
        if f.results.is_empty() {
            faults.push(Fault::new(Code::Return, format!("@{} returns nothing", f.name)));
        }
        for v in &f.results {
            if !defined.get(v.0 as usize).copied().unwrap_or(false) {
                faults.push(Fault::new(Code::Return, format!("{} is returned but never defined", call(f, *v))));
                return;
            }
        }
        faults.extend(state_faults(f));
    }

    fn verify_node(&self, index: usize, f: &Function, node: &Node, defined: &mut [bool], faults: &mut Vec<Fault>) {
        if let Action::Call { callee, .. } = node.action
            && callee.0 as usize >= index
        {
            faults.push(
                Fault::new(Code::Name, "a callee stands at or after its caller")
                    .help("functions may not recurse; put the callee first"),
            );
        } else if let Some(v) = node.operands.iter().find(|v| !defined.get(v.0 as usize).copied().unwrap_or(false)) {
            faults.push(Fault::new(Code::Name, format!("{} is used before it is defined", call(f, *v))));
        } else {
            let operands: Vec<Type> = node.operands.iter().map(|v| f.ty(*v).clone()).collect();
            match self.infer(&node.action, &operands) {
                Err(fault) => faults.push(fault),
                Ok(types) => faults.extend(result_faults(f, node, &types)),
            }
        }
        for v in &node.results {
            match defined.get_mut(v.0 as usize) {
                Some(d) if !*d => *d = true,
                Some(_) => faults.push(Fault::new(Code::Name, format!("{} is defined twice", call(f, *v)))),
                None => faults.push(Fault::new(Code::Name, format!("{} is not in the function's values", call(f, *v)))),
            }
        }
    }

    /// A node in a line, for messages; it holds for a faulty node too.
    fn sketch(&self, f: &Function, node: &Node) -> String {
        let list = |v: &[Value]| {
            v.iter()
                .map(|v| f.values.get(v.0 as usize).map_or(format!("%#{}", v.0), |n| format!("%{}", n.name)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let what = match &node.action {
            Action::Op(op) => format!("{} {}", op.write().0, list(&node.operands)),
            Action::Call { callee, .. } => {
                let name = self.functions.get(callee.0 as usize).map_or("?", |c| c.name.as_str());
                format!("call @{name}({})", list(&node.operands))
            }
        };
        format!("{} = {}", list(&node.results), what.trim_end())
    }
}

/// How a message names a value, known or not.
fn call(f: &Function, v: Value) -> String {
    match f.values.get(v.0 as usize) {
        Some(n) => format!("`%{}`", n.name),
        None => format!("value {} of {}", v.0, f.values.len()),
    }
}

/// Names that the text cannot spell, or that two values share.
fn name_faults(f: &Function) -> Vec<Fault> {
    let plain = |n: &str| !n.is_empty() && n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
    let mut out = vec![];
    let mut names: Vec<&str> = f.values.iter().map(|v| v.name.as_str()).collect();
    let wrong = names.iter().copied().chain([f.name.as_str()]).filter(|n| !plain(n));
    out.extend(wrong.map(|n| {
        Fault::new(Code::Name, format!("the text cannot spell the name `{n}`")).help("letters, digits, `_` and `.`")
    }));
    names.sort_unstable();
    out.extend(
        names
            .windows(2)
            .filter(|w| w[0] == w[1])
            .map(|w| Fault::new(Code::Name, format!("`%{}` is bound twice", w[0]))),
    );
    out
}

/// Results of a node that are not what its action yields.
fn result_faults(f: &Function, node: &Node, types: &[Type]) -> Vec<Fault> {
    if types.len() != node.results.len() {
        return vec![Fault::new(
            Code::Arity,
            format!("{} named, the node yields {}", count(node.results.len(), "result"), types.len()),
        )];
    }
    let held = |v: &Value| f.values.get(v.0 as usize);
    node.results
        .iter()
        .zip(types)
        .filter_map(|(v, t)| {
            held(v)
                .filter(|n| n.ty != *t)
                .map(|n| Fault::new(Code::Dim, format!("`%{}` is {t}, it is written as {}", n.name, n.ty)))
        })
        .collect()
}

/// Faults of a function's `state` parameters; its results must be defined.
pub(crate) fn state_faults(f: &Function) -> Vec<Fault> {
    let states: Vec<Value> =
        f.param_values().zip(&f.params).filter(|(_, r)| **r == Role::State).map(|(v, _)| v).collect();
    let Some(first) = f.results.len().checked_sub(states.len()) else {
        return vec![
            Fault::new(
                Code::Return,
                format!("@{} has {} states and {} results", f.name, states.len(), f.results.len()),
            )
            .help("the last results are the next values of the states, in order"),
        ];
    };
    states
        .iter()
        .zip(&f.results[first..])
        .filter(|(s, r)| f.ty(**s) != f.ty(**r))
        .map(|(s, r)| {
            Fault::new(
                Code::Return,
                format!("state `%{}` is {}, its next value is {}", f.value(*s).name, f.ty(*s), f.ty(*r)),
            )
        })
        .collect()
}
