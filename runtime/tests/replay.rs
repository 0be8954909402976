//! Launches that are recorded and replayed give what launches give, whatever store, thread or state they meet.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_ir::{Func, Module, parse};
use omchat_runtime::{Device, Executable, HostTensor, Store};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tests take turns: what a device holds is counted over all of a process.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running sum in a state, and a result that reads it: a replay that ran twice, or not at all, shows.
const TEXT: &str = "
func @f(%x: f32[33], %w: f32[7, 33], state %sum: f32[33]) -> (f32[7], f32[33]) {
    %next = add %sum, %x
    %y    = einsum.f32 %w, %next \"a b, b -> a\"
    return %y, %next
}";

fn module() -> (Module, Func) {
    let m = parse(TEXT).unwrap();
    let f = m.named("f").unwrap();
    (m, f)
}

fn input(run: usize) -> HostTensor {
    HostTensor::f32([33], &(0..33).map(|i| ((i * 7 + run * 5) % 11) as f32 - 5.0).collect::<Vec<_>>())
}

fn weight() -> HostTensor {
    HostTensor::f32([7, 33], &(0..7 * 33).map(|i| (i % 13) as f32 - 6.0).collect::<Vec<_>>())
}

fn fresh(device: &Device) -> Store {
    let mut store = Store::default();
    store.upload(device, "sum", &HostTensor::f32([33], &[0.0; 33]));
    store
}

/// Results of runs `from..to`; whole numbers, so exact on any device.
fn runs(exe: &Executable, store: &mut Store, from: usize, to: usize) -> Vec<Vec<f32>> {
    (from..to).map(|run| exe.run(&[("x", input(run)), ("w", weight())], store).unwrap().remove(0).to_f32()).collect()
}

/// Devices, and whether they replay.
fn devices() -> Vec<(Device, bool)> {
    ["cpu", "wgpu", "cuda"]
        .iter()
        .filter_map(|name| match Device::open(name) {
            Ok(d) => Some((d, *name != "cpu")),
            Err(e) => {
                println!("skipped: {name}: {e}");
                None
            }
        })
        .collect()
}

fn wanted(to: usize) -> Vec<Vec<f32>> {
    let (m, f) = module();
    let exe = Executable::load(&Device::Interp, &m, f).unwrap();
    runs(&exe, &mut fresh(&Device::Interp), 0, to)
}

#[test]
fn a_replay_is_a_run() {
    let _turn = turn();
    let (m, f) = module();
    let want = wanted(12);
    for (device, replays) in devices() {
        let exe = Executable::load(&device, &m, f).unwrap();
        let mut store = fresh(&device);
        assert_eq!(runs(&exe, &mut store, 0, 8), want[..8], "{}", device.name());
        assert_eq!(exe.replays(), if replays { 6 } else { 0 }, "{}", device.name());
        // What the device holds does not grow: a step allocates nothing.
        let (bytes, compiled) = (device.bytes_in_use(), exe.compilations());
        assert_eq!(runs(&exe, &mut store, 8, 12), want[8..], "{}", device.name());
        assert_eq!((device.bytes_in_use(), exe.compilations()), (bytes, compiled), "{}", device.name());
        assert_eq!(store.download(&device, "sum").unwrap().to_f32().len(), 33);
    }
}

#[test]
fn a_store_that_changed_is_bound_anew() {
    let _turn = turn();
    let (m, f) = module();
    let want = wanted(5);
    for (device, _) in devices() {
        let exe = Executable::load(&device, &m, f).unwrap();
        let mut store = fresh(&device);
        for _ in 0..3 {
            assert_eq!(runs(&exe, &mut store, 0, 5), want, "{}", device.name());
            store.upload(&device, "sum", &HostTensor::f32([33], &[0.0; 33]));
        }
    }
}

#[test]
fn stores_and_threads_take_turns() {
    let _turn = turn();
    let (m, f) = module();
    let want = wanted(8);
    for (device, _) in devices() {
        let exe = Executable::load(&device, &m, f).unwrap();
        let (mut one, mut two) = (fresh(&device), fresh(&device));
        for (run, want) in want.iter().enumerate().take(6) {
            assert_eq!(runs(&exe, &mut one, run, run + 1)[0], *want, "{}", device.name());
            assert_eq!(runs(&exe, &mut two, run, run + 1)[0], *want, "{}", device.name());
        }
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| assert_eq!(runs(&exe, &mut fresh(&device), 0, 8), want, "{}", device.name()));
            }
        });
        // A store that another thread recorded for runs on.
        std::thread::scope(|s| {
            s.spawn(|| assert_eq!(runs(&exe, &mut one, 6, 8), want[6..], "{}", device.name()));
        });
    }
}

#[test]
fn a_run_again_has_the_inputs_of_the_one_before() {
    let _turn = turn();
    let (m, f) = module();
    let last = |device: &Device| {
        let exe = Executable::load(device, &m, f).unwrap();
        let mut store = fresh(device);
        let feed = [("x", input(0)), ("w", weight())];
        exe.run(&feed, &mut store).unwrap();
        (0..3).for_each(|_| exe.run_again(&feed, &mut store).unwrap());
        exe.run(&[("x", input(1)), ("w", weight())], &mut store).unwrap().remove(0).to_f32()
    };
    let want = last(&Device::Interp);
    devices().iter().for_each(|(device, _)| assert_eq!(last(device), want, "{}", device.name()));
}
