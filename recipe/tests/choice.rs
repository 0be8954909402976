//! Benchmarks in the layouts in which they are published, on made examples with broken records among them.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_recipe::judge::choice::{BY_LETTER, Loaded, Reading, by_group, load, questions};
use omchat_recipe::judge::{Expected, Metric, Outcome, Prompt, Sight};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("omchat-choice-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn read(path: &Path) -> Loaded {
    load(&[path.to_path_buf()], &Reading { media: None, frames: 5, metric: None }).unwrap()
}

/// The letter's place and the options.
fn right(expected: &Expected) -> (usize, Vec<&str>) {
    let Expected::Choice { options, right } = expected else { panic!("no options") };
    (*right, options.iter().map(String::as_str).collect())
}

fn files(sights: &[Sight]) -> Vec<String> {
    let name = |sight: &Sight| match sight {
        Sight::File(path) | Sight::Video { path, .. } => path.file_name().unwrap().to_string_lossy().into_owned(),
        _ => panic!("no file"),
    };
    sights.iter().map(name).collect()
}

#[test]
fn mvbench() {
    let dir = folder("mvbench");
    for video in ["star/Charades_v1_480/X.mp4", "clevrer/video_validation/video_1.mp4", "perception/videos/video_1.mp4"]
    {
        put(&dir.join("video").join(video), "v");
    }
    put(&dir.join("video/tvqa/frames_fps3_hq/clip/00001.jpg"), "f");
    let rows = json!([
        { "video": "X.mp4", "question": "What?", "candidates": ["run", "sit", "jump"], "answer": "sit", "start": 1.5, "end": 4.0 },
        { "video": "gone.mp4", "question": "What?", "candidates": ["run", "sit"], "answer": "sit" },
        { "video": "X.mp4", "question": "What?", "candidates": ["run", "sit"], "answer": "fly" },
        { "video": "X.mp4", "candidates": ["run", "sit"], "answer": "sit" },
        { "video": "X.mp4", "question": "What?", "candidates": ["run"], "answer": "run" },
        { "video": "../../X.mp4", "question": "What?", "candidates": ["run", "sit"], "answer": "run" },
        7,
    ]);
    put(&dir.join("json/action_sequence.json"), rows.to_string());
    let row = |video: &str| json!([{ "video": video, "question": "?", "candidates": ["a", "b"], "answer": "b" }]);
    put(&dir.join("json/object_shuffle.json"), row("video_1.mp4").to_string());
    let mut clip = row("clip");
    clip[0]["start"] = json!(0);
    clip[0]["end"] = json!(9);
    clip[0]["subtitle"] = json!("She says no.");
    put(&dir.join("json/episodic_reasoning.json"), clip.to_string());
    let loaded = read(&dir.join("json"));
    assert_eq!((loaded.records.len(), loaded.bad.len()), (3, 6));
    let whys: Vec<&str> = loaded.bad.iter().map(|bad| bad.why.as_str()).collect();
    for (why, part) in whys.iter().zip(["gone.mp4", "`fly`", "`question`", "1 options", "leads out", "no object"]) {
        assert!(why.contains(part), "{why}");
    }
    let first = &loaded.records[0];
    assert_eq!((first.task.as_str(), first.id.as_str()), ("action sequence", "action_sequence/0"));
    assert_eq!(right(&first.expected), (1, vec!["run", "sit", "jump"]));
    let Sight::Video { frames: 5, span: Some(span), .. } = &first.sights[0] else { panic!("no stretch") };
    assert_eq!((span.from, span.to, span.rate), (1.5, 4.0, None));
    let Sight::Video { span: Some(span), .. } = &loaded.records[1].sights[0] else { panic!("no stretch") };
    assert_eq!(span.rate, Some(3.0), "TVQA's frames are three a second");
    assert!(loaded.records[1].text.starts_with("Subtitles: She says no.\n"));
    // Two tasks have videos of one name.
    let Sight::Video { path, .. } = &loaded.records[2].sights[0] else { panic!("no video") };
    assert!(path.ends_with("perception/videos/video_1.mp4"), "{path:?}");
    let asked = questions(&loaded.records, false);
    let Prompt::Turn { text, .. } = &asked[0].prompt else { panic!("no turn") };
    assert_eq!(*text, format!("What?\nA. run\nB. sit\nC. jump\n{BY_LETTER}"));
}

fn milebench_file(dir: &Path, name: &str, rows: Value) -> Loaded {
    for picture in ["1.jpg", "2.jpg"] {
        put(&dir.join(name).join("images").join(picture), "p");
    }
    let all = json!({ "meta_data": { "dataset": name, "task_instruction": ["Look.", "Think."] }, "data": rows });
    let path = dir.join(name).join(format!("{name}.json"));
    put(&path, all.to_string());
    read(&path)
}

#[test]
fn milebench() {
    let dir = folder("milebench");
    let instance = |context: &str| json!({ "context": context, "images_path": ["1.jpg", "2.jpg"] });
    let mut choice = instance("First {image#2}, then {image#1}. What?");
    choice["choice_list"] = json!(["cat", "dog"]);
    let loaded = milebench_file(
        &dir,
        "ActionX",
        json!([
            { "sample_id": 3, "task_instruction_id": 1, "task_instance": choice, "response": "dog" },
            { "sample_id": 4, "task_instruction_id": 0, "task_instance": { "context": "?" }, "response": "dog" },
        ]),
    );
    assert_eq!((loaded.records.len(), loaded.bad.len()), (1, 1));
    let record = &loaded.records[0];
    assert_eq!(record.text, "Think.\nFirst <image>, then <image>. What?");
    assert_eq!(files(&record.sights), ["2.jpg", "1.jpg"]);
    assert_eq!((right(&record.expected).0, record.id.as_str()), (1, "ActionX/3"));
    let rows =
        json!([{ "sample_id": 0, "task_instruction_id": 0, "task_instance": instance("Look."), "response": 12 }]);
    for (name, metric) in
        [("TextNeedleInAHaystack", Metric::Within), ("MMCoQA", Metric::Within), ("Spot", Metric::RougeL)]
    {
        let loaded = milebench_file(&dir, name, rows.clone());
        assert_eq!(loaded.records[0].expected, Expected::Words { answers: vec!["12".into()], metric });
        assert_eq!(files(&loaded.records[0].sights), ["1.jpg", "2.jpg"], "unmarked pictures go first");
    }
}

#[test]
fn mantis_eval() {
    let dir = folder("mantis");
    put(&dir.join("images/a.png"), "p");
    put(&dir.join("images/b.png"), "p");
    let images = json!(["images/a.png", { "path": "images/b.png" }]);
    let lines = [
        json!({ "id": "m_1", "question_type": "multi-choice", "question": "<image> <image> Which?", "images": images,
            "options": ["(A) Image 1", "(B) Image 2", "(C) Both"], "answer": "C", "category": "size" }),
        json!({ "id": "m_2", "question_type": "short-answer", "question": "How many?", "images": images,
            "options": [], "answer": "Three", "category": "count" }),
        json!({ "id": "m_3", "question_type": "multi-choice", "question": "?", "images": ["images/none.png"],
            "options": ["(A) x", "(B) y"], "answer": "A" }),
    ];
    let text = lines.map(|line| line.to_string()).join("\n");
    put(&dir.join("mantis_eval.jsonl"), format!("{text}\nno json\n"));
    let loaded = read(&dir.join("mantis_eval.jsonl"));
    assert_eq!((loaded.records.len(), loaded.bad.len()), (2, 2));
    assert_eq!(right(&loaded.records[0].expected), (2, vec!["Image 1", "Image 2", "Both"]));
    assert_eq!(
        (loaded.records[0].task.as_str(), files(&loaded.records[0].sights)),
        ("size", vec!["a.png".into(), "b.png".into()])
    );
    assert_eq!(loaded.records[1].expected.judge(" three.").score, 1.0);
}

#[test]
fn q_bench() {
    let dir = folder("qbench");
    for picture in ["one.jpg", "p.jpg", "q.jpg"] {
        put(&dir.join("images").join(picture), "p");
    }
    let rows = json!([
        { "img_path": "one.jpg", "question": "Clear?", "candidates": ["Yes", "No"], "correct_ans": "No", "type": 0, "concern": 2 },
        { "img_path": "pairs\\p.jpg_cat_q.jpg.jpg", "question": "Which?", "candidates": ["First", "Second"], "correct_choice": "B", "type": 2 },
        { "img_path": "one.jpg", "question": "Clear?", "candidates": ["Yes", "No"] },
    ]);
    put(&dir.join("llvisionqa_dev.json"), rows.to_string());
    let loaded = read(&dir.join("llvisionqa_dev.json"));
    assert_eq!((loaded.records.len(), loaded.bad.len()), (2, 1));
    assert_eq!((right(&loaded.records[0].expected).0, loaded.records[0].task.as_str()), (1, "type 0"));
    assert_eq!(loaded.records[0].params["concern"], 2);
    assert_eq!(files(&loaded.records[1].sights), ["p.jpg", "q.jpg"]);
    assert!(loaded.bad[0].why.contains("no right answer"));
}

/// A picture as a table holds it, and its first pixel.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";

#[test]
fn mmbench_and_circular_judging() {
    let dir = folder("mmbench");
    let head = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage";
    let rows = [
        head.to_owned(),
        format!("10\tWhich?\tnan\tred\tblue\tgreen\t\tC\tcolor\t{PNG}"),
        "11\t\"A \"\"big\"\"\nquestion\"\tLook.\tyes\tno\t\t\tA\tsize\t10".to_owned(),
        "12\tBroken?\t\tyes\tno\t\t\tD\tsize\t10".to_owned(),
        "13\tNo picture?\t\tyes\tno\t\t\tA\tsize\t99".to_owned(),
        format!("x\tNo index?\t\tyes\tno\t\t\tA\tsize\t{PNG}"),
    ];
    put(&dir.join("mm.tsv"), rows.join("\n"));
    let loaded = read(&dir.join("mm.tsv"));
    assert_eq!((loaded.records.len(), loaded.bad.len()), (2, 3));
    let Sight::Picture(picture) = &loaded.records[1].sights[0] else { panic!("no picture") };
    assert_eq!(picture.rgb, [255, 0, 0]);
    assert_eq!(loaded.records[1].text, "Hint: Look.\nA \"big\"\nquestion");
    // Three options make three questions, two make two; in each the right words are right.
    let asked = questions(&loaded.records, true);
    assert_eq!(asked.len(), 3 + 2);
    for (question, want) in asked.iter().zip(["green", "green", "green", "yes", "yes"]) {
        let (at, options) = right(&question.expected);
        assert_eq!(options[at], want);
    }
    let mut places: Vec<usize> = asked[..3].iter().map(|question| right(&question.expected).0).collect();
    places.sort();
    assert_eq!(places, [0, 1, 2]);
    // Who always says A is right once a question, and never all around.
    let stuck: Vec<Outcome> = asked.iter().map(|question| Outcome::of(question, "A".into())).collect();
    assert_eq!(stuck.iter().filter(|o| o.right).count(), 2);
    let whole = by_group(&stuck);
    assert!(whole.len() == 2 && whole.iter().all(|o| !o.right && o.score == 0.0));
    assert!((whole[0].chance - 1.0 / 27.0).abs() < 1e-12 && (whole[1].chance - 0.25).abs() < 1e-12);
    let words: Vec<Outcome> =
        asked.iter().map(|q| Outcome::of(q, right(&q.expected).1[right(&q.expected).0].into())).collect();
    assert!(by_group(&words).iter().all(|o| o.right));
}

#[test]
fn rotations_that_the_file_holds_are_one_group() {
    let dir = folder("rotations");
    let head = "index\tquestion\tA\tB\tanswer\timage";
    let rows = [
        head.to_owned(),
        format!("5\t?\tx\ty\tA\t{PNG}"),
        "1000005\t?\ty\tx\tB\t5".to_owned(),
        "2000007\t?\ty\tx\tB\t5".to_owned(),
    ];
    put(&dir.join("mm.tsv"), rows.join("\n"));
    let asked = questions(&read(&dir.join("mm.tsv")).records, true);
    assert_eq!(asked.len(), 3);
    let answers = ["A", "A", "B"];
    let outcomes: Vec<Outcome> = asked.iter().zip(answers).map(|(q, a)| Outcome::of(q, a.into())).collect();
    let whole: Vec<bool> = by_group(&outcomes).iter().map(|o| o.right).collect();
    assert_eq!(whole, [false, true]);
}

#[test]
fn records_of_one_name_are_told_apart() {
    let dir = folder("names");
    let row = |id: &str, answer: &str| {
        json!({ "id": id, "question_type": "multi-choice", "question": "?", "images": [],
            "options": ["x", "y"], "answer": answer })
    };
    put(&dir.join("a/test.json"), json!([row("0", "A"), row("1", "A"), row("1", "B")]).to_string());
    put(&dir.join("b/test.json"), json!([row("0", "B"), row("5", "B")]).to_string());
    put(&dir.join("c/alone.json"), json!([row("0", "B")]).to_string());
    let reading = Reading { media: None, frames: 5, metric: None };
    let ids = |paths: &[&str]| {
        let paths: Vec<PathBuf> = paths.iter().map(|path| dir.join(path)).collect();
        let ids = load(&paths, &reading).unwrap().records.into_iter().map(|record| record.id);
        ids.map(|id| id.replace(&dir.display().to_string(), "DIR")).collect::<Vec<_>>()
    };
    // Without another of that name nothing changes.
    assert_eq!(ids(&["b", "c"]), ["test/0", "test/5", "alone/0"]);
    assert_eq!(ids(&["a"]), ["test/0", "test/1", "test/1#2"]);
    let all = ids(&["b", "c", "a", "b/test.json"]);
    let want = [
        "DIR/b/test.json/0",
        "DIR/b/test.json/5",
        "alone/0",
        "DIR/a/test.json/0",
        "DIR/a/test.json/1",
        "DIR/a/test.json/1#2",
    ];
    assert_eq!(all, want);
    // Rotations stay beside the question that they are of.
    let head = "index\tquestion\tA\tB\tanswer\timage";
    let first = format!("5\t?\tx\ty\tA\t{PNG}");
    let second = format!("1000005\t?\ty\tx\tB\t{PNG}");
    put(&dir.join("d/mm.tsv"), [head, &first, &second].join("\n"));
    put(&dir.join("e/mm.tsv"), [head, &first, &second, &first, &second].join("\n"));
    let loaded = load(&[dir.join("d"), dir.join("e")], &reading).unwrap();
    let outcomes: Vec<Outcome> = questions(&loaded.records, true)
        .iter()
        .map(|q| Outcome::of(q, if q.id.contains("/d/") { "A" } else { "" }.into()))
        .collect();
    let names: std::collections::HashSet<&String> = outcomes.iter().map(|o| &o.id).collect();
    assert_eq!((outcomes.len(), names.len()), (6, 6), "{names:?}");
    let whole = by_group(&outcomes);
    let groups: Vec<&str> = whole.iter().map(|o| o.id.rsplit('/').next().unwrap()).collect();
    assert_eq!(groups, ["5", "5", "5#2"]);
}

#[test]
fn rotations_are_looked_for_in_each_file() {
    let dir = folder("each");
    let head = "index\tquestion\tA\tB\tC\tanswer\timage";
    put(&dir.join("held.tsv"), [head, &format!("5\t?\tx\ty\t\tA\t{PNG}"), "1000005\t?\ty\tx\t\tB\t5"].join("\n"));
    put(&dir.join("plain.tsv"), [head, &format!("5\t?\tx\ty\tz\tA\t{PNG}")].join("\n"));
    let records = read(&dir).records;
    assert_eq!(questions(&records, false).len(), 3);
    let asked = questions(&records, true);
    let ids: Vec<&str> = asked.iter().map(|q| q.id.as_str()).collect();
    assert_eq!(ids, ["held/5", "held/1000005", "plain/5", "plain/5+1", "plain/5+2"]);
    assert_eq!(by_group(&asked.iter().map(|q| Outcome::of(q, "A".into())).collect::<Vec<_>>()).len(), 2);
}

#[test]
fn groups_without_all_their_answers_are_left_out() {
    let dir = folder("partial");
    let head = "index\tquestion\tA\tB\tanswer\timage";
    let rows = [
        head.to_owned(),
        format!("5\t?\tx\ty\tA\t{PNG}"),
        "1000005\t?\ty\tx\tB\t5".to_owned(),
        // Of this question the first order, of the next the second one cannot be used.
        "6\t?\tx\ty\tD\t5".to_owned(),
        "1000006\t?\ty\tx\tB\t5".to_owned(),
        "7\t?\tx\ty\tA\t5".to_owned(),
        "1000007\t?\ty\tx\tB\tgone".to_owned(),
    ];
    put(&dir.join("mm.tsv"), rows.join("\n"));
    put(&dir.join("plain.tsv"), [head, &rows[1]].join("\n"));
    let asked = questions(&read(&dir).records, true);
    let answered = |skipped: &str| {
        let right =
            |q: &omchat_recipe::judge::Question| Outcome::of(q, right(&q.expected).1[right(&q.expected).0].into());
        let outcomes: Vec<Outcome> = asked.iter().filter(|q| q.id != skipped).map(right).collect();
        by_group(&outcomes).into_iter().map(|whole| whole.id).collect::<Vec<_>>()
    };
    assert_eq!(answered(""), ["mm/5", "plain/5"]);
    assert_eq!(answered("mm/5"), ["plain/5"]);
    assert_eq!(answered("mm/1000005"), ["plain/5"]);
    assert_eq!(answered("plain/5+1"), ["mm/5"]);
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_record() {
    let dir = folder("marked");
    let row =
        json!({ "question_type": "multi-choice", "question": "?", "images": [], "options": ["x", "y"], "answer": "A" });
    put(&dir.join("a.json"), format!("\u{feff}[{row}]"));
    put(&dir.join("b.jsonl"), format!("\u{feff}{row}\n"));
    put(&dir.join("c.tsv"), format!("\u{feff}index\tquestion\tA\tB\tanswer\timage\n5\t?\tx\ty\tA\t{PNG}"));
    let loaded = read(&dir);
    assert_eq!((loaded.records.len(), loaded.bad.len()), (3, 0), "{:?}", loaded.bad);
}

#[test]
fn records_that_cannot_be_asked_say_why() {
    let dir = folder("why");
    let row = |options: serde_json::Value| json!({ "question_type": "multi-choice", "question": "?", "images": [], "options": options, "answer": "A" });
    let good = row(json!(["x", "y"]));
    let twice = row(json!(["(A) x", "(B) x "]));
    put(&dir.join("a.jsonl"), format!("{good}\n\n{{\"id\": 3, oops}}\n{twice}\n"));
    let loaded = read(&dir);
    let why: Vec<&str> = loaded.bad.iter().map(|bad| bad.why.as_str()).collect();
    assert_eq!(loaded.records.len(), 1);
    assert!(why[0].starts_with("line 3 is no JSON: key must be a string, at column "), "{why:?}");
    assert_eq!(why[1], "two of its options are `x`: an answer could mean either");
}

#[test]
fn files_that_hold_no_questions() {
    let dir = folder("none");
    let refused = |name: &str, text: &str| {
        put(&dir.join(name), text);
        let reading = Reading { media: None, frames: 1, metric: None };
        load(&[dir.join(name)], &reading).unwrap_err().to_string()
    };
    assert!(refused("a.json", "{").contains("no JSON"));
    assert!(refused("a.json", "3").contains("no list"));
    assert!(refused("a.json", "{}").contains("neither"));
    assert!(refused("a.json", "[{\"q\": 1}]").contains("known layout"));
    assert!(refused("a.tsv", "index\tquestion\n").contains("no column `A`"));
    assert!(refused("a.jsonl", "{\"q\": ").contains("line 1 is no JSON: EOF while parsing"));
    assert!(refused("a.tsv", "").contains("no column `index`"));
    let all_bad = "[{\"video\": \"no.mp4\", \"question\": \"?\", \"candidates\": [\"a\", \"b\"], \"answer\": \"a\"}]";
    assert!(refused("a.json", all_bad).contains("no.mp4"));
    let reading = Reading { media: None, frames: 1, metric: None };
    assert!(load(&[folder("empty")], &reading).unwrap_err().to_string().contains("no file with questions"));
    assert!(load(&[dir.join("gone.json")], &reading).unwrap_err().to_string().contains("gone.json"));
}
