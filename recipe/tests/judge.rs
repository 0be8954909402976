//! Questions, their scores and their logs, with scripts in a model's place.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_model::OmChatConfig;
use omchat_model::picture::Picture;
use omchat_model::tokenizer::Tokenizer;
use omchat_recipe::judge::haystack::Haystack;
use omchat_recipe::judge::needle::{NEEDLE, Needles, QUESTION};
use omchat_recipe::judge::temporal::{Kind, Single, Temporal, blank, digits};
use omchat_recipe::judge::{
    Answer, Expected, Grid, Log, Metric, Outcome, Prompt, Question, Refusal, Report, Sight, ask_all, draw::Draw, grid,
};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// An answerer that is a function.
struct Script<F>(F, usize);

impl<F: FnMut(&Question) -> Result<String, Refusal>> Answer for Script<F> {
    fn answer(&mut self, question: &Question) -> Result<String, Refusal> {
        self.1 += 1;
        (self.0)(question)
    }
}

fn perfect(question: &Question) -> Result<String, Refusal> {
    Ok(match &question.expected {
        Expected::Number(number) => format!("It is {number}."),
        Expected::Choice { right, .. } => format!("({})", char::from(b'A' + *right as u8)),
        Expected::OneOf { answers, right } => answers[*right].clone(),
        Expected::Words { answers, .. } => answers[0].clone(),
    })
}

/// A new folder, another for each call: tests run side by side.
fn folder(name: &str) -> PathBuf {
    static CALLS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let call = CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("omchat-judge-{}-{call}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn tokenizer() -> Tokenizer {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    Tokenizer::from_dir(&dir, &OmChatConfig::from_dir(&dir).unwrap()).unwrap()
}

fn haystack(tokenizer: &Tokenizer, wanted: usize) -> Haystack {
    let dir = folder("haystack");
    let sentence = "The ball flew over the \"old\" wall. Nobody saw it come down! Was it blue? ";
    std::fs::write(dir.join("b.txt"), sentence.repeat(40)).unwrap();
    std::fs::create_dir_all(dir.join("c")).unwrap();
    std::fs::write(dir.join("c/a.md"), "Another file says little. ".repeat(20)).unwrap();
    std::fs::write(dir.join("no.bin"), [0xff, 0xfe]).unwrap();
    Haystack::read(&[dir], tokenizer, wanted, false).unwrap()
}

fn needles(raw: bool) -> Needles {
    Needles {
        lengths: vec![251, 400],
        depths: vec![0.0, 33.3, 50.0, 100.0],
        seeds: vec![0, 7],
        needle: NEEDLE.into(),
        question: QUESTION.into(),
        raw,
        system: "Answer.".into(),
        most: 1000,
    }
}

fn ids(question: &Question) -> &[u32] {
    let Prompt::Ids(ids) = &question.prompt else { panic!("no ids") };
    ids
}

#[test]
fn prompts_are_as_long_as_asked_and_hold_the_needle_where_asked() {
    let tokenizer = tokenizer();
    let haystack = haystack(&tokenizer, 1000);
    for raw in [false, true] {
        let hidden = needles(raw).hide(&haystack, &tokenizer).unwrap();
        assert_eq!(hidden.questions.len(), 2 * 4 * 2);
        for question in &hidden.questions {
            let ids = ids(question);
            assert_eq!(ids.len() as u64, question.params["length"].as_u64().unwrap());
            let text = tokenizer.decode(ids).unwrap();
            let Expected::Number(number) = &question.expected else { panic!("no number") };
            let city = question.params["city"].as_str().unwrap();
            let needle = NEEDLE.replace("{city}", city).replace("{number}", number);
            assert_eq!(text.matches(&needle).count(), 1, "{text}");
            let before = &text[..text.find(&needle).unwrap()];
            let depth = question.params["depth"].as_f64().unwrap();
            let hay = before.trim_start_matches("user\n").trim_end();
            if depth > 0.0 && depth < 100.0 {
                assert!(hay.ends_with(['.', '!', '?']), "{hay}");
                // No farther back than a sentence is long.
                let share = hay.len() as f64 / text.len() as f64;
                assert!(share < depth / 100.0 && share > depth / 100.0 - 0.5, "{depth}: {share}");
            }
            if raw {
                assert!(text.ends_with(&format!("The special magic {city} number is:")), "{text}");
                assert!(depth > 0.0 || text.starts_with(&needle), "{text}");
            } else {
                assert!(text.contains(&QUESTION.replace("{city}", city)), "{text}");
                assert_eq!(ids[0], tokenizer.id("<|im_start|>").unwrap());
                assert_eq!(ids.iter().filter(|id| Some(**id) == tokenizer.id("<|im_end|>")).count(), 2);
            }
        }
    }
}

#[test]
fn the_order_of_needles_spares_reading() {
    let tokenizer = tokenizer();
    let hidden = needles(false).hide(&haystack(&tokenizer, 1000), &tokenizer).unwrap();
    let read = |questions: &[&Question]| {
        let mut before: &[u32] = &[];
        let mut sum = 0;
        for question in questions {
            let now = ids(question);
            sum += now.len() - before.iter().zip(now).take_while(|(a, b)| a == b).count();
            before = now;
        }
        sum
    };
    let ours: Vec<&Question> = hidden.questions.iter().collect();
    let mut other = ours.clone();
    for seed in 0..20 {
        Draw::new(seed, "order").shuffle(&mut other);
        assert!(read(&ours) <= read(&other));
    }
    assert!(read(&ours) < ours.iter().map(|q| ids(q).len()).sum::<usize>() * 3 / 4);
}

#[test]
fn needles_that_cannot_be_hidden() {
    let tokenizer = tokenizer();
    let short = haystack(&tokenizer, 100);
    let refused = |needles: Needles, hay: &Haystack| needles.hide(hay, &tokenizer).unwrap_err().to_string();
    assert!(refused(needles(false), &short).contains("100 tokens"));
    assert!(refused(Needles { lengths: vec![5], ..needles(false) }, &short).contains("5 tokens has no room"));
    assert!(refused(Needles { depths: vec![101.0], ..needles(false) }, &short).contains("101 %"));
    assert!(refused(Needles { depths: vec![f64::NAN], ..needles(false) }, &short).contains("NaN"));
    assert!(refused(Needles { needle: "no number".into(), ..needles(false) }, &short).contains("no number"));
    assert!(refused(Needles { seeds: vec![], ..needles(false) }, &short).contains("seed"));
    let hidden = Needles { most: 300, ..needles(false) }.hide(&haystack(&tokenizer, 300), &tokenizer).unwrap();
    assert_eq!(hidden.questions.len(), 8);
    assert!(hidden.skipped[0].what.contains("400") && hidden.skipped[0].why.contains("300"));
    let dir = folder("empty");
    assert!(
        Haystack::read(std::slice::from_ref(&dir), &tokenizer, 9, false).unwrap_err().to_string().contains("no text")
    );
    std::fs::write(dir.join("x.txt"), [b'a', 0xff]).unwrap();
    assert!(
        Haystack::read(std::slice::from_ref(&dir), &tokenizer, 9, false).unwrap_err().to_string().contains("byte 1")
    );
    std::fs::write(dir.join("x.txt"), "One. Two.").unwrap();
    assert_eq!(Haystack::read(&[dir], &tokenizer, 555, true).unwrap().ids.len(), 555);
}

#[test]
fn numbers_are_read_from_answers() {
    let score = |given: &str| Expected::Number("1234567".into()).judge(given).score;
    for right in [
        "1234567",
        " 1234567.",
        "The number is 1,234,567",
        "1234567 or 7654321",
        "**1234567**",
        "1 234 567.",
        "1\u{a0}234\u{a0}567",
        "it is 1\u{202f}234\u{202f}567 5",
        "1 234 567 8901",
    ] {
        assert_eq!(score(right), 1.0, "{right}");
    }
    for wrong in ["", "123456", "12345678", "7654321, not 1234567", "one", "1,234 567", "1 2 34567", "1  234 567"] {
        assert_eq!(score(wrong), 0.0, "{wrong}");
    }
    let read = |given: &str| Expected::Number("0".into()).judge(given).read;
    for (given, number) in [
        ("between 1 and 234 apples", "1"),
        ("1 2345", "1"),
        ("1 23 456", "1"),
        ("in 2024 123 apples", "2024"),
        ("12 345 or more", "12345"),
        ("1234,567", "1234567"),
        ("1,2345", "1"),
    ] {
        assert_eq!(read(given).as_deref(), Some(number), "{given}");
    }
    assert_eq!(read("none"), None);
}

/// Figures worked out by hand from the definitions.
#[test]
fn words_are_weighed() {
    assert_eq!(Metric::Exact.score("The Red  ball.", "red ball"), 1.0);
    assert_eq!(Metric::Exact.score("red balls", "red ball"), 0.0);
    assert_eq!(Metric::Within.score("I see 42 birds", "42"), 1.0);
    assert_eq!(Metric::Within.score("I see 421 birds", "42"), 0.0);
    // The longest common subsequence of `w x y z` and `x q z` has 2 words: P = 2/4, R = 2/3, F1 = 4/7.
    assert!((Metric::RougeL.score("w x y z", "x q z") - 4.0 / 7.0).abs() < 1e-12);
    assert_eq!(Metric::RougeL.score("", "x"), 0.0);
    // `kitten` and `sitting` are 3 edits apart, the longer has 7 letters.
    assert!((Metric::Anls.score("Kitten ", "sitting") - 4.0 / 7.0).abs() < 1e-12);
    assert_eq!(Metric::Anls.score("abcd", "wxyz"), 0.0);
    let best = Expected::Words { answers: vec!["cat".into(), "a dog".into()], metric: Metric::Exact };
    assert_eq!(best.judge("Dog!").score, 1.0);
}

fn temporal() -> Temporal {
    Temporal {
        lengths: vec![7, 12],
        depths: vec![0.0, 50.0, 100.0],
        gaps: vec![1, 2],
        needles: 4,
        kinds: Kind::ALL.to_vec(),
        seeds: (0..40).collect(),
        single: Some(Single::First),
    }
}

fn asked(temporal: &Temporal) -> Vec<Question> {
    temporal.questions(&digits(16), "large digits", &mut |length| Ok(blank(length, 16, 1))).unwrap()
}

/// What a frame shows: the digit whose picture it is.
fn seen(question: &Question) -> Vec<String> {
    let Prompt::Turn { sights, .. } = &question.prompt else { panic!("no turn") };
    let Sight::Frames(frames) = &sights[0] else { panic!("no frames") };
    let all = digits(16);
    frames.iter().filter_map(|f| all.iter().find(|n| n.picture == *f).map(|n| n.name.clone())).collect()
}

/// The right answer as one finds it by looking at the frames.
fn looked(question: &Question) -> String {
    let (seen, Prompt::Turn { text, .. }) = (seen(question), &question.prompt) else { panic!("no turn") };
    match question.params["kind"].as_str().unwrap() {
        "first" => seen[0].clone(),
        "count" => seen.len().to_string(),
        "order" => seen.join(", "),
        _ => {
            let asked = text.split("right after ").nth(1).unwrap().split('?').next().unwrap();
            let at = seen.iter().position(|name| name == asked).unwrap();
            seen[at + 1].clone()
        }
    }
}

#[test]
fn temporal_questions_are_right_about_their_frames() {
    let questions = asked(&temporal());
    assert_eq!(questions.len(), 2 * 3 * 2 * 40 * 4 * 2);
    for question in questions.iter().filter(|q| q.column != "one frame") {
        let Expected::Choice { options, right } = &question.expected else { panic!("no options") };
        assert_eq!(options[*right], looked(question), "{}", question.id);
        let mut sorted = options.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), options.len(), "{}", question.id);
        let Prompt::Turn { sights, .. } = &question.prompt else { panic!("no turn") };
        let Sight::Frames(frames) = &sights[0] else { panic!("no frames") };
        assert_eq!(frames.len() as u64, question.params["frames"].as_u64().unwrap());
    }
    let mut ids: Vec<&String> = questions.iter().map(|q| &q.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), questions.len());
}

#[test]
fn scripts_score_what_formulas_say() {
    let questions = asked(&temporal());
    let dir = folder("scripts");
    let score = |name: &str, answer: &mut dyn FnMut(&Question) -> Result<String, Refusal>| {
        let mut log = Log::open(&dir.join(name), &json!({ "who": name }), false).unwrap();
        let (outcomes, skipped) = ask_all(&questions, &mut log, &mut Script(answer, 0), &mut |_, _| {}).unwrap();
        assert!(skipped.is_empty());
        outcomes
    };
    let mean = |outcomes: &[Outcome], kind: &str, value: fn(&Outcome) -> f64| {
        let of = outcomes.iter().filter(|o| o.params["kind"] == kind && o.column != "one frame");
        grid::mean(&of.map(value).collect::<Vec<_>>())
    };
    assert!(score("perfect", &mut perfect).iter().all(|o| o.right && o.score == 1.0));
    assert!(score("mute", &mut |_| Ok(String::new())).iter().all(|o| !o.right && o.read.is_none()));
    let mut draw = Draw::new(5, "guess");
    let random = score("random", &mut |question| {
        let Expected::Choice { options, .. } = &question.expected else { panic!("no options") };
        Ok(char::from(b'A' + draw.below(options.len()) as u8).to_string())
    });
    let stuck = score("stuck", &mut |_| Ok("A".into()));
    // 480 questions of each kind; four standard deviations of a share p are 4 sqrt(p (1 - p) / 480).
    for (kind, chance) in [("first", 0.25), ("after", 1.0 / 3.0), ("count", 0.25), ("order", 0.25)] {
        assert!((mean(&random, kind, |o| o.chance) - chance).abs() < 1e-12, "{kind}");
        let slack = 4.0 * (chance * (1.0 - chance) / 480.0_f64).sqrt();
        for outcomes in [&random, &stuck] {
            let have = mean(outcomes, kind, |o| o.score);
            assert!((have - chance).abs() < slack, "{kind}: {have} for {chance}");
        }
    }
}

#[test]
fn temporal_questions_that_cannot_be_asked() {
    let refused = |t: Temporal| t.questions(&digits(8), "digits", &mut |n| Ok(blank(n, 8, 0))).unwrap_err().to_string();
    assert!(refused(Temporal { lengths: vec![3], ..temporal() }).contains("take 4 frames of 3"));
    assert!(refused(Temporal { gaps: vec![0], ..temporal() }).contains("0 frames apart"));
    assert!(refused(Temporal { gaps: vec![usize::MAX], ..temporal() }).contains("apart"));
    assert!(refused(Temporal { needles: 1, ..temporal() }).contains("1 hidden"));
    assert!(refused(Temporal { needles: 2, ..temporal() }).contains("no choice"));
    assert!(refused(Temporal { depths: vec![-1.0], ..temporal() }).contains("-1 %"));
    let few = digits(8)[..3].to_vec();
    assert!(temporal().check(&few).unwrap_err().to_string().contains("3 pictures"));
    let mut twice = digits(8);
    twice[7].name = twice[2].name.clone();
    assert!(temporal().check(&twice).unwrap_err().to_string().contains("called `2`"));
}

#[test]
fn orders_that_read_the_same_are_asked_once() {
    let mut pool = digits(8)[..2].to_vec();
    (pool[0].name, pool[1].name) = ("a".into(), "a, a".into());
    let order = Temporal { needles: 2, kinds: vec![Kind::Order], ..temporal() };
    for question in order.questions(&pool, "letters", &mut |n| Ok(blank(n, 8, 0))).unwrap() {
        assert!(matches!(question.expected, Expected::Choice { options, right: 0 } if options == ["a, a, a"]));
    }
}

fn small(id: &str) -> Question {
    Question {
        id: id.into(),
        row: "r".into(),
        column: "c".into(),
        params: Default::default(),
        prompt: Prompt::Turn {
            text: "?".into(),
            sights: vec![Sight::Picture(Arc::new(Picture { width: 1, height: 1, rgb: vec![0; 3] }))],
        },
        expected: Expected::Number(id.into()),
        room: 1,
    }
}

#[test]
fn a_run_that_broke_off_goes_on() {
    let dir = folder("resume");
    let questions: Vec<Question> = ["1", "2", "3", "4"].map(small).to_vec();
    let setup = json!({ "model": "m", "x": 1 });
    let mut first = Script(
        |q: &Question| match q.id.as_str() {
            "3" => Err(Refusal::Stop("power".into())),
            _ => perfect(q),
        },
        0,
    );
    let mut log = Log::open(&dir, &setup, false).unwrap();
    let broke = ask_all(&questions, &mut log, &mut first, &mut |_, _| {}).unwrap_err();
    assert_eq!((broke.to_string().as_str(), first.1), ("power", 3));
    // Two at once would ask everything twice.
    let twice = Log::open(&dir, &setup, false).unwrap_err().to_string();
    assert!(twice.contains("another run writes") && twice.contains("--out"), "{twice}");
    assert!(Log::open(&dir, &setup, true).is_err());
    drop(log);
    // A line that was being written when the power went.
    let path = dir.join("answers.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{whole}{{\"id\":\"9\",\"ro")).unwrap();
    let mut second = Script(perfect, 0);
    let mut log = Log::open(&dir, &setup, false).unwrap();
    assert_eq!(log.found, 2);
    let (outcomes, _) = ask_all(&questions, &mut log, &mut second, &mut |_, _| {}).unwrap();
    assert_eq!((outcomes.len(), second.1), (4, 2));
    assert!(std::fs::read_to_string(&path).unwrap().starts_with(&whole));
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4);
    drop(log);
    // Answers of another run are not mixed in.
    let other = Log::open(&dir, &json!({ "model": "m", "x": 2 }), false).unwrap_err().to_string();
    assert!(other.contains("x was 1 and is 2") && other.contains("--fresh"), "{other}");
    assert_eq!(Log::open(&dir, &json!({ "x": 2 }), true).unwrap().found, 0);
    // What the answers belong to is written whole, once, and beside nothing else.
    let run = dir.join("run.json");
    let written = std::fs::metadata(&run).unwrap().modified().unwrap();
    Log::open(&dir, &json!({ "x": 2 }), false).unwrap();
    assert_eq!(std::fs::metadata(&run).unwrap().modified().unwrap(), written);
    let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|item| item.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["answers.jsonl", "run.json"]);
    // A line in the middle that is no answer is no torn end.
    std::fs::write(&path, format!("nonsense\n{whole}")).unwrap();
    let fault = Log::open(&dir, &json!({ "x": 2 }), false).unwrap_err().to_string();
    assert!(fault.contains("line 1"), "{fault}");
    // Nor is one whose numbers cannot be.
    let right = whole.lines().next().unwrap();
    assert!(right.contains("\"score\":1.0") && right.contains("\"right\":true"), "{right}");
    for (from, to, words) in [
        ("\"score\":1.0", "\"score\":7.0", "line 2 is no answer: `score` is 7, and goes from 0 to 1"),
        ("\"score\":1.0", "\"score\":-0.5", "`score` is -0.5"),
        ("\"right\":true", "\"right\":false", "`right` is false at a `score` of 1"),
    ] {
        std::fs::write(&path, format!("{right}\n{}\n", right.replace(from, to))).unwrap();
        let fault = Log::open(&dir, &json!({ "x": 2 }), false).unwrap_err().to_string();
        assert!(fault.contains(words), "{fault}");
    }
}

#[test]
fn a_setup_that_cannot_be_written_leaves_the_old_one() {
    let dir = folder("unwritable");
    Log::open(&dir, &json!({ "x": 1 }), false).unwrap();
    let before = std::fs::read(dir.join("run.json")).unwrap();
    // A folder stands where the new one is written.
    let part = dir.join(format!("run.part-{}", std::process::id()));
    std::fs::create_dir(&part).unwrap();
    assert!(Log::open(&dir, &json!({ "x": 2 }), false).is_err());
    assert_eq!(std::fs::read(dir.join("run.json")).unwrap(), before);
    Log::open(&dir, &json!({ "x": 1 }), false).unwrap();
}

#[test]
fn questions_of_one_name_are_refused() {
    let mut log = Log::open(&folder("twice"), &json!({}), false).unwrap();
    let mut model = Script(perfect, 0);
    let fault = ask_all(&["1", "2", "1"].map(small), &mut log, &mut model, &mut |_, _| {}).unwrap_err().to_string();
    assert!(fault.contains("called `1`") && model.1 == 0, "{fault}");
}

#[test]
fn what_cannot_be_asked_is_counted_and_asked_next_time() {
    let dir = folder("skip");
    let questions: Vec<Question> = ["1", "2", "3"].map(small).to_vec();
    let mut log = Log::open(&dir, &json!({}), false).unwrap();
    let mut model =
        Script(|q: &Question| if q.id == "2" { Err(Refusal::Skip("broken".into())) } else { perfect(q) }, 0);
    let (outcomes, skipped) = ask_all(&questions, &mut log, &mut model, &mut |_, _| {}).unwrap();
    assert_eq!((outcomes.len(), skipped.len(), skipped[0].what.as_str()), (2, 1, "2"));
    let mut again = Script(perfect, 0);
    ask_all(&questions, &mut log, &mut again, &mut |_, _| {}).unwrap();
    assert_eq!(again.1, 1);
}

#[test]
fn reports_say_what_the_answers_are() {
    let dir = folder("report");
    let mut outcomes = Vec::new();
    for (id, row, column, given) in
        [("1", "a", "x", "1"), ("2", "a", "x", "0"), ("3", "b", "x", "3"), ("4", "b", "y", "")]
    {
        let question = Question { row: row.into(), column: column.into(), ..small(id) };
        outcomes.push(Outcome::of(&question, format!("<b>{given}")));
    }
    let columns = vec!["x".into(), "y".into()];
    let report = Report {
        title: "A & B".into(),
        setup: json!({ "model": "m" }),
        grid: Grid::of(("row", vec!["a".into(), "b".into()]), ("column", columns), &outcomes),
        more: vec![],
        outcomes,
        skipped: vec![omchat_recipe::judge::Skipped { what: "5".into(), why: "broken".into() }],
        notes: vec!["mind".into()],
    };
    report.write(&dir).unwrap();
    let summary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("summary.json")).unwrap()).unwrap();
    assert_eq!((summary["asked"].as_u64(), summary["right"].as_u64()), (Some(4), Some(2)));
    assert_eq!((summary["score"].as_f64(), summary["unread"].as_u64()), (Some(0.5), Some(1)));
    // Wilson's interval of 2 right of 4.
    let (z, n, p) = (1.959_963_984_540_054_f64, 4.0, 0.5);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt() / (1.0 + z * z / n);
    assert!((summary["score_low"].as_f64().unwrap() - (0.5 - half)).abs() < 1e-12);
    let cells = summary["tables"][0]["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 3);
    let low = |asked: f64| {
        let half = z * (p * (1.0 - p) / asked + z * z / (4.0 * asked * asked)).sqrt() / (1.0 + z * z / asked);
        0.5 - half
    };
    assert!((cells[0]["low"].as_f64().unwrap() - low(2.0)).abs() < 1e-12, "{}", cells[0]);
    assert!((cells[0]["high"].as_f64().unwrap() - (1.0 - low(2.0))).abs() < 1e-12, "{}", cells[0]);
    assert_eq!(
        (cells[0]["row"].as_str(), cells[0]["column"].as_str(), cells[0]["asked"].as_u64(), cells[0]["score"].as_f64()),
        (Some("a"), Some("x"), Some(2), Some(0.5))
    );
    let page = std::fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(page.contains("A &amp; B") && page.contains("&lt;b&gt;0") && !page.contains("<b>0"), "{page}");
    assert!(!page.contains("http"), "nothing is loaded from elsewhere");
    assert!(page.contains("skipped 5: broken") && page.contains("note: mind"), "{page}");
    let picture = Picture::open(&dir.join("heatmap.png")).unwrap();
    assert!(picture.width > 100 && picture.rgb.chunks(3).any(|p| p == [246, 214, 110]), "one half is yellow");
    assert!(report.text().contains("b             100.0    0.0"), "{}", report.text());
}
