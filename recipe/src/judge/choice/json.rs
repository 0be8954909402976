//! Records in JSON: MVBench, MileBench, Mantis-Eval, Q-Bench.

use super::media::{Media, beside};
use super::{Context, LAYOUTS, Loaded, Read, Reading, Record, bare, choice, ending, stem, text_of};
use crate::error::{Error, Result};
use crate::judge::{Expected, Metric, Sight, Skipped};
use omchat_model::video::Span;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Where MVBench keeps a task's videos.
const MVBENCH: [(&str, &str); 20] = [
    ("action_sequence", "star/Charades_v1_480"),
    ("action_prediction", "star/Charades_v1_480"),
    ("action_antonym", "ssv2_video"),
    ("fine_grained_action", "Moments_in_Time_Raw/videos"),
    ("unexpected_action", "FunQA_test/test"),
    ("object_existence", "clevrer/video_validation"),
    ("object_interaction", "star/Charades_v1_480"),
    ("object_shuffle", "perception/videos"),
    ("moving_direction", "clevrer/video_validation"),
    ("action_localization", "sta/sta_video"),
    ("scene_transition", "scene_qa/video"),
    ("action_count", "perception/videos"),
    ("moving_count", "clevrer/video_validation"),
    ("moving_attribute", "clevrer/video_validation"),
    ("state_change", "perception/videos"),
    ("fine_grained_pose", "nturgbd"),
    ("character_order", "perception/videos"),
    ("egocentric_navigation", "vlnqa"),
    ("episodic_reasoning", "tvqa/frames_fps3_hq"),
    ("counterfactual_inference", "clevrer/video_validation"),
];

/// Adds a file's records.
pub(super) fn read(file: &Path, reading: &Reading, out: &mut Loaded) -> Result<()> {
    let (rows, meta) = rows(file)?;
    let layout = rows.iter().find_map(|row| layout(row.as_ref().ok()?.as_object()?, &meta));
    let Some(read) = layout else {
        let broken = rows.iter().find_map(|row| row.as_ref().err()).map(|why| format!(": {why}")).unwrap_or_default();
        let what = format!("none of its {} records has the fields of a known layout{broken}", rows.len());
        return Err(Error::format(file, what, LAYOUTS));
    };
    let folder = beside(file);
    let roots = match &reading.media {
        Some(media) => vec![media.clone()],
        None => vec![folder.join("images"), folder.clone(), folder.join("../video"), folder.join("../images")],
    };
    let context = Context { file, name: stem(file), media: Media::new(roots), reading, meta };
    for (number, row) in rows.iter().enumerate() {
        let record = row.as_ref().map_err(String::clone);
        let record = record.and_then(|row| row.as_object().ok_or_else(|| "it is no object".to_owned()));
        match record.and_then(|fields| read(number, fields, &context)) {
            Ok(record) => out.records.push(record),
            Err(why) => out.bad.push(Skipped { what: format!("{}/{number}", context.name), why }),
        }
    }
    Ok(())
}

/// A record, or why a line holds none.
type Row = std::result::Result<Value, String>;

/// The records of a file, and what it says of all of them.
fn rows(file: &Path) -> Result<(Vec<Row>, Map<String, Value>)> {
    let text = text_of(file)?;
    let broken = |why: String| Error::format(file, why, "take the file from its source again");
    if ending(file) == "jsonl" {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        // A line that is no JSON is a bad record, not a bad file.
        let row = |(number, line)| serde_json::from_str(line).map_err(|why| unread(number + 1, &why));
        return Ok((lines.map(row).collect(), Map::new()));
    }
    match serde_json::from_str(&text).map_err(|why| broken(format!("it is no JSON: {why}")))? {
        Value::Array(rows) => Ok((rows.into_iter().map(Ok).collect(), Map::new())),
        Value::Object(mut whole) => match whole.remove("data") {
            Some(Value::Array(rows)) => {
                let meta = whole.get("meta_data").and_then(Value::as_object).cloned().unwrap_or_default();
                Ok((rows.into_iter().map(Ok).collect(), meta))
            }
            _ => Err(broken("it holds neither a list of records nor `data`".into())),
        },
        _ => Err(broken("it is no list of records".into())),
    }
}

/// What is wrong with a line. The parser counts lines too, and knows of one only.
fn unread(number: usize, why: &serde_json::Error) -> String {
    let (column, why) = (why.column(), why.to_string());
    let cause = why.rsplit_once(" at line ").map_or(why.as_str(), |(cause, _)| cause);
    format!("line {number} is no JSON: {cause}, at column {column}")
}

fn layout(row: &Map<String, Value>, meta: &Map<String, Value>) -> Option<Read> {
    let has = |names: &[&str]| names.iter().all(|name| row.contains_key(*name));
    match () {
        () if has(&["task_instance"]) && !meta.is_empty() => Some(milebench),
        () if has(&["video", "candidates"]) => Some(mvbench),
        () if has(&["img_path", "candidates"]) => Some(qbench),
        () if has(&["images", "question_type"]) => Some(mantis),
        () => None,
    }
}

fn text<'a>(row: &'a Map<String, Value>, name: &str) -> std::result::Result<&'a str, String> {
    row.get(name).and_then(Value::as_str).ok_or_else(|| format!("it has no text `{name}`"))
}

fn texts(row: &Map<String, Value>, name: &str) -> std::result::Result<Vec<String>, String> {
    let list = row.get(name).and_then(Value::as_array).ok_or_else(|| format!("it has no list `{name}`"))?;
    list.iter().map(|item| scalar(item).ok_or_else(|| format!("`{name}` holds {item}, which is no text"))).collect()
}

/// A text, or a number as one.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn lettered(options: Vec<String>) -> Vec<String> {
    options.iter().enumerate().map(|(at, option)| bare(option, at)).collect()
}

fn mvbench(number: usize, row: &Map<String, Value>, context: &Context) -> std::result::Result<Record, String> {
    let folder = MVBENCH.iter().find(|(task, _)| *task == context.name).map(|(_, folder)| *folder);
    let folders = folder.map(|folder| [folder, folder]).unwrap_or_default();
    let path = context.media.find(text(row, "video")?, &folders[..usize::from(folder.is_some())])?;
    let seconds = |name: &str| row.get(name).and_then(Value::as_f64);
    let rate = seconds("fps").or_else(|| path.is_dir().then_some(3.0));
    let span = match (seconds("start"), seconds("end")) {
        (Some(from), Some(to)) => Some(Span { from, to, rate }),
        _ => None,
    };
    let mut words = String::new();
    if let Some(said) = row.get("subtitle").and_then(Value::as_str).filter(|said| !said.is_empty()) {
        words += &format!("Subtitles: {said}\n");
    }
    words += text(row, "question")?;
    Ok(Record {
        file: context.file.to_path_buf(),
        id: format!("{}/{number}", context.name),
        task: context.name.replace('_', " "),
        text: words,
        expected: choice(texts(row, "candidates")?, text(row, "answer")?)?,
        sights: vec![Sight::Video { path, frames: context.reading.frames, span }],
        group: None,
        params: Map::new(),
    })
}

fn qbench(number: usize, row: &Map<String, Value>, context: &Context) -> std::result::Result<Record, String> {
    let named = text(row, "img_path")?.replace('\\', "/");
    let sights = match context.media.find(&named, &[]) {
        Ok(path) => vec![Sight::File(path)],
        // Pairs are named `folder/A_cat_B.jpg`, where the two pictures are A and B.
        Err(why) => {
            let last = named.rsplit('/').next().unwrap_or(&named);
            let pair = last.strip_suffix(".jpg").and_then(|pair| pair.split_once("_cat_")).ok_or(why)?;
            vec![Sight::File(context.media.find(pair.0, &[])?), Sight::File(context.media.find(pair.1, &[])?)]
        }
    };
    let answer = row.get("correct_ans").or_else(|| row.get("correct_choice")).and_then(Value::as_str);
    let mut params = Map::new();
    for name in ["type", "concern"] {
        if let Some(value) = row.get(name) {
            params.insert(name.into(), value.clone());
        }
    }
    let kind = row.get("type").and_then(scalar).unwrap_or_else(|| "none".into());
    Ok(Record {
        file: context.file.to_path_buf(),
        id: format!("{}/{number}", context.name),
        task: format!("type {kind}"),
        text: text(row, "question")?.to_owned(),
        expected: choice(texts(row, "candidates")?, answer.ok_or("it has no right answer")?)?,
        sights,
        group: None,
        params,
    })
}

fn mantis(number: usize, row: &Map<String, Value>, context: &Context) -> std::result::Result<Record, String> {
    let images = row.get("images").and_then(Value::as_array).ok_or("it has no list `images`")?;
    let named = images.iter().map(|image| {
        let path = image.as_str().or_else(|| image.get("path").and_then(Value::as_str));
        context.media.find(path.ok_or("a picture has no path")?, &[]).map(Sight::File)
    });
    let sights = named.collect::<std::result::Result<Vec<_>, String>>()?;
    let answer = text(row, "answer")?;
    let expected = match text(row, "question_type")? {
        "multi-choice" => choice(lettered(texts(row, "options")?), answer)?,
        _ => Expected::Words {
            answers: vec![answer.to_owned()],
            metric: context.reading.metric.unwrap_or(Metric::Exact),
        },
    };
    let id = row.get("id").and_then(scalar).unwrap_or_else(|| number.to_string());
    Ok(Record {
        file: context.file.to_path_buf(),
        id: format!("{}/{id}", context.name),
        task: row.get("category").and_then(Value::as_str).unwrap_or("all").to_owned(),
        text: text(row, "question")?.to_owned(),
        expected,
        sights,
        group: None,
        params: Map::new(),
    })
}

fn milebench(number: usize, row: &Map<String, Value>, context: &Context) -> std::result::Result<Record, String> {
    let instance = row.get("task_instance").and_then(Value::as_object).ok_or("it has no `task_instance`")?;
    let names = texts(instance, "images_path")?;
    let paths = names.iter().map(|name| context.media.find(name, &[]));
    let paths = paths.collect::<std::result::Result<Vec<_>, String>>()?;
    let instruction = match (context.meta.get("task_instruction"), row.get("task_instruction_id")) {
        (Some(Value::Array(all)), Some(id)) => id.as_u64().and_then(|id| all.get(id as usize)),
        (Some(Value::Object(all)), Some(id)) => scalar(id).and_then(|id| all.get(&id)),
        (found, _) => found,
    };
    let instruction = instruction.and_then(Value::as_str).map(|text| format!("{text}\n")).unwrap_or_default();
    let (words, order) = placed(&(instruction + text(instance, "context")?), paths.len());
    let right = row.get("response").and_then(scalar).ok_or("it has no `response`")?;
    let name = context.meta.get("dataset").and_then(Value::as_str).unwrap_or(&context.name);
    let metric =
        if name.contains("NeedleInAHaystack") || name.contains("MMCoQA") { Metric::Within } else { Metric::RougeL };
    let expected = match instance.get("choice_list") {
        Some(Value::Array(list)) if !list.is_empty() => choice(texts(instance, "choice_list")?, &right)?,
        _ => Expected::Words { answers: vec![right], metric: context.reading.metric.unwrap_or(metric) },
    };
    let id = row.get("sample_id").and_then(scalar).unwrap_or_else(|| number.to_string());
    let mut params = Map::new();
    params.insert("pictures".into(), json!(paths.len()));
    Ok(Record {
        file: context.file.to_path_buf(),
        id: format!("{}/{id}", context.name),
        task: name.to_owned(),
        text: words,
        expected,
        sights: order.into_iter().filter_map(|at| paths.get(at).cloned().map(Sight::File)).collect(),
        group: None,
        params,
    })
}

/// The text with `<image>` for each `{image#2}` or `{table#2}`, and which picture stands at each; all before the words
/// if none is marked.
fn placed(text: &str, pictures: usize) -> (String, Vec<usize>) {
    let (mut out, mut order, mut rest) = (String::new(), Vec::new(), text);
    while let Some((at, length, number)) = mark(rest) {
        out += &rest[..at];
        if (1..=pictures).contains(&number) {
            out += "<image>";
            order.push(number - 1);
        }
        rest = &rest[at + length..];
    }
    out += rest;
    if order.is_empty() { (out, (0..pictures).collect()) } else { (out, order) }
}

/// Where the next mark is, how long it is, and its number.
fn mark(text: &str) -> Option<(usize, usize, usize)> {
    ["{image#", "{table#"]
        .into_iter()
        .filter_map(|lead| {
            let at = text.find(lead)?;
            let inner = &text[at + lead.len()..];
            let end = inner.find('}')?;
            Some((at, lead.len() + end + 1, inner[..end].parse().ok()?))
        })
        .min()
}
