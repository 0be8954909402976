//! The tools over the IR from outside: dumps that can be fed back, differences, gradients, pages.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may end at the first surprise

use omchat_codegen::PIPELINE;
use safetensors::tensor::TensorView;
use std::path::PathBuf;
use std::process::{Command, Output};

fn omchat(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omchat"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments);
    command.env_remove("OMCHAT_DUMP").env_remove("OMCHAT_DUMP_DIR").envs(environment.iter().copied());
    command.output().unwrap()
}

/// Exit code, stdout and stderr.
fn ran(arguments: &[&str]) -> (i32, String, String) {
    let run = omchat(arguments, &[]);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (run.status.code().unwrap(), text(run.stdout), text(run.stderr))
}

/// Stdout of a command that succeeds.
fn said(arguments: &[&str]) -> String {
    let (code, out, err) = ran(arguments);
    assert_eq!(code, 0, "{arguments:?}: {err}");
    out
}

/// A folder of one test's own.
fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("omchat-ir-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn text(test: &str, name: &str, text: &str) -> String {
    let path = folder(test).join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// The numbers that `ir eval` printed.
fn numbers(shown: &str) -> Vec<f64> {
    let lines = shown.lines().filter(|l| l.starts_with("  "));
    lines.flat_map(|l| l.split_whitespace().filter_map(|w| w.parse().ok()).collect::<Vec<_>>()).collect()
}

const NORM: [&str; 4] = ["--function", "layer_norm", "--bind", "E=f32,R=3,C=4"];

#[test]
fn dumps_read_back_and_mean_the_same() {
    let dir = folder("dump").display().to_string();
    let run = omchat(&[&["ir", "plan"][..], &NORM].concat(), &[("OMCHAT_DUMP", "all"), ("OMCHAT_DUMP_DIR", &dir)]);
    assert!(run.status.success());
    let told = String::from_utf8(run.stderr).unwrap();
    let want = numbers(&said(&[&["ir", "eval", "--seed", "5"][..], &NORM].concat()));
    assert!(want.len() >= 12, "{want:?}");
    for (i, pass) in PIPELINE.iter().enumerate() {
        let path = format!("{dir}/layer_norm.{:02}-{}.oir", i + 1, pass.name);
        assert!(told.contains(&path), "{told}");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(said(&["ir", "print", &path]), text, "{path}");
        let have = numbers(&said(&["ir", "eval", "--seed", "5", &path]));
        let near = have.len() == want.len() && have.iter().zip(&want).all(|(h, w)| (h - w).abs() <= 1e-5);
        assert!(near, "after {}: {have:?}, not {want:?}", pass.name);
        assert_eq!(
            said(&["ir", "diff", &path, &format!("@{}", pass.name), NORM[0], NORM[1], NORM[2], NORM[3]])
                .lines()
                .count(),
            1
        );
    }
}

#[test]
fn a_dump_tells_its_programs_apart_and_refuses_unknown_passes() {
    let dir = folder("dumps");
    let environment = [("OMCHAT_DUMP", "cse, outline"), ("OMCHAT_DUMP_DIR", dir.to_str().unwrap())];
    assert!(omchat(&["inspect", "--model", "models/tiny", "--device", "cuda"], &environment).status.success());
    let mut names: Vec<String> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let place = |name: &str| PIPELINE.iter().position(|p| p.name == name).unwrap() + 1;
    let mut want = vec![];
    for program in ["decode", "decode.2", "vision"] {
        want.extend(["cse", "outline"].map(|pass| format!("{program}.{:02}-{pass}.oir", place(pass))));
    }
    want.sort();
    assert_eq!(names, want);
    let run = omchat(&["inspect", "--model", "models/tiny", "--device", "cuda"], &[("OMCHAT_DUMP", "cse,tidy")]);
    let told = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.code() == Some(2) && told.contains("`tidy`") && told.contains(PIPELINE[0].name), "{told}");
}

#[test]
fn a_model_that_is_run_is_dumped() {
    let dir = folder("run");
    let output = dir.join("out.safetensors").display().to_string();
    let case = ["--input", "tests/fixtures/tiny-b/case.safetensors", "--output", &output];
    let environment = [("OMCHAT_DUMP", "inline"), ("OMCHAT_DUMP_DIR", dir.to_str().unwrap())];
    let run = |device| {
        let command = ["logits", "--model", "tests/fixtures/tiny-b", "--device", device];
        let run = omchat(&[&command[..], &case].concat(), &environment);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stderr).unwrap()
    };
    let told = run("interp");
    assert!(told.contains("@decode is interpreted") && !dir.join("decode.02-inline.oir").exists(), "{told}");
    if cfg!(feature = "cpu") {
        assert!(run("cpu").contains("decode.02-inline.oir"));
        said(&["ir", "verify", dir.join("decode.02-inline.oir").to_str().unwrap()]);
    } else {
        println!("skipped: a dump of a run: no feature cpu");
    }
}

const PLAIN: &str = "func @g(%a: f32[3]) -> f32[3] { %b = neg %a %c = mul %b, %a return %c }
func @f(%x: f32[3], %w: f32[3]) -> f32[3] {
    %p = add %x, %w
    %q = mul %p, %x
    %r = exp %q
    %s = call @g(%r)
    return %s
}";

#[test]
fn renamed_values_are_no_difference_and_others_are() {
    let file = |name: &str, t: &str| text("diff", name, t);
    let a = file("a.oir", PLAIN);
    let renamed = PLAIN
        .replace("%a", "%z")
        .replace("%b", "%1")
        .replace("%p", "%q0")
        .replace("%q ", "%p ")
        .replace("%q\n", "%p\n");
    let (code, out, _) = ran(&["ir", "diff", &a, &file("renamed.oir", &renamed)]);
    assert_eq!((code, out.as_str()), (0, "the same: 2 functions\n"));
    // Each of these means something else.
    for (i, (from, to)) in [
        ("%q = mul %p, %x", "%q = mul %p, %w"),
        ("%q = mul %p, %x", "%q = mul %x, %p"),
        ("return %s", "return %r"),
        ("exp %q", "log %q"),
        ("@f(%x: f32[3], %w: f32[3])", "@f(%w: f32[3], %x: f32[3])"),
        ("call @g(%r)", "call @g(%q)"),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(PLAIN.contains(from));
        let b = file(&format!("changed{i}.oir"), &PLAIN.replace(from, to));
        let (code, out, _) = ran(&["ir", "diff", &a, &b]);
        assert!(code == 1 && out.contains("1 changed") && out.contains("\n@f\n@@ "), "{from} to {to}: {code} {out}");
    }
    // A step more: one line, though every value after it has another number.
    let more = file("more.oir", &renamed.replace("%r = exp %p", "%n = neg %p %r = exp %n"));
    let (code, out, _) = ran(&["ir", "diff", &a, &more]);
    let lines: Vec<&str> = out
        .lines()
        .filter(|l| l.starts_with(['-', '+']) && !l.starts_with(["---", "+++"][0]) && !l.starts_with("+++"))
        .collect();
    assert_eq!(code, 1);
    assert_eq!(
        lines,
        ["-     %r = exp %q : f32[3]", "+     %n = neg %q : f32[3]", "+     %r = exp %n : f32[3]"],
        "{out}"
    );
    let alone = file("alone.oir", "func @h(%x: f32[3]) -> f32[3] { return %x }");
    let (code, out, _) = ran(&["ir", "diff", &a, &alone]);
    assert!(code == 1 && out.contains("- @g: only in A") && out.contains("+ @h: only in B"), "{out}");
    assert!(
        out.ends_with("2 functions only in A, 1 only in B, 0 changed (0 lines removed, 0 added), 0 the same\n"),
        "{out}"
    );
}

#[test]
fn numbered_functions_are_the_same_by_what_they_do() {
    let entry = |a, b| format!("func @f(%x: f32[3]) -> f32[3] {{ %y = call @{a}(%x) %z = call @{b}(%y) return %z }}");
    let fused = |n, op| format!("func @fused.{n}(%x: f32[3]) -> f32[3] {{ %y = {op} %x return %y }}\n");
    let a = text("fused", "a.oir", &(fused(0, "exp") + &fused(1, "neg") + &entry("fused.0", "fused.1")));
    let b = fused(0, "sin") + &fused(1, "exp") + &fused(2, "neg") + &entry("fused.1", "fused.2").replace("%x)", "%s)");
    let b = text("fused", "b.oir", &b.replace("{ %y = call", "{ %s = call @fused.0(%x) %y = call"));
    let (code, out, _) = ran(&["ir", "diff", &a, &b]);
    assert!(code == 1 && out.contains("1 only in B, 1 changed (1 lines removed, 2 added), 2 the same"), "{out}");
}

#[test]
fn diff_compares_passes_and_says_2_for_trouble() {
    let a = text("passes", "a.oir", PLAIN);
    let (code, out, _) = ran(&["ir", "diff", &a, &format!("{a}@inline")]);
    assert!(code == 1 && out.contains("- @g: only in A") && out.contains("-     %s = call @g(%r)"), "{out}");
    let (code, _, _) = ran(&["ir", "diff", "@cse", "@dce", "--function", "silu", "--bind", "E=f32,R=2,C=4"]);
    assert_eq!(code, 0);
    let bad = text("passes", "bad.oir", "func @f(%x: f32[3]) -> f32[3] { return %y }");
    for (arguments, part) in [
        (["/no/such.oir", &a], "/no/such.oir"),
        ([&a, &bad], "bad.oir:1"),
        ([&a, "/no/such.oir@cse"], "/no/such.oir"),
        ([&a, &format!("{a}@tidy")], "input, legalize"),
        (["@cse", &a], "FILE"),
    ] {
        let (code, out, err) = ran(&["ir", "diff", arguments[0], arguments[1]]);
        assert!(code == 2 && out.is_empty() && err.contains(part), "{arguments:?}: {code} {out}{err}");
    }
}

/// d/dx and d/dw of 3 · sum(x · x · w) are 6 x w and 3 x².
#[test]
fn grad_prints_a_function_that_yields_the_gradient() {
    let f = text(
        "grad",
        "f.oir",
        "func @f(%x: f32[3], %w: f32[3], %n: i32) -> (f32, i32) { %s = mul %x, %x %t = mul %s, %w %y = reduce.sum %t \"c -> \" return %y, %n }",
    );
    let (x, w) = ([1.5f32, -2.0, 0.25], [2.0f32, 0.5, -4.0]);
    let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (bx, bw, by) = (bytes(&x), bytes(&w), bytes(&[3.0]));
    let view = |b, shape| TensorView::new(safetensors::Dtype::F32, shape, b).unwrap();
    let input = folder("grad").join("in.safetensors");
    let given = [("x", view(&bx, vec![3])), ("w", view(&bw, vec![3])), ("d.y", view(&by, vec![]))];
    std::fs::write(&input, safetensors::serialize(given, None).unwrap()).unwrap();
    let input = input.display().to_string();
    let dx: Vec<f64> = (0..3).map(|i| f64::from(6.0 * x[i] * w[i])).collect();
    let dw: Vec<f64> = x.iter().map(|x| f64::from(3.0 * x * x)).collect();
    for (arguments, want) in [
        (&["--wrt", "w,x"][..], [dw.clone(), dx.clone()].concat()),
        (&["--wrt", "x", "--of", "y", "--to", "outline"], dx.clone()),
        (&["--of", "0"], [dx.clone(), dw.clone()].concat()),
    ] {
        let grad = text("grad", "grad.oir", &said(&[&["ir", "grad", &f][..], arguments].concat()));
        said(&["ir", "verify", &grad]);
        let have = numbers(&said(&["ir", "eval", &grad, "--function", "f.grad", "--input", &input]));
        assert_eq!(have[have.len() - want.len()..], want, "{arguments:?}: {have:?}");
    }
    for (arguments, parts) in [
        (["--wrt", "z"], ["`z`", "x: f32[3], w: f32[3], n: i32"]),
        (["--wrt", "n"], ["`n`", "no float"]),
        (["--of", "q"], ["`q`", "y: f32, n: i32"]),
        (["--of", "1"], ["`n`", "no float"]),
    ] {
        let (code, _, err) = ran(&[&["ir", "grad", &f][..], &arguments].concat());
        assert!(code == 2 && parts.iter().all(|p| err.contains(p)), "{arguments:?}: {err}");
    }
}

#[test]
fn the_page_is_whole_and_asks_nothing_of_the_network() {
    let path = folder("page").join("page.html").display().to_string();
    for arguments in [&NORM[..], &["--model", "models/tiny", "--function", "decode"]] {
        said(&[&["ir", "html", "--output", &path][..], arguments].concat());
        let page = std::fs::read_to_string(&path).unwrap();
        for what in ["http", "<script", "src=", "@import", "url("] {
            assert!(!page.contains(what), "{what}");
        }
        for pass in PIPELINE {
            assert!(page.contains(&format!("<section id=\"{}\">", pass.name)) && page.contains(pass.why));
        }
        for tag in ["details", "summary", "section", "pre", "div", "i", "code", "table", "svg", "ul", "main", "nav"] {
            let open = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(open, page.matches(&format!("</{tag}>")).count(), "<{tag}>");
        }
        let plan = said(&[&["ir", "plan"][..], arguments].concat());
        let launches = plan.lines().filter(|l| l.starts_with("  %")).count();
        assert_eq!(page.matches("<tr><td>").count(), launches);
        let first = plan.lines().find_map(|l| l.trim().strip_prefix("not ")).unwrap();
        let (kernel, why) = first.split_once(": ").unwrap();
        assert!(page.contains(&format!("<b>{kernel}</b>: {why}")), "{first}");
    }
    let wide = ["--function", "softmax", "--bind", "R=1,C=50000000", "--target", "wgpu"];
    said(&[&["ir", "html", "--output", &path][..], &wide].concat());
    let page = std::fs::read_to_string(&path).unwrap();
    assert!(page.contains("There is no program: ") && page.contains("200000000"), "{page}");
    let (code, _, err) = ran(&[&["ir", "html", "--output", "/no/such/page.html"][..], &NORM].concat());
    assert!(code == 2 && err.contains("/no/such/page.html"), "{err}");
}
