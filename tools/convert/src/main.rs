//! Joins a real vision tower and a real language model into one OmChat folder.
//!
//! `omchat-convert TEXT.gguf VISION.onnx OUT_DIR [--dtype float16|float32] [--stamp TEXT]`
//!
//! - Text: SmolLM2-135M-Instruct (Llama layout, tied embeddings), decoded from Q4_1 and Q8_0; its tokenizer and chat template.
//! - Vision: a ViT-S/14 of the DINOv2 kind in InternViT-300M's layout (LayerNorm, no qk-norm, biased qkv, layer scale).
//!   OmChat takes the last layer's output with no final norm, so DINOv2's final LayerNorm is left out.
//! - Projector: RANDOM (normal, standard deviation 0.02, zero bias, seed 0) until somebody trains it.

mod folder;
mod normal;
mod text;
mod tokenizer;
mod vision;
mod weights;

use std::path::PathBuf;
use weights::{Dtype, Weights};

/// A fault, as the line that is printed.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Side of a tile, pixels.
const TILE: usize = 224;

struct Args {
    gguf: PathBuf,
    onnx: PathBuf,
    out: PathBuf,
    dtype: Dtype,
    stamp: String,
}

fn main() -> std::process::ExitCode {
    match args().and_then(|a| run(&a)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("omchat-convert: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn args() -> Result<Args> {
    let usage = "usage: omchat-convert TEXT.gguf VISION.onnx OUT_DIR [--dtype float16|float32] [--stamp TEXT]";
    let (mut paths, mut dtype, mut stamp) = (vec![], Dtype::F16, String::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--dtype" => dtype = Dtype::named(&words.next().ok_or(usage)?)?,
            "--stamp" => stamp = words.next().ok_or(usage)?,
            _ => paths.push(PathBuf::from(word)),
        }
    }
    let [gguf, onnx, out] = <[PathBuf; 3]>::try_from(paths).map_err(|_| usage)?;
    Ok(Args { gguf, onnx, out, dtype, stamp })
}

fn run(args: &Args) -> Result<()> {
    std::fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    let mut weights = Weights::new(args.dtype);
    let tower = vision::read(&args.onnx, &mut weights)?;
    let mut text = text::Text::open(&args.gguf)?;
    text.read(&mut weights)?;
    projector(tower.width, text.number("llama.embedding_length")?, &mut weights)?;
    weights.save(&args.out.join("model.safetensors"))?;
    folder::write(&args.out, &text, &tower, args.dtype)?;
    folder::manifest(&args.out, &[&args.gguf, &args.onnx], &args.stamp)?;
    println!(
        "{}: {} tensors, {} parameters, {}",
        args.out.display(),
        weights.len(),
        weights.elements(),
        args.dtype.name()
    );
    Ok(())
}

/// Two linear layers, from the tower's width to the decoder's: random weights, no bias.
fn projector(from: usize, to: usize, weights: &mut Weights) -> Result<()> {
    let mut normal = normal::Normal::seed_0();
    for (n, width) in [(1, from), (2, to)] {
        let w: Vec<f64> = (0..to * width).map(|_| 0.02 * normal.next()).collect();
        let name = |part| format!("multi_modal_projector.linear_{n}.{part}");
        weights.put_f64(&name("weight"), vec![to, width], &w)?;
        weights.put_f64(&name("bias"), vec![to], &vec![0.0; to])?;
    }
    Ok(())
}
