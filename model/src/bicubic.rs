//! Pillow's bicubic resize of 8-bit RGB, bit for bit.
//!
//! The released tiler resizes with Pillow, so a pixel that differs by one differs from what the model was trained
//! on. Crates that offer this filter keep their coefficients in 16 bits and are off by one here and there; Pillow
//! keeps 22 fractional bits in 32.
//! Source: Pillow 13.0 `src/libImaging/Resample.c` (two passes, antialiased support, fixed point). Before 13.0 the
//! horizontal pass always came first; where the order differs, so do some samples, by one.

use crate::picture::Picture;

/// Fractional bits of a coefficient: 32, less 8 for a sample, less 2 for overshoot and sign.
const PRECISION: u32 = 32 - 8 - 2;
/// Half-width of the cubic.
const SUPPORT: f64 = 2.0;

/// The picture at another size.
///
/// Shapes: [height, width, 3] to [to_height, to_width, 3]; sizes of 0 yield an empty picture.
pub fn resize(picture: &Picture, to_width: usize, to_height: usize) -> Picture {
    if vertical_first(picture, to_width, to_height) {
        across(&down(picture, to_height), to_width)
    } else {
        down(&across(picture, to_width), to_height)
    }
}

/// Whether the height loses more than twice the pixels that the width does.
fn vertical_first(picture: &Picture, to_width: usize, to_height: usize) -> bool {
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    let (width, height) = (lost(picture.width, to_width), lost(picture.height, to_height));
    height > 0 && height > 2 * width
}

fn across(picture: &Picture, to: usize) -> Picture {
    if to == picture.width { picture.clone() } else { horizontal(picture, to) }
}

fn down(picture: &Picture, to: usize) -> Picture {
    if to == picture.height { picture.clone() } else { vertical(picture, to) }
}

/// The samples that make one output sample, and their weights.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    (0..to).map(|out| window(from, scale, stretch, out)).collect()
}

fn window(from: usize, scale: f64, stretch: f64, out: usize) -> Window {
    let center = (out as f64 + 0.5) * scale;
    let reach = SUPPORT * stretch;
    // `as` truncates towards zero and stops at 0, as the C cast and clamp do.
    let start = (center - reach + 0.5) as usize;
    let end = ((center + reach + 0.5) as usize).min(from);
    let step = 1.0 / stretch;
    let mut weights: Vec<f64> = (start..end).map(|x| cubic((x as f64 - center + 0.5) * step)).collect();
    let total: f64 = weights.iter().sum();
    if total != 0.0 {
        weights.iter_mut().for_each(|weight| *weight /= total);
    }
    Window { start, weights: weights.iter().map(|weight| fixed(*weight)).collect() }
}

/// Keys' cubic with a = -1/2.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION);
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION - 1);

fn horizontal(picture: &Picture, to: usize) -> Picture {
    let windows = windows(picture.width, to);
    let mut rgb = Vec::with_capacity(to * picture.height * 3);
    for row in picture.rgb.chunks_exact((picture.width * 3).max(1)) {
        for window in &windows {
            let mut sums = [HALF; 3];
            for (weight, pixel) in window.weights.iter().zip(row[window.start * 3..].chunks_exact(3)) {
                for (sum, sample) in sums.iter_mut().zip(pixel) {
                    *sum += weight * i32::from(*sample);
                }
            }
            rgb.extend(sums.map(clip));
        }
    }
    Picture { width: to, height: picture.height, rgb }
}

fn vertical(picture: &Picture, to: usize) -> Picture {
    let stride = picture.width * 3;
    let mut rgb = Vec::with_capacity(stride * to);
    let mut sums = vec![HALF; stride];
    for window in windows(picture.height, to) {
        sums.fill(HALF);
        for (weight, row) in window.weights.iter().zip(picture.rgb[window.start * stride..].chunks_exact(stride.max(1)))
        {
            for (sum, sample) in sums.iter_mut().zip(row) {
                *sum += weight * i32::from(*sample);
            }
        }
        rgb.extend(sums.iter().map(|sum| clip(*sum)));
    }
    Picture { width: picture.width, height: to, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of noise that Pillow was given too.
    fn noise(width: usize, height: usize) -> Picture {
        let mut state = 12345u64;
        let mut next = || {
            state = (state * 1_103_515_245 + 12345) & 0x7fff_ffff;
            (state >> 16) as u8
        };
        Picture { width, height, rgb: (0..width * height * 3).map(|_| next()).collect() }
    }

    fn hash(bytes: &[u8]) -> u32 {
        bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
    }

    /// (width, height, to width, to height, FNV-1a of the bytes that Pillow 13.0 yields)
    const PILLOW: [(usize, usize, usize, usize, u32); 10] = [
        (7, 5, 13, 3, 0x1d825172),
        (100, 37, 31, 90, 0x79719127),
        (1, 1, 8, 8, 0xfef02505),
        (64, 64, 64, 20, 0x6fb07bcc),
        (303, 384, 112, 112, 0x48eca97f),
        (512, 10, 3, 200, 0x8375e78e),
        (33, 33, 33, 33, 0x71cb3dff),
        (640, 480, 448, 448, 0x9fc5f1fb),
        (5000, 2, 7, 7, 0xda208db2),
        (2, 900, 448, 448, 0xe65bf9f1),
    ];

    #[test]
    fn every_byte_is_pillows() {
        for (width, height, to_width, to_height, want) in PILLOW {
            let have = resize(&noise(width, height), to_width, to_height);
            assert_eq!((have.width, have.height), (to_width, to_height));
            assert_eq!(hash(&have.rgb), want, "{width}x{height} to {to_width}x{to_height}");
        }
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        let picture = noise(9, 4);
        assert_eq!(resize(&picture, 9, 4), picture);
    }
}
