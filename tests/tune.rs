//! `omchat tune` from outside: a table is made within a budget, read by what runs a model, and refused, or passed over
//! entry by entry, where it cannot hold.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MODEL: &str = "tests/fixtures/tiny-b";

fn omchat(arguments: &[&str], tuned: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omchat"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("OMCHAT_TUNED", tuned)
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A table of the tiny model on the CPU, made two seconds at a time until it holds something of a decoding step; nothing
/// where there is no such device.
fn made(folder: &Path) -> Option<PathBuf> {
    if let Err(e) = omchat::Device::open("cpu") {
        println!("skipped: {e}");
        return None;
    }
    std::fs::create_dir_all(folder).unwrap();
    let table = folder.join("cpu.txt");
    let _ = std::fs::remove_file(&table);
    let path = table.display().to_string();
    // What was not measured yet comes first: on a busy machine the first budget is spent on prompts.
    for _ in 0..40 {
        let run = omchat(&["tune", "--model", MODEL, "--device", "cpu", "--budget", "2s", "--table", &path], "");
        let (out, err) = (text(&run.stdout), text(&run.stderr));
        assert!(run.status.success(), "{out}{err}");
        assert!(!err.contains("kept out of"), "{err}");
        assert!(out.contains(&format!("entries in {path}")) && out.contains("classes measured"), "{out}");
        if text(&plan(&path).stdout).contains(" tuned\n") {
            break;
        }
    }
    Some(table)
}

/// The table with its entries changed.
fn changed(table: &Path, name: &str, change: impl Fn(&str) -> String) -> String {
    let path = table.with_file_name(name);
    std::fs::write(&path, change(&std::fs::read_to_string(table).unwrap())).unwrap();
    path.display().to_string()
}

fn plan(table: &str) -> Output {
    let cores = std::thread::available_parallelism().unwrap().to_string();
    omchat(&["ir", "plan", "--model", MODEL, "--target", "cpu", "--cores", &cores, "--table", table], "")
}

#[test]
fn a_table_is_made_read_checked_and_mistrusted() {
    let folder = std::env::temp_dir().join(format!("omchat-tune-{}", std::process::id()));
    let Some(table) = made(&folder) else { return };
    let whole = std::fs::read_to_string(&table).unwrap();
    let entry = |l: &&str| l.contains(" source=") && !l.starts_with('#');
    let entries = whole.lines().filter(entry).count();
    assert!(entries > 0, "{whole}");
    assert!(["device cpu, ", "driver ", "cubecl "].iter().all(|h| whole.lines().any(|l| l.starts_with(h))), "{whole}");

    // It is read: plans say which choices are tuned, a run with it yields the same ids.
    let path = table.display().to_string();
    let (out, err) = (text(&plan(&path).stdout), text(&plan(&path).stderr));
    assert!(out.contains(" tuned\n") && !err.contains("stale"), "{out}{err}");
    let ids = |tuned: &str| {
        let output = folder.join("ids.safetensors").display().to_string();
        let case = format!("{MODEL}/case.safetensors");
        let run = omchat(
            &["generate", "--model", MODEL, "--input", &case, "--output", &output, "--device", "cpu", "--dtype", "f32"],
            tuned,
        );
        (run.status.success(), text(&run.stderr), std::fs::read(&output).unwrap_or_default())
    };
    let (with, without) = (ids(&path), ids("off"));
    assert!(with.0 && without.0, "{}{}", with.1, without.1);
    assert!(with.2 == without.2, "tuned schedules pick other ids");

    // Nothing is stale; whether the order still holds is the clock's to say.
    let check = |path: &str| {
        let run =
            omchat(&["tune", "--model", MODEL, "--device", "cpu", "--budget", "2s", "--check", "--table", path], "");
        (run.status.code(), text(&run.stdout), text(&run.stderr))
    };
    let (_, out, err) = check(&path);
    assert!(out.contains("0 stale, ") && !out.contains("no longer right"), "{out}{err}");
    assert_eq!(std::fs::read_to_string(&table).unwrap(), whole, "a check writes nothing");

    // A line that a hand corrupted is an error that names it, wherever the table is read.
    let broken = changed(&table, "broken.txt", |t| t.replace(" source=", " sauce="));
    let line = whole.lines().position(|l| entry(&l)).unwrap() + 1;
    let (done, err, _) = ids(&broken);
    assert!(!done && err.contains(&format!("broken.txt:{line}: `source=…` is missing")), "{err}");
    assert!(err.contains("mend or remove it"), "{err}");
    let (code, _, err) = check(&broken);
    assert!(code != Some(0) && err.contains(&format!("broken.txt:{line}:")), "{err}");

    // Kernels that have changed since: told, passed over, and an exit code.
    let old = changed(&table, "old.txt", |t| {
        let hashes = t.lines().filter(entry).filter_map(|l| l.split(" source=").nth(1)).map(|l| l[..16].to_string());
        hashes.fold(t.to_string(), |t, h| t.replace(&h, "0123456789abcdef"))
    });
    let (code, out, _) = check(&old);
    assert!(code == Some(1) && out.contains("stale: ") && out.contains(&format!("{entries} stale, ")), "{out}");
    let planned = plan(&old);
    assert!(text(&planned.stderr).contains("0123456789abcdef") && !text(&planned.stdout).contains(" tuned\n"));
    assert!(ids(&old).0);

    // Another driver's table is not taken.
    let foreign = changed(&table, "foreign.txt", |t| t.replace("\ndriver ", "\ndriver older than "));
    let (code, out, _) = check(&foreign);
    assert!(code == Some(1) && out.contains("it is for the driver `older than "), "{out}");
    assert!(text(&omchat(&["doctor"], &foreign).stdout).contains("is not taken: it is for the driver"));

    let missing = folder.join("none.txt").display().to_string();
    let (code, _, err) = check(&missing);
    assert!(code == Some(2) && err.contains("`omchat tune` makes one"), "{err}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A recipe's steps: classes of the backward are there, a chat's programs are not, and what cannot be is said.
#[test]
fn the_steps_of_a_recipe_are_measured() {
    if let Err(e) = omchat::Device::open("cpu") {
        return println!("skipped: {e}");
    }
    let folder = std::env::temp_dir().join(format!("omchat-tune-recipe-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL);
    let recipe = folder.join("recipe.toml");
    let toml = format!(
        "model = \"{}\"\n[data.a]\npath = \"nowhere\"\nlayout = \"text\"\nlabels = \"pretrain\"\n[[stage]]\nname = \"all\"\n\
         context = 96\nbatch_tokens = 192\nmix = {{ a = 100 }}\ntrain = {{ decoder = 1e-3 }}\nsteps = 1\n",
        model.display()
    );
    std::fs::write(&recipe, toml).unwrap();
    let (recipe, table) = (recipe.display().to_string(), folder.join("cpu.txt").display().to_string());
    let tune = ["tune", "--config", &recipe, "--device", "cpu", "--budget", "2s", "--table", &table];
    let run = omchat(&tune, "");
    let (out, err) = (text(&run.stdout), text(&run.stderr));
    assert!(run.status.success(), "{out}{err}");
    let classes = |of: &str| err.lines().filter(|l| l.contains(of)).count();
    assert!(classes("attention_dq:") > 0 && classes("attention_dkv:") > 0, "{err}");
    let entries = std::fs::read_to_string(&table).unwrap();
    assert!(entries.contains("all/batch") && !entries.contains("decoder-"), "{entries}");

    let run = omchat(&["tune", "--config", &recipe, "--model", "mini"], "");
    assert!(text(&run.stderr).contains("cannot be used with"), "{}", text(&run.stderr));
    std::fs::remove_dir_all(&folder).unwrap();
}
