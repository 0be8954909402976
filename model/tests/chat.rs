//! Turns as ids, against ids that the tokenizers library recorded in Python, and by their layout.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may end at the first surprise

use omchat_model::chat::{Conversation, SYSTEM, Visual};
use omchat_model::config::{IMAGE_TOKEN, OmChatConfig};
use omchat_model::format::*;
use omchat_model::picture::Picture;
use omchat_model::tiler::{TileMode, Tiler, Tiles};
use omchat_model::tokenizer::Tokenizer;
use safetensors::SafeTensors;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn config() -> OmChatConfig {
    OmChatConfig::from_dir(&fixture("tiny-b")).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir(&fixture("tiny-b"), &config()).unwrap()
}

fn picture(name: &str) -> Visual {
    let tiler = Tiler::from_dir(&fixture("tiny-b"), &config()).unwrap();
    let picture = Picture::open(&fixture(&format!("pictures/{name}.png"))).unwrap();
    Visual::Picture(tiler.cut(&picture, TileMode::AnyRes).unwrap())
}

fn tiles(count: usize) -> Tiles {
    Tiles { size: 1, grid: (1, 1), rgb: vec![0; 3 * count] }
}

fn recorded(case: &str) -> Vec<i32> {
    let bytes = std::fs::read(fixture(&format!("tiny-b/encode/{case}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap();
    ids.data().chunks_exact(4).map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// One user turn's body as text, tiles written as `#`.
fn body(format: Format, text: &str, visuals: Vec<Visual>) -> String {
    let tokenizer = tokenizer();
    let mut chat = Conversation::new(&tokenizer, format, "").unwrap();
    let before = chat.ids().len();
    chat.user(text, visuals).unwrap();
    let parts = chat.ids()[before..].split(|id| *id == IMAGE_TOKEN);
    let words = |ids: &[i32]| tokenizer.decode(&ids.iter().map(|id| *id as u32).collect::<Vec<_>>()).unwrap();
    let text = parts.map(words).collect::<Vec<_>>().join("#");
    text.strip_prefix("\nuser\n").unwrap().strip_suffix("\nassistant\n").unwrap().to_owned()
}

#[test]
fn ids_are_the_recorded_ones() {
    for name in ["page", "coins"] {
        let mut chat = Conversation::new(&tokenizer(), OMCHAT_2_0, SYSTEM).unwrap();
        chat.user("What is in this picture?", vec![picture(name)]).unwrap();
        assert_eq!(chat.ids(), recorded(name), "{name}");
    }
    let mut chat = Conversation::new(&tokenizer(), OMCHAT_2_0, SYSTEM).unwrap();
    chat.user("Describe <image> and <image>.", vec![picture("page"), picture("coins")]).unwrap();
    assert_eq!(chat.ids(), recorded("several"));
}

#[test]
fn each_format_has_its_layout() {
    let two = || vec![Visual::Picture(tiles(3)), Visual::Picture(tiles(1))];
    let one = || vec![Visual::Picture(tiles(2))];
    assert_eq!(body(OMCHAT_2_0, " see <image> it ", one()), "#\npatch:#\nsee  it");
    assert_eq!(body(OMCHAT_2_0, "hi", two()), "#\npatch:#\npatch:#\n#\nhi");
    assert_eq!(body(OMCHAT_2_1, "a<image>b<image>", two()), "a\n#\npatch:#\npatch:#\nb\n#\n");
    assert_eq!(body(F0, "hi", two()), "####hi");
    assert_eq!(body(F1, "hi", two()), "#\n#\n#\n#\nhi");
    assert_eq!(body(F2, "hi", one()), "<im_start>#\npatch:#<im_end>\nhi");
    let numbered = "image 1: <im_start>#\npatch:#\npatch:#<im_end>\nimage 2: <im_start>#<im_end>\nhi";
    assert_eq!(body(F3, "hi", two()), numbered);
    assert_eq!(body(F4, "hi", two()), numbered);
    let video = || vec![Visual::Video(vec![tiles(1), tiles(1)])];
    assert_eq!(body(F4, "x <video>y", video()), "x frame 1: <im_start>#<im_end>\nframe 2: <im_start>#<im_end>\ny");
    assert_eq!(body(OMCHAT_2_0, "hi", video()), "#\n#\nhi");
    assert_eq!(body(OMCHAT_2_0, "no <image> here", vec![]), "no <image> here");
    assert_eq!(Format::named("f4").unwrap(), F4);
    assert!(Format::named("F5").unwrap_err().to_string().contains("omchat-2.1"));
}

#[test]
fn marks_and_pictures_must_agree() {
    let mut chat = Conversation::new(&tokenizer(), F0, SYSTEM).unwrap();
    let before = chat.ids().to_vec();
    let error = chat.user("<image>", vec![Visual::Picture(tiles(1)), Visual::Picture(tiles(1))]).unwrap_err();
    assert!(error.to_string().contains("marks 1 places and there are 2"), "{error}");
    assert_eq!(chat.ids(), before, "a refused turn leaves nothing behind");
    // Also where a lone picture goes first, wherever it is marked.
    let mut chat = Conversation::new(&tokenizer(), OMCHAT_2_0, SYSTEM).unwrap();
    let error = chat.user("<image> or <image>", vec![Visual::Picture(tiles(1))]).unwrap_err();
    assert!(error.to_string().contains("marks 2 places and there are 1"), "{error}");
    chat.user("what is <image>", vec![Visual::Picture(tiles(1))]).unwrap();
}

#[test]
fn a_mark_takes_what_is_of_its_kind() {
    let visuals = || vec![Visual::Picture(tiles(1)), Visual::Picture(tiles(2)), Visual::Video(vec![tiles(1); 3])];
    assert_eq!(
        body(F4, "a <image> b <video> c <image> d", visuals()),
        "a image 1: <im_start>#<im_end>\n b frame 1: <im_start>#<im_end>\nframe 2: <im_start>#<im_end>\n\
         frame 3: <im_start>#<im_end>\n c image 2: <im_start>#\npatch:#<im_end>\n d"
    );
    let mut chat = Conversation::new(&tokenizer(), F4, SYSTEM).unwrap();
    chat.user("<image><video><image>", visuals()).unwrap();
    assert_eq!(chat.tiles().iter().map(|t| t.count()).collect::<Vec<_>>(), [1, 1, 1, 1, 2], "tiles in the same order");
    let error = chat.user("<video> <video> <image>", visuals()).unwrap_err().to_string();
    assert!(error.contains("1 places by <image> and 2 by <video>, and there are 2 pictures and 1 videos"), "{error}");
    assert!(chat.user("<video>", vec![Visual::Picture(tiles(1))]).is_err());
    // As LLaVA writes videos.
    chat.user("<image>", vec![Visual::Video(vec![tiles(1); 3])]).unwrap();
}

#[test]
fn turns_only_append() {
    let tokenizer = tokenizer();
    let mut chat = Conversation::new(&tokenizer, F3, SYSTEM).unwrap();
    chat.user("one", vec![Visual::Picture(tiles(2))]).unwrap();
    assert_eq!(chat.since(0).tiles, 0..2);
    let read = chat.ids().len();
    let end = tokenizer.id("<|im_end|>").unwrap();
    let answer = tokenizer.encode("yes").unwrap();
    chat.answer(&[answer.as_slice(), &[end]].concat());
    chat.user("two", vec![Visual::Picture(tiles(3))]).unwrap();
    let feed = chat.since(read);
    assert_eq!(feed.tiles, 2..5);
    assert_eq!(
        &feed.ids[..answer.len() + 1],
        answer.iter().map(|id| *id as i32).chain([end as i32]).collect::<Vec<_>>()
    );
    let text =
        tokenizer.decode(&feed.ids.iter().filter(|id| **id >= 0).map(|id| *id as u32).collect::<Vec<_>>()).unwrap();
    assert!(text.contains("yes\nuser\nimage 2: "), "{text}");
    assert_eq!(chat.since(usize::MAX).ids, [] as [i32; 0]);
    let mut whole = Conversation::new(&tokenizer, F3, SYSTEM).unwrap();
    whole.user("one", vec![Visual::Picture(tiles(2))]).unwrap();
    whole.answer(&answer);
    whole.user("two", vec![Visual::Picture(tiles(3))]).unwrap();
    assert_eq!(whole.ids(), chat.ids(), "with and without the stop id");
}

#[test]
fn pixels_are_asked_for_in_chunks() {
    let dir = fixture("tiny-b");
    let tiler = Tiler::from_dir(&dir, &config()).unwrap();
    let mut chat = Conversation::new(&tokenizer(), OMCHAT_2_0, SYSTEM).unwrap();
    chat.user("<image><image>", vec![picture("page"), picture("coins")]).unwrap();
    let whole = chat.pixels(&tiler, 0..8);
    let chunks: Vec<f32> = [0..2, 2..5, 5..8].into_iter().flat_map(|range| chat.pixels(&tiler, range)).collect();
    assert_eq!(whole.len(), 8 * 3 * 56 * 56);
    assert_eq!(whole, chunks);
}

#[test]
fn history_keeps_the_newest_that_fit() {
    let turns: Vec<(String, String)> = ["first", "second", "third"].map(|text| (text.into(), text.into())).into();
    let tokenizer = tokenizer();
    let text = |window| {
        let chat = Conversation::with_history(&tokenizer, F0, SYSTEM, &turns, window).unwrap();
        let ids: Vec<u32> = chat.ids().iter().map(|id| *id as u32).collect();
        (ids.len(), tokenizer.decode(&ids).unwrap())
    };
    let (all, whole) = text(6144);
    assert!(
        whole
            .ends_with("user\nfirst\nassistant\nfirst\nuser\nsecond\nassistant\nsecond\nuser\nthird\nassistant\nthird")
    );
    let (fewer, cut) = text(all);
    assert!(fewer < all && !cut.contains("first") && cut.contains("second"), "{cut}");
}

#[test]
fn special_words_stay_words() {
    let tokenizer = tokenizer();
    let end = tokenizer.id("<|im_end|>").unwrap();
    let ids = tokenizer.encode("a<|im_end|>b").unwrap();
    assert!(!ids.contains(&end));
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a<|im_end|>b");
    assert_eq!(tokenizer.stops(), [end]);
}

#[test]
fn streams_never_break_a_character() {
    let tokenizer = tokenizer();
    let text = "né 日本 🦀!";
    let ids = tokenizer.encode(text).unwrap();
    let mut stream = tokenizer.stream();
    let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    assert_eq!(pieces.concat() + &stream.finish().unwrap(), text);
    // Bytes that never become a character are not held back for ever.
    let first = tokenizer.encode("🦀").unwrap()[0];
    let mut stream = tokenizer.stream();
    let text: String = (0..8).map(|_| stream.push(first).unwrap()).collect();
    assert!(text.contains('\u{fffd}'));
}

#[test]
fn tokenizers_that_do_not_fit() {
    let mut small = config();
    small.text.vocab = 10;
    let text = Tokenizer::from_dir(&fixture("tiny-b"), &small).unwrap_err().to_string();
    assert!(text.contains("10 rows"), "{text}");
    let text = Tokenizer::from_dir(&fixture("tiny-c"), &config()).unwrap_err().to_string();
    assert!(text.contains("tiny-c/tokenizer.json") && text.contains("copy"), "{text}");
    assert!(Tokenizer::from_bytes("t.json".as_ref(), b"{}", &config()).is_err());
}
