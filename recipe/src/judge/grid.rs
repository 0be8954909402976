//! A table of scores, and the share of right answers with its uncertainty.

use super::Outcome;
use serde::Serialize;

/// The answers that share a row and a column.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cell {
    /// How many were given; 0 of a figure to compare with, for which nothing was asked.
    pub asked: usize,
    /// Their mean score.
    pub score: f64,
}

impl Cell {
    /// Where the true score lies with 95 % probability; nothing where nothing was asked.
    pub fn interval(&self) -> Option<(f64, f64)> {
        (self.asked > 0).then(|| interval(self.score, self.asked))
    }
}

/// Mean scores by row and column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Grid {
    /// What rows are.
    pub down: String,
    /// What columns are.
    pub across: String,
    /// The rows' names, top first.
    pub rows: Vec<String>,
    /// The columns' names.
    pub columns: Vec<String>,
    /// By row, then column; nothing where nothing was answered.
    pub cells: Vec<Vec<Option<Cell>>>,
}

impl Grid {
    /// The table of some outcomes. What is in none of the rows and columns is not counted.
    pub fn of(down: (&str, Vec<String>), across: (&str, Vec<String>), outcomes: &[Outcome]) -> Grid {
        let cell = |row: &String, column: &String| {
            let scores: Vec<f64> =
                outcomes.iter().filter(|o| o.row == *row && o.column == *column).map(|o| o.score).collect();
            (!scores.is_empty()).then(|| Cell { asked: scores.len(), score: mean(&scores) })
        };
        let cells = down.1.iter().map(|row| across.1.iter().map(|column| cell(row, column)).collect()).collect();
        Grid { down: down.0.into(), across: across.0.into(), rows: down.1, columns: across.1, cells }
    }

    /// The rows or columns of some outcomes as they first occur.
    pub fn names(outcomes: &[Outcome], of: impl Fn(&Outcome) -> &String) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for outcome in outcomes {
            if !out.contains(of(outcome)) {
                out.push(of(outcome).clone());
            }
        }
        out
    }

    /// What stands in the table's upper left corner.
    pub fn corner(&self) -> String {
        if self.across.is_empty() { self.down.clone() } else { format!("{} \\ {}", self.down, self.across) }
    }

    /// The table in words, percents.
    pub fn text(&self) -> String {
        let corner = self.corner();
        let first = self.rows.iter().chain([&corner]).map(|name| name.chars().count()).max().unwrap_or(0);
        let wide: Vec<usize> = self.columns.iter().map(|name| name.chars().count().max(5)).collect();
        let mut out = format!("{corner:<first$}");
        for (name, wide) in self.columns.iter().zip(&wide) {
            out += &format!("  {name:>wide$}");
        }
        for (name, cells) in self.rows.iter().zip(&self.cells) {
            out += &format!("\n{name:<first$}");
            for (cell, wide) in cells.iter().zip(&wide) {
                let shown = cell.map_or("-".into(), |cell| format!("{:.1}", 100.0 * cell.score));
                out += &format!("  {shown:>wide$}");
            }
        }
        out + "\n"
    }
}

/// The mean; 0 of nothing.
pub fn mean(scores: &[f64]) -> f64 {
    if scores.is_empty() { 0.0 } else { scores.iter().sum::<f64>() / scores.len() as f64 }
}

/// Where the true share lies with 95 % probability if that share of `asked` was right.
///
/// Source: Wilson 1927.
pub fn interval(share: f64, asked: usize) -> (f64, f64) {
    if asked == 0 {
        return (0.0, 1.0);
    }
    let (z, n) = (1.959_963_984_540_054_f64, asked as f64);
    let middle = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    ((middle - half).max(0.0), (middle + half).min(1.0))
}
