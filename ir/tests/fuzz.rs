//! Random functions print and parse back; random texts never panic, and are answered at once.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Rng, tensor};
use omchat_ir::{
    Action, Bind, Builder, Func, Mode, Module, Op, Role, Tensor, Type, Value, format, interpret, library, parse,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Longest that any text may take, however it is made.
const LIMIT: Duration = Duration::from_secs(8);

/// Every op of the samples with its operands' types.
fn stock() -> Vec<(Op, Vec<Type>)> {
    let mut out = vec![];
    for text in Op::samples() {
        let m = parse(&text).unwrap();
        for f in &m.functions {
            out.extend(f.nodes.iter().filter_map(|n| match &n.action {
                Action::Op(op) => Some((op.clone(), n.operands.iter().map(|v| f.ty(*v).clone()).collect())),
                Action::Call { .. } => None,
            }));
        }
    }
    out
}

/// A step of a function in the making: an op or a callee, and operands as indices of values.
enum Step {
    Op(Op),
    Call(Func),
}

/// A random function: each operand is a value of its type, or a parameter made for it.
fn function(module: &mut Module, rng: &mut Rng, stock: &[(Op, Vec<Type>)], index: usize) {
    let mut params: Vec<Type> = vec![];
    let mut made: Vec<Type> = vec![];
    let mut steps: Vec<(Step, Vec<(bool, usize)>)> = vec![];
    for _ in 0..1 + rng.below(12) {
        let (step, types) = if index > 0 && rng.below(5) == 0 {
            let callee = Func(rng.below(index) as u32);
            (Step::Call(callee), module.function(callee).param_types())
        } else {
            let (op, types) = stock[rng.below(stock.len())].clone();
            (Step::Op(op), types)
        };
        let operands = types
            .iter()
            .map(|t| {
                let old: Vec<(bool, usize)> = params
                    .iter()
                    .enumerate()
                    .filter(|(_, p)| *p == t)
                    .map(|(i, _)| (true, i))
                    .chain(made.iter().enumerate().filter(|(_, p)| *p == t).map(|(i, _)| (false, i)))
                    .collect();
                if !old.is_empty() && rng.below(4) > 0 {
                    return old[rng.below(old.len())];
                }
                params.push(t.clone());
                (true, params.len() - 1)
            })
            .collect();
        let action = match &step {
            Step::Op(op) => Action::Op(op.clone()),
            Step::Call(f) => Action::Call { callee: *f, remat: false },
        };
        made.extend(module.infer(&action, &types).unwrap());
        steps.push((step, operands));
    }
    let names = ["x", "y", "x.1", "c", "for", "func", "return", "f32", "0", "a_b"];
    let mut binds = BTreeMap::new();
    if rng.below(3) == 0 {
        binds.insert("T".to_string(), Bind::Size(rng.below(100)));
        binds.insert("E".to_string(), Bind::Dtype(omchat_ir::Dtype::ALL[rng.below(5)]));
    }
    let mut b = Builder::new(module, &format!("f{index}"), binds);
    let role = |n| if n == 0 { Role::Weight } else { Role::Input };
    let given: Vec<Value> =
        params.into_iter().map(|t| b.param(role(rng.below(4)), names[rng.below(names.len())], t)).collect();
    let mut results: Vec<Value> = vec![];
    for (step, operands) in steps {
        let operands: Vec<Value> =
            operands.iter().map(|&(param, i)| if param { given[i] } else { results[i] }).collect();
        let action = match step {
            Step::Op(op) => Action::Op(op),
            Step::Call(callee) => Action::Call { callee, remat: rng.below(2) == 0 },
        };
        results.extend(b.node(&[], action, &operands).unwrap());
    }
    let out = (0..1 + rng.below(3)).map(|_| results[rng.below(results.len())]).collect();
    b.finish(out);
}

/// Whether a function, or what it calls, has parts for a number of ranks.
fn of_one_rank(m: &Module, f: Func) -> bool {
    m.function(f).nodes.iter().any(|n| match &n.action {
        Action::Op(op) => op.on_ranks(2).is_err(),
        Action::Call { callee, .. } => of_one_rank(m, *callee),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_functions_round_trip_and_run(seed: u64) {
        let (mut rng, stock) = (Rng(seed), stock());
        let mut m = Module::default();
        for i in 0..1 + rng.below(4) {
            function(&mut m, &mut rng, &stock, i);
        }
        m.verify().unwrap_or_else(|e| panic!("{m}\n{e}"));
        let text = m.to_string();
        let again = parse(&text).unwrap_or_else(|e| panic!("{}", e.render("printed", &text)));
        prop_assert_eq!(&again, &m);
        prop_assert_eq!(again.to_string(), text.clone());
        prop_assert_eq!(&format(&text).unwrap(), &text);
        let entry = Func(m.functions.len() as u32 - 1);
        // Parts of the samples are for one rank.
        let parts = text.contains("parts=");
        let ranks = if parts { 1 } else { 1 + rng.below(3) };
        let operands: Vec<Vec<Tensor>> = (0..ranks).map(|_| m.function(entry).param_types().into_iter()
            .map(|t| { let data = rng.vec(t.elements(), 3.0); tensor(t.dtype, &t.shape, data) }).collect()).collect();
        if parts && of_one_rank(&m, entry) {
            let two = interpret(&m, entry, [operands.clone(), operands.clone()].concat(), Mode::Exact);
            prop_assert_eq!(two.unwrap_err().0[0].code, omchat_ir::Code::Rank);
        }
        for mode in [Mode::Exact, Mode::Typed] {
            for rank in interpret(&m, entry, operands.clone(), mode).unwrap() {
                let types: Vec<Type> = rank.iter().map(|t| t.ty.clone()).collect();
                prop_assert_eq!(types, m.function(entry).result_types());
                prop_assert!(rank.iter().all(|t| t.data.len() == t.ty.elements()));
            }
        }
    }

    #[test]
    fn random_characters_never_panic(text in "\\PC{0,200}") {
        answered(&text);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        answered(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn token_soup_never_panics(picks in prop::collection::vec(0usize..1000, 0..120)) {
        let words: Vec<&str> = picks.iter().map(|p| SOUP[p % SOUP.len()]).collect();
        answered(&format!("func @f(%x: f32[3], %y: i32[2]) -> f32[3] {{ {} }}", words.join(" ")));
        answered(&words.join(" "));
    }

    #[test]
    fn mutated_texts_never_panic(which in 0usize..1000, cuts in prop::collection::vec((any::<u64>(), 0usize..1000), 1..6)) {
        let sources = sources();
        let mut text = sources[which % sources.len()].clone();
        for (at, pick) in cuts {
            let tokens: Vec<&str> = text.split_inclusive([' ', '\n', ',', '(', ')', '[', ']', '"']).collect();
            let i = (at % tokens.len().max(1) as u64) as usize;
            let mut tokens: Vec<String> = tokens.into_iter().map(String::from).collect();
            match pick % 4 {
                0 => drop(tokens.remove(i)),
                1 => tokens.insert(i, format!("{} ", SOUP[pick % SOUP.len()])),
                2 => tokens[i] = format!("{} ", SOUP[pick % SOUP.len()]),
                _ => { let other = (i * 7 + pick) % tokens.len(); tokens.swap(i, other) }
            }
            if tokens.is_empty() {
                return Ok(());
            }
            text = tokens.concat();
        }
        answered(&text);
    }
}

const SOUP: &[&str] = &[
    "func",
    "@f",
    "@attention",
    "@rms_norm",
    "@f[",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "->",
    "..",
    ":",
    ",",
    "=",
    "+",
    "-",
    "*",
    "/",
    "%x",
    "%y",
    "%",
    "@",
    "f32",
    "f16[2]",
    "i32",
    "bool",
    "E",
    "N",
    "0",
    "1",
    "-1",
    "65536",
    "99999999999999999999",
    "9223372036854775807",
    "1e400",
    "1e30",
    "0.5",
    "-1e30",
    "\"a b -> b\"",
    "\"a -> (a)\"",
    "\"(\"",
    "\"a, a -> a\"",
    "\"->\"",
    ";; doc\n",
    "; comment\n",
    "for",
    "i in 0..4 {",
    "in",
    "return",
    "return %x",
    "call",
    "remat",
    "weight",
    "state",
    "einsum.f32",
    "reduce.sum",
    "reduce.max",
    "reduce",
    "iota",
    "iota 5",
    "dim.i32 N",
    "dim.f32",
    "constant.i32 0.5",
    "constant.bf16 1e39",
    "axis=1",
    "k=0",
    "k=9",
    "shift=-3",
    "start=0 end=9",
    "h=0",
    "a=3",
    "rearrange %x",
    "slice %x",
    "concat %x, %x",
    "gather %x, %y",
    "scatter_add %x, %y, %x",
    "update_slice %x, %x, 0",
    "arg_max %x",
    "kth_largest %x",
    "select",
    "add %x, 1",
    "collective_permute %x",
    "collective_permute %x, %y shift=1 ring=2",
    "all_reduce.sum %x",
    "all_gather %x",
    "reduce_scatter.sum %x",
    "parts=0",
    "parts=3",
    "ring=0",
    "cast.E %x",
    "%z =",
    "%x, %y =",
    "f32[N / 0]",
    "f32[9223372036854775807, 9]",
    "f32[0, 9223372036854775807]",
    "é",
    "\u{2028}",
    "\"",
];

fn sources() -> Vec<String> {
    let instance = "func @main(%q: bf16[1, 2, 3, 5, 4], %k: bf16[1, 2, 7, 4], %lo: i32[1, 5], %at: i32[1, 7], %x: f32[5, 6], %w: f32[6]) -> (bf16[1, 2, 3, 5, 4], f32[5, 6]) {
    %o, %l = call @ring_attention[R=3](%q, %k, %k, %lo, %lo, %at)
    %n = call @rms_norm(%x, %w, 1e-6)
    return %o, %n
}";
    library::FILES
        .iter()
        .map(|(_, t)| format!("{t}\n{instance}"))
        .chain(Op::samples())
        .chain([instance.to_string()])
        .collect()
}

/// Parses and formats a text; what is accepted must hold the rules of the language.
#[track_caller]
fn answered(text: &str) {
    let start = Instant::now();
    match parse(text) {
        Ok(m) => {
            m.verify().unwrap_or_else(|e| panic!("{text}\nparses to a module with faults:\n{e}"));
            let printed = m.to_string();
            assert_eq!(
                parse(&printed).unwrap_or_else(|e| panic!("{text}\n{}", e.render("printed", &printed))),
                m,
                "{text}"
            );
        }
        Err(e) => {
            assert!(!e.0.is_empty());
            let _ = (e.render("text", text), e.to_string());
        }
    }
    if let Ok(once) = format(text) {
        assert_eq!(
            format(&once).unwrap_or_else(|e| panic!("{text}\n{}", e.render("formatted", &once))),
            once,
            "{text}"
        );
    }
    assert!(start.elapsed() < LIMIT, "{:?} for {} bytes", start.elapsed(), text.len());
}

/// Whole texts that ask for too much: each is answered with faults, at once.
#[test]
fn too_much_is_refused() {
    let body = |b: &str| format!("func @f(%x: f32[3]) -> f32[3] {{ {b} return %x }}");
    let deep = |n: usize| format!("{}%x = copy %x {}", "for i in 0..2 { ".repeat(n), "} ".repeat(n));
    let chain = |join: &str, n: usize| body(&format!("%y = iota {}", vec!["1"; n].join(join)));
    let texts = [
        ("a type beyond memory", "func @f(%x: f32[9223372036854775807, 9223372036854775807]) -> f32 { return %x }".to_string()),
        ("a size beyond i64", "func @f(%x: f32[99999999999999999999]) -> f32[99999999999999999999] { return %x }".into()),
        ("an empty type with a huge axis", body("%y = iota 0 %z = rearrange %y \"a -> a b\" b=9223372036854775807 %w = concat %z, %z, %z axis=1")),
        ("an outer product beyond memory", "func @f(%x: f32[1099511627776]) -> f32[1, 1] { %y = einsum.f32 %x, %x \"a, b -> a b\" return %y }".into()),
        ("repeats beyond memory", body("%y = rearrange %x \"a -> (a b c d)\" b=4294967296 c=4294967296 d=4294967296")),
        ("nested rounds", body("for i in 0..65536 { for j in 0..65536 { for k in 0..65536 { } } }")),
        ("nested statements", body("for i in 0..65536 { for j in 0..65536 { %x = copy %x } }")),
        ("a loop too long", body("for i in 0..9223372036854775807 { }")),
        ("a loop over everything", body("for i in 0 - 9223372036854775807..9223372036854775807 { }")),
        ("loops too deep", body(&deep(100_000))),
        ("loops deep", body(&deep(16))),
        ("sums too long", chain(" + ", 100_000)),
        ("products too long", chain(" * ", 100_000)),
        ("parentheses too deep", body(&format!("%y = iota {}1{}", "(".repeat(100_000), ")".repeat(100_000)))),
        ("minus signs", body(&format!("%y = iota {}1", "- ".repeat(100_000)))),
        ("division by zero", body("%y = iota 4 / 0")),
        ("overflow", body("%y = iota 9223372036854775807 + 1")),
        ("overflow of a product", body("%y = iota 9223372036854775807 * 9223372036854775807")),
        ("a quotient that overflows", body("%y = iota (0 - 9223372036854775807 - 1) / (0 - 1)")),
        ("a negative size", body("%y = iota 3 - 4")),
        ("iota beyond i32", body("%y = iota 2147483648")),
        ("a letter beyond i64", format!("{} func @g[N=18446744073709551615](%x: f32[N]) -> f32[N] {{ return %x }}", body(""))),
        ("a number beyond f64", body("%y = constant.f32 1e999")),
        ("a number beyond f32", body("%y = add %x, 1e39")),
        ("a number beyond f16", body("%h = cast.f16 %x %y = add %h, 1e5")),
        ("a number beyond i32", body("%i = iota 3 %y = add %i, 3000000000")),
        ("a size beyond i32", body("%y = dim.i32 3000000000")),
        ("recursion", "func @f(%x: f32[3]) -> f32[3] { %y = call @f(%x) return %y }".into()),
        ("growing recursion", "func @g[N](%x: f32[N]) -> f32[N] { %y = concat %x, %x axis=0 %z = call @g(%y) return %x } func @f(%x: f32[3]) -> f32[3] { %y = call @g(%x) return %x }".into()),
        ("a tree of calls", "func @g[N](%x: f32[3]) -> f32[3] { %y = call @g[N=2 * N](%x) %z = call @g[N=2 * N + 1](%x) return %z } func @f(%x: f32[3]) -> f32[3] { %y = call @g[N=1](%x) return %x }".into()),
        ("many instances", "func @g[N](%x: f32[3]) -> f32[3] { %y = add %x, 1 return %y } func @f(%x: f32[3]) -> f32[3] { for i in 0..65536 { %x = call @g[N=i](%x) } return %x }".into()),
    ];
    for (what, text) in texts {
        let start = Instant::now();
        let answer = parse(&text);
        assert!(answer.is_err() || what == "loops deep", "{what} is accepted");
        answered(&text);
        assert!(start.elapsed() < LIMIT, "{what}: {:?}", start.elapsed());
        println!(
            "{what}: {:?}: {}",
            start.elapsed(),
            answer.err().map_or("accepted".into(), |e| e.0[0].message.chars().take(90).collect::<String>())
        );
    }
}

/// Long texts are plain work: time grows with the text, not with its square.
#[test]
fn long_texts_are_read_at_once() {
    let many = |line: &str| format!("func @f(%x: f32[3]) -> f32[3] {{ {} return %x }}", line.repeat(20_000));
    answered(&many("%x = add %x, 1\n"));
    answered(&many("%y = add %nope, 1\n"));
    answered(&many("for i in 0..1 { %x = copy %x }\n"));
    answered(&"func @f(%x: f32) -> f32 { return %x }\n".repeat(5_000));
    answered(&"func ".repeat(20_000));
    answered(&"(".repeat(100_000));
    answered(&"é".repeat(100_000));
    answered(&format!("func @f(%x: f32) -> f32 {{ %y = copy %x \"{}\" return %y }}", "( ".repeat(50_000)));
}

#[test]
fn interpreting_too_much_is_a_fault() {
    let cases = [
        ("func @f() -> i32[2147483647] { %y = iota 2147483647 return %y }", "%y"),
        ("func @f(%x: f32[999999999999]) -> f32[999999999999] { return %x }", "%x"),
        (
            "func @g() -> i32[2000000000] { %y = iota 2000000000 return %y } func @f() -> i32 { %y = call @g() %z = reduce.max %y \"a ->\" return %z }",
            "%y",
        ),
        ("func @f(%x: f32[100000], %y: f32[100000]) -> f32 { %z = einsum.f32 %x, %y \"a, b ->\" return %z }", "%z"),
    ];
    for (text, name) in cases {
        let m = parse(text).unwrap_or_else(|e| panic!("{}", e.render("text", text)));
        let fault = omchat_ir::check(&m, m.named("f").unwrap(), 1).unwrap_err().to_string();
        assert!(fault.contains(name) && fault.contains("67108864") && fault.contains("help"), "{fault}");
    }
    let m = parse("func @f(%x: f32[3]) -> f32[3] { return %x }").unwrap();
    let f = m.named("f").unwrap();
    let short = Tensor { ty: Type::new(omchat_ir::Dtype::F32, [3]), data: vec![] };
    assert!(interpret(&m, f, vec![vec![short]], Mode::Exact).is_err());
    assert!(interpret(&m, Func(7), vec![vec![]], Mode::Exact).is_err());
    assert!(interpret(&m, f, vec![], Mode::Exact).is_err());
}

/// The samples that random functions draw from reach every op.
#[test]
fn the_stock_has_every_mnemonic() {
    let have: BTreeSet<&str> = stock().iter().map(|(op, _)| op.write().0).collect();
    let lack: Vec<&str> = Op::mnemonics().into_iter().filter(|m| !have.contains(m)).collect();
    assert!(lack.is_empty(), "no sample for {lack:?}");
}
