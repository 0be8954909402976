//! Answers, a JSON line for a JSON line, how long the `gemm` crate and candle take for a case.
//!
//! A request is `{"peer": "gemm" | "candle", "case": {…}, "time_s": 0.4, "least": 3, "cache_bytes": 33554432}`, the answer
//! `{"seconds": […], "note": …}` (seconds a run, a sample each) or `{"refused": "…"}`. What a case needs is made once and
//! kept until another case comes.

mod candle;
mod case;
mod products;
mod sample;

use case::{Answer, Case, Request};
use sample::{Budget, Work};
use std::io::{BufRead, Write};

/// Whatever goes wrong is said to whoever asked.
pub type Fault = Box<dyn std::error::Error>;

fn prepared(peer: &str, case: &Case, cache_bytes: usize) -> Result<Box<dyn Work>, Fault> {
    match (peer, case.op.as_str()) {
        ("gemm", "matmul") => Ok(Box::new(products::Gemm::new(case, cache_bytes)?)),
        ("candle", "matmul") => Ok(Box::new(candle::Matmul::new(case, cache_bytes)?)),
        ("candle", "prefill" | "decode") => Ok(Box::new(candle::Decoder::new(case)?)),
        (peer, op) => Err(format!("{peer} is not asked for {op}").into()),
    }
}

fn answered(kept: &mut Option<(String, Box<dyn Work>)>, line: &str) -> Result<Answer, Fault> {
    let request: Request = serde_json::from_str(line)?;
    let key = format!("{} {}", request.peer, request.case.name);
    if kept.as_ref().is_none_or(|(k, _)| *k != key) {
        *kept = None;
        *kept = Some((key, prepared(&request.peer, &request.case, request.cache_bytes)?));
    }
    let Some((_, work)) = kept else { return Err("nothing was prepared".into()) };
    let budget = Budget { least: request.least, time_s: request.time_s };
    Ok(Answer::Seconds { seconds: sample::samples(work.as_mut(), &budget)?, note: work.note() })
}

fn main() -> Result<(), Fault> {
    let mut kept = None;
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let answer = answered(&mut kept, &line?).unwrap_or_else(|e| Answer::Refused { refused: e.to_string() });
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    Ok(())
}
