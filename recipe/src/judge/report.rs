//! What a run found, as JSON, as a page and as a picture.

use super::grid::{Grid, interval, mean};
use super::{Outcome, Skipped, paint};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Wrong answers that a page shows.
const SHOWN: usize = 100;

/// What a run found.
#[derive(Debug, Clone)]
pub struct Report {
    /// What was measured, in a line.
    pub title: String,
    /// What all answers have in common.
    pub setup: Value,
    /// Scores by row and column.
    pub grid: Grid,
    /// Other tables of the same answers.
    pub more: Vec<Grid>,
    /// The answers.
    pub outcomes: Vec<Outcome>,
    /// What could not be asked.
    pub skipped: Vec<Skipped>,
    /// What a reader must know of the figures.
    pub notes: Vec<String>,
}

impl Report {
    /// The figures: what `summary.json` holds.
    pub fn summary(&self) -> Value {
        let scores: Vec<f64> = self.outcomes.iter().map(|outcome| outcome.score).collect();
        let score = mean(&scores);
        let (low, high) = interval(score, scores.len());
        let chance: Vec<f64> = self.outcomes.iter().map(|outcome| outcome.chance).collect();
        let tables: Vec<Value> = self.grids().map(table).collect();
        json!({
            "title": self.title,
            "setup": self.setup,
            "asked": scores.len(),
            "right": self.outcomes.iter().filter(|outcome| outcome.right).count(),
            "unread": self.outcomes.iter().filter(|outcome| outcome.read.is_none()).count(),
            "score": score,
            "score_low": low,
            "score_high": high,
            "chance": mean(&chance),
            "tables": tables,
            "skipped": self.skipped,
            "notes": self.notes,
        })
    }

    fn grids(&self) -> impl Iterator<Item = &Grid> {
        std::iter::once(&self.grid).chain(&self.more)
    }

    /// The table and the figures in words.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n", self.title);
        out += &self.grids().map(|grid| grid.text() + "\n").collect::<String>();
        out += &self.figures();
        out
    }

    fn figures(&self) -> String {
        let s = self.summary();
        let percent = |name: &str| 100.0 * s[name].as_f64().unwrap_or_default();
        let mut out = format!(
            "score {:.1} % (95 %: {:.1} to {:.1}) of {} answers, {} right, {} without an answer that could be read; guessing {:.1} %\n",
            percent("score"),
            percent("score_low"),
            percent("score_high"),
            s["asked"],
            s["right"],
            s["unread"],
            percent("chance"),
        );
        for skipped in &self.skipped {
            out += &format!("skipped {}: {}\n", skipped.what, skipped.why);
        }
        for note in &self.notes {
            out += &format!("note: {note}\n");
        }
        out
    }

    /// Writes `summary.json`, `report.html` and `heatmap.png` into a folder.
    ///
    /// Errors: `File` if one cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let put = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(|why| Error::file(&path, why))
        };
        put("summary.json", format!("{:#}\n", self.summary()))?;
        put("report.html", self.page())?;
        for (number, grid) in self.grids().enumerate() {
            let name = if number == 0 { "heatmap.png".into() } else { format!("heatmap-{}.png", number + 1) };
            paint::save(&paint::heat_map(&self.title, grid), &dir.join(name))?;
        }
        Ok(())
    }

    /// The page: whole in itself, nothing is loaded from elsewhere.
    pub fn page(&self) -> String {
        let title = escape(&self.title);
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n<style>\
             body{{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;color:#1e1e1e}}\
             table{{border-collapse:collapse;margin:1em 0}}td,th{{padding:.3em .8em;border:1px solid #fff}}\
             th{{text-align:right;font-weight:600}}td.c{{text-align:center}}pre{{background:#f4f4f4;padding:1em;overflow:auto}}\
             td.w{{max-width:24em;overflow-wrap:anywhere;border:1px solid #ddd}}</style>\n<h1>{title}</h1>\n"
        );
        out += &self.grids().map(page_table).collect::<String>();
        out += &self.figures().lines().map(|line| format!("<p>{}</p>\n", escape(line))).collect::<String>();
        out += &format!("<h2>Setup</h2>\n<pre>{}</pre>\n", escape(&format!("{:#}", self.setup)));
        out += &self.wrong();
        out + "</html>\n"
    }

    fn wrong(&self) -> String {
        let wrong: Vec<&Outcome> = self.outcomes.iter().filter(|outcome| !outcome.right).collect();
        if wrong.is_empty() {
            return String::new();
        }
        let shown = wrong.len().min(SHOWN);
        let mut out =
            format!("<details><summary>{shown} of {} answers that are not right</summary>\n<table>", wrong.len());
        for outcome in wrong.iter().take(SHOWN) {
            let cells = [&outcome.id, &outcome.expected, &outcome.given].map(|text| escape(text));
            out += &cells.map(|text| format!("<td class=\"w\">{text}</td>")).concat();
            out += "</tr>\n<tr>";
        }
        out + "</tr></table></details>\n"
    }
}

/// A table of the page.
fn page_table(grid: &Grid) -> String {
    let head: String = grid.columns.iter().map(|name| format!("<th>{}</th>", escape(name))).collect();
    let corner = escape(&grid.corner());
    let mut out = format!("<table><tr><th>{corner}</th>{head}</tr>\n");
    for (name, cells) in grid.rows.iter().zip(&grid.cells) {
        out += &format!("<tr><th>{}</th>", escape(name));
        for cell in cells {
            out += &match cell {
                Some(cell) => {
                    let [r, g, b] = paint::heat(cell.score);
                    let (score, asked) = (100.0 * cell.score, cell.asked);
                    let (low, high) = cell.interval().unwrap_or((cell.score, cell.score));
                    let about = format!("{asked} answers, 95 %: {:.1} to {:.1}", 100.0 * low, 100.0 * high);
                    format!("<td class=\"c\" style=\"background:rgb({r},{g},{b})\" title=\"{about}\">{score:.1}</td>")
                }
                None => "<td class=\"c\">-</td>".to_owned(),
            };
        }
        out += "</tr>\n";
    }
    out + "</table>\n"
}

/// A table of the summary.
fn table(grid: &Grid) -> Value {
    let mut cells = Vec::new();
    for (row, line) in grid.rows.iter().zip(&grid.cells) {
        for (column, cell) in grid.columns.iter().zip(line).filter_map(|(name, cell)| cell.map(|cell| (name, cell))) {
            let mut shown = json!({ "row": row, "column": column, "asked": cell.asked, "score": cell.score });
            if let (Some((low, high)), Some(shown)) = (cell.interval(), shown.as_object_mut()) {
                shown.extend([("low".to_owned(), low.into()), ("high".to_owned(), high.into())]);
            }
            cells.push(shown);
        }
    }
    json!({ "rows": grid.down, "columns": grid.across, "cells": cells })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
