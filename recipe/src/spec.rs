//! What a recipe says of a data set.

use crate::error::{Error, Result};
use crate::scenes;
use omchat_model::format::Format;
use omchat_model::tiler::TileMode;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One data set: where it is, how it is written, what of it is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// What the recipe calls it.
    #[serde(default)]
    pub name: String,
    /// A file, or a folder whose files are read in the order of their names; nothing for scenes.
    #[serde(default)]
    pub path: PathBuf,
    /// How it is written.
    pub layout: Layout,
    /// Which scenes are drawn, where the layout is `scenes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenes: Option<scenes::Options>,
    /// The folder that pictures and videos are named from; the annotation's own folder if absent.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// Which ids are trained.
    pub labels: Labelling,
    /// Where a text file is parted into documents.
    #[serde(default)]
    pub split: Split,
    /// Frames taken of a video.
    #[serde(default = "frames")]
    pub frames: usize,
    /// How a picture becomes tiles.
    #[serde(default)]
    pub tiling: Tiling,
    /// The most tiles of one picture, the overview included; the model's own canvases if absent.
    #[serde(default)]
    pub max_tiles: Option<usize>,
    /// The layout of pictures among words, by its name; the model's if absent.
    #[serde(default)]
    pub format: Option<String>,
    /// What the system turn says where a record has none; the released words if absent.
    #[serde(default)]
    pub system: Option<String>,
}

fn frames() -> usize {
    8
}

/// How a data set is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// A JSON array, or a JSON object a line: `{image, video, conversations: [{from, value}]}`.
    Llava,
    /// A JSON object a line: `{messages: [{role, content}], images, videos}`.
    MsSwift,
    /// InternVL's `meta.json`: a name for each `{root, annotation, repeat_time}`.
    Internvl,
    /// Plain text.
    Text,
    /// No files: rendered scenes with questions and answers.
    Scenes,
}

/// Which ids are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Labelling {
    /// As OmChat trains a conversation: answers, and the marks of every turn.
    #[serde(rename = "instruct")]
    Instruct,
    /// Answers and the mark that ends them, nothing else: the usual practice elsewhere.
    #[serde(rename = "answers")]
    AnswersOnly,
    /// Every id of a text.
    #[serde(rename = "pretrain")]
    Pretrain,
    /// A picture and its caption; the caption and the line end after it are trained.
    #[serde(rename = "align")]
    Align,
}

/// Where a text file is parted into documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Nowhere: a file is a document.
    #[default]
    File,
    /// At lines that hold nothing but white space.
    BlankLines,
    /// At each `<|endoftext|>`.
    Endoftext,
}

/// How a picture becomes tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tiling {
    /// An overview, and the tiles of the best canvas.
    #[default]
    Anyres,
    /// One tile, padded to a square.
    Pad,
    /// One tile, squashed.
    Single,
}

impl Tiling {
    /// The tiler's word for it.
    pub fn mode(self) -> TileMode {
        match self {
            Tiling::Anyres => TileMode::AnyRes,
            Tiling::Pad => TileMode::Pad,
            Tiling::Single => TileMode::Single,
        }
    }
}

/// What tells a file or folder from others wherever its disk is mounted and however its path was typed: its last name.
pub fn last_name(path: &str) -> String {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.into());
    whole.file_name().map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Leaves of each path in a data set, as JSON, its last name.
pub fn unplace(set: &mut serde_json::Value) {
    for place in ["/path", "/images", "/scenes/faces"] {
        if let Some(serde_json::Value::String(path)) = set.pointer_mut(place)
            && !path.is_empty()
        {
            *path = last_name(path);
        }
    }
}

impl Dataset {
    /// A data set with every option as it is where a recipe names none.
    pub fn new(name: &str, path: impl Into<PathBuf>, layout: Layout, labels: Labelling) -> Dataset {
        Dataset {
            name: name.to_owned(),
            path: path.into(),
            layout,
            scenes: None,
            images: None,
            labels,
            split: Split::File,
            frames: frames(),
            tiling: Tiling::Anyres,
            max_tiles: None,
            format: None,
            system: None,
        }
    }

    /// Makes relative paths start at a folder.
    pub fn place(&mut self, folder: &Path) {
        let faces = self.scenes.as_mut().and_then(|s| s.faces.as_mut());
        for path in [Some(&mut self.path), self.images.as_mut(), faces].into_iter().flatten() {
            // No path stays none: scenes have no files.
            if path.is_relative() && !path.as_os_str().is_empty() {
                *path = folder.join(&*path);
            }
        }
    }

    /// Says whether the options can be used.
    ///
    /// Errors: `Input` naming the option; `Model` for a format that is not known.
    pub fn check(&self) -> Result<()> {
        let of = |what: &str| format!("data set `{}`: {what}", self.name);
        if self.name.is_empty() {
            return Err(Error::input("a data set has no name", "give it one"));
        }
        if self.frames == 0 {
            return Err(Error::input(of("frames is 0"), "take one frame of a video at least"));
        }
        if self.max_tiles == Some(0) {
            return Err(Error::input(of("max_tiles is 0"), "allow one tile at least"));
        }
        match (&self.scenes, self.layout == Layout::Scenes) {
            (Some(scenes), true) => scenes.check()?,
            (None, true) => {
                return Err(Error::input(
                    of("the layout is scenes and none are described"),
                    "write scenes = { task = \"needles\" }",
                ));
            }
            (Some(_), false) => {
                return Err(Error::input(of("it describes scenes in another layout"), "write layout = \"scenes\""));
            }
            (None, false) if self.path.as_os_str().is_empty() => {
                return Err(Error::input(of("it has no path"), "name a file or a folder"));
            }
            (None, false) => {}
        }
        if self.layout == Layout::Text && self.labels != Labelling::Pretrain {
            return Err(Error::input(of("plain text has no answers"), "write labels = \"pretrain\""));
        }
        if let Some(name) = &self.format {
            Format::named(name)?;
        }
        Ok(())
    }
}
