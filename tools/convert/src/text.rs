//! The decoder: a Llama of a GGUF file under Hugging Face's names.

use crate::Result;
use crate::weights::Weights;
use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use std::fs::File;
use std::path::Path;

/// What GGUF calls the parts of a layer, and what Hugging Face calls them.
const PARTS: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// A GGUF file.
pub struct Text {
    file: File,
    content: Content,
}

impl Text {
    /// Opens a file and reads all but its tensors.
    pub fn open(path: &Path) -> Result<Text> {
        let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let mut file = File::open(path).map_err(|e| fail(&e))?;
        let content = Content::read(&mut file).map_err(|e| fail(&e))?;
        Ok(Text { file, content })
    }

    fn field(&self, name: &str) -> Result<&Value> {
        self.content.metadata.get(name).ok_or_else(|| format!("the GGUF file has no field {name}").into())
    }

    /// A whole number.
    pub fn number(&self, name: &str) -> Result<usize> {
        let value = self.field(name)?;
        Ok(value.to_u32().map_err(|e| format!("{name}: {e}"))? as usize)
    }

    /// A number as it is written: the shortest decimal that is this float.
    pub fn float(&self, name: &str) -> Result<f64> {
        let value = self.field(name)?.to_f32().map_err(|e| format!("{name}: {e}"))?;
        Ok(value.to_string().parse()?)
    }

    /// A text.
    pub fn string(&self, name: &str) -> Result<&str> {
        Ok(self.field(name)?.to_string().map_err(|e| format!("{name}: {e}"))?)
    }

    /// A list of texts.
    pub fn strings(&self, name: &str) -> Result<Vec<&str>> {
        self.list(name)?.iter().map(|v| Ok(v.to_string().map_err(|e| format!("{name}: {e}"))?.as_str())).collect()
    }

    /// A list of whole numbers.
    pub fn numbers(&self, name: &str) -> Result<Vec<i32>> {
        self.list(name)?.iter().map(|v| Ok(v.to_i32().map_err(|e| format!("{name}: {e}"))?)).collect()
    }

    fn list(&self, name: &str) -> Result<&[Value]> {
        Ok(self.field(name)?.to_vec().map_err(|e| format!("{name}: {e}"))?)
    }

    /// The text of a special token: `bos`, `eos`, `padding`, `unknown`.
    pub fn token(&self, kind: &str) -> Result<&str> {
        let (id, tokens) = (self.token_id(kind)?, self.strings("tokenizer.ggml.tokens")?);
        tokens.get(id).copied().ok_or_else(|| format!("{kind} is token {id} of {}", tokens.len()).into())
    }

    /// The id of a special token.
    pub fn token_id(&self, kind: &str) -> Result<usize> {
        self.number(&format!("tokenizer.ggml.{kind}_token_id"))
    }

    /// Decodes every tensor.
    ///
    /// Errors: a tensor whose name is none of a Llama's; one that cannot be read.
    pub fn read(&mut self, weights: &mut Weights) -> Result<()> {
        let mut names: Vec<String> = self.content.tensor_infos.keys().cloned().collect();
        names.sort();
        for name in names {
            let fail = |e: candle_core::Error| format!("{name}: {e}");
            let t = self.content.tensor(&mut self.file, &name, &Device::Cpu).map_err(fail)?;
            let shape = t.shape().dims().to_vec();
            let flat = t.dequantize(&Device::Cpu).and_then(|t| t.flatten_all()).map_err(fail)?;
            let data = flat.to_vec1::<f32>().map_err(fail)?;
            let (name, heads) = renamed(&name)?;
            let data = match heads {
                Some(count) => rotated_by_half(&data, shape[0] / self.number(count)?, shape[1]),
                None => data,
            };
            weights.put(&format!("language_model.model.{name}"), shape, &data)?;
        }
        Ok(())
    }
}

/// Hugging Face's name of a tensor, and the field that counts its heads where RoPE turns them.
fn renamed(name: &str) -> Result<(String, Option<&'static str>)> {
    match name {
        "token_embd.weight" => return Ok(("embed_tokens.weight".into(), None)),
        "output_norm.weight" => return Ok(("norm.weight".into(), None)),
        _ => {}
    }
    let words: Vec<&str> = name.split('.').collect();
    let known = match words[..] {
        ["blk", layer, part, "weight"] => PARTS.iter().find(|(p, _)| *p == part).map(|(_, new)| (layer, part, new)),
        _ => None,
    };
    let (layer, part, new) = known.ok_or_else(|| format!("tensor {name} is none of a Llama's"))?;
    let heads = match part {
        "attn_q" => Some("llama.attention.head_count"),
        "attn_k" => Some("llama.attention.head_count_kv"),
        _ => None,
    };
    Ok((format!("layers.{layer}.{new}.weight"), heads))
}

/// Rows in the order of rotate-half: GGUF pairs neighbours (2i, 2i + 1) of a head, rotate-half pairs (i, i + size / 2).
fn rotated_by_half(data: &[f32], size: usize, width: usize) -> Vec<f32> {
    let row = |r: usize| data[r * width..][..width].iter();
    let heads = data.len() / width / size;
    let order = (0..heads).flat_map(|h| (0..size).map(move |i| h * size + 2 * (i % (size / 2)) + i / (size / 2)));
    order.flat_map(row).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_neighbours_become_halves() {
        let rows: Vec<f32> = (0..8).flat_map(|r| [r as f32, r as f32 + 0.5]).collect();
        let firsts: Vec<f32> = rotated_by_half(&rows, 4, 2).chunks(2).map(|r| r[0]).collect();
        assert_eq!(firsts, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }

    #[test]
    fn names_are_known_or_refused() {
        assert_eq!(
            renamed("blk.3.attn_k.weight").ok(),
            Some(("layers.3.self_attn.k_proj.weight".into(), Some("llama.attention.head_count_kv")))
        );
        assert!(renamed("blk.3.attn_k.bias").is_err());
        assert!(renamed("rope_freqs.weight").is_err());
    }
}
