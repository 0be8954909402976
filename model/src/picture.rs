//! A picture as 8-bit RGB, converted the way Pillow's `convert("RGB")` does.

use crate::error::{Error, Result};
use crate::jpeg;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use std::io::Cursor;
use std::path::Path;

/// Pixels beyond which a picture is refused: twice Pillow's own warning limit, where it refuses too.
pub const MAX_PIXELS: u64 = 178_956_970;

/// An 8-bit RGB picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Samples, [height, width, 3].
    pub rgb: Vec<u8>,
}

impl Picture {
    /// A picture of the given samples.
    ///
    /// Shapes: `rgb` [height, width, 3].
    /// Errors: `Image` if a side is 0, there are more than [`MAX_PIXELS`], or the samples are not as many.
    pub fn new(name: &str, width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        check_size(name, width as u64, height as u64)?;
        if rgb.len() != width * height * 3 {
            let cause = format!("{} samples for {width}x{height}, want {}", rgb.len(), width * height * 3);
            return Err(Error::image(name, cause));
        }
        Ok(Self { width, height, rgb })
    }

    /// The picture in a file: PNG, JPEG, GIF (its first frame), WebP, BMP. Alpha is dropped; orientation tags are
    /// not followed; both as Pillow does.
    ///
    /// Errors: `Image` naming the file if it is missing, broken, empty or too large.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|cause| Error::image(&name, cause))?;
        Self::decode(&name, &bytes)
    }

    /// The picture in a file's bytes.
    pub fn decode(name: &str, bytes: &[u8]) -> Result<Self> {
        let broken = |cause: &dyn std::fmt::Display| {
            Error::image(name, format!("cannot decode: {cause}; give a whole PNG, JPEG, GIF, WebP or BMP file"))
        };
        let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|cause| broken(&cause))?;
        // Our own limit is stated in pixels; the library's, in bytes, would refuse some pictures below it.
        reader.no_limits();
        let format = reader.format();
        let decoder = reader.into_decoder().map_err(|cause| broken(&cause))?;
        let (width, height) = decoder.dimensions();
        check_size(name, u64::from(width), u64::from(height))?;
        let image = DynamicImage::from_decoder(decoder).map_err(|cause| broken(&cause))?;
        if jpeg::is_cut(bytes, format) {
            return Err(broken(&format!("the file breaks off after {} bytes", bytes.len())));
        }
        let exact = if format == Some(ImageFormat::Jpeg) { jpeg::rgb(bytes) } else { None };
        Self::new(name, width as usize, height as usize, exact.unwrap_or_else(|| to_rgb(image)))
    }

    /// A picture of one colour.
    pub(crate) fn filled(width: usize, height: usize, color: [u8; 3]) -> Self {
        Self { width, height, rgb: color.repeat(width * height) }
    }

    /// Copies a smaller picture over this one, its corner at (x, y).
    pub(crate) fn paste(&mut self, other: &Picture, x: usize, y: usize) {
        let (stride, from) = (self.width * 3, other.width * 3);
        for (row, line) in other.rgb.chunks_exact(from.max(1)).enumerate() {
            let start = (y + row) * stride + x * 3;
            self.rgb[start..start + from].copy_from_slice(line);
        }
    }

    /// Appends the samples of a square part to `out`, row by row.
    pub(crate) fn crop_into(&self, x: usize, y: usize, size: usize, out: &mut Vec<u8>) {
        for row in y..y + size {
            let start = (row * self.width + x) * 3;
            out.extend_from_slice(&self.rgb[start..start + size * 3]);
        }
    }
}

/// Refuses sizes that no picture has, before anything is allocated.
pub(crate) fn check_size(name: &str, width: u64, height: u64) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::image(name, format!("it is {width}x{height}; a picture has one pixel at least")));
    }
    match width.checked_mul(height) {
        Some(pixels) if pixels <= MAX_PIXELS => Ok(()),
        _ => {
            let cause = format!("it is {width}x{height}, more than {MAX_PIXELS} pixels; make it smaller first");
            Err(Error::image(name, cause))
        }
    }
}

/// Pillow keeps the upper byte of 16-bit colour, and cuts 16-bit grey at 255.
fn to_rgb(image: DynamicImage) -> Vec<u8> {
    let upper = |sample: u16| (sample >> 8) as u8;
    match image {
        DynamicImage::ImageLuma16(grey) => grey.iter().flat_map(|sample| [(*sample).min(255) as u8; 3]).collect(),
        DynamicImage::ImageLumaA16(grey) => grey.pixels().flat_map(|pixel| [upper(pixel.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(color) => color.iter().map(|sample| upper(*sample)).collect(),
        DynamicImage::ImageRgba16(color) => {
            color.pixels().flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]].map(upper)).collect()
        }
        other => other.into_rgb8().into_raw(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use image::{ImageBuffer, Luma, LumaA, Rgb, Rgba};

    fn round_trip(image: DynamicImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        Picture::decode("test", bytes.get_ref()).unwrap().rgb
    }

    #[test]
    fn colour_kinds_become_rgb_as_in_pillow() {
        let grey = ImageBuffer::from_pixel(1, 1, Luma([1000u16]));
        assert_eq!(round_trip(DynamicImage::ImageLuma16(grey)), [255; 3]);
        let grey = ImageBuffer::from_pixel(1, 1, LumaA([7u8, 0]));
        assert_eq!(round_trip(DynamicImage::ImageLumaA8(grey)), [7; 3]);
        let color = ImageBuffer::from_pixel(1, 1, Rgb([0x12ffu16, 0xff00, 255]));
        assert_eq!(round_trip(DynamicImage::ImageRgb16(color)), [0x12, 0xff, 0]);
        let color = ImageBuffer::from_pixel(1, 1, Rgba([1u8, 2, 3, 0]));
        assert_eq!(round_trip(DynamicImage::ImageRgba8(color)), [1, 2, 3]);
    }

    #[test]
    fn bad_pictures_are_refused() {
        let refused = |result: Result<Picture>| result.unwrap_err().to_string();
        assert!(refused(Picture::new("p", 0, 4, vec![])).contains("0x4"));
        assert!(refused(Picture::new("p", 1, 1, vec![0; 4])).contains("want 3"));
        assert!(refused(Picture::new("p", 1 << 20, 1 << 20, vec![])).contains("178956970"));
        assert!(refused(Picture::decode("noise", b"not a picture")).contains("noise"));
        assert!(refused(Picture::open(Path::new("/nowhere.png"))).contains("/nowhere.png"));
        let mut cut = Cursor::new(Vec::new());
        DynamicImage::new_rgb8(64, 64).write_to(&mut cut, ImageFormat::Png).unwrap();
        let bytes = cut.get_ref();
        assert!(Picture::decode("cut", &bytes[..bytes.len() / 2]).is_err());
    }

    /// A header that promises more pixels than any machine holds is refused before anything is allocated.
    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::new_rgb8(1, 1).write_to(&mut bytes, ImageFormat::Bmp).unwrap();
        let mut bomb = bytes.into_inner();
        bomb[18..22].copy_from_slice(&30_000u32.to_le_bytes());
        bomb[22..26].copy_from_slice(&30_000u32.to_le_bytes());
        assert!(Picture::decode("bomb", &bomb).unwrap_err().to_string().contains("30000x30000"));
    }
}
