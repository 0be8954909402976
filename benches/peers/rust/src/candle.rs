//! Candle on the CPU: products, and a Llama decoder with its real weights.

use crate::Fault;
use crate::case::Case;
use crate::products::random;
use crate::sample::{Work, copies};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::time::Instant;

fn dtype(name: &str) -> Result<DType, Fault> {
    match name {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        _ => Err(format!("candle is asked for f32 and bf16 alone, not {name}").into()),
    }
}

/// `a b -> a bᵀ`.
pub struct Matmul {
    operands: Vec<(Tensor, Tensor)>,
    next: usize,
}

impl Matmul {
    /// Operands of the case, in copies.
    ///
    /// Errors: candle's.
    pub fn new(case: &Case, cache_bytes: usize) -> Result<Matmul, Fault> {
        let kind = dtype(&case.dtype)?;
        let (m, n, k) = (case.m, case.n, case.k);
        let mut rng = StdRng::seed_from_u64(1);
        let mut matrix = |rows, columns| {
            Tensor::from_vec(random(rows * columns, &mut rng), (rows, columns), &Device::Cpu)?.to_dtype(kind)
        };
        let copies = copies((m * k + n * k + m * n) * kind.size_in_bytes(), cache_bytes);
        let operands = (0..copies).map(|_| Ok((matrix(m, k)?, matrix(n, k)?.t()?)));
        Ok(Matmul { operands: operands.collect::<candle_core::Result<_>>()?, next: 0 })
    }
}

impl Work for Matmul {
    fn seconds(&mut self, runs: usize) -> Result<f64, Fault> {
        let start = Instant::now();
        for _ in 0..runs {
            self.next = (self.next + 1) % self.operands.len();
            let (a, b) = &self.operands[self.next];
            std::hint::black_box(a.matmul(b)?);
        }
        Ok(start.elapsed().as_secs_f64() / runs as f64)
    }
}

/// A decoder: a prompt from nothing, or single tokens over a cache that is filled before the clock starts.
pub struct Decoder {
    model: Llama,
    cache: Cache,
    prompt: Tensor,
    tokens: usize,
    prefill: bool,
}

/// The decoder's part of an OmChat folder's configuration, as candle reads it.
fn configuration(case: &Case) -> Result<Config, Fault> {
    let whole: Value = serde_json::from_slice(&std::fs::read(case.folder()?.join("config.json"))?)?;
    let text = whole.get("text_config").cloned().unwrap_or(Value::Null);
    let kind = text.get("model_type").and_then(Value::as_str).unwrap_or("none");
    if kind != "llama" {
        return Err(format!("candle is asked for a llama decoder alone, not {kind}").into());
    }
    Ok(serde_json::from_value::<LlamaConfig>(text)?.into_config(false))
}

impl Decoder {
    /// The decoder's weights, and for `decode` its cache after a prompt.
    ///
    /// Errors: a folder that is not there or not a llama's; candle's.
    pub fn new(case: &Case) -> Result<Decoder, Fault> {
        let config = configuration(case)?;
        let kind = dtype(&case.dtype)?;
        let files = [case.folder()?.join("model.safetensors")];
        // SAFETY: nobody writes the model's files while benches read them.
        let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, kind, &Device::Cpu)? };
        let model = Llama::load(weights.pp("language_model"), &config)?;
        let ids: Vec<u32> = (0..case.tokens).map(|i| ((i * 7919 + 13) % config.vocab_size) as u32).collect();
        let prompt = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        let mut cache = Cache::new(true, kind, &config, &Device::Cpu)?;
        let prefill = case.op == "prefill";
        if !prefill {
            model.forward(&prompt, 0, &mut cache)?;
        }
        Ok(Decoder { model, cache, prompt, tokens: case.tokens, prefill })
    }
}

impl Work for Decoder {
    fn seconds(&mut self, runs: usize) -> Result<f64, Fault> {
        let token = Tensor::new(&[13u32], &Device::Cpu)?.unsqueeze(0)?;
        let mut total = 0.0;
        for _ in 0..runs {
            // Each run starts from the same cache.
            let mut cache = self.cache.clone();
            let start = Instant::now();
            let logits = if self.prefill {
                self.model.forward(&self.prompt, 0, &mut cache)?
            } else {
                self.model.forward(&token, self.tokens, &mut cache)?
            };
            std::hint::black_box(logits);
            total += start.elapsed().as_secs_f64();
        }
        Ok(total / runs as f64)
    }

    fn note(&self) -> Option<String> {
        Some("candle-transformers' llama".into())
    }
}
