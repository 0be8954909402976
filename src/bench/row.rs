//! Rows: one measured thing, with the shares of what the device can do.

use omchat_codegen::Amount;
use omchat_ir::Dtype;
use omchat_runtime::{Ceilings, Times};
use serde::Serialize;
use serde_json::{Map, Value};

/// What was measured; `docs/bench.md` describes the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// The suite.
    pub suite: String,
    /// Family and shape.
    pub name: String,
    /// The shape by letter.
    pub shape: Map<String, Value>,
    /// The device.
    pub device: String,
    /// Kernels.
    pub kernel: String,
    /// Schedules.
    pub schedule: String,
    /// Seconds a run.
    pub median_s: Option<f64>,
    /// Distance of the quartiles as a share of the median.
    pub spread: Option<f64>,
    /// Samples.
    pub runs: usize,
    /// 10⁹ bytes a second.
    pub gb_s: Option<f64>,
    /// 10¹² FLOPs a second.
    pub tflop_s: Option<f64>,
    /// Of the copy ceiling.
    pub share_of_copy: Option<f64>,
    /// Of the best einsum.
    pub share_of_einsum: Option<f64>,
    /// Whether the numbers were right.
    pub checked: Option<bool>,
    /// Items a second.
    pub rate: Option<f64>,
    /// What the items are.
    pub unit: Option<String>,
    /// Bytes held at once, as planned.
    pub bytes: Option<u64>,
    /// Anything to know.
    pub note: Option<String>,
}

impl Row {
    /// The row with its times, what it moved and computed, and the shares.
    pub fn timed(mut self, times: &Times, amount: Amount, dtype: Dtype, ceilings: Option<&Ceilings>) -> Row {
        let seconds = times.median();
        let a_second = |n: u64, unit: f64| (n > 0).then(|| n as f64 / seconds / unit);
        self.median_s = Some(seconds);
        self.spread = Some(times.spread());
        self.runs = times.seconds.len();
        self.gb_s = a_second(amount.bytes(), 1e9);
        self.tflop_s = a_second(amount.flops, 1e12);
        self.share_of_copy = self.gb_s.zip(ceilings).map(|(x, c)| x / c.copy_gb_s);
        self.share_of_einsum = self.tflop_s.zip(ceilings.and_then(|c| c.einsum_of(dtype))).map(|(x, most)| x / most);
        self
    }

    /// The row with items a second.
    pub fn rated(mut self, items: usize, unit: &str) -> Row {
        self.rate = self.median_s.map(|s| items as f64 / s);
        self.unit = Some(unit.to_string());
        self
    }

    /// The row for a reader, on one line.
    pub fn line(&self) -> String {
        let share = |x: Option<f64>| x.map_or(String::new(), |s| format!(" ({:.0}%)", s * 100.0));
        let mut out = format!("{:<44}", self.name);
        if let Some(s) = self.median_s {
            out += &format!(" {:>10} ±{:>3.0}%", seconds(s), self.spread.unwrap_or(0.0) * 100.0);
        }
        if let (Some(rate), Some(unit)) = (self.rate, &self.unit) {
            out += &format!("  {rate:.1} {unit}");
        }
        if let Some(x) = self.gb_s {
            out += &format!("  {x:.2} GB/s{}", share(self.share_of_copy));
        }
        if let Some(x) = self.tflop_s {
            out += &format!("  {}{}", operations(x), share(self.share_of_einsum));
        }
        if let Some(b) = self.bytes {
            out += &format!("  {b} bytes");
        }
        out += &format!("  {}", self.kernel);
        // One launch's schedule; of several the JSON has them all.
        if !self.schedule.is_empty() && !self.kernel.contains(" + ") {
            out += &format!(" [{}]", self.schedule);
        }
        if self.checked == Some(false) {
            out += "  WRONG";
        }
        if let Some(note) = &self.note {
            out += &format!("  {note}");
        }
        out.trim_end().to_string()
    }
}

/// A number of TFLOP/s, in the unit in which it shows.
fn operations(x: f64) -> String {
    if x < 0.01 { format!("{:.3} GFLOP/s", x * 1e3) } else { format!("{x:.4} TFLOP/s") }
}

fn seconds(s: f64) -> String {
    match s {
        s if s < 1e-3 => format!("{:.2} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omchat_runtime::Best;

    #[test]
    fn a_row_is_read_against_the_ceilings() {
        let times = Times { seconds: vec![0.5, 0.5, 0.5] };
        let amount = Amount { read: 3_000_000_000, written: 1_000_000_000, flops: 2_000_000_000_000 };
        let best = Best { dtype: Dtype::F32, tflop_s: 8.0, size: 512 };
        let ceilings = Ceilings { copy_gb_s: 16.0, einsum: vec![best] };
        let row = Row { name: "x".into(), kernel: "k".into(), ..Row::default() };
        let row = row.timed(&times, amount, Dtype::Bf16, Some(&ceilings)).rated(10, "tokens/s");
        assert_eq!((row.gb_s, row.tflop_s, row.rate), (Some(8.0), Some(4.0), Some(20.0)));
        assert_eq!((row.share_of_copy, row.share_of_einsum), (Some(0.5), Some(0.5)));
        assert_eq!(row.median_s, Some(0.5));
        let line = row.line();
        assert!(line.contains("8.00 GB/s (50%)") && !line.contains("WRONG"), "{line}");
        assert!(Row { checked: Some(false), ..row }.line().contains("WRONG"));
    }
}
