//! Questions about rendered scenes: right about their frames, scored as formulas say for scripts in a model's place.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_model::picture::Picture;
use omchat_recipe::judge::draw::Draw;
use omchat_recipe::judge::rendered::{KINDS, Rendered};
use omchat_recipe::judge::temporal::{ONE, Single};
use omchat_recipe::judge::{Answer, Expected, Log, Outcome, Prompt, Question, Refusal, Sight, ask_all, grid::mean};
use omchat_recipe::scenes::{Colour, Scenes, Split};
use serde_json::json;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

fn rendered() -> Rendered {
    Rendered {
        lengths: vec![4, 7, 13],
        depths: vec![0.0, 40.0, 100.0],
        digits: 4,
        kinds: Rendered::kinds(false),
        seeds: (0..40).collect(),
        single: Some(Single::First),
        side: 28,
        faces: None,
    }
}

fn frames(question: &Question) -> &[Arc<Picture>] {
    let Prompt::Turn { sights, .. } = &question.prompt else { panic!("no turn") };
    let [Sight::Frames(frames)] = &sights[..] else { panic!("no video") };
    frames
}

fn words(question: &Question) -> &str {
    let Prompt::Turn { text, .. } = &question.prompt else { panic!("no turn") };
    text.strip_prefix("<video>").unwrap()
}

fn kind(question: &Question) -> &str {
    question.params["kind"].as_str().unwrap()
}

fn numbers(question: &Question, name: &str) -> Vec<usize> {
    question.params[name].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
}

fn right(question: &Question) -> String {
    let Expected::OneOf { answers, right } = &question.expected else { panic!("not one of few") };
    answers[*right].clone()
}

/// The colour that some pixel comes nearest to.
fn colour(frame: &Picture) -> &'static str {
    let far = |pixel: &[u8], colour: &Colour| -> i32 {
        pixel.iter().zip(colour.rgb()).map(|(a, b)| (i32::from(*a) - i32::from(b)).pow(2)).sum()
    };
    let pairs = frame.rgb.chunks(3).flat_map(|pixel| Colour::ALL.map(|c| (far(pixel, &c), c.name())));
    pairs.min().unwrap().1
}

/// The right answer from the digits' order, the words of the question and the pixels.
fn looked(question: &Question) -> Option<String> {
    let (hidden, at, text) = (numbers(question, "hidden"), numbers(question, "at"), words(question));
    let named = text.chars().find(char::is_ascii_digit).map(|c| c.to_digit(10).unwrap() as usize);
    let place = named.and_then(|named| hidden.iter().position(|d| *d == named));
    let says = |d: &usize| format!("a {d}");
    match text {
        "Which digit is shown?" => (hidden.len() == 1).then(|| says(&hidden[0])),
        "Which digit comes first?" => (hidden.len() > 1).then(|| says(&hidden[0])),
        "Which digit comes last?" => (hidden.len() > 1).then(|| says(&hidden[hidden.len() - 1])),
        "How many digits are there?" => Some(["one", "two", "three", "four"][hidden.len() - 1].into()),
        "Which shape moves?" => None,
        _ if text.starts_with("Is there a ") => Some(if place.is_some() { "yes" } else { "no" }.into()),
        _ if text.starts_with("Which digit comes after the ") => Some(says(&hidden[place? + 1])),
        _ if text.starts_with("Which digit comes before the ") => Some(says(&hidden[place? - 1])),
        _ if text.starts_with("What colour is the ") => {
            Some(format!("it is {}", colour(&frames(question)[at[place?]])))
        }
        _ => panic!("{text}"),
    }
}

#[test]
fn questions_are_right_about_their_frames() {
    let rendered = rendered();
    let questions = rendered.questions().unwrap();
    let (mut wrong_colours, mut colours) = (0, 0);
    for question in questions.iter().filter(|q| q.column != ONE) {
        let length = question.params["frames"].as_u64().unwrap() as usize;
        let (hidden, at) = (numbers(question, "hidden"), numbers(question, "at"));
        assert!(frames(question).len() == length && at.is_sorted() && at.len() == hidden.len());
        assert_eq!(hidden.iter().collect::<HashSet<_>>().len(), hidden.len(), "digits differ");
        if let Some(depth) = question.params["depth"].as_f64() {
            assert_eq!(at, [(depth / 100.0 * (length - 1) as f64).round() as usize], "{}", question.id);
        }
        // Frames are those of the scenes, held out of training.
        let options = rendered.options(length, hidden.len(), question.params["depth"].as_f64());
        assert_eq!(options.split, Split::Test);
        if kind(question) == "digits" {
            let sample = Scenes::new(&options).unwrap().sample(question.params["seed"].as_u64().unwrap());
            assert!(sample.frames.iter().zip(frames(question)).all(|(a, b)| a == &**b));
            let shown: Vec<_> = sample.scene.iter().enumerate().filter(|(_, f)| f.digit().is_some()).collect();
            assert_eq!(shown.iter().map(|(at, _)| *at).collect::<Vec<_>>(), at);
        }
        match looked(question) {
            Some(found) if kind(question) == "colour-of" => {
                colours += 1;
                wrong_colours += usize::from(found != right(question));
            }
            Some(found) => assert_eq!(found, right(question), "{}", question.id),
            None => assert_eq!(kind(question), "moves"),
        }
        let Expected::OneOf { answers, .. } = &question.expected else { panic!("not one of few") };
        assert_eq!(answers.iter().collect::<HashSet<_>>().len(), answers.len(), "{}", question.id);
    }
    // Thin strokes in noise can come near another colour.
    assert!(wrong_colours * 50 < colours, "{wrong_colours} of {colours} colours");
    let ids: HashSet<&String> = questions.iter().map(|q| &q.id).collect();
    assert_eq!(ids.len(), questions.len());
    // Each cell asks each of its seeds at least how many, and whether there is one.
    for (length, row) in rendered.lengths.iter().flat_map(|l| rendered.rows().into_iter().map(move |row| (l, row))) {
        let asked = |kind_is: &str| {
            let of = questions.iter().filter(|q| q.row == row && q.column == format!("{length} frames"));
            of.filter(|q| kind(q) == kind_is).count()
        };
        assert_eq!((asked("digits"), asked("is-there"), asked("colour-of")), (40, 40, 40), "{length} {row}");
        let lone = row.starts_with('1');
        assert_eq!((asked("digit"), asked("first-digit")), if lone { (40, 0) } else { (0, 40) }, "{length} {row}");
    }
}

/// Other kinds, lengths and seeds beside a question change nothing of it: answers that are kept stay right.
#[test]
fn a_question_does_not_depend_on_its_neighbours() {
    let all = rendered().questions().unwrap();
    let few = Rendered {
        lengths: vec![7],
        depths: vec![40.0],
        kinds: vec!["moves".into(), "digits".into()],
        seeds: vec![3, 11],
        single: None,
        ..rendered()
    };
    let picked = few.questions().unwrap();
    assert!(picked.len() >= 8 && few.digest().unwrap() == rendered().digest().unwrap());
    for question in picked {
        let same = all.iter().find(|q| q.id == question.id).unwrap();
        assert_eq!((words(same), frames(same)), (words(&question), frames(&question)));
    }
    assert_ne!(Rendered { side: 27, ..rendered() }.digest().unwrap(), rendered().digest().unwrap());
}

struct Script<'a>(&'a mut dyn FnMut(&Question) -> String);

impl Answer for Script<'_> {
    fn answer(&mut self, question: &Question) -> Result<String, Refusal> {
        Ok((self.0)(question))
    }
}

#[test]
fn scripts_score_what_formulas_say() {
    let questions = rendered().questions().unwrap();
    let dir = std::env::temp_dir().join(format!("omchat-rendered-{}", std::process::id()));
    let score = |name: &str, answer: &mut dyn FnMut(&Question) -> String| {
        let mut log = Log::open(&dir.join(name), &json!({ "who": name }), true).unwrap();
        ask_all(&questions, &mut log, &mut Script(answer), &mut |_, _| {}).unwrap().0
    };
    let of = |outcomes: &[Outcome], kind: &str, one: bool| -> Vec<Outcome> {
        outcomes.iter().filter(|o| o.params["kind"] == kind && (o.column == ONE) == one).cloned().collect()
    };
    let share = |outcomes: &[Outcome]| mean(&outcomes.iter().map(|o| o.score).collect::<Vec<_>>());
    let perfect = score("perfect", &mut right);
    assert!(perfect.iter().all(|o| o.right && o.read.as_ref() == Some(&o.expected)));
    // Blanks do not count; everything else does.
    assert!(score("blanks", &mut |q| format!(" {}\n", right(q).replace(' ', "  "))).iter().all(|o| o.right));
    for spoil in [|text: String| text + ".", |text: String| text.to_uppercase(), |text: String| text + " yes"] {
        assert!(score("spoilt", &mut |q| spoil(right(q))).iter().all(|o| !o.right && o.read.is_none()));
    }
    let mut draw = Draw::new(5, "guess");
    let random = score("random", &mut |question| {
        let Expected::OneOf { answers, .. } = &question.expected else { panic!("not one of few") };
        answers[draw.below(answers.len())].clone()
    });
    let chances = [
        ("digit", 0.1),
        ("first-digit", 0.1),
        ("last-digit", 0.1),
        ("digit-after", 1.0 / 9.0),
        ("digit-before", 1.0 / 9.0),
        ("digits", 0.25),
        ("colour-of", 1.0 / 6.0),
        ("is-there", 0.5),
        ("moves", 1.0 / 24.0),
    ];
    for (kind, chance) in chances {
        let asked = of(&random, kind, false);
        let slack = 4.0 * (chance * (1.0 - chance) / asked.len() as f64).sqrt();
        assert!(asked.len() > 100 && asked.iter().all(|o| (o.chance - chance).abs() < 1e-12), "{kind}");
        assert!((share(&asked) - chance).abs() < slack, "{kind}: {} for {chance}", share(&asked));
    }
    // One who sees one frame, the first digit's, and takes it for all there is.
    let single = score("single", &mut |question| {
        let first = numbers(question, "hidden")[0];
        match kind(question) {
            "digits" => "one".into(),
            "is-there" => if words(question).contains(&first.to_string()) { "yes" } else { "no" }.into(),
            "colour-of" => format!("it is {}", colour(&frames(question)[0])),
            _ => format!("a {first}"),
        }
    });
    for (kind, want) in [("digit", 1.0), ("first-digit", 1.0), ("last-digit", 0.0), ("digit-after", 0.0)] {
        assert_eq!(share(&of(&single, kind, true)), want, "{kind}");
    }
    // Three of the six rows have a lone digit.
    assert_eq!(share(&of(&single, "digits", true)), 0.5);
    assert!(questions.iter().filter(|q| q.column == ONE).all(|q| frames(q).len() == 1));
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn one_frame_is_the_first_digits_or_any() {
    let of = |single| Rendered { single, lengths: vec![13], digits: 2, ..rendered() }.questions().unwrap();
    for (single, differs) in [(Single::First, false), (Single::Random, true)] {
        let questions = of(Some(single));
        let (ones, whole): (Vec<_>, Vec<_>) = questions.iter().partition(|q| q.column == ONE);
        assert_eq!(ones.len(), whole.len());
        let mut other = 0;
        for one in ones {
            let video = whole.iter().find(|q| format!("{}/one", q.id) == one.id).unwrap();
            let place = frames(video).iter().position(|f| f == &frames(one)[0]).unwrap();
            other += usize::from(place != numbers(video, "at")[0]);
            assert_eq!((words(one), right(one)), (words(video), right(video)));
        }
        assert_eq!(other > 0, differs);
    }
    assert!(of(None).iter().all(|q| q.column != ONE));
}

#[test]
fn questions_that_cannot_be_asked() {
    let refused = |r: Rendered| r.questions().unwrap_err().to_string();
    assert!(refused(Rendered { digits: 0, ..rendered() }).contains("0 hidden digits"));
    assert!(refused(Rendered { digits: 5, ..rendered() }).contains("5 hidden digits"));
    assert!(refused(Rendered { lengths: vec![3], ..rendered() }).contains("4 needles in 3 frames"));
    assert!(refused(Rendered { lengths: vec![0], digits: 1, ..rendered() }).contains("frames from 0"));
    assert!(refused(Rendered { depths: vec![f64::NAN], ..rendered() }).contains("NaN"));
    assert!(refused(Rendered { side: 2, ..rendered() }).contains("2 pixels"));
    let named = |kind: &str| Rendered { kinds: vec![kind.into()], ..rendered() };
    let words = refused(named("describe"));
    assert!(KINDS.iter().all(|kind| words.contains(kind)), "{words}");
    assert!(refused(named("is-face")).contains("--faces"));
    assert!(refused(Rendered { digits: 1, ..named("first-digit") }).contains("first-digit fits"));
    let sheet = Some(PathBuf::from("/nowhere.png"));
    assert!(refused(Rendered { faces: sheet, ..rendered() }).contains("/nowhere.png"));
}
