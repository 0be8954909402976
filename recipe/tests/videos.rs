//! Videos in ms-swift records through the feed: files that ffmpeg reads beside a GIF and a folder of frames, broken ones,
//! positions in the middle, and what is left of ffmpeg when a feed goes away.
//!
//! Where there is no ffmpeg that writes mp4 the tests say so and end.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Folder, options, senses};
use image::codecs::gif::GifEncoder;
use image::{Frame, Rgba, RgbaImage};
use omchat_model::config::IGNORE;
use omchat_model::splice::Slot;
use omchat_model::tiler::Tiles;
use omchat_recipe::Result;
use omchat_recipe::feed::{Feed, State};
use omchat_recipe::mix::Mix;
use omchat_recipe::pack::Pack;
use omchat_recipe::report::Reason;
use omchat_recipe::spec::{Dataset, Labelling, Layout};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Frames of each video, and how many of them are looked at.
const FRAMES: usize = 13;
const LOOKED: usize = 5;

/// The grey of a frame.
fn grey(frame: usize) -> u8 {
    20 + 16 * frame as u8
}

/// The frame in the middle of each of `LOOKED` stretches, by the released rule: ⌊s/2⌋ + round(s·i), s = 12/5.
const CHOSEN: [usize; LOOKED] = [1, 3, 6, 8, 11];

fn picture(frame: usize) -> RgbaImage {
    let grey = grey(frame);
    RgbaImage::from_pixel(48, 32, Rgba([grey, grey, grey, 255]))
}

/// `clip.mp4`, `clip.gif` and the folder `clip` of the same frames; nothing, said aloud, without an ffmpeg that can.
fn clips(folder: &Folder) -> bool {
    std::fs::create_dir_all(folder.0.join("clip")).unwrap();
    for frame in 0..FRAMES {
        picture(frame).save(folder.0.join(format!("clip/{frame:02}.png"))).unwrap();
    }
    let mut gif = GifEncoder::new(std::fs::File::create(folder.0.join("clip.gif")).unwrap());
    gif.encode_frames((0..FRAMES).map(|frame| Frame::new(picture(frame)))).unwrap();
    drop(gif);
    let run = Command::new("ffmpeg")
        .args(["-v", "error", "-framerate", "10", "-i"])
        .arg(folder.0.join("clip/%02d.png"))
        .args(["-c:v", "mpeg4", "-q:v", "1", "-movflags", "faststart"])
        .arg(folder.0.join("clip.mp4"))
        .status();
    let made = matches!(run, Ok(status) if status.success());
    if !made {
        println!("skipped: there is no ffmpeg that can write mp4, so no file to read ({run:?})");
    }
    made
}

fn record(question: &str, answer: &str, videos: &[&str]) -> String {
    let turns = serde_json::json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
    serde_json::json!({"messages": turns, "videos": videos}).to_string()
}

fn set(folder: &Folder, records: &[String]) -> Dataset {
    let path = folder.write("data.jsonl", records.join("\n"));
    Dataset { frames: LOOKED, ..Dataset::new("seen", path, Layout::MsSwift, Labelling::AnswersOnly) }
}

fn open(set: &Dataset, threads: usize) -> Feed {
    Feed::open(std::slice::from_ref(set), &Mix::new(), &senses(), options(400, 12, 3, threads)).unwrap()
}

/// A document of a pack: what the model is shown of one record.
struct Shown {
    slots: Vec<Slot>,
    labels: Vec<i32>,
    tiles: Vec<Tiles>,
}

/// The document of a record, found in the packs of one epoch.
fn shown(packs: &[Pack], record: u64) -> Shown {
    let per_tile = senses().per_tile;
    for pack in packs {
        let Some(part) = pack.parts.iter().find(|part| part.origin.record == record) else { continue };
        let rows = |range: &mut dyn Iterator<Item = &Slot>| range.filter(|s| matches!(s, Slot::Image(_))).count();
        let first = rows(&mut pack.slots[..part.range.start].iter());
        let own = rows(&mut pack.slots[part.range.clone()].iter());
        let from = |slot: &Slot| match slot {
            Slot::Image(row) => Slot::Image(row - first as u32),
            text => *text,
        };
        for (place, at) in part.range.clone().enumerate() {
            assert_eq!(
                (pack.positions[at], pack.lo[at], pack.hi[at]),
                (place as u32, part.range.start as i32, at as i32)
            );
        }
        return Shown {
            slots: pack.slots[part.range.clone()].iter().map(from).collect(),
            labels: pack.labels[part.range.clone()].to_vec(),
            tiles: pack.tiles[first / per_tile..(first + own) / per_tile].to_vec(),
        };
    }
    panic!("record {record} is in no pack")
}

/// Packs until each of the first records is in one: many stay open beside each other.
fn until_all(feed: &mut Feed, records: u64) -> Vec<Pack> {
    let mut packs: Vec<Pack> = vec![];
    let held = |packs: &[Pack], n: u64| packs.iter().flat_map(|p| &p.parts).any(|part| part.origin.record == n);
    while !(0..records).all(|n| held(&packs, n)) {
        packs.push(feed.next().unwrap().unwrap());
        assert!(packs.len() < 100, "a record is in no pack");
    }
    packs
}

fn mean(tile: &Tiles) -> f64 {
    tile.rgb.iter().map(|x| f64::from(*x)).sum::<f64>() / tile.rgb.len() as f64
}

#[test]
fn a_file_a_gif_and_a_folder_are_one_video() {
    let folder = Folder::new();
    if !clips(&folder) {
        return;
    }
    let ask = |videos: &[&str]| record(&format!("{}What is it?", "<video>".repeat(videos.len())), "it is grey", videos);
    let records =
        [ask(&["clip.mp4"]), ask(&["clip.gif"]), ask(&["clip"]), ask(&["clip.mp4", "clip"]), record("Hm?", "no", &[])];
    let packs = until_all(&mut open(&set(&folder, &records), 3), 4);
    let (senses, all) = (senses(), [0, 1, 2, 3].map(|n| shown(&packs, n)));
    for (which, one) in all.iter().enumerate() {
        let times = if which == 3 { 2 } else { 1 };
        assert_eq!(one.tiles.len(), times * LOOKED, "record {which}: a tile a frame");
        for (place, tile) in one.tiles.iter().enumerate() {
            let want = f64::from(grey(CHOSEN[place % LOOKED]));
            // Frames lie 16 apart; a lossy file may be a little off.
            assert!((mean(tile) - want).abs() < 5.0, "record {which} frame {place}: {} for {want}", mean(tile));
        }
        let rows: Vec<u32> =
            one.slots.iter().filter_map(|s| if let Slot::Image(row) = s { Some(*row) } else { None }).collect();
        assert!(rows.iter().copied().eq(0..(times * LOOKED * senses.per_tile) as u32), "record {which}: {rows:?}");
        // Only the answer trains: its words and the end of the turn, each at the position before.
        let ids: Vec<u32> = one.labels.iter().filter(|l| **l != IGNORE).map(|l| *l as u32).collect();
        let spelled = senses.tokenizer.decode(&ids).unwrap();
        assert_eq!(spelled.trim_end_matches("<|im_end|>").trim(), "it is grey", "record {which}");
        for (at, label) in one.labels.iter().enumerate().filter(|(_, l)| **l != IGNORE) {
            assert_eq!(one.slots[at + 1], Slot::Text(*label as u32), "record {which} position {at}");
        }
    }
    // What is not pixels is the same for every kind of source.
    for other in [1, 2] {
        assert_eq!((&all[other].slots, &all[other].labels), (&all[0].slots, &all[0].labels));
    }
    assert!(all[3].slots.len() > all[0].slots.len() + LOOKED * senses.per_tile - 1);
}

#[test]
fn broken_files_are_skipped_with_their_reason() {
    let folder = Folder::new();
    if !clips(&folder) {
        return;
    }
    let bytes = std::fs::read(folder.0.join("clip.mp4")).unwrap();
    folder.write("cut.mp4", &bytes[..bytes.len() * 2 / 3]);
    folder.write("noise.mp4", [7; 3000]);
    folder.write("empty.mp4", []);
    let sound = folder.0.join("sound.mp4");
    let mute = Command::new("ffmpeg")
        .args(["-v", "error", "-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac"])
        .arg(&sound)
        .status();
    assert!(mute.is_ok_and(|s| s.success()), "an ffmpeg that writes sound");
    let files = ["cut.mp4", "noise.mp4", "empty.mp4", "sound.mp4", "gone.mp4"];
    let records: Vec<String> =
        ["clip.mp4"].into_iter().chain(files).map(|file| record("<video>What?", "grey", &[file])).collect();
    let mut feed = open(&set(&folder, &records), 2);
    while feed.state().cursors[0].epoch < 2 {
        let pack = feed.next().unwrap().unwrap();
        assert!(pack.parts.iter().all(|part| part.origin.record == 0), "{:?}", pack.parts);
    }
    let report = feed.report();
    let tally = &report.sets["seen"];
    assert!(tally.skipped.keys().eq([&Reason::Video]), "{report}");
    let kind = &tally.skipped[&Reason::Video];
    assert!(kind.count >= 2 * files.len() as u64, "{report}");
    let told = |record: u64| kind.examples.iter().find(|e| e.record == record).unwrap_or_else(|| panic!("{report}"));
    for (n, file) in files.into_iter().enumerate() {
        let example = told(n as u64 + 1);
        assert!(example.why.contains(file) && example.file.ends_with("data.jsonl"), "{report}");
    }
    assert!(told(1).why.contains("ffmpeg says: ") && told(2).why.contains("ffmpeg says: "), "{report}");
    assert!(told(3).why.contains("0 bytes") && told(4).why.contains("no video stream"), "{report}");
}

#[test]
fn a_feed_of_videos_goes_on_from_every_point() {
    let folder = Folder::new();
    if !clips(&folder) {
        return;
    }
    folder.write("noise.mp4", [7; 3000]);
    let names = ["clip.mp4", "clip.gif", "clip", "noise.mp4"];
    let records: Vec<String> = (0..9)
        .map(|n| record("<video>What?", &"grey ".repeat(1 + n % 4), &[names[n % names.len()]]))
        .chain([record("Hm?", &"no ".repeat(40), &[])])
        .collect();
    let (set, senses) = (set(&folder, &records), senses());
    let mut feed = open(&set, 2);
    let (mut states, mut packs) = (vec![], vec![]);
    for _ in 0..4 {
        states.push(serde_json::to_string(&feed.state()).unwrap());
        packs.push(feed.next().unwrap().unwrap());
    }
    assert!(packs.iter().filter(|p| p.tile_count() >= 2 * LOOKED).count() > 1, "packs of several videos");
    let end = feed.state();
    for (at, state) in states.iter().enumerate() {
        let state: State = serde_json::from_str(state).unwrap();
        let options = options(400, 12, 3, 1 + 2 * (at % 2));
        let mut again = Feed::resume(std::slice::from_ref(&set), &Mix::new(), &senses, options, &state).unwrap();
        let rest: Vec<Pack> = again.by_ref().take(packs.len() - at).collect::<Result<_>>().unwrap();
        assert!(rest == packs[at..] && again.state() == end, "resumed at {at}");
    }
}

/// Children of this process that have not ended, by name.
fn children() -> Vec<String> {
    let own = std::process::id();
    let stats = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| {
        let text = std::fs::read_to_string(e.path().join("stat")).ok()?;
        let (name, rest) = text.split_once('(')?.1.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?.parse::<u32>().ok()?);
        (parent == own).then(|| format!("{name} {state}"))
    });
    stats.collect()
}

/// The environment belongs to a whole process, so another one is started for a decoder that is slow.
#[test]
#[cfg(target_os = "linux")]
fn a_feed_that_goes_away_leaves_no_decoder() {
    let Ok(folder) = std::env::var("OMCHAT_TEST_SLOW") else {
        let folder = Folder::new();
        if !clips(&folder) {
            return;
        }
        // Each frame takes a while, as those of a long video do: a hundred and more seconds for all.
        let slow = folder.write("slow", "#!/bin/sh\ncase \"$*\" in *progress*) exec ffmpeg \"$@\";; esac\nwhile :; do printf 'P6\\n1 1\\n255\\nabc'; sleep 0.05; done\n");
        assert!(Command::new("chmod").arg("+x").arg(&slow).status().unwrap().success());
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "a_feed_that_goes_away_leaves_no_decoder", "--nocapture"]);
        again.env("OMCHAT_TEST_SLOW", &folder.0).env("OMCHAT_FFMPEG", &slow);
        let out = again.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
        let told = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{told}");
        assert!(told.contains("dropped while"), "{told}");
        return;
    };
    // A long text fills the first packs; videos are read ahead meanwhile, and none of them ends.
    let text = serde_json::json!({"messages": [{"role": "assistant", "content": "word ".repeat(3000)}]}).to_string();
    let clip = record("<video>What?", "grey", &["clip.mp4"]);
    let data = Path::new(&folder).join("data.jsonl");
    std::fs::write(&data, [text, clip.clone(), clip.clone(), clip].join("\n")).unwrap();
    let set = Dataset { frames: LOOKED, ..Dataset::new("seen", data, Layout::MsSwift, Labelling::Pretrain) };
    let shards = omchat_recipe::shards::open(&set).unwrap();
    let first = |seed: &u64| omchat_recipe::shards::place(&shards, *seed, "seen", 0, 0) == Some((0, 0));
    let seed = (0..200).find(first).unwrap();
    for threads in [1, 3] {
        let options = options(400, 12, seed, threads);
        let mut feed = Feed::open(std::slice::from_ref(&set), &Mix::new(), &senses(), options).unwrap();
        assert!(feed.next().unwrap().unwrap().tile_count() == 0);
        let start = Instant::now();
        while children().is_empty() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("dropped while {:?}", children());
        assert!(!children().is_empty());
        let start = Instant::now();
        drop(feed);
        let (took, left) = (start.elapsed(), children());
        assert!(took < Duration::from_secs(10) && left.is_empty(), "{took:?}: {left:?}");
    }
}
