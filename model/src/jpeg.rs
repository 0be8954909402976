//! JPEG exactly as Pillow decodes it.
//!
//! A JPEG file fixes its pixels only up to rounding, and decoders differ by up to four levels. Pillow uses
//! libjpeg-turbo; its sibling in C gives the same samples, and runs only on files that the `image` crate has
//! already found whole, because it answers a fault by unwinding.

use image::ImageFormat;
use mozjpeg::{ColorSpace, Decompress, NO_MARKERS};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The samples of a JPEG, [height, width, 3]; nothing where libjpeg has no way to RGB (CMYK).
pub(crate) fn rgb(bytes: &[u8]) -> Option<Vec<u8>> {
    catch_unwind(AssertUnwindSafe(|| decode(bytes))).ok().flatten()
}

fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let decoder = Decompress::with_markers(NO_MARKERS).from_mem(bytes).ok()?;
    let known = [ColorSpace::JCS_YCbCr, ColorSpace::JCS_RGB, ColorSpace::JCS_GRAYSCALE];
    if !known.contains(&decoder.color_space()) {
        return None;
    }
    let mut started = decoder.rgb().ok()?;
    let pixels: Vec<[u8; 3]> = started.read_scanlines().ok()?;
    started.finish().ok()?;
    Some(pixels.into_flattened())
}

/// Whether a file is a JPEG that ends before its end marker; decoders fill the rest with grey and say nothing.
pub(crate) fn is_cut(bytes: &[u8], format: Option<ImageFormat>) -> bool {
    // Inside a scan 0xff is always followed by a stuffed zero, so an end marker after the last scan's start is real.
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    format == Some(ImageFormat::Jpeg) && last(0xd9) < last(0xda)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::picture::Picture;
    use image::{DynamicImage, ImageFormat, RgbImage};
    use std::io::Cursor;

    fn made() -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let image = RgbImage::from_fn(40, 24, |x, y| image::Rgb([(x * 6) as u8, (y * 10) as u8, (x * y) as u8]));
        DynamicImage::from(image).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn a_whole_file_is_decoded() {
        let picture = Picture::decode("made", &made()).unwrap();
        assert_eq!((picture.width, picture.height, picture.rgb.len()), (40, 24, 40 * 24 * 3));
        let (sample, want) = (i16::from(picture.rgb[(12 * 40 + 20) * 3]), 120);
        assert!((sample - want).abs() < 12, "{sample}");
    }

    #[test]
    fn cut_and_broken_files_are_refused() {
        let whole = made();
        for length in [2, 10, whole.len() / 2, whole.len() - 2] {
            assert!(Picture::decode("cut", &whole[..length]).is_err(), "{length}");
        }
        for seed in 0..200 {
            let mut broken = whole.clone();
            let place = seed * 7919 % broken.len();
            broken[place] ^= 0x5a;
            let _ = Picture::decode("broken", &broken);
        }
        assert!(super::rgb(b"\xff\xd8nonsense").is_none());
    }
}
