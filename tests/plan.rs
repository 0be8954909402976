//! The plan before the run: bytes on the wire are those of real runs of several ranks, message by message; times in
//! simulated time are those reckoned here by hand; what does not fit is refused with what would.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat::plan::hardware::{Machine, machine};
use omchat::plan::{Act, Ask, Kind, Pace, Scene, Script, Sight, documents, plan, simulate, turn};
use omchat::{Part, Recompute};
use omchat_codegen::{Collective, How};
use omchat_ir::{Dtype, Func, Role};
use omchat_model::graph::{ring_chunks, step_module};
use omchat_model::presets::omchat_8b;
use omchat_model::{Checkpoint, OmChatConfig};
use omchat_recipe::ring::Layout;
use omchat_runtime::collective::{Traffic, World, threads};
use omchat_runtime::{Device, Executable, HostTensor, Store};
use std::convert::Infallible;
use std::path::Path;
use std::process::Command;
use std::thread;

fn tiny() -> OmChatConfig {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/extra/text-only");
    let config = OmChatConfig::from_dir(&dir).unwrap();
    Checkpoint::load(&dir, &config).unwrap();
    config
}

fn ask(config: OmChatConfig, context: usize, (data, ring): (usize, usize)) -> Ask {
    Ask {
        config,
        context,
        ring,
        data,
        train: Some(vec![Part::Decoder]),
        recompute: None,
        loss_tiles: Some(1),
        mlp_tiles: Some(1),
        layout: Layout::Zigzag,
        documents: vec![context],
        dtype: Dtype::F32,
        machine: machine("h200").unwrap(),
        stragglers: 0.0,
        seed: 0,
    }
}

/// What the ranks of a real step exchange, each a thread with a program of its own.
fn real(ask: &Ask, spec: &omchat::TrainSpec) -> Vec<Traffic> {
    let module = step_module(&ask.config, spec, ask.dtype).unwrap();
    let entry = Func(module.functions.len() as u32 - 1);
    let placement = ask.layout.place(&ask.documents, ask.context, ask.ring);
    let lo: Vec<usize> = ask
        .documents
        .iter()
        .scan(0, |s, d| {
            *s += d;
            Some(vec![*s - d; *d])
        })
        .flatten()
        .collect();
    let device = Device::open("cpu").unwrap();
    thread::scope(|s| {
        let (module, placement, lo, device) = (&module, &placement, &lo, &device);
        let running: Vec<_> = threads(ask.ranks())
            .into_iter()
            .map(|t| {
                s.spawn(move || {
                    let world = World::join(move || Ok::<_, Infallible>(t)).unwrap();
                    let exe =
                        Executable::load_tuned(device, module, entry, None, Some(&world), &mut |_, _| {}).unwrap();
                    let own = placement.positions(world.rank() % ask.ring);
                    let places = placement.places(world.rank() % ask.ring);
                    let base = world.rank() / ask.ring * (ask.context + 2 * ask.ring);
                    let (mut store, mut inputs) = (Store::default(), vec![]);
                    for p in exe.params() {
                        // How far before its place a position sees.
                        let row = |f: &dyn Fn(usize) -> usize| {
                            let of = own.iter().zip(&places).map(|(p, at)| (at - f(*p) + base) as i32);
                            HostTensor::i32([1, own.len()], &of.collect::<Vec<i32>>())
                        };
                        let t = match p.name.as_str() {
                            "lo" => row(&|i| i - lo.get(i).copied().unwrap_or(i)),
                            "hi" | "at" => row(&|_| 0),
                            _ => HostTensor::zeros(p.ty.clone()),
                        };
                        match p.role {
                            Role::Input => inputs.push((p.name.clone(), t)),
                            _ => store.upload(device, &p.name, &t),
                        }
                    }
                    let named: Vec<(&str, HostTensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
                    exe.run(&named, &mut store).unwrap_or_else(|e| panic!("{e}"));
                    world.traffic()
                })
            })
            .collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

#[test]
fn planned_bytes_are_those_that_ranks_send() {
    let kinds = [Recompute::Nothing, Recompute::AllButAttention, Recompute::Layers];
    let cases = [
        ((1, 2), 26, 1),
        ((1, 3), 25, 5),
        ((2, 2), 24, 7),
        ((1, 4), 64, 16),
        ((2, 1), 10, 1),
        ((1, 5), 40, 3),
        ((1, 4), 90, 20),
    ];
    let mut unsent = 0;
    for (i, (ranks, context, count)) in cases.into_iter().enumerate() {
        let mut a = ask(tiny(), context, ranks);
        a.recompute = Some(kinds[i % 3]);
        a.layout = Layout::ALL[i % 3];
        a.documents = documents(context, count, i as u64 + 1);
        let p = plan(&a).unwrap();
        assert!(p.fits);
        let have = real(&a, &p.spec);
        for (rank, traffic) in have.iter().enumerate() {
            assert_eq!(traffic.total().sent, p.outcome.sent[rank], "rank {rank} of {ranks:?}");
        }
        assert!(!p.outcome.moved.is_empty());
        for (name, m) in &p.outcome.moved {
            let sum =
                |f: fn(&omchat_runtime::collective::Flow) -> u64| have.iter().map(|t| f(&t.of(name))).sum::<u64>();
            assert_eq!(sum(|f| f.sent), m.sent, "{name} of {ranks:?}");
            assert_eq!(sum(|f| f.skipped), m.skipped, "{name} of {ranks:?}");
            assert_eq!(sum(|f| f.count), m.count * a.ranks() as u64, "{name} of {ranks:?}");
            unsent += m.skipped;
        }
    }
    assert!(unsent > 0, "no case has keys that travel less than all the way");
}

/// A machine in round numbers: a second of latency, 100 bytes a second, launches of no time.
fn round() -> Machine {
    let mut m = machine("h100").unwrap();
    let figures = [
        ("peak", 1.0),
        ("product-share", 1.0),
        ("attention-share", 1.0),
        ("attention-backward-share", 1.0),
        ("bandwidth", 1e18),
        ("launch", 0.0),
        ("inside", 100.0),
        ("outside", 10.0),
        ("link-share", 1.0),
        ("near", 1.0),
        ("far", 2.0),
        ("node", 2.0),
    ];
    for (name, value) in figures {
        m.set(name, value).unwrap();
    }
    m
}

fn permute(ring: usize, ranks: usize, bytes: usize) -> Collective {
    Collective {
        how: How::Permute { shift: 1, ring, gated: false },
        ranks,
        dtype: Dtype::Bool,
        elements: bytes / Dtype::Bool.bytes(),
    }
}

/// Two hops of three ranks of which the third stands in another node, by hand.
#[test]
fn simulated_times_are_those_reckoned_by_hand() {
    let m = round();
    let kind = Kind { kernel: "x", pace: Pace::Product, flops: 5.0, bytes: 0.0, pairs: 0.0 };
    let work = |after: Vec<usize>| Act::Work { kind: 0, hop: 0, after };
    let meet = |after: Vec<usize>| Act::Meet { what: permute(3, 3, 100), hop: 0, after };
    let script = |acts| Script { ranks: 3, kinds: vec![kind.clone()], acts };
    let sight = Sight::of(&[6], 6, 3, Layout::Contiguous, 2);
    let scene = Scene { machine: &m, sight: &sight, stragglers: 0.0, seed: 0 };
    // 0 to 1 takes 1 + 1 s; 1 to 2 and 2 to 0 leave a node: 2 + 10 s. Work of 5 s hides the first, not the others.
    let one = simulate(&script(vec![meet(vec![]), work(vec![]), work(vec![0])]), &scene);
    assert_eq!(one.seconds, 12.0 + 5.0);
    assert_eq!(one.works(), 10.0);
    let moved = one.moved["collective_permute"];
    assert_eq!((moved.count, moved.sent), (1, 300));
    let near = |have: f64, want: f64| assert!((have - want).abs() < 1e-9, "{have} and {want}");
    near(moved.busy, (12.0 + 2.0 + 12.0) / 3.0);
    near(moved.waited, (7.0 + 0.0 + 7.0) / 3.0);
    // A second hop of what came begins when the first is over, on both of its ends.
    let two = simulate(&script(vec![meet(vec![]), meet(vec![0]), work(vec![1])]), &scene);
    assert_eq!(two.seconds, 24.0 + 5.0);
    // All at once: within the node 1 s and 100 bytes, outside 2 s and 100 bytes to the one other, twice for a reduce.
    let all = Collective { how: How::AllGather, ..permute(3, 3, 100) };
    let gather = simulate(&script(vec![Act::Meet { what: all, hop: 0, after: vec![] }, work(vec![0])]), &scene);
    assert_eq!((gather.seconds, gather.sent[2]), (2.0 + 10.0 + 5.0, 200));
    // Stragglers make it longer, and no work of theirs is lost.
    let slow = simulate(
        &script(vec![work(vec![]), meet(vec![]), work(vec![0])]),
        &Scene { stragglers: 1.0, seed: 7, ..scene },
    );
    assert!(slow.most > 10.0 && slow.most <= 20.0 && slow.seconds >= slow.most);
}

/// Without latency an exchange of keys hides from 2 (Hk / H) F / B tokens on, where half of a block is seen.
#[test]
fn exchanges_hide_from_as_many_tokens_as_the_formula_says() {
    let mut m = machine("h200").unwrap();
    for (name, value) in [("near", 0.0), ("far", 0.0), ("attention-share", 0.6), ("attention-backward-share", 0.5)] {
        m.set(name, value).unwrap();
    }
    let text = omchat_8b().text;
    for (tokens, ring) in [(2048, 4), (512, 7)] {
        let n = tokens * ring;
        let sight = Sight::of(&[n], n, ring, Layout::Zigzag, ring_chunks(tokens));
        let hops = turn(&text, tokens, ring, Dtype::Bf16, 90).unwrap().hops(&sight, &m);
        let share = text.kv_heads as f64 / text.heads as f64;
        let (near, far) = (450e9 * 0.8, 50e9 * 0.8);
        // Places travel too: 4 bytes a token beside 4 Hk d of keys and values, and a number for the reach.
        let (kv, d) = (text.kv_heads as f64, text.head_dim as f64);
        let keys = 4.0 * kv * d + 4.0 + 4.0 / tokens as f64;
        for (rate, have) in [(near, hops[0].hides_near), (far, hops[0].hides_far)] {
            let want = 2.0 * share * 989e12 * 0.6 / rate * keys / (4.0 * kv * d);
            assert!((have.unwrap() - want).abs() <= 1.0, "{have:?} and {want}");
        }
        // The backward computes seven products of each pair, and f32 cotangents travel too.
        let want = (keys + 8.0 * kv * d) / near * 989e12 * 0.5 / (7.0 * d * text.heads as f64);
        assert!((hops[1].hides_near.unwrap() - want).abs() <= 1.0, "{:?} and {want}", hops[1].hides_near);
        assert_eq!((hops[0].exchanges, hops[1].exchanges), (ring - 1, ring));
        assert_eq!(hops[0].turn, ((ring - 1) * (4 * text.kv_heads * text.head_dim * tokens + 4 * tokens + 4)) as u64);
        assert_eq!(hops[1].turn, hops[0].turn + (ring * 8 * text.kv_heads * text.head_dim * tokens) as u64);
    }
}

fn omchat(words: &str) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_omchat"))
        .args(words.split(' '))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let (code, out, err) =
        omchat("plan --model models/tiny --context 4K --ranks 2 --train --assume memory=10e6,reserve=0 --json");
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("does not fit") && err.contains("--ranks"), "{err}");
    let said: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(said["fits"], false);
    // What was said to fit fits.
    let words = err.split("--ranks ").nth(1).unwrap().split(' ').next().unwrap();
    let again =
        format!("plan --model models/tiny --context 4K --ranks {words} --train --assume memory=10e6,reserve=0 --json");
    let (code, out, err) = omchat(&again);
    assert_eq!(code, 0, "{again}: {err}");
    let said: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(said["memory"]["total"].as_u64() <= said["memory"]["budget"].as_u64());
}

#[test]
fn nonsense_is_refused_by_name() {
    for (words, part) in [
        ("plan --context 12Q", "12Q"),
        ("plan --ranks 8 --ring 3", "rings of 3"),
        ("plan --model models/tiny --context 4 --ranks 8", "no token for each"),
        ("plan --assume inside", "inside=200e9"),
        ("plan --assume speed=1", "attention-share"),
        ("plan --assume link-share=2", "at most 1"),
        ("plan --device abacus", "h200"),
        ("plan --dtype i32", "bf16"),
        ("plan --documents 9 --context 4", "documents"),
        ("plan --stragglers -1", "stragglers"),
        ("plan --ranks 512", "--data"),
    ] {
        let (code, _, err) = omchat(words);
        assert!(code == 2 && err.contains(part), "{words}: {code} {err}");
    }
}
