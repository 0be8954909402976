//! Questions about a scene, and their answers.

use super::frame::{COUNTS, Frame};
use super::random::Random;
use super::{Options, Task, Turn};
use std::ops::Range;

/// What can be asked. A question has one right answer, or it is not asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// What a picture shows.
    What,
    /// The colour of what a picture shows.
    Colour,
    /// How many shapes a picture shows.
    Count,
    /// Whether the only thing of a picture is on the left or on the right.
    Side,
    /// Whether it is at the top or at the bottom.
    Height,
    /// Every frame of a video, in order.
    Describe,
    /// The first frame.
    First,
    /// The last frame.
    Last,
    /// The frame after the one of this index.
    After(usize),
    /// The frame before the one of this index.
    Before(usize),
    /// The only digit of a video.
    Digit,
    /// The digit that comes first, of two or more.
    FirstDigit,
    /// The digit that comes last, of two or more.
    LastDigit,
    /// The next digit after the one of this value.
    DigitAfter(u8),
    /// The digit before the one of this value.
    DigitBefore(u8),
    /// How many digits there are.
    Digits,
    /// The colour of the digit of this value.
    ColourOf(u8),
    /// Whether there is a digit of this value.
    IsThere(u8),
    /// Whether there is a face.
    IsFace,
    /// The shape that moves.
    Moves,
}

/// A thing that is nearer to the middle than this is on no side.
const MIDDLE: f32 = 0.07;

/// Some questions about a scene in a random order; about one video or picture none is asked twice.
pub fn turns(options: &Options, scene: &[Frame], random: &mut Random) -> Vec<Turn> {
    let asks = match options.task {
        Task::Stories => of_story(options.turns, scene, random),
        Task::Needles => of_needles(scene, random),
        Task::Captions => {
            let all = [Ask::What, Ask::Colour, Ask::Count, Ask::Side, Ask::Height];
            return (0..scene.len()).flat_map(|i| about(options, scene, i..i + 1, all.to_vec(), random)).collect();
        }
    };
    about(options, scene, 0..scene.len(), asks, random)
}

/// Questions about some frames, which are shown with the first of them.
fn about(
    options: &Options,
    scene: &[Frame],
    frames: Range<usize>,
    mut asks: Vec<Ask>,
    random: &mut Random,
) -> Vec<Turn> {
    asks.retain(|a| options.asks.is_empty() || options.asks.iter().any(|name| name == a.name()));
    random.shuffle(&mut asks);
    let part = scene.get(frames.clone()).unwrap_or_default();
    let known = asks.into_iter().filter_map(|ask| ask.answer(part).map(|answer| (ask, answer)));
    let turn = |(i, (ask, answer)): (usize, (Ask, String))| {
        let shows = if i == 0 { frames.clone() } else { frames.end..frames.end };
        Turn { shows, question: ask.question(part), ask, answer }
    };
    known.take(options.turns).enumerate().map(turn).collect()
}

fn of_story(turns: usize, scene: &[Frame], random: &mut Random) -> Vec<Ask> {
    let mut asks = vec![Ask::Describe, Ask::First, Ask::Last, Ask::Digits];
    for _ in 0..2.max(turns / 3) {
        let (after, before) = (Ask::After(random.below(scene.len())), Ask::Before(random.below(scene.len())));
        asks.extend([after, before].into_iter().filter(|a| !asks.contains(a)).collect::<Vec<_>>());
    }
    asks.extend(of_digits(scene, random));
    asks
}

fn of_needles(scene: &[Frame], random: &mut Random) -> Vec<Ask> {
    let mut asks = vec![Ask::Digits, Ask::Moves, Ask::IsFace];
    asks.extend(of_digits(scene, random));
    asks.extend([Ask::Digit, Ask::FirstDigit, Ask::LastDigit]);
    asks
}

/// Questions that name a digit: one that is there, and for [`Ask::IsThere`] as often one that is not.
fn of_digits(scene: &[Frame], random: &mut Random) -> Vec<Ask> {
    let shown: Vec<u8> = scene.iter().filter_map(Frame::digit).collect();
    let absent: Vec<u8> = (0..10).filter(|d| !shown.contains(d)).collect();
    let of = if random.chance(0.5) { &shown } else { &absent };
    let mut asks: Vec<Ask> = random.pick(of).map(|d| Ask::IsThere(*d)).into_iter().collect();
    for ask in [Ask::DigitAfter, Ask::DigitBefore, Ask::ColourOf] {
        asks.extend(random.pick(&shown).map(|d| ask(*d)));
    }
    asks
}

impl Ask {
    /// Every kind's name.
    pub const NAMES: [&str; 20] = [
        "what",
        "colour",
        "count",
        "side",
        "height",
        "describe",
        "first",
        "last",
        "after",
        "before",
        "digit",
        "first-digit",
        "last-digit",
        "digit-after",
        "digit-before",
        "digits",
        "colour-of",
        "is-there",
        "is-face",
        "moves",
    ];

    /// What kind of question it is, as a word for options and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Ask::What => "what",
            Ask::Colour => "colour",
            Ask::Count => "count",
            Ask::Side => "side",
            Ask::Height => "height",
            Ask::Describe => "describe",
            Ask::First => "first",
            Ask::Last => "last",
            Ask::After(_) => "after",
            Ask::Before(_) => "before",
            Ask::Digit => "digit",
            Ask::FirstDigit => "first-digit",
            Ask::LastDigit => "last-digit",
            Ask::DigitAfter(_) => "digit-after",
            Ask::DigitBefore(_) => "digit-before",
            Ask::Digits => "digits",
            Ask::ColourOf(_) => "colour-of",
            Ask::IsThere(_) => "is-there",
            Ask::IsFace => "is-face",
            Ask::Moves => "moves",
        }
    }

    /// The question in words.
    pub fn question(&self, scene: &[Frame]) -> String {
        // `a red circle`, `noise`: the red circle, the noise.
        let the = |i: &usize| {
            let name = scene.get(*i).map_or(String::new(), Frame::name);
            format!("the {}", name.strip_prefix("a ").unwrap_or(&name))
        };
        match self {
            Ask::What => "What is in this picture?".into(),
            Ask::Colour => "What colour is it?".into(),
            Ask::Count => "How many shapes are there?".into(),
            Ask::Side => "Is it on the left or on the right?".into(),
            Ask::Height => "Is it at the top or at the bottom?".into(),
            Ask::Describe => "What happens in this video?".into(),
            Ask::First => "What comes first?".into(),
            Ask::Last => "What comes last?".into(),
            Ask::After(i) => format!("What comes after {}?", the(i)),
            Ask::Before(i) => format!("What comes before {}?", the(i)),
            Ask::Digit => "Which digit is shown?".into(),
            Ask::FirstDigit => "Which digit comes first?".into(),
            Ask::LastDigit => "Which digit comes last?".into(),
            Ask::DigitAfter(d) => format!("Which digit comes after the {d}?"),
            Ask::DigitBefore(d) => format!("Which digit comes before the {d}?"),
            Ask::Digits => "How many digits are there?".into(),
            Ask::ColourOf(d) => format!("What colour is the {d}?"),
            Ask::IsThere(d) => format!("Is there a {d}?"),
            Ask::IsFace => "Is there a face?".into(),
            Ask::Moves => "Which shape moves?".into(),
        }
    }

    /// The one right answer.
    ///
    /// `None` where there is none, or more than one.
    pub fn answer(&self, scene: &[Frame]) -> Option<String> {
        let digits: Vec<u8> = scene.iter().filter_map(Frame::digit).collect();
        let place = |d: &u8| digits.iter().position(|other| other == d);
        let digit = |d: Option<&u8>| d.map(|d| format!("a {d}"));
        let many = digits.len() > 1;
        let yes = |is: bool| Some(if is { "yes" } else { "no" }.to_string());
        match self {
            Ask::What => scene.first().map(Frame::name),
            Ask::Colour => colour(scene.first()?),
            Ask::Count => match scene.first()? {
                Frame::Shapes(_, places) => COUNTS.get(places.len()).map(|n| n.to_string()),
                _ => None,
            },
            Ask::Side => side(scene.first()?, false),
            Ask::Height => side(scene.first()?, true),
            Ask::Describe => Some(scene.iter().map(Frame::name).collect::<Vec<_>>().join(", ")),
            Ask::First => scene.first().map(Frame::name),
            Ask::Last => scene.last().map(Frame::name),
            Ask::After(i) => scene.get(i + 1).map(Frame::name),
            Ask::Before(i) => scene.get(i.checked_sub(1)?).map(Frame::name),
            Ask::Digit if digits.len() == 1 => digit(digits.first()),
            Ask::FirstDigit if many => digit(digits.first()),
            Ask::LastDigit if many => digit(digits.last()),
            Ask::Digit | Ask::FirstDigit | Ask::LastDigit => None,
            Ask::DigitAfter(d) => digit(digits.get(place(d)? + 1)),
            Ask::DigitBefore(d) => digit(digits.get(place(d)?.checked_sub(1)?)),
            Ask::Digits => COUNTS.get(digits.len()).map(|n| n.to_string()),
            Ask::ColourOf(d) => colour(scene.iter().find(|f| f.digit() == Some(*d))?),
            Ask::IsThere(d) => yes(digits.contains(d)),
            Ask::IsFace => yes(scene.iter().any(|f| matches!(f, Frame::Face { .. }))),
            Ask::Moves => scene.iter().find(|f| matches!(f, Frame::Shapes(..))).map(Frame::name),
        }
    }
}

fn colour(frame: &Frame) -> Option<String> {
    match frame {
        Frame::Shapes(shape, _) => Some(format!("it is {}", shape.colour.name())),
        Frame::Digit { colour, .. } => Some(format!("it is {}", colour.name())),
        Frame::Face { .. } | Frame::Noise => None,
    }
}

/// The half that a lone shape is in; `None` near the middle.
fn side(frame: &Frame, down: bool) -> Option<String> {
    let Frame::Shapes(_, places) = frame else { return None };
    let [only] = &places[..] else { return None };
    let (at, names) = if down { (only.y, ["top", "bottom"]) } else { (only.x, ["left", "right"]) };
    ((at - 0.5).abs() > MIDDLE).then(|| names[usize::from(at > 0.5)].to_string())
}
