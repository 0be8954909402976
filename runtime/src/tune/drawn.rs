//! The operands of a piece of work by itself: their types, and numbers for them that mean something.

use crate::host::HostTensor;
use omchat_codegen::{Nest, Work};
use omchat_ir::text::instantiate_call;
use omchat_ir::{Bind, Dtype, Func, Module, Scalar, Scope, Tensor, Type, library};

/// What numbers an operand takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Role {
    /// Floats between -2 and 2.
    Signed,
    /// Floats between 0.1 and 2: what has a root, a logarithm, an inverse.
    Positive,
    /// Integers from `low` to `high`, both among them.
    Ints { low: i64, high: i64 },
    /// First key that a query sees: most see all from the start.
    First,
    /// Last key that a query sees, the last query the last key.
    Last {
        /// Keys there are.
        keys: usize,
    },
    /// Place of each key.
    Place,
}

/// Work with the types of its operands and results. An operand that the work does not read is one float.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) work: Work,
    pub(super) operands: Vec<(Type, Role)>,
    pub(super) results: Vec<Type>,
    /// The function, for work that is one.
    pub(super) function: Option<(Module, Func)>,
}

impl Instance {
    /// The instance of some work; nothing where the library has no such function.
    pub(super) fn of(work: &Work) -> Option<Instance> {
        match work {
            Work::Nest(n) => Some(of_nest(n)),
            Work::Function { name, binds, .. } => {
                let letters: Vec<(&str, Bind)> = binds.iter().map(|(l, b)| (l.as_str(), *b)).collect();
                of_function(name, &letters)
            }
            Work::KthLargest { rows, width, .. } => Some(Instance {
                work: work.clone(),
                operands: vec![(Type::new(Dtype::F32, [*rows, *width]), Role::Signed)],
                results: vec![Type::new(Dtype::F32, [*rows])],
                function: None,
            }),
            Work::ScatterAdd { dtype, height, width, tokens, ids, rows } => {
                let mut operands = vec![(Type::new(Dtype::F32, [1]), Role::Signed); ids.max(rows) + 1];
                operands[*ids] = (Type::new(Dtype::I32, [*tokens]), Role::Ints { low: -1, high: *height as i64 });
                operands[*rows] = (Type::new(*dtype, [*tokens, *width]), Role::Signed);
                let results = vec![Type::new(*dtype, [*height, *width])];
                Some(Instance { work: work.clone(), operands, results, function: None })
            }
            Work::Prefetch { .. } | Work::Collective(_) => None,
        }
    }

    /// Bytes of all its buffers.
    pub(super) fn bytes(&self) -> usize {
        self.operands.iter().map(|(t, _)| t.bytes()).chain(self.results.iter().map(Type::bytes)).sum()
    }

    /// The same with floats that all have roots and inverses.
    pub(super) fn positive(mut self) -> Instance {
        self.operands.iter_mut().filter(|o| o.1 == Role::Signed).for_each(|o| o.1 = Role::Positive);
        self
    }
}

/// The instance of a library function with those letters.
pub(super) fn of_function(name: &str, letters: &[(&str, Bind)]) -> Option<Instance> {
    let scope = Scope::new(&[library::file().ok()?]);
    let mut module = Module::default();
    let f = instantiate_call(&scope, &mut module, name, letters).ok()?;
    let function = module.function(f);
    let largest = function.binds.values().filter_map(|b| if let Bind::Size(n) = b { Some(*n) } else { None }).max();
    let params = function.param_values();
    let operands: Vec<(Type, Role)> = params
        .map(|v| {
            let (name, ty) = (&function.value(v).name, function.ty(v).clone());
            let role = match (name.as_str(), ty.dtype) {
                ("lo", Dtype::I32) => Role::First,
                ("hi", Dtype::I32) => Role::Last { keys: largest.unwrap_or(1) },
                ("at", Dtype::I32) => Role::Place,
                (_, Dtype::I32) => Role::Ints { low: -1, high: largest.unwrap_or(1) as i64 },
                (_, Dtype::Bool) => Role::Ints { low: 0, high: 1 },
                // A scalar is an epsilon, a rate, a decay.
                _ if ty.shape.is_empty() => Role::Positive,
                _ => Role::Signed,
            };
            (ty, role)
        })
        .collect();
    let keys = operands.iter().find(|(_, r)| *r == Role::Place).and_then(|(t, _)| t.shape.last().copied());
    let operands = operands
        .into_iter()
        .map(|(t, r)| match (r, keys) {
            (Role::Last { .. }, Some(keys)) => (t, Role::Last { keys }),
            _ => (t, r),
        })
        .collect();
    let work = Work::Function {
        name: function.name.clone(),
        binds: function.binds.clone(),
        operands: function.param_types(),
        results: function.result_types(),
    };
    Some(Instance { work, operands, results: function.result_types(), function: Some((module, f)) })
}

/// Places from the first that a view reaches to the last, and one.
fn reach(offset: usize, sizes: &[usize], strides: &[usize]) -> usize {
    1 + offset + sizes.iter().zip(strides).map(|(n, s)| n.saturating_sub(1) * s).sum::<usize>()
}

fn of_nest(n: &Nest) -> Instance {
    let axes = [&n.kept[..], &n.folded].concat();
    let mut operands: Vec<(Type, Role)> = vec![];
    let mut needs = |operand: usize, dtype: Dtype, len: usize, role: Role| {
        let none = (Type::new(Dtype::F32, [1]), Role::Signed);
        operands.resize(operands.len().max(operand + 1), none);
        let held = if operands[operand].0.dtype == dtype { operands[operand].0.elements() } else { 0 };
        operands[operand] = (Type::new(dtype, [held.max(len)]), role);
    };
    let rooted = |b: &omchat_codegen::Body| {
        let root = |f: Scalar| matches!(f, Scalar::Log | Scalar::Sqrt | Scalar::Rsqrt | Scalar::Div);
        b.steps.iter().any(|s| matches!(s, omchat_codegen::Step::Apply { f, .. } if root(*f)))
    };
    let float = if rooted(&n.body) || rooted(&n.epilogue) { Role::Positive } else { Role::Signed };
    for r in &n.reads {
        let rows = r.at.as_ref().map_or(0, |a| a.size.saturating_sub(1) * a.stride);
        let role = match r.dtype {
            Dtype::I32 => Role::Ints { low: -9, high: 40 },
            Dtype::Bool => Role::Ints { low: 0, high: 1 },
            _ => float,
        };
        needs(r.operand, r.dtype, reach(r.offset, &axes, &r.strides) + rows, role);
    }
    for a in n.reads.iter().filter_map(|r| r.at.as_ref()) {
        let role = Role::Ints { low: -1, high: a.size as i64 };
        needs(a.operand, Dtype::I32, reach(a.offset, &axes, &a.strides), role);
    }
    let mut results: Vec<Type> = vec![];
    for w in &n.writes {
        let starts = w.at.as_ref().map_or(0, |s| s.last * s.stride);
        if let Some(s) = &w.at {
            needs(s.operand, Dtype::I32, 1, Role::Ints { low: -1, high: s.last as i64 + 1 });
        }
        let len = reach(w.offset, &n.kept, &w.strides) + starts;
        results.resize(results.len().max(w.result + 1), Type::new(w.dtype, [1]));
        let held = results[w.result].elements();
        results[w.result] = Type::new(w.dtype, [held.max(len)]);
    }
    Instance { work: Work::Nest(n.clone()), operands, results, function: None }
}

/// A small generator: the same seed draws the same numbers everywhere.
#[derive(Clone)]
pub(super) struct Draw(pub(super) u64);

impl Draw {
    /// A number in 0..1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 ^ (self.0 >> 29)) >> 33) as f64 / f64::from(1u32 << 31)
    }

    /// Numbers of an operand, as its dtype holds them. `whole` draws every interval as a causal prompt has it.
    pub(super) fn tensor(&mut self, ty: &Type, role: Role, whole: bool) -> Tensor {
        let last = ty.shape.last().copied().unwrap_or(1).max(1);
        let data = (0..ty.elements())
            .map(|i| match role {
                Role::Signed => self.unit() * 4.0 - 2.0,
                Role::Positive => self.unit() * 1.9 + 0.1,
                Role::Ints { low, high } => low as f64 + (self.unit() * (high - low + 1) as f64).floor(),
                Role::First if whole || self.unit() < 0.7 => 0.0,
                Role::First => (i % last) as f64,
                // Some queries see nothing.
                Role::Last { .. } if !whole && self.unit() < 0.1 => -1.0,
                Role::Last { keys } => (keys.saturating_sub(last) + i % last) as f64,
                Role::Place if !whole && self.unit() < 0.1 => f64::from(i32::MAX),
                Role::Place => (i % last) as f64,
            })
            .collect();
        Tensor { ty: ty.clone(), data }.rounded()
    }

    /// The same for timing, quickly: floats repeat after a while, intervals are those of a causal prompt.
    pub(super) fn block(&mut self, ty: &Type, role: Role) -> HostTensor {
        const BLOCK: usize = 1 << 16;
        let floats = matches!(role, Role::Signed | Role::Positive);
        let small = Type::new(ty.dtype, [if floats { ty.elements().min(BLOCK) } else { ty.elements() }]);
        let shaped = if floats { small } else { ty.clone() };
        let drawn = HostTensor::from_tensor(&self.tensor(&shaped, role, true));
        let bytes = drawn.bytes.iter().copied().cycle().take(ty.bytes()).collect();
        HostTensor { ty: ty.clone(), bytes }
    }
}
