//! The fixed list of work: functions of the library and primitives at a model's shapes, as IR text with drawn operands.

use super::draw::{Draw, drawn};
use crate::Error;
use omchat_codegen::Seen;
use omchat_ir::{Bind, Dtype, Func, Module};
use omchat_model::OmChatConfig;
use omchat_runtime::HostTensor;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// How many tokens the list is made for.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// Rows of a chunk: of einsums, norms, maps.
    pub tokens: usize,
    /// Queries and keys of a causal attention.
    pub context: usize,
    /// Sides of square einsums beside the model's.
    pub cubes: Vec<usize>,
    /// Element types of activations and weights.
    pub dtypes: Vec<(Dtype, Dtype)>,
}

const F32: Dtype = Dtype::F32;
const BF16: Dtype = Dtype::Bf16;

impl Scale {
    /// For what is slow: a few rows.
    pub fn tiny() -> Scale {
        Scale { tokens: 8, context: 24, cubes: vec![16], dtypes: vec![(F32, F32)] }
    }

    /// For the CPU: chunks of a chat, weights in both widths.
    pub fn cpu() -> Scale {
        let dtypes = vec![(F32, F32), (F32, BF16)];
        Scale { tokens: 256, context: 1024, cubes: vec![512, 1024, 2048], dtypes }
    }

    /// For a card.
    pub fn card() -> Scale {
        let dtypes = vec![(BF16, BF16), (F32, F32)];
        Scale { tokens: 2048, context: 8192, cubes: vec![2048, 4096, 8192], dtypes }
    }
}

/// A function with operands to run it on.
#[derive(Clone, Debug)]
pub struct Case {
    /// Family and shape.
    pub name: String,
    /// The shape by letter.
    pub shape: Map<String, Value>,
    /// The element type whose einsum it is read against.
    pub dtype: Dtype,
    /// What its attentions see.
    pub seen: Option<Seen>,
    source: Source,
    draws: Vec<(&'static str, Draw)>,
}

/// Where a case's function is from.
#[derive(Clone, Debug)]
enum Source {
    /// A text, whose last function it is.
    Text(String),
    /// Somebody's module.
    Module(Module, Func),
}

impl Case {
    /// A case of that family, dtypes, layout (or nothing) and sizes.
    pub(super) fn new(family: &str, dtypes: &[Dtype], layout: &str, sizes: &[(&str, usize)], text: String) -> Case {
        let mut kinds: Vec<&str> = dtypes.iter().map(|d| d.name()).collect();
        kinds.dedup();
        let spelled: String = sizes.iter().map(|(l, n)| format!("{l}{n}")).collect();
        let parts = [family.to_string(), kinds.join("-"), layout.to_string(), spelled];
        let name = parts.iter().filter(|p| !p.is_empty()).cloned().collect::<Vec<_>>().join("/");
        let mut shape: Map<String, Value> = sizes.iter().map(|(l, n)| ((*l).to_string(), json!(n))).collect();
        shape.insert("dtype".into(), json!(kinds.join("-")));
        if !layout.is_empty() {
            shape.insert("layout".into(), json!(layout));
        }
        let dtype = dtypes.last().copied().unwrap_or(F32);
        Case { name, shape, dtype, seen: None, source: Source::Text(text), draws: vec![] }
    }

    /// A case of anybody's function, of that name and those letters. Floats are drawn between -1 and 1, `eps` is 1e-5, integers are below
    /// 64; keys' places (`at`) count up, and queries see all of them (`lo`, `hi`).
    pub fn of(name: &str, binds: &BTreeMap<String, Bind>, module: Module, entry: Func) -> Case {
        let f = module.function(entry);
        let types: Vec<_> = f.param_values().map(|v| (f.value(v).name.clone(), f.ty(v).clone())).collect();
        let letters = |b: &(&String, &Bind)| match b.1 {
            Bind::Size(n) => format!("{}{n}", b.0),
            Bind::Dtype(d) => d.name().to_string(),
        };
        let spelled: Vec<String> = binds.iter().map(|b| letters(&b)).collect();
        let name = [vec!["function".to_string(), name.to_string()], spelled].concat().join("/");
        let value = |b: &Bind| match b {
            Bind::Size(n) => json!(n),
            Bind::Dtype(d) => json!(d.name()),
        };
        let shape = binds.iter().map(|(l, b)| (l.clone(), value(b))).collect();
        let dtype = types.iter().map(|(_, t)| t.dtype).find(|d| d.is_float()).unwrap_or(F32);
        let mut case = Case { name, shape, dtype, seen: None, source: Source::Module(module, entry), draws: vec![] };
        case = case.draw("eps", Draw::Is(1e-5)).draw("lo", Draw::Is(0.0)).draw("hi", Draw::Is(f64::from(1 << 30)));
        match types.iter().find(|(name, t)| name == "at" && t.dtype == Dtype::I32) {
            Some((_, t)) => {
                let keys = t.shape.last().copied().unwrap_or(1).max(1);
                case.draw("at", Draw::Ints((0..t.elements()).map(|i| (i % keys) as i32).collect()))
            }
            None => case,
        }
    }

    pub(super) fn draw(mut self, name: &'static str, draw: Draw) -> Case {
        self.draws.push((name, draw));
        self
    }

    pub(super) fn sees(mut self, pairs: usize, keys: usize) -> Case {
        self.seen = Some(Seen { pairs: pairs as u64, keys: keys as u64 });
        self
    }

    /// The function, with what it calls.
    ///
    /// Errors: faults of the text, which a test shows to have none.
    pub fn module(&self) -> Result<(Module, Func), Error> {
        match &self.source {
            Source::Text(text) => {
                let module = omchat_ir::parse(text)?;
                let entry = Func(module.functions.len().saturating_sub(1) as u32);
                Ok((module, entry))
            }
            Source::Module(module, entry) => Ok((module.clone(), *entry)),
        }
    }

    /// Its operands, one a parameter.
    pub fn operands(&self, module: &Module, entry: Func) -> Vec<HostTensor> {
        let f = module.function(entry);
        let one = |(i, v): (usize, omchat_ir::Value)| {
            let name = &f.value(v).name;
            let given = self.draws.iter().find(|(n, _)| n == name).map(|(_, d)| d.clone());
            let usual = match f.ty(v).dtype {
                Dtype::I32 => Draw::Range(0.0, 64.0),
                Dtype::Bool => Draw::Range(0.0, 2.0),
                _ => Draw::Range(-1.0, 1.0),
            };
            drawn(f.ty(v), &given.unwrap_or(usual), i as u64 + 1)
        };
        f.param_values().enumerate().map(one).collect()
    }
}

/// Every case at a model's shapes.
pub fn cases(config: &OmChatConfig, scale: &Scale) -> Vec<Case> {
    let mut out = vec![];
    for dtypes in &scale.dtypes {
        einsums(&mut out, config, scale, *dtypes);
    }
    let mut acts: Vec<Dtype> = scale.dtypes.iter().map(|d| d.0).collect();
    acts.dedup();
    for e in acts {
        attentions(&mut out, config, scale, e);
        rows(&mut out, config, scale, e);
        losses(&mut out, config, scale, e);
    }
    plain(&mut out, config, scale);
    out
}

/// An einsum; weights of another dtype are widened where they are read.
fn einsum(layout: &'static str, (a, w): (Dtype, Dtype), [m, n, k]: [usize; 3]) -> Case {
    let (x, y, axes) = match layout {
        "nn" => (format!("[{m}, {k}]"), format!("[{k}, {n}]"), "m k, k n -> m n"),
        "tn" => (format!("[{k}, {m}]"), format!("[{k}, {n}]"), "k m, k n -> m n"),
        _ => (format!("[{m}, {k}]"), format!("[{n}, {k}]"), "m k, n k -> m n"),
    };
    let (widen, name) = if a == w { (String::new(), "w") } else { (format!("%wide = cast.{a} %w"), "wide") };
    let text = format!(
        "func @bench(%x: {a}{x}, weight %w: {w}{y}) -> {a}[{m}, {n}] {{ {widen} %y = einsum.{a} %x, %{name} \"{axes}\" return %y }}"
    );
    Case::new("einsum", &[a, w], layout, &[("m", m), ("n", n), ("k", k)], text)
}

/// Rows of a batch that decodes together.
const BATCH: usize = 64;

fn einsums(out: &mut Vec<Case>, config: &OmChatConfig, scale: &Scale, dtypes: (Dtype, Dtype)) {
    let t = &config.text;
    let rows = scale.tokens;
    if dtypes.0 == dtypes.1 {
        out.extend(scale.cubes.iter().map(|n| einsum("nt", dtypes, [*n; 3])));
    }
    // Into and out of the MLP, the same backwards, and a batch's rows out of it; then a decode step's MLP and its logits.
    out.push(einsum("nt", dtypes, [rows, t.mlp, t.hidden]));
    out.push(einsum("nt", dtypes, [rows, t.hidden, t.mlp]));
    out.push(einsum("nn", dtypes, [rows, t.hidden, t.mlp]));
    if dtypes.0 == dtypes.1 {
        out.push(einsum("tn", dtypes, [t.mlp, t.hidden, rows]));
    }
    if rows > BATCH {
        out.push(einsum("nt", dtypes, [BATCH, t.hidden, t.mlp]));
    }
    out.push(einsum("nt", dtypes, [1, t.mlp, t.hidden]));
    out.push(einsum("nt", dtypes, [1, t.hidden, t.mlp]));
    out.push(einsum("nt", dtypes, [1, t.vocab, t.hidden]));
}

const INDEX: &str = "%lo: i32[1, T], %hi: i32[1, T], %at: i32[1, S]";

/// An attention of `queries` over `slots` of which the first `filled` hold keys.
fn attention(family: &str, e: Dtype, layout: &str, [h, g, t, s, d]: [usize; 5], filled: usize, causal: bool) -> Case {
    let (q, k) = (format!("{e}[1, {h}, {g}, {t}, {d}]"), format!("{e}[1, {h}, {s}, {d}]"));
    let (wide, wide_k) = (format!("f32[1, {h}, {g}, {t}, {d}]"), format!("f32[1, {h}, {s}, {d}]"));
    let row = format!("f32[1, {h}, {g}, {t}]");
    let index = INDEX.replace('T', &t.to_string()).replace('S', &s.to_string());
    let back = format!(", %lse: {row}, %delta: {row}, %do: {q}");
    let (more, results, names, arguments) = match family {
        "attention_dq" => (back, wide, "%dq", ", %lse, %delta, %do"),
        "attention_dkv" => (back, format!("({wide_k}, {wide_k})"), "%dk, %dv", ", %lse, %delta, %do"),
        "attention_partial" => (String::new(), format!("({wide}, {row})"), "%o, %l", ""),
        _ => (String::new(), format!("({q}, {row})"), "%o, %l", ""),
    };
    let callee = if family == "decode_attention" { "attention" } else { family };
    let text = format!(
        "func @bench(%q: {q}, %k: {k}, %v: {k}, {index}{more}) -> {results} {{ {names} = call @{callee}(%q, %k, %v, %lo, %hi, %at{arguments}) return {names} }}"
    );
    let last = |i: usize| if causal { filled - t + i } else { filled - 1 };
    let pairs = (0..t).map(|i| last(i) + 1).sum();
    let at = (0..s).map(|i| if i < filled { i as i32 } else { i32::MAX }).collect();
    let mut sizes = vec![("h", h), ("g", g), ("t", t), ("s", s), ("d", d)];
    if filled < s {
        sizes.push(("filled", filled));
    }
    // The backward reads lse: what it is for scores as small as these draw.
    let lse = (filled as f64).ln();
    Case::new(family, &[e], layout, &sizes, text)
        .draw("lo", Draw::Is(0.0))
        .draw("hi", Draw::Ints((0..t).map(|i| last(i) as i32).collect()))
        .draw("at", Draw::Ints(at))
        .draw("lse", Draw::Range(lse - 0.5, lse + 0.5))
        .sees(pairs, filled)
}

fn attentions(out: &mut Vec<Case>, config: &OmChatConfig, scale: &Scale, e: Dtype) {
    let (t, n) = (&config.text, scale.context);
    let (h, g, d) = (t.kv_heads, t.heads / t.kv_heads.max(1), t.head_dim);
    for family in ["attention", "attention_dq", "attention_dkv"] {
        out.push(attention(family, e, "causal", [h, g, n, n, d], n, true));
    }
    // A chunk over a cache of which half is filled; one token over the same.
    let chunk = scale.tokens.min(n);
    out.push(attention("attention", e, "cache", [h, g, chunk, 2 * n, d], n, true));
    out.push(attention("decode_attention", e, "", [h, g, 1, 2 * n, d], n, true));
    if let Some(v) = &config.vision {
        let rows = (v.image_size / v.patch_size.max(1)).pow(2) + 1;
        out.push(attention("attention", e, "whole", [v.heads, 1, rows, rows, v.hidden / v.heads.max(1)], rows, false));
    }
}

/// Norms, rotations and gates over the rows of a chunk.
fn rows(out: &mut Vec<Case>, config: &OmChatConfig, scale: &Scale, e: Dtype) {
    let t = &config.text;
    let (r, c, f) = (scale.tokens, t.hidden, t.mlp);
    let sizes = [("r", r), ("c", c)];
    let (x, w) = (format!("{e}[{r}, {c}]"), format!("{e}[{c}]"));
    let eps = Draw::Is(1e-6);
    let norm = |family: &str, params: &str, results: &str, call: &str| {
        let text = format!("func @bench({params}) -> {results} {{ {call} }}");
        Case::new(family, &[e], "", &sizes, text).draw("eps", eps.clone())
    };
    out.push(norm(
        "rms_norm",
        &format!("%x: {x}, %w: {w}, %eps: f32"),
        &x,
        "%y = call @rms_norm(%x, %w, %eps) return %y",
    ));
    out.push(norm(
        "rms_norm_vjp",
        &format!("%x: {x}, %w: {w}, %eps: f32, %y: {x}, %dy: {x}"),
        &format!("({x}, {w})"),
        "%dx, %dw, %de = call @rms_norm.vjp(%x, %w, %eps, %y, %dy) return %dx, %dw",
    ));
    out.push(norm(
        "layer_norm",
        &format!("%x: {x}, %w: {w}, %b: {w}, %eps: f32"),
        &x,
        "%y = call @layer_norm(%x, %w, %b, %eps) return %y",
    ));
    out.push(norm(
        "layer_norm_vjp",
        &format!("%x: {x}, %w: {w}, %b: {w}, %eps: f32, %y: {x}, %dy: {x}"),
        &format!("({x}, {w}, {w})"),
        "%dx, %dw, %db, %de = call @layer_norm.vjp(%x, %w, %b, %eps, %y, %dy) return %dx, %dw, %db",
    ));
    let (h, g, p) = (t.kv_heads, t.heads / t.kv_heads.max(1), t.head_dim / 2);
    let (q, table) = (format!("{e}[1, {h}, {g}, {r}, {}]", 2 * p), format!("f32[{r}, {p}]"));
    let text = format!(
        "func @bench(%x: {q}, %cos: {table}, %sin: {table}) -> {q} {{ %y = call @rope(%x, %cos, %sin) return %y }}"
    );
    out.push(
        Case::new("rope", &[e], "", &[("h", h), ("g", g), ("t", r), ("p", p)], text)
            .draw("cos", Draw::Cos)
            .draw("sin", Draw::Sin),
    );
    let gate = format!("{e}[{r}, {f}]");
    let text = format!("func @bench(%g: {gate}, %u: {gate}) -> {gate} {{ %y = call @swiglu(%g, %u) return %y }}");
    out.push(Case::new("swiglu", &[e], "", &[("r", r), ("f", f)], text));
    let text = format!(
        "func @bench(%g: {gate}, %u: {gate}, %y: {gate}, %dy: {gate}) -> ({gate}, {gate}) {{ %dg, %du = call @swiglu.vjp(%g, %u, %y, %dy) return %dg, %du }}"
    );
    out.push(Case::new("swiglu_vjp", &[e], "", &[("r", r), ("f", f)], text));
}

fn losses(out: &mut Vec<Case>, config: &OmChatConfig, scale: &Scale, e: Dtype) {
    let (t, c, v) = (scale.tokens, config.text.hidden, config.text.vocab);
    let sizes = [("t", t), ("c", c), ("v", v)];
    let labels = Draw::Range(0.0, v as f64);
    let text = format!(
        "func @bench(%x: {e}[{t}, {c}], weight %w: {e}[{v}, {c}], %labels: i32[{t}]) -> (f32[{t}], f32[{t}]) {{ %loss, %lse = call @linear_cross_entropy(%x, %w, %labels) return %loss, %lse }}"
    );
    out.push(Case::new("linear_cross_entropy", &[e], "", &sizes, text).draw("labels", labels.clone()));
    let text = format!(
        "func @bench(%x: {e}[{t}, {c}], weight %w: {e}[{v}, {c}], %labels: i32[{t}], %lse: f32[{t}], %d: f32[{t}], %ds: f32[{t}]) -> ({e}[{t}, {c}], f32[{v}, {c}]) {{ %dx, %dw = call @linear_cross_entropy_backward(%x, %w, %labels, %lse, %d, %ds) return %dx, %dw }}"
    );
    let lse = (v as f64).ln();
    out.push(
        Case::new("linear_cross_entropy_backward", &[e], "", &sizes, text)
            .draw("labels", labels)
            .draw("lse", Draw::Range(lse, lse + 1.0))
            .draw("d", Draw::Is(1.0 / t as f64)),
    );
}

/// What runs in f32 or integers whatever the model's element type.
fn plain(out: &mut Vec<Case>, config: &OmChatConfig, scale: &Scale) {
    let t = &config.text;
    let (r, c, f, v) = (scale.tokens, t.hidden, t.mlp, t.vocab);
    let (x, rc) = (format!("f32[{r}, {c}]"), [("r", r), ("c", c)]);
    let one = |family: &str, layout: &str, sizes: &[(&str, usize)], params: &str, result: &str, body: &str| {
        Case::new(family, &[F32], layout, sizes, format!("func @bench({params}) -> {result} {{ {body} return %y }}"))
    };
    out.push(one("softmax", "", &rc, &format!("%x: {x}"), &x, "%y = call @softmax(%x)"));
    out.push(one("add", "", &rc, &format!("%x: {x}, %z: {x}"), &x, "%y = add %x, %z"));
    out.push(one(
        "transpose",
        "",
        &rc,
        &format!("%x: {x}"),
        &format!("f32[{c}, {r}]"),
        "%y = rearrange %x \"r c -> c r\"",
    ));
    for (layout, kept, axes) in [("rows", r, "r c -> r"), ("columns", c, "r c -> c")] {
        let body = format!("%y = reduce.sum %x \"{axes}\"");
        out.push(one("reduce", layout, &rc, &format!("%x: {x}"), &format!("f32[{kept}]"), &body));
    }
    let k = (v / 16).clamp(1, 64);
    let sizes = [("r", 1), ("v", v), ("k", k)];
    let body = format!("%y = kth_largest %x \"r v -> r\" k={k}");
    out.push(one("kth_largest", "", &sizes, &format!("%x: f32[1, {v}]"), "f32[1]", &body));
    draws(out, v);
    let table = format!("f32[{v}, {c}]");
    let params = format!("state %x: {table}, %ids: i32[{r}], %rows: {x}");
    let body = "%y = scatter_add %x, %ids, %rows \"v d, t, t d -> v d\"";
    out.push(
        one("scatter_add", "", &[("v", v), ("t", r), ("c", c)], &params, &table, body)
            .draw("ids", Draw::Range(0.0, v as f64)),
    );
    let n = f * c;
    let text = format!(
        "func @bench(state %p: f32[{n}], %g: f32[{n}], state %m: f32[{n}], state %v: f32[{n}], %lr: f32, %beta1: f32, %beta2: f32, %eps: f32, %decay: f32, %c1: f32, %c2: f32) -> (f32[{n}], f32[{n}], f32[{n}]) {{ %pn, %mn, %vn = call @adamw(%p, %g, %m, %v, %lr, %beta1, %beta2, %eps, %decay, %c1, %c2) return %pn, %mn, %vn }}"
    );
    let numbers =
        [("lr", 1e-3), ("beta1", 0.9), ("beta2", 0.95), ("eps", 1e-8), ("decay", 0.1), ("c1", 0.1), ("c2", 0.05)];
    let adamw = Case::new("adamw", &[F32], "", &[("n", n)], text).draw("v", Draw::Range(0.1, 1.0));
    out.push(numbers.into_iter().fold(adamw, |c, (name, x)| c.draw(name, Draw::Is(x))));
}

/// An id drawn from a row of logits, by all filters and by none.
fn draws(out: &mut Vec<Case>, v: usize) {
    for (layout, filters, k) in [("filters", 1, v.min(50)), ("", 0, 1)] {
        let text = format!(
            "func @bench(%x: f32[1, {v}], %u: f32[1], %t: f32, %p: f32, %q: f32) -> i32[1] {{ %id, %sum = call @draw[J={filters}, K={k}, N={filters}, B={}](%x, %u, %t, %p, %q) return %id }}",
            v.div_ceil(256)
        );
        let numbers = [
            ("x", Draw::Range(-8.0, 8.0)),
            ("u", Draw::Is(0.37)),
            ("t", Draw::Is(0.8)),
            ("p", Draw::Is(0.01)),
            ("q", Draw::Is(0.95)),
        ];
        let case = Case::new("draw", &[F32], layout, &[("r", 1), ("v", v)], text);
        out.push(numbers.into_iter().fold(case, |c, (name, x)| c.draw(name, x)));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::bench::small;

    #[test]
    fn every_case_is_a_module_with_a_name_of_its_own() {
        let mut names = std::collections::BTreeSet::new();
        let scale = Scale { dtypes: vec![(F32, F32), (F32, BF16), (BF16, BF16)], ..Scale::tiny() };
        for case in cases(&small(), &scale) {
            let (module, entry) = case.module().unwrap_or_else(|e| panic!("{}: {e}\n{:?}", case.name, case.source));
            let types = module.function(entry).param_types();
            let operands = case.operands(&module, entry);
            assert!(operands.iter().zip(&types).all(|(o, t)| o.ty == *t), "{}", case.name);
            assert!(names.insert(case.name.clone()), "{} stands twice", case.name);
        }
        assert!(names.len() > 40);
        assert!(names.contains("einsum/f32-bf16/nt/m8n80k48") && names.contains("attention/bf16/causal/h2g3t24s24d8"));
    }

    #[test]
    fn what_a_query_sees_is_counted() {
        let causal = attention("attention", F32, "causal", [1, 1, 4, 4, 8], 4, true);
        assert_eq!(causal.seen, Some(Seen { pairs: 10, keys: 4 }));
        let decode = attention("decode_attention", F32, "", [1, 1, 1, 16, 8], 5, true);
        assert_eq!(decode.seen, Some(Seen { pairs: 5, keys: 5 }));
    }
}
