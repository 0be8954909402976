//! Small checkpoints through the reference interpreter, against what PyTorch computes for them.
//!
//! Features, logits, losses and greedy ids of every folder of `tests/fixtures`; what ran is printed.

#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_ir::{Dtype, Func, Function, Mode, Module, Role, Tensor, Type, interpret};
use omchat_model::graph::{self, DecoderSpec, ForwardSpec, Output, Recompute, TrainSpec};
use omchat_model::rope::rope_table;
use omchat_model::splice::{Slot, splice};
use omchat_model::{Checkpoint, OmChatConfig};
use safetensors::{SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest difference allowed, as a share of the largest figure.
const BOUND: f64 = 1e-5;

/// Every checkpoint with figures for small random weights.
fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let mut dirs = vec![root.join("tiny-b"), root.join("tiny-c")];
    let extra = std::fs::read_dir(root.join("extra")).map(|d| d.flatten().map(|d| d.path()).collect::<Vec<_>>());
    dirs.extend(extra.unwrap_or_default().into_iter().filter(|d| d.join("case.safetensors").exists()));
    dirs.sort();
    assert!(dirs[..].iter().all(|d| d.join("case.safetensors").exists()), "the fixtures are not there");
    dirs
}

fn name(dir: &Path) -> String {
    dir.file_name().unwrap().to_string_lossy().into_owned()
}

/// A checkpoint and its figures.
struct Case {
    config: OmChatConfig,
    checkpoint: Checkpoint,
    figures: BTreeMap<String, Vec<f64>>,
    tiles: usize,
    slots: Vec<Slot>,
}

/// A file's numbers, i32 or f32.
fn numbers(t: TensorView) -> Vec<f64> {
    let int = t.dtype() == safetensors::Dtype::I32;
    let word = |b: &[u8]| {
        let b = b.try_into().unwrap();
        if int { f64::from(i32::from_le_bytes(b)) } else { f64::from(f32::from_le_bytes(b)) }
    };
    t.data().chunks(4).map(word).collect()
}

impl Case {
    fn open(dir: &Path) -> Case {
        let config = OmChatConfig::from_dir(dir).unwrap();
        let checkpoint = Checkpoint::load(dir, &config).unwrap();
        let bytes = std::fs::read(dir.join("case.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tiles = file.tensor("pixel_values").map_or(0, |t| t.shape()[0]);
        let figures: BTreeMap<String, Vec<f64>> = file.tensors().into_iter().map(|(n, t)| (n, numbers(t))).collect();
        let ids: Vec<i32> = figures["input_ids"].iter().map(|x| *x as i32).collect();
        let slots = splice(&ids, tiles, config.tokens_per_tile(), config.text.vocab).unwrap().slots;
        Case { config, checkpoint, figures, tiles, slots }
    }

    /// Ids with −1 where a feature row stands, and rows with −1 where text stands.
    fn ids_and_rows(&self) -> (Vec<f64>, Vec<f64>) {
        self.slots
            .iter()
            .map(|s| match s {
                Slot::Text(id) => (f64::from(*id), -1.0),
                Slot::Image(row) => (-1.0, f64::from(*row)),
            })
            .unzip()
    }

    /// The labels of the next token at each position.
    fn shifted_labels(&self) -> Vec<f64> {
        self.figures["labels"][1..].iter().copied().chain([-100.0]).collect()
    }

    fn rope(&self, positions: &[u32]) -> (Vec<f64>, Vec<f64>) {
        let (cos, sin) = rope_table(positions, self.config.text.head_dim, self.config.text.rope_theta);
        let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect();
        (wide(cos), wide(sin))
    }

    /// The operands of an entry: inputs by name, weights from the checkpoint, then the states.
    fn operands(&self, f: &Function, inputs: &Inputs, states: &[Tensor]) -> Vec<Tensor> {
        let mut states = states.iter();
        f.param_values()
            .zip(&f.params)
            .map(|(v, role)| {
                let (name, ty) = (&f.value(v).name, f.ty(v).clone());
                let data = match role {
                    Role::State => return states.next().unwrap().clone(),
                    Role::Weight => self.checkpoint.tensor_f32(name).unwrap().into_iter().map(f64::from).collect(),
                    Role::Input => inputs.get(name.as_str()).unwrap_or_else(|| panic!("no input {name}")).clone(),
                };
                Tensor::new(ty, data).unwrap_or_else(|fault| panic!("{name}: {fault}"))
            })
            .collect()
    }

    /// The largest difference from a figure, as a share of the figure's largest number.
    fn error(&self, figure: &str, have: &[f64]) -> f64 {
        let want = &self.figures[figure];
        assert_eq!(want.len(), have.len(), "{figure}");
        let top = want.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        want.iter().zip(have).map(|(w, h)| (w - h).abs()).fold(0.0, f64::max) / top
    }
}

type Inputs = BTreeMap<&'static str, Vec<f64>>;

fn last(module: &Module) -> Func {
    Func(module.functions.len() as u32 - 1)
}

fn run(case: &Case, module: &Module, inputs: &Inputs, states: &[Tensor]) -> Vec<Tensor> {
    let operands = case.operands(graph::entry(module).unwrap(), inputs, states);
    interpret(module, last(module), vec![operands], Mode::Typed).unwrap().remove(0)
}

fn features(case: &Case) -> Vec<f64> {
    if case.tiles == 0 {
        return vec![];
    }
    let module = graph::vision_module(&case.config, case.tiles, Dtype::F32).unwrap();
    let inputs = Inputs::from([("pixels", case.figures["pixel_values"].clone())]);
    run(case, &module, &inputs, &[]).remove(0).data
}

/// A cache, and the module that feeds it.
struct Session<'c> {
    case: &'c Case,
    capacity: usize,
    states: Vec<Tensor>,
    used: usize,
}

/// A cache's slot that holds nothing.
const EMPTY: f64 = i32::MAX as f64;

impl<'c> Session<'c> {
    fn new(case: &'c Case, capacity: usize) -> Self {
        let spec = DecoderSpec { tokens: 1, capacity, features: false, output: Output::All };
        let module = graph::decoder_module(&case.config, spec, Dtype::F32).unwrap();
        let states = graph::params(graph::entry(&module).unwrap(), Role::State);
        // Whatever an empty slot holds must not matter.
        let fill = |ty: &Type| if ty.dtype == Dtype::I32 { EMPTY } else { 1e3 };
        let states = states.map(|(_, ty)| Tensor::full(ty.clone(), fill(ty))).collect();
        Session { case, capacity, states, used: 0 }
    }

    /// Runs these tokens in a module of `tokens`, the rest padded; yields what comes before the states.
    fn feed(&mut self, ids: &[f64], features: &[f64], tokens: usize, output: Output, labels: &[f64]) -> Vec<Tensor> {
        let (n, width) = (ids.len(), self.case.config.text.hidden);
        let spec = DecoderSpec { tokens, capacity: self.capacity, features: !features.is_empty(), output };
        let module = graph::decoder_module(&self.case.config, spec, Dtype::F32).unwrap();
        let at: Vec<f64> = (self.used..self.used + n).map(|i| i as f64).collect();
        let positions: Vec<u32> = (0..tokens).map(|i| (self.used + i) as u32).collect();
        let (cos, sin) = self.case.rope(&positions);
        let inputs = Inputs::from([
            ("ids", padded(ids, tokens, -1.0)),
            ("features", padded(features, tokens * width, 0.0)),
            ("cos", cos),
            ("sin", sin),
            ("lo", vec![0.0; tokens]),
            ("hi", padded(&at, tokens, -1.0)),
            ("slots", padded(&at, tokens, EMPTY)),
            ("start", vec![self.used as f64]),
            ("last", vec![n as f64 - 1.0]),
            ("labels", padded(labels, tokens, -100.0)),
        ]);
        let mut out = run(self.case, &module, &inputs, &self.states);
        self.states = out.split_off(out.len() - self.states.len());
        self.used += n;
        out
    }

    /// Twelve ids, each the likeliest after what was fed.
    fn greedy(&mut self, mut logits: Tensor) -> Vec<f64> {
        let mut ids = vec![];
        loop {
            let top = logits.data.iter().copied().fold(f64::MIN, f64::max);
            ids.push(logits.data.iter().position(|x| *x == top).unwrap() as f64);
            if ids.len() == 12 {
                return ids;
            }
            logits = self.feed(&ids[ids.len() - 1..], &[], 1, Output::Last, &[]).remove(0);
        }
    }
}

fn padded(x: &[f64], n: usize, fill: f64) -> Vec<f64> {
    x.iter().copied().chain(std::iter::repeat(fill)).take(n).collect()
}

/// Feature rows where they stand, rows of 0 where text stands; nothing without tiles.
fn placed(case: &Case, features: &[f64]) -> Vec<f64> {
    let width = case.config.text.hidden;
    if features.is_empty() {
        return vec![];
    }
    case.slots
        .iter()
        .flat_map(|s| match s {
            Slot::Text(_) => vec![0.0; width],
            Slot::Image(row) => features[*row as usize * width..][..width].to_vec(),
        })
        .collect()
}

#[test]
fn features_logits_and_losses_are_pytorchs() {
    for dir in fixtures() {
        let case = Case::open(&dir);
        let rows = features(&case);
        let of_features = if rows.is_empty() { 0.0 } else { case.error("image_features", &rows) };
        let (ids, _) = case.ids_and_rows();
        let (n, rows) = (ids.len(), placed(&case, &rows));

        let logits = Session::new(&case, n).feed(&ids, &rows, n, Output::All, &[]).remove(0);
        let of_logits = case.error("logits", &logits.data);

        let losses = Session::new(&case, n + 5).feed(&ids, &rows, n + 3, Output::Loss, &case.shifted_labels());
        let nll = &losses[0].data;
        let of_nll = case.error("nll", &nll[..n - 1]);
        let counted = case.figures["labels"][1..].iter().filter(|l| **l >= 0.0).count();
        let of_loss = case.error("loss", &[nll.iter().sum::<f64>() / counted as f64]);

        println!(
            "{:<14} features {of_features:.1e}  logits {of_logits:.1e}  nll {of_nll:.1e}  loss {of_loss:.1e}",
            name(&dir)
        );
        for error in [of_features, of_logits, of_nll, of_loss] {
            assert!(error <= BOUND, "{} is off by {error:.1e}", name(&dir));
        }
    }
}

#[test]
fn greedy_ids_are_pytorchs_however_the_prompt_is_fed() {
    for dir in fixtures() {
        let case = Case::open(&dir);
        let (ids, _) = case.ids_and_rows();
        let (n, width) = (ids.len(), case.config.text.hidden);
        let rows = placed(&case, &features(&case));
        for chunk in [n, 32, 7] {
            let mut session = Session::new(&case, n + 32 + 12);
            let mut logits = None;
            for start in (0..n).step_by(chunk) {
                let end = (start + chunk).min(n);
                let rows = rows.get(start * width..end * width).unwrap_or_default();
                logits = Some(session.feed(&ids[start..end], rows, chunk, Output::Last, &[]).remove(0));
            }
            assert_eq!(session.greedy(logits.unwrap()), case.figures["greedy_ids"], "{} by {chunk}", name(&dir));
        }
        println!("{:<14} 12 greedy ids after prefills of {n}, 32 and 7 tokens", name(&dir));
    }
}

#[test]
fn losses_of_a_ring_are_pytorchs_whatever_rank_a_token_is_on() {
    for dir in fixtures() {
        let case = Case::open(&dir);
        let (ids, rows) = case.ids_and_rows();
        let labels = case.shifted_labels();
        let n = ids.len();
        let mut worst = 0.0f64;
        for ranks in [1, 3] {
            let tokens = n.div_ceil(ranks);
            let spec =
                ForwardSpec { ring: ranks, tokens, tiles: case.tiles, remat: ranks == 1, mlp_tiles: 1, loss_tiles: 1 };
            let module = graph::forward_module(&case.config, spec, Dtype::F32).unwrap();
            let f = graph::entry(&module).unwrap();
            // Token i is on rank i mod R, so every rank holds keys that others must see; the last are padding.
            let of = |r: usize| (0..tokens).map(move |i| i * ranks + r);
            let pick =
                |x: &[f64], r: usize, pad: f64| of(r).map(|i| x.get(i).copied().unwrap_or(pad)).collect::<Vec<_>>();
            let index: Vec<f64> = (0..n).map(|i| i as f64).collect();
            let operands = (0..ranks)
                .map(|r| {
                    let positions: Vec<u32> = of(r).map(|i| i as u32).collect();
                    let (cos, sin) = case.rope(&positions);
                    let inputs = Inputs::from([
                        ("pixels", case.figures.get("pixel_values").cloned().unwrap_or_default()),
                        ("rows", pick(&rows, r, -1.0)),
                        ("ids", pick(&ids, r, -1.0)),
                        ("cos", cos),
                        ("sin", sin),
                        ("lo", vec![0.0; tokens]),
                        ("hi", pick(&index, r, -1.0)),
                        ("at", pick(&index, r, EMPTY)),
                        ("labels", pick(&labels, r, -100.0)),
                    ]);
                    case.operands(f, &inputs, &[])
                })
                .collect();
            let out = interpret(&module, last(&module), operands, Mode::Typed).unwrap();
            let nll: Vec<f64> = (0..n - 1).map(|i| out[i % ranks][0].data[i / ranks]).collect();
            worst = worst.max(case.error("nll", &nll));
        }
        println!("{:<14} rings of 1 and 3: nll {worst:.1e}", name(&dir));
        assert!(worst <= BOUND, "{} is off by {worst:.1e}", name(&dir));
    }
}

#[test]
fn every_gradient_is_pytorchs() {
    for dir in fixtures().into_iter().filter(|d| d.join("grads.safetensors").is_file()) {
        let mut case = Case::open(&dir);
        let bytes = std::fs::read(dir.join("grads.safetensors")).unwrap();
        let wanted = SafeTensors::deserialize(&bytes).unwrap();
        // By released names; a fused tensor's gradient is that of its parts, one after another.
        let of = |name: &str| -> Vec<f64> {
            let parts = case.checkpoint.stored(name).unwrap();
            parts.iter().flat_map(|p| numbers(wanted.tensor(p.name).unwrap())).collect()
        };
        let grads: Vec<_> = case.checkpoint.names().map(|n| (format!("d.{n}"), of(n))).collect();
        case.figures.extend(grads);
        let (ids, rows) = case.ids_and_rows();
        let n = ids.len();
        let index: Vec<f64> = (0..n).map(|i| i as f64).collect();
        let (cos, sin) = case.rope(&(0..n as u32).collect::<Vec<_>>());
        let inputs = Inputs::from([
            ("pixels", case.figures.get("pixel_values").cloned().unwrap_or_default()),
            ("rows", rows),
            ("ids", ids),
            ("cos", cos),
            ("sin", sin),
            ("lo", vec![0.0; n]),
            ("hi", index.clone()),
            ("at", index),
            ("labels", case.shifted_labels()),
        ]);
        let forward = ForwardSpec { tiles: case.tiles, ..ForwardSpec::text(n) };
        let mut first: Option<Vec<Tensor>> = None;
        for recompute in Recompute::ALL {
            let spec = TrainSpec { recompute, ..TrainSpec::whole(forward) };
            let module = graph::grads_module(&case.config, &spec, Dtype::F32).unwrap();
            let out = run(&case, &module, &inputs, &[]);
            let f = graph::entry(&module).unwrap();
            let names: Vec<String> = f.results.iter().map(|v| f.value(*v).name.clone()).collect();
            let of_loss = case.error("loss", &out[0].data);
            let mut worst = (0.0, "");
            let grads = case.figures.iter().filter(|(f, _)| f.starts_with("d.")).flat_map(|(_, x)| x);
            let largest = grads.fold(0.0f64, |a, x| a.max(x.abs()));
            for (name, d) in names.iter().zip(&out).skip(2) {
                // A key's bias moves all scores of a query alike: its gradient is rounding, in PyTorch too.
                let top = case.figures[name].iter().fold(0.0f64, |a, x| a.max(x.abs()));
                let rounding = top < 1e-7 * largest;
                let own = || d.data.iter().fold(0.0f64, |a, x| a.max(x.abs())) / largest;
                let error = if rounding { own() } else { case.error(name, &d.data) };
                if error >= worst.0 {
                    worst = (error, name);
                }
            }
            println!(
                "{:<14} {:<18} loss {of_loss:.1e}, {} gradients, worst {:.1e} {}",
                name(&dir),
                recompute.name(),
                out.len() - 2,
                worst.0,
                worst.1
            );
            assert!(of_loss <= 1e-5 && worst.0 <= BOUND, "{} is off by {worst:?}", name(&dir));
            // What the model does not read has no gradient.
            for (figure, x) in case.figures.iter().filter(|(f, _)| f.starts_with("d.") && !names.contains(f)) {
                assert!(x.iter().all(|x| *x == 0.0), "{figure} is not among the gradients");
            }
            match &first {
                Some(first) => assert!(first.iter().zip(&out).all(|(a, b)| a.data == b.data), "{}", recompute.name()),
                None => first = Some(out),
            }
        }
    }
}
