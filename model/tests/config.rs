//! Configurations: what loads, what is refused and by which name.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may end at the first surprise

use omchat_model::config::*;
use omchat_model::presets::{parameters, preset};
use serde_json::{Value, json};
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn read(value: &Value) -> omchat_model::Result<OmChatConfig> {
    OmChatConfig::from_json(&value.to_string())
}

fn tiny_b() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture("tiny-b/config.json")).unwrap()).unwrap()
}

/// The error of a configuration with one change, which must name `field`.
fn refused(change: impl Fn(&mut Value), field: &str) -> String {
    let mut value = tiny_b();
    change(&mut value);
    match read(&value) {
        Err(omchat_model::Error::Config { field: have, value, mend }) => {
            assert_eq!(have, field, "{value}: {mend}");
            format!("{have} {value} {mend}")
        }
        other => panic!("want a refusal of {field}, have {other:?}"),
    }
}

#[test]
fn the_fixtures_are_read() {
    let b = OmChatConfig::from_dir(&fixture("tiny-b")).unwrap();
    let vision = b.vision.as_ref().unwrap();
    assert_eq!((vision.tokens_per_tile(), vision.positions(), vision.feature_width()), (16, 17, 64));
    assert!(vision.qk_norm && vision.norm == Norm::Rms && !vision.qkv_bias);
    assert_eq!(b.grid[1], (56, 112));
    assert_eq!((b.text.rope_theta, b.text.group()), (1e6, 2));
    let c = OmChatConfig::from_dir(&fixture("tiny-c")).unwrap();
    let vision = c.vision.as_ref().unwrap();
    assert_eq!((vision.tokens_per_tile(), vision.feature_width()), (8, 144));
    assert_eq!(vision.feature_layers, [2, 3, 4]);
}

#[test]
fn released_models_have_their_published_size() {
    assert_eq!(parameters(&preset("omchat-13b").unwrap()).total(), 13_176_433_536);
    assert_eq!(parameters(&preset("omchat-8b").unwrap()).total(), 8_054_996_336);
    let b = parameters(&preset("omchat-13b").unwrap());
    assert_eq!((b.vision, b.projector, b.text), (5_536_496_000, 24_321_024, 7_615_616_512));
    for name in omchat_model::presets::PRESETS {
        preset(name).unwrap().check().unwrap();
    }
    assert_eq!(preset("omchat-8b").unwrap().tokens_per_tile(), 728);
    assert_eq!(preset("omchat-13b").unwrap().tokens_per_tile(), 1024);
    let mini = preset("mini").unwrap();
    assert_eq!(mini.tokens_per_tile(), 256);
    assert_eq!(parameters(&mini).text, 134_515_008);
    assert!(preset("maxi").unwrap_err().to_string().contains("omchat-13b"));
}

#[test]
fn a_decoder_alone() {
    let smol = json!({"model_type": "llama", "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true, "rope_theta": 100000, "rope_interleaved": false, "rope_scaling": null,
        "is_llama_config": true, "torch_dtype": "bfloat16", "eos_token_id": 2, "bos_token_id": 1,
        "max_position_embeddings": 8192, "pretraining_tp": 1, "attention_bias": false,
        "transformers.js_config": {"dtype": "q4"}, "architectures": ["LlamaForCausalLM"]});
    let config = read(&smol).unwrap();
    assert_eq!(config.text, preset("mini").unwrap().text);
    assert_eq!((config.vision, config.dtype), (None, Precision::Bf16));
    // Qwen2's class has 32 key heads where the field is not there, and as many as heads where it is null.
    let heads = |kv: Option<Value>| {
        let mut value = json!({"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 99});
        kv.into_iter().for_each(|kv| value["num_key_value_heads"] = kv);
        read(&value).map(|c| c.text.kv_heads)
    };
    assert_eq!(heads(Some(Value::Null)).unwrap(), 4);
    assert!(heads(None).unwrap_err().to_string().contains("is 32"));
}

#[test]
fn norms_of_queries_and_keys_have_their_own_epsilon() {
    let mut value = tiny_b();
    value["vision_config"]["layer_norm_eps"] = json!(1e-3);
    let own = read(&value).unwrap().vision.unwrap();
    assert_eq!((own.eps, own.qk_eps), (1e-3, 1e-3));
    // transformers' InternVL gives them none, so they have their class's.
    value["vision_config"] = json!({"model_type": "internvl_vision", "hidden_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 160, "image_size": 56, "patch_size": 14, "use_qk_norm": true,
        "layer_norm_eps": 1e-3});
    let theirs = read(&value).unwrap().vision.unwrap();
    assert_eq!((theirs.eps, theirs.qk_eps), (1e-3, 1e-6));
}

#[test]
fn both_spellings_of_rope_and_dtype() {
    let mut value = tiny_b();
    let text = value["text_config"].as_object_mut().unwrap();
    text.remove("rope_theta");
    text.insert("rope_parameters".into(), json!({"rope_theta": 5e7, "rope_type": "default"}));
    value.as_object_mut().unwrap().remove("torch_dtype");
    value["dtype"] = json!("float16");
    let config = read(&value).unwrap();
    assert_eq!((config.text.rope_theta, config.dtype), (5e7, Precision::F16));
    let text = refused(|v| v["text_config"]["rope_parameters"] = json!({"rope_theta": 5.0}), "text_config.rope_theta");
    assert!(text.contains("1000000") && text.contains('5'), "{text}");
    refused(|v| v["dtype"] = json!("float16"), "torch_dtype");
}

#[test]
fn a_grid_is_a_text_or_a_list() {
    let mut value = tiny_b();
    let as_text = read(&value).unwrap();
    value["image_grid_pinpoints"] = json!([[112, 112], [56, 112], [112, 56], [56, 168], [168, 56]]);
    assert_eq!(read(&value).unwrap(), as_text);
    value["image_grid_pinpoints"] = Value::Null;
    assert_eq!(read(&value).unwrap().grid.len(), 8);
    refused(|v| v["image_grid_pinpoints"] = json!([[100, 56]]), "image_grid_pinpoints");
    refused(|v| v["image_grid_pinpoints"] = json!("[]"), "image_grid_pinpoints");
    refused(|v| v["image_grid_pinpoints"] = json!("[(a, 3)]"), "image_grid_pinpoints");
}

#[test]
fn feature_layers_count_from_both_ends() {
    let layers = |layer: Value| {
        let mut value = tiny_b();
        value["vision_feature_layer"] = layer;
        read(&value).map(|config| config.vision.unwrap().feature_layers)
    };
    assert_eq!(layers(json!(-1)).unwrap(), [2]);
    assert_eq!(layers(json!([0, -2, 2])).unwrap(), [0, 1, 2]);
    assert!(layers(json!(3)).is_err() && layers(json!(-4)).is_err() && layers(json!([])).is_err());
}

#[test]
fn unknown_fields_and_other_maths_are_named() {
    refused(|v| v["text_config"]["surprise"] = json!(1), "text_config.surprise");
    refused(|v| v["vision_config"]["surprise"] = json!(1), "vision_config.surprise");
    refused(|v| v["surprise"] = json!(1), "surprise");
    refused(
        |v| v["text_config"]["rope_scaling"] = json!({"type": "yarn", "factor": 4.0}),
        "text_config.rope_scaling.type",
    );
    refused(|v| v["text_config"]["hidden_act"] = json!("relu"), "text_config.hidden_act");
    refused(|v| v["text_config"]["use_sliding_window"] = json!(true), "text_config.use_sliding_window");
    refused(|v| v["text_config"]["attention_bias"] = json!(false), "text_config.attention_bias");
    refused(|v| v["vision_config"]["hidden_act"] = json!("quick_gelu"), "vision_config.hidden_act");
    refused(|v| v["vision_config"]["norm_type"] = json!("batch_norm"), "vision_config.norm_type");
    refused(|v| v["vision_config"]["model_type"] = json!("clip_vision_model"), "vision_config.model_type");
    refused(|v| v["projector_hidden_act"] = json!("relu"), "projector_hidden_act");
    refused(|v| v["model_type"] = json!("bert"), "model_type");
    refused(|v| v["torch_dtype"] = json!("int8"), "dtype");
}

#[test]
fn contradictions_are_named() {
    refused(|v| v["text_config"]["num_attention_heads"] = json!(5), "text_config.num_attention_heads");
    refused(|v| v["text_config"]["num_key_value_heads"] = json!(3), "text_config.num_key_value_heads");
    refused(|v| v["text_config"]["num_key_value_heads"] = json!(0), "text_config.num_key_value_heads");
    let odd = refused(|v| v["text_config"]["head_dim"] = json!(17), "text_config.head_dim");
    assert!(odd.contains("head_dim 17"), "{odd}");
    refused(|v| v["text_config"]["vocab_size"] = json!(0), "text_config.vocab_size");
    refused(|v| v["text_config"]["vocab_size"] = json!("many"), "text_config.vocab_size");
    refused(|v| v["text_config"]["rms_norm_eps"] = json!(-1), "text_config.rms_norm_eps");
    refused(|v| v["text_config"]["tie_word_embeddings"] = json!(true), "text_config.tie_word_embeddings");
    refused(|v| v["vision_config"]["num_attention_heads"] = json!(3), "vision_config.num_attention_heads");
    refused(|v| v["vision_config"]["image_size"] = json!(57), "vision_config.patch_size");
    refused(|v| v["vision_config"]["image_size"] = json!([56, 70]), "vision_config.image_size");
    refused(|v| drop(v.as_object_mut().unwrap().remove("text_config")), "text_config");
}

#[test]
fn broken_files_name_the_file() {
    let text = OmChatConfig::from_dir(&fixture("nowhere")).unwrap_err().to_string();
    assert!(text.contains("nowhere"), "{text}");
    assert!(OmChatConfig::from_json("{").unwrap_err().to_string().contains("config.json"));
}
