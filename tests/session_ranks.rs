//! A sequence whose cache is spread over ranks is the same sequence. Ranks are threads, each with an engine of its own.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat::{Device, Engine, EngineOptions, Error, Model, Rows, Sampler, Sampling, Session};
use omchat_model::splice::Slot;
use omchat_runtime::collective::{Flow, World, threads};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::thread;

/// Runs `f` on each rank of so many, each on a thread with an engine of that model; the results in order.
fn on_ranks<T: Send>(model: &str, ranks: usize, f: impl Fn(Arc<Engine>, World) -> T + Sync) -> Vec<T> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
    thread::scope(|s| {
        let (f, dir) = (&f, &dir);
        let rank = |t| {
            let world = World::join(move || Ok::<_, Infallible>(t)).unwrap();
            let (model, device) = (Model::open(&dir.to_string_lossy()).unwrap(), Device::open("cpu").unwrap());
            let options = EngineOptions::default();
            let engine = Engine::load_among(Some(world.clone()), model, device, &options, &mut |_| {}).unwrap();
            f(Arc::new(engine), world)
        };
        let running: Vec<_> = threads(ranks).into_iter().map(|t| s.spawn(move || rank(t))).collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

/// Drawn positions: words, and the rows of so many tiles somewhere among them.
fn drawn(n: usize, vocab: usize, tiles: usize, each: usize, seed: u64) -> Vec<Slot> {
    let mut state = seed;
    let mut draw = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut slots: Vec<Slot> = (0..n).map(|_| Slot::Text(draw(vocab) as u32)).collect();
    for tile in 0..tiles {
        let at = draw(slots.len());
        let at = at.min(slots.iter().rposition(|s| matches!(s, Slot::Image(_))).map_or(at, |last| last + 1).max(at));
        slots.splice(at..at, (0..each).map(|row| Slot::Image((tile * each + row) as u32)));
    }
    slots
}

/// What is asked of a sequence: logits at several places, all rows, losses, greedy words, drawn ids.
#[derive(Debug, Clone, PartialEq)]
struct Said {
    logits: Vec<Vec<f32>>,
    rows: Vec<f32>,
    losses: Vec<f32>,
    words: Vec<u32>,
    drawn: Vec<u32>,
}

/// Reads parts of those lengths, then words; truncates into the middle of a part, and reads on.
fn converse(e: &Arc<Engine>, parts: &[usize], tiles: usize, seed: u64) -> Said {
    let config = &e.model().config;
    let each = if tiles > 0 { config.tokens_per_tile() } else { 0 };
    let total: usize = parts.iter().sum();
    let slots = drawn(total - tiles * each, config.text.vocab, tiles, each, seed);
    let side = config.vision.as_ref().map_or(0, |v| v.image_size);
    let features = match tiles {
        0 => vec![],
        n => {
            let pixel = |i: usize| ((i * 7919 + seed as usize) % 1000) as f32 / 500.0 - 1.0;
            let mut pixels = |r: std::ops::Range<usize>| {
                (r.start * 3 * side * side..r.end * 3 * side * side).map(pixel).collect::<Vec<_>>()
            };
            e.features(n, &mut pixels, &mut |_| {}).unwrap()
        }
    };
    let mut s = Session::new(e.clone(), total + 40).unwrap();
    let (mut logits, mut done) = (vec![], 0);
    for n in parts {
        logits.push(s.read(&slots[done..done + n], &features, Rows::Last, &mut |_| {}).unwrap());
        done += n;
    }
    let mut greedy = Sampler::new(Sampling::default());
    let mut words = vec![];
    for _ in 0..12 {
        words.push(greedy.pick(logits.last().unwrap(), &[]));
        logits.push(s.read(&[Slot::Text(words[words.len() - 1])], &[], Rows::Last, &mut |_| {}).unwrap());
    }
    let keep = total / 2;
    s.truncate(keep).unwrap();
    assert_eq!(s.len(), keep);
    let rows = s.read(&slots[keep..], &features, Rows::All, &mut |_| {}).unwrap();
    s.truncate(0).unwrap();
    let mut next = s.likeliest(&slots, &features, &mut |_| {}).unwrap();
    for word in &words[..4] {
        assert_eq!(next, *word);
        next = s.likeliest(&[Slot::Text(next)], &[], &mut |_| {}).unwrap();
    }
    s.truncate(0).unwrap();
    let how = Sampling { temperature: 1.5, top_k: 60, top_p: 0.9, ..Sampling::default() };
    let mut drawn = vec![s.drawn(&slots, &features, &how, 0.37, &mut |_| {}).unwrap()];
    drawn.push(s.drawn(&[Slot::Text(drawn[0])], &[], &how, 0.81, &mut |_| {}).unwrap());
    s.truncate(0).unwrap();
    let labels: Vec<i32> = (0..total).map(|i| if i % 5 == 0 { -100 } else { (i % config.text.vocab) as i32 }).collect();
    let losses = s.losses(&slots, &features, &labels).unwrap();
    Said { logits, rows, losses, words, drawn }
}

#[track_caller]
fn near(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let top = b.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    let off = a.iter().zip(b).map(|(x, y)| if x.is_finite() { (x - y).abs() } else { f32::MAX }).fold(0.0, f32::max);
    assert!(off <= 1e-5 * top, "{what}: {} off", off / top);
}

/// The same on one rank and on several, and the same bits on each of several.
fn same(model: &str, several: &[usize], parts: &[usize], tiles: usize, seed: u64) {
    let one = on_ranks(model, 1, |e, _| converse(&e, parts, tiles, seed)).remove(0);
    for &ranks in several {
        let what = format!("{model}, {parts:?} on {ranks} ranks");
        let found = on_ranks(model, ranks, |e, _| converse(&e, parts, tiles, seed));
        assert!(found.iter().all(|x| *x == found[0]), "{what}: ranks differ");
        let many = &found[0];
        assert_eq!((&many.words, &many.drawn), (&one.words, &one.drawn), "{what}");
        many.logits.iter().zip(&one.logits).for_each(|(a, b)| near(&what, a, b));
        near(&what, &many.rows, &one.rows);
        near(&what, &many.losses, &one.losses);
    }
}

#[test]
fn a_long_prompt_and_its_answer() {
    // A chunk of every kind; a chunk of fewer tokens than ranks; uneven shares.
    same("models/tiny", &[2, 3, 4], &[1100, 2, 1, 37, 61], 0, 3);
}

#[test]
fn pictures_among_the_words() {
    same("models/tiny", &[3], &[170, 1, 33], 3, 8);
}

#[test]
fn other_models_and_lengths() {
    same("models/needle", &[2], &[3, 259, 31], 2, 21);
    same("tests/fixtures/tiny-b", &[4], &[1, 1, 1, 64, 5], 0, 34);
}

#[test]
fn a_rank_holds_its_part_of_the_cache() {
    let context = 16_384;
    let bytes = |ranks| {
        let found = on_ranks("models/tiny", ranks, |e, _| {
            let mut s = Session::new(e.clone(), context).unwrap();
            s.read(&[Slot::Text(7)], &[], Rows::Last, &mut |_| {}).unwrap();
            (s.cache_bytes(), e.state_bytes())
        });
        for (cache, states) in &found {
            // The programs' states: keys and values, and an index a slot.
            assert!(*states > *cache && *states < cache + cache / 50, "{states} bytes of states, {cache} of a cache");
        }
        found[0].1 as f64
    };
    let one = bytes(1);
    for ranks in [2, 3, 4] {
        let share = bytes(ranks) / one * ranks as f64;
        println!("{ranks} ranks: each holds {:.4} of one rank's bytes, {share:.3} of an R-th", share / ranks as f64);
        assert!((1.0..1.1).contains(&share), "{ranks} ranks: {share} of an R-th");
    }
}

/// What crosses is what docs/ring.md says.
#[test]
fn bytes_between_ranks() {
    for ranks in [2, 3, 4] {
        let flows = on_ranks("models/tiny", ranks, |e, world| {
            let mut s = Session::new(e.clone(), 2048).unwrap();
            let sent = |w: &World| ["collective_permute", "all_gather"].map(|name| w.traffic().of(name).sent);
            let slots = drawn(256 * ranks, 480, 0, 0, 5);
            s.read(&slots, &[], Rows::Last, &mut |_| {}).unwrap();
            let prompt = sent(&world);
            s.read(&slots[..1], &[], Rows::Last, &mut |_| {}).unwrap();
            let both = sent(&world);
            (prompt, both[1] - prompt[1], both[0] - prompt[0], world.traffic().total())
        });
        let t = Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny").to_string_lossy()).unwrap();
        let t = t.config.text;
        let heads = t.kv_heads * t.group();
        let hop = |tokens: usize| tokens * heads * t.head_dim * 4 + tokens * heads * (t.head_dim + 1) * 4;
        for (prompt, gathered, permuted, total) in flows {
            let total: Flow = total;
            assert_eq!(prompt, [(t.layers * (ranks - 1) * hop(256)) as u64, 0], "{ranks} ranks");
            assert_eq!(gathered as usize, t.layers * (ranks - 1) * heads * (t.head_dim + 1) * 4, "{ranks} ranks");
            assert_eq!(permuted, 0);
            assert!(total.sent > 0);
        }
    }
}

#[test]
fn a_full_context_is_the_same_error_on_all_ranks() {
    for error in on_ranks("models/tiny", 2, |e, _| {
        let mut s = Session::new(e, 33).unwrap();
        let slots = drawn(40, 480, 0, 0, 1);
        let error = s.read(&slots, &[], Rows::Last, &mut |_| {}).unwrap_err();
        s.read(&slots[..33], &[], Rows::Last, &mut |_| {}).unwrap();
        error
    }) {
        assert!(matches!(error, Error::Context { need: 40, have: 33 }), "{error}");
    }
}

#[test]
fn the_interpreter_is_no_rank() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let world = World::join(|| Ok::<_, Infallible>(threads(2).remove(0))).unwrap();
    let model = Model::open(&dir.to_string_lossy()).unwrap();
    let options = EngineOptions::default();
    let engine =
        Engine::load_among(Some(world), model, Device::open("interp").unwrap(), &options, &mut |_| {}).unwrap();
    let error = Session::new(Arc::new(engine), 32).err().unwrap().to_string();
    assert!(error.contains("all 2 ranks in one process"), "{error}");
}

#[test]
fn the_command_answers_the_same_on_ranks() {
    let chat = |ranks: &str| {
        let args = ["chat", "--model", "models/tiny", "--device", "cpu", "--max-new-tokens", "6", "--ranks", ranks];
        let words = "a rather long question, ".repeat(9);
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_omchat"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(args)
            .arg(words)
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, one, notes) = chat("1");
    assert_eq!(code, Some(0), "{notes}");
    assert!(!one.trim().is_empty());
    let (code, three, notes) = chat("3");
    assert_eq!((code, &three), (Some(0), &one), "{notes}");
    assert_eq!(notes.matches("tokens read").count(), 1, "{notes}");
    let (code, _, notes) = chat("0");
    assert!(code == Some(1) || code == Some(2), "{notes}");
    assert!(notes.contains("0 ranks"), "{notes}");
}
