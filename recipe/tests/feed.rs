//! Feeds from files to packs: percentages, resuming, threads, and what is skipped.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Folder, options, senses};
use omchat_recipe::feed::{Feed, State};
use omchat_recipe::mix::Mix;
use omchat_recipe::pack::{Origin, Pack};
use omchat_recipe::report::Reason;
use omchat_recipe::spec::{Dataset, Labelling, Layout, Split};
use omchat_recipe::{Error, Result};
use std::collections::BTreeMap;

fn turns(answer: &str) -> String {
    format!(r#"[{{"from": "human", "value": "what is it"}}, {{"from": "gpt", "value": "{answer}"}}]"#)
}

/// Three data sets: pictures and a video, text to be cut, conversations.
fn sets(folder: &Folder) -> (Vec<Dataset>, Mix) {
    folder.sights();
    let seen = ["image\": \"coins.png", "image\": \"page.png", "video\": \"ball.gif"];
    let seen: Vec<String> = seen.iter().map(|s| format!(r#"{{"{s}", "conversations": {}}}"#, turns("a b c"))).collect();
    let look = folder.write("look.json", format!("[{}]", seen.join(",\n")));
    let texts: Vec<String> =
        (1..12).map(|n| format!("{}\nline\n\n", "lorem ipsum dolor ".repeat(if n == 7 { 120 } else { n }))).collect();
    let text = folder.write("book.txt", texts.join(" \n"));
    let chat: String = (0..17).map(|n| format!("{{\"conversations\": {}}}\n", turns(&"no ".repeat(n + 1)))).collect();
    let chat = folder.write("chat.jsonl", chat);
    let mut all = vec![
        Dataset::new("look", look, Layout::Llava, Labelling::Instruct),
        Dataset::new("book", text, Layout::Text, Labelling::Pretrain),
        Dataset::new("chat", chat, Layout::Llava, Labelling::AnswersOnly),
    ];
    all[0].frames = 3;
    all[1].split = Split::BlankLines;
    (all, Mix::from([("look".into(), 20.0), ("book".into(), 30.5), ("chat".into(), 49.5)]))
}

fn take(feed: &mut Feed, n: usize) -> Vec<Pack> {
    feed.take(n).collect::<Result<_>>().unwrap()
}

#[test]
fn a_feed_goes_on_from_every_point() {
    let folder = Folder::new();
    let (sets, mix) = sets(&folder);
    let (senses, options) = (senses(), options(400, 9, 5, 2));
    let mut feed = Feed::open(&sets, &mix, &senses, options).unwrap();
    let mut states = vec![];
    let mut packs = vec![];
    for _ in 0..14 {
        states.push(serde_json::to_string(&feed.state()).unwrap());
        packs.extend(take(&mut feed, 1));
    }
    assert!(packs.iter().any(|pack| pack.parts.iter().any(|part| part.origin.offset > 0)), "no text was cut");
    assert!(packs.iter().any(|pack| pack.tile_count() > 0));
    let end = feed.state();
    for (at, state) in states.iter().enumerate() {
        let state: State = serde_json::from_str(state).unwrap();
        let mut again = Feed::resume(&sets, &mix, &senses, options, &state).unwrap();
        assert_eq!(again.state(), state);
        assert!(take(&mut again, packs.len() - at) == packs[at..], "resumed at {at}");
        assert_eq!(again.state(), end, "resumed at {at}");
    }
}

/// Bytes that this thread asked the system for so far, where the system counts them.
fn bytes_read() -> Option<u64> {
    let counts = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    counts.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok())
}

/// Two long texts, and a feed in the middle of one: hundreds of its documents wait.
#[test]
fn going_on_in_a_long_text_reads_it_once() {
    let folder = Folder::new();
    let text = |word: &str| (0..1500).map(|n| format!("{word} {n} ")).collect::<String>();
    let texts = [text("lorem"), text("ipsum dolor")];
    folder.write("a.txt", &texts[0]);
    let second = folder.write("b.txt", &texts[1]);
    let set = [Dataset::new("book", folder.0.clone(), Layout::Text, Labelling::Pretrain)];
    let (senses, options) = (senses(), options(64, 1, 3, 1));
    let mut feed = Feed::open(&set, &Mix::new(), &senses, options).unwrap();
    while feed.state().cursors[0].epoch < 2 || feed.state().waiting.len() < 100 {
        take(&mut feed, 1);
    }
    take(&mut feed, 5);
    let state = feed.state();
    // The ends of the texts wait in open packs, those of the first epoch beside those of the second.
    let mut ends: Vec<_> = state.open.iter().flatten().collect();
    let named = ends.len();
    ends.sort();
    ends.dedup();
    assert!(named > ends.len() && ends.len() == 2 && state.waiting.len() > 100, "{state:?}");

    let before = bytes_read();
    let mut again = Feed::resume(&set, &Mix::new(), &senses, options, &state).unwrap();
    if let (Some(before), Some(after)) = (before, bytes_read()) {
        let all: usize = texts.iter().map(String::len).sum();
        let read = (after - before) as usize;
        assert!((all..all + 4096).contains(&read), "{read} bytes read of texts of {all}");
    }
    assert_eq!(again.state(), state);
    let more = state.waiting.len() + 50;
    assert!(take(&mut again, more) == take(&mut feed, more));
    assert_eq!(again.state(), feed.state());

    let last = state.waiting.last().unwrap();
    let mut beyond = state.clone();
    beyond.waiting.push(Origin { offset: last.offset + 1, ..last.clone() });
    let error = Feed::resume(&set, &Mix::new(), &senses, options, &beyond).err().unwrap().to_string();
    assert!(error.contains(&format!("it has no position {}", last.offset + 1)), "{error}");
    std::fs::write(second, "short").unwrap();
    let unsummed = State { sums: BTreeMap::new(), ..state };
    let error = Feed::resume(&set, &Mix::new(), &senses, options, &unsummed).err().unwrap().to_string();
    assert!(error.contains("was read before and is not now: it has no position"), "{error}");
}

#[test]
fn threads_change_nothing() {
    let folder = Folder::new();
    let (sets, mix) = sets(&folder);
    let packs =
        |threads, seed| take(&mut Feed::open(&sets, &mix, &senses(), options(333, 9, seed, threads)).unwrap(), 6);
    let one = packs(1, 3);
    assert!(one == packs(7, 3) && one == packs(0, 3));
    assert!(one != packs(1, 4), "the seed is drawn from");
}

#[test]
fn data_sets_come_by_their_percentages() {
    let folder = Folder::new();
    let (sets, mix) = sets(&folder);
    let mut feed = Feed::open(&sets, &mix, &senses(), options(512, 9, 1, 2)).unwrap();
    for _ in 0..40 {
        take(&mut feed, 1);
        let cursors = feed.state().cursors;
        let n: u64 = cursors.iter().map(|c| c.drawn).sum();
        for cursor in cursors {
            let want = mix[&cursor.dataset] / 100.0 * n as f64;
            assert!((cursor.drawn as f64 - want).abs() < 2.0, "{} of {n}: {}", cursor.drawn, cursor.dataset);
            assert_eq!(cursor.drawn, cursor.epoch * cursor.entries + cursor.index, "each record once an epoch");
        }
    }
}

#[test]
fn every_fault_is_counted_and_shown() {
    let folder = Folder::new();
    folder.sights().write("broken.png", "no picture");
    let good = turns("fine");
    let long = turns(&"word ".repeat(900));
    let records = [
        format!(r#"{{"conversations": {good}}}"#),
        r#"{"conversations": ["#.to_owned(),
        r#"{"id": 3}"#.to_owned(),
        r#"{"conversations": [{"from": "alien", "value": "x"}]}"#.to_owned(),
        format!(r#"{{"image": "absent.png", "conversations": {good}}}"#),
        format!(r#"{{"image": "broken.png", "conversations": {good}}}"#),
        format!(r#"{{"video": "absent.mp4", "conversations": {good}}}"#),
        r#"{"image": "coins.png", "conversations": [{"from": "human", "value": "<image> <image>"}, {"from": "gpt", "value": "x"}]}"#.to_owned(),
        r#"{"conversations": [{"from": "human", "value": "hm"}, {"from": "gpt", "value": " "}]}"#.to_owned(),
        format!(r#"{{"images": ["coins.png", "page.png", "coins.png", "page.png"], "conversations": {good}}}"#),
        format!(r#"{{"conversations": {long}}}"#),
    ];
    let path = folder.write("a.jsonl", records.join("\n"));
    let set = Dataset::new("a", path.clone(), Layout::Llava, Labelling::Instruct);
    let mut feed = Feed::open(&[set], &Mix::new(), &senses(), options(300, 6, 9, 2)).unwrap();
    let mut read = 0;
    while feed.state().cursors[0].epoch < 3 {
        read += take(&mut feed, 1).len();
    }
    assert!(read > 0);
    let report = feed.report();
    let tally = &report.sets["a"];
    let wanted = BTreeMap::from([
        (Reason::Unreadable, vec![1]),
        (Reason::Fields, vec![2]),
        (Reason::Role, vec![3]),
        (Reason::Picture, vec![4, 5]),
        (Reason::Video, vec![6]),
        (Reason::Marks, vec![7]),
        (Reason::NoAnswer, vec![8]),
        (Reason::TooManyTiles, vec![9]),
        (Reason::TooLong, vec![10]),
    ]);
    assert!(tally.skipped.keys().eq(wanted.keys()), "{report}");
    for (reason, records) in wanted {
        let kind = &tally.skipped[&reason];
        let mut shown: Vec<u64> = kind.examples.iter().map(|e| e.record).collect();
        shown.sort();
        assert_eq!(shown, records, "{reason:?}");
        assert!(kind.count >= 3 * records.len() as u64 && kind.examples.iter().all(|e| e.file.ends_with("a.jsonl")));
    }
    assert!(report.to_string().contains("absent.png") && report.to_string().contains("alien"), "{report}");
}

#[test]
fn what_is_wrong_as_a_whole_is_an_error() {
    let folder = Folder::new();
    let open = |set: Dataset, mix: Mix| Feed::open(&[set], &mix, &senses(), options(64, 1, 0, 1)).map(|_| ());
    let set = |path: &str| Dataset::new("a", folder.0.join(path), Layout::Llava, Labelling::Instruct);
    assert!(matches!(open(set("absent.json"), Mix::new()), Err(Error::File { .. })));
    folder.write("empty.json", "[]");
    assert!(open(set("empty.json"), Mix::new()).is_err());
    folder.write("one.json", format!(r#"[{{"conversations": {}}}]"#, turns("y")));
    let error = open(set("one.json"), Mix::from([("b".to_owned(), 1.0)])).unwrap_err().to_string();
    assert!(error.contains("`b`"), "{error}");
    folder.write("bad.json", "[1, 2, 3]");
    let mut feed = Feed::open(&[set("bad.json")], &Mix::new(), &senses(), options(64, 1, 0, 1)).unwrap();
    let error = feed.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("no usable record") && feed.next().is_none(), "{error}");
    let toml = serde_json::json!({"name": "a", "path": "x", "layout": "llava", "labels": "instruct", "frame": 3});
    assert!(serde_json::from_value::<Dataset>(toml).unwrap_err().to_string().contains("frame"));
    let state = Feed::open(&[set("one.json")], &Mix::new(), &senses(), options(64, 1, 0, 1)).unwrap().state();
    let other = Feed::resume(&[set("one.json")], &Mix::new(), &senses(), options(64, 1, 1, 1), &state);
    assert!(other.err().unwrap().to_string().contains("seed"));
}

/// A file that was changed in place, with as many records of the same lengths, is not gone on with.
#[test]
fn files_that_changed_are_not_gone_on_with() {
    let folder = Folder::new();
    let (sets, mix) = sets(&folder);
    let (senses, options) = (senses(), options(400, 9, 5, 2));
    let mut feed = Feed::open(&sets, &mix, &senses, options).unwrap();
    take(&mut feed, 1);
    let state = feed.state();
    let chat = &sets[2].path;
    let text = std::fs::read_to_string(chat).unwrap();
    std::fs::write(chat, text.replacen("no no ", "no on ", 1)).unwrap();
    let e = Feed::resume(&sets, &mix, &senses, options, &state).err().unwrap().to_string();
    assert!(e.contains("chat.jsonl") && e.contains("no longer") && e.contains("`chat`"), "{e}");
    // A position of an earlier version knows no sums.
    let mut old = serde_json::to_value(&state).unwrap();
    assert!(old.as_object_mut().unwrap().remove("sums").is_some());
    let old: State = serde_json::from_value(old).unwrap();
    assert!(Feed::resume(&sets, &mix, &senses, options, &old).is_ok());
    std::fs::write(chat, text).unwrap();
    assert!(Feed::resume(&sets, &mix, &senses, options, &state).is_ok());
}
