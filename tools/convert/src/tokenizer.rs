//! `tokenizer.json` of a byte-level BPE, from a GGUF file's lists.

use crate::Result;
use crate::text::Text;
use serde_json::{Map, Value, json};

/// GGUF's token type of special tokens.
const CONTROL: i32 = 3;

/// The tokenizer as Hugging Face's `tokenizers` reads it: single digits apart, then bytes.
///
/// Errors: a merge that is not two words; lists of different lengths.
pub fn json(text: &Text) -> Result<Value> {
    let tokens = text.strings("tokenizer.ggml.tokens")?;
    let kinds = text.numbers("tokenizer.ggml.token_type")?;
    if tokens.len() != kinds.len() {
        return Err(format!("{} tokens, {} kinds", tokens.len(), kinds.len()).into());
    }
    let special = tokens.iter().zip(&kinds).enumerate().filter(|(_, (_, kind))| **kind == CONTROL);
    let merges = text.strings("tokenizer.ggml.merges")?.into_iter().map(merge).collect::<Result<Vec<_>>>()?;
    let vocab: Map<String, Value> = tokens.iter().enumerate().map(|(id, s)| (s.to_string(), json!(id))).collect();
    let bytes = |prefix: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true });
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.map(|(id, (s, _))| added(id, s)).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{ "type": "Digits", "individual_digits": true }, bytes(false)],
        },
        "post_processor": null,
        "decoder": bytes(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        },
    }))
}

fn merge(pair: &str) -> Result<Value> {
    match pair.split(' ').collect::<Vec<_>>()[..] {
        [a, b] => Ok(json!([a, b])),
        _ => Err(format!("the merge {pair:?} is not two words").into()),
    }
}

fn added(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    })
}
