//! One module's names for what another computes alike, so that what only changed its name does not differ.

use omchat_ir::{Action, Func, Function, Module, Node, Value};
use similar::{Algorithm, DiffOp, capture_diff_slices};
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::ops::Range;

/// What the passes call functions of their own making, before a number.
const NUMBERED: [&str; 2] = ["fused.", "alone."];

/// Gives B's numbered functions the numbers that A has for functions that do the same, and between those in order.
pub fn functions(a: &Module, b: &mut Module) {
    NUMBERED.iter().for_each(|prefix| renumber(a, b, prefix));
}

fn renumber(a: &Module, b: &mut Module, prefix: &str) {
    let (of_a, of_b) = (numbered(a, prefix), numbered(b, prefix));
    let keys = |m: &Module, all: &[Func]| all.iter().map(|f| body(m, m.function(*f))).collect::<Vec<_>>();
    let mut pairs = vec![None; of_b.len()];
    refine(&keys(a, &of_a), &keys(b, &of_b), &mut pairs);
    for (from, to) in gaps(&pairs, of_a.len()) {
        to.zip(from).for_each(|(i, j)| pairs[i] = Some(j));
    }
    let mut taken: HashSet<String> = of_a.iter().map(|f| a.function(*f).name.clone()).collect();
    for (f, pair) in of_b.iter().zip(pairs) {
        let name = &mut b.functions[f.0 as usize].name;
        *name = match pair {
            Some(j) => a.function(of_a[j]).name.clone(),
            None => free(name, &mut taken),
        };
    }
}

/// Gives the values of B's function the names that A's function has for what is computed alike.
pub fn values(a: &Module, of_a: Func, b: &mut Module, of_b: Func) {
    let (f, g) = (a.function(of_a), b.function(of_b));
    let mut twins = vec![None; g.values.len()];
    let by_place = called(a, of_a) && called(b, of_b) && f.params.len() == g.params.len();
    for (i, v) in g.param_values().enumerate() {
        twins[i] = if by_place { Some(v) } else { f.param_values().find(|w| f.value(*w).name == g.value(v).name) };
    }
    for (i, j) in nodes(a, f, b, g, &twins).into_iter().enumerate() {
        let Some(j) = j else { continue };
        let (ours, theirs) = (&f.nodes[j].results, &g.nodes[i].results);
        theirs.iter().zip(ours).for_each(|(v, w)| twins[v.0 as usize] = Some(*w));
    }
    let names = names(f, g, &twins);
    let values = &mut b.functions[of_b.0 as usize].values;
    values.iter_mut().zip(names).for_each(|(v, name)| v.name = name);
}

/// For each node of B's function the node of A's that it is: first what computes the same from the parameters, then
/// between those what does the same under the same names, then what does the same under names that the other lacks.
fn nodes(a: &Module, f: &Function, b: &Module, g: &Function, params: &[Option<Value>]) -> Vec<Option<usize>> {
    let mut ids = HashMap::new();
    let of_a = computed(a, f, |v| v.0 as usize, &mut ids);
    let same = |v: Value| params[v.0 as usize].filter(|w| f.ty(*w) == g.ty(v));
    let of_b = computed(b, g, |v| same(v).map_or(f.params.len() + v.0 as usize, |w| w.0 as usize), &mut ids);
    let mut pairs = vec![None; g.nodes.len()];
    refine(&of_a, &of_b, &mut pairs);
    let named = |m: &Module, f: &Function, only: &dyn Fn(&str) -> bool, spelled: bool| -> Vec<String> {
        let own = |n: &Node| n.results.iter().map(|v| f.value(*v).name.as_str()).collect::<Vec<_>>().join(" ");
        let key = |(i, n): (usize, &Node)| match (only(&own(n)), spelled) {
            (true, true) => format!("{} {}", own(n), word(m, f, n)),
            (true, false) => word(m, f, n),
            (false, _) => format!("{:p} {i}", f),
        };
        f.nodes.iter().enumerate().map(key).collect()
    };
    refine(&named(a, f, &|_| true, true), &named(b, g, &|_| true, true), &mut pairs);
    let names = |f: &Function| -> HashSet<String> { f.values.iter().map(|v| v.name.clone()).collect() };
    let (in_a, in_b) = (names(f), names(g));
    refine(&named(a, f, &|n| !in_b.contains(n), false), &named(b, g, &|n| !in_a.contains(n), false), &mut pairs);
    pairs
}

/// A number for what each node computes: equal in both functions where the whole computation is, down to the
/// parameters.
fn computed(
    m: &Module,
    f: &Function,
    param: impl Fn(Value) -> usize,
    ids: &mut HashMap<(String, Vec<usize>), usize>,
) -> Vec<usize> {
    let mut of = vec![0; f.values.len()];
    let mut id = |key: (String, Vec<usize>)| {
        let next = ids.len();
        *ids.entry(key).or_insert(next)
    };
    for v in f.param_values() {
        of[v.0 as usize] = id(("parameter".into(), vec![param(v)]));
    }
    let mut nodes = vec![];
    for n in &f.nodes {
        let own = id((word(m, f, n), n.operands.iter().map(|o| of[o.0 as usize]).collect()));
        for (i, r) in n.results.iter().enumerate() {
            of[r.0 as usize] = id(("result".into(), vec![own, i]));
        }
        nodes.push(own);
    }
    nodes
}

/// What a node does, whatever its values are called.
fn word(m: &Module, f: &Function, n: &Node) -> String {
    let types: Vec<String> = n.results.iter().map(|r| f.ty(*r).to_string()).collect();
    let what = match &n.action {
        Action::Op(op) => format!("{op:?}"),
        Action::Call { callee, remat } => format!("{} {remat}", m.function(*callee).signature()),
    };
    format!("{what} {}", types.join(" "))
}

/// What a function does, whatever it and its values are called.
fn body(m: &Module, f: &Function) -> String {
    let nodes: Vec<String> = f.nodes.iter().map(|n| format!("{} {:?}", word(m, f, n), n.operands)).collect();
    format!("{:?} {:?} {nodes:?} {:?}", f.params, f.param_types(), f.results)
}

fn called(m: &Module, f: Func) -> bool {
    let calls = |n: &Node| matches!(n.action, Action::Call { callee, .. } if callee == f);
    m.functions.iter().any(|g| g.nodes.iter().any(calls))
}

fn numbered(m: &Module, prefix: &str) -> Vec<Func> {
    let is = |f: &Function| f.name.strip_prefix(prefix).is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
    (0..m.functions.len()).filter(|i| is(&m.functions[*i])).map(|i| Func(i as u32)).collect()
}

/// The names of B's values: A's where they are A's values, else their own, with a `'` where A means another by it.
fn names(f: &Function, g: &Function, twins: &[Option<Value>]) -> Vec<String> {
    let kept: HashSet<Value> = twins.iter().flatten().copied().collect();
    let name = |v: &Value| f.value(*v).name.clone();
    let mut taken: HashSet<String> = kept.iter().map(name).collect();
    let own = |(v, twin): (&omchat_ir::Named, &Option<Value>)| match twin {
        Some(w) => name(w),
        None => free(&v.name, &mut taken),
    };
    g.values.iter().zip(twins).map(own).collect()
}

/// The name, or the name with as many `'` as make it new.
fn free(name: &str, taken: &mut HashSet<String>) -> String {
    let mut name = name.to_string();
    while !taken.insert(name.clone()) {
        name.push('\'');
    }
    name
}

/// Pairs equal keys, in order, in what no pair covers yet. `pairs` holds for each of B the one of A.
fn refine<K: Hash + Eq + Ord>(a: &[K], b: &[K], pairs: &mut [Option<usize>]) {
    for (from, to) in gaps(pairs, a.len()) {
        for edit in capture_diff_slices(Algorithm::Myers, &a[from.clone()], &b[to.clone()]) {
            if let DiffOp::Equal { old_index, new_index, len } = edit {
                (0..len).for_each(|i| pairs[to.start + new_index + i] = Some(from.start + old_index + i));
            }
        }
    }
}

/// The ranges of A and of B between one pair and the next.
fn gaps(pairs: &[Option<usize>], len: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let mut out = vec![];
    let (mut from, mut to) = (0, 0);
    for (i, j) in pairs.iter().enumerate().filter_map(|(i, j)| Some((i, (*j)?))).chain([(pairs.len(), len)]) {
        if from < j && to < i {
            out.push((from..j, to..i));
        }
        (from, to) = (j + 1, i + 1);
    }
    out
}
