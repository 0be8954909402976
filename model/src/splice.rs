//! Where each decoder position comes from: a row of the embedding, or a row of the projected features.

use crate::config::{IGNORE, IMAGE_TOKEN};
use crate::error::{Error, Result};

/// A sequence after every tile's placeholder has become the tile's feature rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spliced {
    /// What fills each position, in order.
    pub slots: Vec<Slot>,
    /// Tiles in the sequence.
    pub tiles: usize,
    /// Positions that one tile takes.
    pub per_tile: usize,
    /// Ids that the model has.
    pub vocab: usize,
}

/// What fills one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The embedding of this id.
    Text(u32),
    /// This row of [tiles · per_tile, hidden] features, counted over the tiles of the same sequence.
    Image(u32),
}

/// The sequence that `input_ids` stand for, with each -200 replaced by one tile's `per_tile` rows.
///
/// A session that feeds only a new turn splices that turn's ids; rows then count from the turn's first tile.
///
/// Shapes: `input_ids` [T]; the result has T + tiles · (per_tile − 1) positions.
/// Errors: `Input` if the placeholders are not as many as the tiles, or an id is negative or not below `vocab`.
pub fn splice(input_ids: &[i32], tiles: usize, per_tile: usize, vocab: usize) -> Result<Spliced> {
    let marks = input_ids.iter().filter(|id| **id == IMAGE_TOKEN).count();
    if marks != tiles {
        return Err(Error::input(
            format!("input_ids hold {marks} placeholders ({IMAGE_TOKEN}) and there are {tiles} tiles"),
            "give one placeholder for each tile of pixel_values",
        ));
    }
    let length = input_ids.len() + tiles * per_tile - tiles;
    if u32::try_from(length).is_err() {
        return Err(Error::input(format!("the spliced sequence has {length} positions"), "stay below 2^32"));
    }
    let mut slots = Vec::with_capacity(length);
    let mut row = 0u32;
    for (place, id) in input_ids.iter().enumerate() {
        if *id == IMAGE_TOKEN {
            let end = row + per_tile as u32;
            slots.extend((row..end).map(Slot::Image));
            row = end;
        } else {
            slots.push(Slot::Text(text_id(*id, place, vocab)?));
        }
    }
    Ok(Spliced { slots, tiles, per_tile, vocab })
}

fn text_id(id: i32, place: usize, vocab: usize) -> Result<u32> {
    match u32::try_from(id) {
        Ok(text) if (text as usize) < vocab => Ok(text),
        _ => Err(Error::input(
            format!("input_ids[{place}] is {id} and the model has {vocab} ids"),
            format!("use ids from 0 to {} and {IMAGE_TOKEN} for a tile", vocab.saturating_sub(1)),
        )),
    }
}

impl Spliced {
    /// Positions in the sequence.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no position at all.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The id of each position, 0 where a feature row stands.
    pub fn text_ids(&self) -> Vec<i32> {
        let id = |slot: &Slot| match slot {
            Slot::Text(id) => *id as i32,
            Slot::Image(_) => 0,
        };
        self.slots.iter().map(id).collect()
    }

    /// The feature row of each position, -1 where text stands.
    pub fn image_rows(&self) -> Vec<i32> {
        let row = |slot: &Slot| match slot {
            Slot::Text(_) => -1,
            Slot::Image(row) => *row as i32,
        };
        self.slots.iter().map(row).collect()
    }

    /// The position of each feature row, in the order of the rows.
    pub fn image_positions(&self) -> Vec<u32> {
        let slots = self.slots.iter().enumerate();
        slots.filter(|(_, slot)| matches!(slot, Slot::Image(_))).map(|(place, _)| place as u32).collect()
    }

    /// One label a position: labels given for the spliced sequence as they are, labels given for `input_ids` moved
    /// to where their ids went. Feature rows are never counted.
    ///
    /// Shapes: `labels` [T] or [spliced]; the result is [spliced].
    /// Errors: `Input` if the length is neither, or a label is no id and not -100.
    pub fn labels(&self, labels: &[i32]) -> Result<Vec<i32>> {
        let known = |label: i32| label == IGNORE || usize::try_from(label).is_ok_and(|id| id < self.vocab);
        if let Some(place) = labels.iter().position(|label| !known(*label)) {
            return Err(Error::input(
                format!("labels[{place}] is {} and the model has {} ids", labels[place], self.vocab),
                format!("use ids from 0 to {} and {IGNORE} where none counts", self.vocab.saturating_sub(1)),
            ));
        }
        let short = self.len() + self.tiles - self.tiles * self.per_tile;
        if labels.len() == self.len() {
            return Ok(self.slots.iter().zip(labels).map(|(slot, label)| text_label(*slot, *label)).collect());
        }
        if labels.len() != short {
            return Err(Error::input(
                format!("there are {} labels, {short} ids and {} positions", labels.len(), self.len()),
                "give one label an id or one a position",
            ));
        }
        let mut given = labels.iter();
        let mut out = Vec::with_capacity(self.len());
        for slot in &self.slots {
            let starts = match slot {
                Slot::Text(_) => true,
                Slot::Image(row) => (*row as usize).is_multiple_of(self.per_tile),
            };
            let label = if starts { given.next().copied().unwrap_or(IGNORE) } else { IGNORE };
            out.push(text_label(*slot, label));
        }
        Ok(out)
    }
}

fn text_label(slot: Slot, label: i32) -> i32 {
    match slot {
        Slot::Text(_) => label,
        Slot::Image(_) => IGNORE,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_placeholder_becomes_its_rows() {
        let spliced = splice(&[5, -200, 6, -200], 2, 3, 10).unwrap();
        assert_eq!(spliced.text_ids(), [5, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(spliced.image_rows(), [-1, 0, 1, 2, -1, 3, 4, 5]);
        assert_eq!(spliced.image_positions(), [1, 2, 3, 5, 6, 7]);
    }

    #[test]
    fn labels_by_id_and_by_position() {
        let spliced = splice(&[5, -200, 6, -200], 2, 3, 10).unwrap();
        let by_position = spliced.labels(&[5, 9, 9, 9, 6, 9, 9, 9]).unwrap();
        assert_eq!(by_position, [5, -100, -100, -100, 6, -100, -100, -100]);
        assert_eq!(spliced.labels(&[5, -100, 6, 1]).unwrap(), by_position);
        assert!(spliced.labels(&[1, 2, 3]).is_err());
        let text = spliced.labels(&[5, -100, 10, 1]).unwrap_err().to_string();
        assert!(text.contains("labels[2] is 10 and the model has 10 ids"), "{text}");
        assert!(spliced.labels(&[5, -1, 6, 1]).is_err());
    }

    #[test]
    fn faults_name_both_numbers() {
        let text = splice(&[-200], 2, 3, 10).unwrap_err().to_string();
        assert!(text.contains("1 placeholders") && text.contains("2 tiles"), "{text}");
        let text = splice(&[3, 10], 0, 0, 10).unwrap_err().to_string();
        assert!(text.contains("input_ids[1] is 10"), "{text}");
        assert!(splice(&[-100], 0, 0, 10).is_err());
    }

    #[test]
    fn text_only() {
        assert_eq!(splice(&[1, 2], 0, 0, 10).unwrap().labels(&[1, 2]).unwrap(), [1, 2]);
        assert!(splice(&[], 0, 0, 10).unwrap().is_empty());
    }
}
