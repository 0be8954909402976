//! A table of scores as a picture.

use super::font::{self, HIGH, WIDE};
use super::grid::Grid;
use crate::error::{Error, Result};
use omchat_model::picture::Picture;
use std::path::Path;

const INK: [u8; 3] = [30, 30, 30];
const NONE: [u8; 3] = [225, 225, 225];
/// Pixels of a cell.
const CELL: (usize, usize) = (64, 32);
/// Pixels that a dot of a letter is wide.
const DOT: usize = 2;

/// A picture that is drawn on.
pub struct Canvas {
    picture: Picture,
}

impl Canvas {
    /// A canvas of one colour.
    pub fn new(width: usize, height: usize, color: [u8; 3]) -> Canvas {
        Canvas { picture: Picture { width, height, rgb: color.repeat(width * height) } }
    }

    /// Paints one pixel; nothing beyond the edges.
    pub fn dot(&mut self, x: usize, y: usize, color: [u8; 3]) {
        if x < self.picture.width && y < self.picture.height {
            let at = (y * self.picture.width + x) * 3;
            self.picture.rgb[at..at + 3].copy_from_slice(&color);
        }
    }

    /// Paints a rectangle.
    pub fn block(&mut self, x: usize, y: usize, width: usize, height: usize, color: [u8; 3]) {
        for row in y..(y + height).min(self.picture.height) {
            for column in x..(x + width).min(self.picture.width) {
                self.dot(column, row, color);
            }
        }
    }

    /// Writes a line, its upper left corner at (x, y), a dot `size` pixels wide.
    pub fn write(&mut self, text: &str, x: usize, y: usize, size: usize, color: [u8; 3]) {
        for (place, letter) in text.chars().enumerate() {
            for (row, bits) in font::rows(letter).into_iter().enumerate() {
                for column in (0..WIDE).filter(|column| bits >> (WIDE - 1 - column) & 1 == 1) {
                    let left = x + (place * (WIDE + 1) + column) * size;
                    self.block(left, y + row * size, size, size, color);
                }
            }
        }
    }

    /// The picture.
    pub fn done(self) -> Picture {
        self.picture
    }
}

/// Pixels that a line is wide.
pub fn width(text: &str, size: usize) -> usize {
    (text.chars().count() * (WIDE + 1) * size).saturating_sub(size)
}

/// From red at 0 over yellow to green at 1.
pub fn heat(score: f64) -> [u8; 3] {
    let (low, middle, high) = ([222.0, 92.0, 82.0], [246.0, 214.0, 110.0], [98.0, 182.0, 110.0]);
    let score = score.clamp(0.0, 1.0);
    let (from, to, share): ([f64; 3], [f64; 3], f64) =
        if score < 0.5 { (low, middle, score * 2.0) } else { (middle, high, score * 2.0 - 1.0) };
    std::array::from_fn(|i| (from[i] + (to[i] - from[i]) * share).round() as u8)
}

/// The table as a heat map: a cell for each row and column, in it the percents.
pub fn heat_map(title: &str, grid: &Grid) -> Picture {
    let label = |names: &[String]| names.iter().map(|name| width(name, DOT)).max().unwrap_or(0);
    let (line, pad) = (HIGH * DOT, 10);
    let cell = (CELL.0.max(label(&grid.columns) + pad), CELL.1);
    let left = label(&grid.rows).max(width(&grid.down, DOT)) + 2 * pad;
    let top = 2 * line + 4 * pad;
    let wide = (left + cell.0 * grid.columns.len() + pad).max(width(title, DOT) + 2 * pad);
    let mut canvas = Canvas::new(wide, top + cell.1 * grid.rows.len() + line + 2 * pad, [255; 3]);
    canvas.write(title, pad, pad, DOT, INK);
    canvas.write(&grid.down, pad, 2 * pad + line, DOT, INK);
    canvas.write(&grid.across, left, top + cell.1 * grid.rows.len() + pad, DOT, INK);
    for (column, name) in grid.columns.iter().enumerate() {
        let x = left + column * cell.0 + (cell.0 - width(name, DOT)) / 2;
        canvas.write(name, x, 2 * pad + line, DOT, INK);
    }
    for (row, (name, cells)) in grid.rows.iter().zip(&grid.cells).enumerate() {
        let y = top + row * cell.1;
        let middle = y + (cell.1 - line) / 2;
        canvas.write(name, left - pad - width(name, DOT), middle, DOT, INK);
        for (column, score) in cells.iter().map(|cell| cell.map(|cell| cell.score)).enumerate() {
            let x = left + column * cell.0;
            canvas.block(x, y, cell.0 - 1, cell.1 - 1, score.map_or(NONE, heat));
            let shown = score.map_or("-".into(), |score| format!("{:.0}", 100.0 * score));
            canvas.write(&shown, x + (cell.0 - width(&shown, DOT)) / 2, middle, DOT, INK);
        }
    }
    canvas.done()
}

/// Writes a picture as PNG.
///
/// Errors: `File` if it cannot be written.
pub fn save(picture: &Picture, path: &Path) -> Result<()> {
    let (width, height) = (picture.width as u32, picture.height as u32);
    let failed = |why: image::ImageError| Error::file(path, std::io::Error::other(why));
    image::save_buffer_with_format(path, &picture.rgb, width, height, image::ColorType::Rgb8, image::ImageFormat::Png)
        .map_err(failed)
}
