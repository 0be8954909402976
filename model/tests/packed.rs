//! Packed documents are the documents alone: losses and every gradient, on one rank and on four, in any layout of the
//! tokens; each token the same, each example the same, or the selected ones only.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_ir::{Differentiate, Dtype, Func, Function, Mode, Module, Role, Tensor, Type, Value, interpret};
use omchat_model::graph::{self, ForwardSpec, Recompute, Selection, TrainSpec, Weigh};
use omchat_model::rope::rope_table;
use omchat_model::{Checkpoint, OmChatConfig};
use std::collections::BTreeMap;
use std::path::Path;

const LENGTHS: [usize; 3] = [5, 9, 10];
const TOKENS: usize = 24;
const IGNORE: f64 = -100.0;

struct Packed {
    config: OmChatConfig,
    checkpoint: Checkpoint,
    ids: Vec<f64>,
    /// Shifted before anything is laid over ranks; a document's last token predicts nothing.
    labels: Vec<f64>,
    document: Vec<usize>,
    start: Vec<usize>,
    reference: Vec<f64>,
}

fn packed() -> Packed {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/extra/text-only");
    let config = OmChatConfig::from_dir(&dir).unwrap();
    let checkpoint = Checkpoint::load(&dir, &config).unwrap();
    let vocab = config.text.vocab;
    let ids: Vec<f64> = (0..TOKENS).map(|i| ((i * 73 + 19) % vocab) as f64).collect();
    let document: Vec<usize> = LENGTHS.iter().enumerate().flat_map(|(d, n)| vec![d; *n]).collect();
    let start: Vec<usize> = document.iter().map(|d| LENGTHS[..*d].iter().sum()).collect();
    let labels = (0..TOKENS)
        .map(|i| if i + 1 < TOKENS && document[i + 1] == document[i] && i != 7 { ids[i + 1] } else { IGNORE })
        .collect();
    let reference = (0..TOKENS).map(|i| 5.0 + ((i * 37 % 17) as f64) / 10.0).collect();
    Packed { config, checkpoint, ids, labels, document, start, reference }
}

/// Loss, and gradients by name.
type Found = (f64, BTreeMap<String, Vec<f64>>);

impl Packed {
    /// Runs `@grads` over a layout of tokens; yields each rank's results.
    fn run(&self, layout: &[Vec<usize>], labels: &[Vec<f64>], spec: &TrainSpec, alone: bool) -> Vec<Found> {
        let module = graph::grads_module(&self.config, spec, Dtype::F32).unwrap();
        let f = graph::entry(&module).unwrap();
        let ranks = layout.iter().zip(labels).map(|(tokens, labels)| self.operands(f, tokens, labels, alone));
        let out = run(&module, ranks.collect());
        let weights = f.params.iter().filter(|r| **r == Role::Weight).count();
        let named = |r: &Vec<Tensor>| {
            let all = f.results.iter().zip(r).map(|(v, t)| (f.value(*v).name.clone(), t.data.clone()));
            let grads: BTreeMap<String, Vec<f64>> = all.filter(|(n, _)| n.starts_with("d.")).collect();
            assert_eq!(grads.len(), weights, "each weight has a gradient");
            grads.iter().for_each(|(n, g)| assert!(g.iter().any(|x| *x != 0.0), "{n} is 0"));
            (r[0].data[0], grads)
        };
        out.iter().map(named).collect()
    }

    /// What an entry takes on a rank that holds those tokens.
    fn operands(&self, f: &Function, tokens: &[usize], labels: &[f64], alone: bool) -> Vec<Tensor> {
        let first = if alone { tokens[0] } else { 0 };
        let number = |f: &dyn Fn(usize) -> f64| tokens.iter().map(|t| f(*t)).collect::<Vec<f64>>();
        let positions: Vec<u32> = tokens.iter().map(|t| (t - self.start[*t]) as u32).collect();
        let (cos, sin) = rope_table(&positions, self.config.text.head_dim, self.config.text.rope_theta);
        let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
        let inputs: BTreeMap<&str, Vec<f64>> = BTreeMap::from([
            ("ids", number(&|t| self.ids[t])),
            ("cos", wide(cos)),
            ("sin", wide(sin)),
            ("lo", number(&|t| (self.start[t] - first) as f64)),
            ("hi", number(&|t| (t - first) as f64)),
            ("at", number(&|t| (t - first) as f64)),
            ("labels", labels.to_vec()),
            ("document", number(&|t| self.document[t] as f64)),
            ("reference", number(&|t| self.reference[t])),
            ("sign", vec![1.0]),
            ("ratio", vec![RATIO]),
            ("z", vec![0.0]),
            ("whole", vec![0.0]),
        ]);
        let one = |(v, role): (Value, &Role)| {
            let (name, ty) = (&f.value(v).name, f.ty(v).clone());
            let data = match role {
                Role::Weight => wide(self.checkpoint.tensor_f32(name).unwrap()),
                _ => inputs[name.as_str()].clone(),
            };
            Tensor::new(ty, data).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        f.param_values().zip(&f.params).map(one).collect()
    }

    fn shifted(&self, layout: &[Vec<usize>]) -> Vec<Vec<f64>> {
        layout.iter().map(|tokens| tokens.iter().map(|t| self.labels[*t]).collect()).collect()
    }

    /// Each document alone: its loss, its gradients, how many of its tokens are labelled.
    fn alone(&self) -> Vec<(Found, f64)> {
        let mut from = 0;
        LENGTHS
            .iter()
            .map(|n| {
                let tokens: Vec<usize> = (from..from + n).collect();
                from += n;
                let layout = [tokens];
                let labels = self.shifted(&layout);
                let count = labels[0].iter().filter(|l| **l >= 0.0).count() as f64;
                let spec = TrainSpec::whole(ForwardSpec::text(*n));
                (self.run(&layout, &labels, &spec, true).remove(0), count)
            })
            .collect()
    }
}

/// Of the labelled tokens, what a selection keeps.
const RATIO: f64 = 0.5;

fn run(module: &Module, ranks: Vec<Vec<Tensor>>) -> Vec<Vec<Tensor>> {
    interpret(module, Func(module.functions.len() as u32 - 1), ranks, Mode::Exact).unwrap()
}

/// The sum of documents' results, each weighed.
fn sum(alone: &[(Found, f64)], weight: impl Fn(f64) -> f64) -> Found {
    let mut grads: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut loss = 0.0;
    for ((l, g), count) in alone {
        loss += weight(*count) * l;
        for (name, x) in g {
            let to = grads.entry(name.clone()).or_insert_with(|| vec![0.0; x.len()]);
            to.iter_mut().zip(x).for_each(|(a, b)| *a += weight(*count) * b);
        }
    }
    (loss, grads)
}

fn apart(a: &Found, b: &Found) -> f64 {
    assert_eq!(a.1.keys().collect::<Vec<_>>(), b.1.keys().collect::<Vec<_>>());
    let pairs = a.1.values().zip(b.1.values()).flat_map(|(x, y)| x.iter().zip(y));
    pairs.map(|(x, y)| (x - y).abs()).fold((a.0 - b.0).abs(), f64::max)
}

/// Contiguous, zigzag and scattered order over ranks.
fn layouts(ranks: usize) -> Vec<(&'static str, Vec<Vec<usize>>)> {
    let c = TOKENS / ranks;
    let cut = |order: Vec<usize>| order.chunks(c).map(<[usize]>::to_vec).collect::<Vec<_>>();
    let half = c / 2;
    let zigzag = (0..ranks)
        .flat_map(|i| (i * half..(i + 1) * half).chain((2 * ranks - 1 - i) * half..(2 * ranks - i) * half))
        .collect();
    vec![
        ("contiguous", cut((0..TOKENS).collect())),
        ("zigzag", cut(zigzag)),
        ("scattered", cut((0..TOKENS).map(|i| i * 7 % TOKENS).collect())),
    ]
}

fn spec(ranks: usize) -> TrainSpec {
    TrainSpec::whole(ForwardSpec { ring: ranks, ..ForwardSpec::text(TOKENS / ranks) })
}

#[test]
fn packed_documents_are_the_documents_alone() {
    let p = packed();
    let alone = p.alone();
    let total: f64 = alone.iter().map(|(_, n)| n).sum();
    let by_token = sum(&alone, |n| n / total);
    let by_example = sum(&alone, |_| 1.0 / LENGTHS.len() as f64);
    assert!(apart(&by_token, &by_example) > 1e-3, "the two weights must differ");
    for ranks in [1, 4] {
        for (name, layout) in layouts(ranks) {
            for (weigh, want) in [(Weigh::Tokens, &by_token), (Weigh::Examples { most: 5 }, &by_example)] {
                for recompute in Recompute::ALL {
                    let spec = TrainSpec { weigh, recompute, ..spec(ranks) };
                    for found in p.run(&layout, &p.shifted(&layout), &spec, false) {
                        let off = apart(&found, want);
                        assert!(off <= 1e-11, "{ranks} ranks, {name}, {weigh:?}, {recompute:?}: {off:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn labels_shifted_after_sharding_are_caught() {
    let p = packed();
    let alone = p.alone();
    let total: f64 = alone.iter().map(|(_, n)| n).sum();
    let want = sum(&alone, |n| n / total);
    for (name, layout) in layouts(4) {
        // What a rank can do on its own: the next id that it holds.
        let late: Vec<Vec<f64>> =
            layout.iter().map(|t| (0..t.len()).map(|i| t.get(i + 1).map_or(IGNORE, |n| p.ids[*n])).collect()).collect();
        let found = p.run(&layout, &late, &spec(4), false).remove(0);
        assert!(apart(&found, &want) > 1e-3, "{name}: only {:e} off", apart(&found, &want));
    }
}

#[test]
fn selected_tokens_train_alone() {
    let p = packed();
    // Which tokens a sort keeps, from their losses.
    let whole = [(0..TOKENS).collect::<Vec<_>>()];
    let nll = p.nll(&whole, false);
    let mut labelled: Vec<usize> = (0..TOKENS).filter(|t| p.labels[*t] >= 0.0).collect();
    labelled.sort_by(|a, b| (nll[*b] - p.reference[*b]).total_cmp(&(nll[*a] - p.reference[*a])));
    labelled.truncate((RATIO * labelled.len() as f64).ceil() as usize);
    let kept: Vec<Vec<f64>> =
        vec![(0..TOKENS).map(|t| if labelled.contains(&t) { p.labels[t] } else { IGNORE }).collect()];
    let want = p.run(&whole, &kept, &spec(1), false).remove(0);
    for ranks in [1, 4] {
        for (name, layout) in layouts(ranks) {
            let base = spec(ranks);
            let tokens = base.forward.tokens;
            let select = Some(Selection { room: tokens, joined: true });
            let forward = ForwardSpec { loss_tiles: 2, ..base.forward };
            let spec = TrainSpec { select, forward, ..base };
            for found in p.run(&layout, &p.shifted(&layout), &spec, false) {
                let off = apart(&found, &want);
                assert!(off <= 1e-11, "{ranks} ranks, {name}: {off:e}");
            }
        }
    }
}

impl Packed {
    /// Each token's loss, tokens in order.
    fn nll(&self, layout: &[Vec<usize>], alone: bool) -> Vec<f64> {
        let forward = ForwardSpec { ring: layout.len(), ..ForwardSpec::text(layout[0].len()) };
        let module = graph::forward_module(&self.config, forward, Dtype::F32).unwrap();
        let f = graph::entry(&module).unwrap();
        let labels = self.shifted(layout);
        let ranks = layout.iter().zip(&labels).map(|(tokens, labels)| self.operands(f, tokens, labels, alone));
        let out = run(&module, ranks.collect());
        let mut found: Vec<(usize, f64)> =
            layout.iter().zip(&out).flat_map(|(t, r)| t.iter().copied().zip(r[0].data.iter().copied())).collect();
        found.sort_by_key(|(t, _)| *t);
        found.into_iter().map(|(_, x)| x).collect()
    }

    /// Loss and gradients of the sum of each token's loss times its weight, by `@forward` differentiated here:
    /// nothing of the weighing in the graphs. Also the module.
    fn by_hand(&self, layout: &[Vec<usize>], remat: bool, how: Differentiate) -> (Found, Module) {
        let forward = ForwardSpec { ring: layout.len(), remat, ..ForwardSpec::text(layout[0].len()) };
        let mut module = graph::forward_module(&self.config, forward, Dtype::F32).unwrap();
        let f = graph::entry(&module).unwrap().clone();
        let roles = f.param_values().zip(&f.params);
        let wrt: Vec<Value> = roles.filter(|(_, role)| **role == Role::Weight).map(|(v, _)| v).collect();
        let entry = Func(module.functions.len() as u32 - 1);
        how.run(&mut module, entry, &[0], &wrt).unwrap_or_else(|e| panic!("{e}"));
        module.verify().unwrap_or_else(|e| panic!("{e}"));
        let labels = self.shifted(layout);
        let total = self.labels.iter().filter(|l| **l >= 0.0).count() as f64;
        let weights = |l: &Vec<f64>| l.iter().map(|l| f64::from(*l >= 0.0) / total).collect::<Vec<f64>>();
        let ranks = layout.iter().zip(&labels).map(|(tokens, labels)| {
            let mut x = self.operands(&f, tokens, labels, false);
            x.push(Tensor::new(Type::new(Dtype::F32, [tokens.len()]), weights(labels)).unwrap());
            x
        });
        let out = run(&module, ranks.collect());
        let mut found = (0.0, BTreeMap::new());
        for (r, l) in out.iter().zip(&labels) {
            found.0 += r[0].data.iter().zip(weights(l)).map(|(x, w)| x * w).sum::<f64>();
            for (v, g) in wrt.iter().zip(&r[f.results.len()..]) {
                let to: &mut Vec<f64> =
                    found.1.entry(format!("d.{}", f.value(*v).name)).or_insert_with(|| vec![0.0; g.data.len()]);
                to.iter_mut().zip(&g.data).for_each(|(a, b)| *a += b);
            }
        }
        (found, module)
    }
}

#[test]
fn each_token_of_a_document_has_its_loss() {
    let p = packed();
    let mut from = 0;
    let alone: Vec<f64> = LENGTHS
        .iter()
        .flat_map(|n| {
            from += n;
            p.nll(&[(from - n..from).collect()], true)
        })
        .collect();
    for (name, layout) in [1, 2, 4].into_iter().flat_map(layouts) {
        let off = p.nll(&layout, false).iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off <= 1e-11, "{} ranks, {name}: {off:e}", layout.len());
    }
}

#[test]
fn what_is_computed_again_changes_no_bit() {
    let p = packed();
    let alone = p.alone();
    let total: f64 = alone.iter().map(|(_, n)| n).sum();
    let want = sum(&alone, |n| n / total);
    let own = graph::scope().unwrap();
    let keeps: [&[&str]; 5] = [
        &[],
        &["attention_partial"],
        &["attention"],
        &["ring_attention_reach"],
        &["attention_partial", "attention_onto"],
    ];
    for ((name, layout), scope) in
        [1, 4].into_iter().flat_map(layouts).flat_map(|l| [(l.clone(), None), (l, Some(&own))])
    {
        let what = format!("{} ranks, {name}, written rules {}", layout.len(), scope.is_some());
        let (plain, module) = p.by_hand(&layout, false, Differentiate { scope, keep: &[] });
        let off = apart(&plain, &want);
        assert!(off <= 1e-11, "{what}: {off:e}");
        assert!(!module.functions.iter().any(|f| f.name.contains(".remat")), "{what}");
        for keep in keeps {
            let (again, module) = p.by_hand(&layout, true, Differentiate { scope, keep });
            assert!(plain == again, "{what}, keep {keep:?}: {:e}", apart(&plain, &again));
            let some = |part: &str| module.functions.iter().any(|f| f.name.contains(part));
            assert!(some(".remat"), "{what}, keep {keep:?}: nothing is computed again");
            println!("{what}, keep {keep:?}: kept {}", some(".save"));
        }
    }
}
