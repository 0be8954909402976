//! `omchat encode` against cases recorded with Pillow and the tokenizers library, and on inputs that are no good.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may end at the first surprise

use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A folder of this test's own.
fn scratch(test: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("omchat-encode-{}-{test}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn encode(model: &str, arguments: &[&str], output: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omchat"));
    command
        .arg("encode")
        .arg("--model")
        .arg(fixture(model))
        .args(arguments)
        .arg("--output")
        .arg(output)
        .output()
        .unwrap()
}

fn path(name: &str) -> String {
    fixture(name).display().to_string()
}

fn numbers<const N: usize, T>(file: &SafeTensors, name: &str, read: fn([u8; N]) -> T) -> Vec<T> {
    file.tensor(name).unwrap().data().chunks_exact(N).map(|b| read(b.try_into().unwrap())).collect()
}

#[test]
fn cases_are_the_recorded_ones() {
    let (page, coins) = (path("pictures/page.png"), path("pictures/coins.png"));
    let lone = "What is in this picture?";
    let cases = [
        ("page", vec!["--image", &page, lone], vec![2, 1]),
        ("coins", vec!["--image", &coins, lone], vec![2, 2]),
        ("several", vec!["--image", &page, "--image", &coins, "Describe <image> and <image>."], vec![2, 1, 2, 2]),
    ];
    for (name, arguments, grids) in cases {
        let out = scratch(name).join("case.safetensors");
        let run = encode("tiny-b", &arguments, &out);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let (have, want) = (
            std::fs::read(&out).unwrap(),
            std::fs::read(fixture(&format!("tiny-b/encode/{name}.safetensors"))).unwrap(),
        );
        let (have, want) = (SafeTensors::deserialize(&have).unwrap(), SafeTensors::deserialize(&want).unwrap());
        assert_eq!(
            numbers(&have, "input_ids", i32::from_le_bytes),
            numbers(&want, "input_ids", i32::from_le_bytes),
            "{name}"
        );
        assert_eq!(numbers(&have, "tile_grids", i32::from_le_bytes), grids, "{name}");
        assert_eq!(have.tensor("tile_grids").unwrap().shape(), [grids.len() / 2, 2]);
        let shape = have.tensor("pixel_values").unwrap().shape().to_vec();
        assert_eq!(shape, want.tensor("pixel_values").unwrap().shape(), "{name}");
        let want = planes(&numbers(&want, "pixel_values", f32::from_le_bytes), shape[2]);
        let have = numbers(&have, "pixel_values", f32::from_le_bytes);
        let worst = have.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(have.len() == want.len() && worst <= 1e-6, "{name}: {worst}");
    }
}

/// The recorded tiles as [tiles, 3, S, S]: their bytes lie as [tiles, S, S, 3], whatever their header says.
fn planes(recorded: &[f32], size: usize) -> Vec<f32> {
    let tiles = recorded.chunks_exact(3 * size * size);
    tiles.flat_map(|tile| (0..3).flat_map(|channel| tile.iter().skip(channel).step_by(3).copied())).collect()
}

#[test]
fn text_alone_has_no_pixels() {
    let out = scratch("text").join("case.safetensors");
    assert!(encode("tiny-b", &["Hello."], &out).status.success());
    let bytes = std::fs::read(&out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.names(), ["input_ids"]);
}

#[test]
fn a_folder_of_frames_is_a_video() {
    let dir = scratch("frames");
    let frames = dir.join("frames");
    std::fs::create_dir_all(&frames).unwrap();
    for n in 0..5 {
        std::fs::copy(fixture("pictures/page.png"), frames.join(format!("f{n}.png"))).unwrap();
    }
    let out = dir.join("case.safetensors");
    let run = encode(
        "tiny-b",
        &["--video", &frames.display().to_string(), "--frames", "3", "--format", "F4", "What happens?"],
        &out,
    );
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let bytes = std::fs::read(&out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("pixel_values").unwrap().shape(), [3, 3, 56, 56]);
    assert_eq!(numbers(&file, "tile_grids", i32::from_le_bytes), [1; 6]);
    assert_eq!(numbers(&file, "input_ids", i32::from_le_bytes).iter().filter(|id| **id == -200).count(), 3);
}

#[test]
fn bad_inputs_are_answered() {
    let dir = scratch("bad");
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    // The header of a BMP of 0x0 pixels.
    let mut nothing = vec![b'B', b'M', 54, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0];
    nothing.extend([0; 8]);
    nothing.extend([1, 0, 24, 0]);
    nothing.extend([0; 24]);
    let empty = file("empty.png", b"");
    let nothing = file("nothing.bmp", &nothing);
    let noise = file("noise.mp4", &[7; 4096]);
    let page = path("pictures/page.png");
    let cases: [(&str, Vec<&str>, &str); 9] = [
        ("tiny-c", vec!["Hello."], "tokenizer"),
        ("nowhere", vec!["Hello."], "nowhere"),
        ("tiny-b", vec!["--image", &empty, "Hello."], "empty.png"),
        ("tiny-b", vec!["--image", &nothing, "Hello."], "nothing.bmp"),
        ("tiny-b", vec!["--video", &noise, "Hello."], "noise.mp4"),
        ("tiny-b", vec!["--image", "/no/such/file.png", "Hello."], "/no/such/file.png"),
        ("tiny-b", vec!["--video", &noise, "--frames", "0", "Hello."], "frames"),
        ("tiny-b", vec!["--image", &page, "--format", "F9", "Hello."], "F9"),
        ("tiny-b", vec!["--image", &page, "--image", &page, "Only <image>"], "1 places"),
    ];
    for (model, arguments, said) in cases {
        let out = dir.join("case.safetensors");
        let run = encode(model, &arguments, &out);
        let text = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.starts_with("error: ") && text.contains(said), "{arguments:?}: {text}");
        assert!(!out.exists(), "{arguments:?}");
    }
    let run = encode("tiny-b", &["Hello."], Path::new("/no/such/folder/case.safetensors"));
    assert_eq!(run.status.code(), Some(2));
}
