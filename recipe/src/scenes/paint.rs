//! Frames as pixels.

use super::frame::{Colour, Frame, Kind, Place};
use super::random::Random;
use super::real::{Grey, Real};
use omchat_model::picture::Picture;

/// Points along each axis that a pixel is the mean of.
const POINTS: usize = 2;

/// The pixels of a frame of `side` pixels a side: 8-bit RGB.
///
/// The ground is a dark tint with noise; what is not said by the frame (tint, noise) is drawn from `random`.
pub fn paint(frame: &Frame, real: &Real, side: usize, random: &mut Random) -> Picture {
    let tint = [(); 3].map(|()| random.between(8.0, 60.0));
    let grain = if *frame == Frame::Noise { random.between(40.0, 90.0) } else { random.between(0.0, 14.0) };
    let ink = Ink::of(frame, real);
    let mut rgb = Vec::with_capacity(side * side * 3);
    for (row, column) in (0..side * side).map(|i| (i / side, i % side)) {
        let (colour, cover) = ink.pixel(column, row, side);
        for (ground, own) in tint.iter().zip(colour) {
            let noise = random.between(-grain, grain);
            let sample = ground * (1.0 - cover) + f32::from(own) * cover + noise;
            rgb.push(sample.clamp(0.0, 255.0) as u8);
        }
    }
    Picture { width: side, height: side, rgb }
}

/// What covers the ground.
enum Ink<'a> {
    Shapes(Kind, Colour, &'a [Place]),
    Digit(&'a Grey, Colour, Place),
    Face(&'a Grey),
    Nothing,
}

impl Ink<'_> {
    fn of<'a>(frame: &'a Frame, real: &'a Real) -> Ink<'a> {
        match frame {
            Frame::Shapes(shape, places) => Ink::Shapes(shape.kind, shape.colour, places),
            Frame::Digit { value, which, colour, place } => {
                let grey = real.digits.get(usize::from(*value)).and_then(|of| of.get(*which));
                grey.map_or(Ink::Nothing, |g| Ink::Digit(g, *colour, *place))
            }
            Frame::Face { which } => real.faces.get(*which).map_or(Ink::Nothing, Ink::Face),
            Frame::Noise => Ink::Nothing,
        }
    }

    /// A pixel's colour, and the share of the ground that it covers.
    fn pixel(&self, column: usize, row: usize, side: usize) -> ([u8; 3], f32) {
        let mean = |cover: &dyn Fn(f32, f32) -> f32| {
            let step = |i: usize| (i as f32 + 0.5) / POINTS as f32;
            let at = |pixel: usize, i: usize| (pixel as f32 + step(i)) / side as f32;
            let points = (0..POINTS * POINTS).map(|i| cover(at(column, i % POINTS), at(row, i / POINTS)));
            points.sum::<f32>() / (POINTS * POINTS) as f32
        };
        match self {
            Ink::Shapes(kind, colour, places) => {
                let cover = mean(&|x, y| f32::from(u8::from(places.iter().any(|p| inside(*kind, p, x, y)))));
                (colour.rgb(), cover)
            }
            Ink::Digit(grey, colour, place) => {
                let (left, top) = (place.x - place.radius, place.y - place.radius);
                let scale = 1.0 / (2.0 * place.radius);
                (colour.rgb(), mean(&|x, y| grey.at((x - left) * scale, (y - top) * scale)).min(1.0))
            }
            Ink::Face(grey) => ([(255.0 * mean(&|x, y| grey.at(x, y))) as u8; 3], 1.0),
            Ink::Nothing => ([0; 3], 0.0),
        }
    }
}

/// Whether a shape covers a point.
fn inside(kind: Kind, place: &Place, x: f32, y: f32) -> bool {
    let (x, y) = ((x - place.x) / place.radius, (y - place.y) / place.radius);
    match kind {
        Kind::Circle => x * x + y * y <= 1.0,
        Kind::Square => x.abs() <= 0.85 && y.abs() <= 0.85,
        Kind::Triangle => y <= 0.9 && y >= 2.0 * x.abs() - 1.0,
        Kind::Cross => (x.abs() <= 0.3 && y.abs() <= 1.0) || (y.abs() <= 0.3 && x.abs() <= 1.0),
    }
}
