//! What cannot be used is refused: by an exit code, and by one message that says what was given, what would do, and how
//! to get there. Nothing panics, hangs or writes half a file.
#![allow(clippy::unwrap_used, clippy::panic)] // a test may end at the first surprise

use omchat::{Chat, ChatOptions, Device, Engine, EngineOptions, Error, Model, Rows, Sampling, Session};
use omchat_model::splice::Slot;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The longest that a refusal may take.
const LIMIT: Duration = Duration::from_secs(120);

fn repository(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name).display().to_string()
}

fn tiny() -> String {
    repository("models/tiny")
}

/// A folder of this test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("omchat-bad-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Folder(dir)
    }

    /// A copy of a folder of the repository.
    fn of(name: &str) -> Folder {
        let new = Folder::new();
        for entry in std::fs::read_dir(repository(name)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, new.0.join(path.file_name().unwrap())).unwrap();
            }
        }
        new
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.0.join(name), bytes).unwrap();
        self.path(name)
    }

    fn json(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&std::fs::read(self.0.join(name)).unwrap()).unwrap();
        change(&mut value);
        self.write(name, value.to_string());
    }

    fn chat(&self) -> Run {
        omchat(&["chat", "--model", &self.path(""), "--device", "interp", "--max-new-tokens", "1", "hi"])
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How a command ended.
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn command(arguments: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_omchat"));
    c.args(arguments).stdin(Stdio::null()).env("RUST_BACKTRACE", "1");
    c
}

fn omchat(arguments: &[&str]) -> Run {
    finish(command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Waits for a command, but not for ever.
fn finish(child: Child) -> Run {
    let id = child.id();
    let (done, waiting) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let late = waiting.recv_timeout(LIMIT).is_err();
        if late {
            let _ = Command::new("kill").args(["-9", &id.to_string()]).status();
        }
        late
    });
    let out = child.wait_with_output().unwrap();
    let _ = done.send(());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(!watch.join().unwrap(), "it hangs; stderr: {}", text(&out.stderr));
    Run { code: out.status.code(), stdout: text(&out.stdout), stderr: text(&out.stderr) }
}

impl Run {
    /// The message of a refusal, which holds all of `words`.
    fn refused(self, words: &[&str]) -> String {
        let text = self.stderr;
        assert!(matches!(self.code, Some(1 | 2)), "exit code {:?}: {text}", self.code);
        for never in ["panicked", "stack backtrace", "RUST_BACKTRACE"] {
            assert!(!text.contains(never), "{text}");
        }
        assert_eq!(text.lines().filter(|l| l.starts_with("error")).count(), 1, "{text}");
        for word in words {
            assert!(text.contains(word), "no `{word}` in: {text}");
        }
        text
    }

    fn fine(self) -> Run {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }
}

/// The tensors of a file: name, dtype, shape, bytes.
type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(path: &str) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Tensors =
        file.iter().map(|(n, t)| (n.to_string(), t.dtype(), t.shape().to_vec(), t.data().to_vec())).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn serialized(all: &Tensors) -> Vec<u8> {
    let views = all.iter().map(|(n, d, s, b)| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn words(ids: &[i32]) -> Vec<u8> {
    ids.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

// Weights.

#[test]
fn weights_that_break_off() {
    let whole = std::fs::read(repository("models/tiny/model.safetensors")).unwrap();
    for keep in [0, 5, 8, 1000, whole.len() / 2, whole.len() - 1] {
        let f = Folder::of("models/tiny");
        f.write("model.safetensors", &whole[..keep]);
        f.chat().refused(&["model.safetensors", &format!("{keep} bytes"), "take the file from its source again"]);
    }
    let f = Folder::of("models/tiny");
    f.write("model.safetensors", [&(1u64 << 60).to_le_bytes(), &whole[8..]].concat());
    f.chat().refused(&["header too large", "1152921504606846976"]);
}

#[test]
fn every_tensor_that_does_not_fit_is_listed_at_once() {
    let f = Folder::of("models/tiny");
    let mut all = tensors(&f.path("model.safetensors"));
    let (gone, short) = (all.remove(0).0, all[1].0.clone());
    all[1].2 = vec![1];
    let one = all[1].1.bitsize() / 8;
    all[1].3.truncate(one);
    let odd = all[3].0.clone();
    all[3].1 = Dtype::I16;
    all.push(("a.guest".into(), Dtype::F32, vec![3], floats(&[0.0; 3])));
    f.write("model.safetensors", serialized(&all));
    let text = f.chat().refused(&["4 tensors", "extra a.guest [3]"]);
    assert!(text.contains(&format!("missing {gone}")), "{text}");
    assert!(text.contains(&format!("misshapen {short}: [1], want [")), "{text}");
    assert!(text.contains(&format!("dtype I16 of {odd}")), "{text}");
}

#[test]
fn weights_that_are_no_numbers() {
    for bad in [f32::NAN, f32::INFINITY] {
        let f = Folder::of("tests/fixtures/tiny-b");
        let mut all = tensors(&f.path("model.safetensors"));
        let at = all.iter().position(|t| t.1 == Dtype::F32 && t.0.contains("down_proj")).unwrap();
        all[at].3[8..12].copy_from_slice(&bad.to_le_bytes());
        f.write("model.safetensors", serialized(&all));
        let case = repository("tests/fixtures/tiny-b/case.safetensors");
        let run = omchat(&[
            "loss",
            "--model",
            &f.path(""),
            "--device",
            "interp",
            "--input",
            &case,
            "--output",
            &f.path("out"),
        ]);
        run.refused(&[&all[at].0, &format!("{bad} at index 2"), "model.safetensors"]);
        assert!(!f.0.join("out").exists());
    }
}

#[test]
fn shards_and_folders_that_lack_a_file() {
    let f = Folder::of("tests/fixtures/extra/b-f16-shards");
    std::fs::remove_file(f.0.join("model-00002-of-00003.safetensors")).unwrap();
    f.chat().refused(&["model-00002-of-00003.safetensors", "put the file there"]);
    let f = Folder::of("tests/fixtures/extra/b-f16-shards");
    f.write("model.safetensors.index.json", r#"{"weight_map": {"a": "../../etc/passwd"}}"#);
    f.chat().refused(&["model.safetensors.index.json", "a lies in", "shard beside it"]);
    for (gone, mend) in [
        ("config.json", "name a folder that holds a config.json"),
        ("model.safetensors", "name a folder that holds model.safetensors"),
        ("tokenizer.json", "copy the tokenizer.json"),
    ] {
        let f = Folder::of("models/tiny");
        std::fs::remove_file(f.0.join(gone)).unwrap();
        f.chat().refused(&[mend]);
    }
    omchat(&["chat", "--model", "nosuch", "hi"]).refused(&["nosuch", "config.json"]);
    omchat(&["chat", "--model", "omchat-13b", "hi"]).refused(&["give the folder that holds its weights"]);
}

// Configurations and tokenizers.

#[test]
fn configurations_that_make_no_sense() {
    let text = |field: &'static str, value: Value| move |c: &mut Value| c["text_config"][field] = value;
    let tower = |field: &'static str, value: Value| move |c: &mut Value| c["vision_config"][field] = value;
    let refused = |change: &dyn Fn(&mut Value), words: &[&str]| {
        let f = Folder::of("models/tiny");
        f.json("config.json", |c| change(c));
        f.chat().refused(words);
        omchat(&["inspect", "--model", &f.path("")]).refused(words);
    };
    refused(&|c| text("sliding_foo", json!(3))(c), &["text_config.sliding_foo", "is 3", "unknown"]);
    refused(&|c| c["dtype"] = json!("float64"), &["dtype", "float64"]);
    refused(
        &|c| (c["torch_dtype"], c["dtype"]) = (json!("float16"), json!("float32")),
        &["float16", "float32", "keep one"],
    );
    refused(
        &|c| text("rope_parameters", json!({"rope_theta": 12.5, "rope_type": "default"}))(c),
        &["rope_theta", "12.5", "keep one"],
    );
    refused(&|c| text("num_attention_heads", json!(7))(c), &["num_attention_heads", "7", "divides hidden_size"]);
    refused(&|c| text("num_attention_heads", json!(0))(c), &["num_attention_heads", "is 0"]);
    refused(&|c| text("hidden_size", json!(-4))(c), &["hidden_size", "-4", "a whole number"]);
    refused(&|c| text("hidden_size", json!(1u64 << 62))(c), &["hidden_size", "4611686018427387904", "1048576"]);
    refused(&|c| text("num_hidden_layers", json!(1u64 << 40))(c), &["num_hidden_layers", "from 1 to 1024"]);
    refused(&|c| tower("num_hidden_layers", json!(1u64 << 40))(c), &["num_hidden_layers", "from 1 to 1024"]);
    refused(&|c| tower("image_size", json!(14u64 << 30))(c), &["image_size", "16384"]);
    refused(&|c| tower("image_size", json!(13))(c), &["patch_size", "divides image_size 13"]);
    refused(
        &|c| c["image_grid_pinpoints"] = json!("[(1, 2), oops]"),
        &["image_grid_pinpoints", "oops", "pairs of sides"],
    );
    refused(&|c| c["vision_feature_layer"] = json!(-99), &["vision_feature_layer", "-99"]);
    for bad in ["{\"a\": ", "[]", ""] {
        let f = Folder::of("models/tiny");
        f.write("config.json", bad);
        f.chat().refused(&["config.json", "write one JSON object"]);
    }
}

#[test]
fn tokenizers_that_do_not_fit() {
    let f = Folder::of("models/tiny");
    f.write("tokenizer.json", r#"{"a": 1}"#);
    f.chat().refused(&["tokenizer.json", "take the file from the model's release again"]);
    let f = Folder::of("models/tiny");
    f.json("tokenizer.json", |t| {
        let vocab = t["model"]["vocab"].as_object_mut().unwrap();
        for id in 0..500 {
            vocab.insert(format!("word{id}"), json!(1000 + id));
        }
    });
    f.chat().refused(&["it has ids up to", "has 480 rows", "use the tokenizer of this model"]);
    let f = Folder::of("models/tiny");
    let text = std::fs::read_to_string(f.0.join("tokenizer.json")).unwrap();
    f.write("tokenizer.json", text.replace("<|im_start|>", "<|other|>"));
    f.chat().refused(&["no token <|im_start|>"]);
    let f = Folder::of("models/tiny");
    f.write("generation_config.json", r#"{"eos_token_id": "x"}"#);
    f.chat().refused(&["eos_token_id"]);
}

// Cases of the parity door.

struct Sample {
    folder: Folder,
    all: Tensors,
}

impl Sample {
    fn new() -> Sample {
        let all = tensors(&repository("tests/fixtures/tiny-b/case.safetensors"));
        let keep = ["input_ids", "labels", "pixel_values"];
        Sample { folder: Folder::new(), all: all.into_iter().filter(|t| keep.contains(&t.0.as_str())).collect() }
    }

    fn set(mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Sample {
        self.all.retain(|t| t.0 != name);
        self.all.push((name.into(), dtype, shape.to_vec(), bytes));
        self
    }

    fn without(mut self, name: &str) -> Sample {
        self.all.retain(|t| t.0 != name);
        self
    }

    /// The bytes of a tensor, changed.
    fn edit(mut self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Sample {
        change(&mut self.all.iter_mut().find(|t| t.0 == name).unwrap().3);
        self
    }

    fn run(self, door: &str) -> Run {
        let input = self.folder.write("case.safetensors", serialized(&self.all));
        at_the_door(door, &input, &self.folder.path("out.safetensors"))
    }
}

fn at_the_door(door: &str, input: &str, output: &str) -> Run {
    omchat(&[
        door,
        "--model",
        &repository("tests/fixtures/tiny-b"),
        "--device",
        "interp",
        "--input",
        input,
        "--output",
        output,
    ])
}

#[test]
fn pixels_that_are_no_pictures() {
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let run = Sample::new()
            .edit("pixel_values", |b| b[4 * 9500..4 * 9501].copy_from_slice(&bad.to_le_bytes()))
            .run("logits");
        run.refused(&["pixel_values", "9500", "tile 1", &bad.to_string()]);
    }
    let n = 3 * 3 * 56 * 56;
    for shape in [vec![3, 56, 56, 3], vec![9, 56, 56], vec![3, 3, 28, 112], vec![n]] {
        let run = Sample::new().set("pixel_values", Dtype::F32, &shape, floats(&vec![0.5; n])).run("logits");
        run.refused(&[&format!("{shape:?}"), "[N, 3, 56, 56]"]);
    }
    let half = Sample::new().set("pixel_values", Dtype::F16, &[3, 3, 56, 56], vec![0; 2 * n]);
    half.run("logits").refused(&["pixel_values", "F16", "f32"]);
}

#[test]
fn tiles_and_placeholders_that_are_not_as_many() {
    let fewer = Sample::new().set("pixel_values", Dtype::F32, &[2, 3, 56, 56], floats(&vec![0.5; 2 * 3 * 56 * 56]));
    fewer.run("logits").refused(&["3 placeholders", "2 tiles"]);
    Sample::new().without("pixel_values").run("logits").refused(&["3 placeholders", "0 tiles"]);
    let none = Sample::new().set("pixel_values", Dtype::F32, &[0, 3, 56, 56], vec![]);
    none.run("logits").refused(&["3 placeholders", "0 tiles"]);
    let more = Sample::new().edit("input_ids", |b| b[..4].copy_from_slice(&(-200i32).to_le_bytes()));
    more.run("logits").refused(&["4 placeholders", "3 tiles"]);
}

#[test]
fn ids_and_labels_out_of_the_vocabulary() {
    for bad in [320, i32::MAX, -1, -5, i32::MIN] {
        let run = Sample::new().edit("input_ids", |b| b[12..16].copy_from_slice(&bad.to_le_bytes())).run("logits");
        run.refused(&["input_ids[3]", &bad.to_string(), "0 to 319"]);
        let run = Sample::new().edit("labels", |b| b[12..16].copy_from_slice(&bad.to_le_bytes())).run("loss");
        run.refused(&["labels[3]", &bad.to_string(), "0 to 319"]);
    }
    let text =
        |ids: &[i32]| Sample::new().without("pixel_values").set("input_ids", Dtype::I32, &[ids.len()], words(ids));
    text(&[]).run("logits").refused(&["`input_ids` is empty", "one id or more"]);
    text(&[1, 2]).run("loss").refused(&["98 labels", "2 ids"]);
    text(&[1, 2]).without("labels").run("loss").refused(&["no `labels`"]);
    Sample::new().without("input_ids").run("logits").refused(&["no `input_ids`", "i32 [T]"]);
    let pairs = Sample::new().set("input_ids", Dtype::I32, &[2, 2], words(&[1, 2, 3, 4]));
    pairs.run("logits").refused(&["[2, 2]", "one sequence"]);
    let wide = Sample::new().set("input_ids", Dtype::I64, &[1], (1i64 << 40).to_le_bytes().to_vec());
    wide.run("logits").refused(&["1099511627776", "fit i32"]);
    let real = Sample::new().set("input_ids", Dtype::F32, &[1], floats(&[1.0]));
    real.run("logits").refused(&["`input_ids` is F32"]);
    text(&[1, 2])
        .set("labels", Dtype::I32, &[2], words(&[-100, -100]))
        .run("loss")
        .refused(&["no position has a next label"]);
}

#[test]
fn cases_that_are_no_cases() {
    let f = Folder::new();
    let whole = std::fs::read(repository("tests/fixtures/tiny-b/case.safetensors")).unwrap();
    for bytes in [&whole[..0], &whole[..1000], b"this is text and no tensors"] {
        let input = f.write("case", bytes);
        at_the_door("logits", &input, &f.path("out")).refused(&["case", &format!("{} bytes", bytes.len())]);
    }
    at_the_door("logits", &f.path("nowhere"), &f.path("out")).refused(&["nowhere"]);
    assert!(!f.0.join("out").exists());
    let case = repository("tests/fixtures/tiny-b/case.safetensors");
    for output in [f.path("no/such/folder"), f.path("")] {
        at_the_door("loss", &case, &output).refused(&["cannot write", &output]);
        omchat(&["encode", "--model", &tiny(), "hi", "--output", &output]).refused(&["cannot write", &output]);
    }
}

/// A device must neither be replaced by a file nor be taken for one that was written.
#[test]
#[cfg(target_os = "linux")]
fn a_full_device_stays_a_device() {
    use std::os::unix::fs::FileTypeExt;
    let case = repository("tests/fixtures/tiny-b/case.safetensors");
    at_the_door("loss", &case, "/dev/full").refused(&["cannot write /dev/full"]);
    omchat(&["encode", "--model", &tiny(), "hi", "--output", "/dev/full"]).refused(&["cannot write /dev/full"]);
    assert!(std::fs::metadata("/dev/full").unwrap().file_type().is_char_device());
}

// Pictures and videos.

/// A PNG that has only its header.
fn png(width: u32, height: u32) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        !bytes.iter().fold(!0u32, |c, b| {
            (0..8).fold(c ^ u32::from(*b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
        })
    };
    let chunk = |kind: &[u8], data: &[u8]| {
        let body = [kind, data].concat();
        [&(data.len() as u32).to_be_bytes()[..], &body, &crc(&body).to_be_bytes()].concat()
    };
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header), chunk(b"IDAT", &[]), chunk(b"IEND", &[])].concat()
}

fn look(kind: &str, path: &str) -> Run {
    omchat(&["chat", "--model", &tiny(), "--device", "interp", "--max-new-tokens", "1", kind, path, "hi"])
}

#[test]
fn files_that_are_no_pictures() {
    let f = Folder::new();
    look("--image", &f.write("zero.png", png(0, 10))).refused(&["zero.png"]);
    look("--image", &f.write("bomb.png", png(100_000, 100_000))).refused(&[
        "100000x100000",
        "178956970",
        "make it smaller",
    ]);
    look("--image", &f.write("text.png", "no picture")).refused(&["text.png", "cannot decode", "give a whole PNG"]);
    look("--image", &f.write("empty.png", "")).refused(&["empty.png"]);
    let page = std::fs::read(repository("tests/fixtures/pictures/page.png")).unwrap();
    look("--image", &f.write("cut.png", &page[..page.len() / 2])).refused(&["cut.png", "cannot decode"]);
    look("--image", &f.path("none.png")).refused(&["none.png"]);
    look("--image", &f.path("")).refused(&["image"]);
    let frames = Folder::new();
    frames.write("1.png", &page);
    frames.write("2.png", "no picture");
    look("--video", &frames.path("")).refused(&["2.png", "cannot decode"]);
}

#[test]
fn files_that_are_no_videos() {
    let f = Folder::new();
    let ball = std::fs::read(repository("models/tiny/ball.gif")).unwrap();
    look("--video", &f.write("cut.gif", &ball[..ball.len() / 2]))
        .refused(&["cut.gif", "take the file from its source again"]);
    look("--video", &f.write("text.gif", "no video")).refused(&["text.gif"]);
    look("--video", &f.write("empty.mp4", "")).refused(&["empty.mp4", "0 bytes"]);
    look("--video", &f.path("none.mp4")).refused(&["none.mp4"]);
    std::fs::create_dir(f.0.join("frames")).unwrap();
    look("--video", &f.path("frames")).refused(&["it holds no frame"]);
    let frames = [
        "chat",
        "--model",
        &tiny(),
        "--device",
        "interp",
        "--video",
        &repository("models/tiny/ball.gif"),
        "--frames",
        "0",
        "hi",
    ];
    omchat(&frames).refused(&["0 frames", "one at least"]);
    // Whether ffmpeg is here or not, text is no video.
    look("--video", &f.write("text.mp4", "no video")).refused(&["text.mp4", "ffmpeg"]);
}

#[test]
fn without_ffmpeg_the_message_says_how_to_get_it() {
    let f = Folder::new();
    let video = f.write("some.mp4", "anything");
    let run = |path: &str| {
        let mut c = command(&[
            "chat",
            "--model",
            &tiny(),
            "--device",
            "interp",
            "--max-new-tokens",
            "1",
            "--frames",
            "2",
            "--video",
            path,
            "hi",
        ]);
        c.env("PATH", "/nonexistent").env_remove("OMCHAT_FFMPEG");
        finish(c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    };
    run(&video).refused(&["cannot start `ffmpeg`", "apt-get install ffmpeg", "OMCHAT_FFMPEG"]);
    run(&repository("models/tiny/ball.gif")).fine();
}

// Options, devices and memory.

#[test]
fn options_out_of_range() {
    let model = tiny();
    for (options, words) in [
        (&["--device", "nosuch"][..], &["nosuch", "cuda, wgpu, cpu, interp"][..]),
        (&["--dtype", "int4"], &["int4", "f32, bf16 or f16"]),
        (&["--dtype", "i32"], &["i32", "f32, bf16 or f16"]),
        (&["--format", "F9"], &["F9", "F0, F1, F2, F3, F4"]),
        (&["--temperature", "-1"], &["temperature is -1", "0 or more"]),
        (&["--temperature", "NaN"], &["temperature is NaN"]),
        (&["--temperature", "inf"], &["temperature is inf"]),
        (&["--temperature", "warm"], &["--temperature", "warm"]),
        (&["--top-p", "0"], &["top_p is 0", "above 0 and at most 1"]),
        (&["--top-p", "1.5"], &["top_p is 1.5"]),
        (&["--min-p", "2"], &["min_p is 2", "from 0 to 1"]),
        (&["--repetition-penalty", "0"], &["repetition_penalty is 0", "above 0"]),
        (&["--seed", "-1"], &["--seed", "-1"]),
        (&["--context", "0"], &["a context of 0 tokens", "1 or more"]),
        (&["--context", "20"], &["24 tokens", "a context of 20", "--context 24"]),
        (&["--context", "18446744073709551615"], &["18446744073709551615", "the most is 2147483135"]),
        (&["--image", "x", "--image", "y"], &["image x"]),
    ] {
        let base = ["chat", "--model", &model, "--max-new-tokens", "1"];
        let device = if options[0] == "--device" { &[][..] } else { &["--device", "interp"] };
        omchat(&[&base[..], device, options, &["hi"]].concat()).refused(words);
    }
    let asks = ["chat", "--model", &model, "--device", "interp", "--context", "10", "hi"];
    omchat(&asks).refused(&["24 tokens", "a context of 10", "--context 279", "an answer of 256"]);
    let page = repository("tests/fixtures/pictures/page.png");
    let marks = ["chat", "--model", &model, "--device", "interp", "--image", &page, "--image", &page, "<image> alone"];
    omchat(&marks).refused(&["marks 1 places", "2 pictures"]);
    let more = ["--max-new-tokens", "18446744073709551615"];
    let case = repository("tests/fixtures/tiny-b/case.safetensors");
    let generate = [
        "generate",
        "--model",
        &repository("tests/fixtures/tiny-b"),
        "--device",
        "interp",
        "--input",
        &case,
        "--output",
    ];
    let out = std::env::temp_dir().join("omchat-bad-ids.safetensors").display().to_string();
    omchat(&[&generate[..], &[&out], &more].concat()).refused(&["a context of 18446744073709551615"]);
    omchat(&[&generate[..], &["/nonexistent/x"]].concat()).refused(&["cannot write /nonexistent/x"]);
}

/// What would do nothing is refused, with what it goes with.
#[test]
fn options_without_effect() {
    let f = Folder::new();
    let plain = f.write("plain.oir", "func @f(%x: f32[2]) -> f32[2] { return %x }");
    let marked = f.write("marked.oir", "\u{feff}func @f(%x: f32[2]) -> f32[2] { return %x }");
    let case = ["--model", "m", "--input", "in", "--output", "out"];
    let refused = |arguments: &[&str], words: &[&str]| omchat(arguments).refused(words);
    for option in [["--trainable", "nope"], ["--loss-tiles", "3"], ["--mlp-tiles", "3"], ["--recompute", "layers"]] {
        refused(&[&["loss"][..], &case, &option].concat(), &["--grads"]);
    }
    for command in ["loss", "logits"] {
        refused(&[&[command][..], &case, &["--max-new-tokens", "3"]].concat(), &["--max-new-tokens"]);
    }
    for command in ["plan", "eval", "opt", "grad"] {
        refused(&["ir", command, &plain, "--bind", "Q=1"], &["plain.oir", "no function has a free letter `Q`"]);
        refused(&["ir", command, &plain, "--dtype", "bf16"], &["--dtype"]);
    }
    refused(&["ir", "plan", &plain, "--function", "f", "--bind", "Q=1"], &["no @f has a free letter `Q`"]);
    refused(&["ir", "eval", "--function", "softmax", "--bind", "R=4,R=5,C=2"], &["R is bound twice"]);
    refused(&["ir", "diff", "-", "-"], &["standard input", "read once"]);
    refused(&["ir", "verify", &marked], &["marked.oir begins with a byte order mark"]);
    refused(&["bench", "decode", "--all"], &["--all", "`omchat bench kernels`"]);
    refused(&["inspect"], &["--model", "--image", "--video"]);
}

#[test]
fn more_than_the_machine_has() {
    for device in ["interp", "cpu"] {
        if Device::open(device).is_err() {
            println!("skipped: {device} is not here");
            continue;
        }
        let run = omchat(&["chat", "--model", &tiny(), "--device", device, "--context", "100000000", "hi"]);
        run.refused(&["a KV cache of 100000256 slots needs 153600393216 bytes", device, "take a shorter context"]);
    }
}

/// Drivers of the 128 MiB kind refuse a cache that others would hold.
#[test]
fn a_buffer_beyond_the_devices_limit() {
    let Ok(device) = Device::open("wgpu") else { return println!("skipped: wgpu is not here") };
    let most = device.target().max_binding_bytes;
    // Two key heads of 32 f32: 256 bytes a slot and layer, in three layers, keys and values.
    let slots = most / 256 + 1;
    if device.free_bytes().is_none_or(|free| slots as u64 * 6 * 256 > free / 2) {
        return println!("skipped: wgpu allows buffers of {most} bytes, too many to try");
    }
    let run = omchat(&["chat", "--model", &tiny(), "--device", "wgpu", "--context", &slots.to_string(), "hi"]);
    run.refused(&[&most.to_string(), "needs", "take a shorter context"]);
}

#[test]
fn a_home_that_cannot_be_written() {
    let f = Folder::new();
    let file = f.write("file", "");
    let mut c = command(&["demo", "--device", "interp"]);
    c.env("OMCHAT_HOME", &file);
    let run = finish(c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    run.refused(&[&file, "set OMCHAT_HOME to a folder that can be written"]);
}

// Pipes.

#[test]
fn a_reader_that_goes_away_ends_the_answer() {
    let mut child = command(&[
        "chat",
        "--model",
        &tiny(),
        "--device",
        "interp",
        "--context",
        "100000",
        "--max-new-tokens",
        "50000",
        "hi",
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut one = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut one).unwrap();
    drop(child.stdout.take());
    let start = Instant::now();
    let run = finish(child);
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(run.code == Some(0) && run.stderr.is_empty(), "{:?}: {}", run.code, run.stderr);
}

fn conversation(input: &[u8]) -> Run {
    conversation_with(&[], input)
}

fn conversation_with(more: &[&str], input: &[u8]) -> Run {
    let tiny = tiny();
    let plain = ["chat", "--model", &tiny, "--device", "interp", "--max-new-tokens", "2"];
    let mut c = command(&[&plain[..], more].concat());
    let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that has refused its input does not read it.
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), input);
    finish(child)
}

#[test]
fn questions_from_a_pipe() {
    let none = conversation(b"").fine();
    assert!(none.stdout.is_empty());
    let answers = |run: Run| run.fine().stderr.matches(" answered").count();
    assert_eq!(answers(conversation(b"one\n\n\ntwo")), 2);
    conversation(b"\xff\xfe\n").refused(&["stdin", "UTF-8"]);
}

/// A bad line is told, the others are answered as if it had not been there, and the exit code says that there was one.
#[test]
fn a_conversation_goes_on_after_a_bad_line() {
    let image = repository("models/tiny/ball.gif");
    let talk = |input: &[u8]| conversation_with(&["--image", &image, "--context", "512"], input);
    let whole = talk(b"what is <image>?\nand\n").fine();
    let long = "far too long ".repeat(400);
    for bad in [&b"<image> and <image>"[..], b"\xff\xfe", long.as_bytes()] {
        // Once the picture is seen, marks are words.
        let again = if bad.starts_with(b"<") { b"" } else { bad };
        let hurt = talk(&[bad, b"\nwhat is <image>?\n", again, b"\nand\n"].concat());
        assert_eq!((hurt.code, &hurt.stdout), (Some(2), &whole.stdout), "{}", hurt.stderr);
        assert!(hurt.stderr.contains("error: ") && hurt.stderr.contains(" answered"), "{}", hurt.stderr);
    }
}

#[test]
fn options_of_a_chat_are_checked_before_the_model_is_read() {
    let f = Folder::of("models/tiny");
    f.write("model.safetensors", "broken");
    let refused = |options: &[&str], words: &[&str]| {
        omchat(&[&["chat", "--model", &f.path(""), "--device", "interp"], options, &["hi"]].concat()).refused(words)
    };
    refused(&["--format", "F9"], &["F9"]);
    refused(&["--temperature", "-1"], &["temperature is -1"]);
    refused(&["--top-p", "2"], &["top_p is 2"]);
    refused(&["--dtype", "f99"], &["f99"]);
}

// The language.

#[test]
fn text_that_is_no_module() {
    let f = Folder::new();
    let refused = |text: &[u8], words: &[&str]| {
        let path = f.write("bad.oir", text);
        for command in ["verify", "plan", "source", "eval"] {
            let run = omchat(&["ir", command, &path]);
            assert!(
                matches!(run.code, Some(1 | 2)) && !run.stderr.contains("panicked"),
                "{command}: {:?} {}",
                run.code,
                run.stderr
            );
            for word in words {
                assert!(run.stderr.contains(word), "{command}: no `{word}` in {}", run.stderr);
            }
        }
    };
    refused(
        b"func @f(%x: f32[2]) -> f32[2] {\n  %y = add %x\n  return %q\n}",
        &["bad.oir:2", "2 operands, not 1", "bad.oir:3", "%q"],
    );
    refused(b"func @f(%x: f32[2]) -> f32[2] {", &["bad.oir:1"]);
    refused(b"func @f(%x: f32[99999999999999999999]) -> f32[2] { return %x }", &["99999999999999999999"]);
    refused(b"func @f(%x: f32[4000000000, 4000000000]) -> f32[2] { return %x }", &["too large"]);
    refused(
        b"func @f(%x: f32[2]) -> f32[2] { for i in 0..1000000000 { %x = add %x, %x } return %x }",
        &["1000000000", "65536"],
    );
    refused(b"\xff\xfe\x00func", &["UTF-8"]);
    refused("(".repeat(20_000).as_bytes(), &["error"]);
}

#[test]
fn a_value_that_is_returned_twice_is_written_twice() {
    let f = Folder::new();
    let out = f.path("out.safetensors");
    let names = |text: &str, more: &[&str]| {
        let path = f.write("f.oir", text);
        omchat(&[&["ir", "eval", &path, "--output", &out], more].concat()).fine();
        tensors(&out).into_iter().map(|t| t.0).collect::<Vec<_>>()
    };
    let twice = "func @f(%x: f32[2]) -> (f32[2], f32[2]) { return %x, %x }";
    assert_eq!(names(twice, &[]), ["x", "x.1"]);
    assert_eq!(names(twice, &["--ranks", "2"]), ["x.0", "x.1", "x.1.0", "x.1.1"]);
    let kept = "func @s(%x: f32[2], state %c: f32[2]) -> (f32[2], f32[2]) { %n = add %x, %c return %n, %n }";
    assert_eq!(names(kept, &[]), ["n", "n.1"]);
}

// The library.

fn engine() -> Engine {
    let model = Model::open(&repository("models/tiny")).unwrap();
    Engine::load(model, Device::open("interp").unwrap(), &EngineOptions::default(), &mut |_| {}).unwrap()
}

#[test]
fn the_library_answers_with_typed_errors() {
    assert!(matches!(Model::open("nosuch"), Err(Error::Input(_))));
    assert!(matches!(
        Model::open(&std::env::temp_dir().display().to_string()),
        Err(Error::Model(omchat_model::Error::File { .. }))
    ));
    assert!(matches!(Device::open("nosuch"), Err(omchat_runtime::Error::NoDevice { .. })));
    let e = Arc::new(engine());
    assert!(matches!(Session::new(e.clone(), 0), Err(Error::Input(_))));
    assert!(matches!(Session::new(e.clone(), usize::MAX), Err(Error::Input(_))));
    assert!(matches!(Session::new(e.clone(), 1 << 30), Err(Error::Runtime(omchat_runtime::Error::OutOfMemory { .. }))));
    let mut s = Session::new(e.clone(), 8).unwrap();
    let mut read = |slots: &[Slot], features: &[f32]| s.read(slots, features, Rows::Last, &mut |_| {});
    assert!(matches!(read(&[], &[]), Err(Error::Input(_))));
    assert!(matches!(read(&[Slot::Text(1); 9], &[]), Err(Error::Context { need: 9, have: 8 })));
    assert!(matches!(read(&[Slot::Image(0)], &[]), Err(Error::Input(_))));
    let side = e.model().config.vision.as_ref().unwrap().image_size;
    for (pixel, count) in [(f32::NAN, 3 * side * side), (0.5, 3 * side * side - 1), (0.5, 0)] {
        assert!(e.features(1, &mut |_| vec![pixel; count], &mut |_| {}).is_err());
    }
    let hot = Sampling { temperature: f32::NAN, ..Sampling::default() };
    assert!(matches!(
        Chat::new(engine(), ChatOptions { sampling: hot, ..ChatOptions::default() }),
        Err(Error::Input(_))
    ));
}

/// An id that no embedding has must not read another's row.
#[test]
fn ids_that_bypass_the_splice() {
    let mut s = Session::new(Arc::new(engine()), 8).unwrap();
    let read = s.read(&[Slot::Text(1 << 20)], &[], Rows::Last, &mut |_| {});
    assert!(matches!(read, Err(Error::Input(text)) if text.contains("1048576") && text.contains("480")));
    assert!(matches!(s.losses(&[Slot::Text(1); 4], &[], &[1, 2]), Err(Error::Input(_))));
}

#[test]
fn a_question_that_fails_leaves_no_trace() {
    let options = ChatOptions { context: 96, max_new_tokens: 4, ..ChatOptions::default() };
    let ask = |chat: &mut Chat, text: &str| chat.ask(text, vec![], &mut |_| {}, &mut |_| ControlFlow::Continue(()));
    let (mut hurt, mut whole) = (Chat::new(engine(), options.clone()).unwrap(), Chat::new(engine(), options).unwrap());
    for chat in [&mut hurt, &mut whole] {
        ask(chat, "one").unwrap();
    }
    assert!(matches!(ask(&mut hurt, &"far too long ".repeat(60)), Err(Error::Context { .. })));
    let (a, b) = (ask(&mut hurt, "two").unwrap(), ask(&mut whole, "two").unwrap());
    assert_eq!((a.ids, a.prompt), (b.ids, b.prompt));
}

#[test]
fn an_answer_can_be_broken_off() {
    let mut chat = Chat::new(engine(), ChatOptions::default()).unwrap();
    let mut pieces = 0;
    let answer = chat.ask("hi", vec![], &mut |_| {}, &mut |_| {
        pieces += 1;
        if pieces == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(answer.unwrap().ids.len(), 3);
}
