//! The pages say what is so: the code map is whole, every `console` block of README.md and ARCHITECTURE.md is run and its output compared,
//! and docs/kernels.md is what the kernels' module docs say. `BLESS=1` rewrites all three.
//!
//! A block holds commands after `$ ` and what they write to stdout. Generated code numbers its variables anew with
//! every change, so `v123` is compared as `v`.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_codegen::Implements;
use omchat_kernels::LIST;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a page with what it should be, or writes it.
fn keep(page: &str, want: &str) {
    let path = root().join(page);
    let have = std::fs::read_to_string(&path).unwrap_or_default();
    if unnumbered(&have) == unnumbered(want) {
        return;
    }
    if std::env::var_os("BLESS").is_some() {
        return std::fs::write(&path, want).unwrap();
    }
    let line = have
        .lines()
        .zip(want.lines())
        .position(|(h, w)| unnumbered(h) != unnumbered(w))
        .unwrap_or_else(|| have.lines().count().min(want.lines().count()));
    let at = |text: &str| text.lines().nth(line).unwrap_or("(its end)").to_string();
    panic!(
        "{page}:{} is\n  {}\nand should be\n  {}\n`BLESS=1 cargo test --test docs` rewrites it",
        line + 1,
        at(&have),
        at(want)
    );
}

/// The text with each `v123` as `v`, where it stands as a word.
fn unnumbered(text: &str) -> String {
    let mut out = String::new();
    let mut last = ' ';
    let mut in_name = false;
    for c in text.chars() {
        in_name = if c == 'v' { !last.is_ascii_alphanumeric() } else { in_name && c.is_ascii_digit() };
        if !in_name || c == 'v' {
            out.push(c);
        }
        last = c;
    }
    out
}

/// What a shell writes to stdout for a command line that calls `omchat`.
fn run(command: &str) -> String {
    let bin = Path::new(env!("CARGO_BIN_EXE_omchat")).parent().unwrap().to_owned();
    let path =
        std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())))
            .unwrap();
    let out = Command::new("sh").arg("-c").arg(command).current_dir(root()).env("PATH", path).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && !stdout.is_empty(), "`{command}` failed:\n{stdout}{stderr}");
    stdout.lines().map(|l| format!("{}\n", l.trim_end())).collect()
}

/// The page with the output of each command as it is now.
fn rerun(page: &str) -> String {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    let mut inside = false;
    while let Some(line) = lines.next() {
        out += &format!("{line}\n");
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ => {}
        }
        let Some(command) = line.strip_prefix("$ ").filter(|_| inside) else { continue };
        while lines.peek().is_some_and(|l| *l != "```" && !l.starts_with("$ ")) {
            lines.next();
        }
        out += &run(command);
    }
    out
}

#[test]
fn the_readme_shows_what_its_commands_write() {
    // Its example is the library's own, which is compiled; lines that the documentation hides are left out.
    let library = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let lines =
        library.lines().skip_while(|l| !l.starts_with("//! ```")).skip(1).take_while(|l| !l.starts_with("//! ```"));
    let example: String = lines
        .map(|l| l.trim_start_matches("//!"))
        .filter(|l| !l.starts_with(" #"))
        .map(|l| format!("{}\n", l.strip_prefix(' ').unwrap_or(l)))
        .collect();
    let page = rerun("README.md");
    let (before, rest) = page.split_once("```rust\n").unwrap();
    let (_, after) = rest.split_once("```").unwrap();
    keep("README.md", &format!("{before}```rust\n{example}```{after}"));
}

#[test]
fn the_architecture_shows_what_its_commands_write() {
    keep("ARCHITECTURE.md", &rerun("ARCHITECTURE.md"));
}

#[test]
fn the_page_of_rings_shows_what_its_commands_write() {
    keep("docs/ring.md", &rerun("docs/ring.md"));
}

/// Every file below a folder of the repository.
fn files(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap().map(|e| e.unwrap());
    entries
        .flat_map(|e| {
            let path = format!("{folder}/{}", e.file_name().to_string_lossy());
            if e.path().is_dir() { files(&path) } else { vec![path] }
        })
        .collect()
}

#[test]
fn the_map_names_the_files_that_there_are() {
    let all: Vec<String> =
        ["ir", "codegen", "kernels", "model", "recipe", "runtime", "src", "tests", "scripts", "docs", "tools"]
            .iter()
            .flat_map(|f| files(f))
            .collect();
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap()
        + &std::fs::read_to_string(root().join("README.md")).unwrap();
    let words: Vec<&str> =
        page.lines().filter(|l| !l.starts_with("```")).flat_map(|l| l.split('`').skip(1).step_by(2)).collect();
    for name in words.iter().filter(|w| w.ends_with(".rs") || w.ends_with(".oir")) {
        let known = name.contains(['*', ' '])
            || name.chars().any(|c| c.is_ascii_uppercase())
            || all.iter().any(|f| f == name || f.ends_with(&format!("/{name}")));
        assert!(known, "the pages name {name}, which is not there");
    }
    let mapped = |f: &str| {
        ["ir/src", "codegen/src", "kernels/src", "model/src", "runtime/src", "tools"].iter().any(|d| f.starts_with(d))
            && f.ends_with(".rs")
    };
    let named = |f: &str| words.iter().any(|w| w.rsplit('/').next() == f.rsplit('/').next());
    let lacks: Vec<&String> =
        all.iter().filter(|f| mapped(f) && !f.ends_with("/lib.rs") && !f.ends_with("/mod.rs") && !named(f)).collect();
    assert!(lacks.is_empty(), "the code map of ARCHITECTURE.md lacks {lacks:?}");
}

const FIELDS: [&str; 5] = ["Implements", "Schedule", "Needs", "Cost", "Source"];

/// The paragraphs of a kernel's module doc, and its five fields.
fn described(kernel: &str) -> (String, Vec<String>) {
    let file = format!("kernels/src/{}.rs", kernel.replace('.', "_"));
    let text = std::fs::read_to_string(root().join(&file)).unwrap_or_else(|e| panic!("{kernel} is not in {file}: {e}"));
    let doc: Vec<&str> =
        text.lines().take_while(|l| l.starts_with("//!")).map(|l| l.trim_start_matches("//!").trim()).collect();
    let start = doc
        .iter()
        .position(|l| l.starts_with("Implements "))
        .unwrap_or_else(|| panic!("{file} does not say what it implements"));
    let mut fields: Vec<String> = vec![];
    for line in &doc[start..] {
        match FIELDS.get(fields.len()).and_then(|f| line.strip_prefix(f)) {
            Some(rest) => fields.push(rest.trim().to_string()),
            None => *fields.last_mut().unwrap() += &format!(" {line}"),
        }
    }
    assert_eq!(fields.len(), FIELDS.len(), "{file} must say, in this order: {}", FIELDS.join(", "));
    (doc[..start].join("\n").trim().to_string(), fields)
}

#[test]
fn the_page_of_kernels_is_up_to_date() {
    let mut page = "# The kernels\n\nGenerated from the kernels' own documentation by `BLESS=1 cargo test --test docs`; do not edit.\n\
        In the order of THE LIST (`kernels/src/lib.rs`): for each piece of work the first that does not refuse is taken, unless another\n\
        was measured as faster (`omchat tune`) or should take much less time by the cost model; `omchat ir plan` shows which, and\n\
        why none of those before it.\n".to_string();
    for k in LIST {
        let (about, fields) = described(k.name());
        page += &format!("\n## `{}`\n\n{about}\n\n| | |\n|---|---|\n", k.name());
        for (name, text) in FIELDS.iter().zip(fields) {
            page += &format!("| {name} | {} |\n", text.trim().replace('|', "\\|"));
        }
    }
    keep("docs/kernels.md", &page);
}

#[test]
fn kernels_implement_functions_that_exist() {
    let library = omchat_ir::library::file().unwrap();
    for k in LIST {
        let Implements::Functions(names) = k.implements() else { continue };
        for name in names {
            let known = library.functions.iter().any(|t| t.name == *name);
            assert!(known, "{} implements @{name}, which the library lacks", k.name());
        }
    }
}

#[test]
fn only_collectives_cross_ranks() {
    for entry in std::fs::read_dir(root().join("ir/src/ops")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let local = text.matches("fn eval(").count() == text.matches("each(ranks, ").count();
        assert!(
            local || path.ends_with("collective.rs") || path.ends_with("mod.rs"),
            "{} evaluates otherwise than rank by rank",
            path.display()
        );
    }
}
