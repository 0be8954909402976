//! Pictures hidden among the frames of a video: the temporal visual needle.
//!
//! OmChat's authors name the task and publish neither videos, nor questions, nor how answers are weighed. This
//! construction is ours: some frames are replaced by pictures of things with names, and each question needs the order
//! of several frames or all of them. All have options, so that guessing has a known score.

use super::draw::Draw;
use super::paint::Canvas;
use super::{Expected, Prompt, Question, Sight};
use crate::error::{Error, Result};
use omchat_model::picture::Picture;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// A picture to hide, and what it shows.
#[derive(Debug, Clone)]
pub struct Needle {
    /// What it shows.
    pub name: String,
    /// The picture.
    pub picture: Arc<Picture>,
}

/// What is asked of the pictures in a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Which comes first.
    First,
    /// Which comes right after a named one.
    After,
    /// How many there are.
    Count,
    /// In which order they come.
    Order,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 4] = [Kind::First, Kind::After, Kind::Count, Kind::Order];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Kind::First => "first",
            Kind::After => "after",
            Kind::Count => "count",
            Kind::Order => "order",
        }
    }

    /// The kind of that name.
    ///
    /// Errors: `Input` listing the names.
    pub fn named(name: &str) -> Result<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = Kind::ALL.map(Kind::name).join(", ");
            Error::input(format!("no kind of question is called `{name}`"), format!("name some of {names}"))
        })
    }
}

/// What a model that sees one frame only is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Single {
    /// The first hidden picture.
    First,
    /// Any frame.
    Random,
}

/// Which pictures are hidden where, and what is asked.
#[derive(Debug, Clone)]
pub struct Temporal {
    /// Lengths of videos, in frames.
    pub lengths: Vec<usize>,
    /// Where the first picture stands, in percent of the places that leave room for all.
    pub depths: Vec<f64>,
    /// Frames from one picture to the next.
    pub gaps: Vec<usize>,
    /// How many are hidden.
    pub needles: usize,
    /// What is asked.
    pub kinds: Vec<Kind>,
    /// Each draws other pictures.
    pub seeds: Vec<u64>,
    /// Whether each question is also asked with one frame.
    pub single: Option<Single>,
}

/// The row of a depth and a gap.
pub fn row(depth: f64, gap: usize) -> String {
    format!("{depth}% gap {gap}")
}

/// The column of a length.
pub fn column(length: usize) -> String {
    format!("{length} frames")
}

/// The column of questions that show one frame.
pub const ONE: &str = "one frame";

/// How often another order is drawn before there is taken to be none.
const DRAWS: usize = 100;

impl Temporal {
    /// Checks numbers against each other.
    ///
    /// Errors: `Input` naming what cannot be asked.
    pub fn check(&self, pool: &[Needle]) -> Result<()> {
        let n = self.needles;
        if !(2..=8).contains(&n) {
            return Err(Error::input(format!("{n} hidden pictures"), "hide 2 to 8"));
        }
        if self.kinds.contains(&Kind::After) && n < 3 {
            let what = format!("`after` with {n} hidden pictures leaves no choice");
            return Err(Error::input(what, "hide 3 or more, or ask without it: --kinds first,count,order"));
        }
        if pool.len() < n {
            let what = format!("there are {} pictures to hide and {n} are wanted", pool.len());
            return Err(Error::input(what, "give more pictures, or hide fewer"));
        }
        let names = || pool.iter().map(|needle| needle.name.as_str());
        if let Some((_, twice)) = names().enumerate().find(|(at, name)| names().take(*at).any(|other| other == *name)) {
            let what = format!("two pictures to hide are called `{twice}`, so no answer could tell them apart");
            return Err(Error::input(what, "give them names that differ in more than the ending, `_` and `-`"));
        }
        if let Some(depth) = self.depths.iter().find(|depth| !(0.0..=100.0).contains(*depth)) {
            return Err(Error::input(format!("a depth of {depth} %"), "give depths from 0 to 100"));
        }
        for (length, gap) in self.lengths.iter().flat_map(|l| self.gaps.iter().map(move |g| (*l, *g))) {
            let span = (n - 1).saturating_mul(gap).saturating_add(1);
            if gap == 0 || span > length {
                let what = format!("{n} pictures {gap} frames apart take {span} frames of {length}");
                return Err(Error::input(what, "give a longer video, or a smaller gap of 1 or more"));
            }
        }
        Ok(())
    }

    /// The questions. `frames` yields a video of some frames.
    ///
    /// Errors: as [`Temporal::check`]; what `frames` answers.
    pub fn questions(
        &self,
        pool: &[Needle],
        what: &str,
        frames: &mut dyn FnMut(usize) -> Result<Vec<Arc<Picture>>>,
    ) -> Result<Vec<Question>> {
        self.check(pool)?;
        let mut out = Vec::new();
        for length in &self.lengths {
            let video = frames(*length)?;
            for (depth, gap) in self.depths.iter().flat_map(|d| self.gaps.iter().map(move |g| (*d, *g))) {
                for seed in &self.seeds {
                    let mut all = Vec::new();
                    for kind in &self.kinds {
                        self.one(*kind, depth, gap, *seed, &video, pool, what, &mut all);
                    }
                    // Questions of the same frames follow each other: what the cache holds is not read again.
                    all.sort_by_key(|q: &Question| (q.column == ONE, q.params.get("kind") == Some(&json!("count"))));
                    out.extend(all);
                }
            }
        }
        Ok(out)
    }

    #[allow(clippy::too_many_arguments)] // a question is made of just these
    fn one(
        &self,
        kind: Kind,
        depth: f64,
        gap: usize,
        seed: u64,
        video: &[Arc<Picture>],
        pool: &[Needle],
        what: &str,
        out: &mut Vec<Question>,
    ) {
        // All kinds but the count ask of the same video, which is then encoded and read once.
        let length = video.len();
        let mut draw = Draw::new(seed, &format!("temporal {length} {depth} {gap}"));
        let mut order: Vec<usize> = (0..pool.len()).collect();
        draw.shuffle(&mut order);
        let mut draw = Draw::new(seed, &format!("temporal {length} {depth} {gap} {}", kind.name()));
        let hidden = if kind == Kind::Count { 1 + draw.below(self.needles) } else { self.needles };
        let chosen: Vec<&Needle> = order.iter().filter_map(|at| pool.get(*at)).take(hidden).collect();
        let start = ((length - (self.needles - 1) * gap - 1) as f64 * depth / 100.0).round() as usize;
        let mut shown = video.to_vec();
        for (place, needle) in chosen.iter().enumerate() {
            shown[start + place * gap] = needle.picture.clone();
        }
        let names: Vec<&str> = chosen.iter().map(|needle| needle.name.as_str()).collect();
        let (asked, options, right) = kind.ask(&names, self.needles, &mut draw);
        let mut text = format!("<video>\nSome frames of the video are replaced by pictures of {what}. {asked}");
        for (at, option) in options.iter().enumerate() {
            text += &format!("\n{}. {option}", super::extract::letter(at));
        }
        text += &format!("\n{}", super::choice::BY_LETTER);
        let id = format!("temporal/{length}/{depth}/{gap}/{}/{seed}", kind.name());
        let params = json!({
            "frames": length, "depth": depth, "gap": gap, "seed": seed, "kind": kind.name(), "hidden": names,
            "start": start, "view": "video",
        });
        let lone = match self.single {
            Some(Single::First) => Some(shown[start].clone()),
            Some(Single::Random) => Some(shown[draw.below(length)].clone()),
            None => None,
        };
        let whole = Question {
            id,
            row: row(depth, gap),
            column: column(length),
            params: params.as_object().cloned().unwrap_or_default(),
            prompt: Prompt::Turn { text, sights: vec![Sight::Frames(shown)] },
            expected: Expected::Choice { options, right },
            room: 32,
        };
        let one = lone.map(|frame| whole.clone().with_one(frame));
        out.push(whole);
        out.extend(one);
    }
}

impl Kind {
    /// The question, its options in a drawn order, and the right one.
    fn ask(self, names: &[&str], most: usize, draw: &mut Draw) -> (String, Vec<String>, usize) {
        let (asked, right, mut options): (String, String, Vec<String>) = match self {
            Kind::First => {
                let all = names.iter().map(|name| (*name).to_owned()).collect();
                ("Which of them comes first?".into(), names[0].into(), all)
            }
            Kind::After => {
                let at = draw.below(names.len() - 1);
                let others = names.iter().enumerate().filter(|(other, _)| *other != at);
                let all = others.map(|(_, name)| (*name).to_owned()).collect();
                (format!("Which of them comes right after {}?", names[at]), names[at + 1].into(), all)
            }
            Kind::Count => {
                let all = (1..=most).map(|count| count.to_string()).collect();
                return ("How many frames are replaced?".into(), all, names.len() - 1);
            }
            Kind::Order => {
                let right = names.join(", ");
                let mut all = vec![right.clone()];
                // Two pictures have two orders, three have six; names with commas may make fewer that read differently.
                let wanted = if names.len() == 2 { 2 } else { 4 };
                for _ in 0..DRAWS {
                    if all.len() == wanted {
                        break;
                    }
                    let mut other = names.to_vec();
                    draw.shuffle(&mut other);
                    if !all.contains(&other.join(", ")) {
                        all.push(other.join(", "));
                    }
                }
                ("In which order do they come?".into(), right, all)
            }
        };
        draw.shuffle(&mut options);
        let at = options.iter().position(|option| *option == right).unwrap_or(0);
        (asked, options, at)
    }
}

/// The digits as pictures to hide.
pub fn digits(side: usize) -> Vec<Needle> {
    const COLORS: [[u8; 3]; 5] = [[178, 34, 34], [24, 90, 170], [20, 120, 60], [120, 50, 140], [40, 40, 40]];
    let size = (side / 9).max(1);
    (0..10)
        .map(|digit: usize| {
            let mut canvas = Canvas::new(side, side, [250, 250, 250]);
            let text = digit.to_string();
            let left = side.saturating_sub(super::paint::width(&text, size)) / 2;
            canvas.write(&text, left, side.saturating_sub(7 * size) / 2, size, COLORS[digit % COLORS.len()]);
            Needle { name: text, picture: Arc::new(canvas.done()) }
        })
        .collect()
}

/// The pictures of a folder, each named as its file.
///
/// Errors: `File` if the folder cannot be read; what the picture's decoder answers.
pub fn folder(path: &Path) -> Result<Vec<Needle>> {
    let listing = std::fs::read_dir(path).map_err(|why| Error::file(path, why))?;
    let mut files: Vec<_> = listing.filter_map(|item| item.ok().map(|item| item.path())).collect();
    files.sort();
    let known = ["png", "jpg", "jpeg", "webp", "bmp", "gif"];
    files.retain(|file| {
        file.extension().and_then(|e| e.to_str()).is_some_and(|e| known.contains(&e.to_ascii_lowercase().as_str()))
    });
    let needle = |file: &std::path::PathBuf| {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().replace(['_', '-'], " ");
        Ok(Needle { name, picture: Arc::new(Picture::open(file)?) })
    };
    files.iter().map(needle).collect()
}

/// A video without anything in it: a sky whose light wanders.
pub fn blank(frames: usize, side: usize, seed: u64) -> Vec<Arc<Picture>> {
    let mut draw = Draw::new(seed, "blank");
    let speed = 0.05 + draw.below(100) as f64 / 1000.0;
    (0..frames)
        .map(|frame| {
            let phase = frame as f64 * speed;
            let mut canvas = Canvas::new(side, side, [0; 3]);
            for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
                let (u, v) = (x as f64 / side as f64, y as f64 / side as f64);
                let light = 0.5 + 0.5 * (6.0 * u + phase).sin() * (4.0 * v - 0.7 * phase).cos();
                canvas.dot(x, y, [90.0 + 60.0 * light, 120.0 + 70.0 * light, 150.0 + 80.0 * v].map(|c| c as u8));
            }
            Arc::new(canvas.done())
        })
        .collect()
}
