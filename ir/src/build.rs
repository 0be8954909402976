//! Builds functions in Rust, for the parts of a model that a text cannot spell (one weight a layer).

use crate::Bind;
use crate::fault::{Code, Diagnostics, Fault, count};
use crate::module::{Action, Func, Function, Module, Named, Node, Role, Value};
use crate::ops::Op;
use crate::text::Scope;
use crate::types::Type;
use std::collections::BTreeMap;

/// A function in the making.
pub struct Builder<'a> {
    module: &'a mut Module,
    function: Function,
    /// The suffix that the next value of a name may take: a loop binds one name over and over.
    names: BTreeMap<String, usize>,
}

impl<'a> Builder<'a> {
    /// Starts a function of that name.
    pub fn new(module: &'a mut Module, name: &str, binds: BTreeMap<String, Bind>) -> Builder<'a> {
        Builder {
            module,
            function: Function { name: name.into(), binds, ..Function::default() },
            names: BTreeMap::new(),
        }
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &Type {
        self.function.ty(v)
    }

    /// The module so far.
    pub fn module(&mut self) -> &mut Module {
        self.module
    }

    /// Adds a parameter; parameters come before nodes.
    pub fn param(&mut self, role: Role, name: &str, ty: Type) -> Value {
        let v = self.value(name, ty);
        self.function.params.push(role);
        v
    }

    /// Adds a primitive.
    ///
    /// Errors: what does not fit.
    pub fn op(&mut self, name: &str, op: impl Into<Op>, operands: &[Value]) -> Result<Value, Fault> {
        let results = self.node(&[name.to_string()], Action::Op(op.into()), operands)?;
        Ok(results[0])
    }

    /// Calls a function of the scope with the letters that its operands do not tell.
    ///
    /// Errors: all faults of the callee and of the call.
    pub fn call(
        &mut self,
        scope: &Scope,
        names: &[&str],
        function: &str,
        letters: &[(&str, Bind)],
        operands: &[Value],
    ) -> Result<Vec<Value>, Diagnostics> {
        let given = letters.iter().map(|(n, b)| ((*n).to_string(), *b)).collect();
        let types: Vec<Option<Type>> = operands.iter().map(|v| Some(self.ty(*v).clone())).collect();
        let callee = scope.instantiate(self.module, function, &given, &types, 0)?;
        let names: Vec<String> = names.iter().map(|n| (*n).to_string()).collect();
        Ok(self.node(&names, Action::Call { callee, remat: false }, operands)?)
    }

    /// Adds a node; names missing are made up.
    ///
    /// Errors: what does not fit.
    pub fn node(&mut self, names: &[String], action: Action, operands: &[Value]) -> Result<Vec<Value>, Fault> {
        let types: Vec<Type> = operands.iter().map(|v| self.ty(*v).clone()).collect();
        let types = self.module.infer(&action, &types)?;
        if !names.is_empty() && names.len() != types.len() {
            return Err(Fault::new(
                Code::Arity,
                format!("{} named, the node yields {}", count(names.len(), "result"), types.len()),
            ));
        }
        let results: Vec<Value> = types
            .into_iter()
            .enumerate()
            .map(|(i, t)| self.value(names.get(i).map_or("t", String::as_str), t))
            .collect();
        self.function.nodes.push(Node { action, operands: operands.to_vec(), results: results.clone() });
        Ok(results)
    }

    /// Ends the function; it joins the module.
    pub fn finish(mut self, results: Vec<Value>) -> Func {
        self.function.results = results;
        self.module.functions.push(self.function);
        Func(self.module.functions.len() as u32 - 1)
    }

    fn value(&mut self, name: &str, ty: Type) -> Value {
        let mut unique = name.to_string();
        let mut n = self.names.get(name).copied().unwrap_or(0);
        while n > 0 && self.names.contains_key(&unique) {
            unique = format!("{name}.{n}");
            n += 1;
        }
        self.names.insert(name.to_string(), n.max(1));
        self.names.entry(unique.clone()).or_insert(1);
        self.function.values.push(Named { name: unique, ty });
        Value(self.function.values.len() as u32 - 1)
    }
}
