//! An entry in the making: parameters by role, calls of blocks.

use omchat_ir::ops::{Constant, Gather, Op};
use omchat_ir::{Action, Axes, Bind, Builder, Code, Diagnostics, Dtype, Fault, Func, Module, Role, Scope, Type, Value};
use std::collections::BTreeMap;

/// A builder that knows the model's element type and the blocks.
pub(super) struct Entry<'m, 's> {
    builder: Builder<'m>,
    scope: &'s Scope<'static>,
    dtype: Dtype,
    remat: bool,
}

impl<'m, 's> Entry<'m, 's> {
    /// Starts the entry of that name.
    ///
    /// Errors: an element type that is no float.
    pub fn new(
        module: &'m mut Module,
        scope: &'s Scope<'static>,
        name: &str,
        dtype: Dtype,
    ) -> Result<Self, Diagnostics> {
        if !dtype.is_float() {
            return Err(Fault::new(Code::Dtype, format!("a model's element type is {dtype}"))
                .help("f32, bf16 or f16")
                .into());
        }
        Ok(Entry { builder: Builder::new(module, name, BTreeMap::new()), scope, dtype, remat: false })
    }

    /// The element type of weights and activations.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Whether the calls from here on keep only their operands for the backward pass.
    pub fn remat(&mut self, remat: bool) {
        self.remat = remat;
    }

    /// A number that must be at least 1.
    pub fn positive(&self, what: &str, n: usize) -> Result<(), Diagnostics> {
        self.fits("1", 1, what, n)
    }

    /// Two numbers of which the first must not be the larger.
    pub fn fits(&self, what: &str, n: usize, of: &str, most: usize) -> Result<(), Diagnostics> {
        if n <= most {
            return Ok(());
        }
        Err(Fault::new(Code::Dim, format!("{of} is {most}, it must be at least {n}"))
            .help(format!("raise {of}, or lower {what}"))
            .into())
    }

    /// A number of parts that must divide another number.
    pub fn divides(&self, what: &str, n: usize, of: &str, whole: usize) -> Result<(), Diagnostics> {
        if n > 0 && whole.is_multiple_of(n) {
            return Ok(());
        }
        Err(Fault::new(Code::Dim, format!("{what} is {n}, it must divide {of}, which is {whole}"))
            .help("take a divisor, or pad the tokens"))?
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &Type {
        self.builder.ty(v)
    }

    /// A parameter of any role.
    pub fn given(&mut self, role: Role, name: &str, ty: Type) -> Value {
        self.builder.param(role, name, ty)
    }

    /// A parameter given at each run.
    pub fn input(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Value {
        self.builder.param(Role::Input, name, Type::new(dtype, shape))
    }

    /// A tensor of the checkpoint, in the model's element type.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> Value {
        self.builder.param(Role::Weight, name, Type::new(self.dtype, shape))
    }

    /// A parameter kept from run to run.
    pub fn state(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Value {
        self.builder.param(Role::State, name, Type::new(dtype, shape))
    }

    /// An f32 number.
    pub fn constant(&mut self, name: &str, value: f64) -> Result<Value, Diagnostics> {
        self.op(name, Constant { dtype: Dtype::F32, value }, &[])
    }

    /// One primitive.
    pub fn op(&mut self, name: &str, op: impl Into<Op>, operands: &[Value]) -> Result<Value, Diagnostics> {
        Ok(self.builder.op(name, op, operands)?)
    }

    /// Rows of a table picked by ids; an id outside yields a row of 0.
    pub fn rows(&mut self, name: &str, table: Value, ids: Value) -> Result<Value, Diagnostics> {
        self.op(name, Gather { axes: Axes::parse("v c, t -> t c")? }, &[table, ids])
    }

    /// The one result of a block whose letters its operands tell.
    pub fn call(&mut self, name: &str, block: &str, operands: &[Value]) -> Result<Value, Diagnostics> {
        self.call_with(name, block, &[], operands)
    }

    /// The one result of a block, with the letters that its operands do not tell.
    pub fn call_with(
        &mut self,
        name: &str,
        block: &str,
        letters: &[(&str, usize)],
        operands: &[Value],
    ) -> Result<Value, Diagnostics> {
        Ok(self.calls_with(&[name], block, letters, operands)?[0])
    }

    /// The results of a block whose letters its operands tell.
    pub fn calls(&mut self, names: &[&str], block: &str, operands: &[Value]) -> Result<Vec<Value>, Diagnostics> {
        self.calls_with(names, block, &[], operands)
    }

    /// The results of a block, with the letters that its operands do not tell.
    pub fn calls_with(
        &mut self,
        names: &[&str],
        block: &str,
        letters: &[(&str, usize)],
        operands: &[Value],
    ) -> Result<Vec<Value>, Diagnostics> {
        let given = letters.iter().map(|(letter, n)| ((*letter).to_string(), Bind::Size(*n))).collect();
        let types: Vec<Option<Type>> = operands.iter().map(|v| Some(self.builder.ty(*v).clone())).collect();
        let callee = self.scope.instantiate(self.builder.module(), block, &given, &types, 0)?;
        self.calls_of(names, callee, operands)
    }

    /// The results of a function of the module.
    pub fn calls_of(&mut self, names: &[&str], callee: Func, operands: &[Value]) -> Result<Vec<Value>, Diagnostics> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_string()).collect();
        Ok(self.builder.node(&names, Action::Call { callee, remat: self.remat }, operands)?)
    }

    /// A function of the module that this entry may call, in the making.
    ///
    /// Errors: as [`Entry::new`].
    pub fn function(&mut self, name: &str) -> Result<Entry<'_, 's>, Diagnostics> {
        Entry::new(self.builder.module(), self.scope, name, self.dtype)
    }

    /// Ends the function; it joins the module.
    pub fn finish(self, results: Vec<Value>) -> Func {
        self.builder.finish(results)
    }
}

/// The module, verified.
///
/// Errors: all faults.
pub(super) fn verified(module: Module) -> Result<Module, Diagnostics> {
    module.verify()?;
    Ok(module)
}
