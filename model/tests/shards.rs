//! A step on W = data x ring ranks is the step on one: losses, gradients and weights after AdamW, however packed
//! documents lie on the ranks; each rank keeps a shard of each tensor, uneven ones too. Seeded faults are caught.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_ir::{Dtype, Func, Function, Mode, Module, Role, Tensor, Value, interpret, parse};
use omchat_model::graph::{self, ForwardSpec, Selection, TrainSpec, Weigh, shard_elements};
use omchat_model::rope::rope_table;
use omchat_model::{Checkpoint, OmChatConfig};
use std::collections::BTreeMap;
use std::path::Path;

/// Four packs of 24 tokens, each of documents of these lengths.
const PACKS: [&[usize]; 4] = [&[5, 9, 10], &[24], &[1, 2, 21], &[11, 13]];
const PACK: usize = 24;
const TOKENS: usize = 96;
const WAYS: [(usize, usize); 4] = [(1, 1), (4, 1), (2, 2), (1, 4)];
const IGNORE: f64 = -100.0;

struct Stream {
    config: OmChatConfig,
    checkpoint: Checkpoint,
    ids: Vec<f64>,
    labels: Vec<f64>,
    document: Vec<usize>,
    start: Vec<usize>,
}

/// Tensors of every rank by name; scalars of the optimizer too.
type Held = BTreeMap<String, Vec<Vec<f64>>>;

fn stream() -> Stream {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/extra/text-only");
    let config = OmChatConfig::from_dir(&dir).unwrap();
    let checkpoint = Checkpoint::load(&dir, &config).unwrap();
    let lengths = PACKS.concat();
    let ids: Vec<f64> = (0..TOKENS).map(|i| ((i * 73 + 19) % config.text.vocab) as f64).collect();
    let document: Vec<usize> = lengths.iter().enumerate().flat_map(|(d, n)| vec![d; *n]).collect();
    let start = document.iter().map(|d| lengths[..*d].iter().sum()).collect();
    let labelled = |i: usize| i + 1 < TOKENS && document[i + 1] == document[i] && i % 11 != 7;
    let labels = (0..TOKENS).map(|i| if labelled(i) { ids[i + 1] } else { IGNORE }).collect();
    Stream { config, checkpoint, ids, labels, document, start }
}

/// Those tokens over a ring: contiguous, zigzag and scattered.
fn layouts(tokens: &[usize], ring: usize) -> Vec<(&'static str, Vec<Vec<usize>>)> {
    let (n, c) = (tokens.len(), tokens.len() / ring);
    let cut = |order: Vec<usize>| order.chunks(c).map(|c| c.iter().map(|i| tokens[*i]).collect()).collect::<Vec<_>>();
    let half = c / 2;
    let early = |i: usize| i * half..(i + 1) * half;
    let zigzag = (0..ring).flat_map(|i| early(i).chain(early(2 * ring - 1 - i))).collect();
    let scattered = (0..n).map(|i| i * 7 % n).collect();
    vec![("contiguous", cut((0..n).collect())), ("zigzag", cut(zigzag)), ("scattered", cut(scattered))]
}

/// Tokens of each rank, ring by ring: each ring has an equal part of `tokens`, laid out one way.
fn ranks(tokens: &[usize], (data, ring): (usize, usize), which: usize) -> Vec<Vec<usize>> {
    tokens.chunks(tokens.len() / data).flat_map(|own| layouts(own, ring).remove(which).1).collect()
}

fn spec((data, ring): (usize, usize), tokens: usize) -> TrainSpec {
    let forward = ForwardSpec { ring, ..ForwardSpec::text(tokens / (data * ring)) };
    TrainSpec { data, ..TrainSpec::whole(forward) }
}

fn entry(module: &Module) -> &Function {
    graph::entry(module).unwrap()
}

/// A tensor as W ranks keep it: whole on one, else cut into parts, with zeros at the end.
fn cut(whole: &[f64], ranks: usize) -> Vec<Vec<f64>> {
    let n = shard_elements(whole.len(), ranks);
    let at = |i: usize| whole.get(i).copied().unwrap_or(0.0);
    (0..ranks).map(|r| (r * n..(r + 1) * n).map(at).collect()).collect()
}

impl Stream {
    /// What each rank keeps before the first step.
    fn begin(&self, ranks: usize) -> Held {
        let spec = spec((1, 1), PACK);
        let module = graph::apply_module(&self.config, &spec, Dtype::F32).unwrap();
        let mut held = Held::new();
        for (name, ty) in graph::params(entry(&module), Role::State) {
            let plain = ["adam.m.", "adam.v.", "grad."].iter().any(|p| name.starts_with(p));
            let whole = match plain {
                true => vec![0.0; ty.elements()],
                false => self.checkpoint.tensor_f32(name).unwrap().into_iter().map(f64::from).collect(),
            };
            held.insert(name.to_string(), cut(&whole, ranks));
        }
        held
    }

    /// One run of an entry; states become their next values. Yields the other results of each rank.
    fn run(
        &self,
        module: &Module,
        tokens: &[Vec<usize>],
        held: &mut Held,
        numbers: &[(&str, f64)],
    ) -> Vec<Vec<Tensor>> {
        let f = entry(module);
        let operands = tokens.iter().enumerate().map(|(r, t)| self.operands(f, r, t, held, numbers)).collect();
        let mut out = interpret(module, Func(module.functions.len() as u32 - 1), operands, Mode::Exact).unwrap();
        let states: Vec<String> = graph::params(f, Role::State).map(|(name, _)| name.to_string()).collect();
        for (r, results) in out.iter_mut().enumerate() {
            let next = results.split_off(results.len() - states.len());
            for (name, t) in states.iter().zip(next) {
                held.get_mut(name).unwrap()[r] = t.data;
            }
        }
        out
    }

    fn operands(&self, f: &Function, r: usize, tokens: &[usize], held: &Held, numbers: &[(&str, f64)]) -> Vec<Tensor> {
        let number = |f: &dyn Fn(usize) -> f64| tokens.iter().map(|t| f(*t)).collect::<Vec<f64>>();
        let positions: Vec<u32> = tokens.iter().map(|t| (t - self.start[*t]) as u32).collect();
        let (cos, sin) = rope_table(&positions, self.config.text.head_dim, self.config.text.rope_theta);
        let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
        let one = |(v, role): (Value, &Role)| {
            let (name, ty) = (f.value(v).name.as_str(), f.ty(v).clone());
            let data = match name {
                "ids" => number(&|t| self.ids[t]),
                "cos" => wide(cos.clone()),
                "sin" => wide(sin.clone()),
                "lo" => number(&|t| self.start[t] as f64),
                "hi" | "at" => number(&|t| t as f64),
                "labels" => number(&|t| self.labels[t]),
                "document" => number(&|t| self.document[t] as f64),
                "reference" => number(&|t| 5.0 + ((t * 37 % 17) as f64) / 10.0),
                _ if *role == Role::Input => vec![numbers.iter().find(|(n, _)| *n == name).unwrap().1],
                // Gradients of one batch read tensors whole.
                _ if ty.elements() != held[name][0].len() => held[name].concat()[..ty.elements()].to_vec(),
                _ => held[name][r].clone(),
            };
            Tensor::new(ty, data).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        f.param_values().zip(&f.params).map(one).collect()
    }

    fn labelled(&self, tokens: &[usize]) -> f64 {
        tokens.iter().filter(|t| self.labels[**t] >= 0.0).count() as f64
    }

    /// Loss and gradients by `@grads`, of every rank.
    fn grads(&self, spec: &TrainSpec, tokens: &[Vec<usize>]) -> Vec<(f64, BTreeMap<String, Vec<f64>>)> {
        let module = graph::grads_module(&self.config, spec, Dtype::F32).unwrap();
        let f = entry(&module);
        let numbers = [("sign", 1.0), ("ratio", 0.4), ("z", 0.0), ("whole", 0.0)];
        let out = self.run(&module, tokens, &mut self.begin(tokens.len()), &numbers);
        let named = |r: &Vec<Tensor>| {
            let all = f.results.iter().zip(r).map(|(v, t)| (f.value(*v).name.clone(), t.data.clone()));
            (r[0].data[0], all.filter(|(n, _)| n.starts_with("d.")).collect())
        };
        out.iter().map(named).collect()
    }

    /// Loss and gradients added up by `@accumulate_gradients` over the packs; `together` go in one micro-step.
    fn accumulated(&self, way: (usize, usize), together: usize, which: usize) -> (f64, BTreeMap<String, Vec<f64>>) {
        let spec = spec(way, together * PACK);
        let module = graph::accumulate_module(&self.config, &spec, Dtype::F32).unwrap();
        let (w, all) = (spec.ranks(), (0..TOKENS).collect::<Vec<_>>());
        let (mut held, mut loss) = (self.begin(w), 0.0);
        for packs in all.chunks(together * PACK) {
            let share = self.labelled(packs) / self.labelled(&all);
            let out = self.run(&module, &ranks(packs, way, which), &mut held, &[("share", share)]);
            out.iter()
                .for_each(|r| assert!((r[0].data[0] - out[0][0].data[0]).abs() < 1e-15, "one loss for all ranks"));
            loss += share * out[0][0].data[0];
        }
        let grads = held.iter().filter_map(|(n, x)| Some((format!("d.{}", n.strip_prefix("grad.")?), x.concat())));
        (loss, grads.collect())
    }

    /// Weights and moments after three steps of `@step`, whole, and the norms.
    fn trained(
        &self,
        module: &Module,
        way: (usize, usize),
        which: usize,
        held: Held,
    ) -> (BTreeMap<String, Vec<f64>>, Vec<f64>) {
        let tokens = ranks(&(0..TOKENS).collect::<Vec<_>>(), way, which);
        let (mut held, mut norms) = (held, vec![]);
        for step in 1..=3 {
            let out = self.run(module, &tokens, &mut held, &hyper(step));
            norms.push(out[0].last().unwrap().data[0]);
        }
        (held.into_iter().map(|(n, x)| (n, x.concat())).filter(|(n, _)| !n.starts_with("grad.")).collect(), norms)
    }

    fn step(&self, way: (usize, usize)) -> Module {
        graph::step_module(&self.config, &spec(way, TOKENS), Dtype::F32).unwrap()
    }
}

/// A clip that is at work, and a decay.
fn hyper(step: i32) -> Vec<(&'static str, f64)> {
    let (b1, b2): (f64, f64) = (0.9, 0.95);
    let (c1, c2) = (1.0 - b1.powi(step), 1.0 - b2.powi(step));
    [
        ("lr.decoder", 1e-2),
        ("beta1", b1),
        ("beta2", b2),
        ("eps", 1e-8),
        ("decay", 0.1),
        ("clip", 0.05),
        ("c1.decoder", c1),
        ("c2.decoder", c2),
    ]
    .to_vec()
}

/// The largest difference; what ranks filled up with is no part of a tensor, and is 0.
fn apart(have: &BTreeMap<String, Vec<f64>>, want: &BTreeMap<String, Vec<f64>>) -> f64 {
    assert_eq!(have.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    let one = |(h, w): (&Vec<f64>, &Vec<f64>)| {
        assert!(h.len() >= w.len());
        let rest = h[w.len()..].iter().copied();
        h.iter()
            .zip(w)
            .map(|(a, b)| a - b)
            .chain(rest)
            .fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d.abs()) })
    };
    have.values().zip(want.values()).map(one).fold(0.0, f64::max)
}

fn all() -> Vec<usize> {
    (0..TOKENS).collect()
}

#[test]
fn gradients_are_those_of_one_rank() {
    let s = stream();
    let select = |t: usize| Some(Selection { room: t, joined: true });
    let hows: [(&str, Weigh, bool); 3] = [
        ("by token", Weigh::Tokens, false),
        ("by example", Weigh::Examples { most: 11 }, false),
        ("selected over all ranks", Weigh::Tokens, true),
    ];
    for (how, weigh, selected) in hows {
        let of = |way| {
            let base = spec(way, TOKENS);
            let t = base.forward.tokens;
            let forward = ForwardSpec { loss_tiles: if selected { 2 } else { 1 }, ..base.forward };
            TrainSpec { weigh, select: if selected { select(t) } else { None }, forward, ..base }
        };
        let want = s.grads(&of((1, 1)), &[all()]).remove(0);
        assert!(want.1.values().all(|g| g.iter().any(|x| *x != 0.0)), "each tensor has a gradient");
        for way in &WAYS[1..] {
            for which in 0..if way.1 > 1 { 3 } else { 1 } {
                for found in s.grads(&of(*way), &ranks(&all(), *way, which)) {
                    let off = apart(&found.1, &want.1).max((found.0 - want.0).abs());
                    assert!(off <= 1e-12, "{how}, {way:?}, layout {which}: {off:e}");
                }
            }
        }
    }
}

#[test]
fn micro_steps_add_up_to_the_same_shards() {
    let s = stream();
    let want = s.grads(&spec((1, 1), TOKENS), &[all()]).remove(0);
    // Four packs at once, two at once, one after the other; on three ranks no tensor is cut evenly.
    for (way, together) in [((4, 1), 4), ((2, 2), 2), ((2, 2), 4), ((1, 4), 1), ((1, 1), 1), ((1, 3), 1), ((2, 1), 2)] {
        for which in 0..if way.1 > 1 { 3 } else { 1 } {
            let (loss, grads) = s.accumulated(way, together, which);
            let off = apart(&grads, &want.1).max((loss - want.0).abs());
            assert!(off <= 1e-12, "{way:?}, {together} packs at once, layout {which}: {off:e}");
        }
    }
}

#[test]
fn three_steps_leave_the_same_weights() {
    let s = stream();
    let (want, norms) = s.trained(&s.step((1, 1)), (1, 1), 0, s.begin(1));
    assert!(norms.iter().all(|n| *n > 0.05), "the clip must be at work: {norms:?}");
    let moved = apart(
        &want,
        &s.begin(1).into_iter().map(|(n, x)| (n, x.concat())).filter(|(n, _)| !n.starts_with("grad.")).collect(),
    );
    assert!(moved > 1e-3, "weights must move");
    for way in [(4, 1), (2, 2), (1, 4), (1, 3)] {
        for which in 0..if way.1 > 1 { 3 } else { 1 } {
            let (have, own) = s.trained(&s.step(way), way, which, s.begin(way.0 * way.1));
            let off = apart(&have, &want).max(own.iter().zip(&norms).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max));
            println!("{way:?}, layout {which}: {off:.1e}");
            assert!(off <= 1e-12, "{way:?}, layout {which}: {off:e}");
        }
    }
}

#[test]
fn gradients_added_up_and_applied_leave_the_same_weights() {
    let s = stream();
    let (want, _) = s.trained(&s.step((1, 1)), (1, 1), 0, s.begin(1));
    for way in [(1, 4), (1, 3)] {
        let spec = spec(way, PACK);
        let accumulate = graph::accumulate_module(&s.config, &spec, Dtype::F32).unwrap();
        let apply = graph::apply_module(&s.config, &spec, Dtype::F32).unwrap();
        let mut held = s.begin(spec.ranks());
        for step in 1..=3 {
            for pack in all().chunks(PACK) {
                let share = s.labelled(pack) / s.labelled(&all());
                s.run(&accumulate, &ranks(pack, way, 1), &mut held, &[("share", share)]);
            }
            s.run(&apply, &vec![vec![0]; spec.ranks()], &mut held, &hyper(step));
            let none =
                |(n, x): (&String, &Vec<Vec<f64>>)| !n.starts_with("grad.") || x.iter().flatten().all(|x| *x == 0.0);
            assert!(held.iter().all(none), "gradients start again from 0");
        }
        let have = held.into_iter().map(|(n, x)| (n, x.concat())).filter(|(n, _)| !n.starts_with("grad.")).collect();
        assert!(apart(&have, &want) <= 1e-12, "{way:?}: {:e}", apart(&have, &want));
    }
}

/// A module with each line that has `from` changed.
fn mutant(module: &Module, from: &str, to: impl Fn(&str) -> String) -> Module {
    let text = module.to_string();
    assert!(text.contains(from), "`{from}` must stand in the step");
    let lines: Vec<String> = text.lines().map(|l| if l.contains(from) { to(l) } else { l.to_string() }).collect();
    let text = lines.join("\n");
    parse(&text).unwrap_or_else(|e| panic!("{}", e.render("mutant", &text)))
}

/// The first operand of a printed line.
fn operand(line: &str) -> &str {
    line.split_once(" = ").unwrap().1.split([' ', ',']).nth(1).unwrap()
}

#[test]
fn seeded_faults_are_caught() {
    let s = stream();
    let (want, norms) = s.trained(&s.step((1, 1)), (1, 1), 0, s.begin(1));
    for way in [(2, 2), (4, 1)] {
        let good = s.step(way);
        let w = way.0 * way.1;
        let off = |module: &Module, held: Held| {
            let (found, own) = s.trained(module, way, usize::from(way.1 > 1), held);
            // A clip hides a wrong scale from the weights, so norms count too.
            own.iter().zip(&norms).map(|(a, b)| (a - b).abs()).fold(apart(&found, &want), f64::max)
        };
        assert!(off(&good, s.begin(w)) <= 1e-12);
        let next = mutant(&good, "all_gather", |l| {
            let x = operand(l);
            format!(
                "    %next{n} = collective_permute {x} shift=1\n{}",
                l.replacen(x, &format!("%next{n}", n = &x[1..]), 1),
                n = &x[1..]
            )
        });
        let lone = mutant(&good, "reduce_scatter", |l| {
            let n: usize = l.rsplit_once('[').unwrap().1.trim_end_matches(']').parse().unwrap();
            let (left, _) = l.split_once(" = ").unwrap();
            format!("{left} = slice {} axis=0 start=0 end={n}", operand(l))
        });
        let halved = mutant(&good, "reduce_scatter", |l| {
            let x = operand(l);
            format!("    %mean{n} = div {x}, {w}\n{}", l.replacen(x, &format!("%mean{n}", n = &x[1..]), 1), n = &x[1..])
        });
        let own = mutant(&good, "%total", |l| match l.contains("all_reduce") {
            true => format!("    %total = copy {}", operand(l)),
            false => l.to_string(),
        });
        let mut turned = s.begin(w);
        turned.values_mut().for_each(|ranks| ranks.rotate_left(1));
        for (what, found) in [
            ("a shard of the next rank is gathered", off(&next, s.begin(w))),
            ("shards of the next rank are loaded", off(&good, turned)),
            ("gradients are not reduced", off(&lone, s.begin(w))),
            ("gradients are averaged", off(&halved, s.begin(w))),
            ("the norm is of the own shards", off(&own, s.begin(w))),
        ] {
            println!("{way:?}, {what}: {found:.1e} off");
            assert!(found > 1e-6, "{way:?}, {what}: only {found:e} off");
        }
    }
}

#[test]
fn tensors_are_kept_in_shards() {
    let s = stream();
    for (way, dtype) in [((2, 2), Dtype::F32), ((1, 3), Dtype::Bf16)] {
        let (module, w) = (graph::step_module(&s.config, &spec(way, TOKENS), dtype).unwrap(), way.0 * way.1);
        let one = graph::step_module(&s.config, &spec((1, 1), TOKENS), dtype).unwrap();
        let whole: BTreeMap<&str, usize> =
            graph::params(entry(&one), Role::State).map(|(n, t)| (n, t.elements())).collect();
        let mut states = 0;
        for (name, ty) in graph::params(entry(&module), Role::State) {
            assert_eq!((ty.dtype, &ty.shape), (Dtype::F32, &vec![whole[name].div_ceil(w)]), "{name}");
            states += 1;
        }
        assert_eq!(states, whole.len());
        // Weights travel in the element type, gradients in f32.
        let text = module.to_string();
        for line in text.lines().filter(|l| l.contains("all_gather")) {
            assert!(line.contains(&format!(": {dtype}[")), "{line}");
        }
        for line in text.lines().filter(|l| l.contains("reduce_scatter")) {
            assert!(line.contains(": f32["), "{line}");
        }
        assert_eq!(text.matches("all_gather").count() * 3, states);
        assert_eq!(text.matches("reduce_scatter").count() * 3, states);
        // The loss, the count of labelled tokens and the norm; how far keys travel is told once.
        assert_eq!(text.matches("all_reduce.sum").count(), 3, "{w}");
        let reaches = |f: &str| f.matches("call @ring_reach").count();
        assert!(
            text.split("\nfunc ").filter(|f| !f.starts_with("@objective")).all(|f| reaches(f) == 0),
            "not in a layer"
        );
        assert!(text.split("\nfunc ").all(|f| reaches(f) <= 1) && reaches(&text) > 0);
        for module in [graph::accumulate_module, graph::apply_module] {
            module(&s.config, &spec(way, TOKENS), dtype).unwrap();
        }
    }
    let one = s.step((1, 1)).to_string();
    assert!(["collective", "all_", "reduce_scatter"].iter().all(|op| !one.contains(op)), "one rank crosses nothing");
    assert!(graph::step_module(&s.config, &spec((1, 1), 24), Dtype::F32).is_ok());
    let none = TrainSpec { data: 0, ..spec((1, 1), 24) };
    assert!(graph::step_module(&s.config, &none, Dtype::F32).unwrap_err().to_string().contains("data is 0"));
}
