//! A longer conversation makes no new program, prepares no new kernel and compiles nothing.
//!
//! One test in a file of its own: tests of one process share a device, and with it the kernels that it compiled.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat::{Chat, ChatOptions, Device, Engine, EngineOptions, Model, Rows, Session};
use omchat_model::splice::Slot;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Programs lowered, kernels prepared, kernels compiled, and how many of the last the answer says it caused.
fn turn(chat: &mut Chat, words: &str) -> [usize; 4] {
    let answer = chat.ask(words, vec![], &mut |_| {}, &mut |_| ControlFlow::Continue(())).unwrap();
    let e = chat.engine();
    [e.programs(), e.kernels(), chat.session().stats().compilations, answer.compiled]
}

/// The engine of the fixture, on a device.
fn engine(device: &Device) -> Engine {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-b");
    let model = Model::open(&dir.to_string_lossy()).unwrap();
    Engine::load(model, device.clone(), &EngineOptions::default(), &mut |_| {}).unwrap()
}

#[test]
fn a_longer_conversation_compiles_nothing() {
    for name in ["cpu", "wgpu", "cuda"] {
        match Device::open(name) {
            Ok(device) => {
                conversation(&device);
                other_kernels(&device);
            }
            Err(e) => println!("skipped: {name}: {e}"),
        }
    }
}

fn conversation(device: &Device) {
    let name = device.name();
    let options = ChatOptions { context: 2048, max_new_tokens: 6, ..ChatOptions::default() };
    let mut chat = Chat::new(engine(device), options).unwrap();
    assert_eq!(chat.session().stats().compilations, 0, "{name}: nothing ran yet");
    let [_, _, compiled, caused] = turn(&mut chat, "hi");
    assert!(compiled > 0 && caused == compiled, "{name}: {compiled} compiled, {caused} of them for the first answer");
    // A question that needs every chunk size.
    let [programs, prepared, compiled, _] = turn(&mut chat, &"a long question ".repeat(40));
    assert!(compiled <= prepared, "{name}: {compiled} compiled of {prepared} prepared");
    println!("{name}: {programs} programs, {prepared} kernels prepared, {compiled} compiled");
    for n in 0..4 {
        let words = "and then? ".repeat(1 + n * 7);
        assert_eq!(turn(&mut chat, &words), [programs, prepared, compiled, 0], "{name}: {} bytes more", words.len());
    }
}

/// The counter counts: losses need kernels that a chat does not, compiled at their first run and at no other.
fn other_kernels(device: &Device) {
    let mut s = Session::new(Arc::new(engine(device)), 512).unwrap();
    let slots: Vec<Slot> = (0..32).map(Slot::Text).collect();
    let mut count = |losses: bool| {
        if losses {
            s.losses(&slots, &[], &[1; 32]).unwrap();
        } else {
            s.read(&slots, &[], Rows::Last, &mut |_| {}).unwrap();
        }
        s.truncate(0).unwrap();
        s.stats().compilations
    };
    let before = count(false);
    let after = count(true);
    assert!(after > before, "{}: a new program compiled nothing: {before} kernels before and after", device.name());
    assert_eq!([count(true), count(false)], [after; 2], "{}: second runs", device.name());
}
