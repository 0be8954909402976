//! Which ids are trained, against ids and marks written out by the rule.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Folder, senses};
use omchat_model::chat::{Conversation, SYSTEM};
use omchat_model::splice::Slot;
use omchat_recipe::document::{Document, Reader, Room};
use omchat_recipe::spec::{Dataset, Labelling, Layout};

/// A piece of the expected sequence: words, a token by its id, or feature rows.
enum Piece {
    Words(&'static str, bool),
    Id(u32, bool),
    Rows(usize),
}
use Piece::{Id, Rows, Words};

/// The ids of models/tiny: `<|endoftext|>` 0, `<|im_start|>` 1, `<|im_end|>` 2.
const START: u32 = 1;
const END: u32 = 2;

fn check(document: &Document, pieces: &[Piece]) {
    let senses = senses();
    assert_eq!((senses.tokenizer.id("<|im_start|>"), senses.tokenizer.id("<|im_end|>")), (Some(START), Some(END)));
    let mut slots = vec![];
    let mut own = vec![];
    let mut row = 0;
    for piece in pieces {
        match piece {
            Words(text, trained) => {
                for id in senses.tokenizer.encode(text).unwrap() {
                    slots.push(Slot::Text(id));
                    own.push(if *trained { id as i32 } else { -100 });
                }
            }
            Id(id, trained) => {
                slots.push(Slot::Text(*id));
                own.push(if *trained { *id as i32 } else { -100 });
            }
            Rows(tiles) => {
                for _ in 0..tiles * 16 {
                    slots.push(Slot::Image(row));
                    own.push(-100);
                    row += 1;
                }
            }
        }
    }
    assert_eq!(document.slots, slots);
    own.remove(0);
    own.push(-100);
    assert_eq!(document.labels, own, "each position predicts the next");
}

fn read(layout: Layout, labels: Labelling, text: &str, change: impl Fn(&mut Dataset)) -> Document {
    let folder = Folder::new();
    folder.sights();
    let path = folder.write("a.json", text);
    let mut set = Dataset::new("a", path, layout, labels);
    change(&mut set);
    let reader = Reader::open(&set, &senses(), Room { positions: 4096, tiles: 64 }).unwrap();
    let mut all = reader.read(0, 0).unwrap().unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

const TWO: &str = r#"[{"id": 7, "conversations": [
    {"from": "human", "value": "Hi there"}, {"from": "gpt", "value": "Hello."},
    {"from": "human", "value": "And now"}, {"from": "gpt", "value": "Bye!"}]}]"#;

#[test]
fn a_conversation_is_trained_as_omchat_trains_it() {
    let expected = |frame: bool, newline: bool| {
        let mut all = vec![Id(START, frame), Words("system", false), Words("\n", false)];
        all.extend([Words(SYSTEM, false), Id(END, frame), Words("\n", newline)]);
        for (role, text, answer) in [
            ("user", "Hi there", false),
            ("assistant", "Hello.", true),
            ("user", "And now", false),
            ("assistant", "Bye!", true),
        ] {
            all.extend([Id(START, frame), Words(role, false), Words("\n", false)]);
            all.extend([Words(text, answer), Id(END, frame || answer), Words("\n", newline)]);
        }
        all
    };
    check(&read(Layout::Llava, Labelling::Instruct, TWO, |_| {}), &expected(true, true));
    check(&read(Layout::Llava, Labelling::AnswersOnly, TWO, |_| {}), &expected(false, false));
}

/// What is trained is laid out as what is asked later.
#[test]
fn the_layout_is_the_one_of_a_session() {
    let document = read(Layout::Llava, Labelling::Instruct, TWO, |_| {});
    let senses = senses();
    let mut chat = Conversation::new(&senses.tokenizer, senses.format, SYSTEM).unwrap();
    chat.user("Hi there", vec![]).unwrap();
    chat.answer(&senses.tokenizer.encode("Hello.").unwrap());
    chat.user("And now", vec![]).unwrap();
    let asked: Vec<Slot> = chat.ids().iter().map(|id| Slot::Text(*id as u32)).collect();
    assert_eq!(document.slots[..asked.len()], asked);
}

#[test]
fn pictures_and_videos_stand_at_their_marks() {
    let text = r#"{"messages": [{"role": "system", "content": "S"},
        {"role": "user", "content": "a <image> b <video> c"}, {"role": "assistant", "content": "one <image>"},
        {"role": "user", "content": "<image>d"}, {"role": "assistant", "content": "two"}],
        "images": ["coins.png", {"path": "page.png"}], "videos": ["ball.gif"]}"#
        .replace('\n', " ");
    let document = read(Layout::MsSwift, Labelling::Instruct, &text, |set| {
        set.format = Some("F3".to_owned());
        set.frames = 2;
        set.max_tiles = Some(1);
    });
    let has = senses().tokenizer.id("<im_start>").is_some();
    assert!(!has, "this model spells <im_start> in words");
    let nl = || Words("\n", true);
    let open = |role| [Id(START, true), Words(role, false), Words("\n", false)];
    let mut all = vec![];
    all.extend(open("system"));
    all.extend([Words("S", false), Id(END, true), nl()]);
    all.extend(open("user"));
    all.extend([
        Words("a image 1: <im_start>", false),
        Rows(1),
        Words("<im_end>\n b frame 1: <im_start>", false),
        Rows(1),
    ]);
    all.extend([
        Words("<im_end>\nframe 2: <im_start>", false),
        Rows(1),
        Words("<im_end>\n c", false),
        Id(END, true),
        nl(),
    ]);
    all.extend(open("assistant"));
    all.extend([Words("one <image>", true), Id(END, true), nl()]);
    all.extend(open("user"));
    all.extend([Words("image 2: <im_start>", false), Rows(1), Words("<im_end>\nd", false), Id(END, true), nl()]);
    all.extend(open("assistant"));
    all.extend([Words("two", true), Id(END, true), nl()]);
    check(&document, &all);
    assert_eq!(document.tiles.len(), 4);
}

#[test]
fn alignment_trains_the_caption() {
    let text = r#"[{"image": "coins.png", "conversations": [
        {"from": "human", "value": "Describe this.\n<image>"}, {"from": "gpt", "value": "some coins"}]}]"#;
    let document = read(Layout::Llava, Labelling::Align, text, |set| set.max_tiles = Some(1));
    check(&document, &[Rows(1), Words("some coins\n", true)]);
}

#[test]
fn pretraining_trains_every_id_but_pictures() {
    let text = r#"{"text": "before <image> after <image>", "images": ["coins.png", "page.png"]}"#;
    let document = read(Layout::MsSwift, Labelling::Pretrain, text, |set| {
        set.format = Some("F0".to_owned());
        set.max_tiles = Some(1);
    });
    check(&document, &[Words("before ", true), Rows(1), Words(" after ", true), Rows(1), Id(0, true)]);
    let one = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;
    let document = read(Layout::MsSwift, Labelling::Pretrain, one, |set| set.system = Some("s".to_owned()));
    let mut all = vec![];
    for (role, text) in [("system", "s"), ("user", "q"), ("assistant", "a")] {
        all.extend([
            Id(START, true),
            Words(role, true),
            Words("\n", true),
            Words(text, true),
            Id(END, true),
            Words("\n", true),
        ]);
    }
    check(&document, &all);
}

#[test]
fn fewer_tiles_where_a_data_set_says_so() {
    let text = r#"[{"image": "coins.png", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]"#;
    let count = |most| read(Layout::Llava, Labelling::Instruct, text, |set| set.max_tiles = most).tile_count();
    let free = count(None);
    assert!(free > 2, "{free}");
    for most in 1..=free {
        let found = count(Some(most));
        assert!((1..=most).contains(&found), "{found} of {most}");
    }
    assert_eq!(count(Some(free)), free);
}
