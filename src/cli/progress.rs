//! Progress bars on stderr: one a stage.

use indicatif::{ProgressBar, ProgressStyle};
use omchat::Progress;

/// Shows how far each stage has come.
#[derive(Default)]
pub struct Bars {
    now: Option<(&'static str, ProgressBar)>,
}

impl Bars {
    /// Shows a step of a stage.
    pub fn show(&mut self, p: Progress) {
        self.step(p.stage, p.done, p.total);
    }

    /// Shows that `done` of `total` of a stage are done.
    pub fn step(&mut self, stage: &'static str, done: usize, total: usize) {
        if self.now.as_ref().is_none_or(|(s, _)| *s != stage) {
            self.end();
            let bar = ProgressBar::new(total as u64);
            if let Ok(style) = ProgressStyle::with_template("{prefix:>9} {bar:30} {pos}/{len} {elapsed}") {
                bar.set_style(style);
            }
            bar.set_prefix(stage);
            self.now = Some((stage, bar));
        }
        if let Some((_, bar)) = &self.now {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
        if done >= total {
            self.end();
        }
    }

    /// Clears the bar.
    pub fn end(&mut self) {
        if let Some((_, bar)) = self.now.take() {
            bar.finish_and_clear();
        }
    }
}
