//! Named, directional rules on the entry; the right side is never worse: no more bytes read, written or held.
//!
//! Nodes are met in order, each with its operands already in their final form, and rewritten until no rule applies:
//! a second run finds nothing. Floats are finite by design, so 0 times anything is 0. A number that is the same
//! everywhere, a *splat*, has one form: a constant, repeated by `rearrange %c "-> a b"` where it has axes.
//! A constant keeps its double: folding rounds nothing that the dtype would not round later.

mod folds;
mod moves;
mod numbers;
mod shape;

use super::cse::drop_unused_values;
use super::{Context, Unit};
use crate::Error;
use omchat_ir::ops::{Constant, Rearrange};
use omchat_ir::{Action, Axes, Dtype, Function, Named, Node, Op, Type, Value};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A rule: what it rewrites a node to, if it applies.
#[derive(Clone, Copy)]
pub struct Rule {
    /// The name; `tests/filetests/pass/canonicalize/NAME.oir` shows it.
    pub name: &'static str,
    /// Left and right side, in a line.
    pub doc: &'static str,
    apply: fn(&Site) -> Option<Rewrite>,
}

/// Every rule, in the order they are tried.
pub const RULES: &[Rule] = &[
    Rule { name: "empty", doc: "what has no element is a splat", apply: moves::empty },
    Rule { name: "cast_same", doc: "cast.D x:D = x", apply: numbers::cast_same },
    Rule {
        name: "cast_of_cast",
        doc: "cast.C (cast.W x:D) = cast.C x where W holds all of D",
        apply: numbers::cast_of_cast,
    },
    Rule { name: "cast_splat", doc: "cast of a splat = splat", apply: numbers::cast_splat },
    Rule {
        name: "stop_gradient",
        doc: "stop_gradient x = x: programs are past differentiation",
        apply: numbers::stop_gradient,
    },
    Rule { name: "fold", doc: "a scalar function of splats = splat", apply: numbers::fold },
    Rule { name: "add_zero", doc: "x + 0 = 0 + x = x - 0 = x", apply: numbers::add_zero },
    Rule { name: "zero_sub", doc: "0 - x = neg x", apply: numbers::zero_sub },
    Rule { name: "sub_same", doc: "x - x = splat 0", apply: numbers::sub_same },
    Rule { name: "mul_one", doc: "x * 1 = 1 * x = x / 1 = x", apply: numbers::mul_one },
    Rule { name: "mul_zero", doc: "x * 0 = 0 * x = 0 / x = splat 0", apply: numbers::mul_zero },
    Rule { name: "neg_neg", doc: "neg (neg x) = x", apply: numbers::neg_neg },
    Rule { name: "add_neg", doc: "x + neg y = x - y, x - neg y = x + y", apply: numbers::add_neg },
    Rule { name: "select_constant", doc: "select of a splat = the arm that it picks", apply: numbers::select_constant },
    Rule { name: "select_same", doc: "select c x x = x", apply: numbers::select_same },
    Rule { name: "and_constant", doc: "and x true = x, and x false = splat false", apply: numbers::and_constant },
    Rule { name: "not_not", doc: "not (not x) = x", apply: numbers::not_not },
    Rule {
        name: "add_padded",
        doc: "concat a 0 + concat 0 b = concat a b: slices' cotangents",
        apply: moves::add_padded,
    },
    Rule { name: "rearrange_identity", doc: "a rearrange that moves nothing = x", apply: shape::identity },
    Rule { name: "rearrange_splat", doc: "rearrange of a splat = splat", apply: shape::splat },
    Rule {
        name: "rearrange_of_rearrange",
        doc: "two rearranges = one, unless one is a view that the two become a copy for",
        apply: shape::compose,
    },
    Rule { name: "slice_whole", doc: "a slice of the whole axis = x", apply: moves::slice_whole },
    Rule { name: "slice_splat", doc: "slice of a splat = splat", apply: moves::slice_splat },
    Rule { name: "slice_of_slice", doc: "two slices of one axis = one", apply: moves::slice_of_slice },
    Rule {
        name: "slice_of_concat",
        doc: "a slice inside one part of a concat = a slice of the part",
        apply: moves::slice_of_concat,
    },
    Rule { name: "concat_one", doc: "concat x = x", apply: moves::concat_one },
    Rule { name: "concat_empty", doc: "a part without elements goes", apply: moves::concat_empty },
    Rule {
        name: "concat_of_concat",
        doc: "concat (concat a b) c = concat a b c where nobody else wants the inner one",
        apply: moves::concat_of_concat,
    },
    Rule { name: "concat_splat", doc: "concat of one splat = splat", apply: moves::concat_splat },
    Rule { name: "concat_of_slices", doc: "concat of neighbouring slices = one slice", apply: moves::concat_of_slices },
    Rule { name: "reduce_splat", doc: "reduce of a splat = splat", apply: folds::reduce_splat },
    Rule { name: "reduce_one", doc: "a reduce over axes of size 1 = rearrange", apply: folds::reduce_one },
    Rule { name: "einsum_zero", doc: "einsum with a splat 0 = splat 0", apply: folds::einsum_zero },
    Rule { name: "gather_zero", doc: "gather from a splat 0 = splat 0", apply: folds::gather_zero },
    Rule {
        name: "scatter_zero",
        doc: "scatter_add of nothing, or of a splat 0 = the table",
        apply: folds::scatter_zero,
    },
    Rule { name: "update_whole", doc: "update_slice of the whole axis = the part", apply: folds::update_whole },
];

pub(super) fn run(unit: Unit, _: &Context) -> Result<Unit, Error> {
    let mut unit = canonicalize(unit, RULES);
    // What lost a use by a later rewrite is seen once that is done.
    loop {
        let next = canonicalize(unit.clone(), RULES);
        if next == unit {
            return Ok(unit);
        }
        unit = next;
    }
}

/// The entry rewritten by those rules only: to see what a rule does.
pub fn canonicalize(mut unit: Unit, rules: &[Rule]) -> Unit {
    let entry = unit.entry.0 as usize;
    let f = std::mem::take(&mut unit.module.functions[entry]);
    unit.module.functions[entry] = Making::new(f, rules).run();
    drop_unused_values(unit)
}

/// What a rule makes of a node.
enum Rewrite {
    /// The node's result is that value.
    Same(Value),
    /// The node is another op over those operands.
    Op(Op, Vec<Value>),
    /// The node's result is that number everywhere.
    Splat(f64),
}

/// A node as rules see it.
struct Site<'a> {
    op: &'a Op,
    x: &'a [Value],
    result: Value,
    known: &'a Making<'a>,
}

impl<'a> Site<'a> {
    fn ty(&self, v: Value) -> &'a Type {
        self.known.f.ty(v)
    }

    /// The result's type.
    fn to(&self) -> &'a Type {
        self.ty(self.result)
    }

    /// The number that a value is everywhere, if it is one.
    fn splat(&self, v: Value) -> Option<f64> {
        self.known.splats[v.0 as usize]
    }

    /// Whether a value is wanted in one place alone.
    fn used_once(&self, v: Value) -> bool {
        self.known.uses[v.0 as usize] == 1
    }

    /// The op that makes a value, and its operands.
    fn maker(&self, v: Value) -> Option<(&'a Op, &'a [Value])> {
        let node = &self.known.nodes[self.known.makers[v.0 as usize]?];
        match &node.action {
            Action::Op(op) => Some((op, &node.operands)),
            Action::Call { .. } => None,
        }
    }
}

/// An entry being rewritten.
struct Making<'a> {
    f: Function,
    rules: &'a [Rule],
    nodes: Vec<Node>,
    /// Where each value's node stands among `nodes`.
    makers: Vec<Option<usize>>,
    splats: Vec<Option<f64>>,
    /// What stands for each value.
    same: Vec<Value>,
    /// How often each value is wanted, at most.
    uses: Vec<usize>,
    /// Constants made here, by dtype and bits.
    constants: HashMap<(Dtype, u64), Value>,
    names: HashSet<String>,
}

impl<'a> Making<'a> {
    fn new(f: Function, rules: &'a [Rule]) -> Making<'a> {
        let n = f.values.len();
        let names = f.values.iter().map(|v| v.name.clone()).collect();
        let same = (0..n as u32).map(Value).collect();
        let (makers, splats) = (vec![None; n], vec![None; n]);
        let mut uses = vec![0; n];
        f.nodes.iter().flat_map(|n| &n.operands).chain(&f.results).for_each(|v| uses[v.0 as usize] += 1);
        Making { f, rules, nodes: vec![], makers, splats, same, uses, constants: HashMap::new(), names }
    }

    fn run(mut self) -> Function {
        for mut node in std::mem::take(&mut self.f.nodes) {
            node.operands.iter_mut().for_each(|v| *v = self.same[v.0 as usize]);
            let result = node.results[0];
            while let Some(rewrite) = self.rewrite(&node) {
                match rewrite {
                    Rewrite::Same(v) => {
                        self.keep_name(v, result);
                        self.same[result.0 as usize] = v;
                        self.uses[v.0 as usize] += self.uses[result.0 as usize];
                        break;
                    }
                    Rewrite::Op(op, operands) => {
                        operands.iter().for_each(|v| self.uses[v.0 as usize] += 1);
                        (node.action, node.operands) = (Action::Op(op), operands);
                    }
                    Rewrite::Splat(value) => (node.action, node.operands) = self.splat(value, result),
                }
            }
            if self.same[result.0 as usize] == result {
                self.push(node);
            }
        }
        self.f.nodes = self.nodes;
        self.f.results.iter_mut().for_each(|v| *v = self.same[v.0 as usize]);
        self.f
    }

    /// A cotangent's name tells what its memory is for: what stands for it takes the name.
    fn keep_name(&mut self, v: Value, gone: Value) {
        let cotangent = |f: &Function, v: Value| f.value(v).name.starts_with("d.");
        let made = v.0 as usize >= self.f.params.len();
        if made && cotangent(&self.f, gone) && !cotangent(&self.f, v) {
            let (a, b) = (v.0 as usize, gone.0 as usize);
            let name = std::mem::take(&mut self.f.values[a].name);
            self.f.values[a].name = std::mem::replace(&mut self.f.values[b].name, name);
        }
    }

    fn rewrite(&self, node: &Node) -> Option<Rewrite> {
        let Action::Op(op) = &node.action else { return None };
        let site = Site { op, x: &node.operands, result: node.results[0], known: self };
        // In its one form already.
        if matches!(op, Op::Constant(_)) || shape::repeats_a_constant(&site) {
            return None;
        }
        self.rules.iter().find_map(|r| (r.apply)(&site))
    }

    fn push(&mut self, node: Node) {
        for r in &node.results {
            self.makers[r.0 as usize] = Some(self.nodes.len());
        }
        self.splats[node.results[0].0 as usize] = match &node.action {
            Action::Op(Op::Constant(c)) => Some(c.value),
            Action::Op(Op::Rearrange(_)) => self.splats[node.operands[0].0 as usize],
            _ => None,
        };
        self.nodes.push(node);
    }

    /// The node of a splat of a value's type.
    fn splat(&mut self, value: f64, like: Value) -> (Action, Vec<Value>) {
        let Type { dtype, shape } = self.f.ty(like).clone();
        let op = Constant { dtype, value };
        if shape.is_empty() {
            return (Action::Op(op.into()), vec![]);
        }
        let constant = match self.constants.get(&(dtype, value.to_bits())) {
            Some(v) => *v,
            None => {
                let v = self.fresh(Type::new(dtype, []));
                self.push(Node { action: Action::Op(op.into()), operands: vec![], results: vec![v] });
                self.constants.insert((dtype, value.to_bits()), v);
                v
            }
        };
        let words: Vec<String> = (0..shape.len()).map(shape::word).collect();
        let sizes: BTreeMap<String, usize> = words.iter().cloned().zip(shape).collect();
        let axes = Axes { inputs: vec![vec![]], output: words.into_iter().map(|w| vec![w]).collect() };
        (Action::Op(Rearrange { axes, sizes }.into()), vec![constant])
    }

    fn fresh(&mut self, ty: Type) -> Value {
        let mut n = self.f.values.len();
        while !self.names.insert(format!("splat.{n}")) {
            n += 1;
        }
        self.f.values.push(Named { name: format!("splat.{n}"), ty });
        let v = Value(self.f.values.len() as u32 - 1);
        self.makers.push(None);
        self.splats.push(None);
        self.same.push(v);
        self.uses.push(0);
        v
    }
}
