//! Where records are found, and in which order they are read.
#![allow(clippy::unwrap_used)]

mod common;

use common::Folder;
use omchat_recipe::index;
use omchat_recipe::mix::{Draw, Mix};
use omchat_recipe::order::{Permutation, key};
use omchat_recipe::shards;
use omchat_recipe::spec::{Dataset, Labelling, Layout, Split};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

fn texts(path: &Path, spans: Vec<index::Span>) -> Vec<String> {
    spans.into_iter().map(|s| String::from_utf8(index::read(path, s).unwrap()).unwrap().trim().to_owned()).collect()
}

#[test]
fn records_of_arrays_and_of_lines() {
    let folder = Folder::new();
    let json = |text: &str| {
        let path = folder.write("a.json", text);
        texts(&path, index::json(&path).unwrap())
    };
    let tricky = [r#"{"a": "],[ \" \\"}"#, r#"{"b": [1, [2, {"c": "}"}]]}"#, "3", r#""four, five""#, "null"];
    assert_eq!(json(&format!("  [{}\n]\n", tricky.join(" ,\n "))), tricky);
    assert_eq!(json(&format!("\u{feff}{}", tricky[..2].join("\n\n  \r\n"))), &tricky[..2]);
    assert_eq!(json(&format!("[{}, {{\"cut\": \"of", tricky[0])), [tricky[0], "{\"cut\": \"of"]);
    assert!(json("").is_empty() && json(" \n").is_empty() && json("[]").is_empty() && json("[ ] ").is_empty());
}

#[test]
fn documents_of_texts() {
    let folder = Folder::new();
    let text = |text: &str, split| {
        let path = folder.write("a.txt", text);
        texts(&path, index::text(&path, split).unwrap())
    };
    assert_eq!(text("\n\na\nb\n\n \t\nc", Split::BlankLines), ["a\nb", "c"]);
    assert_eq!(text("a\n\nb", Split::File), ["a\n\nb"]);
    assert_eq!(text("a > b<|endoftext|>\n<|endoftext|> c <x|>", Split::Endoftext), ["a > b", "c <x|>"]);
    for split in [Split::File, Split::BlankLines, Split::Endoftext] {
        assert!(text("", split).is_empty());
    }
}

#[test]
fn a_mixture_repeats_its_files() {
    let folder = Folder::new();
    for (name, n) in [("a", 10), ("b", 3), ("c", 4)] {
        folder.write(&format!("{name}.jsonl"), "{}\n".repeat(n));
    }
    let meta = r#"{"a": {"root": "pics", "annotation": "a.jsonl", "repeat_time": 0.3, "length": 10, "data_augment": false},
        "b": {"annotation": "b.jsonl", "repeat_time": 2.34}, "c": {"annotation": "c.jsonl"}}"#;
    let set = Dataset::new("m", folder.write("meta.json", meta), Layout::Internvl, Labelling::Instruct);
    let open = shards::open(&set).unwrap();
    assert_eq!(open[0].root, folder.0.join("pics"));
    assert_eq!(shards::entries(&open), 3 + 7 + 4);
    let mut all: BTreeMap<(u32, u64), u32> = BTreeMap::new();
    for epoch in 0..40 {
        let mut count: BTreeMap<(u32, u64), u32> = BTreeMap::new();
        for index in 0..14 {
            let place = shards::place(&open, 1, "m", epoch, index).unwrap();
            *count.entry(place).or_default() += 1;
            *all.entry(place).or_default() += 1;
        }
        let of = |shard| count.iter().filter(move |((s, _), _)| *s == shard).map(|(_, n)| *n).collect::<Vec<_>>();
        assert_eq!(of(0), [1; 3], "a fraction takes distinct records");
        let mut b = of(1);
        b.sort();
        assert_eq!((b, of(2)), (vec![2, 2, 3], vec![1; 4]));
    }
    assert_eq!(all.len(), 17, "each epoch takes others, and so all in the end");
    let wrong = folder.write("meta.json", meta.replace("10,", "11,"));
    assert!(shards::open(&set).unwrap_err().to_string().contains("11 records and has 10"), "{wrong:?}");
    folder.write("meta.json", r#"{"a": {"annotation": "none.jsonl"}}"#);
    assert!(matches!(shards::open(&set), Err(omchat_recipe::Error::File { .. })));
}

#[test]
fn a_folder_is_read_in_the_order_of_names() {
    let folder = Folder::new();
    for name in ["b.txt", "a.txt", "c.png"] {
        folder.write(name, name);
    }
    let set = Dataset::new("t", &folder.0, Layout::Text, Labelling::Pretrain);
    let names: Vec<String> = shards::open(&set)
        .unwrap()
        .iter()
        .map(|s| s.path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ["a.txt", "b.txt"]);
    let none = Dataset::new("t", &folder.0, Layout::Llava, Labelling::Instruct);
    assert!(shards::open(&none).unwrap_err().to_string().contains("jsonl"));
}

proptest! {
    #[test]
    fn an_epoch_is_a_permutation(n in 0u64..3000, seed: u64, epoch in 0u64..9) {
        let order = Permutation::new(n, key(seed, "x", epoch));
        let mut all: Vec<u64> = (0..n).map(|place| order.at(place)).collect();
        if n > 60 {
            let other = Permutation::new(n, key(seed, "x", epoch + 1));
            let same = (0..n).filter(|place| other.at(*place) == all[*place as usize]).count();
            prop_assert!(same < 20, "{} of {} stay", same, n);
        }
        all.sort();
        prop_assert_eq!(all, (0..n).collect::<Vec<_>>());
    }

    #[test]
    fn shares_hold_all_along(percents in proptest::collection::vec(0.01f64..60.0, 1..9)) {
        let sets: Vec<(String, u64)> = (0..percents.len()).map(|i| (format!("{i}"), 5)).collect();
        let mix: Mix = sets.iter().zip(&percents).map(|((name, _), p)| (name.clone(), *p)).collect();
        let draw = Draw::new(&sets, &mix).unwrap();
        let sum: f64 = percents.iter().sum();
        let mut drawn = vec![0u64; sets.len()];
        for n in 1..2000u64 {
            let next = draw.next(&drawn);
            drawn[next] += 1;
            for (d, p) in drawn.iter().zip(&percents) {
                prop_assert!((*d as f64 - p / sum * n as f64).abs() <= sets.len() as f64);
            }
        }
    }
}

#[test]
fn percentages_that_cannot_be_used() {
    let sets = [("a".to_owned(), 5), ("b".to_owned(), 0)];
    let refused =
        |mix: &[(&str, f64)]| Draw::new(&sets, &mix.iter().map(|(n, p)| ((*n).to_owned(), *p)).collect()).is_err();
    assert!(!refused(&[("a", 1.0), ("b", 0.0)]) && !refused(&[]));
    for mix in
        [&[("a", 1.0)][..], &[("a", 1.0), ("b", 1.0)], &[("a", -1.0), ("b", 0.0)], &[("a", f64::NAN), ("b", 0.0)]]
    {
        assert!(refused(mix), "{mix:?}");
    }
    assert!(refused(&[("a", 0.0), ("b", 0.0)]) && refused(&[("a", 1.0), ("b", 0.0), ("c", 1.0)]));
}
