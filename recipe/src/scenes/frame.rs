//! What a frame shows, and its name in words.

/// A colour that things have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Colour {
    /// (225, 45, 40)
    Red,
    /// (50, 185, 70)
    Green,
    /// (60, 100, 235)
    Blue,
    /// (240, 215, 50)
    Yellow,
    /// (165, 60, 200)
    Purple,
    /// (240, 240, 240)
    White,
}

impl Colour {
    /// All of them.
    pub const ALL: [Colour; 6] =
        [Colour::Red, Colour::Green, Colour::Blue, Colour::Yellow, Colour::Purple, Colour::White];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Colour::Red => "red",
            Colour::Green => "green",
            Colour::Blue => "blue",
            Colour::Yellow => "yellow",
            Colour::Purple => "purple",
            Colour::White => "white",
        }
    }

    /// Its samples.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Colour::Red => [225, 45, 40],
            Colour::Green => [50, 185, 70],
            Colour::Blue => [60, 100, 235],
            Colour::Yellow => [240, 215, 50],
            Colour::Purple => [165, 60, 200],
            Colour::White => [240, 240, 240],
        }
    }
}

/// A kind of shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A disc.
    Circle,
    /// A square on its side.
    Square,
    /// A triangle with its tip up.
    Triangle,
    /// Two bars at right angles.
    Cross,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Circle, Kind::Square, Kind::Triangle, Kind::Cross];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Circle => "circle",
            Kind::Square => "square",
            Kind::Triangle => "triangle",
            Kind::Cross => "cross",
        }
    }

    /// Its word for more than one.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Circle => "circles",
            Kind::Square => "squares",
            Kind::Triangle => "triangles",
            Kind::Cross => "crosses",
        }
    }
}

/// Where a thing's middle is, and how large it is; the side of the frame is 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// From the left.
    pub x: f32,
    /// From the top.
    pub y: f32,
    /// Half the side of the square around it.
    pub radius: f32,
}

/// Shapes of one colour and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Their kind.
    pub kind: Kind,
    /// Their colour.
    pub colour: Colour,
}

/// What one frame shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// One to three shapes that do not touch.
    Shapes(Shape, Vec<Place>),
    /// A handwritten digit in a colour.
    Digit {
        /// Its value.
        value: u8,
        /// Which of the pictures of that value.
        which: usize,
        /// What it is drawn in.
        colour: Colour,
        /// Where.
        place: Place,
    },
    /// A photographed face.
    Face {
        /// Which of the faces.
        which: usize,
    },
    /// Noise and nothing else.
    Noise,
}

/// Numbers in words.
pub const COUNTS: [&str; 5] = ["none", "one", "two", "three", "four"];

impl Shape {
    /// All of them.
    pub fn all() -> Vec<Shape> {
        Kind::ALL
            .iter()
            .flat_map(|kind| Colour::ALL.iter().map(|colour| Shape { kind: *kind, colour: *colour }))
            .collect()
    }

    /// Colour and kind, as `red circle`.
    pub fn name(self) -> String {
        format!("{} {}", self.colour.name(), self.kind.name())
    }
}

impl Frame {
    /// What it shows, as `a red circle`, `two red circles`, `a 7`, `a face`, `noise`.
    pub fn name(&self) -> String {
        match self {
            Frame::Shapes(shape, places) if places.len() > 1 => {
                let count = COUNTS.get(places.len()).copied().unwrap_or("many");
                format!("{count} {} {}", shape.colour.name(), shape.kind.plural())
            }
            Frame::Shapes(shape, _) => format!("a {}", shape.name()),
            Frame::Digit { value, .. } => format!("a {value}"),
            Frame::Face { .. } => "a face".into(),
            Frame::Noise => "noise".into(),
        }
    }

    /// The digit that it shows, if it shows one.
    pub fn digit(&self) -> Option<u8> {
        match self {
            Frame::Digit { value, .. } => Some(*value),
            _ => None,
        }
    }
}
