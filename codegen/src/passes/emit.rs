//! Groups to functions: each distinct group once, a call of it in the entry.

use super::facts::{Facts, Kind};
use super::inline::keep_called;
use super::{Unit, cse::drop_unused_values};
use omchat_ir::{Action, Func, Function, Module, Named, Node, Op, Role, Value};
use std::collections::HashMap;

/// Which nodes stay in the entry as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Groups of one node, and the free nodes that they read.
    Lone,
    /// Calls.
    Calls,
}

impl Keep {
    /// The prefix of the functions' names.
    fn prefix(self) -> &'static str {
        match self {
            Keep::Lone => "fused.",
            Keep::Calls => "alone.",
        }
    }
}

pub(super) fn emit(unit: &Unit, facts: &Facts, order: &[Vec<usize>], keep: Keep) -> Unit {
    let f = unit.module.function(unit.entry);
    let mut e = Emit {
        f,
        facts,
        keep,
        module: unit.module.clone(),
        seen: HashMap::new(),
        nodes: vec![],
        stored: vec![false; f.values.len()],
        kept: vec![false; f.nodes.len()],
    };
    let entry = e.module.functions.pop().unwrap_or_default();
    e.stored.iter_mut().take(f.params.len()).for_each(|s| *s = true);
    for nodes in order {
        e.store_for(nodes);
        e.group(nodes);
    }
    for r in &f.results {
        e.store(*r);
    }
    let entry = Function { nodes: e.nodes, ..entry };
    e.module.functions.push(entry);
    let entry = Func(e.module.functions.len() as u32 - 1);
    keep_called(drop_unused_values(Unit { module: e.module, entry }))
}

struct Emit<'a> {
    f: &'a Function,
    facts: &'a Facts,
    keep: Keep,
    module: Module,
    /// Outlined functions by what they do.
    seen: HashMap<String, Func>,
    nodes: Vec<Node>,
    /// Whether a value is in memory.
    stored: Vec<bool>,
    /// Whether a node stands in the entry already.
    kept: Vec<bool>,
}

impl Emit<'_> {
    /// Stores what a group that is no loop nest reads through free nodes.
    fn store_for(&mut self, nodes: &[usize]) {
        let needs_memory = |n: &usize| {
            matches!(
                &self.f.nodes[*n].action,
                Action::Call { .. }
                    | Action::Op(
                        Op::KthLargest(_)
                            | Op::UpdateSlice(_)
                            | Op::ScatterAdd(_)
                            | Op::CollectivePermute(_)
                            | Op::AllReduce(_)
                            | Op::AllGather(_)
                            | Op::ReduceScatter(_)
                            | Op::Copy(_)
                    )
            )
        };
        // What the group itself makes is on its way.
        let made_here = |v: &Value| {
            let mut bases = vec![];
            self.facts.bases(self.f, *v, &mut bases);
            bases.iter().any(|b| self.facts.maker[b.0 as usize].is_some_and(|m| nodes.contains(&m)))
        };
        let operands = nodes.iter().filter(|n| needs_memory(n)).flat_map(|n| self.f.nodes[*n].operands.clone());
        let operands: Vec<Value> = operands.filter(|v| !made_here(v)).collect();
        operands.into_iter().for_each(|v| self.store(v));
        // A gather addresses memory: a table or ids that are made of nothing in memory are stored too.
        let gathers = nodes.iter().filter(|n| matches!(self.f.nodes[**n].action, Action::Op(Op::Gather(_))));
        let made: Vec<Value> = gathers
            .flat_map(|n| self.f.nodes[*n].operands.clone())
            .filter(|v| {
                let mut bases = vec![];
                self.facts.bases(self.f, *v, &mut bases);
                bases.is_empty()
            })
            .collect();
        made.into_iter().for_each(|v| self.store(v));
    }

    /// Puts a free value into memory, by a group of its own.
    fn store(&mut self, v: Value) {
        if let Some(n) = self.facts.maker[v.0 as usize].filter(|_| self.facts.free(v) && !self.stored[v.0 as usize]) {
            self.group(&[n]);
        }
    }

    fn group(&mut self, nodes: &[usize]) {
        if let [one] = nodes
            && (self.keep == Keep::Lone || matches!(self.f.nodes[*one].action, Action::Call { .. }))
        {
            self.f.nodes[*one].results.iter().for_each(|r| self.stored[r.0 as usize] = true);
            self.keep_node(*one);
            return;
        }
        let mut part = Part {
            f: self.f,
            facts: self.facts,
            stored: &self.stored,
            map: HashMap::new(),
            params: vec![],
            out: Function::default(),
        };
        for n in nodes {
            part.copy(*n);
        }
        let results: Vec<Value> = nodes
            .iter()
            .flat_map(|n| self.f.nodes[*n].results.iter().copied())
            .filter(|v| {
                // A lone node that nothing reads is a collective, which all ranks meet in.
                self.wanted(*v, nodes) || self.facts.free(*v) || nodes.len() == 1
            })
            .collect();
        let (params, out) = part.finish(&results);
        let key = format!("{:?}", (&out.params, &out.values, &out.nodes, &out.results));
        let callee = *self.seen.entry(key).or_insert_with(|| {
            let at = self.module.functions.len();
            self.module.functions.push(Function { name: format!("{}{at}", self.keep.prefix()), ..out });
            Func(at as u32)
        });
        results.iter().for_each(|r| self.stored[r.0 as usize] = true);
        self.nodes.push(Node { action: Action::Call { callee, remat: false }, operands: params, results });
    }

    /// Whether the caller or a node outside of a group reads a value, itself or through free nodes.
    fn wanted(&self, v: Value, nodes: &[usize]) -> bool {
        let outside = |u: &usize| {
            let free = self.facts.kinds[*u] == Kind::Free;
            !nodes.contains(u) && (!free || self.f.nodes[*u].results.iter().any(|r| self.wanted(*r, nodes)))
        };
        self.facts.result[v.0 as usize] || self.facts.users[v.0 as usize].iter().any(outside)
    }

    /// A node as it is, behind the free nodes that it reads.
    fn keep_node(&mut self, n: usize) {
        if std::mem::replace(&mut self.kept[n], true) {
            return;
        }
        let f = self.f;
        for o in &f.nodes[n].operands {
            let lone = self.keep == Keep::Lone && self.facts.free(*o);
            if let Some(m) = self.facts.maker[o.0 as usize].filter(|_| lone) {
                self.keep_node(m);
            }
        }
        self.nodes.push(f.nodes[n].clone());
    }
}

/// A group's function in the making. Values are renamed in order, so that equal groups print equal.
struct Part<'a> {
    f: &'a Function,
    facts: &'a Facts,
    stored: &'a [bool],
    map: HashMap<Value, Value>,
    params: Vec<Value>,
    out: Function,
}

impl Part<'_> {
    /// Copies a node; its operands become parameters, or free nodes copied before it.
    fn copy(&mut self, n: usize) {
        let node = &self.f.nodes[n];
        for o in &node.operands {
            if self.map.contains_key(o) {
                continue;
            }
            match self.facts.maker[o.0 as usize] {
                Some(m) if self.facts.free(*o) && !self.stored[o.0 as usize] => self.copy(m),
                _ => {
                    self.params.push(*o);
                    // Marks the value; its index comes when all parameters are known.
                    self.map.insert(*o, Value(u32::MAX));
                }
            }
        }
        for r in &node.results {
            self.map.insert(*r, Value(u32::MAX));
        }
        self.out.nodes.push(node.clone());
    }

    fn finish(mut self, results: &[Value]) -> (Vec<Value>, Function) {
        for (i, p) in self.params.iter().enumerate() {
            self.map.insert(*p, Value(i as u32));
            self.out.params.push(Role::Input);
            self.out.values.push(Named { name: format!("a{i}"), ty: self.f.ty(*p).clone() });
        }
        for node in &mut self.out.nodes {
            node.operands.iter_mut().for_each(|o| *o = self.map[o]);
            for r in &mut node.results {
                let v = Value(self.out.values.len() as u32);
                self.out.values.push(Named { name: format!("v{}", v.0), ty: self.f.ty(*r).clone() });
                self.map.insert(*r, v);
                *r = v;
            }
        }
        self.out.results = results.iter().map(|r| self.map[r]).collect();
        (self.params, self.out)
    }
}
