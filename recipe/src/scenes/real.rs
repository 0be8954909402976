//! Real pictures: handwritten digits, which the crate carries, and faces, which a script fetches.
//!
//! A sheet is a grey PNG with a picture a row: its label, then its samples. `recipe/data/README.md` says whose they are.

use crate::error::{Error, Result};
use omchat_model::picture::Picture;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// 1,797 digits of 8x8 samples from 0 to 16.
const DIGITS: &[u8] = include_bytes!("../../data/digits.png");
/// Of this many pictures one is held out for tests.
const HELD: usize = 5;

/// Which pictures may be drawn: no picture is of both kinds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Four fifths, to train on.
    #[default]
    Train,
    /// One fifth, to judge by.
    Test,
}

impl Split {
    /// Whether it has a picture, by its place among those of the same label: the writers of the digits take turns.
    fn has(self, place: usize) -> bool {
        (place % HELD == HELD - 1) == (self == Split::Test)
    }

    /// Its own of some pictures with the same label.
    fn of(self, mut all: Vec<Grey>) -> Vec<Grey> {
        let mut place = 0..;
        all.retain(|_| place.next().is_some_and(|p| self.has(p)));
        all
    }
}

/// A small grey picture with what it shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Grey {
    /// Its number in the sheet.
    pub number: usize,
    /// A digit's value; 1 for a face, 0 for what is none.
    pub label: u8,
    /// Pixels along a side.
    pub side: usize,
    /// Samples from 0 to 1: [side, side].
    pub samples: Vec<f32>,
}

impl Grey {
    /// The sample at a place from 0 to 1 of each axis, between four neighbours; 0 outside.
    pub fn at(&self, x: f32, y: f32) -> f32 {
        let n = self.side as f32;
        let (x, y) = (x * n - 0.5, y * n - 0.5);
        let (left, top) = (x.floor(), y.floor());
        let (right, low) = (x - left, y - top);
        let one = |dx: i32, dy: i32| {
            let (column, row) = (left as i32 + dx, top as i32 + dy);
            let inside = (0..self.side as i32).contains(&column) && (0..self.side as i32).contains(&row);
            if !inside {
                return 0.0;
            }
            self.samples.get(row as usize * self.side + column as usize).copied().unwrap_or(0.0)
        };
        let upper = one(0, 0) * (1.0 - right) + one(1, 0) * right;
        let lower = one(0, 1) * (1.0 - right) + one(1, 1) * right;
        upper * (1.0 - low) + lower * low
    }
}

/// Pictures that scenes are made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Real {
    /// Digits by their value.
    pub digits: [Vec<Grey>; 10],
    /// Faces; empty where there is no sheet.
    pub faces: Vec<Grey>,
}

impl Real {
    /// The digits of a split, and the faces of a sheet where one is given.
    ///
    /// Errors: a sheet that cannot be read or is of another shape.
    pub fn new(split: Split, faces: Option<&Path>) -> Result<Real> {
        let mut digits: [Vec<Grey>; 10] = Default::default();
        for grey in sheet(Path::new("digits.png"), DIGITS, 8, 16.0)? {
            if let Some(list) = digits.get_mut(usize::from(grey.label)) {
                list.push(grey);
            }
        }
        let mut found = vec![];
        if let Some(path) = faces {
            let bytes = std::fs::read(path).map_err(|why| Error::file(path, why))?;
            found = sheet(path, &bytes, 25, 255.0)?;
            found.retain(|g| g.label == 1);
        }
        Ok(Real { digits: digits.map(|all| split.of(all)), faces: split.of(found) })
    }
}

/// The rows of a sheet.
fn sheet(path: &Path, bytes: &[u8], side: usize, most: f32) -> Result<Vec<Grey>> {
    let picture = Picture::decode(&path.display().to_string(), bytes)?;
    let width = side * side + 1;
    if picture.width != width {
        let what = format!("a row has {} samples, {side}x{side} and a label are {width}", picture.width);
        return Err(Error::format(path, what, "make it with scripts/scenes.sh"));
    }
    let rows = picture.rgb.chunks_exact(width * 3).enumerate();
    Ok(rows
        .map(|(number, row)| {
            let grey: Vec<u8> = row.iter().step_by(3).copied().collect();
            let samples = grey.iter().skip(1).map(|s| f32::from(*s) / most).collect();
            Grey { number, label: grey.first().copied().unwrap_or(0), side, samples }
        })
        .collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Counts of the data set's page; every picture is in one split.
    #[test]
    fn the_sheet_is_the_data_set() {
        let [train, test] = [Split::Train, Split::Test].map(|s| Real::new(s, None).unwrap());
        let known = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180];
        for (value, want) in known.into_iter().enumerate() {
            let numbers = |r: &Real| r.digits[value].iter().map(|g| g.number).collect::<Vec<_>>();
            let (a, b) = (numbers(&train), numbers(&test));
            assert_eq!(a.len() + b.len(), want, "digit {value}");
            assert!(b.len() == want / 5 && a.iter().all(|n| !b.contains(n)), "digit {value}");
        }
        assert!(train.faces.is_empty());
    }

    #[test]
    fn a_sheet_of_another_shape_is_refused() {
        let text = sheet(Path::new("faces.png"), DIGITS, 25, 255.0).unwrap_err().to_string();
        assert!(text.contains("65") && text.contains("626"), "{text}");
        assert!(Real::new(Split::Train, Some(Path::new("/nowhere.png"))).is_err());
    }
}
