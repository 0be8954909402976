//! Random functions from the ops' own samples. A recipe of numbers always builds a function, whatever the numbers
//! are, so a smaller recipe is a smaller function: this is what shrinking needs.

use omchat_ir::ops::Attrs;
use omchat_ir::{Action, Builder, Dtype, Func, Module, Op, Role, Type, Value};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// What a function starts from.
const PARAMS: [(Dtype, &[usize]); 10] = [
    (Dtype::F32, &[3, 4]),
    (Dtype::F32, &[5]),
    (Dtype::F32, &[]),
    (Dtype::F32, &[2, 1, 3]),
    (Dtype::Bf16, &[4, 2]),
    (Dtype::F16, &[1, 6]),
    (Dtype::F32, &[0, 3]),
    (Dtype::I32, &[4]),
    (Dtype::Bool, &[3, 2]),
    (Dtype::I32, &[]),
];

/// Ops with their operands' types, by mnemonic.
type Stock = Vec<(&'static str, Vec<Sample>)>;
type Sample = (Op, Vec<Type>);

/// What the samples leave out: axes of size 0 and 1, einsum axes of one operand only, narrow floats, windows of nothing.
const CORNERS: [&str; 24] = [
    "(%x: f32[3, 0]) -> f32[3] { %y = reduce.sum %x \"a b -> a\"",
    "(%x: f32[0, 3]) -> f32 { %y = reduce.sum %x \"a b -> \"",
    "(%x: f32[3, 4]) -> f32[3, 4] { %y = reduce.sum %x \"a b -> a b\"",
    "(%x: f32[1, 3, 1]) -> f32[3] { %y = reduce.max %x \"a b c -> b\"",
    "(%x: bf16[3, 4]) -> bf16[4] { %y = reduce.max %x \"a b -> b\"",
    "(%x: f16[3, 4]) -> f16[3] { %y = reduce.sum %x \"a b -> a\"",
    "(%x: f32[3, 4], %z: f32[5]) -> f32[3] { %y = einsum.f32 %x, %z \"a b, c -> a\"",
    "(%x: f32[3, 4], %z: f32[2, 5]) -> f32[5, 3] { %y = einsum.f32 %x, %z \"a b, d c -> c a\"",
    "(%x: f32[3, 0], %z: f32[0, 2]) -> f32[3, 2] { %y = einsum.f32 %x, %z \"a b, b c -> a c\"",
    "(%x: bf16[1, 4], %z: bf16[4, 1]) -> bf16[1, 1] { %y = einsum.bf16 %x, %z \"a b, b c -> c a\"",
    "(%x: f32[], %z: f32[2, 3]) -> f32[3, 2] { %y = einsum.f32 %x, %z \", a b -> b a\"",
    "(%x: f16[2, 3], %z: f16[2, 3]) -> f32 { %y = einsum.f32 %x, %z \"a b, a b -> \"",
    "(%x: f32[1, 3, 1]) -> f32[3, 1, 1] { %y = rearrange %x \"a b c -> b c a\"",
    "(%x: f32[1, 3]) -> f32[1, 1, 3, 1] { %y = rearrange %x \"a b -> d a b c\" c=1 d=1",
    "(%x: f32[1, 1]) -> f32[2, 3] { %y = rearrange %x \"a b -> (c a) (b d)\" c=2 d=3",
    "(%x: bf16[0, 3]) -> bf16[2, 0] { %y = rearrange %x \"a b -> c (a b)\" c=2",
    "(%x: f32[4, 3]) -> f32[0, 3] { %y = slice %x axis=0 start=2 end=2",
    "(%x: f32[4, 3]) -> f32[4, 3] { %y = slice %x axis=1 start=0 end=3",
    "(%x: f32[0, 3], %z: f32[2, 3]) -> f32[2, 3] { %y = concat %x, %z axis=0",
    "(%x: bf16[2, 3]) -> bf16[2, 9] { %y = concat %x, %x, %x axis=1",
    "(%x: f16[3, 2], %i: i32[1]) -> f16[1, 2] { %y = gather %x, %i \"v c, t -> t c\"",
    "(%x: bf16[3, 2], %i: i32[0], %r: bf16[0, 2]) -> bf16[3, 2] { %y = scatter_add %x, %i, %r \"v c, t, t c -> v c\"",
    "(%x: f32[3, 4], %z: f32[3, 0], %i: i32) -> f32[3, 4] { %y = update_slice %x, %z, %i axis=1",
    "(%x: f32[3, 1]) -> f32[3] { %y = kth_largest %x \"a b -> a\" k=1",
];

/// A step: which op or callee, and how each operand is picked.
type Step = (u16, [u16; 3]);

/// A function: which parameters, which steps, which results.
#[derive(Clone, Debug)]
pub struct Recipe {
    params: Vec<u8>,
    steps: Vec<Step>,
    results: Vec<u16>,
}

/// Up to three functions; the last is `@f`, and may call the others.
pub fn recipes() -> impl Strategy<Value = Vec<Recipe>> {
    let one = (
        prop::collection::vec(any::<u8>(), 1..5),
        prop::collection::vec((any::<u16>(), any::<[u16; 3]>()), 1..9),
        prop::collection::vec(any::<u16>(), 1..5),
    );
    prop::collection::vec(one.prop_map(|(params, steps, results)| Recipe { params, steps, results }), 1..4)
}

/// Every op of the samples with its operands' types, by mnemonic.
fn stock(smooth: bool) -> Stock {
    let mut out: BTreeMap<&'static str, Vec<Sample>> = BTreeMap::new();
    let corners = CORNERS.iter().map(|t| format!("func @f{t} return %y }}"));
    for text in Op::samples().into_iter().chain(corners) {
        for f in &omchat_ir::parse(&text).unwrap_or_else(|e| panic!("{}", e.render("sample", &text))).functions {
            for n in &f.nodes {
                if let Action::Op(op) = &n.action {
                    // Beside -1e30 a difference is lost.
                    if smooth && matches!(op, Op::Constant(c) if c.value.abs() > 1e3) {
                        continue;
                    }
                    let types = n.operands.iter().map(|v| f.ty(*v).clone()).collect();
                    out.entry(op.write().0).or_default().push((op.clone(), types));
                }
            }
        }
    }
    // Its difference quotient is 1 and its cotangent 0, on purpose.
    out.into_iter().filter(|(name, _)| !smooth || *name != "stop_gradient").collect()
}

/// The module of a recipe; `@f` is its last function.
pub fn build(recipes: &[Recipe], smooth: bool) -> Module {
    let (mut module, stock) = (Module::default(), stock(smooth));
    for (i, r) in recipes.iter().enumerate() {
        let name = if i + 1 == recipes.len() { "f".to_string() } else { format!("g{i}") };
        function(&mut module, &name, r, &stock, i);
    }
    rounded(module)
}

/// The same with constants as their dtypes hold them: a program keeps no other.
pub fn rounded(mut module: Module) -> Module {
    for f in &mut module.functions {
        for n in &mut f.nodes {
            if let Action::Op(Op::Constant(c)) = &mut n.action {
                c.value = f.values[n.results[0].0 as usize].ty.dtype.round(c.value);
            }
        }
    }
    module
}

/// The mnemonics that a module uses.
pub fn mnemonics(module: &Module) -> BTreeSet<&'static str> {
    let nodes = module.functions.iter().flat_map(|f| &f.nodes);
    nodes.filter_map(|n| if let Action::Op(op) = &n.action { Some(op.write().0) } else { None }).collect()
}

fn function(module: &mut Module, name: &str, r: &Recipe, stock: &Stock, callees: usize) {
    let mut b = Builder::new(module, name, BTreeMap::new());
    let mut all: Vec<Value> = vec![];
    for (i, p) in r.params.iter().enumerate() {
        // The first is a float with elements: there is something to differentiate by.
        let (dtype, shape) = PARAMS[*p as usize % if i == 0 { 6 } else { PARAMS.len() }];
        all.push(b.param(Role::Input, "p", Type::new(dtype, shape)));
    }
    for (which, picks) in &r.steps {
        let which = *which as usize;
        let pick = |i: usize| picks[i % 3] as usize + i / 3;
        let calls = if callees > 0 { 8 } else { 0 };
        let action;
        let types;
        match stock.get(which % (stock.len() + calls)) {
            Some((_, samples)) => {
                let (op, t) = &samples[pick(2) % samples.len()];
                (action, types) = (Action::Op(op.clone()), t.clone());
            }
            None => {
                let callee = Func((pick(2) % callees) as u32);
                action = Action::Call { callee, remat: pick(1) % 2 == 1 };
                types = b.module().function(callee).param_types();
            }
        }
        let mut operands = vec![];
        for (i, t) in types.iter().enumerate() {
            let v = choose(&b, &all, t, pick(i));
            let v = fit(&mut b, v, t);
            operands.push(guard(&mut b, &action, i, v));
        }
        all.extend(b.node(&[], action, &operands).unwrap());
    }
    let n = all.len();
    // The last values mostly; any value, a parameter too, now and then; one twice.
    let results = r.results.iter().map(|k| match *k as usize {
        k if k % 4 > 0 => all[n - 1 - k / 4 % n.min(3)],
        k => all[k / 4 % n],
    });
    let results = results.collect();
    b.finish(results);
}

/// A value, sooner one that fits or that is recent.
fn choose(b: &Builder, all: &[Value], want: &Type, pick: usize) -> Value {
    let same: Vec<Value> = all.iter().copied().filter(|v| b.ty(*v) == want).collect();
    let n = all.len();
    match pick % 4 {
        0 | 1 if !same.is_empty() => same[pick / 4 % same.len()],
        2 => all[pick / 4 % n],
        _ => all[n - 1 - pick / 4 % n.min(3)],
    }
}

fn add(b: &mut Builder, mnemonic: &str, attrs: Attrs, operands: &[Value]) -> Value {
    let op = Op::read(mnemonic, attrs).unwrap_or_else(|e| panic!("{mnemonic}: {e:?}"));
    b.op("v", op, operands).unwrap_or_else(|e| panic!("{mnemonic}: {e:?}"))
}

fn axes(text: String, ints: Vec<(String, i64)>) -> Attrs {
    Attrs { axes: Some(text), ints, ..Attrs::default() }
}

/// Letters of axes, and their sizes.
fn named(shape: &[usize]) -> (String, Vec<(String, i64)>) {
    let names: Vec<&str> = ["a", "b", "c", "d", "e", "g"][..shape.len()].to_vec();
    (names.join(" "), names.iter().zip(shape).map(|(n, s)| ((*n).to_string(), *s as i64)).collect())
}

/// The value as another type: cast, and its elements in order, repeated or cut off.
fn fit(b: &mut Builder, v: Value, want: &Type) -> Value {
    let mut v = v;
    if b.ty(v).dtype != want.dtype {
        v = add(b, "cast", Attrs { suffix: Some(want.dtype.name().into()), ..Attrs::default() }, &[v]);
    }
    let have = b.ty(v).clone();
    let (n, m) = (have.elements(), want.elements());
    let (names, sizes) = named(&want.shape);
    if have.shape == want.shape {
        return v;
    }
    if n == 0 || m == 0 {
        let one = Attrs { suffix: Some(want.dtype.name().into()), number: Some(1.0), ..Attrs::default() };
        let one = add(b, "constant", one, &[]);
        return add(b, "rearrange", axes(format!("-> {names}"), sizes), &[one]);
    }
    if have.rank() != 1 {
        let own = named(&have.shape).0;
        let out = if own.is_empty() { "a".to_string() } else { format!("({own})") };
        let ints = if own.is_empty() { vec![("a".to_string(), 1)] } else { vec![] };
        v = add(b, "rearrange", axes(format!("{own} -> {out}"), ints), &[v]);
    }
    if n < m {
        let times = vec![("k".to_string(), m.div_ceil(n) as i64)];
        v = add(b, "rearrange", axes("n -> (k n)".into(), times), &[v]);
    }
    if b.ty(v).elements() > m {
        let ints = [("axis", 0), ("start", 0), ("end", m as i64)].map(|(n, i)| (n.to_string(), i)).to_vec();
        v = add(b, "slice", Attrs { ints, ..Attrs::default() }, &[v]);
    }
    match want.rank() {
        0 => add(b, "rearrange", axes("n -> ".into(), vec![]), &[v]),
        1 => v,
        _ => add(b, "rearrange", axes(format!("({names}) -> {names}"), sizes), &[v]),
    }
}

/// Keeps operands where a function is finite: between 1/e and e where it has a pole, -1 and 1 where it grows fast.
fn guard(b: &mut Builder, action: &Action, i: usize, v: Value) -> Value {
    let Action::Op(op) = action else { return v };
    let name = op.write().0;
    if !b.ty(v).dtype.is_float() {
        return v;
    }
    let pole = ["log", "sqrt", "rsqrt"].contains(&name) || (name == "div" && i == 1);
    if !pole && name != "exp" {
        return v;
    }
    let small = add(b, "tanh", Attrs::default(), &[v]);
    if pole { add(b, "exp", Attrs::default(), &[small]) } else { small }
}

/// The same module with no call marked `remat`.
pub fn plain(module: &Module) -> Module {
    let mut out = module.clone();
    for n in out.functions.iter_mut().flat_map(|f| &mut f.nodes) {
        if let Action::Call { remat, .. } = &mut n.action {
            *remat = false;
        }
    }
    out
}
