//! Sessions: however a sequence is fed, it is the same sequence.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat::{Device, Engine, EngineOptions, Error, Model, Rows, Session};
use omchat_model::splice::Slot;
use std::path::Path;
use std::sync::Arc;

fn engine(device: &str) -> Engine {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-b");
    let model = Model::open(&dir.to_string_lossy()).unwrap();
    Engine::load(model, Device::open(device).unwrap(), &EngineOptions::default(), &mut |_| {}).unwrap()
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
