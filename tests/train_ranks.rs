//! Training on several ranks, each a thread: packs over rings and rings beside each other, against one rank.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "common/training.rs"]
mod common;

use common::{Source, document, folder, packed, tiny};
use omchat::training::{Outcome, Packs, Supply, TrainOptions, train};
use omchat::{Device, Error, Ranks};
use omchat_recipe::ring::Layout;
use omchat_recipe::{Pack, Recipe, Stage};
use omchat_runtime::collective::{World, threads};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// A stage of four packs a step: each over a ring, or several at once.
fn recipe(ring: usize, layout: &str, weigh: &str, steps: usize) -> Recipe {
    let layout = if layout.is_empty() { String::new() } else { format!("ring_layout = \"{layout}\"") };
    let text = format!(
        r#"
        model = "{}"
        [data.drawn]
        path = "nowhere"
        layout = "text"
        labels = "pretrain"
        [[stage]]
        name = "all"
        context = 45
        tiles = 1
        mix = {{ drawn = 100 }}
        train = {{ vision = 1e-4, projector = 1e-3, decoder = 1e-3 }}
        weigh = "{weigh}"
        batch_tokens = 180
        ring = {ring}
        {layout}
        steps = {steps}
        checkpoint_every = 2
        "#,
        tiny().dir.display()
    );
    let recipe = Recipe::parse(&text).unwrap();
    recipe.check().unwrap();
    recipe
}

/// A pack of documents of drawn lengths, one long one among them; the first has a picture where there are tiles.
fn uneven(stage: &Stage, number: u64) -> Pack {
    let (model, mut rng) = (tiny(), StdRng::seed_from_u64(70 + number));
    let per = model.tokens_per_tile();
    let mut left = stage.context - per;
    let mut all = vec![];
    while left > 0 {
        let words = if all.len() == 1 { left / 2 } else { rng.random_range(1..9) }.min(left);
        let pictures = usize::from(all.is_empty() && stage.tiles > 0);
        all.push(document(&mut rng, words, pictures, per, 1));
        left -= words;
        if rng.random_bool(0.1) {
            break;
        }
    }
    packed(&model, &all.iter().collect::<Vec<_>>(), stage.context, 100 * number)
}

/// Packs of such documents, without end; the state is how many were drawn.
struct Uneven(Stage, u64);

impl Packs for Uneven {
    fn pack(&mut self) -> Result<Pack, Error> {
        self.1 += 1;
        Ok(uneven(&self.0, self.1))
    }

    fn state(&self) -> Result<Value, Error> {
        Ok(json!(self.1))
    }

    fn report(&self) -> String {
        format!("{} packs", self.1)
    }
}

/// Data of such packs.
struct Lengths;

impl Supply for Lengths {
    fn open(&mut self, stage: &Stage, state: Option<&Value>) -> Result<Box<dyn Packs>, Error> {
        Ok(Box::new(Uneven(stage.clone(), state.and_then(Value::as_u64).unwrap_or(0))))
    }

    fn once(&mut self, _: &Stage, _: &[&str]) -> Result<Box<dyn Iterator<Item = Result<Pack, Error>>>, Error> {
        Err(Error::Input("read once by nobody".into()))
    }

    fn reference(&mut self, _: &Stage, _: &Pack) -> Result<Vec<f32>, Error> {
        Err(Error::Input("nothing is selected".into()))
    }
}

/// Runs a recipe on ranks that share a folder; what each came to.
fn run(recipe: &Recipe, ranks: usize, out: &Path, until: Option<u64>) -> Vec<Result<Outcome, Error>> {
    run_on(recipe, ranks, out, until, Source::default)
}

/// The same on other data.
fn run_on<S: Supply>(
    recipe: &Recipe,
    ranks: usize,
    out: &Path,
    until: Option<u64>,
    data: impl Fn() -> S + Sync,
) -> Vec<Result<Outcome, Error>> {
    let resume = out.exists();
    let device = Device::open("cpu").unwrap();
    let one = |world: Option<World>| {
        let options = TrainOptions { out: out.into(), resume, until, kept: None, world };
        train(recipe, &device, &options, &mut data(), &mut |_| {})
    };
    if ranks == 1 {
        return vec![one(None)];
    }
    thread::scope(|s| {
        let one = &one;
        let all = threads(ranks)
            .into_iter()
            .map(|t| s.spawn(move || one(Some(World::join(move || Ok::<_, Infallible>(t)).unwrap()))));
        let all: Vec<_> = all.collect();
        all.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

/// The first moments after a step: of the first step, a tenth of each gradient.
fn moments(out: &Path, step: u64) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(out.join(format!("checkpoints/{step:08}/state.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let number = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
    let all = file.iter().filter(|(name, _)| name.starts_with("m."));
    all.map(|(name, t)| (name.to_string(), t.data().chunks(4).map(number).collect())).collect()
}

/// Every gradient within 1e-5 of its largest number; one of rounding only, of a thousandth of the largest of all.
fn same_gradients(what: &str, a: &Path, b: &Path) {
    let (a, b) = (moments(a, 1), moments(b, 1));
    assert!(a.len() > 10 && a.keys().eq(b.keys()), "{what}: {} and {} tensors", a.len(), b.len());
    let top = |x: &[f32]| x.iter().fold(0f32, |m, x| m.max(x.abs()));
    let all = b.values().map(|x| top(x)).fold(0.0, f32::max);
    for (name, x) in &a {
        let off = top(&x.iter().zip(&b[name]).map(|(x, y)| x - y).collect::<Vec<f32>>());
        let most = 1e-5 * top(&b[name]).max(1e-3 * all);
        assert!(x.len() == b[name].len() && off <= most, "{what}: {name} is {off:e} off, {most:e} allowed");
    }
}

/// Loss and norm of each step.
fn curve(out: &Path) -> Vec<[f64; 2]> {
    let text = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
    let line = |l: &str| {
        let v: Value = serde_json::from_str(l).unwrap();
        ["loss", "norm"].map(|k| v[k].as_f64().unwrap())
    };
    text.lines().map(line).collect()
}

fn near(what: &str, a: &[[f64; 2]], b: &[[f64; 2]], most: f64) {
    assert_eq!(a.len(), b.len(), "{what}");
    let off = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max);
    assert!(off < most, "{what}: {off:e} off\n{a:?}\n{b:?}");
}

fn bytes(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("stages/all/model.safetensors")).unwrap()
}

/// One test at a time: the device's threads spin where several want them.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two packs a step over two rings of two, one each, and four over one ring of two by example: the gradients of the first step,
/// and the loss of the one after it. A context of 45 is padded on either.
#[test]
fn rings_train_as_one_rank_does() {
    let _turn = turn();
    for (weigh, layout, ranks, packs) in [("tokens", "", 4, 2), ("examples", "contiguous", 2, 4)] {
        let what = format!("{weigh}, {ranks} ranks in rings of 2");
        let [alone, out] = ["alone", "ranks"].map(|n| folder(&format!("ranks-{weigh}-{n}")));
        let over = |ring| {
            let mut recipe = recipe(ring, layout, weigh, 2);
            recipe.stages[0].batch_tokens = Some(packs * recipe.stages[0].context);
            recipe
        };
        for until in [Some(1), None] {
            run(&over(1), 1, &alone, until).remove(0).unwrap();
            run(&over(2), ranks, &out, until).into_iter().for_each(|r| drop(r.unwrap()));
            if until.is_some() {
                same_gradients(&what, &out, &alone);
            }
        }
        near(&what, &curve(&out), &curve(&alone), 5e-5);
    }
}

/// Packs of many documents, long and short, over a ring of four: what one rank makes of them.
#[test]
fn documents_of_any_lengths_train_as_on_one_rank() {
    let _turn = turn();
    for (weigh, layout) in [("tokens", "balanced"), ("examples", "zigzag")] {
        let what = format!("{weigh}, {layout}, a ring of 4");
        let [alone, out] = ["alone", "ranks"].map(|n| folder(&format!("uneven-{weigh}-{layout}-{n}")));
        for until in [Some(1), None] {
            run_on(&recipe(1, layout, weigh, 2), 1, &alone, until, || Lengths).remove(0).unwrap();
            let all = run_on(&recipe(4, layout, weigh, 2), 4, &out, until, || Lengths);
            all.into_iter().for_each(|r| drop(r.unwrap()));
            if until.is_some() {
                same_gradients(&what, &out, &alone);
            }
        }
        near(&what, &curve(&out), &curve(&alone), 5e-5);
    }
}

/// Two rings of three, each with a pack of its own: numbers of positions come together in the packs' order, wherever the
/// positions lay. A pack whose tiles would be more than fit a rank lies in zigzag.
#[test]
fn numbers_of_positions_come_together_in_order() {
    let stage = &recipe(3, "", "tokens", 2).stages[0];
    let packs = [uneven(stage, 1), uneven(stage, 2)];
    let (n, per) = (stage.context, tiny().tokens_per_tile());
    thread::scope(|s| {
        for t in threads(6) {
            let packs = &packs;
            s.spawn(move || {
                let world = World::join(move || Ok::<_, Infallible>(t)).unwrap();
                let ranks = Ranks::new(&world, stage).unwrap();
                let pack = &packs[ranks.number()];
                let lengths: Vec<usize> = pack.parts.iter().map(|p| p.range.len()).collect();
                for (tiles, layout) in [(1, Layout::Balanced), (0, Layout::Zigzag)] {
                    let piece = ranks.piece(pack, per, tiles);
                    let want = layout.place(&lengths, n, 3);
                    assert_eq!(piece.positions, want.positions(world.rank() % 3), "{tiles} tiles");
                    assert_eq!(piece.places, want.places(world.rank() % 3), "{tiles} tiles");
                    let own: Vec<f32> = piece.positions.iter().map(|p| (ranks.number() * 100 + p) as f32).collect();
                    let all = ranks.gathered("numbers", &piece.positions, &own).unwrap();
                    let want: Vec<f32> = (0..2 * n).map(|i| (i / n * 100 + i % n) as f32).collect();
                    assert_eq!(all, want);
                }
            });
        }
    });
}

#[test]
fn ranks_repeat_bit_for_bit() {
    let _turn = turn();
    let [a, b] = ["ranks-a", "ranks-b"].map(folder);
    for out in [&a, &b] {
        run(&recipe(2, "", "tokens", 2), 2, out, None).into_iter().for_each(|r| drop(r.unwrap()));
    }
    assert_eq!(curve(&a), curve(&b));
    assert!(bytes(&a) == bytes(&b), "weights of two runs differ");
    // What threads share a device for is planned for all of them, as it is held.
    let log = std::fs::read_to_string(a.join("log.jsonl")).unwrap();
    for line in log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()) {
        let [planned, held] = ["planned", "held"].map(|k| line[k].as_f64().unwrap());
        assert!((held / planned - 1.0).abs() < 0.1, "{held} bytes held of {planned} planned");
    }
}

#[test]
fn a_run_goes_on_on_other_ranks() {
    let _turn = turn();
    let [whole, cut] = ["ranks-whole", "ranks-cut"].map(folder);
    run(&recipe(1, "zigzag", "tokens", 4), 1, &whole, None).remove(0).unwrap();
    for (ranks, ring, until) in [(4, 2, Some(1)), (8, 4, Some(2)), (2, 1, Some(3)), (1, 1, None)] {
        run(&recipe(ring, "zigzag", "tokens", 4), ranks, &cut, until).into_iter().for_each(|r| drop(r.unwrap()));
    }
    near("4, 8, 2 ranks and 1", &curve(&cut), &curve(&whole), 1e-4);
}

#[test]
fn ranks_that_do_not_fit_are_refused() {
    let _turn = turn();
    let out = folder("ranks-unfit");
    let said = |ring, ranks: usize| {
        run(&recipe(ring, "zigzag", "tokens", 2), ranks, &out, None).remove(0).unwrap_err().to_string()
    };
    let alone = said(2, 1);
    assert!(alone.contains("a ring of 2 ranks, and this process is alone") && alone.contains("--ranks 2"), "{alone}");
    assert!(said(2, 3).contains("3 ranks are no rings of 2"), "{}", said(2, 3));
    assert!(said(1, 3).contains("3 rings share a step of 4 packs"), "{}", said(1, 3));
    assert!(said(1, 8).contains("8 rings share a step of 4 packs"), "{}", said(1, 8));
}
