//! Bytes that losses hold beside operands and results: whole logits against parts, by the programs' plans. Nothing runs.

use super::{Options, Row, Said, cases::Case, kernels::ways};
use crate::{Device, Error};
use omchat_codegen::Memory;
use omchat_ir::Dtype;

/// Tokens and words of the row that the bars name.
const TOKENS: usize = 8192;
const WORDS: usize = 152_064;
/// Channels of the decoder that has so many words.
const CHANNELS: usize = 3584;
/// Tokens a part: what a training plan takes, and its leanest.
const PARTS: [usize; 2] = [256, 64];
/// The family of rows that go back.
const BACKWARD: &str = "loss_backward";

/// The losses of 8,192 tokens of 152,064 words, forward and backward, whole and in parts: cases and their parts.
fn cases(device: &Device) -> Vec<(Case, usize)> {
    let e = if device.target().holds(Dtype::Bf16) { Dtype::Bf16 } else { Dtype::F32 };
    let (t, v, c) = (TOKENS, WORDS, CHANNELS);
    let (x, w, row) = (format!("{e}[{t}, {c}]"), format!("{e}[{v}, {c}]"), format!("f32[{t}]"));
    let mut out = vec![];
    for n in [1].into_iter().chain(PARTS.map(|p| t / p)) {
        for back in [false, true] {
            let (family, text) = if back {
                (
                    BACKWARD,
                    format!(
                        "func @bench(%x: {x}, weight %w: {w}, %labels: i32[{t}], %loss: {row}, %lse: {row}, %d: {row}, %ds: {row}) -> ({x}, {w}) {{ %dx, %dw = call @linear_cross_entropy_tiled.vjp[N={n}](%x, %w, %labels, %loss, %lse, %d, %ds) return %dx, %dw }}"
                    ),
                )
            } else {
                (
                    "loss_forward",
                    format!(
                        "func @bench(%x: {x}, weight %w: {w}, %labels: i32[{t}]) -> ({row}, {row}) {{ %loss, %lse = call @linear_cross_entropy_tiled[N={n}](%x, %w, %labels) return %loss, %lse }}"
                    ),
                )
            };
            out.push((Case::new(family, &[e], "memory", &[("t", t), ("v", v), ("c", c), ("n", n)], text), n));
        }
    }
    out
}

/// The names of the rows.
pub fn memory_names(device: &Device) -> Vec<String> {
    cases(device).into_iter().map(|(c, _)| c.name).collect()
}

/// Tells the rows that are wanted; those whose buffers the device cannot bind are skipped.
///
/// Errors: what a row cannot be told for.
pub fn memory(device: &Device, options: &Options, say: &mut dyn FnMut(Said) -> Result<(), Error>) -> Result<(), Error> {
    for (case, parts) in cases(device).into_iter().filter(|(c, _)| options.wants(&c.name)) {
        say(match row(device, &case, parts) {
            Ok(row) => Said::Row(Box::new(row)),
            Err(e) => Said::Skipped { name: case.name, reason: e.to_string() },
        })?;
    }
    Ok(())
}

fn row(device: &Device, case: &Case, parts: usize) -> Result<Row, Error> {
    let (module, entry) = case.module()?;
    let program = omchat_runtime::program(&module, entry, &device.target())?;
    let bytes = program.bytes(Memory::Workspace) as u64;
    let logits = (TOKENS * WORDS * Dtype::F32.bytes()) as u64;
    let share = logits as f64 / bytes.max(1) as f64;
    // The weight's gradient is a result, in f32 until all parts are summed; whole logits need it as well.
    let gathered = (WORDS * CHANNELS * Dtype::F32.bytes()) as u64;
    let back = case.name.starts_with(BACKWARD);
    let beside = match bytes.checked_sub(gathered).filter(|_| back && parts > 1) {
        Some(rest) => format!(
            "; 1/{:.1} beside the {gathered} that gather the weight's gradient",
            logits as f64 / rest.max(1) as f64
        ),
        None => String::new(),
    };
    Ok(Row {
        suite: "train".into(),
        name: case.name.clone(),
        shape: case.shape.clone(),
        device: device.name().into(),
        kernel: ways(&program).0,
        bytes: Some(bytes),
        note: Some(format!("1/{share:.1} of {logits} bytes of logits{beside}")),
        ..Row::default()
    })
}
