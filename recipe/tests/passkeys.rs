//! Passkey documents: answers are true to their texts, read here by rules of the test; the same document for the same
//! seed and index; sizes as the options' pages say; refusals that name what is wrong.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_model::OmChatConfig;
use omchat_model::tokenizer::Tokenizer;
use omchat_recipe::passkeys::{Document, Options, document, haystack, write};
use serde_json::Value;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;

/// Each place of a text and its number, as they are written.
fn told(text: &str) -> Vec<(String, String)> {
    let mut out = vec![];
    for part in text.split("The special magic ").skip(1) {
        let (city, rest) = part.split_once(" number is: ").unwrap();
        out.push((city.into(), rest.split_once('.').unwrap().0.into()));
    }
    out
}

fn drawn() -> Vec<(u64, u64, Options)> {
    let base = RandomState::new().build_hasher().finish();
    println!("seed {base}");
    let mut out = vec![];
    for index in 0..40 {
        let bits = base.rotate_left(index as u32);
        let at = |shift: u32, end: u64| ((bits >> shift) % end) as usize;
        let (few, low, short) = (1 + at(3, 19), at(11, 30), 1 + at(23, 63));
        out.push((
            base,
            index,
            Options {
                sentences: [low, low + at(17, 13)],
                needles: [few, few + at(29, 21 - few as u64)],
                digits: [short, short + at(37, 65 - short as u64)],
                depth: None,
                turns: 1 + at(43, 31),
            },
        ));
    }
    out
}

#[test]
fn answers_are_true_to_the_text() {
    for (seed, index, options) in drawn() {
        let found = document(&options, seed, index).unwrap();
        let told = told(&found.text);
        let cities: BTreeSet<&String> = told.iter().map(|(city, _)| city).collect();
        assert_eq!(cities.len(), told.len(), "two numbers of one place: {}", found.text);
        assert!((options.needles[0]..=options.needles[1]).contains(&told.len()), "{options:?} {}", found.text);
        for (_, number) in &told {
            assert!((options.digits[0]..=options.digits[1]).contains(&number.len()), "{options:?} {number}");
            assert!(number.bytes().all(|c| c.is_ascii_digit()) && (number.len() == 1 || !number.starts_with('0')));
        }
        let others = found.text.matches('.').count() - told.len();
        assert!((options.sentences[0]..=options.sentences[1]).contains(&others), "{options:?} {others}");
        let record = found.record();
        let turns = record["messages"].as_array().unwrap();
        assert_eq!(turns.len(), 2 * options.turns);
        let mut asked = vec![0usize; told.len()];
        for (i, pair) in turns.chunks(2).enumerate() {
            let [ask, answer] = [0, 1].map(|k| pair[k]["content"].as_str().unwrap());
            assert_eq!([&pair[0]["role"], &pair[1]["role"]], ["user", "assistant"]);
            let ask = if i == 0 { ask.strip_prefix(&format!("{}\n\n", found.text)).unwrap() } else { ask };
            let city = ask.strip_prefix("What is the special magic ").unwrap().split_once(" number? ").unwrap().0;
            let which = told.iter().position(|(name, _)| name == city).unwrap();
            assert_eq!(answer, format!("The special magic {city} number is: {}.", told[which].1), "{ask}");
            asked[which] += 1;
        }
        // Each needle in turn: no needle is asked for twice more often than another.
        assert!(asked.iter().max().unwrap() - asked.iter().min().unwrap() <= 1, "{asked:?}");
    }
}

#[test]
fn a_document_is_a_function_of_its_seed_and_index() {
    let options = Options::default();
    let draw = |seed, index| document(&options, seed, index).unwrap();
    let all: Vec<Document> = (0..50).map(|index| draw(3, index)).collect();
    assert!((0..50).rev().all(|index| draw(3, index) == all[index as usize]));
    let texts: BTreeSet<&String> = all.iter().map(|d| &d.text).collect();
    assert_eq!(texts.len(), 50);
    assert!(draw(4, 0) != all[0]);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("passkeys");
    write(&options, 3, 10, 7, &folder).unwrap();
    let lines = std::fs::read_to_string(folder.join("data.jsonl")).unwrap();
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records, (10..17).map(|i| all[i].record()).collect::<Vec<_>>());
}

/// Where numbers stand: each tenth of the text holds its share.
#[test]
fn needles_stand_anywhere() {
    let options = Options { sentences: [99, 99], needles: [1, 1], ..Options::default() };
    let mut tenths = [0usize; 10];
    for index in 0..2000 {
        let text = document(&options, 8, index).unwrap().text;
        let before = text.split("The special").next().unwrap().matches('.').count();
        tenths[before / 10] += 1;
    }
    // Four standard deviations of a count of 2000 with a share of a tenth.
    assert!(tenths.iter().all(|n| n.abs_diff(200) <= 54), "{tenths:?}");
}

/// A depth moves a lone needle to its share of the sentences, and changes nothing else of the text; of several it moves none.
#[test]
fn a_lone_needle_stands_at_its_depth() {
    for sentences in [0, 1, 2, 7, 101] {
        let at = |depth, count| {
            let options =
                Options { sentences: [sentences, sentences], needles: [count, count], depth, ..Options::default() };
            (0..20).map(move |index| document(&options, 31, index).unwrap())
        };
        for depth in [0.0, 0.25, 0.5, 1.0] {
            for (moved, free) in at(Some(depth), 1).zip(at(None, 1)) {
                let before = moved.text.split("The special").next().unwrap().matches('.').count();
                assert!((before as f32 - depth * sentences as f32).abs() <= 0.5, "{depth} of {sentences}: {before}");
                let others = |d: &Document| -> Vec<String> {
                    let parts = d.text.split_inclusive('.').map(|part| part.trim().to_string());
                    parts.filter(|part| !part.starts_with("The special")).collect()
                };
                assert_eq!(others(&moved), others(&free));
                assert_eq!(moved.needles, free.needles);
            }
            assert!(at(Some(depth), 3).eq(at(None, 3)));
        }
    }
}

#[test]
fn tokens_are_as_the_options_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/passkey");
    let tokenizer = Tokenizer::from_dir(&folder, &OmChatConfig::from_dir(&folder).unwrap()).unwrap();
    let count = |text: &str| tokenizer.encode(text).unwrap().len();
    for sentence in haystack(500, 1).split_inclusive('.') {
        assert!((8..=11).contains(&count(sentence)), "{sentence}");
    }
    for index in 0..40 {
        let options = Options { sentences: [2, 2], needles: [1, 4], ..Options::default() };
        let found = document(&options, 1, index).unwrap();
        for (city, number) in &found.needles {
            let needle = count(&format!(" The special magic {city} number is: {number}."));
            assert!((16..=17).contains(&needle), "{city}: {needle}");
            assert_eq!(count(number), number.len());
        }
    }
}

#[test]
fn what_cannot_be_drawn_is_named() {
    let base = Options::default();
    let refused = |options: Options, what: &str| {
        let why = document(&options, 1, 1).unwrap_err().to_string();
        assert!(why.contains(what), "{why}");
    };
    refused(Options { needles: [0, 2], ..base.clone() }, "needles from 0 to 2");
    refused(Options { needles: [1, 21], ..base.clone() }, "needles from 1 to 21");
    refused(Options { sentences: [5, 4], ..base.clone() }, "sentences from 5 to 4");
    refused(Options { digits: [7, 65], ..base.clone() }, "digits from 7 to 65");
    refused(Options { depth: Some(1.5), ..base.clone() }, "depth 1.5");
    refused(Options { depth: Some(f32::NAN), ..base.clone() }, "depth NaN");
    refused(Options { turns: 0, ..base }, "0 questions");
}
