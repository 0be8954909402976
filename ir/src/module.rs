//! Modules: functions of straight-line SSA. A module is concrete: every size is a number.

use crate::Bind;
use crate::fault::{Code, Diagnostics, Fault, Place};
use crate::ops::Op;
use crate::types::Type;
use std::collections::BTreeMap;
use std::fmt;

/// A value of a function, by index into its `values`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub u32);

/// A function of a module, by index into its `functions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Func(pub u32);

/// What an entry's parameter is for; it decides where its memory is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Given at each run.
    #[default]
    Input,
    /// Uploaded once and only read.
    Weight,
    /// Kept from run to run. A function's last results are the next values of its states, in order.
    State,
}

/// A value's name and type.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// The name in the text, without `%`; unique in its function.
    pub name: String,
    /// Dtype and shape.
    pub ty: Type,
}

/// What a node does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A primitive.
    Op(Op),
    /// A call of another function of the module.
    Call {
        /// The callee.
        callee: Func,
        /// Whether the backward pass recomputes the call from its operands.
        remat: bool,
    },
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it does.
    pub action: Action,
    /// Its operands.
    pub operands: Vec<Value>,
    /// Its results.
    pub results: Vec<Value>,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Function {
    /// The name, without `@`.
    pub name: String,
    /// What the template's letters stand for.
    pub binds: BTreeMap<String, Bind>,
    /// Parameters: the first values, with their roles.
    pub params: Vec<Role>,
    /// Names and types of all values, in order of definition.
    pub values: Vec<Named>,
    /// Steps, in order.
    pub nodes: Vec<Node>,
    /// What it yields.
    pub results: Vec<Value>,
}

impl Function {
    /// The name and type of a value.
    pub fn value(&self, v: Value) -> &Named {
        &self.values[v.0 as usize]
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &Type {
        &self.value(v).ty
    }

    /// The parameters' values.
    pub fn param_values(&self) -> impl Iterator<Item = Value> + use<> {
        (0..self.params.len() as u32).map(Value)
    }

    /// Types of the parameters.
    pub fn param_types(&self) -> Vec<Type> {
        self.param_values().map(|v| self.ty(v).clone()).collect()
    }

    /// Types of the results.
    pub fn result_types(&self) -> Vec<Type> {
        self.results.iter().map(|v| self.ty(*v).clone()).collect()
    }

    /// The number of `state` parameters.
    pub fn states(&self) -> usize {
        self.params.iter().filter(|r| **r == Role::State).count()
    }

    /// The name and the letters, as a call spells them: `@f[B=1, E=f32]`.
    pub fn signature(&self) -> String {
        crate::text::spell(&self.name, &self.binds)
    }
}

/// A set of functions; a callee stands before its callers.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Module {
    /// The functions.
    pub functions: Vec<Function>,
}

impl Module {
    /// A function by handle.
    pub fn function(&self, f: Func) -> &Function {
        &self.functions[f.0 as usize]
    }

    /// The function of that name and letters.
    pub fn find(&self, name: &str, binds: &BTreeMap<String, Bind>) -> Option<Func> {
        self.functions.iter().position(|f| f.name == name && f.binds == *binds).map(|i| Func(i as u32))
    }

    /// The last function of that name.
    pub fn named(&self, name: &str) -> Option<Func> {
        self.functions.iter().rposition(|f| f.name == name).map(|i| Func(i as u32))
    }

    /// Result types of a node with operands of these types.
    ///
    /// Errors: what does not fit.
    pub fn infer(&self, action: &Action, operands: &[Type]) -> Result<Vec<Type>, Fault> {
        match action {
            Action::Op(op) => Ok(vec![op.infer(operands)?]),
            Action::Call { callee, .. } => {
                let Some(f) = self.functions.get(callee.0 as usize) else {
                    return Err(Fault::new(Code::Name, "the callee is not in the module"));
                };
                let want = f.param_types();
                if want.len() != operands.len() {
                    return Err(Fault::new(Code::Arity, format!("{} takes {} operands, {} were given", f.signature(), want.len(), operands.len())));
                }
                for (i, (w, h)) in want.iter().zip(operands).enumerate() {
                    if w != h {
                        return Err(Fault::new(Code::Dim, format!("operand {} of {} is {h}, it must be {w}", i + 1, f.signature())));
                    }
                }
                Ok(f.result_types())
            }
        }
    }

    /// Checks every rule of the language.
    ///
    /// Errors: all faults: a value used before it is defined or defined twice, a name bound twice, an op or a
    /// call whose types do not fit, a callee after its caller, states that the last results do not match.
    pub fn verify(&self) -> Result<(), Diagnostics> {
        let mut faults = vec![];
        for (i, f) in self.functions.iter().enumerate() {
            let mut found = vec![];
            self.verify_function(i, f, &mut found);
            let place = Place { function: f.name.clone(), ..Place::default() };
            faults.extend(found.into_iter().map(|fault| fault.at(place.clone())));
        }
        if faults.is_empty() { Ok(()) } else { Err(Diagnostics(faults)) }
    }

    fn verify_function(&self, index: usize, f: &Function, faults: &mut Vec<Fault>) {
        let mut names: Vec<&str> = f.values.iter().map(|v| v.name.as_str()).collect();
        names.sort_unstable();
        faults.extend(names.windows(2).filter(|w| w[0] == w[1]).map(|w| Fault::new(Code::Name, format!("`%{}` is bound twice", w[0]))));
        let mut defined = vec![false; f.values.len()];
        defined.iter_mut().take(f.params.len()).for_each(|d| *d = true);
        for node in &f.nodes {
            self.verify_node(index, f, node, &mut defined, faults);
        }
        for v in &f.results {
            if !defined.get(v.0 as usize).copied().unwrap_or(false) {
                faults.push(Fault::new(Code::Return, format!("result {} is not defined", v.0)));
            }
        }
        faults.extend(state_faults(f));
    }

    fn verify_node(&self, index: usize, f: &Function, node: &Node, defined: &mut [bool], faults: &mut Vec<Fault>) {
        if let Action::Call { callee, .. } = node.action
            && callee.0 as usize >= index
        {
            faults.push(Fault::new(Code::Name, "a callee stands after its caller").help("functions may not recurse"));
            return;
        }
        let known = |v: &Value, defined: &[bool]| defined.get(v.0 as usize).copied().unwrap_or(false);
        if let Some(v) = node.operands.iter().find(|v| !known(v, defined)) {
            faults.push(Fault::new(Code::Name, format!("value {} is used before it is defined", v.0)));
            return;
        }
        let operands: Vec<Type> = node.operands.iter().map(|v| f.ty(*v).clone()).collect();
        match self.infer(&node.action, &operands) {
            Err(fault) => faults.push(fault),
            Ok(types) if types.len() != node.results.len() => {
                faults.push(Fault::new(Code::Arity, format!("a node yields {} results, {} are named", types.len(), node.results.len())));
            }
            Ok(types) => {
                for (v, t) in node.results.iter().zip(types) {
                    if f.values.get(v.0 as usize).is_some_and(|n| n.ty != t) {
                        faults.push(Fault::new(Code::Dim, format!("`%{}` is {t}, it is written as {}", f.value(*v).name, f.ty(*v))));
                    }
                }
            }
        }
        for v in &node.results {
            match defined.get_mut(v.0 as usize) {
                Some(d) if !*d => *d = true,
                _ => faults.push(Fault::new(Code::Name, format!("value {} is defined twice", v.0))),
            }
        }
    }
}

/// Faults of a function's `state` parameters.
fn state_faults(f: &Function) -> Vec<Fault> {
    let states: Vec<Value> = f.param_values().zip(&f.params).filter(|(_, r)| **r == Role::State).map(|(v, _)| v).collect();
    let Some(first) = f.results.len().checked_sub(states.len()) else {
        return vec![Fault::new(Code::Return, format!("@{} has {} states and {} results", f.name, states.len(), f.results.len())).help("the last results are the next values of the states, in order")];
    };
    states.iter().zip(&f.results[first..]).filter(|(s, r)| f.ty(**s) != f.ty(**r)).map(|(s, r)| {
        Fault::new(Code::Return, format!("state `%{}` is {}, its next value is {}", f.value(*s).name, f.ty(*s), f.ty(*r)))
    }).collect()
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::text::print(&crate::text::to_ast(self)))
    }
}
