//! The recipes of the repository are recipes, and what is wrong with one is told with its value.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_model::presets::preset;
use omchat_model::tiler::Tiler;
use omchat_recipe::mixture::Plan;
use omchat_recipe::spec::Layout;
use omchat_recipe::{Recipe, Schedule};
use std::path::Path;

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes"))
}

#[test]
fn every_preset_reads() {
    let mut seen = 0;
    for entry in std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()) {
        if entry.extension().is_some_and(|e| e == "toml") {
            let recipe = Recipe::read(&entry).unwrap_or_else(|e| panic!("{e}"));
            if recipe.mixture.is_some() {
                Plan::new(&recipe).unwrap_or_else(|e| panic!("{}: {e}", entry.display()));
            }
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen} recipes");
}

/// The published chain: contexts, the base of RoPE at the end, what trains when, and percentages that add up.
#[test]
fn the_published_chain_is_the_published_one() {
    let r = Recipe::read(&folder().join("omchat.toml")).unwrap();
    let contexts: Vec<usize> = r.stages.iter().map(|s| s.context).collect();
    assert_eq!(contexts, [2048, 4 << 10, 32 << 10, 128 << 10, 512 << 10]);
    assert_eq!(r.stages.last().unwrap().theta, Some(5e7));
    assert_eq!(r.stages[0].train.keys().collect::<Vec<_>>(), ["projector"]);
    assert!(r.stages[1..].iter().all(|s| s.train.len() == 3));
    // Tokens are filtered on all three transitions, the ring serves from 128K on.
    assert!(r.stages[2..].iter().all(|s| s.select.is_some()) && r.stages[1].select.is_none());
    assert_eq!(r.stages.iter().map(|s| s.ring).collect::<Vec<_>>(), [1, 1, 1, 8, 8]);
    let i = Recipe::read(&folder().join("omchat-instruct.toml")).unwrap();
    let plan = Plan::new(&i).unwrap();
    assert_eq!(i.stages[0].rates(0), [2e-6, 2e-5, 2e-5]);
    assert!(plan.branches.iter().zip(&plan.ends).all(|(b, end)| {
        b.stages[0].total_steps() == end.div_ceil(10) && b.stages[0].rates(0) == [2e-6, 2e-5, 2e-5]
    }));
}

/// What a record of a set shows at most fits the packs of each stage that reads the set, and leaves room for words.
#[test]
fn what_the_published_sets_show_fits_their_stages() {
    let config = preset("omchat-8b").unwrap();
    let (tiler, each) = (Tiler::new(&config).unwrap(), config.tokens_per_tile());
    for file in ["omchat.toml", "omchat-instruct.toml"] {
        let r = Recipe::read(&folder().join(file)).unwrap();
        for stage in &r.stages {
            assert!(stage.tiles * each < stage.context, "{file}: {} tiles are more than {}", stage.tiles, stage.name);
            for name in stage.mix.keys() {
                let set = &r.data[name];
                let tiler = set.max_tiles.map_or(tiler.clone(), |most| tiler.at_most(most));
                let sizes = [(640, 480), (4000, 3000), (300, 4000), (4000, 300)];
                let picture = sizes.map(|(w, h)| tiler.count(w, h, set.tiling.mode())).into_iter().max().unwrap();
                let most = match set.layout {
                    Layout::Text => 0,
                    _ if name.contains("video") => set.frames,
                    _ => picture,
                };
                // A twentieth of the positions for what is said of it, and the marks of frames and tiles.
                let room = stage.context - stage.context / 20;
                assert!(most <= stage.tiles && most * (each + 4) <= room, "{file}: {name} in {}", stage.name);
            }
        }
    }
}

/// Curves by the formulas written out here.
#[test]
fn rates_are_a_function_of_the_step() {
    let of = |text: &str| toml::from_str::<Schedule>(text).unwrap();
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} and {b}");
    let cosine = of("kind = \"cosine\"\nwarmup = 0.1\nend = 0.2");
    near(cosine.factor(0, 100), 0.1);
    near(cosine.factor(9, 100), 1.0);
    near(cosine.factor(10, 100), 1.0);
    near(cosine.factor(55, 100), 0.2 + 0.8 * 0.5);
    near(cosine.factor(100, 100), 0.2);
    let linear = of("kind = \"linear\"");
    (0..8).for_each(|s| near(linear.factor(s, 8), 1.0 - s as f64 / 8.0));
    let wsd = of("kind = \"wsd\"\nwarmup = 0.05\ndecay = 0.2");
    near(wsd.factor(79, 100), 1.0);
    near(wsd.factor(80, 100), 1.0);
    near(wsd.factor(90, 100), 0.5);
    near(wsd.factor(99, 100), 0.05);
    let constant = of("kind = \"constant\"\nwarmup = 0.5");
    near(constant.factor(0, 3), 0.5);
    near(constant.factor(2, 3), 1.0);
}

#[test]
fn what_is_wrong_is_told_with_its_value() {
    let good = std::fs::read_to_string(folder().join("mixture.toml")).unwrap();
    let cases = [
        ("context = 1024", "context = 0", "context of 0"),
        ("needles = 30 }", "needles = 35 }", "105 %"),
        ("needles = 30 }", "others = 30 }", "`others`"),
        ("steps = 160", "steps = 160\ntokens = 5", "both or none"),
        ("steps = 160", "", "both or none"),
        ("steps = 160", "steps = 160\nbatch_tokens = 1500", "batch_tokens 1500"),
        ("steps = 160", "steps = 160\ntheta = 0.5", "theta is 0.5"),
        ("steps = 160", "steps = 160\nschedule = { kind = \"cosine\", warmup = 1.5 }", "warmup is 1.5"),
        ("steps = 160", "steps = 160\nring = 0", "ring of 0 ranks"),
        ("decoder = 2e-4", "decoder = -1.0", "rate of decoder is -1"),
        ("name = \"tune\"", "name = \"../up\"", "used for folders"),
        ("steps = 160", "steps = 160\nselect = { reference = \"r\", ratio = 1.5 }", "1.5"),
        ("name = \"tune\"", "name = \"..\"", "stage `..`"),
        ("steps = 160", "steps = 160\nselect = { reference = \"r\", ratio = 0.00004 }", "0.00004"),
        (
            "steps = 160",
            "steps = 160\nschedule = { kind = \"wsd\", decay = 0.0 }",
            "stage `tune`: the schedule's decay is 0",
        ),
        ("decoder = 2e-4", "decoder = 1e300", "stage `tune`: the rate of decoder is 1"),
        ("decoder = 2e-4", "decoder = 1e-60", "in f32 it would be 0"),
        ("[adamw]\nbetas = [0.9, 0.95]", "[adamw]\nbetas = [0.9, 1.0]", "adamw.betas is 1"),
        ("clip = 1.0", "clip = 1e300", "adamw.clip is 1"),
        ("[adamw]", "[adamw]\neps = 0.0", "adamw.eps is 0"),
        ("[adamw]", "[adamw]\ndecay = -0.1", "adamw.decay is -0.1"),
        ("seed = 13", "sead = 13", "sead"),
    ];
    for (from, to, want) in cases {
        assert!(good.contains(from), "{from}");
        let text = good.replacen(from, to, 1);
        let why = match Recipe::parse(&text) {
            Ok(recipe) => recipe.check().err().map(|e| e.to_string()),
            Err(e) => Some(e.to_string()),
        };
        assert!(why.as_ref().is_some_and(|w| w.contains(want)), "`{to}` should tell `{want}`, it told {why:?}");
    }
}
