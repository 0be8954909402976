//! A record as its author wrote it: turns, and the names of pictures and videos.

use crate::report::{Fault, Reason};
use omchat_model::chat::{marks, taken};
use serde_json::{Map, Value};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sets the tone.
    System,
    /// Asks.
    User,
    /// Answers.
    Assistant,
    /// Nobody: a text without turns.
    Text,
}

/// What somebody says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who.
    pub role: Role,
    /// What, with `<image>` and `<video>` marks.
    pub text: String,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The turns in order.
    pub turns: Vec<Turn>,
    /// Pictures, by path.
    pub images: Vec<String>,
    /// Videos, by path.
    pub videos: Vec<String>,
}

/// A picture or video of a record, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// A picture.
    Image(usize),
    /// A video.
    Video(usize),
}

impl Record {
    /// A plain text.
    ///
    /// Errors: `Unreadable` if it is no UTF-8; `NoAnswer` if it is blank.
    pub fn text(bytes: Vec<u8>) -> Result<Record, Fault> {
        let text = String::from_utf8(bytes).map_err(|why| Fault::new(Reason::Unreadable, why.to_string()))?;
        if text.trim().is_empty() {
            return Err(Fault::new(Reason::NoAnswer, "the text is blank"));
        }
        Ok(Record { turns: vec![Turn { role: Role::Text, text }], ..Record::default() })
    }

    /// A JSON object of any of the layouts: `conversations`, `messages` or `text`, with `image`, `images`, `video`,
    /// `videos`.
    pub fn json(bytes: &[u8]) -> Result<Record, Fault> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|why| Fault::new(Reason::Unreadable, why.to_string()))?;
        let Value::Object(map) = value else { return Err(fields("the record is no JSON object")) };
        let turns = match (list(&map, "conversations")?, list(&map, "messages")?, map.get("text")) {
            (Some(said), None, None) => said.iter().map(|turn| spoken(turn, "from", "value")).collect(),
            (None, Some(said), None) => said.iter().map(|turn| spoken(turn, "role", "content")).collect(),
            (None, None, Some(Value::String(text))) => Ok(vec![Turn { role: Role::Text, text: text.clone() }]),
            _ => Err(fields("the record has not one of `conversations`, `messages` and `text`")),
        }?;
        let both = |one: &str, many: &str| -> Result<Vec<String>, Fault> {
            let mut all = names(&map, one)?;
            all.extend(names(&map, many)?);
            Ok(all)
        };
        Ok(Record { turns, images: both("image", "images")?, videos: both("video", "videos")? })
    }

    /// What each turn shows: each mark what [`taken`] says. Without marks all stand in the first turn.
    ///
    /// Answers hold marks only where `answers` says so; elsewhere they are words.
    ///
    /// Errors: `Marks` if they are not as many as the pictures and videos.
    pub fn sights(&self, answers: bool) -> Result<Vec<Vec<Sight>>, Fault> {
        let looks = |turn: &&Turn| answers || matches!(turn.role, Role::User | Role::Text);
        let (images, videos) = (self.images.len(), self.videos.len());
        let marks: Vec<Vec<bool>> =
            self.turns.iter().map(|turn| if looks(&turn) { marks(&turn.text) } else { Vec::new() }).collect();
        let (marked, held) = (marks.concat(), images + videos);
        if marked.is_empty() && held > 0 {
            let mut out = vec![Vec::new(); self.turns.len()];
            let first = self.turns.iter().position(|turn| looks(&turn)).and_then(|first| out.get_mut(first));
            let none = || Fault::new(Reason::Marks, format!("{held} pictures or videos and no turn to show them in"));
            first.ok_or_else(none)?.extend((0..images).map(Sight::Image).chain((0..videos).map(Sight::Video)));
            return Ok(out);
        }
        let taken = taken(&marked, images, videos).ok_or_else(|| {
            Fault::new(Reason::Marks, format!("{} marks, {images} pictures and {videos} videos", marked.len()))
        })?;
        let mut sights =
            taken.into_iter().map(|(picture, at)| if picture { Sight::Image(at) } else { Sight::Video(at) });
        Ok(marks.iter().map(|turn| sights.by_ref().take(turn.len()).collect()).collect())
    }
}

fn fields(why: impl Into<String>) -> Fault {
    Fault::new(Reason::Fields, why)
}

fn list<'a>(map: &'a Map<String, Value>, name: &str) -> Result<Option<&'a Vec<Value>>, Fault> {
    match map.get(name) {
        None => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(_) => Err(fields(format!("`{name}` is no list"))),
    }
}

/// One path, or a list of them; a path may stand in an object `{path}`.
fn names(map: &Map<String, Value>, name: &str) -> Result<Vec<String>, Fault> {
    let one = |value: &Value| match value.get("path").unwrap_or(value) {
        Value::String(path) if !path.is_empty() => Ok(path.clone()),
        other => Err(fields(format!("`{name}` holds {other}, which is no path"))),
    };
    match map.get(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(all)) => all.iter().map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}

fn spoken(turn: &Value, who: &str, what: &str) -> Result<Turn, Fault> {
    let get = |name: &str| turn.get(name).and_then(Value::as_str);
    let text = get(what).ok_or_else(|| fields(format!("a turn has no text `{what}`")))?.to_owned();
    let role = match get(who).ok_or_else(|| fields(format!("a turn has no `{who}`")))? {
        "system" => Role::System,
        "human" | "user" => Role::User,
        "gpt" | "assistant" => Role::Assistant,
        other => return Err(Fault::new(Reason::Role, format!("a turn is of `{other}`"))),
    };
    Ok(Turn { role, text })
}
