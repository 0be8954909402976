//! Templates to concrete functions: letters become numbers, loops unroll, calls become instances.

use super::ast::{Bare, Dim, Expr, File, Given, Operand, Stmt, Template, TypeText};
use super::env::Env;
use super::unify::unify;
use crate::Bind;
use crate::build::Builder;
use crate::fault::{Code, Diagnostic, Diagnostics, Fault, Place, count};
use crate::module::{Action, Func, Module, Value};
use crate::ops::{Attrs, Constant, Op};
use crate::types::{Dtype, Type};
use crate::verify::state_faults;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Deepest chain of calls.
const DEPTH: usize = 32;
/// Most rounds of a loop.
const ROUNDS: i64 = 1 << 16;
/// Most steps of one instantiation: a statement or a round is one, a new function is [`FUNCTION`].
/// A text of a few lines can ask for more work than any machine has.
const STEPS: usize = 1 << 20;
/// Steps of a new function: it is looked for among all others.
const FUNCTION: usize = 256;
/// Most faults that one function reports.
const FAULTS: usize = 64;

/// Functions and templates that may be called by name.
#[derive(Default)]
pub struct Scope<'a> {
    templates: BTreeMap<&'a str, Vec<&'a Template>>,
    /// Steps of the instantiation under way.
    steps: AtomicUsize,
}

/// Instantiates one function of a scope; see [`Scope::instantiate`].
///
/// Errors: all faults.
pub fn instantiate_call(
    scope: &Scope,
    module: &mut Module,
    name: &str,
    letters: &[(&str, Bind)],
) -> Result<Func, Diagnostics> {
    let given = letters.iter().map(|(n, b)| ((*n).to_string(), *b)).collect();
    let place = Place::default();
    let t = scope.pick(name, &given).map_err(|f| f.at(place.clone()))?;
    scope.build(module, t, &given, 0)
}

impl<'a> Scope<'a> {
    /// The functions of those files; a later file's function hides an earlier file's of the same name.
    pub fn new(files: &[&'a File]) -> Scope<'a> {
        let mut scope = Scope::default();
        for file in files {
            let mut own: BTreeMap<&str, Vec<&Template>> = BTreeMap::new();
            for t in &file.functions {
                own.entry(&t.name).or_default().push(t);
            }
            scope.templates.extend(own);
        }
        scope
    }

    /// The functions of a file that have no free letter, with what they call.
    ///
    /// Errors: all faults.
    pub fn module(&self, file: &File) -> Result<Module, Diagnostics> {
        let (mut module, mut faults) = (Module::default(), vec![]);
        for (i, t) in file.functions.iter().enumerate() {
            let twin = file.functions[..i].iter().any(|o| o.name == t.name && o.letters == t.letters);
            if twin {
                faults.push(Fault::new(Code::Name, format!("@{} is defined twice", t.name)).at(t.place.clone()));
                continue;
            }
            let bound: Option<BTreeMap<String, Bind>> =
                t.letters.iter().map(|(n, b)| b.map(|b| (n.clone(), b))).collect();
            let Some(bound) = bound else { continue };
            if module.find(&t.name, &bound).is_none()
                && let Err(Diagnostics(more)) = self.build(&mut module, t, &bound, 0)
            {
                let new: Vec<_> = more.into_iter().filter(|d| !faults.iter().any(|f: &Diagnostic| f.same(d))).collect();
                faults.extend(new);
            }
        }
        if faults.is_empty() { Ok(module) } else { Err(Diagnostics(faults)) }
    }

    /// The instance of a function for operands of these types (`None` for a bare number), made if it is not there.
    ///
    /// Errors: all faults of the callee; a letter that nothing binds; an operand that does not fit.
    pub fn instantiate(
        &self,
        module: &mut Module,
        name: &str,
        given: &BTreeMap<String, Bind>,
        operands: &[Option<Type>],
        depth: usize,
    ) -> Result<Func, Diagnostics> {
        let t = self.pick(name, given)?;
        let binds = unify(t, given, operands)?;
        match module.find(name, &binds) {
            Some(f) => Ok(f),
            None => self.build(module, t, &binds, depth),
        }
    }

    /// Whether the scope has both functions and they stand in one place: the library, or what was given beside it.
    /// A text that hides a function of the library hides its `.vjp` too.
    pub(crate) fn stand_together(&self, a: &str, b: &str) -> bool {
        let given = |n: &str| self.templates.get(n).and_then(|t| t.first()).map(|t| t.place.file.is_empty());
        given(a).is_some() && given(a) == given(b)
    }

    fn pick(&self, name: &str, given: &BTreeMap<String, Bind>) -> Result<&'a Template, Fault> {
        let Some(list) = self.templates.get(name) else {
            return Err(Fault::new(Code::Name, format!("there is no function @{name}"))
                .help("define it in the text, or see ir/library for what may be called"));
        };
        let exact = list.iter().find(|t| t.letters.iter().all(|(n, b)| b.is_some() && given.get(n) == b.as_ref()));
        let free = list.iter().find(|t| t.letters.iter().any(|(_, b)| b.is_none()));
        exact
            .or(free)
            .or(list.first())
            .copied()
            .ok_or_else(|| Fault::new(Code::Name, format!("there is no function @{name}")))
    }

    fn build(
        &self,
        module: &mut Module,
        t: &Template,
        binds: &BTreeMap<String, Bind>,
        depth: usize,
    ) -> Result<Func, Diagnostics> {
        if depth == 0 {
            self.steps.store(0, Ordering::Relaxed);
        }
        self.step(FUNCTION).map_err(|f| f.at(t.place.clone()))?;
        if depth > DEPTH {
            return Err(Fault::new(Code::Name, format!("calls nest deeper than {DEPTH}: @{} calls itself?", t.name))
                .help("functions may not recurse")
                .at(t.place.clone())
                .into());
        }
        let mut env = Env::new(binds).map_err(|f| f.at(t.place.clone()))?;
        let mut b = Body {
            scope: self,
            b: Builder::new(module, &t.name, binds.clone()),
            names: BTreeMap::new(),
            faults: vec![],
            function: &t.name,
            depth,
            results: None,
            stopped: false,
        };
        for (role, name, ty) in &t.params {
            match env.ty(ty) {
                Ok(ty) => {
                    let v = b.b.param(*role, name, ty);
                    if b.names.insert(name.clone(), Some(v)).is_some() {
                        b.fault(Fault::new(Code::Name, format!("`%{name}` is bound twice")), &t.place);
                    }
                }
                Err(f) => b.fault(f, &ty.place),
            }
        }
        if b.faults.is_empty() {
            b.stmts(&t.body, &mut env);
            if !b.stopped {
                b.check_results(t, &env);
            }
        }
        if !b.faults.is_empty() {
            return Err(Diagnostics(b.faults));
        }
        let results = b.results.unwrap_or_default();
        let f = b.b.finish(results);
        let faults: Vec<_> = state_faults(module.function(f)).into_iter().map(|f| f.at(t.place.clone())).collect();
        if faults.is_empty() { Ok(f) } else { Err(Diagnostics(faults)) }
    }

    /// Counts work against [`STEPS`].
    fn step(&self, n: usize) -> Result<(), Fault> {
        if self.steps.fetch_add(n, Ordering::Relaxed) > STEPS {
            return Err(Fault::new(Code::Dim, format!("unrolled, the text has more than {STEPS} steps"))
                .help("fewer rounds of its loops, or fewer instances of its functions"));
        }
        Ok(())
    }
}

/// The body of a function being built.
struct Body<'m, 's, 't> {
    scope: &'s Scope<'t>,
    b: Builder<'m>,
    /// `None` for a name whose definition was faulty: what depends on it is not reported again.
    names: BTreeMap<String, Option<Value>>,
    faults: Vec<Diagnostic>,
    function: &'s str,
    depth: usize,
    results: Option<Vec<Value>>,
    /// Whether the steps are used up.
    stopped: bool,
}

/// Why a statement yields nothing.
enum Stop {
    Fault(Fault),
    Faults(Diagnostics),
    /// It depends on a faulty statement.
    Silent,
}

impl From<Fault> for Stop {
    fn from(f: Fault) -> Stop {
        Stop::Fault(f)
    }
}

impl Body<'_, '_, '_> {
    fn fault(&mut self, fault: Fault, place: &Place) {
        let place = Place { function: self.function.to_string(), ..place.clone() };
        self.report(fault.at(place));
    }

    fn report(&mut self, d: Diagnostic) {
        if self.faults.len() < FAULTS && !self.faults.iter().any(|f| f.same(&d)) {
            self.faults.push(d);
        }
    }

    /// Counts one step; after the last one nothing more is built, and nothing more is said.
    fn step(&mut self, place: &Place) -> bool {
        if self.stopped {
            return false;
        }
        if let Err(f) = self.scope.step(1) {
            self.fault(f, place);
            self.stopped = true;
        }
        !self.stopped
    }

    fn stmts(&mut self, stmts: &[Stmt], env: &mut Env) {
        for s in stmts {
            let (Stmt::Let { place, .. } | Stmt::For { place, .. } | Stmt::Return { place, .. }) = s;
            if !self.step(place) {
                return;
            }
            match s {
                Stmt::Let { names, expr, types, place } => self.let_stmt(names, expr, types, place, env),
                Stmt::For { variable, from, to, body, place, .. } => {
                    self.for_stmt(variable, (from, to), body, place, env)
                }
                Stmt::Return { values, place } => {
                    let values: Vec<_> = values.iter().map(|o| self.operand(o, None)).collect();
                    if self.results.is_some() {
                        self.fault(Fault::new(Code::Return, "a function returns once"), place);
                    }
                    let mut out = vec![];
                    for v in values {
                        match v {
                            Ok(v) => out.push(v),
                            Err(Stop::Fault(f)) => self.fault(f, place),
                            Err(_) => {}
                        }
                    }
                    self.results = Some(out);
                }
            }
        }
    }

    fn for_stmt(&mut self, variable: &str, range: (&Dim, &Dim), body: &[Stmt], place: &Place, env: &mut Env) {
        let (from, to) = match (env.dim(range.0), env.dim(range.1)) {
            (Ok(a), Ok(b)) => (a, b),
            (Err(f), _) | (_, Err(f)) => return self.fault(f, place),
        };
        if to.saturating_sub(from) > ROUNDS {
            return self.fault(
                Fault::new(Code::Dim, format!("a loop of {} rounds; the most is {ROUNDS}", to.saturating_sub(from))),
                place,
            );
        }
        let hidden = env.sizes.get(variable).copied();
        for i in from..to {
            if !self.step(place) {
                break;
            }
            env.sizes.insert(variable.to_string(), i);
            self.stmts(body, env);
            if !self.faults.is_empty() {
                break;
            }
        }
        match hidden {
            Some(n) => drop(env.sizes.insert(variable.to_string(), n)),
            None => drop(env.sizes.remove(variable)),
        }
    }

    fn let_stmt(&mut self, names: &[String], expr: &Expr, types: &[TypeText], place: &Place, env: &Env) {
        let values = self.expr(names, expr, env);
        let values = match values {
            Ok(v) => v.into_iter().map(Some).collect(),
            Err(stop) => {
                match stop {
                    Stop::Fault(f) => self.fault(f, place),
                    Stop::Faults(Diagnostics(d)) => d.into_iter().for_each(|d| self.fault_of_call(d, place)),
                    Stop::Silent => {}
                }
                vec![None; names.len()]
            }
        };
        for (name, v) in names.iter().zip(&values) {
            self.names.insert(name.clone(), *v);
        }
        if !types.is_empty() && types.len() != names.len() {
            self.fault(
                Fault::new(
                    Code::Arity,
                    format!("{} written for {}", count(types.len(), "type"), count(names.len(), "result")),
                ),
                place,
            );
        }
        for (v, t) in values.iter().zip(types) {
            let Some(v) = v else { continue };
            match env.ty(t) {
                Ok(want) if want != *self.b.ty(*v) => {
                    let f = Fault::new(Code::Dim, format!("the result is {}, it is written as {want}", self.b.ty(*v)));
                    self.fault(f, &t.place);
                }
                Ok(_) => {}
                Err(f) => self.fault(f, &t.place),
            }
        }
    }

    /// A fault of a call: of the call itself, or of the callee, which then names the call too.
    fn fault_of_call(&mut self, mut d: Diagnostic, place: &Place) {
        let call = Place { function: self.function.to_string(), ..place.clone() };
        if d.place.line > 0 {
            d.calls.push(call);
        } else {
            d.place = call;
        }
        self.report(d);
    }

    fn operand(&mut self, o: &Operand, dtype: Option<Dtype>) -> Result<Value, Stop> {
        match (o, dtype) {
            (Operand::Name(n), _) => match self.names.get(n) {
                Some(Some(v)) => Ok(*v),
                Some(None) => Err(Stop::Silent),
                None => Err(Fault::new(Code::Name, format!("`%{n}` is not bound"))
                    .help("bind it above, or check the spelling")
                    .into()),
            },
            (Operand::Number(x), Some(dtype)) => {
                let op = Op::read(
                    "constant",
                    Attrs { suffix: Some(dtype.to_string()), number: Some(*x), ..Attrs::default() },
                )?;
                Ok(self.b.op("c", op, &[])?)
            }
            (Operand::Number(x), None) => Err(Fault::new(Code::Dtype, format!("no operand tells the dtype of {x}"))
                .help("bind it with `constant.f32`")
                .into()),
        }
    }

    fn expr(&mut self, names: &[String], expr: &Expr, env: &Env) -> Result<Vec<Value>, Stop> {
        match expr {
            Expr::Op { mnemonic, suffix, operands, bare, axes, ints } => {
                let dtype = operands.iter().rev().find_map(|o| match o {
                    Operand::Name(n) => self.names.get(n).copied().flatten().map(|v| self.b.ty(v).dtype),
                    Operand::Number(_) => None,
                });
                let operands = operands.iter().map(|o| self.operand(o, dtype)).collect::<Result<Vec<_>, _>>()?;
                let suffix = suffix.as_ref().map(|s| env.dtypes.get(s).map_or(s.clone(), Dtype::to_string));
                let number = match bare {
                    None => None,
                    Some(Bare::Number(x)) => Some(*x),
                    Some(Bare::Dim(d)) => Some(env.dim(d)? as f64),
                };
                let ints = ints.iter().map(|(n, d)| Ok((n.clone(), env.dim(d)?))).collect::<Result<Vec<_>, Fault>>()?;
                let op = if mnemonic == "dim" {
                    let dtype = suffix
                        .as_deref()
                        .and_then(Dtype::from_name)
                        .ok_or_else(|| Fault::new(Code::Dtype, "`dim` needs a dtype").help("write `dim.f32 D`"))?;
                    if axes.is_some() || !ints.is_empty() {
                        return Err(Fault::new(Code::Attribute, "`dim` takes a dtype and a size, no more").into());
                    }
                    Op::from(Constant { dtype, value: number.unwrap_or(0.0) })
                } else {
                    Op::read(mnemonic, Attrs { suffix, axes: axes.clone(), ints, number })?
                };
                Ok(self.b.node(names, Action::Op(op), &operands)?)
            }
            Expr::Call { name, letters, operands, remat } => self.call(names, name, letters, operands, *remat, env),
        }
    }

    fn call(
        &mut self,
        names: &[String],
        name: &str,
        letters: &[(String, Given)],
        operands: &[Operand],
        remat: bool,
        env: &Env,
    ) -> Result<Vec<Value>, Stop> {
        let mut given = BTreeMap::new();
        for (l, g) in letters {
            let bind = match g {
                Given::Dtype(d) => Bind::Dtype(*d),
                Given::Dim(Dim::Letter(w)) if env.dtypes.contains_key(w) => Bind::Dtype(env.dtypes[w]),
                Given::Dim(d) => Bind::Size(env.size(d)?),
            };
            given.insert(l.clone(), bind);
        }
        let mut types = vec![];
        for o in operands {
            types.push(match o {
                Operand::Name(_) => Some(self.operand(o, None).map(|v| self.b.ty(v).clone())?),
                Operand::Number(_) => None,
            });
        }
        let callee =
            self.scope.instantiate(self.b.module(), name, &given, &types, self.depth + 1).map_err(Stop::Faults)?;
        let want = self.b.module().function(callee).param_types();
        let operands =
            operands.iter().zip(want).map(|(o, t)| self.operand(o, Some(t.dtype))).collect::<Result<Vec<_>, _>>()?;
        Ok(self.b.node(names, Action::Call { callee, remat }, &operands)?)
    }

    fn check_results(&mut self, t: &Template, env: &Env) {
        let Some(results) = self.results.clone() else {
            return self.fault(Fault::new(Code::Return, format!("@{} has no `return`", t.name)), &t.place);
        };
        if !self.faults.is_empty() {
            return;
        }
        if results.is_empty() {
            return self.fault(Fault::new(Code::Return, format!("@{} returns nothing", t.name)), &t.place);
        }
        if results.len() != t.results.len() {
            return self.fault(
                Fault::new(
                    Code::Return,
                    format!("@{} returns {}, it declares {}", t.name, count(results.len(), "value"), t.results.len()),
                ),
                &t.place,
            );
        }
        for (v, want) in results.iter().zip(&t.results) {
            match env.ty(want) {
                Ok(ty) if ty != *self.b.ty(*v) => {
                    let f =
                        Fault::new(Code::Return, format!("@{} returns {}, it declares {ty}", t.name, self.b.ty(*v)));
                    self.fault(f, &want.place);
                }
                Ok(_) => {}
                Err(f) => self.fault(f, &want.place),
            }
        }
    }
}
