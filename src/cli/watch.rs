//! A training run on stderr: a bar a stage, lines between.

use super::note;
use indicatif::{ProgressBar, ProgressStyle};
use omchat::training::{Line, Watched};

/// A bar a stage.
#[derive(Default)]
pub struct Shown {
    bar: Option<(String, ProgressBar)>,
}

impl Shown {
    /// Shows what a run tells.
    pub fn watch(&mut self, w: Watched) {
        match w {
            Watched::Note(text) => match &self.bar {
                Some((_, bar)) => bar.suspend(|| note(text)),
                None => note(text),
            },
            Watched::Loading(_) => {}
            Watched::Step(line, of) => self.step(line, of),
        }
    }

    fn step(&mut self, line: &Line, of: u64) {
        if self.bar.as_ref().is_none_or(|(stage, _)| *stage != line.stage) {
            self.end();
            let bar = ProgressBar::new(of);
            if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:20} {pos}/{len} {msg} {eta}") {
                bar.set_style(style);
            }
            bar.set_prefix(line.stage.clone());
            self.bar = Some((line.stage.clone(), bar));
        }
        let Some((_, bar)) = &self.bar else { return };
        bar.set_position(line.stage_step);
        let share = line.share.map_or(String::new(), |s| format!(", {:.0} % of the best einsum", s * 100.0));
        let held = line.held.map_or(String::new(), |b| format!(", {:.2} GB", b as f64 / 1e9));
        bar.set_message(format!("loss {:.4}, {:.0} tokens/s{share}{held}", line.loss, line.tokens_per_s));
    }

    /// Clears the bar.
    pub fn end(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
