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

/// Whether a file is a JPEG that ends before its end marker; decoders fill the rest with grey and say nothing. What
/// comes after that marker is no part of the picture: phones append a film there.
pub(crate) fn is_cut(bytes: &[u8], format: Option<ImageFormat>) -> bool {
    format == Some(ImageFormat::Jpeg) && after_end(bytes).is_none()
}

/// What follows the first end marker after a scan; nothing where the bytes run out before it.
fn after_end(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes;
    let mut scanned = false;
    loop {
        // A marker is 0xff, once or more, and a code. All before it is a scan's data, or filling.
        rest = rest.get(rest.iter().position(|byte| *byte == 0xff)?..)?;
        let code = rest.iter().position(|byte| *byte != 0xff)?;
        let (marker, tail) = rest.get(code..)?.split_first()?;
        rest = tail;
        match marker {
            // A scan's own 0xff, and the markers that stand alone: TEM, the restarts, the start.
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            0xd9 => return scanned.then_some(rest),
            _ => {
                scanned |= *marker == 0xda;
                let (length, _) = rest.split_first_chunk()?;
                rest = rest.get(usize::from(u16::from_be_bytes(*length))..)?;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{after_end, is_cut};
    use crate::picture::Picture;
    use image::{DynamicImage, ImageFormat, RgbImage};
    use mozjpeg::{ColorSpace, Compress};
    use std::io::Cursor;

    fn made() -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let image = RgbImage::from_fn(40, 24, |x, y| image::Rgb([(x * 6) as u8, (y * 10) as u8, (x * y) as u8]));
        DynamicImage::from(image).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        bytes.into_inner()
    }

    /// The same picture in several scans.
    fn progressive() -> Vec<u8> {
        let mut coder = Compress::new(ColorSpace::JCS_RGB);
        coder.set_size(40, 24);
        coder.set_progressive_mode();
        let mut started = coder.start_compress(Vec::new()).unwrap();
        started.write_scanlines(&Picture::decode("made", &made()).unwrap().rgb).unwrap();
        started.finish().unwrap()
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

    #[test]
    fn what_follows_the_end_marker_is_no_part_of_the_picture() {
        for whole in [made(), progressive()] {
            let want = Picture::decode("whole", &whole).unwrap();
            let trailers: [&[u8]; 6] = [
                b"\xff\xd8\xff\xda\0\x0c\x03\x01\0\x02\x11",
                b"\xff\xda",
                b"\xff",
                b"\0\0\0\x18ftypmp42\xff\xda\xff\xd9\xff\xda",
                &whole,
                &whole[..whole.len() / 2],
            ];
            for trailer in trailers {
                assert_eq!(Picture::decode("longer", &[&whole, trailer].concat()).unwrap(), want, "{trailer:x?}");
            }
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let progressive = progressive();
        assert!(progressive.windows(2).filter(|pair| *pair == [0xff, 0xda]).count() > 3);
        for whole in [made(), progressive] {
            for length in 0..whole.len() {
                assert!(Picture::decode("cut", &whole[..length]).is_err(), "{length}");
                assert!(is_cut(&whole[..length], Some(ImageFormat::Jpeg)), "{length}");
            }
            let cut = whole.len() - 2;
            let refused = Picture::decode("cut", &whole[..cut]).unwrap_err().to_string();
            assert!(refused.contains(&format!("the file breaks off after {cut} bytes")), "{refused}");
        }
    }

    /// A thumbnail in a segment has an end marker too, as has a comment that tells of one.
    #[test]
    fn only_the_end_marker_after_a_scan_counts() {
        let mut framed = b"\xff\xd8\xff\xe1\0\x08\xff\xda\0\x02\xff\xd9".to_vec();
        assert!(after_end(&framed).is_none());
        framed.extend(b"\xff\xff\xda\0\x03\x01 data \xff\0\xd9 \xff\xd0 \xff\xd7 \xff\xff\0 ");
        assert!(after_end(&framed).is_none());
        framed.extend(b"\xff\xc4\0\x04\xff\xd9\xff\xda\0\x02 more \xff");
        assert!(after_end(&framed).is_none());
        framed.extend(b"\xd9film\xff\xda");
        assert_eq!(after_end(&framed).unwrap(), b"film\xff\xda");
        assert!(!is_cut(&framed[..4], Some(ImageFormat::Png)));
    }
}
