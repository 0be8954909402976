//! The lists have their siblings: each op its file test and its row in docs/ops.md, each code its faulty
//! text, each function of the library a test; and the examples of docs/oir.md hold. `BLESS=1` writes ops.md.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_ir::{Class, Code, Op, Scalar, library, parse};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The text of all files of a folder, one after another.
fn folder(path: &str) -> String {
    let mut names: Vec<PathBuf> = std::fs::read_dir(root().join(path))
        .unwrap_or_else(|e| panic!("{path}: {e}"))
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_file())
        .collect();
    names.sort();
    names.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect()
}

#[test]
fn each_mnemonic_has_a_file_test_that_uses_it() {
    for m in Op::mnemonics() {
        let text = read(&format!("tests/filetests/ops/{m}.oir"));
        let used = text.lines().any(|l| {
            !l.starts_with(';') && l.split_once(" = ").is_some_and(|(_, r)| r.split([' ', '.']).next() == Some(m))
        });
        assert!(used, "tests/filetests/ops/{m}.oir does not use `{m}`");
        assert!(text.contains("\n; run: "), "tests/filetests/ops/{m}.oir runs nothing");
    }
}

#[test]
fn each_code_has_a_faulty_text() {
    for code in Code::ALL {
        let name = code.name();
        let text = read(&format!("tests/filetests/verify/{name}.oir"));
        assert!(text.contains(&format!("error[{name}]")), "tests/filetests/verify/{name}.oir shows no error[{name}]");
    }
}

#[test]
fn each_library_function_has_a_doc_and_a_test() {
    let tests = folder("tests/filetests/library")
        + &read("ir/tests/library.rs")
        + &read("ir/tests/ring.rs")
        + &read("ir/tests/common/rows.rs");
    let called: BTreeSet<&str> = tests
        .split('@')
        .skip(1)
        .map(|t| t.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).next().unwrap_or_default())
        .collect();
    for t in &library::file().unwrap().functions {
        assert!(called.contains(t.name.as_str()), "no test calls @{}", t.name);
        assert!(!t.doc.is_empty(), "@{} has no `;;` doc", t.name);
    }
}

/// What the source says of a structured op: its mnemonic and the lines of its doc comment.
struct Described {
    mnemonic: String,
    doc: Vec<String>,
}

fn described() -> Vec<Described> {
    let source = folder("ir/src/ops");
    source
        .split("impl OpDef for ")
        .skip(1)
        .map(|part| {
            let name = part.split(' ').next().unwrap_or_default();
            let mnemonic =
                part.split("vec![\"").nth(1).and_then(|p| p.split('"').next()).unwrap_or_default().to_string();
            // Another name may begin with this one.
            let ends = [" ", ";", "("].map(|c| source.find(&format!("pub struct {name}{c}")));
            let head = ends.into_iter().flatten().min().map_or("", |at| &source[..at]);
            let doc: Vec<String> = head
                .lines()
                .rev()
                .skip_while(|l| l.starts_with("#["))
                .take_while(|l| l.starts_with("///"))
                .map(|l| l.trim_start_matches("///").trim().to_string())
                .collect();
            Described { mnemonic, doc: doc.into_iter().rev().collect() }
        })
        .collect()
}

fn ops_page() -> String {
    let all = described();
    let find = |m: &str| all.iter().find(|d| d.mnemonic == m);
    let mut out = "# The ops\n\nGenerated from the ops' own documentation by `BLESS=1 cargo test -p omchat-ir --test complete`; do not edit.\n\
        [oir.md](oir.md) explains the notation; `tests/filetests/ops/` shows each op with numbers.\n\n\
        | mnemonic | form | yields |\n|---|---|---|\n".to_string();
    let mut notes = String::new();
    for m in Op::mnemonics() {
        if let Some(f) = Scalar::from_name(m) {
            out += &format!("| `{m}` | `{}` | {} |\n", form(f), f.doc().trim().replace('|', "\\|"));
            continue;
        }
        let d = find(m).unwrap_or_else(|| panic!("the source of `{m}` has no doc comment"));
        let first = d.doc[0].replace('|', "\\|");
        let (form, yields) = first
            .split_once(" — ")
            .unwrap_or_else(|| panic!("the doc of `{m}` must start with `` `form` — what it yields ``"));
        out += &format!("| `{m}` | {form} | {} |\n", capital(yields));
        let rest: Vec<&str> = d.doc[1..].iter().map(String::as_str).filter(|l| !l.is_empty()).collect();
        if !rest.is_empty() {
            notes += &format!("\n### `{m}`\n\n{}\n", paragraphs(&rest));
        }
    }
    let pointwise = read("ir/src/ops/pointwise.rs");
    let own: Vec<&str> = pointwise
        .split("pub struct Pointwise")
        .next()
        .unwrap_or_default()
        .lines()
        .rev()
        .skip_while(|l| l.starts_with("#["))
        .take_while(|l| l.starts_with("///"))
        .collect();
    let own: Vec<&str> =
        own.into_iter().rev().skip(1).map(|l| l.trim_start_matches("///").trim()).filter(|l| !l.is_empty()).collect();
    out + "\n## Scalar functions\n\n" + &paragraphs(&own) + "\n\n## The others\n" + &notes
}

/// Lines to a list: a line that starts `Word:` opens a new item.
fn paragraphs(lines: &[&str]) -> String {
    let mut out = String::new();
    for l in lines {
        let opens = ["Shapes:", "Numbers:", "Errors:", "Source:", "Units:"].iter().any(|w| l.starts_with(w));
        out += if out.is_empty() {
            "- "
        } else if opens {
            "\n- "
        } else {
            " "
        };
        out += l;
    }
    out
}

fn capital(s: &str) -> String {
    let mut c = s.chars();
    c.next().map_or(String::new(), |f| f.to_uppercase().collect::<String>() + c.as_str())
}

fn form(f: Scalar) -> String {
    let operands = match (f.class(), f.arity()) {
        (Class::Select, _) => "%c, %x, %y",
        (_, 1) => "%x",
        _ => "%x, %y",
    };
    format!("%z = {} {operands}", f.name())
}

#[test]
fn the_page_of_ops_is_up_to_date() {
    let (page, path) = (ops_page(), root().join("docs/ops.md"));
    if std::env::var_os("BLESS").is_some_and(|v| v != "0") {
        std::fs::create_dir_all(root().join("docs")).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap_or_default() == page, "docs/ops.md is stale; BLESS=1 rewrites it");
}

#[test]
fn the_examples_of_the_page_on_the_language_hold() {
    let page = read("docs/oir.md");
    let blocks: Vec<&str> =
        page.split("```oir\n").skip(1).map(|b| b.split("\n```").next().unwrap_or_default()).collect();
    assert!(blocks.len() >= 5, "docs/oir.md has {} examples", blocks.len());
    for b in blocks {
        let m = parse(b).unwrap_or_else(|e| panic!("{}", e.render("docs/oir.md", b)));
        m.verify().unwrap();
        assert!(!m.functions.is_empty(), "an example without an instance proves nothing:\n{b}");
        assert_eq!(parse(&m.to_string()).unwrap(), m);
    }
    for m in Op::mnemonics().iter().filter(|m| Scalar::from_name(m).is_none()) {
        assert!(page.contains(m), "docs/oir.md does not name `{m}`");
    }
}
