//! Rendered scenes: the same for the same seed, answers that the pixels bear out, splits that share nothing.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_model::picture::Picture;
use omchat_model::video;
use omchat_recipe::Pack;
use omchat_recipe::document::{Reader, Room, Senses};
use omchat_recipe::scenes::{
    Ask, Colour, Frame, Kind, Options, Place, Sample, Scenes, Shape, Split, Task, sample, write,
};
use omchat_recipe::spec::{Dataset, Labelling, Layout};

fn options(task: Task, split: Split) -> Options {
    Options { task, split, frames: [4, 13], needles: [1, 4], turns: 20, ..Options::default() }
}

const TASKS: [Task; 3] = [Task::Captions, Task::Stories, Task::Needles];

#[test]
fn a_sample_is_a_function_of_seed_and_index() {
    for task in TASKS {
        let options = options(task, Split::Train);
        let of = |seed| Options { seed, ..options.clone() };
        let [a, b, other] = [11, 11, 12].map(|seed| Scenes::new(&of(seed)).unwrap());
        for index in [0, 1, 7, 1 << 40] {
            assert_eq!(a.sample(index), b.sample(index));
            assert_eq!(a.sample(index), sample(&of(11), index).unwrap());
            assert_ne!(a.sample(index), other.sample(index));
            assert_ne!(a.sample(index), a.sample(index + 1));
        }
    }
}

/// What a scene answers, in the plainest way: names in order, searched by hand.
fn by_hand(ask: &Ask, scene: &[Frame]) -> String {
    let name = |f: &Frame| match f {
        Frame::Shapes(s, p) if p.len() == 1 => format!("a {} {}", colour(s.colour), kind(s.kind)),
        Frame::Shapes(s, p) => {
            let plural = if s.kind == Kind::Cross { "crosses".into() } else { format!("{}s", kind(s.kind)) };
            format!("{} {} {plural}", if p.len() == 2 { "two" } else { "three" }, colour(s.colour))
        }
        Frame::Digit { value, .. } => format!("a {value}"),
        Frame::Face { .. } => "a face".into(),
        Frame::Noise => "noise".into(),
    };
    let mut values = vec![];
    for frame in scene {
        if let Frame::Digit { value, .. } = frame {
            values.push(*value);
        }
    }
    let next = |d: u8, step: isize| {
        let at = values.iter().position(|v| *v == d).unwrap() as isize + step;
        format!("a {}", values[at as usize])
    };
    let tint = |f: &Frame| match f {
        Frame::Shapes(s, _) => format!("it is {}", colour(s.colour)),
        Frame::Digit { colour: c, .. } => format!("it is {}", colour(*c)),
        other => panic!("{other:?} has no colour"),
    };
    let lone = |pick: fn(&Place) -> f32, names: [&str; 2]| match &scene[0] {
        Frame::Shapes(_, places) if places.len() == 1 => names[(pick(&places[0]) > 0.5) as usize].to_string(),
        other => panic!("{other:?} is on no side"),
    };
    let count = |n: usize| ["none", "one", "two", "three", "four"][n].to_string();
    let yes = |is: bool| if is { "yes" } else { "no" }.to_string();
    match ask {
        Ask::What | Ask::First => name(&scene[0]),
        Ask::Last => name(&scene[scene.len() - 1]),
        Ask::Colour => tint(&scene[0]),
        Ask::Count => match &scene[0] {
            Frame::Shapes(_, places) => count(places.len()),
            other => panic!("{other:?} has no shapes"),
        },
        Ask::Side => lone(|p| p.x, ["left", "right"]),
        Ask::Height => lone(|p| p.y, ["top", "bottom"]),
        Ask::Describe => {
            let mut all = String::new();
            for (i, f) in scene.iter().enumerate() {
                all += if i > 0 { ", " } else { "" };
                all += &name(f);
            }
            all
        }
        Ask::After(i) => name(&scene[i + 1]),
        Ask::Before(i) => name(&scene[i - 1]),
        Ask::Digit => {
            assert_eq!(values.len(), 1);
            format!("a {}", values[0])
        }
        Ask::FirstDigit => format!("a {}", values[0]),
        Ask::LastDigit => format!("a {}", values[values.len() - 1]),
        Ask::DigitAfter(d) => next(*d, 1),
        Ask::DigitBefore(d) => next(*d, -1),
        Ask::Digits => count(values.len()),
        Ask::ColourOf(d) => {
            let has = |f: &&Frame| matches!(f, Frame::Digit { value, .. } if value == d);
            assert_eq!(scene.iter().filter(has).count(), 1);
            tint(scene.iter().find(has).unwrap())
        }
        Ask::IsThere(d) => yes(values.contains(d)),
        Ask::IsFace => yes(scene.iter().any(|f| matches!(f, Frame::Face { .. }))),
        Ask::Moves => name(scene.iter().find(|f| matches!(f, Frame::Shapes(..))).unwrap()),
    }
}

fn colour(c: Colour) -> String {
    format!("{c:?}").to_lowercase()
}

fn kind(k: Kind) -> String {
    format!("{k:?}").to_lowercase()
}

#[test]
fn answers_are_those_of_the_scene() {
    let mut asked = std::collections::BTreeSet::new();
    for task in TASKS {
        for split in [Split::Train, Split::Test] {
            let scenes = Scenes::new(&Options { seed: 5, ..options(task, split) }).unwrap();
            for index in 0..200 {
                let Sample { scene, frames, turns, video } = scenes.sample(index);
                assert_eq!((scene.len(), video), (frames.len(), task != Task::Captions));
                let (mut shown, mut about) = (0, 0..0);
                let mut said: Vec<&String> = vec![];
                for turn in &turns {
                    if !turn.shows.is_empty() {
                        // Frames are shown in order, each once: a video whole, pictures one by one.
                        assert_eq!((turn.shows.start, turn.shows.len()), (shown, if video { scene.len() } else { 1 }));
                        (shown, about) = (turn.shows.end, turn.shows.clone());
                        said.clear();
                    }
                    assert_eq!(turn.answer, by_hand(&turn.ask, &scene[about.clone()]), "{:?} of {scene:?}", turn.ask);
                    assert!(!said.contains(&&turn.question), "a question twice");
                    said.push(&turn.question);
                    asked.insert(turn.ask.name());
                }
                assert_eq!(shown, scene.len(), "every frame is shown");
            }
        }
    }
    let mut names = Ask::NAMES.to_vec();
    names.sort();
    assert_eq!(asked.into_iter().collect::<Vec<_>>(), names);
}

/// The middle of mass of what stands out of the ground, its mean colour, and its share of the frame.
fn seen(picture: &Picture, least: u8) -> ([f32; 2], [f32; 3], f32) {
    let (mut sum, mut at, mut colour) = (0.0f32, [0.0f32; 2], [0.0f32; 3]);
    for (i, p) in picture.rgb.chunks_exact(3).enumerate() {
        // The ground stays below 74, every colour has a sample above 160.
        if p.iter().any(|s| *s > least) {
            sum += 1.0;
            at[0] += (i % picture.width) as f32 + 0.5;
            at[1] += (i / picture.width) as f32 + 0.5;
            (0..3).for_each(|k| colour[k] += f32::from(p[k]));
        }
    }
    let side = picture.width as f32;
    (at.map(|x| x / sum / side), colour.map(|c| c / sum), sum / (side * side))
}

/// Parts of a picture that stand out of the ground and do not touch; a tip of a few pixels is none.
fn islands(picture: &Picture) -> usize {
    let (w, h) = (picture.width, picture.height);
    let mut out: Vec<bool> = picture.rgb.chunks_exact(3).map(|p| p.iter().any(|s| *s > 120)).collect();
    let mut count = 0;
    while let Some(start) = out.iter().position(|x| *x) {
        let (mut todo, mut size) = (vec![start], 0);
        while let Some(i) = todo.pop() {
            if !std::mem::take(&mut out[i]) {
                continue;
            }
            size += 1;
            let (x, y) = (i % w, i / w);
            todo.extend((x > 0).then(|| i - 1));
            todo.extend((x + 1 < w).then_some(i + 1));
            todo.extend((y > 0).then(|| i - w));
            todo.extend((y + 1 < h).then_some(i + w));
        }
        count += usize::from(size > 8);
    }
    count
}

/// The colour whose samples are nearest.
fn nearest(seen: [f32; 3]) -> Colour {
    let far = |c: &Colour| (0..3).map(|k| (f32::from(c.rgb()[k]) - seen[k]).powi(2)).sum::<f32>();
    *Colour::ALL.iter().min_by(|a, b| far(a).total_cmp(&far(b))).unwrap()
}

/// Colour, number, place and kind of shapes are read back from the pixels alone.
#[test]
fn pixels_show_what_the_words_say() {
    let scenes = Scenes::new(&Options { seed: 21, side: 64, ..options(Task::Captions, Split::Train) }).unwrap();
    let mut shapes = 0;
    for index in 0..400 {
        let Sample { scene, frames, .. } = scenes.sample(index);
        let (at, tint, share) = seen(&frames[0], 120);
        match &scene[0] {
            Frame::Shapes(Shape { kind, colour }, places) => {
                shapes += 1;
                assert_eq!(nearest(tint), *colour, "sample {index}");
                assert_eq!(islands(&frames[0]), places.len(), "sample {index}");
                let n = places.len() as f32;
                let middle = [places.iter().map(|p| p.x).sum::<f32>() / n, places.iter().map(|p| p.y).sum::<f32>() / n];
                // A triangle's middle of mass is below the middle of its square.
                let play = if *kind == Kind::Triangle { 0.5 * places[0].radius } else { 0.02 };
                assert!((at[0] - middle[0]).abs() < 0.02 && (at[1] - middle[1]).abs() < play, "sample {index}: {at:?}");
                // The share of its square that a shape covers: pi / 4, 0.85^2, half of 0.95 by 1.9 twice, two bars.
                let square: f32 = places.iter().map(|p| 4.0 * p.radius * p.radius).sum();
                let want = match kind {
                    Kind::Circle => std::f32::consts::PI / 4.0,
                    Kind::Square => 0.85 * 0.85,
                    Kind::Triangle => 0.5 * 0.95 * 0.95,
                    Kind::Cross => 2.0 * 0.3 - 0.3 * 0.3,
                };
                assert!(
                    (share / square / want - 1.0).abs() < 0.2,
                    "sample {index}: {kind:?} covers {}",
                    share / square
                );
            }
            Frame::Digit { colour, .. } => {
                // Strokes are soft: the colour is that of their brightest points.
                let peak = frames[0].rgb.iter().max().unwrap();
                assert_eq!(nearest(seen(&frames[0], peak - peak / 8).1), *colour, "sample {index}");
            }
            Frame::Face { .. } | Frame::Noise => {}
        }
    }
    assert!(shapes > 150);
}

/// A held-out digit is in no training sample: which of a value's pictures are drawn are those of the split.
#[test]
fn needles_of_the_evaluation_come_from_digits_held_out() {
    let pixels = |split| {
        let o = Options { frames: [4, 4], needles: [4, 4], ..options(Task::Needles, split) };
        let (scenes, real) = (Scenes::new(&o).unwrap(), omchat_recipe::scenes::Real::new(split, None).unwrap());
        let mut found = std::collections::BTreeSet::new();
        for index in 0..1500 {
            for frame in scenes.sample(index).scene {
                if let Frame::Digit { value, which, .. } = frame {
                    found.insert(real.digits[usize::from(value)][which].number);
                }
            }
        }
        found
    };
    let (train, test) = (pixels(Split::Train), pixels(Split::Test));
    assert!(train.is_disjoint(&test));
    assert!(
        train.len() > 1300 && test.len() > 340 && train.len() + test.len() <= 1797,
        "{} {}",
        train.len(),
        test.len()
    );
}

#[test]
fn a_needle_stands_where_it_should() {
    for (depth, frames, want) in [(0.0, 9, 0), (1.0, 9, 8), (0.5, 9, 4), (0.25, 101, 25), (0.7, 1, 0)] {
        let o =
            Options { depth: Some(depth), frames: [frames; 2], needles: [1, 1], ..options(Task::Needles, Split::Test) };
        let scene = Scenes::new(&o).unwrap().sample(3).scene;
        assert_eq!(scene.iter().position(|f| f.digit().is_some()), Some(want), "depth {depth} of {frames}");
        assert_eq!(scene.iter().filter(|f| f.digit().is_some()).count(), 1);
    }
}

#[test]
fn options_that_cannot_be_are_refused() {
    let refused = |change: fn(&mut Options)| {
        let mut o = options(Task::Needles, Split::Train);
        change(&mut o);
        Scenes::new(&o).unwrap_err().to_string()
    };
    assert!(refused(|o| o.frames = [5, 3]).contains("from 5 to 3"));
    assert!(refused(|o| o.frames = [0, 3]).contains("0 to 3"));
    assert!(refused(|o| o.frames = [3, 9]).contains("4 needles in 3 frames"));
    assert!(refused(|o| o.needles = [1, 11]).contains("11"));
    assert!(refused(|o| o.depth = Some(f32::NAN)).contains("NaN"));
    assert!(refused(|o| o.turns = 0).contains("0 questions"));
    assert!(refused(|o| o.asks = vec!["why".into()]).contains("`why`"));
    assert!(refused(|o| o.side = 7).contains("7 pixels"));
    assert!(refused(|o| o.faces = Some("/nowhere/faces.png".into())).contains("/nowhere/faces.png"));
    let text = refused(|o| (o.task, o.frames) = (Task::Stories, [3, 99]));
    assert!(text.contains("99 frames"), "{text}");
}

/// What is written is read back as it was drawn: PNG frames to the bit, records in order.
#[test]
fn files_hold_the_samples() {
    let dir = std::env::temp_dir().join(format!("omchat-scenes-{}", std::process::id()));
    for task in TASKS {
        let scenes = Scenes::new(&Options { seed: 4, ..options(task, Split::Test) }).unwrap();
        write(&scenes, 3, 4, &dir, false).unwrap();
        let text = std::fs::read_to_string(dir.join("data.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 4);
        for (line, index) in text.lines().zip(3..) {
            let sample = scenes.sample(index);
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let said: Vec<&str> =
                record["messages"].as_array().unwrap().iter().map(|m| m["content"].as_str().unwrap()).collect();
            assert_eq!(said.len(), 2 * sample.turns.len());
            for (turn, said) in sample.turns.iter().zip(said.chunks(2)) {
                let mark = if sample.video { "<video>" } else { "<image>" };
                let mark = if turn.shows.is_empty() { "" } else { mark };
                assert_eq!(said, [&format!("{mark}{}", turn.question), &turn.answer]);
            }
            let key = if sample.video { "videos" } else { "images" };
            let paths = record[key].as_array().unwrap().iter().map(|name| dir.join(name.as_str().unwrap()));
            let read: Vec<Picture> = match sample.video {
                true => paths.flat_map(|p| video::sample(&p, 99, &mut |_, _| {}, Ok).unwrap()).collect(),
                false => paths.map(|p| Picture::open(&p).unwrap()).collect(),
            };
            assert!(read == sample.frames, "{task:?} {index}");
        }
    }
    let scenes = Scenes::new(&Options { seed: 4, ..options(Task::Needles, Split::Test) }).unwrap();
    write(&scenes, 0, 1, &dir, true).unwrap();
    let read = video::sample(&dir.join("media/000000.gif"), 99, &mut |_, _| {}, Ok).unwrap();
    let drawn = scenes.sample(0).frames;
    assert_eq!(read.len(), drawn.len());
    for (a, b) in read.iter().zip(&drawn) {
        let off = a.rgb.iter().zip(&b.rgb).map(|(x, y)| f64::from(x.abs_diff(*y))).sum::<f64>() / a.rgb.len() as f64;
        assert!(off < 16.0, "a palette of 256 colours is off by {off} on the mean");
    }
    // Written over by fewer frames: none of the old video stays.
    let of = |frames| Scenes::new(&Options { frames: [frames; 2], ..options(Task::Needles, Split::Test) }).unwrap();
    for frames in [8, 4] {
        assert_eq!(write(&of(frames), 0, 1, &dir, false).unwrap(), 1);
        let read = video::sample(&dir.join("media/000000"), 99, &mut |_, _| {}, Ok).unwrap();
        assert_eq!(read.len(), frames);
    }
    let e = write(&of(4), u64::MAX, 2, &dir, false).unwrap_err().to_string();
    assert!(e.contains("2 samples from number 18446744073709551615"), "{e}");
    std::fs::remove_dir_all(&dir).unwrap();
}

/// The senses of the model in the repository that is made for scenes.
fn senses() -> Senses {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/needle");
    Senses::from_dir(&dir, &omchat_model::OmChatConfig::from_dir(&dir).unwrap()).unwrap()
}

fn drawn(options: Options) -> Dataset {
    Dataset { scenes: Some(options), ..Dataset::new("drawn", "", Layout::Scenes, Labelling::AnswersOnly) }
}

const ROOM: Room = Room { positions: 1024, tiles: 64 };

/// What a document trains is the sample's answers, word by word, and its tiles are the sample's frames.
#[test]
fn a_document_trains_the_answers() {
    let senses = senses();
    for task in TASKS {
        let options = Options { seed: 8, ..options(task, Split::Train) };
        let (reader, scenes) =
            (Reader::open(&drawn(options.clone()), &senses, ROOM).unwrap(), Scenes::new(&options).unwrap());
        for record in [0, 3, 1 << 19] {
            let [document] = &reader.read(0, record).unwrap().unwrap()[..] else { panic!("one document") };
            let sample = scenes.sample(record);
            let end = senses.tokenizer.required("<|im_end|>").unwrap() as i32;
            let trained: Vec<i32> = document.labels.iter().copied().filter(|l| *l != -100).collect();
            let said: Vec<String> = trained
                .split_inclusive(|id| *id == end)
                .map(|ids| senses.tokenizer.decode(&ids.iter().map(|id| *id as u32).collect::<Vec<_>>()).unwrap())
                .collect();
            assert_eq!(said, sample.turns.iter().map(|t| t.answer.clone()).collect::<Vec<_>>());
            let tiles: Vec<&[u8]> = document.tiles.iter().map(|t| t.rgb.as_slice()).collect();
            assert_eq!(tiles, sample.frames.iter().map(|f| f.rgb.as_slice()).collect::<Vec<_>>());
        }
    }
}

/// A feed of scenes needs no file, repeats, and goes on from a saved place.
#[test]
fn a_feed_of_scenes_resumes() {
    let (senses, sets) = (senses(), [drawn(options(Task::Needles, Split::Train))]);
    let mix = [("drawn".to_string(), 100.0)].into_iter().collect();
    let how = omchat_recipe::feed::Options { room: ROOM, seed: 3, threads: 2 };
    let mut feed = omchat_recipe::Feed::open(&sets, &mix, &senses, how).unwrap();
    let first: Vec<Pack> = (0..3).map(|_| feed.next().unwrap().unwrap()).collect();
    let state = feed.state();
    let then: Vec<Pack> = (0..3).map(|_| feed.next().unwrap().unwrap()).collect();
    let mut again = omchat_recipe::Feed::open(&sets, &mix, &senses, how).unwrap();
    assert!(first.iter().all(|p| again.next().unwrap().unwrap() == *p));
    let mut resumed = omchat_recipe::Feed::resume(&sets, &mix, &senses, how, &state).unwrap();
    assert!(then.iter().all(|p| resumed.next().unwrap().unwrap() == *p));
    assert!(first.iter().all(|p| p.fill() > 0.6 && p.tile_count() <= 64));
}

#[test]
fn scenes_of_a_recipe_are_checked() {
    let text = |set: Dataset| Dataset { name: "x".into(), ..set }.check().unwrap_err().to_string();
    assert!(text(Dataset::new("x", "", Layout::Scenes, Labelling::AnswersOnly)).contains("none are described"));
    assert!(text(Dataset { layout: Layout::Llava, ..drawn(Options::default()) }).contains("another layout"));
    assert!(text(drawn(Options { turns: 0, ..Options::default() })).contains("0 questions"));
    assert!(text(Dataset::new("x", "", Layout::Llava, Labelling::AnswersOnly)).contains("no path"));
    let page = include_str!("../../recipes/needle.toml");
    omchat_recipe::Recipe::parse(page).unwrap().check().unwrap();
}
