//! Sessions: however a sequence is fed, it is the same sequence.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat::{Device, Engine, EngineOptions, Error, Model, Rows, Sampler, Sampling, Session};
use omchat_model::splice::Slot;
use std::path::Path;
use std::sync::Arc;

fn engine(device: &str) -> Engine {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-b");
    let model = Model::open(&dir.to_string_lossy()).unwrap();
    Engine::load(model, Device::open(device).unwrap(), &EngineOptions::default(), &mut |_| {}).unwrap()
}

/// The devices here that are not the CPU.
fn cards() -> Vec<&'static str> {
    let (here, rest): (Vec<_>, Vec<_>) = ["wgpu", "cuda"].into_iter().partition(|name| Device::open(name).is_ok());
    rest.iter().for_each(|name| println!("skipped: {name} is not here"));
    here
}

fn tokens(n: usize) -> Vec<Slot> {
    (0..n).map(|i| Slot::Text((i * 37 % 311) as u32)).collect()
}

fn read(s: &mut Session, slots: &[Slot]) -> Vec<f32> {
    s.read(slots, &[], Rows::Last, &mut |_| {}).unwrap()
}

fn close(a: &[f32], b: &[f32]) {
    let top = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() <= 2e-6 * top), "{:?} {:?}", &a[..4], &b[..4]);
}

#[test]
fn the_way_of_feeding_does_not_matter() {
    let e = Arc::new(engine("cpu"));
    let slots = tokens(300);
    let whole = read(&mut Session::new(e.clone(), 512).unwrap(), &slots);
    for step in [1, 7, 31, 33, 255, 257] {
        let mut s = Session::new(e.clone(), 512).unwrap();
        let mut last = vec![];
        for part in slots.chunks(step) {
            last = read(&mut s, part);
        }
        close(&last, &whole);
    }
}

#[test]
fn the_likeliest_id_has_the_largest_logit() {
    for (device, parts) in [("cpu", &[1, 40, 1, 300, 33][..]), ("interp", &[5, 1])] {
        let e = Arc::new(engine(device));
        let slots = tokens(400);
        let (mut a, mut b) = (Session::new(e.clone(), 400).unwrap(), Session::new(e.clone(), 400).unwrap());
        let mut done = 0;
        for n in parts {
            let part = &slots[done..done + n];
            let logits = read(&mut a, part);
            let top = logits.iter().copied().fold(f32::MIN, f32::max);
            let first = logits.iter().position(|l| *l == top).unwrap();
            assert_eq!(b.likeliest(part, &[], &mut |_| {}).unwrap() as usize, first, "{device} {n}");
            done += n;
        }
        assert_eq!(a.len(), b.len());
        assert_eq!(a.stats().steps, b.stats().steps);
    }
}

/// On every device here: by the same chance the device draws what the host draws from the logits.
#[test]
fn drawn_ids_are_those_of_the_sampler() {
    let hows = [
        Sampling { temperature: 1.0, ..Sampling::default() },
        Sampling { temperature: 0.7, top_k: 20, ..Sampling::default() },
        Sampling { temperature: 1.3, top_p: 0.8, ..Sampling::default() },
        Sampling { temperature: 2.0, top_k: 100, top_p: 0.95, min_p: 0.02, ..Sampling::default() },
        Sampling { temperature: 0.9, top_k: 100_000, min_p: 0.1, ..Sampling::default() },
    ];
    for device in ["cpu", "interp"].into_iter().chain(cards()) {
        let e = Arc::new(engine(device));
        let slots = tokens(60);
        let (mut a, mut b) = (Session::new(e.clone(), 80).unwrap(), Session::new(e.clone(), 80).unwrap());
        let mut ids = std::collections::BTreeSet::new();
        for (turn, how) in hows.iter().enumerate() {
            let mut done = 0;
            for n in [40, 1, 1, 18] {
                let part = &slots[done..done + n];
                let how = Sampling { seed: (turn * 60 + done) as u64, ..how.clone() };
                let (mut host, mut chance) = (Sampler::new(how.clone()), Sampler::new(how.clone()));
                let want = host.pick(&read(&mut a, part), &[]);
                let got = b.drawn(part, &[], &how, chance.chance(), &mut |_| {}).unwrap();
                assert_eq!(got, want, "{device}, {how:?}, {n} tokens");
                ids.insert(got);
                done += n;
            }
            a.truncate(0).unwrap();
            b.truncate(0).unwrap();
        }
        assert!(ids.len() > 5, "{device} drew {ids:?}");
        let bad = b.drawn(&slots[..1], &[], &hows[0], 1.0, &mut |_| {}).unwrap_err().to_string();
        assert!(bad.contains("chance 1") && bad.contains("from 0 up to 1"), "{bad}");
    }
}

/// What a seed draws does not depend on the device.
#[test]
fn a_seed_draws_the_same_ids_on_every_device() {
    let draws = |device: &str| -> Vec<u32> {
        let e = Arc::new(engine(device));
        let mut s = Session::new(e, 64).unwrap();
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, top_p: 0.9, seed: 4, ..Sampling::default() });
        let mut ids = vec![s.sample(&tokens(9), &[], &mut sampler, &[], &mut |_| {}).unwrap()];
        for _ in 0..12 {
            let next = [Slot::Text(*ids.last().unwrap())];
            ids.push(s.sample(&next, &[], &mut sampler, &ids, &mut |_| {}).unwrap());
        }
        ids
    };
    let cpu = draws("cpu");
    for device in ["interp"].into_iter().chain(cards()) {
        assert_eq!(cpu, draws(device), "{device}");
    }
}

#[test]
fn an_id_of_logits_that_are_no_numbers_is_an_error() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let model = Model::open(&dir.to_string_lossy()).unwrap();
    let width = model.config.text.hidden;
    let e = Engine::load(model, Device::open("cpu").unwrap(), &EngineOptions::default(), &mut |_| {}).unwrap();
    let mut s = Session::new(Arc::new(e), 64).unwrap();
    let mut row = vec![0.5; width];
    let slots = [Slot::Text(3), Slot::Image(0)];
    s.likeliest(&slots, &row, &mut |_| {}).unwrap();
    row[1] = f32::NAN;
    let found = s.likeliest(&slots, &row, &mut |_| {});
    assert!(matches!(found, Err(Error::Numeric { what: "logits", .. })), "{found:?}");
}

#[test]
fn what_is_truncated_is_forgotten() {
    let e = Arc::new(engine("cpu"));
    let slots = tokens(90);
    let mut s = Session::new(e.clone(), 256).unwrap();
    let first = read(&mut s, &slots[..50]);
    read(&mut s, &slots[50..]);
    s.truncate(20).unwrap();
    assert_eq!(s.len(), 20);
    close(&read(&mut s, &slots[20..50]), &first);
}

#[test]
fn sessions_share_an_engine_across_threads() {
    let e = Arc::new(engine("cpu"));
    let slots = tokens(60);
    let want = read(&mut Session::new(e.clone(), 128).unwrap(), &slots);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (e, slots) = (e.clone(), slots.clone());
            std::thread::spawn(move || read(&mut Session::new(e, 128).unwrap(), &slots))
        })
        .collect();
    for t in threads {
        close(&t.join().unwrap(), &want);
    }
}

#[test]
fn a_full_context_is_an_error_and_loses_nothing() {
    let e = Arc::new(engine("cpu"));
    let slots = tokens(40);
    let mut s = Session::new(e, 33).unwrap();
    assert!(matches!(s.read(&slots, &[], Rows::Last, &mut |_| {}), Err(Error::Context { need: 40, have: 33 })));
    let first = read(&mut s, &slots[..30]);
    assert_eq!((s.len(), first.len()), (30, 320));
}
