//! Module to program: the pipeline, then a kernel for each piece of work, then a place for each buffer.

use crate::assign;
use crate::chain::chains;
use crate::horizontal::horizontals;
use crate::kernel::Work;
use crate::lower::{Lowered, lower};
use crate::nest::{Nest, Read, Write};
use crate::passes::{self, Context, Pass, Unit};
use crate::prefetch::prefetch;
use crate::program::{self, BufferPlan, Chosen, LaunchPlan, Memory, Place, Port, Program};
use crate::select::select;
use crate::{Body, Error, Kind, Step};
use omchat_ir::{Action, Func, Function, Module, Role, Value};
use std::collections::HashMap;

/// The program of a module's entry on a target.
///
/// Errors: faults of the module; a dtype or a limit of the target; work that no kernel takes.
pub fn compile(module: &Module, entry: Func, context: &Context) -> Result<Program, Error> {
    compile_with(module, entry, context, &mut |_, _| {})
}

/// As [`compile`], and shows the unit after each pass.
///
/// Errors: as [`compile`].
pub fn compile_with(
    module: &Module,
    entry: Func,
    context: &Context,
    after: &mut dyn FnMut(&Pass, &Unit),
) -> Result<Program, Error> {
    let unit = passes::run_with(Unit { module: module.clone(), entry }, context, None, after)?;
    let c = Compiler {
        unit: &unit,
        context,
        buffers: vec![],
        of: HashMap::new(),
        chosen: vec![],
        keys: HashMap::new(),
        launches: vec![],
        wishes: HashMap::new(),
    };
    c.run()
}

struct Compiler<'a> {
    unit: &'a Unit,
    context: &'a Context<'a>,
    buffers: Vec<BufferPlan>,
    /// The buffer of each value of the entry.
    of: HashMap<Value, usize>,
    chosen: Vec<Chosen>,
    keys: HashMap<String, usize>,
    launches: Vec<LaunchPlan>,
    /// The state's buffer that a value should come to lie in: it is the state's next value.
    wishes: HashMap<Value, usize>,
}

impl Compiler<'_> {
    fn run(mut self) -> Result<Program, Error> {
        let f = self.unit.module.function(self.unit.entry);
        let mut params = vec![];
        for (v, role) in f.param_values().zip(&f.params) {
            let memory = match role {
                Role::Input => Memory::Input,
                Role::Weight => Memory::Weight,
                Role::State => Memory::State,
            };
            let buffer = self.buffer(f.ty(v).clone(), memory, Place::Own)?;
            self.of.insert(v, buffer);
            params.push(Port { name: f.value(v).name.clone(), ty: f.ty(v).clone(), role: *role, buffer });
        }
        self.wishes = self.wishes_of(f, &params)?;
        let last = last_uses(f);
        for (at, node) in f.nodes.iter().enumerate() {
            self.node(f, at, node, &last)?;
        }
        let results = self.results(f, &params)?;
        for r in &results {
            if self.buffers[r.buffer].memory == Memory::Workspace {
                self.buffers[r.buffer].memory = Memory::Output;
            }
        }
        let target = self.context.target.clone();
        let mut horizontals = horizontals(&mut self.launches, &self.chosen, self.context);
        prefetch(&mut self.launches, &mut self.chosen, &mut horizontals, &self.buffers, self.context)?;
        let slabs = assign::assign(&mut self.buffers, &self.launches, &horizontals, &results, &target)?;
        let chains = chains(&self.launches, &self.chosen, self.context);
        Ok(Program {
            name: f.name.clone(),
            target,
            ranks: self.context.ranks,
            buffers: self.buffers,
            slabs,
            params,
            results,
            chosen: self.chosen,
            launches: self.launches,
            chains,
            horizontals,
        })
    }

    fn buffer(&mut self, ty: omchat_ir::Type, memory: Memory, place: Place) -> Result<usize, Error> {
        let target = self.context.target;
        if ty.bytes() > target.max_binding_bytes {
            return Err(Error::Limit {
                name: "bytes a buffer",
                what: format!("a buffer of {ty} ({})", memory.name()),
                need: ty.bytes(),
                have: target.max_binding_bytes,
                target: target.name.clone(),
                mend: match memory {
                    Memory::Weight => {
                        "a weight is not split: take another device, or a narrower dtype where it holds one"
                    }
                    Memory::State => "take a shorter context or another device",
                    _ => "take fewer tokens or tiles a chunk, or another device",
                },
            });
        }
        self.buffers.push(BufferPlan { ty, memory, place });
        Ok(self.buffers.len() - 1)
    }

    /// The states' next values, and through views what they are views of.
    fn wishes_of(&self, f: &Function, params: &[Port]) -> Result<HashMap<Value, usize>, Error> {
        let states = params.iter().filter(|p| p.role == Role::State).map(|p| p.buffer);
        let first = f.results.len() - f.states();
        let mut wishes: HashMap<Value, usize> = f.results[first..].iter().copied().zip(states).collect();
        for node in f.nodes.iter().rev() {
            let (Action::Call { callee, .. }, [r], [x]) = (&node.action, &node.results[..], &node.operands[..]) else {
                continue;
            };
            let g = self.unit.module.function(*callee);
            if let Some(b) = wishes.get(r).copied().filter(|_| !self.is_kernel(g))
                && lower(g, self.context.ranks)? == Lowered::Alias
            {
                wishes.insert(*x, b);
            }
        }
        Ok(wishes)
    }

    fn node(&mut self, f: &Function, at: usize, node: &omchat_ir::Node, last: &[usize]) -> Result<(), Error> {
        let Action::Call { callee, .. } = node.action else { return Ok(()) };
        let g = self.unit.module.function(callee);
        let label = node.results.iter().map(|r| format!("%{}", f.value(*r).name)).collect::<Vec<_>>().join(", ");
        let operands: Vec<usize> = node.operands.iter().map(|o| self.of[o]).collect();
        let lowered = if self.is_kernel(g) {
            Lowered::Work { pieces: vec![passes::call_work(g)], onto: None }
        } else {
            lower(g, self.context.ranks)?
        };
        match lowered {
            Lowered::Alias => {
                self.of.insert(node.results[0], operands[0]);
            }
            Lowered::Work { pieces, onto } => {
                let mut results: Vec<usize> = vec![];
                for (i, r) in node.results.iter().enumerate() {
                    let alone = |o: usize| !pieces.iter().any(|w| reads(w, &operands, operands[o]));
                    let dies = |o: usize| self.in_place(f, node.operands[o], at, last);
                    // A state's memory is kept for the state's next value.
                    let wish = self.wishes.get(r).copied();
                    let mut under = (0..operands.len()).filter(|o| {
                        let b = operands[*o];
                        let mine =
                            if self.buffers[b].memory == Memory::State { wish == Some(b) } else { wish.is_none() };
                        mine && !results.contains(&b)
                            && f.ty(node.operands[*o]) == f.ty(*r)
                            && in_step(&pieces, &operands, b, i)
                            && dies(*o)
                    });
                    let reused = onto.filter(|o| i == 0 && alone(*o) && dies(*o)).or_else(|| under.next());
                    let b = match reused {
                        Some(o) => operands[o],
                        None => {
                            self.buffer(f.ty(*r).clone(), Memory::Workspace, Place::Arena { slab: 0, offset: 0 })?
                        }
                    };
                    self.of.insert(*r, b);
                    results.push(b);
                }
                if let Some(o) = onto.filter(|o| operands[*o] != results[0]) {
                    self.copy(operands[o], results[0], &label)?;
                }
                // A concatenation: each part's memory is free once it is copied.
                let joins = pieces.len() > 1 && onto.is_none();
                for mut work in pieces {
                    let mut read = operands.clone();
                    if let (Work::Nest(nest), true) = (&mut work, joins) {
                        read = nest.drop_untouched().iter().map(|o| operands[*o]).collect();
                    }
                    self.launch(work, read, results.clone(), label.clone())?;
                }
            }
        }
        Ok(())
    }

    /// Whether a value's memory may be written over at its last use: states may, weights and inputs may not.
    fn in_place(&self, f: &Function, v: Value, at: usize, last: &[usize]) -> bool {
        let b = self.of[&v];
        let wanted = |w: Value| last[w.0 as usize] >= at && w != v || f.results.contains(&w);
        let shared = self.of.iter().any(|(w, c)| *c == b && wanted(*w));
        let fixed = matches!(self.buffers[b].memory, Memory::Weight | Memory::Input);
        last[v.0 as usize] == at && !shared && !fixed
    }

    fn is_kernel(&self, g: &Function) -> bool {
        self.context.kernels.iter().any(|k| k.implements().function(&g.name))
    }

    fn copy(&mut self, from: usize, to: usize, label: &str) -> Result<(), Error> {
        let ty = self.buffers[from].ty.clone();
        let n = ty.elements();
        let mut body = Body::default();
        let step = body.push(Step::Read { read: 0, kind: Kind::of(ty.dtype) });
        body.results = vec![step];
        let nest = Nest {
            kept: vec![n],
            folded: vec![],
            fold: None,
            reads: vec![Read { operand: 0, dtype: ty.dtype, offset: 0, strides: vec![1], at: None }],
            body,
            epilogue: Body::default(),
            writes: vec![Write { result: 0, dtype: ty.dtype, offset: 0, strides: vec![1], at: None }],
        };
        self.launch(Work::Nest(nest), vec![from], vec![to], format!("{label} (copy)"))
    }

    fn launch(&mut self, work: Work, operands: Vec<usize>, results: Vec<usize>, label: String) -> Result<(), Error> {
        if matches!(&work, Work::Nest(n) if n.points() == 0) {
            return Ok(());
        }
        let key = format!("{work:?}");
        let chosen = match self.keys.get(&key) {
            Some(i) => *i,
            None => {
                let c = select(work, self.context)?;
                self.chosen.push(c);
                self.keys.insert(key, self.chosen.len() - 1);
                self.chosen.len() - 1
            }
        };
        let scratch = program::scratch(&mut self.buffers, self.chosen[chosen].scratch);
        self.launches.push(LaunchPlan { chosen, operands, results, scratch, label });
        Ok(())
    }

    /// The entry's results; a state's next value that lies elsewhere is copied onto the state.
    fn results(&mut self, f: &Function, params: &[Port]) -> Result<Vec<Port>, Error> {
        let states: Vec<Port> = params.iter().filter(|p| p.role == Role::State).cloned().collect();
        let first = f.results.len() - states.len();
        let moved: Vec<(usize, usize)> = f.results[first..]
            .iter()
            .zip(&states)
            .map(|(r, s)| (self.of[r], s.buffer))
            .filter(|(from, to)| from != to)
            .collect();
        let mut out = vec![];
        let mut aside: HashMap<usize, usize> = HashMap::new();
        for (i, r) in f.results.iter().enumerate() {
            let name = f.value(*r).name.clone();
            let ty = f.ty(*r).clone();
            let mut buffer = self.of[r];
            let role = if i >= first { Role::State } else { Role::Input };
            if let Some(state) = i.checked_sub(first).map(|s| &states[s]) {
                if i == first {
                    // States that trade places: what a copy would write over is put aside first.
                    for (j, (from, _)) in moved.iter().enumerate() {
                        if moved[..j].iter().any(|(_, to)| to == from) && !aside.contains_key(from) {
                            let own = self.buffer(
                                self.buffers[*from].ty.clone(),
                                Memory::Workspace,
                                Place::Arena { slab: 0, offset: 0 },
                            )?;
                            self.copy(*from, own, "put aside")?;
                            aside.insert(*from, own);
                        }
                    }
                }
                if buffer != state.buffer {
                    let from = aside.get(&buffer).copied().unwrap_or(buffer);
                    self.copy(from, state.buffer, &format!("%{}", state.name))?;
                    buffer = state.buffer;
                }
            } else if self.buffers[buffer].place == Place::Own || out.iter().any(|p: &Port| p.buffer == buffer) {
                // A result that is a parameter, or twice the same value, gets memory of its own.
                let own = self.buffer(ty.clone(), Memory::Output, Place::Arena { slab: 0, offset: 0 })?;
                self.copy(buffer, own, &format!("%{name}"))?;
                buffer = own;
            }
            out.push(Port { name, ty, role, buffer });
        }
        Ok(out)
    }
}

/// Whether a nest may write a result over a buffer that it reads: at each point it reads only the element that it then
/// writes there, and after the fold if there is one.
fn in_step(pieces: &[Work], operands: &[usize], buffer: usize, result: usize) -> bool {
    let [Work::Nest(n)] = pieces else { return false };
    let mut writes = n.writes.iter().filter(|w| w.result == result);
    let (Some(write), None) = (writes.next(), writes.next()) else { return false };
    let own = |r: &Read| operands[r.operand] == buffer;
    let addressed = |r: &Read| r.at.as_ref().is_some_and(|a| operands[a.operand] == buffer);
    let same = |r: &Read| {
        let (kept, folded) = r.strides.split_at(n.kept.len());
        r.at.is_none()
            && r.dtype == write.dtype
            && r.offset == write.offset
            && kept == write.strides.as_slice()
            && folded.iter().all(|s| *s == 0)
    };
    let folds =
        |i: usize| n.fold.is_some() && n.body.steps.iter().any(|s| matches!(s, Step::Read { read, .. } if *read == i));
    let reads = n.reads.iter().enumerate();
    write.at.is_none()
        && n.writes.iter().all(|w| w.at.as_ref().is_none_or(|s| operands[s.operand] != buffer))
        && !n.reads.iter().any(addressed)
        && reads.filter(|(_, r)| own(r)).all(|(i, r)| same(r) && !folds(i))
}

/// Whether work reads elements of that buffer.
fn reads(work: &Work, operands: &[usize], buffer: usize) -> bool {
    match work {
        Work::Nest(n) => n
            .reads
            .iter()
            .any(|r| operands[r.operand] == buffer || r.at.as_ref().is_some_and(|a| operands[a.operand] == buffer)),
        Work::ScatterAdd { ids, rows, .. } => [*ids, *rows].iter().any(|o| operands[*o] == buffer),
        Work::Function { .. } | Work::KthLargest { .. } | Work::Prefetch { .. } | Work::Collective(_) => {
            operands.contains(&buffer)
        }
    }
}

/// The node at which each value is read last.
fn last_uses(f: &Function) -> Vec<usize> {
    let mut last = vec![0; f.values.len()];
    for (at, n) in f.nodes.iter().enumerate() {
        n.operands.iter().for_each(|o| last[o.0 as usize] = at);
    }
    last
}
