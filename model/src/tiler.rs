//! Cuts pictures into the square tiles that the tower sees.
//!
//! Follows the released command line and training code, not the released image processor, which differs where two
//! canvases fit alike and where an odd number of pixels is left over.
//! Source: OmChat `mm_utils` (candidates, fit, black canvas, squashed overview first, row-major tiles).

use crate::bicubic::resize;
use crate::config::{OmChatConfig, VisionKind};
use crate::error::{Error, Result};
use crate::picture::Picture;
use std::ops::Range;
use std::path::Path;

/// How one picture becomes tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TileMode {
    /// The picture squashed to one tile, then the tiles of the best canvas.
    #[default]
    AnyRes,
    /// Padded to a square with the mean colour: one tile.
    Pad,
    /// Squashed to one tile. Video frames use this.
    Single,
}

/// The rule that turns pictures into tiles and tiles into numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Tiler {
    tile: usize,
    grid: Vec<(u32, u32)>,
    mean: [f64; 3],
    std: [f64; 3],
}

/// One picture's tiles, still 8-bit: four times smaller than the numbers made of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiles {
    /// Side of a tile, pixels.
    pub size: usize,
    /// Columns and rows of the canvas; (1, 1) where the only tile is the whole picture.
    pub grid: (usize, usize),
    /// Samples, [count, size, size, 3].
    pub rgb: Vec<u8>,
}

impl Tiles {
    /// How many tiles there are, the overview included.
    pub fn count(&self) -> usize {
        self.rgb.len() / (self.size * self.size * 3)
    }
}

/// The longest side that is padded to a square, JPEG's longest. A tall picture costs as much work as the square, which
/// a file of a few hundred bytes could make endless.
const MAX_SIDE: usize = 65_535;
/// Rows of the square that are held at once.
const BAND: usize = 64;

const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

impl Tiler {
    /// The rule of a model: its tile, its canvases, and ImageNet's mean and deviation (0.5 for SigLIP).
    ///
    /// Errors: `Config` if the model has no tower.
    pub fn new(config: &OmChatConfig) -> Result<Self> {
        let vision = config.vision.as_ref();
        let vision = vision
            .ok_or_else(|| Error::config("vision_config", "absent", "a model without a tower takes no pictures"))?;
        let (mean, std) = match vision.kind {
            VisionKind::InternVit => (IMAGENET_MEAN, IMAGENET_STD),
            VisionKind::Siglip => ([0.5; 3], [0.5; 3]),
        };
        Ok(Self { tile: vision.image_size, grid: config.grid.clone(), mean, std })
    }

    /// The rule of a model, with the mean and deviation of a folder's `preprocessor_config.json` if it has one.
    ///
    /// Errors: as [`Tiler::new`]; `Config` if that file's size is not the tower's or its numbers are unusable.
    pub fn from_dir(dir: &Path, config: &OmChatConfig) -> Result<Self> {
        let mut tiler = Self::new(config)?;
        let path = dir.join("preprocessor_config.json");
        if !path.exists() {
            return Ok(tiler);
        }
        let mend = "write one JSON object, or remove the file";
        let text = std::fs::read_to_string(&path).map_err(|cause| Error::file(&path, cause, mend))?;
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|cause| Error::file(&path, cause, mend))?;
        tiler.read_processor(&json)?;
        Ok(tiler)
    }

    fn read_processor(&mut self, json: &serde_json::Value) -> Result<()> {
        let at = |name: &str| format!("preprocessor_config.{name}");
        if let Some(mean) = json.get("image_mean") {
            self.mean = three(mean).ok_or_else(|| Error::config(at("image_mean"), mean, "three numbers"))?;
        }
        if let Some(std) = json.get("image_std") {
            let usable = three(std).filter(|std| std.iter().all(|deviation| *deviation > 0.0));
            self.std = usable.ok_or_else(|| Error::config(at("image_std"), std, "three positive numbers"))?;
        }
        let size = json.get("size");
        let sides = ["height", "width", "shortest_edge"].map(|name| size.and_then(|size| size.get(name)));
        for side in sides.into_iter().flatten().chain(size.filter(|size| size.is_number())) {
            if side.as_u64() != Some(self.tile as u64) {
                return Err(Error::config(at("size"), side, format!("the tower's image_size {}", self.tile)));
            }
        }
        Ok(())
    }

    /// The same rule with only those canvases that, the overview included, have no more than `tiles` tiles. Where none
    /// is so small, a canvas is one tile.
    pub fn at_most(&self, tiles: usize) -> Self {
        let count = |w: u32, h: u32| (w as usize / self.tile) * (h as usize / self.tile) + 1;
        let grid = self.grid.iter().copied().filter(|(w, h)| count(*w, *h) <= tiles).collect();
        Self { grid, ..self.clone() }
    }

    /// Side of a tile, pixels.
    pub fn tile(&self) -> usize {
        self.tile
    }

    /// Columns and rows of the canvas that a picture of this size is fitted on.
    ///
    /// Units: pixels in, tiles out; the overview is one tile more.
    pub fn grid(&self, width: usize, height: usize) -> (usize, usize) {
        let (w, h) = pick(width, height, &self.grid).unwrap_or((self.tile, self.tile));
        (w / self.tile, h / self.tile)
    }

    /// How many tiles a picture of this size becomes.
    pub fn count(&self, width: usize, height: usize, mode: TileMode) -> usize {
        match mode {
            TileMode::AnyRes => {
                let (columns, rows) = self.grid(width, height);
                1 + columns * rows
            }
            TileMode::Pad | TileMode::Single => 1,
        }
    }

    /// A picture's tiles: the overview first, then the canvas row by row.
    ///
    /// Errors: `Image` if the picture has no pixel, or is to be padded and has a side of more than 65535.
    pub fn cut(&self, picture: &Picture, mode: TileMode) -> Result<Tiles> {
        let Picture { width, height, .. } = *picture;
        if width == 0 || height == 0 {
            return Err(Error::image("given", format!("it is {width}x{height}; a picture has one pixel at least")));
        }
        let size = self.tile;
        let mut grid = (1, 1);
        let mut rgb = match mode {
            TileMode::Pad => self.padded(picture)?.rgb,
            TileMode::AnyRes | TileMode::Single => resize(picture, size, size).rgb,
        };
        if mode == TileMode::AnyRes {
            grid = self.grid(width, height);
            let canvas = fit(picture, grid.0 * size, grid.1 * size);
            for (row, column) in (0..grid.1).flat_map(|row| (0..grid.0).map(move |column| (row, column))) {
                canvas.crop_into(column * size, row * size, size, &mut rgb);
            }
        }
        Ok(Tiles { size, grid, rgb })
    }

    /// The numbers of some tiles, as the tower takes them: (sample / 255 − mean) / deviation, in f32 at each step.
    ///
    /// Shapes: [range, 3, size, size], row-major. A range beyond the last tile is cut there.
    pub fn pixels(&self, tiles: &Tiles, range: Range<usize>) -> Vec<f32> {
        let plane = tiles.size * tiles.size;
        let chosen = tiles.rgb.chunks_exact((plane * 3).max(1)).skip(range.start).take(range.len());
        let mut out = Vec::with_capacity(range.len().min(tiles.count()) * plane * 3);
        for tile in chosen {
            for channel in 0..3 {
                let (mean, std) = (self.mean[channel] as f32, self.std[channel] as f32);
                let samples = tile.iter().skip(channel).step_by(3);
                out.extend(samples.map(|sample| (f32::from(*sample) / 255.0 - mean) / std));
            }
        }
        out
    }

    /// The picture padded to a square with the mean colour, at the size of a tile.
    ///
    /// A square is resized across first, row by row, so a band of rows at a time gives the same samples as the whole
    /// square, which can be a thousand times the picture.
    fn padded(&self, picture: &Picture) -> Result<Picture> {
        let Picture { width, height, .. } = *picture;
        let side = width.max(height);
        if side > MAX_SIDE {
            let cause = format!(
                "it is {width}x{height}; to be padded to a square it may have {MAX_SIDE} pixels a side; make it smaller \
                 first, or take the tiling `anyres` or `single`"
            );
            return Err(Error::image("given", cause));
        }
        let (size, color) = (self.tile, self.mean.map(|mean| (mean * 255.0) as u8));
        let (left, above) = ((side - width) / 2, (side - height) / 2);
        let blank = resize(&Picture::filled(side, 1, color), size, 1).rgb;
        let mut rgb = blank.repeat(above);
        for part in picture.rgb.chunks(BAND * width * 3) {
            let rows = part.len() / (width * 3);
            let mut band = Picture::filled(side, rows, color);
            band.paste(&Picture { width, height: rows, rgb: part.to_vec() }, left, 0);
            rgb.extend(resize(&band, size, rows).rgb);
        }
        rgb.extend(blank.repeat(side - height - above));
        Ok(resize(&Picture { width: size, height: side, rgb }, size, size))
    }
}

/// Says whether numbers given in place of pictures can be used.
///
/// Shapes: `pixels` [tiles, 3, size, size].
/// Errors: `Image` if their number is no multiple of a tile's, or one is not finite.
pub fn check_pixels(pixels: &[f32], size: usize) -> Result<usize> {
    let tile = 3 * size * size;
    if tile == 0 || !pixels.len().is_multiple_of(tile) {
        let cause = format!("{} numbers are no whole tiles of 3x{size}x{size} = {tile}", pixels.len());
        return Err(Error::image("pixel_values", cause));
    }
    match pixels.iter().position(|pixel| !pixel.is_finite()) {
        Some(index) => {
            let cause = format!("number {index} (tile {}) is {}; every pixel is finite", index / tile, pixels[index]);
            Err(Error::image("pixel_values", cause))
        }
        None => Ok(pixels.len() / tile),
    }
}

fn three(value: &serde_json::Value) -> Option<[f64; 3]> {
    let list: Vec<f64> = value.as_array()?.iter().filter_map(serde_json::Value::as_f64).collect();
    list.try_into().ok().filter(|list: &[f64; 3]| list.iter().all(|number| number.is_finite()))
}

/// The canvas that keeps the most pixels, then wastes the fewest; the earlier one on a full tie.
fn pick(width: usize, height: usize, grid: &[(u32, u32)]) -> Option<(usize, usize)> {
    let mut best: Option<(usize, usize, u64, i64)> = None;
    for (w, h) in grid.iter().map(|(w, h)| (*w as usize, *h as usize)) {
        let scale = (w as f64 / width as f64).min(h as f64 / height as f64);
        let kept = (width as f64 * scale) as u64 * (height as f64 * scale) as u64;
        let kept = kept.min((width * height) as u64);
        let waste = (w * h) as i64 - kept as i64;
        if best.is_none_or(|(_, _, most, least)| kept > most || (kept == most && waste < least)) {
            best = Some((w, h, kept, waste));
        }
    }
    best.map(|(w, h, _, _)| (w, h))
}

/// The picture scaled to touch one side of a black canvas, in its middle.
fn fit(picture: &Picture, width: usize, height: usize) -> Picture {
    let (w, h) = (picture.width as f64, picture.height as f64);
    let (across, down) = (width as f64 / w, height as f64 / h);
    let (new_width, new_height) = if across < down {
        (width, ((h * across).ceil() as usize).min(height))
    } else {
        (((w * down).ceil() as usize).min(width), height)
    };
    let mut canvas = Picture::filled(width, height, [0; 3]);
    let fitted = resize(picture, new_width, new_height);
    canvas.paste(&fitted, (width - new_width) / 2, (height - new_height) / 2);
    canvas
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::presets;

    fn released() -> Tiler {
        Tiler::new(&presets::omchat_13b()).unwrap()
    }

    /// Counts measured on the released code.
    #[test]
    fn tile_counts_are_the_released_ones() {
        let sizes = [
            (448, 448, 3),
            (640, 480, 5),
            (1280, 720, 7),
            (333, 1000, 4),
            (1920, 1080, 7),
            (3000, 2000, 7),
            (100, 100, 3),
        ];
        for (width, height, want) in sizes {
            assert_eq!(released().count(width, height, TileMode::AnyRes), want, "{width}x{height}");
        }
        assert_eq!(released().grid(1280, 720), (3, 2));
        assert_eq!(released().grid(100, 100), (1, 2), "the earlier candidate wins a full tie");
        assert_eq!(released().count(640, 480, TileMode::Pad), 1);
    }

    #[test]
    fn cut_and_count_agree() {
        let tiler = Tiler::new(&presets::mini()).unwrap();
        for (width, height) in [(1, 1), (7, 1000), (1000, 7), (5000, 1), (224, 225)] {
            let picture = Picture::filled(width, height, [9; 3]);
            for mode in [TileMode::AnyRes, TileMode::Pad, TileMode::Single] {
                let tiles = tiler.cut(&picture, mode).unwrap();
                assert_eq!(tiles.count(), tiler.count(width, height, mode));
                assert_eq!(tiler.pixels(&tiles, 0..1).len(), 3 * 224 * 224);
            }
        }
        let empty = Picture { width: 0, height: 3, rgb: vec![] };
        assert!(tiler.cut(&empty, TileMode::Single).unwrap_err().to_string().contains("0x3"));
    }

    /// The square that `padded` never builds.
    fn square(picture: &Picture) -> Picture {
        let side = picture.width.max(picture.height);
        let mut square = Picture::filled(side, side, [123, 116, 103]);
        square.paste(picture, (side - picture.width) / 2, (side - picture.height) / 2);
        square
    }

    #[test]
    fn padding_has_the_mean_colour() {
        let tiler = Tiler { tile: 5, ..Tiler::new(&presets::mini()).unwrap() };
        let padded = tiler.padded(&Picture::filled(2, 5, [1, 2, 3])).unwrap();
        assert_eq!((padded.width, padded.height), (5, 5));
        assert_eq!(padded.rgb[..6], [123, 116, 103, 1, 2, 3]);
    }

    #[test]
    fn padding_is_that_of_the_whole_square() {
        let mut state = 1u32;
        let mut noise = |count: usize| -> Vec<u8> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            };
            (0..count).map(|_| next()).collect()
        };
        let sides = [1, 2, 5, 63, 64, 65, 129, 224, 300, 701];
        for (width, height) in sides.iter().flat_map(|width| sides.map(|height| (*width, height))) {
            let picture = Picture { width, height, rgb: noise(width * height * 3) };
            for tile in [1, 7, 64, 224] {
                let tiler = Tiler { tile, ..Tiler::new(&presets::mini()).unwrap() };
                let want = resize(&square(&picture), tile, tile);
                assert!(tiler.padded(&picture).unwrap() == want, "{width}x{height} to {tile}");
            }
        }
    }

    /// The squares of these would take 12 and 120 GB.
    #[test]
    fn long_pictures_are_padded_or_refused() {
        let tiler = Tiler::new(&presets::mini()).unwrap();
        let tiles = tiler.cut(&Picture::filled(MAX_SIDE, 1, [9; 3]), TileMode::Pad).unwrap();
        assert_eq!((tiles.count(), &tiles.rgb[..3]), (1, &[123, 116, 103][..]));
        for (width, height) in [(200_000, 1), (1, 200_000), (MAX_SIDE + 1, 2)] {
            let picture = Picture::filled(width, height, [9; 3]);
            let refused = tiler.cut(&picture, TileMode::Pad).unwrap_err().to_string();
            for part in [&format!("{width}x{height}"), "65535 pixels a side", "make it smaller"] {
                assert!(refused.contains(part), "{refused}");
            }
            assert_eq!(tiler.cut(&picture, TileMode::Single).unwrap().count(), 1);
        }
    }

    #[test]
    fn numbers_that_are_no_pixels() {
        assert_eq!(check_pixels(&[0.0; 24], 2).unwrap(), 2);
        assert!(check_pixels(&[0.0; 25], 2).unwrap_err().to_string().contains("25"));
        let mut pixels = [0.0; 24];
        pixels[13] = f32::NAN;
        assert!(check_pixels(&pixels, 2).unwrap_err().to_string().contains("number 13 (tile 1) is NaN"));
    }

    #[test]
    fn a_processor_of_another_size_is_refused() {
        let mut tiler = released();
        let read = |tiler: &mut Tiler, json| tiler.read_processor(&json).map_err(|error| error.to_string());
        read(&mut tiler, serde_json::json!({"size": {"height": 448, "width": 448}, "image_mean": [0.5, 0.5, 0.5]}))
            .unwrap();
        assert_eq!((tiler.mean, tiler.std), ([0.5; 3], IMAGENET_STD));
        assert!(read(&mut tiler, serde_json::json!({"size": 384})).unwrap_err().contains("448"));
        assert!(read(&mut tiler, serde_json::json!({"image_std": [0, 1, 1]})).is_err());
    }
}
