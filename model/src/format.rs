//! How pictures stand among words: the released layouts, and the formats F0 to F4.
//!
//! OmChat's authors compared five formats and published of them: F0 concatenates the image tokens; F3 and F4 have
//! the words `image {i}` and the tokens `<im_start>`, `<im_end>`; F4 is F3 trained on more video; frames of a video
//! are called `frame {i}`. Punctuation, line ends, and all of F1 and F2 are our spelling.

use crate::config::{VisionConfig, VisionKind};
use crate::error::{Error, Result};

/// A layout, as templates.
///
/// In a template `{i}` is the picture's number in the conversation, or the frame's in its video, from 1; `{img}` is
/// all tiles of the picture; `<im_start>` and `<im_end>` are the tokens of that name where the tokenizer has them,
/// and these words where it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// What the format is called.
    pub name: &'static str,
    /// A picture before the words.
    pub before: &'static str,
    /// A picture in the place of an `<image>`.
    pub inside: &'static str,
    /// A frame of a video.
    pub frame: &'static str,
    /// What stands between the tiles of one picture.
    pub between: &'static str,
    /// Whether a lone picture goes before the words even where an `<image>` marks another place.
    pub lone_first: bool,
}

/// OmChat-2.0's layout.
pub const OMCHAT_2_0: Format = Format {
    name: "omchat-2.0",
    before: "{img}\n",
    inside: "{img}",
    frame: "{img}\n",
    between: "\npatch:",
    lone_first: true,
};

/// The 2.1 layout: a line of its own for each picture among the words.
pub const OMCHAT_2_1: Format = Format { name: "omchat-2.1", inside: "\n{img}\n", ..OMCHAT_2_0 };

/// Nothing between image tokens, not even between tiles.
pub const F0: Format =
    Format { name: "F0", before: "{img}", inside: "{img}", frame: "{img}", between: "", lone_first: false };

/// A line end after each tile.
pub const F1: Format =
    Format { name: "F1", before: "{img}\n", inside: "{img}\n", frame: "{img}\n", between: "\n", ..F0 };

/// A start and an end token around each picture.
pub const F2: Format = Format {
    name: "F2",
    before: "<im_start>{img}<im_end>\n",
    inside: "<im_start>{img}<im_end>\n",
    frame: "<im_start>{img}<im_end>\n",
    between: "\npatch:",
    lone_first: false,
};

/// A number, and start and end tokens.
pub const F3: Format = Format {
    name: "F3",
    before: "image {i}: <im_start>{img}<im_end>\n",
    inside: "image {i}: <im_start>{img}<im_end>\n",
    frame: "frame {i}: <im_start>{img}<im_end>\n",
    between: "\npatch:",
    lone_first: false,
};

/// The layout of F3; what sets F4 apart is what the model was trained on.
pub const F4: Format = Format { name: "F4", ..F3 };

/// Every format.
pub const FORMATS: &[Format] = &[OMCHAT_2_0, OMCHAT_2_1, F0, F1, F2, F3, F4];

impl Format {
    /// A format by its name; capitals do not matter.
    ///
    /// Errors: `Input` listing the names.
    pub fn named(name: &str) -> Result<Self> {
        let found = FORMATS.iter().find(|format| format.name.eq_ignore_ascii_case(name)).copied();
        let names: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
        found.ok_or_else(|| {
            Error::input(format!("no format is called `{name}`"), format!("name one of {}", names.join(", ")))
        })
    }

    /// The released layout of a tower's family.
    pub fn released(vision: Option<&VisionConfig>) -> Self {
        match vision.map(|vision| vision.kind) {
            Some(VisionKind::Siglip) => OMCHAT_2_1,
            _ => OMCHAT_2_0,
        }
    }
}
