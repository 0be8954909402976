//! The modules of the named models: quick to build, one function a kind of layer, exactly the released tensors.

#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_ir::{Action, Dtype, Module, Role};
use omchat_model::config::OmChatConfig;
use omchat_model::graph::{self, DecoderSpec, Draw, ForwardSpec, Output, Spread};
use omchat_model::presets::{PRESETS, preset};
use omchat_model::weights::tensors;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SPEC: DecoderSpec =
    DecoderSpec { tokens: 64, capacity: 4096, features: true, output: Output::Last, spread: Spread::Alone };

fn models() -> Vec<(&'static str, OmChatConfig)> {
    PRESETS.iter().map(|name| (*name, preset(name).unwrap())).collect()
}

/// Number of elements of each weight, by name.
fn elements(modules: &[&Module]) -> BTreeMap<String, usize> {
    let lists = modules.iter().flat_map(|m| graph::weights(graph::entry(m).unwrap()));
    lists.map(|(name, ty)| (name.to_owned(), ty.elements())).collect()
}

/// What the checkpoint holds, without the tower's layers that feed no feature.
fn wanted(config: &OmChatConfig) -> BTreeMap<String, usize> {
    let used = config.vision.as_ref().map_or(0, |v| v.layers_used());
    let unused = |name: &str| {
        let layer = name.starts_with("vision_tower.").then(|| name.split("encoder.layers.").nth(1)).flatten();
        layer.is_some_and(|rest| rest.split('.').next().unwrap().parse::<usize>().unwrap() >= used)
    };
    let all = tensors(config).into_iter().filter(|t| !unused(&t.name));
    all.map(|t| (t.name, t.shape.iter().product())).collect()
}

fn quick<T>(what: &str, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let out = f();
    println!("{what}: {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(2), "{what} took {:?}", start.elapsed());
    out
}

#[test]
fn presets_build_quickly_and_ask_for_the_released_tensors() {
    for (name, config) in models() {
        let vision = quick(&format!("{name} @vision"), || graph::vision_module(&config, 7, Dtype::F16).unwrap());
        let decode = quick(&format!("{name} @decode"), || graph::decoder_module(&config, SPEC, Dtype::F16).unwrap());
        let forward = ForwardSpec { ring: 4, tokens: 1024, tiles: 2, remat: true, mlp_tiles: 1, loss_tiles: 1 };
        let forward =
            quick(&format!("{name} @forward"), || graph::forward_module(&config, forward, Dtype::Bf16).unwrap());
        assert_eq!(elements(&[&vision, &decode]), wanted(&config), "{name}");
        assert_eq!(elements(&[&forward]), wanted(&config), "{name}");
    }
}

#[test]
fn layers_share_one_function() {
    for (name, config) in models() {
        let module = graph::decoder_module(&config, SPEC, Dtype::Bf16).unwrap();
        let layers = module.functions.iter().filter(|f| f.name.ends_with("_layer")).count();
        let entry = graph::entry(&module).unwrap();
        let calls = entry
            .nodes
            .iter()
            .filter(
                |n| matches!(n.action, Action::Call { callee, .. } if module.function(callee).name.ends_with("_layer")),
            )
            .count();
        assert_eq!((layers, calls), (1, config.text.layers), "{name}");
        let vision = graph::vision_module(&config, 1, Dtype::Bf16).unwrap();
        let of_layer: Vec<_> = vision.functions.iter().filter(|f| f.name == "vision_layer").collect();
        assert_eq!(of_layer.len(), 1, "{name}");
    }
}

#[test]
fn modules_print_and_parse_to_themselves() {
    let config = preset("mini").unwrap();
    let forward = ForwardSpec { ring: 2, tokens: 8, tiles: 1, remat: true, mlp_tiles: 1, loss_tiles: 1 };
    for module in [
        graph::vision_module(&config, 2, Dtype::Bf16).unwrap(),
        graph::decoder_module(&config, SPEC, Dtype::F16).unwrap(),
        graph::forward_module(&config, forward, Dtype::F32).unwrap(),
    ] {
        let text = module.to_string();
        let again = omchat_ir::parse(&text).unwrap();
        assert_eq!(again.to_string(), text);
        assert!(again == module, "@{} changes when it is printed and parsed", graph::entry(&module).unwrap().name);
    }
}

#[test]
fn states_come_last_and_in_order() {
    let config = preset("mini").unwrap();
    use Dtype::{F32, I32};
    let draw = |top_k, top_p| (Output::Drawn(Draw { top_k, top_p }), [I32, F32].as_slice());
    let outputs: [(_, &[Dtype]); 7] = [
        (Output::Last, &[F32]),
        (Output::Likeliest, &[I32, F32]),
        draw(0, false),
        draw(40, true),
        draw(1 << 20, true),
        (Output::All, &[F32]),
        (Output::Loss, &[F32, F32]),
    ];
    for (output, before) in outputs {
        let module = graph::decoder_module(&config, DecoderSpec { output, ..SPEC }, Dtype::Bf16).unwrap();
        let entry = graph::entry(&module).unwrap();
        let names: Vec<&str> = graph::params(entry, Role::State).map(|(name, _)| name).collect();
        assert_eq!(&names[..4], ["cache.at", "cache.k.0", "cache.v.0", "cache.k.1"]);
        assert_eq!(names.len(), 1 + 2 * config.text.layers);
        assert_eq!(entry.results.len(), before.len() + names.len());
        assert!(entry.result_types().iter().zip(before).all(|(ty, want)| ty.dtype == *want));
    }
}

#[test]
fn faults_name_both_numbers() {
    let mut config = preset("mini").unwrap();
    let fault = |spec| graph::decoder_module(&preset("mini").unwrap(), spec, Dtype::F32).unwrap_err().to_string();
    let text = fault(DecoderSpec { tokens: 9, capacity: 8, ..SPEC });
    assert!(text.contains("capacity is 8") && text.contains("at least 9"), "{text}");
    let text = fault(DecoderSpec { tokens: 0, ..SPEC });
    assert!(text.contains("tokens is 0"), "{text}");
    assert!(graph::decoder_module(&config, SPEC, Dtype::I32).is_err());
    assert!(graph::vision_module(&config, 0, Dtype::F32).is_err());
    config.vision = None;
    let text = graph::vision_module(&config, 1, Dtype::F32).unwrap_err().to_string();
    assert!(text.contains("no vision tower"), "{text}");
}
