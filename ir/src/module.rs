//! Modules: functions of straight-line SSA. A module is concrete: every size is a number.

use crate::Bind;
use crate::fault::{Code, Fault, count};
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
    /// Errors: what does not fit; `dim` if a result is too large to address.
    pub fn infer(&self, action: &Action, operands: &[Type]) -> Result<Vec<Type>, Fault> {
        match action {
            Action::Op(op) => {
                let ty = op.infer(operands)?;
                if ty.fits() {
                    Ok(vec![ty])
                } else {
                    Err(Fault::new(Code::Dim, format!("the result {ty} is too large to address")))
                }
            }
            Action::Call { callee, .. } => {
                let Some(f) = self.functions.get(callee.0 as usize) else {
                    return Err(Fault::new(Code::Name, "the callee is not in the module"));
                };
                let want = f.param_types();
                if want.len() != operands.len() {
                    return Err(Fault::new(
                        Code::Arity,
                        format!("{} takes {}, not {}", f.signature(), count(want.len(), "operand"), operands.len()),
                    ));
                }
                for (i, (w, h)) in want.iter().zip(operands).enumerate() {
                    if w != h {
                        return Err(Fault::new(
                            Code::Dim,
                            format!("operand {} of {} is {h}, it must be {w}", i + 1, f.signature()),
                        ));
                    }
                }
                Ok(f.result_types())
            }
        }
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::text::print(&crate::text::to_ast(self)))
    }
}
