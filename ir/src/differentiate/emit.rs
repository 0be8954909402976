//! A backward function in the making: nodes over values of its own, which reads the forward's values by need.

use super::makers;
use crate::axes::{Axes, Group};
use crate::fault::Fault;
use crate::module::{Action, Function, Named, Node, Role, Value};
use crate::ops::{Cast, Constant, Op, Rearrange};
use crate::types::{Dtype, Type};
use std::collections::{BTreeMap, HashMap};

/// A value of the function in the making; a [`Value`] is one of the function that is differentiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Local(pub(super) u32);

/// What the backward reads of the forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Primal {
    /// A value of the function.
    Value(Value),
    /// A value that the forward of a call yields beside the call's results: the node, and which.
    Extra(usize, usize),
}

/// A backward function in the making.
pub struct Emit<'a> {
    primal: &'a Function,
    makers: Vec<Option<usize>>,
    values: Vec<Named>,
    nodes: Vec<Node>,
    /// What is read of the forward, in order of first use.
    pub(super) imports: Vec<(Primal, Local)>,
    made: HashMap<Primal, Local>,
    names: BTreeMap<String, usize>,
}

impl<'a> Emit<'a> {
    pub(super) fn new(primal: &'a Function) -> Emit<'a> {
        Emit {
            primal,
            makers: makers(primal),
            values: vec![],
            nodes: vec![],
            imports: vec![],
            made: HashMap::new(),
            names: BTreeMap::new(),
        }
    }

    /// The type of a value of the forward.
    pub fn primal_ty(&self, v: Value) -> &'a Type {
        self.primal.ty(v)
    }

    /// A value of the forward, read here. Constants and counts are made again instead.
    pub fn primal(&mut self, v: Value) -> Local {
        if let Some(l) = self.made.get(&Primal::Value(v)) {
            return *l;
        }
        let leaf = self.makers[v.0 as usize].map(|n| &self.primal.nodes[n].action);
        if let Some(Action::Op(op @ (Op::Constant(_) | Op::Iota(_)))) = leaf {
            let named = self.primal.value(v).clone();
            let l = self.node(&[named.name], Action::Op(op.clone()), &[], &[named.ty])[0];
            self.made.insert(Primal::Value(v), l);
            return l;
        }
        let named = self.primal.value(v).clone();
        self.import(Primal::Value(v), &named.name, named.ty)
    }

    /// A value that a call's forward yields beside its results.
    pub(super) fn extra(&mut self, node: usize, which: usize, name: &str, ty: Type) -> Local {
        match self.made.get(&Primal::Extra(node, which)) {
            Some(l) => *l,
            None => self.import(Primal::Extra(node, which), name, ty),
        }
    }

    fn import(&mut self, key: Primal, name: &str, ty: Type) -> Local {
        let l = self.value(name, ty);
        self.imports.push((key, l));
        self.made.insert(key, l);
        l
    }

    /// A cotangent that the function takes.
    pub(super) fn cotangent(&mut self, v: Value) -> Local {
        let named = self.primal.value(v);
        self.value(&format!("d.{}", named.name), named.ty.clone())
    }

    /// The type of a value made here.
    pub fn ty(&self, l: Local) -> &Type {
        &self.values[l.0 as usize].ty
    }

    /// Names a value after what it is the cotangent of.
    pub(super) fn rename(&mut self, l: Local, v: Value) {
        let name = self.unique(&format!("d.{}", self.primal.value(v).name));
        self.values[l.0 as usize].name = name;
    }

    /// Whether a value may be renamed: it is made by a node here.
    pub(super) fn is_made(&self, l: Local) -> bool {
        self.nodes.iter().rev().any(|n| n.results.contains(&Value(l.0)))
    }

    /// Adds a primitive.
    ///
    /// Errors: what does not fit.
    pub fn op(&mut self, name: &str, op: impl Into<Op>, x: &[Local]) -> Result<Local, Fault> {
        let op = op.into();
        let types: Vec<Type> = x.iter().map(|l| self.ty(*l).clone()).collect();
        let ty = op.infer(&types)?;
        Ok(self.node(&[name.to_string()], Action::Op(op), x, &[ty])[0])
    }

    /// Adds a node whose results are of these types.
    pub(super) fn node(&mut self, names: &[String], action: Action, x: &[Local], types: &[Type]) -> Vec<Local> {
        let results: Vec<Local> = names.iter().zip(types).map(|(n, t)| self.value(n, t.clone())).collect();
        self.nodes.push(Node {
            action,
            operands: x.iter().map(|l| Value(l.0)).collect(),
            results: results.iter().map(|l| Value(l.0)).collect(),
        });
        results
    }

    /// The same numbers in another dtype; the value itself where it has it.
    pub fn cast(&mut self, x: Local, dtype: Dtype) -> Result<Local, Fault> {
        if self.ty(x).dtype == dtype { Ok(x) } else { self.op("t", Cast { dtype }, &[x]) }
    }

    /// A tensor full of one number.
    pub fn splat(&mut self, value: f64, ty: &Type) -> Result<Local, Fault> {
        let c = self.op("c", Constant { dtype: ty.dtype, value }, &[])?;
        if ty.rank() == 0 {
            return Ok(c);
        }
        let words = axis_words(ty.rank());
        let sizes = words.iter().map(|g| g[0].clone()).zip(ty.shape.iter().copied()).collect();
        self.op("splat", Rearrange { axes: Axes { inputs: vec![vec![]], output: words }, sizes }, &[c])
    }

    fn value(&mut self, name: &str, ty: Type) -> Local {
        let name = self.unique(name);
        self.values.push(Named { name, ty });
        Local(self.values.len() as u32 - 1)
    }

    fn unique(&mut self, name: &str) -> String {
        let mut n = self.names.get(name).copied().unwrap_or(0);
        let mut unique = if n == 0 { name.to_string() } else { format!("{name}.{n}") };
        while self.names.contains_key(&unique) {
            n += 1;
            unique = format!("{name}.{n}");
        }
        self.names.insert(name.to_string(), n + 1);
        self.names.entry(unique.clone()).or_insert(1);
        unique
    }

    /// The function, with the letters of `of`: it takes `reads`, then `given`, and yields `results`.
    pub(super) fn finish(
        self,
        name: String,
        of: &Function,
        reads: &[Local],
        given: &[Local],
        results: &[Local],
    ) -> Function {
        let made = self.nodes.iter().flat_map(|n| n.results.iter().map(|v| Local(v.0)));
        let order: Vec<Local> = reads.iter().chain(given).copied().chain(made).collect();
        let at: HashMap<u32, Value> = order.iter().enumerate().map(|(i, l)| (l.0, Value(i as u32))).collect();
        let turn = |v: &Value| at.get(&v.0).copied().unwrap_or(Value(0));
        Function {
            name,
            binds: of.binds.clone(),
            params: vec![Role::Input; reads.len() + given.len()],
            values: order.iter().map(|l| self.values[l.0 as usize].clone()).collect(),
            nodes: self
                .nodes
                .iter()
                .map(|n| Node {
                    action: n.action.clone(),
                    operands: n.operands.iter().map(turn).collect(),
                    results: n.results.iter().map(turn).collect(),
                })
                .collect(),
            results: results.iter().map(|l| turn(&Value(l.0))).collect(),
        }
    }
}

/// One word an axis: `i0 i1 …`.
pub(crate) fn axis_words(rank: usize) -> Vec<Group> {
    (0..rank).map(|i| vec![format!("i{i}")]).collect()
}
