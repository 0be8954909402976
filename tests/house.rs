//! The arrows hold: who may depend on whom, where a GPU library and a feature may be named, what a source
//! file must have and must not hold.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

/// Each crate and the siblings and GPU crates that it may name in `[dependencies]`.
const MAY: &[(&str, &[&str])] = &[
    ("ir", &[]),
    ("codegen", &["omchat-ir"]),
    ("model", &["omchat-ir"]),
    ("recipe", &["omchat-model"]),
    // A kernel implements codegen's trait: selection sees kernels as values, and names none.
    ("kernels", &["omchat-ir", "omchat-codegen", "cubecl", "cubecl-common", "cubecl-environment", "cubecl-llvm"]),
    ("runtime", &["omchat-ir", "omchat-codegen", "omchat-kernels", "cubecl"]),
    // Makes the mini model; a package of its own, with its own lock.
    ("tools/convert", &[]),
    (".", &["omchat-ir", "omchat-codegen", "omchat-kernels", "omchat-model", "omchat-recipe", "omchat-runtime"]),
];

/// What the language itself may use, from anywhere.
const IR: &[&str] = &["half", "thiserror"];

/// Files that may ask which features are compiled in; test devices do so too.
const FEATURES: &[&str] =
    &["kernels/src/source.rs", "kernels/src/words.rs", "runtime/src/device", "runtime/src/collective"];

/// Longest source file.
const LINES: usize = 500;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Names in the `[dependencies]` of a manifest, those of single targets among them.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut out = vec![];
    for line in manifest.lines() {
        if let Some(section) = line.strip_prefix('[') {
            inside = section.ends_with("dependencies]") && !section.contains("dev-") && !section.contains("workspace");
        } else if inside && !line.starts_with('#') && line.contains('=') {
            out.push(line.split(['.', '=', ' ']).next().unwrap_or_default().to_string());
        }
    }
    out
}

/// Every Rust file below the sources of all crates, by path from the root.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for path in entries.map(|e| e.unwrap().path()) {
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let mut files = vec![];
    for (krate, _) in MAY {
        walk(&root().join(krate).join("src"), &mut files);
    }
    files.sort();
    let name =
        |p: &Path| p.strip_prefix(root()).unwrap_or(p).display().to_string().trim_start_matches("./").to_string();
    files.iter().map(|p| (name(p), read(p))).collect()
}

/// The code of a file: without comments, and without the tests at its end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]").unwrap_or(text.len());
    text[..end].lines().enumerate().map(|(i, l)| (i + 1, l)).filter(|(_, l)| !l.trim_start().starts_with("//"))
}

#[test]
fn dependencies_point_one_way() {
    let mut faults = vec![];
    for (krate, may) in MAY {
        for name in dependencies(&read(&root().join(krate).join("Cargo.toml"))) {
            let ours = name.starts_with("omchat-") || name.starts_with("cubecl") || *krate == "ir";
            if ours && !may.contains(&name.as_str()) && !(*krate == "ir" && IR.contains(&name.as_str())) {
                faults.push(format!("{krate}/Cargo.toml depends on {name}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let pin = read(&root().join("Cargo.toml"));
    assert!(pin.lines().any(|l| l.starts_with("cubecl ") && l.contains("\"=")), "the version of cubecl must be pinned");
}

#[test]
fn one_seam_names_the_gpu_library() {
    let mut faults = vec![];
    for (name, text) in sources() {
        let free = name.starts_with("kernels/") || name.starts_with("runtime/");
        let feature = FEATURES.iter().any(|f| name.starts_with(f));
        for (i, line) in code(&text) {
            if !free && ["cubecl::", "use cubecl", "wgpu::", "cudarc"].iter().any(|w| line.contains(w)) {
                faults.push(format!("{name}:{i} names a GPU library: {}", line.trim()));
            }
            if !feature && (line.contains("cfg(feature") || line.contains("cfg!(feature")) {
                faults.push(format!("{name}:{i} asks for a feature: {}", line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The language and the decisions see no file, clock, thread or environment: equal input, equal output.
#[test]
fn language_and_decisions_do_no_io() {
    let mut faults = vec![];
    for (name, text) in sources().into_iter().filter(|(n, _)| n.starts_with("ir/") || n.starts_with("codegen/")) {
        for (i, line) in code(&text) {
            if ["std::fs", "std::env", "std::time", "std::thread", "std::io", "std::process", "std::net"]
                .iter()
                .any(|w| line.contains(w))
            {
                faults.push(format!("{name}:{i}: {}", line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_source_panics_by_hand() {
    let mut faults = vec![];
    for (name, text) in sources() {
        for (i, line) in code(&text) {
            if [".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!("].iter().any(|w| line.contains(w)) {
                faults.push(format!("{name}:{i}: {}", line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn each_source_says_what_it_is_and_stays_short() {
    let mut faults = vec![];
    for (name, text) in sources() {
        if !text.starts_with("//!") {
            faults.push(format!("{name} has no module doc"));
        }
        let lines = text.lines().count();
        if lines > LINES {
            faults.push(format!("{name} has {lines} lines, the most is {LINES}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The checks look at real files.
#[test]
fn the_walk_sees_every_crate() {
    let all = sources();
    for (krate, _) in MAY {
        let prefix = if *krate == "." { "src/".to_string() } else { format!("{krate}/src/") };
        assert!(all.iter().any(|(n, _)| n.starts_with(&prefix)), "no source below {prefix}");
    }
    let names = dependencies(
        "[dependencies]\na = \"1\"\nb.workspace = true\n# c = 1\n[dev-dependencies]\nd = \"1\"\n[target.'cfg(unix)'.dependencies]\ne = { version = \"1\" }\n",
    );
    assert_eq!(names, ["a", "b", "e"]);
}
